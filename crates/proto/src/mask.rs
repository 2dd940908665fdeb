//! Masks of packet type and receiver index.
//!
//! Owns the two masks of each relay, whose keys follow from the relay's public handshake key. A scanner that does not
//! know the relay sees no constant byte; anyone who knows the relay can remove the mask.
//!
//! Source: RFC 9001 §5.4 (sampling); the derivation is ours.

use crate::keys::{RelayKey, sha256};
use crate::suite::MaskKey;
use crate::wire::PacketType;

/// Masks type and index of packets in one direction.
#[derive(Debug)]
pub struct IndexMask(MaskKey);

impl IndexMask {
    /// Returns the mask of packets to the relay with `key`.
    pub fn to_relay(key: &RelayKey) -> Self {
        Self::derive(b"ORP/1 index mask, to relay", key)
    }

    /// Returns the mask of packets from the relay with `key` to its clients.
    pub fn to_client(key: &RelayKey) -> Self {
        Self::derive(b"ORP/1 index mask, to client", key)
    }

    fn derive(label: &[u8], key: &RelayKey) -> Self {
        let digest = sha256(&[label, key.as_bytes()]);
        let mut short = [0; 16];
        short.copy_from_slice(&digest[..16]);
        Self(MaskKey::of_index(&short))
    }

    /// Unmasks the first five bytes of `datagram` in place and parses them. Returns `None` when it is too short or of
    /// an unknown type.
    pub fn remove(&self, datagram: &mut [u8]) -> Option<(PacketType, u32)> {
        let mask = self.0.mask(datagram)?;
        let (type_byte, index) = read(datagram.first_chunk_mut::<5>()?, mask);
        Some((PacketType::parse(type_byte)?, index))
    }

    /// Masks the first five bytes of `datagram`, which must be sealed: the mask samples the ciphertext.
    pub(crate) fn apply(&self, datagram: &mut [u8]) {
        if let (Some(mask), Some(head)) = (self.0.mask(datagram), datagram.first_chunk_mut::<5>()) {
            read(head, mask);
        }
    }
}

fn read(head: &mut [u8; 5], mask: [u8; 5]) -> (u8, u32) {
    for (byte, mask) in head.iter_mut().zip(mask) {
        *byte ^= mask;
    }
    let [type_byte, index @ ..] = *head;
    (type_byte, u32::from_be_bytes(index))
}
