//! Connection tracking: lets a NAT forget a host's connections.
//!
//! Owns the delete request by original source address, for IPv4 alone: Linux 6.18 inverts the filter for IPv6 and
//! deletes the connections of all others. Never lists or adds a connection.
//!
//! Source: linux net/netfilter/nf_conntrack_netlink.c; the filter on deletion exists since Linux 6.12.

use std::io;
use std::net::Ipv4Addr;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

const DELETE: u16 = (1 << 8) | 2;
const REQUEST_ACK: u16 = 5;
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
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&delete_message(source), 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (answer.get(4..6), code) {
        (Some([2, 0]), Some(0)) => Ok(()),
        (Some([2, 0]), Some(error)) => Err(io::Error::from_raw_os_error(error.abs())),
        _ => Err(io::ErrorKind::InvalidData.into()),
    }
}

fn delete_message(source: Ipv4Addr) -> Vec<u8> {
    let address = attribute(IP_V4_SRC, &source.octets());
    let tuple = attribute(TUPLE_ORIG | NESTED, &attribute(TUPLE_IP | NESTED, &address));
    let filter = attribute(FILTER | NESTED, &attribute(FILTER_ORIG_FLAGS, &FLAG_IP_SRC.to_ne_bytes()));
    let length = u32::try_from(20 + tuple.len() + filter.len()).unwrap_or(0);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend_from_slice(&DELETE.to_ne_bytes());
    message.extend_from_slice(&REQUEST_ACK.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&[2, 1, 0, 0]);
    message.extend_from_slice(&tuple);
    message.extend_from_slice(&filter);
    message
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = u16::try_from(4 + value.len()).unwrap_or(0).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
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
