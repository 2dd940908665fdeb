//! Benchmarks of protocol steps beside their floors: the same AEADs, X25519 and ML-KEM alone.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that cannot go on must stop")]

use aegis::aegis256x2::Aegis256X2;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use divan::Bencher;
use openrelay_proto::handshake::{Established, First, Initiator, Responder, Role, accept};
use openrelay_proto::keys::{RelayId, RelaySecret};
use openrelay_proto::random::Random;
use openrelay_proto::session::{CLIENT_WINDOW, Session};
use openrelay_proto::suite::{Suite, Suites};
use openrelay_proto::time::Time;

/// Bytes of a full datagram over two hops.
const LEN: usize = 1466;

fn main() {
    divan::main();
}

struct Counting(u8);

impl Random for Counting {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(29).wrapping_add(17);
            *byte = self.0;
        }
    }
}

fn identity() -> (Responder, RelaySecret) {
    let secret = RelaySecret::from_bytes([5; 32]);
    let own =
        Responder { network: [0; 32], relay: RelayId(1), role: Role::Ingress, key_epoch: 0, key: secret.public() };
    (own, secret)
}

fn begin(own: &Responder, random: &mut Counting) -> (Initiator, Vec<u8>) {
    let first = First { offered: Suites::ALL, local_index: 1, minutes: 1 };
    Initiator::start(own, None, first, random).unwrap()
}

fn handshake() -> (Established, Established) {
    let (own, secret) = identity();
    let mut random = Counting(1);
    let (mut initiator, packet) = begin(&own, &mut random);
    let (replied, reply) = accept(&own, &secret, &packet).unwrap().reply(Suite::Aegis256X2, 2, &mut random).unwrap();
    let key = initiator.read_reply(&reply, &mut random).unwrap();
    let (text, theirs) = replied.read_kem_key(&key, [5; 32], &mut random).unwrap();
    (initiator.read_kem_text(&text).unwrap(), theirs)
}

#[divan::bench]
fn floor_aegis_seal(bencher: Bencher<'_, '_>) {
    let mut bytes = vec![0; LEN - 26];
    bencher.bench_local(|| Aegis256X2::<16>::new(&[1; 32], &[0; 32]).encrypt_in_place(&mut bytes, &[0; 10]));
}

#[divan::bench]
fn aes_gcm_seal(bencher: Bencher<'_, '_>) {
    let key = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, &[1; 32]).unwrap());
    let mut bytes = vec![0; LEN - 26];
    bencher.bench_local(|| {
        let nonce = Nonce::assume_unique_for_key([0; 12]);
        key.seal_in_place_separate_tag(nonce, Aad::from([0; 10]), &mut bytes).unwrap()
    });
}

#[divan::bench]
fn seal(bencher: Bencher<'_, '_>) {
    let mut session = Session::new(&handshake().0, CLIENT_WINDOW, Time::default());
    let mut datagram = vec![0; LEN];
    bencher.bench_local(|| session.seal(&mut datagram, Time::default()).unwrap());
}

fn sealed(sender: &mut Session) -> Vec<u8> {
    let mut datagram = vec![0; LEN];
    sender.seal(&mut datagram, Time::default()).unwrap();
    datagram
}

#[divan::bench]
fn open(bencher: Bencher<'_, '_>) {
    let (ours, theirs) = handshake();
    let mut sender = Session::new(&ours, CLIENT_WINDOW, Time::default());
    let mut receiver = Session::new(&theirs, CLIENT_WINDOW, Time::default());
    bencher.with_inputs(|| sealed(&mut sender)).bench_local_refs(|datagram| receiver.open(datagram, Time::default()));
}

/// Opens one session and seals another over the same bytes, as an ingress does with each datagram.
#[divan::bench]
fn relay_step(bencher: Bencher<'_, '_>) {
    let (ours, theirs) = handshake();
    let mut sender = Session::new(&ours, CLIENT_WINDOW, Time::default());
    let mut receiver = Session::new(&theirs, CLIENT_WINDOW, Time::default());
    let mut onward = Session::new(&ours, CLIENT_WINDOW, Time::default());
    bencher.with_inputs(|| sealed(&mut sender)).bench_local_refs(|datagram| {
        let _ = receiver.open(datagram, Time::default());
        onward.seal(datagram, Time::default())
    });
}

#[divan::bench]
fn floor_x25519_agreement(bencher: Bencher<'_, '_>) {
    use aws_lc_rs::agreement::{PrivateKey, UnparsedPublicKey, X25519, agree};
    let key = PrivateKey::from_private_key(&X25519, &[7; 32]).unwrap();
    let peer = key.compute_public_key().unwrap();
    bencher.bench_local(|| {
        let peer = UnparsedPublicKey::new(&X25519, peer.as_ref());
        agree(&key, peer, (), |secret| Ok(secret.to_vec())).unwrap()
    });
}

#[divan::bench]
fn floor_encapsulation(bencher: Bencher<'_, '_>) {
    use libcrux_ml_kem::mlkem768::{encapsulate, generate_key_pair};
    let pair = generate_key_pair([7; 64]);
    bencher.bench_local(|| encapsulate(pair.public_key(), [9; 32]));
}

#[divan::bench]
fn floor_x25519_key(bencher: Bencher<'_, '_>) {
    bencher.bench_local(|| RelaySecret::from_bytes([7; 32]));
}

#[divan::bench]
fn responder_first_packet(bencher: Bencher<'_, '_>) {
    let (own, secret) = identity();
    let mut random = Counting(1);
    let (_, packet) = begin(&own, &mut random);
    bencher.bench_local(|| accept(&own, &secret, &packet).unwrap().reply(Suite::Aegis256X2, 2, &mut random).unwrap().1);
}

#[divan::bench]
fn responder_kem_key(bencher: Bencher<'_, '_>) {
    let (own, secret) = identity();
    let mut random = Counting(1);
    let (mut initiator, packet) = begin(&own, &mut random);
    let (replied, reply) = accept(&own, &secret, &packet).unwrap().reply(Suite::Aegis256X2, 2, &mut random).unwrap();
    let key = initiator.read_reply(&reply, &mut random).unwrap();
    bencher.bench_local(|| replied.read_kem_key(&key, [5; 32], &mut random).unwrap().0);
}

#[divan::bench]
fn whole_handshake_both_ends(bencher: Bencher<'_, '_>) {
    bencher.bench_local(handshake);
}
