//! What each client of an egress may have open: flows and fragments.
//!
//! Owns a bounded table of the flows that clients of one shard began. A flow is in the kernel's connection tracking
//! only if it is here: a new flow that finds no room is dropped before the kernel sees it, and a flow that gives way to
//! another is deleted there. A refused packet costs one look-up. Never holds a payload.
//!
//! A client's limit shrinks with what is left of the table: it may hold an eighth of the free places, at most
//! [`MOST`]. So a share binds only when more than half of the table is used, and a newcomer always finds room. A client
//! at its limit replaces its own idle flows, oldest first. If the table is full, a client with few flows takes the
//! place of one that has many.
//!
//! Source: Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches" (1998).

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use openrelay_proto::drops::DropReason;
use openrelay_proto::ip::{ICMP, ICMPV6, Packet, TCP, UDP};
use openrelay_proto::relay::INNER_POOL;
use openrelay_proto::time::Time;
use openrelay_sys::conntrack::Tuple;

use super::fragments::Fragments;
use super::rate::{Bucket, Rate};

/// Most flows of one client: more than browsers and a torrent client open.
const MOST: u32 = 4_096;
/// A client may hold one in this many free places.
const SHARE: u32 = 8;
/// A client with fewer flows gets a place in a full table.
const FEW: u32 = 16;
/// Flows that a client at its limit may replace: per second, and at once.
const REPLACED: Rate = Rate { per_second: 64, burst: 64 };
/// Queues of a client's flows: open TCP connections, and everything else.
const OPEN_TCP: usize = 0;
const SHORT: usize = 1;
/// ICMP errors that a client gets.
const ERRORS: Rate = Rate { per_second: 10, burst: 20 };
/// How long a flow in each queue must be idle to be replaced.
const IDLE: [Duration; 2] = [Duration::from_secs(60), Duration::from_secs(2)];
/// Flows of ended sessions that are deleted at once.
const CLEARED: usize = 256;
/// Places that are looked at in search of one to replace.
const LOOKS: usize = 8;
const NONE: u32 = u32::MAX;
const FIN_OR_RST: u8 = 0x05;
const SYN: u8 = 0x02;
const SYN_ACK_FIN_RST: u8 = 0x17;

/// A flow, as the kernel tells flows apart.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Key {
    destination: [u8; 16],
    /// Number of the client's address, from zero.
    owner: u16,
    protocol: u8,
    v6: bool,
    /// Source and destination port, or identifier of an echo request and zero.
    ports: [u16; 2],
}

struct Place {
    key: Key,
    used: Time,
    /// Number of its queue: [`OPEN_TCP`] or [`SHORT`].
    class: usize,
    /// Its neighbours in the queue. Of a free place, `next` is the next free one.
    before: u32,
    next: u32,
}

#[derive(Clone, Copy)]
struct Queue {
    first: u32,
    last: u32,
}

#[derive(Clone, Copy)]
struct Owner {
    count: u32,
    queues: [Queue; 2],
    replaced: Bucket,
    fragments: Fragments,
    errors: Bucket,
}

impl Default for Owner {
    fn default() -> Self {
        Self {
            count: 0,
            queues: [Queue { first: NONE, last: NONE }; 2],
            replaced: Bucket::default(),
            fragments: Fragments::default(),
            errors: Bucket::default(),
        }
    }
}

/// The flows of one shard's clients.
pub(super) struct Flows {
    shard: u8,
    places: Vec<Place>,
    capacity: u32,
    free: u32,
    used: u32,
    index: HashMap<Key, u32>,
    owners: Vec<Owner>,
    /// The flow of the newest packet. Packets come in trains.
    newest: Option<(Key, u32)>,
    /// Clients whose sessions have ended, and whose flows have not been deleted yet.
    ended: VecDeque<u16>,
    /// Where the search for a place to take from others goes on.
    hand: u32,
}

/// Deletes a flow from the kernel's connection tracking. Returns false if that is impossible at the moment.
pub(super) type Forget<'a> = &'a dyn Fn(&Tuple) -> bool;

impl Flows {
    /// Returns a table for `capacity` flows of the shard's clients: at most 120 bytes for each, and 10 MiB for clients.
    /// Unused places cost no memory.
    pub(super) fn new(shard: u8, capacity: u32) -> Self {
        Self {
            shard,
            places: Vec::with_capacity(capacity as usize),
            capacity,
            free: NONE,
            used: 0,
            index: HashMap::with_capacity(capacity as usize),
            owners: Vec::with_capacity(1 << 16),
            newest: None,
            ended: VecDeque::new(),
            hand: 0,
        }
    }

    /// Admits a packet from a client, already translated, or refuses it.
    ///
    /// # Errors
    /// [`DropReason::TooManyFlows`] for a new flow or a fragment beyond the client's limit.
    pub(super) fn admit(
        &mut self,
        packet: &Packet,
        bytes: &[u8],
        now: Time,
        forget: Forget<'_>,
    ) -> Result<(), DropReason> {
        let owner = number_of(packet.source);
        if packet.fragment && !self.owner(owner).fragments.admit(packet, bytes, now) {
            return Err(DropReason::TooManyFlows);
        }
        let Some((key, flags)) = key_of(owner, packet, bytes) else {
            // The firewall judges what has no ports, and the kernel joins fragments before it does.
            return Ok(());
        };
        let known = match self.newest {
            Some((newest, place)) if newest == key => Some(place),
            _ => self.index.get(&key).copied(),
        };
        if let Some(place) = known {
            self.newest = Some((key, place));
            self.use_again(place, flags, now);
            return Ok(());
        }
        // The firewall answers TCP that belongs to no connection.
        if key.protocol == TCP && flags & SYN_ACK_FIN_RST != SYN {
            return Ok(());
        }
        self.begin(key, now, forget)
    }

    /// Returns whether a client may get another ICMP error.
    pub(super) fn may_answer(&mut self, source: IpAddr, now: Time) -> bool {
        self.owner(number_of(source)).errors.take(&ERRORS, now)
    }

    fn use_again(&mut self, number: u32, flags: u8, now: Time) {
        let Some(place) = self.places.get_mut(number as usize) else { return };
        place.used = now;
        let class = match place.class {
            OPEN_TCP if flags & FIN_OR_RST != 0 => SHORT,
            SHORT if flags & SYN != 0 => OPEN_TCP,
            _ => return,
        };
        self.unlink(number);
        self.push(class, number);
    }

    /// Takes note that a client's session has ended. Its address rests, so nobody else gets its flows meanwhile.
    pub(super) fn end(&mut self, source: Ipv4Addr) {
        self.ended.push_back(number_of(source.into()));
    }

    /// Deletes flows of ended sessions, a limited number at once. Returns whether some are left.
    pub(super) fn clear_ended(&mut self, forget: Forget<'_>) -> bool {
        for _ in 0..CLEARED {
            let Some(&owner) = self.ended.front() else { break };
            let class = if self.first(owner, OPEN_TCP).is_some() { OPEN_TCP } else { SHORT };
            let Some(place) = self.first(owner, class).and_then(|first| self.places.get(first as usize)) else {
                *self.owner(owner) = Owner::default();
                self.ended.pop_front();
                continue;
            };
            if !forget(&self.tuple(&place.key)) {
                break;
            }
            self.remove_first(owner, class);
        }
        !self.ended.is_empty()
    }

    fn begin(&mut self, key: Key, now: Time, forget: Forget<'_>) -> Result<(), DropReason> {
        let left = self.capacity.saturating_sub(self.used);
        let count = self.owner(key.owner).count;
        if left == 0 || count >= (left / SHARE).clamp(FEW, MOST) {
            self.make_room(key.owner, left == 0 && count < FEW, now, forget).ok_or(DropReason::TooManyFlows)?;
        }
        self.insert(key, now);
        Ok(())
    }

    /// Ends a flow in favour of a new one of `owner`: an idle one of the same client, or with `others` any flow of a
    /// client that has more.
    fn make_room(&mut self, owner: u16, others: bool, now: Time, forget: Forget<'_>) -> Option<()> {
        if !self.owner(owner).replaced.take(&REPLACED, now) {
            return None;
        }
        let count = self.owner(owner).count;
        let from = if others { self.richest(count + 1)? } else { owner };
        let class = self.idle(from, now, others)?;
        let tuple = self.tuple(&self.places.get(self.first(from, class)? as usize)?.key);
        if forget(&tuple) { self.remove_first(from, class) } else { None }
    }

    fn insert(&mut self, key: Key, now: Time) {
        let class = if key.protocol == TCP { OPEN_TCP } else { SHORT };
        let place = Place { key, used: now, class, before: NONE, next: NONE };
        let number = if self.free == NONE {
            self.places.push(place);
            u32::try_from(self.places.len() - 1).unwrap_or(NONE)
        } else {
            let number = self.free;
            if let Some(room) = self.places.get_mut(number as usize) {
                self.free = room.next;
                *room = place;
            }
            number
        };
        self.used += 1;
        self.index.insert(key, number);
        self.newest = Some((key, number));
        self.owner(key.owner).count += 1;
        self.push(class, number);
    }

    /// Looks for a flow that may be replaced, and brings it to the front of its queue. Returns the queue's number.
    fn idle(&mut self, owner: u16, now: Time, any: bool) -> Option<usize> {
        for class in [SHORT, OPEN_TCP] {
            for _ in 0..LOOKS {
                let Some(first) = self.first(owner, class) else { break };
                if now.since(self.places.get(first as usize)?.used) >= IDLE[class] {
                    return Some(class);
                }
                self.unlink(first);
                self.push(class, first);
            }
        }
        let held = |class: &usize| self.first(owner, *class).is_some();
        any.then(|| [SHORT, OPEN_TCP].into_iter().find(held)).flatten()
    }

    /// Returns the client with the most flows among some, if it has more than `least`.
    fn richest(&mut self, least: u32) -> Option<u16> {
        let mut best = None;
        let mut most = least;
        for _ in 0..LOOKS {
            self.hand = (self.hand + 1) % u32::try_from(self.places.len().max(1)).unwrap_or(1);
            let Some(place) = self.places.get(self.hand as usize) else { continue };
            let owner = place.key.owner;
            let count = self.owners.get(usize::from(owner)).map_or(0, |owner| owner.count);
            if count > most {
                (best, most) = (Some(owner), count);
            }
        }
        best
    }

    fn first(&self, owner: u16, class: usize) -> Option<u32> {
        let first = self.owners.get(usize::from(owner))?.queues.get(class)?.first;
        (first != NONE).then_some(first)
    }

    fn queue(&mut self, owner: u16, class: usize) -> Option<&mut Queue> {
        self.owner(owner).queues.get_mut(class)
    }

    fn unlink(&mut self, number: u32) {
        let Some(&Place { key: Key { owner, .. }, class, before, next, .. }) = self.places.get(number as usize) else {
            return;
        };
        if let Some(place) = self.places.get_mut(before as usize) {
            place.next = next;
        } else if let Some(queue) = self.queue(owner, class) {
            queue.first = next;
        }
        if let Some(place) = self.places.get_mut(next as usize) {
            place.before = before;
        } else if let Some(queue) = self.queue(owner, class) {
            queue.last = before;
        }
    }

    /// Puts a flow at the end of a queue of its client.
    fn push(&mut self, class: usize, number: u32) {
        let Some(place) = self.places.get_mut(number as usize) else { return };
        place.class = class;
        let owner = place.key.owner;
        let Some(queue) = self.queue(owner, class) else { return };
        let before = std::mem::replace(&mut queue.last, number);
        if before == NONE {
            queue.first = number;
        }
        self.link(before, number);
        self.link(number, NONE);
    }

    /// Makes `after` the neighbour of `before`; either may be none.
    fn link(&mut self, before: u32, after: u32) {
        if let Some(place) = self.places.get_mut(before as usize) {
            place.next = after;
        }
        if let Some(place) = self.places.get_mut(after as usize) {
            place.before = before;
        }
    }

    /// Removes a client's first flow of a class.
    fn remove_first(&mut self, owner: u16, class: usize) -> Option<()> {
        let number = self.first(owner, class)?;
        self.unlink(number);
        let free = std::mem::replace(&mut self.free, number);
        let place = self.places.get_mut(number as usize)?;
        place.next = free;
        let key = place.key;
        self.index.remove(&key);
        self.newest = None;
        self.used -= 1;
        self.owner(owner).count -= 1;
        Some(())
    }

    fn owner(&mut self, number: u16) -> &mut Owner {
        let at = usize::from(number);
        if self.owners.len() <= at {
            self.owners.resize(at + 1, Owner::default());
        }
        &mut self.owners[at]
    }

    fn tuple(&self, key: &Key) -> Tuple {
        let ((v4, _), (v6, _)) = INNER_POOL;
        let offset = u32::from(self.shard) << 16 | u32::from(key.owner);
        let (source, destination): (IpAddr, IpAddr) = if key.v6 {
            (
                Ipv6Addr::from_bits(v6.to_bits() | 1 << 32 | u128::from(offset)).into(),
                Ipv6Addr::from(key.destination).into(),
            )
        } else {
            let [.., a, b, c, d] = key.destination;
            (Ipv4Addr::from_bits(v4.to_bits() | offset).into(), Ipv4Addr::new(a, b, c, d).into())
        };
        let [from, to] = key.ports;
        Tuple {
            protocol: key.protocol,
            source: SocketAddr::new(source, from),
            destination: SocketAddr::new(destination, to),
        }
    }
}

/// Returns the number of an inner address in its shard: both addresses of a client have the same.
fn number_of(source: IpAddr) -> u16 {
    let low = match source {
        IpAddr::V4(v4) => v4.to_bits() & 0xffff,
        IpAddr::V6(v6) => u32::try_from(v6.to_bits() & 0xffff).unwrap_or(0),
    };
    u16::try_from(low).unwrap_or(0)
}

/// Returns the flow of a packet and its TCP flags; `None` if the packet has no transport header with ports.
fn key_of(owner: u16, packet: &Packet, bytes: &[u8]) -> Option<(Key, u8)> {
    if !packet.has_transport {
        return None;
    }
    let head = bytes.get(packet.transport..)?.first_chunk::<8>()?;
    let [a, b, c, d, e, f, _, _] = *head;
    let (ports, flags) = match (packet.protocol, packet.is_v6(), a) {
        (TCP, ..) => (
            [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])],
            bytes.get(packet.transport + 13).copied().unwrap_or(0),
        ),
        (UDP, ..) => ([u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])], 0),
        (ICMP, false, 8) | (ICMPV6, true, 128) => ([u16::from_be_bytes([e, f]), 0], 0),
        _ => return None,
    };
    let destination = match packet.destination {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    Some((Key { destination, owner, protocol: packet.protocol, v6: packet.is_v6(), ports }, flags))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
    use super::*;
    use std::cell::RefCell;

    struct Table {
        flows: Flows,
        forgotten: RefCell<Vec<Tuple>>,
    }

    impl Table {
        fn new(capacity: u32) -> Self {
            Self { flows: Flows::new(1, capacity), forgotten: RefCell::new(Vec::new()) }
        }

        fn admit(&mut self, bytes: &[u8], seconds: u64) -> bool {
            let packet = Packet::parse(bytes).unwrap();
            let forget = |tuple: &Tuple| {
                self.forgotten.borrow_mut().push(*tuple);
                true
            };
            self.flows.admit(&packet, bytes, Time::from_micros(seconds * 1_000_000), &forget).is_ok()
        }

        /// Returns how many of `count` new UDP flows of a client are admitted.
        fn open(&mut self, client: u16, first: u16, count: u16, seconds: u64) -> usize {
            (first..first + count).filter(|port| self.admit(&udp(client, *port), seconds)).count()
        }
    }

    fn v4(client: u16, protocol: u8, transport: &[u8]) -> Vec<u8> {
        let length = u16::try_from(20 + transport.len()).unwrap().to_be_bytes();
        let [a, b] = client.to_be_bytes();
        let mut bytes =
            vec![0x45, 0, length[0], length[1], 0, 1, 0, 0, 64, protocol, 0, 0, 100, 65, a, b, 93, 184, 215, 2];
        bytes.extend_from_slice(transport);
        bytes
    }

    fn udp(client: u16, port: u16) -> Vec<u8> {
        let [a, b] = port.to_be_bytes();
        v4(client, UDP, &[a, b, 0, 53, 0, 8, 0, 0])
    }

    fn tcp(client: u16, port: u16, flags: u8) -> Vec<u8> {
        let [a, b] = port.to_be_bytes();
        v4(client, TCP, &[a, b, 1, 187, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 1, 0, 0, 0, 0, 0])
    }

    #[test]
    fn client_at_its_limit_replaces_its_own_idle_flows_and_its_known_flows_go_on() {
        let mut table = Table::new(1 << 16);
        assert_eq!(table.open(300, 0, 10_000, 0), 4_096);
        assert!(table.admit(&udp(300, 0), 2), "a known flow");
        assert_eq!(table.open(300, 20_000, 100, 1), 0, "nothing is idle");
        assert_eq!(table.open(301, 0, 100, 1), 100, "another client");
        assert_eq!(table.open(300, 30_000, 100, 3), 64, "idle flows give way at a limited rate");
        let gone = table.forgotten.borrow().clone();
        assert_eq!(gone.len(), 64);
        let used = "100.65.1.44:0".parse().unwrap();
        assert!(gone.iter().all(|tuple| tuple.source != used), "a flow in use stays");
        assert_eq!(gone[0].source.ip(), used.ip());
        assert_eq!(gone[0].destination, "93.184.215.2:53".parse().unwrap());
        assert!(table.admit(&udp(300, 0), 4));
    }

    #[test]
    fn refusal_by_the_guard_keeps_the_old_flow() {
        let mut table = Table::new(1 << 16);
        table.open(300, 0, 4_096, 0);
        let bytes = udp(300, 9_000);
        let packet = Packet::parse(&bytes).unwrap();
        assert!(table.flows.admit(&packet, &bytes, Time::from_micros(9_000_000), &|_| false).is_err());
        assert!(table.admit(&udp(300, 0), 9));
    }

    #[test]
    fn shares_bind_only_above_half_of_the_table_and_leave_room_for_newcomers() {
        let mut table = Table::new(4_096);
        assert_eq!(table.open(300, 0, 5_000, 0), 455, "an eighth of what is free, when it is reached");
        for client in 301..1_000 {
            table.open(client, 0, 5_000, 0);
        }
        assert_eq!(table.flows.used, 4_096, "used up");
        let before = table.forgotten.borrow().len();
        let got = table.open(2_000, 0, 32, 0);
        assert!((4_096 / 701..=16).contains(&got), "a newcomer takes places of clients with more: {got}");
        assert_eq!(table.flows.used, 4_096);
        assert_eq!(table.forgotten.borrow().len(), before + got);
    }

    #[test]
    fn tcp_flow_begins_with_syn_and_gives_way_after_its_end() {
        let mut table = Table::new(1 << 16);
        assert!(table.admit(&tcp(300, 1, 0x10), 0), "the firewall answers it");
        assert_eq!(table.flows.used, 0);
        for port in 0..4_096 {
            assert!(table.admit(&tcp(300, port, SYN), 1_000));
        }
        assert!(!table.admit(&tcp(300, 5_000, SYN), 1_010), "no connection is idle for a minute");
        for port in 0..8 {
            assert!(table.admit(&tcp(300, port, 0x11), 1_010));
        }
        assert!(!table.admit(&tcp(300, 5_000, SYN), 1_011), "its end may still be under way");
        assert!(table.admit(&tcp(300, 5_000, SYN), 1_013), "a closed one gives way");
        assert_eq!(table.forgotten.borrow().len(), 1);
    }

    #[test]
    fn incomplete_packets_are_limited_and_others_are_not() {
        let mut table = Table::new(1 << 16);
        let mut later = udp(300, 1);
        later[7] = 1;
        assert_eq!((0..500).filter(|_| table.admit(&later, 0)).count(), 256);
        assert!(table.admit(&udp(300, 1), 0));
        assert_eq!((0..500).filter(|_| table.admit(&later, 2)).count(), 16);
        assert_eq!(table.flows.used, 1);
    }

    #[test]
    fn end_of_a_session_frees_its_flows_alone() {
        let mut table = Table::new(1 << 16);
        table.open(300, 0, 100, 0);
        table.open(301, 0, 10, 0);
        assert!(table.admit(&tcp(300, 1, SYN), 0));
        table.flows.end(Ipv4Addr::new(100, 65, 1, 44));
        assert!(table.flows.clear_ended(&|_| false), "a busy guard is asked later");
        assert_eq!(table.flows.used, 111);
        assert!(!table.flows.clear_ended(&|_| true));
        assert_eq!((table.flows.used, table.flows.index.len()), (10, 10));
        assert_eq!(table.open(300, 0, 4_100, 0), 4_096);
        assert!(table.forgotten.borrow().is_empty());
        table.flows.end(Ipv4Addr::new(100, 65, 1, 44));
        assert_eq!((0..100).take_while(|_| table.flows.clear_ended(&|_| true)).count(), 4_096 / CLEARED);
    }

    #[test]
    fn random_packets_keep_counts_queues_and_index_consistent() {
        let mut table = Table::new(64);
        let mut state = 1u64;
        for step in 0..200_000u64 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let below = |shift: u32, limit: u64| u16::try_from((state >> shift) % limit).unwrap();
            let (client, port) = (300 + below(40, 9), below(50, 200));
            match (state >> 33) % 40 {
                0 => {
                    table.flows.end(Ipv4Addr::from_bits(0x6441_0000 | u32::from(client)));
                    table.flows.clear_ended(&|_| true);
                }
                1..20 => drop(table.admit(&udp(client, port), step / 100)),
                kind => drop(table.admit(&tcp(client, port, if kind < 35 { SYN } else { 0x11 }), step / 100)),
            }
        }
        let counted: u32 = table.flows.owners.iter().map(|owner| owner.count).sum();
        let mut queued = 0;
        for owner in &table.flows.owners {
            for queue in owner.queues {
                let mut at = queue.first;
                while at != NONE {
                    queued += 1;
                    let place = &table.flows.places[at as usize];
                    assert_eq!(table.flows.index.get(&place.key), Some(&at));
                    at = place.next;
                }
            }
        }
        assert_eq!((counted, queued), (table.flows.used, table.flows.used));
        assert_eq!(table.flows.index.len(), counted as usize);
        assert!(table.flows.places.len() <= 64);
    }
}
