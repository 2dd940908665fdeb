//! `openrelay image show`: lists approved images, with the rebuilders that signed them and the validators' votes.
//!
//! Owns the page, which separates what is proven from what one endpoint reports.

use std::path::Path;

use alloy_primitives::{Address, B256, U256};
use alloy_sol_types::SolEvent as _;
use openrelay_chain::Endpoint;
use openrelay_chain::attestation::{Approved, JudgedRelays};
use openrelay_chain::voting::images::ReleaseKeys::Release;
use openrelay_chain::voting::{Answer, ImageRegistry, ValidatorSet};
use openrelay_node::chain_file::ChainFile;
use openrelay_node::config::Origin;
use serde_json::{Value, json};

use crate::control::folders;
use crate::directory::{directory_shown, origin};
use crate::failure::Failure;
use crate::findings;
use crate::output::say;
use crate::program::Program;
use crate::rpc::{ask, round_logs};

/// What one endpoint reports of a round.
struct Round {
    release: Option<Release>,
    votes: Vec<Vote>,
}

struct Vote {
    validator: u64,
    /// The key that votes for the validator at present.
    key: Address,
    answer: u8,
    value: B256,
    weight: U256,
}

pub(super) fn show(program: &Program, config: &Path, as_json: bool) -> Result<(), Failure> {
    let directory = directory_shown(config)?;
    let judged = findings::judge(program, config, &directory)?;
    let judged = judged.ok_or_else(|| Failure::plain("a network with a signed directory has no approved images"))?;
    if let Some(fault) = judged.fault().filter(|_| judged.images().next().is_none()) {
        return Err(Failure::new(5, format!("no image can be shown: {fault}")));
    }
    // While a client is running, a question here would go through the user's circuit and show its egress what is
    // asked.
    let asked = match origin(config)? {
        Origin::Chain(chain) if !folders().is_changed() => Some(chain),
        Origin::Chain(_) | Origin::Signed { .. } => None,
    };
    let round = |approved: &Approved| asked.as_ref().map(|chain| Round::ask(chain, approved.round));
    if as_json {
        let images: Result<Vec<Value>, Failure> = judged
            .images()
            .map(|approved| Ok(image_json(&judged, approved, round(approved).transpose()?.as_ref())))
            .collect();
        say(&json!({"schema": "openrelay.images/1", "images": images?}).to_string());
        return Ok(());
    }
    for approved in judged.images() {
        tell(&judged, approved);
        match round(approved) {
            None => say("votes       not requested: a client is running, and the request would use its circuit"),
            Some(Err(failure)) => say(&format!("votes       unavailable: {failure}")),
            Some(Ok(round)) => tell_round(&round),
        }
    }
    if judged.images().next().is_none() {
        say("no image is approved, or no mirror has the manifest of one");
    }
    Ok(())
}

impl Round {
    fn ask(chain: &ChainFile, number: u64) -> Result<Self, Failure> {
        let endpoint = Endpoint::new(chain.endpoints.first().map_or("", String::as_str));
        let missing = || Failure::plain("the chain file has no images and validators addresses");
        let (images, validators) = chain.images.zip(chain.validators).ok_or_else(missing)?;
        let kinds = [ImageRegistry::Proposed::SIGNATURE_HASH, ImageRegistry::Revealed::SIGNATURE_HASH];
        let mut this = Self { release: None, votes: Vec::new() };
        for log in round_logs(&endpoint, chain, images, &kinds, number)? {
            if let Ok(proposed) = ImageRegistry::Proposed::decode_log(&log) {
                this.release = Some(proposed.release.clone());
            } else if let Ok(revealed) = ImageRegistry::Revealed::decode_log(&log) {
                let validator = revealed.validatorId;
                let key = ask(&endpoint, validators, &ValidatorSet::getCall { validatorId: validator })?.operator;
                let (answer, value, weight) = (revealed.answer, revealed.value, U256::from(revealed.weight));
                this.votes.push(Vote { validator, key, answer, value, weight });
            }
        }
        Ok(this)
    }
}

impl Vote {
    fn said(&self) -> String {
        let value = self.value;
        match self.answer {
            answer if answer == Answer::Value(value).parts().0 => format!("built {value}"),
            answer if answer == Answer::Failed(value).parts().0 => format!("could not build it, log {value}"),
            _ => "abstained".into(),
        }
    }
}

fn tell(judged: &JudgedRelays, approved: &Approved) {
    let image = &approved.image;
    let hash = openrelay_image::hex(&image.hash);
    say(&format!("image       {hash}   version {}   {}", approved.version, findings::state(image.state)));
    say(&format!("            approved in round {} for the value {}; proven", approved.round, B256::new(image.value)));
    say(&format!("firmware    {}", findings::generation(image)));
    say(&format!("rebuilders  {}", findings::rebuilders(judged.policy(), image)));
}

fn tell_round(round: &Round) {
    if let Some(release) = &round.release {
        say(&format!(
            "source      tree {}, inputs.lock {}; reported by one endpoint",
            release.sourceTree, release.inputsLock
        ));
    }
    for vote in &round.votes {
        let (validator, key, weight) = (vote.validator, vote.key, vote.weight);
        say(&format!(
            "vote        validator {validator} {key} {}   weight {weight}; reported by one endpoint",
            vote.said()
        ));
    }
}

fn image_json(judged: &JudgedRelays, approved: &Approved, round: Option<&Round>) -> Value {
    let image = &approved.image;
    let vote = |vote: &Vote| {
        json!({
            "validator": vote.validator, "key": vote.key.to_string(), "answer": vote.answer,
            "value": vote.value.to_string(), "weight": vote.weight.to_string(),
        })
    };
    let release = round.and_then(|round| round.release.as_ref());
    json!({
        "image": openrelay_image::hex(&image.hash), "version": approved.version, "round": approved.round,
        "value": B256::new(image.value).to_string(), "firmware_generation": image.firmware_generation,
        "state": findings::state(image.state),
        "rebuilt_by": findings::addresses(&image.rebuilt_by),
        "named": findings::addresses(judged.policy().named_rebuilders(image)),
        "named_needed": judged.policy().rebuilders_needed,
        "endpoint_says": round.map(|round| json!({
            "source_tree": release.map(|release| release.sourceTree.to_string()),
            "inputs_lock": release.map(|release| release.inputsLock.to_string()),
            "votes": round.votes.iter().map(vote).collect::<Vec<_>>(),
        })),
    })
}
