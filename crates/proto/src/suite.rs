//! Ciphers of a session: AEGIS-256X2, AES-256-GCM and ChaCha20-Poly1305, with their header masks.
//!
//! Owns the AEAD and mask keys; the primitives are those of libaegis, aws-lc and `aes`. Never chooses nonces: the
//! session does, one for each key and counter.

use aegis::aegis256x2::Aegis256X2;
use aes::cipher::{BlockCipherEncrypt, KeyInit};
use aes::{Aes128Enc, Aes256Enc};
use aws_lc_rs::aead::{self, Aad, LessSafeKey, Nonce, UnboundKey, quic};
use zeroize::Zeroizing;

use crate::wire::{HEADER_LEN, MIN_DATAGRAM, TAG_LEN};

pub use crate::wire::{Suite, Suites};

/// The AEAD has refused: a wrong tag when opening, a wrong length otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Refused;

/// A key of one direction and epoch.
pub(crate) enum PacketKey {
    Aegis(Zeroizing<[u8; 32]>),
    AwsLc(LessSafeKey),
}

impl std::fmt::Debug for PacketKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PacketKey(…)")
    }
}

impl PacketKey {
    pub(crate) fn new(suite: Suite, key: &[u8; 32]) -> Self {
        match suite {
            Suite::Aegis256X2 => Self::Aegis(Zeroizing::new(*key)),
            Suite::Aes256Gcm => Self::aws_lc(&aead::AES_256_GCM, key),
            Suite::ChaCha20Poly1305 => Self::aws_lc(&aead::CHACHA20_POLY1305, key),
        }
    }

    #[expect(clippy::expect_used, reason = "32 bytes are the key length of both algorithms")]
    fn aws_lc(algorithm: &'static aead::Algorithm, key: &[u8; 32]) -> Self {
        Self::AwsLc(LessSafeKey::new(UnboundKey::new(algorithm, key).expect("32-byte key")))
    }

    /// Seals `datagram` in place. It holds the header, the plaintext, and room for the tag at the end.
    pub(crate) fn seal(&self, counter: u64, datagram: &mut [u8]) -> Result<(), Refused> {
        let (header, rest) = datagram.split_first_chunk_mut::<HEADER_LEN>().ok_or(Refused)?;
        let (body, tag_room) = rest.split_last_chunk_mut::<TAG_LEN>().ok_or(Refused)?;
        match self {
            Self::Aegis(key) => *tag_room = aegis(key, counter).encrypt_in_place(body, header),
            Self::AwsLc(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce(counter));
                let tag = key.seal_in_place_separate_tag(nonce, Aad::from(*header), body).map_err(|_| Refused)?;
                tag_room.copy_from_slice(tag.as_ref());
            }
        }
        Ok(())
    }

    /// Opens `datagram` in place. On success the plaintext stands between header and tag.
    pub(crate) fn open(&self, counter: u64, datagram: &mut [u8]) -> Result<(), Refused> {
        let (header, rest) = datagram.split_first_chunk_mut::<HEADER_LEN>().ok_or(Refused)?;
        match self {
            Self::Aegis(key) => {
                let (body, tag) = rest.split_last_chunk_mut::<TAG_LEN>().ok_or(Refused)?;
                aegis(key, counter).decrypt_in_place(body, tag, header).map_err(|_| Refused)
            }
            Self::AwsLc(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce(counter));
                key.open_in_place(nonce, Aad::from(*header), rest).map(|_| ()).map_err(|_| Refused)
            }
        }
    }
}

fn aegis(key: &[u8; 32], counter: u64) -> Aegis256X2<TAG_LEN> {
    Aegis256X2::new(key, &nonce(counter))
}

/// Returns the nonce of a packet counter: zeros, then the counter.
///
/// Source: RFC 9001 §5.3, with an all-zero IV, because every epoch has its own key.
fn nonce<const LEN: usize>(counter: u64) -> [u8; LEN] {
    let mut nonce = [0; LEN];
    if let Some(end) = nonce.last_chunk_mut() {
        *end = counter.to_be_bytes();
    }
    nonce
}

/// A key that masks five bytes of a header with a sample of the ciphertext.
///
/// Source: RFC 9001 §5.4. A single AES block costs 29 ns through aws-lc's interface and 4 ns through the `aes` crate.
/// A packet over two hops needs twelve blocks; through aws-lc they would cost as much as one pass of AES-GCM over all
/// its bytes.
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
    /// Creates the mask of flags and counter in a session with `suite`.
    #[expect(clippy::expect_used, reason = "32 bytes are the mask key length of ChaCha20")]
    pub(crate) fn of_session(suite: Suite, key: &[u8; 32]) -> Self {
        match suite {
            Suite::Aegis256X2 | Suite::Aes256Gcm => Self::Aes256(Box::new(Aes256Enc::new(key.into()))),
            Suite::ChaCha20Poly1305 => {
                let key = quic::HeaderProtectionKey::new(&quic::CHACHA20, key).expect("32-byte key");
                Self::ChaCha20(Box::new(key))
            }
        }
    }

    /// Creates the mask of type and index towards a relay or a client.
    pub(crate) fn of_index(key: &[u8; 16]) -> Self {
        Self::Aes128(Aes128Enc::new(key.into()))
    }

    /// Returns the mask for `datagram`; `None` when it is too short to be sampled.
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

    const SUITES: [Suite; 3] = [Suite::Aegis256X2, Suite::Aes256Gcm, Suite::ChaCha20Poly1305];

    #[test]
    fn every_suite_opens_what_it_sealed_and_refuses_damaged_packets() {
        for suite in SUITES {
            let key = PacketKey::new(suite, &[7; 32]);
            let mut sealed = [3u8; 48];
            key.seal(9, &mut sealed).unwrap();
            for bit in 0..sealed.len() * 8 {
                let mut copy = sealed;
                copy[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(key.open(9, &mut copy), Err(Refused), "{suite:?} bit {bit}");
            }
            for len in 0..sealed.len() {
                assert_eq!(key.open(9, &mut sealed[..len].to_vec()), Err(Refused), "{suite:?} {len} bytes");
            }
            assert_eq!(key.open(10, &mut sealed.to_vec()), Err(Refused));
            key.open(9, &mut sealed).unwrap();
            assert_eq!(sealed[..32], [3; 32]);
        }
    }

    #[test]
    fn every_suite_seals_differently_under_every_counter() {
        for suite in SUITES {
            let key = PacketKey::new(suite, &[7; 32]);
            let sealed = |counter| {
                let mut datagram = [3u8; 48];
                key.seal(counter, &mut datagram).unwrap();
                datagram
            };
            let counters = (0..64).map(|bit| 1u64 << bit).chain([0, u64::MAX]);
            let different: std::collections::HashSet<_> = counters.map(sealed).collect();
            assert_eq!(different.len(), 66, "{suite:?}");
        }
    }

    #[test]
    fn fastest_common_suite_is_chosen() {
        let without_aegis = Suites::CHACHA.with(Suite::Aes256Gcm);
        assert_eq!(Suites::ALL.agree(Suites::ALL), Some(Suite::Aegis256X2));
        assert_eq!(Suites::ALL.agree(without_aegis), Some(Suite::Aes256Gcm));
        assert_eq!(Suites::ALL.agree(Suites::CHACHA), Some(Suite::ChaCha20Poly1305));
        assert_eq!(Suites::from_bits(1).unwrap().agree(Suites::CHACHA), None);
        for suite in SUITES {
            assert_eq!(Suite::parse(suite.byte()), Some(suite));
        }
        assert_eq!(Suite::parse(3), None);
    }

    fn hex(text: &str) -> Vec<u8> {
        text.as_bytes().chunks(2).map(|p| u8::from_str_radix(std::str::from_utf8(p).unwrap(), 16).unwrap()).collect()
    }

    /// Source: draft-irtf-cfrg-aegis-aead, test vectors of AEGIS-256X2.
    #[test]
    fn aegis_matches_the_draft() {
        let bytes = |from: u8| -> [u8; 32] { (from..from + 32).collect::<Vec<_>>().try_into().unwrap() };
        let aegis = Aegis256X2::<TAG_LEN>::new(&bytes(0), &bytes(16));
        assert_eq!(aegis.encrypt_in_place(&mut [], &[]).to_vec(), hex("62cdbab084c83dacdb945bb446f049c8"));
        let mut message = hex("0405060704050607").repeat(15);
        let plain = message.clone();
        let tag = aegis.encrypt_in_place(&mut message, &hex("0102030401020304"));
        let sealed = "72120c2ea8236180d67859001f4729077b7064c414384fe3a7b52f1571f4f8a7d0f01e18db4f3bc0adb150702e5d147a8d36522132761b99\
            4c1bd395589e2ccf0790dfe2a3d12d61cd666b2859827739db4037dd3124c78424459376f6cac08e1a7223a2a43e398ce6385cd654a19f481cba3b8f25910b42";
        assert_eq!((message.clone(), tag.to_vec()), (hex(sealed), hex("635d391828520bf1512763f0c8f5cdbd")));
        aegis.decrypt_in_place(&mut message, &tag, &hex("0102030401020304")).unwrap();
        assert_eq!(message, plain);
    }

    /// Source: RFC 9001 §A.2 and §A.5.
    #[test]
    fn masks_match_the_rfc() {
        let datagram = |sample: &str| [vec![0; HEADER_LEN], hex(sample)].concat();
        let key: [u8; 16] = hex("9f50449e04a0e810283a1e9933adedd2").try_into().unwrap();
        let mask = MaskKey::of_index(&key).mask(&datagram("d1b1c98dd7689fb8ec11d242b123dc9b")).unwrap();
        assert_eq!(mask.to_vec(), hex("437b9aec36"));
        let key: [u8; 32] = hex("25a282b9e82f06f21f488917a4fc8f1b73573685608597d0efcb076b0ab7a7a4").try_into().unwrap();
        let chacha = MaskKey::of_session(Suite::ChaCha20Poly1305, &key);
        assert_eq!(chacha.mask(&datagram("5e5cd55c41f69080575d7999c25a5bfb")).unwrap().to_vec(), hex("aefefe7d03"));
    }
}
