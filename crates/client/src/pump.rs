//! The client's data thread: the tunnel device on one side, the circuit's [`Driver`] on the other.
//!
//! Owns the loop that waits for both, and how packets of the device are split and joined.

use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use openrelay_node::driver::{BUDGET, Counts, Driver, Port};
use openrelay_node::merge::Merger;
use openrelay_node::split::{Split, say_too_big};
use openrelay_proto::client::Event;
use openrelay_proto::drops::DropReason;
use openrelay_proto::ip::{CLIENT_V4, CLIENT_V6, Packet, tcp};
use openrelay_sys::event::{Waker, wait};
use openrelay_sys::tun::{MAX_READ, TunQueue, VNET_LEN, VnetHeader};

use crate::circuit::Shared;

const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Requests of other threads to the data thread.
pub(crate) enum Command {
    /// Report the counts.
    Report(SyncSender<Counts>),
    /// Replace all keys.
    Rekey,
    /// Close the circuit because a relay is no longer trusted. Traffic stays blocked.
    Abandon,
    /// Close the circuit and stop.
    Stop(SyncSender<Counts>),
}

/// The tunnel device as the port of the circuit.
struct Device {
    queue: TunQueue,
    merger: Merger,
}

impl Port for Device {
    fn deliver(&mut self, buffer: &[u8], offset: usize, packet: Packet, partial: bool) {
        self.merger.push(&self.queue, buffer, offset, packet, partial);
    }

    fn flush(&mut self, buffer: &[u8]) {
        self.merger.flush(&self.queue, buffer);
    }
}

/// The state of the data thread.
pub(crate) struct Pump {
    driver: Driver,
    device: Device,
    /// Whether somebody removed the tunnel device. Nothing is carried then, and only `down` helps.
    device_gone: bool,
    buffer: Vec<u8>,
    device_buffer: Vec<u8>,
    links: Links,
}

/// What connects the data thread to other threads.
pub(crate) struct Links {
    pub(crate) commands: Receiver<Command>,
    pub(crate) events: Sender<Event>,
    pub(crate) bell: Arc<Waker>,
    pub(crate) shared: Arc<Mutex<Shared>>,
}

impl Pump {
    pub(crate) fn new(driver: Driver, queue: TunQueue, udp_segmentation: bool, links: Links) -> Self {
        Self {
            driver,
            device: Device { queue, merger: Merger::new(udp_segmentation) },
            device_gone: false,
            buffer: vec![0; MAX_READ],
            device_buffer: vec![0; MAX_READ],
            links,
        }
    }

    /// Runs until another thread stops it.
    pub(crate) fn run(mut self) {
        self.driver.turn();
        loop {
            let timeout = self.driver.rest().min(LONGEST_WAIT);
            let fds = [self.links.bell.as_fd(), self.driver.socket().as_fd(), self.device.queue.as_fd()];
            let watched = if self.device_gone { 2 } else { 3 };
            // An error here can only be a bug in this program. The loop then goes on with its timeouts alone.
            let ready = wait(&fds[..watched], timeout).unwrap_or_default();
            if ready[1] {
                self.driver.receive(&mut self.buffer, &mut self.device);
            }
            if ready[2] {
                self.read_device();
            }
            if ready[0] && self.links.bell.clear() && !self.handle_commands() {
                return;
            }
            self.driver.turn();
            self.publish();
        }
    }

    /// Handles what the device has to send.
    fn read_device(&mut self) {
        for _ in 0..BUDGET {
            let len = match self.device.queue.read(&mut self.device_buffer) {
                Ok(len) => len,
                Err(error) => {
                    self.device_gone |= !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted);
                    break;
                }
            };
            if let Err(reason) = self.handle_device(len) {
                self.driver.refuse(reason);
            }
        }
        self.driver.flush();
    }

    /// The packet path up: splits a packet to what the path carries, and hands each piece to the driver, which seals
    /// it twice inside the train that carries it.
    fn handle_device(&mut self, len: usize) -> Result<(), DropReason> {
        let now = self.driver.now();
        let read = self.device_buffer.get_mut(..len).ok_or(DropReason::BadLength)?;
        let (vnet, bytes) = read.split_first_chunk_mut::<VNET_LEN>().ok_or(DropReason::BadLength)?;
        let vnet = VnetHeader::parse(vnet).ok_or(DropReason::BadPacket)?;
        let packet = Packet::parse(bytes).map_err(|_| DropReason::BadPacket)?;
        if packet.source != std::net::IpAddr::V4(CLIENT_V4) && packet.source != std::net::IpAddr::V6(CLIENT_V6) {
            return Err(DropReason::ForeignSource);
        }
        let mtu = self.driver.client().mtu();
        let split = match Split::plan(&vnet, &packet, bytes, mtu) {
            Ok(split) => split,
            Err(reason) => {
                if reason == DropReason::PacketTooBig {
                    say_too_big(&self.device.queue, &packet, bytes, mtu);
                }
                return Err(reason);
            }
        };
        tcp::clamp_mss(&packet, bytes, mtu, vnet.needs_checksum);
        for number in 0..split.pieces {
            let piece = split.len(&packet, number);
            self.driver.send(piece, split.partial, now, |own| split.write(&packet, bytes, number, own));
        }
        Ok(())
    }

    /// Handles requests of other threads. Returns false when it is time to stop.
    fn handle_commands(&mut self) -> bool {
        while let Ok(command) = self.links.commands.try_recv() {
            match command {
                Command::Report(to) => {
                    let _ = to.send(self.counts());
                }
                Command::Rekey => self.driver.rekey(),
                Command::Abandon => {
                    self.driver.close();
                    self.links.shared.lock().unwrap_or_else(PoisonError::into_inner).lost = true;
                }
                Command::Stop(to) => {
                    self.driver.close();
                    let _ = to.send(self.counts());
                    return false;
                }
            }
        }
        true
    }

    /// Publishes events and counts to the other threads.
    fn publish(&mut self) {
        if self.device_gone {
            self.links.shared.lock().unwrap_or_else(PoisonError::into_inner).lost = true;
        }
        while let Some(event) = self.driver.poll_event() {
            let counts = self.counts();
            let mtu = self.driver.client().mtu();
            let mut shared = self.links.shared.lock().unwrap_or_else(PoisonError::into_inner);
            shared.mtu = mtu;
            if event == Event::Lost {
                tracing::warn!("the circuit was lost; all traffic is blocked");
                shared.lost = true;
            }
            shared.counts = counts;
            let _ = self.links.events.send(event);
        }
    }

    fn counts(&self) -> Counts {
        let mut counts = self.driver.counts();
        counts.delivered -= self.device.merger.refused;
        counts.drops.count_many(DropReason::TunnelFailed, self.device.merger.refused);
        counts
    }
}
