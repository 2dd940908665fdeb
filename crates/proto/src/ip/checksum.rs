//! Internet checksums: sums, incremental updates, pseudo-headers.
//!
//! Owns the arithmetic and the position of checksums in packets. Never checks any other field of a packet.
//!
//! Source: RFC 1071, RFC 1624.

use std::net::IpAddr;

use super::{Packet, UDP};

/// Returns the ones' complement sum of `bytes`, added to `initial`, not folded.
pub fn sum(bytes: &[u8], initial: u32) -> u32 {
    let mut total = u64::from(initial);
    let mut chunks = bytes.chunks_exact(2);
    for pair in &mut chunks {
        if let [hi, lo] = *pair {
            total += u64::from(u16::from_be_bytes([hi, lo]));
        }
    }
    if let [last] = *chunks.remainder() {
        total += u64::from(u16::from_be_bytes([last, 0]));
    }
    while total > u64::from(u32::MAX) {
        total = (total & 0xffff_ffff) + (total >> 32);
    }
    u32::try_from(total).unwrap_or(0)
}

/// Folds a sum to 16 bits.
pub fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap_or(0)
}

/// Returns the checksum `old_check` after `old` bytes became `new` bytes. Both have the same even length.
///
/// Source: RFC 1624 §3, equation 3.
pub fn adjust(old_check: u16, old: &[u8], new: &[u8]) -> u16 {
    let mut total = u32::from(!old_check);
    total = sum(new, total);
    for pair in old.chunks_exact(2) {
        if let [hi, lo] = *pair {
            total += u32::from(!u16::from_be_bytes([hi, lo]));
        }
    }
    !fold(total)
}

/// Returns the folded sum of the pseudo-header of `packet`, for a transport part of `len` bytes. A partial checksum
/// holds this sum.
///
/// Source: RFC 9293 §3.1, RFC 8200 §8.1.
pub fn pseudo_header(packet: &Packet, len: usize) -> u16 {
    let mut total = u32::from(packet.protocol) + u32::try_from(len & 0xffff).unwrap_or(0);
    total = match (packet.source, packet.destination) {
        (IpAddr::V4(a), IpAddr::V4(b)) => sum(&b.octets(), sum(&a.octets(), total)),
        (IpAddr::V6(a), IpAddr::V6(b)) => sum(&b.octets(), sum(&a.octets(), total)),
        _ => total,
    };
    fold(total)
}

/// Returns whether the transport checksum of the whole packet in `bytes` is right; true for protocols without one.
pub fn transport_is_valid(packet: &Packet, bytes: &[u8]) -> bool {
    let Some(transport) = bytes.get(packet.transport..packet.len) else { return false };
    let Some(at) = packet.checksum_at() else { return true };
    let field = transport.get(at - packet.transport..at - packet.transport + 2);
    if packet.protocol == UDP && field == Some(&[0, 0]) {
        return !packet.is_v6();
    }
    fold(sum(transport, pseudo_header(packet, transport.len()).into())) == 0xffff
}

/// Fills in the transport checksum of the whole packet in `bytes`.
pub fn fill_transport(packet: &Packet, bytes: &mut [u8]) {
    let Some(at) = packet.checksum_at() else { return };
    write(bytes, at, 0);
    let Some(transport) = bytes.get(packet.transport..packet.len) else { return };
    let value = !fold(sum(transport, pseudo_header(packet, transport.len()).into()));
    write(bytes, at, if value == 0 && packet.protocol == UDP { 0xffff } else { value });
}

/// Fills in the checksum of the IPv4 header at the start of `bytes`.
pub fn fill_v4_header(bytes: &mut [u8], header_len: usize) {
    write(bytes, 10, 0);
    if let Some(header) = bytes.get(..header_len) {
        let value = !fold(sum(header, 0));
        write(bytes, 10, value);
    }
}

pub(super) fn read(bytes: &[u8], at: usize) -> u16 {
    crate::wire::take(bytes, at).map_or(0, u16::from_be_bytes)
}

pub(super) fn write(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(room) = bytes.get_mut(at..at + 2) {
        room.copy_from_slice(&value.to_be_bytes());
    }
}
