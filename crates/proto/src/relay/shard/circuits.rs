//! Circuits of an ingress: how a client opens and closes them.
//!
//! Owns the requests that wait for a session with their egress. Never handles a user's packet.

use std::collections::VecDeque;

use super::{Entry, EntryId, Kind, Shard};
use crate::drops::DropReason;
use crate::keys::RelayId;
use crate::message::{CircuitRefusal, Message};
use crate::random::Random;
use crate::relay::Request;
use crate::relay::circuits::{Circuit, MAX_CLIENT_CIRCUITS};
use crate::time::Time;
use crate::wire::FrameKind;

/// Requests for circuits that are answered in one call when a session with their egress has begun or failed.
const ANSWERS: usize = 256;

/// Requests for circuits through one egress whose answer is known.
pub(super) struct Answers {
    /// The session with the egress; `None` when it did not answer.
    hop: Option<EntryId>,
    requests: VecDeque<(EntryId, u32)>,
}

impl Shard {
    pub(super) fn open_circuit(
        &mut self,
        client: EntryId,
        request: u32,
        egress: RelayId,
        random: &mut dyn Random,
    ) -> Result<(), DropReason> {
        let hop = self.hop_to(egress);
        let entry = self.table.get_mut(client).ok_or(DropReason::UnknownIndex)?;
        let Kind::Client { circuits, .. } = &mut entry.kind else { return Err(DropReason::BadFrame) };
        let refusal = if egress == self.config.own.relay {
            Some(CircuitRefusal::Itself)
        } else if !self.config.peers.contains(&egress) {
            Some(CircuitRefusal::UnknownRelay)
        } else if circuits.len() >= MAX_CLIENT_CIRCUITS {
            Some(CircuitRefusal::Full)
        } else {
            circuits.waiting += 1;
            None
        };
        if let Some(reason) = refusal {
            entry.link.send(&Message::CircuitRefused { request, reason });
        } else if let Some(hop) = hop {
            self.finish_circuit(client, request, Some(hop), random);
        } else {
            let waiting = self.waiting.entry(egress).or_default();
            if waiting.is_empty() {
                self.requests.push_back(Request::Connect { shard: self.number, egress });
            }
            waiting.push_back((client, request));
        }
        Ok(())
    }

    /// Returns the session with this egress, unless the directory lists it under another key meanwhile.
    fn hop_to(&self, egress: RelayId) -> Option<EntryId> {
        let hop = *self.hops.get(&egress)?;
        match &self.table.get(hop)?.kind {
            Kind::Hop { key, .. } if self.config.peers.has(egress, key) => Some(hop),
            Kind::Hop { .. } | Kind::Client { .. } | Kind::Inner { .. } => None,
        }
    }

    /// Answers a client that waits for a circuit: it is open, or its egress does not answer.
    fn finish_circuit(&mut self, client: EntryId, request: u32, hop: Option<EntryId>, random: &mut dyn Random) {
        let Some(Entry { kind: Kind::Client { circuits, .. }, .. }) = self.table.get_mut(client) else { return };
        circuits.waiting = circuits.waiting.saturating_sub(1);
        let up = hop.filter(|hop| self.table.get(*hop).is_some());
        let tag = up.map(|hop| (hop, self.circuits.open(Circuit { client, hop }, random)));
        if let Some((hop, Some(_))) = tag
            && let Some(Entry { kind: Kind::Hop { circuits, .. }, .. }) = self.table.get_mut(hop)
        {
            *circuits += 1;
        }
        let Some(Entry { kind: Kind::Client { circuits, .. }, link, .. }) = self.table.get_mut(client) else { return };
        link.send(&match tag {
            Some((_, Some(tag))) => {
                circuits.tags.push(tag);
                Message::CircuitOpened { request, tag }
            }
            Some((_, None)) => Message::CircuitRefused { request, reason: CircuitRefusal::Full },
            None => Message::CircuitRefused { request, reason: CircuitRefusal::Unreachable },
        });
    }

    /// Closes a circuit for its client.
    pub(super) fn close_circuit(&mut self, client: EntryId, tag: u32) {
        let Some(Entry { kind: Kind::Client { circuits, .. }, .. }) = self.table.get_mut(client) else { return };
        if let Some(at) = circuits.tags.iter().position(|open| *open == tag) {
            circuits.tags.swap_remove(at);
            self.forget_circuit(tag);
        }
    }

    /// Removes a circuit from the table of tags and from its session with the egress.
    pub(super) fn forget_circuit(&mut self, tag: u32) {
        if let Some(Circuit { hop, .. }) = self.circuits.close(tag)
            && let Some(Entry { kind: Kind::Hop { circuits, .. }, .. }) = self.table.get_mut(hop)
        {
            *circuits = circuits.saturating_sub(1);
        }
    }

    /// Closes those circuits of a client whose session with the egress has ended, and tells the client.
    pub(super) fn close_orphans(&mut self, client: EntryId) {
        let Some(Entry { kind: Kind::Client { circuits, .. }, .. }) = self.table.get(client) else { return };
        let is_orphan =
            |tag: &&u32| self.circuits.find(**tag).is_none_or(|circuit| self.table.get(circuit.hop).is_none());
        let orphans: Vec<u32> = circuits.tags.iter().filter(is_orphan).copied().collect();
        for tag in orphans {
            self.close_circuit(client, tag);
            if let Some(entry) = self.table.get_mut(client) {
                entry.link.send(&Message::CircuitClose { tag });
            }
        }
    }

    /// Handles a new session with an egress. A frame confirms the session to the egress at once.
    pub(super) fn hop_is_up(&mut self, egress: RelayId, hop: EntryId, now: Time, random: &mut dyn Random) {
        if let Some(old) = self.hops.insert(egress, hop) {
            self.end(old, now);
        }
        self.transmit_frame(hop, FrameKind::Padding, &[], now);
        self.answer_requests(egress, Some(hop), now, random);
    }

    /// Opens or refuses the circuits that waited for a session with `egress`. Many of them wait for further calls.
    pub(super) fn answer_requests(
        &mut self,
        egress: RelayId,
        hop: Option<EntryId>,
        now: Time,
        random: &mut dyn Random,
    ) {
        let requests = self.waiting.remove(&egress).unwrap_or_default();
        self.answers.push_back(Answers { hop, requests });
        self.continue_answers(now, random);
    }

    /// Answers the next requests whose answer is known, up to [`ANSWERS`].
    pub(super) fn continue_answers(&mut self, now: Time, random: &mut dyn Random) {
        let mut left = ANSWERS;
        while left > 0
            && let Some(answers) = self.answers.front_mut()
        {
            let hop = answers.hop;
            let Some((client, request)) = answers.requests.pop_front() else {
                self.answers.pop_front();
                continue;
            };
            left -= 1;
            self.finish_circuit(client, request, hop, random);
            self.pump(client, now);
        }
    }
}
