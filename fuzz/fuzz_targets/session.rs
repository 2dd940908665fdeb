//! What a peer says inside its session, true to the protocol up to there: a relay and a client hear every kind of frame with any body,
//! before and after admission. Nothing panics, and a relay counts every datagram once.
#![no_main]
use std::cell::RefCell;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use openrelay_proto::client::{Client, ClientConfig};
use openrelay_proto::handshake::{First, Initiator, Responder, Role, accept};
use openrelay_proto::index::{IndexKey, Slots};
use openrelay_proto::keys::{RelayId, RelaySecret};
use openrelay_proto::mask::IndexMask;
use openrelay_proto::message::{Evidence, Message, Token};
use openrelay_proto::random::Random;
use openrelay_proto::relay::{Gate, Handshaker, Load, OpenAdmission, RelayConfig, Replays, Shard, Shared};
use openrelay_proto::session::{CLIENT_WINDOW, Session};
use openrelay_proto::suite::{Suite, Suites};
use openrelay_proto::time::Time;
use openrelay_proto::wire::{FrameKind, HEADER_LEN, KIND_LEN, MAX_MTU, TAG_LEN, padded};

const NOW: Time = Time::from_micros(1);

struct Fixed(u64);
impl Random for Fixed {
    fn fill(&mut self, bytes: &mut [u8]) {
        for byte in bytes {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = self.0.to_be_bytes()[0];
        }
    }
}

fn address() -> SocketAddr {
    ([192, 0, 2, 1], 1).into()
}

fn responder(role: Role, secret: &RelaySecret) -> Responder {
    Responder { network: [0; 32], relay: RelayId(1), role, key_epoch: 0, key: secret.public() }
}

/// A frame as a datagram, sealed; its index is masked by the caller.
fn sealed(session: &mut Session, frame: &[u8]) -> Vec<u8> {
    let body = frame.len().saturating_sub(KIND_LEN);
    let mut datagram = vec![0; HEADER_LEN];
    datagram.extend_from_slice(frame);
    datagram.resize(HEADER_LEN + KIND_LEN + padded(body) + TAG_LEN, 0);
    session.seal(&mut datagram, NOW).expect("this end may seal");
    datagram
}

/// One message as a frame of the control stream, the first in it.
fn control(message: &Message) -> Vec<u8> {
    let (kind, body) = message.encode();
    let mut stream = [&kind.to_be_bytes()[..], &(body.len() as u32).to_be_bytes()].concat();
    stream.extend(body);
    [&[FrameKind::Control.byte()][..], &[0; 8], &(stream.len() as u16).to_be_bytes(), &stream].concat()
}

/// A relay, and a client of our own making.
struct AtRelay {
    random: Fixed,
    to_relay: IndexMask,
    session: Session,
    shard: Shard,
}

impl AtRelay {
    fn new(role: Role, admitted: bool) -> Self {
        let mut random = Fixed(1);
        let secret = RelaySecret::generate(&mut random);
        let own = responder(role, &secret);
        let config = Arc::new(RelayConfig {
            own: own.clone(),
            peers: Default::default(),
            suites: Suites::ALL,
            one_hop: true,
            capacity: 8,
            evidence: Evidence::Open,
        });
        let slots = Arc::new(Mutex::new(Slots::new(0, 8)));
        let index_key = IndexKey::new(&mut random);
        let gate = Gate::new(own.key, Arc::new(Load::default()), &mut random);
        let shared = Shared { index_key: index_key.clone(), slots: slots.clone(), gate: gate.clone() };
        let mut shard = Shard::new(0, config.clone(), shared, Box::new(OpenAdmission), NOW);
        let mut handshaker =
            Handshaker::new(config, secret, index_key, vec![slots], gate, Replays::new(NOW, &mut random));
        let (to_relay, to_client) = (IndexMask::to_relay(&own.key), IndexMask::to_client(&own.key));
        let mut exchange = |packet: &mut Vec<u8>, random: &mut Fixed| {
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
        let mut this = Self { random, to_relay, session, shard };
        if admitted {
            this.say(&control(&Message::Token(Token::Open)));
        }
        this
    }

    fn say(&mut self, frame: &[u8]) {
        let mut datagram = sealed(&mut self.session, frame);
        self.to_relay.remove(&mut datagram);
        self.shard.handle_datagram(address(), &mut datagram, NOW, &mut self.random);
        while self.shard.poll_request().is_some() {}
        while self.shard.poll_transmit().is_some() {}
        let c = self.shard.counts();
        assert_eq!(c.received, c.forwarded + c.delivered + c.control + c.handshakes + c.passed + c.drops.total());
    }

    fn is_over(&self) -> bool {
        self.shard.held().0 == 0
    }
}

/// A client, and a relay of our own making.
struct AtClient {
    random: Fixed,
    to_client: IndexMask,
    session: Session,
    client: Client,
}

impl AtClient {
    fn new(admitted: bool) -> Self {
        let mut random = Fixed(2);
        let secret = RelaySecret::generate(&mut random);
        let own = responder(Role::Egress, &secret);
        let (to_relay, to_client) = (IndexMask::to_relay(&own.key), IndexMask::to_client(&own.key));
        let config = ClientConfig {
            ingress: None,
            egress: own.clone(),
            egress_address: Some(address()),
            suites: Suites::ALL,
            known_evidence: vec![Evidence::Open.digest()],
            keepalive: None,
        };
        let mut client = Client::new(config, NOW, 1, &mut random).expect("a good key");
        let mut take = |answer: Option<Vec<u8>>, random: &mut Fixed| {
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
        let digest = Evidence::Open.digest();
        let (text, established) = replied.read_kem_key(&key, digest, &mut random).expect("a good ML-KEM key");
        let mut session = Session::new(&established, CLIENT_WINDOW, NOW);
        let mut token = take(Some(text), &mut random);
        session.open(&mut token, NOW).expect("a packet under the new keys");
        let mut this = Self { random, to_client, session, client };
        if admitted {
            this.say(&control(&Message::Admitted(openrelay_proto::message::Admission::Open)));
            assert!(this.client.is_connected());
        }
        this
    }

    fn say(&mut self, frame: &[u8]) {
        let mut datagram = sealed(&mut self.session, frame);
        self.to_client.remove(&mut datagram);
        let _ = self.client.handle_datagram(&mut datagram, NOW, 1, &mut self.random);
        while self.client.poll_transmit().is_some() {}
    }

    fn is_over(&mut self) -> bool {
        std::iter::from_fn(|| self.client.poll_event()).any(|event| {
            use openrelay_proto::client::Event;
            matches!(event, Event::Lost | Event::Failed(_))
        })
    }
}

#[derive(Default)]
struct Peers {
    relays: [Option<AtRelay>; 4],
    clients: [Option<AtClient>; 2],
}

thread_local! {
    static PEERS: RefCell<Peers> = RefCell::default();
}

fuzz_target!(|data: &[u8]| {
    let Some((&choice, mut rest)) = data.split_first() else { return };
    PEERS.with_borrow_mut(|peers| {
        let admitted = choice & 1 != 0;
        let role = if choice & 2 != 0 { Role::Ingress } else { Role::Egress };
        let relay = peers.relays[usize::from(choice & 3)].get_or_insert_with(|| AtRelay::new(role, admitted));
        let client = peers.clients[usize::from(choice & 1)].get_or_insert_with(|| AtClient::new(admitted));
        let (mut relay_over, mut client_over) = (false, false);
        // Frames: length 2, kind and body.
        while let Some((length, more)) = rest.split_first_chunk::<2>() {
            let length = usize::from(u16::from_be_bytes(*length)) % usize::from(MAX_MTU);
            let (frame, more) = more.split_at(length.min(more.len()));
            rest = more;
            if !relay_over {
                relay.say(frame);
                relay_over = relay.is_over();
            }
            if !client_over {
                client.say(frame);
                client_over = client.is_over();
            }
        }
        if relay_over {
            peers.relays[usize::from(choice & 3)] = None;
        }
        if client_over {
            peers.clients[usize::from(choice & 1)] = None;
        }
    });
});
