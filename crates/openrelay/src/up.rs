//! `openrelay up` and `openrelay down`.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use openrelay_node::client::host;

use crate::control::{ask, folders, runtime_dir};
use crate::failure::{Failure, LIMIT_EXCEEDED};
use crate::{Program, UpArguments, daemon, talk};

/// How long `up` waits for its daemon: longer than the daemon waits for the circuit.
const PATIENCE: Duration = Duration::from_secs(40);
/// How often the daemon is asked meanwhile.
const ASK_EVERY: Duration = Duration::from_millis(20);

/// Connects.
pub(crate) fn run(program: &Program, arguments: &UpArguments) -> Result<(), Failure> {
    if arguments.foreground {
        return daemon::run(program, arguments);
    }
    if ask("GET", "/v1/status")?.is_some() {
        return Err(Failure::plain("a daemon runs already; see: openrelay status"));
    }
    std::fs::create_dir_all(runtime_dir()).map_err(|error| {
        Failure::new(77, format!("cannot make {}: {error}; run: sudo openrelay up", runtime_dir().display()))
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
    // A group of its own, so that the terminal's signals do not reach it.
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

/// Disconnects; cleans up after a daemon that crashed.
pub(crate) fn down() -> Result<(), Failure> {
    if ask("POST", "/v1/down")?.is_some() {
        let deadline = Instant::now() + PATIENCE;
        while ask("GET", "/v1/status").ok().flatten().is_some() {
            if Instant::now() > deadline {
                return Err(Failure::new(
                    LIMIT_EXCEEDED,
                    "the daemon does not end; its log is daemon.log in the runtime folder",
                ));
            }
            std::thread::sleep(ASK_EVERY);
        }
        wait_until_given_back(deadline)?;
        talk("openrelay: down");
        return Ok(());
    }
    if host::give_back(&folders())? {
        talk("openrelay: down; what a crashed daemon had left behind was given back");
        Ok(())
    } else {
        Err(Failure::new(3, "nothing is up"))
    }
}

/// The daemon removes its note last.
fn wait_until_given_back(deadline: Instant) -> Result<(), Failure> {
    while folders().is_changed() {
        if Instant::now() > deadline {
            return Err(Failure::new(
                LIMIT_EXCEEDED,
                "the daemon has not given everything back; run again: openrelay down",
            ));
        }
        std::thread::sleep(ASK_EVERY);
    }
    Ok(())
}
