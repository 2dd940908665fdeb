//! The account of programs: every datagram that was sent was received or is in a counter of drops.
//!
//! Owns the equations between the counts of clients and relays. The kernel's counters on each host's side of the link
//! check them.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::net::account::Datagrams;

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
    let text = include_str!("../../../../docs/statistics.md");
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
