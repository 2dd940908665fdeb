//! New sessions: what the handshaker established becomes an entry of the table, and a token admits it.
//!
//! Owns the responder's states of a session: unconfirmed ─▶ confirmed ─▶ admitted. `sweep` ends it. Never handles a
//! user's packet.

use super::{Entry, EntryId, Kind, Shard};
use crate::drops::DropReason;
use crate::handshake::Role;
use crate::link::Link;
use crate::mask::IndexMask;
use crate::message::{Message, Token};
use crate::random::Random;
use crate::relay::entry::{Address, Path};
use crate::relay::{Install, Output, Route};
use crate::session::{CLIENT_WINDOW, HOP_WINDOW, Session};
use crate::time::Time;
use crate::wire::MIN_MTU;

impl Shard {
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

    pub(super) fn install(&mut self, install: Install, now: Time, random: &mut dyn Random) {
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

    /// Admits a session for its token.
    pub(super) fn admit(&mut self, id: EntryId, token: Token, now: Time) -> Result<(), DropReason> {
        let entry = self.table.get_mut(id).ok_or(DropReason::UnknownIndex)?;
        let admission = self.admit.admit(token, entry.link.session.hash()).ok_or(DropReason::NotAdmitted)?;
        if let Kind::Inner { address, .. } = &mut entry.kind
            && address.is_none()
        {
            let number = self.addresses.take(id, now).ok_or(DropReason::TableFull)?;
            *address = Some(Address { number, used: false });
        }
        entry.admitted = true;
        entry.link.send(&Message::Admitted(admission));
        Ok(())
    }
}
