//! UDP in batches: one call receives or sends a whole train of datagrams of equal length.
//!
//! Owns socket options and control messages. Falls back on its own when the kernel refuses an offload.
//!
//! Source: udp(7) `UDP_SEGMENT`, `UDP_GRO`; socket(7) `SO_RXQ_OVFL`.
#![allow(unsafe_code, reason = "system calls")]
#![allow(clippy::cast_possible_truncation, reason = "sizes and constants of C structures")]

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use crate::cvt::{cvt, cvt_len};

/// Bytes of a receive buffer: the largest train that the kernel hands over.
pub const TRAIN: usize = 65_535;
/// Maximum number of datagrams of one train, in either direction. Source: linux `UDP_MAX_SEGMENTS` before 6.9.
pub const TRAIN_SEGMENTS: usize = 64;
/// Maximum payload of a sent train, in bytes: what fits one IPv4 packet.
pub const TRAIN_BYTES: usize = 65_535 - 20 - 8;
/// Requested receive buffer in bytes. A train waits here while its reader processes the previous one; a larger buffer
/// only adds delay.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;
/// Bytes of the header that a socket filter sees before the datagram.
const UDP_HEADER: usize = 8;
const SEND_BUFFER: libc::c_int = 4 << 20;

/// A received train of datagrams.
#[derive(Clone, Copy, Debug)]
pub struct Train {
    /// Its sender.
    pub from: SocketAddr,
    /// Total number of bytes.
    pub len: usize,
    /// Bytes of each datagram except the last, which may be shorter.
    pub stride: usize,
}

/// A UDP socket of one shard.
#[derive(Debug)]
pub struct UdpSocket {
    fd: OwnedFd,
    v6: bool,
    segmentation: AtomicBool,
    overflows: AtomicU32,
}

#[repr(C, align(8))]
struct ControlBuffer([u8; 128]);

impl UdpSocket {
    /// Binds to `address`. With `reuse_port`, the shards of one relay share the address. The host need not have the
    /// address yet, and may lose it for a while.
    ///
    /// # Errors
    /// When the address and port are taken.
    pub fn bind(address: SocketAddr, reuse_port: bool) -> io::Result<Self> {
        let v6 = address.is_ipv6();
        let family = if v6 { libc::AF_INET6 } else { libc::AF_INET };
        let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
        // SAFETY: socket takes no pointers; on success the descriptor is new and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(cvt(libc::socket(family, kind, 0))?) };
        let socket = Self { fd, v6, segmentation: AtomicBool::new(true), overflows: AtomicU32::new(0) };
        if reuse_port {
            socket.option(libc::SOL_SOCKET, libc::SO_REUSEPORT, 1)?;
        }
        socket.buffers();
        // The protocol probes the path MTU; the kernel neither fragments nor trusts errors.
        if v6 {
            socket.option(libc::IPPROTO_IPV6, libc::IPV6_FREEBIND, 1)?;
            socket.option(libc::IPPROTO_IPV6, libc::IPV6_V6ONLY, 1)?;
            socket.option(libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)?;
        } else {
            socket.option(libc::IPPROTO_IP, libc::IP_FREEBIND, 1)?;
            socket.option(libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)?;
        }
        socket.option(libc::SOL_SOCKET, libc::SO_RXQ_OVFL, 1)?;
        // A kernel without this option delivers datagrams one by one.
        let _ = socket.option(libc::SOL_UDP, libc::UDP_GRO, 1);
        let (storage, len) = to_storage(address);
        // SAFETY: `storage` holds a socket address of `len` bytes and lives through the call.
        cvt(unsafe { libc::bind(socket.fd.as_raw_fd(), (&raw const storage).cast(), len) })?;
        Ok(socket)
    }

    /// Requests large buffers: beyond the system's limit where the process may, otherwise up to it.
    fn buffers(&self) {
        for (force, plain, size) in [
            (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER),
            (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER),
        ] {
            if self.option(libc::SOL_SOCKET, force, size).is_err() {
                let _ = self.option(libc::SOL_SOCKET, plain, size);
            }
        }
    }

    /// Marks all packets of the socket, so that routing rules can recognise them.
    ///
    /// # Errors
    /// Without CAP_NET_ADMIN.
    pub fn set_mark(&self, mark: u32) -> io::Result<()> {
        self.option(libc::SOL_SOCKET, libc::SO_MARK, libc::c_int::from_ne_bytes(mark.to_ne_bytes()))
    }

    fn option(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        let size = size_of::<libc::c_int>() as libc::socklen_t;
        // SAFETY: `value` lives through the call and has `size` bytes.
        cvt(unsafe { libc::setsockopt(self.fd.as_raw_fd(), level, name, (&raw const value).cast(), size) }).map(drop)
    }

    /// Returns the address to which the socket is bound.
    ///
    /// # Errors
    /// Never for a bound socket.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        let mut storage = MaybeUninit::<libc::sockaddr_storage>::zeroed();
        let mut len = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        // SAFETY: `storage` has `len` bytes, lives through the call, and all zeros are a valid value of it.
        let storage = unsafe {
            cvt(libc::getsockname(self.fd.as_raw_fd(), storage.as_mut_ptr().cast(), &raw mut len))?;
            storage.assume_init()
        };
        from_storage(&storage).ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// Returns whether the socket uses IPv6.
    pub fn is_v6(&self) -> bool {
        self.v6
    }

    /// Returns how many datagrams the kernel had dropped because the receive buffer was full when the last one arrived.
    pub fn overflows(&self) -> u32 {
        self.overflows.load(Ordering::Relaxed)
    }

    /// Receives a train into `buffer`.
    ///
    /// # Errors
    /// `WouldBlock` when there is no train.
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Train> {
        let mut name = MaybeUninit::<libc::sockaddr_storage>::zeroed();
        let mut control = ControlBuffer([0; 128]);
        let mut io_vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: msghdr is plain data for which all zeros are valid; every pointer put into it lives through recvmsg
        // and has the length given beside it; the name was zeroed, which is a valid value of it.
        let (len, header, name) = unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_name = name.as_mut_ptr().cast();
            header.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
            header.msg_iov = &raw mut io_vector;
            header.msg_iovlen = 1;
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = control.0.len();
            let len = cvt_len(libc::recvmsg(self.fd.as_raw_fd(), &raw mut header, 0))?;
            (len, header, name.assume_init())
        };
        let mut stride = len;
        // SAFETY: `header` was filled in by recvmsg; CMSG_FIRSTHDR and CMSG_NXTHDR stay within its control buffer,
        // which is still alive, and the data of the two messages read is a C int and a u32 as the kernel documents.
        unsafe {
            let mut message = libc::CMSG_FIRSTHDR(&raw const header);
            while let Some(head) = message.as_ref() {
                let data = libc::CMSG_DATA(message);
                if head.cmsg_level == libc::SOL_UDP && head.cmsg_type == libc::UDP_GRO {
                    stride = usize::try_from(data.cast::<libc::c_int>().read_unaligned()).unwrap_or(len);
                } else if head.cmsg_level == libc::SOL_SOCKET && head.cmsg_type == libc::SO_RXQ_OVFL {
                    self.overflows.store(data.cast::<u32>().read_unaligned(), Ordering::Relaxed);
                }
                message = libc::CMSG_NXTHDR(&raw const header, message);
            }
        }
        let from = from_storage(&name).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Train { from, len, stride: stride.max(1) })
    }

    /// Sends `bytes` to `to` as datagrams of `stride` bytes each; the last one may be shorter. A train may have at
    /// most [`TRAIN_SEGMENTS`] datagrams and [`TRAIN_BYTES`] bytes. Returns how many datagrams the kernel accepted.
    ///
    /// # Errors
    /// When the kernel accepts none of them.
    pub fn send(&self, to: SocketAddr, bytes: &[u8], stride: usize) -> io::Result<usize> {
        let segments = bytes.len().div_ceil(stride.max(1));
        if segments <= 1 {
            return self.send_one(to, bytes, None).map(|()| 1);
        }
        if self.segmentation.load(Ordering::Relaxed) {
            match self.send_one(to, bytes, u16::try_from(stride).ok()) {
                Ok(()) => return Ok(segments),
                // EIO: no checksum offload on the way. EINVAL: a kernel without UDP_SEGMENT, or a datagram too large
                // for the device.
                Err(error) if matches!(error.raw_os_error(), Some(libc::EIO)) => {
                    self.segmentation.store(false, Ordering::Relaxed);
                }
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL)) => {}
                Err(error) => return Err(error),
            }
        }
        let mut sent = 0;
        let mut last = None;
        for datagram in bytes.chunks(stride) {
            match self.send_one(to, datagram, None) {
                Ok(()) => sent += 1,
                Err(error) => last = Some(error),
            }
        }
        match last {
            Some(error) if sent == 0 => Err(error),
            _ => Ok(sent),
        }
    }

    /// Makes the kernel drop datagrams with one of these lengths at random, all but one in `keep` (a power of two).
    /// The kernel counts them among the [`UdpSocket::overflows`]. All other datagrams pass; without lengths,
    /// everything passes.
    ///
    /// # Errors
    /// When the kernel refuses the filter.
    pub fn thin_out(&self, lengths: &[usize], keep: u32) -> io::Result<()> {
        use crate::bpf::{ALL, JUMP_BITS, JUMP_EQUAL, LOAD_LENGTH, LOAD_WORD, RANDOM, RETURN, op};
        let mut program = vec![op(LOAD_LENGTH, 0)];
        for (number, length) in lengths.iter().enumerate() {
            // Jumps to the random number, past the other lengths and the return after them.
            let jt = u8::try_from(lengths.len() - number).map_err(|_| io::ErrorKind::InvalidInput)?;
            let k = u32::try_from(length + UDP_HEADER).map_err(|_| io::ErrorKind::InvalidInput)?;
            program.push(libc::sock_filter { code: JUMP_EQUAL, jt, jf: 0, k });
        }
        program.push(op(RETURN, ALL));
        program.push(op(LOAD_WORD, RANDOM));
        program.push(libc::sock_filter { code: JUMP_BITS, jt: 0, jf: 1, k: keep.wrapping_sub(1) });
        program.push(op(RETURN, 0));
        program.push(op(RETURN, ALL));
        crate::bpf::attach(self.fd.as_fd(), &mut program)
    }

    /// Disables trains in both directions. Sending also stops using trains by itself where a kernel refuses them.
    pub fn without_trains(&self) {
        self.segmentation.store(false, Ordering::Relaxed);
        // A kernel without this option has nothing to disable.
        let _ = self.option(libc::SOL_UDP, libc::UDP_GRO, 0);
    }

    fn send_one(&self, to: SocketAddr, bytes: &[u8], stride: Option<u16>) -> io::Result<()> {
        let (mut name, name_len) = to_storage(to);
        let mut control = ControlBuffer([0; 128]);
        let mut io_vector = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        // SAFETY: msghdr is plain data for which all zeros are valid; every pointer put into it lives through sendmsg
        // and has the length given beside it; sendmsg only reads through them. The control buffer is aligned for
        // cmsghdr and has room for one message of two bytes, which CMSG_FIRSTHDR and CMSG_DATA point into.
        unsafe {
            let mut header: libc::msghdr = std::mem::zeroed();
            header.msg_name = (&raw mut name).cast();
            header.msg_namelen = name_len;
            header.msg_iov = &raw mut io_vector;
            header.msg_iovlen = 1;
            if let Some(stride) = stride {
                header.msg_control = control.0.as_mut_ptr().cast();
                header.msg_controllen = libc::CMSG_SPACE(2) as usize;
                let message = libc::CMSG_FIRSTHDR(&raw const header);
                (*message).cmsg_level = libc::SOL_UDP;
                (*message).cmsg_type = libc::UDP_SEGMENT;
                (*message).cmsg_len = libc::CMSG_LEN(2) as usize;
                libc::CMSG_DATA(message).cast::<u16>().write_unaligned(stride);
            }
            cvt_len(libc::sendmsg(self.fd.as_raw_fd(), &raw const header, 0)).map(drop)
        }
    }
}

impl AsFd for UdpSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Returns `address` in the kernel's form, and the length of that form.
fn to_storage(address: SocketAddr) -> (libc::sockaddr_storage, libc::socklen_t) {
    // SAFETY: sockaddr_storage is plain data for which all zeros are valid.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let len = match address {
        SocketAddr::V4(v4) => {
            let raw = libc::sockaddr_in {
                sin_family: libc::AF_INET as libc::sa_family_t,
                sin_port: v4.port().to_be(),
                sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                sin_zero: [0; 8],
            };
            // SAFETY: sockaddr_storage is at least as large and as aligned as every socket address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in>().write(raw) };
            size_of::<libc::sockaddr_in>()
        }
        SocketAddr::V6(v6) => {
            let raw = libc::sockaddr_in6 {
                sin6_family: libc::AF_INET6 as libc::sa_family_t,
                sin6_port: v6.port().to_be(),
                sin6_flowinfo: 0,
                sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                sin6_scope_id: v6.scope_id(),
            };
            // SAFETY: sockaddr_storage is at least as large and as aligned as every socket address.
            unsafe { (&raw mut storage).cast::<libc::sockaddr_in6>().write(raw) };
            size_of::<libc::sockaddr_in6>()
        }
    };
    (storage, len as libc::socklen_t)
}

/// Returns the address in `storage`, if it is an IP address.
fn from_storage(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match libc::c_int::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says that the storage holds a sockaddr_in, for which it is large and aligned enough.
            let raw = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(raw.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, u16::from_be(raw.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: the family says that the storage holds a sockaddr_in6, for which it is large and aligned enough.
            let raw = unsafe { &*std::ptr::from_ref(storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(raw.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(raw.sin6_port), 0, raw.sin6_scope_id).into())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn thin_out_drops_most_datagrams_of_the_given_lengths_only() {
        let address = "127.0.0.1:0".parse().unwrap();
        let (a, b) = (UdpSocket::bind(address, false).unwrap(), UdpSocket::bind(address, false).unwrap());
        let mut buffer = vec![0; TRAIN];
        let mut got = |lengths: &[usize]| {
            b.thin_out(lengths, 8).unwrap();
            let mut counts = [0; 3];
            for _ in 0..100 {
                for (count, length) in counts.iter_mut().zip([112usize, 160, 128]) {
                    a.send(b.local_address().unwrap(), &vec![0; length], length).unwrap();
                    while let Ok(train) = b.receive(&mut buffer) {
                        *count += usize::from(train.len == length);
                    }
                }
            }
            counts
        };
        let [first, second, other] = got(&[112, 160]);
        // One in eight passes. Fifty of a hundred would be further off than chance ever is.
        assert!(first < 50 && second < 50 && first + second > 0, "{first} {second}");
        assert_eq!(other, 100);
        assert_eq!(got(&[]), [100; 3]);
    }

    #[test]
    fn train_arrives_with_every_datagram_in_order() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let a = UdpSocket::bind(address.parse().unwrap(), false).unwrap();
            let b = UdpSocket::bind(address.parse().unwrap(), false).unwrap();
            for fallback in [false, true] {
                if fallback {
                    a.without_trains();
                }
                let sent: Vec<u8> = (0..10_500u32).map(|i| (i / 1000).to_le_bytes()[0]).collect();
                assert_eq!(a.send(b.local_address().unwrap(), &sent, 1000).unwrap(), 11);
                let mut got = Vec::new();
                let mut buffer = vec![0; TRAIN];
                while got.len() < sent.len() {
                    crate::event::wait(&[b.as_fd()], Duration::from_secs(5)).unwrap();
                    let train = b.receive(&mut buffer).unwrap();
                    assert_eq!(train.from, a.local_address().unwrap());
                    for datagram in buffer[..train.len].chunks(train.stride) {
                        assert!(datagram.iter().all(|&byte| byte == datagram[0]));
                        got.extend_from_slice(datagram);
                    }
                }
                assert_eq!(got, sent);
            }
        }
    }

    #[test]
    fn empty_datagram_is_received_and_blocks_nothing() {
        let a = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let b = UdpSocket::bind("127.0.0.1:0".parse().unwrap(), false).unwrap();
        let to = b.local_address().unwrap();
        a.send(to, &[], 1).unwrap();
        a.send(to, &[7], 1).unwrap();
        let mut buffer = vec![0; TRAIN];
        crate::event::wait(&[b.as_fd()], Duration::from_secs(5)).unwrap();
        assert_eq!(b.receive(&mut buffer).unwrap().len, 0);
        assert_eq!(b.receive(&mut buffer).unwrap().len, 1);
        assert_eq!(b.receive(&mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
