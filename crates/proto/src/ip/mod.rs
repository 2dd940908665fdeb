//! Inner IP packets: strict parsing, translation, MTU handling.
//!
//! Owns everything that the data path knows about IPv4 and IPv6 inside the tunnel. Trusts no field of a packet:
//! lengths are checked against the bytes that are present. Never looks at payloads.
//!
//! Source: RFC 791, RFC 8200.
#![deny(clippy::indexing_slicing)]

pub mod checksum;
pub mod destination;
pub mod icmp;
pub mod tcp;
pub mod translate;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::wire::take;

/// ICMP for IPv4.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMP for IPv6.
pub const ICMPV6: u8 = 58;
const FRAGMENT: u8 = 44;
const MAX_EXTENSIONS: usize = 8;

/// The IPv4 address that every client has in the tunnel.
pub const CLIENT_V4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 2);
/// The IPv6 address that every client has in the tunnel.
pub const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd6f, 0x7265, 0x6c61, 0x7900, 0, 0, 0, 2);
/// The source of errors made inside the tunnel, and the egress' own IPv4 address on its device.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(100, 64, 0, 1);
/// The source of errors made inside the tunnel, and the egress' own IPv6 address on its device.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd6f, 0x7265, 0x6c61, 0x7900, 0, 0, 0, 1);

/// A packet that is malformed or uses a feature that the tunnel does not carry (source routing).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed IP packet")]
pub struct BadPacket;

/// The facts about a packet that the data path needs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Length of the packet in bytes, as its header states it; at most the number of bytes present.
    pub len: usize,
    /// Offset of the transport header.
    pub transport: usize,
    /// The transport protocol.
    pub protocol: u8,
    /// Sender.
    pub source: IpAddr,
    /// Receiver.
    pub destination: IpAddr,
    /// Whether the transport header is in this packet, not in another fragment.
    pub has_transport: bool,
    /// Whether the packet is a fragment.
    pub fragment: bool,
    /// Whether routers may not fragment it; always true for IPv6.
    pub dont_fragment: bool,
}

impl Packet {
    /// Parses the packet at the start of `bytes`; bytes after it are padding.
    ///
    /// # Errors
    /// [`BadPacket`] when a header is cut off, a length is wrong, or the packet requests source routing.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadPacket> {
        match bytes.first().ok_or(BadPacket)? >> 4 {
            4 => Self::parse_v4(bytes),
            6 => Self::parse_v6(bytes),
            _ => Err(BadPacket),
        }
    }

    /// Returns whether the packet is IPv6.
    pub fn is_v6(&self) -> bool {
        self.source.is_ipv6()
    }

    fn parse_v4(bytes: &[u8]) -> Result<Self, BadPacket> {
        let head: [u8; 20] = take(bytes, 0).ok_or(BadPacket)?;
        let [version_ihl, _, len_hi, len_lo, _, _, frag_hi, frag_lo, _, protocol, _, _, addresses @ ..] = head;
        let header_len = usize::from(version_ihl & 0x0f) * 4;
        let len = usize::from(u16::from_be_bytes([len_hi, len_lo]));
        if header_len < 20 || len < header_len || len > bytes.len() {
            return Err(BadPacket);
        }
        check_options(bytes.get(20..header_len).ok_or(BadPacket)?)?;
        let fragment = u16::from_be_bytes([frag_hi, frag_lo]);
        let (offset, more) = (fragment & 0x1fff, fragment & 0x2000 != 0);
        let packet = Self {
            len,
            transport: header_len,
            protocol,
            source: Ipv4Addr::from(take::<4>(&addresses, 0).ok_or(BadPacket)?).into(),
            destination: Ipv4Addr::from(take::<4>(&addresses, 4).ok_or(BadPacket)?).into(),
            has_transport: offset == 0,
            fragment: offset != 0 || more,
            dont_fragment: fragment & 0x4000 != 0,
        };
        packet.check_transport(bytes)
    }

    fn parse_v6(bytes: &[u8]) -> Result<Self, BadPacket> {
        let head: [u8; 40] = take(bytes, 0).ok_or(BadPacket)?;
        let [_, _, _, _, len_hi, len_lo, mut next, _, addresses @ ..] = head;
        let len = 40 + usize::from(u16::from_be_bytes([len_hi, len_lo]));
        if len > bytes.len() {
            return Err(BadPacket);
        }
        let (mut transport, mut fragment, mut has_transport) = (40, false, true);
        let mut extensions = 0;
        while has_transport && matches!(next, 0 | 43 | FRAGMENT | 60) {
            extensions += 1;
            let extension: [u8; 8] = take(bytes.get(..len).ok_or(BadPacket)?, transport).ok_or(BadPacket)?;
            if extensions > MAX_EXTENSIONS || next == 43 {
                return Err(BadPacket);
            }
            let [following, size, hi, lo, ..] = extension;
            if next == FRAGMENT {
                let field = u16::from_be_bytes([hi, lo]);
                fragment = true;
                has_transport = field & 0xfff8 == 0;
                transport += 8;
            } else {
                transport += (usize::from(size) + 1) * 8;
            }
            next = following;
        }
        let packet = Self {
            len,
            transport,
            protocol: next,
            source: Ipv6Addr::from(take::<16>(&addresses, 0).ok_or(BadPacket)?).into(),
            destination: Ipv6Addr::from(take::<16>(&addresses, 16).ok_or(BadPacket)?).into(),
            has_transport,
            fragment,
            dont_fragment: true,
        };
        packet.check_transport(bytes)
    }

    /// Checks that the transport header, which translation and offloads change, is complete.
    fn check_transport(self, bytes: &[u8]) -> Result<Self, BadPacket> {
        if self.transport > self.len {
            return Err(BadPacket);
        }
        if !self.has_transport {
            return Ok(self);
        }
        let transport = bytes.get(self.transport..self.len).ok_or(BadPacket)?;
        let enough = match self.protocol {
            TCP => {
                let offset = transport.get(12).map_or(0, |b| usize::from(b >> 4) * 4);
                offset >= 20 && offset <= transport.len()
            }
            UDP => {
                let stated = take(transport, 4).map(|b| usize::from(u16::from_be_bytes(b)));
                let whole = stated.is_some_and(|stated| stated >= 8 && (self.fragment || stated <= transport.len()));
                whole && transport.len() >= 8
            }
            // Required of a first fragment too: translation changes these bytes.
            ICMP | ICMPV6 => transport.len() >= 8,
            _ => true,
        };
        if enough { Ok(self) } else { Err(BadPacket) }
    }

    /// Returns the offset of the transport checksum from the packet's start; `None` for protocols without a checksum
    /// that covers addresses.
    pub fn checksum_at(&self) -> Option<usize> {
        if !self.has_transport {
            return None;
        }
        match (self.protocol, self.is_v6()) {
            (TCP, _) => Some(self.transport + 16),
            (UDP, _) => Some(self.transport + 6),
            (ICMPV6, true) => Some(self.transport + 2),
            _ => None,
        }
    }

    /// Returns the length of a TCP or UDP header in bytes; zero for other protocols, or when the header is not in
    /// this packet.
    pub fn transport_header_len(&self, bytes: &[u8]) -> usize {
        match self.protocol {
            _ if !self.has_transport => 0,
            TCP => bytes.get(self.transport + 12).map_or(0, |b| usize::from(b >> 4) * 4),
            UDP => 8,
            _ => 0,
        }
    }
}

/// Refuses source routes and malformed options. Source: RFC 791 §3.1, RFC 6864; source routes per RFC 7126 §4.3.
fn check_options(mut options: &[u8]) -> Result<(), BadPacket> {
    while let Some((&kind, rest)) = options.split_first() {
        match kind {
            0 => return Ok(()),
            1 => options = rest,
            131 | 137 => return Err(BadPacket),
            _ => {
                let len = usize::from(*rest.first().ok_or(BadPacket)?);
                if len < 2 {
                    return Err(BadPacket);
                }
                options = options.get(len..).ok_or(BadPacket)?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::checksum::{fill_transport, fill_v4_header, transport_is_valid};
    use super::translate::{Side, replace};
    use super::*;
    use proptest::prelude::*;

    /// Found by fuzzing: the checksum of a short first fragment was written beyond the packet.
    #[test]
    fn first_fragment_without_a_transport_header_is_refused() {
        let mut packet = vec![0x60, 0, 0, 0, 0, 12, FRAGMENT, 64];
        packet.extend_from_slice(&[1; 32]);
        packet.extend_from_slice(&[ICMPV6, 0, 0, 1, 0, 0, 0, 1]);
        packet.extend_from_slice(&[128, 0, 0, 0]);
        packet.extend_from_slice(&[0; 16]);
        assert_eq!(Packet::parse(&packet), Err(BadPacket));
    }

    #[test]
    fn wrong_lengths_source_routes_and_truncations_are_refused() {
        let good = v4(UDP, &[0, 7, 0, 7, 0, 12, 0, 0, 1, 2, 3, 4]);
        assert!(Packet::parse(&good).is_ok());
        for end in 0..good.len() {
            assert_eq!(Packet::parse(&good[..end]), Err(BadPacket), "{end}");
        }
        let lie = |at: usize, value: u8| {
            let mut copy = good.clone();
            copy[at] = value;
            Packet::parse(&copy)
        };
        assert_eq!(lie(0, 0x44), Err(BadPacket), "header shorter than a header");
        assert_eq!(lie(0, 0x4f), Err(BadPacket), "header longer than the packet");
        assert_eq!(lie(3, 200), Err(BadPacket), "packet longer than the bytes present");
        assert_eq!(lie(25, 200), Err(BadPacket), "UDP longer than the packet");
        assert_eq!(lie(0, 0x55), Err(BadPacket), "no such version");
        let mut routed = vec![0x46, 0, 0, 24, 0, 0, 0, 0, 64, 99, 0, 0];
        routed.extend_from_slice(&[1; 8]);
        routed.extend_from_slice(&[131, 4, 4, 0]);
        assert_eq!(Packet::parse(&routed), Err(BadPacket), "loose source route");
    }

    fn v4(protocol: u8, transport: &[u8]) -> Vec<u8> {
        let len = u16::try_from(20 + transport.len()).unwrap().to_be_bytes();
        let mut packet =
            vec![0x45, 0, len[0], len[1], 0, 1, 0x40, 0, 64, protocol, 0, 0, 100, 64, 0, 2, 93, 184, 215, 2];
        packet.extend_from_slice(transport);
        fill_v4_header(&mut packet, 20);
        packet
    }

    proptest! {
        #[test]
        fn translation_there_and_back_restores_the_packet(
            payload in prop::collection::vec(any::<u8>(), 0..100),
            to: [u8; 4],
            udp: bool,
        ) {
            let head: &[u8] = if udp {
                &[4, 0, 0, 7, 0, 0, 0, 0]
            } else {
                &[4, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 16, 1, 0, 0, 0, 0, 0]
            };
            let mut transport = [head, &payload].concat();
            if udp {
                let len = u16::try_from(transport.len()).unwrap().to_be_bytes();
                transport[4..6].copy_from_slice(&len);
            }
            let mut bytes = v4(if udp { UDP } else { TCP }, &transport);
            let mut packet = Packet::parse(&bytes).unwrap();
            fill_transport(&packet, &mut bytes);
            let before = bytes.clone();
            replace(&mut packet, &mut bytes, Side::Source, IpAddr::from(to), false);
            prop_assert!(transport_is_valid(&Packet::parse(&bytes).unwrap(), &bytes));
            replace(&mut packet, &mut bytes, Side::Source, IpAddr::V4(CLIENT_V4), false);
            prop_assert_eq!(bytes, before);
        }
    }
}
