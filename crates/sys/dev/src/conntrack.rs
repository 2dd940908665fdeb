//! Connection tracking: lets a NAT forget a host's connections.
//!
//! Owns the delete request by original source address, for IPv4 alone: Linux 6.18 inverts the filter for IPv6 and
//! deletes the connections of all others. Never lists or adds a connection.
//!
//! Source: linux net/netfilter/nf_conntrack_netlink.c; the filter on deletion exists since Linux 6.12.

use std::io;
use std::net::Ipv4Addr;

use openrelay_sys::conntrack::{Conntrack, attribute, request};

const NESTED: u16 = 0x8000;
const TUPLE_ORIG: u16 = 1;
const TUPLE_IP: u16 = 1;
const IP_V4_SRC: u16 = 1;
const FILTER: u16 = 25;
const FILTER_ORIG_FLAGS: u16 = 1;
const FLAG_IP_SRC: u32 = 1;

/// Deletes every tracked connection that `source` began, in the thread's network namespace.
///
/// # Errors
/// `EINVAL` on kernels before 6.12, which do not have this filter; another error without CAP_NET_ADMIN.
pub fn forget(source: Ipv4Addr) -> io::Result<()> {
    Conntrack::open()?.delete(&delete_message(source))
}

fn delete_message(source: Ipv4Addr) -> Vec<u8> {
    let address = attribute(IP_V4_SRC, &source.octets());
    let tuple = attribute(TUPLE_ORIG | NESTED, &attribute(TUPLE_IP | NESTED, &address));
    let filter = attribute(FILTER | NESTED, &attribute(FILTER_ORIG_FLAGS, &FLAG_IP_SRC.to_ne_bytes()));
    request(false, &[tuple, filter].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delete_message_has_the_bytes_that_the_kernel_expects() {
        let message = delete_message("10.9.0.2".parse().unwrap());
        let expected =
            "30000000020105000000000000000000020100001000018 00c00018008000100 0a0900020c0019800800010001000000";
        let expected: String = expected.split(' ').collect();
        let hex: String = message.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, expected);
    }
}
