//! Timers and ends of sessions.
//!
//! Owns when a session ends: when it is not admitted within ten seconds, when it is silent for fifteen minutes, or when
//! a peer or the relay closes it. Never handles a user's packet.

use std::net::IpAddr;
use std::time::Duration;

use super::{Entry, EntryId, Kind, Shard};
use crate::message::Message;
use crate::random::Random;
use crate::session::{EPOCH_TIME, EPOCHS_AHEAD};
use crate::time::Time;
use crate::wire::FrameKind;

/// A session that is not confirmed and admitted within this time ends.
const ADMISSION_TIME: Duration = Duration::from_secs(10);
/// A session ends after this time without a packet from its peer. It outlasts the suspension of a device in a pocket,
/// and it does not keep leftovers for a day.
const IDLE_TIME: Duration = Duration::from_secs(900);
const _: () = assert!(IDLE_TIME.as_secs() < EPOCH_TIME.as_secs() * EPOCHS_AHEAD as u64);
/// Silence of an egress after which the ingress probes it.
const HOP_SILENCE: Duration = Duration::from_secs(5);
/// How long the ingress probes a silent egress before the egress counts as gone.
const HOP_PATIENCE: Duration = Duration::from_secs(5);
/// Interval at which sessions are checked for ends and re-handshakes.
const SWEEP: Duration = Duration::from_secs(1);

impl Shard {
    /// Returns when to call [`Shard::handle_timeout`].
    pub fn poll_timeout(&self) -> Time {
        self.timers.first().map_or(self.next_sweep, |(at, _)| (*at).min(self.next_sweep))
    }

    /// Repeats unacknowledged control data, and once a second ends the sessions that are over.
    pub fn handle_timeout(&mut self, now: Time, random: &mut dyn Random) {
        while let Some(&(at, id)) = self.timers.first()
            && at <= now
        {
            self.timers.pop_first();
            self.pump(id, now);
            self.challenge_if_unproven(id, now);
        }
        if self.next_sweep <= now {
            self.next_sweep = now.after(SWEEP);
            let ids: Vec<EntryId> = self.table.ids().collect();
            for id in ids {
                self.look_over(id, now, random);
            }
        }
    }

    pub(super) fn look_over(&mut self, id: EntryId, now: Time, random: &mut dyn Random) {
        let Some(entry) = self.table.get_mut(id) else { return };
        entry.link.session.forget_old_keys(now);
        let stuck = !(entry.admitted && entry.link.session.is_confirmed()) && now.since(entry.since) > ADMISSION_TIME;
        if stuck || now.since(entry.link.session.last_received()) > IDLE_TIME {
            return self.end(id, now);
        }
        if let Kind::Hop { relay, .. } = &entry.kind
            && let Some(peer) = self.config.peers.get(relay)
        {
            entry.link.rekey_if_due(&peer.responder, now, random);
        }
        if let Some((place, until)) = entry.retiring
            && until <= now
        {
            entry.retiring = None;
            self.table.unpoint(place);
            self.release(place);
        }
        self.pump(id, now);
        self.look_after_hop(id, now);
    }

    /// Probes a silent egress whose session carries circuits. If the egress does not answer, its circuits end, and
    /// the next circuit opens a new session.
    pub(super) fn look_after_hop(&mut self, id: EntryId, now: Time) {
        let Some(Entry { kind: Kind::Hop { asked, .. }, link, .. }) = self.table.get_mut(id) else { return };
        if !link.session.is_initiator() {
            return;
        }
        let silence = now.since(link.session.last_received());
        if silence < HOP_SILENCE || !self.circuits.any(|circuit| circuit.hop == id) {
            *asked = None;
            return;
        }
        // The silence alone is no reason: a session without circuits may be silent and is not probed.
        if now.since(*asked.get_or_insert(now)) >= HOP_PATIENCE {
            self.end(id, now);
        } else {
            self.transmit_frame(id, FrameKind::Probe, &[0; 8], now);
        }
    }

    /// Ends a session and everything that depends on it.
    pub(super) fn end(&mut self, id: EntryId, now: Time) {
        let Some(entry) = self.table.remove(id) else { return };
        self.mirroring.remove(&id);
        self.release(entry.place);
        if let Some((place, _)) = entry.retiring {
            self.table.unpoint(place);
            self.release(place);
        }
        match &entry.kind {
            Kind::Client { path, .. } => {
                self.release_unused(path);
                for tag in self.circuits.tags(|circuit| circuit.client == id) {
                    self.circuits.close(tag);
                }
            }
            Kind::Inner { path, address, .. } => {
                self.release_unused(path);
                if let Some(address) = address {
                    if let (IpAddr::V4(v4), IpAddr::V6(v6)) =
                        (self.addresses.of(address.number, false), self.addresses.of(address.number, true))
                        && address.used
                    {
                        self.freed.push_back((v4, v6));
                    }
                    self.addresses.release(*address, now);
                }
            }
            Kind::Hop { relay, .. } => {
                if self.hops.get(relay) == Some(&id) {
                    self.hops.remove(relay);
                }
                for tag in self.circuits.tags(|circuit| circuit.hop == id) {
                    let closed = self.circuits.close(tag);
                    let client = closed.and_then(|circuit| self.table.get_mut(circuit.client));
                    if let Some(Entry { kind: Kind::Client { circuits, .. }, link, .. }) = client {
                        *circuits = circuits.saturating_sub(1);
                        link.send(&Message::CircuitClose { tag });
                    }
                }
            }
        }
    }

    /// Ends every session and tells the peers.
    pub fn close(&mut self, now: Time) {
        let ids: Vec<EntryId> = self.table.ids().collect();
        for id in ids {
            if let Some(entry) = self.table.get_mut(id) {
                entry.link.send(&Message::Close);
            }
            self.pump(id, now);
            self.end(id, now);
        }
    }
}
