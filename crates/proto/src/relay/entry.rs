//! One session of a shard: its link, its route, its permissions.
//!
//! Owns admission and the proof of a changed path. Never moves packets.

use std::net::SocketAddr;
use std::time::Duration;

use super::Route;
use crate::drops::DropReason;
use crate::index::Place;
use crate::keys::RelayId;
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

/// The peer at the other end.
#[derive(Debug)]
pub(super) enum Kind {
    /// A client, at an ingress.
    Client { path: Path, circuits: u32 },
    /// A client, at an egress.
    Inner { path: Path, address: Option<Address>, mtu: u16 },
    /// Another relay, whichever end began the session.
    Hop {
        relay: RelayId,
        to: SocketAddr,
        mask: Box<IndexMask>,
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
    place: Option<Place>,
    challenged: Option<Time>,
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
        let place = self.unproven.take().and_then(|old| old.place);
        match route {
            // The hop session vouches for it: the route leads to a relay of the directory.
            Route::Circuit { .. } => place,
            Route::Udp(_) => {
                let (received, nonce) = (bytes as u64, array(random));
                self.unproven = Some(Box::new(Unproven { received, sent: 0, nonce, place, challenged: None }));
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

    /// Returns the nonce of a challenge that is due, and the place of the fresh index in it. `fresh` allocates a place.
    pub(super) fn challenge(&mut self, now: Time, fresh: impl FnOnce() -> Option<Place>) -> Option<([u8; 8], Place)> {
        let unproven = self.unproven.as_mut()?;
        if unproven.challenged.is_some_and(|at| now.since(at) < CHALLENGE_AGAIN) {
            return None;
        }
        let place = unproven.place.or_else(fresh)?;
        unproven.place = Some(place);
        unproven.challenged = Some(now);
        Some((unproven.nonce, place))
    }

    /// Handles the echo of a challenge that came along `route`. Returns the place of the index that is used from then
    /// on.
    pub(super) fn prove(&mut self, route: Route, nonce: [u8; 8]) -> Option<Place> {
        let unproven = self.unproven.as_ref()?;
        if route != self.route || nonce != unproven.nonce {
            return None;
        }
        self.unproven.take().and_then(|unproven| unproven.place)
    }

    /// Returns when a challenge is due again.
    pub(super) fn deadline(&self) -> Option<Time> {
        let unproven = self.unproven.as_ref()?;
        unproven.challenged.map(|at| at.after(CHALLENGE_AGAIN))
    }

    /// Returns the place of a fresh index that was never put to use.
    pub(super) fn unused_place(&self) -> Option<Place> {
        self.unproven.as_ref().and_then(|unproven| unproven.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Counting;

    const PLACE: Place = Place { shard: 0, slot: 7, generation: 1 };

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
        assert_eq!(path.challenge(now, || None), None);
        let (nonce, place) = path.challenge(now, || Some(PLACE)).unwrap();
        assert_eq!((place, path.challenge(now, || None)), (PLACE, None), "no second challenge at once");
        assert_eq!(path.prove(udp(3), nonce), None, "an echo from another address");
        assert_eq!(path.prove(udp(2), [0; 8]), None);
        assert_eq!(path.prove(udp(2), nonce), Some(PLACE));
        assert!(path.may_send(1_000_000).is_ok());
    }

    #[test]
    fn unused_fresh_index_is_returned() {
        let (mut path, mut random) = (Path::proven(udp(1)), Counting::default());
        path.received(udp(2), 100, true, &mut random);
        path.challenge(Time::default(), || Some(PLACE)).unwrap();
        assert_eq!(path.received(udp(3), 100, true, &mut random), None, "the next address uses it");
        let circuit = Route::Circuit { hop: EntryId { slot: 1, serial: 1 }, tag: 1 };
        assert_eq!(path.received(circuit, 100, true, &mut random), Some(PLACE));
        assert!(!path.is_unproven());
    }
}
