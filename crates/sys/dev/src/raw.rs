//! IPv4 packets with any source address, for floods in tests.
//!
//! Owns a raw socket. The kernel fills in identification, length and header checksum, and routes by the destination.
//!
//! Source: raw(7), `IPPROTO_RAW`.
#![allow(unsafe_code, reason = "system calls")]
#![allow(clippy::cast_possible_truncation, reason = "sizes and constants of C structures")]

use std::io;
use std::mem::size_of;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use openrelay_sys::cvt::{cvt, cvt_len};

/// A socket that sends whole IPv4 packets.
#[derive(Debug)]
pub struct RawSocket(OwnedFd);

impl RawSocket {
    /// Opens the socket.
    ///
    /// # Errors
    /// Without CAP_NET_RAW.
    pub fn open() -> io::Result<Self> {
        // SAFETY: socket takes no pointers; on success the descriptor is new and owned by nobody else.
        unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
            Ok(Self(OwnedFd::from_raw_fd(cvt(libc::socket(libc::AF_INET, kind, libc::IPPROTO_RAW))?)))
        }
    }

    /// Sends `packet`, which begins with its IPv4 header, to `to`.
    ///
    /// # Errors
    /// When the kernel does not accept the packet.
    pub fn send(&self, packet: &[u8], to: Ipv4Addr) -> io::Result<()> {
        let address = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: 0,
            sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(to.octets()) },
            sin_zero: [0; 8],
        };
        let len = size_of::<libc::sockaddr_in>() as libc::socklen_t;
        // SAFETY: packet and address live through the call and have the lengths given; sendto only reads them.
        cvt_len(unsafe {
            let address = (&raw const address).cast();
            libc::sendto(self.0.as_raw_fd(), packet.as_ptr().cast(), packet.len(), 0, address, len)
        })
        .map(drop)
    }
}
