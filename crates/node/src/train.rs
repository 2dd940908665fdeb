//! Trains: datagrams of one length to one address, sent with one system call; and the sockets that send them.
//!
//! Owns the buffer that outgoing datagrams are built and sealed in. A train ends at a shorter datagram, at another address or
//! length, and when it is full.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use openrelay_sys::udp::{TRAIN_BYTES, TRAIN_SEGMENTS, UdpSocket};

/// The sockets of one shard or client. Between relays each shard has sockets of its own: the port that all shards share is dealt out by
/// the kernel by address, so an answer to one shard would reach another.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    /// First those that clients reach, then those towards relays.
    pub(crate) all: Vec<UdpSocket>,
    /// How many of `all` clients reach.
    pub(crate) listening: usize,
    /// The relays that are reached through the others.
    pub(crate) relays: BTreeSet<SocketAddr>,
}

impl Sockets {
    fn towards(&self, to: SocketAddr) -> Option<&UdpSocket> {
        let (listening, own) = self.all.split_at_checked(self.listening)?;
        let side = if self.relays.contains(&to) { own } else { listening };
        side.iter().find(|socket| socket.is_v6() == to.is_ipv6())
    }
}

/// What became of the datagrams of trains.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Sent {
    pub(crate) datagrams: u64,
    pub(crate) failed: u64,
}

impl Sent {
    /// Sends `bytes` in datagrams of `stride` and counts them.
    pub(crate) fn send(&mut self, sockets: &Sockets, to: SocketAddr, bytes: &[u8], stride: usize) {
        let datagrams = bytes.len().div_ceil(stride.max(1)) as u64;
        let sent = sockets.towards(to).and_then(|socket| socket.send(to, bytes, stride).ok()).unwrap_or(0) as u64;
        self.datagrams += sent;
        self.failed += datagrams - sent.min(datagrams);
    }
}

/// A train under construction.
#[derive(Debug)]
pub(crate) struct Train {
    buffer: Vec<u8>,
    to: Option<SocketAddr>,
    stride: usize,
    used: usize,
    closed: bool,
    pub(crate) sent: Sent,
}

impl Train {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; TRAIN_BYTES], to: None, stride: 0, used: 0, closed: false, sent: Sent::default() }
    }

    /// Room for the next datagram, of `len` bytes, to `to`; sends the train first if it does not fit. Finish it with [`Train::commit`].
    pub(crate) fn room(&mut self, sockets: &Sockets, to: SocketAddr, len: usize) -> &mut [u8] {
        let full = self.used + len > TRAIN_BYTES || self.used >= self.stride * TRAIN_SEGMENTS;
        if self.closed || full || self.to != Some(to) || len > self.stride {
            self.flush(sockets);
            self.to = Some(to);
            self.stride = len;
        }
        let end = (self.used + len).min(TRAIN_BYTES);
        self.buffer.get_mut(self.used..end).unwrap_or_default()
    }

    /// Keeps the `len` bytes that [`Train::room`] gave.
    pub(crate) fn commit(&mut self, len: usize) {
        self.used += len;
        self.closed = len < self.stride;
    }

    /// Sends what there is.
    pub(crate) fn flush(&mut self, sockets: &Sockets) {
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
