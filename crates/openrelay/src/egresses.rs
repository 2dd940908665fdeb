//! `openrelay egresses`: lists the egress relays of the directory.

use std::path::Path;

use openrelay_ledger::record::Role;
use serde_json::{Value, json};

use crate::control::objects::DirectoryProofV1;
use crate::directory::{directory_for, proof_in_words};
use crate::failure::Failure;
use crate::findings::judge;
use crate::output::say;
use crate::program::Program;

/// Lists egress relays.
pub(crate) fn run(program: &Program, config: &Path, as_json: bool) -> Result<(), Failure> {
    let directory = directory_for(config)?;
    let judged = judge(program, config, &directory)?;
    let refusal = |relay: u64| judged.as_ref().and_then(|judged| judged.verdict(relay).err());
    let directory = directory.directory();
    let egresses: Vec<_> = directory.body().relays.iter().filter(|relay| relay.role == Role::Egress).collect();
    if as_json {
        let list: Vec<Value> = egresses
            .iter()
            .map(|relay| {
                json!({
                    "relay": relay.relay_id, "operator": relay.operator, "family": relay.family,
                    "advertised_mbit": relay.bandwidth_mbit, "endpoints": relay.endpoints,
                    "refused": refusal(relay.relay_id).map(|refusal| refusal.code()),
                })
            })
            .collect();
        let proof = DirectoryProofV1::of(directory.source());
        say(&json!({"schema": "openrelay.exits/1", "exits": list, "directory_proof": proof}).to_string());
        return Ok(());
    }
    say(&proof_in_words(directory));
    for relay in egresses {
        let endpoints: Vec<String> = relay.endpoints.iter().map(ToString::to_string).collect();
        let family = relay.family.as_deref().map(|family| format!("   family {family}")).unwrap_or_default();
        let refused =
            refusal(relay.relay_id).map(|refusal| format!("   REFUSED [{}]", refusal.code())).unwrap_or_default();
        say(&format!(
            "{:>6}  {:>7} Mbit/s  {}   operator {}{family}{refused}",
            relay.relay_id,
            relay.bandwidth_mbit,
            endpoints.join(" "),
            relay.operator
        ));
    }
    Ok(())
}
