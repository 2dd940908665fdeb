//! The control stream: few and small messages, ordered and acknowledged, inside a session.
//!
//! Owns the byte stream in both directions, with one timer for retransmission and one for acknowledgements. Every
//! buffer is bounded, and a frame that exceeds a bound is refused. Never knows the messages: `message` does.
//!
//! ```text
//! frame:    kind 1 | offset 4 | acknowledged 4 | length 2 | bytes …        offsets count from the session's start
//! message:  type 2 | length 4 | body                                       one after the other in the stream
//! ```

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::time::Time;
use crate::wire::{FrameKind, take};

/// Bytes of a control frame's head.
pub(crate) const CONTROL_HEAD: usize = 11;
/// Most stream bytes in one frame: with two layers of headers they fit a path of 1280 bytes.
const PIECE: usize = 1024;
/// Largest message: 64 KiB with its head.
pub(crate) const MAX_MESSAGE: usize = 65_536;
/// Bytes of unfinished messages that a relay holds for a session. Its peer's largest message is a re-handshake of 1,238
/// bytes.
pub(crate) const TO_RELAY: usize = 4_096;
/// Most stream bytes in flight without an acknowledgement.
const IN_FLIGHT: usize = 16_384;
/// First wait for an acknowledgement; doubles up to [`LONGEST_WAIT`].
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// Retransmissions without an acknowledgement, over half a minute, after which the stream stops: the peer is gone.
const REPETITIONS: u32 = 10;
/// How long an acknowledgement waits for a message that it can travel with: well below [`FIRST_WAIT`].
const ACK_DELAY: Duration = Duration::from_millis(50);
/// Received bytes that are acknowledged at once, so that a long message does not wait.
const ACK_BYTES: usize = IN_FLIGHT / 2;
const LONGEST_WAIT: Duration = Duration::from_secs(4);
const MESSAGE_HEAD: usize = 6;

/// The peer exceeded a bound of the control stream; the session cannot continue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Overrun;

/// Bytes that many sessions send: evidence, mirrored files.
pub(crate) type Shared = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A run of bytes to be sent.
enum Chunk {
    Own(Vec<u8>),
    Shared { bytes: Shared, part: Range<usize> },
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Own(bytes) => bytes,
            Self::Shared { bytes, part } => (**bytes).as_ref().get(part.clone()).unwrap_or(&[]),
        }
    }

    /// Removes the first `length` bytes.
    fn advance(&mut self, length: usize) {
        match self {
            Self::Own(bytes) => drop(bytes.drain(..length)),
            Self::Shared { part, .. } => part.start += length,
        }
    }
}

impl std::fmt::Debug for Chunk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Chunk({} bytes)", self.bytes().len())
    }
}

/// Bytes sent and not acknowledged, followed by bytes not sent yet.
#[derive(Debug, Default)]
struct Outgoing {
    chunks: VecDeque<Chunk>,
    len: usize,
}

impl Outgoing {
    fn push(&mut self, bytes: &[u8]) {
        self.len += bytes.len();
        if let Some(Chunk::Own(last)) = self.chunks.back_mut() {
            last.reserve_exact(bytes.len());
            last.extend_from_slice(bytes);
        } else {
            self.chunks.push_back(Chunk::Own(bytes.to_vec()));
        }
    }

    fn push_shared(&mut self, bytes: Shared, part: Range<usize>) {
        let chunk = Chunk::Shared { bytes, part };
        let length = chunk.bytes().len();
        if length > 0 {
            self.len += length;
            self.chunks.push_back(chunk);
        }
    }

    /// Removes the first `length` bytes.
    fn advance(&mut self, mut length: usize) {
        self.len = self.len.saturating_sub(length);
        while length > 0
            && let Some(first) = self.chunks.front_mut()
        {
            let whole = first.bytes().len();
            if length < whole {
                return first.advance(length);
            }
            length -= whole;
            self.chunks.pop_front();
        }
        if self.chunks.is_empty() {
            self.chunks = VecDeque::new();
        }
    }

    /// Appends the bytes from `start` to `end` to `out`.
    fn copy(&self, start: usize, end: usize, out: &mut Vec<u8>) {
        let mut at = 0;
        for chunk in &self.chunks {
            let bytes = chunk.bytes();
            let (from, to) = (start.max(at) - at, end.min(at + bytes.len()).saturating_sub(at));
            out.extend_from_slice(bytes.get(from..to).unwrap_or(&[]));
            at += bytes.len();
            if at >= end {
                return;
            }
        }
    }

    /// Returns the number of bytes that are not shared.
    fn own(&self) -> usize {
        let own = self.chunks.iter().map(|chunk| match chunk {
            Chunk::Own(bytes) => bytes.len(),
            Chunk::Shared { .. } => 0,
        });
        own.sum()
    }
}

/// One end of the stream.
#[derive(Debug, Default)]
pub(crate) struct ControlStream {
    outgoing: Outgoing,
    /// Offset of the first byte of `outgoing`.
    acknowledged: u32,
    /// Bytes of `outgoing` that were sent since the last timeout.
    sent: usize,
    /// Bytes of `outgoing` that were ever sent; a valid acknowledgement covers at most these.
    reached: usize,
    retransmit_at: Option<Time>,
    wait: Duration,
    /// Retransmissions since the last acknowledgement.
    repeated: u32,
    incoming: Vec<u8>,
    /// Offset after the last byte received in order.
    received: u32,
    /// When received bytes must be acknowledged if no other frame goes out first.
    ack_at: Option<Time>,
    /// Bytes received since the last acknowledgement.
    unacknowledged: usize,
}

impl ControlStream {
    /// Queues a message.
    pub(crate) fn send(&mut self, kind: u16, body: &[u8]) {
        self.resume();
        self.push_head(kind, body.len());
        self.outgoing.push(body);
    }

    /// Queues a message of `head` and a part of shared bytes.
    pub(crate) fn send_shared(&mut self, kind: u16, head: &[u8], bytes: Shared, part: Range<usize>) {
        self.resume();
        self.push_head(kind, head.len() + part.len());
        self.outgoing.push(head);
        self.outgoing.push_shared(bytes, part);
    }

    fn push_head(&mut self, kind: u16, length: usize) {
        let length = u32::try_from(length).unwrap_or(u32::MAX);
        let mut head = [0; MESSAGE_HEAD];
        head[..2].copy_from_slice(&kind.to_be_bytes());
        head[2..].copy_from_slice(&length.to_be_bytes());
        self.outgoing.push(&head);
    }

    /// Returns the number of bytes queued and not acknowledged.
    pub(crate) fn backlog(&self) -> usize {
        self.outgoing.len
    }

    /// Returns how many of these bytes are not shared with other sessions.
    pub(crate) fn own_backlog(&self) -> usize {
        self.outgoing.own()
    }

    /// Returns how many bytes of memory the stream holds besides those that sessions share.
    pub(crate) fn held(&self) -> usize {
        self.outgoing.own() + self.outgoing.chunks.len() * size_of::<Chunk>() + self.incoming.capacity()
    }

    /// Returns whether the stream has stopped repeating what its peer does not acknowledge.
    pub(crate) fn has_given_up(&self) -> bool {
        self.repeated >= REPETITIONS && self.retransmit_at.is_none()
    }

    /// Handles a frame without its kind byte.
    ///
    /// # Errors
    /// [`Overrun`] when more than `limit` bytes would wait for the rest of a message.
    pub(crate) fn handle(&mut self, frame: &[u8], limit: usize, now: Time) -> Result<(), Overrun> {
        let (Some(offset), Some(ack), Some(length)) = (take(frame, 0), take(frame, 4), take(frame, 8)) else {
            return Ok(());
        };
        self.acknowledge(u32::from_be_bytes(ack));
        let length = usize::from(u16::from_be_bytes(length));
        let Some(bytes) = frame.get(CONTROL_HEAD - 1..).and_then(|rest| rest.get(..length)) else { return Ok(()) };
        if bytes.is_empty() {
            return Ok(());
        }
        let already = self.received.wrapping_sub(u32::from_be_bytes(offset)) as usize;
        // A gap or garbage shows as an enormous overlap. The acknowledgement tells the peer at once where to
        // continue, as it does when a peer repeats itself.
        let Some(fresh) = bytes.get(already..).filter(|fresh| !fresh.is_empty()) else {
            self.ack_at = Some(now);
            return Ok(());
        };
        self.unacknowledged += fresh.len();
        let soon = if self.unacknowledged >= ACK_BYTES { now } else { now.after(ACK_DELAY) };
        self.ack_at = Some(self.ack_at.map_or(soon, |at| at.min(soon)));
        if self.incoming.len() + fresh.len() > limit {
            return Err(Overrun);
        }
        self.incoming.reserve_exact(fresh.len());
        self.incoming.extend_from_slice(fresh);
        self.received = self.received.wrapping_add(u32::try_from(fresh.len()).unwrap_or(0));
        Ok(())
    }

    /// Restarts retransmission if the stream had given up on its peer.
    fn resume(&mut self) {
        if self.repeated >= REPETITIONS {
            (self.repeated, self.sent, self.wait, self.retransmit_at) = (0, 0, FIRST_WAIT, None);
        }
    }

    /// Returns the offset after the last byte received, to be sent with another frame: no frame of its own is needed.
    pub(crate) fn acknowledgement(&mut self) -> u32 {
        self.ack_at = None;
        self.unacknowledged = 0;
        self.received
    }

    /// Handles the peer's acknowledgement.
    pub(crate) fn acknowledge(&mut self, ack: u32) {
        self.resume();
        let newly = ack.wrapping_sub(self.acknowledged) as usize;
        if newly == 0 || newly > self.reached {
            return;
        }
        self.outgoing.advance(newly);
        self.acknowledged = ack;
        self.sent = self.sent.saturating_sub(newly);
        self.reached -= newly;
        self.wait = FIRST_WAIT;
        self.repeated = 0;
        // Bytes that are still in flight keep their deadline.
        if self.sent == 0 {
            self.retransmit_at = None;
        }
    }

    /// Returns the next complete message, if one has arrived.
    ///
    /// # Errors
    /// [`Overrun`] when the message states a length above [`MAX_MESSAGE`].
    pub(crate) fn receive(&mut self) -> Result<Option<(u16, Vec<u8>)>, Overrun> {
        let (Some(kind), Some(length)) = (take(&self.incoming, 0), take(&self.incoming, 2)) else { return Ok(None) };
        let length = u32::from_be_bytes(length) as usize;
        if length > MAX_MESSAGE - MESSAGE_HEAD {
            return Err(Overrun);
        }
        let Some(body) = self.incoming.get(MESSAGE_HEAD..MESSAGE_HEAD + length) else { return Ok(None) };
        let body = body.to_vec();
        self.incoming.drain(..MESSAGE_HEAD + length);
        if self.incoming.is_empty() {
            self.incoming = Vec::new();
        }
        Ok(Some((u16::from_be_bytes(kind), body)))
    }

    /// Returns whether [`ControlStream::poll`] has a frame to send.
    pub(crate) fn wants_to_send(&self, now: Time) -> bool {
        self.is_ack_due(now) || self.has_unsent() || self.retransmit_at.is_some_and(|at| at <= now)
    }

    fn is_ack_due(&self, now: Time) -> bool {
        self.ack_at.is_some_and(|at| at <= now)
    }

    fn has_unsent(&self) -> bool {
        self.sent < self.outgoing.len && self.sent < IN_FLIGHT
    }

    /// Appends the next frame, with its kind byte, to `out`. Returns whether there was one.
    pub(crate) fn poll(&mut self, out: &mut Vec<u8>, now: Time) -> bool {
        if self.retransmit_at.is_some_and(|at| at <= now) {
            self.retransmit_at = None;
            if self.repeated < REPETITIONS {
                self.repeated += 1;
                self.sent = 0;
                self.wait = (self.wait * 2).min(LONGEST_WAIT);
            }
        }
        if !self.is_ack_due(now) && !self.has_unsent() {
            return false;
        }
        let received = self.acknowledgement();
        let end = self.outgoing.len.min(self.sent + PIECE).min(IN_FLIGHT);
        let length = end.saturating_sub(self.sent);
        let offset = self.acknowledged.wrapping_add(u32::try_from(self.sent).unwrap_or(0));
        out.push(FrameKind::Control.byte());
        out.extend_from_slice(&offset.to_be_bytes());
        out.extend_from_slice(&received.to_be_bytes());
        out.extend_from_slice(&u16::try_from(length).unwrap_or(0).to_be_bytes());
        self.outgoing.copy(self.sent, end, out);
        self.sent += length;
        self.reached = self.reached.max(self.sent);
        if self.sent > 0 && self.retransmit_at.is_none() {
            self.wait = self.wait.max(FIRST_WAIT);
            self.retransmit_at = Some(now.after(self.wait));
        }
        true
    }

    /// Returns when to call [`ControlStream::poll`] again if nothing arrives.
    pub(crate) fn deadline(&self) -> Option<Time> {
        self.retransmit_at.into_iter().chain(self.ack_at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Every message arrives once and in order, whatever is lost, repeated or reordered on the path.
        #[test]
        fn messages_arrive_once_and_in_order_over_a_bad_network(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..3000), 1..8),
            fate in prop::collection::vec(0u8..8, 64),
        ) {
            let (mut a, mut b) = (ControlStream::default(), ControlStream::default());
            for (i, body) in messages.iter().enumerate() {
                a.send(u16::try_from(i).unwrap(), body);
            }
            let mut now = Time::default();
            let mut fate = fate.into_iter();
            let mut got = Vec::new();
            for _ in 0..2_000 {
                let mut wire = Vec::new();
                let mut frame = Vec::new();
                while a.poll(&mut frame, now) {
                    wire.push(std::mem::take(&mut frame));
                }
                match fate.next().unwrap_or(7) {
                    0 => wire.clear(),
                    1 => wire.reverse(),
                    2 => { wire.extend(wire.clone()); }
                    3 => { wire.pop(); }
                    _ => {}
                }
                for frame in wire {
                    b.handle(&frame[1..], MAX_MESSAGE, now).unwrap();
                }
                while let Some((kind, body)) = b.receive().unwrap() {
                    got.push((kind, body));
                }
                let mut back = Vec::new();
                if b.poll(&mut back, now) && fate.next().unwrap_or(7) != 0 {
                    a.handle(&back[1..], MAX_MESSAGE, now).unwrap();
                }
                now = now.after(Duration::from_millis(100));
                if a.backlog() == 0 {
                    break;
                }
            }
            prop_assert_eq!(a.backlog(), 0);
            prop_assert_eq!(a.deadline(), None);
            prop_assert_eq!(got.len(), messages.len());
            for (i, (kind, body)) in got.iter().enumerate() {
                prop_assert_eq!(usize::from(*kind), i);
                prop_assert_eq!(body, &messages[i]);
            }
        }
    }

    #[test]
    fn acknowledgement_travels_with_an_answer_or_alone_after_a_delay() {
        let (mut a, mut b) = (ControlStream::default(), ControlStream::default());
        let start = Time::default();
        let exchange = |from: &mut ControlStream, to: &mut ControlStream, now| {
            let mut frame = Vec::new();
            let sent = from.poll(&mut frame, now);
            if sent {
                to.handle(&frame[1..], MAX_MESSAGE, now).unwrap();
            }
            sent
        };
        a.send(1, b"question");
        assert!(exchange(&mut a, &mut b, start));
        assert!(!exchange(&mut b, &mut a, start), "an acknowledgement does not go out alone at once");
        b.send(2, b"answer");
        assert!(exchange(&mut b, &mut a, start));
        assert_eq!(a.backlog(), 0, "the answer acknowledges the question");
        assert!(!exchange(&mut a, &mut b, start));
        assert_eq!(a.deadline(), Some(start.after(ACK_DELAY)));
        assert!(exchange(&mut a, &mut b, start.after(ACK_DELAY)));
        assert_eq!((b.backlog(), a.deadline(), b.deadline()), (0, None, None));
        a.send(3, &[0; ACK_BYTES]);
        while exchange(&mut a, &mut b, start) {}
        assert!(exchange(&mut b, &mut a, start), "a long message is acknowledged at once");
    }

    #[test]
    fn retransmission_to_a_silent_peer_ends() {
        let (mut stream, mut now, mut frames) = (ControlStream::default(), Time::default(), 0);
        stream.send(1, b"is anybody there");
        while stream.poll(&mut Vec::new(), now) {
            frames += 1;
            now = stream.deadline().unwrap();
        }
        assert_eq!((frames, stream.deadline()), (1 + REPETITIONS, None));
        assert!(now.since(Time::default()) < Duration::from_secs(60));
    }

    /// A stream that gave up must later send the abandoned bytes and everything queued after them.
    #[test]
    fn abandoned_stream_continues_when_its_peer_returns() {
        for (asks, reports) in [(true, false), (false, false), (false, true)] {
            let (mut relay, mut client, mut now) =
                (ControlStream::default(), ControlStream::default(), Time::default());
            relay.send(1, b"lost");
            while relay.poll(&mut Vec::new(), now) {
                now = relay.deadline().unwrap();
            }
            now = now.after(Duration::from_secs(120));
            if asks {
                client.send(2, b"back");
            } else if reports {
                // The report lacks the lost bytes, but it shows that the peer is alive.
                relay.acknowledge(client.acknowledgement());
            } else {
                relay.send(3, b"news");
            }
            let mut got = Vec::new();
            for _ in 0..20 {
                let (mut up, mut down) = (Vec::new(), Vec::new());
                if client.poll(&mut up, now) {
                    relay.handle(&up[1..], MAX_MESSAGE, now).unwrap();
                }
                if relay.poll(&mut down, now) {
                    client.handle(&down[1..], MAX_MESSAGE, now).unwrap();
                }
                while let Some((kind, _)) = client.receive().unwrap() {
                    got.push(kind);
                }
                now = now.after(FIRST_WAIT);
            }
            assert_eq!(got.first(), Some(&1), "{asks} {reports}");
            assert_eq!((relay.backlog(), got.len()), (0, if asks || reports { 1 } else { 2 }));
        }
    }

    #[test]
    fn oversized_message_and_overfull_buffer_are_refused() {
        let mut stream = ControlStream::default();
        let mut frame = vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 6, 0, 1];
        frame.extend_from_slice(&u32::MAX.to_be_bytes());
        stream.handle(&frame, TO_RELAY, Time::default()).unwrap();
        assert_eq!(stream.receive(), Err(Overrun));

        let mut stream = ControlStream::default();
        let mut results = Vec::new();
        for piece in 0u32..20 {
            let mut frame = Vec::new();
            frame.extend_from_slice(&(piece * 1000).to_be_bytes());
            frame.extend_from_slice(&[0; 4]);
            frame.extend_from_slice(&1000u16.to_be_bytes());
            frame.extend_from_slice(&[0; 1000]);
            results.push(stream.handle(&frame, TO_RELAY, Time::default()));
        }
        assert!(results.iter().take(4).all(Result::is_ok));
        assert_eq!(results.get(4), Some(&Err(Overrun)));
    }
}
