//! The connection to an emulator's monitor: what its processors do, and what a host can do to them.
//!
//! Source: QEMU, docs/interop/qmp-spec.rst; target/i386/cpu-dump.c.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

/// The longest time for the emulator to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// The bit of the flags register that enables interrupts.
const INTERRUPTS: u64 = 1 << 9;

/// The state of one processor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Processor {
    /// Address of the next instruction.
    instruction: u64,
    /// Whether the processor waits for an interrupt.
    waits: bool,
    /// Whether interrupts are enabled.
    interruptible: bool,
}

/// A connection to a monitor.
pub(crate) struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects to the monitor at this socket, once the emulator has created it.
    pub(crate) fn connect(socket: &Path) -> Result<Self> {
        let until = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(socket) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > until => return Err(error).context("the emulator has no monitor"),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut this = Self { stream: BufReader::new(stream) };
        ensure!(this.read()?.get("QMP").is_some(), "the monitor does not speak QMP");
        this.execute("qmp_capabilities", &json!({}))?;
        Ok(this)
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let count = self.stream.read_line(&mut line).context("the monitor does not answer")?;
        ensure!(count > 0, "the emulator has ended");
        serde_json::from_str(&line).context("the monitor's answer is not JSON")
    }

    /// Runs a command and returns its result. Events that come before the answer are skipped.
    pub(crate) fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        self.stream.get_mut().write_all(line.as_bytes()).context("the emulator has ended")?;
        loop {
            let mut answer = self.read()?;
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("the emulator refused {command}: {error}");
            }
        }
    }

    /// Runs a command of the human monitor.
    pub(crate) fn human(&mut self, line: &str) -> Result<String> {
        let answer = self.execute("human-monitor-command", &json!({ "command-line": line }))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// Returns the state of each processor.
    pub(crate) fn processors(&mut self) -> Result<Vec<Processor>> {
        let text = self.human("info registers -a")?;
        processors(&text).with_context(|| format!("cannot read the registers of the processors: {text}"))
    }
}

/// Returns whether all processors wait for interrupts that are disabled, so that only the host can wake them.
pub(crate) fn halted(processors: &[Processor]) -> bool {
    !processors.is_empty() && processors.iter().all(|processor| processor.waits && !processor.interruptible)
}

fn processors(text: &str) -> Option<Vec<Processor>> {
    text.split("CPU#").skip(1).map(processor).collect()
}

fn processor(text: &str) -> Option<Processor> {
    let field = |name: &str| text.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let number = |names: [&str; 2]| {
        let word = names.iter().find_map(|name| field(name))?;
        u64::from_str_radix(word, 16).ok()
    };
    Some(Processor {
        instruction: number(["RIP", "EIP"])?,
        waits: field("HLT")? == "1",
        interruptible: number(["RFL", "EFL"])? & INTERRUPTS != 0,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]
    use super::*;

    const LONG: &str = "\r\nCPU#0\r\nRAX=0000000000000000 RBX=0000000000000001\r\n\
        RIP=000000000fe812a4 RFL=00000046 [---Z-P-] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\nES =0030\r\n";
    const REAL: &str = "\r\nCPU#1\r\nEAX=00000000 EBX=00000000\r\n\
        EIP=0000fff0 EFL=00000002 [-------] CPL=0 II=0 A20=1 SMM=0 HLT=1\r\nES =0000\r\n";

    #[test]
    fn processors_waiting_with_interrupts_disabled_are_halted() {
        let all = processors(&format!("{LONG}{REAL}")).unwrap();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].instruction, 0x0fe8_12a4);
        assert!(halted(&all));
    }

    #[test]
    fn idle_running_or_unknown_processors_are_not_halted() {
        let idle = LONG.replace("RFL=00000046", "RFL=00000246");
        let running = REAL.replace("HLT=1", "HLT=0");
        for text in [idle.clone(), running.clone(), format!("{LONG}{running}"), format!("{REAL}{idle}")] {
            assert!(!halted(&processors(&text).unwrap()), "{text}");
        }
        assert!(!halted(&processors("").unwrap()));
        assert_eq!(processors(&LONG.replace("HLT=1", "")), None);
        assert_eq!(processors(&LONG.replace("RFL=00000046", "")), None);
    }
}
