//! Losses on links: every datagram that a scenario drops on a path is in a counter where it was dropped.
//!
//! Owns a table on the core and on the NAT that drops and counts what a scenario names. It also reads the kernel's
//! counters of links: packets larger than a link takes, and packets that a link did not take over. It drops nothing
//! that no scenario asked for.

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::host::Host;
use super::network::Network;

const TABLE: &str = "inet loss";

/// Starts to count on the hosts that forward. Returns what links had counted before.
///
/// A link that comes up before its other end drops what the kernel itself sends, such as a router solicitation.
pub(crate) fn watch(network: &Network) -> Result<u64> {
    for host in forwarding(network)? {
        // Before conntrack, so that a dropped packet leaves no trace at the NAT.
        host.sh(&format!(
            "nft 'table {TABLE} {{ counter lost {{ }}; chain lose {{ type filter hook prerouting priority -350; }}; }}'"
        ))?;
    }
    counted(network)
}

/// Drops everything that matches one of `rules` on `host`, the core or the NAT, until [`mend`].
pub(crate) fn lose(host: &Host, rules: &[&str]) -> Result<()> {
    with_verdict(host, rules, "drop")
}

/// Does what [`lose`] does, and `host` also answers the sender with "no route".
pub(crate) fn refuse(host: &Host, rules: &[&str]) -> Result<()> {
    with_verdict(host, rules, "reject with icmpx no-route")
}

fn with_verdict(host: &Host, rules: &[&str], verdict: &str) -> Result<()> {
    let lines: Vec<String> =
        rules.iter().map(|rule| format!("add rule {TABLE} lose {rule} counter name lost {verdict}")).collect();
    host.sh(&format!("nft '{}'", lines.join("; "))).map(drop)
}

/// Stops all drops on `host`.
pub(crate) fn mend(host: &Host) -> Result<()> {
    host.sh(&format!("nft flush chain {TABLE} lose")).map(drop)
}

/// Returns how many packets the rules of [`lose`] and links have dropped so far.
pub(crate) fn counted(network: &Network) -> Result<u64> {
    let mut all = 0;
    for host in forwarding(network)? {
        all += host.counter(TABLE, "lost")?.0 + too_large(host)? + not_taken(host)?;
    }
    Ok(all)
}

fn forwarding(network: &Network) -> Result<[&Host; 2]> {
    Ok([&network.core, network.host("nat")?])
}

/// Returns the number of packets that were larger than the next link takes and must not be fragmented.
fn too_large(host: &Host) -> Result<u64> {
    let v4 = host.sh("cat /proc/net/snmp")?;
    let mut lines = v4.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let column =
        names.split(' ').position(|name| name == "FragFails").context("the kernel has no IP counter FragFails")?;
    let v4: u64 = values.split(' ').nth(column).context("FragFails has no value")?.parse()?;
    let v6 = host.sh("cat /proc/net/snmp6")?;
    let v6 = v6
        .lines()
        .find_map(|line| line.strip_prefix("Ip6FragFails"))
        .context("the kernel has no IP counter Ip6FragFails")?;
    Ok(v4 + v6.trim().parse::<u64>()?)
}

/// Returns the number of packets that a link of `host` did not hand over to its other end.
fn not_taken(host: &Host) -> Result<u64> {
    let links: Vec<Value> = serde_json::from_str(&host.sh("ip -s -j link show type veth")?)?;
    links
        .iter()
        .map(|link| link["stats64"]["tx"]["dropped"].as_u64().context("ip reports no counter of dropped packets"))
        .sum::<Result<u64>>()
}
