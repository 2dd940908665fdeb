//! Circuits of an ingress: how a client opens and closes them.
//!
//! Owns the requests that wait for a session with their egress. Never handles a user's packet.

use super::{Entry, EntryId, Kind, Shard};
use crate::drops::DropReason;
use crate::keys::RelayId;
use crate::message::{CircuitRefusal, Message};
use crate::random::Random;
use crate::relay::Request;
use crate::relay::circuits::Circuit;
use crate::time::Time;
use crate::wire::FrameKind;

/// Most circuits of one client session.
const MAX_CLIENT_CIRCUITS: u32 = 8;

impl Shard {
    pub(super) fn open_circuit(
        &mut self,
        client: EntryId,
        request: u32,
        egress: RelayId,
        random: &mut dyn Random,
    ) -> Result<(), DropReason> {
        let entry = self.table.get_mut(client).ok_or(DropReason::UnknownIndex)?;
        let Kind::Client { circuits, .. } = &mut entry.kind else { return Err(DropReason::BadFrame) };
        let refusal = if egress == self.config.own.relay {
            Some(CircuitRefusal::Itself)
        } else if !self.config.peers.contains_key(&egress) {
            Some(CircuitRefusal::UnknownRelay)
        } else if *circuits >= MAX_CLIENT_CIRCUITS {
            Some(CircuitRefusal::Full)
        } else {
            *circuits += 1;
            None
        };
        if let Some(reason) = refusal {
            entry.link.send(&Message::CircuitRefused { request, reason });
        } else if let Some(&hop) = self.hops.get(&egress) {
            self.finish_circuit(client, request, hop, random);
        } else {
            let waiting = self.waiting.entry(egress).or_default();
            if waiting.is_empty() {
                self.requests.push_back(Request::Connect { shard: self.number, egress });
            }
            waiting.push((client, request));
        }
        Ok(())
    }

    pub(super) fn finish_circuit(&mut self, client: EntryId, request: u32, hop: EntryId, random: &mut dyn Random) {
        let tag = self.circuits.open(Circuit { client, hop }, random);
        let Some(Entry { kind: Kind::Client { circuits, .. }, link, .. }) = self.table.get_mut(client) else {
            tag.map(|tag| self.circuits.close(tag));
            return;
        };
        link.send(&match tag {
            Some(tag) => Message::CircuitOpened { request, tag },
            None => {
                *circuits = circuits.saturating_sub(1);
                Message::CircuitRefused { request, reason: CircuitRefusal::Full }
            }
        });
    }

    pub(super) fn close_circuit(&mut self, client: EntryId, tag: u32) {
        if self.circuits.find(tag).is_some_and(|circuit| circuit.client == client) {
            self.circuits.close(tag);
            if let Some(Entry { kind: Kind::Client { circuits, .. }, .. }) = self.table.get_mut(client) {
                *circuits = circuits.saturating_sub(1);
            }
        }
    }

    pub(super) fn refuse(&mut self, client: EntryId, request: u32, now: Time) {
        if let Some(entry) = self.table.get_mut(client) {
            if let Kind::Client { circuits, .. } = &mut entry.kind {
                *circuits = circuits.saturating_sub(1);
            }
            entry.link.send(&Message::CircuitRefused { request, reason: CircuitRefusal::Unreachable });
            self.pump(client, now);
        }
    }

    /// Handles a new session with an egress: opens the circuits that waited for it. A frame confirms the session to
    /// the egress at once.
    pub(super) fn hop_is_up(&mut self, egress: RelayId, hop: EntryId, now: Time, random: &mut dyn Random) {
        if let Some(old) = self.hops.insert(egress, hop) {
            self.end(old, now);
        }
        self.transmit_frame(hop, FrameKind::Padding, &[], now);
        for (client, request) in self.waiting.remove(&egress).unwrap_or_default() {
            self.finish_circuit(client, request, hop, random);
            self.pump(client, now);
        }
    }
}
