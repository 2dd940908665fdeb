//! The newest block that is known besides the directory's own: one that a quorum of endpoints shows and nothing proves a directory at.
//!
//! Owns the file beside the kept directory that remembers its number. A directory that is kept serves for long only while no
//! newer block is known; see `attest::verdict`.

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use openrelay_ledger::chain::header::{Header, from_json};
use serde_json::json;

use super::endpoint::{Endpoint, EndpointError};
use super::read::ChainError;
use super::way::Way;
use crate::chain_file::ChainFile;

/// The number of the newest block that is known, after a reading that failed with `error`; it is remembered.
pub(super) fn learn(way: &dyn Way, file: &ChainFile, kept: &Path, error: &ChainError) -> u64 {
    let before = known(kept);
    if matches!(error, ChainError::Unreached { .. }) {
        return before;
    }
    let newest = shown(way, file).max(before);
    if newest > before {
        // Where this fails, a later client may use the kept directory longer than it should; so does keeping the directory.
        let _ = std::fs::write(note(kept), format!("{newest}\n"));
    }
    newest
}

/// The number of the newest block that was remembered; the highest there is where the file is malformed.
pub(super) fn known(kept: &Path) -> u64 {
    match std::fs::read_to_string(note(kept)) {
        Ok(text) => text.trim().parse().unwrap_or(u64::MAX),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(_) => u64::MAX,
    }
}

/// Forgets it: a directory was proven at the newest block.
pub(super) fn forget(kept: &Path) {
    // What stays only shortens the time that the directory serves without endpoints.
    let _ = std::fs::remove_file(note(kept));
}

fn note(kept: &Path) -> PathBuf {
    kept.with_extension("newest")
}

/// The highest block that a quorum of endpoints says the chain has reached; 0 without a quorum.
fn shown(way: &dyn Way, file: &ChainFile) -> u64 {
    let (answers, all) = mpsc::channel();
    for url in &file.endpoints {
        let (answers, endpoint, chain) = (answers.clone(), Endpoint::by(way, url), file.chain_id);
        // Nobody may be waiting any more.
        std::thread::spawn(move || answers.send(head(&endpoint, chain)).ok());
    }
    drop(answers);
    let mut heads: Vec<u64> = all.iter().flatten().collect();
    heads.sort_unstable_by(|one, other| other.cmp(one));
    file.quorum.checked_sub(1).and_then(|place| heads.get(place)).copied().unwrap_or(0)
}

fn head(endpoint: &Endpoint, chain: u64) -> Result<u64, EndpointError> {
    let method = "eth_getBlockByNumber";
    endpoint.check_chain(chain)?;
    let shown = endpoint.ask(method, &json!(["latest", false]))?;
    let rlp = from_json(&shown).map_err(|error| endpoint.malformed(method, error))?;
    Ok(Header::decode(&rlp).map_err(|error| endpoint.malformed(method, error))?.number)
}
