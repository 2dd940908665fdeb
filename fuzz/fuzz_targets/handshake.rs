//! Handshake packets: nothing panics, and only genuine packets are accepted.
#![no_main]
use libfuzzer_sys::fuzz_target;
use openrelay_proto::handshake::{First, Initiator, Responder, Role, accept};
use openrelay_proto::keys::{RelayId, RelaySecret};
use openrelay_proto::random::Random;
use openrelay_proto::suite::Suites;

struct Fixed(u8);
impl Random for Fixed {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(37).wrapping_add(11);
            *byte = self.0;
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut random = Fixed(1);
    let secret = RelaySecret::generate(&mut random);
    let own =
        Responder { network: [0; 32], relay: RelayId(1), role: Role::Ingress, key_epoch: 0, key: secret.public() };
    let first = First { offered: Suites::ALL, local_index: 1, minutes: 1 };
    let (mut initiator, mut packet) = Initiator::start(&own, None, first, &mut random).expect("a valid key");
    let _ = initiator.read_reply(data, &mut random);
    let _ = initiator.read_kem_text(data);
    assert!(accept(&own, &secret, data).is_err());
    // Structured input: a genuine packet with some bytes changed.
    let genuine = packet.clone();
    for pair in data.chunks_exact(2) {
        if let Some(byte) = packet.get_mut(usize::from(pair[0])) {
            *byte ^= pair[1];
        }
    }
    assert_eq!(accept(&own, &secret, &packet).is_ok(), packet == genuine);
});
