//! Verdicts on the relays of a directory.
//!
//! Owns [`AttestedRelay`], which only a verdict makes. Combines the checks of `attest` with what
//! `ledger` proves about the chain; never judges evidence itself.

use std::collections::{BTreeMap, BTreeSet};

use crate::voting::{Answer, image_value, statement_hash};
use alloy_primitives::{B256, Signature};
use aws_lc_rs::digest::{SHA256, digest};
use openrelay_attest::Refusal;
use openrelay_attest::bundle::Bundle;
use openrelay_attest::file::{AttestationFile, Statement};
use openrelay_attest::manifest::Manifest;
use openrelay_attest::policy::Policy;
use openrelay_attest::verdict::{Block, Image, ImageState, LedgerView, Relay, Staple, Verdict, verify};
use openrelay_ledger::chain::header::Header;
use openrelay_ledger::chain::reading::{Reading, Trust};
use openrelay_ledger::chain::voted::{CLIENT_PACKAGE, State, Voted, VotedImage};
use openrelay_ledger::directory::Directory;
use openrelay_ledger::record::{Record, Role};
use openrelay_proto::message::EvidenceDigest;

use crate::policy::TrustPolicy;
use openrelay_node::directory::{RegisteredRelay, VerifiedDirectory};

/// Number of staples that are cached for each relay: the one that it announced last, and the one before.
pub(crate) const NEWEST: usize = 2;
/// Maximum number of cached statements by signers outside the policy. Their keys belong to unknown people, and there
/// could be many.
const OTHERS: usize = 128;

/// A relay whose evidence was accepted. Not `Clone`: a circuit consumes it.
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

/// The relays of a directory, judged by their evidence.
#[derive(Clone, Debug)]
pub struct JudgedRelays {
    /// For each relay its accepted verdicts, at least one, the newest first; or why it was refused.
    results: BTreeMap<u64, Result<Vec<Verdict>, Refusal>>,
    images: Vec<Approved>,
    policy: Policy,
    /// The evidence behind the verdicts, byte for byte.
    believed: Vec<Staple>,
    /// Statements of rebuilders whom the policy lists.
    named: Vec<Statement>,
    /// Why no relay could be judged.
    fault: Option<String>,
    /// Whether the reason is that no mirror delivered anything.
    unserved: bool,
}

/// An image that validators approved, whatever its state is.
#[derive(Clone, Debug)]
pub struct Approved {
    /// The image that evidence is checked against.
    pub image: Image,
    /// The number of the round.
    pub round: u64,
    /// Its version.
    pub version: u64,
}

/// What the chain says and mirrors delivered, as far as they match.
struct View {
    ledger: LedgerView,
    bundle: Option<Bundle>,
    images: Vec<Approved>,
    signed: Vec<Signed>,
    blocks: BTreeMap<u64, Block>,
}

impl JudgedRelays {
    /// Judges all relays of a directory at the time `now`, in seconds since the Unix epoch.
    pub fn of(directory: &VerifiedDirectory, trust: &Trust, standard: &TrustPolicy, now: u64) -> Self {
        let none = |fault: Option<String>, refusal: &Refusal| {
            let results = directory.directory().body().relays.iter();
            let results = results.map(|record| (record.relay_id, Err(refusal.clone()))).collect();
            let (images, believed, named) = (Vec::new(), Vec::new(), Vec::new());
            Self { results, images, policy: standard.policy.clone(), believed, named, fault, unserved: false }
        };
        let Some(reading) = directory.reading() else {
            return none(None, &Refusal::NoView("the chain"));
        };
        let voted = match reading.voted(trust) {
            Ok(voted) => voted,
            Err(error) => return none(Some(error.to_string()), &Refusal::NoView("the chain's record of images")),
        };
        let file = match AttestationFile::decode(&reading.attestation) {
            Ok(file) => file,
            Err(_) if reading.attestation.is_empty() => {
                let why = "no mirror has delivered evidence; check the mirrors under `evidence` in chain.toml";
                return Self { unserved: true, ..none(Some(why.into()), &Refusal::NoEvidence) };
            }
            Err(refusal) => return none(Some(refusal.to_string()), &Refusal::NoEvidence),
        };
        // Headers come from endpoints, everything else from mirrors.
        let unserved = file.bundle.is_empty() && file.manifests.is_empty() && file.staples.is_empty();
        let mut view = View::new(reading, trust, &voted, &file);
        view.ledger.newest_known = directory.is_newest_known();
        let fault = view.bundle.is_none().then(|| {
            "no mirror has the collateral that the chain names; check the mirrors under `evidence` in chain.toml".into()
        });
        let (mut results, mut believed) = (BTreeMap::new(), Vec::new());
        // With thousands of relays, the staples of each must not be searched for in the whole list.
        let mut by_relay: BTreeMap<u64, Vec<&Staple>> = BTreeMap::new();
        for staple in &file.staples {
            by_relay.entry(staple.binding.relay_id).or_default().push(staple);
        }
        for record in &directory.directory().body().relays {
            let own = by_relay.remove(&record.relay_id).unwrap_or_default();
            let found = view.judge(record, own, standard, now).map(|found| {
                let (verdicts, staples): (Vec<Verdict>, Vec<&Staple>) = found.into_iter().unzip();
                believed.extend(staples.into_iter().take(NEWEST).cloned());
                verdicts
            });
            results.insert(record.relay_id, found);
        }
        refuse_shared_chips(&mut results);
        let policy = standard.policy.clone();
        let named = view.signed.iter().filter(|(_, signer)| policy.rebuilders.contains(signer));
        let named = named.map(|(statement, _)| *statement).collect();
        Self { results, images: view.images, policy, believed, named, fault, unserved }
    }

    /// Returns the relay with this record, ready for a circuit.
    ///
    /// # Errors
    /// [`Refusal`] says why the relay is not accepted.
    pub fn attest(&self, directory: &VerifiedDirectory, record: &Record) -> Result<AttestedRelay, Refusal> {
        let evidence = self.verdicts(record.relay_id)?.iter().map(Verdict::identity).collect();
        let relay = directory.register(record).ok_or(Refusal::NoView("the relay's record"))?;
        Ok(AttestedRelay { relay, evidence })
    }

    /// Returns the verdict on a relay's newest accepted evidence.
    ///
    /// # Errors
    /// [`Refusal`] says why the relay is not accepted.
    pub fn verdict(&self, relay_id: u64) -> Result<&Verdict, Refusal> {
        self.verdicts(relay_id)?.first().ok_or(Refusal::NoEvidence)
    }

    fn verdicts(&self, relay_id: u64) -> Result<&[Verdict], Refusal> {
        match self.results.get(&relay_id) {
            Some(result) => result.as_deref().map_err(Clone::clone),
            None => Err(Refusal::NoView("the relay's record")),
        }
    }

    /// Removes what was not accepted from the evidence file. Relays that were accepted keep exactly their accepted
    /// evidence. Relays that were refused keep all of theirs in its order: evidence that was accepted earlier stays
    /// in front of later evidence. Most statements by signers outside the policy are removed.
    pub(crate) fn keep_believed(&self, file: &mut AttestationFile) {
        let refused = |staple: &Staple| matches!(self.results.get(&staple.binding.relay_id), Some(Err(_)));
        file.staples.retain(refused);
        file.staples.splice(0..0, self.believed.iter().cloned());
        if self.fault.is_none() {
            // Some others stay too, because another policy may list their signers.
            let others = file.statements.iter().filter(|statement| !self.named.contains(statement)).take(OTHERS);
            file.statements = self.named.iter().chain(others).copied().collect();
        }
    }

    /// Returns the relays that are not accepted, and why.
    pub fn refused(&self) -> impl Iterator<Item = (u64, &Refusal)> {
        self.results.iter().filter_map(|(relay_id, result)| Some((*relay_id, result.as_ref().err()?)))
    }

    /// Returns the newest approved version that the evidence of this verdict can belong to.
    pub fn image(&self, verdict: &Verdict) -> Option<&Approved> {
        self.versions(verdict).last()
    }

    /// Returns the state of this verdict's image as far as it is known here; `None` if it is not an approved image.
    pub fn image_state(&self, verdict: &Verdict) -> Option<ImageState> {
        ImageState::of_all(self.versions(verdict).map(|approved| approved.image.state))
    }

    fn versions<'a>(&'a self, verdict: &Verdict) -> impl Iterator<Item = &'a Approved> + use<'a> {
        let (hash, measurement) = (verdict.binding().image, verdict.facts().measurement.clone());
        self.images.iter().filter(move |approved| approved.image.is_what_runs(&hash, &measurement))
    }

    /// Returns the images that validators approved, by ascending version.
    pub fn images(&self) -> impl Iterator<Item = &Approved> {
        self.images.iter()
    }

    /// Returns the rules that relays were judged by.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Returns why no relay could be judged.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    /// Returns whether no relay could be judged because no mirror delivered anything. Then nothing was refused.
    pub fn is_unserved(&self) -> bool {
        self.unserved
    }

    /// Returns the directory reduced to the accepted relays.
    pub fn attested(&self, directory: &Directory) -> Directory {
        directory.only(|record| self.verdict(record.relay_id).is_ok())
    }
}

impl View {
    fn new(reading: &Reading, trust: &Trust, voted: &Voted, file: &AttestationFile) -> Self {
        let time = Header::decode(&reading.header).ok().map(|header| header.timestamp);
        let headers = file.headers.iter().filter_map(|rlp| Header::decode(rlp).ok());
        // Only headers of blocks on the chain: the hash covers the header's bytes.
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
        let time_divisor = trust.contracts.map_or(1, |contracts| contracts.time_divisor.into());
        let signed = signed(&voted.images, trust, file);
        let images = approved(&voted.images, time_divisor, &signed, file, time.unwrap_or(0));
        let ledger = LedgerView {
            network: Some(trust.network_id()),
            time,
            newest_known: false,
            block: None,
            relay: None,
            images: Some(images.iter().map(|approved| approved.image.clone()).collect()),
            // A bundle with a lower AMD floor than the chain requires holds older floors.
            floors: floors.filter(|_| bundle.as_ref().is_some_and(|bundle| bundle.amd_floor >= voted.amd_floor)),
        };
        Self { ledger, bundle, images, signed, blocks: blocks.map(block).collect() }
    }

    /// Judges all evidence of a relay, the newest first. While a relay renews its evidence, it still announces the
    /// older one.
    fn judge<'a>(
        &self,
        record: &Record,
        mut own: Vec<&'a Staple>,
        standard: &TrustPolicy,
        now: u64,
    ) -> Result<Vec<(Verdict, &'a Staple)>, Refusal> {
        // Evidence for the relay's current key comes first: if the relay is refused, that evidence gives the reason.
        let present = |staple: &Staple| {
            let binding = &staple.binding;
            binding.key_epoch == record.key_epoch && record.key() == Some(binding.handshake_key)
        };
        own.sort_by_key(|staple| std::cmp::Reverse((present(staple), staple.binding.block_height)));
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
            return Err(Refusal::NoView("the vendors' collateral"));
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
                Ok(verdict) => verdicts.push((verdict, staple)),
                Err(refusal) => drop(first.get_or_insert(refusal)),
            }
        }
        if verdicts.is_empty() { Err(first.unwrap_or(Refusal::NoEvidence)) } else { Ok(verdicts) }
    }
}

/// Returns the images whose manifests were voted for, by ascending version.
///
/// A version is an image together with its manifest. The same bytes with other firmware are another version, with a
/// state of its own. If two versions are the same bytes for the same machines, evidence cannot tell them apart. Then
/// the newer version is returned, with the combined state of both.
pub(crate) fn approved(
    voted: &[VotedImage],
    time_divisor: u64,
    signed: &[Signed],
    file: &AttestationFile,
    time: u64,
) -> Vec<Approved> {
    let manifests = file.manifests.iter().filter_map(|bytes| Some((Manifest::decode(bytes).ok()?, sha256(bytes))));
    let manifests: Vec<(Manifest, B256)> = manifests.collect();
    let of_vote = |image: &VotedImage| {
        let found = manifests.iter().find(|(manifest, hash)| image_value(manifest.image.into(), *hash) == image.value);
        let (manifest, _) = found?;
        let state = image_state(image.state(voted, time, time_divisor));
        let measurements = manifest.shapes.iter().map(|shape| shape.measurement.clone()).collect();
        let (hash, advisories) = (manifest.image, manifest.advisories.clone());
        let firmware_generation = manifest.firmware_generation;
        let of_round = signed.iter().filter(|(statement, _)| statement.round == image.round);
        let rebuilt_by: BTreeSet<[u8; 20]> = of_round.map(|(_, signer)| *signer).collect();
        let rebuilt_by = rebuilt_by.into_iter().collect();
        let (round, version, value) = (image.round, image.version, image.value.0);
        let image = Image { hash, value, state, firmware_generation, measurements, advisories, rebuilt_by };
        Some(Approved { image, round, version })
    };
    let mut found: Vec<Approved> = Vec::new();
    // `voted` is in order of ascending version.
    for mut approved in voted.iter().filter_map(of_vote) {
        let image = &mut approved.image;
        let of_same = |older: &Image| older.hash == image.hash && older.measurements == image.measurements;
        if let Some(at) = found.iter().position(|older| of_same(&older.image)) {
            let states = [found.remove(at).image.state, image.state];
            image.state = ImageState::of_all(states).unwrap_or(image.state);
        }
        found.push(approved);
    }
    found
}

/// Returns what a state on the chain means for anyone who runs the image.
const fn image_state(state: State) -> ImageState {
    match state {
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
    }
}

/// Returns the state of the client program with this hash among these packages; `None` if it is not one of them. The
/// manifest of a package follows from hash and version, so no mirror is asked for it.
pub(crate) fn program_state(
    program: [u8; 32],
    voted: &[VotedImage],
    time_divisor: u64,
    time: u64,
) -> Option<ImageState> {
    let is_it = |package: &&VotedImage| {
        let (kind, version, image) = (CLIENT_PACKAGE, package.version, program);
        let (firmware_generation, shapes, advisories) = (None, Vec::new(), Vec::new());
        let manifest = Manifest { kind, version, firmware_generation, image, shapes, advisories };
        image_value(image.into(), sha256(&manifest.encode())) == package.value
    };
    ImageState::of_all(voted.iter().filter(is_it).map(|package| image_state(package.state(voted, time, time_divisor))))
}

/// A statement, and the address of the key that signed it.
pub(crate) type Signed = (Statement, [u8; 20]);

/// Returns the statements of the file with their signers. Each states that the signer rebuilt the value that a round
/// approved. Almost any 65 bytes are a valid signature of some address, so only an address known beforehand means
/// something.
pub(crate) fn signed(voted: &[VotedImage], trust: &Trust, file: &AttestationFile) -> Vec<Signed> {
    let Some(contracts) = trust.contracts else { return Vec::new() };
    let by = |statement: &Statement| {
        let image = voted.iter().find(|image| image.round == statement.round)?;
        let hash = statement_hash(trust.chain_id, contracts.images, image.round, Answer::Value(image.value));
        let signature = Signature::from_raw_array(&statement.signature).ok()?;
        Some((*statement, signature.recover_address_from_prehash(&hash).ok()?.0.0))
    };
    file.statements.iter().filter_map(by).collect()
}

/// Accepts one relay on each chip: of several, the one that registered first.
fn refuse_shared_chips(results: &mut BTreeMap<u64, Result<Vec<Verdict>, Refusal>>) {
    let mut chips = BTreeSet::new();
    for result in results.values_mut() {
        let chip = result.as_ref().ok().and_then(|verdicts| verdicts.first()?.facts().chip);
        if chip.is_some_and(|chip| !chips.insert(chip)) {
            *result = Err(Refusal::SameChip);
        }
    }
}

/// Returns the SHA-256 of these bytes.
pub fn sha256(bytes: &[u8]) -> B256 {
    B256::from_slice(digest(&SHA256, bytes).as_ref())
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]
    use openrelay_attest::Evidence;
    use openrelay_attest::binding::Binding;
    use openrelay_attest::evidence::Measurement;
    use openrelay_attest::manifest::Shape;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    /// Returns the state of an image with the same bytes in two approved versions. The versions became usable at
    /// these times; the older one may be revoked, or suspended until a time.
    fn twice(usable_from: [u64; 2], revoked: bool, suspended_until: u64) -> ImageState {
        let manifests = [1, 2].map(|version| {
            let (image, shapes, advisories) = ([7; 32], Vec::new(), Vec::new());
            Manifest { kind: 1, version, firmware_generation: Some(1), image, shapes, advisories }.encode()
        });
        let mut voted = Vec::new();
        for ((bytes, usable_from), version) in manifests.iter().zip(usable_from).zip(1..) {
            let value = image_value([7; 32].into(), sha256(bytes));
            let (revoked, suspended_until) = if version == 1 { (revoked, suspended_until) } else { (false, 0) };
            voted.push(VotedImage { round: version, version, usable_from, suspended_until, revoked, value });
        }
        let file = AttestationFile { manifests: manifests.into(), ..AttestationFile::default() };
        let found = approved(&voted, 1, &[], &file, NOW);
        assert_eq!((found.len(), found.first().map(|approved| approved.version)), (1, Some(2)));
        found[0].image.state
    }

    #[test]
    fn image_approved_twice_is_usable_while_either_is_unless_stopped() {
        assert_eq!(twice([NOW - 40 * 86_400, NOW - 20 * 86_400], false, 0), ImageState::Active);
        assert_eq!(twice([NOW - 40 * 86_400, NOW + 1], false, 0), ImageState::Active);
        assert_eq!(twice([NOW + 1, NOW + 2], false, 0), ImageState::Pending);
        assert_eq!(twice([NOW - 40 * 86_400, NOW - 20 * 86_400], true, 0), ImageState::Revoked);
        assert_eq!(twice([NOW - 40 * 86_400, NOW - 20 * 86_400], false, NOW + 1), ImageState::Suspended);
    }

    #[test]
    fn versions_with_different_firmware_have_separate_states() {
        let manifests = [1, 2].map(|version| {
            let measurement = Measurement::Snp([u8::try_from(version).unwrap(); 48]);
            let shapes = vec![Shape { name: "EPYC-v4 x 1".into(), measurement }];
            let (image, advisories) = ([7; 32], Vec::new());
            Manifest { kind: 1, version, firmware_generation: Some(1), image, shapes, advisories }.encode()
        });
        let file = AttestationFile { manifests: manifests.to_vec(), ..AttestationFile::default() };
        let states = |revoked: [bool; 2], suspended_until: [u64; 2]| {
            let voted = |version: usize| VotedImage {
                round: version as u64,
                version: version as u64,
                usable_from: NOW - 86_400,
                suspended_until: suspended_until[version - 1],
                revoked: revoked[version - 1],
                value: image_value([7; 32].into(), sha256(&manifests[version - 1])),
            };
            let found = approved(&[1, 2].map(voted), 1, &[], &file, NOW);
            found.iter().map(|approved| (approved.version, approved.image.state)).collect::<Vec<_>>()
        };
        use ImageState::{Active, Deprecated, Revoked, Suspended};
        assert_eq!(states([false; 2], [0; 2]), [(1, Deprecated), (2, Active)]);
        assert_eq!(states([true, false], [0; 2]), [(1, Revoked), (2, Active)]);
        assert_eq!(states([false, true], [0; 2]), [(1, Active), (2, Revoked)]);
        assert_eq!(states([false; 2], [NOW + 1, 0]), [(1, Suspended), (2, Active)]);
    }

    #[test]
    fn program_state_follows_from_hash_and_votes() {
        let package = |version, image: [u8; 32], revoked| {
            let (kind, shapes, advisories) = (CLIENT_PACKAGE, Vec::new(), Vec::new());
            let manifest = Manifest { kind, version, firmware_generation: None, image, shapes, advisories };
            let value = image_value(image.into(), sha256(&manifest.encode()));
            VotedImage { round: version, version, usable_from: 0, suspended_until: 0, revoked, value }
        };
        let voted = [package(1, [1; 32], true), package(2, [2; 32], false), package(3, [3; 32], false)];
        let state = |program| program_state(program, &voted, 1, NOW);
        assert_eq!(state([1; 32]), Some(ImageState::Revoked));
        assert_eq!(state([2; 32]), Some(ImageState::Retired));
        assert_eq!(state([3; 32]), Some(ImageState::Active));
        assert_eq!(state([4; 32]), None, "a program that was never approved");
    }

    #[test]
    fn manifest_without_firmware_generation_gives_image_without_one() {
        let generation = |firmware_generation| {
            let (image, shapes, advisories) = ([7; 32], Vec::new(), Vec::new());
            let manifest = Manifest { kind: 1, version: 1, firmware_generation, image, shapes, advisories }.encode();
            let value = image_value([7; 32].into(), sha256(&manifest));
            let voted = VotedImage { round: 1, version: 1, usable_from: 0, suspended_until: 0, revoked: false, value };
            let file = AttestationFile { manifests: vec![manifest], ..AttestationFile::default() };
            approved(&[voted], 1, &[], &file, NOW)[0].image.firmware_generation
        };
        assert_eq!([generation(None), generation(Some(0)), generation(Some(5))], [None, Some(0), Some(5)]);
    }

    /// Returns evidence in AMD's form with such a signature, bound to this relay and block.
    pub(crate) fn staple(relay_id: u64, block_height: u64, signature: u8) -> Staple {
        let evidence = [&[2][..], &[0; 672], &[signature; 96], &[0, 0]].concat();
        let binding = Binding {
            network: [1; 32],
            relay_id,
            handshake_key: [2; 32],
            key_epoch: 1,
            roles: 1,
            image: [3; 32],
            block_hash: [4; 32],
            block_height,
        };
        Staple { evidence: Evidence::decode(&evidence).unwrap(), binding }
    }

    /// Accepted evidence stays byte for byte, and lookalikes are removed. Refused relays keep all evidence in its
    /// order.
    #[test]
    fn only_accepted_evidence_is_cached() {
        let statement = |byte| Statement { round: 1, signature: [byte; 65] };
        let judged = JudgedRelays {
            results: [(1, Ok(Vec::new())), (2, Err(Refusal::NoView("the collateral"))), (4, Ok(Vec::new()))].into(),
            images: Vec::new(),
            policy: Policy::default(),
            believed: vec![staple(1, 512, 9)],
            named: vec![statement(7)],
            fault: None,
            unserved: false,
        };
        let staples = [staple(2, 256, 1), staple(1, 512, 8), staple(1, 512, 9), staple(2, 512, 1), staple(3, 512, 1)];
        let statements = vec![statement(6), statement(7)];
        let mut file = AttestationFile { staples: staples.to_vec(), statements, ..AttestationFile::default() };
        judged.keep_believed(&mut file);
        assert_eq!(file.staples, [staple(1, 512, 9), staple(2, 256, 1), staple(2, 512, 1)]);
        assert_eq!(file.statements, [statement(7), statement(6)]);
        file.statements = vec![statement(6); 300];
        judged.keep_believed(&mut file);
        assert_eq!((file.statements.len(), file.statements[0]), (1 + OTHERS, statement(7)));
        // If nothing could be judged, no statement is removed.
        let blind = JudgedRelays { fault: Some("no proof".into()), ..judged };
        file.statements = vec![statement(6); 300];
        blind.keep_believed(&mut file);
        assert_eq!(file.statements.len(), 300);
    }
}
