//! A running relay: threads around the protocol's shards and handshaker.
//!
//! Owns which thread does what. One thread per shard moves packets, and one does handshakes. There are no other
//! threads. [`Relay::prepare`] opens sockets and devices
//! before privileges are dropped; [`Prepared::start`] starts the threads afterwards.

mod command;
mod egress;
mod error;
mod flows;
mod fragments;
mod handshakes;
mod listen;
mod rate;
mod ring;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::mpsc::{self, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use openrelay_ledger::record::Role;
use openrelay_proto::drops::Drops;
use openrelay_proto::handshake::Responder;
use openrelay_proto::index::{IndexKey, MAX_SHARDS, Slots};
use openrelay_proto::keys::RelaySecret;
use openrelay_proto::message::Announced;
use openrelay_proto::relay::{
    Admit, Gate, Handshaker, Load, Mirror, Mirrored, OpenAdmission, RelayConfig, Replays, Shard, Shared,
};
use openrelay_sys::event::Waker;
use openrelay_sys::sandbox;
use openrelay_sys::tun::TunQueue;
use openrelay_sys::udp::UdpSocket;

use crate::guard::Guard;
use command::Command;
pub(crate) use command::Report;
pub(crate) use error::StartError;
use flows::Flows;
use handshakes::HandshakeThread;
use openrelay_node::clock::Clock;
use openrelay_node::config::{
    AdmissionMode, ConfigError, RelayFile, beside, check_device, check_listen, fault, key_fault, read, read_secret,
};
use openrelay_node::directory::VerifiedDirectory;
use openrelay_node::random::OsRandom;
use openrelay_node::train::Sockets;
use worker::Worker;

/// The only file that a relay writes, beside its configuration: the highest directory sequence number that it has
/// seen.
pub(crate) const MEMORY: &str = "directory.seen";
/// Maximum number of requests that wait for the handshake thread.
const REQUEST_QUEUE: usize = 1_024;

/// A relay whose sockets and devices are open, and whose threads have not started.
pub(crate) struct Prepared {
    config: Arc<RelayConfig>,
    secret: RelaySecret,
    sockets: Vec<Sockets>,
    queues: Vec<Option<TunQueue>>,
    /// An egress' guard.
    guard: Option<Guard>,
    /// Flows that the clients of one shard may have.
    flows: u32,
    udp_segmentation: bool,
    /// Whether an egress' device takes IPv6.
    v6: bool,
    admission: AdmissionMode,
    capacity: u32,
    listen: (bool, bool),
    /// Warnings for the operator.
    pub(crate) warnings: Vec<String>,
}

/// A running relay.
pub(crate) struct Relay {
    config: Arc<RelayConfig>,
    listen: (bool, bool),
    changed: Arc<Mutex<Option<Arc<RelayConfig>>>>,
    commands: Vec<(Sender<Command>, Arc<Waker>)>,
    workers: Vec<JoinHandle<()>>,
    lost_device: Arc<Waker>,
    guard: Option<Guard>,
    handshakes: Option<(HandshakeStop, JoinHandle<()>)>,
    /// Packets that the handshake thread refused.
    refused: Arc<Mutex<Drops>>,
}

struct HandshakeStop {
    stop: Arc<std::sync::atomic::AtomicBool>,
    bell: Arc<Waker>,
}

/// A relay's identity, and what it knows of other relays.
pub(crate) struct Identity {
    directory: VerifiedDirectory,
    secret: RelaySecret,
    mirror: Mirror,
    evidence: Announced,
    warning: Option<String>,
}

impl Identity {
    /// Returns the identity from the files of the configuration `path`: a signed directory and a secret key.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn of_files(path: &Path, directory: &Path, trusted: [u8; 32]) -> Result<Self, ConfigError> {
        let file: RelayFile = read(path)?;
        let memory = beside(path, Path::new(MEMORY));
        let (directory, warning) = VerifiedDirectory::read_newest(directory, trusted, &memory)?;
        let secret = secret_of(path, &file)?;
        Ok(Self { directory, secret, mirror: Mirror::default(), evidence: Announced::open(), warning })
    }

    /// Returns the identity from a key that was made at this start, a directory that lists it, and evidence of what
    /// runs.
    pub(crate) fn of_chain(directory: VerifiedDirectory, secret: RelaySecret, evidence: Announced) -> Self {
        let mut mirror = Mirror::default();
        mirror_reading(&mut mirror, &directory);
        Self { directory, secret, mirror, evidence, warning: None }
    }
}

/// Reads the secret handshake key that the configuration `path` names.
///
/// # Errors
/// [`ConfigError`] if it does not name a key, or if others may read the file.
pub(crate) fn secret_of(path: &Path, file: &RelayFile) -> Result<RelaySecret, ConfigError> {
    let key = file.handshake_key.as_ref();
    let key = key.ok_or_else(|| fault(path, "`handshake_key` must name the file with the key"))?;
    Ok(RelaySecret::from_bytes(*read_secret(&beside(path, key))?))
}

/// Makes the relay mirror the files that a directory was read from.
fn mirror_reading(mirror: &mut Mirror, directory: &VerifiedDirectory) {
    if let Some(reading) = directory.reading() {
        mirror.records = Mirrored::new(reading.records.clone());
        mirror.attestation = Mirrored::new(reading.attestation.clone());
    }
}

impl Relay {
    /// Opens the sockets of the configuration `path`, and at an egress the device and the firewall.
    ///
    /// # Errors
    /// [`StartError`] gives the cause and the remedy.
    pub(crate) fn prepare(path: &Path, identity: Identity) -> Result<Prepared, StartError> {
        let file: RelayFile = read(path)?;
        check_values(path, &file)?;
        let Identity { directory, secret, mirror, evidence, warning: forgetful } = identity;
        let own = check_record(path, &file, &directory, &secret)?;
        let host = listen::addresses();
        let listed = directory.directory().relay(file.relay_id).map(|record| &record.endpoints[..]);
        let resolve = |address: &SocketAddr| listen::resolve(*address, listed.unwrap_or_default(), &host);
        let addresses: Result<Vec<SocketAddr>, String> = file.listen.iter().map(resolve).collect();
        let addresses = addresses.map_err(|why| key_fault(path, "listen", why))?;
        let v4 = file.listen.iter().any(SocketAddr::is_ipv4);
        let v6 = file.listen.iter().any(SocketAddr::is_ipv6);
        let config = Arc::new(RelayConfig {
            own,
            peers: directory.peers(file.role, v4, v6),
            suites: openrelay_node::suites(),
            one_hop: file.one_hop && file.role == Role::Egress,
            capacity: file.capacity,
            evidence,
            mirror,
        });
        let shards = shard_count(file.shards);
        let mut prepared = Prepared {
            secret,
            sockets: bind(&addresses, &config, shards)?,
            queues: Vec::new(),
            guard: None,
            flows: 0,
            udp_segmentation: false,
            v6: false,
            admission: file.admission,
            capacity: file.capacity,
            listen: (v4, v6),
            warnings: addresses.iter().filter_map(|at| listen::missing(*at, &host)).chain(forgetful).collect(),
            config,
        };
        if !file.udp_trains {
            prepared.sockets.iter().flat_map(|set| &set.all).for_each(UdpSocket::without_trains);
        }
        if file.role == Role::Egress {
            egress::prepare(&mut prepared, &file.device, &directory, shards, other_user(file.user))?;
        }
        Ok(prepared)
    }
}

/// Checks the values in the configuration `path` that need no other file.
///
/// # Errors
/// [`ConfigError`] with file, line and key.
pub(crate) fn check_values(path: &Path, file: &RelayFile) -> Result<(), ConfigError> {
    check_listen(path, &file.listen)?;
    check_device(path, &file.device)?;
    if file.user == 0 {
        return Err(key_fault(path, "user", "must not be 0: use an unprivileged user, such as 65534"));
    }
    Ok(())
}

/// Checks that the directory lists the relay of the configuration `path` with its role and key. Returns its identity
/// in handshakes.
///
/// # Errors
/// [`ConfigError`] with file, line and key.
pub(crate) fn check_record(
    path: &Path,
    file: &RelayFile,
    directory: &VerifiedDirectory,
    secret: &RelaySecret,
) -> Result<Responder, ConfigError> {
    let record = directory
        .directory()
        .relay(file.relay_id)
        .ok_or_else(|| key_fault(path, "relay_id", format!("{} is not in the directory", file.relay_id)))?;
    if record.role != file.role {
        return Err(key_fault(path, "role", format!("is {}, but the directory says {}", file.role, record.role)));
    }
    if record.key() != Some(*secret.public().as_bytes()) {
        return Err(fault(path, "the relay's handshake key differs from the one in the directory"));
    }
    directory.responder(record).ok_or_else(|| fault(path, "the relay's record is malformed"))
}

/// Returns the user to become, if this process is root and has other users.
pub(crate) fn other_user(user: u32) -> Option<u32> {
    (sandbox::user() == 0 && !sandbox::only_own_user()).then_some(user)
}

/// Opens one set of sockets for each shard.
fn bind(listen: &[SocketAddr], config: &RelayConfig, shards: u8) -> Result<Vec<Sockets>, StartError> {
    let one = |address: SocketAddr, shared| {
        UdpSocket::bind(address, shared).map_err(StartError::host(format!("listen on {address} (UDP)")))
    };
    for address in listen {
        // Fails if another process has the port. Shards share it with each other only: a second relay would get a
        // part of the first one's datagrams.
        drop(one(*address, false)?);
    }
    let set = |_| {
        let mut sockets = Sockets { listening: listen.len(), ..Sockets::default() };
        for address in listen {
            sockets.all.push(one(*address, true)?);
        }
        if config.is_ingress() {
            for address in listen {
                sockets.all.push(one(SocketAddr::new(address.ip(), 0), false)?);
            }
            sockets.relays = config.peers.values().map(|peer| peer.address).collect();
        }
        Ok(sockets)
    };
    (0..shards).map(set).collect()
}

fn shard_count(asked: u8) -> u8 {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let count = if asked == 0 { u8::try_from(cores).unwrap_or(MAX_SHARDS) } else { asked };
    count.clamp(1, MAX_SHARDS)
}

impl Prepared {
    /// Returns the number of shards.
    pub(crate) fn shards(&self) -> usize {
        self.sockets.len()
    }

    /// Returns the name of the admission in force.
    pub(crate) fn admission(&self) -> &'static str {
        match self.admission {
            AdmissionMode::Open => OpenAdmission.name(),
        }
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// [`StartError`] if the process has no file descriptors or threads left.
    pub(crate) fn start(self) -> Result<Relay, StartError> {
        let clock = Clock::start();
        let mut random = OsRandom::default();
        let shards = self.sockets.len();
        let index_key = IndexKey::new(&mut random);
        let load = Arc::new(Load::default());
        let gate = Gate::new(self.config.own.key, load, &mut random);
        let numbers = 0..u8::try_from(shards).unwrap_or(MAX_SHARDS);
        let slots: Vec<_> = numbers.clone().map(|n| Arc::new(Mutex::new(Slots::new(n, self.capacity)))).collect();
        let bells = new_bells(shards + 1)?;
        let lost_device = Arc::new(Waker::new().map_err(StartError::host("create an event descriptor"))?);
        let (requests, request_queue) = mpsc::sync_channel(REQUEST_QUEUE);
        let handshake_bell = bells.last().cloned().unwrap_or_else(|| bells[0].clone());
        let mut rings = ring::mesh(shards);
        let (mut commands, mut workers) = (Vec::new(), Vec::new());
        let devices = self.queues.into_iter().chain(std::iter::repeat_with(|| None));
        for ((number, sockets), queue) in numbers.zip(self.sockets).zip(devices) {
            let (sender, receiver) = mpsc::channel();
            let at = usize::from(number);
            let shared = Shared { index_key: index_key.clone(), slots: slots[at].clone(), gate: gate.clone() };
            let admit = match self.admission {
                AdmissionMode::Open => Box::new(OpenAdmission),
            };
            let shard = Shard::new(number, self.config.clone(), shared, admit, clock.now());
            let (outgoing, incoming) = std::mem::take(&mut rings[at]);
            let worker = Worker::new(
                shard,
                worker::Io {
                    sockets,
                    flows: queue.is_some().then(|| Flows::new(number, self.flows)),
                    queue,
                    udp_segmentation: self.udp_segmentation,
                    v6: self.v6,
                },
                worker::Links {
                    requests: requests.clone(),
                    handshake_bell: handshake_bell.clone(),
                    gate: gate.clone(),
                    commands: receiver,
                    bell: bells[at].clone(),
                    bells: bells[..shards].to_vec(),
                    outgoing,
                    incoming,
                    guard: self.guard.clone(),
                    lost_device: lost_device.clone(),
                },
                clock,
            );
            workers.push(spawn(format!("shard-{number}"), move || worker.run())?);
            commands.push((sender, bells[at].clone()));
        }
        let replays = Replays::new(clock.now(), &mut random);
        let handshaker = Handshaker::new(self.config.clone(), self.secret, index_key, slots, gate.clone(), replays);
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let refused = Arc::new(Mutex::new(Drops::default()));
        let changed = Arc::new(Mutex::new(None));
        let thread = HandshakeThread {
            handshaker,
            gate,
            requests: request_queue,
            commands: commands.clone(),
            bell: handshake_bell.clone(),
            stop: stop.clone(),
            refused: refused.clone(),
            changed: changed.clone(),
            clock,
        };
        let handle = spawn("handshakes".into(), move || thread.run())?;
        let handshakes = Some((HandshakeStop { stop, bell: handshake_bell }, handle));
        let (config, listen, guard) = (self.config, self.listen, self.guard);
        Ok(Relay { config, listen, changed, commands, workers, lost_device, guard, handshakes, refused })
    }
}

fn new_bells(count: usize) -> Result<Vec<Arc<Waker>>, StartError> {
    let bells: io::Result<Vec<_>> = (0..count).map(|_| Waker::new().map(Arc::new)).collect();
    bells.map_err(StartError::host("create an event descriptor"))
}

fn spawn<T: Send + 'static>(
    name: String,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, StartError> {
    let step = format!("start the thread {name}");
    std::thread::Builder::new().name(name).spawn(run).map_err(StartError::host(step))
}

impl Relay {
    /// Returns a descriptor that becomes readable when somebody removes the tunnel device. The relay carries nothing
    /// then.
    pub(crate) fn lost_device(&self) -> BorrowedFd<'_> {
        self.lost_device.as_fd()
    }

    /// Returns a descriptor that becomes readable when the firewall is gone; `None` at an ingress.
    pub(crate) fn lost_firewall(&self) -> Option<BorrowedFd<'_>> {
        self.guard.as_ref().map(Guard::ended)
    }

    /// Returns what the relay has counted so far.
    pub(crate) fn report(&self) -> Report {
        let mut report = self.ask(Command::Report);
        self.count_refused(&mut report);
        report
    }

    /// Makes the relay use the peers of this directory, and mirror the files that it was read from. Returns false if
    /// the directory does not list this relay with its current key; then only the mirrored files change.
    pub(crate) fn update(&mut self, directory: &VerifiedDirectory) -> bool {
        let mut config = RelayConfig::clone(&self.config);
        mirror_reading(&mut config.mirror, directory);
        let own = directory.directory().relay(self.config.own.relay.0).and_then(|record| directory.responder(record));
        // The key epoch is part of the handshake too.
        let named = own.is_some_and(|own| (own.key, own.key_epoch) == (config.own.key, config.own.key_epoch));
        if named {
            let role = if config.is_ingress() { Role::Ingress } else { Role::Egress };
            config.peers = directory.peers(role, self.listen.0, self.listen.1).remembering(&config.peers);
        }
        self.use_config(config);
        named
    }

    /// Makes the relay announce and show this evidence.
    pub(crate) fn show(&mut self, evidence: Announced) {
        let mut config = RelayConfig::clone(&self.config);
        config.evidence = evidence;
        self.use_config(config);
    }

    /// Makes the relay mirror this signed checkpoint.
    pub(crate) fn mirror_checkpoint(&mut self, file: Vec<u8>) {
        let mut config = RelayConfig::clone(&self.config);
        config.mirror.checkpoint = Mirrored::new(file);
        self.use_config(config);
    }

    fn use_config(&mut self, config: RelayConfig) {
        self.config = Arc::new(config);
        *self.changed.lock().unwrap_or_else(PoisonError::into_inner) = Some(self.config.clone());
        if let Some((handshakes, _)) = &self.handshakes {
            handshakes.bell.wake();
        }
        for (commands, bell) in &self.commands {
            let _ = commands.send(Command::Config(self.config.clone()));
            bell.wake();
        }
    }

    /// Adds the number of peers, and moves what the handshake thread refused from the handshakes to the drops.
    fn count_refused(&self, report: &mut Report) {
        report.peers = self.config.peers.len() as u64;
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        report.counts.handshakes -= refused.total().min(report.counts.handshakes);
        report.counts.drops.add(&refused);
    }

    fn ask(&self, command: impl Fn(SyncSender<Report>) -> Command) -> Report {
        let (sender, receiver) = mpsc::sync_channel(self.commands.len().max(1));
        for (commands, bell) in &self.commands {
            let _ = commands.send(command(sender.clone()));
            bell.wake();
        }
        drop(sender);
        let mut total = Report::default();
        for report in receiver {
            total.add(&report);
        }
        total
    }

    /// Ends all sessions, stops all threads, and returns the final counts.
    pub(crate) fn stop(mut self) -> Report {
        let mut report = self.ask(Command::Stop);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
        if let Some((stop, handle)) = self.handshakes.take() {
            stop.stop.store(true, std::sync::atomic::Ordering::Relaxed);
            stop.bell.wake();
            let _ = handle.join();
        }
        self.count_refused(&mut report);
        report
    }
}
