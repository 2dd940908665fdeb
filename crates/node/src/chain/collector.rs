//! Collecting what relays are judged by, for others to read in one file.
//!
//! Owns nothing that needs to be believed: readers hold the file against the chain and the vendors' roots. Evidence comes as ordinary clients get it: from the relays themselves, through
//! sessions that only the holders of their keys can answer, and what a relay shows in another's name is not kept, so no relay can fill the file with evidence of others.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use alloy_primitives::{B256, Bytes};
use alloy_sol_types::SolCall;
use openrelay_attest::Roots;
use openrelay_attest::bundle::MAX_BUNDLE;
use openrelay_attest::file::{AttestationFile, Statement};
use openrelay_attest::manifest::{Manifest, check_generation};
use openrelay_attest::verdict::Staple;
use openrelay_ledger::chain::voted::{ANCHOR_EVERY, CLIENT_PACKAGE, NEWEST, RELAY_IMAGE};
use openrelay_ledger::chain::voting::{Answer, Collateral, ImageRegistry, image_value};
use serde_json::Value;

use super::endpoint::Endpoint;
use super::evidence::header_at;
use crate::attestation::sha256;
use crate::chain_file::ChainFile;
use crate::directory::VerifiedDirectory;
use crate::inquirer::Inquirer;

/// How often a relay is asked for its evidence, and one that has shown none.
const ASK_EVERY: Duration = Duration::from_secs(60);
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// What was collected.
#[derive(Debug)]
pub struct Collector {
    file: ChainFile,
    endpoint: Endpoint,
    /// What relays have shown, by their number.
    shown: BTreeMap<u64, Shown>,
    /// Headers of the blocks that it names, by height.
    headers: BTreeMap<u64, Vec<u8>>,
    /// The values of approved rounds, which never change.
    values: BTreeMap<u64, B256>,
    /// Whose evidence is good, and the oldest generation of firmware that relay images may start with.
    roots: Roots,
    /// Approved manifests that are not served, by their hash, and whether that was told.
    refused: BTreeMap<B256, (String, bool)>,
}

/// What a relay has shown.
#[derive(Debug)]
struct Shown {
    /// The key and its epoch that it has shown it with.
    key: (String, u32),
    asked: Instant,
    staple: Option<Staple>,
}

impl Collector {
    /// One that has collected nothing yet, and asks the first endpoint. It serves no manifest whose firmware is older
    /// than these roots accept, whatever validators approved.
    pub fn new(file: ChainFile, roots: Roots) -> Self {
        let endpoint = Endpoint::new(file.endpoints.first().map_or("", String::as_str));
        let (shown, headers, values) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Self { file, endpoint, roots, shown, headers, values, refused: BTreeMap::new() }
    }

    /// The approved manifests that this mirror does not serve, and why: each once.
    pub fn refused(&mut self) -> Vec<String> {
        let untold = self.refused.values_mut().filter(|(_, told)| !*told);
        let tell = |(why, told): &mut (String, bool)| {
            *told = true;
            why.clone()
        };
        untold.map(tell).collect()
    }

    /// Asks relays for their evidence: those that have another key than before or have shown nothing, and all of them from time to time.
    pub fn collect(&mut self, directory: &VerifiedDirectory) {
        let mut inquirer = Inquirer::new(directory);
        let relays = &directory.directory().body().relays;
        self.shown.retain(|relay_id, _| relays.iter().any(|record| record.relay_id == *relay_id));
        for record in relays {
            let key = (record.handshake_key.clone(), record.key_epoch);
            let due = self.shown.get(&record.relay_id).is_none_or(|shown| {
                let pause = if shown.staple.is_some() { ASK_EVERY } else { ASK_AGAIN };
                shown.key != key || shown.asked.elapsed() > pause
            });
            if !due {
                continue;
            }
            // One that does not answer now may have shown something before.
            let before = self.shown.remove(&record.relay_id).filter(|shown| shown.key == key);
            let shown = inquirer.ask(record).ok().filter(|staple| staple.binding.relay_id == record.relay_id);
            let staple = shown.or_else(|| before.and_then(|before| before.staple));
            self.shown.insert(record.relay_id, Shown { key, asked: Instant::now(), staple });
        }
    }

    /// The file that relays are judged by, of what was collected and of the files in the folder `files`: collateral and manifests of images, which others have put there.
    pub fn attestation(&mut self, files: Option<&Path>) -> Vec<u8> {
        let staples: Vec<Staple> = self.shown.values().filter_map(|shown| shown.staple.clone()).collect();
        let heights = staples.iter().map(|staple| staple.binding.block_height);
        // Of others no reader asks the chain.
        let heights: BTreeSet<u64> = heights.filter(|height| height % ANCHOR_EVERY == 0).collect();
        self.headers.retain(|height, _| heights.contains(height));
        for height in heights {
            if !self.headers.contains_key(&height)
                && let Ok(Some(header)) = header_at(&self.endpoint, height)
            {
                self.headers.insert(height, header);
            }
        }
        let mut file = self.published(files);
        file.headers = self.headers.values().cloned().collect();
        file.staples = staples;
        file.encode()
    }

    /// Kinds and values of the newest approved images and packages, by round: what readers look at.
    fn approved(&mut self) -> BTreeMap<u64, (u8, B256)> {
        let Some(images) = self.file.images else { return BTreeMap::new() };
        let (mut found, newest) = (BTreeMap::new(), usize::try_from(NEWEST).unwrap_or(usize::MAX));
        for kind in [RELAY_IMAGE, CLIENT_PACKAGE] {
            let asked = self.endpoint.call(images, &ImageRegistry::approvedCall { kind }.abi_encode());
            let rounds = asked.ok().and_then(|answer| ImageRegistry::approvedCall::abi_decode_returns(&answer).ok());
            for round in rounds.unwrap_or_default().into_iter().rev().take(newest) {
                if !self.values.contains_key(&round) {
                    let asked = self.endpoint.call(images, &ImageRegistry::roundOfCall { round }.abi_encode());
                    let shown =
                        asked.ok().and_then(|answer| ImageRegistry::roundOfCall::abi_decode_returns(&answer).ok());
                    self.values.extend(shown.map(|shown| (round, shown.value)));
                }
                found.extend(self.values.get(&round).map(|value| (round, (kind, *value))));
            }
        }
        found
    }

    /// The collateral that the chain names, and of the newest approved images and packages the manifests and what rebuilders have signed.
    fn published(&mut self, files: Option<&Path>) -> AttestationFile {
        let approved = self.approved();
        let entry = self.file.collateral.and_then(|contract| {
            let answer = self.endpoint.call(contract, &Collateral::currentCall {}.abi_encode()).ok()?;
            Collateral::currentCall::abi_decode_returns(&answer).ok()
        });
        let mut found = AttestationFile::default();
        let listed = files.and_then(|folder| std::fs::read_dir(folder).ok());
        let mut paths: Vec<_> = listed.into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let small = std::fs::metadata(&path).is_ok_and(|file| file.len() <= MAX_BUNDLE as u64);
            let Ok(bytes) = (if small { std::fs::read(&path) } else { continue }) else { continue };
            if let Ok(manifest) = Manifest::decode(&bytes) {
                let hash = sha256(&bytes);
                let value = image_value(manifest.image.into(), hash);
                let of_kind = |kind| approved.values().any(|own| *own == (kind, value));
                let new_enough = check_generation(manifest.firmware_generation, self.roots.min_firmware_generation);
                match new_enough {
                    Err(refusal) if of_kind(RELAY_IMAGE) => {
                        let why = format!("{} is not served: {refusal} [{}]", path.display(), refusal.code());
                        self.refused.entry(hash).or_insert((why, false));
                    }
                    _ if of_kind(RELAY_IMAGE) || of_kind(CLIENT_PACKAGE) => found.manifests.push(bytes),
                    _ => {}
                }
            } else if let Some(statement) = statement(&bytes) {
                found.statements.extend(approved.contains_key(&statement.round).then_some(statement));
            } else if entry.as_ref().is_some_and(|entry| sha256(&bytes) == entry.bundle) {
                found.bundle = bytes;
            }
        }
        found
    }
}

/// What an attestation of a validator's says for who counts rebuilders: the signed vote for a value in a round.
fn statement(bytes: &[u8]) -> Option<Statement> {
    let whole: Value = serde_json::from_slice(bytes).ok()?;
    let vote = &whole["vote"];
    let signature: Bytes = vote["signature"].as_str()?.parse().ok()?;
    let is_value = vote["answer"].as_u64() == Some(Answer::Value(B256::ZERO).parts().0.into());
    Some(Statement { round: vote["round"].as_u64()?, signature: signature.as_ref().try_into().ok()? })
        .filter(|_| is_value)
}
