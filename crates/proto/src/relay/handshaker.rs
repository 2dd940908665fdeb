//! The relay's handshakes: everything that needs its secret key.
//!
//! Owns handshakes in progress, in both directions, and their bounds. Runs on its own thread, so that a flood of
//! handshakes costs established sessions nothing but the core's time. Never sees a user packet.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::half_open::HalfOpen;
use super::holders::{Holding, Owner};
use super::{EntryId, Gate, Install, Output, Rekeyed, RelayConfig, Replays, Request, Route};
use crate::cookie;
use crate::drops::{DropReason, Drops};
use crate::handshake::{First, Initiator, RekeyRequest, Replied, accept, answer_rekey, split_proof};
use crate::index::{IndexKey, Place, Slots};
use crate::keys::{RelayId, RelayKey, RelaySecret, sha256};
use crate::mask::IndexMask;
use crate::random::Random;
use crate::time::Time;
use crate::wire::{COOKIE_LEN, PacketType, take};

/// How long a responder waits for the ML-KEM key, and answers its repetitions.
const RESPONDER_TIME: Duration = Duration::from_secs(10);
/// First wait of an initiator; doubles with each repetition up to [`LONGEST_REPEAT`].
const REPEAT: Duration = Duration::from_millis(250);
const LONGEST_REPEAT: Duration = Duration::from_secs(1);
/// Attempts of an initiator before it gives up, about fifteen seconds in all. There are many because an overrun
/// responder processes one first packet in sixteen.
const ATTEMPTS: u32 = 16;
/// Most handshakes in progress as responder.
const MAX_PENDING: usize = 1 << 16;
/// Cookies that are used for one packet; anyone who sees the packet can send false ones.
const COOKIES: u32 = 4;

/// Answers and begins handshakes for all shards of a relay.
pub struct Handshaker {
    config: Arc<RelayConfig>,
    secret: RelaySecret,
    index_key: IndexKey,
    slots: Vec<Arc<Mutex<Slots>>>,
    gate: Gate,
    replays: Replays,
    to_client: IndexMask,
    pending: BTreeMap<u32, Pending>,
    /// The half-open ones among them, for each shard.
    half_open: Vec<HalfOpen>,
    /// Responders' deadlines, in ascending order because all wait equally long.
    expiries: VecDeque<(Time, u32)>,
    outgoing: BTreeMap<u32, Outgoing>,
    /// When each of them is due; an entry whose time has changed meanwhile is skipped.
    due: BTreeSet<(Time, u32)>,
    drops: Drops,
}

/// A handshake that this relay answered.
struct Pending {
    replied: Replied,
    shard: u8,
    place: Place,
    relay: Option<RelayId>,
    /// Where the reply went. The ML-KEM key must come from there, which proves the path.
    route: Route,
    /// When it is forgotten.
    until: Time,
    /// The hash of the packet with the ML-KEM key and the answer to it, once the session exists.
    text: Option<([u8; 32], Vec<u8>)>,
    /// Whether its sender had proven its address, and what it holds while the handshake is half-open.
    proven: bool,
    holding: Option<Holding>,
}

/// A handshake that this relay began.
struct Outgoing {
    initiator: Initiator,
    shard: u8,
    place: Place,
    egress: RelayId,
    key: RelayKey,
    to: SocketAddr,
    packet: Vec<u8>,
    /// The egress' cookie, which proves this relay's address; forgotten when a packet with its proof gets no reply.
    cookie: Option<[u8; COOKIE_LEN]>,
    /// Cookies that came for the packet in use.
    cookies: u32,
    /// Whether the packet in use has a proof, and was not refused.
    tried: bool,
    attempts: u32,
    again: Time,
}

/// Outputs, each with the shard that it is for.
pub type Outputs = Vec<(u8, Output)>;

impl Handshaker {
    /// Replaces the configuration, and with it the peers that this relay knows.
    pub fn set_config(&mut self, config: Arc<RelayConfig>) {
        self.config = config;
    }

    /// Creates a handshaker with the relay's secret, for one shard per element of `slots`.
    pub fn new(
        config: Arc<RelayConfig>,
        secret: RelaySecret,
        index_key: IndexKey,
        slots: Vec<Arc<Mutex<Slots>>>,
        gate: Gate,
        replays: Replays,
    ) -> Self {
        let to_client = IndexMask::to_client(&config.own.key);
        let sessions = slots.iter().map(|slots| slots.lock().unwrap_or_else(PoisonError::into_inner).sessions());
        let half_open = sessions.map(|sessions| HalfOpen::new(sessions.div_ceil(2))).collect();
        Self {
            config,
            secret,
            index_key,
            slots,
            gate,
            replays,
            to_client,
            pending: BTreeMap::new(),
            half_open,
            expiries: VecDeque::new(),
            outgoing: BTreeMap::new(),
            due: BTreeSet::new(),
            drops: Drops::default(),
        }
    }

    /// Switches shares off, so that a test shows what they are for.
    #[doc(hidden)]
    pub fn ignore_shares(&mut self) {
        self.half_open.iter_mut().for_each(HalfOpen::ignore_shares);
    }

    /// Returns the handshake packets that were refused, by reason.
    pub fn drops(&self) -> &Drops {
        &self.drops
    }

    /// Handles one request. `minutes` is verified time in minutes since the Unix epoch.
    pub fn handle(&mut self, request: Request, now: Time, minutes: u32, random: &mut dyn Random) -> Outputs {
        let mut out = Vec::new();
        let result = match request {
            Request::Arrival { shard, route, packet, proven } => {
                self.arrival((shard, route, proven), packet, (now, minutes), random, &mut out)
            }
            Request::Connect { shard, egress } => {
                if self.connect(shard, egress, (now, minutes), random, &mut out).is_none() {
                    out.push((shard, Output::ConnectFailed { egress }));
                }
                Ok(())
            }
            Request::Rekey { shard, entry, request } => self.rekey(shard, entry, &request, random, &mut out),
        };
        if let Err(reason) = result {
            self.drops.count(reason);
        }
        self.gate.load().set_filter_full(self.replays.is_full());
        self.report_half_open();
        out
    }

    fn report_half_open(&self) {
        self.gate.load().set_half_open(self.half_open.iter().any(HalfOpen::is_half_full));
    }

    /// Returns when to call [`Handshaker::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Time> {
        let expiry = self.expiries.front().map(|(at, _)| *at);
        let again = self.due.first().map(|(at, _)| *at);
        expiry.into_iter().chain(again).min()
    }

    /// Gives up overdue handshakes and repeats unanswered packets.
    pub fn handle_timeout(&mut self, now: Time, minutes: u32, random: &mut dyn Random) -> Outputs {
        let mut out = Vec::new();
        while let Some(&(at, index)) = self.expiries.front()
            && at <= now
        {
            self.expiries.pop_front();
            self.expire(index, at);
        }
        self.report_half_open();
        while let Some(&(at, index)) = self.due.first()
            && at <= now
        {
            self.due.pop_first();
            if self.outgoing.get(&index).is_some_and(|outgoing| outgoing.again == at) {
                self.repeat(index, now, minutes, random, &mut out);
            }
        }
        out
    }

    /// Forgets the handshake whose time is over at `at`.
    fn expire(&mut self, index: u32, at: Time) {
        let Some(pending) = self.pending.get(&index).filter(|pending| pending.until == at) else { return };
        if let Some(half_open) = self.half_open.get_mut(usize::from(pending.shard)) {
            half_open.expire(index);
        }
        self.end(index);
    }

    /// Ends a handshake that this relay answered. The session that it began goes on.
    fn end(&mut self, index: u32) {
        let Some(pending) = self.pending.remove(&index) else { return };
        if pending.text.is_some() {
            return self.settle(pending.place);
        }
        if let Some(half_open) = self.half_open.get_mut(usize::from(pending.shard)) {
            half_open.end(pending.holding);
        }
        self.release(pending.place);
    }

    /// Makes room for another handshake with `owner`, which has proven its address, or with a stranger.
    fn make_room(&mut self, shard: u8, owner: Option<Owner>) -> Result<(), DropReason> {
        // The oldest is over in a moment anyway, and its session, if it has one, goes on.
        while self.pending.len() >= MAX_PENDING
            && let Some((at, index)) = self.expiries.pop_front()
        {
            self.expire(index, at);
        }
        let Self { half_open, pending, .. } = self;
        let half_open = half_open.get_mut(usize::from(shard)).ok_or(DropReason::TableFull)?;
        let is_stranger = |index| pending.get(&index).is_some_and(|found| !found.proven && found.text.is_none());
        let first = half_open.gives_way(owner, is_stranger).map_err(|_| DropReason::TableFull)?;
        if let Some(index) = first {
            self.end(index);
        }
        Ok(())
    }

    fn arrival(
        &mut self,
        (shard, route, proven): (u8, Route, bool),
        packet: Vec<u8>,
        now: (Time, u32),
        random: &mut dyn Random,
        out: &mut Outputs,
    ) -> Result<(), DropReason> {
        let kind = packet.first().copied().and_then(PacketType::parse).ok_or(DropReason::UnknownType)?;
        let index = take(&packet, 1).map(u32::from_be_bytes).ok_or(DropReason::BadLength)?;
        match kind {
            PacketType::FirstNk(_) | PacketType::FirstIk(_) => {
                self.first((shard, route, proven), &packet, now, random, out)
            }
            PacketType::KemKey => self.kem_key(index, route, &packet, random, out),
            PacketType::Reply => {
                let outgoing = self.outgoing.get_mut(&index).ok_or(DropReason::HandshakeStray)?;
                let next = outgoing.initiator.read_reply(&packet, random).map_err(|_| DropReason::HandshakeInvalid)?;
                outgoing.packet = next;
                outgoing.attempts = 0;
                outgoing.again = now.0.after(REPEAT);
                self.due.insert((outgoing.again, index));
                self.send_outgoing(index, out);
                Ok(())
            }
            PacketType::KemText => self.kem_text(index, &packet, out),
            PacketType::Cookie => self.cookie(index, packet, out),
            PacketType::Full => self.told_to_wait(index, packet),
            PacketType::Data => Err(DropReason::UnknownType),
        }
    }

    fn first(
        &mut self,
        (shard, route, proven): (u8, Route, bool),
        packet: &[u8],
        (now, minutes): (Time, u32),
        random: &mut dyn Random,
        out: &mut Outputs,
    ) -> Result<(), DropReason> {
        let (packet, _) = split_proof(packet).ok_or(DropReason::HandshakeInvalid)?;
        let kind = packet.first().copied().and_then(PacketType::parse);
        // A sender that may not begin a handshake here costs no X25519 operation.
        let welcome = match (kind, route) {
            (Some(PacketType::FirstIk(_)), Route::Udp(_)) => !self.config.is_ingress(),
            (Some(PacketType::FirstIk(_)), Route::Circuit { .. }) => false,
            (_, Route::Udp(_)) => self.config.is_ingress() || self.config.one_hop,
            (_, Route::Circuit { .. }) => true,
        };
        if !welcome {
            return Err(DropReason::HandshakeInvalid);
        }
        let accepted = accept(&self.config.own, &self.secret, packet).map_err(|_| DropReason::HandshakeInvalid)?;
        let relay = match &accepted.relay {
            Some(key) => Some(self.config.peers.with_key(key).ok_or(DropReason::HandshakeInvalid)?),
            None => None,
        };
        let suite = accepted.first.offered.agree(self.config.suites).ok_or(DropReason::HandshakeInvalid)?;
        self.replays.accept(&accepted.ephemeral(), accepted.first.minutes, now, minutes)?;
        let owner = proven.then(|| self.gate.owner(route));
        self.make_room(shard, owner)?;
        let place = self.take(shard).ok_or(DropReason::TableFull)?;
        let index = self.index_key.index(place);
        let Ok((replied, mut reply)) = accepted.reply(suite, index, random) else {
            self.release(place);
            return Err(DropReason::HandshakeInvalid);
        };
        self.mask(relay, &mut reply);
        let holding = self.half_open.get_mut(usize::from(shard)).and_then(|half_open| half_open.begin(owner, index));
        let until = now.after(RESPONDER_TIME);
        let pending = Pending { replied, shard, place, relay, route, until, text: None, proven, holding };
        self.pending.insert(index, pending);
        self.expiries.push_back((until, index));
        out.push((shard, Output::Send { route, packet: reply }));
        Ok(())
    }

    fn kem_key(
        &mut self,
        index: u32,
        route: Route,
        packet: &[u8],
        random: &mut dyn Random,
        out: &mut Outputs,
    ) -> Result<(), DropReason> {
        let pending = self.pending.get_mut(&index).ok_or(DropReason::HandshakeStray)?;
        let (shard, relay) = (pending.shard, pending.relay);
        if route != pending.route {
            return Err(DropReason::HandshakeStray);
        }
        let digest = sha256(&[packet]);
        let text = if let Some((answered, text)) = &pending.text {
            // Repeated for the identical packet only: a shorter one would receive more bytes than it brought.
            if digest != *answered {
                return Err(DropReason::HandshakeInvalid);
            }
            text.clone()
        } else {
            let (mut text, established) = pending
                .replied
                .read_kem_key(packet, self.config.evidence.digest, random)
                .map_err(|_| DropReason::HandshakeInvalid)?;
            let relay_key = relay.zip(pending.replied.relay);
            let install = Install { place: pending.place, established, route, relay: relay_key };
            self.mask(relay, &mut text);
            if let Some(pending) = self.pending.get_mut(&index) {
                pending.text = Some((digest, text.clone()));
                if let Some(half_open) = self.half_open.get_mut(usize::from(shard)) {
                    half_open.end(pending.holding.take());
                }
            }
            out.push((shard, Output::Install(Box::new(install))));
            text
        };
        out.push((shard, Output::Send { route, packet: text }));
        Ok(())
    }

    fn kem_text(&mut self, index: u32, packet: &[u8], out: &mut Outputs) -> Result<(), DropReason> {
        let outgoing = self.outgoing.get(&index).ok_or(DropReason::HandshakeStray)?;
        let established = outgoing.initiator.read_kem_text(packet).map_err(|_| DropReason::HandshakeInvalid)?;
        let Some(done) = self.outgoing.remove(&index) else { return Ok(()) };
        self.settle(done.place);
        let relay = Some((done.egress, done.key));
        let install = Install { place: done.place, established, route: Route::Udp(done.to), relay };
        out.push((done.shard, Output::Install(Box::new(install))));
        Ok(())
    }

    /// Handles the cookie of an egress under load, which requires proof of this relay's address.
    fn cookie(&mut self, index: u32, mut packet: Vec<u8>, out: &mut Outputs) -> Result<(), DropReason> {
        let outgoing = self.outgoing.get_mut(&index).ok_or(DropReason::HandshakeStray)?;
        if outgoing.cookies >= COOKIES {
            return Err(DropReason::HandshakeStray);
        }
        let cookie = cookie::read(&mut packet, &outgoing.packet, &outgoing.key).ok_or(DropReason::HandshakeInvalid)?;
        outgoing.cookies += 1;
        cookie::prove(&mut outgoing.packet, &cookie);
        outgoing.cookie = Some(cookie);
        outgoing.tried = true;
        self.send_outgoing(index, out);
        Ok(())
    }

    /// Handles the refusal of an egress that does no more for this relay at the moment. The packet is repeated anyway,
    /// and its cookie stays good.
    fn told_to_wait(&mut self, index: u32, mut packet: Vec<u8>) -> Result<(), DropReason> {
        let outgoing = self.outgoing.get_mut(&index).ok_or(DropReason::HandshakeStray)?;
        cookie::read_full(&mut packet, &outgoing.packet, &outgoing.key).ok_or(DropReason::HandshakeInvalid)?;
        outgoing.tried = false;
        Ok(())
    }

    fn connect(
        &mut self,
        shard: u8,
        egress: RelayId,
        (now, minutes): (Time, u32),
        random: &mut dyn Random,
        out: &mut Outputs,
    ) -> Option<()> {
        let config = self.config.clone();
        let peer = config.peers.get(&egress)?;
        let place = self.take(shard)?;
        let index = self.index_key.index(place);
        let first = First { offered: config.suites, local_index: index, minutes };
        let Ok((initiator, packet)) = Initiator::start(&peer.responder, Some(&self.secret), first, random) else {
            self.release(place);
            return None;
        };
        let again = now.after(REPEAT);
        let outgoing = Outgoing {
            initiator,
            shard,
            place,
            egress,
            key: peer.responder.key,
            to: peer.address,
            packet,
            cookie: None,
            cookies: 0,
            tried: false,
            attempts: 0,
            again,
        };
        self.outgoing.insert(index, outgoing);
        self.due.insert((again, index));
        self.send_outgoing(index, out);
        Some(())
    }

    /// Repeats an unanswered packet. A first packet is rebuilt, because the answer to the old one may have been lost.
    fn repeat(&mut self, index: u32, now: Time, minutes: u32, random: &mut dyn Random, out: &mut Outputs) {
        let Some(outgoing) = self.outgoing.get_mut(&index) else { return };
        outgoing.attempts += 1;
        if outgoing.attempts >= ATTEMPTS {
            let (shard, egress, place) = (outgoing.shard, outgoing.egress, outgoing.place);
            self.outgoing.remove(&index);
            self.release(place);
            out.push((shard, Output::ConnectFailed { egress }));
            return;
        }
        outgoing.again = now.after((REPEAT * 2u32.pow(outgoing.attempts)).min(LONGEST_REPEAT));
        self.due.insert((outgoing.again, index));
        let is_first =
            matches!(outgoing.packet.first().copied().and_then(PacketType::parse), Some(PacketType::FirstIk(_)));
        if is_first && let Some(peer) = self.config.peers.get(&outgoing.egress) {
            let first = First { offered: self.config.suites, local_index: index, minutes };
            if let Ok((initiator, packet)) = Initiator::start(&peer.responder, Some(&self.secret), first, random) {
                outgoing.initiator = initiator;
                outgoing.packet = packet;
                // The directory may list another key or address meanwhile.
                (outgoing.key, outgoing.to) = (peer.responder.key, peer.address);
                // A packet with a proof got no reply: the egress has forgotten the cookie, or somebody else sent it.
                if outgoing.tried {
                    outgoing.cookie = None;
                }
                outgoing.cookies = 0;
                outgoing.tried = outgoing.cookie.is_some();
                if let Some(cookie) = &outgoing.cookie {
                    cookie::prove(&mut outgoing.packet, cookie);
                }
            }
        }
        self.send_outgoing(index, out);
    }

    fn send_outgoing(&self, index: u32, out: &mut Outputs) {
        let Some(outgoing) = self.outgoing.get(&index) else { return };
        let mut packet = outgoing.packet.clone();
        self.mask(Some(outgoing.egress), &mut packet);
        out.push((outgoing.shard, Output::Send { route: Route::Udp(outgoing.to), packet }));
    }

    fn rekey(
        &mut self,
        shard: u8,
        entry: EntryId,
        request: &RekeyRequest,
        random: &mut dyn Random,
        out: &mut Outputs,
    ) -> Result<(), DropReason> {
        let (answer, keys) =
            answer_rekey(&self.config.own, &self.secret, request, random).map_err(|_| DropReason::HandshakeInvalid)?;
        out.push((shard, Output::Rekeyed(Box::new(Rekeyed { entry, answer, keys }))));
        Ok(())
    }

    fn mask(&self, relay: Option<RelayId>, packet: &mut [u8]) {
        match relay.and_then(|id| self.config.peers.get(&id)) {
            Some(peer) => IndexMask::to_relay(&peer.responder.key).apply(packet),
            None => self.to_client.apply(packet),
        }
    }

    fn take(&self, shard: u8) -> Option<Place> {
        self.slots.get(usize::from(shard))?.lock().unwrap_or_else(PoisonError::into_inner).take_for_handshake()
    }

    fn settle(&self, place: Place) {
        if let Some(slots) = self.slots.get(usize::from(place.shard)) {
            slots.lock().unwrap_or_else(PoisonError::into_inner).settle(place);
        }
    }

    fn release(&self, place: Place) {
        if let Some(slots) = self.slots.get(usize::from(place.shard)) {
            slots.lock().unwrap_or_else(PoisonError::into_inner).release(place);
        }
    }
}
