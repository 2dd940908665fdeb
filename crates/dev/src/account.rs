//! The account: every datagram that was sent was received or is in a counter of drops.
//!
//! Owns the equations between the counts of clients and relays. The kernel's counters on each host's side of the link
//! check them.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::host::Host;
use crate::topology::{FIRST_LIAR, PORT};

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

fn number(value: &Value, key: &str) -> u64 {
    value[key].as_u64().unwrap_or(0)
}

fn drops(value: &Value) -> u64 {
    value["drops"].as_object().map_or(0, |d| d.values().filter_map(Value::as_u64).sum())
}

/// Returns a client's counts, from the `traffic` of its status.
pub(crate) fn of_client(traffic: &Value) -> Result<Datagrams> {
    let sum = |keys: [&str; 3]| keys.map(|key| number(traffic, key)).iter().sum::<u64>();
    ensure!(
        sum(["received", "device_read", "originated"]) == sum(["delivered", "control", "sent"]) + drops(traffic),
        "the client's counts do not add up: {traffic}"
    );
    Ok(Datagrams {
        sent: number(traffic, "sent"),
        received: number(traffic, "received") + number(traffic, "receive_overflows"),
    })
}

/// Returns the names in the first column of the table of `docs/statistics.md` that begins with `heading`.
fn declared(heading: &str) -> Vec<&'static str> {
    let text = include_str!("../../../docs/statistics.md");
    let rows = text.lines().skip_while(|line| !line.starts_with(heading)).skip(2).take_while(|line| !line.is_empty());
    rows.filter_map(|row| row.split('`').nth(1)).collect()
}

/// Checks that a relay reports exactly the statistics that docs/statistics.md declares.
fn is_declared(name: &str, line: &Value) -> Result<()> {
    let said = line.as_object().with_context(|| format!("the statistics of {name} are not a JSON object"))?;
    let drops = line["drops"].as_object().with_context(|| format!("the statistics of {name} have no drops"))?;
    let (statistics, reasons) = (declared("| statistic |"), declared("| drop |"));
    ensure!(
        said.len() == statistics.len() && statistics.iter().all(|one| said.contains_key(*one)),
        "docs/statistics.md declares {statistics:?}; {name} reports {line}"
    );
    let other = drops.keys().find(|reason| !reasons.contains(&reason.as_str()));
    ensure!(other.is_none(), "{name} counts drops for {other:?}, which docs/statistics.md does not declare");
    Ok(())
}

/// Returns a relay's counts, from its statistics.
pub(crate) fn of_relay(name: &str, line: &Value) -> Result<Datagrams> {
    is_declared(name, line)?;
    let parts = ["forwarded", "delivered", "control", "handshakes", "passed"].map(|key| number(line, key));
    let in_and_read = number(line, "received") + number(line, "device_read") + number(line, "originated");
    let out = parts.iter().sum::<u64>() + drops(line) + number(line, "sent") - number(line, "forwarded");
    ensure!(in_and_read == out, "the counts of {name} do not add up: {line}");
    Ok(Datagrams {
        sent: number(line, "sent"),
        received: number(line, "received") + number(line, "receive_overflows") - number(line, "passed"),
    })
}

/// Makes the kernel of `host` count the protocol's datagrams that leave it, that reach a socket, and that find no
/// socket.
///
/// The counts are exact where trains are off, because the kernel counts a train as one packet. Arrivals are counted
/// before the client's own firewall, which drops what other relays still send to previous clients.
pub(crate) fn watch(host: &Host) -> Result<()> {
    let (port, last) = (PORT, FIRST_LIAR + 3);
    let ports = format!("{{ {port}, {FIRST_LIAR}-{last} }}");
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

#[cfg(test)]
mod tests {
    use super::*;
    use openrelay_proto::drops::DropReason;

    #[test]
    fn every_drop_reason_is_declared() {
        let reasons: Vec<&str> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(declared("| drop |"), reasons);
    }

    #[test]
    fn added_or_missing_statistic_is_refused() {
        let mut line =
            Value::Object(declared("| statistic |").into_iter().map(|name| (name.to_owned(), 0.into())).collect());
        line["drops"] = serde_json::json!({"replayed": 1});
        is_declared("relay", &line).unwrap();
        let changes: [fn(&mut Value); 3] = [
            |line| line["clients"] = 1.into(),
            |line| drop(line.as_object_mut().unwrap().remove("passed")),
            |line| line["drops"]["of-client"] = 1.into(),
        ];
        for change in changes {
            let mut other = line.clone();
            change(&mut other);
            assert!(is_declared("relay", &other).is_err(), "{other}");
        }
    }
}
