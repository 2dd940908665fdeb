//! Handshake packets at a shard: which of them reach the handshaker, and what the others get.
//!
//! Owns the order of checks before anything costs a key agreement. Nothing here depends on how many sessions or relays
//! there are. Never handles a user's packet.

use super::Shard;
use crate::drops::DropReason;
use crate::random::Random;
use crate::relay::gate::Entrance;
use crate::relay::{Output, Request, Route};
use crate::time::Time;
use crate::wire::{PacketType, take};

impl Shard {
    /// Passes a handshake packet to the handshaker, or asks its sender for a cookie.
    pub(super) fn handle_handshake(
        &mut self,
        route: Route,
        kind: PacketType,
        packet: &[u8],
        now: Time,
        random: &mut dyn Random,
    ) -> Result<(), DropReason> {
        let proven = if matches!(kind, PacketType::FirstNk(_) | PacketType::FirstIk(_)) {
            match self.gate.check(route, packet, now) {
                Entrance::Refuse => return Err(DropReason::HandshakeInvalid),
                Entrance::Later => {
                    self.say_full(route, packet, now, random);
                    return Err(DropReason::HandshakeLoad);
                }
                Entrance::Ask => {
                    self.ask_for_cookie(route, packet, now, random);
                    self.counts.handshakes += 1;
                    return Ok(());
                }
                Entrance::Pass { proven } => proven,
            }
        } else {
            self.check_answer(kind, packet)?;
            if !self.gate.passes_answer(route, now) {
                return Err(DropReason::HandshakeLoad);
            }
            false
        };
        let packet = packet.to_vec();
        self.requests.push_back(Request::Arrival { shard: self.number, route, packet, proven });
        self.counts.handshakes += 1;
        Ok(())
    }

    /// Checks that a handshake packet other than a first one belongs to a handshake in progress. A stranger would have
    /// to guess an index, so its packets cost the handshaker nothing.
    pub(super) fn check_answer(&self, kind: PacketType, packet: &[u8]) -> Result<(), DropReason> {
        // The handshaker takes only packets of full length.
        if Some(packet.len()) != crate::handshake::answer_len(kind) {
            return Err(DropReason::BadLength);
        }
        let index = take(packet, 1).map(u32::from_be_bytes).ok_or(DropReason::BadLength)?;
        let place = self.index_key.place(index);
        if place.shard == self.number && self.in_progress.contains(place.slot) {
            Ok(())
        } else {
            Err(DropReason::HandshakeStray)
        }
    }

    pub(super) fn ask_for_cookie(&mut self, route: Route, packet: &[u8], now: Time, random: &mut dyn Random) {
        let mut answer = self.gate.challenge(route, packet, now, random);
        // The sender is not known yet, so even a relay gets the answer under this relay's mask for clients.
        self.client_mask.apply(&mut answer);
        self.transmit(route, answer, now);
    }

    /// Tells a sender that has proven its address to try again later.
    pub(super) fn say_full(&mut self, route: Route, packet: &[u8], now: Time, random: &mut dyn Random) {
        let mut answer = self.gate.refusal(packet, random);
        self.client_mask.apply(&mut answer);
        self.transmit(route, answer, now);
    }

    /// Takes back a request for which the handshaker's queue had no room. Senders repeat their packets and
    /// re-handshakes; circuits that wait for a session with their egress are refused.
    pub fn request_refused(&mut self, request: Request, now: Time, random: &mut dyn Random) {
        match request {
            Request::Arrival { route, packet, proven, .. } => {
                self.counts.handshakes -= 1;
                self.counts.drops.count(DropReason::HandshakeLoad);
                if proven {
                    self.say_full(route, &packet, now, random);
                }
            }
            Request::Connect { egress, .. } => self.apply(Output::ConnectFailed { egress }, now, random),
            Request::Rekey { .. } => {}
        }
    }
}
