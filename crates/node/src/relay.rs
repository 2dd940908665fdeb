//! A running relay: threads around the protocol's shards and handshaker.
//!
//! Owns which thread does what. One thread per shard moves packets, one does handshakes, at an egress one forgets connections of ended sessions; nothing
//! else runs. Opening
//! sockets and devices ([`Relay::prepare`]) comes before privileges are dropped, starting threads ([`Prepared::start`]) after.

mod egress;
mod handshakes;
mod ring;
mod worker;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use openrelay_ledger::record::Role;
use openrelay_proto::drops::Drops;
use openrelay_proto::index::{IndexKey, MAX_SHARDS, Slots};
use openrelay_proto::keys::RelaySecret;
use openrelay_proto::message::Announced;
use openrelay_proto::relay::{
    Admit, Gate, Handshaker, Load, Mirror, Mirrored, OpenAdmission, Output, RelayConfig, Replays, Shard, ShardCounts,
    Shared,
};
use openrelay_sys::conntrack::Conntrack;
use openrelay_sys::event::Waker;
use openrelay_sys::tun::TunQueue;
use openrelay_sys::udp::UdpSocket;

use crate::clock::Clock;
use crate::config::{
    AdmissionMode, ConfigError, RelayFile, beside, check_device, check_listen, fault, key_fault, read, read_secret,
};
use crate::directory::VerifiedDirectory;
use crate::random::OsRandom;
use crate::train::Sockets;
use handshakes::HandshakeThread;
use worker::Worker;

/// Where a relay remembers, beside its configuration, the highest directory sequence that it has seen: the one thing that it writes.
const MEMORY: &str = "directory.seen";
/// Requests that wait for the handshake thread at most.
const REQUEST_QUEUE: usize = 1_024;
/// Addresses whose connections wait to be forgotten at most.
const FREED_QUEUE: usize = 256;
/// Pause after each: the kernel walks its whole table for it.
const FORGET_EVERY: Duration = Duration::from_millis(10);

/// Why a relay does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its configuration or a file that it names.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// Something that this host refuses.
    #[error("cannot {step}: {source}")]
    Host {
        /// What was tried.
        step: String,
        /// Why not.
        source: io::Error,
    },
    /// The firewall.
    #[error(transparent)]
    Firewall(#[from] openrelay_sys::nft::NftError),
}

impl StartError {
    fn host(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |source| Self::Host { step, source }
    }

    /// Whether the process lacks a privilege.
    pub fn is_privilege(&self) -> bool {
        matches!(self, Self::Host { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether a tool is missing.
    pub fn is_missing_tool(&self) -> bool {
        matches!(self, Self::Firewall(openrelay_sys::nft::NftError::Missing))
    }
}

/// A relay with its sockets and devices open and nothing running.
pub struct Prepared {
    config: Arc<RelayConfig>,
    secret: RelaySecret,
    sockets: Vec<Sockets>,
    queues: Vec<Option<TunQueue>>,
    conntrack: Option<Conntrack>,
    udp_segmentation: bool,
    admission: AdmissionMode,
    capacity: u32,
    listen: (bool, bool),
    /// What the operator should know.
    pub warnings: Vec<String>,
}

/// A relay at work.
pub struct Relay {
    config: Arc<RelayConfig>,
    listen: (bool, bool),
    changed: Arc<Mutex<Option<Arc<RelayConfig>>>>,
    commands: Vec<(Sender<Command>, Arc<Waker>)>,
    workers: Vec<JoinHandle<()>>,
    lost_device: Arc<Waker>,
    handshakes: Option<(HandshakeStop, JoinHandle<()>)>,
    /// What the handshake thread refused.
    refused: Arc<Mutex<Drops>>,
}

/// The inner addresses of a session that ended.
pub(crate) type Freed = (Ipv4Addr, Ipv6Addr);

struct HandshakeStop {
    stop: Arc<std::sync::atomic::AtomicBool>,
    bell: Arc<Waker>,
}

/// What the other threads tell a shard's thread.
pub(crate) enum Command {
    /// Something from the handshake thread.
    Output(Output),
    /// The relay knows of others than before.
    Config(Arc<RelayConfig>),
    /// Say what you counted.
    Report(SyncSender<Report>),
    /// End all sessions and stop.
    Stop(SyncSender<Report>),
}

/// What a relay counted: the declared statistics, and nothing about anybody.
#[derive(Clone, Default, Debug)]
pub struct Report {
    /// What its shards counted, and what the handshake thread refused, among the drops.
    pub counts: ShardCounts,
    /// Datagrams that the kernel took.
    pub sent: u64,
    /// Datagrams that shards made of their own accord: control and handshake packets.
    pub originated: u64,
    /// Packets read from the tunnel device, after they were cut.
    pub device_read: u64,
    /// Packets that the tunnel device took, before they were joined.
    pub device_written: u64,
    /// Datagrams that the kernel dropped because a receive buffer was full.
    pub overflows: u64,
    /// Sessions held.
    pub sessions: u64,
    /// Circuits held.
    pub circuits: u64,
    /// Relays of the other role that the directory names.
    pub peers: u64,
}

impl Report {
    fn add(&mut self, other: &Self) {
        self.counts.received += other.counts.received;
        self.counts.forwarded += other.counts.forwarded;
        self.counts.delivered += other.counts.delivered;
        self.counts.control += other.counts.control;
        self.counts.handshakes += other.counts.handshakes;
        self.counts.passed += other.counts.passed;
        self.counts.drops.add(&other.counts.drops);
        self.sent += other.sent;
        self.originated += other.originated;
        self.device_read += other.device_read;
        self.device_written += other.device_written;
        self.overflows += other.overflows;
        self.sessions += other.sessions;
        self.circuits += other.circuits;
    }
}

/// Who a relay is, and what it knows of others.
pub struct Identity {
    directory: VerifiedDirectory,
    secret: RelaySecret,
    mirror: Mirror,
    evidence: Announced,
    warning: Option<String>,
}

impl Identity {
    /// What the files of the configuration `path` say: a signed directory and a secret key.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn of_files(path: &Path, directory: &Path, trusted: [u8; 32]) -> Result<Self, ConfigError> {
        let file: RelayFile = read(path)?;
        let memory = beside(path, Path::new(MEMORY));
        let (directory, warning) = VerifiedDirectory::read_newest(directory, trusted, &memory)?;
        let key = file.handshake_key.ok_or_else(|| fault(path, "handshake_key must be there: a file with the key"))?;
        let secret = RelaySecret::from_bytes(*read_secret(&beside(path, &key))?);
        Ok(Self { directory, secret, mirror: Mirror::default(), evidence: Announced::open(), warning })
    }

    /// A key that was made at this start, a directory that names it, and evidence of what runs.
    pub fn of_chain(directory: VerifiedDirectory, secret: RelaySecret, evidence: Announced) -> Self {
        let mut mirror = Mirror::default();
        mirror_reading(&mut mirror, &directory);
        Self { directory, secret, mirror, evidence, warning: None }
    }
}

/// What a directory was read from is mirrored.
fn mirror_reading(mirror: &mut Mirror, directory: &VerifiedDirectory) {
    if let Some(reading) = directory.reading() {
        mirror.records = Mirrored::new(reading.records.clone());
        mirror.attestation = Mirrored::new(reading.attestation.clone());
    }
}

impl Relay {
    /// Opens what the configuration `path` asks for: sockets, and for an egress device and firewall.
    ///
    /// # Errors
    /// [`StartError`] says what is wrong and what would be right.
    pub fn prepare(path: &Path, identity: Identity) -> Result<Prepared, StartError> {
        let file: RelayFile = read(path)?;
        check_listen(path, &file.listen)?;
        check_device(path, &file.device)?;
        if file.user == 0 {
            return Err(
                key_fault(path, "user", "must not be 0: a relay serves as a user of its own, like 65534").into()
            );
        }
        let Identity { directory, secret, mirror, evidence, warning: forgetful } = identity;
        let record = directory
            .directory()
            .relay(file.relay_id)
            .ok_or_else(|| key_fault(path, "relay_id", format!("{} is not in the directory", file.relay_id)))?;
        if record.role != file.role {
            return Err(
                key_fault(path, "role", format!("is {}, but the directory says {}", file.role, record.role)).into()
            );
        }
        if record.key() != Some(*secret.public().as_bytes()) {
            return Err(fault(path, "the relay's handshake key is not the one that the directory names for it").into());
        }
        let own = directory.responder(record).ok_or_else(|| fault(path, "the directory's record does not read"))?;
        let v4 = file.listen.iter().any(SocketAddr::is_ipv4);
        let v6 = file.listen.iter().any(SocketAddr::is_ipv6);
        let config = Arc::new(RelayConfig {
            own,
            peers: directory.peers(file.role, v4, v6),
            suites: crate::suites(),
            one_hop: file.one_hop && file.role == Role::Egress,
            capacity: file.capacity,
            evidence,
            mirror,
        });
        let shards = shard_count(file.shards);
        let mut prepared = Prepared {
            secret,
            sockets: bind(&file.listen, &config, shards)?,
            queues: Vec::new(),
            conntrack: None,
            udp_segmentation: false,
            admission: file.admission,
            capacity: file.capacity,
            listen: (v4, v6),
            warnings: forgetful.into_iter().collect(),
            config,
        };
        if !file.udp_trains {
            prepared.sockets.iter().flat_map(|set| &set.all).for_each(UdpSocket::without_trains);
        }
        if file.role == Role::Egress {
            egress::prepare(&mut prepared, &file.device, &directory, shards)?;
        }
        Ok(prepared)
    }
}

/// One set of sockets for each shard.
fn bind(listen: &[SocketAddr], config: &RelayConfig, shards: u8) -> Result<Vec<Sockets>, StartError> {
    let one = |address: SocketAddr, shared| {
        UdpSocket::bind(address, shared).map_err(StartError::host(format!("listen on {address} (UDP)")))
    };
    for address in listen {
        // Shards share their port with each other and with nobody else: a second relay would get a part of the first one's datagrams.
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
    /// How many shards there will be.
    pub fn shards(&self) -> usize {
        self.sockets.len()
    }

    /// The admission in force, by name.
    pub fn admission(&self) -> &'static str {
        match self.admission {
            AdmissionMode::Open => OpenAdmission.name(),
        }
    }

    /// Starts the threads.
    ///
    /// # Errors
    /// [`StartError`] when the process has no file descriptors or threads left.
    pub fn start(self) -> Result<Relay, StartError> {
        let clock = Clock::start();
        let mut random = OsRandom::default();
        let shards = self.sockets.len();
        let index_key = IndexKey::new(&mut random);
        let load = Arc::new(Load::default());
        let gate = Gate::new(self.config.own.key, load, &mut random);
        let numbers = 0..u8::try_from(shards).unwrap_or(MAX_SHARDS);
        let slots: Vec<_> = numbers.clone().map(|n| Arc::new(Mutex::new(Slots::new(n, self.capacity)))).collect();
        let bells = new_bells(shards + 1)?;
        let lost_device = Arc::new(Waker::new().map_err(StartError::host("make an event descriptor"))?);
        let (requests, request_queue) = mpsc::sync_channel(REQUEST_QUEUE);
        let handshake_bell = bells.last().cloned().unwrap_or_else(|| bells[0].clone());
        let mut rings = ring::mesh(shards);
        let (mut commands, mut workers) = (Vec::new(), Vec::new());
        let devices = self.queues.into_iter().chain(std::iter::repeat_with(|| None));
        let freed = match self.conntrack {
            Some(conntrack) => {
                let (sender, receiver) = mpsc::sync_channel(FREED_QUEUE);
                // It ends when the shards are gone; nobody waits for that.
                spawn("conntrack".into(), move || forget(&conntrack, &receiver))?;
                Some(sender)
            }
            None => None,
        };
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
                worker::Io { sockets, queue, udp_segmentation: self.udp_segmentation },
                worker::Links {
                    requests: requests.clone(),
                    handshake_bell: handshake_bell.clone(),
                    gate: gate.clone(),
                    commands: receiver,
                    bell: bells[at].clone(),
                    bells: bells[..shards].to_vec(),
                    outgoing,
                    incoming,
                    freed: freed.clone(),
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
        let (config, listen) = (self.config, self.listen);
        Ok(Relay { config, listen, changed, commands, workers, lost_device, handshakes, refused })
    }
}

/// Lets the kernel forget the connections of sessions that ended, on a thread of its own and not many a second: each walks the whole table.
fn forget(conntrack: &Conntrack, freed: &Receiver<Freed>) {
    for (v4, v6) in freed {
        // What cannot be forgotten rests for five minutes all the same.
        let _ = conntrack.forget(v4.into());
        let _ = conntrack.forget(v6.into());
        std::thread::sleep(FORGET_EVERY);
    }
}

fn new_bells(count: usize) -> Result<Vec<Arc<Waker>>, StartError> {
    let bells: io::Result<Vec<_>> = (0..count).map(|_| Waker::new().map(Arc::new)).collect();
    bells.map_err(StartError::host("make an event descriptor"))
}

fn spawn<T: Send + 'static>(
    name: String,
    run: impl FnOnce() -> T + Send + 'static,
) -> Result<JoinHandle<T>, StartError> {
    let step = format!("start the thread {name}");
    std::thread::Builder::new().name(name).spawn(run).map_err(StartError::host(step))
}

impl Relay {
    /// Becomes readable when the tunnel device is gone: somebody has removed it, and nothing can be carried any more.
    pub fn lost_device(&self) -> BorrowedFd<'_> {
        self.lost_device.as_fd()
    }

    /// What the relay has counted so far.
    pub fn report(&self) -> Report {
        let mut report = self.ask(Command::Report);
        self.count_refused(&mut report);
        report
    }

    /// From now on the relay knows of the others that this directory names, and mirrors what it was read from; false when it names this relay no more, or with another key, and
    /// only what it mirrors has changed.
    pub fn update(&mut self, directory: &VerifiedDirectory) -> bool {
        let mut config = RelayConfig::clone(&self.config);
        mirror_reading(&mut config.mirror, directory);
        let own = directory.directory().relay(self.config.own.relay.0).and_then(|record| directory.responder(record));
        // The epoch is in the handshake too.
        let named = own.is_some_and(|own| (own.key, own.key_epoch) == (config.own.key, config.own.key_epoch));
        if named {
            let role = if config.is_ingress() { Role::Ingress } else { Role::Egress };
            config.peers = directory.peers(role, self.listen.0, self.listen.1);
        }
        self.use_config(config);
        named
    }

    /// From now on the relay announces and shows this evidence.
    pub fn show(&mut self, evidence: Announced) {
        let mut config = RelayConfig::clone(&self.config);
        config.evidence = evidence;
        self.use_config(config);
    }

    /// From now on the relay mirrors this signed checkpoint.
    pub fn mirror_checkpoint(&mut self, file: Vec<u8>) {
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

    /// Packets that were handed over as handshakes, and refused: they are of that number.
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

    /// Ends all sessions, stops all threads, and returns the final count.
    pub fn stop(mut self) -> Report {
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
