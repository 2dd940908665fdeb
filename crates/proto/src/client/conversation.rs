//! Control messages at the client: what it asks of its relays, and what it makes of their answers.
//!
//! Owns the order in which a circuit comes up after the handshakes. Never judges evidence: it hands out what was shown.

use super::leg::Stage;
use super::{Client, Event, Failure, Fetched};
use crate::handshake::Role;
use crate::message::{Evidence, Message, Token};
use crate::random::{Random, array};
use crate::time::Time;

impl Client {
    /// Sends a token and requests the circuit, because the ingress' evidence is accepted.
    pub(super) fn ask_for_circuit(&mut self) {
        let Some(outer) = &mut self.outer else { return };
        outer.stage = Stage::Token;
        outer.send(&Message::Token(Token::Open));
        outer.send(&Message::CircuitOpen { request: 1, egress: self.config.egress.relay });
    }

    /// Sends a token, because the egress' evidence is accepted.
    pub(super) fn ask_for_admission(&mut self) {
        self.inner.stage = Stage::Token;
        self.inner.send(&Message::Token(Token::Open));
    }

    /// Handles the control messages that the ingress has sent.
    #[expect(clippy::wildcard_enum_match_arm, reason = "any other message violates the protocol at this point")]
    pub(super) fn converse_outer(&mut self, now: Time, minutes: u32, random: &mut dyn Random) {
        loop {
            let Some(outer) = &mut self.outer else { return };
            let message = match outer.receive() {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(_) => return self.fail(Failure::Protocol),
            };
            match message {
                Message::Evidence(evidence) if outer.stage == Stage::Evidence => {
                    return self.refuse(Role::Ingress, evidence);
                }
                Message::Admitted(_) if outer.stage == Stage::Token => outer.stage = Stage::Admitted,
                Message::CircuitOpened { request: 1, tag } if outer.stage == Stage::Admitted && self.tag.is_none() => {
                    self.tag = Some(tag);
                    if self.inner.begin(now, minutes, random).is_none() {
                        return self.fail(Failure::Protocol);
                    }
                }
                Message::CircuitRefused { request: 1, reason } => return self.fail(Failure::Refused(reason)),
                Message::Rekeyed(answer) => {
                    let _ = outer.finish_rekey(&answer, now);
                }
                Message::MirrorPiece(piece) => match outer.take_piece(piece) {
                    Ok(found) => {
                        self.fetched.extend(found.map(|(file, bytes)| Fetched { from: Role::Ingress, file, bytes }))
                    }
                    Err(()) => return self.fail(Failure::Protocol),
                },
                Message::Full { retry } => return self.fail(Failure::Full { role: Role::Ingress, retry }),
                Message::CircuitClose { .. } | Message::Close => return self.lose(),
                _ => return self.fail(Failure::Protocol),
            }
        }
    }

    /// Handles the control messages that the egress has sent.
    #[expect(clippy::wildcard_enum_match_arm, reason = "any other message violates the protocol at this point")]
    pub(super) fn converse_inner(&mut self, now: Time, random: &mut dyn Random) {
        loop {
            let message = match self.inner.receive() {
                Ok(Some(message)) => message,
                Ok(None) => return,
                Err(_) => return self.fail(Failure::Protocol),
            };
            match message {
                Message::Evidence(evidence) if self.inner.stage == Stage::Evidence => {
                    return self.refuse(Role::Egress, evidence);
                }
                Message::Admitted(_) if self.inner.stage == Stage::Token => {
                    self.inner.stage = Stage::Admitted;
                    self.connected = true;
                    self.pmtu.search(now, array(random));
                    self.events.push_back(Event::Connected);
                }
                Message::Rekeyed(answer) => {
                    let _ = self.inner.finish_rekey(&answer, now);
                }
                Message::MirrorPiece(piece) => match self.inner.take_piece(piece) {
                    Ok(found) => {
                        self.fetched.extend(found.map(|(file, bytes)| Fetched { from: Role::Egress, file, bytes }))
                    }
                    Err(()) => return self.fail(Failure::Protocol),
                },
                Message::Full { retry } => return self.fail(Failure::Full { role: Role::Egress, retry }),
                Message::Close => return self.lose(),
                _ => return self.fail(Failure::Protocol),
            }
        }
    }

    pub(super) fn refuse(&mut self, from: Role, evidence: Evidence) {
        self.shown = Some(evidence);
        self.fail(Failure::OtherEvidence(from));
    }
}
