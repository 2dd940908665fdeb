//! `openrelay-dev devnet load`: what many circuits cost one ingress, in CPU time and memory.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::net::folder::temporary_dir;
use crate::net::output::say;
use crate::net::process::{cpu_seconds, resident_kib};
use crate::world::programs::{Programs, network};
use crate::world::services::serve;

/// Minimum number of circuits per CPU second of the ingress.
const CIRCUITS_GOAL: f64 = 4_000.0;
/// Maximum memory that 10,000 sessions may cost the ingress, in KiB.
const MEMORY_GOAL: u64 = 64 << 10;

/// Runs the load against a devnet and prints what it cost the ingress.
pub(crate) fn measure(count: usize, active: usize) -> Result<()> {
    let dir = temporary_dir()?;
    let programs = Programs::find()?;
    let network = network(&dir)?;
    let mut services = serve(&network, &programs, &[])?;
    let ingress = services.relays.first().map(|(_, service)| service.pid()).context("no ingress is running")?;
    let (cpu, memory) = (cpu_seconds(ingress)?, resident_kib(ingress)?);
    let mut command = network.client.command(&programs.dev);
    command.args(["load", "--config"]).arg(dir.join("config/client/client.toml"));
    command.args(["--circuits", &count.to_string(), "--active", &active.to_string()]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(child.stdout.take().context("cannot read from the load generator")?);
    let mut line = String::new();
    lines.read_line(&mut line)?;
    let opened: Value = serde_json::from_str(&line).context("the load generator did not open its circuits")?;
    let (cpu, memory) = (cpu_seconds(ingress)? - cpu, resident_kib(ingress)? - memory);
    child.stdin.take().context("cannot write to the load generator")?.write_all(b"\n")?;
    line.clear();
    lines.read_line(&mut line)?;
    let exchanged: Value = serde_json::from_str(&line).context("the load generator did not exchange its packets")?;
    child.wait()?;
    let (_, service) = services.relays.first_mut().context("no ingress is running")?;
    let statistics: Value = serde_json::from_str(&service.ask("USR1")?)?;
    drop(services);
    drop(network);
    let _ = std::fs::remove_dir_all(&dir);
    let per_second = count as f64 / cpu;
    let enough = per_second >= CIRCUITS_GOAL && memory <= MEMORY_GOAL;
    say(&json!({
        "schema": "openrelay.load/1",
        "ok": enough && exchanged["answered"] == exchanged["active"],
        "circuits": opened["circuits"],
        "wall_seconds": opened["seconds"],
        "ingress_cpu_seconds": cpu,
        "circuits_per_cpu_second": per_second,
        "ingress_rss_growth_kib": memory,
        "sessions": statistics["sessions"],
        "active": exchanged["active"],
        "answered": exchanged["answered"],
    })
    .to_string());
    let held = statistics["sessions"].as_u64().context("the statistics have no sessions")?;
    ensure!(exchanged["answered"] == exchanged["active"] && held >= count as u64, "circuits were lost");
    ensure!(
        enough,
        "the goals are {CIRCUITS_GOAL} circuits per CPU second and {MEMORY_GOAL} KiB; \
         measured: {per_second:.0} and {memory}"
    );
    Ok(())
}
