//! What relays are judged by, read with the directory: mirrors' files of evidence, and what the chain says of images, collateral and the blocks that evidence can name.
//!
//! Owns which slots are asked for, in which order. Proofs are `ledger`'s business, evidence `attest`'s. What mirrors do not have is missing from the reading, and refuses relays
//! when they are judged; an endpoint that does not answer is none to read from.

use std::collections::BTreeSet;

use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256};
use openrelay_attest::file::AttestationFile;
use openrelay_attest::manifest::Manifest;
use openrelay_attest::pages::{MAX_PLACES, MAX_RELAYS, largest};
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
use serde_json::{Value, json};

use super::endpoint::{Endpoint, EndpointError};
use super::read::height;
use super::sources::SOURCES;
use super::staples::{Gathered, gather};
use super::way::Way;
use crate::attestation::{NEWEST, sha256};
use crate::chain_file::ChainFile;
use crate::random::OsRandom;

/// Evidence of a relay that is kept at most. More than two are only of one that is not believed.
const KEPT: usize = MAX_PLACES;
/// Of it what was kept before: what relays have shown and what sources bring has places of its own.
const KEPT_BEFORE: usize = KEPT - (SOURCES + 1) * NEWEST;
/// Statements of rebuilders that are taken of one file: with what is kept those of five fit into one.
const STATEMENTS: usize = 176;

const _: () = assert!(largest(MAX_RELAYS, 1) <= MAX_ATTESTATION);

/// Adds to a reading what relays are judged by, as this endpoint proves it; `extra` is evidence that relays have shown and mirrors may not have yet. Returns
/// what was wrong with sources' files.
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
) -> Result<Vec<String>, EndpointError> {
    let Some(contracts) = file.trust().contracts else { return Ok(Vec::new()) };
    let header = Header::decode(&reading.header).map_err(|error| endpoint.malformed("eth_getBlockByNumber", error))?;
    let mut found = older.and_then(|older| AttestationFile::decode(&older.attestation).ok()).unwrap_or_default();
    let anchors: BTreeSet<u64> = anchors(header.number).collect();
    // What evidence names that mirrors may not have yet. Its header is the block's if the history of blocks says so, whoever has shown it.
    let mut heights: BTreeSet<u64> = anchors.last().copied().into_iter().collect();
    heights.extend(extra.iter().map(|staple| staple.binding.block_height).filter(|height| anchors.contains(height)));
    reading.states = states(endpoint, &header, &contracts)?;
    let voted = reading.voted(&file.trust()).map_err(|error| endpoint.malformed("eth_getProof", error))?;
    let mut shown = AttestationFile { staples: extra.to_vec(), ..AttestationFile::default() };
    for height in heights {
        // A chain without a history of blocks proves none.
        let Some(proven) = voted.blocks.get(&height) else { continue };
        shown.headers.push(header_with(endpoint, height, *proven)?);
    }
    let fits = |staple: &Staple| {
        let binding = &staple.binding;
        directory.relay(binding.relay_id).is_some() && anchors.contains(&binding.block_height)
    };
    let relays = directory.body().relays.iter().map(|record| record.relay_id);
    let mut gathered = gather(way, &file.evidence, relays, &fits, &mut OsRandom::default());
    // The kept one comes first, and stays unless the chain names another.
    let files = [&mut found, &mut shown].into_iter().chain(&mut gathered.files);
    let bundles: Vec<Vec<u8>> = files.map(|file| std::mem::take(&mut file.bundle)).collect();
    let only_named = |file: &mut AttestationFile| {
        file.staples.retain(fits);
        // What the chain does not name could crowd out what it does.
        let of_chain = |header: Header| voted.blocks.get(&header.number) == Some(&header.hash);
        file.headers.retain(|rlp| Header::decode(rlp).is_ok_and(of_chain));
        let named = |manifest: Manifest, bytes: &[u8]| {
            let value = image_value(manifest.image.into(), sha256(bytes));
            voted.images.iter().any(|image| image.value == value)
        };
        file.manifests.retain(|bytes| Manifest::decode(bytes).is_ok_and(|manifest| named(manifest, bytes)));
        file.statements.retain(|statement| voted.images.iter().any(|image| image.round == statement.round));
    };
    [&mut found, &mut shown].into_iter().chain(&mut gathered.files).for_each(only_named);
    let faults = std::mem::take(&mut gathered.faults);
    put_behind(&mut found, shown, gathered);
    found.bundle = bundles.into_iter().find(|bundle| voted.bundle == sha256(bundle)).unwrap_or_default();
    reading.attestation = if found == AttestationFile::default() { Vec::new() } else { fitting(found) };
    Ok(faults.into_iter().map(|(source, why)| format!("{source}: {why}")).collect())
}

/// Adds to a reading what was kept before, which comes first. Kept collateral stays unless the reading proves another.
pub(super) fn add_kept(file: &ChainFile, reading: &mut Reading, older: &Reading) {
    let Ok(voted) = reading.voted(&file.trust()) else { return };
    let Ok(mut found) = AttestationFile::decode(&older.attestation) else { return };
    let brought = AttestationFile::decode(&reading.attestation).unwrap_or_default();
    if voted.bundle == sha256(&brought.bundle) {
        found.bundle.clone_from(&brought.bundle);
    }
    put_behind(&mut found, brought, Gathered::default());
    reading.attestation = fitting(found);
}

/// Adds what was `shown` and what sources have behind what was kept. Each has places of its own: what a source brings, true or
/// false, takes none of what was kept or of what another brings.
fn put_behind(kept: &mut AttestationFile, mut shown: AttestationFile, gathered: Gathered) {
    kept.keep_first(KEPT_BEFORE);
    shown.keep_newest(NEWEST);
    for mut common in [shown].into_iter().chain(gathered.files) {
        common.statements.truncate(STATEMENTS);
        kept.add(common);
    }
    kept.add(AttestationFile { staples: gathered.staples, ..AttestationFile::default() });
    kept.keep_first(KEPT);
    kept.silent = gathered.silent;
}

/// The bytes of a file, with fewer places of each relay where it would be longer than one can be: the newest comers are left
/// out, of all relays alike.
fn fitting(mut file: AttestationFile) -> Vec<u8> {
    for places in (1..=KEPT).rev() {
        file.keep_first(places);
        let bytes = file.encode();
        if bytes.len() <= MAX_ATTESTATION {
            return bytes;
        }
    }
    file.staples.clear();
    file.encode()
}

/// The header at a height by an endpoint's word; `None` when it has none.
pub(super) fn header_at(endpoint: &Endpoint, number: u64) -> Result<Option<Vec<u8>>, EndpointError> {
    let shown = endpoint.ask("eth_getBlockByNumber", &json!([height(number), false]))?;
    Ok(from_json(&shown).ok())
}

/// The header at a height, whose hash the chain has proven.
fn header_with(endpoint: &Endpoint, number: u64, proven: B256) -> Result<Vec<u8>, EndpointError> {
    let shown =
        header_at(endpoint, number)?.filter(|rlp| Header::decode(rlp).is_ok_and(|header| header.hash == proven));
    shown.ok_or_else(|| {
        endpoint.malformed("eth_getBlockByNumber", format!("its block {number} is not the one that the chain proves"))
    })
}

pub(super) fn states(
    endpoint: &Endpoint,
    header: &Header,
    contracts: &Contracts,
) -> Result<Vec<Proven>, EndpointError> {
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]
    use openrelay_attest::file::Statement;

    use super::*;
    use crate::attestation::tests::staple;

    fn file(staples: &[Staple]) -> AttestationFile {
        AttestationFile { staples: staples.to_vec(), ..AttestationFile::default() }
    }

    #[test]
    fn false_evidence_takes_no_place_of_what_was_kept_or_of_what_relays_have_shown() {
        let forged = |from: u8, count: u8| (from..from + count).map(|byte| staple(1, 512, byte)).collect::<Vec<_>>();
        let mut kept = file(&forged(50, 9));
        kept.staples.insert(0, staple(1, 256, 2));
        let staples = forged(100, 4);
        put_behind(&mut kept, file(&[staple(1, 256, 1)]), Gathered { staples, ..Gathered::default() });
        let all = AttestationFile::decode(&fitting(kept)).unwrap().staples;
        assert!(all[0] == staple(1, 256, 2) && all.contains(&staple(1, 256, 1)), "{all:?}");
        assert!(forged(100, 4).iter().all(|one| all.contains(one)) && all.len() == KEPT - 1, "{}", all.len());
        // Whose statements these are nobody can tell before they are judged.
        let signed = |byte: u8, count: u64| {
            let statements = (0..count).map(|round| Statement { round, signature: [byte; 65] }).collect();
            AttestationFile { statements, ..AttestationFile::default() }
        };
        let mut kept = AttestationFile::default();
        let files = vec![signed(1, 1_024), signed(3, 1_024), signed(4, 1_024), signed(5, 1_024), signed(2, 1)];
        put_behind(&mut kept, AttestationFile::default(), Gathered { files, ..Gathered::default() });
        let kept = AttestationFile::decode(&kept.encode()).unwrap();
        assert!(kept.statements.contains(&Statement { round: 0, signature: [2; 65] }));
    }
}
