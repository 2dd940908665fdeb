//! The part of `openrelay-dev devnet check` about an egress' host: firewall, flows, errors and privileges.
//!
//! Owns the scenarios in which the host's owner or one client does what the egress must withstand.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::bench::Bench;
use super::runner::{Scenario, Scenarios};
use crate::net::host::{Host, checked};
use crate::net::wait::wait_for;
use crate::world::internet::{ECHO, WEB};
use crate::world::programs::{Programs, network};
use crate::world::relays::relay_in_status;
use crate::world::services;

/// The longest time in which a change must show.
const PATIENCE: Duration = Duration::from_secs(20);
/// Maximum number of flows of one client.
const FLOWS: u64 = 4_096;

/// The scenarios of the part. The last one ends an egress.
pub(crate) static SCENARIOS: Scenarios<Bench> = Scenarios::new(
    start,
    &[
        Scenario::new("an egress' firewall survives a flush of its host's rules", flush),
        Scenario::new("blocked destinations answer with an error at once", errors),
        Scenario::new("a client at its limit of flows can open new ones, and takes none from others", many_flows),
        Scenario::new("only the guard has a capability, and an egress without its firewall ends", guarded),
    ],
);

fn start(dir: &Path) -> Result<Bench> {
    let programs = Programs::find()?;
    let network = network(dir)?;
    services::selfhost(&network, &programs)?;
    let services = services::start(&network, &programs, &[])?;
    Ok(Bench::of(network, services, programs))
}

/// Connects, and returns the name of the egress.
fn up(bench: &Bench) -> Result<&'static str> {
    bench.up(&bench.config())?;
    relay_in_status(&bench.status()?, "egress")
}

/// Connects from the client by TCP. Returns the exit code: 0 for a connection, 1 for an error, 124 for neither within
/// two seconds.
fn tcp(bench: &Bench, address: &str, port: u16) -> Result<Option<i32>> {
    let line = format!("</dev/tcp/{address}/{port}");
    let output = bench.network.client.command("timeout").args(["2", "bash", "-c", &line]).output()?;
    Ok(output.status.code())
}

fn flush(bench: &mut Bench) -> Result<()> {
    let name = up(bench)?;
    let (host, own) = (bench.network.host(name)?, bench.network.address(name, false)?.to_string());
    let mut command = host.command(&bench.programs.dev);
    command.args(["internet", &own, &bench.network.address(name, true)?.to_string(), "--chain", &own]);
    let service = host.start(command, "ready")?;
    // The control: the host itself reaches its service.
    host.sh(&format!("bash -c '</dev/tcp/{own}/{WEB}'"))?;
    ensure!(tcp(bench, &own, WEB)? != Some(0), "a client reaches a service of the egress' host");
    host.sh("nft flush ruleset")?;
    ensure!(host.sh("nft list tables")?.contains("openrelay_egress"), "the table is gone");
    ensure!(tcp(bench, &own, WEB)? != Some(0), "a client reaches a service of the egress' host after a flush");
    ensure!(bench.fetches()?, "the circuit carries nothing after a flush");
    let deleted = host.command("nft").args(["delete", "table", "inet", "openrelay_egress"]).output()?;
    ensure!(!deleted.status.success(), "another process could delete the table");
    drop(service);
    bench.down()
}

fn errors(bench: &mut Bench) -> Result<()> {
    let name = up(bench)?;
    let (v4, v6) = (bench.network.address("server", false)?, bench.network.address("server", true)?);
    for (address, port) in [("10.1.2.3", 80), ("fd00::5", 80), (&*v4.to_string(), 25), (&*v6.to_string(), 25)] {
        let code = tcp(bench, address, port)?;
        ensure!(code == Some(1), "a connection to {address} port {port} ended with {code:?}, not with an error");
    }
    let host = bench.network.host(name)?;
    host.sh("ip -6 route del default")?;
    let code = tcp(bench, "2a00:1450:4001::1", 80)?;
    ensure!(code == Some(1), "a connection by IPv6 through an egress without IPv6 ended with {code:?}");
    let (_, neighbour, _) = bench.network.link_addresses(name, true)?;
    host.sh(&format!("ip -6 route add default via {neighbour}"))?;
    bench.down()
}

fn tracked(host: &Host) -> Result<u64> {
    Ok(host.sh("cat /proc/sys/net/netfilter/nf_conntrack_count")?.trim().parse()?)
}

fn many_flows(bench: &mut Bench) -> Result<()> {
    let name = up(bench)?;
    let host = bench.network.host(name)?;
    let server = bench.network.address("server", false)?;
    let open = format!("for i in $(seq {}); do echo x >/dev/udp/{server}/{ECHO}; done", FLOWS + 500);
    checked(&bench.network.client.command("bash").args(["-c", &open]).output()?, "many flows")?;
    let most = FLOWS + 64;
    let now = tracked(host)?;
    ensure!((FLOWS / 2..=most).contains(&now), "the egress tracks {now} connections of one client");
    wait_for("a new connection", PATIENCE, || Ok(bench.fetches().unwrap_or(false)))?;
    let now = tracked(host)?;
    ensure!(now <= most, "the egress tracks {now} connections of one client after it has opened new ones");
    bench.down()?;
    wait_for("the end of the client's connections", PATIENCE, || Ok(tracked(host)? < 100)).map(drop)
}

/// Returns the first child of a process. Source: proc(5), /proc/pid/task/tid/children.
fn child(pid: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    children
        .split_whitespace()
        .next()
        .with_context(|| format!("process {pid} has no child"))?
        .parse()
        .map_err(Into::into)
}

fn capabilities(pid: u32) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:")).context("the process has no CapEff")?;
    Ok(line.trim().to_owned())
}

fn guarded(bench: &mut Bench) -> Result<()> {
    let place =
        bench.services.relays.iter().position(|(name, _)| *name == "egress-1").context("there is no egress-1")?;
    let (_, mut relay) = bench.services.relays.swap_remove(place);
    let guard = child(relay.pid())?;
    for (pid, expected) in [(relay.pid(), "0000000000000000"), (guard, "0000000000001000")] {
        let has = capabilities(pid)?;
        ensure!(has == expected, "process {pid} has the capabilities {has}, not {expected}");
    }
    let host = bench.network.host("egress-1")?;
    host.sh(&format!("kill -9 {}", child(guard)?))?;
    wait_for("the end of an egress without its firewall", PATIENCE, || Ok(!relay.is_running()))?;
    let log = fs::read_to_string(host.dir().join("egress-1.log"))?;
    ensure!(log.contains("firewall"), "the relay does not say why it ended: {log}");
    wait_for("the restoration of the host's settings", PATIENCE, || {
        Ok(host.sh("cat /proc/sys/net/ipv4/ip_forward")?.trim() == "0")
    })
    .map(drop)
}
