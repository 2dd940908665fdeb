//! Ciphers of a session: AES-256-GCM and ChaCha20-Poly1305, with their header masks.
//!
//! Owns the AEAD and mask keys; the primitives are aws-lc's. Never chooses nonces: the session does,
//! one for each key and counter.

use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aes::{Aes128Enc, Aes256Enc};
use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey, quic};

use crate::wire::{HEADER_LEN, MIN_DATAGRAM, TAG_LEN};

/// The AEAD of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suite {
    /// AES-256-GCM: where both ends have AES instructions.
    Aes256Gcm,
    /// ChaCha20-Poly1305: everywhere else.
    ChaCha20Poly1305,
}

impl Suite {
    /// The number in a reply: the one bit of [`Suites`].
    pub const fn byte(self) -> u8 {
        match self {
            Self::Aes256Gcm => 1,
            Self::ChaCha20Poly1305 => 2,
        }
    }

    /// The suite with this number.
    pub const fn parse(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Aes256Gcm),
            2 => Some(Self::ChaCha20Poly1305),
            _ => None,
        }
    }

    fn aead(self) -> &'static aead::Algorithm {
        match self {
            Self::Aes256Gcm => &aead::AES_256_GCM,
            Self::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
        }
    }
}

/// A non-empty set of suites.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Suites(u8);

impl Suites {
    /// Both suites.
    pub const ALL: Self = Self(3);
    /// ChaCha20-Poly1305 alone.
    pub const CHACHA: Self = Self(2);

    /// The set with these bits; `None` for an empty set and for bits without a suite.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            1..=3 => Some(Self(bits)),
            _ => None,
        }
    }

    /// The set as bits.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Whether the set has `suite`.
    pub const fn contains(self, suite: Suite) -> bool {
        self.0 & suite.byte() != 0
    }

    /// The suite that both sets have, AES-256-GCM first; `None` when they share none.
    pub const fn agree(self, other: Self) -> Option<Suite> {
        let both = self.0 & other.0;
        if both & 1 != 0 {
            Some(Suite::Aes256Gcm)
        } else if both & 2 != 0 {
            Some(Suite::ChaCha20Poly1305)
        } else {
            None
        }
    }
}

/// The AEAD refused: a wrong tag when opening, a wrong length otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused;

/// A key of one direction and epoch.
pub(crate) struct PacketKey(LessSafeKey);

impl std::fmt::Debug for PacketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PacketKey(…)")
    }
}

impl PacketKey {
    #[expect(clippy::expect_used, reason = "32 bytes are the key length of both suites")]
    pub(crate) fn new(suite: Suite, key: &[u8; 32]) -> Self {
        Self(LessSafeKey::new(UnboundKey::new(suite.aead(), key).expect("32-byte key")))
    }

    /// Seals `datagram` in place: header, plaintext, and room for the tag at the end.
    pub(crate) fn seal(&self, counter: u64, datagram: &mut [u8]) -> Result<(), Refused> {
        let (header, rest) = datagram.split_first_chunk_mut::<HEADER_LEN>().ok_or(Refused)?;
        let (body, tag_room) = rest.split_last_chunk_mut::<TAG_LEN>().ok_or(Refused)?;
        let aad = Aad::from(*header);
        let tag = self.0.seal_in_place_separate_tag(nonce(counter), aad, body).map_err(|_| Refused)?;
        tag_room.copy_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens `datagram` in place; on success the plaintext stands between header and tag.
    pub(crate) fn open(&self, counter: u64, datagram: &mut [u8]) -> Result<(), Refused> {
        let (header, body) = datagram.split_first_chunk_mut::<HEADER_LEN>().ok_or(Refused)?;
        let aad = Aad::from(*header);
        self.0.open_in_place(nonce(counter), aad, body).map_err(|_| Refused)?;
        Ok(())
    }
}

/// The 96-bit nonce of a packet counter. Source: RFC 9001 §5.3, with an all-zero IV:
/// every epoch has a key of its own.
fn nonce(counter: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&counter.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// A key that masks five bytes of a header with a sample of the ciphertext.
///
/// Source: RFC 9001 §5.4. A single AES block costs 29 ns through aws-lc's interface and 4 ns through the `aes` crate; a packet of two
/// hops needs twelve on its way, as much as one pass of AES-GCM over all its bytes.
pub(crate) enum MaskKey {
    Aes128(Aes128Enc),
    Aes256(Box<Aes256Enc>),
    ChaCha20(Box<quic::HeaderProtectionKey>),
}

impl std::fmt::Debug for MaskKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("MaskKey(…)")
    }
}

impl MaskKey {
    /// The mask of flags and counter in a session with `suite`.
    #[expect(clippy::expect_used, reason = "32 bytes are the mask key length of ChaCha20")]
    pub(crate) fn of_session(suite: Suite, key: &[u8; 32]) -> Self {
        match suite {
            Suite::Aes256Gcm => Self::Aes256(Box::new(Aes256Enc::new(key.into()))),
            Suite::ChaCha20Poly1305 => {
                let key = quic::HeaderProtectionKey::new(&quic::CHACHA20, key).expect("32-byte key");
                Self::ChaCha20(Box::new(key))
            }
        }
    }

    /// The mask of type and index towards a relay or a client.
    pub(crate) fn of_index(key: &[u8; 16]) -> Self {
        Self::Aes128(Aes128Enc::new(key.into()))
    }

    /// The mask for `datagram`; `None` when it is too short to be sampled.
    pub(crate) fn mask(&self, datagram: &[u8]) -> Option<[u8; 5]> {
        let sample = datagram.get(HEADER_LEN..)?.first_chunk::<{ MIN_DATAGRAM - HEADER_LEN }>()?;
        let mut block = (*sample).into();
        match self {
            Self::Aes128(key) => key.encrypt_block(&mut block),
            Self::Aes256(key) => key.encrypt_block(&mut block),
            Self::ChaCha20(key) => return key.new_mask(sample).ok(),
        }
        block.first_chunk::<5>().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seals_and_opens_with_both_suites_and_refuses_every_flipped_bit() {
        for suite in [Suite::Aes256Gcm, Suite::ChaCha20Poly1305] {
            let key = PacketKey::new(suite, &[7; 32]);
            let mut sealed = [3u8; 48];
            key.seal(9, &mut sealed).unwrap();
            for bit in 0..sealed.len() * 8 {
                let mut copy = sealed;
                copy[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(key.open(9, &mut copy), Err(Refused), "{suite:?} bit {bit}");
            }
            assert_eq!(key.open(10, &mut sealed.clone()), Err(Refused));
            key.open(9, &mut sealed).unwrap();
            assert_eq!(sealed[..32], [3; 32]);
        }
    }

    #[test]
    fn agrees_on_aes_only_when_both_have_it() {
        assert_eq!(Suites::ALL.agree(Suites::ALL), Some(Suite::Aes256Gcm));
        assert_eq!(Suites::ALL.agree(Suites::CHACHA), Some(Suite::ChaCha20Poly1305));
        assert_eq!(Suites(1).agree(Suites::CHACHA), None);
    }

    /// Source: RFC 9001 §A.2 and §A.5.
    #[test]
    fn masks_match_the_rfc() {
        let hex = |text: &str| -> Vec<u8> {
            text.as_bytes()
                .chunks(2)
                .map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap())
                .collect()
        };
        let datagram = |sample: &str| [vec![0; HEADER_LEN], hex(sample)].concat();
        let key: [u8; 16] = hex("9f50449e04a0e810283a1e9933adedd2").try_into().unwrap();
        let mask = MaskKey::of_index(&key).mask(&datagram("d1b1c98dd7689fb8ec11d242b123dc9b")).unwrap();
        assert_eq!(mask.to_vec(), hex("437b9aec36"));
        let key: [u8; 32] = hex("25a282b9e82f06f21f488917a4fc8f1b73573685608597d0efcb076b0ab7a7a4").try_into().unwrap();
        let chacha = MaskKey::of_session(Suite::ChaCha20Poly1305, &key);
        assert_eq!(chacha.mask(&datagram("5e5cd55c41f69080575d7999c25a5bfb")).unwrap().to_vec(), hex("aefefe7d03"));
    }
}
