//! Scripted peers: they follow the protocol through the handshake and can send any frame afterwards.
//!
//! Owns both sides: a relay with a scripted client, and a client with a scripted relay. Serves tests and fuzzing of
//! the frames that an authenticated peer may send.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use openrelay_proto::client::{Client, ClientConfig, DatagramEvent, Event};
use openrelay_proto::handshake::{First, Initiator, Responder, Role, accept};
use openrelay_proto::index::{IndexKey, Slots};
use openrelay_proto::keys::{RelayId, RelaySecret};
use openrelay_proto::mask::IndexMask;
use openrelay_proto::message::{Admission, Announced, EvidenceDigest, Message, Token};
use openrelay_proto::relay::{Gate, Handshaker, Load, Mirrored, OpenAdmission, RelayConfig, Replays, Shard, Shared};
use openrelay_proto::session::{CLIENT_WINDOW, Session};
use openrelay_proto::suite::{Suite, Suites};
use openrelay_proto::time::Time;
use openrelay_proto::wire::{FrameKind, HEADER_LEN, KIND_LEN, TAG_LEN, padded};

use crate::faults::Seeded;

const NOW: Time = Time::from_micros(1);

fn address() -> SocketAddr {
    ([192, 0, 2, 1], 1).into()
}

fn responder(role: Role, secret: &RelaySecret) -> Responder {
    Responder { network: [0; 32], relay: RelayId(1), role, key_epoch: 0, key: secret.public() }
}

/// Returns a frame as a sealed datagram; the caller masks its index.
fn sealed(session: &mut Session, frame: &[u8]) -> Vec<u8> {
    let body = frame.len().saturating_sub(KIND_LEN);
    let mut datagram = vec![0; HEADER_LEN];
    datagram.extend_from_slice(frame);
    datagram.resize(HEADER_LEN + KIND_LEN + padded(body) + TAG_LEN, 0);
    session.seal(&mut datagram, NOW).expect("this end may seal");
    datagram
}

/// Offset of the next message in the control stream, at an admitted client and at the relay that admitted it.
pub const AFTER_TOKEN: u32 = 7;

/// Encodes one message as the first frame of the control stream.
pub fn control(message: &Message) -> Vec<u8> {
    control_at(0, message)
}

/// Encodes one message as a frame at this offset of the control stream.
pub fn control_at(offset: u32, message: &Message) -> Vec<u8> {
    let (kind, body) = message.encode();
    let mut stream = [&kind.to_be_bytes()[..], &u32::try_from(body.len()).unwrap().to_be_bytes()].concat();
    stream.extend(body);
    let head = [&[FrameKind::Control.byte()][..], &offset.to_be_bytes(), &[0; 4]].concat();
    [&head[..], &u16::try_from(stream.len()).unwrap().to_be_bytes(), &stream].concat()
}

/// A relay with a scripted client.
pub struct AtRelay {
    random: Seeded,
    to_relay: IndexMask,
    session: Session,
    config: Arc<RelayConfig>,
    /// The relay.
    pub shard: Shard,
    /// The current time at the relay.
    pub now: Time,
}

impl AtRelay {
    /// Opens a confirmed session, and has it admitted if `admitted`.
    pub fn new(role: Role, admitted: bool) -> Self {
        let mut random = Seeded(1);
        let secret = RelaySecret::generate(&mut random);
        let own = responder(role, &secret);
        let config = Arc::new(RelayConfig {
            own: own.clone(),
            peers: Default::default(),
            suites: Suites::ALL,
            one_hop: true,
            capacity: 8,
            evidence: Announced::open(),
            mirror: Default::default(),
        });
        let slots = Arc::new(Mutex::new(Slots::new(0, 8)));
        let index_key = IndexKey::new(&mut random);
        let gate = Gate::new(own.key, Arc::new(Load::default()), &mut random);
        let shared = Shared { index_key: index_key.clone(), slots: slots.clone(), gate: gate.clone() };
        let mut shard = Shard::new(0, config.clone(), shared, Box::new(OpenAdmission), NOW);
        let mut handshaker =
            Handshaker::new(config.clone(), secret, index_key, vec![slots], gate, Replays::new(NOW, &mut random));
        let (to_relay, to_client) = (IndexMask::to_relay(&own.key), IndexMask::to_client(&own.key));
        let mut exchange = |packet: &mut Vec<u8>, random: &mut Seeded| {
            to_relay.remove(packet);
            shard.handle_datagram(address(), packet, NOW, random);
            while let Some(request) = shard.poll_request() {
                for (_, output) in handshaker.handle(request, NOW, 1, random) {
                    shard.apply(output, NOW, random);
                }
            }
            let (_, mut answer) = shard.poll_transmit().expect("an answer");
            to_client.remove(&mut answer);
            answer
        };
        let first = First { offered: Suites::ALL, local_index: 1, minutes: 1 };
        let (mut initiator, mut packet) = Initiator::start(&own, None, first, &mut random).expect("a good key");
        let reply = exchange(&mut packet, &mut random);
        let mut key = initiator.read_reply(&reply, &mut random).expect("a good reply");
        let text = exchange(&mut key, &mut random);
        let session = Session::new(&initiator.read_kem_text(&text).expect("a good text"), CLIENT_WINDOW, NOW);
        let mut this = Self { random, to_relay, session, config, shard, now: NOW };
        if admitted {
            this.say(&control(&Message::Token(Token::Open)));
        }
        this
    }

    /// Delivers a frame, kind byte first, to the relay and asserts that the relay's counters add up.
    pub fn say(&mut self, frame: &[u8]) {
        let mut datagram = sealed(&mut self.session, frame);
        self.to_relay.remove(&mut datagram);
        self.shard.handle_datagram(address(), &mut datagram, self.now, &mut self.random);
        while self.shard.poll_request().is_some() {}
        while self.shard.poll_transmit().is_some() {}
        let c = self.shard.counts();
        assert_eq!(c.received, c.forwarded + c.delivered + c.control + c.handshakes + c.passed + c.drops.total());
    }

    /// Makes the relay mirror these bytes as the records.
    pub fn mirror_records(&mut self, bytes: &[u8]) {
        let mut config = RelayConfig::clone(&self.config);
        config.mirror.records = Mirrored::new(bytes.to_vec());
        self.shard.set_config(Arc::new(config));
    }

    /// Lets the relay handle its timeouts.
    pub fn pass_time(&mut self) {
        self.shard.handle_timeout(self.now, &mut self.random);
    }

    /// Reports whether the relay has ended the session.
    pub fn is_over(&self) -> bool {
        self.shard.held().0 == 0
    }
}

/// A client with a scripted relay.
pub struct AtClient {
    random: Seeded,
    to_client: IndexMask,
    session: Session,
    /// The client.
    pub client: Client,
}

impl AtClient {
    /// Completes a circuit's handshake, and connects the circuit if `admitted`.
    pub fn new(admitted: bool) -> Self {
        Self::announcing(Announced::open().digest, admitted)
    }

    /// Does the same with a relay that announces this evidence.
    pub fn announcing(digest: EvidenceDigest, admitted: bool) -> Self {
        let mut random = Seeded(2);
        let secret = RelaySecret::generate(&mut random);
        let own = responder(Role::Egress, &secret);
        let (to_relay, to_client) = (IndexMask::to_relay(&own.key), IndexMask::to_client(&own.key));
        let config = ClientConfig {
            ingress: None,
            egress: own.clone(),
            egress_address: Some(address()),
            suites: Suites::ALL,
            ingress_evidence: Vec::new(),
            egress_evidence: vec![Announced::open().digest],
            keepalive: None,
        };
        let mut client = Client::new(config, NOW, 1, &mut random).expect("a good key");
        let mut take = |answer: Option<Vec<u8>>, random: &mut Seeded| {
            if let Some(mut answer) = answer {
                to_client.remove(&mut answer);
                client.handle_datagram(&mut answer, NOW, 1, random);
            }
            let mut packet = client.poll_transmit().expect("a packet");
            to_relay.remove(&mut packet);
            packet
        };
        let first = take(None, &mut random);
        let accepted = accept(&own, &secret, &first).expect("a good first packet");
        let (replied, reply) = accepted.reply(Suite::Aegis256X2, 7, &mut random).expect("a good key");
        let key = take(Some(reply), &mut random);
        let (text, established) = replied.read_kem_key(&key, digest, &mut random).expect("a good ML-KEM key");
        let mut session = Session::new(&established, CLIENT_WINDOW, NOW);
        let mut token = take(Some(text), &mut random);
        session.open(&mut token, NOW).expect("a packet under the new keys");
        let mut this = Self { random, to_client, session, client };
        if admitted {
            this.say(&control(&Message::Admitted(Admission::Open)));
            assert!(this.client.is_connected());
        }
        this
    }

    /// Delivers a frame, kind byte first, to the client.
    pub fn say(&mut self, frame: &[u8]) -> DatagramEvent {
        let mut datagram = sealed(&mut self.session, frame);
        self.to_client.remove(&mut datagram);
        let verdict = self.client.handle_datagram(&mut datagram, NOW, 1, &mut self.random);
        while self.client.poll_transmit().is_some() {}
        verdict
    }

    /// Reports whether the client has given up the circuit since the last call.
    pub fn is_over(&mut self) -> bool {
        std::iter::from_fn(|| self.client.poll_event()).any(|event| matches!(event, Event::Lost | Event::Failed(_)))
    }
}
