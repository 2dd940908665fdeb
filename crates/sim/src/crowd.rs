//! Many clients at one ingress and one egress, some of which take all that they can.
//!
//! Owns the clients, their addresses and virtual time. Links are instant and lose nothing. [`Crowd`] has clients of the
//! protocol's own code; [`Greedy`] is one that is written by hand and opens as many sessions as it is told to.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use openrelay_proto::client::{Client, ClientConfig, DatagramEvent, Event, Failure};
use openrelay_proto::cookie;
use openrelay_proto::drops::DropReason;
use openrelay_proto::handshake::{First, Initiator, Responder, Role};
use openrelay_proto::keys::{RelayId, RelaySecret};
use openrelay_proto::mask::IndexMask;
use openrelay_proto::message::{Announced, Message, Token};
use openrelay_proto::relay::{Fate, Peer, Shard};
use openrelay_proto::session::{CLIENT_WINDOW, Session};
use openrelay_proto::suite::Suites;
use openrelay_proto::time::Time;
use openrelay_proto::wire::{FORWARD_LEN, FrameKind, HEADER_LEN, KIND_LEN, TAG_LEN, padded};

use crate::faults::Seeded;
use crate::packets;
use crate::peer::control_at;
use crate::world::{Relay, relay};

/// Most rounds in which datagrams cause other datagrams at one moment.
const ROUNDS: usize = 64;

/// Bytes of a control frame before the stream's.
const CONTROL_HEAD: usize = 11;

/// The state of a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// It is connecting.
    Connecting,
    /// It carries packets.
    Connected,
    /// It could not connect.
    Failed(Failure),
    /// Its circuit has ended.
    Lost,
}

struct Member {
    client: Client,
    state: State,
}

/// An ingress, an egress and their clients.
pub struct Crowd {
    now: Time,
    random: Seeded,
    config: ClientConfig,
    ingress: Relay,
    egress: Relay,
    ingress_address: SocketAddr,
    egress_address: SocketAddr,
    members: BTreeMap<SocketAddr, Member>,
    /// Datagrams for addresses without a client of the crowd.
    elsewhere: BTreeMap<SocketAddr, Vec<Vec<u8>>>,
    delivered: usize,
}

impl Crowd {
    /// Creates relays for `capacity` sessions each.
    pub fn new(seed: u64, capacity: u32) -> Self {
        let mut random = Seeded(seed);
        let addresses: [SocketAddr; 2] = [([198, 51, 100, 1], 443).into(), ([203, 0, 113, 1], 443).into()];
        let secrets = [(); 2].map(|()| RelaySecret::generate(&mut random));
        let responder = |relay, role, secret: &RelaySecret| Responder {
            network: [1; 32],
            relay: RelayId(relay),
            role,
            key_epoch: 0,
            key: secret.public(),
        };
        let ingress = responder(1, Role::Ingress, &secrets[0]);
        let egress = responder(2, Role::Egress, &secrets[1]);
        let peers = [
            Peer { responder: egress.clone(), address: addresses[1] },
            Peer { responder: ingress.clone(), address: addresses[0] },
        ];
        let config = ClientConfig {
            ingress: Some((ingress.clone(), addresses[0])),
            egress: egress.clone(),
            egress_address: None,
            suites: Suites::ALL,
            ingress_evidence: vec![Announced::open().digest],
            egress_evidence: vec![Announced::open().digest],
            keepalive: Some(Duration::from_secs(25)),
        };
        let ([in_secret, out_secret], [out_peer, in_peer]) = (secrets, peers);
        Self {
            now: Time::from_micros(1),
            config,
            ingress: relay(ingress, in_secret, out_peer, capacity, &mut random),
            egress: relay(egress, out_secret, in_peer, capacity, &mut random),
            ingress_address: addresses[0],
            egress_address: addresses[1],
            random,
            members: BTreeMap::new(),
            elsewhere: BTreeMap::new(),
            delivered: 0,
        }
    }

    /// Switches all shares off: first come, first served.
    pub fn ignore_shares(&mut self) {
        for relay in [&mut self.ingress, &mut self.egress] {
            relay.shard.ignore_shares();
            relay.handshaker.ignore_shares();
        }
    }

    /// Lets a client connect from this address.
    pub fn join(&mut self, address: SocketAddr) {
        let minutes = self.minutes();
        let client = Client::new(self.config.clone(), self.now, minutes, &mut self.random).unwrap();
        self.members.insert(address, Member { client, state: State::Connecting });
        self.settle();
    }

    /// Returns the state of the client at this address.
    pub fn state(&self, address: SocketAddr) -> State {
        self.members[&address].state
    }

    /// Returns how many of these clients are connected and get a packet through.
    pub fn working(&mut self, addresses: &[SocketAddr]) -> usize {
        addresses.iter().filter(|address| self.send_up(**address)).count()
    }

    /// Sends a packet from the client at this address; returns whether the egress delivers it.
    pub fn send_up(&mut self, address: SocketAddr) -> bool {
        let member = self.members.get_mut(&address).unwrap();
        if member.state != State::Connected {
            return false;
        }
        let (packet, offset) = (packets::udp4(b"hello"), member.client.offset());
        let mut datagram = vec![0; offset + padded(packet.len()) + member.client.trailer()];
        datagram[offset..offset + packet.len()].copy_from_slice(&packet);
        if member.client.seal(&mut datagram, false, self.now).is_err() {
            return false;
        }
        let before = self.delivered;
        self.deliver(address, self.ingress_address, datagram);
        self.settle();
        self.delivered > before
    }

    /// Passes time in steps of 50 milliseconds.
    pub fn advance(&mut self, time: Duration) {
        let end = self.now.after(time);
        while self.now < end {
            self.now = self.now.after(Duration::from_millis(50));
            let (now, minutes) = (self.now, self.minutes());
            for member in self.members.values_mut() {
                if member.client.poll_timeout() <= now {
                    member.client.handle_timeout(now, minutes, &mut self.random);
                }
            }
            for relay in [&mut self.ingress, &mut self.egress] {
                while relay.shard.poll_timeout() <= now {
                    relay.shard.handle_timeout(now, &mut self.random);
                }
                for (_, output) in relay.handshaker.handle_timeout(now, minutes, &mut self.random) {
                    relay.shard.apply(output, now, &mut self.random);
                }
            }
            self.settle();
        }
    }

    /// Returns the ingress' shard.
    pub fn ingress(&mut self) -> &mut Shard {
        &mut self.ingress.shard
    }

    /// Returns the numbers of sessions and circuits of ingress and egress.
    pub fn held(&self) -> [(usize, usize); 2] {
        [self.ingress.shard.held(), self.egress.shard.held()]
    }

    /// Counts what ingress and egress dropped for this reason, in the shard and in the handshaker.
    pub fn drops(&self, reason: DropReason) -> [u64; 2] {
        [&self.ingress, &self.egress]
            .map(|relay| relay.shard.counts().drops.of(reason) + relay.handshaker.drops().of(reason))
    }

    fn minutes(&self) -> u32 {
        u32::try_from(self.now.as_micros() / 60_000_000).unwrap() + 1_000
    }

    /// Delivers everything that is under way, and takes the clients' events.
    fn settle(&mut self) {
        for _ in 0..ROUNDS {
            let (now, minutes) = (self.now, self.minutes());
            let mut wire = Vec::new();
            for (address, member) in &mut self.members {
                while let Some(datagram) = member.client.poll_transmit() {
                    wire.push((*address, self.ingress_address, datagram));
                }
                while let Some(event) = member.client.poll_event() {
                    member.state = match event {
                        Event::Connected => State::Connected,
                        Event::Failed(failure) => State::Failed(failure),
                        Event::Lost => State::Lost,
                        Event::Mtu(_) => continue,
                    };
                }
            }
            let addresses = [self.ingress_address, self.egress_address];
            for (relay, address) in [&mut self.ingress, &mut self.egress].into_iter().zip(addresses) {
                while let Some(request) = relay.shard.poll_request() {
                    for (_, output) in relay.handshaker.handle(request, now, minutes, &mut self.random) {
                        relay.shard.apply(output, now, &mut self.random);
                    }
                }
                while let Some((to, datagram)) = relay.shard.poll_transmit() {
                    wire.push((address, to, datagram));
                }
                while relay.shard.poll_freed().is_some() {}
            }
            if wire.is_empty() {
                return;
            }
            for (from, to, datagram) in wire {
                self.deliver(from, to, datagram);
            }
        }
        panic!("datagrams cause each other for ever");
    }

    fn deliver(&mut self, from: SocketAddr, to: SocketAddr, mut datagram: Vec<u8>) {
        let (now, minutes) = (self.now, self.minutes());
        if to != self.ingress_address && to != self.egress_address {
            let Some(member) = self.members.get_mut(&to) else {
                self.elsewhere.entry(to).or_default().push(datagram);
                return;
            };
            let event = member.client.handle_datagram(&mut datagram, now, minutes, &mut self.random);
            assert!(!matches!(event, DatagramEvent::Deliver { .. }));
            return;
        }
        let relay = if to == self.ingress_address { &mut self.ingress } else { &mut self.egress };
        match relay.shard.handle_datagram(from, &mut datagram, now, &mut self.random) {
            Fate::Forward { to: onward } => self.deliver(to, onward, datagram),
            Fate::Deliver { .. } => self.delivered += 1,
            Fate::Consumed | Fate::Forbidden { .. } | Fate::OtherShard(_) | Fate::Dropped(_) => {}
        }
    }
}

/// A client that takes all that it can: it opens sessions with the egress, one after another, over as many circuits and
/// from as many sessions with the ingress as it is told to.
pub struct Greedy {
    address: SocketAddr,
    outer: Line,
    /// Tags of its circuits.
    pub tags: Vec<u32>,
    inner: Option<Line>,
}

/// One session of [`Greedy`].
struct Line {
    to_relay: IndexMask,
    to_client: IndexMask,
    session: Session,
    /// Bytes of the control stream that were sent.
    sent: u32,
}

impl Line {
    /// Returns a frame as a sealed and masked datagram.
    fn seal(&mut self, frame: &[u8], now: Time) -> Option<Vec<u8>> {
        let mut datagram = vec![0; HEADER_LEN];
        datagram.extend_from_slice(frame);
        datagram.resize(HEADER_LEN + KIND_LEN + padded(frame.len() - KIND_LEN) + TAG_LEN, 0);
        self.session.seal(&mut datagram, now).ok()?;
        // A mask is removed as it is applied.
        self.to_relay.remove(&mut datagram);
        Some(datagram)
    }

    fn say(&mut self, message: &Message, now: Time) -> Option<Vec<u8>> {
        let frame = control_at(self.sent, message);
        self.sent += u32::try_from(frame.len() - CONTROL_HEAD).unwrap();
        self.seal(&frame, now)
    }

    /// Opens a datagram and returns its frame.
    fn open(&mut self, mut datagram: Vec<u8>, now: Time) -> Option<Vec<u8>> {
        self.to_client.remove(&mut datagram)?;
        self.session.open(&mut datagram, now).ok()?;
        Some(datagram[HEADER_LEN..datagram.len() - TAG_LEN].to_vec())
    }
}

/// Returns the messages in a control frame.
fn messages(frame: &[u8]) -> Vec<Message> {
    let mut found = Vec::new();
    if frame.first() != Some(&FrameKind::Control.byte()) {
        return found;
    }
    let length = usize::from(u16::from_be_bytes([frame[9], frame[10]]));
    let mut rest = &frame[11..11 + length];
    while rest.len() >= 6 {
        let kind = u16::from_be_bytes([rest[0], rest[1]]);
        let length = u32::from_be_bytes([rest[2], rest[3], rest[4], rest[5]]) as usize;
        let Some(body) = rest.get(6..6 + length) else { break };
        found.extend(Message::decode(kind, body));
        rest = &rest[6 + length..];
    }
    found
}

impl Greedy {
    /// Opens a session with the ingress from this address; `None` when the ingress does not let it.
    pub fn new(crowd: &mut Crowd, address: SocketAddr) -> Option<Self> {
        let (ingress, to) = crowd.config.ingress.clone().unwrap();
        let exchange = |crowd: &mut Crowd, packet: Vec<u8>| {
            crowd.deliver(address, to, packet);
            crowd.settle();
            crowd.elsewhere.remove(&address).unwrap_or_default()
        };
        let mut outer = handshake(crowd, &ingress, exchange)?;
        let now = crowd.now;
        let token = outer.say(&Message::Token(Token::Open), now)?;
        let answers = exchange(crowd, token);
        let frames: Vec<Vec<u8>> = answers.into_iter().filter_map(|answer| outer.open(answer, now)).collect();
        let admitted = frames.iter().flat_map(|frame| messages(frame)).any(|m| matches!(m, Message::Admitted(_)));
        admitted.then_some(Self { address, outer, tags: Vec::new(), inner: None })
    }

    /// Sends a datagram to the ingress and returns the frames of the answers.
    fn exchange(&mut self, crowd: &mut Crowd, datagram: Vec<u8>) -> Vec<Vec<u8>> {
        crowd.deliver(self.address, crowd.ingress_address, datagram);
        crowd.settle();
        let (answers, now) = (crowd.elsewhere.remove(&self.address).unwrap_or_default(), crowd.now);
        answers.into_iter().filter_map(|answer| self.outer.open(answer, now)).collect()
    }

    /// Opens a circuit; returns whether the ingress did.
    pub fn open_circuit(&mut self, crowd: &mut Crowd) -> bool {
        let egress = crowd.config.egress.relay;
        let Some(asked) = self.outer.say(&Message::CircuitOpen { request: 9, egress }, crowd.now) else { return false };
        let before = self.tags.len();
        for frame in self.exchange(crowd, asked) {
            for message in messages(&frame) {
                if let Message::CircuitOpened { tag, .. } = message {
                    self.tags.push(tag);
                }
            }
        }
        self.tags.len() > before
    }

    /// Sends a packet of the inner session over a circuit and returns the packets that come back.
    fn through(&mut self, crowd: &mut Crowd, tag: u32, packet: &[u8]) -> Vec<Vec<u8>> {
        let mut datagram = vec![0; HEADER_LEN];
        datagram.push(FrameKind::Forward.byte());
        datagram.extend_from_slice(&tag.to_be_bytes());
        datagram.extend_from_slice(packet);
        datagram.resize(datagram.len() + TAG_LEN, 0);
        self.outer.session.seal(&mut datagram, crowd.now).unwrap();
        self.outer.to_relay.remove(&mut datagram);
        let frames = self.exchange(crowd, datagram);
        let forwarded = frames.into_iter().filter(|frame| frame.first() == Some(&FrameKind::Forward.byte()));
        forwarded.map(|frame| frame[FORWARD_LEN..].to_vec()).collect()
    }

    /// Opens another session with the egress over this circuit; returns whether it is admitted.
    pub fn inner_session(&mut self, crowd: &mut Crowd, tag: u32) -> bool {
        let egress = crowd.config.egress.clone();
        let Some(mut inner) = handshake(crowd, &egress, |crowd, packet| self.through(crowd, tag, &packet)) else {
            return false;
        };
        let now = crowd.now;
        let Some(token) = inner.say(&Message::Token(Token::Open), now) else { return false };
        let answers = self.through(crowd, tag, &token);
        let frames: Vec<Vec<u8>> = answers.into_iter().filter_map(|answer| inner.open(answer, now)).collect();
        let admitted = frames.iter().flat_map(|frame| messages(frame)).any(|m| matches!(m, Message::Admitted(_)));
        self.inner = Some(inner);
        admitted
    }

    /// Sends a packet through the newest session with the egress and closes it: its address has to rest.
    pub fn use_and_close(&mut self, crowd: &mut Crowd, tag: u32) {
        let Some(mut inner) = self.inner.take() else { return };
        let now = crowd.now;
        let frame = [&[FrameKind::Packet { partial: false }.byte()][..], &packets::udp4(b"once")].concat();
        for datagram in [inner.seal(&frame, now), inner.say(&Message::Close, now)].into_iter().flatten() {
            self.through(crowd, tag, &datagram);
        }
    }
}

impl Greedy {
    /// Sends a packet of the newest session with the egress straight to the egress; returns whether that delivers it.
    pub fn send_straight(&mut self, crowd: &mut Crowd) -> bool {
        let frame = [&[FrameKind::Packet { partial: false }.byte()][..], &packets::udp4(b"straight")].concat();
        let now = crowd.now;
        let datagram = self.inner.as_mut().and_then(|inner| inner.seal(&frame, now)).unwrap();
        let before = crowd.delivered;
        crowd.deliver(self.address, crowd.egress_address, datagram);
        crowd.settle();
        crowd.delivered > before
    }
}

/// Completes a handshake with `to`, with a cookie if it asks for one; `exchange` carries one packet and its answers.
fn handshake(
    crowd: &mut Crowd,
    to: &Responder,
    mut exchange: impl FnMut(&mut Crowd, Vec<u8>) -> Vec<Vec<u8>>,
) -> Option<Line> {
    let (to_relay, to_client) = (IndexMask::to_relay(&to.key), IndexMask::to_client(&to.key));
    let minutes = crowd.minutes();
    let first = First { offered: Suites::ALL, local_index: 1, minutes };
    let (mut initiator, plain) = Initiator::start(to, None, first, &mut crowd.random).ok()?;
    let mut send = |crowd: &mut Crowd, packet: &[u8]| {
        let mut packet = packet.to_vec();
        to_relay.remove(&mut packet);
        let mut answers = exchange(crowd, packet);
        for answer in &mut answers {
            let _ = to_client.remove(answer);
        }
        answers
    };
    // Among the answers are those of earlier sessions.
    let mut answers = send(crowd, &plain);
    let proven = answers.iter_mut().find_map(|answer| cookie::with_proof(&plain, answer, &to.key));
    if let Some(proven) = proven {
        answers = send(crowd, &proven);
    }
    let key = answers.iter().find_map(|answer| initiator.read_reply(answer, &mut crowd.random).ok())?;
    let text = send(crowd, &key);
    let established = text.iter().find_map(|answer| initiator.read_kem_text(answer).ok())?;
    let session = Session::new(&established, CLIENT_WINDOW, crowd.now);
    Some(Line { to_relay: IndexMask::to_relay(&to.key), to_client: IndexMask::to_client(&to.key), session, sent: 0 })
}
