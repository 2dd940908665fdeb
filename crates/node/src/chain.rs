//! The chain as this node uses it: asked over RPC, believed only as far as proofs and a quorum go.
//!
//! Owns what leaves the machine for it. Checks are `ledger`'s; nothing here makes a directory but by them.

pub mod endpoint;
pub mod journal;
pub mod mirror;
pub mod read;

pub use endpoint::{Endpoint, EndpointError};
pub use read::{ChainError, read};

use std::path::Path;

use openrelay_ledger::chain::reading::{MAX_AGE, MAX_READING, Reading};

use crate::chain_file::ChainFile;
use crate::clock::unix_seconds;
use crate::directory::{VerifiedDirectory, replace};

/// The directory as the chain proves it now, or, when its endpoints or mirrors give none, the last one that was kept in the file `kept`, while it is young enough; then with a
/// warning. What is read is kept there.
///
/// # Errors
/// [`ChainError`] of reading it now, when nothing that was kept will do.
pub fn directory(file: &ChainFile, kept: &Path) -> Result<(VerifiedDirectory, Option<String>), ChainError> {
    let last = read_kept(kept);
    let old = last.as_ref().and_then(|last| VerifiedDirectory::of_reading(last, &file.trust(), file.max_age_s, 0).ok());
    // What is too old to be used is still young enough to tell that something is older.
    let seen = last.as_ref().and_then(|last| last.verify(&file.trust(), unix_seconds(), MAX_AGE, 0).ok());
    let error = match read(file, unix_seconds(), seen.map_or(0, |seen| seen.body().sequence)) {
        Ok((reading, directory)) => {
            let directory = VerifiedDirectory::of_proven(directory);
            let folder = kept.parent().unwrap_or(Path::new("."));
            let written =
                std::fs::create_dir_all(folder).and_then(|()| replace(kept, &reading.encode().unwrap_or_default()));
            let warning = |error| format!("cannot keep the directory in {}: {error}", kept.display());
            return Ok((directory, written.err().map(warning)));
        }
        Err(error) => error,
    };
    let Some(old) = old else { return Err(error) };
    let age = unix_seconds().saturating_sub(old.directory().body().issued);
    Ok((old, Some(format!("the directory is one that was kept, {age} s old: {error}"))))
}

fn read_kept(path: &Path) -> Option<Reading> {
    let size = std::fs::metadata(path).ok()?.len();
    if size > u64::try_from(MAX_READING).ok()? {
        return None;
    }
    Reading::decode(&std::fs::read(path).ok()?).ok()
}
