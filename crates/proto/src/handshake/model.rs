//! A second implementation of the handshake's equations, with other libraries and without this crate's code.
//!
//! Source: Noise revision 34 §5; Noise HFS revision 1draft-5.
//!
//! ```text
//! NK:  ← s   …   → e, es, {…}       ← e, ee, {…}       → e1   ← ekem1, {}
//! IK:  ← s   …   → e, es, s, ss, {…}  ← e, ee, se, {…}   → e1   ← ekem1, {}
//! ```

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aws_lc_rs::kem;
use curve25519_dalek::montgomery::MontgomeryPoint;
use sha2::{Digest, Sha256};

use super::{First, Responder, Role, accept};
use crate::keys::{RelayId, RelaySecret};
use crate::random::{Counting, Random, array};
use crate::suite::{Suite, Suites};

fn sha(parts: &[&[u8]]) -> [u8; 32] {
    parts.iter().fold(Sha256::new(), |hash, part| hash.chain_update(part)).finalize().into()
}

/// HMAC-SHA-256 for keys of at most one block. Source: RFC 2104.
fn hmac(key: &[u8], data: &[u8]) -> [u8; 32] {
    let pad = |byte: u8| {
        let mut block = [byte; 64];
        block.iter_mut().zip(key).for_each(|(pad, key)| *pad ^= key);
        block
    };
    sha(&[&pad(0x5c), &sha(&[&pad(0x36), data])])
}

fn hkdf(chaining_key: &[u8], input: &[u8]) -> ([u8; 32], [u8; 32]) {
    let temp = hmac(chaining_key, input);
    let first = hmac(&temp, &[1]);
    (first, hmac(&temp, &[&first[..], &[2]].concat()))
}

/// Noise's variables ck, h, k and n.
struct State {
    ck: [u8; 32],
    h: [u8; 32],
    k: [u8; 32],
    n: u64,
}

impl State {
    fn new(name: &str) -> Self {
        assert!(name.len() > 32, "a longer name is hashed");
        let h = sha(&[name.as_bytes()]);
        Self { ck: h, h, k: [0; 32], n: 0 }
    }

    fn mix_hash(&mut self, data: &[u8]) {
        self.h = sha(&[&self.h, data]);
    }

    fn mix_key(&mut self, input: &[u8]) {
        (self.ck, self.k) = hkdf(&self.ck, input);
        self.n = 0;
    }

    fn nonce(&mut self) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[4..].copy_from_slice(&self.n.to_be_bytes());
        self.n += 1;
        nonce
    }

    fn encrypt(&mut self, msg: &[u8]) -> Vec<u8> {
        let (nonce, cipher) = (self.nonce(), aes_gcm::Aes256Gcm::new(&self.k.into()));
        let out = cipher.encrypt(&nonce.into(), Payload { msg, aad: &self.h }).unwrap();
        self.mix_hash(&out);
        out
    }

    fn decrypt(&mut self, msg: &[u8]) -> Vec<u8> {
        let (nonce, cipher) = (self.nonce(), aes_gcm::Aes256Gcm::new(&self.k.into()));
        let out = cipher.decrypt(&nonce.into(), Payload { msg, aad: &self.h }).unwrap();
        self.mix_hash(msg);
        out
    }
}

fn public(secret: [u8; 32]) -> [u8; 32] {
    MontgomeryPoint::mul_base_clamped(secret).to_bytes()
}

fn dh(secret: [u8; 32], point: &[u8]) -> [u8; 32] {
    MontgomeryPoint(point.try_into().unwrap()).mul_clamped(secret).to_bytes()
}

fn packet(kind: u8, index: u32, body: &[Vec<u8>]) -> Vec<u8> {
    [&[kind][..], &index.to_be_bytes(), &[9; 5], &body.concat()].concat()
}

#[test]
fn hybrid_handshake_matches_its_equations() {
    for ik in [false, true] {
        let mut random = Counting(70);
        let relay = RelaySecret::generate(&mut random);
        let rs = *relay.public().as_bytes();
        let own =
            Responder { network: [5; 32], relay: RelayId(9), role: Role::Egress, key_epoch: 3, key: relay.public() };
        let (e, s): ([u8; 32], [u8; 32]) = (array(&mut random), array(&mut random));
        let e1 = kem::DecapsulationKey::generate(&kem::ML_KEM_768).unwrap();
        let e1_public = e1.encapsulation_key().unwrap().key_bytes().unwrap();

        let mut state = State::new(&format!("Noise_{}hfs_25519+MLKEM768_AESGCM_SHA256", if ik { "IK" } else { "NK" }));
        let prologue = [&b"ORP/1"[..], &[5; 32], &9u64.to_be_bytes(), &[2], &3u32.to_be_bytes(), &[7]].concat();
        state.mix_hash(&prologue);
        state.mix_hash(&rs);
        let first_kind = if ik { 0x27 } else { 0x17 };
        state.mix_hash(&packet(first_kind, 11, &[]));
        state.mix_hash(&public(e));
        state.mix_key(&dh(e, &rs));
        let mut body = vec![public(e).to_vec()];
        if ik {
            body.push(state.encrypt(&public(s)));
            state.mix_key(&dh(s, &rs));
        }
        body.push(state.encrypt(&[&sha(&[e1_public.as_ref()])[..], &1_000u32.to_be_bytes(), &[0; 18]].concat()));
        let first = packet(first_kind, 11, &body);

        let accepted = accept(&own, &relay, &first).unwrap();
        let First { offered, local_index, minutes } = accepted.first;
        assert_eq!((offered, local_index, minutes), (Suites::ALL, 11, 1_000));
        assert_eq!(accepted.relay.map(|key| *key.as_bytes()), ik.then(|| public(s)));
        let (replied, reply) = accepted.reply(Suite::ChaCha20Poly1305, 22, &mut random).unwrap();

        let re = &reply[10..42];
        state.mix_hash(&reply[..10]);
        state.mix_hash(re);
        state.mix_key(&dh(e, re));
        if ik {
            state.mix_key(&dh(s, re));
        }
        assert_eq!(state.decrypt(&reply[42..]), [&22u32.to_be_bytes()[..], &[2], &[0; 33]].concat());
        state.mix_hash(&packet(0x31, 22, &[]));
        let key = packet(0x31, 22, &[state.encrypt(e1_public.as_ref())]);

        let (text, established) = replied.read_kem_key(&key, [5; 32], &mut random).unwrap();
        state.mix_hash(&text[..10]);
        let ekem1 = state.decrypt(&text[10..10 + 1_088 + 16]);
        state.mix_key(e1.decapsulate(ekem1.as_slice().into()).unwrap().as_ref());
        assert_eq!(state.decrypt(&text[10 + 1_088 + 16..]), [5; 32]);

        let (up, down) = hkdf(&state.ck, b"");
        assert_eq!((established.keys.receive.0, established.keys.send.0), (up, down));
        assert_eq!(established.keys.mask.0, hkdf(&state.ck, b"ORP/1 header mask").0);
        assert_eq!(established.keys.rekey.0, hkdf(&state.ck, b"ORP/1 rekey").0);
        assert_eq!(established.hash, state.h);
    }
}

/// The curve's secrets do not give the keys without the ML-KEM secret. A quantum computer would have only the former.
#[test]
fn curve_secrets_alone_do_not_give_the_keys() {
    let mut random = Counting(80);
    let relay = RelaySecret::generate(&mut random);
    let own = Responder { network: [5; 32], relay: RelayId(9), role: Role::Egress, key_epoch: 3, key: relay.public() };
    let first = First { offered: Suites::ALL, local_index: 11, minutes: 1_000 };
    let keys = |kem_seed: u64| {
        let mut random = Counting(0);
        let (mut initiator, packet) = super::Initiator::start(&own, None, first, &mut random).unwrap();
        let (replied, reply) = accept(&own, &relay, &packet).unwrap().reply(Suite::Aes256Gcm, 22, &mut random).unwrap();
        let key = initiator.read_reply(&reply, &mut random).unwrap();
        // The same curve secrets and the same transcript up to here, but another encapsulation.
        let mut random = Counting(kem_seed);
        random.fill(&mut [0; 8]);
        let (_, established) = replied.read_kem_key(&key, [5; 32], &mut random).unwrap();
        (established.keys.send.0, established.keys.receive.0)
    };
    let ((send, receive), (other_send, other_receive)) = (keys(100), keys(200));
    assert!(send != other_send && receive != other_receive);
}
