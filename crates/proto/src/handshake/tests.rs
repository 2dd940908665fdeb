//! Tests of handshakes: both ends together, one end with snow, and every damage to a packet.

use super::*;
use crate::drops::DropReason;
use crate::random::Counting;
use crate::relay::Replays;
use crate::session::Session;
use crate::time::Time;

struct Pair {
    random: Counting,
    secret: RelaySecret,
    own: Responder,
    relay: Option<RelaySecret>,
}

impl Pair {
    fn new(ik: bool) -> Self {
        let mut random = Counting::default();
        let secret = RelaySecret::generate(&mut random);
        let own =
            Responder { network: [3; 32], relay: RelayId(7), role: Role::Ingress, key_epoch: 2, key: secret.public() };
        let relay = ik.then(|| RelaySecret::generate(&mut random));
        Self { random, secret, own, relay }
    }

    fn start(&mut self) -> (Initiator, Vec<u8>) {
        let first = First { offered: Suites::ALL, local_index: 11, minutes: 1000 };
        Initiator::start(&self.own, self.relay.as_ref(), first, &mut self.random).unwrap()
    }

    /// Runs a handshake. Returns all four packets and both ends.
    fn run(&mut self) -> (Vec<Vec<u8>>, Established, Established) {
        let (mut initiator, first) = self.start();
        let accepted = accept(&self.own, &self.secret, &first).unwrap();
        assert_eq!(accepted.relay, self.relay.as_ref().map(RelaySecret::public));
        let (replied, reply) = accepted.reply(Suite::Aegis256X2, 22, &mut self.random).unwrap();
        let key = initiator.read_reply(&reply, &mut self.random).unwrap();
        let (text, theirs) = replied.read_kem_key(&key, [5; 32], &mut self.random).unwrap();
        let ours = initiator.read_kem_text(&text).unwrap();
        (vec![first, reply, key, text], ours, theirs)
    }
}

#[test]
fn both_ends_derive_the_same_keys_and_exchange_packets() {
    for ik in [false, true] {
        let (packets, ours, theirs) = Pair::new(ik).run();
        assert_eq!(ours.hash, theirs.hash);
        assert_eq!(ours.evidence, [5; 32]);
        assert_eq!((ours.local_index, ours.remote_index), (theirs.remote_index, theirs.local_index));
        let now = Time::default();
        let (mut a, mut b) = (Session::new(&ours, 64, now), Session::new(&theirs, 64, now));
        let mut datagram = [9u8; 64];
        assert_eq!(b.seal(&mut datagram.clone(), now), Err(DropReason::NotAdmitted), "not confirmed yet");
        a.seal(&mut datagram, now).unwrap();
        b.open(&mut datagram, now).unwrap();
        b.seal(&mut datagram, now).unwrap();
        a.open(&mut datagram, now).unwrap();
        // An answer is never longer than the packet that caused it.
        assert!(packets[1].len() <= packets[0].len() && packets[3].len() <= packets[2].len());
    }
}

#[test]
fn damaged_or_truncated_first_packet_is_refused() {
    for ik in [false, true] {
        let mut pair = Pair::new(ik);
        let (_, first) = pair.start();
        for bit in 0..first.len() * 8 {
            let mut copy = first.clone();
            copy[bit / 8] ^= 1 << (bit % 8);
            assert!(accept(&pair.own, &pair.secret, &copy).is_err(), "bit {bit}");
        }
        for length in 0..first.len() {
            assert!(accept(&pair.own, &pair.secret, &first[..length]).is_err());
        }
        assert!(accept(&pair.own, &pair.secret, &[&first[..], &[0]].concat()).is_err());
    }
}

#[test]
fn damaged_or_truncated_later_packet_is_refused_and_the_handshake_continues() {
    for ik in [false, true] {
        damage_the_others(Pair::new(ik));
    }
}

fn damage_the_others(mut pair: Pair) {
    let (mut initiator, first) = pair.start();
    let accepted = accept(&pair.own, &pair.secret, &first).unwrap();
    let (replied, reply) = accepted.reply(Suite::Aegis256X2, 22, &mut pair.random).unwrap();
    let damaged = |packet: &[u8]| -> Vec<Vec<u8>> {
        let flips = (0..packet.len() * 8).map(|bit| {
            let mut copy = packet.to_vec();
            copy[bit / 8] ^= 1 << (bit % 8);
            copy
        });
        flips.chain((0..packet.len()).map(|length| packet[..length].to_vec())).collect()
    };
    for copy in damaged(&reply) {
        assert!(initiator.read_reply(&copy, &mut pair.random).is_err());
    }
    let key = initiator.read_reply(&reply, &mut pair.random).unwrap();
    for copy in damaged(&key) {
        assert!(replied.read_kem_key(&copy, [5; 32], &mut pair.random).is_err());
    }
    let (text, _) = replied.read_kem_key(&key, [5; 32], &mut pair.random).unwrap();
    for copy in damaged(&text) {
        assert!(initiator.read_kem_text(&copy).is_err());
    }
    initiator.read_kem_text(&text).unwrap();
}

#[test]
fn first_packet_for_another_identity_is_refused() {
    let mut pair = Pair::new(false);
    let (_, first) = pair.start();
    let change: [fn(&mut Responder); 4] =
        [|r| r.network[0] ^= 1, |r| r.relay = RelayId(8), |r| r.role = Role::Egress, |r| r.key_epoch = 3];
    for change in change {
        let mut other = pair.own.clone();
        change(&mut other);
        assert!(accept(&other, &pair.secret, &first).is_err());
    }
    let stranger = RelaySecret::generate(&mut pair.random);
    assert!(accept(&pair.own, &stranger, &first).is_err());
}

#[test]
fn low_order_points_are_refused() {
    let mut pair = Pair::new(false);
    let (_, first) = pair.start();
    let mut one = [0; 32];
    one[0] = 1;
    for point in [[0; 32], one] {
        let mut copy = first.clone();
        copy[EPHEMERAL..EPHEMERAL + 32].copy_from_slice(&point);
        assert!(accept(&pair.own, &pair.secret, &copy).is_err());
        let mut to = pair.own.clone();
        to.key = RelayKey::from_bytes(point);
        let offer = First { offered: Suites::ALL, local_index: 1, minutes: 1 };
        assert!(Initiator::start(&to, None, offer, &mut pair.random).is_err());
    }
}

#[test]
fn replayed_first_packet_is_refused() {
    let mut pair = Pair::new(false);
    let (_, first) = pair.start();
    let mut replays = Replays::new(Time::default(), &mut pair.random);
    let accepted = accept(&pair.own, &pair.secret, &first).unwrap();
    replays.accept(&accepted.ephemeral(), accepted.first.minutes, Time::default(), 1000).unwrap();
    let again = accept(&pair.own, &pair.secret, &first).unwrap();
    let verdict = replays.accept(&again.ephemeral(), again.first.minutes, Time::default(), 1000);
    assert_eq!(verdict, Err(DropReason::HandshakeReplay));
}

/// The classical part agrees with a third-party implementation.
#[test]
fn noise_nk_matches_snow() {
    let mut random = Counting(50);
    let secret = RelaySecret::generate(&mut random);
    let name = "Noise_NK_25519_AESGCM_SHA256";
    let builder = snow::Builder::new(name.parse().unwrap()).prologue(b"prologue").unwrap();
    let mut theirs = builder.remote_public_key(secret.public().as_bytes()).unwrap().build_initiator().unwrap();
    let mut message = [0; 128];
    let length = theirs.write_message(b"hello", &mut message).unwrap();

    let mut state = Symmetric::new(name.as_bytes());
    state.mix_hash(b"prologue");
    state.mix_hash(secret.public().as_bytes());
    let remote: [u8; 32] = take(&message, 0).unwrap();
    state.mix_hash(&remote);
    state.mix_key(&secret.agree(&remote).unwrap().0);
    assert_eq!(&state.decrypt_and_hash::<5>(&message[32..length]).unwrap(), b"hello");

    let ephemeral = RelaySecret::generate(&mut random);
    let mut answer = [0; 32 + 5 + TAG_LEN];
    answer[..32].copy_from_slice(ephemeral.public().as_bytes());
    state.mix_hash(ephemeral.public().as_bytes());
    state.mix_key(&ephemeral.agree(&remote).unwrap().0);
    state.encrypt_and_hash(b"world", &mut answer[32..]);
    let mut read = [0; 64];
    let length = theirs.read_message(&answer, &mut read).unwrap();
    assert_eq!(&read[..length], b"world");
    assert_eq!(theirs.get_handshake_hash(), state.hash());
}
