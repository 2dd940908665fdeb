//! The relay as a library; its programs differ only in where evidence comes from.
//!
//! Owns the order of a relay's life: open, give up privileges, start, print the ready line, serve, stop. Its output
//! never describes users. It is the ready line, and the declared statistics on SIGUSR1 and at the end. In a guest
//! (`--guest`), the host reads the console and wrote the configuration. So a guest reads two files of fixed names,
//! and its errors quote nothing of them.

mod arguments;
mod check;
mod evidence;
mod feed;
mod guard;
pub mod quoter;
mod statistics;
mod threads;
pub mod tsm;

pub use statistics::Detail;

use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::guard::GUARD;
use crate::threads::{Identity, Relay, StartError, other_user};
use arguments::{Command, RunArguments};
use evidence::{Attesting, Own, PATIENCE};
use feed::{Fed, Feed};
use openrelay_node::config::{ConfigError, Origin, RelayFile, key_fault};
use openrelay_node::directory::VerifiedDirectory;
use openrelay_node::random::OsRandom;
use openrelay_proto::keys::RelaySecret;
use openrelay_sys::event::wait;
use openrelay_sys::sandbox::{self, Keep, SandboxError};
use openrelay_sys::signal::{Signal, Signals};
use quoter::{QUOTE, QuoteError, Quoter, Quoting};
use statistics::Statistics;

/// The chain file's name in a guest. `/init` writes it beside the configuration.
const GUEST_CHAIN: &str = "chain.toml";

/// Within this time a lost firewall and a request to stop have the same cause.
const STOP_TOGETHER: Duration = Duration::from_millis(200);

/// The program that runs, as its `main` describes it.
struct Program {
    name: &'static str,
    /// How exactly a relay that proves its image reports statistics.
    detail: Detail,
    /// The name of its source of evidence.
    source: &'static str,
}

/// Runs as the program of this name. `detail` is how exactly a relay that proves its image reports statistics.
/// `quoter` is the source of evidence, which is asked in its own process.
pub fn main(name: &'static str, detail: Detail, mut quoter: impl Quoter) -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|argument| argument == QUOTE) {
        quoter::answer(&mut quoter);
        return ExitCode::SUCCESS;
    }
    if std::env::args_os().nth(1).is_some_and(|argument| argument == GUARD) {
        guard::run();
        return ExitCode::SUCCESS;
    }
    let program = Program { name, detail, source: quoter.name() };
    match arguments::parse(std::env::args_os().skip(1)) {
        Ok(Command::Help) => say(&arguments::help(name)),
        Ok(Command::Version) => say(&format!("{name} {}", env!("CARGO_PKG_VERSION"))),
        Ok(Command::Evidence) => return evidence_once(&program),
        Ok(Command::Check(config)) => return check(&program, &config),
        Ok(Command::Run(arguments)) => {
            return match run(&program, &arguments) {
                Ok(()) => ExitCode::SUCCESS,
                Err(failure) => failure.report(&program, &arguments),
            };
        }
        Err(fault) => {
            complain(&arguments::wrong_usage(name, &fault));
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

/// Asks for evidence in the way that a relay does, before an operator pays for one.
fn evidence_once(program: &Program) -> ExitCode {
    let started = Quoting::start().map_err(|error| QuoteError::Environment(error.to_string()));
    match started.and_then(|mut quoting| quoting.try_out(PATIENCE)) {
        Ok(()) => {
            say(&format!("evidence attestation={}", program.source));
            ExitCode::SUCCESS
        }
        Err(error) => Failure::NoEvidence(error).print(program),
    }
}

/// Prints everything that is wrong with a configuration.
fn check(program: &Program, config: &Path) -> ExitCode {
    let faults = check::faults(config);
    if faults.is_empty() {
        say(&format!("{}: no faults", config.display()));
        return ExitCode::SUCCESS;
    }
    for fault in &faults {
        complain(&format!("{}: {fault}", program.name));
    }
    ExitCode::from(faults.iter().map(exit_code).max().unwrap_or(1))
}

/// Returns the exit code for a fault in a configuration: 5 for a refused directory.
const fn exit_code(fault: &ConfigError) -> u8 {
    match fault {
        ConfigError::Directory { .. } => 5,
        ConfigError::Read { .. } | ConfigError::Fault { .. } => 1,
    }
}

impl Failure {
    /// Prints why a relay did not start or has ended. A guest quotes no file.
    fn report(self, program: &Program, arguments: &RunArguments) -> ExitCode {
        if let (Self::Start(StartError::Config(error)), true) = (&self, arguments.guest) {
            complain(&format!("{}: {}", program.name, error.without_content()));
            return ExitCode::from(exit_code(error));
        }
        self.print(program)
    }

    fn print(self, program: &Program) -> ExitCode {
        let (code, said) = match self {
            Self::Start(StartError::Config(error)) => (exit_code(&error), error.to_string()),
            Self::Start(error) if error.is_privilege() => {
                let how = format!("this needs CAP_NET_ADMIN; run it as root: sudo {} run --config FILE", program.name);
                (77, format!("{error}; {how}"))
            }
            Self::Start(error) => {
                (if error.is_privilege() || error.is_missing_tool() { 77 } else { 1 }, error.to_string())
            }
            Self::Sandbox(error) => (1, format!("{error}; refusing to serve with unneeded privileges")),
            Self::NoEvidence(error) => (5, error.to_string()),
            Self::NoDirectory(why) => (5, why),
            Self::LostFirewall => (
                1,
                "the firewall table was removed, because its nft process has ended; nothing is carried without it; \
                 start the relay again to create a new one"
                    .into(),
            ),
            Self::LostDevice => (1, "the tunnel device was removed; start the relay again to create a new one".into()),
        };
        complain(&format!("{}: {said}", program.name));
        ExitCode::from(code)
    }
}

impl Program {
    /// Prints a message for the operator.
    fn complain(&self, line: &str) {
        complain(&format!("{}: {line}", self.name));
    }
}

enum Failure {
    Start(StartError),
    Sandbox(SandboxError),
    LostDevice,
    LostFirewall,
    NoDirectory(String),
    NoEvidence(QuoteError),
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::Start(error)
    }
}

impl From<SandboxError> for Failure {
    fn from(error: SandboxError) -> Self {
        Self::Sandbox(error)
    }
}

/// Reads the configuration, and returns where the directory comes from.
fn load(path: &Path, guest: bool) -> Result<(RelayFile, Origin), ConfigError> {
    let file: RelayFile = openrelay_node::config::read(path)?;
    if guest {
        // Any other file that the host names here would be read from inside the guest.
        if file.chain.as_deref() != Some(Path::new(GUEST_CHAIN)) {
            return Err(key_fault(path, "chain", format!("must be {GUEST_CHAIN} in a guest")));
        }
        for (key, named) in [("directory", &file.directory), ("handshake_key", &file.handshake_key)] {
            if named.is_some() {
                return Err(key_fault(path, key, "is not allowed in a guest, which reads no other file"));
            }
        }
    }
    let origin = file.origin(path)?;
    Ok((file, origin))
}

fn run(program: &Program, arguments: &RunArguments) -> Result<(), Failure> {
    let host = |step: &str| {
        let step = step.to_owned();
        move |source| Failure::Start(StartError::Host { step, source })
    };
    let signals = Signals::block().map_err(host("take signals"))?;
    let manager = service_manager();
    let path = &arguments.config;
    let (file, origin) = load(path, arguments.guest).map_err(StartError::from)?;
    let (identity, mut feed, mut attesting) = match origin {
        Origin::Signed { path: directory, trusted } => {
            (Identity::of_files(path, &directory, trusted).map_err(StartError::from)?, None, None)
        }
        Origin::Chain(chain) => {
            let trust = chain.trust();
            let mut feed = Feed::new(*chain).map_err(host("read standard input"))?;
            let secret = RelaySecret::generate(&mut OsRandom::default());
            let mut quoting = Quoting::start().map_err(host("start the process that asks for evidence"))?;
            let image = check::image(path, &file).map_err(StartError::from)?;
            // Before the operator pays to publish a key that no evidence supports.
            quoting.try_out(PATIENCE).map_err(Failure::NoEvidence)?;
            let directory = introduce(program, &mut feed, &secret, file.relay_id)?;
            let own = Own { relay_id: file.relay_id, handshake_key: *secret.public().as_bytes(), image, trust };
            let attesting = Attesting::start(quoting, own, &directory).map_err(Failure::NoEvidence)?;
            let identity = Identity::of_chain(directory, secret, attesting.now());
            (identity, Some(feed), Some(attesting))
        }
    };
    let prepared = Relay::prepare(path, identity)?;
    for warning in &prepared.warnings {
        program.complain(&format!("warning: {warning}"));
    }
    let (shards, admission) = (prepared.shards(), prepared.admission());
    if arguments.unconfined {
        program.complain("UNCONFINED: keeps all privileges and has readable memory; for tests only");
    } else {
        sandbox::forbid_core_dumps()?;
        sandbox::drop_privileges(other_user(file.user), Keep::Nothing)?;
        if !sandbox::forbid_files()? {
            program.complain("warning: this kernel enforces landlock only in part or not at all");
        }
    }
    let mut relay = prepared.start()?;
    if !arguments.unconfined {
        sandbox::forbid_system_calls()?;
    }
    let confined = if arguments.unconfined { " UNCONFINED" } else { "" };
    say(&format!(
        "ready relay_id={} role={} admission={admission} attestation={} shards={shards}{confined}",
        file.relay_id,
        file.role,
        if attesting.is_some() { program.source } else { "none" }
    ));
    notify(manager.as_ref(), "READY=1");
    let mut statistics = Statistics::new(program.detail, attesting.is_some(), Instant::now());
    let result = serve(program, &signals, &mut relay, (feed.as_mut(), attesting.as_mut()), &mut statistics);
    notify(manager.as_ref(), "STOPPING=1");
    say(&statistics.last(&relay.stop()));
    match result {
        Err(Failure::LostFirewall) if stopped_together(&signals) => Ok(()),
        other => other,
    }
}

/// Prints this start's key, and waits for a directory that has it. The agent publishes the key on the chain
/// meanwhile.
fn introduce(
    program: &Program,
    feed: &mut Feed,
    secret: &RelaySecret,
    relay_id: u64,
) -> Result<VerifiedDirectory, Failure> {
    let key = openrelay_ledger::hex::encode(secret.public().as_bytes());
    say(&format!("handshake_key={key} relay_id={relay_id}"));
    loop {
        match feed.take() {
            Fed::Directory(directory) => {
                let record = directory.directory().relay(relay_id);
                if record.is_some_and(|record| record.key() == Some(*secret.public().as_bytes())) {
                    return Ok(*directory);
                }
            }
            Fed::Refused(why) => program.complain(&format!("directory refused: {why}")),
            // A report or a checkpoint before the first reading is ignored.
            Fed::Nothing | Fed::Report | Fed::Checkpoint(_) => {}
            Fed::End => {
                let why = "no directory; start a relay of a chain through its operator's agent: openrelay relay run";
                return Err(Failure::NoDirectory(why.into()));
            }
        }
    }
}

/// Serves until a signal or a lost device ends it.
fn serve(
    program: &Program,
    signals: &Signals,
    relay: &mut Relay,
    (mut feed, mut attesting): (Option<&mut Feed>, Option<&mut Attesting>),
    statistics: &mut Statistics,
) -> Result<(), Failure> {
    let report = |statistics: &mut Statistics, relay: &mut Relay| {
        if let Some(line) = statistics.answer(Instant::now(), || relay.report()) {
            say(&line);
        }
    };
    loop {
        let fed = feed.as_ref().and_then(|feed| feed.readable());
        let evidence = attesting.as_ref().and_then(|attesting| attesting.readable());
        let firewall = relay.lost_firewall();
        let mut sources = vec![signals.as_fd(), relay.lost_device()];
        sources.extend(fed.into_iter().chain(evidence).chain(firewall));
        let waiting = feed.as_ref().is_some_and(|feed| feed.is_waiting());
        let rest = attesting.as_ref().map_or(Duration::from_secs(3_600), |attesting| attesting.rest());
        let rest = rest.min(statistics.rest(Instant::now()));
        let timeout = if waiting { Duration::ZERO } else { rest };
        let ready = wait(&sources, timeout).unwrap_or_default();
        let readable = waiting || (fed.is_some() && ready[2]);
        let shown = evidence.is_some() && ready[2 + usize::from(fed.is_some())];
        // First of all: shards forward until the relay stops.
        if firewall.is_some() && ready[sources.len() - 1] {
            return Err(Failure::LostFirewall);
        }
        if let Some(attesting) = attesting.as_mut() {
            renew(program, relay, attesting, shown);
        }
        if let Some(line) = statistics.refusals(Instant::now(), || relay.report()) {
            program.complain(&line);
        }
        if let Some(feed) = feed.as_mut().filter(|_| readable) {
            match feed.take() {
                Fed::Checkpoint(file) => relay.mirror_checkpoint(file),
                Fed::Report => report(statistics, relay),
                Fed::Directory(directory) => {
                    if let Some(attesting) = attesting.as_mut() {
                        attesting.follow(&directory);
                    }
                    if !relay.update(&directory) {
                        program.complain("this relay has left the directory; it keeps serving its clients");
                    }
                }
                Fed::Refused(why) => program.complain(&format!("directory refused: {why}")),
                Fed::Nothing | Fed::End => {}
            }
        }
        while let Some(signal) = signals.next() {
            match signal {
                Signal::Stop => return Ok(()),
                Signal::Report => report(statistics, relay),
            }
        }
        if ready[1] {
            return Err(Failure::LostDevice);
        }
    }
}

/// Returns whether the relay is told to stop at about this time. Whoever ends a service may end all of its processes
/// at once.
fn stopped_together(signals: &Signals) -> bool {
    let _ = wait(&[signals.as_fd()], STOP_TOGETHER);
    signals.next() == Some(Signal::Stop)
}

/// Takes new evidence, and shows it when it is due.
fn renew(program: &Program, relay: &mut Relay, attesting: &mut Attesting, readable: bool) {
    let was_ready = attesting.is_ready();
    let taken = if readable { attesting.take() } else { Ok(false) };
    let changed = match taken {
        Ok(changed) => changed,
        Err(error) => {
            program.complain(&format!("warning: {error}"));
            false
        }
    };
    if let Some(silent) = attesting.overdue() {
        program.complain(&format!(
            "warning: the trusted execution environment has not answered for {} s; \
             without new evidence this relay will become unready and must be restarted",
            silent.as_secs()
        ));
    }
    if attesting.handle_timeout() | changed {
        relay.show(attesting.now());
    }
    match (was_ready, attesting.is_ready()) {
        (true, false) => program.complain("not ready: its evidence is too old and was not renewed"),
        (false, true) => program.complain("ready again: it has new evidence"),
        _ => {}
    }
}

/// Returns a socket to the service manager, connected before the sandbox forbids that. Source: sd_notify(3).
fn service_manager() -> Option<UnixDatagram> {
    use std::os::linux::net::SocketAddrExt;
    let path = std::env::var("NOTIFY_SOCKET").ok()?;
    let socket = UnixDatagram::unbound().ok()?;
    match path.strip_prefix('@') {
        Some(name) => {
            let address = std::os::unix::net::SocketAddr::from_abstract_name(name).ok()?;
            socket.connect_addr(&address).ok()?;
        }
        None => socket.connect(path).ok()?,
    }
    Some(socket)
}

fn notify(manager: Option<&UnixDatagram>, state: &str) {
    if let Some(socket) = manager {
        let _ = socket.send(state.as_bytes());
    }
}

/// Prints a line of the result. A relay keeps serving if its reader has closed the pipe.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
    use std::path::PathBuf;

    use super::*;

    /// Returns a folder with a relay's configuration that names this chain file, and has more lines.
    fn folder(name: &str, chain: &str, more: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("openrelay-guest-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let text = format!(
            "role = \"egress\"\nrelay_id = 1\nlisten = [\"0.0.0.0:1\"]\nadmission = \"open\"\n\
             chain = \"{chain}\"\n{more}"
        );
        std::fs::write(folder.join("relay.toml"), text).unwrap();
        folder
    }

    fn refused(folder: &Path) -> String {
        let error = load(&folder.join("relay.toml"), true).unwrap_err();
        std::fs::remove_dir_all(folder).unwrap();
        error.without_content()
    }

    #[test]
    fn guest_reads_no_file_that_its_host_names() {
        for (name, chain) in [("maps", "/proc/self/maps"), ("up", "../chain.toml"), ("other", "secret.toml")] {
            let said = refused(&folder(name, chain, ""));
            assert!(said.ends_with("relay.toml: line 5, key chain is refused"), "{said}");
            assert!(!said.contains(chain), "{said}");
        }
        // Control: without --guest the named file is read, and quoted.
        let folder = folder("control", "/proc/self/maps", "");
        let said = load(&folder.join("relay.toml"), false).unwrap_err().to_string();
        std::fs::remove_dir_all(folder).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let first: String = maps.chars().take(8).collect();
        assert!(said.contains("/proc/self/maps") && said.contains(&first), "{said}");
        for key in ["directory", "handshake_key"] {
            let said = refused(&self::folder(key, "chain.toml", &format!("{key} = \"/proc/version\"\n")));
            assert!(said.ends_with(&format!("relay.toml: line 6, key {key} is refused")), "{said}");
        }
    }

    #[test]
    fn faults_in_a_guest_quote_nothing_of_a_file() {
        for text in
            ["chain_id = \"secret\"\n", "secret words\n", "chain_id = 1\nsecret = 2\n", "secret", "\u{1}secret = 1\n"]
        {
            let folder = folder("quiet", "chain.toml", "");
            std::fs::write(folder.join("chain.toml"), text).unwrap();
            let said = refused(&folder);
            assert!(said.contains("chain.toml") && !said.contains("secret"), "{text:?}: {said}");
        }
        let said = refused(&folder("relay", "chain.toml", "shards = \"secret\"\n"));
        assert!(said.ends_with("relay.toml: line 6, key shards is refused"), "{said}");
    }
}
