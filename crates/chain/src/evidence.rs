//! The data for judging relays, read together with the directory. Mirrors supply evidence files. The chain supplies
//! images, collateral and the blocks that evidence can name.
//!
//! Owns which storage slots are requested, and in which order. `ledger` checks the proofs, `attest` the evidence.
//! Data that mirrors lack is missing from the reading; the relays concerned are refused later, when they are judged.
//! An endpoint that does not answer cannot be read from.

use std::collections::BTreeSet;

use crate::voting::image_value;
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
use openrelay_ledger::directory::Directory;
use serde_json::{Value, json};

use super::endpoint::{Endpoint, EndpointError};
use super::read::height;
use super::sources::SOURCES;
use super::staples::{Gathered, gather};
use super::transport::Transport;
use crate::attestation::{NEWEST, sha256};
use openrelay_node::chain_file::ChainFile;
use openrelay_node::random::OsRandom;

/// Maximum number of staples stored for one relay. Only a relay that is not accepted has more than two.
const KEPT: usize = MAX_PLACES;
/// Maximum number of them from the cache. Evidence that relays show, and evidence from sources, has room of its own.
const KEPT_BEFORE: usize = KEPT - (SOURCES + 1) * NEWEST;
/// Statements of rebuilders that are taken from one file. Those of five files and the cached ones fit into one file.
const STATEMENTS: usize = 176;

const _: () = assert!(largest(MAX_RELAYS, 1) <= MAX_ATTESTATION);

/// Adds to a reading the data for judging relays, as far as this endpoint proves it. `extra` is evidence that relays
/// have shown and mirrors may lack. Returns the faults in sources' files.
///
/// # Errors
/// [`EndpointError`] if the endpoint does not answer or does not prove what was asked for.
pub(crate) fn add(
    transport: &dyn Transport,
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
    // Heights of blocks whose headers mirrors may lack. A header is genuine if the history of blocks proves its hash,
    // whoever supplies it.
    let mut heights: BTreeSet<u64> = anchors.last().copied().into_iter().collect();
    heights.extend(extra.iter().map(|staple| staple.binding.block_height).filter(|height| anchors.contains(height)));
    reading.states = states(endpoint, &header, &contracts)?;
    let voted = reading.voted(&file.trust()).map_err(|error| endpoint.malformed("eth_getProof", error))?;
    let mut shown = AttestationFile { staples: extra.to_vec(), ..AttestationFile::default() };
    for height in heights {
        // A chain without a history of blocks proves no header.
        let Some(proven) = voted.blocks.get(&height) else { continue };
        shown.headers.push(header_with(endpoint, height, *proven)?);
    }
    let fits = |staple: &Staple| {
        let binding = &staple.binding;
        directory.relay(binding.relay_id).is_some() && anchors.contains(&binding.block_height)
    };
    let relays = directory.body().relays.iter().map(|record| record.relay_id);
    let mut gathered = gather(transport, &file.evidence, relays, &fits, &mut OsRandom::default());
    // The cached collateral comes first, and stays unless the chain names another.
    let files = [&mut found, &mut shown].into_iter().chain(&mut gathered.files);
    let bundles: Vec<Vec<u8>> = files.map(|file| std::mem::take(&mut file.bundle)).collect();
    let only_named = |file: &mut AttestationFile| {
        file.staples.retain(fits);
        // Data that the chain does not name could displace data that it names.
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

/// Adds the cached evidence of an older reading to a reading, and puts it first. Cached collateral stays unless the
/// reading proves another.
pub(crate) fn add_kept(file: &ChainFile, reading: &mut Reading, older: &Reading) {
    let Ok(voted) = reading.voted(&file.trust()) else { return };
    let Ok(mut found) = AttestationFile::decode(&older.attestation) else { return };
    let brought = AttestationFile::decode(&reading.attestation).unwrap_or_default();
    if voted.bundle == sha256(&brought.bundle) {
        found.bundle.clone_from(&brought.bundle);
    }
    put_behind(&mut found, brought, Gathered::default());
    reading.attestation = fitting(found);
}

/// Adds what was `shown`, and what sources have, behind what was cached. Each has room of its own: whatever a source
/// delivers, true or false, displaces nothing that was cached or that another source delivers.
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

/// Returns the bytes of a file. If it would exceed the maximum size, all relays alike have fewer staples in it. The
/// staples that came last are left out.
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

/// Returns the header that an endpoint shows at a height; `None` if it shows none.
pub(crate) fn header_at(endpoint: &Endpoint, number: u64) -> Result<Option<Vec<u8>>, EndpointError> {
    let shown = endpoint.ask("eth_getBlockByNumber", &json!([height(number), false]))?;
    Ok(from_json(&shown).ok())
}

/// Returns the header at a height whose hash the chain has proven.
fn header_with(endpoint: &Endpoint, number: u64, proven: B256) -> Result<Vec<u8>, EndpointError> {
    let shown =
        header_at(endpoint, number)?.filter(|rlp| Header::decode(rlp).is_ok_and(|header| header.hash == proven));
    shown.ok_or_else(|| {
        endpoint.malformed("eth_getBlockByNumber", format!("its block {number} is not the block that was proven"))
    })
}

pub(crate) fn states(
    endpoint: &Endpoint,
    header: &Header,
    contracts: &Contracts,
) -> Result<Vec<Proven>, EndpointError> {
    let images = images(endpoint, header, contracts.images, RELAY_IMAGE)?;
    let collateral = prove(endpoint, header, contracts.collateral, &collateral_slots())?;
    Ok(vec![images, collateral, prove(endpoint, header, HISTORY, &block_slots(header.number))?])
}

/// Returns the registry's slots that prove the newest images of a kind.
pub(crate) fn images(
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
        // This chain keeps no history of blocks.
        return Ok(Proven { address, account: None, proof, slots: Vec::new() });
    }
    let slot = |shown: &Value| -> Option<Slot> {
        let key: U256 = shown["key"].as_str()?.parse().ok()?;
        Some(Slot { key: key.into(), value: number(&shown["value"])?, proof: nodes(&shown["proof"])? })
    };
    let slots: Option<Vec<Slot>> = answer["storageProof"].as_array().into_iter().flatten().map(slot).collect();
    let slots = slots.ok_or_else(|| endpoint.malformed(method, "a storage slot is malformed"))?;
    Ok(Proven { address, account: Some(account), proof, slots })
}

/// Returns the account, and its proof, from an answer to `eth_getProof`.
pub(crate) fn account(answer: &Value) -> Option<(Account, Vec<Bytes>)> {
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
    fn false_evidence_displaces_neither_cached_nor_shown_evidence() {
        let forged = |from: u8, count: u8| (from..from + count).map(|byte| staple(1, 512, byte)).collect::<Vec<_>>();
        let mut kept = file(&forged(50, 9));
        kept.staples.insert(0, staple(1, 256, 2));
        let staples = forged(100, 4);
        put_behind(&mut kept, file(&[staple(1, 256, 1)]), Gathered { staples, ..Gathered::default() });
        let all = AttestationFile::decode(&fitting(kept)).unwrap().staples;
        assert!(all[0] == staple(1, 256, 2) && all.contains(&staple(1, 256, 1)), "{all:?}");
        assert!(forged(100, 4).iter().all(|one| all.contains(one)) && all.len() == KEPT - 1, "{}", all.len());
        // Before they are judged, nobody can tell whose statements these are.
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
