//! Drives one circuit: a [`Client`] between a UDP socket and a [`Port`] for inner packets.
//!
//! Owns the order of calls to the client, the train under construction and the counts. Nobody else loops over receive,
//! timeout, transmit and events. Never waits: its caller knows what else to wait for. A turn of the caller's loop is
//!
//! ```text
//! wait for the socket, at most rest() ─▶ receive() ─▶ send() for each inner packet ─▶ turn() ─▶ poll_event()
//! ```

use std::net::SocketAddr;
use std::time::Duration;

use openrelay_proto::client::{Client, DatagramEvent, Event};
use openrelay_proto::drops::{DropReason, Drops};
use openrelay_proto::ip::Packet;
use openrelay_proto::time::Time;
use openrelay_proto::wire::padded;
use openrelay_sys::udp::{self, UdpSocket};

use crate::clock::{Clock, unix_minutes};
use crate::random::OsRandom;
use crate::train::{Sent, Sockets, Train};

/// Trains that are handled before anything else gets its turn.
pub const BUDGET: usize = 16;

/// Where the inner packets of a circuit go.
pub trait Port {
    /// Takes the inner packet at `offset` of `buffer`. If `partial`, its checksum is still to be finished.
    fn deliver(&mut self, buffer: &[u8], offset: usize, packet: Packet, partial: bool);

    /// Called after the last packet of a train, while `buffer` still holds all of them.
    fn flush(&mut self, _buffer: &[u8]) {}
}

/// A port that ignores packets, for circuits that carry questions alone.
#[derive(Debug)]
pub struct NoPort;

impl Port for NoPort {
    fn deliver(&mut self, _buffer: &[u8], _offset: usize, _packet: Packet, _partial: bool) {}
}

/// What a circuit carried.
///
/// Every inner packet taken, and every datagram that the circuit originated, is sent or dropped with a reason. Every
/// datagram received is delivered, counted as control, or dropped with a reason.
#[derive(Clone, Default, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Packets read from the device, counted after they were split.
    pub device_read: u64,
    /// Bytes of these packets.
    pub device_read_bytes: u64,
    /// Datagrams that the kernel accepted.
    pub sent: u64,
    /// Datagrams that the circuit originated: handshakes, control, probes.
    pub originated: u64,
    /// Datagrams received.
    pub received: u64,
    /// Packets that the device accepted, counted before they were joined.
    pub delivered: u64,
    /// Bytes of these packets.
    pub delivered_bytes: u64,
    /// Received datagrams without a packet: handshakes, control, probes.
    pub control: u64,
    /// Datagrams that the kernel dropped because the receive buffer was full.
    pub overflows: u64,
    /// Dropped packets and datagrams, by reason.
    pub drops: Drops,
}

impl Counts {
    /// Adds the counts of a circuit without a device. Its packets never reach the device: those sent count as
    /// originated, those received as control.
    pub fn add_without_device(&mut self, other: &Self) {
        self.sent += other.sent;
        self.originated += other.originated + other.device_read;
        self.received += other.received;
        self.control += other.control + other.delivered;
        self.overflows += other.overflows;
        self.drops.add(&other.drops);
    }
}

/// One circuit and its socket.
pub struct Driver {
    client: Client,
    sockets: Sockets,
    clock: Clock,
    random: OsRandom,
    train: Train,
    originated: Sent,
    counts: Counts,
}

impl Driver {
    /// Returns a driver of the circuit that `client` has begun to open at a time of `clock`.
    pub fn new(client: Client, socket: UdpSocket, clock: Clock) -> Self {
        Self {
            client,
            sockets: Sockets { all: vec![socket], listening: 1, ..Sockets::default() },
            clock,
            random: OsRandom::default(),
            train: Train::new(),
            originated: Sent::default(),
            counts: Counts::default(),
        }
    }

    /// Returns the socket, to wait for.
    pub fn socket(&self) -> &UdpSocket {
        &self.sockets.all[0]
    }

    /// Returns the circuit.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Returns the address of the first hop.
    pub fn remote(&self) -> SocketAddr {
        self.client.remote()
    }

    /// Returns the time by the circuit's clock.
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// Returns how long the caller may wait for the socket.
    pub fn rest(&self) -> Duration {
        self.client.poll_timeout().since(self.clock.now())
    }

    /// Handles what the socket has received, at most [`BUDGET`] trains. `buffer` has room for a train; packets are
    /// opened in it in place.
    pub fn receive(&mut self, buffer: &mut [u8], port: &mut impl Port) {
        for _ in 0..BUDGET {
            let Some(room) = buffer.get_mut(..udp::TRAIN) else { return };
            let Ok(train) = self.sockets.all[0].receive(room) else { return };
            let now = self.clock.now();
            self.handle_train(buffer, train, now, port);
        }
    }

    /// The packet path down: opens each datagram in place and hands its packet to the port.
    fn handle_train(&mut self, buffer: &mut [u8], train: udp::Train, now: Time, port: &mut impl Port) {
        let minutes = unix_minutes();
        let mut start = 0;
        loop {
            let end = (start + train.stride).min(train.len);
            let Some(datagram) = buffer.get_mut(start..end) else { return };
            self.counts.received += 1;
            if train.from != self.client.remote() {
                self.counts.drops.count(DropReason::ForeignSource);
            } else {
                match self.client.handle_datagram(datagram, now, minutes, &mut self.random) {
                    DatagramEvent::Consumed => self.counts.control += 1,
                    DatagramEvent::Dropped(reason) => self.counts.drops.count(reason),
                    DatagramEvent::Deliver { offset, packet, partial } => {
                        self.counts.delivered += 1;
                        self.counts.delivered_bytes += packet.len as u64;
                        port.deliver(buffer, start + offset, packet, partial);
                    }
                }
            }
            start = end;
            if start >= train.len {
                break;
            }
        }
        port.flush(buffer);
    }

    /// The packet path up: seals an inner packet of `len` bytes twice inside the train that carries it. `write` fills
    /// it in. It leaves with [`Driver::flush`], or earlier if the train is full.
    pub fn send(&mut self, len: usize, partial: bool, now: Time, write: impl FnOnce(&mut [u8])) {
        let (offset, trailer, to) = (self.client.offset(), self.client.trailer(), self.client.remote());
        self.counts.device_read += 1;
        self.counts.device_read_bytes += len as u64;
        let total = offset + padded(len) + trailer;
        let room = self.train.room(&self.sockets, to, total);
        if room.len() != total {
            self.counts.drops.count(DropReason::BadLength);
            return;
        }
        let (own, padding) = room[offset..total - trailer].split_at_mut(len);
        write(own);
        padding.fill(0);
        match self.client.seal(room, partial, now) {
            Ok(()) => self.train.commit(total),
            Err(reason) => self.counts.drops.count(reason),
        }
    }

    /// Counts an inner packet that was refused before [`Driver::send`].
    pub fn refuse(&mut self, reason: DropReason) {
        self.counts.device_read += 1;
        self.counts.drops.count(reason);
    }

    /// Sends the train under construction.
    pub fn flush(&mut self) {
        self.train.flush(&self.sockets);
    }

    /// Handles a due timeout, and sends the datagrams that the circuit originates.
    pub fn turn(&mut self) {
        let now = self.clock.now();
        if self.client.poll_timeout() <= now {
            self.client.handle_timeout(now, unix_minutes(), &mut self.random);
        }
        self.transmit();
    }

    /// Sends the datagrams that the circuit originates.
    fn transmit(&mut self) {
        let to = self.client.remote();
        while let Some(datagram) = self.client.poll_transmit() {
            self.originated.send(&self.sockets, to, &datagram, datagram.len());
        }
    }

    /// Returns the circuit's next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.client.poll_event()
    }

    /// Replaces all keys of the circuit.
    pub fn rekey(&mut self) {
        self.client.rekey(self.clock.now(), &mut self.random);
        self.transmit();
    }

    /// Closes the circuit, and tells its relays.
    pub fn close(&mut self) {
        self.client.close(self.clock.now());
        self.transmit();
    }

    /// Returns what the circuit has carried.
    pub fn counts(&self) -> Counts {
        let mut counts = self.counts.clone();
        counts.sent = self.train.sent.datagrams + self.originated.datagrams;
        counts.originated = self.originated.datagrams + self.originated.failed;
        counts.drops.count_many(DropReason::SendFailed, self.train.sent.failed + self.originated.failed);
        counts.overflows = u64::from(self.sockets.all[0].overflows());
        counts
    }
}
