//! The client's data thread.
//!
//! Owns the whole packet path between tunnel device and circuit, in both directions.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openrelay_proto::client::{Client, DatagramEvent, Event};
use openrelay_proto::drops::{DropReason, Drops};
use openrelay_proto::ip::{CLIENT_V4, CLIENT_V6, Packet, tcp};
use openrelay_proto::time::Time;
use openrelay_proto::wire::padded;
use openrelay_sys::event::{Waker, wait};
use openrelay_sys::tun::{MAX_READ, TunQueue, VNET_LEN, VnetHeader};
use openrelay_sys::udp::{self, UdpSocket};

use super::Shared;
use crate::clock::{Clock, unix_minutes};
use crate::merge::Merger;
use crate::random::OsRandom;
use crate::split::{Split, say_too_big};
use crate::train::{Sent, Sockets, Train};

/// Trains, or packets of the device, that are handled before the other side gets its turn.
const BUDGET: usize = 16;
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Requests of other threads to the data thread.
pub(super) enum Command {
    /// Report the counts.
    Report(SyncSender<Counts>),
    /// Replace all keys.
    Rekey,
    /// Close the circuit because a relay is no longer trusted. Traffic stays blocked.
    Abandon,
    /// Close the circuit and stop.
    Stop(SyncSender<Counts>),
}

/// What the client carried.
///
/// Every packet read from the device, and every datagram that the circuit originated, is sent or dropped with a
/// reason. Every datagram received is delivered, counted as control, or dropped with a reason.
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
    /// Adds the counts of a circuit without a device.
    pub(super) fn add(&mut self, other: &Self) {
        self.sent += other.sent;
        self.originated += other.originated;
        self.received += other.received;
        self.control += other.control;
        self.overflows += other.overflows;
        self.drops.add(&other.drops);
    }
}

/// The state of the data thread.
pub(super) struct Pump {
    client: Client,
    sockets: Sockets,
    queue: TunQueue,
    clock: Clock,
    random: OsRandom,
    buffer: Vec<u8>,
    device_buffer: Vec<u8>,
    train: Train,
    merger: Merger,
    originated: Sent,
    /// Whether somebody removed the tunnel device. Nothing is carried then, and only `down` helps.
    device_gone: bool,
    counts: Counts,
    links: Option<Links>,
}

struct Links {
    commands: Receiver<Command>,
    events: Sender<Event>,
    bell: Arc<Waker>,
    shared: Arc<Mutex<Shared>>,
}

impl Pump {
    pub(super) fn new(
        client: Client,
        socket: UdpSocket,
        queue: TunQueue,
        udp_segmentation: bool,
        clock: Clock,
    ) -> Self {
        Self {
            client,
            sockets: Sockets { all: vec![socket], listening: 1, ..Sockets::default() },
            queue,
            clock,
            random: OsRandom::default(),
            buffer: vec![0; MAX_READ],
            device_buffer: vec![0; MAX_READ],
            train: Train::new(),
            merger: Merger::new(udp_segmentation),
            originated: Sent::default(),
            device_gone: false,
            counts: Counts::default(),
            links: None,
        }
    }

    pub(super) fn with_links(
        mut self,
        commands: Receiver<Command>,
        events: Sender<Event>,
        bell: Arc<Waker>,
        shared: Arc<Mutex<Shared>>,
    ) -> Self {
        self.links = Some(Links { commands, events, bell, shared });
        self
    }

    /// Runs until another thread stops it.
    pub(super) fn run(mut self) {
        let Some(bell) = self.links.as_ref().map(|links| links.bell.clone()) else { return };
        self.flush();
        loop {
            let now = self.clock.now();
            let timeout = self.client.poll_timeout().since(now).min(LONGEST_WAIT);
            let fds = [bell.as_fd(), self.sockets.all[0].as_fd(), self.queue.as_fd()];
            let watched = if self.device_gone { 2 } else { 3 };
            // An error here can only be a bug in this program. The loop then goes on with its timeouts alone.
            let ready = wait(&fds[..watched], timeout).unwrap_or_default();
            if ready[1] {
                self.receive();
            }
            if ready[2] {
                self.read_device();
            }
            let now = self.clock.now();
            if self.client.poll_timeout() <= now {
                self.client.handle_timeout(now, unix_minutes(), &mut self.random);
            }
            if ready[0] && bell.clear() && !self.obey() {
                return;
            }
            self.flush();
            self.tell();
        }
    }

    /// Handles what the socket has received.
    fn receive(&mut self) {
        for _ in 0..BUDGET {
            let Some(room) = self.buffer.get_mut(..udp::TRAIN) else { return };
            let Ok(train) = self.sockets.all[0].receive(room) else { return };
            let now = self.clock.now();
            self.handle_train(train, now);
        }
    }

    /// The packet path down: opens each datagram in place, and writes joined packets from the same buffer.
    fn handle_train(&mut self, train: udp::Train, now: Time) {
        let minutes = unix_minutes();
        let mut start = 0;
        loop {
            let end = (start + train.stride).min(train.len);
            let Some(datagram) = self.buffer.get_mut(start..end) else { return };
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
                        self.merger.push(&self.queue, &self.buffer, start + offset, packet, partial);
                    }
                }
            }
            start = end;
            if start >= train.len {
                break;
            }
        }
        self.merger.flush(&self.queue, &self.buffer);
    }

    /// Handles what the device has to send.
    fn read_device(&mut self) {
        for _ in 0..BUDGET {
            let len = match self.queue.read(&mut self.device_buffer) {
                Ok(len) => len,
                Err(error) => {
                    self.device_gone |= !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
                    break;
                }
            };
            let now = self.clock.now();
            if let Err(reason) = self.handle_device(len, now) {
                self.counts.device_read += 1;
                self.counts.drops.count(reason);
            }
        }
        self.train.flush(&self.sockets);
    }

    /// The packet path up: splits a packet to what the path carries, and seals each piece twice inside the train that
    /// carries it.
    fn handle_device(&mut self, len: usize, now: Time) -> Result<(), DropReason> {
        let read = self.device_buffer.get_mut(..len).ok_or(DropReason::BadLength)?;
        let (vnet, bytes) = read.split_first_chunk_mut::<VNET_LEN>().ok_or(DropReason::BadLength)?;
        let vnet = VnetHeader::parse(vnet).ok_or(DropReason::BadPacket)?;
        let packet = Packet::parse(bytes).map_err(|_| DropReason::BadPacket)?;
        if packet.source != std::net::IpAddr::V4(CLIENT_V4) && packet.source != std::net::IpAddr::V6(CLIENT_V6) {
            return Err(DropReason::ForeignSource);
        }
        let mtu = self.client.mtu();
        let split = match Split::plan(&vnet, &packet, bytes, mtu) {
            Ok(split) => split,
            Err(reason) => {
                if reason == DropReason::PacketTooBig {
                    say_too_big(&self.queue, &packet, bytes, mtu);
                }
                return Err(reason);
            }
        };
        tcp::clamp_mss(&packet, bytes, mtu, vnet.needs_checksum);
        let (offset, trailer, to) = (self.client.offset(), self.client.trailer(), self.client.remote());
        self.counts.device_read += split.pieces as u64;
        self.counts.device_read_bytes += packet.len as u64;
        for number in 0..split.pieces {
            let piece = split.len(&packet, number);
            let total = offset + padded(piece) + trailer;
            let room = self.train.room(&self.sockets, to, total);
            if room.len() != total {
                self.counts.drops.count(DropReason::BadLength);
                continue;
            }
            let (own, padding) = room[offset..total - trailer].split_at_mut(piece);
            split.write(&packet, bytes, number, own);
            padding.fill(0);
            match self.client.seal(room, split.partial, now) {
                Ok(()) => self.train.commit(total),
                Err(reason) => self.counts.drops.count(reason),
            }
        }
        Ok(())
    }

    /// Handles requests of other threads. Returns false when it is time to stop.
    fn obey(&mut self) -> bool {
        while let Some(Ok(command)) = self.links.as_ref().map(|links| links.commands.try_recv()) {
            match command {
                Command::Report(to) => {
                    let _ = to.send(self.report());
                }
                Command::Rekey => self.client.rekey(self.clock.now(), &mut self.random),
                Command::Abandon => {
                    self.client.close(self.clock.now());
                    self.flush();
                    if let Some(links) = &self.links {
                        links.shared.lock().unwrap_or_else(PoisonError::into_inner).lost = true;
                    }
                }
                Command::Stop(to) => {
                    self.client.close(self.clock.now());
                    self.flush();
                    let _ = to.send(self.report());
                    return false;
                }
            }
        }
        true
    }

    /// Sends the datagrams that the circuit originates.
    fn flush(&mut self) {
        let to = self.client.remote();
        while let Some(datagram) = self.client.poll_transmit() {
            self.originated.send(&self.sockets, to, &datagram, datagram.len());
        }
    }

    /// Reports events to the other threads.
    fn tell(&mut self) {
        if self.device_gone
            && let Some(links) = &self.links
        {
            links.shared.lock().unwrap_or_else(PoisonError::into_inner).lost = true;
        }
        while let Some(event) = self.client.poll_event() {
            let counts = self.report();
            let Some(links) = &self.links else { continue };
            let mut shared = links.shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.mtu = self.client.mtu();
            shared.lost |= event == Event::Lost;
            shared.counts = counts;
            let _ = links.events.send(event);
        }
    }

    fn report(&self) -> Counts {
        let mut counts = self.counts.clone();
        counts.sent = self.train.sent.datagrams + self.originated.datagrams;
        counts.originated = self.originated.datagrams + self.originated.failed;
        counts.drops.count_many(DropReason::SendFailed, self.train.sent.failed + self.originated.failed);
        counts.delivered -= self.merger.refused;
        counts.drops.count_many(DropReason::TunnelFailed, self.merger.refused);
        counts.overflows = u64::from(self.sockets.all[0].overflows());
        counts
    }
}
