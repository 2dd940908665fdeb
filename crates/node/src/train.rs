//! Trains: datagrams of one length to one address, sent with one system call. Also the sockets that send them.
//!
//! Owns the buffer in which outgoing datagrams are built and sealed. A train ends after a shorter datagram, before
//! another address or a longer datagram, and when it is full.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use openrelay_sys::udp::{TRAIN_BYTES, TRAIN_SEGMENTS, UdpSocket};

/// The sockets of one shard or client. Each ingress shard has its own sockets towards other relays. The kernel
/// distributes datagrams to the shared port by address, so an answer to one shard would reach another.
#[derive(Debug, Default)]
pub struct Sockets {
    /// First the sockets that clients reach, then the sockets towards relays.
    pub all: Vec<UdpSocket>,
    /// Number of sockets in `all` that clients reach.
    pub listening: usize,
    /// The relays that are reached through the other sockets.
    pub relays: BTreeSet<SocketAddr>,
}

impl Sockets {
    fn towards(&self, to: SocketAddr) -> Option<&UdpSocket> {
        let (listening, own) = self.all.split_at_checked(self.listening)?;
        let side = if self.relays.contains(&to) { own } else { listening };
        side.iter().find(|socket| socket.is_v6() == to.is_ipv6())
    }
}

/// Counts of datagrams that were sent or failed.
#[derive(Clone, Copy, Default, Debug)]
pub struct Sent {
    /// Datagrams that the kernel took.
    pub datagrams: u64,
    /// Datagrams that the kernel refused.
    pub failed: u64,
}

impl Sent {
    /// Sends `bytes` in datagrams of `stride` bytes and counts them.
    pub fn send(&mut self, sockets: &Sockets, to: SocketAddr, bytes: &[u8], stride: usize) {
        let datagrams = bytes.len().div_ceil(stride.max(1)) as u64;
        let sent = sockets.towards(to).and_then(|socket| socket.send(to, bytes, stride).ok()).unwrap_or(0) as u64;
        self.datagrams += sent;
        self.failed += datagrams - sent.min(datagrams);
    }
}

/// A train under construction.
#[derive(Debug)]
pub struct Train {
    buffer: Vec<u8>,
    to: Option<SocketAddr>,
    stride: usize,
    used: usize,
    closed: bool,
    /// What was sent so far.
    pub sent: Sent,
}

impl Default for Train {
    fn default() -> Self {
        Self::new()
    }
}

impl Train {
    /// Returns an empty train, with its whole buffer.
    pub fn new() -> Self {
        Self { buffer: vec![0; TRAIN_BYTES], to: None, stride: 0, used: 0, closed: false, sent: Sent::default() }
    }

    /// Returns room for the next datagram, of `len` bytes, to `to`. Sends the train first if the datagram does not
    /// fit. Call [`Train::commit`] when it is written.
    pub fn room(&mut self, sockets: &Sockets, to: SocketAddr, len: usize) -> &mut [u8] {
        let full = self.used + len > TRAIN_BYTES || self.used >= self.stride * TRAIN_SEGMENTS;
        if self.closed || full || self.to != Some(to) || len > self.stride {
            self.flush(sockets);
            self.to = Some(to);
            self.stride = len;
        }
        let end = (self.used + len).min(TRAIN_BYTES);
        self.buffer.get_mut(self.used..end).unwrap_or_default()
    }

    /// Keeps the `len` bytes that [`Train::room`] returned.
    pub fn commit(&mut self, len: usize) {
        self.used += len;
        self.closed = len < self.stride;
    }

    /// Adds a copy of `datagram` for `to`.
    pub fn add(&mut self, sockets: &Sockets, to: SocketAddr, datagram: &[u8]) {
        let room = self.room(sockets, to, datagram.len());
        if room.len() == datagram.len() {
            room.copy_from_slice(datagram);
            self.commit(datagram.len());
        } else {
            // It is longer than any datagram can be.
            self.sent.failed += 1;
        }
    }

    /// Sends the train.
    pub fn flush(&mut self, sockets: &Sockets) {
        if let (Some(to), Some(bytes)) = (self.to, self.buffer.get(..self.used))
            && self.used > 0
        {
            self.sent.send(sockets, to, bytes, self.stride);
        }
        self.used = 0;
        self.closed = false;
        self.to = None;
        self.stride = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::merge::Merger;
    use crate::split::Split;
    use openrelay_proto::ip::Packet;
    use openrelay_sys::tun::{Segmentation, TunQueue, VnetHeader};

    const SEGMENT: u16 = 1_300;
    const HEADERS: usize = 40;

    /// Returns a TCP packet of 40 segments as the kernel hands it over, and its virtio header.
    fn long_packet() -> (VnetHeader, Vec<u8>) {
        let mut packet = vec![0; HEADERS + usize::from(SEGMENT) * 40];
        let len = u16::try_from(packet.len()).unwrap();
        packet[..HEADERS].copy_from_slice(&[
            0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 6, 0, 0, 100, 64, 0, 2, 93, 184, 215, 2, 0, 80, 1, 2, 0, 0, 0, 1, 0, 0,
            0, 1, 0x50, 0x10, 1, 0, 0, 0, 0, 0,
        ]);
        packet[2..4].copy_from_slice(&len.to_be_bytes());
        let header = VnetHeader {
            needs_checksum: true,
            data_valid: false,
            segmentation: Segmentation::Tcp4,
            header_len: 40,
            segment_size: SEGMENT,
            checksum_start: 20,
            checksum_offset: 16,
        };
        (header, packet)
    }

    /// Does everything to a long packet that a thread does, except sealing: splits, gathers, sends, receives, joins,
    /// writes. Returns the number of pieces.
    fn carry(
        (header, bytes): &(VnetHeader, Vec<u8>),
        (train, sockets): (&mut Train, &Sockets),
        (merger, queue, buffer): (&mut Merger, &TunQueue, &mut [u8]),
    ) -> usize {
        let [sender, receiver] = &sockets.all[..] else { panic!("two sockets") };
        assert!(!sender.is_v6());
        let packet = Packet::parse(bytes).unwrap();
        let split = Split::plan(header, &packet, bytes, 1_400).unwrap();
        let to = receiver.local_address().unwrap();
        for number in 0..split.pieces {
            let len = split.len(&packet, number);
            split.write(&packet, bytes, number, train.room(sockets, to, len));
            train.commit(len);
        }
        train.flush(sockets);
        let mut pieces = 0;
        while let Ok(received) = receiver.receive(buffer) {
            for start in (0..received.len).step_by(received.stride) {
                let end = (start + received.stride).min(received.len);
                let packet = Packet::parse(&buffer[start..end]).unwrap();
                merger.push(queue, buffer, start, packet, true);
                pieces += 1;
            }
            merger.flush(queue, buffer);
        }
        pieces
    }

    #[test]
    fn cutting_sending_receiving_and_joining_allocate_nothing() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let sockets = Sockets {
            all: vec![UdpSocket::bind(any, false).unwrap(), UdpSocket::bind(any, false).unwrap()],
            listening: 1,
            relays: BTreeSet::new(),
        };
        let (mut train, mut merger, queue) = (Train::new(), Merger::new(true), TunQueue::sink().unwrap());
        let mut buffer = vec![0; openrelay_sys::udp::TRAIN];
        let packet = long_packet();
        let mut pieces = 0;
        let counted = allocation_counter::measure(|| {
            for _ in 0..100 {
                pieces += carry(&packet, (&mut train, &sockets), (&mut merger, &queue, &mut buffer));
            }
        });
        assert_eq!(pieces, 4_000);
        assert_eq!((merger.written, merger.refused), (4_000, 0));
        assert_eq!(counted.count_total, 0, "{counted:?}");
    }
}
