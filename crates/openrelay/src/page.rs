//! `openrelay verify`: explains why a relay is accepted or refused.
//!
//! Owns the text page, and the same facts as JSON for status. It lists what was found; it never says "trusted".

use std::path::Path;

use alloy_primitives::Address;
use openrelay_attest::facts::{Crl, Tcb};
use openrelay_attest::policy::Policy;
use openrelay_attest::verdict::{Image, ImageState};
use openrelay_attest::{Facts, Refusal};
use openrelay_ledger::directory::Source;
use openrelay_ledger::hex;
use openrelay_ledger::record::{Record, Role};
use openrelay_node::attestation::JudgedRelays;
use openrelay_node::client::{AttestedHop, Options, attested_hop, judged_of};
use openrelay_node::clock::unix_seconds;
use openrelay_node::directory::VerifiedDirectory;
use serde_json::{Value, json};

use crate::control::folders;
use crate::failure::Failure;
use crate::ledger::directory_shown;
use crate::{Program, say};

/// Judges the relays of a directory as for a circuit. Returns `None` where they are the user's own and prove nothing.
pub(crate) fn judge(
    program: &Program,
    config: &Path,
    directory: &VerifiedDirectory,
) -> Result<Option<JudgedRelays>, Failure> {
    let options = Options { one_hop: false, folders: folders(), standard: program.standard.clone() };
    Ok(judged_of(config, directory, &options)?)
}

/// Returns in one word what evidence stands behind the hops of a circuit.
pub(crate) fn attestation(hops: &[AttestedHop]) -> &'static str {
    match hops {
        [] => "none",
        // One simulated hop proves nothing, whatever the other one is.
        hops if hops.iter().any(|hop| hop.verdict.facts().simulated) => "sim",
        _ => "verified",
    }
}

/// Returns the generation of an image's firmware in words.
pub(crate) fn generation(image: &Image) -> String {
    image.firmware_generation.map_or_else(|| "generation not stated".into(), |number| format!("generation {number}"))
}

/// Returns the findings about a hop as JSON.
pub(crate) fn hop_json(hop: &AttestedHop) -> Value {
    let (facts, binding) = (hop.verdict.facts(), hop.verdict.binding());
    json!({
        "relay": hop.relay_id,
        "platform": facts.platform.name(),
        "simulated": facts.simulated,
        "product": facts.product,
        "image": hex::encode(&binding.image),
        "image_round": hop.round,
        "image_state": state(hop.verdict.image()),
        "image_rebuilt_by": addresses(&hop.rebuilt_by),
        "handshake_key": hex::encode(&binding.handshake_key),
        "key_epoch": binding.key_epoch,
        "block": binding.block_height,
        "signed_by": facts.key.name(),
        "chip": facts.chip.map(|chip| hex::encode(&chip[..8])),
        "smt": facts.smt,
        "firmware": firmware(facts),
        "custody": "unknown",
        "expires": facts.expires,
    })
}

/// Prints the page of one relay, or one line for each relay.
///
/// # Errors
///
/// Exit code 5 if a relay in the output is refused.
pub(crate) fn verify(program: &Program, config: &Path, relay: Option<u64>, as_json: bool) -> Result<(), Failure> {
    let directory = directory_shown(config)?;
    let judged = judge(program, config, &directory)?;
    let Some(relay_id) = relay else {
        list(&directory, judged.as_ref(), as_json);
        let all = directory.directory().body().relays.len();
        return match judged.map_or(0, |judged| judged.refused().count()) {
            0 => Ok(()),
            refused => Err(Failure::new(5, format!("{refused} of {all} relays are refused"))),
        };
    };
    if as_json {
        let record = directory.directory().relay(relay_id);
        let record = record.ok_or_else(|| crate::ledger::no_such_relay(config, &directory, relay_id))?;
        say(&whole_json(vec![relay_json(record, judged.as_ref())], judged.as_ref()));
    } else {
        crate::ledger::verify(config, &directory, relay_id)?;
        match &judged {
            None => say("evidence       none: this directory lists your own relays, which prove nothing"),
            Some(judged) => tell(&directory, judged, relay_id),
        }
        say_fault(judged.as_ref());
    }
    match judged.map(|judged| judged.verdict(relay_id).err()) {
        Some(Some(refusal)) => Err(Failure::new(5, format!("relay {relay_id} is refused [{}]", refusal.code()))),
        Some(None) | None => Ok(()),
    }
}

fn list(directory: &VerifiedDirectory, judged: Option<&JudgedRelays>, as_json: bool) {
    let relays = &directory.directory().body().relays;
    if as_json {
        let relays: Vec<Value> = relays.iter().map(|record| relay_json(record, judged)).collect();
        say(&whole_json(relays, judged));
        return;
    }
    for record in relays {
        let said = match judged.map(|judged| judged.verdict(record.relay_id)) {
            None => "your own relay: proves nothing".to_owned(),
            Some(Ok(verdict)) => {
                let facts = verdict.facts();
                let (image, state) = (hex::encode(&verdict.binding().image[..4]), state(verdict.image()));
                format!("{}{} {}   image {image}… {state}", simulated(facts), facts.platform.name(), facts.product)
            }
            Some(Err(refusal)) => format!("REFUSED [{}] {refusal}", refusal.code()),
        };
        say(&format!("{:>6}  {:<8} {said}", record.relay_id, record.role.to_string()));
    }
    say_fault(judged);
}

fn whole_json(relays: Vec<Value>, judged: Option<&JudgedRelays>) -> String {
    json!({"schema": "openrelay.verify/1", "relays": relays, "fault": judged.and_then(JudgedRelays::fault)}).to_string()
}

fn say_fault(judged: Option<&JudgedRelays>) {
    if let Some(fault) = judged.and_then(JudgedRelays::fault) {
        say(&format!("no relay can be verified: {fault}"));
    }
}

fn relay_json(record: &Record, judged: Option<&JudgedRelays>) -> Value {
    let found = judged.and_then(|judged| attested_hop(judged, record.relay_id));
    let refusal = judged.and_then(|judged| judged.verdict(record.relay_id).err());
    json!({
        "relay": record.relay_id,
        "role": record.role.to_string(),
        "operator": record.operator,
        "believed": refusal.is_none() && judged.is_some(),
        "evidence": found.as_ref().map(hop_json),
        "refused": refusal.map(|refusal| json!({
            "code": refusal.code(), "why": refusal.to_string(), "next": refusal.next_step(),
        })),
    })
}

fn simulated(facts: &Facts) -> &'static str {
    if facts.simulated { "SIMULATED " } else { "" }
}

/// Returns the state of an image in one word.
pub(crate) const fn state(state: ImageState) -> &'static str {
    match state {
        ImageState::Pending => "pending",
        ImageState::Active => "active",
        ImageState::Deprecated => "deprecated",
        ImageState::Retired => "retired",
        ImageState::Suspended => "suspended",
        ImageState::Revoked => "revoked",
    }
}

/// Returns addresses in their written form.
pub(crate) fn addresses<'a>(all: impl IntoIterator<Item = &'a [u8; 20]>) -> Vec<String> {
    all.into_iter().map(|address| Address::from(*address).to_string()).collect()
}

/// Returns in words which rebuilders have signed an image, and what the policy requires.
pub(crate) fn rebuilders(policy: &Policy, image: &Image) -> String {
    let named = addresses(policy.named_rebuilders(image));
    // Anybody can sign, so signatures by keys outside the policy carry no weight.
    let others = image.rebuilt_by.len() - named.len();
    let others = format!("{others} signatures by others, which do not count");
    match (policy.rebuilders.len(), named.as_slice()) {
        (0, _) => format!("the policy lists none; {others}"),
        (all, []) => format!("0 of {all} in the policy signed, {} required; {others}", policy.rebuilders_needed),
        (all, found) => {
            let (count, needed) = (found.len(), policy.rebuilders_needed);
            format!(
                "{} signed that they rebuilt it: {count} of {all} in the policy, {needed} required; {others}",
                found.join(", ")
            )
        }
    }
}

fn firmware(facts: &Facts) -> String {
    match &facts.tcb {
        Tcb::Intel { status, advisories, evaluation } => {
            let known = if advisories.is_empty() { String::new() } else { format!(", {}", advisories.join(" ")) };
            format!("{status} in Intel's evaluation {evaluation}{known}")
        }
        Tcb::Amd { reported, .. } => format!(
            "boot loader {}, TEE {}, SNP {}, microcode {}",
            reported.boot_loader, reported.tee, reported.snp, reported.microcode
        ),
    }
}

/// Prints the page of one relay after its record.
fn tell(directory: &VerifiedDirectory, judged: &JudgedRelays, relay_id: u64) {
    if let Err(refusal) = judged.verdict(relay_id) {
        say(&format!("evidence       REFUSED [{}]: {refusal}", refusal.code()));
        say(&format!("               {}", refusal.next_step()));
        say(&others(judged, relay_id));
        return;
    }
    let Some(hop) = attested_hop(judged, relay_id) else { return };
    let (facts, binding) = (hop.verdict.facts(), hop.verdict.binding());
    let smt = match facts.smt {
        Some(true) => "two threads share a core",
        Some(false) => "no threads share a core",
        None => "unknown whether threads share a core",
    };
    say(&format!(
        "evidence       {}{} {} version {}, signed by its {}; revocation {}",
        simulated(facts),
        facts.platform.name(),
        facts.product,
        facts.version,
        facts.key.name(),
        if facts.crl == Crl::Checked { "checked" } else { "not checked" }
    ));
    say(&format!("firmware       {}; {smt}", firmware(facts)));
    say("               debugging and migration are off: checked, not assumed");
    say(&format!("started        image {}", hex::encode(&binding.image)));
    let state = state(hop.verdict.image());
    say(&format!("               {state}, approved in round {} by validators that rebuilt it", hop.round));
    if let Some(approved) = judged.image(&hop.verdict) {
        say(&format!("rebuilders     {}", rebuilders(judged.policy(), &approved.image)));
    }
    say("key            the handshake key above was made inside; the chip signed it with the image that started");
    if let Source::Chain(chain) = directory.directory().source() {
        let old = unix_seconds().saturating_sub(chain.timestamp);
        let behind = chain.block.saturating_sub(binding.block_height);
        // The limits in `attest::verdict`.
        let most = if directory.is_newest_known() { 72 } else { 6 };
        say(&format!(
            "age            {behind} blocks before the newest, which is {old} s old; at most {most} h are accepted"
        ));
    }
    match facts.chip {
        Some(chip) => say(&format!("chip           {}…: no other relay may run on it", hex::encode(&chip[..8]))),
        None => say("chip           unknown: at most one such relay in a circuit"),
    }
    say("custody        unknown: nothing proves where the machine is; physical access defeats attestation");
    say("path rule      no two hops share operator, family, network or chip; two vendors when possible");
    match directory.directory().relay(relay_id).map(|record| record.role) {
        Some(Role::Ingress) => say("it sees        who you are, but not where you go"),
        Some(Role::Egress) => say("it sees        where you go, but not who you are"),
        None => {}
    }
    say(&others(judged, relay_id));
}

/// Returns a line with the other relays that are refused.
fn others(judged: &JudgedRelays, relay_id: u64) -> String {
    let others: Vec<(u64, &Refusal)> = judged.refused().filter(|(other, _)| *other != relay_id).collect();
    if others.is_empty() {
        return "refused        no other relay".into();
    }
    let said: Vec<String> = others.iter().map(|(other, refusal)| format!("{other} [{}]", refusal.code())).collect();
    format!("refused        {}", said.join("   "))
}
