//! Address translation between the client's fixed address and the address that the egress gives each session.
//!
//! Owns the rewriting of source and destination, of every checksum that covers them, and of the packets that ICMP
//! errors quote. Never chooses an address.
//!
//! Source: RFC 3022 §4, RFC 1624.

use std::net::IpAddr;

use super::checksum::{adjust, read, write};
use super::{ICMP, ICMPV6, Packet, UDP};

/// One of the two addresses of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    /// The sender's.
    Source,
    /// The receiver's.
    Destination,
}

/// Replaces the address on `side` of `packet`, which stands at the start of `bytes`.
///
/// A `partial` transport checksum stays as it is. In ICMP errors the quoted packet, which went the other way, is
/// changed too. `to` must belong to the packet's address family.
pub fn replace(packet: &mut Packet, bytes: &mut [u8], side: Side, to: IpAddr, partial: bool) {
    let from = match side {
        Side::Source => std::mem::replace(&mut packet.source, to),
        Side::Destination => std::mem::replace(&mut packet.destination, to),
    };
    let (at, old, new) = match (from, to) {
        (IpAddr::V4(old), IpAddr::V4(new)) => {
            let at = if side == Side::Source { 12 } else { 16 };
            write(bytes, 10, adjust(read(bytes, 10), &old.octets(), &new.octets()));
            (at, Octets::from(old), Octets::from(new))
        }
        (IpAddr::V6(old), IpAddr::V6(new)) => {
            let at = if side == Side::Source { 8 } else { 24 };
            (at, Octets::from(old), Octets::from(new))
        }
        _ => return,
    };
    put(bytes, at, new.as_slice());
    if let Some(check_at) = packet.checksum_at()
        && !partial
    {
        let check = read(bytes, check_at);
        if !(packet.protocol == UDP && check == 0) {
            let fresh = adjust(check, old.as_slice(), new.as_slice());
            write(bytes, check_at, if fresh == 0 && packet.protocol == UDP { 0xffff } else { fresh });
        }
    }
    if packet.has_transport && is_error(packet, bytes) {
        replace_quoted(packet, bytes, side, from, to);
    }
}

/// Returns whether the packet is an ICMP error, which quotes a packet. Source: RFC 792, RFC 4443 §2.1.
fn is_error(packet: &Packet, bytes: &[u8]) -> bool {
    let kind = bytes.get(packet.transport).copied();
    match (packet.protocol, packet.is_v6()) {
        (ICMP, false) => matches!(kind, Some(3 | 4 | 5 | 11 | 12)),
        (ICMPV6, true) => matches!(kind, Some(1..=4)),
        _ => false,
    }
}

/// Changes the opposite address of the quoted packet. The transport checksum of the quote stays: nobody verifies it.
fn replace_quoted(packet: &Packet, bytes: &mut [u8], side: Side, from: IpAddr, to: IpAddr) {
    let start = packet.transport + 8;
    let Some(quoted) = bytes.get_mut(start..packet.len) else { return };
    match (from, to) {
        (IpAddr::V4(old), IpAddr::V4(new)) => {
            let at = if side == Side::Source { 16 } else { 12 };
            if quoted.get(at..at + 4) != Some(&old.octets()) || quoted.len() < 20 {
                return;
            }
            // The change of the quoted header's own checksum compensates, so the ICMP checksum over both stays right.
            write(quoted, 10, adjust(read(quoted, 10), &old.octets(), &new.octets()));
            put(quoted, at, &new.octets());
        }
        (IpAddr::V6(old), IpAddr::V6(new)) => {
            let at = if side == Side::Source { 24 } else { 8 };
            if quoted.get(at..at + 16) != Some(&old.octets()) {
                return;
            }
            put(quoted, at, &new.octets());
            let check_at = packet.transport + 2;
            write(bytes, check_at, adjust(read(bytes, check_at), &old.octets(), &new.octets()));
        }
        _ => {}
    }
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(room) = bytes.get_mut(at..at + value.len()) {
        room.copy_from_slice(value);
    }
}

/// The octets of an IPv4 or IPv6 address.
struct Octets {
    bytes: [u8; 16],
    len: usize,
}

impl Octets {
    fn as_slice(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

impl From<std::net::Ipv4Addr> for Octets {
    fn from(address: std::net::Ipv4Addr) -> Self {
        let mut bytes = [0; 16];
        put(&mut bytes, 0, &address.octets());
        Self { bytes, len: 4 }
    }
}

impl From<std::net::Ipv6Addr> for Octets {
    fn from(address: std::net::Ipv6Addr) -> Self {
        Self { bytes: address.octets(), len: 16 }
    }
}
