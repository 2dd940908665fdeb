//! The client: one circuit through an ingress and an egress, without I/O.
//!
//! Owns the two sessions of a circuit and the order in which they come up. Takes plain keys, which the caller must have
//! verified; the only caller is `chain::circuit::open`. Never holds a static key: a client is anonymous to both relays.
//!
//! ```text
//! outer: handshake ─▶ announces accepted evidence ─▶ token, circuit ─┐
//!                                                                    └▶ inner: the same ─▶ token ─▶ connected
//!        announces other evidence ─▶ client requests it ─▶ circuit fails; the caller judges the evidence
//! ```

mod conversation;
mod leg;
mod pmtu;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::drops::DropReason;
use crate::frame::{Forward, Probe, ProbeAck};
use crate::handshake::{Responder, Role};
use crate::ip::{CLIENT_V4, CLIENT_V6, Packet, tcp};
use crate::message::{CircuitRefusal, Evidence, EvidenceDigest, Message, MirrorFile};
use crate::random::{Random, array};
use crate::session::frame;
use crate::suite::Suites;
use crate::time::Time;
use crate::wire::{
    DIRECT_OFFSET, FORWARD_LEN, FrameKind, HEADER_LEN, KIND_LEN, NESTED_OFFSET, NESTED_TRAILER, TAG_LEN,
};

use leg::{Incoming, Leg};
use pmtu::Pmtu;

/// How long packets may go out without an answer before the circuit counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(15);
/// Interval at which a circuit in use is checked.
const TICK: Duration = Duration::from_secs(1);
/// Interval at which an idle circuit is checked if it sends no keepalives.
const IDLE_TICK: Duration = Duration::from_secs(120);

/// Silence after the last delivered packet, after which the client sends a packet itself. If a NAT on the path has
/// changed its mapping, a client that only listens would wait forever. Doubles with each of [`NUDGES`].
const NUDGE_AFTER: Duration = Duration::from_millis(500);
/// Silence of the inner session after which a keepalive goes through it: the egress forgets clients after 15 minutes.
const INNER_KEEPALIVE: Duration = Duration::from_secs(300);
/// Packets that the client sends to show itself after each delivered packet.
const NUDGES: u32 = 3;

/// Parameters of a circuit.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The ingress and its address. `None` opens a circuit of one hop, which shows the egress the client's address.
    pub ingress: Option<(Responder, SocketAddr)>,
    /// The egress.
    pub egress: Responder,
    /// Address of the egress; used only without an ingress.
    pub egress_address: Option<SocketAddr>,
    /// The suites to offer: those that this host is good at.
    pub suites: Suites,
    /// Evidence of the ingress in this key epoch that the caller has accepted: old and new while it is being renewed.
    /// If the ingress announces other evidence, the client requests that evidence and opens no circuit.
    pub ingress_evidence: Vec<EvidenceDigest>,
    /// Accepted evidence of the egress, likewise.
    pub egress_evidence: Vec<EvidenceDigest>,
    /// Silence after which a keepalive goes out, so that a NAT on the path keeps its mapping; `None` sends none.
    pub keepalive: Option<Duration>,
}

/// The outcome of a received datagram.
#[derive(Debug)]
pub enum DatagramEvent {
    /// The client has handled it; nothing is left to do.
    Consumed,
    /// It holds an inner packet for the tunnel device.
    Deliver {
        /// Offset of the packet in the datagram.
        offset: usize,
        /// The parsed headers of the packet.
        packet: Packet,
        /// Whether the transport checksum is still to be filled in.
        partial: bool,
    },
    /// The client refused it; the caller counts it.
    Dropped(DropReason),
}

/// A change of the circuit's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The circuit carries packets.
    Connected,
    /// The size of the largest inner packet that the path carries has changed; in bytes.
    Mtu(u16),
    /// The circuit could not be opened.
    Failed(Failure),
    /// The circuit has ended: a relay closed it, or it failed or fell silent while it was up.
    Lost,
}

/// The reason why a circuit could not be opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The ingress does not answer.
    IngressSilent,
    /// The egress does not answer.
    EgressSilent,
    /// The ingress refused the circuit.
    Refused(CircuitRefusal),
    /// This relay has evidence other than the accepted evidence; [`Client::take_shown`] returns it.
    OtherEvidence(Role),
    /// This relay has no room for the client.
    Full {
        /// The relay.
        role: Role,
        /// How long it asks to wait before another attempt.
        retry: Duration,
    },
    /// A relay violated the protocol.
    Protocol,
}

/// One circuit, without I/O.
///
/// # How to call it
///
/// Methods are of four kinds:
///
/// 1. **Input.** [`Client::handle_datagram`] takes each datagram from [`Client::remote`], [`Client::handle_timeout`]
///    says that time has passed, [`Client::rekey`], [`Client::fetch`] and [`Client::close`] ask for something.
/// 2. **Packets of the device**: [`Client::seal`], in a buffer that [`Client::offset`], [`Client::trailer`] and
///    [`Client::mtu`] describe.
/// 3. **Output**: [`Client::poll_transmit`], [`Client::poll_event`], [`Client::poll_fetched`] and
///    [`Client::poll_timeout`]; [`Client::take_shown`] after [`Failure::OtherEvidence`].
/// 4. **Questions**, which change nothing: [`Client::remote`], [`Client::is_connected`], [`Client::sealing_epochs`].
///
/// After [`Client::new`], and after any number of calls of the first two kinds and before the caller waits, it takes
/// the outputs in the order in which the third kind lists them, each until it returns `None`. [`Client::seal`] changes
/// [`Client::poll_timeout`] too. The caller calls [`Client::handle_timeout`] no later than at that moment; to be early
/// is harmless.
///
/// The caller delivers the packet of a [`DatagramEvent::Deliver`] before the next call with the same buffer. After
/// [`Event::Failed`] or [`Event::Lost`] the circuit stays over: [`Client::seal`] fails and no timeout comes.
///
/// Time never runs backwards: `now` of a call is at least that of the previous call. `minutes` is verified time and may
/// jump. Nothing here reads a clock.
pub struct Client {
    config: ClientConfig,
    /// The session with the ingress; `None` in a circuit of one hop.
    outer: Option<Leg>,
    /// The session with the egress.
    inner: Leg,
    /// Tag of the circuit's frames; `None` until the ingress has opened the circuit.
    tag: Option<u32>,
    /// Address of the first hop.
    to: SocketAddr,
    /// The search for the path's MTU.
    pmtu: Pmtu,
    /// Whether the egress has admitted the client.
    connected: bool,
    /// Whether the circuit has ended.
    over: bool,
    /// When the first packet went out that is still unanswered.
    unanswered: Option<Time>,
    /// When a datagram last went out.
    last_sent: Time,
    /// When a frame last went through the inner session.
    last_sent_through: Time,
    /// When keys, losses and keepalives were last looked after.
    last_tick: Time,
    /// Whether packets went out lately that still need attention.
    busy: bool,
    /// When the last packet for the tunnel device arrived.
    last_delivered: Time,
    /// Nudges sent since then.
    nudges: u32,
    /// Datagrams that wait for [`Client::poll_transmit`].
    outbox: VecDeque<Vec<u8>>,
    /// Events that wait for [`Client::poll_event`].
    events: VecDeque<Event>,
    /// Files that wait for [`Client::poll_fetched`].
    fetched: VecDeque<Fetched>,
    /// The evidence that a relay showed instead of the accepted evidence.
    shown: Option<Evidence>,
}

/// A mirrored file as a relay sent it, unverified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetched {
    /// The relay that sent it.
    pub from: Role,
    /// Which file.
    pub file: MirrorFile,
    /// Content of the file; empty when the relay does not have it.
    pub bytes: Vec<u8>,
}

impl Client {
    /// Starts to open a circuit. `minutes` is verified time in minutes since the Unix epoch.
    ///
    /// Returns `None` when the configuration has neither an ingress nor an address of the egress, or when a key is a
    /// low-order point.
    pub fn new(config: ClientConfig, now: Time, minutes: u32, random: &mut dyn Random) -> Option<Self> {
        let mut inner = Leg::new(config.egress.clone(), config.suites, config.egress_evidence.clone());
        let mut outer = None;
        let to = match &config.ingress {
            Some((responder, address)) => {
                let mut leg = Leg::new(responder.clone(), config.suites, config.ingress_evidence.clone());
                leg.begin(now, minutes, random)?;
                outer = Some(leg);
                *address
            }
            None => {
                inner.begin(now, minutes, random)?;
                config.egress_address?
            }
        };
        let mut client = Self {
            config,
            outer,
            inner,
            tag: None,
            to,
            pmtu: Pmtu::new(),
            connected: false,
            over: false,
            unanswered: None,
            last_sent: now,
            last_sent_through: now,
            last_tick: now,
            busy: false,
            last_delivered: now,
            nudges: NUDGES,
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            fetched: VecDeque::new(),
            shown: None,
        };
        client.pump(now);
        Some(client)
    }

    /// Returns the address to which all datagrams of the circuit go.
    pub fn remote(&self) -> SocketAddr {
        self.to
    }

    /// Returns whether the circuit carries packets.
    pub fn is_connected(&self) -> bool {
        self.connected && !self.over
    }

    /// Returns generation and epoch of the keys that seal, towards the egress and towards the ingress. Each
    /// re-handshake starts a generation, each minute of traffic an epoch.
    pub fn sealing_epochs(&self) -> [Option<(u8, u8)>; 2] {
        [self.inner.sealing_epoch(), self.outer.as_ref().and_then(Leg::sealing_epoch)]
    }

    /// Returns the number of bytes before the inner packet in a datagram.
    pub fn offset(&self) -> usize {
        if self.outer.is_some() { NESTED_OFFSET } else { DIRECT_OFFSET }
    }

    /// Returns the number of bytes after the padded inner packet in a datagram.
    pub fn trailer(&self) -> usize {
        if self.outer.is_some() { NESTED_TRAILER } else { TAG_LEN }
    }

    /// Returns the size of the largest inner packet that the path carries, in bytes.
    pub fn mtu(&self) -> u16 {
        self.pmtu.confirmed()
    }

    /// Seals a datagram in place. Its inner packet, padded with zeros, stands between [`Client::offset`] and
    /// [`Client::trailer`].
    ///
    /// # Errors
    /// The reason why the datagram cannot be sent; the caller counts it.
    pub fn seal(&mut self, datagram: &mut [u8], partial: bool, now: Time) -> Result<(), DropReason> {
        if !self.connected || self.over {
            return Err(DropReason::NotConnected);
        }
        let kind_at = self.offset() - KIND_LEN;
        *datagram.get_mut(kind_at).ok_or(DropReason::BadLength)? = FrameKind::Packet { partial }.byte();
        self.busy = true;
        self.last_sent = now;
        self.last_sent_through = now;
        self.unanswered.get_or_insert(now);
        match (&mut self.outer, self.tag) {
            (Some(outer), Some(tag)) => {
                let end = datagram.len() - TAG_LEN;
                let slice = datagram.get_mut(HEADER_LEN + FORWARD_LEN..end).ok_or(DropReason::BadLength)?;
                self.inner.seal(slice, now)?;
                forward(outer, tag, datagram, now)
            }
            (None, _) => self.inner.seal(datagram, now),
            (Some(_), None) => Err(DropReason::NotConnected),
        }
    }

    /// Handles a received datagram in place.
    pub fn handle_datagram(
        &mut self,
        datagram: &mut [u8],
        now: Time,
        minutes: u32,
        random: &mut dyn Random,
    ) -> DatagramEvent {
        let result = match &mut self.outer {
            None => self.handle_inner(datagram, 0, datagram.len(), now, random),
            Some(outer) => match outer.handle(datagram, now, random) {
                Err(reason) => Err(reason),
                Ok(Incoming::Forward) => {
                    self.unanswered = None;
                    let tag = Forward::parse(frame(datagram)).map(|forward| forward.tag);
                    if tag.is_none() || tag != self.tag {
                        Err(DropReason::UnknownCircuit)
                    } else {
                        let end = datagram.len() - TAG_LEN;
                        self.handle_inner(datagram, HEADER_LEN + FORWARD_LEN, end, now, random)
                    }
                }
                Ok(Incoming::Control) => {
                    self.unanswered = None;
                    self.converse_outer(now, minutes, random);
                    Ok(DatagramEvent::Consumed)
                }
                Ok(Incoming::Known) => {
                    self.ask_for_circuit();
                    Ok(DatagramEvent::Consumed)
                }
                Ok(Incoming::Packet { .. }) => Err(DropReason::BadFrame),
                Ok(Incoming::ProbeAck | Incoming::Nothing) => Ok(DatagramEvent::Consumed),
            },
        };
        self.pump(now);
        result.unwrap_or_else(DatagramEvent::Dropped)
    }

    fn handle_inner(
        &mut self,
        datagram: &mut [u8],
        start: usize,
        end: usize,
        now: Time,
        random: &mut dyn Random,
    ) -> Result<DatagramEvent, DropReason> {
        let slice = datagram.get_mut(start..end).ok_or(DropReason::BadFrame)?;
        let incoming = self.inner.handle(slice, now, random)?;
        self.unanswered = None;
        match incoming {
            Incoming::Packet { .. } if !self.connected => Err(DropReason::NotAdmitted),
            Incoming::Packet { partial } => {
                self.last_delivered = now;
                self.nudges = 0;
                let offset = start + HEADER_LEN + KIND_LEN;
                let bytes = datagram.get_mut(offset..end - TAG_LEN).ok_or(DropReason::BadFrame)?;
                let packet = Packet::parse(bytes).map_err(|_| DropReason::BadPacket)?;
                if packet.destination != IpAddr::V4(CLIENT_V4) && packet.destination != IpAddr::V6(CLIENT_V6) {
                    return Err(DropReason::ForbiddenDestination);
                }
                if partial && (packet.fragment || packet.checksum_at().is_none()) {
                    return Err(DropReason::BadPacket);
                }
                tcp::clamp_mss(&packet, bytes, self.pmtu.confirmed(), partial);
                Ok(DatagramEvent::Deliver { offset, packet, partial })
            }
            Incoming::Forward => Err(DropReason::BadFrame),
            Incoming::Control => {
                self.converse_inner(now, random);
                Ok(DatagramEvent::Consumed)
            }
            Incoming::Known => {
                self.ask_for_admission();
                Ok(DatagramEvent::Consumed)
            }
            Incoming::ProbeAck => {
                let slice = datagram.get(start..end).ok_or(DropReason::BadFrame)?;
                if let Some(ack) = ProbeAck::parse(frame(slice)) {
                    let before = self.pmtu.confirmed();
                    self.pmtu.acknowledged(ack.nonce, ack.size, now);
                    self.note_mtu(before, now);
                }
                Ok(DatagramEvent::Consumed)
            }
            Incoming::Nothing => Ok(DatagramEvent::Consumed),
        }
    }

    /// Takes the evidence that a relay showed instead of the accepted evidence, if it showed any.
    pub fn take_shown(&mut self) -> Option<Evidence> {
        self.shown.take()
    }

    fn fail(&mut self, failure: Failure) {
        if !self.over {
            self.over = true;
            self.events.push_back(if self.connected { Event::Lost } else { Event::Failed(failure) });
        }
    }

    fn lose(&mut self) {
        if !self.over {
            self.over = true;
            self.events.push_back(Event::Lost);
        }
    }

    /// Reports a changed path MTU to the egress and to the caller. If the egress misses it, the next probe repeats it.
    fn note_mtu(&mut self, before: u16, now: Time) {
        let mtu = self.pmtu.confirmed();
        if mtu != before {
            if let Some(report) = self.inner.report(mtu) {
                let datagram = self.inner_frame(FrameKind::PathMtu, &report.write(), now);
                self.outbox.extend(datagram);
            }
            self.events.push_back(Event::Mtu(mtu));
        }
    }

    /// Returns when to call [`Client::handle_timeout`]; the end of time once the circuit is over.
    pub fn poll_timeout(&self) -> Time {
        if self.over {
            return Time::from_micros(u64::MAX);
        }
        let tick = self.tick_at();
        let legs = self.outer.iter().chain([&self.inner]).filter_map(Leg::deadline);
        legs.chain(self.pmtu.deadline()).chain(self.nudge_at()).chain([tick]).min().unwrap_or(tick)
    }

    fn tick_at(&self) -> Time {
        match self.config.keepalive {
            _ if self.busy => self.last_tick.after(TICK),
            Some(every) if self.connected => self.last_sent.after(every),
            _ => self.last_tick.after(IDLE_TICK),
        }
    }

    fn nudge_at(&self) -> Option<Time> {
        (self.connected && self.nudges < NUDGES)
            .then(|| self.last_delivered.after(NUDGE_AFTER * (2 << self.nudges) - NUDGE_AFTER))
    }

    /// Does whatever is due: repeats packets, probes the path, sends keepalives, gives up.
    pub fn handle_timeout(&mut self, now: Time, minutes: u32, random: &mut dyn Random) {
        if self.over {
            return;
        }
        if self.outer.as_mut().is_some_and(|outer| outer.handle_timeout(now, minutes, random).is_err()) {
            let full = self.outer.as_ref().and_then(Leg::full);
            return self
                .fail(full.map_or(Failure::IngressSilent, |retry| Failure::Full { role: Role::Ingress, retry }));
        }
        if self.inner.handle_timeout(now, minutes, random).is_err() {
            let full = self.inner.full();
            return self.fail(full.map_or(Failure::EgressSilent, |retry| Failure::Full { role: Role::Egress, retry }));
        }
        if self.nudge_at().is_some_and(|at| at <= now) {
            self.nudges += 1;
            self.show_itself(now);
            // A path whose MTU has shrunk also looks silent.
            self.pmtu.doubt(now);
        }
        if self.connected {
            let before = self.pmtu.confirmed();
            let nonce = array(random);
            if let Some((nonce, size)) = self.pmtu.handle_timeout(now, nonce, self.busy || self.nudges < NUDGES) {
                let report = self.inner.report(self.pmtu.confirmed()).unwrap_or_default();
                let datagram = self.inner_frame(FrameKind::Probe, &Probe { nonce, report }.write(size), now);
                self.outbox.extend(datagram);
            }
            self.note_mtu(before, now);
        }
        if self.tick_at() <= now {
            self.tick(now, random);
        }
        self.pump(now);
    }

    fn tick(&mut self, now: Time, random: &mut dyn Random) {
        self.last_tick = now;
        let inner_remembers = self.inner.forget_old_keys(now);
        let outer_remembers = self.outer.as_mut().is_some_and(|outer| outer.forget_old_keys(now));
        // A packet without an answer may have needed none. While the circuit is busy, probes request answers.
        self.busy = self.unanswered.is_some() || inner_remembers || outer_remembers;
        if self.unanswered.is_some_and(|since| now.since(since) > LOST_AFTER) {
            return self.lose();
        }
        if let Some(outer) = &mut self.outer {
            outer.rekey_if_due(now, random);
        }
        self.inner.rekey_if_due(now, random);
        if self.connected && self.config.keepalive.is_some_and(|every| now.since(self.last_sent) >= every) {
            self.show_itself(now);
        }
    }

    /// Sends an empty datagram: usually to the first hop, from time to time through the circuit to the last hop.
    fn show_itself(&mut self, now: Time) {
        self.last_sent = now;
        let datagram = match &mut self.outer {
            Some(outer) if now.since(self.last_sent_through) < INNER_KEEPALIVE => {
                outer.frame(FrameKind::Padding, &[], now)
            }
            _ => {
                self.last_sent_through = now;
                self.inner_frame(FrameKind::Padding, &[], now)
            }
        };
        self.outbox.extend(datagram);
    }

    /// Replaces all keys of the circuit at once, whatever their age.
    pub fn rekey(&mut self, now: Time, random: &mut dyn Random) {
        if let Some(outer) = &mut self.outer {
            outer.rekey(now, random);
        }
        self.inner.rekey(now, random);
        self.pump(now);
    }

    /// Requests a mirrored file from a relay of the circuit. Returns false when the circuit has no such relay, or
    /// when the relay does not carry packets yet or has not finished answering the previous request.
    pub fn fetch(&mut self, from: Role, file: MirrorFile, now: Time) -> bool {
        let asked = match from {
            Role::Ingress => self.outer.as_mut().is_some_and(|outer| outer.fetch(file)),
            Role::Egress => self.inner.fetch(file),
        };
        self.pump(now);
        asked
    }

    /// Returns the next file that has arrived.
    pub fn poll_fetched(&mut self) -> Option<Fetched> {
        self.fetched.pop_front()
    }

    /// Ends the circuit and tells the relays.
    pub fn close(&mut self, now: Time) {
        self.inner.send(&Message::Close);
        self.pump(now);
        if let Some(outer) = &mut self.outer {
            outer.send(&Message::Close);
        }
        self.pump(now);
        self.over = true;
    }

    /// Returns the next datagram that the circuit itself wants to send.
    pub fn poll_transmit(&mut self) -> Option<Vec<u8>> {
        self.outbox.pop_front()
    }

    /// Returns the next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn inner_frame(&mut self, kind: FrameKind, body: &[u8], now: Time) -> Option<Vec<u8>> {
        match (&mut self.outer, self.tag) {
            (Some(outer), Some(tag)) => {
                let datagram = self.inner.frame(kind, body, now)?;
                wrap(outer, tag, &datagram, now)
            }
            (None, _) => self.inner.frame(kind, body, now),
            (Some(_), None) => None,
        }
    }

    /// Moves all packets that the legs want to send into the outbox.
    fn pump(&mut self, now: Time) {
        while let Some(packet) = self.inner.poll(now) {
            match (&mut self.outer, self.tag) {
                (Some(outer), Some(tag)) => self.outbox.extend(wrap(outer, tag, &packet, now)),
                (None, _) => self.outbox.push_back(packet),
                (Some(_), None) => {}
            }
        }
        while let Some(packet) = self.outer.as_mut().and_then(|outer| outer.poll(now)) {
            self.outbox.push_back(packet);
        }
    }
}

/// Wraps a masked packet of the inner session into a datagram of the outer session.
fn wrap(outer: &mut Leg, tag: u32, packet: &[u8], now: Time) -> Option<Vec<u8>> {
    let mut datagram = vec![0; HEADER_LEN + FORWARD_LEN];
    datagram.extend_from_slice(packet);
    datagram.resize(datagram.len() + TAG_LEN, 0);
    forward(outer, tag, &mut datagram, now).ok()?;
    Some(datagram)
}

/// Seals a datagram in place that already contains its inner packet.
fn forward(outer: &mut Leg, tag: u32, datagram: &mut [u8], now: Time) -> Result<(), DropReason> {
    let front = datagram.get_mut(HEADER_LEN..).ok_or(DropReason::BadLength)?;
    Forward { tag }.write(front).ok_or(DropReason::BadLength)?;
    outer.seal(datagram, now)
}
