//! Datagrams that a shard originates: control frames, probes, challenges and handshake packets.
//!
//! Owns the way from a frame to the outbox, through one or two layers. Never handles a user's packet.

use super::{EntryId, Kind, Shard};
use crate::drops::DropReason;
use crate::relay::Route;
use crate::time::Time;
use crate::wire::{FORWARD_LEN, FrameKind, HEADER_LEN, TAG_LEN};

impl Shard {
    /// Sends everything that the session's control stream has due.
    pub(super) fn pump(&mut self, id: EntryId, now: Time) {
        while let Some(entry) = self.table.get_mut(id) {
            let (before, after) = room(entry.kind.route());
            let Some(datagram) = entry.link.poll_control(before, after, now) else { break };
            self.transmit_sealed(id, datagram, now);
        }
        if let Some(entry) = self.table.get_mut(id) {
            let held = entry.link.control_held();
            self.budget.charge(id, &mut entry.charge, held);
        }
        while let Some(largest) = self.budget.gives_way() {
            self.end(largest, now);
        }
        self.arm(id);
    }

    /// Sets the session's timer, unless it is due earlier anyway.
    pub(super) fn arm(&mut self, id: EntryId) {
        let Some(entry) = self.table.get_mut(id) else { return };
        let challenge = entry.kind.path_mut().and_then(|path| path.deadline());
        let Some(at) = entry.link.deadline().into_iter().chain(challenge).min() else { return };
        if entry.timer.is_some_and(|timer| timer <= at) {
            return;
        }
        if let Some(later) = entry.timer.replace(at) {
            self.timers.remove(&(later, id));
        }
        self.timers.insert((at, id));
    }

    pub(super) fn transmit_frame(&mut self, id: EntryId, kind: FrameKind, body: &[u8], now: Time) {
        let Some(entry) = self.table.get_mut(id) else { return };
        let (before, after) = room(entry.kind.route());
        if let Some(datagram) = entry.link.frame(kind, body, before, after, now) {
            self.transmit_sealed(id, datagram, now);
        }
    }

    /// Masks a sealed datagram of session `id` and sends it along its route.
    pub(super) fn transmit_sealed(&mut self, id: EntryId, mut datagram: Vec<u8>, now: Time) {
        let Some(entry) = self.table.get_mut(id) else { return };
        let route = entry.kind.route();
        let (before, after) = room(route);
        let end = datagram.len() - after;
        let Some(sealed) = datagram.get_mut(before..end) else { return };
        match &mut entry.kind {
            Kind::Hop { mask, .. } => mask.apply(sealed),
            Kind::Client { path, .. } | Kind::Inner { path, .. } => {
                if let Err(reason) = path.may_send(end) {
                    return self.withhold(reason);
                }
                self.client_mask.apply(sealed);
            }
        }
        match route {
            Route::Udp(to) => self.outbox.push_back((to, datagram)),
            Route::Circuit { hop, tag } => match self.seal_hop(hop, tag, &mut datagram, now) {
                Ok(to) => self.outbox.push_back((to, datagram)),
                Err(reason) => self.withhold(reason),
            },
        }
    }

    /// Counts a datagram of the shard's own that cannot be sent.
    pub(super) fn withhold(&mut self, reason: DropReason) {
        self.counts.withheld += 1;
        self.counts.drops.count(reason);
    }

    /// Sends a masked handshake packet along `route`.
    pub(super) fn transmit(&mut self, route: Route, packet: Vec<u8>, now: Time) {
        match route {
            Route::Udp(to) => self.outbox.push_back((to, packet)),
            Route::Circuit { hop, tag } => {
                let mut datagram = vec![0; HEADER_LEN + FORWARD_LEN];
                datagram.extend_from_slice(&packet);
                datagram.resize(datagram.len() + TAG_LEN, 0);
                match self.seal_hop(hop, tag, &mut datagram, now) {
                    Ok(to) => self.outbox.push_back((to, datagram)),
                    Err(reason) => self.withhold(reason),
                }
            }
        }
    }
}

/// Returns how many bytes an outer layer needs before and after a sealed packet on this route.
fn room(route: Route) -> (usize, usize) {
    match route {
        Route::Udp(_) => (0, 0),
        Route::Circuit { .. } => (HEADER_LEN + FORWARD_LEN, TAG_LEN),
    }
}
