//! Datagrams at a relay and at a client: nothing panics, every one is counted once.
#![no_main]
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use openrelay_proto::client::{Client, ClientConfig};
use openrelay_proto::handshake::{Responder, Role};
use openrelay_proto::index::{IndexKey, Slots};
use openrelay_proto::keys::{RelayId, RelaySecret};
use openrelay_proto::mask::IndexMask;
use openrelay_proto::random::Random;
use openrelay_proto::relay::{Gate, Load, OpenAdmission, RelayConfig, Shard, Shared};
use openrelay_proto::suite::Suites;
use openrelay_proto::time::Time;

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
    let now = Time::from_micros(1);
    let secret = RelaySecret::generate(&mut random);
    let own = Responder { network: [0; 32], relay: RelayId(1), role: Role::Egress, key_epoch: 0, key: secret.public() };
    let config = RelayConfig { own: own.clone(), peers: Default::default(), suites: Suites::ALL, one_hop: true, capacity: 8 };
    let shared = Shared {
        index_key: IndexKey::new(&mut random),
        slots: Arc::new(Mutex::new(Slots::new(0, 8))),
        gate: Gate::new(own.key, Arc::new(Load::default()), &mut random),
    };
    let mut shard = Shard::new(0, Arc::new(config), shared, Box::new(OpenAdmission), now);
    let from = "192.0.2.1:1".parse().expect("an address");
    let mut masked = data.to_vec();
    shard.handle_datagram(from, &mut masked.clone(), now, &mut random);
    // As if the sender knew the relay's key: the mask is its own inverse.
    IndexMask::to_relay(&own.key).remove(&mut masked);
    shard.handle_datagram(from, &mut masked, now, &mut random);
    let c = shard.counts();
    assert_eq!(c.received, c.forwarded + c.delivered + c.control + c.handshakes + c.passed + c.drops.total());

    let config = ClientConfig { ingress: None, egress: own, egress_address: Some(from), suites: Suites::ALL, keepalive: None };
    let mut client = Client::new(config, now, 1, &mut random).expect("a good key");
    let _ = client.handle_datagram(&mut data.to_vec(), now, 1, &mut random);
});
