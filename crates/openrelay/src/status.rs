//! `openrelay status`: prints what the daemon reports.
//!
//! Owns the status in text and the counts as JSON. It reads only the control socket and the note of changes to the
//! host.

use openrelay_client::Counts;
use openrelay_ledger::selection::percent;
use serde_json::{Value, json};

use crate::control::{ask, folders};
use crate::failure::Failure;
use crate::output::say;

/// Prints the daemon's status.
///
/// # Errors
///
/// Exit code 3 if there is no daemon or it is not connected.
pub(crate) fn run(as_json: bool) -> Result<(), Failure> {
    let answer = ask("GET", "/v1/status")?;
    let value = answer.unwrap_or_else(|| {
        // A daemon that ended without restoring the host left the firewall closed.
        let state = if folders().is_changed() { "blocked" } else { "down" };
        json!({ "schema": "openrelay.status/1", "state": state })
    });
    if as_json {
        say(&value.to_string());
    } else {
        for line in lines(&value) {
            say(&line);
        }
    }
    if value["state"] == "connected" { Ok(()) } else { Err(Failure::new(3, "")) }
}

/// Maximum number of columns of a line.
const COLUMNS: usize = 100;

/// Returns the status in lines of at most 100 columns; the first line answers the question.
fn lines(status: &Value) -> Vec<String> {
    let text = |key: &str| status[key].as_str().unwrap_or("?").to_owned();
    let number = |key: &str| status[key].as_u64().unwrap_or(0);
    let state = text("state");
    match state.as_str() {
        "down" => return vec!["Down        traffic does not use the tunnel; connect with: openrelay up".into()],
        "connecting" => return vec!["Connecting".into()],
        "blocked" if status["network"].is_null() => {
            return vec!["Blocked     the daemon crashed; all traffic is blocked. Run: openrelay down".into()];
        }
        _ => {}
    }
    let path = match status["ingress"].as_u64() {
        Some(ingress) => format!("you → ingress {ingress} → egress {} → internet", number("egress")),
        None => format!("you → egress {} → internet   ONE HOP: it sees your address", number("egress")),
    };
    let mut lines = vec![match state.as_str() {
        "connected" => format!("Connected   {path}     {} s", number("connected_s")),
        _ if !status["refused"].is_null() => {
            "Blocked     a relay is no longer accepted; all traffic is blocked. Run: openrelay down".to_owned()
        }
        _ => "Blocked     the circuit was lost; all traffic is blocked. Run: openrelay down".to_owned(),
    }];
    let operator = if status["single_operator"] == true { "   one operator runs all relays" } else { "" };
    let by = match status["directory_proof"]["block"].as_u64() {
        Some(block) => match status["directory_read_s"].as_u64() {
            Some(ago) => format!("directory proven at block {block}, read {ago} s ago"),
            None => format!("directory proven at block {block}"),
        },
        None => format!("directory {} number {}", text("directory"), number("directory_sequence")),
    };
    lines.push(format!("  network     {} ({by}){operator}", text("network")));
    let proof = &status["directory_proof"];
    if let Some(missing @ 1..) = proof["missing_permille"].as_u64().and_then(|missing| u16::try_from(missing).ok()) {
        let (relays, share) = (&proof["withheld"], percent(missing));
        lines.push(format!("  missing     descriptors of {relays} relays, up to {share} of the weight of a role"));
    }
    if let Some(warning) = status["directory_warning"].as_str() {
        lines.push(shortened(&format!("  directory   {warning}")));
    }
    if status["insecure"] == true {
        lines.push("  INSECURE    chain.toml allows plain HTTP or a single endpoint, which can hide new blocks".into());
    }
    if status["hops_listed"] == false {
        lines.push("  relays      a relay has left the directory; reconnect with: openrelay down, openrelay up".into());
    }
    if let Some(state @ ("revoked" | "suspended" | "retired")) = status["program"].as_str() {
        lines.push(format!("  program     validators have {state} this version; run: openrelay update"));
    }
    if let Some(refused) = status["refused"].as_str() {
        lines.push(shortened(&format!("  refused     {refused}")));
    }
    lines.push(format!("  relays      attestation {}   admission {}", text("attestation"), text("admission")));
    for hop in status["evidence"].as_array().into_iter().flatten() {
        let text = |key: &str| hop[key].as_str().unwrap_or("?");
        let (simulated, relay) = (if hop["simulated"] == true { "SIMULATED " } else { "" }, hop["relay"].to_string());
        let image: String = text("image").chars().take(8).collect();
        let of = format!("{simulated}{} {}", text("platform"), text("product"));
        lines.push(shortened(&format!("              {relay}: {of}   image {image}…   openrelay verify {relay}")));
    }
    let traffic = &status["traffic"];
    let bytes = |key: &str| traffic[key].as_u64().unwrap_or(0);
    lines.push(format!(
        "  tunnel      {}   MTU {}   up {} B   down {} B   connected in {} ms",
        text("device"),
        number("mtu"),
        bytes("device_read_bytes"),
        bytes("delivered_bytes"),
        number("setup_ms")
    ));
    lines
}

/// Returns a line cut to the columns that fit; `status --json` has the whole text.
fn shortened(line: &str) -> String {
    if line.chars().count() <= COLUMNS {
        line.to_owned()
    } else {
        line.chars().take(COLUMNS - 1).chain(['…']).collect()
    }
}

/// Returns a client's counts as JSON.
pub(crate) fn counts_json(counts: &Counts) -> Value {
    let drops: serde_json::Map<String, Value> =
        counts.drops.iter().map(|(reason, count)| (reason.name().to_owned(), count.into())).collect();
    json!({
        "device_read": counts.device_read,
        "device_read_bytes": counts.device_read_bytes,
        "sent": counts.sent,
        "originated": counts.originated,
        "received": counts.received,
        "delivered": counts.delivered,
        "delivered_bytes": counts.delivered_bytes,
        "control": counts.control,
        "receive_overflows": counts.overflows,
        "drops": drops,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_line_answers_and_no_line_is_too_long() {
        let status = json!({
            "state": "connected", "ingress": 1, "egress": 3, "network": "home", "directory": "file",
            "directory_sequence": 7, "single_operator": true, "attestation": "none", "admission": "open",
            "device": "orp0", "mtu": 1408, "setup_ms": 12, "connected_s": 60,
            "traffic": { "device_read_bytes": 1, "delivered_bytes": 2 }
        });
        let shown = lines(&status);
        assert!(shown[0].starts_with("Connected   you → ingress 1 → egress 3"));
        assert!(shown.iter().all(|line| line.chars().count() <= 100), "{shown:?}");
        let mut one_hop = status;
        one_hop["ingress"] = Value::Null;
        assert!(lines(&one_hop)[0].contains("ONE HOP"));
        assert!(!lines(&one_hop).concat().contains("INSECURE"));
        let mut stale = one_hop;
        stale["directory_warning"] = "no endpoint answered; ".repeat(20).into();
        stale["hops_listed"] = false.into();
        stale["directory_proof"] = json!({"block": 7, "withheld": 12, "missing_permille": 31});
        stale["insecure"] = true.into();
        stale["state"] = "blocked".into();
        stale["program"] = "revoked".into();
        stale["refused"] = "relay 3 is refused: validators have revoked its image".into();
        stale["evidence"] = json!([{
            "relay": 3, "simulated": true, "platform": "SEV-SNP", "product": "Genoa", "image": "00112233445566"
        }]);
        let shown = lines(&stale).join("\n");
        assert!(shown.starts_with("Blocked     a relay is no longer accepted"), "{shown}");
        for words in [
            "no endpoint answered",
            "INSECURE",
            "has left the directory",
            "descriptors of 12 relays, up to 3.1 % of the weight of a role",
            "have revoked its image",
            "program     validators have revoked this version; run: openrelay update",
            "3: SIMULATED SEV-SNP Genoa   image 00112233…",
        ] {
            assert!(shown.contains(words), "{shown}");
        }
        assert!(shown.lines().all(|line| line.chars().count() <= 100), "{shown}");
    }
}
