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

/// Timers that one call handles, each of which may repeat 16 KiB of a control stream.
const TIMERS: usize = 128;
/// Places of the table that one call looks at.
const VISITS: u32 = 2_048;
/// Sessions that one call of [`Shard::handle_timeout`] ends, each with at most eight circuits.
pub(super) const ENDS: usize = 128;
/// Bytes of its control stream that a session keeps for a peer that has stopped answering.
const KEPT: usize = 2_048;
/// How long a session between relays goes on that the directory does not list.
const GRACE: Duration = Duration::from_secs(10);

/// The walk through all sessions, once in [`SWEEP`] and a part of it in each call.
#[derive(Debug)]
pub(super) struct Sweep {
    /// When the next walk begins.
    at: Time,
    /// Where this walk goes on; `None` between walks.
    slot: Option<u32>,
    /// Walks that still look for circuits whose session with the egress has ended.
    orphans: u8,
}

impl Sweep {
    pub(super) fn new(now: Time) -> Self {
        Self { at: now, slot: None, orphans: 0 }
    }
}

impl Shard {
    /// Returns when to call [`Shard::handle_timeout`].
    pub fn poll_timeout(&self) -> Time {
        if self.sweep.slot.is_some() || !self.answers.is_empty() {
            return Time::default();
        }
        self.timers.first().map_or(self.sweep.at, |(at, _)| (*at).min(self.sweep.at))
    }

    /// Repeats unacknowledged control data, and once a second ends the sessions that are over. Does a bounded part of
    /// it: [`Shard::poll_timeout`] is due at once when there is more.
    pub fn handle_timeout(&mut self, now: Time, random: &mut dyn Random) {
        self.continue_answers(now, random);
        for _ in 0..TIMERS {
            let Some(&(at, id)) = self.timers.first().filter(|(at, _)| *at <= now) else { break };
            self.timers.remove(&(at, id));
            if let Some(entry) = self.table.get_mut(id) {
                entry.timer = None;
            }
            self.pump(id, now);
            self.challenge_if_unproven(id, now);
        }
        self.continue_sweep(now, random);
    }

    fn continue_sweep(&mut self, now: Time, random: &mut dyn Random) {
        if self.sweep.slot.is_none() {
            if self.sweep.at > now {
                return;
            }
            self.sweep.at = now.after(SWEEP);
        }
        let start = self.sweep.slot.unwrap_or(0);
        let mut ended = 0;
        for slot in start..start + VISITS {
            if slot >= self.table.slots() {
                self.sweep.slot = None;
                self.sweep.orphans = self.sweep.orphans.saturating_sub(1);
                return;
            }
            self.sweep.slot = Some(slot + 1);
            if let Some(id) = self.table.at(slot) {
                ended += usize::from(self.look_over(id, now, random));
            }
            if ended >= ENDS {
                return;
            }
        }
    }

    /// Looks after one session; returns whether it has ended.
    fn look_over(&mut self, id: EntryId, now: Time, random: &mut dyn Random) -> bool {
        let Some(entry) = self.table.get_mut(id) else { return false };
        entry.link.session.forget_old_keys(now);
        let stuck = !(entry.admitted && entry.link.session.is_confirmed()) && now.since(entry.since) > ADMISSION_TIME;
        let silent = now.since(entry.link.session.last_received()) > IDLE_TIME;
        // Its peer was gone before it took what it had asked for.
        let abandoned = entry.link.has_given_up() && entry.link.backlog() > KEPT;
        if stuck || silent || abandoned {
            self.end(id, now);
            return true;
        }
        if self.is_unlisted(id, now) {
            self.say_and_end(id, &Message::Close, now);
            return true;
        }
        let Some(entry) = self.table.get_mut(id) else { return false };
        if let Kind::Hop { relay, key, unlisted: None, .. } = &entry.kind
            && let Some(responder) = self.config.peers.responder(relay).filter(|known| known.key == *key)
        {
            entry.link.rekey_if_due(responder, now, random);
        }
        if let Some((place, until)) = entry.retiring
            && until <= now
        {
            entry.retiring = None;
            self.table.unpoint(place);
            self.release(place);
        }
        if self.sweep.orphans > 0 {
            self.close_orphans(id);
        }
        self.pump(id, now);
        self.look_after_hop(id, now);
        self.table.get(id).is_none()
    }

    /// Returns whether the directory has not listed the relay at the other end, with its key, for [`GRACE`].
    fn is_unlisted(&mut self, id: EntryId, now: Time) -> bool {
        let Some(Entry { kind: Kind::Hop { relay, key, unlisted, .. }, .. }) = self.table.get_mut(id) else {
            return false;
        };
        if self.config.peers.keeps(*relay, key) {
            *unlisted = None;
            return false;
        }
        now.since(*unlisted.get_or_insert(now)) >= GRACE
    }

    /// Probes a silent egress whose session carries circuits. If the egress does not answer, its circuits end, and
    /// the next circuit opens a new session.
    fn look_after_hop(&mut self, id: EntryId, now: Time) {
        let Some(Entry { kind: Kind::Hop { asked, circuits, .. }, link, .. }) = self.table.get_mut(id) else { return };
        if !link.session.is_initiator() {
            return;
        }
        let silence = now.since(link.session.last_received());
        if silence < HOP_SILENCE || *circuits == 0 {
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

    /// Ends a session and what depends on it alone. The circuits over a session between relays are closed by the next
    /// walk through their clients; until then their packets are dropped.
    pub(super) fn end(&mut self, id: EntryId, now: Time) {
        let Some(mut entry) = self.table.remove(id) else { return };
        self.budget.charge(id, &mut entry.charge, 0);
        if let Some(at) = entry.timer {
            self.timers.remove(&(at, id));
        }
        self.release(entry.place);
        if let Some((place, _)) = entry.retiring {
            self.table.unpoint(place);
            self.release(place);
        }
        if let Some(holding) = entry.holding {
            let is_relay = matches!(entry.kind, Kind::Hop { .. });
            if is_relay { &mut self.relays } else { &mut self.clients }.release(holding);
        }
        match &entry.kind {
            Kind::Client { path, circuits } => {
                self.release_unused(path);
                for tag in &circuits.tags {
                    self.forget_circuit(*tag);
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
            Kind::Hop { relay, circuits, .. } => {
                if self.hops.get(relay) == Some(&id) {
                    self.hops.remove(relay);
                }
                if *circuits > 0 {
                    // This walk may have passed some of the clients already; the next one meets them all.
                    self.sweep.orphans = 2;
                }
            }
        }
        self.report_crowding();
    }

    /// Ends every session and tells the peers.
    pub fn close(&mut self, now: Time) {
        let ids: Vec<EntryId> = self.table.ids().collect();
        for id in ids {
            self.say_and_end(id, &Message::Close, now);
        }
    }

    /// Sends a last message, once, and ends the session.
    pub(super) fn say_and_end(&mut self, id: EntryId, message: &Message, now: Time) {
        if let Some(entry) = self.table.get_mut(id) {
            entry.link.send(message);
        }
        self.pump(id, now);
        self.end(id, now);
    }
}
