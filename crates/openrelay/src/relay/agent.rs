//! The agent of a running relay: starts it, publishes its handshake key, and hands it what the chain proves.
//!
//! Owns the relay's process. It runs outside of the relay and never sees its secret key.

use std::io::{BufRead as _, BufReader};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_sol_types::SolCall;
use openrelay_attest::file::AttestationFile;
use openrelay_chain::journal::Sender;
use openrelay_chain::registry::RelayRegistry;
use openrelay_chain::{Direct, read_by};
use openrelay_ledger::chain::descriptor::Descriptor;
use openrelay_ledger::chain::header::Header;
use openrelay_ledger::chain::reading::Reading;
use openrelay_ledger::chain::set::Status;
use openrelay_node::chain_file::ChainFile;
use openrelay_node::clock::unix_seconds;
use openrelay_node::config::{RelayFile, read};
use openrelay_proto::message::MAX_MIRRORED;
use openrelay_sys::event::{Waker, wait};
use openrelay_sys::signal::{Signal, Signals};

use super::folder::{Folder, OPERATOR, RELAY};
use crate::failure::{Failure, LIMIT_EXCEEDED};
use crate::output::{say, talk};
use crate::program::Program;

/// How long a start waits until mirrors have the new key.
const PATIENCE: Duration = Duration::from_secs(60);

/// An agent looks for checkpoints once in this many readings, because they are signed rarely and are as large as a
/// directory.
const CHECKPOINT_EVERY: u32 = 10;

/// A relay is handed a block that is this many seconds newer than its last one, and changed evidence once in
/// [`HAND_EVERY`] readings.
const NEWER_BLOCK: u64 = 1_800;
const HAND_EVERY: u32 = 3;

pub(super) fn relay_program(program: &Program) -> PathBuf {
    let name = program.relay();
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(name)));
    beside.filter(|path| path.exists()).unwrap_or_else(|| name.into())
}

/// Runs the relay: publishes the key of this start on the chain, then hands the relay every new reading.
pub(super) fn serve(program: &Program, dir: &Path, password_file: Option<&Path>, place: &Place) -> Result<(), Failure> {
    let folder = Folder::open(dir)?;
    let relay_id = folder.registered()?;
    let lock = std::fs::File::create(dir.join("running")).map_err(Failure::plain)?;
    if lock.try_lock().is_err() {
        return Err(Failure::plain("another openrelay relay run uses this folder"));
    }
    ready_to_serve(&folder, relay_id, place)?;
    let sender = folder.sender(password_file)?;
    // Before the first thread starts; the relay blocks its signals in the same way.
    let signals = Signals::block().map_err(Failure::plain)?;
    let mut running = Running::start(program, dir, place)?;
    let result = attend(&folder, &sender, relay_id, &mut running, &signals);
    running.end();
    result
}

/// Where a relay runs.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// In a process of this machine.
    Here {
        /// Whether the process keeps all privileges, for tests that inspect it.
        unconfined: bool,
    },
    /// In its own virtual machine, whose feed port is this socket.
    Machine(PathBuf),
}

/// A running relay, as seen from outside.
enum Running {
    Process(Child),
    Machine(UnixStream),
}

/// The relay's input and output.
type Pipes = (Box<dyn std::io::Write + Send>, Box<dyn std::io::Read + Send>);

impl Running {
    fn start(program: &Program, dir: &Path, place: &Place) -> Result<Self, Failure> {
        let unconfined = match place {
            Place::Machine(socket) => {
                let stream = UnixStream::connect(socket).map_err(|error| {
                    let socket = socket.display();
                    Failure::plain(format!("cannot connect to the machine at {socket}: {error}; is it running?"))
                })?;
                return Ok(Self::Machine(stream));
            }
            Place::Here { unconfined } => *unconfined,
        };
        let mut command = Command::new(relay_program(program));
        command.args(["run", "--config"]).arg(dir.join(RELAY));
        if unconfined {
            command.arg("--unconfined");
        }
        let started = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        started
            .map(Self::Process)
            .map_err(|error| Failure::new(77, format!("cannot start {}: {error}; install it", program.relay())))
    }

    fn pipes(&mut self) -> Result<Pipes, Failure> {
        match self {
            Self::Process(child) => {
                let pipes = child.stdin.take().zip(child.stdout.take());
                let (input, output) = pipes.ok_or_else(|| Failure::plain("the relay has no pipes"))?;
                Ok((Box::new(input), Box::new(output)))
            }
            Self::Machine(stream) => {
                let clone = || stream.try_clone().map_err(Failure::plain);
                Ok((Box::new(clone()?), Box::new(clone()?)))
            }
        }
    }

    /// Waits until the relay ends and returns why it did; `None` if it ended normally.
    fn ended(&mut self) -> Result<Option<Failure>, Failure> {
        match self {
            Self::Process(child) => {
                let status = child.wait().map_err(Failure::plain)?;
                Ok((!status.success()).then(|| ended_as(status)))
            }
            Self::Machine(_) => Ok(Some(Failure::plain("the machine's relay has ended; see the machine's console"))),
        }
    }

    fn end(mut self) {
        if let Self::Process(child) = &mut self {
            if matches!(child.try_wait(), Ok(None)) {
                tell(child, "TERM");
            }
            let _ = child.wait();
        }
    }
}

/// Checks for faults that would make a start useless, before the operator pays to publish its key.
fn ready_to_serve(folder: &Folder, relay_id: u64, place: &Place) -> Result<(), Failure> {
    let Some((standing, _)) = folder.registration(relay_id)? else {
        return Err(Failure::new(3, format!("relay {relay_id} has left the registry")));
    };
    match standing.status {
        Status::Active => {}
        Status::Draining => return Err(Failure::new(3, "the relay is draining; undo: openrelay relay drain --undo")),
        Status::Unbonding => {
            return Err(Failure::new(3, "the relay is leaving; continue with: openrelay relay retire"));
        }
    }
    let path = folder.path().join(RELAY);
    let file: RelayFile = read(&path).map_err(Failure::plain)?;
    if file.role != folder.plan.role || file.relay_id != relay_id {
        return Err(Failure::plain(format!("{} has another role or relay ID than {OPERATOR}", path.display())));
    }
    // A virtual machine has its own addresses.
    for address in file.listen.iter().filter(|_| matches!(place, Place::Here { .. })) {
        std::net::UdpSocket::bind(address).map_err(|error| {
            Failure::plain(format!("cannot listen on {address} (UDP): {error}; is another relay using it?"))
        })?;
    }
    Ok(())
}

fn attend(
    folder: &Folder,
    sender: &Sender,
    relay_id: u64,
    running: &mut Running,
    signals: &Signals,
) -> Result<(), Failure> {
    let (mut input, output) = running.pipes()?;
    let mut lines = BufReader::new(output);
    let mut line = String::new();
    lines.read_line(&mut line).map_err(Failure::plain)?;
    let key = line.split_whitespace().find_map(|word| word.strip_prefix("handshake_key="));
    let Some(key) = key.and_then(|key| alloy_primitives::hex::decode_to_array::<_, 32>(key).ok()) else {
        let ended = running.ended()?;
        return Err(ended.unwrap_or_else(|| Failure::plain("the relay ended without printing its handshake key")));
    };
    publish(folder, sender, relay_id, key)?;
    let started = Instant::now();
    let mut last = loop {
        let read = openrelay_chain::read(&folder.account.chain, unix_seconds(), 0);
        match read {
            Ok((reading, directory)) if directory.relay(relay_id).is_some_and(|own| own.key() == Some(key)) => {
                hand_over_reading(&mut input, &reading)?;
                break reading;
            }
            _ if started.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(300)),
            Ok(_) => return Err(Failure::new(LIMIT_EXCEEDED, "the directory did not show the new key in time")),
            Err(error) => return Err(error.into()),
        }
    };
    // Passes the relay's lines on, the ready line first. The last line means that the relay has ended.
    let ended = Arc::new(Waker::new().map_err(Failure::plain)?);
    let bell = ended.clone();
    std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            say(&line);
        }
        bell.wake();
    });
    let refresh = Duration::from_secs(folder.account.chain.refresh_s);
    let (mut warned, mut seen) = (false, 0);
    let mut checkpoints = Checkpoints { seen: 0, next: Instant::now() };
    let mut handed = Handed::of(&last);
    loop {
        checkpoints.follow(&folder.account.chain, &mut input);
        let ready = wait(&[signals.as_fd(), ended.as_fd()], refresh).unwrap_or_default();
        while let Some(signal) = signals.next() {
            let stops = matches!(signal, Signal::Stop);
            match running {
                Running::Process(child) => tell(child, if stops { "TERM" } else { "USR1" }),
                // No signal reaches a virtual machine; whoever started it ends it.
                Running::Machine(_) if stops => return Ok(()),
                Running::Machine(_) => hand_over(&mut input, REPORT, &[])?,
            }
        }
        if ready[1] {
            return running.ended()?.map_or(Ok(()), Err);
        }
        // Known descriptors are kept, but evidence is read each time.
        let known = Reading { attestation: Vec::new(), ..last.clone() };
        match read_by(&Direct, &folder.account.chain, (unix_seconds(), seen), Some(&known), &[]) {
            Ok((reading, directory)) => {
                warned = false;
                seen = directory.body().sequence;
                // The root differs, or descriptors that were missing are there.
                let changed = reading.records != last.records;
                if (changed || handed.is_behind(&reading, refresh)) && hand_over_reading(&mut input, &reading).is_ok() {
                    handed = Handed::of(&reading);
                    last = reading;
                }
            }
            Err(error) if !warned => {
                talk(&format!("openrelay: warning: the relay keeps its current directory: {error}"));
                warned = true;
            }
            Err(_) => {}
        }
    }
}

/// What the relay was handed last, apart from the directory.
struct Handed {
    at: Instant,
    /// The time of the block, in seconds since the Unix epoch.
    block_time: u64,
    /// The attestation file that the relay mirrors.
    attestation: Vec<u8>,
}

impl Handed {
    fn of(reading: &Reading) -> Self {
        let block_time = Header::decode(&reading.header).map_or(0, |header| header.timestamp);
        Self { at: Instant::now(), block_time, attestation: reading.attestation.clone() }
    }

    /// Returns whether the relay should get this reading: it has a newer block for the relay's evidence, or changed
    /// data to mirror. The mirrored data changes with each relay's evidence.
    fn is_behind(&self, reading: &Reading, refresh: Duration) -> bool {
        let newer = Self::of(reading);
        let other = newer.attestation != self.attestation && self.at.elapsed() >= refresh * HAND_EVERY;
        other || newer.block_time >= self.block_time.saturating_add(NEWER_BLOCK)
    }
}

/// Returns how the relay ended. Its exit code becomes this program's: 77 for missing privileges, 5 for refused trust.
fn ended_as(status: ExitStatus) -> Failure {
    let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(1);
    Failure::new(code, format!("the relay has ended ({status}); its message is above"))
}

fn tell(child: &Child, signal: &str) {
    // A relay that has just ended needs no signal.
    let _ = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
}

/// Signed checkpoints for the relay, which serves them to its clients.
struct Checkpoints {
    /// The block of the last one that was handed over.
    seen: u64,
    /// When to look for another.
    next: Instant,
}

impl Checkpoints {
    /// Hands a newer checkpoint over if it is time to look and a mirror has one. A relay without checkpoints keeps
    /// serving.
    fn follow(&mut self, chain: &ChainFile, input: &mut dyn std::io::Write) {
        if chain.checkpoints.is_empty() || self.next > Instant::now() {
            return;
        }
        self.next = Instant::now() + Duration::from_secs(chain.refresh_s) * CHECKPOINT_EVERY;
        let found = openrelay_chain::checkpoint::fetch(&Direct, chain, unix_seconds(), self.seen);
        if let Ok(found) = found
            && found.checkpoint.number > self.seen
            // No relay mirrors a larger file.
            && found.file.len() <= MAX_MIRRORED
            && hand_over(input, CHECKPOINT, &found.file).is_ok()
        {
            self.seen = found.checkpoint.number;
        }
    }
}

/// The message types of the feed, as the relay reads them.
const READING: u8 = 1;
const CHECKPOINT: u8 = 2;
const REPORT: u8 = 3;

fn hand_over_reading(input: &mut dyn std::io::Write, reading: &Reading) -> Result<(), Failure> {
    let short = (reading.attestation.len() > MAX_MIRRORED).then(|| headers_only(reading));
    let bytes = short.as_ref().unwrap_or(reading).encode();
    let bytes = bytes.ok_or_else(|| Failure::plain("the reading is too large"))?;
    hand_over(input, READING, &bytes)
}

/// Returns a reading without other relays' evidence, for a network whose evidence exceeds what a relay mirrors. The
/// full reading would only fill the memory of the relay's machine; the relay needs only the blocks that its own
/// evidence can name.
fn headers_only(reading: &Reading) -> Reading {
    let headers = AttestationFile::without_evidence(&reading.attestation).map(|file| file.headers).unwrap_or_default();
    Reading { attestation: AttestationFile { headers, ..AttestationFile::default() }.encode(), ..reading.clone() }
}

/// Sends the relay a message of this type, after its length.
fn hand_over(input: &mut dyn std::io::Write, kind: u8, bytes: &[u8]) -> Result<(), Failure> {
    let length = u32::try_from(1 + bytes.len()).map_err(Failure::plain)?.to_be_bytes();
    let head = [&length[..], &[kind]].concat();
    let written = input.write_all(&head).and_then(|()| input.write_all(bytes)).and_then(|()| input.flush());
    written.map_err(|error| Failure::plain(format!("the relay no longer reads its feed: {error}")))
}

/// Publishes a handshake key on the chain, together with the rest of the plan.
pub(super) fn publish(folder: &Folder, sender: &Sender, relay_id: u64, key: [u8; 32]) -> Result<(), Failure> {
    let old = Descriptor::decode(&folder.published(relay_id)?).map(|descriptor| descriptor.key_epoch).unwrap_or(0);
    let call = RelayRegistry::describeCall {
        relayId: relay_id,
        advertisedMbit: folder.plan.advertised_mbit,
        descriptor: folder.descriptor(old + 1, key)?.into(),
    };
    let receipt = sender.send("publish the handshake key", folder.account.chain.registry, &call.abi_encode())?;
    talk(&format!("openrelay: the handshake key was published in block {} ({} gas)", receipt.block, receipt.gas_used));
    Ok(())
}
