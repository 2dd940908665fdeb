//! nftables: the kernel applies a ruleset as a whole or not at all.
//!
//! Owns the call of the `nft` program. Never renders rules: the owner of a table writes its text.
//!
//! Source: nft(8), `flags owner` and `-i`.
#![allow(unsafe_code, reason = "system calls")]

use std::fs::File;
use std::io::{self, PipeReader, Read as _, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cvt::cvt;

/// How long a table may take to appear, which for 20,000 addresses is a second on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// The reason why a ruleset was not applied.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program is not installed.
    #[error("the program nft is missing; install it with: apt-get install -y nftables")]
    Missing,
    /// The program could not be run.
    #[error("cannot run nft: {0}")]
    Run(#[from] io::Error),
    /// The kernel or the program refused the text.
    #[error("nft refused the rules: {0}")]
    Refused(String),
    /// The kernel did not take the table, or another process owns one of the same name.
    #[error("nft did not create the table {0} in time")]
    Late(String),
}

/// A table that no other process can change, empty or remove, not even with `flush ruleset`.
///
/// An `nft` process owns it. When that process ends, the kernel removes the table. The process ends when this value
/// is dropped, or when this process ends for any reason.
#[derive(Debug)]
pub struct OwnedTable {
    /// Nothing is written to it. `nft` ends when it is closed.
    _input: ChildStdin,
    output: PipeReader,
    child: Child,
}

impl OwnedTable {
    /// Creates the table `inet` `name` from `text`, whose table has the flag `owner` (Linux 5.12).
    ///
    /// # Errors
    /// [`NftError`]; there is no such table then.
    pub fn create(name: &str, text: &str) -> Result<Self, NftError> {
        // Interactive nft reports errors without a status, so another process tries the text first.
        run(&["-c", "-f", "-"], text)?;
        let rules = memory_file(text)?;
        let (output, writer) = io::pipe()?;
        let mut child =
            spawn(Command::new("nft").arg("-i").stdin(Stdio::piped()).stdout(writer.try_clone()?).stderr(writer))?;
        let mut input = child.stdin.take().ok_or_else(|| io::Error::from(io::ErrorKind::BrokenPipe))?;
        writeln!(input, "include \"/proc/self/fd/{}\"", rules.as_raw_fd())?;
        let mut table = Self { _input: input, output, child };
        let until = Instant::now() + PATIENCE;
        loop {
            if exists("inet", name)? {
                return Ok(table);
            }
            if table.child.try_wait()?.is_some() {
                let mut said = String::new();
                table.output.read_to_string(&mut said)?;
                return Err(NftError::Refused(said.trim().to_owned()));
            }
            if Instant::now() >= until {
                let _ = table.child.kill();
                return Err(NftError::Late(name.to_owned()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Returns whether the table is gone, after its descriptor has become readable.
    pub fn is_gone(&mut self) -> bool {
        let mut said = [0; 512];
        !matches!(self.output.read(&mut said), Ok(1..))
    }
}

impl AsFd for OwnedTable {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.output.as_fd()
    }
}

/// Returns a file in memory, which programs that this process starts inherit.
fn memory_file(text: &str) -> io::Result<File> {
    // SAFETY: the name is a C string that lives through the call; the new descriptor is owned by nobody else.
    let mut file = unsafe { File::from_raw_fd(cvt(libc::memfd_create(c"rules".as_ptr(), 0))?) };
    file.write_all(text.as_bytes())?;
    Ok(file)
}

/// Applies `text` as one transaction.
///
/// # Errors
/// [`NftError`]; nothing has changed then.
pub fn apply(text: &str) -> Result<(), NftError> {
    run(&["-f", "-"], text).map(drop)
}

/// Lists the table `family` `name` as text; `None` when it does not exist.
///
/// # Errors
/// [`NftError`] when the program cannot be run.
pub fn list(family: &str, name: &str) -> Result<Option<String>, NftError> {
    match run(&["list", "table", family, name], "") {
        Ok(text) => Ok(Some(text)),
        Err(NftError::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Waits until the table `inet` `name` is gone, at most this long. Returns whether it is.
///
/// # Errors
/// [`NftError`] when the program cannot be run.
pub fn wait_until_gone(name: &str, patience: Duration) -> Result<bool, NftError> {
    let until = Instant::now() + patience;
    while exists("inet", name)? {
        if Instant::now() >= until {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(true)
}

/// Returns whether the table `family` `name` exists.
fn exists(family: &str, name: &str) -> Result<bool, NftError> {
    match run(&["-t", "list", "table", family, name], "") {
        Ok(_) => Ok(true),
        Err(NftError::Refused(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Returns the base chains of the host as `nft` describes them in JSON; `None` where `nft` cannot.
///
/// Source: libnftables-json(5).
pub fn chains() -> Option<String> {
    run(&["-j", "list", "chains"], "").ok()
}

fn spawn(command: &mut Command) -> Result<Child, NftError> {
    command
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .spawn()
        .map_err(|error| if error.kind() == io::ErrorKind::NotFound { NftError::Missing } else { error.into() })
}

fn run(arguments: &[&str], input: &str) -> Result<String, NftError> {
    let mut child =
        spawn(Command::new("nft").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(NftError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}
