//! The smallest network that a circuit needs: no delay, no loss, everything recorded.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openrelay_proto::client::{Client, ClientConfig, Event, Verdict as ClientVerdict};
use openrelay_proto::drops::DropReason;
use openrelay_proto::handshake::{Responder, Role};
use openrelay_proto::index::{IndexKey, Slots};
use openrelay_proto::ip::{CLIENT_V4, Packet};
use openrelay_proto::keys::{RelayId, RelaySecret};
use openrelay_proto::random::Random;
use openrelay_proto::relay::{
    Gate, Handshaker, Load, OpenAdmission, Peer, RelayConfig, Replays, Shard, Shared, Verdict,
};
use openrelay_proto::suite::Suites;
use openrelay_proto::time::Time;
use openrelay_proto::wire::padded;

pub struct Seeded(pub u64);

impl Random for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            *byte = (z ^ (z >> 31)).to_le_bytes()[0];
        }
    }
}

struct Relay {
    shard: Shard,
    handshaker: Handshaker,
}

#[derive(Default, PartialEq, Eq, Debug, Clone)]
pub struct Wire {
    pub client: Vec<Vec<u8>>,
    pub client_up: Vec<Vec<u8>>,
    pub relay: Vec<Vec<u8>>,
}

pub struct Delivered {
    pub bytes: Vec<u8>,
}

pub struct Network {
    now: Time,
    random: Seeded,
    config: ClientConfig,
    client: Option<Client>,
    client_address: SocketAddr,
    ingress_address: SocketAddr,
    egress_address: SocketAddr,
    ingress: Relay,
    egress: Relay,
    queue: VecDeque<(SocketAddr, SocketAddr, Vec<u8>)>,
    wire: Wire,
    up: Vec<Delivered>,
    down: Vec<Vec<u8>>,
    pub hold_challenges: bool,
}

fn relay(own: Responder, secret: RelaySecret, peer: Peer, random: &mut Seeded) -> Relay {
    let config = Arc::new(RelayConfig {
        peers: [(peer.responder.relay, peer)].into(),
        suites: Suites::ALL,
        one_hop: false,
        capacity: 1000,
        own,
    });
    let index_key = IndexKey::new(random);
    let slots = Arc::new(Mutex::new(Slots::new(0, config.capacity)));
    let gate = Gate::new(config.own.key, Arc::new(Load::default()), random);
    let shared = Shared { index_key: index_key.clone(), slots: slots.clone(), gate: gate.clone() };
    let replays = Replays::new(Time::default(), random);
    Relay {
        shard: Shard::new(0, config.clone(), shared, Box::new(OpenAdmission), Time::default()),
        handshaker: Handshaker::new(config, secret, index_key, vec![slots], gate, replays),
    }
}

impl Network {
    pub fn new(seed: u64) -> Self {
        let mut random = Seeded(seed);
        let ingress_address: SocketAddr = "198.51.100.1:443".parse().unwrap();
        let egress_address: SocketAddr = "203.0.113.1:443".parse().unwrap();
        let (in_secret, out_secret) = (RelaySecret::generate(&mut random), RelaySecret::generate(&mut random));
        let responder = |relay, role, secret: &RelaySecret| Responder {
            network: [1; 32],
            relay: RelayId(relay),
            role,
            key_epoch: 0,
            key: secret.public(),
        };
        let ingress = responder(1, Role::Ingress, &in_secret);
        let egress = responder(2, Role::Egress, &out_secret);
        let in_peer = Peer { responder: ingress.clone(), address: ingress_address };
        let out_peer = Peer { responder: egress.clone(), address: egress_address };
        Self {
            now: Time::default(),
            config: ClientConfig {
                ingress: Some((ingress.clone(), ingress_address)),
                egress: egress.clone(),
                egress_address: None,
                suites: Suites::ALL,
                keepalive: None,
            },
            client: None,
            client_address: "192.0.2.7:4000".parse().unwrap(),
            ingress_address,
            egress_address,
            ingress: relay(ingress, in_secret, out_peer, &mut random),
            egress: relay(egress, out_secret, in_peer, &mut random),
            random,
            queue: VecDeque::new(),
            wire: Wire::default(),
            up: Vec::new(),
            down: Vec::new(),
            hold_challenges: false,
        }
    }

    pub fn ask_for_egress(&mut self, id: u64) {
        self.config.egress.relay = RelayId(id);
    }

    pub fn use_wrong_ingress_key(&mut self) {
        let wrong = RelaySecret::generate(&mut self.random).public();
        self.config.ingress.as_mut().unwrap().0.key = wrong;
    }

    pub fn connect(&mut self) {
        self.try_connect().unwrap();
        self.settle();
    }

    pub fn try_connect(&mut self) -> Result<(), Event> {
        self.client = Client::new(self.config.clone(), self.now, self.minutes(), &mut self.random);
        for _ in 0..100 {
            self.settle();
            while let Some(event) = self.client.as_mut().unwrap().poll_event() {
                match event {
                    Event::Connected => return Ok(()),
                    Event::Mtu(_) => {}
                    Event::Failed(_) | Event::Lost => return Err(event),
                }
            }
            self.advance_millis(100);
        }
        panic!("neither connected nor failed");
    }

    pub fn rekey(&mut self) {
        self.client.as_mut().unwrap().rekey(self.now, &mut self.random);
        self.settle();
    }

    pub fn close(&mut self) {
        self.client.as_mut().unwrap().close(self.now);
        self.settle();
    }

    fn minutes(&self) -> u32 {
        u32::try_from(self.now.as_micros() / 60_000_000).unwrap() + 1000
    }

    pub fn advance_millis(&mut self, millis: u64) {
        self.now = self.now.after(Duration::from_millis(millis));
        let (now, minutes) = (self.now, self.minutes());
        if let Some(client) = &mut self.client {
            client.handle_timeout(now, minutes, &mut self.random);
        }
        for relay in [&mut self.ingress, &mut self.egress] {
            relay.shard.handle_timeout(now, &mut self.random);
            for (_, output) in relay.handshaker.handle_timeout(now, minutes, &mut self.random) {
                relay.shard.apply(output, now, &mut self.random);
            }
        }
        self.settle();
    }

    pub fn move_client(&mut self, port: u16) {
        self.client_address.set_port(port);
    }

    /// A datagram of the client's, sealed and not sent.
    pub fn seal_up(&mut self, packet: &[u8]) -> Vec<u8> {
        let client = self.client.as_mut().unwrap();
        let offset = client.offset();
        let mut datagram = vec![0; offset];
        datagram.extend_from_slice(packet);
        datagram.resize(offset + padded(packet.len()) + client.trailer(), 0);
        client.seal(&mut datagram, false, self.now).unwrap();
        datagram
    }

    /// How many packets the egress has delivered since this was asked last.
    pub fn delivered_up(&mut self) -> usize {
        std::mem::take(&mut self.up).len()
    }

    pub fn send_up(&mut self, packet: &[u8]) -> Vec<Delivered> {
        let datagram = self.seal_up(packet);
        self.queue.push_back((self.client_address, self.ingress_address, datagram));
        self.settle();
        std::mem::take(&mut self.up)
    }

    pub fn send_down(&mut self, packet: &[u8]) -> Vec<Vec<u8>> {
        let mut bytes = packet.to_vec();
        let mut parsed = Packet::parse(&bytes).unwrap();
        let down = self.egress.shard.route_down(parsed.destination).unwrap();
        Shard::translate_down(&mut parsed, &mut bytes, false);
        let mut datagram = vec![0; down.offset];
        datagram.extend_from_slice(&bytes);
        datagram.resize(down.offset + padded(bytes.len()) + down.trailer, 0);
        self.egress.shard.seal_down(&down, &mut datagram, false, self.now).unwrap();
        self.queue.push_back((self.egress_address, down.to, datagram));
        self.settle();
        std::mem::take(&mut self.down)
    }

    pub fn inject_at_ingress(&mut self, datagram: Vec<u8>) {
        let (from, to) = (self.client_address, self.ingress_address);
        self.deliver(from, to, datagram);
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            self.collect();
            let Some((from, to, datagram)) = self.queue.pop_front() else { return };
            let up = from == self.client_address;
            if up || to == self.client_address {
                self.wire.client.push(datagram.clone());
            } else {
                self.wire.relay.push(datagram.clone());
            }
            if up {
                self.wire.client_up.push(datagram.clone());
            }
            self.deliver(from, to, datagram);
        }
    }

    fn deliver(&mut self, from: SocketAddr, to: SocketAddr, mut datagram: Vec<u8>) {
        let now = self.now;
        if to == self.client_address {
            let minutes = self.minutes();
            let Some(client) = &mut self.client else { return };
            let (before, length) = (client.poll_timeout(), datagram.len());
            let verdict = client.handle_datagram(&mut datagram, now, minutes, &mut self.random);
            let _ = (before, length);
            if let ClientVerdict::Deliver { offset, packet, .. } = verdict {
                self.down.push(datagram[offset..offset + packet.len].to_vec());
            }
            return;
        }
        let (relay, address) = if to == self.ingress_address {
            (&mut self.ingress, self.ingress_address)
        } else {
            if to != self.egress_address {
                // To where the client was before it moved.
                return;
            }
            (&mut self.egress, self.egress_address)
        };
        match relay.shard.handle_datagram(from, &mut datagram, now, &mut self.random) {
            Verdict::Forward { to } => self.queue.push_back((address, to, datagram)),
            Verdict::Deliver { offset, packet, .. } => {
                self.up.push(Delivered { bytes: datagram[offset..offset + packet.len].to_vec() });
            }
            Verdict::Consumed | Verdict::OtherShard(_) | Verdict::Dropped(_) => {}
        }
    }

    fn collect(&mut self) {
        let (now, minutes) = (self.now, self.minutes());
        if let Some(client) = &mut self.client {
            while let Some(datagram) = client.poll_transmit() {
                let path_response = self.hold_challenges;
                if !path_response {
                    self.queue.push_back((self.client_address, self.ingress_address, datagram));
                }
            }
        }
        for (relay, address) in [(&mut self.ingress, self.ingress_address), (&mut self.egress, self.egress_address)] {
            while let Some(request) = relay.shard.poll_request() {
                for (_, output) in relay.handshaker.handle(request, now, minutes, &mut self.random) {
                    relay.shard.apply(output, now, &mut self.random);
                }
            }
            while let Some((to, datagram)) = relay.shard.poll_transmit() {
                self.queue.push_back((address, to, datagram));
            }
        }
    }

    pub fn wire_bytes(&self) -> Wire {
        self.wire.clone()
    }

    pub fn client_bytes(&self) -> usize {
        self.wire.client_up.iter().map(Vec::len).sum()
    }

    pub fn bytes_to_client(&self) -> usize {
        self.wire.client.iter().map(Vec::len).sum::<usize>() - self.client_bytes()
    }

    pub fn datagrams_from_ingress(&self) -> usize {
        self.wire.client.len() - self.wire.client_up.len() + self.wire.relay.len()
    }

    pub fn ingress_drops(&self, reason: DropReason) -> u64 {
        self.ingress.shard.counts().drops.of(reason)
    }

    pub fn egress_drops(&self, reason: DropReason) -> u64 {
        self.egress.shard.counts().drops.of(reason)
    }

    pub fn held(&self) -> ((usize, usize), (usize, usize)) {
        (self.ingress.shard.held(), self.egress.shard.held())
    }

    /// Every datagram that a shard received is in exactly one of its other numbers.
    pub fn check_accounting(&self) {
        for relay in [&self.ingress, &self.egress] {
            let c = relay.shard.counts();
            assert_eq!(
                c.received,
                c.forwarded + c.delivered + c.control + c.handshakes + c.passed + c.drops.total(),
                "{c:?}"
            );
        }
    }
}

/// A UDP packet from the client's tunnel address to 192.0.2.80, port 7.
pub fn udp4(payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(28 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend_from_slice(&CLIENT_V4.octets());
    packet.extend_from_slice(&[192, 0, 2, 80]);
    packet.extend_from_slice(&[0x10, 0, 0, 7]);
    packet.extend_from_slice(&(length - 20).to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    packet
}

/// An answer to `packet` with `payload`.
pub fn answer4(packet: &[u8], payload: &[u8]) -> Vec<u8> {
    let IpAddr::V4(to) = Packet::parse(packet).unwrap().source else { panic!("IPv4") };
    let mut answer = udp4(payload);
    answer[12..16].copy_from_slice(&[192, 0, 2, 80]);
    answer[16..20].copy_from_slice(&to.octets());
    answer
}
