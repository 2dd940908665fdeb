//! One end of a session with its control stream; clients and relays share it.
//!
//! Owns everything in a session that is not on the packet path: control frames in both directions, and re-handshakes
//! of the initiator. Never knows where its datagrams go.

use std::ops::Range;
use std::time::Duration;

use crate::control::{ControlStream, MAX_MESSAGE, Shared};
use crate::drops::DropReason;
use crate::frame::Report;
use crate::handshake::{Rekey, Responder};
use crate::message::Message;
use crate::random::{Random, array};
use crate::session::Session;
use crate::time::Time;
use crate::wire::{FrameKind, HEADER_LEN, TAG_LEN, padded};

/// Age of keys in use at which the initiator re-handshakes, plus up to [`REKEY_SPREAD`].
const REKEY_AFTER: Duration = Duration::from_secs(120);
/// Random part of that age in microseconds, so that sessions that began together do not re-handshake together.
const REKEY_SPREAD: u64 = 60_000_000;
/// Packets after which keys are replaced early.
const REKEY_PACKETS: u64 = 1 << 30;
/// Control bytes that may wait to be sent. A peer that asks faster than it acknowledges is cut off.
const BACKLOG: usize = 4 * MAX_MESSAGE;

/// A session, its control stream, and its re-handshake in progress.
#[derive(Debug)]
pub(crate) struct Link {
    pub(crate) session: Session,
    control: ControlStream,
    rekey: Option<Box<(Rekey, Time)>>,
    rekey_spread: Duration,
}

impl std::fmt::Debug for Rekey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rekey(…)")
    }
}

impl Link {
    pub(crate) fn new(session: Session, random: &mut dyn Random) -> Self {
        let rekey_spread = Duration::from_micros(u64::from_be_bytes(array(random)) % REKEY_SPREAD);
        Self { session, control: ControlStream::default(), rekey: None, rekey_spread }
    }

    /// Queues a control message.
    pub(crate) fn send(&mut self, message: &Message) {
        let (kind, body) = message.encode();
        self.control.send(kind, &body);
    }

    /// Queues a message of `head` and a part of bytes that many sessions share: they are not copied.
    pub(crate) fn send_shared(&mut self, kind: u16, head: &[u8], bytes: Shared, part: Range<usize>) {
        self.control.send_shared(kind, head, bytes, part);
    }

    /// Handles a control frame, kind byte included. At most `limit` bytes may wait for the rest of a message.
    pub(crate) fn handle_control(&mut self, frame: &[u8], limit: usize, now: Time) -> Result<(), DropReason> {
        let piece = frame.get(1..).ok_or(DropReason::BadFrame)?;
        // The frame's acknowledgement counts before its requests.
        self.control.handle(piece, limit, now).map_err(|_| DropReason::BadFrame)?;
        if self.control.backlog() > BACKLOG { Err(DropReason::BadFrame) } else { Ok(()) }
    }

    /// Returns the number of bytes of control messages that the peer has not acknowledged.
    pub(crate) fn backlog(&self) -> usize {
        self.control.backlog()
    }

    /// Returns how many of these bytes are not shared with other sessions.
    pub(crate) fn own_backlog(&self) -> usize {
        self.control.own_backlog()
    }

    /// Returns how many bytes of memory the control stream holds besides those that sessions share.
    pub(crate) fn control_held(&self) -> usize {
        self.control.held()
    }

    /// Returns whether the control stream has stopped repeating what its peer does not acknowledge.
    pub(crate) fn has_given_up(&self) -> bool {
        self.control.has_given_up()
    }

    /// Returns the peer's next control message.
    pub(crate) fn receive(&mut self) -> Result<Option<Message>, DropReason> {
        match self.control.receive() {
            Ok(Some((kind, body))) => Message::decode(kind, &body).map(Some).map_err(|_| DropReason::BadFrame),
            Ok(None) => Ok(None),
            Err(_) => Err(DropReason::BadFrame),
        }
    }

    /// Returns the report that probes carry: `mtu`, and how much of the peer's control stream has arrived.
    pub(crate) fn report(&mut self, mtu: u16) -> Report {
        Report { mtu, acknowledged: self.control.acknowledgement() }
    }

    /// Handles what the peer's report acknowledges.
    pub(crate) fn handle_report(&mut self, report: Report) {
        self.control.acknowledge(report.acknowledged);
    }

    /// Returns the next control datagram that is due, sealed, with the index not masked yet. Leaves `before` bytes
    /// free at its front and `after` at its end for an outer layer.
    pub(crate) fn poll_control(&mut self, before: usize, after: usize, now: Time) -> Option<Vec<u8>> {
        if !self.session.is_confirmed() || !self.control.wants_to_send(now) {
            return None;
        }
        let mut datagram = vec![0; before + HEADER_LEN];
        if !self.control.poll(&mut datagram, now) {
            return None;
        }
        self.seal_frame(datagram, before, after, now)
    }

    /// Builds a datagram with one frame of `kind` and `body`, sealed, with the index not masked yet.
    pub(crate) fn frame(
        &mut self,
        kind: FrameKind,
        body: &[u8],
        before: usize,
        after: usize,
        now: Time,
    ) -> Option<Vec<u8>> {
        let mut datagram = vec![0; before + HEADER_LEN];
        datagram.push(kind.byte());
        datagram.extend_from_slice(body);
        self.seal_frame(datagram, before, after, now)
    }

    /// Pads and seals the frame that follows the free front and the header of `datagram`.
    fn seal_frame(&mut self, mut datagram: Vec<u8>, before: usize, after: usize, now: Time) -> Option<Vec<u8>> {
        let frame_len = datagram.len() - before - HEADER_LEN;
        let end = before + HEADER_LEN + 1 + padded(frame_len.saturating_sub(1)) + TAG_LEN;
        datagram.resize(end, 0);
        self.session.seal(datagram.get_mut(before..)?, now).ok()?;
        datagram.resize(end + after, 0);
        Some(datagram)
    }

    /// Returns when the control stream needs attention.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.control.deadline()
    }

    /// Starts a re-handshake when this end initiated the session, the keys are old and there was traffic.
    pub(crate) fn rekey_if_due(&mut self, peer: &Responder, now: Time, random: &mut dyn Random) {
        if !self.session.is_initiator() || self.session.has_upcoming() || self.session.sealed_since_generation() == 0 {
            return;
        }
        let age = now.since(self.session.generation_since());
        let old = age >= REKEY_AFTER + self.rekey_spread || self.session.sealed_since_generation() > REKEY_PACKETS;
        // If no answer comes within the control stream's own retransmissions, the peer is gone.
        let waiting = self.rekey.as_ref().is_some_and(|r| now.since(r.1) < REKEY_AFTER);
        if old && !waiting {
            self.start_rekey(peer, now, random);
        }
    }

    pub(crate) fn start_rekey(&mut self, peer: &Responder, now: Time, random: &mut dyn Random) {
        let started = Rekey::start(peer, self.session.hash(), self.session.rekey_secret(), random);
        if let Some((rekey, message)) = started {
            self.send(&Message::Rekey(message));
            self.rekey = Some(Box::new((rekey, now)));
        }
    }

    /// Handles the answer to this end's re-handshake.
    pub(crate) fn finish_rekey(&mut self, answer: &[u8], now: Time) -> Result<(), DropReason> {
        let rekey = self.rekey.as_ref().ok_or(DropReason::HandshakeStray)?;
        let keys = rekey.0.finish(answer).map_err(|_| DropReason::HandshakeInvalid)?;
        self.rekey = None;
        self.session.install(keys, now);
        Ok(())
    }
}
