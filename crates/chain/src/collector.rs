//! Collects the data for judging relays into one file, for clients to read.
//!
//! Owns nothing that has to be trusted: readers check the file against the chain and the vendors' roots. Asks for
//! evidence the same way as ordinary clients do: the relays themselves, in sessions that only the holders of their
//! keys can answer. Keeps one staple of at most 4 KiB for each relay, and only if a chip has signed it for that
//! relay.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use crate::voting::{Answer, Collateral, ImageRegistry, image_value};
use alloy_primitives::{B256, Bytes};
use alloy_sol_types::SolCall;
use openrelay_attest::bundle::MAX_BUNDLE;
use openrelay_attest::file::{AttestationFile, Statement};
use openrelay_attest::manifest::{Manifest, check_generation};
use openrelay_attest::pages::MAX_STAPLE;
use openrelay_attest::verdict::Staple;
use openrelay_attest::{Roots, check_staple};
use openrelay_ledger::chain::voted::{CLIENT_PACKAGE, NEWEST, RELAY_IMAGE, anchors};
use openrelay_ledger::record::{Record, Role};
use serde_json::Value;

use super::asking::{KnownIngresses, pass};
use super::endpoint::Endpoint;
use super::evidence::header_at;
use crate::attestation::sha256;
use crate::evidence_client::{Ask, InquiryError, Network};
use openrelay_node::chain_file::ChainFile;
use openrelay_node::clock::unix_seconds;
use openrelay_node::directory::VerifiedDirectory;

/// How often a relay that has shown evidence is asked again.
const ASK_EVERY: Duration = Duration::from_secs(60);
/// Pause after the first time that a relay is silent. It doubles after each further silence, up to the longest pause.
const FIRST_PAUSE: Duration = Duration::from_secs(2);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// Maximum number of relays that are queried before the file is written again. If all of them are silent, that takes
/// a minute.
const SLICE: usize = 1_536;

/// The collected evidence of all relays.
#[derive(Debug)]
pub struct Collector {
    file: ChainFile,
    endpoint: Endpoint,
    /// The vendors' roots, to which all kept evidence leads.
    roots: Roots,
    /// What relays have shown, by relay ID.
    shown: BTreeMap<u64, Shown>,
    /// The block heights that evidence can name according to the newest directory. Readers ask the chain about no
    /// other block.
    anchors: BTreeSet<u64>,
    /// Headers of the blocks that the evidence names, by height.
    headers: BTreeMap<u64, Vec<u8>>,
    /// The values of approved rounds, which never change.
    values: BTreeMap<u64, B256>,
    /// Approved manifests that are not served, by hash: why, and whether that was reported.
    refused: BTreeMap<B256, (String, bool)>,
}

/// What a relay has shown.
#[derive(Debug)]
struct Shown {
    /// The handshake key, and its epoch, with which the relay has shown it.
    key: (String, u32),
    asked: Instant,
    /// Number of queries in a row without evidence worth keeping.
    failures: u32,
    staple: Option<Staple>,
}

impl Shown {
    /// Returns the pause after the last query.
    fn pause(&self) -> Duration {
        let doubled = self.failures.saturating_sub(1).min(16);
        match (self.failures, &self.staple) {
            (0, _) => ASK_EVERY,
            (_, Some(_)) => (ASK_EVERY * (1 << doubled)).min(LONGEST_PAUSE),
            (_, None) => (FIRST_PAUSE * (1 << doubled)).min(LONGEST_PAUSE),
        }
    }
}

impl Collector {
    /// Returns an empty collector that asks the first endpoint, and keeps evidence that leads to these roots. It
    /// serves no manifest with firmware older than the roots' floor, even if validators approved it.
    pub fn new(file: ChainFile, roots: Roots) -> Self {
        let endpoint = Endpoint::new(file.endpoints.first().map_or("", String::as_str));
        let (shown, headers, values) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let anchors = BTreeSet::new();
        Self { file, endpoint, roots, shown, anchors, headers, values, refused: BTreeMap::new() }
    }

    /// Returns the approved manifests that this mirror does not serve, with the reason. Each is returned once.
    pub fn refused(&mut self) -> Vec<String> {
        let untold = self.refused.values_mut().filter(|(_, told)| !*told);
        let tell = |(why, told): &mut (String, bool)| {
            *told = true;
            why.clone()
        };
        untold.map(tell).collect()
    }

    /// Asks many relays at once for their evidence: those with a new key, and those that are due again.
    pub fn collect(&mut self, directory: &VerifiedDirectory) {
        let network = directory.directory().network_id();
        self.anchors = anchors(directory.directory().body().sequence).collect();
        self.pass(&Network(directory), network, &directory.directory().body().relays, Instant::now());
    }

    fn pass(&mut self, ask: &dyn Ask, network: [u8; 32], relays: &[Record], now: Instant) {
        let listed: BTreeSet<u64> = relays.iter().map(|record| record.relay_id).collect();
        self.shown.retain(|relay_id, _| listed.contains(relay_id));
        let (mut due, mut known) = (Vec::new(), KnownIngresses::default());
        for record in relays {
            match self.shown.get(&record.relay_id).filter(|shown| shown.key == key_of(record)) {
                Some(shown) if now.saturating_duration_since(shown.asked) <= shown.pause() => {
                    let answers = shown.staple.as_ref().filter(|_| shown.failures == 0 && record.role == Role::Ingress);
                    let digest = answers.map(|staple| staple.evidence.identity());
                    known.open.extend(digest.map(|digest| (record.relay_id, (record, digest))));
                }
                Some(_) | None => due.push(record),
            }
        }
        // New relays come first, and relays that are always silent come last.
        let failures = |record: &Record| self.shown.get(&record.relay_id).map_or(0, |shown| shown.failures);
        due.sort_by_key(|record| (failures(record), record.role == Role::Egress));
        due.truncate(SLICE);
        for (record, shown) in pass(ask, &due, known) {
            let key = key_of(record);
            // A relay that does not answer may have shown something earlier.
            let before = self.shown.remove(&record.relay_id).filter(|shown| shown.key == key);
            let failures = before.as_ref().map_or(0, |before| before.failures);
            let (failures, staple) = match shown {
                Ok(staple) if self.is_kept(&staple, record, network) => (0, Some(staple)),
                // The relay was not asked.
                Err(InquiryError::NoIngress) => (failures.max(1), None),
                Ok(_) | Err(_) => (failures.saturating_add(1), None),
            };
            let staple = staple.or_else(|| before.and_then(|before| before.staple));
            self.shown.insert(record.relay_id, Shown { key, asked: now, failures, staple });
        }
    }

    /// Returns whether a staple is kept: it is small, a chip has signed it, and it is bound to this relay and
    /// network. Readers judge what it proves.
    fn is_kept(&self, staple: &Staple, record: &Record, network: [u8; 32]) -> bool {
        let binding = &staple.binding;
        binding.relay_id == record.relay_id
            && binding.network == network
            && staple.encode().len() <= MAX_STAPLE
            && check_staple(staple, &self.roots, unix_seconds()).is_ok()
    }

    /// Returns the evidence file, by which clients judge relays. It holds the collected evidence, and collateral and
    /// image manifests from the folder `files`, where other programs put them.
    pub fn attestation(&mut self, files: Option<&Path>) -> Vec<u8> {
        let staples: Vec<Staple> = self.shown.values().filter_map(|shown| shown.staple.clone()).collect();
        let named: BTreeSet<u64> = staples.iter().map(|staple| staple.binding.block_height).collect();
        self.headers.retain(|height, _| named.contains(height) && self.anchors.contains(height));
        for height in named.intersection(&self.anchors) {
            if !self.headers.contains_key(height)
                && let Ok(Some(header)) = header_at(&self.endpoint, *height)
            {
                self.headers.insert(*height, header);
            }
        }
        let approved = self.approved();
        let mut file = self.published(files, &approved);
        file.headers = self.headers.values().cloned().collect();
        let silent = self.shown.iter().filter(|(_, shown)| shown.staple.is_none());
        file.silent = silent.map(|(relay_id, _)| *relay_id).collect();
        file.staples = staples;
        file.encode()
    }

    /// Returns kinds and values of the newest approved images and packages, by round. Readers need no others.
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

    /// Returns the collateral that the chain names. Adds the manifests of the newest approved images and packages,
    /// and the statements of their rebuilders.
    fn published(&mut self, files: Option<&Path>, approved: &BTreeMap<u64, (u8, B256)>) -> AttestationFile {
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

fn key_of(record: &Record) -> (String, u32) {
    (record.handshake_key.clone(), record.key_epoch)
}

/// Extracts the statement from a validator's attestation: the signed vote for a value in a round. Clients count
/// rebuilders by it.
fn statement(bytes: &[u8]) -> Option<Statement> {
    let whole: Value = serde_json::from_slice(bytes).ok()?;
    let vote = &whole["vote"];
    let signature: Bytes = vote["signature"].as_str()?.parse().ok()?;
    let is_value = vote["answer"].as_u64() == Some(Answer::Value(B256::ZERO).parts().0.into());
    Some(Statement { round: vote["round"].as_u64()?, signature: signature.as_ref().try_into().ok()? })
        .filter(|_| is_value)
}

#[cfg(test)]
mod tests;
