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
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use openrelay_chain::Transport;
use openrelay_node::clock::Clock;
use openrelay_node::driver::{Counts, Driver, Port};
use openrelay_node::random::OsRandom;
use openrelay_proto::client::{Client, Event, Fetched};
use openrelay_proto::handshake::Role;
use openrelay_proto::ip::Packet;
use openrelay_proto::message::MirrorFile;
use openrelay_sys::event::{Waker, wait};
use openrelay_sys::udp::{self, UdpSocket};
use ureq::Agent;

use crate::error::failure_text;
use crate::lockdown::MARK;
use stack::Stack;

/// How long the circuit may take to open.
const SETUP: Duration = Duration::from_secs(20);
/// How long a relay may take to send a file.
const FETCH: Duration = Duration::from_secs(30);
/// How long a closed circuit still receives datagrams in flight. Without a socket no count would include them.
const LINGER: Duration = Duration::from_millis(500);
/// The longest sleep of the circuit's thread.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// A circuit for queries. Dropping it closes it.
pub(crate) struct QueryCircuit {
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
    driver: Driver,
    stack: Stack,
    connected: bool,
    /// Why the circuit has stopped.
    over: Option<&'static str>,
    fetched: Vec<Fetched>,
}

impl Port for Stack {
    fn deliver(&mut self, buffer: &[u8], offset: usize, packet: Packet, _partial: bool) {
        self.arrived(buffer.get(offset..offset + packet.len).unwrap_or(&[]));
    }
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
    pub(crate) fn start(
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
        // The thread waits for the socket while others use the circuit.
        let readable = socket.as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
        let driver = Driver::new(client, socket, clock);
        let shared = Arc::new(Shared {
            state: Mutex::new(State { driver, stack, connected: false, over: None, fetched: Vec::new() }),
            changed: Condvar::new(),
            bell: Waker::new().map_err(|error| error.to_string())?,
        });
        let working = shared.clone();
        let thread = std::thread::Builder::new()
            .name("queries".into())
            .spawn(move || run(&working, &readable, &carried))
            .map_err(|error| error.to_string())?;
        Ok(Self { shared, relays, silent: Mutex::default(), thread: Some(thread) })
    }

    /// Waits until the circuit carries packets.
    ///
    /// # Errors
    /// A message about why it will not.
    pub(crate) fn come_up(&self) -> Result<(), String> {
        match self.shared.wait_for(Instant::now() + SETUP, |state| state.connected.then_some(())) {
            Ok(()) => Ok(()),
            Err(Ended::Over(why)) => Err(why.into()),
            Err(Ended::TimedOut) => Err("the query circuit did not open in time".into()),
        }
    }

    /// Closes the circuit and ends every wait.
    pub(crate) fn end(&self) {
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
        let ask = |state: &mut State| {
            let now = state.driver.now();
            state.driver.client().fetch(from, file, now).then_some(())
        };
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
fn run(shared: &Shared, readable: &OwnedFd, carried: &Mutex<Counts>) {
    let mut buffer = vec![0; udp::TRAIN];
    let before = carried.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let mut timeout = Duration::ZERO;
    let mut over_since: Option<Instant> = None;
    loop {
        // An error here can only be a bug in this program. The loop then goes on with its timeouts alone.
        let ready = wait(&[shared.bell.as_fd(), readable.as_fd()], timeout).unwrap_or_default();
        shared.bell.clear();
        let mut state = shared.lock();
        if ready[1] {
            let State { driver, stack, .. } = &mut *state;
            driver.receive(&mut buffer, stack);
        }
        state.work();
        if state.over.is_some() && over_since.is_none() {
            over_since = Some(Instant::now());
            state.driver.close();
        }
        let left = over_since.map(|since| LINGER.saturating_sub(since.elapsed()));
        timeout = left.unwrap_or_else(|| state.rest());
        let mut counts = before.clone();
        counts.add_without_device(&state.driver.counts());
        *carried.lock().unwrap_or_else(PoisonError::into_inner) = counts;
        drop(state);
        shared.changed.notify_all();
        if left.is_some_and(|left| left.is_zero()) {
            return;
        }
    }
}

impl State {
    /// Handles timeouts and events, lets the stack work, and sends its packets.
    fn work(&mut self) {
        self.driver.turn();
        while let Some(event) = self.driver.poll_event() {
            match event {
                Event::Connected => self.connected = true,
                Event::Mtu(_) => {}
                Event::Failed(failure) => self.over = Some(failure_text(failure)),
                Event::Lost => self.over = Some("the query circuit was lost"),
            }
        }
        let client = self.driver.client();
        self.fetched.extend(std::iter::from_fn(|| client.poll_fetched()));
        let now = self.driver.now();
        self.stack.work(now);
        while let Some(packet) = self.stack.leaving() {
            self.driver.send(packet.len(), false, now, |own| own.copy_from_slice(&packet));
        }
        self.driver.flush();
    }

    /// Returns how long the thread may sleep.
    fn rest(&mut self) -> Duration {
        let circuit = self.driver.rest();
        self.stack.rest(self.driver.now()).map_or(circuit, |stack| stack.min(circuit)).min(LONGEST_WAIT)
    }
}
