//! Keys of relays, and the primitives that the handshake uses.
//!
//! Owns X25519, SHA-256, HMAC and HKDF as the protocol uses them; the primitives are aws-lc's.
//! Secrets are wiped when dropped and never printed.

use aws_lc_rs::{agreement, digest, hmac};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::random::{Random, array};

/// A relay's stable number in the registry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RelayId(pub u64);

/// A relay's public handshake key: X25519, 32 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayKey([u8; 32]);

impl std::fmt::Debug for RelayKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RelayKey({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

impl RelayKey {
    /// Makes a key of these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the key's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// A secret of 32 bytes; wiped when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(crate) struct Secret(pub(crate) [u8; 32]);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A relay's secret handshake key: X25519.
pub struct RelaySecret {
    secret: Secret,
    /// Made once, because making it computes the public key again: a third of the cost of an agreement.
    key: agreement::PrivateKey,
    public: RelayKey,
}

impl Clone for RelaySecret {
    fn clone(&self) -> Self {
        Self::from_bytes(self.secret.0)
    }
}

impl std::fmt::Debug for RelaySecret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("RelaySecret(…)")
    }
}

impl RelaySecret {
    /// Generates a fresh key.
    pub fn generate(random: &mut dyn Random) -> Self {
        Self::from_bytes(array(random))
    }

    /// Makes a key of these secret bytes.
    #[expect(clippy::expect_used, reason = "every 32 bytes are an X25519 private key (RFC 7748 §5)")]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        let secret = Secret(bytes);
        let key = agreement::PrivateKey::from_private_key(&agreement::X25519, &secret.0).expect("any 32 bytes");
        let public = key.compute_public_key().expect("a private key has a public key");
        let mut raw = [0; 32];
        raw.copy_from_slice(public.as_ref());
        Self { secret, key, public: RelayKey(raw) }
    }

    /// Returns the secret bytes, for the file (mode 0600) of a self-hosted relay.
    pub fn expose(&self) -> &[u8; 32] {
        &self.secret.0
    }

    /// Returns the public key.
    pub fn public(&self) -> RelayKey {
        self.public
    }

    /// Computes the shared secret with `peer`; `None` when it is all zero, which low-order points cause.
    ///
    /// Source: RFC 7748 §6.1.
    pub(crate) fn agree(&self, peer: &[u8; 32]) -> Option<Secret> {
        let peer = agreement::UnparsedPublicKey::new(&agreement::X25519, peer);
        agreement::agree(&self.key, peer, (), |shared| {
            let mut out = Secret([0; 32]);
            if shared.len() != 32 || shared.iter().all(|&b| b == 0) {
                return Err(());
            }
            out.0.copy_from_slice(shared);
            Ok(out)
        })
        .ok()
    }
}

/// Computes SHA-256 over the concatenated parts.
pub(crate) fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

/// Computes HMAC-SHA-256 over the concatenated parts.
pub(crate) fn hmac_sha256(key: &[u8], parts: &[&[u8]]) -> [u8; 32] {
    mac(&hmac::Key::new(hmac::HMAC_SHA256, key), parts)
}

/// A key for many HMACs, prepared once; aws-lc wipes it.
pub(crate) struct MacKey(hmac::Key);

impl MacKey {
    pub(crate) fn new(secret: &Secret) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, &secret.0))
    }

    /// Computes HMAC-SHA-256 over the concatenated parts.
    pub(crate) fn mac(&self, parts: &[&[u8]]) -> [u8; 32] {
        mac(&self.0, parts)
    }
}

impl std::fmt::Debug for MacKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MacKey(…)")
    }
}

fn mac(key: &hmac::Key, parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

/// Noise's HKDF with two outputs. Source: Noise revision 34 §4.3.
pub(crate) fn hkdf2(chaining_key: &[u8; 32], input: &[u8]) -> (Secret, Secret) {
    let temp = Secret(hmac_sha256(chaining_key, &[input]));
    let first = Secret(hmac_sha256(&temp.0, &[&[1]]));
    let second = Secret(hmac_sha256(&temp.0, &[&first.0, &[2]]));
    (first, second)
}

/// Derives a key from `secret` for the purpose `label`: HKDF-Expand with one block.
///
/// Source: RFC 5869 §2.3.
pub(crate) fn expand(secret: &Secret, label: &[u8]) -> Secret {
    Secret(hmac_sha256(&secret.0, &[label, &[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex<const N: usize>(text: &str) -> [u8; N] {
        let mut digits = text.chars().map(|digit| u8::try_from(digit.to_digit(16).unwrap()).unwrap());
        [(); N].map(|()| digits.next().unwrap() * 16 + digits.next().unwrap())
    }

    /// Source: RFC 7748 §6.1.
    #[test]
    fn x25519_matches_the_rfc() {
        let alice = RelaySecret::from_bytes(hex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a"));
        let bob = RelaySecret::from_bytes(hex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb"));
        assert_eq!(bob.public().0, hex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"));
        let shared = hex("4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742");
        assert_eq!(alice.agree(bob.public().as_bytes()).unwrap().0, shared);
        assert_eq!(bob.agree(alice.public().as_bytes()).unwrap().0, shared);
    }

    #[test]
    fn low_order_points_are_refused() {
        let key = RelaySecret::from_bytes([9; 32]);
        let mut one = [0; 32];
        one[0] = 1;
        assert!(key.agree(&[0; 32]).is_none());
        assert!(key.agree(&one).is_none());
    }
}
