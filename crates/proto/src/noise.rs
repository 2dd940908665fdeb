//! Noise's symmetric state: chaining key, transcript hash, handshake cipher.
//!
//! Owns the state that every handshake pattern shares. Never touches datagrams: `handshake` lays out messages.
//!
//! Source: Noise revision 34 §5.2, with `AESGCM` and `SHA256`.

use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};

use crate::keys::{Secret, hkdf2, sha256};
use crate::wire::TAG_LEN;

/// A handshake message that cannot be decrypted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Undecryptable;

/// Chaining key `ck`, transcript `h`, cipher key `k` with its nonce.
#[derive(Clone, Debug)]
pub(crate) struct Symmetric {
    chaining_key: Secret,
    hash: [u8; 32],
    key: Option<Secret>,
    nonce: u64,
}

impl Symmetric {
    pub(crate) fn new(protocol_name: &[u8]) -> Self {
        let mut hash = [0; 32];
        match hash.get_mut(..protocol_name.len()) {
            Some(room) => room.copy_from_slice(protocol_name),
            None => hash = sha256(&[protocol_name]),
        }
        Self { chaining_key: Secret(hash), hash, key: None, nonce: 0 }
    }

    pub(crate) fn mix_hash(&mut self, data: &[u8]) {
        self.hash = sha256(&[&self.hash, data]);
    }

    pub(crate) fn mix_key(&mut self, input: &[u8]) {
        let (chaining_key, key) = hkdf2(&self.chaining_key.0, input);
        self.chaining_key = chaining_key;
        self.key = Some(key);
        self.nonce = 0;
    }

    /// Mixes a pre-shared key into key and transcript. Source: Noise revision 34 §9.1 (`MixKeyAndHash`).
    pub(crate) fn mix_key_and_hash(&mut self, input: &Secret) {
        let temp = Secret(crate::keys::hmac_sha256(&self.chaining_key.0, &[&input.0]));
        let first = Secret(crate::keys::hmac_sha256(&temp.0, &[&[1]]));
        let second = Secret(crate::keys::hmac_sha256(&temp.0, &[&first.0, &[2]]));
        let third = Secret(crate::keys::hmac_sha256(&temp.0, &[&second.0, &[3]]));
        self.chaining_key = first;
        self.mix_hash(&second.0);
        self.key = Some(third);
        self.nonce = 0;
    }

    /// Encrypts `plaintext` into `out`, which is [`TAG_LEN`] longer, and mixes the result into the transcript.
    #[expect(clippy::expect_used, reason = "every caller mixes a key first; the patterns are fixed at compile time")]
    pub(crate) fn encrypt_and_hash(&mut self, plaintext: &[u8], out: &mut [u8]) {
        let (body, tag_room) = out.split_at_mut(plaintext.len());
        body.copy_from_slice(plaintext);
        let nonce = self.next_nonce();
        let key = self.cipher().expect("a key was mixed");
        let tag = key.seal_in_place_separate_tag(nonce, Aad::from(self.hash), body).expect("short message");
        tag_room.copy_from_slice(tag.as_ref());
        self.mix_hash(out);
    }

    /// Decrypts `N` bytes from `ciphertext` of `N + 16` bytes and mixes the ciphertext into the transcript.
    pub(crate) fn decrypt_and_hash<const N: usize>(&mut self, ciphertext: &[u8]) -> Result<[u8; N], Undecryptable> {
        if ciphertext.len() != N + TAG_LEN {
            return Err(Undecryptable);
        }
        let hash = self.hash;
        let mut out = [0; N];
        let (body, tag) = ciphertext.split_at(N);
        out.copy_from_slice(body);
        let nonce = self.next_nonce();
        let key = self.cipher().ok_or(Undecryptable)?;
        key.open_in_place_separate_tag(nonce, Aad::from(hash), tag, &mut out).map_err(|_| Undecryptable)?;
        self.mix_hash(ciphertext);
        Ok(out)
    }

    /// Returns the two transport keys, the initiator's first. Source: Noise revision 34 §5.2 (`Split`).
    pub(crate) fn split(&self) -> (Secret, Secret) {
        hkdf2(&self.chaining_key.0, &[])
    }

    /// Derives another key of this handshake, for `label`.
    pub(crate) fn export(&self, label: &[u8]) -> Secret {
        let (first, _) = hkdf2(&self.chaining_key.0, label);
        first
    }

    pub(crate) fn hash(&self) -> [u8; 32] {
        self.hash
    }

    fn cipher(&self) -> Option<LessSafeKey> {
        let key = self.key.as_ref()?;
        UnboundKey::new(&AES_256_GCM, &key.0).ok().map(LessSafeKey::new)
    }

    fn next_nonce(&mut self) -> Nonce {
        let mut bytes = [0; 12];
        bytes[4..].copy_from_slice(&self.nonce.to_be_bytes());
        self.nonce += 1;
        Nonce::assume_unique_for_key(bytes)
    }
}
