//! The binding: what a relay's evidence attests, hashed into the 64 bytes that the chip signs for the guest.
//!
//! Owns the encoding and its hash. Evidence belongs to a key epoch, not to a session, so a verifier that has judged it
//! once need not judge it again.
//!
//! ```text
//! report data = SHA-512("openrelay-attest-v1\0" | length 2 | binding)
//! binding     = network 32 | relay id 8 | handshake key 32 | key epoch 4 | roles 1 | image 32
//!             | block hash 32 | block height 8
//! ```
//!
//! Numbers are big-endian.

use aws_lc_rs::digest::{SHA512, digest};

use crate::bytes::Cursor;
use crate::refusal::Refusal;

/// Length of a binding, in bytes.
pub const LENGTH: usize = 149;
const CONTEXT: &[u8] = b"openrelay-attest-v1\0";
const WHAT: &str = "the binding";

/// The claims of a relay that its chip signs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Binding {
    /// Network ID; for a network on a chain, the hash of the chain ID and the Directory contract.
    pub network: [u8; 32],
    /// Relay ID: its number in the registry.
    pub relay_id: u64,
    /// Handshake key, generated inside the TEE.
    pub handshake_key: [u8; 32],
    /// Epoch of that key.
    pub key_epoch: u32,
    /// Roles as bits: 1 ingress, 2 egress.
    pub roles: u8,
    /// SHA-256 of the image that the relay claims to run.
    pub image: [u8; 32],
    /// Hash of a block that was recent when the evidence was made, so that evidence cannot be made in advance.
    pub block_hash: [u8; 32],
    /// Height of that block.
    pub block_height: u64,
}

impl Binding {
    /// Returns the encoded binding.
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
            // The parts add up to exactly `LENGTH` bytes.
            let (place, rest) = std::mem::take(&mut room).split_at_mut(part.len());
            place.copy_from_slice(part);
            room = rest;
        }
        out
    }

    /// Decodes a binding.
    ///
    /// # Errors
    /// [`Refusal::Truncated`], [`Refusal::TrailingBytes`], [`Refusal::NotCanonical`] if the role bits are not 1, 2 or
    /// 3.
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

    /// Returns the 64 bytes that the guest has the chip sign.
    pub fn report_data(&self) -> [u8; 64] {
        let body = self.encode();
        // The length is 149.
        let length = u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes();
        let mut out = [0; 64];
        out.copy_from_slice(digest(&SHA512, &[CONTEXT, &length, &body].concat()).as_ref());
        out
    }
}
