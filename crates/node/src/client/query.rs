//! The query circuit: a separate circuit for queries to the chain, so that no egress sees them together with the
//! user's traffic.
//!
//! Owns one circuit, its thread and the connections in it. Asks whatever its caller tells it to, and never trusts an
//! answer.
//!
//! ```text
//! ureq ─▶ http ─▶ stack (TCP, names) ─▶ circuit ─▶ the client's first hop ─▶ another egress ─▶ endpoint
//! ```

mod http;
mod stack;

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use openrelay_proto::client::{Client, DatagramEvent, Event, Fetched};
use openrelay_proto::drops::DropReason;
use openrelay_proto::handshake::Role;
use openrelay_proto::message::MirrorFile;
use openrelay_proto::time::Time;
use openrelay_proto::wire::padded;
use openrelay_sys::event::{Waker, wait};
use openrelay_sys::udp::{self, UdpSocket};
use ureq::Agent;

use super::Counts;
use super::lockdown::MARK;
use crate::chain::Transport;
use crate::clock::{Clock, unix_minutes};
use crate::random::OsRandom;
use stack::Stack;

/// How long the circuit may take to open.
const SETUP: Duration = Duration::from_secs(20);
/// How long a relay may take to send a file.
const FETCH: Duration = Duration::from_secs(30);
/// How long a closed circuit still receives datagrams in flight. Without a socket no count would include them.
const LINGER: Duration = Duration::from_millis(500);
/// Trains that are handled before anything else gets its turn.
const BUDGET: usize = 16;
/// The longest sleep of the circuit's thread.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A circuit for queries. Dropping it closes it.
pub(super) struct QueryCircuit {
    shared: Arc<Shared>,
    relays: Vec<Role>,
    /// Relays that did not answer in time. They are not asked again.
    silent: Mutex<Vec<Role>>,
    thread: Option<JoinHandle<()>>,
}

/// State shared by the circuit's thread and its users.
struct Shared {
    state: Mutex<State>,
    /// Signals a change to threads that wait for it.
    changed: Condvar,
    /// Wakes the circuit's thread.
    bell: Waker,
}

struct State {
    clock: Clock,
    client: Client,
    stack: Stack,
    connected: bool,
    /// Why the circuit has stopped.
    over: Option<&'static str>,
    fetched: Vec<Fetched>,
    /// What was carried since it was last added to the client's counts.
    counts: Counts,
}

/// Why a wait ended.
enum Ended {
    TimedOut,
    /// The circuit is closed.
    Over(&'static str),
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, then wakes the thread to handle the change.
    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let result = change(&mut self.lock());
        self.bell.wake();
        result
    }

    /// Calls `look` after each change until it returns a value, the time is up, or the circuit is closed.
    fn wait_for<T>(&self, until: Instant, mut look: impl FnMut(&mut State) -> Option<T>) -> Result<T, Ended> {
        let mut state = self.lock();
        loop {
            if let Some(found) = look(&mut state) {
                drop(state);
                self.bell.wake();
                return Ok(found);
            }
            if let Some(why) = state.over {
                return Err(Ended::Over(why));
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Ended::TimedOut);
            }
            (state, _) = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl QueryCircuit {
    /// Starts to run the circuit that `client` has begun to open. Names are resolved by `servers`. What the circuit
    /// carries is added to `carried`.
    ///
    /// # Errors
    /// A message about what this host refused.
    pub(super) fn start(
        client: Client,
        relays: Vec<Role>,
        servers: &[IpAddr],
        clock: Clock,
        carried: Arc<Mutex<Counts>>,
    ) -> Result<Self, String> {
        let remote = client.remote();
        let local: SocketAddr = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(local, false).map_err(|error| format!("cannot open a UDP socket: {error}"))?;
        // For few packets, trains save nothing, and every driver handles single datagrams correctly.
        socket.without_trains();
        socket.set_mark(MARK).map_err(|error| format!("cannot mark the UDP socket: {error}"))?;
        let stack = Stack::new(servers, clock.now(), &mut OsRandom::default());
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                clock,
                client,
                stack,
                connected: false,
                over: None,
                fetched: Vec::new(),
                counts: Counts::default(),
            }),
            changed: Condvar::new(),
            bell: Waker::new().map_err(|error| error.to_string())?,
        });
        let working = shared.clone();
        let thread = std::thread::Builder::new()
            .name("queries".into())
            .spawn(move || run(&working, &socket, &carried))
            .map_err(|error| error.to_string())?;
        Ok(Self { shared, relays, silent: Mutex::default(), thread: Some(thread) })
    }

    /// Waits until the circuit carries packets.
    ///
    /// # Errors
    /// A message about why it will not.
    pub(super) fn come_up(&self) -> Result<(), String> {
        match self.shared.wait_for(Instant::now() + SETUP, |state| state.connected.then_some(())) {
            Ok(()) => Ok(()),
            Err(Ended::Over(why)) => Err(why.into()),
            Err(Ended::TimedOut) => Err("the query circuit did not open in time".into()),
        }
    }

    /// Closes the circuit and ends every wait.
    pub(super) fn end(&self) {
        self.shared.change(|state| {
            state.over.get_or_insert("the query circuit was closed");
        });
        self.shared.changed.notify_all();
    }
}

impl Drop for QueryCircuit {
    fn drop(&mut self) {
        self.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Transport for QueryCircuit {
    fn agent(&self, url: &str) -> Agent {
        http::agent(&self.shared, url)
    }

    fn relays(&self) -> &[Role] {
        &self.relays
    }

    fn fetch(&self, from: Role, file: MirrorFile) -> Result<Vec<u8>, String> {
        let until = Instant::now() + FETCH;
        let silent = || self.silent.lock().unwrap_or_else(PoisonError::into_inner);
        if silent().contains(&from) {
            return Err("it did not answer an earlier request".into());
        }
        let ended = |ended| match ended {
            Ended::TimedOut => {
                silent().push(from);
                "no answer in time".to_owned()
            }
            Ended::Over(why) => why.to_owned(),
        };
        let ask = |state: &mut State| state.client.fetch(from, file, state.clock.now()).then_some(());
        self.shared.wait_for(until, ask).map_err(ended)?;
        let take = |state: &mut State| {
            let at = state.fetched.iter().position(|found| (found.from, found.file) == (from, file))?;
            Some(state.fetched.swap_remove(at).bytes)
        };
        let bytes = self.shared.wait_for(until, take).map_err(ended)?;
        if bytes.is_empty() { Err("it does not have this file".into()) } else { Ok(bytes) }
    }
}

/// The circuit's thread: moves datagrams until the circuit is closed.
fn run(shared: &Shared, socket: &UdpSocket, carried: &Mutex<Counts>) {
    let mut buffer = vec![0; udp::TRAIN];
    let mut random = OsRandom::default();
    let (mut timeout, mut overflowed) = (Duration::ZERO, 0);
    let mut over_since: Option<Instant> = None;
    loop {
        // An error here can only be a bug in this program. The loop then goes on with its timeouts alone.
        let ready = wait(&[shared.bell.as_fd(), socket.as_fd()], timeout).unwrap_or_default();
        shared.bell.clear();
        let mut state = shared.lock();
        if ready[1] {
            for _ in 0..BUDGET {
                let Ok(train) = socket.receive(&mut buffer) else { break };
                state.receive(&mut buffer, train, &mut random);
            }
        }
        state.work(&mut random);
        if state.over.is_some() && over_since.is_none() {
            over_since = Some(Instant::now());
            let now = state.clock.now();
            state.client.close(now);
        }
        state.send(socket);
        let left = over_since.map(|since| LINGER.saturating_sub(since.elapsed()));
        timeout = left.unwrap_or_else(|| state.rest());
        let overflows = u64::from(socket.overflows());
        state.counts.overflows = overflows - overflowed;
        overflowed = overflows;
        carried.lock().unwrap_or_else(PoisonError::into_inner).add(&std::mem::take(&mut state.counts));
        drop(state);
        shared.changed.notify_all();
        if left.is_some_and(|left| left.is_zero()) {
            return;
        }
    }
}

impl State {
    /// The packet path down: hands packets to the stack.
    fn receive(&mut self, buffer: &mut [u8], train: udp::Train, random: &mut OsRandom) {
        let (now, minutes) = (self.clock.now(), unix_minutes());
        let Some(bytes) = buffer.get_mut(..train.len) else { return };
        // An empty datagram counts as one.
        let pieces = if bytes.is_empty() { vec![bytes] } else { bytes.chunks_mut(train.stride.max(1)).collect() };
        for datagram in pieces {
            self.counts.received += 1;
            if train.from != self.client.remote() {
                self.counts.drops.count(DropReason::ForeignSource);
                continue;
            }
            match self.client.handle_datagram(datagram, now, minutes, random) {
                DatagramEvent::Consumed => self.counts.control += 1,
                DatagramEvent::Dropped(reason) => self.counts.drops.count(reason),
                DatagramEvent::Deliver { offset, packet, .. } => {
                    // Packets that the device accepts are counted as delivered; this one never reaches the device.
                    self.counts.control += 1;
                    self.stack.arrived(datagram.get(offset..offset + packet.len).unwrap_or(&[]));
                }
            }
        }
    }

    /// Handles timeouts and events, and lets the stack work.
    fn work(&mut self, random: &mut OsRandom) {
        let now = self.clock.now();
        if self.client.poll_timeout() <= now {
            self.client.handle_timeout(now, unix_minutes(), random);
        }
        while let Some(event) = self.client.poll_event() {
            match event {
                Event::Connected => self.connected = true,
                Event::Mtu(_) => {}
                Event::Failed(failure) => self.over = Some(super::failure_text(failure)),
                Event::Lost => self.over = Some("the query circuit was lost"),
            }
        }
        self.fetched.extend(std::iter::from_fn(|| self.client.poll_fetched()));
        self.stack.work(now);
    }

    /// The packet path up: sends the packets of the stack and the datagrams of the circuit.
    fn send(&mut self, socket: &UdpSocket) {
        let (now, to) = (self.clock.now(), self.client.remote());
        while let Some(packet) = self.stack.leaving() {
            self.counts.originated += 1;
            match self.seal(&packet, now) {
                Ok(datagram) => self.send_one(socket, to, &datagram),
                Err(reason) => self.counts.drops.count(reason),
            }
        }
        while let Some(datagram) = self.client.poll_transmit() {
            self.counts.originated += 1;
            self.send_one(socket, to, &datagram);
        }
    }

    fn seal(&mut self, packet: &[u8], now: Time) -> Result<Vec<u8>, DropReason> {
        let offset = self.client.offset();
        let mut datagram = vec![0; offset + padded(packet.len()) + self.client.trailer()];
        datagram.get_mut(offset..offset + packet.len()).ok_or(DropReason::BadLength)?.copy_from_slice(packet);
        self.client.seal(&mut datagram, false, now)?;
        Ok(datagram)
    }

    fn send_one(&mut self, socket: &UdpSocket, to: SocketAddr, datagram: &[u8]) {
        match socket.send(to, datagram, datagram.len()) {
            Ok(_) => self.counts.sent += 1,
            Err(_) => self.counts.drops.count(DropReason::SendFailed),
        }
    }

    /// Returns how long the thread may sleep.
    fn rest(&mut self) -> Duration {
        let now = self.clock.now();
        let circuit = self.client.poll_timeout().since(now);
        self.stack.rest(now).map_or(circuit, |stack| stack.min(circuit)).min(LONGEST_WAIT)
    }
}
