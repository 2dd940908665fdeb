//! `openrelay up` and `openrelay down`, as the user sees them.
//!
//! Owns starting the daemon in the background, and waiting until it is connected or has ended. It never opens a
//! circuit itself; `daemon` does. After a crash, `down` restores the host without a daemon.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use openrelay_client::host;

use crate::control::{ask, folders, runtime_dir};
use crate::daemon;
use crate::failure::{Failure, LIMIT_EXCEEDED};
use crate::output::talk;
use crate::program::Program;

/// How long `up` waits until the daemon is connected, and `down` until it has ended. The daemon gives one circuit 30
/// s; a second attempt, and reading the chain before it, can take longer than this.
const PATIENCE: Duration = Duration::from_secs(40);
/// Interval at which the daemon's status is queried.
const ASK_EVERY: Duration = Duration::from_millis(20);

#[derive(clap::Args)]
pub(crate) struct UpArguments {
    /// Client configuration
    #[arg(long, env = "OPENRELAY_CONFIG", value_name = "FILE", default_value = "/etc/openrelay/client.toml")]
    pub(crate) config: PathBuf,
    /// Stay in the foreground instead of becoming a daemon
    #[arg(long)]
    foreground: bool,
    /// Return only once packets flow
    #[arg(long)]
    wait: bool,
    /// Use no ingress; the egress then sees your address
    ///
    /// `openrelay status` shows that the circuit has one hop.
    #[arg(long)]
    pub(crate) one_hop: bool,
}

/// Connects, in the foreground or through a daemon, which is as `verbose` as this command.
pub(crate) fn run(program: &Program, arguments: &UpArguments, verbose: u8) -> Result<(), Failure> {
    if arguments.foreground {
        return daemon::run(program, arguments);
    }
    if ask("GET", "/v1/status")?.is_some() {
        return Err(Failure::plain("a daemon is already running; see: openrelay status"));
    }
    std::fs::create_dir_all(runtime_dir()).map_err(|error| {
        Failure::new(77, format!("cannot create {}: {error}; run: sudo openrelay up", runtime_dir().display()))
    })?;
    let log_path = runtime_dir().join("daemon.log");
    let log = File::create(&log_path)
        .map_err(|error| Failure::plain(format!("cannot write {}: {error}", log_path.display())))?;
    let own = std::env::current_exe().map_err(Failure::plain)?;
    let mut command = Command::new(own);
    command.args(["up", "--foreground", "--config"]).arg(&arguments.config);
    if arguments.one_hop {
        command.arg("--one-hop");
    }
    for _ in 0..verbose {
        command.arg("--verbose");
    }
    // In its own process group, so that the terminal's signals do not reach it.
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .process_group(0)
        .spawn()
        .map_err(|error| Failure::plain(format!("cannot start the daemon: {error}")))?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(exit) = child.try_wait().map_err(Failure::plain)? {
            let said = std::fs::read_to_string(&log_path).unwrap_or_default();
            let code = exit.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1);
            let said = said.trim().trim_start_matches("openrelay: ").to_owned();
            return Err(Failure::new(code.max(1), said));
        }
        if let Some(status) = ask("GET", "/v1/status")? {
            if status["state"] == "connected" {
                talk("openrelay: connected");
                return Ok(());
            }
            if !arguments.wait {
                talk("openrelay: connecting; see: openrelay status");
                return Ok(());
            }
        }
        if Instant::now() > deadline {
            return Err(Failure::new(LIMIT_EXCEEDED, "not connected in time; see: openrelay status"));
        }
        std::thread::sleep(ASK_EVERY);
    }
}

/// Disconnects, and restores the host after a daemon that crashed.
pub(crate) fn down() -> Result<(), Failure> {
    if ask("POST", "/v1/down")?.is_some() {
        let deadline = Instant::now() + PATIENCE;
        while ask("GET", "/v1/status").ok().flatten().is_some() {
            if Instant::now() > deadline {
                return Err(Failure::new(
                    LIMIT_EXCEEDED,
                    "the daemon is still running; see daemon.log in the runtime folder",
                ));
            }
            std::thread::sleep(ASK_EVERY);
        }
        wait_until_given_back(deadline)?;
        talk("openrelay: down");
        return Ok(());
    }
    if host::give_back(&folders())? {
        talk("openrelay: down; restored the settings that a crashed daemon had left behind");
        Ok(())
    } else {
        Err(Failure::new(3, "not connected"))
    }
}

/// Waits until the host is restored. The daemon removes its note of changes last.
fn wait_until_given_back(deadline: Instant) -> Result<(), Failure> {
    while folders().is_changed() {
        if Instant::now() > deadline {
            return Err(Failure::new(
                LIMIT_EXCEEDED,
                "the daemon has not restored all settings; run again: openrelay down",
            ));
        }
        std::thread::sleep(ASK_EVERY);
    }
    Ok(())
}
