//! `openrelay status`: prints what the daemon reports.
//!
//! Owns the status in text. It reads only the control socket and the note of changes to the host.

use openrelay_ledger::selection::percent;

use crate::control::objects::{CircuitV1, HopV1, State, StatusV1};
use crate::control::{ask, folders};
use crate::failure::Failure;
use crate::output::say;

/// Prints the daemon's status.
///
/// # Errors
///
/// Exit code 3 if there is no daemon or it is not connected.
pub(crate) fn run(as_json: bool) -> Result<(), Failure> {
    let status = match ask("GET", "/v1/status")? {
        Some(answer) => serde_json::from_value(answer)
            .map_err(|error| Failure::plain(format!("the daemon's answer is malformed: {error}")))?,
        // A daemon that ended without restoring the host left the firewall closed.
        None => StatusV1::new(if folders().is_changed() { State::Blocked } else { State::Down }, None),
    };
    if as_json {
        say(&serde_json::to_string(&status).map_err(Failure::plain)?);
    } else {
        for line in lines(&status) {
            say(&line);
        }
    }
    if status.state == State::Connected { Ok(()) } else { Err(Failure::new(3, "")) }
}

/// Maximum number of columns of a line.
const COLUMNS: usize = 100;

/// Returns the status in lines of at most 100 columns; the first line answers the question.
fn lines(status: &StatusV1) -> Vec<String> {
    let first = |circuit: &CircuitV1| match status.state {
        State::Connected => {
            format!("Connected   {}     {} s", path(circuit), circuit.connected_s.unwrap_or(0))
        }
        State::Blocked if circuit.refused.is_some() => {
            "Blocked     a relay is no longer accepted; all traffic is blocked. Run: openrelay down".to_owned()
        }
        State::Blocked => "Blocked     the circuit was lost; all traffic is blocked. Run: openrelay down".to_owned(),
        State::Down | State::Connecting => "Connecting".to_owned(),
    };
    match (&status.circuit, status.state) {
        (_, State::Down) => vec!["Down        traffic does not use the tunnel; connect with: openrelay up".into()],
        (None, State::Blocked) => {
            vec!["Blocked     the daemon crashed; all traffic is blocked. Run: openrelay down".into()]
        }
        (None, State::Connecting | State::Connected) => vec!["Connecting".into()],
        (Some(circuit), State::Connecting | State::Connected | State::Blocked) => {
            let mut lines = vec![first(circuit)];
            lines.extend(directory(circuit));
            if let Some(refused) = &circuit.refused {
                lines.push(shortened(&format!("  refused     {refused}")));
            }
            lines.push(format!("  relays      attestation {}   admission {}", circuit.attestation, circuit.admission));
            lines.extend(circuit.evidence.iter().map(evidence));
            lines.push(format!(
                "  tunnel      {}   MTU {}   up {} B   down {} B   connected in {} ms",
                circuit.device,
                circuit.mtu,
                circuit.traffic.device_read_bytes,
                circuit.traffic.delivered_bytes,
                circuit.setup_ms
            ));
            lines
        }
    }
}

fn path(circuit: &CircuitV1) -> String {
    match circuit.ingress {
        Some(ingress) => format!("you → ingress {ingress} → egress {} → internet", circuit.egress),
        None => format!("you → egress {} → internet   ONE HOP: it sees your address", circuit.egress),
    }
}

/// Returns the lines about the directory and what it says of relays and program.
fn directory(circuit: &CircuitV1) -> Vec<String> {
    let operator = if circuit.single_operator { "   one operator runs all relays" } else { "" };
    let by = match (&circuit.directory_proof, circuit.directory_read_s) {
        (Some(proof), Some(ago)) => format!("directory proven at block {}, read {ago} s ago", proof.block),
        (Some(proof), None) => format!("directory proven at block {}", proof.block),
        (None, _) => format!("directory {} number {}", circuit.directory, circuit.directory_sequence),
    };
    let mut lines = vec![format!("  network     {} ({by}){operator}", circuit.network)];
    if let Some(proof) = circuit.directory_proof.as_ref().filter(|proof| proof.missing_permille > 0) {
        let (relays, share) = (proof.withheld, percent(proof.missing_permille));
        lines.push(format!("  missing     descriptors of {relays} relays, up to {share} of the weight of a role"));
    }
    if let Some(warning) = &circuit.directory_warning {
        lines.push(shortened(&format!("  directory   {warning}")));
    }
    if circuit.insecure {
        lines.push("  INSECURE    chain.toml allows plain HTTP or a single endpoint, which can hide new blocks".into());
    }
    if circuit.hops_listed == Some(false) {
        lines.push("  relays      a relay has left the directory; reconnect with: openrelay down, openrelay up".into());
    }
    if let Some(state @ ("revoked" | "suspended" | "retired")) = circuit.program.as_deref() {
        lines.push(format!("  program     validators have {state} this version; run: openrelay update"));
    }
    lines
}

/// Returns the line about a hop's evidence.
fn evidence(hop: &HopV1) -> String {
    let simulated = if hop.simulated { "SIMULATED " } else { "" };
    let image: String = hop.image.chars().take(8).collect();
    let (relay, of) = (hop.relay, format!("{simulated}{} {}", hop.platform, hop.product));
    shortened(&format!("              {relay}: {of}   image {image}…   openrelay verify {relay}"))
}

/// Returns a line cut to the columns that fit; `status --json` has the whole text.
fn shortened(line: &str) -> String {
    if line.chars().count() <= COLUMNS {
        line.to_owned()
    } else {
        line.chars().take(COLUMNS - 1).chain(['…']).collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn shown(status: &Value) -> Vec<String> {
        lines(&serde_json::from_value(status.clone()).unwrap())
    }

    #[test]
    fn first_line_answers_and_no_line_is_too_long() {
        let status = json!({
            "schema": "openrelay.status/1", "state": "connected", "hops": 2, "ingress": 1, "egress": 3,
            "network": "home", "directory": "file", "directory_sequence": 7, "directory_proof": null,
            "directory_read_s": null, "directory_warning": null, "insecure": false, "hops_listed": null,
            "single_operator": true, "attestation": "none", "admission": "open", "evidence": [], "refused": null,
            "program": null, "device": "orp0", "mtu": 1408, "setup_ms": 12, "connected_s": 60,
            "traffic": {
                "device_read": 1, "device_read_bytes": 1, "sent": 1, "originated": 1, "received": 1, "delivered": 1,
                "delivered_bytes": 2, "control": 1, "receive_overflows": 0, "drops": {}
            }
        });
        let lines = shown(&status);
        assert!(lines[0].starts_with("Connected   you → ingress 1 → egress 3"));
        assert!(lines.iter().all(|line| line.chars().count() <= 100), "{lines:?}");
        let mut one_hop = status;
        one_hop["ingress"] = Value::Null;
        assert!(shown(&one_hop)[0].contains("ONE HOP"));
        assert!(!shown(&one_hop).concat().contains("INSECURE"));
        let mut stale = one_hop;
        stale["directory_warning"] = "no endpoint answered; ".repeat(20).into();
        stale["hops_listed"] = false.into();
        stale["directory_proof"] = json!({
            "block": 7, "block_hash": "0x00", "timestamp": 1, "withheld": 12, "malformed": 0, "inactive": 0,
            "missing_permille": 31
        });
        stale["insecure"] = true.into();
        stale["state"] = "blocked".into();
        stale["program"] = "revoked".into();
        stale["refused"] = "relay 3 is refused: validators have revoked its image".into();
        stale["evidence"] = json!([{
            "relay": 3, "simulated": true, "platform": "SEV-SNP", "product": "Genoa", "image": "00112233445566",
            "image_round": 1, "image_state": "revoked", "image_rebuilt_by": [], "handshake_key": "", "key_epoch": 1,
            "block": 7, "signed_by": "VCEK", "chip": null, "smt": null, "firmware": "", "custody": "unknown",
            "expires": 1
        }]);
        let shown = shown(&stale).join("\n");
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

    #[test]
    fn status_without_circuit_is_one_line() {
        for (state, begins) in [("down", "Down"), ("connecting", "Connecting"), ("blocked", "Blocked     the daemon")] {
            let status = json!({ "schema": "openrelay.status/1", "state": state });
            let shown = shown(&status);
            assert!(shown.len() == 1 && shown[0].starts_with(begins), "{shown:?}");
            let again: StatusV1 = serde_json::from_value(status.clone()).unwrap();
            assert_eq!(serde_json::to_value(&again).unwrap(), status);
        }
    }
}
