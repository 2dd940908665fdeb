//! A running client: one thread between the tunnel device and the circuit.
//!
//! Owns the order of connecting: firewall, socket, device, circuit, routes, DNS. Disconnecting restores all of them
//! in reverse. [`Pump::handle_device`] is the packet path up, [`Pump::handle_train`] the packet path down.

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

use openrelay_attest::Refusal;
use openrelay_attest::verdict::Verdict;
use openrelay_ledger::directory::{Directory, Source};
use openrelay_ledger::hex;
use openrelay_ledger::record::{Record, Role};
use openrelay_ledger::selection::{self, Families, SelectionError, Wish};
use openrelay_proto::client::{Event, Failure};
use openrelay_proto::handshake::Role as ProtoRole;
use openrelay_proto::random::array;
use openrelay_sys::event::Waker;
use openrelay_sys::net::Netlink;
use openrelay_sys::tun::Tun;
use openrelay_sys::udp::UdpSocket;

use crate::attestation::JudgedRelays;
use crate::chain::{ChainError, Direct};
use crate::chain_file::ChainFile;
use crate::circuit::{self, Hop, Hops, OpenConsent, OpenError, OwnRelays};
use crate::clock::{Clock, unix_seconds};
use crate::config::{AttestationMode, ClientFile, ConfigError, Origin, check_device, key_fault, read};
use crate::directory::VerifiedDirectory;
use crate::policy::TrustPolicy;
use crate::random::OsRandom;
use host::{Folders, HostError, HostState};
pub use pump::Counts;
use pump::{Command, Pump};
pub use refresh::Refreshed;
use refresh::{Abandon, Reader, Refresher};

/// Why the client is not connected.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The configuration, or a file that it names, is unusable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The chain does not prove a directory.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// No hops can be selected.
    #[error("no circuit: {0}")]
    Selection(#[from] SelectionError),
    /// A circuit cannot be started.
    #[error("no circuit: {0}")]
    Open(#[from] OpenError),
    /// This host refused a change.
    #[error(transparent)]
    Host(#[from] HostError),
    /// No relay was accepted.
    #[error("no circuit: {0}")]
    Untrusted(String),
    /// No mirror delivered evidence, so no relay was judged.
    #[error("no circuit: {0}")]
    Unserved(String),
    /// A relay shows evidence that was not judged beforehand.
    #[error("no circuit: {}", failure_text(Failure::OtherEvidence(*.0)))]
    OtherEvidence(ProtoRole),
    /// The circuit failed.
    #[error("no circuit: {}", failure_text(*.0))]
    Failed(Failure),
    /// The circuit did not open in time.
    #[error("no circuit within {} s", .0.as_secs())]
    TimedOut(Duration),
}

fn failure_text(failure: Failure) -> &'static str {
    match failure {
        Failure::IngressSilent => "the ingress does not answer; check that it runs and that UDP to it is allowed",
        Failure::EgressSilent => "the egress does not answer the ingress; try another egress",
        Failure::Refused(_) => "the ingress refused the circuit; its directory may be older than yours",
        Failure::OtherEvidence(ProtoRole::Ingress) => "the ingress shows unverified evidence; try again soon",
        Failure::OtherEvidence(ProtoRole::Egress) => "the egress shows unverified evidence; try again soon",
        Failure::Full { role: ProtoRole::Ingress, .. } => "the ingress is full; try again in a minute",
        Failure::Full { role: ProtoRole::Egress, .. } => "the egress is full; try another one",
        Failure::Protocol => "a relay violated the protocol; try another relay",
    }
}

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Connect without an ingress.
    pub one_hop: bool,
    /// Where changes to the host are recorded, so that they can be restored.
    pub folders: Folders,
    /// Trust policy, before the policy file of the configuration is applied.
    pub standard: TrustPolicy,
}

/// Status of a connected client.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Relay ID of the ingress; `None` with one hop.
    pub ingress: Option<u64>,
    /// Relay ID of the egress.
    pub egress: u64,
    /// Whether one person runs all relays of the directory.
    pub single_operator: bool,
    /// Name of the network.
    pub network: String,
    /// Sequence number of the directory; on a chain, the block number.
    pub sequence: u64,
    /// What the directory was verified by.
    pub source: Source,
    /// Whether the chain file accepts plain HTTP or a quorum of one.
    pub insecure: bool,
    /// The tunnel device.
    pub device: String,
    /// How the client is admitted.
    pub admission: &'static str,
    /// Verdicts on the relays, the first hop first. Empty if the relays are the user's own and prove nothing.
    pub attested: Vec<AttestedHop>,
    /// Milliseconds from the first datagram to the first packet.
    pub setup_ms: u64,
    /// A warning for the user.
    pub warning: Option<String>,
}

/// The verdict on a hop.
#[derive(Clone, Debug)]
pub struct AttestedHop {
    /// The relay ID.
    pub relay_id: u64,
    /// The verdict.
    pub verdict: Verdict,
    /// The number of the round in which the relay's image was approved.
    pub round: u64,
    /// Addresses of the rebuilders who signed that they reproduced the image.
    pub rebuilt_by: Vec<[u8; 20]>,
}

/// A connected client.
pub struct Connection {
    /// Status of the connection.
    pub facts: Facts,
    commands: Sender<Command>,
    bell: Arc<Waker>,
    thread: Option<JoinHandle<()>>,
    shared: Arc<Mutex<Shared>>,
    /// Refreshes the directory, if a chain proves it.
    refresher: Option<Refresher>,
    /// The file that caches the chain's last reading.
    reading: Option<PathBuf>,
    host: Option<HostState>,
}

/// What the data thread reports to other threads from time to time.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shared {
    pub(crate) counts: Counts,
    pub(crate) mtu: u16,
    pub(crate) lost: bool,
}

/// Everything that is chosen before anything is changed.
struct CircuitPlan {
    file: ClientFile,
    directory: VerifiedDirectory,
    hops: Hops,
    consent: OpenConsent,
    ingress: Option<u64>,
    egress: u64,
    /// The records of the hops, the first hop first.
    chosen: Vec<Record>,
    chain: Option<ChainFile>,
    attested: Vec<AttestedHop>,
    trusted: Option<(JudgedRelays, TrustPolicy)>,
    memory: Memory,
    warning: Option<String>,
}

impl Connection {
    /// Connects with the configuration `path` and waits up to `patience` for the circuit. The firewall is up before
    /// the first datagram leaves. On failure everything is restored.
    ///
    /// # Errors
    /// [`ConnectError`] gives the cause and the remedy.
    pub fn open(path: &Path, options: &Options, patience: Duration) -> Result<Self, ConnectError> {
        match Self::open_once(path, options, patience) {
            // The relay renewed its evidence after mirrors were asked. They are asked again, once, the same way as by
            // every client. The client never asks about the evidence that the relay has just shown. Such a query
            // would depend on what the relay shows, and whoever answers would see it together with this address.
            Err(ConnectError::OtherEvidence(_)) => Self::open_once(path, options, patience),
            other => other,
        }
    }

    fn open_once(path: &Path, options: &Options, patience: Duration) -> Result<Self, ConnectError> {
        let plan = choose(path, options)?;
        let clock = Clock::start();
        let mut random = OsRandom::default();
        let keepalive = Some(Duration::from_secs(plan.file.keepalive_s.into())).filter(|every| !every.is_zero());
        let mut netlink = Netlink::open().map_err(HostError::at("open a netlink socket"))?;
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
        let tun = Tun::create(&plan.file.device, 1).map_err(HostError::at("create the tunnel device"))?;
        let udp_segmentation = tun.udp_segmentation;
        let device = tun.name.clone();
        let mut host = HostState::new(&options.folders, &device, remote)?;
        host.lock_down()?;
        host.configure_device()?;
        let started = Instant::now();
        let (event_sender, events) = mpsc::channel();
        let (commands, command_receiver) = mpsc::channel();
        let bell = Arc::new(Waker::new().map_err(HostError::at("create an event descriptor"))?);
        let shared = Arc::new(Mutex::new(Shared::default()));
        let queue = tun
            .queues
            .into_iter()
            .next()
            .ok_or_else(|| HostError::at("create the tunnel device")(io::ErrorKind::Other.into()))?;
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
                insecure: plan.chain.as_ref().is_some_and(|chain| chain.insecure),
                device,
                admission: "open",
                attested: plan.attested,
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
        if let Some((chain, (judged, standard))) = plan.chain.zip(plan.trusted) {
            let reader = Reader {
                opened_judged: judged.clone(),
                judged,
                standard,
                abandon: Abandon { commands: connection.commands.clone(), bell: connection.bell.clone() },
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
                Ok(Event::Failed(Failure::OtherEvidence(role))) => return Err(ConnectError::OtherEvidence(role)),
                Ok(Event::Failed(failure)) => return Err(ConnectError::Failed(failure)),
                Ok(Event::Lost) => return Err(ConnectError::Failed(Failure::Protocol)),
                Ok(Event::Mtu(_)) => {}
                Err(_) => return Err(ConnectError::TimedOut(patience)),
            }
        }
    }

    /// Returns what was carried so far.
    pub fn counts(&self) -> Counts {
        let mut counts = self.own_counts();
        if let Some(refresher) = &self.refresher {
            counts.add(&refresher.carried());
        }
        counts
    }

    /// Returns the state of the directory. `None` if no chain proves it: such a directory is read at `up` only.
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

    /// Returns the largest inner packet that the path carries, in bytes.
    pub fn mtu(&self) -> u16 {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).mtu
    }

    /// Returns whether the circuit was lost. Traffic stays blocked until `down`.
    pub fn is_lost(&self) -> bool {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).lost
    }

    /// Replaces all keys of the circuit.
    pub fn rekey(&self) {
        let _ = self.commands.send(Command::Rekey);
        self.bell.wake();
    }

    /// Closes the circuit and restores routes, DNS and firewall.
    ///
    /// # Errors
    /// [`HostError`] with the change that could not be restored. The others were restored.
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
    /// Restores the host if [`Connection::close`] was not called, as when the circuit did not open.
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.stop_thread();
        }
        if let Some(host) = self.host.take() {
            let _ = host.give_back();
        }
    }
}

/// Reads the configuration, verifies the directory, judges its relays and chooses the hops. Changes nothing on the
/// host.
fn choose(path: &Path, options: &Options) -> Result<CircuitPlan, ConnectError> {
    let file: ClientFile = read(path)?;
    check_device(path, &file.device)?;
    let origin = file.origin(path)?;
    let (directory, memory, forgetful) = match read_lately(&origin, &options.folders.state) {
        Some((directory, memory)) => (directory, memory, None),
        None => look_up(&origin, &options.folders.state)?,
    };
    let judge = Judge::of(path, &file, &origin, &directory, options)?;
    let usable = judge.usable(&directory);
    let wish = Wish {
        ingress: file.ingress,
        egress: file.egress,
        sticky_ingress: memory.ingress(),
        families: reachable_families(&usable)?,
    };
    let mut random = OsRandom::default();
    let mut below = below(&mut random);
    // If the configuration names a relay that is missing, the error points to that line. If the relay is present but
    // refused, the error gives the reason.
    let named = |error: SelectionError| -> ConnectError {
        if let Some(why) = judge.refused(&directory, &error) {
            return if judge.is_unserved() { ConnectError::Unserved(why) } else { ConnectError::Untrusted(why) };
        }
        match error {
            SelectionError::NotThere(id, role) if [wish.ingress, wish.egress].contains(&Some(id)) => {
                let key = if role == Role::Egress { "egress" } else { "ingress" };
                key_fault(path, key, format!("relay {id} is not in the directory as {role}")).into()
            }
            SelectionError::NotThere(..)
            | SelectionError::None(_)
            | SelectionError::Conflict
            | SelectionError::Missing { .. } => error.into(),
        }
    };
    let (ingress, egress) = if options.one_hop {
        (None, selection::one_hop(&usable, &wish, &mut below).map_err(named)?)
    } else {
        let (ingress, egress) = judge.pair(&usable, &wish, &mut below, named)?;
        (Some(ingress), egress)
    };
    let chosen: Vec<Record> = ingress.into_iter().chain([egress]).cloned().collect();
    let attested = chosen.iter().filter_map(|record| judge.facts(record)).collect();
    let hop = |record: &Record| judge.hop(&directory, record);
    let hops = match ingress {
        Some(ingress) => Hops::Two(hop(ingress)?, hop(egress)?),
        None => Hops::One(hop(egress)?),
    };
    let (ingress, egress) = (ingress.map(|ingress| ingress.relay_id), egress.relay_id);
    let consent = OpenConsent::from_config(file.admission)
        .ok_or_else(|| crate::config::fault(path, "`admission` must be set"))?;
    let chain = match origin {
        Origin::Chain(chain) => Some(*chain),
        Origin::Signed { .. } => None,
    };
    let trusted = match judge {
        Judge::Evidence(trusted) => Some(*trusted),
        Judge::Own(_) => None,
    };
    Ok(CircuitPlan {
        file,
        directory,
        hops,
        consent,
        ingress,
        egress,
        chosen,
        chain,
        attested,
        trusted,
        memory,
        warning: forgetful,
    })
}

/// Maximum number of draws to find an egress whose platform differs from the ingress's.
const DRAWS: usize = 8;

/// Why relays are accepted.
enum Judge {
    /// The user states that all relays are their own.
    Own(OwnRelays),
    /// Verdicts on the relays' evidence, with the policy behind them.
    Evidence(Box<(JudgedRelays, TrustPolicy)>),
}

impl Judge {
    fn of(
        path: &Path,
        file: &ClientFile,
        origin: &Origin,
        directory: &VerifiedDirectory,
        options: &Options,
    ) -> Result<Self, ConnectError> {
        match origin {
            Origin::Signed { .. } => OwnRelays::from_config(file.attestation, directory).map(Self::Own).ok_or_else(|| {
                let must = "must be \"none\" with a signed directory, and the directory must say single_operator: its \
                            relays prove nothing and are accepted as your own";
                key_fault(path, "attestation", must).into()
            }),
            Origin::Chain(_) if file.attestation == AttestationMode::None => {
                let must = "must not be \"none\" with a chain: strangers run its relays";
                Err(key_fault(path, "attestation", must).into())
            }
            Origin::Chain(chain) => {
                let standard = standard_of(path, file, options)?;
                let judged = JudgedRelays::of(directory, &chain.trust(), &standard, unix_seconds());
                // Caching the directory has already given a warning if files cannot be written.
                let _ = crate::chain::keep_believed(&kept_of(chain, &options.folders.state), directory, &judged);
                Ok(Self::Evidence(Box::new((judged, standard))))
            }
        }
    }

    fn usable(&self, directory: &VerifiedDirectory) -> Directory {
        match self {
            Self::Own(_) => directory.directory().clone(),
            Self::Evidence(trusted) => trusted.0.attested(directory.directory()),
        }
    }

    /// Returns why there are no relays to choose from, if evidence is the reason.
    fn refused(&self, directory: &VerifiedDirectory, error: &SelectionError) -> Option<String> {
        let Self::Evidence(trusted) = self else { return None };
        if let SelectionError::Missing { .. } = error {
            return None;
        }
        let judged = &trusted.0;
        // It is no more the fault of one relay than of another.
        let fault = judged.fault().map(|fault| format!("no relay can be verified: {fault}"));
        let why = |id: u64, refusal: &Refusal| {
            format!("relay {id} is refused: {refusal} [{}]; {}", refusal.code(), refusal.next_step())
        };
        if let SelectionError::NotThere(id, _) = error {
            directory.directory().relay(*id)?;
            return judged.verdict(*id).err().map(|refusal| fault.unwrap_or_else(|| why(*id, &refusal)));
        }
        let mut refused = judged.refused();
        let (id, refusal) = refused.next()?;
        let others = refused.count();
        let others =
            if others == 0 { String::new() } else { format!(" ({others} more are refused; run: openrelay verify)") };
        Some(fault.unwrap_or_else(|| why(id, refusal) + &others))
    }

    fn is_unserved(&self) -> bool {
        matches!(self, Self::Evidence(trusted) if trusted.0.is_unserved())
    }

    /// Chooses two hops on two chips, of two platforms if possible.
    fn pair<'a>(
        &self,
        usable: &'a Directory,
        wish: &Wish,
        mut below: impl FnMut(u64) -> u64,
        named: impl Fn(SelectionError) -> ConnectError,
    ) -> Result<(&'a Record, &'a Record), ConnectError> {
        let Self::Evidence(trusted) = self else {
            return selection::circuit(usable, wish, |_, _| true, below).map_err(named);
        };
        let verdicts = |one: &Record, two: &Record| {
            Some((trusted.0.verdict(one.relay_id).ok()?, trusted.0.verdict(two.relay_id).ok()?))
        };
        let refusal = |one: &Record, two: &Record| match verdicts(one, two) {
            Some((one, two)) => one.may_share_a_circuit_with(two).err(),
            None => Some(Refusal::NoEvidence),
        };
        let may_be = |one: &Record, two: &Record| refusal(one, two).is_none();
        match selection::circuit(usable, wish, may_be, &mut below) {
            Err(SelectionError::Conflict) => {}
            Err(error) => return Err(named(error)),
            Ok((ingress, first)) => {
                // The ingress stays. An egress of the other platform is drawn by weight, not picked on purpose: if a
                // platform has few egresses, they would get everybody's traffic.
                let again = Wish { ingress: Some(ingress.relay_id), ..*wish };
                let mut egress = first;
                for _ in 0..DRAWS {
                    let differ = |(one, two): (&Verdict, &Verdict)| one.facts().platform != two.facts().platform;
                    if verdicts(ingress, egress).is_some_and(differ) {
                        return Ok((ingress, egress));
                    }
                    (_, egress) = selection::circuit(usable, &again, may_be, &mut below).map_err(&named)?;
                }
                return Ok((ingress, first));
            }
        }
        // A pair exists, but the chips of its relays keep them out of one circuit.
        let (one, two) = selection::circuit(usable, wish, |_, _| true, below).map_err(named)?;
        let refusal = refusal(one, two).unwrap_or(Refusal::SameChip);
        Err(ConnectError::Untrusted(format!("{refusal} [{}]; {}", refusal.code(), refusal.next_step())))
    }

    fn hop(&self, directory: &VerifiedDirectory, record: &Record) -> Result<Hop, ConnectError> {
        let gone = || ConnectError::Selection(SelectionError::NotThere(record.relay_id, record.role));
        match self {
            Self::Own(own) => Ok(Hop::Own(directory.register(record).ok_or_else(gone)?, *own)),
            Self::Evidence(trusted) => trusted
                .0
                .attest(directory, record)
                .map(Hop::Attested)
                .map_err(|refusal| ConnectError::Untrusted(refusal.to_string())),
        }
    }

    fn facts(&self, record: &Record) -> Option<AttestedHop> {
        let Self::Evidence(trusted) = self else { return None };
        attested_hop(&trusted.0, record.relay_id)
    }
}

/// Returns the verdict on a relay, if the relay was accepted.
pub fn attested_hop(judged: &JudgedRelays, relay_id: u64) -> Option<AttestedHop> {
    let verdict = judged.verdict(relay_id).ok()?.clone();
    let approved = judged.image(&verdict)?;
    Some(AttestedHop { relay_id, verdict, round: approved.round, rebuilt_by: approved.image.rebuilt_by.clone() })
}

/// Returns the path of the file in the folder `state` that lists the values of images rebuilt on this machine.
pub fn rebuilt_images(state: &Path) -> PathBuf {
    state.join("rebuilt-images")
}

/// Returns the trust policy that the configuration sets.
fn standard_of(path: &Path, file: &ClientFile, options: &Options) -> Result<TrustPolicy, ConnectError> {
    let standard = options.standard.clone();
    let Some(policy) = &file.policy else { return Ok(standard) };
    let rebuilt = fs::read_to_string(rebuilt_images(&options.folders.state)).unwrap_or_default();
    let rebuilt = rebuilt.lines().filter_map(hex::decode).collect();
    Ok(standard.with_file(&crate::config::beside(path, policy), rebuilt)?)
}

/// Returns the trust policy that the configuration `path` sets.
///
/// # Errors
/// [`ConnectError`] if the configuration or its policy file cannot be read or is malformed.
pub fn standard_for(path: &Path, options: &Options) -> Result<TrustPolicy, ConnectError> {
    standard_of(path, &read(path)?, options)
}

/// Judges the relays of a directory with the configuration `path`, as for a circuit. Returns `None` if they are the
/// user's own and need no evidence.
///
/// # Errors
/// [`ConnectError`] if the configuration is unusable.
pub fn judged_of(
    path: &Path,
    directory: &VerifiedDirectory,
    options: &Options,
) -> Result<Option<JudgedRelays>, ConnectError> {
    let file: ClientFile = read(path)?;
    match Judge::of(path, &file, &file.origin(path)?, directory, options)? {
        Judge::Own(_) => Ok(None),
        Judge::Evidence(trusted) => Ok(Some(trusted.0)),
    }
}

/// Returns a source of random numbers below a limit, for drawing hops.
fn below(random: &mut OsRandom) -> impl FnMut(u64) -> u64 + '_ {
    |limit| u64::from_le_bytes(array(random)) % limit.max(1)
}

/// Returns the path of the file in the folder `state` that caches this chain's last reading.
pub fn kept_of(chain: &ChainFile, state: &Path) -> PathBuf {
    Memory::of(state, &chain.trust().network_id()).reading
}

/// Returns the directory of the configuration `path`, proven as recently as possible, and a warning. Uses and updates
/// the files in the folder `state`.
///
/// # Errors
/// [`ConnectError`] says why there is no directory.
pub fn directory_of(path: &Path, state: &Path) -> Result<(VerifiedDirectory, Option<String>), ConnectError> {
    let file: ClientFile = read(path)?;
    let origin = file.origin(path)?;
    look_up(&origin, state).map(|(directory, _, warning)| (directory, warning))
}

/// Returns the cached directory of a chain, if it was read recently.
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
            let (directory, warning) = crate::chain::directory(&Direct, chain, &memory.reading, 0)?;
            Ok((directory, memory, warning))
        }
    }
}

/// Returns the address families in which this host has a route to some relay.
fn reachable_families(directory: &Directory) -> Result<Families, HostError> {
    let mut netlink = Netlink::open().map_err(HostError::at("open a netlink socket"))?;
    let mut has = |v6: bool| {
        let mut endpoints = directory.body().relays.iter().filter_map(|relay| relay.endpoint(v6));
        endpoints.any(|endpoint| netlink.route_link(endpoint.ip()).is_ok())
    };
    Ok(Families { v4: has(false), v6: has(true) })
}

/// Files that the client keeps between connections. Each network has its own. The key that signs its directory, or
/// its network ID on a chain, tells networks apart.
struct Memory {
    /// Holds the highest directory sequence number seen.
    sequence: PathBuf,
    /// Holds the ingress of the previous circuit.
    ingress: PathBuf,
    /// Caches the chain's last reading.
    reading: PathBuf,
}

impl Memory {
    fn of(folder: &Path, trusted: &[u8; 32]) -> Self {
        // If this fails, so does writing the files, which is reported.
        let _ = fs::create_dir_all(folder);
        let network = hex::encode(trusted.first_chunk::<8>().unwrap_or(&[0; 8]));
        Self {
            sequence: folder.join(format!("{network}.seen")),
            ingress: folder.join(format!("{network}.ingress")),
            reading: folder.join(format!("{network}.reading")),
        }
    }

    /// Returns the ingress of the previous circuit. A host that cannot read or write the file uses a new ingress each
    /// time.
    fn ingress(&self) -> Option<u64> {
        fs::read_to_string(&self.ingress).ok()?.trim().parse().ok()
    }

    fn keep(&self, ingress: u64) {
        let _ = fs::write(&self.ingress, format!("{ingress}\n"));
    }
}
