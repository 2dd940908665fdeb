//! A development chain on this host's loopback interface, for scenarios that need no other hosts.
//!
//! Owns its process and whatever else is started beside it; all end with their owner.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::topology::Programs;

/// A process that ends with its owner.
pub(crate) struct Process(Child);

impl Process {
    /// Starts a program, and returns what stands after `url=` in the line that says that it is ready.
    pub(crate) fn start(command: &mut Command) -> Result<(Self, String)> {
        let mut this = Self(command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?);
        let mut line = String::new();
        BufReader::new(this.0.stdout.take().context("no output")?).read_line(&mut line)?;
        ensure!(line.starts_with("ready"), "it does not start: {line}");
        let url = line.split_whitespace().find_map(|word| word.strip_prefix("url=")).context("no URL")?.to_owned();
        Ok((this, url))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A chain with the contracts on it.
pub(crate) struct LocalChain {
    pub(crate) programs: Programs,
    pub(crate) dir: PathBuf,
    process: Option<Process>,
}

impl LocalChain {
    /// Starts it; `chain.toml` in the folder says where it is.
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        Self::start_with(dir, &[])
    }

    /// The same, where time passes with transactions alone.
    pub(crate) fn start_without_time(dir: &Path) -> Result<Self> {
        Self::start_with(dir, &["--block-time", "0"])
    }

    /// The same, where times of rounds are divided by so much.
    pub(crate) fn start_with_haste(dir: &Path, haste: u32) -> Result<Self> {
        Self::start_with(dir, &["--block-time", "0", "--haste", &haste.to_string()])
    }

    /// The same, where time passes with transactions alone, from this many seconds ago on.
    pub(crate) fn start_behind(dir: &Path, seconds: u64) -> Result<Self> {
        Self::start_with(dir, &["--block-time", "0", "--behind", &seconds.to_string()])
    }

    /// A chain that runs already, which `chain.toml` in the folder names.
    pub(crate) fn of(dir: &Path) -> Result<Self> {
        Ok(Self { programs: Programs::find()?, dir: dir.to_owned(), process: None })
    }

    fn start_with(dir: &Path, arguments: &[&str]) -> Result<Self> {
        // The namespace that this runs in has a loopback interface of its own.
        ensure!(Command::new("ip").args(["link", "set", "lo", "up"]).status()?.success(), "cannot use the loopback");
        let programs = Programs::find()?;
        let mut command = Command::new(&programs.dev);
        command.args(["devchain", "run", "--listen", "127.0.0.1:0", "--network"]).arg(dir.join("chain.toml"));
        command.args(arguments);
        let (process, _) = Process::start(&mut command)?;
        Ok(Self { programs, dir: dir.to_owned(), process: Some(process) })
    }

    /// Ends the chain's process: its endpoint is reached no more.
    pub(crate) fn end(&mut self) {
        self.process = None;
    }

    /// A run of `openrelay` with state of its own: exit code, output and talk.
    pub(crate) fn openrelay(&self, arguments: &[&str]) -> Result<(i32, String)> {
        self.run(&self.programs.openrelay, arguments)
    }

    /// The same of `openrelay-sim`, which believes the roots in this folder.
    pub(crate) fn openrelay_sim(&self, arguments: &[&str]) -> Result<(i32, String)> {
        self.run(&self.programs.openrelay.with_file_name("openrelay-sim"), arguments)
    }

    fn run(&self, program: &Path, arguments: &[&str]) -> Result<(i32, String)> {
        let mut command = Command::new(program);
        command.env("OPENRELAY_SIM_ROOTS", self.dir.join("roots"));
        command.args(arguments).env("OPENRELAY_STATE_DIR", self.dir.join("state"));
        let output = command.stdin(Stdio::null()).output()?;
        let text = [output.stdout, output.stderr].concat();
        Ok((output.status.code().context("killed")?, String::from_utf8_lossy(&text).into_owned()))
    }

    /// The same, which must end with this code and say this; returns all that it says.
    pub(crate) fn says(&self, arguments: &[&str], code: i32, word: &str) -> Result<String> {
        let (found, text) = self.openrelay(arguments)?;
        ensure!(found == code && text.contains(word), "{arguments:?}: exit code {found}: {text}");
        Ok(text)
    }
}
