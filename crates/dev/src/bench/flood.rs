//! `openrelay-dev devnet flood`: what a flood of first packets costs an ingress and its clients.
//!
//! Owns the measurement: a client's throughput, memory, bytes out compared with bytes in, and whether new clients can
//! connect.

use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::net::folder::temporary_dir;
use crate::net::host::checked;
use crate::net::network::Network;
use crate::net::output::{say, talk};
use crate::net::process::resident_kib;
use crate::net::wait::wait_for;
use crate::world::flood::{Flood, Kind, UNREAD_PORT, prepare_links};
use crate::world::internet::{NAME, WEB};
use crate::world::programs::{Programs, network};
use crate::world::services::{Services, serve};

/// The longest time until a download has started.
const PATIENCE: Duration = Duration::from_secs(20);
/// Minimum share of the throughput with a flood to the unread port.
const GOAL: f64 = 0.9;
/// The same minimum for first packets with proofs, which the kernel must not drop by length, because clients with
/// cookies send them.
const GOAL_PROVEN: f64 = 0.75;

/// The result of one flood.
struct Outcome {
    /// Throughput of a client's download during the flood, in Gbit/s.
    gbit_s: f64,
    sent: u64,
    /// Bytes that came from forged addresses, and bytes that were sent to them.
    bytes: (u64, u64),
    rss_growth_kib: i64,
}

/// Runs floods of all kinds against the ingress of a devnet, each paired with the same flood to an unread port.
/// Prints what they cost.
pub(crate) fn measure(kind: Option<Kind>, seconds: u64, rate: u64, rounds: usize) -> Result<()> {
    let dir = temporary_dir()?;
    let programs = Programs::find()?;
    let network = network(&dir)?;
    let mut services = serve(&network, &programs, &[])?;
    let result = floods(&network, &programs, &mut services, kind, (seconds, rate, rounds));
    let _ = network.client.command(&programs.openrelay).arg("down").output();
    drop(services);
    drop(network);
    let _ = std::fs::remove_dir_all(&dir);
    result
}

fn floods(
    network: &Network,
    programs: &Programs,
    services: &mut Services,
    only: Option<Kind>,
    (seconds, rate, rounds): (u64, u64, usize),
) -> Result<()> {
    prepare_links(network)?;
    let ingress = network.host("ingress-1")?;
    let mut unread = ingress.command(&programs.dev);
    unread.args(["hold-unread", &format!("0.0.0.0:{UNREAD_PORT}")]);
    let _unread = ingress.start(unread, "ready")?;
    connect(network, programs)?;
    let pid = services.relays.first().map(|(_, service)| service.pid()).context("no ingress is running")?;
    let mut report = Vec::new();
    let mut missed = Vec::new();
    let kinds = [Kind::Fresh, Kind::Replayed, Kind::Flipped, Kind::Proven];
    for kind in kinds.into_iter().filter(|kind| only.is_none_or(|only| only == *kind)) {
        talk(&format!("flood: {kind:?}, {rate} packets per second for {seconds} s, {rounds} times each"));
        let (mut relay, mut nobody) = (Vec::new(), Vec::new());
        for round in 0..rounds {
            // The order alternates, so that a machine that slows down does not bias the result.
            for read in [round % 2 == 1, round % 2 == 0] {
                let outcome = flood(network, programs, kind, seconds, rate, pid, read)?;
                ensure!(outcome.sent == rate * seconds, "the flood was smaller than requested");
                if read {
                    outcome.judge()?;
                    relay.push(outcome);
                } else {
                    nobody.push(outcome);
                }
            }
        }
        let (speed, unread) = (median(&relay), median(&nobody));
        let ratio = speed / unread;
        let goal = if kind == Kind::Proven { GOAL_PROVEN } else { GOAL };
        if ratio < goal {
            missed.push(format!("{kind:?}: {ratio:.2} of {goal}"));
        }
        report.push(json!({
            "kind": format!("{kind:?}").to_lowercase(), "packets": rate * seconds,
            "gbit_s": speed, "gbit_s_unread": unread, "ratio": ratio,
            "bytes_in": relay.iter().map(|o| o.bytes.0).sum::<u64>(),
            "bytes_out": relay.iter().map(|o| o.bytes.1).sum::<u64>(),
            "rss_growth_kib": relay.iter().map(|o| o.rss_growth_kib).max(),
        }));
    }
    let admitted = new_clients(network, programs, rate)?;
    let (_, service) = services.relays.first_mut().context("no ingress is running")?;
    let statistics: Value = serde_json::from_str(&service.ask("USR1")?)?;
    say(&json!({
        "schema": "openrelay.flood/1", "ok": missed.is_empty(), "rate": rate, "seconds": seconds, "rounds": rounds,
        "floods": report, "circuits_opened_meanwhile": admitted, "drops": statistics["drops"],
    })
    .to_string());
    ensure!(missed.is_empty(), "the share of the unread port's throughput is below the goal: {}", missed.join(", "));
    Ok(())
}

/// Returns the median throughput of the downloads.
fn median(outcomes: &[Outcome]) -> f64 {
    let mut speeds: Vec<f64> = outcomes.iter().map(|outcome| outcome.gbit_s).collect();
    speeds.sort_by(f64::total_cmp);
    speeds.get(speeds.len() / 2).copied().unwrap_or(0.0)
}

impl Outcome {
    /// Checks what must hold for every flood that a relay reads.
    fn judge(&self) -> Result<()> {
        let (come, gone) = self.bytes;
        ensure!(come > 0, "the flood did not reach the ingress");
        ensure!(gone <= come, "more bytes were sent to forged addresses than came from them");
        // A cookie answer has half the bytes of its request. Answers to handshakes would have more.
        ensure!(gone * 10 <= come * 6, "the relay did not ask for cookies");
        ensure!(self.rss_growth_kib <= 64 << 10, "the ingress's memory grew by {} KiB", self.rss_growth_kib);
        Ok(())
    }
}

/// Returns the IPv4 bytes from and to forged addresses at the ingress so far.
fn counted(network: &Network) -> Result<(u64, u64)> {
    let ingress = network.host("ingress-1")?;
    let bytes = |name: &str| ingress.counter("ip flood", name).map(|(_, bytes)| bytes);
    Ok((bytes("in")?, bytes("out")?))
}

fn connect(network: &Network, programs: &Programs) -> Result<()> {
    let config = network.dir.join("config/client/client.toml");
    // Ingress 1 is the one under attack.
    let text = std::fs::read_to_string(&config)?;
    let own = config.with_file_name("flooded.toml");
    std::fs::write(&own, format!("ingress = 1\negress = 3\n{text}"))?;
    let output = network.client.command(&programs.openrelay).args(["up", "--wait", "--config"]).arg(&own).output()?;
    checked(&output, "openrelay up").map(drop)
}

fn delivered(network: &Network, programs: &Programs) -> Result<u64> {
    let output = network.client.command(&programs.openrelay).args(["status", "--json"]).output()?;
    let status: Value = serde_json::from_slice(&output.stdout)?;
    status["traffic"]["delivered_bytes"].as_u64().context("the status has no traffic")
}

fn flood(
    network: &Network,
    programs: &Programs,
    kind: Kind,
    seconds: u64,
    rate: u64,
    ingress: u32,
    read: bool,
) -> Result<Outcome> {
    let mut attack = Flood::prepare(network, programs, kind, seconds, rate, read)?;
    let mut download = network.client.command(&programs.dev);
    download.args(["drain", &format!("{NAME}:{WEB}")]);
    let mut download = download.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    let warm = delivered(network, programs)?;
    wait_for("the start of the download", PATIENCE, || Ok(delivered(network, programs)? >= warm + (64 << 20)))?;
    let (memory, bytes) = (resident_kib(ingress)?, counted(network)?);
    attack.begin()?;
    let (before, started) = (delivered(network, programs)?, Instant::now());
    let sent = attack.finish()?;
    let (after, took) = (delivered(network, programs)?, started.elapsed());
    download.kill()?;
    download.wait()?;
    let now = counted(network)?;
    Ok(Outcome {
        gbit_s: (after - before) as f64 * 8.0 / took.as_secs_f64() / 1e9,
        sent: sent["sent"].as_u64().context("the flood reported no count")?,
        bytes: (now.0 - bytes.0, now.1 - bytes.1),
        rss_growth_kib: i64::try_from(resident_kib(ingress)?)? - i64::try_from(memory)?,
    })
}

/// Opens circuits while a flood runs, because clients with cookies must be admitted. Returns how many opened.
fn new_clients(network: &Network, programs: &Programs, rate: u64) -> Result<Value> {
    let mut attack = Flood::prepare(network, programs, Kind::Fresh, 5, rate, true)?;
    attack.begin()?;
    let mut load = network.client.command(&programs.dev);
    // These clients run outside the tunnel, because they do not need the protection of `openrelay up`.
    load.args(["load", "--circuits", "50", "--active", "50", "--config"]);
    load.arg(network.dir.join("config/client/client.toml"));
    let _ = network.client.command(&programs.openrelay).arg("down").output()?;
    let mut load = load.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    load.stdin.take().context("cannot write to the load generator")?.write_all(b"\n")?;
    let output = load.wait_with_output()?;
    attack.finish()?;
    ensure!(output.status.success(), "no new circuit opened during the flood");
    let first = String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("").to_owned();
    let opened: Value = serde_json::from_str(&first).context("the clients printed nothing")?;
    Ok(opened["circuits"].clone())
}
