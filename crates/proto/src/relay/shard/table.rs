//! A shard's tables of sessions and of its clients' inner addresses.
//!
//! Owns two look-ups: from a receiver index to a session, which may have two indices for a while, and from an inner
//! address to a session. An address rests after its session ends, so that the next session does not receive its late
//! packets. Never looks at packets.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::super::entry::{Address, Entry, EntryId};
use crate::index::Place;
use crate::time::Time;

/// The networks of inner addresses: IPv4 with prefix length, IPv6 with prefix length.
pub const INNER_POOL: ((Ipv4Addr, u8), (Ipv6Addr, u8)) =
    ((Ipv4Addr::new(100, 64, 0, 0), 10), (Ipv6Addr::new(0xfd6f, 0x7265, 0x6c61, 0x7900, 0, 0, 0, 0), 64));
/// Number of addresses at the start of the pool that are reserved for the gateway and the clients' fixed address.
const FIRST_ADDRESS: u32 = 256;
/// Number of addresses of one shard.
const ADDRESSES: u32 = 1 << 16;
/// How long an address rests after its session.
const REST: Duration = Duration::from_secs(300);

/// Sessions, by identifier and by place.
#[derive(Debug, Default)]
pub(super) struct Table {
    entries: Vec<Option<(u32, Box<Entry>)>>,
    free: Vec<u32>,
    places: Vec<Option<(u8, EntryId)>>,
    len: usize,
    next_serial: u32,
}

impl Table {
    /// Returns the session that `place` leads to.
    pub(super) fn find(&self, place: Place) -> Option<EntryId> {
        let (generation, entry) = (*self.places.get(place.slot as usize)?)?;
        (generation == place.generation).then_some(entry)
    }

    pub(super) fn get(&self, id: EntryId) -> Option<&Entry> {
        let (serial, entry) = self.entries.get(id.slot as usize)?.as_ref()?;
        (*serial == id.serial).then_some(entry)
    }

    pub(super) fn get_mut(&mut self, id: EntryId) -> Option<&mut Entry> {
        let (serial, entry) = self.entries.get_mut(id.slot as usize)?.as_mut()?;
        (*serial == id.serial).then_some(entry)
    }

    /// Adds a session and returns its identifier.
    pub(super) fn insert(&mut self, session: Entry) -> EntryId {
        let place = session.place;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.entries.push(None);
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        });
        let id = EntryId { slot, serial: self.next_serial };
        self.next_serial = self.next_serial.wrapping_add(1);
        if let Some(room) = self.entries.get_mut(slot as usize) {
            *room = Some((id.serial, Box::new(session)));
            self.len += 1;
        }
        self.point(place, id);
        id
    }

    /// Makes `place` lead to `entry`.
    pub(super) fn point(&mut self, place: Place, entry: EntryId) {
        let slot = place.slot as usize;
        if self.places.len() <= slot {
            self.places.resize(slot + 1, None);
        }
        if let Some(room) = self.places.get_mut(slot) {
            *room = Some((place.generation, entry));
        }
    }

    /// Makes `place` lead to no session.
    pub(super) fn unpoint(&mut self, place: Place) {
        if self.find(place).is_some()
            && let Some(room) = self.places.get_mut(place.slot as usize)
        {
            *room = None;
        }
    }

    pub(super) fn remove(&mut self, id: EntryId) -> Option<Box<Entry>> {
        self.get(id)?;
        let (_, removed) = self.entries.get_mut(id.slot as usize)?.take()?;
        self.unpoint(removed.place);
        self.free.push(id.slot);
        self.len -= 1;
        Some(removed)
    }

    /// Returns the identifiers of all sessions.
    pub(super) fn ids(&self) -> impl Iterator<Item = EntryId> + '_ {
        (0..)
            .zip(&self.entries)
            .filter_map(|(slot, entry)| entry.as_ref().map(|(serial, _)| EntryId { slot, serial: *serial }))
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }
}

/// The inner addresses of one shard.
#[derive(Debug)]
pub(super) struct Addresses {
    shard: u8,
    holders: Vec<Option<EntryId>>,
    resting: VecDeque<(Time, u32)>,
    /// Released addresses that no packet has used.
    unused: Vec<u32>,
}

impl Addresses {
    pub(super) fn new(shard: u8) -> Self {
        Self { shard, holders: Vec::new(), resting: VecDeque::new(), unused: Vec::new() }
    }

    /// Gives `entry` an address; `None` when all are held or resting.
    pub(super) fn take(&mut self, entry: EntryId, now: Time) -> Option<u32> {
        let rested = self.resting.front().is_some_and(|(until, _)| *until <= now);
        let again = if rested { self.resting.pop_front().map(|(_, address)| address) } else { self.unused.pop() };
        if let Some(address) = again {
            *self.holders.get_mut(address as usize)? = Some(entry);
            return Some(address);
        }
        let address = u32::try_from(self.holders.len()).ok().filter(|&a| a < ADDRESSES - FIRST_ADDRESS)?;
        self.holders.push(Some(entry));
        Some(address)
    }

    /// Returns the shard to which `ip` belongs, if it is an inner address.
    pub(super) fn shard_of(ip: IpAddr) -> Option<u8> {
        parse_address(ip).map(|(shard, _)| shard)
    }

    /// Releases an address. An address that was used rests from then on.
    pub(super) fn release(&mut self, address: Address, now: Time) {
        let Address { number, used } = address;
        let held = self.holders.get_mut(number as usize).and_then(Option::take).is_some();
        if held && used {
            self.resting.push_back((now.after(REST), number));
        } else if held {
            self.unused.push(number);
        }
    }

    /// Returns the IP address with this number.
    pub(super) fn of(&self, address: u32, v6: bool) -> IpAddr {
        let offset = (u32::from(self.shard) << 16) | (FIRST_ADDRESS + address);
        let ((v4, _), (net6, _)) = INNER_POOL;
        if v6 {
            IpAddr::V6(Ipv6Addr::from_bits(net6.to_bits() | (1 << 32) | u128::from(offset)))
        } else {
            IpAddr::V4(Ipv4Addr::from_bits(v4.to_bits() | offset))
        }
    }

    /// Returns the session that holds `ip`.
    pub(super) fn holder(&self, ip: IpAddr) -> Option<EntryId> {
        let (shard, address) = parse_address(ip)?;
        if shard != self.shard {
            return None;
        }
        *self.holders.get(address as usize)?
    }
}

/// Returns the shard and the number of an inner IP address.
fn parse_address(ip: IpAddr) -> Option<(u8, u32)> {
    let ((v4, v4_len), (net6, _)) = INNER_POOL;
    let offset = match ip {
        IpAddr::V4(ip) => {
            let offset = ip.to_bits() ^ v4.to_bits();
            if offset >> (32 - u32::from(v4_len)) != 0 {
                return None;
            }
            offset
        }
        IpAddr::V6(ip) => {
            let rest = ip.to_bits() ^ net6.to_bits();
            if rest >> 32 != 1 {
                return None;
            }
            u32::try_from(rest & 0xffff_ffff).ok()?
        }
    };
    let shard = u8::try_from(offset >> 16).ok()?;
    let address = (offset & 0xffff).checked_sub(FIRST_ADDRESS)?;
    Some((shard, address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_rests_only_after_use() {
        let mut addresses = Addresses::new(0);
        let holder = EntryId { slot: 1, serial: 1 };
        let now = Time::default();
        let number = addresses.take(holder, now).unwrap();
        addresses.release(Address { number, used: false }, now);
        assert_eq!(addresses.take(holder, now), Some(number));
        addresses.release(Address { number, used: true }, now);
        assert_ne!(addresses.take(holder, now), Some(number));
        assert_eq!(addresses.take(holder, now.after(REST)), Some(number));
        addresses.release(Address { number, used: true }, now);
        addresses.release(Address { number, used: true }, now);
        assert_eq!(addresses.take(holder, now.after(REST)), Some(number));
        assert_ne!(addresses.take(holder, now.after(REST)), Some(number), "an address released twice is reused once");
    }
}
