//! An emulated machine: its process and its console.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Longest line of a console, in bytes. The rest of a longer line becomes the next line.
const MAX_LINE: u64 = 4 << 10;
/// Number of lines that are queued for the console's reader. A machine that writes faster has to wait.
const MAX_LINES: usize = 1 << 10;

/// A process that ends with its owner.
pub(crate) struct Machine {
    child: Child,
    lines: Receiver<String>,
}

/// The next event of a console.
pub(crate) enum Console {
    Line(String),
    /// Nothing arrived within the given time.
    Silent,
    /// The emulator has closed the console.
    Ended,
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Machine {
    pub(crate) fn start(mut command: Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot start QEMU")?;
        let console = child.stdout.take().context("cannot read QEMU's console")?;
        let (sender, lines) = mpsc::sync_channel(MAX_LINES);
        std::thread::spawn(move || read_console(console, &sender));
        Ok(Self { child, lines })
    }

    /// Wraps a process that has no console.
    pub(crate) fn silent(child: Child) -> Self {
        Self { child, lines: mpsc::channel().1 }
    }

    /// Returns the console's next event within `patience`.
    pub(crate) fn next(&self, patience: Duration) -> Console {
        match self.lines.recv_timeout(patience) {
            Ok(line) => Console::Line(line),
            Err(RecvTimeoutError::Timeout) => Console::Silent,
            Err(RecvTimeoutError::Disconnected) => Console::Ended,
        }
    }

    /// Returns the first line of the console that contains `word`.
    pub(crate) fn await_line(&self, word: &str, patience: Duration) -> Result<String> {
        let until = Instant::now() + patience;
        let mut said = Vec::new();
        loop {
            match self.next(until.saturating_duration_since(Instant::now())) {
                Console::Line(line) if line.contains(word) => return Ok(line),
                Console::Line(line) => said.push(line),
                Console::Silent | Console::Ended => {
                    bail!("the machine did not print {word} within {patience:?}; it printed: {}", said.join(" | "))
                }
            }
        }
    }

    /// Returns how the emulator ended, once its console is closed.
    pub(crate) fn ending(&mut self) -> String {
        self.child.wait().map_or_else(|error| error.to_string(), |status| status.to_string())
    }

    /// Ends the machine at once, like a power cut.
    pub(crate) fn kill(self) {
        drop(self);
    }
}

fn read_console(console: ChildStdout, lines: &mpsc::SyncSender<String>) {
    let mut reader = BufReader::new(console);
    let mut line = Vec::new();
    loop {
        let mut part = std::io::Read::take(&mut reader, MAX_LINE);
        // Firmware also writes bytes that are not text.
        if !part.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            return;
        }
        if lines.send(String::from_utf8_lossy(&line).trim().to_owned()).is_err() {
            return;
        }
        line.clear();
    }
}
