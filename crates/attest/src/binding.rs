//! What a relay's evidence is bound to: the 64 bytes that the guest has the chip sign.
//!
//! Owns the encoding and its hash. Evidence is of a key epoch, not of a session: who has judged it once need not again.
//!
//! ```text
//! report data = SHA-512("openrelay-attest-v1\0" | length 2 | binding)
//! binding     = network 32 | relay id 8 | handshake key 32 | key epoch 4 | roles 1 | image 32 | block hash 32 | block height 8
//! ```
//! Numbers are big-endian.

use aws_lc_rs::digest::{SHA512, digest};

use crate::bytes::Cursor;
use crate::refusal::Refusal;

/// Bytes of a binding.
pub const LENGTH: usize = 149;
const CONTEXT: &[u8] = b"openrelay-attest-v1\0";
const WHAT: &str = "the binding";

/// What a relay says of itself, and has its chip sign.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Binding {
    /// The network: of a chain, the hash of chain and Directory contract.
    pub network: [u8; 32],
    /// Its number in the registry.
    pub relay_id: u64,
    /// The handshake key that was made inside.
    pub handshake_key: [u8; 32],
    /// The epoch of that key.
    pub key_epoch: u32,
    /// What it serves as, in bits: 1 ingress, 2 egress.
    pub roles: u8,
    /// SHA-256 of the image that it says it runs.
    pub image: [u8; 32],
    /// A block that was young then, so that evidence is not made in advance.
    pub block_hash: [u8; 32],
    /// Its height.
    pub block_height: u64,
}

impl Binding {
    /// Its bytes.
    pub fn encode(&self) -> [u8; LENGTH] {
        let mut out = [0; LENGTH];
        let parts: [&[u8]; 8] = [
            &self.network,
            &self.relay_id.to_be_bytes(),
            &self.handshake_key,
            &self.key_epoch.to_be_bytes(),
            &[self.roles],
            &self.image,
            &self.block_hash,
            &self.block_height.to_be_bytes(),
        ];
        let mut room = &mut out[..];
        for part in parts {
            // Together they are just as long.
            let (place, rest) = std::mem::take(&mut room).split_at_mut(part.len());
            place.copy_from_slice(part);
            room = rest;
        }
        out
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Refusal::Truncated`], [`Refusal::TrailingBytes`], [`Refusal::NotCanonical`] for roles that are none.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        let mut cursor = Cursor::new(bytes, WHAT);
        let this = Self {
            network: cursor.array()?,
            relay_id: u64::from_be_bytes(cursor.array()?),
            handshake_key: cursor.array()?,
            key_epoch: u32::from_be_bytes(cursor.array()?),
            roles: u8::from_be_bytes(cursor.array()?),
            image: cursor.array()?,
            block_hash: cursor.array()?,
            block_height: u64::from_be_bytes(cursor.array()?),
        };
        cursor.end()?;
        if !(1..=3).contains(&this.roles) {
            return Err(Refusal::NotCanonical { what: WHAT });
        }
        Ok(this)
    }

    /// What the guest has the chip sign.
    pub fn report_data(&self) -> [u8; 64] {
        let body = self.encode();
        // 149.
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
        let mut out = [0; 64];
        out.copy_from_slice(digest(&SHA512, &[CONTEXT, &length, &body].concat()).as_ref());
        out
    }
}
