//! A running client: one thread between the tunnel device and the circuit.
//!
//! Owns the order of coming up and going down: firewall, socket, device, circuit, routes, names; and all back in reverse.
//! [`Pump::handle_device`] is the way up of a packet, [`Pump::handle_train`] its way down.

pub mod host;
pub mod lockdown;
mod pump;
mod query;
mod refresh;
pub mod resolver;

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use openrelay_ledger::directory::{Directory, Source};
use openrelay_ledger::hex;
use openrelay_ledger::record::{Record, Role};
use openrelay_ledger::selection::{self, Families, SelectionError, Wish};
use openrelay_proto::client::{Event, Failure};
use openrelay_proto::random::array;
use openrelay_sys::event::Waker;
use openrelay_sys::net::Netlink;
use openrelay_sys::tun::Tun;
use openrelay_sys::udp::UdpSocket;

use crate::chain::{ChainError, Outside};
use crate::chain_file::ChainFile;
use crate::circuit::{self, Hops, OpenConsent, OpenError};
use crate::clock::Clock;
use crate::config::{ClientFile, ConfigError, Origin, check_device, key_fault, read};
use crate::directory::VerifiedDirectory;
use crate::random::OsRandom;
use host::{Folders, HostError, HostState};
pub use pump::Counts;
use pump::{Command, Pump};
pub use refresh::Refreshed;
use refresh::{Reader, Refresher};

/// Why the client is not connected.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Its configuration or a file that it names.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The chain that proves the directory.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// No hops to be had.
    #[error("no circuit: {0}")]
    Selection(#[from] SelectionError),
    /// Nothing to begin with.
    #[error("no circuit: {0}")]
    Open(#[from] OpenError),
    /// This host.
    #[error(transparent)]
    Host(#[from] HostError),
    /// The relays.
    #[error("no circuit: {}", failure_text(*.0))]
    Failed(Failure),
    /// It took too long.
    #[error("no circuit within {} s", .0.as_secs())]
    TimedOut(Duration),
}

fn failure_text(failure: Failure) -> &'static str {
    match failure {
        Failure::IngressSilent => "the ingress does not answer; is it running, and is UDP to it allowed?",
        Failure::EgressSilent => "the egress does not answer the ingress; try another one",
        Failure::Refused(_) => "the ingress refused the circuit; its directory may be older than this one",
        Failure::Protocol => "a relay broke the protocol; try another one",
    }
}

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Do without an ingress.
    pub one_hop: bool,
    /// Where what must be given back is written down.
    pub folders: Folders,
}

/// What there is to say about a client that is up.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Registry number of the ingress; `None` with one hop.
    pub ingress: Option<u64>,
    /// Registry number of the egress.
    pub egress: u64,
    /// Whether one person runs all relays of the directory.
    pub single_operator: bool,
    /// Name of the network.
    pub network: String,
    /// Sequence of the directory; of a chain, the block.
    pub sequence: u64,
    /// What the directory was checked by.
    pub source: Source,
    /// The tunnel device.
    pub device: String,
    /// How the client is admitted.
    pub admission: &'static str,
    /// Milliseconds from the first datagram to the first packet.
    pub setup_ms: u64,
    /// What the user should know.
    pub warning: Option<String>,
}

/// A client that is up.
pub struct Connection {
    /// What there is to say.
    pub facts: Facts,
    commands: Sender<Command>,
    bell: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Mutex<Shared>>,
    /// Where the directory is one of a chain.
    refresher: Option<Refresher>,
    /// And the file in which its last reading is kept.
    reading: Option<PathBuf>,
    host: Option<HostState>,
}

/// What the data thread tells the others, now and then.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared {
    pub(crate) counts: Counts,
    pub(crate) mtu: u16,
    pub(crate) lost: bool,
}

/// Everything chosen before anything is changed.
struct Plan {
    file: ClientFile,
    directory: VerifiedDirectory,
    hops: Hops,
    consent: OpenConsent,
    ingress: Option<u64>,
    egress: u64,
    /// The records of both.
    chosen: Vec<Record>,
    chain: Option<ChainFile>,
    memory: Memory,
    warning: Option<String>,
}

impl Connection {
    /// Connects by the configuration `path`, waiting up to `patience` for the circuit. The firewall is up before the first
    /// datagram leaves; on failure everything is given back.
    ///
    /// # Errors
    /// [`ConnectError`] says what is wrong and what would be right.
    pub fn open(path: &Path, options: &Options, patience: Duration) -> Result<Self, ConnectError> {
        let plan = choose(path, options)?;
        let clock = Clock::start();
        let mut random = OsRandom::default();
        let keepalive = Some(Duration::from_secs(plan.file.keepalive_s.into())).filter(|every| !every.is_zero());
        let mut netlink = Netlink::open().map_err(HostError::at("talk to the kernel's routing"))?;
        let mut pick = |endpoints: &[SocketAddr]| {
            endpoints.iter().copied().find(|endpoint| netlink.route_link(endpoint.ip()).is_ok())
        };
        let first = std::cell::RefCell::new(&mut pick);
        let client = circuit::open(
            plan.hops,
            plan.consent,
            keepalive,
            |endpoints| (first.borrow_mut())(endpoints),
            clock.now(),
            &mut random,
        )?;
        let remote = client.remote();
        let local: SocketAddr = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(local, false).map_err(HostError::at("open a UDP socket"))?;
        if !plan.file.udp_trains {
            socket.without_trains();
        }
        socket.set_mark(lockdown::MARK).map_err(HostError::at("mark the tunnel's own datagrams"))?;
        let tun = Tun::create(&plan.file.device, 1).map_err(HostError::at("make the tunnel device"))?;
        let udp_segmentation = tun.udp_segmentation;
        let device = tun.name.clone();
        let mut host = HostState::new(&options.folders, &device, remote)?;
        host.lock_down()?;
        host.configure_device()?;
        let started = Instant::now();
        let (event_sender, events) = mpsc::channel();
        let (commands, command_receiver) = mpsc::channel();
        let bell = Arc::new(Waker::new().map_err(HostError::at("make an event descriptor"))?);
        let shared = Arc::new(Mutex::new(Shared::default()));
        let queue = tun
            .queues
            .into_iter()
            .next()
            .ok_or_else(|| HostError::at("make the tunnel device")(io::ErrorKind::Other.into()))?;
        let pump = Pump::new(client, socket, queue, udp_segmentation, clock).with_links(
            command_receiver,
            event_sender,
            bell.clone(),
            shared.clone(),
        );
        let thread = std::thread::Builder::new()
            .name("client".into())
            .spawn(move || pump.run())
            .map_err(HostError::at("start the data thread"))?;
        let mut connection = Self {
            facts: Facts {
                ingress: plan.ingress,
                egress: plan.egress,
                single_operator: plan.directory.directory().body().single_operator,
                network: plan.directory.directory().body().network.clone(),
                sequence: plan.directory.directory().body().sequence,
                source: plan.directory.directory().source(),
                device,
                admission: "open",
                setup_ms: 0,
                warning: plan.warning,
            },
            commands,
            bell,
            thread: Some(thread),
            shared,
            refresher: None,
            reading: plan.chain.is_some().then(|| plan.memory.reading.clone()),
            host: Some(host),
        };
        connection
            .await_circuit(&events, patience)
            .inspect_err(|_| crate::chain::doubt_reading(&plan.memory.reading))?;
        connection.facts.setup_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if let Some(ingress) = plan.ingress {
            plan.memory.keep(ingress);
        }
        if let Some(host) = &mut connection.host {
            host.route_everything()?;
            host.use_resolvers(&plan.file.dns)?;
        }
        if let Some(chain) = plan.chain {
            let reader = Reader {
                chain,
                kept: plan.memory.reading,
                opened_with: plan.directory.clone(),
                directory: plan.directory,
                admission: plan.file.admission,
                servers: plan.file.dns,
                remote,
                ingress: plan.ingress,
                egress: plan.egress,
                hops: plan.chosen,
                silent: Vec::new(),
            };
            connection.refresher = Some(Refresher::start(reader)?);
        }
        Ok(connection)
    }

    fn await_circuit(&self, events: &Receiver<Event>, patience: Duration) -> Result<(), ConnectError> {
        let deadline = Instant::now() + patience;
        loop {
            match events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Event::Connected) => return Ok(()),
                Ok(Event::Failed(failure)) => return Err(ConnectError::Failed(failure)),
                Ok(Event::Lost) => return Err(ConnectError::Failed(Failure::Protocol)),
                Ok(Event::Mtu(_)) => {}
                Err(_) => return Err(ConnectError::TimedOut(patience)),
            }
        }
    }

    /// What was carried so far.
    pub fn counts(&self) -> Counts {
        let mut counts = self.own_counts();
        if let Some(refresher) = &self.refresher {
            counts.add(&refresher.carried());
        }
        counts
    }

    /// What is known of the directory now; `None` where it is no chain's, and is read at `up` alone.
    pub fn refreshed(&self) -> Option<Refreshed> {
        self.refresher.as_ref().map(Refresher::known)
    }

    fn own_counts(&self) -> Counts {
        let (sender, receiver) = mpsc::sync_channel(1);
        if self.commands.send(Command::Report(sender)).is_ok() {
            self.bell.wake();
            if let Ok(counts) = receiver.recv_timeout(Duration::from_secs(1)) {
                return counts;
            }
        }
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).counts.clone()
    }

    /// Largest inner packet that the path carries.
    pub fn mtu(&self) -> u16 {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).mtu
    }

    /// Whether the circuit was lost. Traffic stays blocked until `down`.
    pub fn is_lost(&self) -> bool {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).lost
    }

    /// Replaces all keys of the circuit now.
    pub fn rekey(&self) {
        let _ = self.commands.send(Command::Rekey);
        self.bell.wake();
    }

    /// Ends the circuit and gives routes, names and firewall back as they were.
    ///
    /// # Errors
    /// What could not be given back; the rest was.
    pub fn close(mut self) -> Result<Counts, HostError> {
        if let (true, Some(reading)) = (self.is_lost(), &self.reading) {
            crate::chain::doubt_reading(reading);
        }
        let counts = self.stop_thread();
        match self.host.take() {
            Some(host) => host.give_back().map(|()| counts),
            None => Ok(counts),
        }
    }

    fn stop_thread(&mut self) -> Counts {
        let aside = self.refresher.take().map(|mut refresher| {
            refresher.stop();
            refresher.carried()
        });
        let (sender, receiver) = mpsc::sync_channel(1);
        let _ = self.commands.send(Command::Stop(sender));
        self.bell.wake();
        let mut counts = receiver.recv_timeout(Duration::from_secs(5)).unwrap_or_default();
        if let Some(aside) = aside {
            counts.add(&aside);
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        counts
    }
}

impl Drop for Connection {
    /// A connection that did not come up gives everything back.
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop_thread();
        }
        if let Some(host) = self.host.take() {
            let _ = host.give_back();
        }
    }
}

/// Reads the configuration, verifies the directory, chooses the hops. Changes nothing.
fn choose(path: &Path, options: &Options) -> Result<Plan, ConnectError> {
    let file: ClientFile = read(path)?;
    check_device(path, &file.device)?;
    let origin = file.origin(path)?;
    let (directory, memory, forgetful) = match read_lately(&origin, &options.folders.state) {
        Some((directory, memory)) => (directory, memory, None),
        None => look_up(&origin, &options.folders.state)?,
    };
    let wish = Wish {
        ingress: file.ingress,
        egress: file.egress,
        sticky_ingress: memory.ingress(),
        families: reachable_families(directory.directory())?,
    };
    let mut random = OsRandom::default();
    let mut below = below(&mut random);
    let register = |record: &Record| {
        directory
            .register(record)
            .ok_or(ConnectError::Selection(SelectionError::NotThere(record.relay_id, record.role)))
    };
    // A relay that the configuration names is a fault of that line.
    let named = |error: SelectionError| -> ConnectError {
        match error {
            SelectionError::NotThere(id, role) if [wish.ingress, wish.egress].contains(&Some(id)) => {
                let key = if role == Role::Egress { "egress" } else { "ingress" };
                key_fault(path, key, format!("relay {id} is not in the directory as {role}")).into()
            }
            SelectionError::NotThere(..) | SelectionError::None(_) | SelectionError::Conflict => error.into(),
        }
    };
    let (hops, ingress, egress) = if options.one_hop {
        let egress = selection::one_hop(directory.directory(), &wish, &mut below).map_err(named)?;
        (Hops::One(register(egress)?), None, egress)
    } else {
        let (ingress, egress) = selection::circuit(directory.directory(), &wish, &mut below).map_err(named)?;
        (Hops::Two(register(ingress)?, register(egress)?), Some(ingress), egress)
    };
    let chosen = ingress.into_iter().chain([egress]).cloned().collect();
    let (ingress, egress) = (ingress.map(|ingress| ingress.relay_id), egress.relay_id);
    let consent = OpenConsent::from_config(file.admission)
        .ok_or_else(|| crate::config::fault(path, "admission must be named"))?;
    let chain = match origin {
        Origin::Chain(chain) => Some(*chain),
        Origin::Signed { .. } => None,
    };
    Ok(Plan { file, directory, hops, consent, ingress, egress, chosen, chain, memory, warning: forgetful })
}

/// Numbers below a limit, for drawing hops.
fn below(random: &mut OsRandom) -> impl FnMut(u64) -> u64 + '_ {
    |limit| u64::from_le_bytes(array(random)) % limit.max(1)
}

/// The file in the folder `state` in which the last reading of this chain is kept.
pub fn kept_of(chain: &ChainFile, state: &Path) -> PathBuf {
    Memory::of(state, &chain.trust().network_id()).reading
}

/// The directory that the configuration `path` names, as it is proven now, with what is remembered in the folder `state`; also a warning.
///
/// # Errors
/// [`ConnectError`] says why there is none.
pub fn directory_of(path: &Path, state: &Path) -> Result<(VerifiedDirectory, Option<String>), ConnectError> {
    let file: ClientFile = read(path)?;
    let origin = file.origin(path)?;
    look_up(&origin, state).map(|(directory, _, warning)| (directory, warning))
}

/// The directory of a chain, if it was read just now.
fn read_lately(origin: &Origin, state: &Path) -> Option<(VerifiedDirectory, Memory)> {
    let Origin::Chain(chain) = origin else { return None };
    let memory = Memory::of(state, &chain.trust().network_id());
    Some((crate::chain::read_lately(chain, &memory.reading)?, memory))
}

fn look_up(origin: &Origin, state: &Path) -> Result<(VerifiedDirectory, Memory, Option<String>), ConnectError> {
    match origin {
        Origin::Signed { path, trusted } => {
            let memory = Memory::of(state, trusted);
            let (directory, warning) = VerifiedDirectory::read_newest(path, *trusted, &memory.sequence)?;
            Ok((directory, memory, warning))
        }
        Origin::Chain(chain) => {
            let memory = Memory::of(state, &chain.trust().network_id());
            let (directory, warning) = crate::chain::directory(&Outside, chain, &memory.reading, 0)?;
            Ok((directory, memory, warning))
        }
    }
}

/// The families in which this host has a route to some relay.
fn reachable_families(directory: &Directory) -> Result<Families, HostError> {
    let mut netlink = Netlink::open().map_err(HostError::at("talk to the kernel's routing"))?;
    let mut has = |v6: bool| {
        let mut endpoints = directory.body().relays.iter().filter_map(|relay| relay.endpoint(v6));
        endpoints.any(|endpoint| netlink.route_link(endpoint.ip()).is_ok())
    };
    Ok(Families { v4: has(false), v6: has(true) })
}

/// What the client remembers between connections, of each network by itself: networks are told apart by who signs their directories.
struct Memory {
    /// The file with the highest directory sequence seen.
    sequence: PathBuf,
    /// The file with the ingress of the circuit before.
    ingress: PathBuf,
    /// The file with the last reading of the chain.
    reading: PathBuf,
}

impl Memory {
    fn of(folder: &Path, trusted: &[u8; 32]) -> Self {
        // Where this fails so does writing, which is reported.
        let _ = fs::create_dir_all(folder);
        let network = hex::encode(trusted.first_chunk::<8>().unwrap_or(&[0; 8]));
        Self {
            sequence: folder.join(format!("{network}.seen")),
            ingress: folder.join(format!("{network}.ingress")),
            reading: folder.join(format!("{network}.reading")),
        }
    }

    /// A host where this cannot be read, or kept, takes a new ingress each time.
    fn ingress(&self) -> Option<u64> {
        fs::read_to_string(&self.ingress).ok()?.trim().parse().ok()
    }

    fn keep(&self, ingress: u64) {
        let _ = fs::write(&self.ingress, format!("{ingress}\n"));
    }
}
