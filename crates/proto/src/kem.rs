//! ML-KEM-768 with the caller's randomness.
//!
//! Owns the only use of libcrux, whose formally verified code takes randomness as an argument; aws-lc's safe
//! interface does not. Always validates public keys, which libcrux leaves to the caller.
//!
//! Source: FIPS 203.

use libcrux_ml_kem::mlkem768;
use zeroize::Zeroizing;

use crate::keys::Secret;
use crate::random::{Random, array};

/// Bytes of an encapsulation key. Source: FIPS 203 table 3.
pub(crate) const KEY_LEN: usize = 1184;
/// Bytes of a ciphertext. Source: FIPS 203 table 3.
pub(crate) const TEXT_LEN: usize = 1088;
const PRIVATE_LEN: usize = 2400;

/// A fresh key pair. The private key is wiped when dropped.
pub(crate) struct KemPair {
    private: Zeroizing<[u8; PRIVATE_LEN]>,
    public: [u8; KEY_LEN],
}

impl KemPair {
    pub(crate) fn generate(random: &mut dyn Random) -> Self {
        let seed = Zeroizing::new(array::<64>(random));
        let (private, public) = mlkem768::generate_key_pair(*seed).into_parts();
        let mut pair = Self { private: Zeroizing::new([0; PRIVATE_LEN]), public: [0; KEY_LEN] };
        pair.private.copy_from_slice(private.as_slice());
        pair.public.copy_from_slice(public.as_slice());
        pair
    }

    pub(crate) fn public(&self) -> &[u8; KEY_LEN] {
        &self.public
    }

    /// Returns the shared secret in `text`. A ciphertext for another key gives another secret (implicit rejection).
    pub(crate) fn decapsulate(&self, text: &[u8; TEXT_LEN]) -> Secret {
        let private = mlkem768::MlKem768PrivateKey::from(*self.private);
        Secret(mlkem768::decapsulate(&private, &mlkem768::MlKem768Ciphertext::from(*text)))
    }
}

/// Encapsulates a fresh secret to the key `public`. Returns the ciphertext and the secret; `None` when the key is
/// invalid.
pub(crate) fn encapsulate(public: &[u8; KEY_LEN], random: &mut dyn Random) -> Option<([u8; TEXT_LEN], Secret)> {
    let public = mlkem768::MlKem768PublicKey::from(*public);
    if !mlkem768::validate_public_key(&public) {
        return None;
    }
    let (text, secret) = mlkem768::encapsulate(&public, array(random));
    let mut bytes = [0; TEXT_LEN];
    bytes.copy_from_slice(text.as_slice());
    Some((bytes, Secret(secret)))
}
