//! What a stranger's datagram costs a shard: each length up to 1,500 bytes, with no relays known and with 3,000.
//!
//! Prints the median cost of a datagram, the largest over all lengths. Lengths of first packets are left out: those may
//! cost a handshake. Fails when the bounds of docs/limits.md do not hold.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a benchmark prints and may stop")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use openrelay_proto::handshake::{FIRST_IK_LEN, FIRST_NK_LEN, Responder, Role};
use openrelay_proto::index::{IndexKey, Slots};
use openrelay_proto::keys::{RelayId, RelaySecret};
use openrelay_proto::mask::IndexMask;
use openrelay_proto::message::Announced;
use openrelay_proto::random::Random;
use openrelay_proto::relay::{Gate, Load, Mirror, OpenAdmission, Peer, RelayConfig, Shard, Shared};
use openrelay_proto::suite::Suites;
use openrelay_proto::time::Time;
use openrelay_proto::wire::{PROOF_LEN, PacketType};

/// Longest datagram, in bytes.
const LONGEST: usize = 1_500;
/// Datagrams that are timed together, and how often.
const BATCH: usize = 64;
const ROUNDS: usize = 9;
/// Largest median cost of one datagram.
const BOUND: Duration = Duration::from_nanos(500);

struct Mixed(u64);

impl Random for Mixed {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            *byte = self.0.to_be_bytes()[0];
        }
    }
}

struct Rig {
    shard: Shard,
    mask: IndexMask,
    random: Mixed,
    relay: SocketAddr,
}

fn rig(relays: u32) -> Rig {
    let mut random = Mixed(1);
    let own = Responder {
        network: [1; 32],
        relay: RelayId(1),
        role: Role::Ingress,
        key_epoch: 0,
        key: RelaySecret::generate(&mut random).public(),
    };
    let address = |number: u32| SocketAddr::from((Ipv4Addr::from_bits(0x5000_0000 + 77 * number), 443));
    let peers = (0..relays).map(|number| {
        let (relay, key) = (RelayId(u64::from(number) + 2), RelaySecret::generate(&mut random).public());
        (
            relay,
            Peer { responder: Responder { relay, key, role: Role::Egress, ..own.clone() }, address: address(number) },
        )
    });
    let config = Arc::new(RelayConfig {
        own: own.clone(),
        peers: peers.collect(),
        suites: Suites::ALL,
        one_hop: false,
        capacity: 65_536,
        evidence: Announced::open(),
        mirror: Mirror::default(),
    });
    let shared = Shared {
        index_key: IndexKey::new(&mut random),
        slots: Arc::new(Mutex::new(Slots::new(0, config.capacity))),
        gate: Gate::new(own.key, Arc::new(Load::default()), &mut random),
    };
    let shard = Shard::new(0, config, shared, Box::new(OpenAdmission), Time::default());
    Rig { shard, mask: IndexMask::to_relay(&own.key), random, relay: address(relays / 2) }
}

impl Rig {
    /// Returns the median cost of a datagram of this length and type; without a type its bytes are random.
    fn cost(&mut self, from: SocketAddr, length: usize, kind: Option<PacketType>) -> Duration {
        let mut batch = vec![vec![0; length]; BATCH];
        let mut costs: Vec<Duration> = (0..ROUNDS)
            .map(|_| {
                for datagram in &mut batch {
                    self.random.fill(datagram);
                    if let (Some(kind), true) = (kind, length >= 26) {
                        datagram[0] = kind.byte();
                        // A mask is removed as it is applied.
                        self.mask.remove(datagram);
                    }
                }
                let started = Instant::now();
                for datagram in &mut batch {
                    self.shard.handle_datagram(from, datagram, Time::default(), &mut self.random);
                }
                let cost = started.elapsed() / u32::try_from(BATCH).unwrap();
                while self.shard.poll_request().is_some() || self.shard.poll_transmit().is_some() {}
                cost
            })
            .collect();
        costs.sort_unstable();
        costs[ROUNDS / 2]
    }

    /// Returns the largest cost over all lengths but those of first packets, and the length.
    fn largest(&mut self, from: SocketAddr, kind: Option<PacketType>) -> (Duration, usize) {
        let first = [FIRST_NK_LEN, FIRST_NK_LEN + PROOF_LEN, FIRST_IK_LEN, FIRST_IK_LEN + PROOF_LEN];
        let lengths = (0..=LONGEST).filter(|length| !first.contains(length));
        lengths.map(|length| (self.cost(from, length, kind), length)).max().unwrap()
    }
}

fn main() {
    let stranger: SocketAddr = ([192, 0, 2, 1], 7).into();
    let kinds = [
        ("random bytes", None),
        ("data, unknown session", Some(PacketType::Data)),
        ("reply, no handshake", Some(PacketType::Reply)),
        ("ML-KEM key, no handshake", Some(PacketType::KemKey)),
        ("cookie, no handshake", Some(PacketType::Cookie)),
    ];
    let (mut none, mut many) = (rig(0), rig(3_000));
    let relay = many.relay;
    let mut held = true;
    for (name, kind) in kinds {
        // Warm, so that the first row does not pay for the caches.
        none.largest(stranger, kind);
        let alone = none.largest(stranger, kind);
        for (origin, from) in [("a stranger", stranger), ("a relay's address", relay)] {
            let among = many.largest(from, kind);
            println!(
                "{name:26} from {origin:17}: no relays {:?} ({} bytes), 3,000 relays {:?} ({} bytes)",
                alone.0, alone.1, among.0, among.1
            );
            held &= among.0 <= BOUND && among.0 <= 2 * alone.0.max(Duration::from_nanos(50));
        }
    }
    println!("bounds ({BOUND:?}, and twice the cost without relays): {}", if held { "hold" } else { "exceeded" });
    std::process::exit(i32::from(!held));
}
