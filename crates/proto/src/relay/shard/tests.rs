//! What many sessions, strangers and a changed directory do to one shard.

mod relays;

use super::sweep::ENDS;
use super::*;
use crate::control::CONTROL_HEAD;
use crate::handshake::{
    Established, FIRST_NK_LEN, First, Initiator, KEM_KEY_LEN, KEM_TEXT_LEN, REKEY_LEN, REPLY_LEN, Responder, Role,
    SessionKeys,
};
use crate::keys::{RelaySecret, Secret};
use crate::link::Link;
use crate::message::{Announced, Evidence, Message};
use crate::mirror::{Mirror, MirrorFile, Mirrored};
use crate::random::Counting;
use crate::relay::circuits::{Circuit, MAX_CLIENT_CIRCUITS};
use crate::relay::entry::{Opened, Path};
use crate::relay::gate::Entrance;
use crate::relay::holders::Owner;
use crate::relay::{Handshaker, Install, Load, OpenAdmission, Output, Outputs, Peer, Peers, Replays};
use crate::session::Session;
use crate::suite::{Suite, Suites};
use std::time::Duration;

struct Rig {
    shard: Shard,
    handshaker: Handshaker,
    slots: Arc<Mutex<Slots>>,
    load: Arc<Load>,
    gate: Gate,
    own: Responder,
    random: Counting,
}

fn rig(capacity: u32) -> Rig {
    let mut random = Counting::default();
    let secret = RelaySecret::generate(&mut random);
    let own =
        Responder { network: [1; 32], relay: RelayId(1), role: Role::Ingress, key_epoch: 0, key: secret.public() };
    let config = Arc::new(RelayConfig {
        own: own.clone(),
        peers: Peers::default(),
        suites: Suites::ALL,
        one_hop: false,
        capacity,
        evidence: Announced::open(),
        mirror: Mirror::default(),
    });
    let slots = Arc::new(Mutex::new(Slots::new(0, capacity)));
    let (index_key, load) = (IndexKey::new(&mut random), Arc::new(Load::default()));
    let gate = Gate::new(own.key, load.clone(), &mut random);
    let shared = Shared { index_key: index_key.clone(), slots: slots.clone(), gate: gate.clone() };
    let shard = Shard::new(0, config.clone(), shared, Box::new(OpenAdmission), Time::default());
    let replays = Replays::new(Time::default(), &mut random);
    let handshaker = Handshaker::new(config, secret, index_key, vec![slots.clone()], gate.clone(), replays);
    Rig { shard, handshaker, slots, load, gate, own, random }
}

fn established(initiator: bool) -> Established {
    let secret = |n| Secret([n; 32]);
    let keys = SessionKeys { send: secret(1), receive: secret(2), mask: secret(3), rekey: secret(4) };
    Established {
        initiator,
        suite: Suite::Aegis256X2,
        local_index: 1,
        remote_index: 2,
        evidence: [0; 32],
        hash: [0; 32],
        keys,
    }
}

fn at(address: u32) -> Route {
    Route::Udp((Ipv4Addr::from_bits(address), 1).into())
}

fn client(route: Route) -> Kind {
    Kind::Client { path: Path::proven(route), circuits: Opened::default() }
}

impl Rig {
    /// Adds an admitted session.
    fn insert(&mut self, kind: Kind, initiator: bool) -> EntryId {
        let place = self.slots.lock().unwrap().take().unwrap();
        let owner = match &kind {
            Kind::Hop { relay, .. } => Owner { group: relay.0, member: 0 },
            Kind::Client { .. } | Kind::Inner { .. } => self.gate.owner(kind.route()),
        };
        let link = Link::new(Session::new(&established(initiator), 64, Time::default()), &mut self.random);
        let (is_relay, now) = (matches!(kind, Kind::Hop { .. }), Time::default());
        let id = self.shard.table.insert(Entry {
            link,
            kind,
            place,
            retiring: None,
            admitted: true,
            since: now,
            rekeys: (0, now),
            holding: None,
            owner,
            timer: None,
            charge: Default::default(),
        });
        let holders = if is_relay { &mut self.shard.relays } else { &mut self.shard.clients };
        let holding = holders.hold(owner, id);
        self.shard.table.get_mut(id).unwrap().holding = Some(holding);
        self.shard.report_crowding();
        id
    }

    /// Adds an admitted session that its peer has confirmed: the shard may send.
    fn insert_confirmed(&mut self, kind: Kind, initiator: bool) -> EntryId {
        let id = self.insert(kind, initiator);
        self.shard.table.get_mut(id).unwrap().link.session.confirm();
        id
    }

    /// Adds a session with a relay, and the relay to the directory.
    fn insert_hop(&mut self, relay: u64, initiator: bool) -> EntryId {
        let key = RelaySecret::generate(&mut self.random).public();
        let address = ([203, 0, 113, 1], 443).into();
        let responder = Responder { relay: RelayId(relay), role: Role::Egress, key, ..self.own.clone() };
        let others = self.shard.config.peers.values().cloned().map(|peer| (peer.responder.relay, peer));
        let peers = others.chain([(RelayId(relay), Peer { responder, address })]).collect();
        self.list(peers);
        let mask = Box::new(IndexMask::to_relay(&key));
        let kind =
            Kind::Hop { relay: RelayId(relay), key, to: address, mask, circuits: 0, unlisted: None, asked: None };
        self.insert_confirmed(kind, initiator)
    }

    /// Replaces the directory.
    fn list(&mut self, peers: Peers) {
        self.shard.set_config(Arc::new(RelayConfig { peers, ..RelayConfig::clone(&self.shard.config) }));
    }

    /// Opens circuits of `client` over `hop`.
    fn open(&mut self, client: EntryId, hop: EntryId, circuits: usize) {
        for _ in 0..circuits {
            let tag = self.shard.circuits.open(Circuit { client, hop }, &mut self.random).unwrap();
            let Some(Entry { kind: Kind::Client { circuits, .. }, .. }) = self.shard.table.get_mut(client) else {
                panic!("not a client");
            };
            circuits.tags.push(tag);
            if let Some(Entry { kind: Kind::Hop { circuits, .. }, .. }) = self.shard.table.get_mut(hop) {
                *circuits += 1;
            }
        }
    }

    /// Passes what the shard asks for to the handshaker, and returns how much it was.
    fn requests(&mut self) -> usize {
        while self.shard.poll_transmit().is_some() {}
        std::iter::from_fn(|| self.shard.poll_request()).count()
    }
}

/// However many sessions fall silent together, one call ends a stated number of them, and the shard goes on.
#[test]
fn sessions_that_end_together_end_little_by_little() {
    let (sessions, most) = (4_096, MAX_CLIENT_CIRCUITS);
    let mut rig = rig(sessions);
    let hop = rig.insert_hop(2, true);
    for number in 0..sessions {
        let id = rig.insert(client(at(number << 8)), false);
        rig.open(id, hop, most);
    }
    let now = Time::default().after(Duration::from_secs(902));
    let (mut left, mut calls) = (rig.shard.held(), 0);
    while left.0 > 0 {
        assert!(rig.shard.poll_timeout() <= now, "there is more to do");
        rig.shard.handle_timeout(now, &mut rig.random);
        let held = rig.shard.held();
        assert!(left.0 - held.0 <= ENDS, "{left:?} {held:?}");
        assert!(left.1 - held.1 <= ENDS * most, "{left:?} {held:?}");
        (left, calls) = (held, calls + 1);
    }
    assert_eq!(left, (0, 0));
    assert!(calls >= sessions as usize / ENDS);
    assert_eq!(rig.slots.lock().unwrap().used(), 0);
    assert!(!rig.load.is_high(now), "nobody needs a cookie any more");
}

/// The circuits over a session between relays are closed little by little too, and each client hears of it.
#[test]
fn end_of_a_session_between_relays_closes_its_circuits_in_the_next_walks() {
    let mut rig = rig(8_192);
    let (gone, other) = (rig.insert_hop(2, true), rig.insert_hop(3, true));
    let clients: Vec<EntryId> = (0..5_000).map(|number| rig.insert(client(at(number << 8)), false)).collect();
    for id in &clients {
        rig.open(*id, gone, 2);
        rig.open(*id, other, 1);
    }
    let mut now = Time::default();
    // In the middle of a walk, so that the clients before it are met by the next one only.
    rig.shard.handle_timeout(now, &mut rig.random);
    rig.shard.end(gone, now);
    for _ in 0..40 {
        now = now.after(Duration::from_millis(100));
        rig.shard.handle_timeout(now, &mut rig.random);
    }
    assert_eq!(rig.shard.held(), (5_001, 5_000));
    for id in &clients {
        let entry = rig.shard.table.get(*id).unwrap();
        assert_eq!(entry.link.backlog(), 2 * 10, "two messages that close a circuit");
    }
    let Some(Entry { kind: Kind::Hop { circuits, .. }, .. }) = rig.shard.table.get(other) else { panic!() };
    assert_eq!(*circuits, 5_000);
}

/// Clients that wait for a session with an egress are answered little by little.
#[test]
fn failed_connection_refuses_waiting_circuits_little_by_little() {
    let mut rig = rig(4_096);
    let hop = rig.insert_hop(2, true);
    rig.shard.hops.clear();
    let clients: Vec<EntryId> = (0..2_000).map(|number| rig.insert(client(at(number << 8)), false)).collect();
    for id in &clients {
        rig.shard.open_circuit(*id, 1, RelayId(2), &mut rig.random).unwrap();
    }
    assert_eq!(rig.requests(), 1, "one session for all of them");
    let answered = |rig: &Rig| {
        let is_answered = |id: &&EntryId| rig.shard.table.get(**id).unwrap().link.backlog() > 0;
        clients.iter().filter(is_answered).count()
    };
    rig.shard.apply(Output::ConnectFailed { egress: RelayId(2) }, Time::default(), &mut rig.random);
    let first = answered(&rig);
    assert!(first > 0 && first <= 256, "{first}");
    while rig.shard.poll_timeout() == Time::default() && answered(&rig) < clients.len() {
        let before = answered(&rig);
        rig.shard.handle_timeout(Time::default(), &mut rig.random);
        assert!(answered(&rig) - before <= 256);
    }
    assert_eq!(answered(&rig), clients.len());
    assert!(rig.shard.table.get(hop).is_some());
}

/// A stranger's answers to handshakes that nobody makes cost the handshake thread nothing.
#[test]
fn answers_to_no_handshake_do_not_reach_the_handshaker() {
    let mut rig = rig(1_000);
    let now = Time::from_micros(1);
    let kinds =
        [(PacketType::Reply, REPLY_LEN), (PacketType::KemKey, KEM_KEY_LEN), (PacketType::KemText, KEM_TEXT_LEN)];
    for (kind, len) in kinds {
        for number in 0..1_000u32 {
            let mut datagram = vec![0; len];
            rig.random.fill(&mut datagram);
            datagram[0] = kind.byte();
            datagram[1..5].copy_from_slice(&number.to_be_bytes());
            rig.shard.own_mask.apply(&mut datagram);
            rig.shard.handle_datagram(([192, 0, 2, 1], 7).into(), &mut datagram, now, &mut rig.random);
        }
        assert_eq!(rig.requests(), 0, "{kind:?}");
    }
    assert_eq!(rig.shard.counts().drops.of(DropReason::HandshakeStray), 3_000);
}

/// First packets from everywhere, at a rate that the handshaker keeps up with: strangers are asked for a cookie before
/// they fill the table, and whoever has one gets in.
#[test]
fn half_open_handshakes_of_strangers_leave_room_for_whoever_has_a_cookie() {
    let mut rig = rig(400);
    let now = Time::from_micros(1);
    let offer = |rig: &mut Rig, number: u32, proven: bool| {
        let first = First { offered: Suites::ALL, local_index: 7, minutes: 1_000 };
        let (_, packet) = Initiator::start(&rig.own, None, first, &mut rig.random).unwrap();
        assert_eq!(packet.len(), FIRST_NK_LEN);
        let route = at(number << 8);
        let asked = !proven && rig.gate.check(route, &packet, now) == Entrance::Ask;
        let request = Request::Arrival { shard: 0, route, packet, proven };
        let answers = if asked { 0 } else { rig.handshaker.handle(request, now, 1_000, &mut rig.random).len() };
        (asked, answers)
    };
    let strangers: Vec<_> = (0..200).map(|number| offer(&mut rig, number, false)).collect();
    assert_eq!(strangers.iter().filter(|(_, answers)| *answers == 1).count(), 100, "half of the half-open ones");
    assert!(strangers[100..].iter().all(|(asked, _)| *asked), "the others are asked for a cookie");
    // More senders with a cookie than there is room for, one of them with most of it.
    for number in 1_000..1_300 {
        let number = if number % 10 == 0 { number } else { 999 };
        assert_eq!(offer(&mut rig, number, true), (false, 1), "{number}");
    }
    let later = now.after(Duration::from_secs(11));
    rig.handshaker.handle_timeout(later, 1_000, &mut rig.random);
    assert_eq!(rig.slots.lock().unwrap().used(), 0);
    assert!(!rig.load.is_high(later));
}

/// The memory of an idle session, with its part of the shares.
#[test]
fn idle_session_takes_at_most_four_kibibytes() {
    let (sessions, mut rig) = (10_000, rig(65_536));
    let held = allocation_counter::measure(|| {
        for number in 0..sessions {
            rig.insert(client(at(number << 8)), false);
        }
    });
    let each = held.bytes_current / i64::from(sessions);
    println!("{each} bytes for each session");
    assert!(each <= 4_096, "{each} bytes");
}

/// Asks for all that a relay sends from shared bytes, and acknowledges nothing.
fn ask_for_everything(rig: &mut Rig, id: EntryId, now: Time) {
    let (evidence, piece) = (Message::EvidenceRequest, Message::MirrorRequest { file: MirrorFile::Records, offset: 0 });
    let first = if id.slot.is_multiple_of(2) { evidence.clone() } else { piece };
    for message in [first, evidence.clone(), evidence].into_iter().chain((0..8).map(|_| Message::CollateralRequest)) {
        let _ = rig.shard.answer(id, message, now, &mut rig.random);
    }
    rig.shard.pump(id, now);
}

/// Makes a relay with evidence and a mirrored file.
fn answering(capacity: u32) -> Rig {
    let mut rig = rig(capacity);
    let mut config = RelayConfig::clone(&rig.shard.config);
    config.evidence = Announced { digest: [1; 32], shown: Evidence::Staple(vec![5; 8_000]) };
    config.mirror.records = Mirrored::new(vec![7; 1 << 20]);
    rig.shard.set_config(Arc::new(config));
    rig
}

/// Evidence, collateral and mirror pieces that a full shard's sessions ask for and never acknowledge take at most
/// 64 MiB.
#[test]
fn unacknowledged_answers_of_a_full_shard_are_bounded() {
    let sessions = 65_536;
    let mut rig = answering(sessions);
    let ids: Vec<EntryId> = (0..sessions).map(|number| rig.insert(client(at(number << 8)), false)).collect();
    let asking =
        allocation_counter::measure(|| ids.iter().for_each(|id| ask_for_everything(&mut rig, *id, Time::default())));
    for id in [ids[0], ids[1]] {
        let queued = rig.shard.table.get(id).unwrap().link.backlog();
        assert!(queued > 24_000, "{queued} bytes are queued for each");
    }
    println!("{} bytes for {sessions} sessions", asking.bytes_current);
    assert!(asking.bytes_current <= 64 << 20, "{} bytes", asking.bytes_current);
    assert!(rig.shard.budget.held() <= 64 << 20);
}

/// A sender that has proven its address is told when its network has used up its handshakes, or the handshake thread
/// has no room; a stranger is not.
#[test]
fn proven_sender_is_told_to_wait_when_there_is_too_much_to_do() {
    let mut rig = rig(100);
    (0..1_000).for_each(|_| rig.load.queued());
    let now = Time::from_micros(1);
    let first = First { offered: Suites::ALL, local_index: 7, minutes: 0 };
    let (_, plain) = Initiator::start(&rig.own, None, first, &mut rig.random).unwrap();
    let (from, key) = (([192, 0, 2, 1], 7).into(), rig.own.key);
    let send = |rig: &mut Rig, packet: &[u8]| {
        let mut datagram = packet.to_vec();
        rig.shard.own_mask.apply(&mut datagram);
        rig.shard.handle_datagram(from, &mut datagram, now, &mut rig.random);
        let request = rig.shard.poll_request();
        let answer = rig.shard.poll_transmit().map(|(_, mut answer)| {
            rig.shard.client_mask.remove(&mut answer);
            answer
        });
        (request, answer)
    };
    let (_, asked) = send(&mut rig, &plain);
    let proven = crate::cookie::with_proof(&plain, &mut asked.unwrap(), &key).unwrap();
    let passed = (0..300).filter(|_| send(&mut rig, &proven).0.is_some()).count();
    assert_eq!(passed, 200, "the share of a network");
    let (request, refusal) = send(&mut rig, &proven);
    assert!(request.is_none());
    let mut refusal = refusal.unwrap();
    assert!(refusal.len() <= proven.len());
    assert_eq!(PacketType::parse(refusal[0]), Some(PacketType::Full));
    assert_eq!(crate::cookie::read_full(&mut refusal, &plain, &key), Some(Duration::from_secs(1)));
    for (proven, told) in [(true, true), (false, false)] {
        let request = Request::Arrival { shard: 0, route: Route::Udp(from), packet: plain.clone(), proven };
        rig.shard.request_refused(request, now, &mut rig.random);
        assert_eq!(rig.shard.poll_transmit().is_some(), told);
    }
}

/// While cookies are required, a session gets fresh keys twice a minute at most, and is not ended for asking.
#[test]
fn session_gets_fresh_keys_less_often_under_load() {
    for (queued, answered) in [(0, 16), (1_000, 2)] {
        let mut rig = rig(10);
        (0..queued).for_each(|_| rig.load.queued());
        let id = rig.insert_confirmed(client(at(1)), false);
        for _ in 0..16 {
            let request = Message::Rekey(vec![1; REKEY_LEN]);
            rig.shard.answer(id, request, Time::from_micros(1), &mut rig.random).unwrap();
        }
        assert_eq!(rig.requests(), answered);
        let more = Message::Rekey(vec![1; REKEY_LEN]);
        assert!(rig.shard.answer(id, more, Time::from_micros(1), &mut rig.random).is_err());
    }
}

/// What a peer does not take is freed once the relay has stopped repeating it, and the session with it; a small answer
/// waits for a client that sleeps.
#[test]
fn answers_are_freed_when_the_relay_gives_up() {
    let mut rig = answering(64);
    let greedy: Vec<EntryId> = (0..32).map(|number| rig.insert_confirmed(client(at(number << 8)), false)).collect();
    let asleep = rig.insert_confirmed(client(at(99 << 8)), false);
    greedy.iter().for_each(|id| ask_for_everything(&mut rig, *id, Time::default()));
    rig.shard.answer(asleep, Message::CollateralRequest, Time::default(), &mut rig.random).unwrap();
    rig.shard.pump(asleep, Time::default());
    for seconds in 0..80 {
        let now = Time::default().after(Duration::from_secs(seconds));
        while rig.shard.poll_timeout() <= now {
            rig.shard.handle_timeout(now, &mut rig.random);
            while rig.shard.poll_transmit().is_some() {}
        }
    }
    assert!(greedy.iter().all(|id| rig.shard.table.get(*id).is_none()));
    assert!(rig.shard.table.get(asleep).is_some_and(|entry| entry.link.backlog() == 7));
    assert!(rig.shard.budget.held() < 512);
    assert_eq!(rig.shard.timers.len(), 0);
}

/// The part of a message that never ends is bounded too.
#[test]
fn unfinished_messages_are_bounded() {
    let mut rig = rig(8);
    let id = rig.insert(client(at(1)), false);
    let mut frame = vec![FrameKind::Control.byte(); CONTROL_HEAD];
    frame[1..].fill(0);
    frame[9..11].copy_from_slice(&1_000u16.to_be_bytes());
    frame.extend_from_slice(&[0, 1, 0, 0, 0x40, 0]);
    frame.resize(CONTROL_HEAD + 1_000, 0);
    let mut taken = 0;
    for number in 0..10u32 {
        frame[1..5].copy_from_slice(&(number * 1_000).to_be_bytes());
        let Some(entry) = rig.shard.table.get_mut(id) else { break };
        if entry.link.handle_control(&frame, crate::control::TO_RELAY, Time::default()).is_err() {
            break;
        }
        taken += 1;
    }
    assert_eq!(taken, 4);
    assert!(rig.shard.table.get(id).unwrap().link.control_held() <= 4_096);
}
