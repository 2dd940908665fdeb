//! Splits packets from a TUN device into pieces that fit the path.
//!
//! Owns TCP segmentation, the splitting of UDP trains and IPv4 fragmentation, based on this host's own parse of the
//! packet. TCP is split to whatever fits the path, so a path that shrinks stalls no connection. Other packets are
//! fragmented if their header allows it, because their sender would not be told that they are too big. Except for
//! fragments, one bit leaves the checksum to the far end.
//! Source: RFC 9293 §3.1, RFC 791 §3.2; Linux `tcp_gso_segment` and `__udp_gso_segment` for which fields change.

use std::io::IoSlice;

use openrelay_proto::drops::DropReason;
use openrelay_proto::ip::{Packet, TCP, UDP, checksum, icmp};
use openrelay_sys::tun::{Segmentation, TunQueue, VnetHeader};

const FIN_PSH: u8 = 0x01 | 0x08;
const CWR: u8 = 0x80;
/// Length of an IPv4 header without options. A packet with options is not fragmented: some options do not go into
/// every fragment.
const PLAIN_HEADER: usize = 20;
const MORE_FRAGMENTS: u16 = 0x2000;

/// How a packet is split.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Split {
    /// Bytes of all headers, repeated in each piece; zero if the packet is not split.
    headers: usize,
    /// Bytes of payload in each piece but the last.
    payload: usize,
    /// Number of pieces.
    pub pieces: usize,
    /// Whether the transport checksum is left to the receiver.
    pub partial: bool,
    /// `Some` if the pieces are fragments; true if the first one's transport checksum is still unfinished.
    fragments: Option<bool>,
}

impl Split {
    /// Decides how to split `packet`, whose bytes are `bytes`, so that no piece is longer than `mtu`.
    ///
    /// # Errors
    /// [`DropReason::PacketTooBig`] if the packet does not fit and must not be split. [`DropReason::BadPacket`] if
    /// the device's header contradicts the packet, or a checksum is wrong.
    pub fn plan(header: &VnetHeader, packet: &Packet, bytes: &[u8], mtu: u16) -> Result<Self, DropReason> {
        let mtu = usize::from(mtu);
        let partial = is_partial(header, packet)?;
        let single = Self { headers: 0, payload: packet.len, pieces: 1, partial, fragments: None };
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
            // Without offload the checksum is complete. It must be right before the far end replaces it.
            if !partial && !header.data_valid && !checksum::transport_is_valid(packet, bytes) {
                return Err(DropReason::BadPacket);
            }
            let each = asked.min(fits);
            let pieces = payload.div_ceil(each).max(1);
            return Ok(Self { headers, payload: each, pieces, partial: true, fragments: None });
        }
        if header.segmentation == Segmentation::Udp && asked > 0 && asked <= fits && partial {
            let pieces = payload.div_ceil(asked).max(1);
            return Ok(Self { headers, payload: asked, pieces, partial, fragments: None });
        }
        if header.segmentation == Segmentation::None && !packet.dont_fragment && bytes.first() == Some(&0x45) {
            let each = mtu.saturating_sub(PLAIN_HEADER) & !7;
            let pieces = (packet.len - PLAIN_HEADER).div_ceil(each.max(8));
            return Ok(Self {
                headers: PLAIN_HEADER,
                payload: each.max(8),
                pieces,
                partial: false,
                fragments: Some(partial),
            });
        }
        Err(DropReason::PacketTooBig)
    }

    /// Returns the length of piece `number`, in bytes.
    pub fn len(&self, packet: &Packet, number: usize) -> usize {
        if self.headers == 0 {
            return packet.len;
        }
        let payload = packet.len - self.headers;
        self.headers + self.payload.min(payload - (number * self.payload).min(payload))
    }

    /// Writes piece `number` of the packet in `bytes` to `out`, which has exactly the piece's length.
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
        if let Some(unfinished) = self.fragments {
            if unfinished && number == 0 {
                finish_checksum(packet, bytes, out);
            }
            return fix_fragment(out, number * self.payload, number + 1 == self.pieces);
        }
        let len = out.len();
        fix_network_header(packet, out, len, number);
        fix_transport_header(packet, out, number * self.payload, number, number + 1 == self.pieces);
    }
}

/// Tells the sender of `packet`, through the device that it came from, that at most `mtu` bytes fit.
pub fn say_too_big(queue: &TunQueue, packet: &Packet, bytes: &[u8], mtu: u16) {
    let mut error = [0; 600];
    if let Some(len) = icmp::packet_too_big(packet, bytes, mtu, &mut error) {
        let vnet = VnetHeader::PLAIN.to_bytes();
        // Without this message the sender finds out by itself.
        let _ = queue.write(&[IoSlice::new(&vnet), IoSlice::new(error.get(..len).unwrap_or(&[]))]);
    }
}

/// Returns whether the kernel left the transport checksum to this program.
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

/// Finishes the whole packet's transport checksum in its first fragment. Until then the field holds the
/// pseudo-header's sum.
fn finish_checksum(packet: &Packet, bytes: &[u8], out: &mut [u8]) {
    if let (Some(at), Some(transport)) = (packet.checksum_at(), bytes.get(packet.transport..packet.len)) {
        let check = !checksum::fold(checksum::sum(transport, 0));
        // Zero would mean that there is no checksum. Source: RFC 768.
        set(out, at, if check == 0 && packet.protocol == UDP { 0xffff } else { check });
    }
}

/// Fixes the header of a fragment that begins `offset` bytes after the packet does. The packet may be a fragment
/// itself.
fn fix_fragment(out: &mut [u8], offset: usize, last: bool) {
    let len = u16::try_from(out.len()).unwrap_or(u16::MAX);
    set(out, 2, len);
    let place = get(out, 6);
    let moved = place + u16::try_from(offset / 8).unwrap_or(0);
    set(out, 6, if last { moved } else { moved | MORE_FRAGMENTS });
    checksum::fill_v4_header(out, PLAIN_HEADER);
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a UDP packet without DF, with a finished or unfinished checksum.
    fn datagram(len: usize, partial: bool) -> (VnetHeader, Vec<u8>) {
        let mut bytes: Vec<u8> = (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect();
        bytes[..28].copy_from_slice(&[
            0x45, 0, 0, 0, 7, 7, 0, 0, 64, 17, 0, 0, 100, 64, 0, 2, 93, 184, 215, 2, 0, 9, 0, 9, 0, 0, 0, 0,
        ]);
        set(&mut bytes, 2, u16::try_from(len).unwrap());
        set(&mut bytes, 24, u16::try_from(len - 20).unwrap());
        let packet = Packet::parse(&bytes).unwrap();
        checksum::fill_transport(&packet, &mut bytes);
        checksum::fill_v4_header(&mut bytes, 20);
        let mut header = VnetHeader::PLAIN;
        if partial {
            set(&mut bytes, 26, checksum::pseudo_header(&packet, len - 20));
            header = VnetHeader { needs_checksum: true, checksum_start: 20, checksum_offset: 6, ..header };
        }
        (header, bytes)
    }

    fn pieces(header: &VnetHeader, bytes: &[u8], mtu: u16) -> Vec<Vec<u8>> {
        let packet = Packet::parse(bytes).unwrap();
        let split = Split::plan(header, &packet, bytes, mtu).unwrap();
        assert!(!split.partial);
        let piece = |number| {
            let mut out = vec![0; split.len(&packet, number)];
            split.write(&packet, bytes, number, &mut out);
            assert!(out.len() <= usize::from(mtu));
            assert_eq!(checksum::fold(checksum::sum(&out[..20], 0)), 0xffff, "header checksum");
            out
        };
        (0..split.pieces).map(piece).collect()
    }

    /// Reassembles fragments as a host does. Source: RFC 791 §3.2.
    fn joined(fragments: &[Vec<u8>]) -> Vec<u8> {
        let mut whole = fragments[0][..20].to_vec();
        for (number, fragment) in fragments.iter().enumerate() {
            let place = get(fragment, 6);
            assert_eq!(usize::from(place & 0x1fff) * 8, whole.len() - 20);
            assert_eq!(place & MORE_FRAGMENTS != 0, number + 1 < fragments.len());
            assert_eq!(get(fragment, 4), 0x0707, "all fragments have one identification");
            whole.extend_from_slice(&fragment[20..]);
        }
        let len = u16::try_from(whole.len()).unwrap();
        set(&mut whole, 2, len);
        set(&mut whole, 6, 0);
        checksum::fill_v4_header(&mut whole, 20);
        whole
    }

    #[test]
    fn oversized_packet_without_df_is_fragmented() {
        for mtu in [576, 1_152, 1_280, 1_392] {
            for len in [usize::from(mtu) + 1, 1_404, 1_408, 4_000] {
                for partial in [false, true] {
                    let (header, bytes) = datagram(len.max(usize::from(mtu) + 1), partial);
                    let (_, whole) = datagram(bytes.len(), false);
                    let fragments = pieces(&header, &bytes, mtu);
                    assert_eq!(joined(&fragments), whole, "{len} bytes, MTU {mtu}, {partial}");
                    // A second, narrower path splits the pieces again.
                    let narrower = fragments
                        .iter()
                        .flat_map(|f| if f.len() > 300 { pieces(&VnetHeader::PLAIN, f, 300) } else { vec![f.clone()] });
                    assert_eq!(joined(&narrower.collect::<Vec<_>>()), whole);
                }
            }
        }
    }

    #[test]
    fn oversized_packet_with_df_is_refused() {
        let (header, mut bytes) = datagram(1_404, false);
        bytes[6] = 0x40;
        let packet = Packet::parse(&bytes).unwrap();
        assert_eq!(Split::plan(&header, &packet, &bytes, 1_280), Err(DropReason::PacketTooBig));
    }
}
