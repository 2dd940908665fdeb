//! How this program enters namespaces of its own, as root or as a user inside a user namespace.

use std::ffi::OsString;
use std::process::{Command as Process, ExitStatus};

use anyhow::{Context as _, Result, bail};
use openrelay_sys::sandbox;

use crate::net::host::PATH;

/// Runs `openrelay-dev devnet inside` with these arguments in its own namespaces.
pub(crate) fn run_inside(arguments: &[OsString]) -> Result<ExitStatus> {
    enter()?.args(["devnet", "inside"]).args(arguments).status().context("cannot enter namespaces")
}

/// Ends this process as another has ended. Returns if that one has succeeded.
pub(crate) fn end_as(status: ExitStatus) -> Result<()> {
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => std::process::exit(code),
        None => bail!("the inner process was ended by a signal"),
    }
}

/// Returns a command that runs this program in its own namespaces. Everything that it starts ends with it.
pub(crate) fn enter() -> Result<Process> {
    let mut command = Process::new("unshare");
    if sandbox::user() != 0 {
        command.args(["--user", "--map-root-user"]);
    }
    command.args([
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--propagation",
        "private",
        "--",
    ]);
    command.arg(std::env::current_exe()?).env("PATH", format!("{PATH}:{}", std::env::var("PATH").unwrap_or_default()));
    Ok(command)
}
