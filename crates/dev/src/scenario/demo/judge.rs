//! A judge beside the demonstration, in its own process.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::net::judge::Sightings;

/// A running judge.
pub(super) struct Judge {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Judge {
    /// Starts a judge, which prints a line when it watches.
    pub(super) fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("no output")?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        if line.trim() != "ready" {
            bail!("the judge did not start");
        }
        Ok(Self { child, lines })
    }

    /// Ends the judge. Returns what it saw.
    pub(super) fn verdict(mut self) -> Result<Sightings> {
        drop(self.child.stdin.take());
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        self.child.wait()?;
        serde_json::from_str(&line).context("the judge's verdict is malformed")
    }
}
