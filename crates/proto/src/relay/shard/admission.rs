//! New sessions: what the handshaker established becomes an entry of the table, and a token admits it.
//!
//! Owns the responder's states of a session: unconfirmed ─▶ confirmed ─▶ admitted. `sweep` ends it. Never handles a
//! user's packet.

use std::net::SocketAddr;
use std::time::Duration;

use super::table::Given;
use super::{Entry, EntryId, Kind, Shard};
use crate::drops::DropReason;
use crate::handshake::Role;
use crate::keys::{RelayId, RelayKey};
use crate::link::Link;
use crate::mask::IndexMask;
use crate::message::{Message, Token};
use crate::random::Random;
use crate::relay::budget::Charge;
use crate::relay::entry::{Address, Opened, Path};
use crate::relay::holders::Owner;
use crate::relay::{Install, Output, Route};
use crate::session::{CLIENT_WINDOW, HOP_WINDOW, Session};
use crate::time::Time;
use crate::wire::MIN_MTU;

/// How long a client is told to wait whose session gave way to another one.
const FULL_RETRY: Duration = Duration::from_secs(60);

impl Shard {
    /// Handles an output of the handshaker for this shard.
    pub fn apply(&mut self, output: Output, now: Time, random: &mut dyn Random) {
        match output {
            Output::Send { route, packet } => self.transmit(route, packet, now),
            Output::Install(install) => self.install(*install, now, random),
            Output::ConnectFailed { egress } => self.answer_requests(egress, None, now, random),
            Output::Rekeyed(rekeyed) => {
                if let Some(entry) = self.table.get_mut(rekeyed.entry) {
                    entry.link.session.install(rekeyed.keys, now);
                    entry.link.send(&Message::Rekeyed(rekeyed.answer));
                    self.pump(rekeyed.entry, now);
                }
            }
        }
    }

    fn install(&mut self, install: Install, now: Time, random: &mut dyn Random) {
        let Install { place, established, route, relay } = install;
        let refuse = |this: &mut Self, random: &mut dyn Random| {
            this.release(place);
            // Those who wait for it would wait for ever.
            if let (Some((relay, _)), true) = (relay, established.initiator) {
                this.answer_requests(relay, None, now, random);
            }
        };
        let (kind, owner) = match (relay, self.config.own.role) {
            (Some((relay, key)), _) => {
                let Some(to) = self.listed(relay, &key, route) else { return refuse(self, random) };
                let mask = Box::new(IndexMask::to_relay(&key));
                let kind = Kind::Hop { relay, key, to, mask, circuits: 0, unlisted: None, asked: None };
                (kind, Owner { group: relay.0, member: 0 })
            }
            (None, Role::Ingress) => {
                (Kind::Client { path: Path::proven(route), circuits: Opened::default() }, self.gate.owner(route))
            }
            (None, Role::Egress) => {
                (Kind::Inner { path: Path::proven(route), address: None, mtu: MIN_MTU }, self.gate.owner(route))
            }
        };
        let owner = self.of_relay(route, owner);
        if !self.make_room(relay.is_some(), owner, now) {
            self.withhold(DropReason::TableFull);
            return refuse(self, random);
        }
        let (reach, initiator) = (if relay.is_some() { HOP_WINDOW } else { CLIENT_WINDOW }, established.initiator);
        let id = self.table.insert(Entry {
            link: Link::new(Session::new(&established, reach, now), random),
            kind,
            place,
            retiring: None,
            // Relays admit each other by their handshake: only a key of the directory can complete it.
            admitted: relay.is_some(),
            since: now,
            rekeys: (0, now),
            holding: None,
            owner,
            timer: None,
            charge: Charge::default(),
        });
        let holders = if relay.is_some() { &mut self.relays } else { &mut self.clients };
        let holding = holders.hold(owner, id);
        if let Some(entry) = self.table.get_mut(id) {
            entry.holding = Some(holding);
        }
        self.report_crowding();
        if let (Some((relay, _)), true) = (relay, initiator) {
            self.hop_is_up(relay, id, now, random);
        }
    }

    /// Returns the owner of what comes through an ingress: the ingress, however many sessions it opens.
    pub(super) fn of_relay(&self, route: Route, owner: Owner) -> Owner {
        match route {
            Route::Circuit { hop, .. } => match self.table.get(hop).map(|hop| &hop.kind) {
                Some(Kind::Hop { relay, .. }) => Owner { group: relay.0, ..owner },
                Some(Kind::Client { .. } | Kind::Inner { .. }) | None => owner,
            },
            Route::Udp(_) => owner,
        }
    }

    /// Returns the address of a relay that the directory lists with this key.
    fn listed(&self, relay: RelayId, key: &RelayKey, route: Route) -> Option<SocketAddr> {
        match route {
            Route::Udp(to) if self.config.peers.has(relay, key) => Some(to),
            Route::Udp(_) | Route::Circuit { .. } => None,
        }
    }

    /// Makes room for another session of `owner`; returns whether there is some. Whoever is over its share gives way,
    /// and is told so.
    fn make_room(&mut self, is_relay: bool, owner: Owner, now: Time) -> bool {
        let holders = if is_relay { &self.relays } else { &self.clients };
        if let Some(id) = holders.gives_way(owner) {
            self.say_and_end(id, &Message::Full { retry: FULL_RETRY }, now);
        }
        let holders = if is_relay { &self.relays } else { &self.clients };
        !holders.is_full()
    }

    /// Tells the gate whether half of the sessions are taken, so that newcomers have to prove their addresses.
    pub(super) fn report_crowding(&mut self) {
        let crowded = self.clients.is_half_full() || self.relays.is_half_full();
        if crowded != self.crowded {
            self.gate.load().set_crowded(crowded);
            self.crowded = crowded;
        }
    }

    /// Switches shares off, so that a test shows what they are for.
    #[doc(hidden)]
    pub fn ignore_shares(&mut self) {
        self.clients.ignore_shares();
        self.relays.ignore_shares();
        self.addresses.ignore_shares();
    }

    /// Admits a session for its token.
    pub(super) fn admit(&mut self, id: EntryId, token: Token, now: Time) -> Result<(), DropReason> {
        let entry = self.table.get_mut(id).ok_or(DropReason::UnknownIndex)?;
        let admission = self.admit.admit(token, entry.link.session.hash()).ok_or(DropReason::NotAdmitted)?;
        let owner = entry.owner;
        if matches!(entry.kind, Kind::Inner { address: None, .. }) {
            self.give_address(id, owner, now)?;
        }
        let entry = self.table.get_mut(id).ok_or(DropReason::UnknownIndex)?;
        entry.admitted = true;
        entry.link.send(&Message::Admitted(admission));
        Ok(())
    }

    /// Gives a session an inner address. Without a free one, it is told when to try again, and ends.
    fn give_address(&mut self, id: EntryId, owner: Owner, now: Time) -> Result<(), DropReason> {
        let mut given = self.addresses.take(owner, id, now);
        if let Given::After(older) = given {
            self.say_and_end(older, &Message::Full { retry: FULL_RETRY }, now);
            given = self.addresses.take(owner, id, now);
        }
        let number = match given {
            Given::Address(number) => number,
            Given::After(_) => return Err(DropReason::TableFull),
            Given::Full(wait) => {
                let retry = Duration::from_secs(wait.as_secs() + 1);
                self.say_and_end(id, &Message::Full { retry }, now);
                return Err(DropReason::TableFull);
            }
        };
        if let Some(Entry { kind: Kind::Inner { address, .. }, .. }) = self.table.get_mut(id) {
            *address = Some(Address { number, used: false });
        }
        Ok(())
    }
}
