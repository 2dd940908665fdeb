//! Joins packets from the tunnel into trains for a TUN device.
//!
//! Owns the packet under construction. Its payloads stay where they were decrypted, and one vectored write hands them
//! to the device. Joins only packets that this host's own parse finds to be consecutive pieces of one flow with
//! unfinished checksums.
//! Source: Linux `tcp_gro_receive` and `udp_gro_receive` for what may be joined.

use std::io::IoSlice;
use std::ops::Range;

use openrelay_proto::ip::{Packet, TCP, UDP, checksum};
use openrelay_sys::tun::{Segmentation, TunQueue, VNET_LEN, VnetHeader};

/// Maximum number of pieces in one train.
const MAX_PIECES: usize = 64;
/// Largest joined packet, in bytes: the limit of its length field.
const MAX_LEN: usize = 65_535;
/// Longest headers, in bytes: IPv4 and TCP, both with all options. A packet with longer headers is refused.
const MAX_HEADERS: usize = 120;
const ACK: u8 = 0x10;
const PSH: u8 = 0x08;

/// Joins packets and writes them to a device.
#[derive(Debug)]
pub struct Merger {
    udp: bool,
    headers: [u8; VNET_LEN + MAX_HEADERS],
    header_len: usize,
    packet: Option<Packet>,
    partial: bool,
    open: bool,
    segment: usize,
    payload: usize,
    pieces: Vec<Range<usize>>,
    /// Packets that the device accepted.
    pub written: u64,
    /// Packets that the device refused, or whose headers were too long.
    pub refused: u64,
}

impl Merger {
    /// Returns a merger for a device; `udp` tells whether the device accepts UDP trains.
    pub fn new(udp: bool) -> Self {
        Self {
            udp,
            headers: [0; VNET_LEN + MAX_HEADERS],
            header_len: 0,
            packet: None,
            partial: false,
            open: false,
            segment: 0,
            payload: 0,
            pieces: Vec::with_capacity(MAX_PIECES),
            written: 0,
            refused: 0,
        }
    }

    /// Adds the packet at `offset` of `buffer`. If it does not continue the one under construction, writes that one
    /// first.
    pub fn push(&mut self, queue: &TunQueue, buffer: &[u8], offset: usize, packet: Packet, partial: bool) {
        let Some(bytes) = buffer.get(offset..offset + packet.len) else { return };
        let header_len = packet.transport + packet.transport_header_len(bytes);
        if self.continues(&packet, bytes, header_len, partial) {
            self.append(packet.len, bytes, header_len, offset);
            return;
        }
        self.flush(queue, buffer);
        let Some((headers, payload)) = bytes.split_at_checked(header_len).filter(|_| header_len <= MAX_HEADERS) else {
            self.refused += 1;
            return;
        };
        if let Some(room) = self.headers.get_mut(VNET_LEN..VNET_LEN + header_len) {
            room.copy_from_slice(headers);
        }
        self.header_len = header_len;
        self.packet = Some(packet);
        self.partial = partial;
        self.segment = payload.len();
        self.payload = payload.len();
        self.pieces.push(offset + header_len..offset + packet.len);
        self.open = partial && !payload.is_empty() && !packet.fragment && self.may_grow(&packet, headers);
    }

    /// Returns whether packets of this kind are joined at all.
    fn may_grow(&self, packet: &Packet, headers: &[u8]) -> bool {
        let dont_fragment = packet.is_v6() || packet.dont_fragment;
        match packet.protocol {
            TCP => dont_fragment && headers.get(packet.transport + 13) == Some(&ACK),
            UDP => self.udp && dont_fragment,
            _ => false,
        }
    }

    fn continues(&self, packet: &Packet, bytes: &[u8], header_len: usize, partial: bool) -> bool {
        let Some(first) = &self.packet else { return false };
        let payload = packet.len.saturating_sub(header_len);
        if !self.open
            || !partial
            || header_len != self.header_len
            || packet.fragment
            || payload == 0
            || payload > self.segment
            || self.pieces.len() >= MAX_PIECES
            || self.header_len + self.payload + payload > MAX_LEN
            || packet.protocol != first.protocol
            || packet.source != first.source
            || packet.destination != first.destination
            || packet.transport != first.transport
        {
            return false;
        }
        let Some(headers) = self.headers.get(VNET_LEN..VNET_LEN + header_len) else { return false };
        same_network_header(first, headers, bytes) && self.same_transport_header(first, headers, bytes)
    }

    fn same_transport_header(&self, first: &Packet, headers: &[u8], bytes: &[u8]) -> bool {
        let at = first.transport;
        if first.protocol == UDP {
            return headers.get(at..at + 4) == bytes.get(at..at + 4);
        }
        let (Some(ours), Some(theirs)) = (headers.get(at..), bytes.get(at..self.header_len)) else { return false };
        let expected = number(ours, 4).wrapping_add(u32::try_from(self.payload).unwrap_or(0));
        let flags = theirs.get(13).copied().unwrap_or(0);
        ours.get(..4) == theirs.get(..4)
            && number(theirs, 4) == expected
            && ours.get(8..13) == theirs.get(8..13)
            && flags & !PSH == ACK
            && ours.get(14..16) == theirs.get(14..16)
            && ours.get(18..) == theirs.get(18..)
    }

    fn append(&mut self, len: usize, bytes: &[u8], header_len: usize, offset: usize) {
        let payload = len - header_len;
        self.pieces.push(offset + header_len..offset + len);
        self.payload += payload;
        self.open = payload == self.segment;
        if let Some(packet) = &self.packet
            && packet.protocol == TCP
        {
            let at = packet.transport + 13;
            let flags = bytes.get(at).copied().unwrap_or(0);
            if let Some(own) = self.headers.get_mut(VNET_LEN + at) {
                *own |= flags & PSH;
            }
            self.open &= flags & PSH == 0;
        }
    }

    /// Writes the packet under construction, whose payloads are in `buffer`.
    pub fn flush(&mut self, queue: &TunQueue, buffer: &[u8]) {
        let Some(mut packet) = self.packet.take() else { return };
        let pieces = self.pieces.len();
        packet.len = self.header_len + self.payload;
        self.finish_headers(&packet, pieces);
        let mut parts = [IoSlice::new(&[]); MAX_PIECES + 1];
        let mut used = 1;
        if let (Some(part), Some(headers)) = (parts.first_mut(), self.headers.get(..VNET_LEN + self.header_len)) {
            *part = IoSlice::new(headers);
        }
        for (part, piece) in parts.iter_mut().skip(1).zip(&self.pieces) {
            *part = IoSlice::new(buffer.get(piece.clone()).unwrap_or(&[]));
            used += 1;
        }
        match queue.write(parts.get(..used).unwrap_or(&[])) {
            Ok(_) => self.written += pieces as u64,
            Err(_) => self.refused += pieces as u64,
        }
        self.pieces.clear();
        self.open = false;
    }

    fn finish_headers(&mut self, packet: &Packet, pieces: usize) {
        let (vnet_room, headers) = self.headers.split_at_mut(VNET_LEN);
        let mut vnet = VnetHeader::PLAIN;
        if pieces > 1 {
            set(headers, if packet.is_v6() { 4 } else { 2 }, if packet.is_v6() { packet.len - 40 } else { packet.len });
            if !packet.is_v6() {
                checksum::fill_v4_header(headers, packet.transport);
            }
            if packet.protocol == UDP {
                set(headers, packet.transport + 4, packet.len - packet.transport);
            }
            vnet.segmentation = match (packet.protocol, packet.is_v6()) {
                (UDP, _) => Segmentation::Udp,
                (_, false) => Segmentation::Tcp4,
                (_, true) => Segmentation::Tcp6,
            };
            vnet.segment_size = u16::try_from(self.segment).unwrap_or(u16::MAX);
        }
        if self.partial
            && let Some(at) = packet.checksum_at()
        {
            let sum = checksum::pseudo_header(packet, packet.len - packet.transport);
            set(headers, at, sum.into());
            vnet.needs_checksum = true;
            vnet.header_len = u16::try_from(self.header_len).unwrap_or(u16::MAX);
            vnet.checksum_start = u16::try_from(packet.transport).unwrap_or(u16::MAX);
            vnet.checksum_offset = u16::try_from(at - packet.transport).unwrap_or(u16::MAX);
        }
        vnet_room.copy_from_slice(&vnet.to_bytes());
    }
}

/// Returns whether the network headers of two packets of one flow differ only in what a joined packet can express.
fn same_network_header(first: &Packet, headers: &[u8], bytes: &[u8]) -> bool {
    if first.is_v6() {
        // Version, traffic class, flow label; next header and hop limit; extension headers.
        headers.get(..4) == bytes.get(..4)
            && headers.get(6..8) == bytes.get(6..8)
            && headers.get(40..first.transport) == bytes.get(40..first.transport)
    } else {
        // Version, header length, type of service; flags and fragment offset; time to live and protocol.
        headers.get(..2) == bytes.get(..2)
            && headers.get(6..10) == bytes.get(6..10)
            && headers.get(20..first.transport) == bytes.get(20..first.transport)
    }
}

fn number(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk::<4>()).map_or(0, |word| u32::from_be_bytes(*word))
}

fn set(bytes: &mut [u8], at: usize, value: usize) {
    if let Some(room) = bytes.get_mut(at..at + 2) {
        room.copy_from_slice(&u16::try_from(value).unwrap_or(u16::MAX).to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a later fragment. It has payload of any length in the place of a transport header.
    fn fragment(v6: bool, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = if v6 {
            let mut head = vec![0x60, 0, 0, 0, 0, 0, 44, 64];
            head.extend_from_slice(&[0x2a; 32]);
            head.extend_from_slice(&[protocol, 0, 0, 8, 0, 0, 0, 1]);
            head
        } else {
            vec![0x45, 0, 0, 0, 0, 1, 0, 4, 64, protocol, 0, 0, 100, 64, 0, 2, 93, 184, 215, 2]
        };
        bytes.extend_from_slice(payload);
        let len = u16::try_from(bytes.len()).unwrap();
        if v6 {
            bytes[4..6].copy_from_slice(&(len - 40).to_be_bytes());
        } else {
            bytes[2..4].copy_from_slice(&len.to_be_bytes());
        }
        bytes
    }

    #[test]
    fn fragments_of_any_length_are_written_alone() {
        let queue = TunQueue::sink().unwrap();
        for (v6, protocol) in [(false, UDP), (false, TCP), (true, UDP), (true, TCP)] {
            let mut merger = Merger::new(true);
            for len in 0..80 {
                let bytes = fragment(v6, protocol, &vec![0xff; len]);
                let packet = Packet::parse(&bytes).unwrap();
                assert!(!packet.has_transport);
                merger.push(&queue, &bytes, 0, packet, false);
                merger.push(&queue, &bytes, 0, packet, false);
                merger.flush(&queue, &bytes);
            }
            assert_eq!((merger.written, merger.refused), (160, 0), "{v6} {protocol}");
        }
    }

    #[test]
    fn packet_with_oversized_headers_is_refused_and_counted() {
        let queue = TunQueue::sink().unwrap();
        let mut bytes = vec![0x60, 0, 0, 0, 0, 0, 0, 64];
        bytes.extend_from_slice(&[0x2a; 32]);
        // Hop-by-hop options of 136 bytes.
        bytes.extend_from_slice(&[59, 16]);
        bytes.resize(40 + 136 + 4, 0);
        let payload = u16::try_from(bytes.len() - 40).unwrap();
        bytes[4..6].copy_from_slice(&payload.to_be_bytes());
        let mut merger = Merger::new(true);
        merger.push(&queue, &bytes, 0, Packet::parse(&bytes).unwrap(), false);
        merger.flush(&queue, &bytes);
        assert_eq!((merger.written, merger.refused), (0, 1));
    }
}
