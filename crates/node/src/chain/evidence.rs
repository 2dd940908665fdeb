//! What relays are judged by, read with the directory: a mirror's file of evidence, and what the chain says of images, collateral and the blocks that evidence can name.
//!
//! Owns which slots are asked for, in which order. Proofs are `ledger`'s business, evidence `attest`'s. What mirrors do not have is missing from the reading, and refuses relays
//! when they are judged; an endpoint that does not answer is none to read from.

use std::collections::BTreeSet;

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256};
use openrelay_attest::file::AttestationFile;
use openrelay_attest::manifest::Manifest;
use openrelay_attest::verdict::Staple;
use openrelay_ledger::chain::header::{Header, from_json};
use openrelay_ledger::chain::proof::Account;
use openrelay_ledger::chain::reading::{MAX_ATTESTATION, Reading};
use openrelay_ledger::chain::voted::{
    Contracts, HISTORY, Proven, RELAY_IMAGE, Slot, anchors, block_slots, collateral_slots, first_image_slots,
    image_count, image_slots, more_image_slots, newest_images,
};
use openrelay_ledger::chain::voting::image_value;
use openrelay_ledger::directory::Directory;
use openrelay_proto::message::MirrorFile;
use serde_json::{Value, json};

use super::endpoint::{Endpoint, EndpointError};
use super::read::height;
use super::way::Way;
use crate::attestation::{NEWEST, sha256};
use crate::chain_file::ChainFile;

/// Largest file of a mirror's, in bytes: of some four thousand relays.
const MAX_FILE: u64 = 12 << 20;
/// Evidence of a relay that is kept at most. More than two are only of one that is not believed.
const KEPT: usize = 8;

/// Adds to a reading what relays are judged by, as this endpoint proves it; `extra` is evidence that relays have shown and mirrors may not have yet.
///
/// # Errors
/// What the endpoint does not answer.
pub(super) fn add(
    way: &dyn Way,
    file: &ChainFile,
    endpoint: &Endpoint,
    (reading, directory): (&mut Reading, &Directory),
    older: Option<&Reading>,
    extra: &[Staple],
) -> Result<(), EndpointError> {
    let Some(contracts) = file.trust().contracts else { return Ok(()) };
    let header = Header::decode(&reading.header).map_err(|error| endpoint.malformed("eth_getBlockByNumber", error))?;
    let mut found = older.and_then(|older| AttestationFile::decode(&older.attestation).ok()).unwrap_or_default();
    let mut brought = download(way, file).unwrap_or_default();
    let bundles = [std::mem::take(&mut found.bundle), std::mem::take(&mut brought.bundle)];
    let anchors: BTreeSet<u64> = anchors(header.number).collect();
    // What evidence names that mirrors may not have yet. Its header is the block's if the history of blocks says so, whoever has shown it.
    let mut heights: BTreeSet<u64> = anchors.last().copied().into_iter().collect();
    heights.extend(extra.iter().map(|staple| staple.binding.block_height).filter(|height| anchors.contains(height)));
    for height in heights {
        brought.headers.extend(header_at(endpoint, height)?);
    }
    brought.staples.extend(extra.iter().cloned());
    let may_hold = |staple: &Staple| {
        let binding = &staple.binding;
        directory.relay(binding.relay_id).is_some() && anchors.contains(&binding.block_height)
    };
    // Apart: what a mirror brings, true or false, takes no place of what was kept, and comes behind it.
    found.staples.retain(may_hold);
    brought.staples.retain(may_hold);
    brought.keep_newest(NEWEST);
    put_behind(&mut found, brought);
    reading.states = states(endpoint, &header, &contracts)?;
    // What the chain does not name could crowd out what it does.
    if let Ok(voted) = reading.voted(&file.trust()) {
        let of_chain = |header: Header| voted.blocks.get(&header.number) == Some(&header.hash);
        found.headers.retain(|rlp| Header::decode(rlp).is_ok_and(of_chain));
        let named = |manifest: Manifest, bytes: &[u8]| {
            let value = image_value(manifest.image.into(), sha256(bytes));
            voted.images.iter().any(|image| image.value == value)
        };
        found.manifests.retain(|bytes| Manifest::decode(bytes).is_ok_and(|manifest| named(manifest, bytes)));
        found.statements.retain(|statement| voted.images.iter().any(|image| image.round == statement.round));
    }
    // Of both the one that the chain names: they are held against it again when relays are judged.
    let claimed = claimed_bundle(&reading.states, &contracts);
    let [kept, other] = bundles;
    found.bundle = if claimed == Some(sha256(&kept)) { kept } else { other };
    reading.attestation = if found == AttestationFile::default() { Vec::new() } else { fitting(found) };
    Ok(())
}

/// Adds to a reading what was kept before, which comes first.
pub(super) fn add_kept(file: &ChainFile, reading: &mut Reading, older: &Reading) {
    let Some(contracts) = file.trust().contracts else { return };
    let Ok(mut found) = AttestationFile::decode(&older.attestation) else { return };
    let brought = AttestationFile::decode(&reading.attestation).unwrap_or_default();
    if claimed_bundle(&reading.states, &contracts) == Some(sha256(&brought.bundle)) {
        found.bundle.clone_from(&brought.bundle);
    }
    put_behind(&mut found, brought);
    reading.attestation = fitting(found);
}

/// Adds what comes now behind what was kept; each has places of its own.
fn put_behind(kept: &mut AttestationFile, brought: AttestationFile) {
    kept.keep_first(KEPT - NEWEST);
    kept.add(brought);
    kept.keep_first(KEPT);
}

/// The bytes of a file, without the newest comers where it would be longer than one can be.
fn fitting(mut file: AttestationFile) -> Vec<u8> {
    loop {
        let bytes = file.encode();
        if bytes.len() <= MAX_ATTESTATION || file.staples.is_empty() {
            return bytes;
        }
        file.staples.truncate(file.staples.len() / 2);
    }
}

/// The collateral that an endpoint says the chain names.
fn claimed_bundle(states: &[Proven], contracts: &Contracts) -> Option<B256> {
    let state = states.iter().find(|state| state.address == contracts.collateral)?;
    let key = *collateral_slots().first()?;
    state.slots.iter().find(|slot| slot.key == key).map(|slot| slot.value.into())
}

/// The first file that a relay on the way or a mirror has.
pub(super) fn download(way: &dyn Way, file: &ChainFile) -> Option<AttestationFile> {
    downloads(way, file).next()
}

/// The files that relays on the way and mirrors have, one after the other.
pub(super) fn downloads<'a>(way: &'a dyn Way, file: &'a ChainFile) -> impl Iterator<Item = AttestationFile> + 'a {
    let relays = way.relays().iter().map(|relay| way.fetch(*relay, MirrorFile::Attestation).ok());
    let mirrors = file.evidence.iter().map(|url| {
        let mut response = way.agent(url).get(url).call().ok().filter(|response| response.status().is_success())?;
        response.body_mut().with_config().limit(MAX_FILE).read_to_vec().ok()
    });
    // A relay of the circuit first, so that nobody else hears of the question; of a large network it has none.
    relays.chain(mirrors).flatten().filter_map(|bytes| AttestationFile::decode(&bytes).ok())
}

/// The header at a height by an endpoint's word; `None` when it has none.
pub(super) fn header_at(endpoint: &Endpoint, number: u64) -> Result<Option<Vec<u8>>, EndpointError> {
    let shown = endpoint.ask("eth_getBlockByNumber", &json!([height(number), false]))?;
    Ok(from_json(&shown).ok())
}

fn states(endpoint: &Endpoint, header: &Header, contracts: &Contracts) -> Result<Vec<Proven>, EndpointError> {
    let images = images(endpoint, header, contracts.images, RELAY_IMAGE)?;
    let collateral = prove(endpoint, header, contracts.collateral, &collateral_slots())?;
    Ok(vec![images, collateral, prove(endpoint, header, HISTORY, &block_slots(header.number))?])
}

/// The slots of the registry that prove the newest images of a kind.
pub(super) fn images(
    endpoint: &Endpoint,
    header: &Header,
    registry: Address,
    kind: u8,
) -> Result<Proven, EndpointError> {
    let wrong = |error| endpoint.malformed("eth_getProof", error);
    let mut images = prove(endpoint, header, registry, &first_image_slots(kind))?;
    let more = more_image_slots(kind, image_count(kind, &images, header).map_err(wrong)?);
    if !more.is_empty() {
        images.slots.extend(prove(endpoint, header, registry, &more)?.slots);
    }
    let rounds = newest_images(kind, &images, header).map_err(wrong)?;
    if !rounds.is_empty() {
        images.slots.extend(prove(endpoint, header, registry, &image_slots(&rounds))?.slots);
    }
    Ok(images)
}

fn prove(endpoint: &Endpoint, header: &Header, address: Address, keys: &[B256]) -> Result<Proven, EndpointError> {
    let method = "eth_getProof";
    let keys: Vec<String> = keys.iter().map(ToString::to_string).collect();
    let answer = endpoint.ask(method, &json!([address.to_string(), keys, height(header.number)]))?;
    let (account, proof) =
        account(&answer).ok_or_else(|| endpoint.malformed(method, "it has no account or no proof"))?;
    if account.nonce == 0 && account.balance.is_zero() && [B256::ZERO, KECCAK256_EMPTY].contains(&account.code_hash) {
        // A chain that keeps no history of blocks.
        return Ok(Proven { address, account: None, proof, slots: Vec::new() });
    }
    let slot = |shown: &Value| -> Option<Slot> {
        let key: U256 = shown["key"].as_str()?.parse().ok()?;
        Some(Slot { key: key.into(), value: number(&shown["value"])?, proof: nodes(&shown["proof"])? })
    };
    let slots: Option<Vec<Slot>> = answer["storageProof"].as_array().into_iter().flatten().map(slot).collect();
    let slots = slots.ok_or_else(|| endpoint.malformed(method, "a slot does not read"))?;
    Ok(Proven { address, account: Some(account), proof, slots })
}

/// The account of an answer to `eth_getProof`, and its proof.
pub(super) fn account(answer: &Value) -> Option<(Account, Vec<Bytes>)> {
    let hash = |key: &str| -> Option<B256> { answer[key].as_str()?.parse().ok() };
    let account = Account {
        nonce: number(&answer["nonce"])?.saturating_to(),
        balance: number(&answer["balance"])?,
        storage_root: hash("storageHash")?,
        code_hash: hash("codeHash")?,
    };
    Some((account, nodes(&answer["accountProof"])?))
}

fn number(shown: &Value) -> Option<U256> {
    shown.as_str()?.parse().ok()
}

fn nodes(shown: &Value) -> Option<Vec<Bytes>> {
    shown.as_array()?.iter().map(|node| node.as_str()?.parse().ok()).collect()
}
