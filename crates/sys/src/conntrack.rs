//! Connection tracking: deletes what a client left behind.
//!
//! Owns the netlink message that deletes one connection. Never lists or adds one. The kernel's filter on deletion by
//! source address is of no use: up to Linux 6.18, for IPv6, it spares that address and deletes all others
//! (`ctnetlink_filter_match_tuple`).
//!
//! Source: linux net/netfilter/nf_conntrack_netlink.c.

use std::io;
use std::net::{IpAddr, SocketAddr as Endpoint};

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

const DELETE: u16 = (1 << 8) | 2;
const REQUEST_ACK: u16 = 5;
const NESTED: u16 = 0x8000;
const TUPLE_ORIG: u16 = 1;
const TUPLE_IP: u16 = 1;
const IP_V4_SRC: u16 = 1;
const IP_V4_DST: u16 = 2;
const IP_V6_SRC: u16 = 3;
const IP_V6_DST: u16 = 4;
const TUPLE_PROTO: u16 = 2;
const PROTO_NUM: u16 = 1;
const PROTO_SRC_PORT: u16 = 2;
const PROTO_DST_PORT: u16 = 3;
const PROTO_ICMP_ID: u16 = 4;
const PROTO_ICMP_TYPE: u16 = 5;
const PROTO_ICMP_CODE: u16 = 6;
const PROTO_ICMPV6_ID: u16 = 7;
const PROTO_ICMPV6_TYPE: u16 = 8;
const PROTO_ICMPV6_CODE: u16 = 9;
const ECHO_V4: u8 = 8;
const ECHO_V6: u8 = 128;

/// The first packet's addresses of a tracked connection. Both have the same family.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuple {
    /// The transport protocol: TCP, UDP, or ICMP of the address family for echo requests.
    pub protocol: u8,
    /// Sender; for echo requests, the port is their identifier.
    pub source: Endpoint,
    /// Receiver; for echo requests, the port is not used.
    pub destination: Endpoint,
}

/// Deletes tracked connections.
pub struct Conntrack(Socket);

impl Conntrack {
    /// Opens a netlink socket in the thread's network namespace.
    ///
    /// # Errors
    /// When the process has no file descriptors left.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_NETFILTER)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// Deletes one tracked connection. The kernel finds it by its hash, whatever the number of connections.
    ///
    /// # Errors
    /// `ENOENT` when there is no such connection; another error without CAP_NET_ADMIN or without the kernel's module
    /// nf_conntrack_netlink.
    pub fn forget(&self, tuple: &Tuple) -> io::Result<()> {
        self.delete(&delete_message(tuple))
    }

    /// Sends a delete request of [`request`].
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn delete(&self, request: &[u8]) -> io::Result<()> {
        self.0.send(request, 0)?;
        let (answer, _) = self.0.recv_from_full()?;
        let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
        match (answer.get(4..6), code) {
            (Some([2, 0]), Some(0)) => Ok(()),
            (Some([2, 0]), Some(error)) => Err(io::Error::from_raw_os_error(error.abs())),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

fn delete_message(tuple: &Tuple) -> Vec<u8> {
    let addresses = match (tuple.source.ip(), tuple.destination.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            [attribute(IP_V4_SRC, &from.octets()), attribute(IP_V4_DST, &to.octets())].concat()
        }
        (from, to) => {
            let octets = |ip| match ip {
                IpAddr::V4(v4) => std::net::Ipv4Addr::to_ipv6_mapped(&v4).octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            [attribute(IP_V6_SRC, &octets(from)), attribute(IP_V6_DST, &octets(to))].concat()
        }
    };
    let from = tuple.source.port().to_be_bytes();
    let number = attribute(PROTO_NUM, &[tuple.protocol]);
    let ports = match i32::from(tuple.protocol) {
        libc::IPPROTO_ICMP => {
            [attribute(PROTO_ICMP_ID, &from), attribute(PROTO_ICMP_TYPE, &[ECHO_V4]), attribute(PROTO_ICMP_CODE, &[0])]
                .concat()
        }
        libc::IPPROTO_ICMPV6 => [
            attribute(PROTO_ICMPV6_ID, &from),
            attribute(PROTO_ICMPV6_TYPE, &[ECHO_V6]),
            attribute(PROTO_ICMPV6_CODE, &[0]),
        ]
        .concat(),
        _ => [attribute(PROTO_SRC_PORT, &from), attribute(PROTO_DST_PORT, &tuple.destination.port().to_be_bytes())]
            .concat(),
    };
    let parts = [attribute(TUPLE_IP | NESTED, &addresses), attribute(TUPLE_PROTO | NESTED, &[number, ports].concat())];
    request(tuple.source.is_ipv6(), &attribute(TUPLE_ORIG | NESTED, &parts.concat()))
}

/// Returns a delete request of a family with these attributes.
pub fn request(v6: bool, attributes: &[u8]) -> Vec<u8> {
    let length = u32::try_from(20 + attributes.len()).unwrap_or(0);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend_from_slice(&DELETE.to_ne_bytes());
    message.extend_from_slice(&REQUEST_ACK.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[if v6 { 10 } else { 2 }, 1, 0, 0]);
    message.extend_from_slice(attributes);
    message
}

/// Returns a netlink attribute, padded to four bytes. Source: linux include/uapi/linux/netlink.h.
pub fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(4 + value.len()).unwrap_or(0).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(tuple: Tuple) -> String {
        delete_message(&tuple).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn delete_message_has_the_bytes_that_the_kernel_expects() {
        let source = "10.9.0.2:4660".parse().unwrap();
        let udp = Tuple { protocol: 17, source, destination: "192.0.2.7:53".parse().unwrap() };
        let expected = [
            "48000000020105000000000000000000 02010000 34000180",
            "14000180 080001000a090002 08000200c0000207",
            "1c000280 0500010011000000 0600020012340000 0600030000350000 ",
        ];
        let expected: String = expected.concat().split(' ').collect();
        assert_eq!(hex(udp), expected);
        let echo = hex(Tuple { protocol: 1, ..udp });
        assert!(
            echo.ends_with("0600040012340000 0500050008000000 0500060000000000".replace(' ', "").as_str()),
            "{echo}"
        );
        let six = Tuple {
            protocol: 6,
            source: "[2001:db8::1]:1".parse().unwrap(),
            destination: "[2001:db8::2]:2".parse().unwrap(),
        };
        assert_eq!(delete_message(&six).len(), 20 + 4 + 44 + 28);
    }
}
