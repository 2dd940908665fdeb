//! One session of a shard: its link, its route, its permissions.
//!
//! Owns admission and the proof of a changed path. Never moves packets.

use std::net::SocketAddr;
use std::time::Duration;

use super::Route;
use super::budget::Charge;
use super::holders::{Holding, Owner};
use crate::drops::DropReason;
use crate::index::Place;
use crate::keys::{RelayId, RelayKey};
use crate::link::Link;
use crate::mask::IndexMask;
use crate::message::{Admission, Token};
use crate::random::{Random, array};
use crate::time::Time;

/// Bytes sent towards an unproven path for each byte that came from it. Source: RFC 9000 §8.1.
const AMPLIFICATION: u64 = 3;
/// Re-handshakes that a peer may begin within [`REKEY_TIME`]. One is due every two minutes, and a user may request
/// some.
const REKEYS: u32 = 16;
const REKEY_TIME: Duration = Duration::from_secs(60);
/// Interval at which a challenge is repeated.
const CHALLENGE_AGAIN: Duration = Duration::from_millis(300);

/// The admission policy of a relay. The policy that takes tokens comes with credentials.
pub trait Admit: Send {
    /// Returns the name for status and log; a policy that accepts everybody declares it here.
    fn name(&self) -> &'static str;
    /// Decides whether the session with this handshake hash may carry traffic for this token; `None` refuses it.
    fn admit(&mut self, token: Token, hash: &[u8; 32]) -> Option<Admission>;
}

/// Admits everybody and proves nothing; for development and self-hosted networks.
#[derive(Clone, Copy, Debug)]
pub struct OpenAdmission;

impl Admit for OpenAdmission {
    fn name(&self) -> &'static str {
        "open"
    }

    fn admit(&mut self, Token::Open: Token, _hash: &[u8; 32]) -> Option<Admission> {
        Some(Admission::Open)
    }
}

/// Identifier of a session in its shard. It is never given to another session, so a late answer for a session that
/// has ended finds nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct EntryId {
    pub(super) slot: u32,
    pub(super) serial: u32,
}

impl EntryId {
    /// Returns the identifier as bytes.
    pub(super) fn to_bytes(self) -> [u8; 8] {
        ((u64::from(self.serial) << 32) | u64::from(self.slot)).to_be_bytes()
    }
}

/// A session of a shard.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) link: Link,
    pub(super) kind: Kind,
    pub(super) place: Place,
    /// The index before the last path change, and until when it is accepted for packets in flight.
    pub(super) retiring: Option<(Place, Time)>,
    pub(super) admitted: bool,
    pub(super) since: Time,
    /// How many re-handshakes the peer has begun, and since when they are counted.
    pub(super) rekeys: (u32, Time),
    /// The session's part of the table.
    pub(super) holding: Option<Holding>,
    /// Whoever owns that part.
    pub(super) owner: Owner,
    /// When the shard looks after its control stream or path challenge: the only timer of the session.
    pub(super) timer: Option<Time>,
    /// What its control stream holds of the shard's budget.
    pub(super) charge: Charge,
}

impl Entry {
    /// Checks that the peer may begin another re-handshake, each of which costs as much as a handshake.
    ///
    /// # Errors
    /// [`DropReason::BadFrame`] when the peer began too many.
    pub(super) fn allow_rekey(&mut self, now: Time) -> Result<(), DropReason> {
        let (count, since) = &mut self.rekeys;
        if now.since(*since) >= REKEY_TIME {
            (*count, *since) = (0, now);
        }
        *count += 1;
        if *count > REKEYS { Err(DropReason::BadFrame) } else { Ok(()) }
    }
}

/// The inner address of an admitted client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Address {
    pub(super) number: u32,
    /// Whether a packet has left with this address. An unused address need not rest.
    pub(super) used: bool,
}

/// The circuits of a client's session: those that are open, by tag, and how many wait for a session with their egress.
#[derive(Debug, Default)]
pub(super) struct Opened {
    pub(super) tags: Vec<u32>,
    pub(super) waiting: usize,
}

impl Opened {
    /// Returns how many circuits there are or will be.
    pub(super) fn len(&self) -> usize {
        self.tags.len() + self.waiting
    }
}

/// The peer at the other end.
#[derive(Debug)]
pub(super) enum Kind {
    /// A client, at an ingress.
    Client { path: Path, circuits: Opened },
    /// A client, at an egress.
    Inner { path: Path, address: Option<Address>, mtu: u16 },
    /// Another relay, whichever end began the session.
    Hop {
        relay: RelayId,
        key: RelayKey,
        to: SocketAddr,
        mask: Box<IndexMask>,
        /// Number of circuits over it.
        circuits: u32,
        /// Since when the directory does not list the relay with its key; `None` while it does.
        unlisted: Option<Time>,
        /// Since when a silent relay has been probed; `None` while it is not probed.
        asked: Option<Time>,
    },
}

impl Kind {
    pub(super) fn path_mut(&mut self) -> Option<&mut Path> {
        match self {
            Self::Client { path, .. } | Self::Inner { path, .. } => Some(path),
            Self::Hop { .. } => None,
        }
    }

    pub(super) fn route(&self) -> Route {
        match self {
            Self::Client { path, .. } | Self::Inner { path, .. } => path.route,
            Self::Hop { to, .. } => Route::Udp(*to),
        }
    }
}

/// The route to a client, and whether it is proven.
#[derive(Debug)]
pub(super) struct Path {
    pub(super) route: Route,
    unproven: Option<Box<Unproven>>,
}

#[derive(Debug)]
struct Unproven {
    received: u64,
    sent: u64,
    nonce: [u8; 8],
    offered: Offered,
    challenged: Option<Time>,
}

/// The index in the challenges of one nonce. The client takes that of the first challenge which arrives.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Offered {
    /// No challenge was sent yet.
    Nothing,
    /// The index in use: no slot was free for another one.
    Current,
    /// The index of this place.
    Fresh(Place),
}

impl Offered {
    fn place(self) -> Option<Place> {
        match self {
            Self::Fresh(place) => Some(place),
            Self::Nothing | Self::Current => None,
        }
    }
}

/// A path that its client has proven.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Proven {
    /// The place of the index that the client uses from then on; `None` when it keeps the one in use.
    pub(super) fresh: Option<Place>,
}

impl Path {
    /// Creates a path that the handshake itself has proven: the ML-KEM key came from where the reply went.
    pub(super) fn proven(route: Route) -> Self {
        Self { route, unproven: None }
    }

    /// Records an authentic packet of `bytes` bytes along `route`; `newest` says that no later packet was seen.
    /// Returns the place of a fresh index that is not needed any more.
    pub(super) fn received(
        &mut self,
        route: Route,
        bytes: usize,
        newest: bool,
        random: &mut dyn Random,
    ) -> Option<Place> {
        if route == self.route {
            if let Some(unproven) = &mut self.unproven {
                unproven.received += bytes as u64;
            }
            return None;
        }
        if !newest {
            return None;
        }
        self.route = route;
        let place = self.unproven.take().and_then(|old| old.offered.place());
        match route {
            // The hop session vouches for it: the route leads to a relay of the directory.
            Route::Circuit { .. } => place,
            Route::Udp(_) => {
                let (received, nonce) = (bytes as u64, array(random));
                let offered = place.map_or(Offered::Nothing, Offered::Fresh);
                self.unproven = Some(Box::new(Unproven { received, sent: 0, nonce, offered, challenged: None }));
                None
            }
        }
    }

    /// Returns whether the client has not yet proven that it is where its packets come from.
    pub(super) fn is_unproven(&self) -> bool {
        self.unproven.is_some()
    }

    /// Asks for permission to send `bytes` bytes along the path.
    ///
    /// # Errors
    /// [`DropReason::PathUnproven`] when three times the bytes received along the path have been sent.
    pub(super) fn may_send(&mut self, bytes: usize) -> Result<(), DropReason> {
        let Some(unproven) = &mut self.unproven else { return Ok(()) };
        let after = unproven.sent + bytes as u64;
        if after > unproven.received * AMPLIFICATION {
            return Err(DropReason::PathUnproven);
        }
        unproven.sent = after;
        Ok(())
    }

    /// Returns the nonce of a challenge that is due, and the place of the index in it. `fresh` allocates a place;
    /// without one the challenge repeats the index at `current`, so a client that moves is never left without a
    /// challenge.
    pub(super) fn challenge(
        &mut self,
        now: Time,
        current: Place,
        fresh: impl FnOnce() -> Option<Place>,
    ) -> Option<([u8; 8], Place)> {
        let unproven = self.unproven.as_mut()?;
        if unproven.challenged.is_some_and(|at| now.since(at) < CHALLENGE_AGAIN) {
            return None;
        }
        if unproven.offered == Offered::Nothing {
            unproven.offered = fresh().map_or(Offered::Current, Offered::Fresh);
        }
        unproven.challenged = Some(now);
        Some((unproven.nonce, unproven.offered.place().unwrap_or(current)))
    }

    /// Handles the echo of a challenge that came along `route`.
    pub(super) fn prove(&mut self, route: Route, nonce: [u8; 8]) -> Option<Proven> {
        let unproven = self.unproven.as_ref()?;
        if route != self.route || nonce != unproven.nonce {
            return None;
        }
        self.unproven.take().map(|unproven| Proven { fresh: unproven.offered.place() })
    }

    /// Returns when a challenge is due again.
    pub(super) fn deadline(&self) -> Option<Time> {
        let unproven = self.unproven.as_ref()?;
        unproven.challenged.map(|at| at.after(CHALLENGE_AGAIN))
    }

    /// Returns the place of a fresh index that was never put to use.
    pub(super) fn unused_place(&self) -> Option<Place> {
        self.unproven.as_ref().and_then(|unproven| unproven.offered.place())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Counting;

    const PLACE: Place = Place { shard: 0, slot: 7, generation: 1 };
    const CURRENT: Place = Place { shard: 0, slot: 3, generation: 0 };

    fn udp(port: u16) -> Route {
        Route::Udp(([192, 0, 2, 1], port).into())
    }

    #[test]
    fn new_address_gets_three_times_its_bytes_until_it_is_proven() {
        let (mut path, mut random) = (Path::proven(udp(1)), Counting::default());
        assert!(path.may_send(1_000_000).is_ok() && !path.is_unproven());
        path.received(udp(2), 100, false, &mut random);
        assert_eq!(path.route, udp(1), "an older packet does not move the path");
        path.received(udp(2), 100, true, &mut random);
        assert_eq!(path.may_send(301), Err(DropReason::PathUnproven));
        assert!(path.may_send(300).is_ok());
        assert_eq!(path.may_send(1), Err(DropReason::PathUnproven));
        let now = Time::default();
        let (nonce, place) = path.challenge(now, CURRENT, || Some(PLACE)).unwrap();
        assert_eq!((place, path.challenge(now, CURRENT, || None)), (PLACE, None), "no second challenge at once");
        assert_eq!(path.prove(udp(3), nonce), None, "an echo from another address");
        assert_eq!(path.prove(udp(2), [0; 8]), None);
        assert_eq!(path.prove(udp(2), nonce), Some(Proven { fresh: Some(PLACE) }));
        assert!(path.may_send(1_000_000).is_ok());
    }

    /// Regression: a client that moved while all slots were taken was never challenged.
    #[test]
    fn moved_client_is_challenged_with_its_old_index_when_no_slot_is_free() {
        let (mut path, mut random) = (Path::proven(udp(1)), Counting::default());
        path.received(udp(2), 100, true, &mut random);
        let (nonce, place) = path.challenge(Time::default(), CURRENT, || None).unwrap();
        assert_eq!(place, CURRENT);
        let later = Time::default().after(CHALLENGE_AGAIN);
        let again = path.challenge(later, CURRENT, || Some(PLACE));
        assert_eq!(again, Some((nonce, CURRENT)), "the client knows the index of the first challenge");
        assert_eq!(path.prove(udp(2), nonce), Some(Proven { fresh: None }));
        assert!(!path.is_unproven() && path.unused_place().is_none());
    }

    #[test]
    fn unused_fresh_index_is_returned() {
        let (mut path, mut random) = (Path::proven(udp(1)), Counting::default());
        path.received(udp(2), 100, true, &mut random);
        path.challenge(Time::default(), CURRENT, || Some(PLACE)).unwrap();
        assert_eq!(path.received(udp(3), 100, true, &mut random), None, "the next address uses it");
        let circuit = Route::Circuit { hop: EntryId { slot: 1, serial: 1 }, tag: 1 };
        assert_eq!(path.received(circuit, 100, true, &mut random), Some(PLACE));
        assert!(!path.is_unproven());
    }
}
