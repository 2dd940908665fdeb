//! Each network's share of the handshakes while the relay is under load.
//!
//! Owns a table of fixed size with allowances, indexed by a keyed hash of the network. A sender with many addresses
//! in one network has one share of the handshake thread, not all of it. Two networks may fall on one entry and share
//! it. Also names the owner of whatever a sender gets ([`Owner`]). Never holds an address.
//!
//! Source: the generic cell rate algorithm, ITU-T I.371 §A.1.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::keys::{Secret, sha256};
use crate::random::{Random, array};
use crate::relay::Route;
use crate::relay::holders::Owner;
use crate::time::Time;

/// Number of allowances, 8 bytes each.
const PLACES: usize = 1 << 12;

/// The rate at which one kind of network may begin handshakes.
struct Rate {
    every: Duration,
    burst: u32,
}

/// An IPv4 network of 24 bits or an IPv6 network of 48 bits: an office, a street.
const NETWORK: Rate = Rate { every: Duration::from_millis(20), burst: 200 };
/// A session with an ingress, which has many clients; well below what one core can answer.
const HOP: Rate = Rate { every: Duration::from_millis(1), burst: 1_000 };

/// The shares of all networks; all shards of a relay use the same ones.
#[derive(Debug)]
pub(super) struct Shares {
    key: Secret,
    /// When each allowance will be full again, in microseconds.
    whole_at: Box<[AtomicU64]>,
}

impl Shares {
    pub(super) fn new(random: &mut dyn Random) -> Self {
        Self { key: Secret(array(random)), whole_at: (0..PLACES).map(|_| AtomicU64::new(0)).collect() }
    }

    /// Returns whoever owns what a sender along `route` gets.
    pub(super) fn owner(&self, route: Route) -> Owner {
        let (network, _) = network(route);
        let hash = |parts: &[&[u8]]| sha256(parts).first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes));
        Owner { group: hash(&[&self.key.0, &network]), member: hash(&[&self.key.0, &network, &member(route)]) }
    }

    /// Takes one handshake from the share to which `route` belongs; returns false when the share is used up.
    pub(super) fn take(&self, route: Route, now: Time) -> bool {
        let (network, rate) = network(route);
        let digest = sha256(&[&self.key.0, &network]);
        let place = usize::from(u16::from_be_bytes([digest[0], digest[1]])) % PLACES;
        let Some(whole_at) = self.whole_at.get(place) else { return false };
        let [now, every] = [now.as_micros(), u64::try_from(rate.every.as_micros()).unwrap_or(u64::MAX)];
        let taken = |at: u64| {
            let at = at.max(now);
            (at - now <= every * u64::from(rate.burst - 1)).then_some(at + every)
        };
        whole_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, taken).is_ok()
    }
}

/// Returns what tells the owners inside one network apart, as bytes: the IPv4 address, the IPv6 network of 64 bits, or
/// the circuit's tag.
fn member(route: Route) -> [u8; 8] {
    let mut name = [0; 8];
    match route {
        Route::Udp(SocketAddr::V4(address)) => name[..4].copy_from_slice(&address.ip().octets()),
        Route::Udp(SocketAddr::V6(address)) => name.copy_from_slice(&address.ip().octets()[..8]),
        Route::Circuit { tag, .. } => name[..4].copy_from_slice(&tag.to_be_bytes()),
    }
    name
}

/// Returns the network to which `route` leads, as bytes, and its rate.
fn network(route: Route) -> ([u8; 9], Rate) {
    let mut name = [0; 9];
    let rate = match route {
        Route::Udp(SocketAddr::V4(address)) => {
            name[0] = 4;
            name[1..4].copy_from_slice(&address.ip().octets()[..3]);
            NETWORK
        }
        Route::Udp(SocketAddr::V6(address)) => {
            name[0] = 6;
            name[1..7].copy_from_slice(&address.ip().octets()[..6]);
            NETWORK
        }
        Route::Circuit { hop, .. } => {
            name[0] = 1;
            name[1..].copy_from_slice(&hop.to_bytes());
            HOP
        }
    };
    (name, rate)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Counting;
    use crate::relay::EntryId;

    fn udp(address: &str) -> Route {
        Route::Udp(address.parse().unwrap())
    }

    /// Returns how many of 1,500 handshakes at the same time are accepted. `route` gives the route of each.
    fn taken(shares: &Shares, route: impl Fn(u16) -> Route, now: Time) -> usize {
        (0..1_500).filter(|&n| shares.take(route(n), now)).count()
    }

    #[test]
    fn network_gets_its_burst_and_then_its_rate() {
        let shares = Shares::new(&mut Counting::default());
        let start = Time::from_micros(1_000_000);
        let v4 = |n: u16| udp(&format!("192.0.2.{}:{}", n % 256, n));
        let v6 = |n: u16| udp(&format!("[2001:db8:1:{n:x}::1]:443"));
        assert_eq!(taken(&shares, v4, start), 200, "whatever the address and port");
        assert_eq!(taken(&shares, v6, start), 200);
        assert_eq!(taken(&shares, |_| udp("192.0.3.1:1"), start), 200, "a neighbouring network has its own share");
        assert_eq!(taken(&shares, v4, start.after(Duration::from_millis(19))), 0);
        assert_eq!(taken(&shares, v4, start.after(Duration::from_secs(1))), 50);
        assert_eq!(taken(&shares, v4, start.after(Duration::from_secs(60))), 200);
    }

    #[test]
    fn each_ingress_has_its_own_larger_share() {
        let shares = Shares::new(&mut Counting::default());
        let circuit = |hop| move |tag: u16| Route::Circuit { hop: EntryId { slot: hop, serial: 1 }, tag: tag.into() };
        let now = Time::from_micros(1);
        assert_eq!(taken(&shares, circuit(1), now), 1_000);
        assert_eq!(taken(&shares, circuit(2), now), 1_000);
    }
}
