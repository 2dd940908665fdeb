//! A shard's tables of sessions and of its clients' inner addresses.
//!
//! Owns two look-ups: from a receiver index to a session, which may have two indices for a while, and from an inner
//! address to a session. An address rests after its session ends, so that the next session does not receive its late
//! packets. Never looks at packets.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use super::super::entry::{Address, Entry, EntryId};
use super::super::holders::{Holders, Holding, Owner};
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
/// How long it rests at least when there is no other.
const SHORT_REST: Duration = Duration::from_secs(30);
/// Most sessions of an egress shard that have an address: the others are left for addresses that rest.
pub(super) const MOST_HELD: u32 = (ADDRESSES - FIRST_ADDRESS) / 4 * 3;

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

    /// Returns the number of slots that were ever used.
    pub(super) fn slots(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    /// Returns the session in a slot.
    pub(super) fn at(&self, slot: u32) -> Option<EntryId> {
        let (serial, _) = self.entries.get(slot as usize)?.as_ref()?;
        Some(EntryId { slot, serial: *serial })
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
///
/// An address that a packet has used rests after its session. It still belongs to the circuit that used it, and counts
/// in that circuit's share. A circuit over its share gets its own resting addresses again: only its own late packets
/// could reach it. When all are used up, the one that has rested longest is given to whoever comes, if it has rested
/// for [`SHORT_REST`].
#[derive(Debug)]
pub(super) struct Addresses {
    shard: u8,
    owned: Holders<u32>,
    numbers: Vec<Number>,
    resting: BTreeSet<(Time, u32)>,
    /// Addresses that belong to nobody.
    free: Vec<u32>,
    fair: bool,
}

/// What became of one address.
#[derive(Clone, Copy, Debug)]
struct Number {
    holder: Option<EntryId>,
    /// Until when it rests.
    until: Option<Time>,
    holding: Option<Holding>,
}

/// The answer to a session that needs an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Given {
    /// It has this address.
    Address(u32),
    /// Another session of the same circuit must end first; it has the address.
    After(EntryId),
    /// All are in use until this time has passed.
    Full(Duration),
}

impl Addresses {
    pub(super) fn new(shard: u8) -> Self {
        Self {
            shard,
            owned: Holders::new((ADDRESSES - FIRST_ADDRESS) as usize),
            numbers: Vec::new(),
            resting: BTreeSet::new(),
            free: Vec::new(),
            fair: true,
        }
    }

    /// Switches shares off: first come, first served.
    pub(super) fn ignore_shares(&mut self) {
        self.fair = false;
        self.owned.ignore_shares();
    }

    /// Gives `entry` of `owner` an address.
    pub(super) fn take(&mut self, owner: Owner, entry: EntryId, now: Time) -> Given {
        while let Some(&(until, number)) = self.resting.first()
            && until <= now
        {
            self.wake(number);
            self.free.push(number);
        }
        if let Some(number) = self.owned.gives_way(owner)
            && let Some(found) = self.numbers.get(number as usize).copied()
            && found.holding.is_some_and(|holding| holding.is_of(owner))
        {
            if let Some(holder) = found.holder {
                return Given::After(holder);
            }
            self.wake(number);
            return self.give(number, owner, entry);
        }
        if let Some(number) = self.free.pop() {
            return self.give(number, owner, entry);
        }
        let fresh = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        if fresh < ADDRESSES - FIRST_ADDRESS {
            self.numbers.push(Number { holder: None, until: None, holding: None });
            return self.give(fresh, owner, entry);
        }
        match self.resting.first() {
            Some(&(until, number)) if self.fair && now.after(REST - SHORT_REST) >= until => {
                self.wake(number);
                self.give(number, owner, entry)
            }
            Some(&(until, _)) if self.fair => Given::Full(until.since(now.after(REST - SHORT_REST))),
            Some(&(until, _)) => Given::Full(until.since(now)),
            None => Given::Full(SHORT_REST),
        }
    }

    /// Ends the rest of an address, which then belongs to nobody.
    fn wake(&mut self, number: u32) {
        let Some(found) = self.numbers.get_mut(number as usize) else { return };
        if let Some(until) = found.until.take() {
            self.resting.remove(&(until, number));
        }
        if let Some(holding) = found.holding.take() {
            self.owned.release(holding);
        }
    }

    fn give(&mut self, number: u32, owner: Owner, entry: EntryId) -> Given {
        let holding = self.owned.hold(owner, number);
        if let Some(found) = self.numbers.get_mut(number as usize) {
            *found = Number { holder: Some(entry), until: None, holding: Some(holding) };
        }
        Given::Address(number)
    }

    /// Returns the shard to which `ip` belongs, if it is an inner address.
    pub(super) fn shard_of(ip: IpAddr) -> Option<u8> {
        parse_address(ip).map(|(shard, _)| shard)
    }

    /// Releases an address. An address that was used rests from then on.
    pub(super) fn release(&mut self, address: Address, now: Time) {
        let Address { number, used } = address;
        let Some(found) = self.numbers.get_mut(number as usize) else { return };
        if found.holder.take().is_none() {
            return;
        }
        if used {
            let until = now.after(REST);
            found.until = Some(until);
            self.resting.insert((until, number));
        } else {
            self.wake(number);
            self.free.push(number);
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
        self.numbers.get(address as usize)?.holder
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
    const NOW: Time = Time::from_micros(1);

    fn holder(slot: u32) -> EntryId {
        EntryId { slot, serial: slot }
    }

    fn owner(group: u64, member: u64) -> Owner {
        Owner { group, member }
    }

    fn number(given: Given) -> u32 {
        match given {
            Given::Address(number) => number,
            Given::After(_) | Given::Full(_) => panic!("{given:?}"),
        }
    }

    #[test]
    fn address_rests_only_after_use() {
        let mut addresses = Addresses::new(0);
        let take = |addresses: &mut Addresses, now| number(addresses.take(owner(1, 1), holder(1), now));
        let first = take(&mut addresses, NOW);
        addresses.release(Address { number: first, used: false }, NOW);
        assert_eq!(take(&mut addresses, NOW), first);
        addresses.release(Address { number: first, used: true }, NOW);
        assert_ne!(take(&mut addresses, NOW), first);
        assert_eq!(take(&mut addresses, NOW.after(REST)), first);
        addresses.release(Address { number: first, used: true }, NOW);
        addresses.release(Address { number: first, used: true }, NOW);
        assert_eq!(take(&mut addresses, NOW.after(REST)), first);
        assert_ne!(take(&mut addresses, NOW.after(REST)), first, "an address released twice is reused once");
    }

    /// One circuit uses addresses up as fast as it can: it comes to half of them, and then has its own again.
    #[test]
    fn circuit_over_its_share_gets_its_own_resting_addresses() {
        let mut addresses = Addresses::new(0);
        let honest = number(addresses.take(owner(1, 9), holder(0), NOW));
        for round in 0..2 * ADDRESSES {
            let used = number(addresses.take(owner(1, 1), holder(1), NOW));
            assert_ne!(used, honest, "round {round}");
            addresses.release(Address { number: used, used: true }, NOW);
        }
        assert!(addresses.owned.len() <= (ADDRESSES / 2) as usize);
        number(addresses.take(owner(1, 2), holder(2), NOW));
    }

    #[test]
    fn circuit_that_holds_its_share_ends_its_own_oldest_session() {
        let mut addresses = Addresses::new(0);
        let share = (ADDRESSES - FIRST_ADDRESS) / 2;
        for slot in 0..share {
            number(addresses.take(owner(1, 1), holder(slot), NOW));
        }
        assert_eq!(addresses.take(owner(1, 1), holder(share), NOW), Given::After(holder(0)));
        assert!(matches!(addresses.take(owner(1, 2), holder(share), NOW), Given::Address(_)), "another circuit");
    }

    /// Many circuits that each use one address can use all of them up. The one that rests longest is then given away,
    /// but not before it has rested for a while.
    #[test]
    fn newcomer_waits_at_most_a_short_rest_when_all_addresses_are_used_up() {
        let mut addresses = Addresses::new(0);
        for circuit in 0..ADDRESSES - FIRST_ADDRESS {
            let used = number(addresses.take(owner(1, circuit.into()), holder(1), NOW));
            addresses.release(Address { number: used, used: true }, NOW);
        }
        assert_eq!(addresses.take(owner(2, 1), holder(2), NOW), Given::Full(SHORT_REST));
        number(addresses.take(owner(2, 1), holder(2), NOW.after(SHORT_REST)));
        let mut unfair = Addresses::new(0);
        unfair.ignore_shares();
        for _ in 0..ADDRESSES - FIRST_ADDRESS {
            let used = number(unfair.take(owner(1, 1), holder(1), NOW));
            unfair.release(Address { number: used, used: true }, NOW);
        }
        assert!(matches!(unfair.take(owner(2, 1), holder(2), NOW.after(SHORT_REST)), Given::Full(_)));
    }
}
