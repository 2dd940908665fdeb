//! ICMP errors for senders inside the tunnel.
//!
//! Owns the form of these errors and the decision which packets may be answered with one. Never sends them.
//!
//! Source: RFC 1191 §4, RFC 4443 §3.1 and §3.2.

use std::net::{IpAddr, Ipv4Addr};

use super::checksum::{fill_transport, fill_v4_header, fold, sum, write};
use super::{GATEWAY_V4, GATEWAY_V6, ICMP, ICMPV6, Packet};

/// Largest error in bytes: as large as an IPv6 error may be without path MTU discovery (RFC 4443 §2.4 c), and larger
/// than RFC 1812 asks for IPv4.
const MAX_ERROR: usize = 576;

/// Why a destination is unreachable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unreachable {
    /// No route leads there.
    NoRoute,
    /// This relay does not forward there.
    Prohibited,
}

/// Writes an error into `out` that tells the sender of `packet` that no more than `mtu` bytes fit. Returns its
/// length. Returns `None` when the packet must not be answered: it is a later fragment, may be fragmented, or is an
/// ICMP error itself.
pub fn packet_too_big(packet: &Packet, bytes: &[u8], mtu: u16, out: &mut [u8]) -> Option<usize> {
    if !packet.dont_fragment {
        return None;
    }
    let kind = if packet.is_v6() { [2, 0] } else { [3, 4] };
    answer(packet, bytes, kind, mtu, out)
}

/// Writes an error into `out` that tells the sender of `packet` that its destination is unreachable. Returns its
/// length. Returns `None` when the packet must not be answered: it is a later fragment or an ICMP error itself, or has
/// many receivers.
///
/// Source: RFC 1812 §4.3.2.7 and §5.2.7.1; RFC 4443 §2.4 e and §3.1.
pub fn unreachable(packet: &Packet, bytes: &[u8], why: Unreachable, out: &mut [u8]) -> Option<usize> {
    if packet.destination.is_multicast() || packet.destination == IpAddr::V4(Ipv4Addr::BROADCAST) {
        return None;
    }
    let kind = match (packet.is_v6(), why) {
        (false, Unreachable::NoRoute) => [3, 0],
        (false, Unreachable::Prohibited) => [3, 13],
        (true, Unreachable::NoRoute) => [1, 0],
        (true, Unreachable::Prohibited) => [1, 1],
    };
    answer(packet, bytes, kind, 0, out)
}

/// Writes an error with this type and code, and this number in its last two bytes before the quoted packet.
fn answer(packet: &Packet, bytes: &[u8], [kind, code]: [u8; 2], number: u16, out: &mut [u8]) -> Option<usize> {
    if !packet.has_transport {
        return None;
    }
    let quoted = bytes.get(packet.transport).copied();
    match (packet.source, packet.protocol, quoted) {
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
    out.get_mut(head - 8..head - 6)?.copy_from_slice(&[kind, code]);
    write(out, head - 2, number);
    match packet.source {
        IpAddr::V4(to) => {
            *out.first_mut()? = 0x45;
            write(out, 2, u16::try_from(len).ok()?);
            *out.get_mut(8)? = 64;
            *out.get_mut(9)? = ICMP;
            out.get_mut(12..16)?.copy_from_slice(&GATEWAY_V4.octets());
            out.get_mut(16..20)?.copy_from_slice(&to.octets());
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
            let error = Packet::parse(out).ok()?;
            fill_transport(&error, out);
        }
    }
    Some(len)
}

#[cfg(test)]
mod tests {
    use super::super::checksum::{fold, sum, transport_is_valid};
    use super::*;

    fn v4(destination: [u8; 4], protocol: u8, transport: &[u8]) -> Vec<u8> {
        let length = u8::try_from(20 + transport.len()).unwrap();
        let mut bytes = vec![0x45, 0, 0, length, 0, 1, 0, 0, 64, protocol, 0, 0, 100, 64, 1, 0];
        bytes.extend_from_slice(&destination);
        bytes.extend_from_slice(transport);
        bytes
    }

    fn answer_to(bytes: &[u8]) -> Option<Vec<u8>> {
        let mut out = [0; 600];
        let packet = Packet::parse(bytes).unwrap();
        unreachable(&packet, bytes, Unreachable::Prohibited, &mut out).map(|len| out[..len].to_vec())
    }

    #[test]
    fn sender_to_a_forbidden_destination_is_answered_with_a_valid_error() {
        let datagram = v4([10, 0, 0, 1], 17, &[0, 7, 0, 7, 0, 8, 0, 0]);
        let error = answer_to(&datagram).unwrap();
        let packet = Packet::parse(&error).unwrap();
        assert_eq!(packet.destination.to_string(), "100.64.1.0");
        assert_eq!(&error[20..22], &[3, 13]);
        assert_eq!(fold(sum(&error[20..], 0)), 0xffff, "the checksum");
        assert_eq!(&error[28..], &datagram);
        let mut six = vec![0x60, 0, 0, 0, 0, 8, 17, 64];
        six.extend_from_slice(&[0xfd; 32]);
        six.extend_from_slice(&[0, 7, 0, 7, 0, 8, 0, 0]);
        let error = answer_to(&six).unwrap();
        assert_eq!(&error[40..42], &[1, 1]);
        assert!(transport_is_valid(&Packet::parse(&error).unwrap(), &error));
    }

    #[test]
    fn errors_later_fragments_and_packets_to_many_are_not_answered() {
        let udp = [0, 7, 0, 7, 0, 8, 0, 0];
        for destination in [[224, 0, 0, 251], [255, 255, 255, 255]] {
            assert_eq!(answer_to(&v4(destination, 17, &udp)), None, "{destination:?}");
        }
        assert_eq!(answer_to(&v4([10, 0, 0, 1], 1, &[3, 1, 0, 0, 0, 0, 0, 0])), None);
        assert!(answer_to(&v4([10, 0, 0, 1], 1, &[8, 0, 0, 0, 0, 1, 0, 1])).is_some());
        let mut later = v4([10, 0, 0, 1], 17, &udp);
        later[7] = 1;
        assert_eq!(answer_to(&later), None);
    }
}
