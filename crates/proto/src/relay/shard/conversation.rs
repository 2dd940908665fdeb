//! Control messages: what a peer says inside its session, and the answers.
//!
//! Owns the states in which each message is allowed. `admission`, `circuits` and `paths` do what the messages ask for.
//! Never handles a user's packet.

use super::paths::take_report;
use super::{EntryId, Fate, Kind, Shard};
use crate::control::TO_RELAY;
use crate::drops::DropReason;
use crate::frame::{Probe, ProbeAck, Report};
use crate::message::{EVIDENCE, MAX_STAPLE, Message};
use crate::mirror::MIRROR_PIECE;
use crate::random::Random;
use crate::relay::{Request, Route};
use crate::session::frame;
use crate::time::Time;
use crate::wire::FrameKind;

/// Bytes of answers that a peer may leave unacknowledged, without those that sessions share. An answer to a
/// re-handshake has 1,158, and those to eight requests for circuits have 112.
const OWN_BACKLOG: usize = 4_096;

/// Re-handshakes a minute of one session that are answered while cookies are required. One is due every two minutes.
const REKEYS_UNDER_LOAD: u32 = 2;

impl Shard {
    /// Handles a frame that is neither a packet nor a forwarded one.
    pub(super) fn handle_other_frame(
        &mut self,
        id: EntryId,
        route: Route,
        kind: FrameKind,
        datagram: &[u8],
        now: Time,
        random: &mut dyn Random,
    ) -> Result<Fate, DropReason> {
        let entry = self.table.get_mut(id).ok_or(DropReason::UnknownIndex)?;
        match kind {
            FrameKind::Control => {
                if let Err(reason) = entry.link.handle_control(frame(datagram), TO_RELAY, now) {
                    self.end(id, now);
                    return Err(reason);
                }
                self.converse(id, now, random)?;
                self.pump(id, now);
            }
            FrameKind::Padding | FrameKind::ProbeAck | FrameKind::PathChallenge => {}
            FrameKind::PathMtu => take_report(entry, Report::parse(frame(datagram)))?,
            FrameKind::Probe => {
                take_report(entry, Probe::parse(frame(datagram)).map(|probe| probe.report))?;
                let answer = ProbeAck::answer(frame(datagram)).ok_or(DropReason::BadFrame)?;
                self.transmit_frame(id, FrameKind::ProbeAck, &answer, now);
            }
            FrameKind::PathResponse => self.path_response(id, route, datagram, now)?,
            FrameKind::Packet { .. } | FrameKind::Forward => return Err(DropReason::BadFrame),
        }
        self.counts.control += 1;
        Ok(Fate::Consumed)
    }

    /// Handles the control messages that have arrived completely.
    pub(super) fn converse(&mut self, id: EntryId, now: Time, random: &mut dyn Random) -> Result<(), DropReason> {
        loop {
            let entry = self.table.get_mut(id).ok_or(DropReason::UnknownIndex)?;
            let message = match entry.link.receive() {
                Ok(Some(message)) => message,
                Ok(None) => return Ok(()),
                Err(reason) => {
                    self.end(id, now);
                    return Err(reason);
                }
            };
            if let Err(reason) = self.answer(id, message, now, random) {
                self.end(id, now);
                return Err(reason);
            }
        }
    }

    /// Handles one control message. An error ends the session.
    pub(super) fn answer(
        &mut self,
        id: EntryId,
        message: Message,
        now: Time,
        random: &mut dyn Random,
    ) -> Result<(), DropReason> {
        let entry = self.table.get_mut(id).ok_or(DropReason::UnknownIndex)?;
        let responder = !entry.link.session.is_initiator();
        // A peer that keeps asking without acknowledging the answers is cut off.
        if entry.link.own_backlog() > OWN_BACKLOG {
            return Err(DropReason::BadFrame);
        }
        match message {
            Message::EvidenceRequest if responder && entry.link.backlog() < MAX_STAPLE => {
                let length = self.evidence.len();
                entry.link.send_shared(EVIDENCE, &[], self.evidence.clone(), 0..length);
            }
            Message::CollateralRequest if responder => entry.link.send(&Message::Collateral),
            Message::Token(token) if responder => self.admit(id, token, now)?,
            Message::Preimage if entry.admitted => {}
            Message::CircuitOpen { request, egress } if entry.admitted => {
                self.open_circuit(id, request, egress, random)?;
            }
            Message::CircuitClose { tag } if entry.admitted => self.close_circuit(id, tag),
            Message::Rekey(message) if responder && entry.admitted => self.answer_rekey(id, message, now)?,
            Message::Rekeyed(answer) if !responder => entry.link.finish_rekey(&answer, now)?,
            Message::Close => self.end(id, now),
            Message::MirrorRequest { file, offset }
                if responder && entry.admitted && entry.link.backlog() < MIRROR_PIECE =>
            {
                self.config.mirror.send_piece(file, offset, &mut entry.link);
            }
            Message::EvidenceRequest
            | Message::Evidence(_)
            | Message::CollateralRequest
            | Message::Collateral
            | Message::Token(_)
            | Message::Admitted(_)
            | Message::Preimage
            | Message::PaymentNeeded
            | Message::CircuitOpen { .. }
            | Message::CircuitOpened { .. }
            | Message::CircuitRefused { .. }
            | Message::CircuitClose { .. }
            | Message::Rekey(_)
            | Message::Rekeyed(_)
            | Message::Full { .. }
            | Message::MirrorRequest { .. }
            | Message::MirrorPiece(_) => {
                return Err(DropReason::BadFrame);
            }
        }
        Ok(())
    }

    /// Passes a request for fresh keys to the handshaker.
    fn answer_rekey(&mut self, id: EntryId, message: Vec<u8>, now: Time) -> Result<(), DropReason> {
        let entry = self.table.get_mut(id).ok_or(DropReason::UnknownIndex)?;
        // A relay that the directory does not list any more keeps its keys until its session ends.
        if let Kind::Hop { relay, key, .. } = &entry.kind
            && !self.config.peers.keeps(*relay, key)
        {
            return Ok(());
        }
        entry.allow_rekey(now)?;
        // It keeps the keys that it has, whose epochs go on.
        if self.gate.load().is_high(now) && entry.rekeys.0 > REKEYS_UNDER_LOAD {
            return Ok(());
        }
        let request = entry.link.session.rekey_request(message);
        self.requests.push_back(Request::Rekey { shard: self.number, entry: id, request });
        Ok(())
    }
}
