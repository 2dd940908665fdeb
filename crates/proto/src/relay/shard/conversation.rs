//! Everything that a shard does besides packets: control messages, probes, paths, new sessions, ends of sessions.
//!
//! Owns the responder's states of a session: unconfirmed ─▶ confirmed ─▶ admitted ─▶ ended. A session ends when it is
//! not admitted within ten seconds, or is silent for fifteen minutes. Never handles a user's packet.

use std::net::IpAddr;
use std::sync::PoisonError;
use std::time::Duration;

use super::{Entry, EntryId, Fate, Kind, Shard};
use crate::control::{BEFORE_ADMISSION, MAX_MESSAGE};
use crate::drops::DropReason;
use crate::handshake::Role;
use crate::index::Place;
use crate::keys::RelayId;
use crate::link::{Link, probe_answer};
use crate::mask::IndexMask;
use crate::message::{CircuitRefusal, MAX_STAPLE, MIRROR_PIECE, Message, MirrorFile};
use crate::random::Random;
use crate::relay::circuits::Circuit;
use crate::relay::entry::{Address, Path};
use crate::relay::{Install, Mirror, Output, Request, Route};
use crate::session::{CLIENT_WINDOW, EPOCH_TIME, EPOCHS_AHEAD, HOP_WINDOW, Session, frame};
use crate::time::Time;
use crate::wire::{FORWARD_LEN, FrameKind, HEADER_LEN, MAX_MTU, MIN_MTU, TAG_LEN, take};

/// A session that is not confirmed and admitted within this time ends.
const ADMISSION_TIME: Duration = Duration::from_secs(10);
/// A session ends after this time without a packet from its peer. It outlasts the suspension of a device in a pocket,
/// and it does not keep leftovers for a day.
const IDLE_TIME: Duration = Duration::from_secs(900);
const _: () = assert!(IDLE_TIME.as_secs() < EPOCH_TIME.as_secs() * EPOCHS_AHEAD as u64);
/// How long an index stays valid after its successor is in use.
const RETIRE_TIME: Duration = Duration::from_secs(10);
/// Silence of an egress after which the ingress probes it.
const HOP_SILENCE: Duration = Duration::from_secs(5);
/// How long the ingress probes a silent egress before the egress counts as gone.
const HOP_PATIENCE: Duration = Duration::from_secs(5);
/// Interval at which sessions are checked for ends and re-handshakes.
const SWEEP: Duration = Duration::from_secs(1);
/// Most sessions of a shard that may hold an unacknowledged piece of a mirrored file: 16 MiB in all.
const MAX_MIRRORING: usize = 1_024;
/// Most circuits of one client session.
const MAX_CLIENT_CIRCUITS: u32 = 8;
/// Smallest inner MTU that a client may claim: that of an IPv4 path of 1238 bytes.
const SMALLEST_MTU: u16 = 1152;

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
                let limit = if entry.admitted { MAX_MESSAGE } else { BEFORE_ADMISSION };
                if let Err(reason) = entry.link.handle_control(frame(datagram), limit, now) {
                    self.end(id, now);
                    return Err(reason);
                }
                self.converse(id, now, random)?;
                self.pump(id, now);
            }
            FrameKind::Padding | FrameKind::ProbeAck | FrameKind::PathChallenge => {}
            FrameKind::PathMtu => take_report(entry, frame(datagram).get(1..))?,
            FrameKind::Probe => {
                take_report(entry, frame(datagram).get(9..))?;
                let answer = probe_answer(datagram).ok_or(DropReason::BadFrame)?;
                self.transmit_frame(id, FrameKind::ProbeAck, &answer, now);
            }
            FrameKind::PathResponse => self.path_response(id, route, datagram, now)?,
            FrameKind::Packet { .. } | FrameKind::Forward => return Err(DropReason::BadFrame),
        }
        self.counts.control += 1;
        Ok(Fate::Consumed)
    }

    /// Handles the control messages that have arrived completely.
    fn converse(&mut self, id: EntryId, now: Time, random: &mut dyn Random) -> Result<(), DropReason> {
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
    fn answer(&mut self, id: EntryId, message: Message, now: Time, random: &mut dyn Random) -> Result<(), DropReason> {
        let number = self.number;
        let entry = self.table.get_mut(id).ok_or(DropReason::UnknownIndex)?;
        let responder = !entry.link.session.is_initiator();
        match message {
            // A peer that keeps asking without acknowledging the answers is cut off.
            Message::EvidenceRequest if responder && entry.link.backlog() < MAX_STAPLE => {
                entry.link.send(&Message::Evidence(self.config.evidence.shown.clone()));
            }
            Message::CollateralRequest if responder => entry.link.send(&Message::Collateral),
            Message::Token(token) if responder => {
                let admission = self.admit.admit(token, entry.link.session.hash()).ok_or(DropReason::NotAdmitted)?;
                if let Kind::Inner { address, .. } = &mut entry.kind
                    && address.is_none()
                {
                    let number = self.addresses.take(id, now).ok_or(DropReason::TableFull)?;
                    *address = Some(Address { number, used: false });
                }
                entry.admitted = true;
                entry.link.send(&Message::Admitted(admission));
            }
            Message::Preimage if entry.admitted => {}
            Message::CircuitOpen { request, egress } if entry.admitted => {
                self.open_circuit(id, request, egress, random)?;
            }
            Message::CircuitClose { tag } if entry.admitted => self.close_circuit(id, tag),
            Message::Rekey(message) if responder && entry.admitted => {
                entry.allow_rekey(now)?;
                let request = entry.link.session.rekey_request(message);
                self.requests.push_back(Request::Rekey { shard: number, entry: id, request });
            }
            Message::Rekeyed(answer) if !responder => entry.link.finish_rekey(&answer, now)?,
            Message::Close => self.end(id, now),
            // A peer that keeps asking without acknowledging the answers is cut off.
            Message::MirrorRequest { file, offset }
                if responder && entry.admitted && entry.link.backlog() < MIRROR_PIECE =>
            {
                self.send_piece(id, file, offset);
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
            | Message::MirrorRequest { .. }
            | Message::MirrorPiece(_) => {
                return Err(DropReason::BadFrame);
            }
        }
        Ok(())
    }

    /// Sends a piece of a mirrored file. If too many sessions hold a piece that they have not acknowledged, the
    /// answer is that there is no such file.
    fn send_piece(&mut self, id: EntryId, file: MirrorFile, offset: u32) {
        if self.mirroring.len() >= MAX_MIRRORING && !self.mirroring.contains(&id) {
            let table = &mut self.table;
            self.mirroring.retain(|id| table.get_mut(*id).is_some_and(|entry| entry.link.backlog() > 0));
        }
        let room = self.mirroring.len() < MAX_MIRRORING || self.mirroring.contains(&id);
        let none = Mirror::default();
        let piece = if room { &self.config.mirror } else { &none }.piece(file, offset);
        if room {
            self.mirroring.insert(id);
        }
        if let Some(entry) = self.table.get_mut(id) {
            entry.link.send(&Message::MirrorPiece(piece));
        }
    }

    fn open_circuit(
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

    fn finish_circuit(&mut self, client: EntryId, request: u32, hop: EntryId, random: &mut dyn Random) {
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

    fn close_circuit(&mut self, client: EntryId, tag: u32) {
        if self.circuits.find(tag).is_some_and(|circuit| circuit.client == client) {
            self.circuits.close(tag);
            if let Some(Entry { kind: Kind::Client { circuits, .. }, .. }) = self.table.get_mut(client) {
                *circuits = circuits.saturating_sub(1);
            }
        }
    }

    /// Handles an output of the handshaker for this shard.
    pub fn apply(&mut self, output: Output, now: Time, random: &mut dyn Random) {
        match output {
            Output::Send { route, packet } => self.transmit(route, packet, now),
            Output::Install(install) => self.install(*install, now, random),
            Output::ConnectFailed { egress } => {
                for (client, request) in self.waiting.remove(&egress).unwrap_or_default() {
                    self.refuse(client, request, now);
                }
            }
            Output::Rekeyed(rekeyed) => {
                if let Some(entry) = self.table.get_mut(rekeyed.entry) {
                    entry.link.session.install(rekeyed.keys, now);
                    entry.link.send(&Message::Rekeyed(rekeyed.answer));
                    self.pump(rekeyed.entry, now);
                }
            }
        }
    }

    fn refuse(&mut self, client: EntryId, request: u32, now: Time) {
        if let Some(entry) = self.table.get_mut(client) {
            if let Kind::Client { circuits, .. } = &mut entry.kind {
                *circuits = circuits.saturating_sub(1);
            }
            entry.link.send(&Message::CircuitRefused { request, reason: CircuitRefusal::Unreachable });
            self.pump(client, now);
        }
    }

    fn install(&mut self, install: Install, now: Time, random: &mut dyn Random) {
        let reach = if install.relay.is_some() { HOP_WINDOW } else { CLIENT_WINDOW };
        let initiator = install.established.initiator;
        let link = Link::new(Session::new(&install.established, reach, now), random);
        let path = Path::proven(install.route);
        let kind = match (install.relay, self.config.own.role) {
            (Some(relay), _) => match (self.config.peers.get(&relay), install.route) {
                (Some(peer), Route::Udp(to)) => {
                    Kind::Hop { relay, to, mask: Box::new(IndexMask::to_relay(&peer.responder.key)), asked: None }
                }
                _ => return self.release(install.place),
            },
            (None, Role::Ingress) => Kind::Client { path, circuits: 0 },
            (None, Role::Egress) => Kind::Inner { path, address: None, mtu: MIN_MTU },
        };
        let hop_of = match &kind {
            Kind::Hop { relay, .. } => Some(*relay),
            Kind::Client { .. } | Kind::Inner { .. } => None,
        };
        // Relays admit each other by their handshake: only a key of the directory can complete it.
        let admitted = hop_of.is_some();
        let entry = Entry { link, kind, place: install.place, retiring: None, admitted, since: now, rekeys: (0, now) };
        let id = self.table.insert(entry);
        if let (Some(relay), true) = (hop_of, initiator) {
            self.hop_is_up(relay, id, now, random);
        }
    }

    /// Handles a new session with an egress: opens the circuits that waited for it. A frame confirms the session to
    /// the egress at once.
    fn hop_is_up(&mut self, egress: RelayId, hop: EntryId, now: Time, random: &mut dyn Random) {
        if let Some(old) = self.hops.insert(egress, hop) {
            self.end(old, now);
        }
        self.transmit_frame(hop, FrameKind::Padding, &[], now);
        for (client, request) in self.waiting.remove(&egress).unwrap_or_default() {
            self.finish_circuit(client, request, hop, random);
            self.pump(client, now);
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

    fn release_unused(&mut self, path: &Path) {
        if let Some(place) = path.unused_place() {
            self.table.unpoint(place);
            self.release(place);
        }
    }

    pub(super) fn release(&self, place: Place) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).release(place);
    }

    /// Sends a challenge with a fresh index to a client on an unproven path, when one is due.
    pub(super) fn challenge_if_unproven(&mut self, id: EntryId, now: Time) {
        let slots = &self.slots;
        let Some(path) = self.table.get_mut(id).and_then(|entry| entry.kind.path_mut()) else { return };
        let fresh = || slots.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some((nonce, place)) = path.challenge(now, fresh) else { return };
        if let Some(at) = path.deadline() {
            self.timers.insert((at, id));
        }
        self.table.point(place, id);
        let index = self.index_key.index(place);
        let body = [&nonce[..], &index.to_be_bytes()].concat();
        self.transmit_frame(id, FrameKind::PathChallenge, &body, now);
    }

    /// Handles the echo of a challenge: the path is proven, and both ends use fresh indices from then on.
    fn path_response(&mut self, id: EntryId, route: Route, datagram: &[u8], now: Time) -> Result<(), DropReason> {
        let body = frame(datagram);
        let nonce: [u8; 8] = take(body, 1).ok_or(DropReason::BadFrame)?;
        let index: [u8; 4] = take(body, 9).ok_or(DropReason::BadFrame)?;
        let entry = self.table.get_mut(id).ok_or(DropReason::UnknownIndex)?;
        let Some(place) = entry.kind.path_mut().and_then(|path| path.prove(route, nonce)) else { return Ok(()) };
        entry.link.session.remote_index = u32::from_be_bytes(index);
        let old = std::mem::replace(&mut entry.place, place);
        let retired = entry.retiring.replace((old, now.after(RETIRE_TIME)));
        if let Some((older, _)) = retired {
            self.table.unpoint(older);
            self.release(older);
        }
        Ok(())
    }

    /// Sends everything that the session's control stream has due.
    pub(super) fn pump(&mut self, id: EntryId, now: Time) {
        while let Some(entry) = self.table.get_mut(id) {
            let (before, after) = room(entry.kind.route());
            let Some(datagram) = entry.link.poll_control(before, after, now) else { break };
            self.transmit_sealed(id, datagram, now);
        }
        if let Some(at) = self.table.get(id).and_then(|entry| entry.link.deadline()) {
            self.timers.insert((at, id));
        }
    }

    fn transmit_frame(&mut self, id: EntryId, kind: FrameKind, body: &[u8], now: Time) {
        let Some(entry) = self.table.get_mut(id) else { return };
        let (before, after) = room(entry.kind.route());
        if let Some(datagram) = entry.link.frame(kind, body, before, after, now) {
            self.transmit_sealed(id, datagram, now);
        }
    }

    /// Masks a sealed datagram of session `id` and sends it along its route.
    fn transmit_sealed(&mut self, id: EntryId, mut datagram: Vec<u8>, now: Time) {
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
    fn withhold(&mut self, reason: DropReason) {
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

    fn look_over(&mut self, id: EntryId, now: Time, random: &mut dyn Random) {
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
    fn look_after_hop(&mut self, id: EntryId, now: Time) {
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

/// Handles a client's report about its path and the control stream; ignores a report of any other peer.
fn take_report(entry: &mut Entry, report: Option<&[u8]>) -> Result<(), DropReason> {
    if let Kind::Inner { mtu, .. } = &mut entry.kind
        && entry.admitted
    {
        let claimed = report.and_then(|report| entry.link.handle_report(report)).ok_or(DropReason::BadFrame)?;
        *mtu = claimed.clamp(SMALLEST_MTU, MAX_MTU);
    }
    Ok(())
}

/// Returns how many bytes an outer layer needs before and after a sealed packet on this route.
fn room(route: Route) -> (usize, usize) {
    match route {
        Route::Udp(_) => (0, 0),
        Route::Circuit { .. } => (HEADER_LEN + FORWARD_LEN, TAG_LEN),
    }
}
