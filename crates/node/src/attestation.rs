//! The relays of a directory, each judged by its evidence.
//!
//! Owns [`AttestedRelay`], which only a verdict makes, and the policy file. The checks are `attest`'s; what the chain says is proven by `ledger`; this puts the two together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use alloy_primitives::B256;
use aws_lc_rs::digest::{SHA256, digest};
use openrelay_attest::bundle::Bundle;
use openrelay_attest::facts::Platform;
use openrelay_attest::file::AttestationFile;
use openrelay_attest::manifest::Manifest;
use openrelay_attest::policy::Policy;
use openrelay_attest::verdict::{Block, Image, ImageState, LedgerView, Relay, Staple, Verdict, verify};
use openrelay_attest::{Refusal, Roots};
use openrelay_ledger::chain::header::Header;
use openrelay_ledger::chain::reading::{Reading, Trust};
use openrelay_ledger::chain::voted::Voted;
use openrelay_ledger::chain::voting::image_value;
use openrelay_ledger::directory::Directory;
use openrelay_ledger::record::{Record, Role};
use openrelay_ledger::votes::images::State;
use openrelay_proto::message::EvidenceDigest;
use serde::Deserialize;

use crate::config::{ConfigError, key_fault, read};
use crate::directory::{RegisteredRelay, VerifiedDirectory};

/// What is good enough: the vendors' roots, which a program's `main` hands in, and the policy.
#[derive(Clone, Debug)]
pub struct Standard {
    /// The roots.
    pub roots: Roots,
    /// The policy.
    pub policy: Policy,
}

impl Standard {
    /// What clients are released with, by these roots; those of a simulation are believed by who hands them in, and whatever follows says so.
    pub fn of(roots: Roots) -> Self {
        let policy = Policy { simulation: roots.simulated, ..Policy::default() };
        Self { roots, policy }
    }

    /// The same with the policy in a file; `rebuilt` are the images that were rebuilt here.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line and key.
    pub fn with_file(mut self, path: &Path, rebuilt: Vec<[u8; 32]>) -> Result<Self, ConfigError> {
        let file: PolicyFile = read(path)?;
        let policy = &mut self.policy;
        if let Some(names) = file.platforms {
            let called = |name: &String| {
                let all = [Platform::Sgx, Platform::Tdx, Platform::SevSnp];
                all.into_iter().find(|platform| platform.name() == name).ok_or_else(|| {
                    key_fault(path, "platforms", format!("there is no {name:?}; there are SGX, TDX and SEV-SNP"))
                })
            };
            policy.platforms = names.iter().map(called).collect::<Result<_, _>>()?;
        }
        if let Some(products) = file.amd_products {
            policy.amd_products = products;
        }
        if let Some(statuses) = file.intel_statuses {
            policy.intel_statuses = statuses;
        }
        if let Some(seconds) = file.max_age_s {
            if seconds == 0 || seconds > policy.max_age_s {
                return Err(key_fault(path, "max_age_s", format!("must be 1 to {}", policy.max_age_s)));
            }
            policy.max_age_s = seconds;
        }
        if file.paranoid {
            policy.rebuilt = Some(rebuilt);
        }
        Ok(self)
    }
}

/// A policy in a file. What is not named is as clients are released.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    /// Kinds of environment: SGX, TDX, SEV-SNP.
    platforms: Option<Vec<String>>,
    /// Products of AMD's.
    amd_products: Option<Vec<String>>,
    /// Words of Intel's for the state of firmware.
    intel_statuses: Option<Vec<String>>,
    /// How old the block in evidence may be, in seconds.
    max_age_s: Option<u64>,
    /// Only images that were rebuilt on this machine.
    #[serde(default)]
    paranoid: bool,
}

/// A relay that a verdict stands behind. Not `Clone`: it is used up by one circuit.
#[derive(Debug)]
pub struct AttestedRelay {
    relay: RegisteredRelay,
    evidence: Vec<EvidenceDigest>,
}

impl AttestedRelay {
    pub(crate) fn into_parts(self) -> (RegisteredRelay, Vec<EvidenceDigest>) {
        (self.relay, self.evidence)
    }
}

/// The relays of a directory, judged.
#[derive(Clone, Debug)]
pub struct Judged {
    /// Of each relay the verdicts on its evidence that will do, at least one, the newest first.
    results: BTreeMap<u64, Result<Vec<Verdict>, Refusal>>,
    /// Who has voted on images, and what became of them.
    images: Vec<(Image, u64)>,
    /// Why nothing could be judged.
    fault: Option<String>,
}

/// What the chain has said and mirrors have brought, as far as the two fit.
struct View {
    ledger: LedgerView,
    bundle: Option<Bundle>,
    images: Vec<(Image, u64)>,
    blocks: BTreeMap<u64, Block>,
}

impl Judged {
    /// Judges all relays of a directory at `now`, in seconds since the Unix epoch.
    pub fn of(directory: &VerifiedDirectory, trust: &Trust, standard: &Standard, now: u64) -> Self {
        let none = |fault: Option<String>, refusal: &Refusal| {
            let results = directory.directory().body().relays.iter();
            let results = results.map(|record| (record.relay_id, Err(refusal.clone()))).collect();
            Self { results, images: Vec::new(), fault }
        };
        let Some(reading) = directory.reading() else {
            return none(None, &Refusal::NoView("the chain"));
        };
        let file = match AttestationFile::decode(&reading.attestation) {
            Ok(file) => file,
            Err(_) if reading.attestation.is_empty() => return none(None, &Refusal::NoEvidence),
            Err(refusal) => return none(Some(refusal.to_string()), &Refusal::NoEvidence),
        };
        let heights: BTreeSet<u64> = file.staples.iter().map(|staple| staple.binding.block_height).collect();
        let view = match reading.voted(trust, &heights) {
            Ok(voted) => View::new(reading, trust, &voted, &file),
            Err(error) => return none(Some(error.to_string()), &Refusal::NoView("what it says of images")),
        };
        let judge = |record: &Record| (record.relay_id, view.judge(record, &file.staples, standard, now));
        let mut results: BTreeMap<_, _> = directory.directory().body().relays.iter().map(judge).collect();
        refuse_shared_chips(&mut results);
        Self { results, images: view.images, fault: None }
    }

    /// The relay with this record as a circuit takes it.
    ///
    /// # Errors
    /// [`Refusal`]: why it is not believed.
    pub fn attest(&self, directory: &VerifiedDirectory, record: &Record) -> Result<AttestedRelay, Refusal> {
        let evidence = self.verdicts(record.relay_id)?.iter().map(Verdict::identity).collect();
        let relay = directory.register(record).ok_or(Refusal::NoView("the relay's record"))?;
        Ok(AttestedRelay { relay, evidence })
    }

    /// What was found about a relay, by its newest evidence that will do.
    ///
    /// # Errors
    /// [`Refusal`]: why it is not believed.
    pub fn verdict(&self, relay_id: u64) -> Result<&Verdict, Refusal> {
        self.verdicts(relay_id)?.first().ok_or(Refusal::NoEvidence)
    }

    fn verdicts(&self, relay_id: u64) -> Result<&[Verdict], Refusal> {
        match self.results.get(&relay_id) {
            Some(result) => result.as_deref().map_err(Clone::clone),
            None => Err(Refusal::NoView("the relay's record")),
        }
    }

    /// The relays that are not believed, and why.
    pub fn refused(&self) -> impl Iterator<Item = (u64, &Refusal)> {
        self.results.iter().filter_map(|(relay_id, result)| Some((*relay_id, result.as_ref().err()?)))
    }

    /// The number of the round in which an image was approved, and its version.
    pub fn image(&self, hash: [u8; 32]) -> Option<(&Image, u64)> {
        self.images.iter().find(|(image, _)| image.hash == hash).map(|(image, round)| (image, *round))
    }

    /// The images that validators have voted on, each with its round.
    pub fn images(&self) -> impl Iterator<Item = (&Image, u64)> {
        self.images.iter().map(|(image, round)| (image, *round))
    }

    /// Why nothing could be judged.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// The directory with those relays alone that are believed.
    pub fn attested(&self, directory: &Directory) -> Directory {
        directory.only(|record| self.verdict(record.relay_id).is_ok())
    }
}

impl View {
    fn new(reading: &Reading, trust: &Trust, voted: &Voted, file: &AttestationFile) -> Self {
        let newest = Header::decode(&reading.header).ok();
        let time = newest.map(|header| header.timestamp);
        let headers = file.headers.iter().filter_map(|rlp| Header::decode(rlp).ok()).chain(newest);
        // Of a block that the chain has: the hash is of the header's bytes.
        let blocks = headers.filter(|header| voted.blocks.get(&header.number) == Some(&header.hash));
        let block = |header: Header| {
            (header.number, Block { hash: header.hash.0, height: header.number, time: header.timestamp })
        };
        let bundle = Some(&file.bundle).filter(|bytes| voted.bundle == sha256(bytes));
        let bundle = bundle.and_then(|bytes| Bundle::decode(bytes).ok());
        let floors = bundle.as_ref().map(|bundle| {
            let mut floors = bundle.floors();
            floors.intel_evaluation = floors.intel_evaluation.max(voted.intel_floor);
            floors
        });
        let images = images(voted, file, time.unwrap_or(0));
        let ledger = LedgerView {
            network: Some(trust.network_id()),
            time,
            block: None,
            relay: None,
            images: Some(images.iter().map(|(image, _)| image.clone()).collect()),
            // Of a lower number than the chain asks for, they are older ones.
            floors: floors.filter(|_| bundle.as_ref().is_some_and(|bundle| bundle.amd_floor >= voted.amd_floor)),
        };
        Self { ledger, bundle, images, blocks: blocks.map(block).collect() }
    }

    /// Judges all evidence of a relay, the newest first: while it is renewed the relay still announces the older.
    fn judge(
        &self,
        record: &Record,
        staples: &[Staple],
        standard: &Standard,
        now: u64,
    ) -> Result<Vec<Verdict>, Refusal> {
        let mut own: Vec<&Staple> =
            staples.iter().filter(|staple| staple.binding.relay_id == record.relay_id).collect();
        own.sort_by_key(|staple| std::cmp::Reverse(staple.binding.block_height));
        let role = match record.role {
            Role::Ingress => 1,
            Role::Egress => 2,
        };
        let mut view = self.ledger.clone();
        view.relay = record.key().map(|handshake_key| Relay {
            relay_id: record.relay_id,
            handshake_key,
            key_epoch: record.key_epoch,
            roles: role,
        });
        let Some(bundle) = &self.bundle else {
            return Err(Refusal::NoView("the collateral that it names"));
        };
        let (mut verdicts, mut first) = (Vec::new(), None);
        for staple in own {
            view.block = self.blocks.get(&staple.binding.block_height).copied();
            let by = (&standard.roots, &standard.policy);
            let mut result = Err(Refusal::NoCollateral);
            for collateral in bundle.candidates(&staple.evidence) {
                result = verify(staple, role, &collateral, by, &view, now);
                if !matches!(result, Err(Refusal::OtherModel | Refusal::OtherCollateral)) {
                    break;
                }
            }
            match result {
                Ok(verdict) => verdicts.push(verdict),
                Err(refusal) => drop(first.get_or_insert(refusal)),
            }
        }
        if verdicts.is_empty() { Err(first.unwrap_or(Refusal::NoEvidence)) } else { Ok(verdicts) }
    }
}

/// Images whose manifest is what was voted for, each with its round.
fn images(voted: &Voted, file: &AttestationFile, time: u64) -> Vec<(Image, u64)> {
    let manifests = file.manifests.iter().filter_map(|bytes| Some((Manifest::decode(bytes).ok()?, sha256(bytes))));
    let manifests: Vec<(Manifest, B256)> = manifests.collect();
    let of_vote = |image: &openrelay_ledger::chain::voted::VotedImage| {
        let found = manifests.iter().find(|(manifest, hash)| image_value(manifest.image.into(), *hash) == image.value);
        let (manifest, _) = found?;
        let state = match voted.state(image, time) {
            State::ApprovedPending => ImageState::Pending,
            State::Active => ImageState::Active,
            State::Deprecated => ImageState::Deprecated,
            State::Suspended => ImageState::Suspended,
            State::Revoked => ImageState::Revoked,
            State::Retired
            | State::Proposed
            | State::Reveal
            | State::Challenge
            | State::Ended
            | State::Rejected
            | State::NoQuorum => ImageState::Retired,
        };
        let measurements = manifest.shapes.iter().map(|shape| shape.measurement.clone()).collect();
        let (hash, advisories) = (manifest.image, manifest.advisories.clone());
        Some((Image { hash, state, measurements, advisories }, image.round))
    };
    voted.images.iter().filter_map(of_vote).collect()
}

/// One relay on a chip: of several the one that was registered first.
fn refuse_shared_chips(results: &mut BTreeMap<u64, Result<Vec<Verdict>, Refusal>>) {
    let mut chips = BTreeSet::new();
    for result in results.values_mut() {
        let chip = result.as_ref().ok().and_then(|verdicts| verdicts.first()?.facts().chip);
        if chip.is_some_and(|chip| !chips.insert(chip)) {
            *result = Err(Refusal::SameChip);
        }
    }
}

/// SHA-256 of these bytes.
pub(crate) fn sha256(bytes: &[u8]) -> B256 {
    B256::from_slice(digest(&SHA256, bytes).as_ref())
}
