//! The user's circuit: its socket and its data thread.
//!
//! Owns the messages to the thread and what it publishes. Changes nothing on the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use openrelay_node::clock::Clock;
use openrelay_node::driver::{Counts, Driver};
use openrelay_proto::client::{Client, Event, Failure};
use openrelay_sys::event::Waker;
use openrelay_sys::udp::UdpSocket;

use crate::error::ConnectError;
use crate::host::HostError;
use crate::lockdown::MARK;
use crate::pump::{Command, Links, Pump};
use crate::tunnel::DeviceQueue;

/// How long the data thread may take to report.
const REPORT: Duration = Duration::from_secs(1);
/// How long it may take to stop.
const STOP: Duration = Duration::from_secs(5);

/// What the data thread publishes from time to time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared {
    pub(crate) counts: Counts,
    pub(crate) mtu: u16,
    pub(crate) lost: bool,
}

/// A running circuit. Dropping it closes it.
pub(crate) struct Circuit {
    orders: Orders,
    events: Receiver<Event>,
    shared: Arc<Mutex<Shared>>,
    thread: Option<JoinHandle<()>>,
}

/// The way to give the data thread orders.
#[derive(Clone)]
pub(crate) struct Orders {
    commands: Sender<Command>,
    bell: Arc<Waker>,
}

impl Orders {
    /// Gives an order. A thread that has ended ignores it.
    pub(crate) fn give(&self, command: Command) {
        let _ = self.commands.send(command);
        self.bell.wake();
    }
}

/// Returns a socket for the tunnel's own datagrams to `remote`, which the firewall passes.
///
/// # Errors
/// [`HostError`].
pub(crate) fn socket_towards(remote: SocketAddr) -> Result<UdpSocket, HostError> {
    let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0).into(), false).map_err(HostError::at("open a UDP socket"))?;
    socket.set_mark(MARK).map_err(HostError::at("mark the tunnel's own datagrams"))?;
    Ok(socket)
}

impl Circuit {
    /// Starts the data thread between `device` and the circuit that `client` has begun to open.
    ///
    /// # Errors
    /// [`HostError`].
    pub(crate) fn start(
        client: Client,
        socket: UdpSocket,
        clock: Clock,
        device: DeviceQueue,
    ) -> Result<Self, HostError> {
        let (event_sender, events) = mpsc::channel();
        let (commands, command_receiver) = mpsc::channel();
        let bell = Arc::new(Waker::new().map_err(HostError::at("create an event descriptor"))?);
        let shared = Arc::new(Mutex::new(Shared::default()));
        let links =
            Links { commands: command_receiver, events: event_sender, bell: bell.clone(), shared: shared.clone() };
        let pump = Pump::new(Driver::new(client, socket, clock), device.queue, device.udp_segmentation, links);
        let thread = std::thread::Builder::new()
            .name("client".into())
            .spawn(move || pump.run())
            .map_err(HostError::at("start the data thread"))?;
        Ok(Self { orders: Orders { commands, bell }, events, shared, thread: Some(thread) })
    }

    /// Waits until the circuit carries packets.
    ///
    /// # Errors
    /// [`ConnectError`] with the reason why it will not, or did not within `patience`.
    pub(crate) fn come_up(&self, patience: Duration) -> Result<(), ConnectError> {
        let deadline = Instant::now() + patience;
        loop {
            match self.events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Connected) => return Ok(()),
                Ok(Event::Failed(Failure::OtherEvidence(role))) => return Err(ConnectError::OtherEvidence(role)),
                Ok(Event::Failed(failure)) => return Err(ConnectError::Failed(failure)),
                Ok(Event::Lost) => return Err(ConnectError::Failed(Failure::Protocol)),
                Ok(Event::Mtu(_)) => {}
                Err(_) => return Err(ConnectError::TimedOut(patience)),
            }
        }
    }

    /// Returns the way to give the data thread orders.
    pub(crate) fn orders(&self) -> &Orders {
        &self.orders
    }

    /// Returns the counts of the traffic so far.
    pub(crate) fn counts(&self) -> Counts {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.orders.give(Command::Report(sender));
        receiver.recv_timeout(REPORT).unwrap_or_else(|_| self.published().counts)
    }

    /// Returns what the data thread published last.
    pub(crate) fn published(&self) -> Shared {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Closes the circuit. Returns what it carried.
    pub(crate) fn close(mut self) -> Counts {
        self.stop()
    }

    fn stop(&mut self) -> Counts {
        let Some(thread) = self.thread.take() else { return Counts::default() };
        let (sender, receiver) = mpsc::sync_channel(1);
        self.orders.give(Command::Stop(sender));
        let counts = receiver.recv_timeout(STOP).unwrap_or_default();
        let _ = thread.join();
        counts
    }
}

impl Drop for Circuit {
    fn drop(&mut self) {
        self.stop();
    }
}
