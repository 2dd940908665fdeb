//! What links lose: every datagram that a scenario makes a path lose is in a counter of where it was dropped.
//!
//! Owns a table on the core and on the NAT that drops what it is told to and counts it, and the kernel's own counters of links: what was larger than a
//! link takes, and what a link did not take over. Never drops what nobody asked it to.

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::host::Host;
use crate::topology::Network;

const TABLE: &str = "inet loss";

/// Begins to count on the hosts that forward.
pub(crate) fn watch(network: &Network) -> Result<()> {
    for host in forwarding(network)? {
        // Before conntrack, so that what is lost has no trace at the NAT.
        host.sh(&format!(
            "nft 'table {TABLE} {{ counter lost {{ }}; chain lose {{ type filter hook prerouting priority -350; }}; }}'"
        ))?;
    }
    Ok(())
}

/// From now on `host`, the core or the NAT, loses what matches one of `rules`.
pub(crate) fn lose(host: &Host, rules: &[&str]) -> Result<()> {
    with_verdict(host, rules, "drop")
}

/// Like [`lose`], but `host` says to the sender that there is no way.
pub(crate) fn refuse(host: &Host, rules: &[&str]) -> Result<()> {
    with_verdict(host, rules, "reject with icmpx no-route")
}

fn with_verdict(host: &Host, rules: &[&str], verdict: &str) -> Result<()> {
    let lines: Vec<String> =
        rules.iter().map(|rule| format!("add rule {TABLE} lose {rule} counter name lost {verdict}")).collect();
    host.sh(&format!("nft '{}'", lines.join("; "))).map(drop)
}

/// From now on `host` loses nothing.
pub(crate) fn mend(host: &Host) -> Result<()> {
    host.sh(&format!("nft flush chain {TABLE} lose")).map(drop)
}

/// How many packets have been dropped by the rules of [`lose`] and by links since the beginning.
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

/// Packets that were larger than the next link takes and were not to be cut.
fn too_large(host: &Host) -> Result<u64> {
    let v4 = host.sh("cat /proc/net/snmp")?;
    let mut lines = v4.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let column = names.split(' ').position(|name| name == "FragFails").context("the kernel counts no FragFails")?;
    let v4: u64 = values.split(' ').nth(column).context("no value of FragFails")?.parse()?;
    let v6 = host.sh("cat /proc/net/snmp6")?;
    let v6 = v6.lines().find_map(|line| line.strip_prefix("Ip6FragFails")).context("no Ip6FragFails")?;
    Ok(v4 + v6.trim().parse::<u64>()?)
}

/// Packets that a link of `host` did not hand over to its other end.
fn not_taken(host: &Host) -> Result<u64> {
    let links: Vec<Value> = serde_json::from_str(&host.sh("ip -s -j link show type veth")?)?;
    links
        .iter()
        .map(|link| link["stats64"]["tx"]["dropped"].as_u64().context("ip counts no drops of links"))
        .sum::<Result<u64>>()
}
