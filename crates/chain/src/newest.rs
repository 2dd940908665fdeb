//! The newest block that a quorum of endpoints shows without a proof of the directory at that block.
//!
//! Owns the file beside the cached directory that remembers the number of this block. A cached directory can be used
//! for long only while no newer block is known; see `attest::verdict`.

use std::path::{Path, PathBuf};
use std::sync::mpsc;

use openrelay_ledger::chain::header::{Header, from_json};
use serde_json::json;

use super::endpoint::{Endpoint, EndpointError};
use super::read::ChainError;
use super::transport::Transport;
use openrelay_node::chain_file::ChainFile;

/// Returns the number of the newest known block after a reading that failed with `error`, and remembers it.
pub(crate) fn learn(transport: &dyn Transport, file: &ChainFile, kept: &Path, error: &ChainError) -> u64 {
    let before = known(kept);
    if matches!(error, ChainError::Unreached { .. }) {
        return before;
    }
    let newest = shown(transport, file).max(before);
    if newest > before {
        // After a failure here, a later client may use the cached directory for too long. But caching a directory
        // fails then too.
        let _ = std::fs::write(note(kept), format!("{newest}\n"));
    }
    newest
}

/// Returns the number of the newest block that was remembered; the highest possible number if the file is malformed.
pub(crate) fn known(kept: &Path) -> u64 {
    match std::fs::read_to_string(note(kept)) {
        Ok(text) => text.trim().parse().unwrap_or(u64::MAX),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        Err(_) => u64::MAX,
    }
}

/// Forgets the block, because a directory was proven at the newest one.
pub(crate) fn forget(kept: &Path) {
    // A leftover file only shortens the time for which the directory can be used without endpoints.
    let _ = std::fs::remove_file(note(kept));
}

fn note(kept: &Path) -> PathBuf {
    kept.with_extension("newest")
}

/// Returns the highest block that a quorum of endpoints says the chain has reached; 0 without a quorum.
fn shown(transport: &dyn Transport, file: &ChainFile) -> u64 {
    let (answers, all) = mpsc::channel();
    for url in &file.endpoints {
        let (answers, endpoint, chain) = (answers.clone(), Endpoint::by(transport, url), file.chain_id);
        // The receiver may be gone.
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
