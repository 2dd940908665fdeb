//! One of a client's two sessions: first the handshake, then the link.
//!
//! Owns repetition of handshake packets, cookies, and the receiver index of packets to this client. Never judges
//! evidence: it compares the announced digest with those that the caller has accepted.

use std::time::Duration;

use crate::control::MAX_MESSAGE;
use crate::cookie;
use crate::drops::DropReason;
use crate::frame::{PathChallenge, Report};
use crate::handshake::{First, Initiator, Responder};
use crate::link::Link;
use crate::mask::IndexMask;
use crate::message::{EvidenceDigest, Message, MirrorFile, MirrorPiece};
use crate::mirror::fetch::{Fetch, Progress};
use crate::random::{Random, array};
use crate::session::{CLIENT_WINDOW, Session, frame};
use crate::suite::Suites;
use crate::time::Time;
use crate::wire::{COOKIE_LEN, FrameKind, PacketType};

/// Waits for an answer, in milliseconds; after the last one the relay counts as silent. Many short waits come first,
/// because a relay under attack processes one first packet in sixteen. Long waits follow, for satellite paths.
const WAITS: [u64; 18] =
    [250, 500, 500, 500, 500, 500, 500, 500, 500, 500, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 2_000, 4_000];
/// Cookies that are used for one first packet.
const COOKIES: u32 = 4;
/// How long packets with the previous index are accepted after the relay has first used the new one.
const RETIRE_TIME: Duration = Duration::from_secs(10);

/// The progress of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// The keys exist; evidence was requested unless it is already accepted.
    Evidence,
    /// A token was sent.
    Token,
    /// The relay carries packets.
    Admitted,
}

/// The content of a leg's datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Incoming {
    /// An inner packet.
    Packet { partial: bool },
    /// A packet of the inner session.
    Forward,
    /// Control messages may have arrived.
    Control,
    /// An answer to a probe.
    ProbeAck,
    /// The handshake is complete, and the relay's evidence is already accepted: nothing has to be requested.
    Known,
    /// Nothing that requires an action of the client.
    Nothing,
}

/// One session of the circuit.
pub(super) struct Leg {
    peer: Responder,
    suites: Suites,
    /// The accepted evidence of this relay.
    known_evidence: Vec<EvidenceDigest>,
    to_relay: IndexMask,
    to_client: IndexMask,
    index: u32,
    /// The previous index, and until when it is accepted: without a limit until the relay has shown that it knows the
    /// new one.
    retiring: Option<(u32, Option<Time>)>,
    /// The relay's cookie, which proves this client's address; forgotten when a packet with its proof gets no reply.
    cookie: Option<[u8; COOKIE_LEN]>,
    /// How long the relay asked to wait when it was last too full to answer a first packet.
    full: Option<Duration>,
    /// Nonce of the path challenge that was answered last.
    answered: Option<[u8; 8]>,
    state: State,
    pub(super) stage: Stage,
    /// The file that is being fetched from the relay.
    fetch: Option<Fetch>,
    /// Sealed and masked packets to be sent.
    ready: Vec<Vec<u8>>,
}

enum State {
    Idle,
    Handshaking(Box<Attempt>),
    Up(Box<Link>),
}

struct Attempt {
    initiator: Initiator,
    /// The packet that is repeated, unmasked: the first packet or the one with the ML-KEM key.
    packet: Vec<u8>,
    is_first: bool,
    /// Cookies that came for the packet.
    cookies: u32,
    /// Whether the packet has a proof, and the relay has not said that it is full.
    tried: bool,
    repeated: usize,
    again: Time,
    due: bool,
}

/// Returns how long to wait after an attempt that was repeated `repeated` times.
fn wait(repeated: usize) -> Duration {
    Duration::from_millis(WAITS.get(repeated).copied().unwrap_or(0))
}

impl Leg {
    pub(super) fn new(peer: Responder, suites: Suites, known_evidence: Vec<EvidenceDigest>) -> Self {
        Self {
            to_relay: IndexMask::to_relay(&peer.key),
            to_client: IndexMask::to_client(&peer.key),
            peer,
            suites,
            known_evidence,
            index: 0,
            retiring: None,
            cookie: None,
            full: None,
            answered: None,
            state: State::Idle,
            stage: Stage::Evidence,
            fetch: None,
            ready: Vec::new(),
        }
    }

    /// Starts the handshake. Returns `None` when the relay's key is a low-order point.
    pub(super) fn begin(&mut self, now: Time, minutes: u32, random: &mut dyn Random) -> Option<()> {
        self.index = u32::from_be_bytes(array(random));
        let first = First { offered: self.suites, local_index: self.index, minutes };
        let (initiator, mut packet) = Initiator::start(&self.peer, None, first, random).ok()?;
        if let Some(cookie) = &self.cookie {
            cookie::prove(&mut packet, cookie);
        }
        let again = now.after(wait(0));
        let tried = self.cookie.is_some();
        let attempt = Attempt { initiator, packet, is_first: true, cookies: 0, tried, repeated: 0, again, due: true };
        self.state = State::Handshaking(Box::new(attempt));
        Some(())
    }

    /// Handles a datagram of this leg in place.
    pub(super) fn handle(
        &mut self,
        datagram: &mut [u8],
        now: Time,
        random: &mut dyn Random,
    ) -> Result<Incoming, DropReason> {
        let (kind, index) = self.to_client.remove(datagram).ok_or(DropReason::UnknownType)?;
        if index != self.index && !self.is_retiring(index, now) {
            return Err(DropReason::UnknownIndex);
        }
        if is_answer(kind) {
            return self.handle_answer(kind, datagram, now, random);
        }
        let State::Up(link) = &mut self.state else { return Err(DropReason::NotAdmitted) };
        if kind != PacketType::Data {
            return Err(DropReason::UnknownType);
        }
        let before = link.session.newest();
        link.session.open(datagram, now)?;
        let newest = link.session.newest() > before;
        if let Some((_, until @ None)) = &mut self.retiring
            && index == self.index
        {
            *until = Some(now.after(RETIRE_TIME));
        }
        match frame(datagram).first().copied().and_then(FrameKind::parse).ok_or(DropReason::BadFrame)? {
            FrameKind::Packet { partial } => Ok(Incoming::Packet { partial }),
            FrameKind::Forward => Ok(Incoming::Forward),
            FrameKind::Control => {
                link.handle_control(frame(datagram), MAX_MESSAGE, now)?;
                Ok(Incoming::Control)
            }
            FrameKind::ProbeAck => Ok(Incoming::ProbeAck),
            // An overtaken challenge belongs to a path that the relay may have left; the relay challenges again.
            FrameKind::PathChallenge if !newest => Ok(Incoming::Nothing),
            FrameKind::PathChallenge => {
                self.answer_challenge(index, frame(datagram), now, random)?;
                Ok(Incoming::Nothing)
            }
            FrameKind::Padding | FrameKind::Probe | FrameKind::PathMtu | FrameKind::PathResponse => {
                Ok(Incoming::Nothing)
            }
        }
    }

    fn is_retiring(&self, index: u32, now: Time) -> bool {
        self.retiring.is_some_and(|(old, until)| old == index && until.is_none_or(|until| now <= until))
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "the caller lets only the four answers through")]
    fn handle_answer(
        &mut self,
        kind: PacketType,
        packet: &mut [u8],
        now: Time,
        random: &mut dyn Random,
    ) -> Result<Incoming, DropReason> {
        let State::Handshaking(attempt) = &mut self.state else { return Err(DropReason::HandshakeStray) };
        match kind {
            PacketType::Reply => {
                attempt.packet =
                    attempt.initiator.read_reply(packet, random).map_err(|_| DropReason::HandshakeInvalid)?;
                attempt.is_first = false;
                self.full = None;
                attempt.repeated = 0;
                attempt.again = now.after(wait(0));
                attempt.due = true;
            }
            // Anyone who sees the packet can send a false cookie, so others are used too.
            PacketType::Cookie if attempt.is_first && attempt.cookies < COOKIES => {
                let cookie =
                    cookie::read(packet, &attempt.packet, &self.peer.key).ok_or(DropReason::HandshakeInvalid)?;
                cookie::prove(&mut attempt.packet, &cookie);
                self.cookie = Some(cookie);
                attempt.cookies += 1;
                attempt.tried = true;
                attempt.due = true;
            }
            // Only a hint, because it can be false too: the packet is repeated as before.
            PacketType::Full if attempt.is_first => {
                let wait = cookie::read_full(packet, &attempt.packet, &self.peer.key);
                self.full = Some(wait.ok_or(DropReason::HandshakeInvalid)?);
                attempt.tried = false;
            }
            _ => {
                let established = attempt.initiator.read_kem_text(packet).map_err(|_| DropReason::HandshakeInvalid)?;
                let mut link = Link::new(Session::new(&established, CLIENT_WINDOW, now), random);
                let known = self.known_evidence.contains(&established.evidence);
                if !known {
                    link.send(&Message::EvidenceRequest);
                }
                self.stage = Stage::Evidence;
                self.state = State::Up(Box::new(link));
                return Ok(if known { Incoming::Known } else { Incoming::Nothing });
            }
        }
        Ok(Incoming::Nothing)
    }

    /// Echoes a challenge, which arrived under the index `known`, along the path in use, and switches to fresh indices.
    fn answer_challenge(
        &mut self,
        known: u32,
        frame: &[u8],
        now: Time,
        random: &mut dyn Random,
    ) -> Result<(), DropReason> {
        let PathChallenge { nonce, index: fresh } = PathChallenge::parse(frame).ok_or(DropReason::BadFrame)?;
        let State::Up(link) = &mut self.state else { return Err(DropReason::NotAdmitted) };
        if self.answered != Some(nonce) {
            self.answered = Some(nonce);
            // Retires `known`, not the current index: if an echo was lost, the relay never learned the current one.
            self.retiring = Some((known, None));
            self.index = u32::from_be_bytes(array(random));
            link.session.remote_index = fresh;
        }
        let echo = PathChallenge { nonce, index: self.index }.write();
        if let Some(mut datagram) = link.frame(FrameKind::PathResponse, &echo, 0, 0, now) {
            self.to_relay.apply(&mut datagram);
            self.ready.push(datagram);
        }
        Ok(())
    }

    /// Seals and masks a datagram in place.
    pub(super) fn seal(&mut self, datagram: &mut [u8], now: Time) -> Result<(), DropReason> {
        let State::Up(link) = &mut self.state else { return Err(DropReason::NotConnected) };
        link.session.seal(datagram, now)?;
        self.to_relay.apply(datagram);
        Ok(())
    }

    /// Returns the report for the relay: the path MTU, and how much of the relay's control stream has arrived.
    pub(super) fn report(&mut self, mtu: u16) -> Option<Report> {
        match &mut self.state {
            State::Up(link) => Some(link.report(mtu)),
            State::Idle | State::Handshaking(_) => None,
        }
    }

    /// Builds a datagram with one frame, sealed and masked.
    pub(super) fn frame(&mut self, kind: FrameKind, body: &[u8], now: Time) -> Option<Vec<u8>> {
        let State::Up(link) = &mut self.state else { return None };
        let mut datagram = link.frame(kind, body, 0, 0, now)?;
        self.to_relay.apply(&mut datagram);
        Some(datagram)
    }

    /// Returns the next packet that this leg itself wants to send, masked.
    pub(super) fn poll(&mut self, now: Time) -> Option<Vec<u8>> {
        if let Some(ready) = self.ready.pop() {
            return Some(ready);
        }
        let mut packet = match &mut self.state {
            State::Idle => return None,
            State::Handshaking(attempt) => {
                if !std::mem::take(&mut attempt.due) {
                    return None;
                }
                attempt.packet.clone()
            }
            State::Up(link) => link.poll_control(0, 0, now)?,
        };
        self.to_relay.apply(&mut packet);
        Some(packet)
    }

    /// Returns when [`Leg::handle_timeout`] or [`Leg::poll`] is due.
    pub(super) fn deadline(&self) -> Option<Time> {
        match &self.state {
            State::Idle => None,
            State::Handshaking(attempt) => Some(attempt.again),
            State::Up(link) => link.deadline(),
        }
    }

    /// Repeats an unanswered handshake packet. Rebuilds a first packet: the answer to the old one may have been lost,
    /// and the relay accepts no first packet twice.
    ///
    /// # Errors
    /// When the packet has been repeated often enough: the relay is silent.
    pub(super) fn handle_timeout(&mut self, now: Time, minutes: u32, random: &mut dyn Random) -> Result<(), ()> {
        let State::Handshaking(attempt) = &mut self.state else { return Ok(()) };
        if attempt.again > now {
            return Ok(());
        }
        let repeated = attempt.repeated + 1;
        if repeated >= WAITS.len() {
            return Err(());
        }
        if attempt.is_first {
            // The relay has forgotten its cookie, or somebody else sent it.
            if attempt.tried {
                self.cookie = None;
            }
            self.begin(now, minutes, random).ok_or(())?;
        }
        if let State::Handshaking(attempt) = &mut self.state {
            attempt.repeated = repeated;
            attempt.again = now.after(wait(repeated));
            attempt.due = true;
        }
        Ok(())
    }

    /// Returns how long the relay asked to wait, if it said that it was full and has not answered since.
    pub(super) fn full(&self) -> Option<Duration> {
        self.full
    }

    pub(super) fn send(&mut self, message: &Message) {
        if let State::Up(link) = &mut self.state {
            link.send(message);
        }
    }

    /// Requests a file from the relay; returns whether it did. The relay must carry packets and have finished
    /// answering the previous request.
    pub(super) fn fetch(&mut self, file: MirrorFile) -> bool {
        if self.stage != Stage::Admitted || self.fetch.is_some() {
            return false;
        }
        self.fetch = Some(Fetch::new(file));
        self.send(&Message::MirrorRequest { file, offset: 0 });
        true
    }

    /// Handles a piece of a file. Returns the file once it is complete.
    ///
    /// # Errors
    /// When the relay sent something that was not requested.
    pub(super) fn take_piece(&mut self, piece: MirrorPiece) -> Result<Option<(MirrorFile, Vec<u8>)>, ()> {
        let file = piece.file;
        match self.fetch.as_mut().and_then(|fetch| fetch.take(piece)).ok_or(())? {
            Progress::Ask(offset) => {
                self.send(&Message::MirrorRequest { file, offset });
                Ok(None)
            }
            Progress::Done(file, bytes) => {
                self.fetch = None;
                Ok(Some((file, bytes)))
            }
        }
    }

    pub(super) fn receive(&mut self) -> Result<Option<Message>, DropReason> {
        match &mut self.state {
            State::Up(link) => link.receive(),
            State::Idle | State::Handshaking(_) => Ok(None),
        }
    }

    /// Returns generation and epoch of the key that seals; `None` before there is one.
    pub(super) fn sealing_epoch(&self) -> Option<(u8, u8)> {
        match &self.state {
            State::Up(link) => Some(link.session.sealing_epoch()),
            State::Idle | State::Handshaking(_) => None,
        }
    }

    /// Wipes keys that no packet needs any more. Returns whether old keys remain that a packet may still need.
    pub(super) fn forget_old_keys(&mut self, now: Time) -> bool {
        match &mut self.state {
            State::Up(link) => link.session.forget_old_keys(now),
            State::Idle | State::Handshaking(_) => false,
        }
    }

    pub(super) fn rekey_if_due(&mut self, now: Time, random: &mut dyn Random) {
        if let State::Up(link) = &mut self.state {
            link.rekey_if_due(&self.peer, now, random);
        }
    }

    pub(super) fn rekey(&mut self, now: Time, random: &mut dyn Random) {
        if let State::Up(link) = &mut self.state {
            link.start_rekey(&self.peer, now, random);
        }
    }

    pub(super) fn finish_rekey(&mut self, answer: &[u8], now: Time) -> Result<(), DropReason> {
        match &mut self.state {
            State::Up(link) => link.finish_rekey(answer, now),
            State::Idle | State::Handshaking(_) => Err(DropReason::HandshakeStray),
        }
    }
}

/// Returns whether this type of packet answers a handshake that a client began.
const fn is_answer(kind: PacketType) -> bool {
    matches!(kind, PacketType::Reply | PacketType::KemText | PacketType::Cookie | PacketType::Full)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::Role;
    use crate::keys::{RelayId, RelaySecret};
    use crate::random::Counting;

    /// False refusals and cookies cost a moment: the client reports a refusal only if nothing better comes.
    #[test]
    fn refusal_is_a_hint_and_a_cookie_without_reply_is_forgotten() {
        let mut random = Counting::default();
        let key = RelaySecret::generate(&mut random).public();
        let peer = Responder { network: [1; 32], relay: RelayId(1), role: Role::Ingress, key_epoch: 0, key };
        let mut leg = Leg::new(peer, Suites::ALL, Vec::new());
        let mut now = Time::default();
        leg.begin(now, 0, &mut random).unwrap();
        let packet = |leg: &mut Leg, now| {
            let mut packet = leg.poll(now).unwrap();
            IndexMask::to_relay(&key).remove(&mut packet);
            packet
        };
        let first = packet(&mut leg, now);
        let mut full = cookie::full(&first, Duration::from_secs(7), &key, &mut random);
        IndexMask::to_client(&key).apply(&mut full);
        assert_eq!(leg.handle(&mut full, now, &mut random), Ok(Incoming::Nothing));
        assert_eq!((leg.full(), leg.deadline()), (Some(Duration::from_secs(7)), Some(now.after(wait(0)))));
        for _ in 0..COOKIES {
            let mut given = cookie::packet(&first, &[9; COOKIE_LEN], &key, &mut random);
            IndexMask::to_client(&key).apply(&mut given);
            assert_eq!(leg.handle(&mut given, now, &mut random), Ok(Incoming::Nothing));
            assert_eq!(packet(&mut leg, now).len(), first.len() + 16, "with a proof, at once");
        }
        let mut more = cookie::packet(&first, &[9; COOKIE_LEN], &key, &mut random);
        IndexMask::to_client(&key).apply(&mut more);
        assert!(leg.handle(&mut more, now, &mut random).is_err());
        now = now.after(wait(0));
        leg.handle_timeout(now, 0, &mut random).unwrap();
        assert_eq!(packet(&mut leg, now).len(), first.len(), "without a proof");
    }
}
