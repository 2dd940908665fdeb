//! The directory: the verified set of relays, and the directory file that a self-hosted network's operator signs.
//!
//! Owns the type that only a verification constructs, the file format, and every reason to refuse a file. It never
//! keeps state: the caller remembers the highest sequence that it has seen.
//!
//! ```text
//! openrelay-directory/1 <signature, 128 hexadecimal digits>\n
//! { JSON body, signed byte for byte }
//! ```

use std::collections::BTreeSet;

use alloy_primitives::B256;
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::hex;
use crate::record::Record;

/// Largest file that is accepted, in bytes: 1 MiB, enough for thousands of relays.
pub const MAX_FILE: usize = 1 << 20;
const HEAD: &str = "openrelay-directory/1 ";
const CONTEXT: &[u8] = b"openrelay-directory/1\n";

/// A directory whose origin, age and records were verified. Only [`Directory::verify`] and
/// [`crate::chain::reading::Reading::verify`] construct one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Directory {
    body: Body,
    network_id: [u8; 32],
    source: Source,
    leaving: Leaving,
}

/// Registered relays that take no new circuits, or of which no more than the registration is known.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Leaving {
    /// Relays that drain.
    pub draining: Vec<Record>,
    /// Relay IDs of serving and draining relays whose descriptor no source provided.
    pub withheld: Vec<u64>,
}

/// What a directory was proven by, and which of its relays cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Block height.
    pub block: u64,
    /// Block hash.
    pub block_hash: B256,
    /// Block time, in seconds since the Unix epoch.
    pub timestamp: u64,
    /// Root of all accounts.
    pub state_root: B256,
    /// Storage root of the Directory contract.
    pub storage_root: B256,
    /// Number of relays whose descriptor no source provided.
    pub withheld: usize,
    /// Number of relays whose descriptor is malformed.
    pub malformed: usize,
    /// Number of relays that are draining, leaving, underbonded or not started.
    pub inactive: usize,
    /// Largest share of one role's weight that relays without descriptor may have, in thousandths, rounded up; see
    /// [`MAX_MISSING`](crate::chain::reading::MAX_MISSING).
    pub missing: u16,
}

/// How a directory was verified.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// By the signature of the network's operator.
    Signed,
    /// By proofs from a chain.
    Chain(Facts),
}

/// The signed content of a directory file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Body {
    /// Name of the network, which is part of every handshake.
    pub network: String,
    /// Sequence number, which rises with each directory of the network.
    pub sequence: u64,
    /// Time of signing, in seconds since the Unix epoch.
    pub issued: u64,
    /// Time of expiry, in seconds since the Unix epoch.
    pub expires: u64,
    /// Whether one person runs all relays and declares it. The rules that keep the hops of a circuit apart would be
    /// meaningless then, so they do not apply.
    #[serde(default)]
    pub single_operator: bool,
    /// Relays of the network.
    pub relays: Vec<Record>,
}

/// Why a directory is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DirectoryError {
    /// The file is too large.
    #[error("the directory has {0} bytes; the limit is {MAX_FILE}")]
    TooLarge(usize),
    /// The file is not a directory file.
    #[error("this is not a directory file: it does not begin with \"{HEAD}\" and a signature")]
    NotADirectory,
    /// The signature is not by the trusted key.
    #[error("the directory is not signed by the trusted key")]
    BadSignature,
    /// The signed text is malformed.
    #[error("the directory is signed but malformed: {0}")]
    Malformed(String),
    /// The directory has expired.
    #[error("the directory expired {0} s ago; fetch or sign a new one")]
    Expired(u64),
    /// The directory is from the future.
    #[error("the directory was signed {0} s in the future; check this machine's clock")]
    NotYetValid(u64),
    /// A newer directory was seen before.
    #[error("the directory is number {found}, but number {seen} was seen before: its source serves an old one")]
    RolledBack {
        /// Sequence of the directory.
        found: u64,
        /// Highest sequence that was seen.
        seen: u64,
    },
}

/// Largest time that this machine's clock may be behind the signer's, in seconds.
const CLOCK_SKEW: u64 = 300;

impl Directory {
    /// Verifies the file in `bytes` against the trusted key, at `now` in seconds since the Unix epoch. `seen` is the
    /// highest sequence seen so far.
    ///
    /// # Errors
    /// [`DirectoryError`]; then nothing of the file may be used.
    pub fn verify(bytes: &[u8], trusted: &[u8; 32], now: u64, seen: u64) -> Result<Self, DirectoryError> {
        if bytes.len() > MAX_FILE {
            return Err(DirectoryError::TooLarge(bytes.len()));
        }
        let rest = bytes.strip_prefix(HEAD.as_bytes()).ok_or(DirectoryError::NotADirectory)?;
        let (signature, body) = rest.split_at_checked(128).ok_or(DirectoryError::NotADirectory)?;
        let signature = std::str::from_utf8(signature).ok().and_then(hex::decode::<64>);
        let (signature, body) = signature.zip(body.strip_prefix(b"\n")).ok_or(DirectoryError::NotADirectory)?;
        UnparsedPublicKey::new(&ED25519, trusted)
            .verify(&[CONTEXT, body].concat(), &signature)
            .map_err(|_| DirectoryError::BadSignature)?;
        let body = Body::from_json(body).map_err(DirectoryError::Malformed)?;
        body.check().map_err(DirectoryError::Malformed)?;
        if now >= body.expires {
            return Err(DirectoryError::Expired(now - body.expires));
        }
        if body.issued > now + CLOCK_SKEW {
            return Err(DirectoryError::NotYetValid(body.issued - now));
        }
        if body.sequence < seen {
            return Err(DirectoryError::RolledBack { found: body.sequence, seen });
        }
        let digest = aws_lc_rs::digest::digest(
            &aws_lc_rs::digest::SHA256,
            &[b"openrelay network\n", &trusted[..], body.network.as_bytes()].concat(),
        );
        let mut network_id = [0; 32];
        network_id.copy_from_slice(digest.as_ref());
        Ok(Self { body, network_id, source: Source::Signed, leaving: Leaving::default() })
    }

    pub(crate) fn proven(body: Body, network_id: [u8; 32], source: Source) -> Self {
        Self { body, network_id, source, leaving: Leaving::default() }
    }

    /// Returns the directory with these relays beside those that serve.
    pub(crate) fn with_leaving(self, leaving: Leaving) -> Self {
        Self { leaving, ..self }
    }

    /// Returns the registered relays that are not among those to choose from. Relays keep running sessions with them.
    pub fn leaving(&self) -> &Leaving {
        &self.leaving
    }

    /// Returns a copy with only the relays that `keep` selects.
    #[must_use]
    pub fn only(&self, keep: impl Fn(&Record) -> bool) -> Self {
        let mut this = self.clone();
        this.body.relays.retain(keep);
        this
    }

    /// Returns the directory's content.
    pub fn body(&self) -> &Body {
        &self.body
    }

    /// Returns how the directory was verified.
    pub fn source(&self) -> Source {
        self.source
    }

    /// Returns the record of this relay.
    pub fn relay(&self, relay_id: u64) -> Option<&Record> {
        self.body.relays.iter().find(|relay| relay.relay_id == relay_id)
    }

    /// Returns the network ID for handshakes: the hash of the network's trust anchor and name.
    pub fn network_id(&self) -> [u8; 32] {
        self.network_id
    }
}

impl Body {
    /// Parses a body.
    ///
    /// # Errors
    /// What is malformed.
    pub fn from_json(bytes: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())
    }

    /// Checks the body, and returns what is wrong with it.
    fn check(&self) -> Result<(), String> {
        if self.network.is_empty() || self.network.len() > 64 {
            return Err("network must have 1 to 64 bytes".into());
        }
        let mut ids = BTreeSet::new();
        for (place, relay) in self.relays.iter().enumerate() {
            if let Some(fault) = relay.fault() {
                return Err(format!("relays[{place}] (relay_id {}): {fault}", relay.relay_id));
            }
            if !ids.insert(relay.relay_id) {
                return Err(format!("relays[{place}]: relay_id {} is listed twice", relay.relay_id));
            }
        }
        Ok(())
    }
}

/// The key that signs a self-hosted directory, or checkpoints.
pub struct DirectoryKey {
    seed: Zeroizing<[u8; 32]>,
    pair: Ed25519KeyPair,
}

impl DirectoryKey {
    /// Returns the key with this seed. `None` only if the library fails, which it never does for a seed of 32 bytes.
    pub fn from_seed(seed: [u8; 32]) -> Option<Self> {
        let seed = Zeroizing::new(seed);
        let pair = Ed25519KeyPair::from_seed_unchecked(&*seed).ok()?;
        Some(Self { seed, pair })
    }

    /// Returns the secret seed, for its file of mode 0600.
    pub fn expose(&self) -> &[u8; 32] {
        &self.seed
    }

    /// Returns the public key, for configurations.
    pub fn public(&self) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(self.pair.public_key().as_ref());
        out
    }

    /// Signs something other than a directory. The message must begin with its own context.
    pub(crate) fn sign_bytes(&self, message: &[u8]) -> [u8; 64] {
        let mut out = [0; 64];
        out.copy_from_slice(self.pair.sign(message).as_ref());
        out
    }

    /// Returns the signed directory file with this body.
    ///
    /// # Errors
    /// What is wrong with the body.
    pub fn sign(&self, body: &Body) -> Result<Vec<u8>, String> {
        body.check()?;
        let mut text = serde_json::to_vec_pretty(body).map_err(|error| error.to_string())?;
        text.push(b'\n');
        let signature = self.pair.sign(&[CONTEXT, &text].concat());
        let mut file = format!("{HEAD}{}\n", hex::encode(signature.as_ref())).into_bytes();
        file.extend_from_slice(&text);
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Role;

    fn body() -> Body {
        let relay = |relay_id, role, endpoint: &str| Record {
            relay_id,
            role,
            handshake_key: hex::encode(&[u8::try_from(relay_id).unwrap(); 32]),
            key_epoch: 0,
            endpoints: vec![endpoint.parse().unwrap()],
            operator: format!("operator {relay_id}"),
            family: None,
            stake: 1,
            bandwidth_mbit: 100,
        };
        Body {
            network: "test".into(),
            sequence: 5,
            issued: 1_000,
            expires: 2_000,
            single_operator: false,
            relays: vec![relay(1, Role::Ingress, "198.51.100.1:443"), relay(2, Role::Egress, "203.0.113.1:443")],
        }
    }

    #[test]
    fn signed_directory_verifies_and_any_other_is_refused() {
        let key = DirectoryKey::from_seed([7; 32]).unwrap();
        let other = DirectoryKey::from_seed([8; 32]).unwrap();
        let file = key.sign(&body()).unwrap();
        let verify = |bytes: &[u8], now, seen| Directory::verify(bytes, &key.public(), now, seen);
        assert_eq!(verify(&file, 1_500, 5).unwrap().body(), &body());
        assert_eq!(verify(&file, 2_000, 5), Err(DirectoryError::Expired(0)));
        assert_eq!(verify(&file, 600, 0), Err(DirectoryError::NotYetValid(400)));
        assert_eq!(verify(&file, 1_500, 6), Err(DirectoryError::RolledBack { found: 5, seen: 6 }));
        assert_eq!(Directory::verify(&file, &other.public(), 1_500, 0), Err(DirectoryError::BadSignature));
        assert_eq!(verify(&vec![0; MAX_FILE + 1], 1_500, 0), Err(DirectoryError::TooLarge(MAX_FILE + 1)));
        assert_eq!(verify(&file[HEAD.len() + 129..], 1_500, 0), Err(DirectoryError::NotADirectory));
        for end in 0..file.len() {
            assert!(verify(&file[..end], 1_500, 0).is_err(), "truncated to {end}");
        }
        for bit in 0..file.len() * 8 {
            let mut copy = file.clone();
            copy[bit / 8] ^= 1 << (bit % 8);
            // Upper-case hexadecimal digits are the same signature.
            let same = copy.eq_ignore_ascii_case(&file) && bit / 8 < HEAD.len() + 128 && bit / 8 >= HEAD.len();
            assert_eq!(verify(&copy, 1_500, 0).is_ok(), same, "bit {bit}");
        }
    }

    #[test]
    fn bad_record_is_not_signed_and_is_named() {
        let key = DirectoryKey::from_seed([7; 32]).unwrap();
        let mut twice = body();
        twice.relays[1].relay_id = 1;
        assert!(key.sign(&twice).unwrap_err().contains("relays[1]"));
        let mut short = body();
        short.relays[0].handshake_key.pop();
        assert!(key.sign(&short).unwrap_err().contains("handshake_key"));
        let mut nowhere = body();
        nowhere.relays[0].endpoints = vec!["0.0.0.0:1".parse().unwrap()];
        assert!(key.sign(&nowhere).is_err());
    }
}
