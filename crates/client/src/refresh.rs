//! Refreshes the directory while the client is connected, through a separate circuit.
//!
//! Owns the times of refreshes, and their results for the status and the next circuit. Ends the user's circuit only
//! if one of its relays is no longer trusted; otherwise leaves it as it is.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use openrelay_attest::Refusal;
use openrelay_attest::verdict::{ImageState, OFFLINE};
use openrelay_chain::attestation::{JudgedRelays, sha256};
use openrelay_chain::circuit::{self, Hop, Hops, OpenConsent};
use openrelay_chain::policy::TrustPolicy;
use openrelay_ledger::directory::Source;
use openrelay_ledger::record::Record;
use openrelay_ledger::selection;
use openrelay_node::chain_file::ChainFile;
use openrelay_node::clock::{Clock, unix_seconds};
use openrelay_node::config::AdmissionMode;
use openrelay_node::directory::VerifiedDirectory;
use openrelay_node::driver::Counts;
use openrelay_node::random::OsRandom;
use openrelay_proto::handshake::Role;
use openrelay_proto::random::array;
use openrelay_sys::event::{Waker, wait};

use crate::circuit::Orders;
use crate::host::HostError;
use crate::plan::{CircuitPlan, below};
use crate::pump::Command;
use crate::query::QueryCircuit;

/// What the refresher knows of the client.
pub(crate) struct Reader {
    pub(crate) chain: ChainFile,
    /// The file that caches the last reading.
    pub(crate) kept: PathBuf,
    /// The newest directory.
    pub(crate) directory: VerifiedDirectory,
    /// The directory that the user's circuit was opened with. Its first hop stays the first hop, whatever became of
    /// that relay since.
    pub(crate) opened_with: VerifiedDirectory,
    /// The relays of both directories, judged.
    pub(crate) judged: JudgedRelays,
    pub(crate) opened_judged: JudgedRelays,
    pub(crate) standard: TrustPolicy,
    /// Ends the user's circuit.
    pub(crate) orders: Orders,
    pub(crate) admission: AdmissionMode,
    /// Name servers, asked through the circuit.
    pub(crate) servers: Vec<IpAddr>,
    /// The first hop of the user's circuit. The firewall passes datagrams to this address only.
    pub(crate) remote: SocketAddr,
    pub(crate) ingress: Option<u64>,
    pub(crate) egress: u64,
    /// Egresses through which no query circuit opened, since the last one that did open.
    pub(crate) silent: Vec<u64>,
    /// The circuit's hops, as they were in the directory when it was opened.
    pub(crate) hops: Vec<Record>,
}

/// The state of the directory.
#[derive(Clone, Debug)]
pub struct Refreshed {
    /// Sequence number of the directory; on a chain, the block number.
    pub sequence: u64,
    /// How the directory was verified.
    pub source: Source,
    /// Whether the relays of the running circuit are still listed with the same keys.
    pub hops_listed: bool,
    /// Why a relay of the running circuit is no longer trusted, if so.
    pub refused: Option<String>,
    /// State of the running program among the approved packages, as far as an endpoint proved it.
    pub program: Option<ImageState>,
    /// When the directory was last read while connected; `None` before the first refresh.
    pub read_at: Option<Instant>,
    /// Why the last attempt found no newer directory.
    pub warning: Option<String>,
}

/// The thread that refreshes the directory.
pub(crate) struct Refresher {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    stop: Waker,
    known: Mutex<Refreshed>,
    carried: Arc<Mutex<Counts>>,
    /// The current query circuit, kept here so that it can be ended.
    current: Mutex<Current>,
}

#[derive(Default)]
struct Current {
    circuit: Option<Arc<QueryCircuit>>,
    stopped: bool,
}

impl Refresher {
    /// Starts the thread.
    pub(crate) fn start(reader: Reader) -> Result<Self, HostError> {
        let directory = reader.directory.directory();
        let known = Refreshed {
            sequence: directory.body().sequence,
            source: directory.source(),
            hops_listed: true,
            refused: None,
            program: None,
            read_at: None,
            warning: None,
        };
        let shared = Arc::new(Shared {
            stop: Waker::new().map_err(HostError::at("create an event descriptor"))?,
            known: Mutex::new(known),
            carried: Arc::default(),
            current: Mutex::default(),
        });
        let working = shared.clone();
        let thread = std::thread::Builder::new()
            .name("directory".into())
            .spawn(move || run(reader, &working))
            .map_err(HostError::at("start the thread that refreshes the directory"))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Returns the current state of the directory.
    pub(crate) fn known(&self) -> Refreshed {
        self.shared.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns what the query circuits have carried.
    pub(crate) fn carried(&self) -> Counts {
        self.shared.carried.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Stops the thread, and the query circuit if there is one. Returns what the query circuits have carried.
    pub(crate) fn stop(mut self) -> Counts {
        self.end();
        self.carried()
    }

    fn end(&mut self) {
        let circuit = {
            let mut current = self.shared.current.lock().unwrap_or_else(PoisonError::into_inner);
            current.stopped = true;
            current.circuit.take()
        };
        if let Some(circuit) = circuit {
            circuit.end();
        }
        self.shared.stop.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Refresher {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(mut reader: Reader, shared: &Shared) {
    let mut random = OsRandom::default();
    // The file of the running process, even if its name belongs to another one since.
    let program = std::fs::read("/proc/self/exe").ok().map(|bytes| sha256(&bytes).0);
    loop {
        // Clients must not ask at the same time, nor at predictable times. So the pause varies between 3/4 and 5/4 of
        // the interval.
        let millis = reader.chain.refresh_s.saturating_mul(1_000);
        let spread = u64::from_be_bytes(array(&mut random)) % (millis / 2 + 1);
        let pause = Duration::from_millis(millis - millis / 4 + spread);
        let rung = wait(&[shared.stop.as_fd()], pause).unwrap_or_default();
        if rung[0] {
            return;
        }
        let outcome = once(&mut reader, shared, program);
        let mut known = shared.known.lock().unwrap_or_else(PoisonError::into_inner);
        match outcome {
            Ok((directory, warning, standing)) => {
                known.program = standing.or(known.program);
                let newer = directory.directory().body().sequence > reader.directory.directory().body().sequence;
                if newer || warning.is_none() {
                    known.read_at = Some(Instant::now());
                }
                known.warning = warning;
                known.sequence = directory.directory().body().sequence;
                known.source = directory.directory().source();
                known.hops_listed = reader.hops_are_in(&directory);
                reader.judged = JudgedRelays::of(&directory, &reader.chain.trust(), &reader.standard, unix_seconds());
                if let Some(warning) = openrelay_chain::keep_believed(&reader.kept, &directory, &reader.judged) {
                    known.warning.get_or_insert(warning);
                }
                reader.directory = directory;
                known.refused = reader.refused();
                tracing::debug!(sequence = known.sequence, "refreshed the directory");
                if let Some(refused) = &known.refused {
                    tracing::warn!("closing the circuit: {refused}");
                    reader.orders.give(Command::Abandon);
                    // No query circuit may use a relay that is not trusted either.
                    return;
                }
            }
            Err(why) => {
                tracing::debug!("the directory was not refreshed: {why}");
                known.warning = Some(format!("the directory was not refreshed: {why}"));
            }
        }
    }
}

/// A directory, why it is not newer, and the state of the running program.
type Read = (VerifiedDirectory, Option<String>, Option<ImageState>);

/// Reads the directory once, through a circuit that is opened for it and closed afterwards.
fn once(reader: &mut Reader, shared: &Shared, program: Option<[u8; 32]>) -> Result<Read, String> {
    let (circuit, egress) = reader.open(shared)?;
    let circuit = Arc::new(circuit);
    {
        let mut current = shared.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.stopped {
            return Err("the query circuit was closed".into());
        }
        current.circuit = Some(circuit.clone());
    }
    let up = circuit.come_up();
    match &up {
        Ok(()) => reader.silent.clear(),
        Err(_) if !reader.silent.contains(&egress) => reader.silent.push(egress),
        Err(_) => {}
    }
    let read = up.and_then(|()| {
        let floor = reader.directory.directory().body().sequence;
        let (directory, warning) = openrelay_chain::directory(&*circuit, &reader.chain, &reader.kept, floor)
            .map_err(|error| error.to_string())?;
        let standing = directory.reading().zip(program).and_then(|(reading, program)| {
            openrelay_chain::package::standing(&*circuit, &reader.chain, reading, program)
        });
        Ok((directory, warning, standing))
    });
    shared.current.lock().unwrap_or_else(PoisonError::into_inner).circuit = None;
    // A slow endpoint may hold on to the circuit for a while, so it is ended here.
    circuit.end();
    read
}

impl Reader {
    /// Returns what the refresher needs of a circuit; `None` if no chain proves its directory.
    pub(crate) fn of(plan: CircuitPlan, remote: SocketAddr, orders: Orders) -> Option<Self> {
        let (chain, (judged, standard)) = plan.chain.zip(plan.trusted)?;
        Some(Self {
            opened_judged: judged.clone(),
            judged,
            standard,
            orders,
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
        })
    }

    /// Opens a circuit over the same first hop, to another egress if there is one. The egress of the user's packets
    /// need not learn that this user queries the chain.
    fn open(&self, shared: &Shared) -> Result<(QueryCircuit, u64), String> {
        let (clock, mut random) = (Clock::start(), OsRandom::default());
        let age = unix_seconds().saturating_sub(self.directory.directory().body().issued);
        if age > OFFLINE {
            let hours = age.div_ceil(3_600);
            return Err(format!("the directory is {hours} hours old; no circuit opens with one older than 72 hours"));
        }
        let consent = OpenConsent::from_config(self.admission).ok_or("`admission` is not set")?;
        let (hops, relays, egress) = self.choose(&mut random)?;
        let pick = |endpoints: &[SocketAddr]| endpoints.iter().copied().find(|endpoint| *endpoint == self.remote);
        let client =
            circuit::open(hops, consent, None, pick, clock.now(), &mut random).map_err(|error| error.to_string())?;
        Ok((QueryCircuit::start(client, relays, &self.servers, clock, shared.carried.clone())?, egress))
    }

    fn choose(&self, random: &mut OsRandom) -> Result<(Hops, Vec<Role>, u64), String> {
        let first = self.hops.first().ok_or("the circuit has no hops")?;
        if self.ingress.is_none() {
            // The user asked for one hop. Queries then use a separate session with it.
            return Ok((Hops::One(self.first_hop(first)?), vec![Role::Egress], self.egress));
        }
        let avoid = [&[self.egress], &self.silent[..]].concat();
        // A directory that lacks too many descriptors must not end the queries: the one that the circuit was opened
        // with serves instead.
        let (directory, judged) = match selection::complete(self.directory.directory()) {
            Ok(()) => (&self.directory, &self.judged),
            Err(_) => (&self.opened_with, &self.opened_judged),
        };
        let usable = judged.attested(directory.directory());
        // Two hops on two chips, as for the user's own circuit.
        let one = self.judged.verdict(first.relay_id).or_else(|_| self.opened_judged.verdict(first.relay_id));
        let one = one.map_err(|refusal| refusal.to_string())?;
        let usable = usable.only(|record| {
            let two = judged.verdict(record.relay_id);
            record.relay_id == first.relay_id || two.is_ok_and(|two| one.may_share_a_circuit_with(two).is_ok())
        });
        let egress = selection::egress(&usable, first, &avoid, below(random)).map_err(|error| error.to_string())?;
        let second = judged.attest(directory, egress).map_err(|refusal| refusal.to_string())?;
        Ok((
            Hops::Two(self.first_hop(first)?, Hop::Attested(second)),
            vec![Role::Ingress, Role::Egress],
            egress.relay_id,
        ))
    }

    /// Returns the first hop of the user's circuit, by its newest evidence or by the evidence that the circuit was
    /// opened with.
    fn first_hop(&self, first: &Record) -> Result<Hop, String> {
        let newest = self.directory.directory().relay(first.relay_id).filter(|now| now.key() == first.key());
        let newest = newest.and_then(|now| self.judged.attest(&self.directory, now).ok());
        let attested = match newest {
            Some(attested) => Ok(attested),
            None => self.opened_judged.attest(&self.opened_with, first),
        };
        attested.map(Hop::Attested).map_err(|refusal| refusal.to_string())
    }

    /// Returns why a relay of the user's circuit is no longer trusted. There are two reasons: the chain no longer
    /// lets the image that the circuit was opened with be used, or the relay's chip was revoked.
    ///
    /// Missing, old or different evidence is not a reason: whoever withholds evidence could then end circuits. The
    /// next circuit asks for it when it opens.
    fn refused(&self) -> Option<String> {
        self.hops.iter().find_map(|hop| {
            let opened = self.opened_judged.verdict(hop.relay_id).ok();
            let state = opened.and_then(|verdict| self.judged.image_state(verdict));
            let refusal = match state.map(ImageState::usable) {
                Some(Err(refusal)) => refusal,
                Some(Ok(())) | None => self.judged.verdict(hop.relay_id).err()?,
            };
            let gone = matches!(refusal, Refusal::ImageState(_) | Refusal::Revoked { .. } | Refusal::TcbRevoked);
            gone.then(|| format!("relay {}: {refusal} [{}]; {}", hop.relay_id, refusal.code(), refusal.next_step()))
        })
    }

    /// Returns whether the hops of the user's circuit are in this directory as they were when it was opened.
    fn hops_are_in(&self, directory: &VerifiedDirectory) -> bool {
        let same = |hop: &Record| {
            let now = directory.directory().relay(hop.relay_id);
            now.is_some_and(|now| (now.key(), now.key_epoch) == (hop.key(), hop.key_epoch))
        };
        self.hops.iter().all(same)
    }
}
