//! A shard's thread: the whole packet path through a relay.
//!
//! [`Worker::handle_train`] handles everything that arrives over UDP, [`Worker::handle_device`] everything that an
//! egress' tunnel device hands over. Neither takes a lock, uses a channel, allocates or writes a log.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError};
use std::time::Duration;

use openrelay_proto::drops::DropReason;
use openrelay_proto::handshake::{FIRST_IK_LEN, FIRST_NK_LEN};
use openrelay_proto::ip::icmp::{self, Unreachable};
use openrelay_proto::ip::{Packet, tcp};
use openrelay_proto::random::Random;
use openrelay_proto::relay::{Fate, Gate, Request, Shard};
use openrelay_proto::time::Time;
use openrelay_proto::wire::padded;
use openrelay_sys::conntrack::Tuple;
use openrelay_sys::event::{Waker, wait};
use openrelay_sys::tun::{MAX_READ, TunQueue, VNET_LEN, VnetHeader};
use openrelay_sys::udp::{self, TRAIN_BYTES, TRAIN_SEGMENTS};

use super::command::{Command, Report};
use super::flows::Flows;
use super::ring::{MAX_DATAGRAMS, Passed, RingReceiver, RingSender};
use crate::guard::Guard;
use openrelay_node::clock::Clock;
use openrelay_node::merge::Merger;
use openrelay_node::random::OsRandom;
use openrelay_node::split::{Split, say_too_big};
use openrelay_node::train::{Sent, Sockets, Train};

/// Datagrams of one socket that are handled before the others get their turn: six full trains. The limit counts
/// datagrams, not trains. Otherwise a flood of single datagrams would queue in front of clients' trains and delay
/// them.
const DATAGRAMS: usize = 256;
/// Packets of the device that are handled before the sockets get their turn; one is up to a whole train.
const PACKETS: usize = 16;
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Pause before a busy guard is asked again.
const GUARD_WAIT: Duration = Duration::from_millis(10);
/// Packets of sessions in one round that make a shard busy.
const BUSY: u64 = 32;
/// Under overload the kernel passes one in this many first packets. Clients try several times, so two of three
/// newcomers still get their cookie; clients that have one are not affected. Handling and answering a first packet
/// costs some 15 µs. With one in eight, sessions lost a tenth of their speed.
const KEEP: u32 = 16;
const FIRST_LENGTHS: [usize; 2] = [FIRST_NK_LEN, FIRST_IK_LEN];
/// Bytes of a run that justify a system call for it. A copy of fewer bytes costs less than a call.
const GATHER: usize = 8_192;
/// Sockets of a shard: for each address family one for clients and one for relays.
const MAX_SOCKETS: usize = 4;

/// What a shard reads from and writes to.
pub(super) struct Io {
    pub(super) sockets: Sockets,
    pub(super) queue: Option<TunQueue>,
    /// What clients have open; `None` at an ingress.
    pub(super) flows: Option<Flows>,
    pub(super) udp_segmentation: bool,
    /// Whether the device takes IPv6.
    pub(super) v6: bool,
}

/// A shard's connections to other threads.
pub(super) struct Links {
    pub(super) requests: SyncSender<Request>,
    pub(super) handshake_bell: Arc<Waker>,
    pub(super) gate: Gate,
    pub(super) commands: Receiver<Command>,
    pub(super) bell: Arc<Waker>,
    pub(super) bells: Vec<Arc<Waker>>,
    pub(super) outgoing: Vec<Option<RingSender>>,
    pub(super) incoming: Vec<RingReceiver>,
    /// Deletes tracked connections.
    pub(super) guard: Option<Guard>,
    /// Rung when the tunnel device is gone.
    pub(super) lost_device: Arc<Waker>,
}

/// A shard and the state of its thread.
pub(super) struct Worker {
    shard: Shard,
    io: Io,
    links: Links,
    clock: Clock,
    random: OsRandom,
    /// Buffer in which trains are received, opened and sealed again.
    buffer: Vec<u8>,
    device_buffer: Vec<u8>,
    /// Lengths of the datagrams that another shard passed on.
    lengths: Vec<u16>,
    train: Train,
    merger: Merger,
    /// Counts of the trains that were sent from the receive buffer.
    forwarded: Sent,
    /// Datagrams of short trains. They are gathered until there are many, or until the thread sleeps: one call then
    /// sends those of many users.
    gathered: Train,
    /// Datagrams that the shard originates.
    own: Train,
    device_read: u64,
    /// Packets that clients may not have open.
    refused: u64,
    /// IPv6 packets that a host without IPv6 does not forward.
    without_v6: u64,
    /// ICMP errors made for clients.
    answered: u64,
    /// Whether flows of ended sessions wait to be deleted.
    clearing: bool,
    /// Whether the kernel drops first packets.
    thinned_out: bool,
}

impl Worker {
    pub(super) fn new(shard: Shard, io: Io, links: Links, clock: Clock) -> Self {
        Self {
            shard,
            merger: Merger::new(io.udp_segmentation),
            io,
            links,
            clock,
            random: OsRandom::default(),
            buffer: vec![0; MAX_READ],
            device_buffer: vec![0; MAX_READ],
            lengths: Vec::with_capacity(MAX_DATAGRAMS),
            train: Train::new(),
            forwarded: Sent::default(),
            gathered: Train::new(),
            own: Train::new(),
            device_read: 0,
            refused: 0,
            without_v6: 0,
            answered: 0,
            clearing: false,
            thinned_out: false,
        }
    }

    /// Runs until another thread stops it.
    pub(super) fn run(mut self) {
        loop {
            let moved = self.shard.moved();
            let (readable, device) = self.sleep();
            for (number, readable) in readable.into_iter().enumerate() {
                if readable {
                    self.receive(number);
                }
            }
            if device {
                self.read_device();
            }
            self.wake_others();
            // Cleared before anything is taken: what arrives from here on rings again.
            let rung = self.links.bell.clear();
            self.take_passed();
            let now = self.clock.now();
            if self.shard.poll_timeout() <= now {
                self.shard.handle_timeout(now, &mut self.random);
            }
            if rung && !self.obey() {
                return;
            }
            self.flush();
            self.thin_out_strangers(moved, now);
        }
    }

    /// Makes the kernel drop most first packets without a cookie while first packets and packets of sessions together
    /// overload this host. Each first packet that arrives here costs sessions several microseconds. `moved` is the
    /// number of packets of sessions moved before this round.
    fn thin_out_strangers(&mut self, moved: u64, now: Time) {
        let load = self.links.gate.load();
        if self.shard.moved() - moved >= BUSY {
            load.set_busy(now);
        }
        let overrun = load.is_overrun(now);
        if overrun != self.thinned_out {
            let lengths: &[usize] = if overrun { &FIRST_LENGTHS } else { &[] };
            for socket in self.io.sockets.all.iter().take(self.io.sockets.listening) {
                // Without the filter sessions are slower; nothing else changes.
                let _ = socket.thin_out(lengths, KEEP);
            }
            self.thinned_out = overrun;
        }
    }

    /// Waits for something to do. Returns which sockets, by number, are ready, and whether the device is.
    fn sleep(&self) -> ([bool; MAX_SOCKETS], bool) {
        let now = self.clock.now();
        let longest = if self.clearing { GUARD_WAIT } else { LONGEST_WAIT };
        let timeout = self.shard.poll_timeout().since(now).min(longest);
        let mut fds: [BorrowedFd<'_>; MAX_SOCKETS + 2] = [self.links.bell.as_fd(); MAX_SOCKETS + 2];
        let mut used = 1;
        for socket in &self.io.sockets.all {
            fds[used] = socket.as_fd();
            used += 1;
        }
        let device_at = used;
        if let Some(queue) = &self.io.queue {
            fds[used] = queue.as_fd();
            used += 1;
        }
        // An error here can only be a bug in this program. The loop then goes on with its timeouts alone.
        let ready = wait(&fds[..used], timeout).unwrap_or_default();
        let mut sockets = [false; MAX_SOCKETS];
        sockets[..device_at - 1].copy_from_slice(&ready[1..device_at]);
        (sockets, self.io.queue.is_some() && ready[device_at])
    }

    /// Handles what a socket has received.
    fn receive(&mut self, number: usize) {
        let mut datagrams = 0;
        while datagrams < DATAGRAMS {
            let Some(socket) = self.io.sockets.all.get(number) else { return };
            let Some(room) = self.buffer.get_mut(..udp::TRAIN) else { return };
            let Ok(train) = socket.receive(room) else { return };
            let count = train.len.div_ceil(train.stride).max(1);
            let lengths = (0..count).map(|number| (train.len - number * train.stride).min(train.stride));
            datagrams += count;
            let now = self.clock.now();
            self.handle_train(train.from, lengths, Shard::handle_datagram, now);
        }
    }

    /// The packet path of datagrams. `handle` opens each in place. Datagrams that are forwarded are sealed and sent
    /// from the same buffer, in runs. Short runs are copied, to be sent together with others.
    fn handle_train(&mut self, from: SocketAddr, lengths: impl Iterator<Item = usize>, handle: Handle, now: Time) {
        let (mut run, mut passing) = (Run::default(), Run::default());
        let mut start = 0;
        for length in lengths {
            let end = start + length;
            let Some(datagram) = self.buffer.get_mut(start..end) else { break };
            match handle(&mut self.shard, from, datagram, now, &mut self.random) {
                Fate::Forward { to } => {
                    if !run.extend(to, start, end) {
                        self.forward(&run);
                        run = Run::new(to, start, end);
                    }
                }
                Fate::Forbidden { offset, packet } => self.answer(start + offset, packet, Unreachable::Prohibited, now),
                Fate::Deliver { offset, packet, .. } if packet.is_v6() && !self.io.v6 => {
                    self.without_v6 += 1;
                    self.answer(start + offset, packet, Unreachable::NoRoute, now);
                }
                Fate::Deliver { offset, packet, partial } => self.deliver(start + offset, packet, partial, now),
                Fate::OtherShard(number) => {
                    if !passing.extend(number, start, end) {
                        self.pass(&passing, from);
                        passing = Run::new(number, start, end);
                    }
                }
                Fate::Consumed | Fate::Dropped(_) => {}
            }
            start = end;
        }
        self.forward(&run);
        self.pass(&passing, from);
        if let Some(queue) = &self.io.queue {
            self.merger.flush(queue, &self.buffer);
        }
    }

    /// Gives a client's packet in the receive buffer to the device.
    fn deliver(&mut self, at: usize, packet: Packet, partial: bool, now: Time) {
        let Some(bytes) = self.buffer.get(at..at + packet.len) else { return };
        let guard = &self.links.guard;
        let forget = |tuple: &Tuple| guard.as_ref().is_some_and(|guard| guard.forget(tuple));
        if let Some(flows) = &mut self.io.flows
            && flows.admit(&packet, bytes, now, &forget).is_err()
        {
            self.refused += 1;
        } else if let Some(queue) = &self.io.queue {
            self.merger.push(queue, &self.buffer, at, packet, partial);
        }
    }

    /// Answers a client's packet in the receive buffer with an error, at a limited rate. The error takes the path of
    /// packets from the device.
    fn answer(&mut self, at: usize, packet: Packet, why: Unreachable, now: Time) {
        let Some(bytes) = self.buffer.get(at..at + packet.len) else { return };
        let Some(flows) = &mut self.io.flows else { return };
        let Some((vnet, room)) = self.device_buffer.split_first_chunk_mut::<VNET_LEN>() else { return };
        *vnet = VnetHeader::PLAIN.to_bytes();
        if flows.may_answer(packet.source, now)
            && let Some(len) = icmp::unreachable(&packet, bytes, why, room)
        {
            let read = self.device_read;
            let _ = self.handle_device(VNET_LEN + len, now);
            self.answered += self.device_read - read;
            self.device_read = read;
            self.train.flush(&self.io.sockets);
        }
    }

    fn forward(&mut self, run: &Run<SocketAddr>) {
        if let (Some(to), Some(bytes)) = (run.to, self.buffer.get(run.start..run.end)) {
            if bytes.len() > GATHER {
                self.gathered.flush(&self.io.sockets);
                self.forwarded.send(&self.io.sockets, to, bytes, run.stride);
                return;
            }
            for datagram in bytes.chunks(run.stride) {
                self.gathered.add(&self.io.sockets, to, datagram);
            }
        }
    }

    /// Handles what the tunnel device has to send.
    fn read_device(&mut self) {
        for _ in 0..PACKETS {
            let Some(queue) = &self.io.queue else { return };
            let len = match queue.read(&mut self.device_buffer) {
                Ok(len) => len,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => break,
                Err(_) => {
                    // A device that is gone is always ready, so it must not be polled again.
                    self.io.queue = None;
                    self.links.lost_device.wake();
                    break;
                }
            };
            let now = self.clock.now();
            if let Err(reason) = self.handle_device(len, now) {
                self.device_read += 1;
                self.shard.count_drop(reason, 1);
            }
        }
        self.train.flush(&self.io.sockets);
    }

    /// The packet path from the internet: finds the session, translates, splits, and seals inside the train that
    /// carries the pieces.
    fn handle_device(&mut self, len: usize, now: Time) -> Result<(), DropReason> {
        let read = self.device_buffer.get_mut(..len).ok_or(DropReason::BadLength)?;
        let (vnet, bytes) = read.split_first_chunk_mut::<VNET_LEN>().ok_or(DropReason::BadLength)?;
        let vnet = VnetHeader::parse(vnet).ok_or(DropReason::BadPacket)?;
        let mut packet = Packet::parse(bytes).map_err(|_| DropReason::BadPacket)?;
        let down = match self.shard.route_down(packet.destination) {
            Ok(down) => down,
            Err(reason) => match Shard::shard_of(packet.destination) {
                Some(number) if self.links.outgoing.get(usize::from(number)).is_some_and(Option::is_some) => {
                    self.pass_device(number, len);
                    return Ok(());
                }
                _ => return Err(reason),
            },
        };
        let split = match Split::plan(&vnet, &packet, bytes, down.mtu) {
            Ok(split) => split,
            Err(reason) => {
                if let Some(queue) = &self.io.queue
                    && reason == DropReason::PacketTooBig
                {
                    say_too_big(queue, &packet, bytes, down.mtu);
                }
                return Err(reason);
            }
        };
        let whole_checksum = !vnet.needs_checksum;
        Shard::translate_down(&mut packet, bytes, !whole_checksum);
        tcp::clamp_mss(&packet, bytes, down.mtu, !whole_checksum);
        self.device_read += split.pieces as u64;
        for number in 0..split.pieces {
            let piece = split.len(&packet, number);
            let total = down.offset + padded(piece) + down.trailer;
            let room = self.train.room(&self.io.sockets, down.to, total);
            if room.len() != total {
                self.shard.count_drop(DropReason::BadLength, 1);
                continue;
            }
            let space = &mut room[down.offset..total - down.trailer];
            let (own, padding) = space.split_at_mut(piece);
            split.write(&packet, bytes, number, own);
            padding.fill(0);
            match self.shard.seal_down(&down, room, split.partial, now) {
                Ok(()) => self.train.commit(total),
                Err(reason) => self.shard.count_drop(reason, 1),
            }
        }
        Ok(())
    }

    /// Passes datagrams on to their shard.
    fn pass(&mut self, run: &Run<u8>, from: SocketAddr) {
        let (Some(number), Some(bytes)) = (run.to, self.buffer.get(run.start..run.end)) else { return };
        let ring = self.links.outgoing.get_mut(usize::from(number)).and_then(Option::as_mut);
        if !ring.is_some_and(|ring| ring.pass_datagrams(from, run.stride, bytes)) {
            self.shard.count_pass_failed(bytes.len().div_ceil(run.stride) as u64);
        }
    }

    fn pass_device(&mut self, number: u8, len: usize) {
        let bytes = self.device_buffer.get(..len).unwrap_or(&[]);
        let ring = self.links.outgoing.get_mut(usize::from(number)).and_then(Option::as_mut);
        if !ring.is_some_and(|ring| ring.pass_device(bytes)) {
            self.device_read += 1;
            self.shard.count_drop(DropReason::RingFull, 1);
        }
    }

    /// Wakes the shards that something was passed to in this round.
    fn wake_others(&mut self) {
        for (ring, bell) in self.links.outgoing.iter_mut().zip(&self.links.bells) {
            if ring.as_mut().is_some_and(RingSender::finish) {
                bell.wake();
            }
        }
    }

    /// Handles what other shards passed on, no more from each shard than from a socket: whoever sends through the
    /// wrong shard gets no advantage.
    fn take_passed(&mut self) {
        for at in 0..self.links.incoming.len() {
            let mut datagrams = 0;
            while datagrams < DATAGRAMS
                && let Some(ring) = self.links.incoming.get_mut(at)
                && let Some(what) = ring.peek()
            {
                let now = self.clock.now();
                match what {
                    Passed::Device => {
                        let len = ring.take(&mut self.device_buffer, &mut self.lengths).unwrap_or(0);
                        datagrams += DATAGRAMS / PACKETS;
                        if let Err(reason) = self.handle_device(len, now) {
                            self.device_read += 1;
                            self.shard.count_drop(reason, 1);
                        }
                    }
                    Passed::Datagrams(from) => {
                        let _ = ring.take(&mut self.buffer, &mut self.lengths);
                        datagrams += self.lengths.len();
                        let lengths = std::mem::take(&mut self.lengths);
                        self.handle_train(from, lengths.iter().map(|&len| len.into()), Shard::handle_passed, now);
                        self.lengths = lengths;
                    }
                }
            }
        }
        self.train.flush(&self.io.sockets);
        if self.links.incoming.iter().any(|ring| ring.peek().is_some()) {
            // The bell was cleared before. This shard must remember by itself what is left.
            self.links.bell.wake();
        }
    }

    /// Handles messages of other threads. Returns false when it is time to stop.
    fn obey(&mut self) -> bool {
        while let Ok(command) = self.links.commands.try_recv() {
            let now = self.clock.now();
            match command {
                Command::Output(output) => self.shard.apply(output, now, &mut self.random),
                Command::Config(config) => {
                    if config.is_ingress() {
                        self.io.sockets.relays = config.peers.values().map(|peer| peer.address).collect();
                    }
                    self.shard.set_config(config);
                }
                Command::Report(to) => {
                    self.gathered.flush(&self.io.sockets);
                    let _ = to.send(self.report());
                }
                Command::Stop(to) => {
                    self.shard.close(now);
                    self.flush();
                    let _ = to.send(self.report());
                    return false;
                }
            }
        }
        true
    }

    /// Sends what the shard originates, to peers and to the handshake thread.
    fn flush(&mut self) {
        // Requests come first: one that finds no room may leave something to send.
        let mut asked = false;
        while let Some(request) = self.shard.poll_request() {
            self.links.gate.load().queued();
            match self.links.requests.try_send(request) {
                Ok(()) => asked = true,
                Err(TrySendError::Full(request) | TrySendError::Disconnected(request)) => {
                    self.links.gate.load().taken();
                    self.shard.request_refused(request, self.clock.now(), &mut self.random);
                }
            }
        }
        if asked {
            self.links.handshake_bell.wake();
        }
        self.gathered.flush(&self.io.sockets);
        while let Some((to, datagram)) = self.shard.poll_transmit() {
            self.own.add(&self.io.sockets, to, &datagram);
        }
        self.own.flush(&self.io.sockets);
        while let Some((v4, _)) = self.shard.poll_freed() {
            if let Some(flows) = &mut self.io.flows {
                flows.end(v4);
            }
        }
        if let (Some(flows), Some(guard)) = (&mut self.io.flows, &self.links.guard) {
            self.clearing = flows.clear_ended(&|tuple| guard.forget(tuple));
        }
    }

    fn report(&self) -> Report {
        let mut counts = self.shard.counts().clone();
        let (own, gathered) = (self.own.sent, self.gathered.sent);
        let forwarding_failed = self.forwarded.failed + gathered.failed;
        let failed = forwarding_failed + self.train.sent.failed + own.failed;
        counts.forwarded -= forwarding_failed;
        counts.drops.count_many(DropReason::SendFailed, failed);
        counts.delivered -= self.merger.refused + self.refused + self.without_v6;
        counts.drops.count_many(DropReason::TooManyFlows, self.refused);
        counts.drops.count_many(DropReason::TunnelFailed, self.merger.refused + self.without_v6);
        let (sessions, circuits) = self.shard.held();
        Report {
            sent: self.forwarded.datagrams + gathered.datagrams + self.train.sent.datagrams + own.datagrams,
            originated: own.datagrams + own.failed + counts.withheld + self.answered,
            device_read: self.device_read,
            device_written: self.merger.written,
            counts,
            overflows: self.io.sockets.all.iter().map(|socket| u64::from(socket.overflows())).sum(),
            sessions: sessions as u64,
            circuits: circuits as u64,
            // Set by the relay; a shard does not know it.
            peers: 0,
        }
    }
}

/// Handles a datagram of the shard's own socket, or one that another shard passed on.
type Handle = fn(&mut Shard, SocketAddr, &mut [u8], Time, &mut dyn Random) -> Fate;

/// Consecutive datagrams of one train that go to the same place.
struct Run<To> {
    to: Option<To>,
    start: usize,
    end: usize,
    stride: usize,
    closed: bool,
}

impl<To> Default for Run<To> {
    fn default() -> Self {
        Self { to: None, start: 0, end: 0, stride: 0, closed: false }
    }
}

impl<To: PartialEq> Run<To> {
    fn new(to: To, start: usize, end: usize) -> Self {
        Self { to: Some(to), start, end, stride: end - start, closed: false }
    }

    /// Adds the datagram at `start..end` if it goes to the same place, follows without a gap, and one call can send
    /// all. Returns whether it was added.
    fn extend(&mut self, to: To, start: usize, end: usize) -> bool {
        let len = end - start;
        if self.to != Some(to) || self.end != start || self.closed || len > self.stride {
            return false;
        }
        if end - self.start > TRAIN_BYTES || start - self.start >= self.stride * TRAIN_SEGMENTS {
            return false;
        }
        self.end = end;
        self.closed = len < self.stride;
        true
    }
}
