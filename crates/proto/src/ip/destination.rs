//! Which destinations an egress forwards to.
//!
//! Owns the list of networks that are nobody's business behind a relay: private, loopback, link-local, shared, multicast,
//! unique-local and metadata addresses. Documentation and benchmark ranges are allowed: test networks use them.
//! Source: RFC 6890 (special-purpose registries), RFC 6598, RFC 4193.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Blocked IPv4 networks with their prefix lengths.
pub const BLOCKED_V4: [(Ipv4Addr, u8); 9] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Blocked IPv6 networks with their prefix lengths. Addresses that carry an IPv4 address are blocked whole: 64:ff9b::/96 is in the first one.
pub const BLOCKED_V6: [(Ipv6Addr, u8); 6] = [
    (Ipv6Addr::UNSPECIFIED, 8),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// Whether packets to `address` may leave an egress.
pub fn is_allowed(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let bits = v4.to_bits();
            !BLOCKED_V4.iter().any(|(net, len)| (bits ^ net.to_bits()) >> (32 - u32::from(*len)) == 0)
        }
        IpAddr::V6(v6) => {
            let bits = v6.to_bits();
            !BLOCKED_V6.iter().any(|(net, len)| (bits ^ net.to_bits()) >> (128 - u32::from(*len)) == 0)
        }
    }
}
