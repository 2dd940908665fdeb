//! What was found about relays and images, in words and as JSON.
//!
//! Owns the words that several commands share. It never judges: verdicts come from `openrelay-chain`.

use std::path::Path;

use alloy_primitives::Address;
use openrelay_attest::Facts;
use openrelay_attest::facts::Tcb;
use openrelay_attest::policy::Policy;
use openrelay_attest::verdict::{Image, ImageState};
use openrelay_chain::attestation::JudgedRelays;
use openrelay_client::{AttestedHop, Options, judged_of};
use openrelay_node::directory::VerifiedDirectory;

use crate::control::folders;
use crate::failure::Failure;
use crate::program::Program;

/// Judges the relays of a directory as for a circuit. Returns `None` where they are the user's own and prove nothing.
pub(crate) fn judge(
    program: &Program,
    config: &Path,
    directory: &VerifiedDirectory,
) -> Result<Option<JudgedRelays>, Failure> {
    let options = Options { one_hop: false, folders: folders(), standard: program.standard.clone() };
    Ok(judged_of(config, directory, &options)?)
}

/// Returns in one word which evidence the hops of a circuit have.
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

/// Returns addresses as text.
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

/// Describes in words what the evidence says about the firmware.
pub(crate) fn firmware(facts: &Facts) -> String {
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
