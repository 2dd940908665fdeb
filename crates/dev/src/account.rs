//! The account: every datagram that was sent was received, or is in a counter of drops.
//!
//! Owns the equations between what clients and relays count, and the counters of the kernel on each host's side of the link, which judge them.

use std::net::IpAddr;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::host::Host;
use crate::topology::{FIRST_LIAR, PORT};

/// Datagrams that left a host and that reached it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Datagrams {
    pub(crate) sent: u64,
    pub(crate) received: u64,
}

impl Datagrams {
    /// What was added since `before`.
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

/// What a client counted, from the `traffic` of its status.
pub(crate) fn of_client(traffic: &Value) -> Result<Datagrams> {
    let sum = |keys: [&str; 3]| keys.map(|key| number(traffic, key)).iter().sum::<u64>();
    ensure!(
        sum(["received", "device_read", "originated"]) == sum(["delivered", "control", "sent"]) + drops(traffic),
        "the client's account does not add up: {traffic}"
    );
    Ok(Datagrams {
        sent: number(traffic, "sent"),
        received: number(traffic, "received") + number(traffic, "receive_overflows"),
    })
}

/// Names in the first column of the table of `docs/statistics.md` that begins with `heading`.
fn declared(heading: &str) -> Vec<&'static str> {
    let text = include_str!("../../../docs/statistics.md");
    let rows = text.lines().skip_while(|line| !line.starts_with(heading)).skip(2).take_while(|line| !line.is_empty());
    rows.filter_map(|row| row.split('`').nth(1)).collect()
}

/// Whether a relay says what the documentation says that it says: no name more, no name less.
fn is_declared(name: &str, line: &Value) -> Result<()> {
    let said = line.as_object().with_context(|| format!("the statistics of {name} are no object"))?;
    let drops = line["drops"].as_object().with_context(|| format!("no drops in the statistics of {name}"))?;
    let (statistics, reasons) = (declared("| statistic |"), declared("| drop |"));
    ensure!(
        said.len() == statistics.len() && statistics.iter().all(|one| said.contains_key(*one)),
        "docs/statistics.md declares {statistics:?}; {name} says {line}"
    );
    let other = drops.keys().find(|reason| !reasons.contains(&reason.as_str()));
    ensure!(other.is_none(), "{name} counts drops for {other:?}, which docs/statistics.md does not declare");
    Ok(())
}

/// What a relay counted, from its statistics.
pub(crate) fn of_relay(name: &str, line: &Value) -> Result<Datagrams> {
    is_declared(name, line)?;
    let parts = ["forwarded", "delivered", "control", "handshakes", "passed"].map(|key| number(line, key));
    let in_and_read = number(line, "received") + number(line, "device_read") + number(line, "originated");
    let out = parts.iter().sum::<u64>() + drops(line) + number(line, "sent") - number(line, "forwarded");
    ensure!(in_and_read == out, "the account of {name} does not add up: {line}");
    Ok(Datagrams {
        sent: number(line, "sent"),
        received: number(line, "received") + number(line, "receive_overflows") - number(line, "passed"),
    })
}

/// Makes the kernel of `host` count the datagrams of the protocol that leave it, that reach a socket, and that find none. Exact where trains are off: a
/// train is one packet to it. What comes is counted before the client's own firewall, which drops what other relays still say to clients of before.
pub(crate) fn watch(host: &Host) -> Result<()> {
    let (port, last) = (PORT, FIRST_LIAR + 3);
    let ports = format!("{{ {port}, {FIRST_LIAR}-{last} }}");
    host.sh(&format!(
        "nft 'table inet account {{ counter out {{ }}; counter in {{ }}; counter refused {{ }}; \
         chain out {{ type filter hook output priority 300; udp dport {ports} counter name out; udp sport {ports} udp dport != {ports} counter name out; }}; \
         chain heard {{ socket wildcard <= 1 counter name in return; counter name refused; }}; \
         chain in {{ type filter hook input priority -300; udp dport {ports} jump heard; udp sport {ports} udp dport != {ports} jump heard; }}; }}'",
    ))
    .map(drop)
}

/// What the kernel of a watched host has counted.
pub(crate) fn of_kernel(host: &Host) -> Result<Datagrams> {
    Ok(Datagrams { sent: packets(host, "out")?, received: packets(host, "in")? })
}

/// How many datagrams the kernel of a watched host has refused so far because nobody listened where they went.
pub(crate) fn refused(host: &Host) -> Result<u64> {
    packets(host, "refused")
}

/// How many datagrams have found nobody on a host: a mirror may ask a relay that is about to start. Source: proc(5), /proc/net/snmp and snmp6.
pub(crate) fn unheard(host: &Host) -> Result<u64> {
    let text = host.sh("cat /proc/net/snmp")?;
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Udp:")).map(str::split_whitespace);
    let (names, numbers) = lines.next().zip(lines.next()).context("no counters of UDP")?;
    let found = names.zip(numbers).find(|(name, _)| *name == "NoPorts");
    let v4: u64 = found.context("no counter of datagrams that found nobody")?.1.parse()?;
    let v6 = host.sh("cat /proc/net/snmp6")?;
    let v6 = v6.lines().find_map(|line| line.strip_prefix("Udp6NoPorts")).context("no Udp6NoPorts")?;
    Ok(v4 + v6.trim().parse::<u64>()?)
}

/// Makes the kernel of `host` count what it hears of datagrams that a machine at `address` did not take, for nothing listened in it yet. The machine's own kernel is not asked.
pub(crate) fn watch_machine(host: &Host, address: IpAddr) -> Result<()> {
    host.sh(&format!(
        "nft 'table inet machine {{ counter unheard {{ }}; chain in {{ type filter hook input priority -300; \
         ip saddr {address} icmp type destination-unreachable counter name unheard; }}; }}'",
    ))
    .map(drop)
}

/// How many datagrams from here a machine has not taken so far.
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
    fn every_reason_to_drop_a_packet_is_declared() {
        let reasons: Vec<&str> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        assert_eq!(declared("| drop |"), reasons);
    }

    #[test]
    fn a_name_more_or_less_is_noticed() {
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
