//! Captures every packet that crosses a link, for judges in tests and demonstrations.
//!
//! Owns a packet socket. Reports how many packets it missed, so that a judge never mistakes a gap in the capture for
//! the absence of a leak. Never sends a packet.
//!
//! Source: packet(7).
#![allow(unsafe_code, reason = "system calls")]
#![allow(clippy::cast_possible_truncation, reason = "sizes and constants of C structures")]

use std::io;
use std::mem::size_of;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use openrelay_sys::bpf::{
    self, ALL, HEADER_TO_X, JUMP_BITS, JUMP_EQUAL, LOAD_BYTE, LOAD_HALF, LOAD_HALF_X, LOAD_WORD, RETURN, op,
};
use openrelay_sys::cvt::{cvt, cvt_len};

const RECEIVE_BUFFER: libc::c_int = 64 << 20;
const ALL_PROTOCOLS: u16 = 3;

/// A socket that sees all packets of one link, from the link layer up.
#[derive(Debug)]
pub struct Capture(OwnedFd);

impl Capture {
    /// Starts to capture on the link with this index.
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
            let set =
                unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, name, (&raw const bytes).cast(), size) };
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

    /// Reads the next packet, with its Ethernet header. Returns how many of its bytes are in `buffer`.
    ///
    /// # Errors
    /// `WouldBlock` when there is no packet.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        // SAFETY: `buffer` lives through the call and has the length given.
        cvt_len(unsafe { libc::recv(self.0.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), 0) })
    }

    /// Restricts the capture to packets that matter to a judge. These are all packets from or to a `forbidden`
    /// address, and all others except TCP and except UDP from or to `port`.
    ///
    /// # Errors
    /// When the kernel refuses the filter.
    pub fn narrow(&self, port: u16, forbidden: &[IpAddr]) -> io::Result<()> {
        bpf::attach(self.0.as_fd(), &mut filter(port, forbidden))
    }

    /// Returns how many packets were missed since the last call.
    ///
    /// # Errors
    /// Never for an open socket.
    pub fn missed(&self) -> io::Result<u32> {
        let mut stats = [0u32; 2];
        let mut len = size_of::<[u32; 2]>() as libc::socklen_t;
        // SAFETY: tpacket_stats is two u32, packets and drops; `stats` lives through the call and has `len` bytes.
        cvt(unsafe {
            libc::getsockopt(
                self.0.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                stats.as_mut_ptr().cast(),
                &raw mut len,
            )
        })?;
        Ok(stats[1])
    }
}

impl AsFd for Capture {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Builds the classic BPF program of [`Capture::narrow`]. Source: linux/Documentation/networking/filter.rst.
fn filter(port: u16, forbidden: &[IpAddr]) -> Vec<libc::sock_filter> {
    // "If the accumulator is (or is not) `k`, return `value`"; otherwise it jumps over the return.
    let when = |equal: bool, k, value| {
        let jump = libc::sock_filter { code: JUMP_EQUAL, jt: u8::from(!equal), jf: u8::from(equal), k };
        [jump, op(RETURN, value)]
    };
    let family = |v6: bool| {
        let mut part = vec![op(LOAD_BYTE, if v6 { 20 } else { 23 })];
        for address in forbidden.iter().filter(|address| address.is_ipv6() == v6) {
            match address {
                IpAddr::V4(v4) => {
                    for at in [26, 30] {
                        part.push(op(LOAD_WORD, at));
                        part.extend(when(true, v4.to_bits(), ALL));
                    }
                }
                IpAddr::V6(v6) => {
                    for at in [22u32, 38] {
                        for (word, bytes) in (0u8..).zip(v6.octets().chunks_exact(4)) {
                            let k = bytes.iter().fold(0, |k, byte| (k << 8) | u32::from(*byte));
                            part.push(op(LOAD_WORD, at + 4 * u32::from(word)));
                            // A word that differs ends the comparison: it jumps past the last word and its return.
                            let left = (3 - word) * 2 + 1;
                            part.push(libc::sock_filter { code: JUMP_EQUAL, jt: 0, jf: left, k });
                        }
                        part.push(op(RETURN, ALL));
                    }
                }
            }
        }
        part.push(op(LOAD_BYTE, if v6 { 20 } else { 23 }));
        part.extend(when(true, libc::IPPROTO_TCP as u32, 0));
        part.extend(when(false, libc::IPPROTO_UDP as u32, ALL));
        if v6 {
            for at in [54, 56] {
                part.push(op(LOAD_HALF, at));
                part.extend(when(true, port.into(), 0));
            }
        } else {
            part.push(op(LOAD_HALF, 20));
            part.extend([libc::sock_filter { code: JUMP_BITS, jt: 0, jf: 1, k: 0x1fff }, op(RETURN, ALL)]);
            part.push(op(HEADER_TO_X, 14));
            for at in [14, 16] {
                part.push(op(LOAD_HALF_X, at));
                part.extend(when(true, port.into(), 0));
            }
        }
        part.push(op(RETURN, ALL));
        part
    };
    let (v4, v6) = (family(false), family(true));
    let mut program = vec![op(LOAD_HALF, 12)];
    // Jumps to the part of the address family, or to a return that shows everything else.
    program.push(libc::sock_filter { code: JUMP_EQUAL, jt: 0, jf: 1, k: libc::ETH_P_IP as u32 });
    program.push(op(0x05, 2));
    program.push(libc::sock_filter { code: JUMP_EQUAL, jt: 1, jf: 0, k: libc::ETH_P_IPV6 as u32 });
    program.push(op(RETURN, ALL));
    let v4_len = u32::try_from(v4.len()).unwrap_or(0);
    // Both families reach index 5. This test tells them apart: IPv6 jumps over the IPv4 part.
    program.push(libc::sock_filter { code: JUMP_EQUAL, jt: 1, jf: 0, k: libc::ETH_P_IP as u32 });
    program.push(op(0x05, v4_len));
    program.extend(v4);
    program.extend(v6);
    program
}
