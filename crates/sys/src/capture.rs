//! Every packet that crosses a link, for judges in tests and demonstrations.
//!
//! Owns a packet socket. Says how many packets it missed, so that a judge never takes a gap for innocence.
//! Source: packet(7).
#![allow(unsafe_code, reason = "system calls")]
#![allow(clippy::cast_possible_truncation, reason = "sizes and constants of C structures")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::cvt::{cvt, cvt_len};

const RECEIVE_BUFFER: libc::c_int = 64 << 20;
const ALL_PROTOCOLS: u16 = 3;

/// A socket that sees all packets of one link, from the link layer up.
#[derive(Debug)]
pub struct Capture(OwnedFd);

impl Capture {
    /// Starts to capture on the link with this number.
    ///
    /// # Errors
    /// Without CAP_NET_RAW.
    pub fn start(link: u32) -> io::Result<Self> {
        let protocol = ALL_PROTOCOLS.to_be();
        // SAFETY: socket takes no pointers; on success the descriptor is new and owned by nobody else.
        let fd = unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
            OwnedFd::from_raw_fd(cvt(libc::socket(libc::AF_PACKET, kind, protocol.into()))?)
        };
        for name in [libc::SO_RCVBUFFORCE, libc::SO_RCVBUF] {
            let (bytes, size) = (RECEIVE_BUFFER, size_of::<libc::c_int>() as libc::socklen_t);
            // SAFETY: the value lives through the call and has `size` bytes.
            let set = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw const bytes).cast(), size) };
            if set == 0 {
                break;
            }
        }
        // SAFETY: sockaddr_ll is plain data for which all zeros are valid; it lives through bind.
        unsafe {
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as libc::c_ushort;
            address.sll_protocol = protocol;
            address.sll_ifindex = libc::c_int::try_from(link).map_err(|_| io::ErrorKind::InvalidInput)?;
            let len = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            cvt(libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len))?;
        }
        Ok(Self(fd))
    }

    /// The next packet, with its Ethernet header; how many of its bytes are in `buffer`.
    ///
    /// # Errors
    /// `WouldBlock` when there is none.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: `buffer` lives through the call and has the length given.
        cvt_len(unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) })
    }

    /// Packets missed since this was asked last.
    ///
    /// # Errors
    /// Never for an open socket.
    pub fn missed(&self) -> io::Result<u32> {
        let mut stats = [0u32; 2];
        let mut len = size_of::<[u32; 2]>() as libc::socklen_t;
        // SAFETY: tpacket_stats is two u32, packets and drops; `stats` lives through the call and has `len` bytes.
        cvt(unsafe {
            libc::getsockopt(self.0.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_STATISTICS, stats.as_mut_ptr().cast(), &raw mut len)
        })?;
        Ok(stats[1])
    }
}

impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
