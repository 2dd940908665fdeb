//! Daemons and relays that are killed: what they leave behind, and what leaves outside the tunnel meanwhile.

use std::fs;

use anyhow::{Result, bail, ensure};

use super::account::SOON;
use super::leaks::try_everything;
use crate::net::account::{self, Datagrams};
use crate::net::host::Service;
use crate::net::process::{cpu_seconds, signal};
use crate::net::wait::wait_for;
use crate::scenario::bench::Bench;
use crate::world::relays::{RELAYS, relay_in_status};

pub(super) fn crash(bench: &mut Bench) -> Result<()> {
    let state = "ip rule; nft -s list ruleset; cat /etc/resolv.conf";
    let before = bench.network.client.sh(state)?;
    bench.connect(&[])?;
    bench.account.lost = bench.account_in_peace()?;
    // Another program removes the device. The client reports that nothing flows, and stays idle.
    bench.network.client.sh("ip link del orp0")?;
    bench.soon("the loss showing", || Ok(bench.status()?["state"] == "blocked"))?;
    let daemon = daemon_pid()?;
    let busy = cpu_seconds(daemon)?;
    for _ in 0..3 {
        bench.ping()?;
    }
    let busy = cpu_seconds(daemon)? - busy;
    ensure!(busy < 0.5, "an idle client used {busy:.1} s of CPU time");
    signal("KILL", daemon)?;
    bench.soon("the daemon's end", || Ok(daemon_pid().is_err()))?;
    ensure!(!bench.ping()?, "traffic bypasses the tunnel after a crash");
    let text = bench.openrelay(&["status"])?.1;
    ensure!(
        text.contains("Blocked") && text.contains("openrelay down"),
        "the status does not report the block: {text}"
    );
    let (code, _, said) = bench.openrelay(&["up", "--wait", "--config", &bench.config()])?;
    ensure!(code != Some(0) && said.contains("openrelay down"), "up after a crash does not say what to do: {said}");
    bench.take_down()?;
    ensure!(bench.network.client.sh(state)? == before, "the host's state was not restored completely");
    ensure!(bench.ping()?, "no traffic passes after down");
    Ok(())
}

/// Runs last, because killed relays stay dead. It takes each relay's account until it dies, and its host kernel's
/// afterwards.
pub(super) fn killed(bench: &mut Bench) -> Result<()> {
    let status = bench.connect(&[])?;
    let (ingress, egress) = (relay_in_status(&status, "ingress")?, relay_in_status(&status, "egress")?);
    let egress_at_its_end = kill(bench, egress)?;
    try_everything(bench)?;
    bench.soon("the loss of the egress showing", || {
        bench.ping()?;
        Ok(bench.status()?["state"] == "blocked")
    })?;
    try_everything(bench)?;
    let ingress_at_its_end = kill(bench, ingress)?;
    try_everything(bench)?;
    bench.account.lost = bench.in_peace(|bench| {
        bench.account_of_client()?;
        for name in RELAYS.into_iter().filter(|name| ![ingress, egress].contains(name)) {
            bench.account_of_relay(name)?;
        }
        for (name, at_its_end) in [(egress, egress_at_its_end), (ingress, ingress_at_its_end)] {
            let now = account::of_kernel(bench.network.host(name)?)?;
            ensure!(now == at_its_end, "the dead {name} sends or receives: {at_its_end:?}, {now:?}");
        }
        bench.account_of_links(bench.all_kernels()?)
    })?;
    bench.take_down()?;
    // A relay whose device is removed ends, so that a service manager can restart it.
    let other = if egress == "egress-1" { "egress-2" } else { "egress-1" };
    bench.network.host(other)?.sh("ip link del orp-egress")?;
    ended(bench.service(other)?)
}

/// Waits until a service has ended.
fn ended(service: &mut Service) -> Result<()> {
    wait_for("the end of a relay", SOON, || Ok(!service.is_running())).map(drop)
}

/// Kills a relay at a moment at which its account is exact, because no other process runs.
///
/// Returns what its host's kernel had counted.
fn kill(bench: &mut Bench, name: &str) -> Result<Datagrams> {
    let victim = bench.service(name)?.pid();
    let mut others = vec![daemon_pid()?];
    for (_, service) in &mut bench.services.relays {
        if service.pid() != victim && service.is_running() {
            others.push(service.pid());
        }
    }
    for other in &others {
        signal("STOP", *other)?;
    }
    bench.in_peace(|bench| bench.account_of_relay(name))?;
    signal("KILL", victim)?;
    // The relay's sockets stay open until its process is gone.
    ended(bench.service(name)?)?;
    let at_its_end = account::of_kernel(bench.network.host(name)?)?;
    for other in others {
        signal("CONT", other)?;
    }
    Ok(at_its_end)
}

/// Returns the daemon that `openrelay up` started. This process namespace has only one.
fn daemon_pid() -> Result<u32> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.windows(15).any(|window| window == b"up\0--foreground") {
            return Ok(pid);
        }
    }
    bail!("no daemon is running")
}
