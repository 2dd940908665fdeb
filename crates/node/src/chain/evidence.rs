//! What relays are judged by, read with the directory: a mirror's file of evidence, and what the chain says of images, collateral and the blocks that evidence can name.
//!
//! Owns which slots are asked for, in which order. Proofs are `ledger`'s business, evidence `attest`'s. What mirrors do not have is missing from the reading, and refuses relays
//! when they are judged; an endpoint that does not answer is none to read from.

use std::collections::BTreeSet;
use std::sync::mpsc;

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
use openrelay_proto::random::array;
use serde_json::{Value, json};
use ureq::Agent;

use super::endpoint::{Endpoint, EndpointError};
use super::read::height;
use super::way::{Outside, Way};
use crate::attestation::{NEWEST, sha256};
use crate::chain_file::ChainFile;
use crate::random::OsRandom;

/// Largest file of a mirror's, in bytes: of some four thousand relays.
const MAX_FILE: u64 = 12 << 20;
/// Evidence of a relay that is kept at most. More than two are only of one that is not believed.
const KEPT: usize = 10;
/// Whose files are read each time: one alone could hold back the evidence of all relays but those that it would have one use.
const SOURCES: usize = 2;
/// Statements of rebuilders that are taken of one file: with what is kept they fit into one.
const STATEMENTS: usize = 176;

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
    let mut all_brought = vec![shown];
    all_brought.extend(gathered(way, &file.evidence));
    let bundles: Vec<Vec<u8>> =
        std::iter::once(&mut found).chain(&mut all_brought).map(|file| std::mem::take(&mut file.bundle)).collect();
    let only_named = |file: &mut AttestationFile| {
        file.staples.retain(|staple| {
            let binding = &staple.binding;
            directory.relay(binding.relay_id).is_some() && anchors.contains(&binding.block_height)
        });
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
    std::iter::once(&mut found).chain(&mut all_brought).for_each(only_named);
    put_behind(&mut found, all_brought);
    // The kept one comes first, and stays unless the chain names another.
    found.bundle = bundles.into_iter().find(|bundle| voted.bundle == sha256(bundle)).unwrap_or_default();
    reading.attestation = if found == AttestationFile::default() { Vec::new() } else { fitting(found) };
    Ok(())
}

/// Adds to a reading what was kept before, which comes first. Kept collateral stays unless the reading proves another.
pub(super) fn add_kept(file: &ChainFile, reading: &mut Reading, older: &Reading) {
    let Ok(voted) = reading.voted(&file.trust()) else { return };
    let Ok(mut found) = AttestationFile::decode(&older.attestation) else { return };
    let brought = AttestationFile::decode(&reading.attestation).unwrap_or_default();
    if voted.bundle == sha256(&brought.bundle) {
        found.bundle.clone_from(&brought.bundle);
    }
    put_behind(&mut found, vec![brought]);
    reading.attestation = fitting(found);
}

/// Adds what comes now behind what was kept. Each has places of its own: what a mirror brings, true or false, takes none of what was kept or of what another brings.
fn put_behind(kept: &mut AttestationFile, all_brought: Vec<AttestationFile>) {
    // Of all sources, and what relays have shown.
    kept.keep_first(KEPT - (SOURCES + 1) * NEWEST);
    for mut brought in all_brought {
        brought.keep_newest(NEWEST);
        brought.statements.truncate(STATEMENTS);
        kept.add(brought);
    }
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

/// The files of [`SOURCES`]: of a relay on the way, if one has a file (of a large network it has none), and of mirrors that are drawn by chance; of others only where those have none.
fn gathered(way: &dyn Way, mirrors: &[String]) -> Vec<AttestationFile> {
    let decoded = |bytes: Vec<u8>| AttestationFile::decode(&bytes).ok();
    let mut relays = way.relays().iter().filter_map(|relay| way.fetch(*relay, MirrorFile::Attestation).ok());
    let mut found: Vec<AttestationFile> = relays.find_map(decoded).into_iter().collect();
    let mut mirrors = mirrors.to_vec();
    mirrors.sort_by_cached_key(|_| array::<8>(&mut OsRandom::default()));
    while found.len() < SOURCES && !mirrors.is_empty() {
        let (answers, all) = mpsc::channel();
        for url in mirrors.drain(..mirrors.len().min(SOURCES - found.len())) {
            let (answers, agent) = (answers.clone(), way.agent(&url));
            // Nobody may be waiting any more.
            std::thread::spawn(move || answers.send(download(&agent, &url)).ok());
        }
        drop(answers);
        // None is cut short by another that is quick: each takes as long as one question may.
        found.extend(all.iter().flatten());
    }
    found
}

/// The files that mirrors have, one after the other, straight from this machine.
pub(super) fn downloads(file: &ChainFile) -> impl Iterator<Item = AttestationFile> + '_ {
    file.evidence.iter().filter_map(|url| download(&Outside.agent(url), url))
}

fn download(agent: &Agent, url: &str) -> Option<AttestationFile> {
    let mut response = agent.get(url).call().ok().filter(|response| response.status().is_success())?;
    let bytes = response.body_mut().with_config().limit(MAX_FILE).read_to_vec().ok()?;
    AttestationFile::decode(&bytes).ok()
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
    use std::io::{Read as _, Write as _};
    use std::net::TcpListener;

    use openrelay_attest::file::Statement;

    use super::*;
    use crate::attestation::tests::staple;

    fn file(staples: &[Staple]) -> AttestationFile {
        AttestationFile { staples: staples.to_vec(), ..AttestationFile::default() }
    }

    /// A mirror with this file.
    fn mirror(file: AttestationFile) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/attestation", listener.local_addr().unwrap());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut asked = Vec::new();
                while !asked.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    asked.push(byte[0]);
                }
                let bytes = file.encode();
                let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", bytes.len());
                stream.write_all(&[head.as_bytes(), &bytes].concat()).unwrap();
            }
        });
        url
    }

    fn relays(found: &[AttestationFile]) -> Vec<u64> {
        let mut all: Vec<u64> = found.iter().flat_map(|file| &file.staples).map(|one| one.binding.relay_id).collect();
        all.sort_unstable();
        all
    }

    #[test]
    fn a_mirror_that_holds_evidence_back_keeps_nobody_from_what_another_has() {
        let mirrors = [mirror(file(&[staple(1, 256, 1)])), mirror(file(&[staple(2, 256, 1)]))];
        assert_eq!(relays(&gathered(&Outside, &mirrors)), [1, 2]);
    }

    #[test]
    fn mirrors_that_are_gone_keep_nobody_from_one_that_answers() {
        let gone = format!("http://{}/", TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
        let good = mirror(file(&[staple(1, 256, 1)]));
        assert_eq!(relays(&gathered(&Outside, &[gone.clone(), gone.clone(), good])), [1]);
        assert_eq!(gathered(&Outside, &[gone]), []);
    }

    #[test]
    fn false_evidence_takes_no_place_of_what_was_kept_or_of_what_another_mirror_brings() {
        let forged = |from: u8| file(&(from..from + 9).map(|byte| staple(1, 512, byte)).collect::<Vec<_>>());
        for all in [[file(&[staple(1, 256, 1)]), forged(100)], [forged(100), file(&[staple(1, 256, 1)])]] {
            let mut kept = forged(50);
            kept.staples.insert(0, staple(1, 256, 2));
            put_behind(&mut kept, all.to_vec());
            let (first, all) = (&kept.staples[0], &kept.staples);
            assert!(*first == staple(1, 256, 2) && all.contains(&staple(1, 256, 1)) && all.len() <= KEPT);
        }
        // Whose statements these are nobody can tell before they are judged.
        let signed = |byte: u8, count: u64| {
            let statements = (0..count).map(|round| Statement { round, signature: [byte; 65] }).collect();
            AttestationFile { statements, ..AttestationFile::default() }
        };
        let mut kept = AttestationFile::default();
        put_behind(&mut kept, vec![signed(1, 512), signed(2, 1)]);
        let kept = AttestationFile::decode(&kept.encode()).unwrap();
        assert!(kept.statements.contains(&Statement { round: 0, signature: [2; 65] }));
    }
}
