//! `openrelay-relay`: one ingress or egress.
//!
//! Owns the order of a relay's life: open, give up privileges, start, say ready, serve, stop. Says nothing about anybody: its output is the ready
//! line and, when asked by SIGUSR1 and at the end, the declared statistics.

use std::io::Write as _;
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use openrelay_node::relay::{Relay, Report, StartError};
use openrelay_sys::event::wait;
use openrelay_sys::sandbox::{self, SandboxError};
use openrelay_sys::signal::{Signal, Signals};

const USAGE: &str = "usage: openrelay-relay run --config FILE [--unconfined]\n\
\n\
Runs one ingress or egress as FILE says. Prints one line when it serves. SIGTERM stops it;\n\
SIGUSR1 and the end print its statistics.\n\
\n\
  --unconfined   keep all privileges, for tests that look into the process\n";

struct Arguments {
    config: PathBuf,
    unconfined: bool,
}

fn main() -> ExitCode {
    let arguments = match parse(std::env::args_os().skip(1)) {
        Ok(Some(arguments)) => arguments,
        Ok(None) => {
            say(USAGE.trim_end());
            return ExitCode::SUCCESS;
        }
        Err(fault) => {
            complain(&format!("{fault}\n\n{USAGE}"));
            return ExitCode::from(2);
        }
    };
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Start(error)) => {
            complain(&format!("openrelay-relay: {error}"));
            if error.is_privilege() {
                complain("This needs CAP_NET_ADMIN; run it as root: sudo openrelay-relay run --config FILE");
            }
            ExitCode::from(if error.is_privilege() || error.is_missing_tool() { 77 } else { 1 })
        }
        Err(Failure::Sandbox(error)) => {
            complain(&format!("openrelay-relay: {error}; it does not serve with privileges that it does not need"));
            ExitCode::from(1)
        }
        Err(Failure::LostDevice) => {
            complain("openrelay-relay: the tunnel device was removed; start the relay again, which makes a new one");
            ExitCode::from(1)
        }
    }
}

enum Failure {
    Start(StartError),
    Sandbox(SandboxError),
    LostDevice,
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

fn parse(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> Result<Option<Arguments>, String> {
    match arguments.next() {
        Some(first) if first == "run" => {}
        Some(first) if first == "--help" || first == "-h" => return Ok(None),
        Some(first) => return Err(format!("unknown command {}", first.display())),
        None => return Err("a command is missing".into()),
    }
    let (mut config, mut unconfined) = (None, false);
    while let Some(argument) = arguments.next() {
        if argument == "--config" {
            config = Some(arguments.next().ok_or("--config wants a file")?.into());
        } else if argument == "--unconfined" {
            unconfined = true;
        } else if argument == "--help" || argument == "-h" {
            return Ok(None);
        } else {
            return Err(format!("unknown argument {}", argument.display()));
        }
    }
    let config = config.ok_or("--config FILE is missing")?;
    Ok(Some(Arguments { config, unconfined }))
}

fn run(arguments: &Arguments) -> Result<(), Failure> {
    let host = |step: &str| {
        let step = step.to_owned();
        move |source| Failure::Start(StartError::Host { step, source })
    };
    let signals = Signals::block().map_err(host("take signals"))?;
    let manager = service_manager();
    let file: openrelay_node::config::RelayFile =
        openrelay_node::config::read(&arguments.config).map_err(StartError::from)?;
    let prepared = Relay::prepare(&arguments.config)?;
    for warning in &prepared.warnings {
        complain(&format!("openrelay-relay: warning: {warning}"));
    }
    let (shards, admission) = (prepared.shards(), prepared.admission());
    if arguments.unconfined {
        complain("openrelay-relay: UNCONFINED: privileges are kept, memory can be read; never serve anybody like this");
    } else {
        sandbox::forbid_core_dumps()?;
        let change = sandbox::user() == 0 && !sandbox::only_own_user();
        sandbox::drop_privileges(change.then_some(file.user))?;
        if !sandbox::forbid_files()? {
            complain("openrelay-relay: warning: this kernel enforces landlock in part or not at all");
        }
    }
    let relay = prepared.start()?;
    if !arguments.unconfined {
        sandbox::forbid_system_calls()?;
    }
    let confined = if arguments.unconfined { " UNCONFINED" } else { "" };
    say(&format!(
        "ready relay_id={} role={} admission={admission} shards={shards}{confined}",
        file.relay_id, file.role
    ));
    notify(manager.as_ref(), "READY=1");
    let result = serve(&signals, &relay);
    notify(manager.as_ref(), "STOPPING=1");
    say(&statistics(&relay.stop()));
    result
}

/// Waits until it is time to stop.
fn serve(signals: &Signals, relay: &Relay) -> Result<(), Failure> {
    loop {
        let ready = wait(&[signals.as_fd(), relay.lost_device()], Duration::from_secs(3_600)).unwrap_or_default();
        while let Some(signal) = signals.next() {
            match signal {
                Signal::Stop => return Ok(()),
                Signal::Report => say(&statistics(&relay.report())),
            }
        }
        if ready[1] {
            return Err(Failure::LostDevice);
        }
    }
}

/// The declared statistics, one JSON object on a line.
fn statistics(report: &Report) -> String {
    let counts = &report.counts;
    let drops: serde_json::Map<String, serde_json::Value> =
        counts.drops.iter().map(|(reason, count)| (reason.name().to_owned(), count.into())).collect();
    serde_json::json!({
        "schema": "openrelay.relay-statistics/1",
        "received": counts.received,
        "forwarded": counts.forwarded,
        "delivered": counts.delivered,
        "control": counts.control,
        "handshakes": counts.handshakes,
        "passed": counts.passed,
        "drops": drops,
        "sent": report.sent,
        "originated": report.originated,
        "device_read": report.device_read,
        "device_written": report.device_written,
        "receive_overflows": report.overflows,
        "sessions": report.sessions,
        "circuits": report.circuits,
    })
    .to_string()
}

/// A socket to the service manager, connected before the sandbox forbids it. Source: sd_notify(3).
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

/// Prints a line of result. A reader that has gone away is no reason to stop serving.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
