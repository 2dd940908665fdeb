//! Destinations to which an egress forwards packets.
//!
//! Owns the list of networks that must not be reached through a relay: private, loopback, link-local, shared,
//! multicast, unique-local and metadata addresses. Documentation and benchmark ranges are allowed: test networks use
//! them.
//!
//! Source: RFC 6890 (special-purpose registries), RFC 6598, RFC 4193.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Blocked IPv4 networks with their prefix lengths. Azure's machines reach their host at the public address
/// 168.63.129.16.
pub const BLOCKED_V4: [(Ipv4Addr, u8); 11] = [
    (Ipv4Addr::new(0, 0, 0, 0), 8),
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(168, 63, 129, 16), 32),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 0, 0, 0), 24),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 4),
    (Ipv4Addr::new(240, 0, 0, 0), 4),
];

/// Blocked IPv6 networks with their prefix lengths. Ranges whose addresses carry an IPv4 address are blocked
/// completely: 6to4, Teredo, and 64:ff9b::/96 as part of the first network.
pub const BLOCKED_V6: [(Ipv6Addr, u8); 7] = [
    (Ipv6Addr::UNSPECIFIED, 8),
    (Ipv6Addr::new(0x2001, 0, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x2002, 0, 0, 0, 0, 0, 0, 0), 16),
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xfec0, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// Returns whether packets to `address` may leave an egress.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_purpose_addresses_are_blocked_and_their_neighbours_are_not() {
        let allowed = |text: &str| is_allowed(text.parse().unwrap());
        for inside in [
            "0.0.0.0",
            "10.0.0.1",
            "100.64.0.1",
            "100.127.255.255",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "172.31.255.255",
            "168.63.129.16",
            "192.0.0.192",
            "192.168.1.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:10.0.0.1",
            "64:ff9b::a00:1",
            "2001::1",
            "2001:0:ffff::",
            "2002:a00:1::",
            "fc00::1",
            "fd00:ec2::254",
            "fe80::1",
            "fec0::1",
            "ff02::1",
        ] {
            assert!(!allowed(inside), "{inside}");
        }
        for outside in [
            "1.1.1.1",
            "9.255.255.255",
            "11.0.0.0",
            "100.63.255.255",
            "100.128.0.0",
            "172.15.255.255",
            "168.63.129.15",
            "168.63.129.17",
            "172.32.0.0",
            "192.0.1.0",
            "192.167.255.255",
            "192.0.2.1",
            "198.18.0.1",
            "223.255.255.255",
            "2001:1::",
            "2001:db8::1",
            "2003::1",
            "2606:4700::1111",
            "2a00::1",
        ] {
            assert!(allowed(outside), "{outside}");
        }
    }
}
