//! Checkpoints from mirrors and relays, for the first start and for clients that reach no endpoint.
//!
//! Owns which sources are queried. `ledger` checks what they return.

use openrelay_ledger::chain::checkpoint::{Checkpoint, CheckpointFile, MAX_FILE};
use openrelay_ledger::chain::reading::Reading;
use openrelay_ledger::directory::Directory;
use openrelay_proto::message::MirrorFile;

use super::read::ChainError;
use super::sources::{Missing, download};
use super::transport::Transport;
use openrelay_node::chain_file::ChainFile;

/// A signed block, and the directory at that block.
#[derive(Debug)]
pub struct Signed {
    /// The block.
    pub checkpoint: Checkpoint,
    /// The reading that proves the directory.
    pub reading: Reading,
    /// The directory.
    pub directory: Directory,
    /// The file that a mirror served.
    pub file: Vec<u8>,
}

/// Returns the newest valid checkpoint that a relay of the circuit or a mirror has. It may be at most as old as a
/// cached directory, and not older than the block `seen`.
///
/// # Errors
/// [`ChainError::Checkpoints`] with a fault for each source, or [`ChainError::Unreached`] if no source was reached.
pub fn fetch(transport: &dyn Transport, file: &ChainFile, now: u64, seen: u64) -> Result<Signed, ChainError> {
    let (mut faults, mut reached) = (Vec::new(), false);
    let mut best: Option<Signed> = None;
    let relays = transport.relays().iter().map(|relay| {
        let fetched = transport.fetch(*relay, MirrorFile::Checkpoint);
        ("a relay".to_owned(), fetched.map_err(Missing::Unreached))
    });
    let mirrors = file.checkpoints.iter().map(|url| (url.clone(), download(&transport.agent(url), url, MAX_FILE)));
    for (source, fetched) in relays.chain(mirrors) {
        let found = match fetched {
            Ok(bytes) => check(file, bytes, now, seen),
            Err(Missing::Refused(why)) => Err(why),
            Err(Missing::Unreached(why)) => {
                faults.push(format!("{source}: {why}"));
                continue;
            }
        };
        reached = true;
        match found {
            Ok(found) if best.as_ref().is_none_or(|best| best.checkpoint.number < found.checkpoint.number) => {
                best = Some(found);
            }
            Ok(_) => {}
            Err(why) => faults.push(format!("{source}: {why}")),
        }
    }
    match best {
        Some(best) => Ok(best),
        None if reached => Err(ChainError::Checkpoints(faults)),
        None => Err(ChainError::Unreached { what: "at this first start, no checkpoint mirror", faults }),
    }
}

fn check(file: &ChainFile, bytes: Vec<u8>, now: u64, seen: u64) -> Result<Signed, String> {
    let found = CheckpointFile::decode(&bytes).map_err(|error| error.to_string())?;
    let directory =
        found.verify(&file.signers(), &file.trust(), now, file.max_age_s, seen).map_err(|error| error.to_string())?;
    if file.trust().contracts.is_some() {
        // The checkpoint's signatures do not cover the proofs of images and collateral. With false proofs no relay
        // would be accepted.
        found.reading.voted(&file.trust()).map_err(|error| error.to_string())?;
    }
    Ok(Signed { checkpoint: found.signed.checkpoint, reading: found.reading, directory, file: bytes })
}
