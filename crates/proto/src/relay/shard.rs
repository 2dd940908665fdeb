//! One shard of a relay: the packet path.
//!
//! Owns the session table of one core and both directions of traffic. [`Shard::handle_datagram`] takes everything that
//! arrives over UDP; [`Shard::route_down`] and [`Shard::seal_down`] take everything that an egress reads from its
//! tunnel device. Works in the caller's buffers and allocates only for control. Never holds the secret handshake key.
//!
//! ```text
//! ingress  client ─▶ open A, swap header and tag, seal hop ─▶ egress     (same bytes in the same place, both ways)
//! egress   ingress ─▶ open hop, open B, translate ─▶ device
//!          device ─▶ translate, seal B, seal hop ─▶ ingress
//! ```

mod admission;
mod circuits;
mod conversation;
mod entrance;
mod paths;
mod sending;
mod sweep;
mod table;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use super::budget::Budget;
use super::circuits::Circuits;
use super::entry::{Admit, Entry, EntryId, Kind};
use super::holders::Holders;
use super::{Gate, RelayConfig, Request, Route};
use crate::drops::{DropReason, Drops};
use crate::frame::Forward;
use crate::index::{InProgress, IndexKey, Slots};
use crate::ip::translate::{Side, replace};
use crate::ip::{CLIENT_V4, CLIENT_V6, Packet, destination, tcp};
use crate::keys::RelayId;
use crate::mask::IndexMask;
use crate::random::Random;
use crate::session::frame;
use crate::time::Time;
use crate::wire::{
    COOKIE_PACKET_LEN, DIRECT_OFFSET, FORWARD_LEN, FrameKind, HEADER_LEN, KIND_LEN, NESTED_OFFSET, NESTED_TRAILER,
    PacketType, TAG_LEN, take,
};

use circuits::Answers;
use sweep::Sweep;
pub use table::INNER_POOL;
use table::{Addresses, MOST_HELD, Table};

/// The outcome of a received datagram.
#[derive(Debug)]
pub enum Fate {
    /// The shard has handled it; [`Shard::poll_transmit`] may have an answer.
    Consumed,
    /// The caller must send it on, from the same place, to this relay or client.
    Forward {
        /// The address of that relay or client.
        to: SocketAddr,
    },
    /// It holds an inner packet for the tunnel device, translated, at this place.
    Deliver {
        /// Offset of the packet in the datagram.
        offset: usize,
        /// The parsed headers of the packet.
        packet: Packet,
        /// Whether the transport checksum is still to be filled in.
        partial: bool,
    },
    /// It holds an inner packet to a forbidden destination, with the session's address as source, at this place. The
    /// shard has counted it as dropped; the caller may answer its sender.
    Forbidden {
        /// Offset of the packet in the datagram.
        offset: usize,
        /// The parsed headers of the packet.
        packet: Packet,
    },
    /// It belongs to another shard: the caller must hand it over unchanged, through [`Shard::handle_passed`] there.
    OtherShard(u8),
    /// The shard has refused and counted it.
    Dropped(DropReason),
}

/// The route of an inner packet towards its client.
#[derive(Clone, Copy, Debug)]
pub struct Down {
    entry: EntryId,
    /// Bytes before the inner packet in the datagram.
    pub offset: usize,
    /// Bytes after the padded inner packet in the datagram.
    pub trailer: usize,
    /// Size of the largest inner packet that the path carries, in bytes.
    pub mtu: u16,
    /// Address to which the datagram goes.
    pub to: SocketAddr,
}

/// Counters of a shard. Every datagram received or withheld is counted in exactly one of the other numbers or in the
/// drops.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct ShardCounts {
    /// Datagrams received.
    pub received: u64,
    /// Datagrams sent on to another relay or client.
    pub forwarded: u64,
    /// Inner packets given to the tunnel device.
    pub delivered: u64,
    /// Datagrams with control frames, probes, challenges or padding.
    pub control: u64,
    /// Handshake packets handed to the handshaker or answered with a cookie.
    pub handshakes: u64,
    /// Datagrams of the shard's own that it could not send; each is counted in the drops too.
    pub withheld: u64,
    /// Datagrams handed to another shard, which counts them as received.
    pub passed: u64,
    /// Datagrams and inner packets refused, by reason.
    pub drops: Drops,
}

/// One shard of a relay, without I/O.
///
/// # How to call it
///
/// Methods are of four kinds:
///
/// 1. **Input.** [`Shard::handle_datagram`] and [`Shard::handle_passed`] take datagrams, [`Shard::apply`] takes outputs
///    of the handshaker, [`Shard::request_refused`] takes back a request, [`Shard::set_config`] replaces the
///    configuration, [`Shard::handle_timeout`] says that time has passed, [`Shard::close`] ends all sessions.
/// 2. **Packets of the device**, at an egress: [`Shard::route_down`], [`Shard::translate_down`], [`Shard::seal_down`],
///    in this order and at one `now`. They cause no output of the third kind.
/// 3. **Output**: [`Shard::poll_request`], [`Shard::poll_transmit`], [`Shard::poll_freed`] and
///    [`Shard::poll_timeout`].
/// 4. **Questions**, which change nothing: [`Shard::counts`], [`Shard::moved`], [`Shard::held`], [`Shard::shard_of`].
///
/// After any number of inputs, and before the caller waits, it takes the outputs in the order in which the third kind
/// lists them, each until it returns `None`. Requests go to the handshaker, and its outputs are inputs of this shard
/// again. Freed addresses go to whoever forgets tracked connections; an ingress has none. [`Shard::poll_timeout`] comes
/// last, because every input can change it; the caller then calls [`Shard::handle_timeout`] no later than at that
/// moment. To be early is harmless.
///
/// The caller acts on each [`Fate`] before the next input: the datagram in its buffer is what has to be sent or
/// delivered.
///
/// Time never runs backwards: `now` of a call is at least that of the previous call, and all shards and the handshaker
/// of a relay share one clock. Nothing here reads a clock, so a simulation may run at any speed.
pub struct Shard {
    /// Its number in the relay, which is part of each of its indices.
    number: u8,
    config: Arc<RelayConfig>,
    /// The permutation between indices and places, the same in all shards.
    index_key: IndexKey,
    /// The places of this shard's sessions, shared with the handshaker.
    slots: Arc<Mutex<Slots>>,
    /// The check of first packets, the same in all shards.
    gate: Gate,
    /// The admission policy.
    admit: Box<dyn Admit>,
    /// The mask of packets to this relay.
    own_mask: IndexMask,
    /// The mask of packets from this relay to its clients.
    client_mask: IndexMask,
    /// All sessions.
    table: Table,
    /// All circuits of an ingress, by tag.
    circuits: Circuits,
    /// Sessions with egresses that this shard began.
    hops: BTreeMap<RelayId, EntryId>,
    /// Circuits that wait for a session with their egress: the client's entry and the request's number.
    waiting: BTreeMap<RelayId, VecDeque<(EntryId, u32)>>,
    /// Those whose egress has answered or failed, and which are told so little by little.
    answers: VecDeque<Answers>,
    /// Who has which sessions: clients at an ingress or an egress, and relays.
    clients: Holders<EntryId>,
    relays: Holders<EntryId>,
    /// Whether half of the sessions are taken, as the gate was told.
    crowded: bool,
    /// What control streams hold in memory.
    budget: Budget,
    /// Handshakes in progress, by slot.
    in_progress: Arc<InProgress>,
    /// The body of the message with this relay's evidence.
    evidence: Arc<Vec<u8>>,
    /// Inner addresses of an egress.
    addresses: Addresses,
    /// When a session's control stream or path challenge needs attention.
    timers: BTreeSet<(Time, EntryId)>,
    /// The walk through all sessions.
    sweep: Sweep,
    /// Datagrams of the shard's own that wait for [`Shard::poll_transmit`].
    outbox: VecDeque<(SocketAddr, Vec<u8>)>,
    /// Requests that wait for [`Shard::poll_request`].
    requests: VecDeque<Request>,
    /// Inner addresses of ended sessions that wait for [`Shard::poll_freed`].
    freed: VecDeque<(Ipv4Addr, Ipv6Addr)>,
    counts: ShardCounts,
}

/// The values that a shard shares with the rest of its relay.
pub struct Shared {
    /// The permutation of indices.
    pub index_key: IndexKey,
    /// The free places of this shard.
    pub slots: Arc<Mutex<Slots>>,
    /// The cookie check.
    pub gate: Gate,
}

impl Shard {
    /// Replaces the configuration, and with it the peers that this relay knows. Sessions with relays that the directory
    /// does not list with their key end ten seconds later, and get no fresh keys until then.
    pub fn set_config(&mut self, config: Arc<RelayConfig>) {
        self.evidence = Arc::new(config.evidence.shown.encode());
        self.config = config;
    }

    /// Creates shard `number` of the relay with `config`.
    pub fn new(number: u8, config: Arc<RelayConfig>, shared: Shared, admit: Box<dyn Admit>, now: Time) -> Self {
        let (sessions, in_progress) = {
            let slots = shared.slots.lock().unwrap_or_else(PoisonError::into_inner);
            (slots.sessions(), slots.in_progress())
        };
        // At an egress, each session needs an address, and some of those are resting.
        let clients = if config.is_ingress() { sessions } else { sessions.min(MOST_HELD) };
        let evidence = Arc::new(config.evidence.shown.encode());
        Self {
            number,
            own_mask: IndexMask::to_relay(&config.own.key),
            client_mask: IndexMask::to_client(&config.own.key),
            index_key: shared.index_key,
            slots: shared.slots,
            gate: shared.gate,
            admit,
            table: Table::default(),
            circuits: Circuits::default(),
            hops: BTreeMap::new(),
            waiting: BTreeMap::new(),
            answers: VecDeque::new(),
            clients: Holders::new(clients as usize),
            relays: Holders::new(sessions.div_ceil(2) as usize),
            config,
            crowded: false,
            budget: Budget::default(),
            in_progress,
            evidence,
            addresses: Addresses::new(number),
            timers: BTreeSet::new(),
            sweep: Sweep::new(now),
            outbox: VecDeque::new(),
            requests: VecDeque::new(),
            freed: VecDeque::new(),
            counts: ShardCounts::default(),
        }
    }

    /// Handles a datagram from `from` in place.
    pub fn handle_datagram(
        &mut self,
        from: SocketAddr,
        datagram: &mut [u8],
        now: Time,
        random: &mut dyn Random,
    ) -> Fate {
        self.counts.received += 1;
        if datagram.len() == COOKIE_PACKET_LEN
            && let Some(mask) = self.config.peers.cookie_mask(&from)
        {
            return match mask.remove(datagram) {
                Some((kind @ (PacketType::Cookie | PacketType::Full), index)) => {
                    self.handle_unmasked(Route::Udp(from), kind, index, datagram, now, random)
                }
                _ => self.dropped(DropReason::UnknownType),
            };
        }
        let Some((kind, index)) = self.own_mask.remove(datagram) else {
            return self.dropped(if datagram.len() < crate::wire::MIN_DATAGRAM {
                DropReason::BadLength
            } else {
                DropReason::UnknownType
            });
        };
        let place = self.index_key.place(index);
        if kind == PacketType::Data && place.shard != self.number {
            self.counts.passed += 1;
            return Fate::OtherShard(place.shard);
        }
        self.handle_unmasked(Route::Udp(from), kind, index, datagram, now, random)
    }

    /// Handles a datagram that another shard received from `from` and passed on; its type and index are unmasked.
    pub fn handle_passed(&mut self, from: SocketAddr, datagram: &mut [u8], now: Time, random: &mut dyn Random) -> Fate {
        self.counts.received += 1;
        let Some(index) = take(datagram, 1).map(u32::from_be_bytes) else { return self.dropped(DropReason::BadLength) };
        self.handle_unmasked(Route::Udp(from), PacketType::Data, index, datagram, now, random)
    }

    fn handle_unmasked(
        &mut self,
        route: Route,
        kind: PacketType,
        index: u32,
        datagram: &mut [u8],
        now: Time,
        random: &mut dyn Random,
    ) -> Fate {
        let result = match kind {
            PacketType::Data => self.handle_data(route, index, datagram, now, random),
            PacketType::FirstNk(_)
            | PacketType::FirstIk(_)
            | PacketType::Reply
            | PacketType::KemKey
            | PacketType::KemText
            | PacketType::Cookie
            | PacketType::Full => self.handle_handshake(route, kind, datagram, now, random).map(|()| Fate::Consumed),
        };
        result.unwrap_or_else(|reason| self.dropped(reason))
    }

    fn dropped(&mut self, reason: DropReason) -> Fate {
        self.counts.drops.count(reason);
        Fate::Dropped(reason)
    }

    /// Opens the outer layer of a data packet and handles its frame according to the kind of its session.
    fn handle_data(
        &mut self,
        route: Route,
        index: u32,
        datagram: &mut [u8],
        now: Time,
        random: &mut dyn Random,
    ) -> Result<Fate, DropReason> {
        let id = self.table.find(self.index_key.place(index)).ok_or(DropReason::UnknownIndex)?;
        let entry = self.table.get_mut(id).ok_or(DropReason::UnknownIndex)?;
        // Without an ingress, a client would show an egress its address.
        if matches!(entry.kind, Kind::Inner { .. }) && !self.config.one_hop {
            return Err(DropReason::UnknownIndex);
        }
        let before = entry.link.session.newest();
        entry.link.session.open(datagram, now)?;
        if let Some(path) = entry.kind.path_mut() {
            path.received(route, datagram.len(), entry.link.session.newest() > before, random);
            if path.is_unproven() {
                self.challenge_if_unproven(id, now);
            }
        }
        let entry = self.table.get_mut(id).ok_or(DropReason::UnknownIndex)?;
        let kind = frame(datagram).first().copied().and_then(FrameKind::parse).ok_or(DropReason::BadFrame)?;
        match (kind, &entry.kind) {
            (FrameKind::Forward, Kind::Client { .. }) => self.forward_up(id, datagram, now),
            // The ingress opened the session, so what comes to its initiator goes down.
            (FrameKind::Forward, Kind::Hop { .. }) if entry.link.session.is_initiator() => {
                self.forward_down(id, datagram, now)
            }
            (FrameKind::Forward, Kind::Hop { .. }) => self.handle_inner(id, datagram, now, random),
            (FrameKind::Packet { partial }, Kind::Inner { .. }) => {
                self.deliver(id, datagram, HEADER_LEN + KIND_LEN, datagram.len() - TAG_LEN, partial)
            }
            (FrameKind::Packet { .. } | FrameKind::Forward, _) => Err(DropReason::BadFrame),
            _ => self.handle_other_frame(id, route, kind, datagram, now, random),
        }
    }

    /// Ingress: moves a client's frame into the session with the circuit's egress, in place.
    fn forward_up(&mut self, id: EntryId, datagram: &mut [u8], now: Time) -> Result<Fate, DropReason> {
        let Forward { tag } = Forward::parse(frame(datagram)).ok_or(DropReason::BadFrame)?;
        let circuit = self.circuits.find(tag).filter(|c| c.client == id).ok_or(DropReason::UnknownCircuit)?;
        let hop = self.table.get_mut(circuit.hop).ok_or(DropReason::UnknownCircuit)?;
        let Kind::Hop { to, mask, .. } = &hop.kind else { return Err(DropReason::UnknownCircuit) };
        hop.link.session.seal(datagram, now)?;
        mask.apply(datagram);
        self.counts.forwarded += 1;
        Ok(Fate::Forward { to: *to })
    }

    /// Ingress: moves an egress' frame into the session of the circuit's client, in place.
    fn forward_down(&mut self, id: EntryId, datagram: &mut [u8], now: Time) -> Result<Fate, DropReason> {
        let Forward { tag } = Forward::parse(frame(datagram)).ok_or(DropReason::BadFrame)?;
        let circuit = self.circuits.find(tag).filter(|c| c.hop == id).ok_or(DropReason::UnknownCircuit)?;
        let client = self.table.get_mut(circuit.client).ok_or(DropReason::UnknownCircuit)?;
        let Kind::Client { path, .. } = &mut client.kind else { return Err(DropReason::UnknownCircuit) };
        path.may_send(datagram.len())?;
        let Route::Udp(to) = path.route else { return Err(DropReason::UnknownCircuit) };
        client.link.session.seal(datagram, now)?;
        self.client_mask.apply(datagram);
        self.counts.forwarded += 1;
        Ok(Fate::Forward { to })
    }

    /// Egress: handles an ingress' frame, which holds a packet of a client's own session or of its handshake.
    fn handle_inner(
        &mut self,
        hop: EntryId,
        datagram: &mut [u8],
        now: Time,
        random: &mut dyn Random,
    ) -> Result<Fate, DropReason> {
        let Forward { tag } = Forward::parse(frame(datagram)).ok_or(DropReason::BadFrame)?;
        let start = HEADER_LEN + FORWARD_LEN;
        let end = datagram.len() - TAG_LEN;
        let inner = datagram.get_mut(start..end).ok_or(DropReason::BadFrame)?;
        let (kind, index) = self.own_mask.remove(inner).ok_or(DropReason::UnknownType)?;
        let route = Route::Circuit { hop, tag };
        if kind != PacketType::Data {
            return self.handle_handshake(route, kind, inner, now, random).map(|()| Fate::Consumed);
        }
        let id = self.table.find(self.index_key.place(index)).ok_or(DropReason::UnknownIndex)?;
        let entry = self.table.get_mut(id).ok_or(DropReason::UnknownIndex)?;
        let Kind::Inner { path, .. } = &mut entry.kind else { return Err(DropReason::UnknownIndex) };
        let before = entry.link.session.newest();
        entry.link.session.open(inner, now)?;
        if let Some(place) = path.received(route, inner.len(), entry.link.session.newest() > before, random) {
            self.table.unpoint(place);
            self.release(place);
        }
        match frame(inner).first().copied().and_then(FrameKind::parse).ok_or(DropReason::BadFrame)? {
            FrameKind::Packet { partial } => {
                self.deliver(id, datagram, start + HEADER_LEN + KIND_LEN, end - TAG_LEN, partial)
            }
            FrameKind::Forward => Err(DropReason::BadFrame),
            kind @ (FrameKind::Control
            | FrameKind::Padding
            | FrameKind::PathChallenge
            | FrameKind::PathResponse
            | FrameKind::Probe
            | FrameKind::ProbeAck
            | FrameKind::PathMtu) => {
                let inner = datagram.get_mut(start..end).ok_or(DropReason::BadFrame)?;
                self.handle_other_frame(id, route, kind, inner, now, random)
            }
        }
    }

    /// Egress: checks an inner packet from a client and gives it the session's address.
    fn deliver(
        &mut self,
        id: EntryId,
        datagram: &mut [u8],
        start: usize,
        end: usize,
        partial: bool,
    ) -> Result<Fate, DropReason> {
        let entry = self.table.get_mut(id).ok_or(DropReason::UnknownIndex)?;
        let Kind::Inner { address, mtu, .. } = &mut entry.kind else { return Err(DropReason::BadFrame) };
        let (address, mtu) = (address.as_mut().ok_or(DropReason::NotAdmitted)?, *mtu);
        let bytes = datagram.get_mut(start..end).ok_or(DropReason::BadFrame)?;
        let mut packet = Packet::parse(bytes).map_err(|_| DropReason::BadPacket)?;
        if packet.source != IpAddr::V4(CLIENT_V4) && packet.source != IpAddr::V6(CLIENT_V6) {
            return Err(DropReason::ForeignSource);
        }
        // A partial checksum can be completed only for a transport that has one, of which every byte is present.
        if partial && (packet.fragment || packet.checksum_at().is_none()) {
            return Err(DropReason::BadPacket);
        }
        let own = self.addresses.of(address.number, packet.is_v6());
        let allowed = destination::is_allowed(packet.destination);
        replace(&mut packet, bytes, Side::Source, own, partial);
        if !allowed {
            self.counts.drops.count(DropReason::ForbiddenDestination);
            return Ok(Fate::Forbidden { offset: start, packet });
        }
        address.used = true;
        tcp::clamp_mss(&packet, bytes, mtu, partial);
        self.counts.delivered += 1;
        Ok(Fate::Deliver { offset: start, packet, partial })
    }

    /// Egress: returns the route to the client that has `destination`, an address of this shard.
    ///
    /// # Errors
    /// [`DropReason::NoSuchClient`] when no session has the address.
    pub fn route_down(&self, destination: IpAddr) -> Result<Down, DropReason> {
        let entry = self.addresses.holder(destination).ok_or(DropReason::NoSuchClient)?;
        let Some(Entry { kind: Kind::Inner { path, mtu, .. }, .. }) = self.table.get(entry) else {
            return Err(DropReason::NoSuchClient);
        };
        let (offset, trailer, to) = match path.route {
            Route::Udp(to) => (DIRECT_OFFSET, TAG_LEN, to),
            Route::Circuit { hop, .. } => match self.table.get(hop).map(|hop| &hop.kind) {
                Some(Kind::Hop { to, .. }) => (NESTED_OFFSET, NESTED_TRAILER, *to),
                _ => return Err(DropReason::NoSuchClient),
            },
        };
        Ok(Down { entry, offset, trailer, mtu: *mtu, to })
    }

    /// Egress: returns the shard to which the inner address `destination` belongs, if it is an inner address.
    pub fn shard_of(destination: IpAddr) -> Option<u8> {
        Addresses::shard_of(destination)
    }

    /// Egress: sets the destination of a packet from the device to the client's fixed address.
    pub fn translate_down(packet: &mut Packet, bytes: &mut [u8], partial: bool) {
        let to = if packet.is_v6() { IpAddr::V6(CLIENT_V6) } else { IpAddr::V4(CLIENT_V4) };
        replace(packet, bytes, Side::Destination, to, partial);
    }

    /// Egress: seals a datagram in place. Its inner packet, padded with zeros, stands between `down.offset` and
    /// `down.trailer`.
    ///
    /// # Errors
    /// The reason why the datagram cannot be sent; the caller counts it.
    pub fn seal_down(&mut self, down: &Down, datagram: &mut [u8], partial: bool, now: Time) -> Result<(), DropReason> {
        let entry = self.table.get_mut(down.entry).ok_or(DropReason::NoSuchClient)?;
        let length = datagram.len();
        let Kind::Inner { path, .. } = &mut entry.kind else { return Err(DropReason::NoSuchClient) };
        let route = path.route;
        path.may_send(length)?;
        *datagram.get_mut(down.offset - KIND_LEN).ok_or(DropReason::BadLength)? = FrameKind::Packet { partial }.byte();
        match route {
            Route::Udp(_) => {
                entry.link.session.seal(datagram, now)?;
                self.client_mask.apply(datagram);
                Ok(())
            }
            Route::Circuit { hop, tag } => {
                let inner =
                    datagram.get_mut(HEADER_LEN + FORWARD_LEN..length - TAG_LEN).ok_or(DropReason::BadLength)?;
                entry.link.session.seal(inner, now)?;
                self.client_mask.apply(inner);
                self.seal_hop(hop, tag, datagram, now).map(|_| ())
            }
        }
    }

    /// Seals a datagram, which already contains its inner packet, into the session with an ingress.
    fn seal_hop(&mut self, hop: EntryId, tag: u32, datagram: &mut [u8], now: Time) -> Result<SocketAddr, DropReason> {
        let entry = self.table.get_mut(hop).ok_or(DropReason::NoSuchClient)?;
        let Kind::Hop { to, mask, .. } = &entry.kind else { return Err(DropReason::NoSuchClient) };
        let front = datagram.get_mut(HEADER_LEN..).ok_or(DropReason::BadLength)?;
        Forward { tag }.write(front).ok_or(DropReason::BadLength)?;
        entry.link.session.seal(datagram, now)?;
        mask.apply(datagram);
        Ok(*to)
    }

    /// Counts inner packets that the caller could not send or deliver.
    pub fn count_drop(&mut self, reason: DropReason, packets: u64) {
        self.counts.drops.count_many(reason, packets);
    }

    /// Counts datagrams that could not be passed to another shard because its ring is full.
    pub fn count_pass_failed(&mut self, datagrams: u64) {
        self.counts.passed -= datagrams;
        self.counts.drops.count_many(DropReason::RingFull, datagrams);
    }

    /// Returns the shard's counters.
    pub fn counts(&self) -> &ShardCounts {
        &self.counts
    }

    /// Returns how many session packets the shard has moved.
    pub fn moved(&self) -> u64 {
        self.counts.forwarded + self.counts.delivered
    }

    /// Returns how many sessions and circuits the shard holds.
    pub fn held(&self) -> (usize, usize) {
        (self.table.len(), self.circuits.len())
    }

    /// Returns the next datagram that the shard itself wants to send.
    pub fn poll_transmit(&mut self) -> Option<(SocketAddr, Vec<u8>)> {
        self.outbox.pop_front()
    }

    /// Returns the next request for the handshaker.
    pub fn poll_request(&mut self) -> Option<Request> {
        self.requests.pop_front()
    }

    /// Returns the next pair of inner addresses whose session has ended. Connection tracking must forget them.
    pub fn poll_freed(&mut self) -> Option<(Ipv4Addr, Ipv6Addr)> {
        self.freed.pop_front()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
mod tests;
