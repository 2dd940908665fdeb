//! The account of the kernel: how many datagrams left each host, reached a socket, or found none.
//!
//! Owns tables on the hosts that count at the ends of the links.

use std::net::IpAddr;

use anyhow::{Context as _, Result};

use super::host::Host;
use super::network::{LAST_PORT, MORE_PORTS, PORT};

/// Numbers of datagrams that left a host and that reached it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Datagrams {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl Datagrams {
    /// Returns what was added since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { sent: self.sent - before.sent, received: self.received - before.received }
    }
}

impl std::ops::AddAssign for Datagrams {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.received += other.received;
    }
}

/// Makes the kernel of `host` count the datagrams of the watched ports that leave it, that reach a socket, and that
/// find no socket.
///
/// The counts are exact where trains are off, because the kernel counts a train as one packet. Arrivals are counted
/// before the client's own firewall, which drops what other relays still send to previous clients.
pub(crate) fn watch(host: &Host) -> Result<()> {
    let ports = format!("{{ {PORT}, {MORE_PORTS}-{LAST_PORT} }}");
    host.sh(&format!(
        "nft 'table inet account {{ counter out {{ }}; counter in {{ }}; counter refused {{ }}; \
         chain out {{ type filter hook output priority 300; udp dport {ports} counter name out; \
         udp sport {ports} udp dport != {ports} counter name out; }}; \
         chain heard {{ socket wildcard <= 1 counter name in return; counter name refused; }}; \
         chain in {{ type filter hook input priority -300; udp dport {ports} jump heard; \
         udp sport {ports} udp dport != {ports} jump heard; }}; }}'",
    ))
    .map(drop)
}

/// Returns the counts of a watched host's kernel.
pub(crate) fn of_kernel(host: &Host) -> Result<Datagrams> {
    Ok(Datagrams { sent: packets(host, "out")?, received: packets(host, "in")? })
}

/// Returns how many datagrams the kernel of a watched host has refused because no socket listened at their port.
pub(crate) fn refused(host: &Host) -> Result<u64> {
    packets(host, "refused")
}

/// Returns how many datagrams found no socket on a host. A mirror may query a relay that has not started yet.
///
/// Source: proc(5), /proc/net/snmp and snmp6.
pub(crate) fn unheard(host: &Host) -> Result<u64> {
    let text = host.sh("cat /proc/net/snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp:")).map(str::split_whitespace);
    let (names, numbers) = lines.next().zip(lines.next()).context("the kernel reports no UDP counters")?;
    let found = names.zip(numbers).find(|(name, _)| *name == "NoPorts");
    let v4: u64 = found.context("the kernel has no UDP counter NoPorts")?.1.parse()?;
    let v6 = host.sh("cat /proc/net/snmp6")?;
    let v6 = v6
        .lines()
        .find_map(|line| line.strip_prefix("Udp6NoPorts"))
        .context("the kernel has no UDP counter Udp6NoPorts")?;
    Ok(v4 + v6.trim().parse::<u64>()?)
}

/// Makes the kernel of `host` count the ICMP errors for datagrams that a machine at `address` did not take.
///
/// A machine takes none until its relay listens. The machine's own kernel is not queried.
pub(crate) fn watch_machine(host: &Host, address: IpAddr) -> Result<()> {
    host.sh(&format!(
        "nft 'table inet machine {{ counter unheard {{ }}; chain in {{ type filter hook input priority -300; \
         ip saddr {address} icmp type destination-unreachable counter name unheard; }}; }}'",
    ))
    .map(drop)
}

/// Returns how many datagrams from `host` the machine has not taken so far.
pub(crate) fn unheard_by_machine(host: &Host) -> Result<u64> {
    host.counter("inet machine", "unheard").map(|(packets, _)| packets)
}

fn packets(host: &Host, name: &str) -> Result<u64> {
    host.counter("inet account", name).map(|(packets, _)| packets)
}
