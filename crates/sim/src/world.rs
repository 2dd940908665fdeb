//! The world of one circuit: two relays, a client, the links between them, and a record of everything that crossed
//! the links.
//!
//! Owns the order of events. Never judges the outcome; tests do, by what was delivered and recorded.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openrelay_proto::client::{Client, ClientConfig, DatagramEvent, Event, Fetched};
use openrelay_proto::drops::DropReason;
use openrelay_proto::handshake::{Responder, Role};
use openrelay_proto::index::{IndexKey, Slots};
use openrelay_proto::ip::Packet;
use openrelay_proto::keys::{RelayId, RelayKey, RelaySecret};
use openrelay_proto::message::{Announced, Evidence, EvidenceDigest, MirrorFile};
use openrelay_proto::relay::{
    Fate, Gate, Handshaker, Load, Mirror, Mirrored, OpenAdmission, Peer, RelayConfig, Replays, Shard, Shared,
};
use openrelay_proto::suite::Suites;
use openrelay_proto::time::Time;
use openrelay_proto::wire::padded;

use crate::faults::{Faults, Seeded};

pub(crate) struct Relay {
    pub(crate) config: Arc<RelayConfig>,
    load: Arc<Load>,
    pub(crate) shard: Shard,
    pub(crate) handshaker: Handshaker,
}

/// Sessions of each relay.
const CAPACITY: u32 = 1_000;

/// The datagrams that crossed the links.
#[derive(Default, PartialEq, Eq, Debug, Clone)]
pub struct Wire {
    /// Datagrams on the client's link, in both directions.
    pub client: Vec<Vec<u8>>,
    /// The subset of `client` that the client sent.
    pub client_up: Vec<Vec<u8>>,
    /// Datagrams between the relays.
    pub relay: Vec<Vec<u8>>,
}

/// A packet delivered by the egress.
pub struct Delivered {
    /// The packet.
    pub bytes: Vec<u8>,
}

/// A client, an ingress, an egress and their links.
pub struct World {
    now: Time,
    random: Seeded,
    config: ClientConfig,
    client: Option<Client>,
    client_address: SocketAddr,
    ingress_address: SocketAddr,
    egress_address: SocketAddr,
    ingress: Relay,
    egress: Relay,
    /// Datagrams in flight, ordered by arrival time, then by the order of sending.
    queue: BTreeMap<(Time, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    sent: u64,
    dice: Seeded,
    /// Faults of the links.
    pub faults: Faults,
    wire: Wire,
    up: Vec<Delivered>,
    down: Vec<Vec<u8>>,
    /// Discards every datagram to the egress, as if it were dead.
    pub egress_cut: bool,
    /// Withholds the client's own control datagrams, so that challenges stay unanswered.
    pub hold_control: bool,
    held: Vec<Vec<u8>>,
}

pub(crate) fn relay(own: Responder, secret: RelaySecret, peer: Peer, capacity: u32, random: &mut Seeded) -> Relay {
    let config = Arc::new(RelayConfig {
        peers: [(peer.responder.relay, peer)].into(),
        suites: Suites::ALL,
        one_hop: false,
        capacity,
        evidence: Announced::open(),
        mirror: Mirror::default(),
        own,
    });
    let index_key = IndexKey::new(random);
    let slots = Arc::new(Mutex::new(Slots::new(0, config.capacity)));
    let load = Arc::new(Load::default());
    let gate = Gate::new(config.own.key, load.clone(), random);
    let shared = Shared { index_key: index_key.clone(), slots: slots.clone(), gate: gate.clone() };
    let replays = Replays::new(Time::default(), random);
    Relay {
        load,
        config: config.clone(),
        shard: Shard::new(0, config.clone(), shared, Box::new(OpenAdmission), Time::default()),
        handshaker: Handshaker::new(config, secret, index_key, vec![slots], gate, replays),
    }
}

impl World {
    /// Creates a world that runs identically for the same seed.
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
                ingress_evidence: vec![Announced::open().digest],
                egress_evidence: vec![Announced::open().digest],
                keepalive: None,
            },
            client: None,
            client_address: "192.0.2.7:4000".parse().unwrap(),
            ingress_address,
            egress_address,
            ingress: relay(ingress, in_secret, out_peer, CAPACITY, &mut random),
            egress: relay(egress, out_secret, in_peer, CAPACITY, &mut random),
            random,
            queue: BTreeMap::new(),
            sent: 0,
            dice: Seeded(seed ^ 0x5eed),
            faults: Faults::default(),
            wire: Wire::default(),
            up: Vec::new(),
            down: Vec::new(),
            egress_cut: false,
            hold_control: false,
            held: Vec::new(),
        }
    }

    /// Makes the client ask for another egress.
    pub fn ask_for_egress(&mut self, id: u64) {
        self.config.egress.relay = RelayId(id);
    }

    /// Gives the client a wrong ingress key.
    pub fn use_wrong_ingress_key(&mut self) {
        let wrong = RelaySecret::generate(&mut self.random).public();
        self.config.ingress.as_mut().unwrap().0.key = wrong;
    }

    /// Makes both relays require cookies.
    pub fn put_relays_under_load(&mut self) {
        for relay in [&self.ingress, &self.egress] {
            (0..1_000).for_each(|_| relay.load.queued());
        }
    }

    /// Returns the world's time.
    pub fn now(&self) -> Time {
        self.now
    }

    /// Makes the client accept only this evidence from a relay.
    pub fn accept_evidence(&mut self, of: Role, accepted: Vec<EvidenceDigest>) {
        match of {
            Role::Ingress => self.config.ingress_evidence = accepted,
            Role::Egress => self.config.egress_evidence = accepted,
        }
    }

    /// Gives a relay this evidence.
    pub fn set_evidence(&mut self, of: Role, evidence: Announced) {
        let relay = if of == Role::Ingress { &mut self.ingress } else { &mut self.egress };
        let mut config = RelayConfig::clone(&relay.config);
        config.evidence = evidence;
        relay.config = Arc::new(config);
        relay.shard.set_config(relay.config.clone());
        relay.handshaker.set_config(relay.config.clone());
    }

    /// Takes the unaccepted evidence that a relay presented.
    pub fn take_shown(&mut self) -> Option<Evidence> {
        self.client.as_mut().unwrap().take_shown()
    }

    /// Returns the largest packet that the egress sends unfragmented to `inner`, a client's address at the egress.
    pub fn egress_mtu(&self, inner: IpAddr) -> u16 {
        self.egress.shard.route_down(inner).unwrap().mtu
    }

    /// Makes the client send keepalives every 25 s.
    pub fn use_keepalives(&mut self) {
        self.config.keepalive = Some(Duration::from_secs(25));
    }

    /// Opens the circuit.
    pub fn connect(&mut self) {
        self.try_connect().unwrap();
        self.settle();
    }

    /// Opens the circuit.
    ///
    /// # Errors
    /// The event that ended the attempt.
    pub fn try_connect(&mut self) -> Result<(), Event> {
        self.connect_watched(|_| None)
    }

    /// Returns the ingress' handshake key.
    pub fn ingress_key(&self) -> RelayKey {
        self.ingress.config.own.key
    }

    /// Opens the circuit while somebody sees each datagram of the client as it leaves, and may answer it at once.
    ///
    /// # Errors
    /// The event that ended the attempt.
    pub fn connect_watched(&mut self, mut look: impl FnMut(&[u8]) -> Option<Vec<u8>>) -> Result<(), Event> {
        self.client = Client::new(self.config.clone(), self.now, self.minutes(), &mut self.random);
        for _ in 0..4_000 {
            self.settle();
            let leaving = self.queue.values().filter(|(from, _, _)| *from == self.client_address);
            let answers: Vec<Vec<u8>> = leaving.filter_map(|(_, _, datagram)| look(datagram)).collect();
            for answer in answers {
                self.deliver(self.ingress_address, self.client_address, answer);
            }
            while let Some(event) = self.client.as_mut().unwrap().poll_event() {
                match event {
                    Event::Connected => return Ok(()),
                    Event::Mtu(_) => {}
                    Event::Failed(_) | Event::Lost => return Err(event),
                }
            }
            self.advance_millis(10);
        }
        panic!("neither connected nor failed");
    }

    /// Makes a relay mirror these bytes as the records, or nothing if they are empty.
    pub fn mirror_records(&mut self, at: Role, bytes: &[u8]) {
        let relay = if at == Role::Ingress { &mut self.ingress } else { &mut self.egress };
        let mut config = RelayConfig::clone(&relay.config);
        config.mirror.records = Mirrored::new(bytes.to_vec());
        relay.config = Arc::new(config);
        relay.shard.set_config(relay.config.clone());
    }

    /// Asks a relay for the records; returns whether the request could be sent.
    pub fn ask_for_records(&mut self, from: Role) -> bool {
        self.client.as_mut().unwrap().fetch(from, MirrorFile::Records, self.now)
    }

    /// Returns the next piece of a relay's answer.
    pub fn fetched(&mut self) -> Option<Fetched> {
        self.client.as_mut().unwrap().poll_fetched()
    }

    /// Replaces all keys.
    pub fn rekey(&mut self) {
        self.client.as_mut().unwrap().rekey(self.now, &mut self.random);
        self.settle();
    }

    /// Closes the circuit.
    pub fn close(&mut self) {
        self.client.as_mut().unwrap().close(self.now);
        self.settle();
    }

    fn minutes(&self) -> u32 {
        u32::try_from(self.now.as_micros() / 60_000_000).unwrap() + 1000
    }

    /// Advances time in steps of ten milliseconds.
    pub fn advance_millis(&mut self, millis: u64) {
        let mut left = millis;
        while left > 0 {
            let step = left.min(10);
            left -= step;
            self.step(step);
        }
    }

    fn step(&mut self, millis: u64) {
        self.now = self.now.after(Duration::from_millis(millis));
        let (now, minutes) = (self.now, self.minutes());
        if let Some(client) = &mut self.client
            && client.poll_timeout() <= now
        {
            client.handle_timeout(now, minutes, &mut self.random);
        }
        for relay in [&mut self.ingress, &mut self.egress] {
            if relay.shard.poll_timeout() <= now {
                relay.shard.handle_timeout(now, &mut self.random);
            }
            for (_, output) in relay.handshaker.handle_timeout(now, minutes, &mut self.random) {
                relay.shard.apply(output, now, &mut self.random);
            }
        }
        self.settle();
    }

    /// Reports whether the client's circuit is connected.
    pub fn is_connected(&self) -> bool {
        self.client.as_ref().is_some_and(Client::is_connected)
    }

    /// Returns generation and epoch of the client's keys towards egress and ingress.
    pub fn sealing_epochs(&self) -> [(u8, u8); 2] {
        self.client.as_ref().unwrap().sealing_epochs().map(Option::unwrap)
    }

    /// Counts the first packets that the ingress handshaker refused for this reason.
    pub fn ingress_handshake_drops(&self, reason: DropReason) -> u64 {
        self.ingress.handshaker.drops().of(reason)
    }

    /// Returns the time until the client's next timeout.
    pub fn client_rests_for(&self) -> Duration {
        self.client.as_ref().map_or(Duration::MAX, |client| client.poll_timeout().since(self.now))
    }

    /// Returns the largest inner packet that the client sends, in bytes.
    pub fn client_mtu(&self) -> u16 {
        self.client.as_ref().map_or(0, Client::mtu)
    }

    /// Changes the client's port, as a NAT may.
    pub fn move_client(&mut self, port: u16) {
        self.client_address.set_port(port);
    }

    /// Returns a sealed datagram of the client without sending it.
    pub fn seal_up(&mut self, packet: &[u8]) -> Vec<u8> {
        let client = self.client.as_mut().unwrap();
        let offset = client.offset();
        let mut datagram = vec![0; offset];
        datagram.extend_from_slice(packet);
        datagram.resize(offset + padded(packet.len()) + client.trailer(), 0);
        client.seal(&mut datagram, false, self.now).unwrap();
        datagram
    }

    /// Returns the number of packets that the egress has delivered since the last call.
    pub fn delivered_up(&mut self) -> usize {
        std::mem::take(&mut self.up).len()
    }

    /// Sends a packet up and returns what the egress delivers.
    pub fn send_up(&mut self, packet: &[u8]) -> Vec<Delivered> {
        let datagram = self.seal_up(packet);
        self.send(self.client_address, self.ingress_address, datagram);
        self.settle();
        std::mem::take(&mut self.up)
    }

    /// Sends a packet down and returns what the client receives.
    pub fn send_down(&mut self, packet: &[u8]) -> Vec<Vec<u8>> {
        let mut bytes = packet.to_vec();
        let mut parsed = Packet::parse(&bytes).unwrap();
        let down = self.egress.shard.route_down(parsed.destination).unwrap();
        Shard::translate_down(&mut parsed, &mut bytes, false);
        let mut datagram = vec![0; down.offset];
        datagram.extend_from_slice(&bytes);
        datagram.resize(down.offset + padded(bytes.len()) + down.trailer, 0);
        self.egress.shard.seal_down(&down, &mut datagram, false, self.now).unwrap();
        self.send(self.egress_address, down.to, datagram);
        self.settle();
        std::mem::take(&mut self.down)
    }

    /// Carries `packet` up and an answer down over fault-free links, each only in `buffer`, as the real data path
    /// does. Returns whether both arrived.
    pub fn carry(&mut self, packet: &[u8], answer: &mut [u8], buffer: &mut [u8]) -> bool {
        let (now, minutes) = (self.now, self.minutes());
        let Some(client) = &mut self.client else { return false };
        let length = client.offset() + padded(packet.len()) + client.trailer();
        let datagram = &mut buffer[..length];
        let offset = client.offset();
        datagram[offset..offset + packet.len()].copy_from_slice(packet);
        datagram[offset + packet.len()..].fill(0);
        if client.seal(datagram, false, now).is_err() {
            return false;
        }
        let to = self.ingress.shard.handle_datagram(self.client_address, datagram, now, &mut self.random);
        let Fate::Forward { .. } = to else { return false };
        let up = self.egress.shard.handle_datagram(self.ingress_address, datagram, now, &mut self.random);
        let Fate::Deliver { packet: delivered, .. } = up else { return false };

        let Ok(mut parsed) = Packet::parse(answer) else { return false };
        let Ok(down) = self.egress.shard.route_down(delivered.source) else { return false };
        Shard::translate_down(&mut parsed, answer, false);
        let datagram = &mut buffer[..down.offset + padded(answer.len()) + down.trailer];
        datagram[down.offset..down.offset + answer.len()].copy_from_slice(answer);
        datagram[down.offset + answer.len()..].fill(0);
        if self.egress.shard.seal_down(&down, datagram, false, now).is_err() {
            return false;
        }
        let to = self.ingress.shard.handle_datagram(self.egress_address, datagram, now, &mut self.random);
        let Fate::Forward { .. } = to else { return false };
        let verdict = client.handle_datagram(datagram, now, minutes, &mut self.random);
        matches!(verdict, DatagramEvent::Deliver { .. })
    }

    /// Takes the client's withheld datagrams.
    pub fn held_back(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.held)
    }

    /// Delivers a datagram to the ingress.
    pub fn inject_at_ingress(&mut self, datagram: Vec<u8>) {
        self.inject_from(self.client_address, datagram);
    }

    /// Delivers a datagram to the ingress with `from` as its claimed source.
    pub fn inject_from(&mut self, from: SocketAddr, datagram: Vec<u8>) {
        self.deliver(from, self.ingress_address, datagram);
        self.settle();
    }

    /// Returns the client's address.
    pub fn client_address(&self) -> SocketAddr {
        self.client_address
    }

    fn settle(&mut self) {
        loop {
            self.collect();
            let Some(first) = self.queue.first_entry().filter(|first| first.key().0 <= self.now) else { return };
            let (from, to, datagram) = first.remove();
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
            let verdict = client.handle_datagram(&mut datagram, now, minutes, &mut self.random);
            if let DatagramEvent::Deliver { offset, packet, .. } = verdict {
                self.down.push(datagram[offset..offset + packet.len].to_vec());
            }
            return;
        }
        let (relay, address) = if to == self.ingress_address {
            (&mut self.ingress, self.ingress_address)
        } else {
            if to != self.egress_address || self.egress_cut {
                // Addressed to the client's previous address, or to a dead egress.
                return;
            }
            (&mut self.egress, self.egress_address)
        };
        match relay.shard.handle_datagram(from, &mut datagram, now, &mut self.random) {
            Fate::Forward { to } => self.send(address, to, datagram),
            Fate::Deliver { offset, packet, .. } => {
                self.up.push(Delivered { bytes: datagram[offset..offset + packet.len].to_vec() });
            }
            Fate::Consumed | Fate::Forbidden { .. } | Fate::OtherShard(_) | Fate::Dropped(_) => {}
        }
    }

    /// Puts all pending datagrams on the links.
    fn collect(&mut self) {
        let (now, minutes) = (self.now, self.minutes());
        let mut out = Vec::new();
        if let Some(client) = &mut self.client {
            while let Some(datagram) = client.poll_transmit() {
                if self.hold_control {
                    self.held.push(datagram);
                } else {
                    out.push((self.client_address, self.ingress_address, datagram));
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
                out.push((address, to, datagram));
            }
        }
        for (from, to, datagram) in out {
            self.send(from, to, datagram);
        }
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        for (delay, copy) in self.faults.apply(datagram, &mut self.dice) {
            self.sent += 1;
            self.queue.insert((self.now.after(delay), self.sent), (from, to, copy));
        }
    }

    /// Returns everything that crossed the links.
    pub fn wire_bytes(&self) -> Wire {
        self.wire.clone()
    }

    /// Counts the bytes that the client sent.
    pub fn client_bytes(&self) -> usize {
        self.wire.client_up.iter().map(Vec::len).sum()
    }

    /// Counts the bytes that arrived at the client.
    pub fn bytes_to_client(&self) -> usize {
        self.wire.client.iter().map(Vec::len).sum::<usize>() - self.client_bytes()
    }

    /// Counts the datagrams that the ingress sent.
    pub fn datagrams_from_ingress(&self) -> usize {
        self.wire.client.len() - self.wire.client_up.len() + self.wire.relay.len()
    }

    /// Counts the packets that the ingress dropped for this reason.
    pub fn ingress_drops(&self, reason: DropReason) -> u64 {
        self.ingress.shard.counts().drops.of(reason)
    }

    /// Counts the packets that the egress dropped for this reason.
    pub fn egress_drops(&self, reason: DropReason) -> u64 {
        self.egress.shard.counts().drops.of(reason)
    }

    /// Returns the numbers of sessions and circuits held by ingress and egress.
    pub fn held(&self) -> ((usize, usize), (usize, usize)) {
        (self.ingress.shard.held(), self.egress.shard.held())
    }

    /// Takes the packets that the client received since the last call.
    pub fn delivered_down(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.down)
    }

    /// Takes the packets that the egress delivered since the last call.
    pub fn taken_up(&mut self) -> Vec<Delivered> {
        std::mem::take(&mut self.up)
    }

    /// Sends a packet up without waiting for its delivery; returns false if the circuit is down.
    pub fn push_up(&mut self, packet: &[u8]) -> bool {
        if !self.client.as_ref().is_some_and(Client::is_connected) {
            return false;
        }
        let datagram = self.seal_up(packet);
        self.send(self.client_address, self.ingress_address, datagram);
        self.settle();
        true
    }

    /// Asserts that every datagram a shard received or withheld is in exactly one other counter.
    pub fn check_accounting(&self) {
        for relay in [&self.ingress, &self.egress] {
            let c = relay.shard.counts();
            assert_eq!(
                c.received + c.withheld,
                c.forwarded + c.delivered + c.control + c.handshakes + c.passed + c.drops.total(),
                "{c:?}"
            );
        }
    }
}
