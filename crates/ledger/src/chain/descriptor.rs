//! Descriptors: what an operator publishes about a relay.
//!
//! Owns the encoding, which is canonical: input that does not re-encode to the same bytes is refused. The chain never
//! holds a descriptor itself, only its hash within the record's hash.
//!
//! ```text
//! version 1 | roles 1 | key epoch 4 | handshake key 32 | image 32 | key root 32 | endpoints 1 | family 1
//! per endpoint: kind 1 (4 or 6) | address 4 or 16 | port 2          per family: its bytes
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use alloy_primitives::{B256, keccak256};

use crate::record::Role;

/// Largest descriptor, in bytes: two endpoints and the longest family.
pub const MAX_DESCRIPTOR: usize = 1 + 1 + 4 + 3 * 32 + 2 + (1 + 4 + 2) + (1 + 16 + 2) + MAX_FAMILY;
/// Longest family, in bytes.
pub const MAX_FAMILY: usize = 32;
const VERSION: u8 = 1;
const INGRESS: u8 = 1;
const EGRESS: u8 = 2;

/// A relay's descriptor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Descriptor {
    /// Role.
    pub role: Role,
    /// Number of times that the handshake key was replaced.
    pub key_epoch: u32,
    /// Handshake key, X25519.
    pub handshake_key: [u8; 32],
    /// Hash of the image that the relay claims to run; zeros if it claims none.
    pub image: B256,
    /// Root of the keys that the relay will meter with; zeros if there are none.
    pub key_root: B256,
    /// Addresses on which the relay listens: one address, or an IPv4 and then an IPv6 address.
    pub endpoints: Vec<SocketAddr>,
    /// Family that the operator declares; lower-case letters, digits and hyphens.
    pub family: Option<String>,
}

/// A malformed descriptor, with the reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the descriptor is malformed: {0}")]
pub struct MalformedDescriptor(&'static str);

impl Descriptor {
    /// Returns the encoded descriptor.
    ///
    /// # Errors
    /// [`MalformedDescriptor`] if the fields break a rule.
    pub fn encode(&self) -> Result<Vec<u8>, MalformedDescriptor> {
        self.check()?;
        let role = match self.role {
            Role::Ingress => INGRESS,
            Role::Egress => EGRESS,
        };
        let family = self.family.as_deref().unwrap_or("");
        let mut out = vec![VERSION, role];
        out.extend(self.key_epoch.to_be_bytes());
        out.extend(self.handshake_key);
        out.extend(self.image);
        out.extend(self.key_root);
        out.push(length(self.endpoints.len())?);
        out.push(length(family.len())?);
        for endpoint in &self.endpoints {
            match endpoint.ip() {
                IpAddr::V4(address) => out.extend([&[4], &address.octets()[..]].concat()),
                IpAddr::V6(address) => out.extend([&[6], &address.octets()[..]].concat()),
            }
            out.extend(endpoint.port().to_be_bytes());
        }
        out.extend(family.as_bytes());
        Ok(out)
    }

    /// Decodes a descriptor.
    ///
    /// # Errors
    /// [`MalformedDescriptor`] if the bytes are malformed or the fields break a rule.
    pub fn decode(bytes: &[u8]) -> Result<Self, MalformedDescriptor> {
        let mut rest = bytes;
        let [version, role] = take(&mut rest)?;
        if version != VERSION {
            return Err(MalformedDescriptor("its version is not supported"));
        }
        let role = match role {
            INGRESS => Role::Ingress,
            EGRESS => Role::Egress,
            _ => return Err(MalformedDescriptor("its role is unknown")),
        };
        let key_epoch = u32::from_be_bytes(take(&mut rest)?);
        let (handshake_key, image, key_root) =
            (take(&mut rest)?, B256::new(take(&mut rest)?), B256::new(take(&mut rest)?));
        let [count, family_len] = take(&mut rest)?;
        if count > 2 || usize::from(family_len) > MAX_FAMILY {
            return Err(MalformedDescriptor("it has too many endpoints, or its family is too long"));
        }
        let mut endpoints = Vec::new();
        for _ in 0..count {
            let ip = match take(&mut rest)? {
                [4] => IpAddr::V4(Ipv4Addr::from(take::<4>(&mut rest)?)),
                [6] => IpAddr::V6(Ipv6Addr::from(take::<16>(&mut rest)?)),
                [_] => return Err(MalformedDescriptor("the kind of an endpoint is neither 4 nor 6")),
            };
            endpoints.push(SocketAddr::new(ip, u16::from_be_bytes(take(&mut rest)?)));
        }
        if rest.len() != usize::from(family_len) {
            return Err(MalformedDescriptor("its length differs from its length fields"));
        }
        let family = std::str::from_utf8(rest).map_err(|_| MalformedDescriptor("its family is not UTF-8"))?;
        let family = (!family.is_empty()).then(|| family.to_owned());
        let this = Self { role, key_epoch, handshake_key, image, key_root, endpoints, family };
        this.check()?;
        Ok(this)
    }

    /// Returns the hash of an encoded descriptor, which the chain's record covers.
    pub fn hash(bytes: &[u8]) -> B256 {
        keccak256(bytes)
    }

    fn check(&self) -> Result<(), MalformedDescriptor> {
        let kinds: Vec<bool> = self.endpoints.iter().map(SocketAddr::is_ipv6).collect();
        if !matches!(kinds.as_slice(), [_] | [false, true]) {
            return Err(MalformedDescriptor("it must have one endpoint, or an IPv4 and then an IPv6 endpoint"));
        }
        if !self.endpoints.iter().all(is_public) {
            return Err(MalformedDescriptor("an endpoint is not a public address, or has port 0"));
        }
        let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        if self.family.as_ref().is_some_and(|f| f.is_empty() || f.len() > MAX_FAMILY || !f.bytes().all(is_plain)) {
            return Err(MalformedDescriptor("its family must be 1 to 32 lower-case letters, digits and hyphens"));
        }
        Ok(())
    }
}

/// Returns whether an endpoint is publicly routable: not private, shared, local, multicast or reserved. Documentation
/// and benchmark ranges pass, because test networks use them and nobody has a route to them.
fn is_public(endpoint: &SocketAddr) -> bool {
    endpoint.port() != 0
        && match endpoint.ip() {
            IpAddr::V4(v4) => {
                let [a, b, ..] = v4.octets();
                !(v4.is_private() || v4.is_loopback() || v4.is_link_local() || v4.is_multicast())
                    && !(a == 0 || a >= 240 || (a == 100 && b & 0xc0 == 64))
            }
            IpAddr::V6(v6) => v6.segments()[0] & 0xe000 == 0x2000 && v6.to_ipv4_mapped().is_none(),
        }
}

fn length(length: usize) -> Result<u8, MalformedDescriptor> {
    u8::try_from(length).map_err(|_| MalformedDescriptor("it is too long"))
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], MalformedDescriptor> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(MalformedDescriptor("it ends too early"))?;
    *rest = tail;
    Ok(*head)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn any_descriptor() -> impl Strategy<Value = Descriptor> {
        let v4 = (1u8..=9, any::<[u8; 3]>(), 1u16..)
            .prop_map(|(a, rest, port)| SocketAddr::new(Ipv4Addr::from([a, rest[0], rest[1], rest[2]]).into(), port));
        let v6 = (any::<[u8; 14]>(), 1u16..).prop_map(|(rest, port)| {
            let mut octets = [0x20; 16];
            octets[2..].copy_from_slice(&rest);
            SocketAddr::new(Ipv6Addr::from(octets).into(), port)
        });
        let endpoints = (prop::option::of(v4), v6, any::<bool>()).prop_map(|(v4, v6, both)| match v4 {
            Some(v4) if both => vec![v4, v6],
            Some(v4) => vec![v4],
            None => vec![v6],
        });
        (any::<bool>(), any::<u32>(), any::<[[u8; 32]; 3]>(), endpoints, prop::option::of("[a-z0-9-]{1,32}")).prop_map(
            |(ingress, key_epoch, [handshake_key, image, key_root], endpoints, family)| Descriptor {
                role: if ingress { Role::Ingress } else { Role::Egress },
                key_epoch,
                handshake_key,
                image: image.into(),
                key_root: key_root.into(),
                endpoints,
                family,
            },
        )
    }

    proptest! {
        #[test]
        fn encoded_descriptor_decodes_and_truncated_or_extended_one_is_refused(descriptor in any_descriptor()) {
            let bytes = descriptor.encode().unwrap();
            prop_assert!(bytes.len() <= MAX_DESCRIPTOR);
            prop_assert_eq!(Descriptor::decode(&bytes), Ok(descriptor));
            for end in 0..bytes.len() {
                prop_assert!(Descriptor::decode(&bytes[..end]).is_err());
            }
            prop_assert!(Descriptor::decode(&[&bytes[..], b"a"].concat()).is_err());
        }

        #[test]
        fn decoded_descriptor_encodes_to_the_same_bytes(
            descriptor in any_descriptor(),
            at in any::<prop::sample::Index>(),
            byte: u8,
        ) {
            let mut bytes = descriptor.encode().unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            if let Ok(read) = Descriptor::decode(&bytes) {
                prop_assert_eq!(read.encode().unwrap(), bytes);
            }
        }
    }

    #[test]
    fn endpoint_that_is_not_publicly_routable_is_refused() {
        let descriptor = |endpoints: &[&str]| Descriptor {
            role: Role::Egress,
            key_epoch: 0,
            handshake_key: [1; 32],
            image: B256::ZERO,
            key_root: B256::ZERO,
            endpoints: endpoints.iter().map(|endpoint| endpoint.parse().unwrap()).collect(),
            family: None,
        };
        for bad in [
            &["10.0.0.1:443"][..],
            &["127.0.0.1:443"],
            &["169.254.1.1:443"],
            &["100.64.0.1:443"],
            &["0.1.2.3:443"],
            &["224.0.0.1:443"],
            &["255.255.255.255:443"],
            &["192.0.2.1:0"],
            &["[::1]:443"],
            &["[fe80::1]:443"],
            &["[fd00::1]:443"],
            &["[::ffff:192.0.2.1]:443"],
            &[],
            &["[2a10::1]:443", "192.0.2.1:443"],
            &["192.0.2.1:443", "192.0.2.2:443"],
        ] {
            assert!(descriptor(bad).encode().is_err(), "{bad:?}");
        }
        for good in [&["192.0.2.1:443"][..], &["[2a10::1]:443"], &["198.18.1.2:443", "[2a10::1]:443"]] {
            assert!(descriptor(good).encode().is_ok(), "{good:?}");
        }
    }
}
