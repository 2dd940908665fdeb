//! One boot of a machine.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::list::{Clock, Host, Setup};
use super::outcome::Outcome;
use super::programs::MARKER;
use crate::world::boot::machine::{Console, Machine};
use crate::world::boot::monitor::{Monitor, halted};
use crate::world::boot::{READY, TIE, in_memory, in_option, item, qemu};

/// Interval between two checks of the processors.
const LOOK: Duration = Duration::from_millis(250);
/// Interval between two changes of the clock.
const TICK: Duration = Duration::from_millis(10);
/// Time for which a machine is watched after its image has booted.
const AFTERWARDS: Duration = Duration::from_secs(1);
/// Amount of console output that is kept, in bytes.
const KEPT: usize = 2_000;

/// Boots a machine and watches it until its outcome is known.
///
/// # Errors
/// Fails when the emulator does not start or its monitor does not answer.
pub(super) fn boot(host: &Host, setup: &Setup, patience: Duration) -> Result<Outcome> {
    let socket = host.dir.join("monitor");
    let _ = std::fs::remove_file(&socket);
    let mut command = command(host, setup, &socket);
    let complaints = host.dir.join("complaints");
    command.stderr(std::fs::File::create(&complaints)?);
    let mut machine = Machine::start(command)?;
    let watched = Monitor::connect(&socket).and_then(|mut monitor| {
        prepare(&mut monitor, setup)?;
        monitor.execute("cont", &serde_json::json!({}))?;
        Ok(monitor)
    });
    let mut monitor = watched.with_context(|| {
        let complaints = std::fs::read_to_string(&complaints).unwrap_or_default();
        format!("the machine did not start; the emulator reports: {complaints}")
    })?;
    watch(&mut machine, &mut monitor, setup, patience)
}

fn command(host: &Host, setup: &Setup, socket: &Path) -> Command {
    let mut command = Command::new(TIE);
    qemu(&mut command);
    command.args(["-S", "-qmp", &format!("unix:{},server=on,wait=off", in_option(socket))]);
    match &setup.variables {
        None => {
            command.arg("-bios").arg(&host.parts.firmware);
        }
        Some(variables) => {
            let firmware = in_option(&host.parts.firmware);
            command.args(["-drive", &format!("if=pflash,unit=0,format=raw,readonly=on,file={firmware}")]);
            command.args(["-drive", &format!("if=pflash,unit=1,format=raw,file={}", in_option(variables))]);
        }
    }
    let parts = [("kernel", &setup.kernel), ("initrd", &setup.initrd), ("cmdline", &setup.cmdline)];
    for (name, file) in parts {
        if let Some(file) = file {
            command.args(item(&format!("etc/boot/{name}"), file));
        }
    }
    if let Some(hashes) = &setup.hashes {
        command.args(in_memory(hashes, host.parts.hashes_at));
    }
    command.args(&setup.more);
    command
}

/// Does what a host does before the first instruction.
fn prepare(monitor: &mut Monitor, setup: &Setup) -> Result<()> {
    if setup.resumes {
        // The value from which firmware learns that the machine resumes.
        set_register(monitor, 0x0f, 0xfe)?;
    }
    spoil(monitor, setup)
}

/// Sets the clock to an invalid month, and stops it from running on.
fn spoil(monitor: &mut Monitor, setup: &Setup) -> Result<()> {
    if setup.clock == Clock::Nonsense {
        set_register(monitor, 0x0b, 0x82)?;
        set_register(monitor, 0x08, 0xff)?;
    }
    Ok(())
}

/// Sets a register of the clock chip.
fn set_register(monitor: &mut Monitor, register: u8, value: u8) -> Result<()> {
    monitor.human(&format!("o /b 0x70 {register:#x}"))?;
    monitor.human(&format!("o /b 0x71 {value:#x}")).map(drop)
}

fn watch(machine: &mut Machine, monitor: &mut Monitor, setup: &Setup, patience: Duration) -> Result<Outcome> {
    let until = Instant::now() + patience;
    let tick = if setup.clock == Clock::Nonsense { TICK } else { LOOK };
    let (mut said, mut looked, mut before) = (String::new(), Instant::now(), Vec::new());
    while Instant::now() < until {
        match machine.next(tick) {
            Console::Line(line) if line.contains(MARKER) => return Ok(Outcome::HostCode),
            Console::Line(line) if line.contains(READY) => return Ok(afterwards(machine)),
            Console::Line(line) => {
                if said.len() + line.len() < KEPT {
                    said += &line;
                    said.push('\n');
                }
                continue;
            }
            Console::Ended => return Ok(Outcome::Ended(format!("{}\n{said}", machine.ending()))),
            Console::Silent => {}
        }
        // An emulator that has just ended also closes its console, which the next pass reads.
        if spoil(monitor, setup).is_err() {
            continue;
        }
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            let Ok(now) = monitor.processors() else { continue };
            if halted(&now) && now == before {
                return Ok(Outcome::Halted);
            }
            before = now;
        }
    }
    Ok(Outcome::Undecided(said))
}

/// Watches a machine after its image has booted, and returns the outcome.
fn afterwards(machine: &Machine) -> Outcome {
    let until = Instant::now() + AFTERWARDS;
    loop {
        match machine.next(until.saturating_duration_since(Instant::now())) {
            Console::Line(line) if line.contains(MARKER) => return Outcome::HostCode,
            Console::Line(_) => {}
            Console::Silent | Console::Ended => return Outcome::Unharmed,
        }
    }
}
