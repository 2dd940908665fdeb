//! Packet-too-big errors for senders inside the tunnel.
//!
//! Owns the form of these errors and the decision which packets may be answered with one. Never sends them.
//!
//! Source: RFC 1191 §4, RFC 4443 §3.2.

use std::net::IpAddr;

use super::checksum::{fill_transport, fill_v4_header, fold, sum, write};
use super::{GATEWAY_V4, GATEWAY_V6, ICMP, ICMPV6, Packet};

/// Largest error in bytes: as large as an IPv6 error may be without path MTU discovery (RFC 4443 §2.4 c), and larger
/// than RFC 1812 asks for IPv4.
const MAX_ERROR: usize = 576;

/// Writes an error into `out` that tells the sender of `packet` that no more than `mtu` bytes fit. Returns its
/// length. Returns `None` when the packet must not be answered: it is a later fragment, may be fragmented, or is an
/// ICMP error itself.
pub fn packet_too_big(packet: &Packet, bytes: &[u8], mtu: u16, out: &mut [u8]) -> Option<usize> {
    if !packet.has_transport || !packet.dont_fragment {
        return None;
    }
    let kind = bytes.get(packet.transport).copied();
    match (packet.source, packet.protocol, kind) {
        (IpAddr::V4(_), ICMP, Some(0 | 8)) | (IpAddr::V6(_), ICMPV6, Some(128..)) => {}
        (_, ICMP | ICMPV6, _) => return None,
        _ => {}
    }
    let head = if packet.is_v6() { 48 } else { 28 };
    let quote = bytes.get(..packet.len.min(MAX_ERROR - head))?;
    let len = head + quote.len();
    let out = out.get_mut(..len)?;
    out.fill(0);
    out.get_mut(head..)?.copy_from_slice(quote);
    match packet.source {
        IpAddr::V4(to) => {
            *out.first_mut()? = 0x45;
            write(out, 2, u16::try_from(len).ok()?);
            *out.get_mut(8)? = 64;
            *out.get_mut(9)? = ICMP;
            out.get_mut(12..16)?.copy_from_slice(&GATEWAY_V4.octets());
            out.get_mut(16..20)?.copy_from_slice(&to.octets());
            *out.get_mut(20)? = 3;
            *out.get_mut(21)? = 4;
            write(out, 26, mtu);
            let check = !fold(sum(out.get(20..)?, 0));
            write(out, 22, check);
            fill_v4_header(out, 20);
        }
        IpAddr::V6(to) => {
            *out.first_mut()? = 0x60;
            write(out, 4, u16::try_from(len - 40).ok()?);
            *out.get_mut(6)? = ICMPV6;
            *out.get_mut(7)? = 64;
            out.get_mut(8..24)?.copy_from_slice(&GATEWAY_V6.octets());
            out.get_mut(24..40)?.copy_from_slice(&to.octets());
            *out.get_mut(40)? = 2;
            write(out, 46, mtu);
            let error = Packet::parse(out).ok()?;
            fill_transport(&error, out);
        }
    }
    Some(len)
}
