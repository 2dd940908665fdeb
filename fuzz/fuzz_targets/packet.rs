//! Datagrams at a relay and at a client: nothing panics, and every datagram is counted once.
#![no_main]
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use openrelay_proto::client::{Client, ClientConfig};
use openrelay_proto::handshake::{Responder, Role};
use openrelay_proto::index::{IndexKey, Slots};
use openrelay_proto::keys::{RelayId, RelaySecret};
use openrelay_proto::mask::IndexMask;
use openrelay_proto::message::Announced;
use openrelay_proto::random::Random;
use openrelay_proto::relay::{Gate, Handshaker, Load, OpenAdmission, RelayConfig, Replays, Shard, Shared, Fate};
use openrelay_proto::suite::Suites;
use openrelay_proto::time::Time;
use openrelay_proto::wire::{MAX_MTU, padded};

struct Fixed(u64);
impl Random for Fixed {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = self.0.to_be_bytes()[0];
        }
    }
}

/// A client with a one-hop circuit, and its relay.
struct Pair {
    random: Fixed,
    own: Responder,
    client: Client,
    shard: Shard,
    /// The client's inner address at the relay.
    inside: IpAddr,
}

const NOW: Time = Time::from_micros(1);

fn from() -> SocketAddr {
    ([192, 0, 2, 1], 1).into()
}

impl Pair {
    fn new() -> Self {
        let mut random = Fixed(1);
        let secret = RelaySecret::generate(&mut random);
        let own =
            Responder { network: [0; 32], relay: RelayId(1), role: Role::Egress, key_epoch: 0, key: secret.public() };
        let config = RelayConfig {
            own: own.clone(),
            peers: Default::default(),
            suites: Suites::ALL,
            one_hop: true,
            capacity: 8,
            evidence: Announced::open(),
            mirror: Default::default(),
        };
        let config = Arc::new(config);
        let slots = Arc::new(Mutex::new(Slots::new(0, 8)));
        let index_key = IndexKey::new(&mut random);
        let gate = Gate::new(own.key, Arc::new(Load::default()), &mut random);
        let shared = Shared { index_key: index_key.clone(), slots: slots.clone(), gate: gate.clone() };
        let mut shard = Shard::new(0, config.clone(), shared, Box::new(OpenAdmission), NOW);
        let replays = Replays::new(NOW, &mut random);
        let mut handshaker = Handshaker::new(config, secret, index_key, vec![slots], gate, replays);
        let config = ClientConfig {
            ingress: None,
            egress: own.clone(),
            egress_address: Some(from()),
            suites: Suites::ALL,
            ingress_evidence: Vec::new(),
            egress_evidence: vec![Announced::open().digest],
            keepalive: None,
        };
        let mut client = Client::new(config, NOW, 1, &mut random).expect("a valid key");
        while !client.is_connected() {
            while let Some(mut datagram) = client.poll_transmit() {
                shard.handle_datagram(from(), &mut datagram, NOW, &mut random);
            }
            while let Some(request) = shard.poll_request() {
                for (_, output) in handshaker.handle(request, NOW, 1, &mut random) {
                    shard.apply(output, NOW, &mut random);
                }
            }
            while let Some((_, mut datagram)) = shard.poll_transmit() {
                let _ = client.handle_datagram(&mut datagram, NOW, 1, &mut random);
            }
        }
        let mut pair = Self { random, own, client, shard, inside: from().ip() };
        let ping = [0x45, 0, 0, 20, 0, 0, 0, 0, 64, 59, 0, 0, 100, 64, 0, 2, 93, 184, 215, 2];
        let Fate::Deliver { packet, .. } = pair.up(&ping) else { panic!("a valid packet is delivered") };
        pair.inside = packet.source;
        pair
    }

    /// Sends `inner` to the relay through the session, as if it were a packet.
    fn up(&mut self, inner: &[u8]) -> Fate {
        let offset = self.client.offset();
        let mut datagram = vec![0; offset + padded(inner.len()) + self.client.trailer()];
        datagram[offset..offset + inner.len()].copy_from_slice(inner);
        self.client.seal(&mut datagram, inner.first().is_some_and(|byte| byte & 8 != 0), NOW).expect("it is connected");
        let verdict = self.shard.handle_datagram(from(), &mut datagram, NOW, &mut self.random);
        if let Fate::Deliver { offset, packet, .. } = &verdict {
            assert!(offset + packet.len <= datagram.len());
        }
        verdict
    }

    /// Sends `inner` to the client through the session, as if it were a packet.
    fn down(&mut self, inner: &[u8]) {
        let down = self.shard.route_down(self.inside).expect("the client has a route");
        let mut datagram = vec![0; down.offset + padded(inner.len()) + down.trailer];
        datagram[down.offset..down.offset + inner.len()].copy_from_slice(inner);
        self.shard.seal_down(&down, &mut datagram, false, NOW).expect("it is connected");
        let _ = self.client.handle_datagram(&mut datagram, NOW, 1, &mut self.random);
    }

    fn run(&mut self, data: &[u8]) {
        let mut masked = data.to_vec();
        self.shard.handle_datagram(from(), &mut masked.clone(), NOW, &mut self.random);
        // As if the sender knew the relay's key: the mask is its own inverse.
        IndexMask::to_relay(&self.own.key).remove(&mut masked);
        self.shard.handle_datagram(from(), &mut masked, NOW, &mut self.random);
        let _ = self.client.handle_datagram(&mut data.to_vec(), NOW, 1, &mut self.random);
        // Structured input: frames from an authenticated peer inside its session.
        let inner = &data[..data.len().min(usize::from(MAX_MTU))];
        self.up(inner);
        self.down(inner);
        while self.shard.poll_request().is_some() {}
        while self.shard.poll_transmit().is_some() {}
        let c = self.shard.counts();
        assert_eq!(c.received, c.forwarded + c.delivered + c.control + c.handshakes + c.passed + c.drops.total());
    }
}

thread_local! {
    static PAIR: RefCell<Option<Pair>> = const { RefCell::new(None) };
}

fuzz_target!(|data: &[u8]| {
    PAIR.with_borrow_mut(|pair| pair.get_or_insert_with(Pair::new).run(data));
});
