//! `openrelay verify`: explains why a relay is accepted or refused.
//!
//! Owns the text page and its JSON. It lists what was found; it never says "trusted".

use std::path::Path;

use openrelay_attest::facts::Crl;
use openrelay_attest::{Facts, Refusal};
use openrelay_chain::attestation::JudgedRelays;
use openrelay_client::attested_hop;
use openrelay_ledger::chain::descriptor::Descriptor;
use openrelay_ledger::chain::set::{ChainRecord, RecordSet, Status, record_hash};
use openrelay_ledger::directory::{Directory, Source};
use openrelay_ledger::hex;
use openrelay_ledger::record::{Record, Role};
use openrelay_node::clock::unix_seconds;
use openrelay_node::config::Origin;
use openrelay_node::directory::VerifiedDirectory;
use serde_json::{Value, json};

use crate::control::folders;
use crate::control::objects::HopV1;
use crate::directory::{directory_shown, nothing_kept, origin, proof_in_words};
use crate::failure::Failure;
use crate::findings::{firmware, judge, rebuilders, state};
use crate::output::say;
use crate::program::Program;

/// Prints the page of one relay, or one line for each relay.
///
/// # Errors
///
/// Exit code 5 if a relay in the output is refused.
pub(crate) fn run(program: &Program, config: &Path, relay: Option<u64>, as_json: bool) -> Result<(), Failure> {
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
        let record = record.ok_or_else(|| no_such_relay(config, &directory, relay_id))?;
        say(&whole_json(vec![relay_json(record, judged.as_ref())], judged.as_ref()));
    } else {
        print_proof(config, &directory, relay_id)?;
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
        "evidence": found.as_ref().map(HopV1::from),
        "refused": refusal.map(|refusal| json!({
            "code": refusal.code(), "why": refusal.to_string(), "next": refusal.next_step(),
        })),
    })
}

fn simulated(facts: &Facts) -> &'static str {
    if facts.simulated { "SIMULATED " } else { "" }
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
    say("key            the handshake key above was made inside; the chip signed it and the measured image");
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

/// Prints how the handshake key of a relay is proven.
fn print_proof(config: &Path, directory: &VerifiedDirectory, relay_id: u64) -> Result<(), Failure> {
    let chain = match origin(config)? {
        Origin::Chain(chain) => chain,
        Origin::Signed { .. } => return verify_signed(directory.directory(), relay_id),
    };
    let now = unix_seconds();
    let trusted = if folders().is_changed() {
        "shown by endpoints, or signed as a checkpoint, when the running client read it".to_owned()
    } else {
        format!("{} of {} endpoints show the same header", chain.quorum, chain.endpoints.len())
    };
    let reading = directory.reading().ok_or_else(nothing_kept)?;
    let (set, header) = reading.record_set(&chain.trust(), now, chain.max_age_s, 0).map_err(Failure::plain)?;
    say(&format!("block          {} {}   {} s old", header.number, header.hash, now.saturating_sub(header.timestamp)));
    say(&format!("header         {trusted}; its hash was computed here. Only this is taken on trust"));
    say(&format!("state root     {}", header.state_root));
    say(&format!(
        "account        {} proven by {} nodes; its code is the expected one",
        chain.directory,
        reading.proof.len()
    ));
    say(&format!("storage root   {}", reading.account.storage_root));
    let total = set.records.len() + set.withheld.len() + set.malformed.len();
    say(&format!("records        {total}; together they give this storage root: none is missing, none was added"));
    let Some(record) = set.records.iter().find(|record| record.registration.relay_id == relay_id) else {
        return Err(Failure::new(5, missing(relay_id, &set)));
    };
    print_record(record);
    Ok(())
}

/// Returns why a relay is not in a directory.
fn no_such_relay(config: &Path, directory: &VerifiedDirectory, relay_id: u64) -> Failure {
    let set = match (origin(config), directory.reading()) {
        (Ok(Origin::Chain(chain)), Some(reading)) => {
            reading.record_set(&chain.trust(), unix_seconds(), chain.max_age_s, 0).ok().map(|(set, _)| set)
        }
        _ => None,
    };
    let known = |set: &RecordSet| set.records.iter().any(|record| record.registration.relay_id == relay_id);
    let why = match set {
        Some(set) if !known(&set) => missing(relay_id, &set),
        Some(_) => format!("relay {relay_id} accepts no circuits"),
        None => format!("relay {relay_id} is not in the directory"),
    };
    Failure::new(5, why)
}

fn missing(relay_id: u64, set: &RecordSet) -> String {
    if set.withheld.iter().any(|registration| registration.relay_id == relay_id) {
        format!("relay {relay_id} is on the chain but cannot be used: no source has its descriptor")
    } else if set.malformed.contains(&relay_id) {
        format!("relay {relay_id} is on the chain but cannot be used: its descriptor is malformed")
    } else {
        format!("relay {relay_id} is not on the chain")
    }
}

fn print_record(record: &ChainRecord) {
    let (registration, descriptor) = (&record.registration, &record.descriptor);
    // A decoded descriptor always encodes: both directions apply the same checks.
    let bytes = descriptor.encode().unwrap_or_default();
    let hash = record_hash(registration, Descriptor::hash(&bytes));
    let status = match registration.status {
        Status::Active if registration.bond_class == 0 => "bond too small: accepts no circuits",
        Status::Active => "active",
        Status::Draining => "draining: accepts no new circuits",
        Status::Unbonding => "leaving: accepts no circuits",
    };
    let endpoints: Vec<String> = descriptor.endpoints.iter().map(ToString::to_string).collect();
    say(&format!("record         {hash}"));
    say(&format!("relay          {} {} at {}   {status}", registration.relay_id, descriptor.role, endpoints.join(" ")));
    say(&format!(
        "operator       {}   {} Mbit/s advertised, bond class {}",
        registration.operator, registration.advertised_mbit, registration.bond_class
    ));
    say(&format!("handshake key  {} epoch {}", hex::encode(&descriptor.handshake_key), descriptor.key_epoch));
    say("               a circuit to this relay uses this key or does not open");
}

fn verify_signed(directory: &Directory, relay_id: u64) -> Result<(), Failure> {
    say(&proof_in_words(directory));
    let relay = directory
        .relay(relay_id)
        .ok_or_else(|| Failure::new(5, format!("relay {relay_id} is not in the directory")))?;
    say(&format!("relay          {} {}   operator {}", relay.relay_id, relay.role, relay.operator));
    say(&format!("handshake key  {} epoch {}", relay.handshake_key, relay.key_epoch));
    say("               a circuit to this relay uses this key or does not open");
    Ok(())
}
