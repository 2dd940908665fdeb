//! A development chain on this host's loopback interface, for scenarios that need no other hosts.
//!
//! Owns the chain's process and the processes that are started beside it. All end with their owner.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use super::programs::Programs;

/// A process that ends with its owner.
pub(crate) struct Process(Child);

impl Process {
    /// Starts a program and returns the text after `url=` in the line that reports that it is ready.
    pub(crate) fn start(command: &mut Command) -> Result<(Self, String)> {
        let mut this = Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
        let mut line = String::new();
        BufReader::new(this.0.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(line.starts_with("ready"), "the program did not start: {line}");
        let url = line
            .split_whitespace()
            .find_map(|word| word.strip_prefix("url="))
            .context("the program printed no URL")?
            .to_owned();
        Ok((this, url))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A chain with the contracts deployed.
pub(crate) struct LocalChain {
    pub(crate) programs: Programs,
    pub(crate) dir: PathBuf,
    process: Option<Process>,
}

impl LocalChain {
    /// Starts a chain. It writes `chain.toml` in the folder, which says where it is.
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, &[])
    }

    /// Starts a chain whose time passes only with transactions.
    pub(crate) fn start_without_time(dir: &Path) -> Result<Self> {
        Self::start_with(dir, &["--block-time", "0"])
    }

    /// Starts a chain whose time passes only with transactions, and whose round times are divided by `time_divisor`.
    pub(crate) fn start_with_time_divisor(dir: &Path, time_divisor: u32) -> Result<Self> {
        Self::start_with(dir, &["--block-time", "0", "--time-divisor", &time_divisor.to_string()])
    }

    /// Starts a chain whose time passes only with transactions and begins `seconds` seconds in the past.
    pub(crate) fn start_behind(dir: &Path, seconds: u64) -> Result<Self> {
        Self::start_with(dir, &["--block-time", "0", "--behind", &seconds.to_string()])
    }

    /// Uses a chain that already runs and that `chain.toml` in the folder names.
    pub(crate) fn of(dir: &Path) -> Result<Self> {
        Ok(Self { programs: Programs::find()?, dir: dir.to_owned(), process: None })
    }

    fn start_with(dir: &Path, arguments: &[&str]) -> Result<Self> {
        // The namespace of this process has its own loopback interface.
        ensure!(
            Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success(),
            "cannot enable the loopback interface"
        );
        let programs = Programs::find()?;
        let mut command = Command::new(&programs.dev);
        command.args(["devchain", "run", "--listen", "127.0.0.1:0", "--network"]).arg(dir.join("chain.toml"));
        command.args(arguments);
        let (process, _) = Process::start(&mut command)?;
        Ok(Self { programs, dir: dir.to_owned(), process: Some(process) })
    }

    /// Ends the chain's process. Its endpoint is then unreachable.
    pub(crate) fn end(&mut self) {
        self.process = None;
    }

    /// Runs `openrelay` with its own state folder. Returns the exit code, and standard output followed by standard
    /// error.
    pub(crate) fn openrelay(&self, arguments: &[&str]) -> Result<(i32, String)> {
        self.run(&self.programs.openrelay, arguments)
    }

    /// Runs `openrelay-sim`, which trusts the roots in this folder. Returns the same as [`Self::openrelay`].
    pub(crate) fn openrelay_sim(&self, arguments: &[&str]) -> Result<(i32, String)> {
        self.run(&self.programs.openrelay.with_file_name("openrelay-sim"), arguments)
    }

    fn run(&self, program: &Path, arguments: &[&str]) -> Result<(i32, String)> {
        let mut command = Command::new(program);
        command.env("OPENRELAY_SIM_ROOTS", self.dir.join("roots"));
        command.args(arguments).env("OPENRELAY_STATE_DIR", self.dir.join("state"));
        let output = command.stdin(Stdio::null()).output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code().context("the program was killed")?, String::from_utf8_lossy(&text).into_owned()))
    }

    /// Runs `openrelay`, which must end with this exit code and print this word. Returns everything that it prints.
    pub(crate) fn says(&self, arguments: &[&str], code: i32, word: &str) -> Result<String> {
        let (found, text) = self.openrelay(arguments)?;
        ensure!(found == code && text.contains(word), "{arguments:?}: exit code {found}: {text}");
        Ok(text)
    }
}
