//! Cutting what a TUN device hands over into packets that fit the path.
//!
//! Owns TCP segmentation and the cutting of UDP trains, after this host's own parse of the packet. TCP is cut to whatever fits the
//! path, so a path that shrinks stalls no connection. Checksums are left to the far end with one bit.
//! Source: RFC 9293 §3.1; linux `tcp_gso_segment`, `__udp_gso_segment` for which fields change.

use std::io::IoSlice;

use openrelay_proto::drops::DropReason;
use openrelay_proto::ip::{Packet, TCP, UDP, checksum, icmp};
use openrelay_sys::tun::{Segmentation, TunQueue, VnetHeader};

const FIN_PSH: u8 = 0x01 | 0x08;
const CWR: u8 = 0x80;

/// How a packet is cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Split {
    /// Bytes of all headers, repeated in each piece; zero when the packet is not cut.
    headers: usize,
    /// Bytes of payload in each piece but the last.
    payload: usize,
    /// How many pieces.
    pub pieces: usize,
    /// Whether the transport checksum is left to the receiver.
    pub partial: bool,
}

impl Split {
    /// Decides how to cut `packet`, which `bytes` hold, so that no piece is longer than `mtu`.
    ///
    /// # Errors
    /// [`DropReason::PacketTooBig`] when it may not be cut and does not fit; [`DropReason::BadPacket`] when the device's header does not
    /// go with the packet.
    pub fn plan(header: &VnetHeader, packet: &Packet, bytes: &[u8], mtu: u16) -> Result<Self, DropReason> {
        let mtu = usize::from(mtu);
        let partial = is_partial(header, packet)?;
        let single = Self { headers: 0, payload: packet.len, pieces: 1, partial };
        if header.segmentation == Segmentation::None && packet.len <= mtu {
            return Ok(single);
        }
        let headers = packet.transport + packet.transport_header_len(bytes);
        let asked = match (header.segmentation, packet.protocol) {
            (Segmentation::Tcp4 | Segmentation::Tcp6, TCP) | (Segmentation::Udp, UDP) => {
                usize::from(header.segment_size)
            }
            (Segmentation::None, _) => usize::MAX,
            _ => return Err(DropReason::BadPacket),
        };
        let payload = packet.len - headers.min(packet.len);
        let fits = mtu.saturating_sub(headers);
        if packet.protocol == TCP && !packet.fragment && fits > 0 && asked > 0 {
            // Without offload the checksum is whole; it must be right before the far end replaces it.
            if !partial && !header.data_valid && !checksum::transport_is_valid(packet, bytes) {
                return Err(DropReason::BadPacket);
            }
            let each = asked.min(fits);
            return Ok(Self { headers, payload: each, pieces: payload.div_ceil(each).max(1), partial: true });
        }
        if header.segmentation == Segmentation::Udp && asked > 0 && asked <= fits && partial {
            return Ok(Self { headers, payload: asked, pieces: payload.div_ceil(asked).max(1), partial });
        }
        Err(DropReason::PacketTooBig)
    }

    /// Bytes of piece `number`.
    pub fn len(&self, packet: &Packet, number: usize) -> usize {
        if self.headers == 0 {
            return packet.len;
        }
        let payload = packet.len - self.headers;
        self.headers + self.payload.min(payload - (number * self.payload).min(payload))
    }

    /// Writes piece `number` of the packet that `bytes` hold into `out`, which has exactly its length.
    pub fn write(&self, packet: &Packet, bytes: &[u8], number: usize, out: &mut [u8]) {
        if self.headers == 0 {
            if let Some(whole) = bytes.get(..out.len()) {
                out.copy_from_slice(whole);
            }
            return;
        }
        let start = self.headers + number * self.payload;
        let (Some(headers), Some(payload)) =
            (bytes.get(..self.headers), bytes.get(start..start + out.len() - self.headers))
        else {
            return;
        };
        let (own_headers, own_payload) = out.split_at_mut(self.headers);
        own_headers.copy_from_slice(headers);
        own_payload.copy_from_slice(payload);
        let len = out.len();
        fix_network_header(packet, out, len, number);
        fix_transport_header(packet, out, number * self.payload, number, number + 1 == self.pieces);
    }
}

/// Tells the sender of `packet`, through the device that it came from, that no more than `mtu` bytes fit.
pub(crate) fn say_too_big(queue: &TunQueue, packet: &Packet, bytes: &[u8], mtu: u16) {
    let mut error = [0; 600];
    if let Some(len) = icmp::packet_too_big(packet, bytes, mtu, &mut error) {
        let vnet = VnetHeader::PLAIN.to_bytes();
        // A sender that is not told finds out by itself.
        let _ = queue.write(&[IoSlice::new(&vnet), IoSlice::new(error.get(..len).unwrap_or(&[]))]);
    }
}

/// Whether the kernel left the transport checksum to whoever sends the packet on.
fn is_partial(header: &VnetHeader, packet: &Packet) -> Result<bool, DropReason> {
    if !header.needs_checksum {
        return Ok(false);
    }
    let at = usize::from(header.checksum_start) + usize::from(header.checksum_offset);
    if packet.checksum_at() == Some(at) && usize::from(header.checksum_start) == packet.transport && !packet.fragment {
        Ok(true)
    } else {
        Err(DropReason::BadPacket)
    }
}

fn fix_network_header(packet: &Packet, out: &mut [u8], len: usize, number: usize) {
    let number = u16::try_from(number & 0xffff).unwrap_or(0);
    if packet.is_v6() {
        set(out, 4, u16::try_from(len - 40).unwrap_or(u16::MAX));
    } else {
        set(out, 2, u16::try_from(len).unwrap_or(u16::MAX));
        let id = get(out, 4).wrapping_add(number);
        set(out, 4, id);
        checksum::fill_v4_header(out, packet.transport);
    }
}

fn fix_transport_header(packet: &Packet, out: &mut [u8], offset: usize, number: usize, last: bool) {
    let at = packet.transport;
    if packet.protocol == TCP {
        let Some(sequence) = out.get_mut(at + 4..).and_then(|rest| rest.first_chunk_mut::<4>()) else { return };
        let moved = u32::from_be_bytes(*sequence).wrapping_add(u32::try_from(offset).unwrap_or(0));
        *sequence = moved.to_be_bytes();
        if let Some(flags) = out.get_mut(at + 13) {
            if !last {
                *flags &= !FIN_PSH;
            }
            if number > 0 {
                *flags &= !CWR;
            }
        }
        set(out, at + 16, 0);
    } else {
        let len = u16::try_from(out.len() - at).unwrap_or(u16::MAX);
        set(out, at + 4, len);
        set(out, at + 6, 0);
    }
}

fn get(bytes: &[u8], at: usize) -> u16 {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<2>()).map_or(0, |pair| u16::from_be_bytes(*pair))
}

fn set(bytes: &mut [u8], at: usize, value: u16) {
    if let Some(room) = bytes.get_mut(at..at + 2) {
        room.copy_from_slice(&value.to_be_bytes());
    }
}
