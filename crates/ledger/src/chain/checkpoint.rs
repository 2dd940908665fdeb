//! Checkpoints: blocks signed by a quorum of a release's keys, for a client that starts for the first time or reaches
//! no endpoint.
//!
//! Owns the format and the check. A checkpoint replaces the quorum of endpoints and nothing else: everything below the
//! header is still proven. It never signs a block by itself. The holder of a key checks the chain first.
//!
//! ```text
//! "openrelay-checkpoint/1\n" | chain id 8 | height 8 | block hash 32 | timestamp 8 | count 1
//!                            | per signature, by rising key: key's place 1 | Ed25519 signature 64
//! with the reading at this block: length 4, checkpoint | reading to the end
//! ```

use alloy_primitives::B256;
use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};

use super::header::Header;
use super::reading::{MAX_READING, Reading, ReadingError, Trust};
use crate::directory::{Directory, DirectoryKey};

const HEAD: &[u8] = b"openrelay-checkpoint/1\n";
/// Prefix of the signed message.
const CONTEXT: &[u8] = b"openrelay checkpoint v1\0";
/// Maximum number of keys, and of signatures.
pub const MAX_KEYS: usize = 32;
const BODY: usize = 8 + 8 + 32 + 8;
const SIGNATURE: usize = 1 + 64;
/// Largest checkpoint with its reading, in bytes.
pub const MAX_FILE: usize = 4 + HEAD.len() + BODY + 1 + MAX_KEYS * SIGNATURE + MAX_READING;

/// A block of a chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checkpoint {
    /// Chain ID.
    pub chain_id: u64,
    /// Block height.
    pub number: u64,
    /// Block hash.
    pub hash: B256,
    /// Block time, in seconds since the Unix epoch.
    pub timestamp: u64,
}

/// The keys whose signatures count, and the quorum of them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Signers {
    /// Ed25519 public keys. A signature names its key by the position in this list.
    pub keys: Vec<[u8; 32]>,
    /// Number of keys that must have signed.
    pub quorum: usize,
}

/// A checkpoint with its signatures, which are not verified yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Signed {
    /// The block.
    pub checkpoint: Checkpoint,
    /// Positions of keys, ascending, and their signatures.
    signatures: Vec<(u8, [u8; 64])>,
}

/// A checkpoint and the reading at its block.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CheckpointFile {
    /// The checkpoint with its signatures.
    pub signed: Signed,
    /// The reading, which proves the directory at that block.
    pub reading: Reading,
}

/// Why a checkpoint is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The bytes are not a checkpoint.
    #[error("this is not a checkpoint")]
    Malformed,
    /// No keys are trusted.
    #[error("no checkpoint keys are trusted here")]
    NoKeys,
    /// A wrong signature, or one by a key that is not trusted.
    #[error("the signature of key {0} is invalid")]
    BadSignature(u8),
    /// Fewer signatures than the quorum.
    #[error("{found} of the trusted keys have signed the checkpoint; {quorum} must")]
    TooFew {
        /// Number of valid signatures.
        found: usize,
        /// Number of signatures that are required.
        quorum: usize,
    },
    /// The checkpoint is for another chain.
    #[error("the checkpoint is for chain {0}")]
    OtherChain(u64),
    /// The reading is for another block.
    #[error("the checkpoint's reading is of another block")]
    OtherBlock,
    /// The reading is refused.
    #[error(transparent)]
    Reading(#[from] ReadingError),
}

impl Checkpoint {
    fn body(&self) -> [u8; BODY] {
        let mut out = [0; BODY];
        out[..8].copy_from_slice(&self.chain_id.to_be_bytes());
        out[8..16].copy_from_slice(&self.number.to_be_bytes());
        out[16..48].copy_from_slice(self.hash.as_slice());
        out[48..].copy_from_slice(&self.timestamp.to_be_bytes());
        out
    }

    fn message(&self) -> Vec<u8> {
        [CONTEXT, &self.body()].concat()
    }
}

impl Signed {
    /// Creates a checkpoint without signatures.
    pub const fn new(checkpoint: Checkpoint) -> Self {
        Self { checkpoint, signatures: Vec::new() }
    }

    /// Adds the signature of the key at this position. It replaces an earlier signature by the same key.
    pub fn sign(&mut self, place: u8, key: &DirectoryKey) {
        let signature = key.sign_bytes(&self.checkpoint.message());
        self.signatures.retain(|(other, _)| *other != place);
        self.signatures.push((place, signature));
        self.signatures.sort_unstable_by_key(|(place, _)| *place);
    }

    /// Verifies the signatures, and returns the checkpoint if a quorum of the keys signed it.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn verify(&self, signers: &Signers, chain_id: u64) -> Result<Checkpoint, CheckpointError> {
        if signers.quorum == 0 || signers.keys.len() < signers.quorum {
            return Err(CheckpointError::NoKeys);
        }
        if self.checkpoint.chain_id != chain_id {
            return Err(CheckpointError::OtherChain(self.checkpoint.chain_id));
        }
        let message = self.checkpoint.message();
        for (place, signature) in &self.signatures {
            let key = signers.keys.get(usize::from(*place)).ok_or(CheckpointError::BadSignature(*place))?;
            let checked = UnparsedPublicKey::new(&ED25519, key).verify(&message, signature);
            checked.map_err(|_| CheckpointError::BadSignature(*place))?;
        }
        // Positions ascend, so no key is counted twice.
        let (found, quorum) = (self.signatures.len(), signers.quorum);
        if found < quorum { Err(CheckpointError::TooFew { found, quorum }) } else { Ok(self.checkpoint) }
    }

    /// Returns the encoded checkpoint and signatures.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = [HEAD, &self.checkpoint.body()].concat();
        // There are at most as many signatures as positions.
        out.push(u8::try_from(self.signatures.len()).unwrap_or(u8::MAX));
        for (place, signature) in &self.signatures {
            out.push(*place);
            out.extend(signature);
        }
        out
    }

    /// Decodes a checkpoint and its signatures. Checks the format only, which is canonical.
    ///
    /// # Errors
    /// [`CheckpointError::Malformed`].
    pub fn decode(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let malformed = CheckpointError::Malformed;
        let rest = bytes.strip_prefix(HEAD).ok_or(malformed.clone())?;
        let (body, rest) = rest.split_first_chunk::<BODY>().ok_or(malformed.clone())?;
        let ([count], rest) = rest.split_first_chunk::<1>().ok_or(malformed.clone())?;
        let count = usize::from(*count);
        if count > MAX_KEYS || rest.len() != count * SIGNATURE {
            return Err(malformed);
        }
        let number = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| body[at + i]));
        let checkpoint = Checkpoint {
            chain_id: number(0),
            number: number(8),
            hash: B256::from_slice(&body[16..48]),
            timestamp: number(48),
        };
        let signature = |one: &[u8]| (one[0], std::array::from_fn(|i| one[1 + i]));
        let signatures: Vec<(u8, [u8; 64])> = rest.chunks_exact(SIGNATURE).map(signature).collect();
        if !signatures.is_sorted_by(|one, next| one.0 < next.0) {
            return Err(malformed);
        }
        Ok(Self { checkpoint, signatures })
    }
}

impl CheckpointFile {
    /// Verifies the checkpoint's signatures in place of a quorum of endpoints, and everything that [`Reading::verify`]
    /// checks. Returns the directory at the checkpoint's block.
    ///
    /// # Errors
    /// [`CheckpointError`].
    pub fn verify(
        &self,
        signers: &Signers,
        trust: &Trust,
        now: u64,
        max_age: u64,
        seen: u64,
    ) -> Result<Directory, CheckpointError> {
        self.signed.verify(signers, trust.chain_id)?;
        self.fits()?;
        Ok(self.reading.verify(trust, now, max_age, seen)?)
    }

    /// Checks that the reading is for the checkpoint's block.
    ///
    /// # Errors
    /// [`CheckpointError::OtherBlock`], or [`CheckpointError::Reading`] if the header is malformed.
    pub fn fits(&self) -> Result<(), CheckpointError> {
        let header = Header::decode(&self.reading.header).map_err(ReadingError::from)?;
        let signed = self.signed.checkpoint;
        let same = (header.number, header.hash, header.timestamp) == (signed.number, signed.hash, signed.timestamp);
        if same { Ok(()) } else { Err(CheckpointError::OtherBlock) }
    }

    /// Returns the encoded file; `None` if a part exceeds its limit.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let (signed, reading) = (self.signed.encode(), self.reading.encode()?);
        Some([&u32::try_from(signed.len()).ok()?.to_be_bytes()[..], &signed, &reading].concat())
    }

    /// Decodes a file. Checks the format only.
    ///
    /// # Errors
    /// [`CheckpointError::Malformed`], or [`CheckpointError::Reading`] if the reading is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, CheckpointError> {
        let malformed = CheckpointError::Malformed;
        let (length, rest) = bytes.split_first_chunk::<4>().ok_or(malformed.clone())?;
        let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
        let (signed, reading) = rest.split_at_checked(length).ok_or(malformed)?;
        Ok(Self { signed: Signed::decode(signed)?, reading: Reading::decode(reading)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> DirectoryKey {
        DirectoryKey::from_seed([number; 32]).unwrap()
    }

    fn signers() -> Signers {
        Signers { keys: (1..=3).map(|number| key(number).public()).collect(), quorum: 2 }
    }

    fn signed(places: &[(u8, u8)]) -> Signed {
        let checkpoint = Checkpoint { chain_id: 1, number: 7, hash: B256::repeat_byte(9), timestamp: 1_000 };
        let mut signed = Signed::new(checkpoint);
        for (place, number) in places {
            signed.sign(*place, &key(*number));
        }
        signed
    }

    #[test]
    fn quorum_of_trusted_keys_must_sign() {
        let check = |places: &[(u8, u8)]| signed(places).verify(&signers(), 1);
        assert!(check(&[(0, 1), (2, 3)]).is_ok());
        assert!(check(&[(2, 3), (0, 1), (1, 2)]).is_ok());
        assert_eq!(check(&[(0, 1)]), Err(CheckpointError::TooFew { found: 1, quorum: 2 }));
        assert_eq!(check(&[(0, 1), (0, 1)]), Err(CheckpointError::TooFew { found: 1, quorum: 2 }));
        assert_eq!(check(&[(0, 1), (1, 9)]), Err(CheckpointError::BadSignature(1)), "a stranger in a key's place");
        assert_eq!(check(&[(0, 1), (1, 1)]), Err(CheckpointError::BadSignature(1)), "one key in two places");
        assert_eq!(
            check(&[(0, 1), (1, 2), (3, 9)]),
            Err(CheckpointError::BadSignature(3)),
            "a key that is not trusted"
        );
        assert_eq!(signed(&[(0, 1), (1, 2)]).verify(&signers(), 2), Err(CheckpointError::OtherChain(1)));
        for quorum in [0, 4] {
            let none = Signers { quorum, ..signers() };
            assert_eq!(signed(&[(0, 1), (1, 2)]).verify(&none, 1), Err(CheckpointError::NoKeys));
        }
    }

    #[test]
    fn encoded_checkpoint_decodes_and_any_other_bytes_are_refused() {
        let whole = signed(&[(0, 1), (2, 3)]);
        let bytes = whole.encode();
        assert_eq!(Signed::decode(&bytes), Ok(whole));
        for end in 0..bytes.len() {
            assert!(Signed::decode(&bytes[..end]).is_err(), "truncated to {end}");
        }
        assert!(Signed::decode(&[&bytes[..], &[0]].concat()).is_err(), "something after it");
        for bit in 0..bytes.len() * 8 {
            let mut copy = bytes.clone();
            copy[bit / 8] ^= 1 << (bit % 8);
            let verified = Signed::decode(&copy).and_then(|signed| signed.verify(&signers(), 1));
            assert!(verified.is_err(), "bit {bit}");
        }
    }
}
