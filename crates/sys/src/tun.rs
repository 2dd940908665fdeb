//! TUN devices with several queues, virtio headers and segmentation offloads.
//!
//! Owns the device's descriptors and the layout of the virtio header. The header of a packet that was read comes from
//! this host's kernel; the header of a packet that is written is the caller's responsibility.
//!
//! Source: linux/Documentation/networking/tuntap.rst; virtio 1.2 §5.1.6.
#![allow(unsafe_code, reason = "system calls")]
#![allow(clippy::cast_possible_truncation, reason = "sizes and constants of C structures")]

use std::fs::File;
use std::io::{self, IoSlice, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::cvt::cvt;

/// Bytes of the virtio header before each packet.
pub const VNET_LEN: usize = 10;
/// Bytes of the largest packet that a device hands over, with its header.
pub const MAX_READ: usize = 65_536 + VNET_LEN;

const DRIVER: &str = "/dev/net/tun";
const NEEDS_CHECKSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_TCP4: u8 = 1;
const GSO_TCP6: u8 = 4;
const GSO_UDP: u8 = 5;
const GSO_ECN: u8 = 0x80;

/// How a packet is to be segmented.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Segmentation {
    /// Not at all: it is one packet.
    None,
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP datagrams of equal length, either family.
    Udp,
}

/// The virtio header of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VnetHeader {
    /// Whether the transport checksum field holds only the pseudo-header's sum.
    pub needs_checksum: bool,
    /// Whether the kernel has verified the transport checksum.
    pub data_valid: bool,
    /// How the packet is to be segmented.
    pub segmentation: Segmentation,
    /// Length of all headers in bytes.
    pub header_len: u16,
    /// Bytes of payload per segment.
    pub segment_size: u16,
    /// Offset of the transport header.
    pub checksum_start: u16,
    /// Offset of the checksum in the transport header.
    pub checksum_offset: u16,
}

impl VnetHeader {
    /// The header of a packet that is complete and needs no segmentation.
    pub const PLAIN: Self = Self {
        needs_checksum: false,
        data_valid: false,
        segmentation: Segmentation::None,
        header_len: 0,
        segment_size: 0,
        checksum_start: 0,
        checksum_offset: 0,
    };

    /// Parses a header; `None` for kinds of segmentation that were never offered.
    pub fn parse(bytes: &[u8; VNET_LEN]) -> Option<Self> {
        let [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1] = *bytes;
        let segmentation = match kind & !GSO_ECN {
            0 => Segmentation::None,
            GSO_TCP4 => Segmentation::Tcp4,
            GSO_TCP6 => Segmentation::Tcp6,
            GSO_UDP => Segmentation::Udp,
            _ => return None,
        };
        Some(Self {
            needs_checksum: flags & NEEDS_CHECKSUM != 0,
            data_valid: flags & DATA_VALID != 0,
            segmentation,
            header_len: u16::from_ne_bytes([h0, h1]),
            segment_size: u16::from_ne_bytes([s0, s1]),
            checksum_start: u16::from_ne_bytes([c0, c1]),
            checksum_offset: u16::from_ne_bytes([o0, o1]),
        })
    }

    /// Returns the header as bytes.
    pub fn to_bytes(self) -> [u8; VNET_LEN] {
        let [h0, h1] = self.header_len.to_ne_bytes();
        let [s0, s1] = self.segment_size.to_ne_bytes();
        let [c0, c1] = self.checksum_start.to_ne_bytes();
        let [o0, o1] = self.checksum_offset.to_ne_bytes();
        let kind = match self.segmentation {
            Segmentation::None => 0,
            Segmentation::Tcp4 => GSO_TCP4,
            Segmentation::Tcp6 => GSO_TCP6,
            Segmentation::Udp => GSO_UDP,
        };
        [if self.needs_checksum { NEEDS_CHECKSUM } else { 0 }, kind, h0, h1, s0, s1, c0, c1, o0, o1]
    }
}

/// Why there is no device.
#[derive(Debug, thiserror::Error)]
pub enum TunError {
    /// The kernel's TUN driver cannot be opened.
    #[error(
        "cannot open {DRIVER}: {0}; load the kernel module tun (modprobe tun), and in a container pass this device"
    )]
    NoDriver(io::Error),
    /// The kernel refused the device.
    #[error(transparent)]
    Refused(#[from] io::Error),
}

/// One queue of a device, for one shard.
#[derive(Debug)]
pub struct TunQueue(File);

/// A device with its queues. The kernel removes it when the last queue is closed.
#[derive(Debug)]
pub struct Tun {
    /// The name that the kernel gave it.
    pub name: String,
    /// The queues, one per shard.
    pub queues: Vec<TunQueue>,
    /// Whether the kernel hands over UDP trains without segmenting them.
    pub udp_segmentation: bool,
}

impl Tun {
    /// Creates a device called `name` (`%d` is replaced by a number) with `queues` queues.
    ///
    /// # Errors
    /// [`TunError::NoDriver`] without /dev/net/tun; otherwise without CAP_NET_ADMIN, or when the name is taken.
    pub fn create(name: &str, queues: usize) -> Result<Self, TunError> {
        let mut device = Self { name: name.to_owned(), queues: Vec::new(), udp_segmentation: true };
        for _ in 0..queues.max(1) {
            let file = File::options().read(true).write(true).open(DRIVER).map_err(TunError::NoDriver)?;
            // Only the first queue creates the device: a device that exists already belongs to somebody else.
            let exclusive = device.queues.is_empty();
            device.name = attach(&file, &device.name, queues > 1, exclusive)?;
            device.udp_segmentation &= offload(&file)?;
            nonblocking(&file)?;
            device.queues.push(TunQueue(file));
        }
        Ok(device)
    }
}

impl TunQueue {
    /// Creates a queue without a device, which swallows everything, for tests and benchmarks of the code before it.
    ///
    /// # Errors
    /// Without /dev/null.
    pub fn sink() -> io::Result<Self> {
        File::options().read(true).write(true).open("/dev/null").map(Self)
    }

    /// Reads the next packet, virtio header first, into `buffer`, which should have [`MAX_READ`] bytes.
    ///
    /// # Errors
    /// `WouldBlock` when there is no packet.
    pub fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        (&self.0).read(buffer)
    }

    /// Writes a packet, virtio header first, from its parts.
    ///
    /// # Errors
    /// When the kernel refuses it.
    pub fn write(&self, parts: &[IoSlice<'_>]) -> io::Result<usize> {
        (&self.0).write_vectored(parts)
    }
}

impl AsFd for TunQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Attaches a queue to the device `name`. Returns the device's full name.
fn attach(file: &File, name: &str, several: bool, exclusive: bool) -> io::Result<String> {
    // SAFETY: ifreq is plain data for which all zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "device name is longer than 15 bytes"));
    }
    for (room, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *room = libc::c_char::from_ne_bytes([byte]);
    }
    let several = if several { libc::IFF_MULTI_QUEUE } else { 0 };
    let exclusive = if exclusive { libc::IFF_TUN_EXCL } else { 0 };
    let flags = libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR | several | exclusive;
    let flags = u16::try_from(flags).map_err(|_| io::ErrorKind::InvalidInput)?;
    request.ifr_ifru.ifru_flags = libc::c_short::from_ne_bytes(flags.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes an ifreq, which lives through the call.
    cvt(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as libc::Ioctl, &raw mut request) })?;
    let name = request.ifr_name.iter().take_while(|&&c| c != 0).map(|c| char::from(c.to_ne_bytes()[0]));
    Ok(name.collect())
}

/// Enables offloads. Returns whether UDP segmentation is among them.
fn offload(file: &File) -> io::Result<bool> {
    let tcp = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6;
    for (flags, udp) in [(tcp | libc::TUN_F_USO4 | libc::TUN_F_USO6, true), (tcp, false)] {
        // SAFETY: TUNSETOFFLOAD takes its flags by value.
        let result =
            unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETOFFLOAD as libc::Ioctl, libc::c_ulong::from(flags)) };
        match cvt(result) {
            Ok(_) => return Ok(udp),
            Err(error) if udp && error.raw_os_error() == Some(libc::EINVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

fn nonblocking(file: &File) -> io::Result<()> {
    // SAFETY: fcntl with F_SETFL takes its flags by value.
    cvt(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virtio_header_parses_back() {
        let header = VnetHeader {
            needs_checksum: true,
            data_valid: false,
            segmentation: Segmentation::Tcp6,
            header_len: 72,
            segment_size: 1336,
            checksum_start: 40,
            checksum_offset: 16,
        };
        assert_eq!(VnetHeader::parse(&header.to_bytes()), Some(header));
        assert_eq!(VnetHeader::parse(&[0, 3, 0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
