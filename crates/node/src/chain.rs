//! The chain as this node uses it: asked over RPC, believed only as far as proofs and a quorum go.
//!
//! Owns what leaves the machine for it. Checks are `ledger`'s; nothing here makes a directory but by them.

pub mod checkpoint;
pub mod endpoint;
pub mod journal;
pub mod mirror;
pub mod read;
pub mod way;

pub use endpoint::{Endpoint, EndpointError};
pub use read::{ChainError, hashes_at, read, read_by};
pub use way::{Outside, Way};

use std::path::Path;
use std::time::Duration;

use openrelay_ledger::chain::reading::{MAX_AGE, MAX_READING, Reading};

use crate::chain_file::ChainFile;
use crate::clock::unix_seconds;
use crate::directory::{VerifiedDirectory, replace};

/// The directory as the chain proves it now; or, when its endpoints or mirrors give none, at a block that the keys of checkpoints have signed; or the last one that was kept in
/// the file `kept`. Either only while it is young enough, and with a warning. What is read is kept there.
///
/// Who has kept nothing yet, and knows keys of checkpoints, takes nothing that is older than a checkpoint, and nothing at all without one.
///
/// # Errors
/// [`ChainError`] of reading it now, when nothing that was kept will do.
pub fn directory(
    way: &dyn Way,
    file: &ChainFile,
    kept: &Path,
) -> Result<(VerifiedDirectory, Option<String>), ChainError> {
    let last = read_kept(kept);
    let old = last.as_ref().and_then(|last| VerifiedDirectory::of_reading(last, &file.trust(), file.max_age_s, 0).ok());
    // What is too old to be used is still young enough to tell that something is older.
    let seen = last.as_ref().and_then(|last| last.verify(&file.trust(), unix_seconds(), MAX_AGE, 0).ok());
    let mut seen = seen.map_or(0, |seen| seen.body().sequence);
    let mut signed = None;
    if last.is_none() && !file.checkpoints.is_empty() {
        let first = checkpoint::fetch(way, file, unix_seconds(), 0).map_err(ChainError::Checkpoints)?;
        seen = first.checkpoint.number;
        signed = Some(first);
    }
    let error = match read_by(way, file, unix_seconds(), seen) {
        Ok((reading, directory)) => {
            let warning = keep(kept, &reading);
            return Ok((VerifiedDirectory::of_proven(directory), warning));
        }
        Err(error) => error,
    };
    if signed.is_none() && file.checkpoint_quorum > 0 {
        signed = checkpoint::fetch(way, file, unix_seconds(), seen).ok();
    }
    if let Some(signed) = signed {
        let age = unix_seconds().saturating_sub(signed.checkpoint.timestamp);
        let warning = format!("the directory is one of a signed checkpoint, {age} s old: {error}");
        let unkept = keep(kept, &signed.reading).map(|why| format!("; {why}")).unwrap_or_default();
        return Ok((VerifiedDirectory::of_proven(signed.directory), Some(warning + &unkept)));
    }
    let Some(old) = old else { return Err(error) };
    let age = unix_seconds().saturating_sub(old.directory().body().issued);
    Ok((old, Some(format!("the directory is one that was kept, {age} s old: {error}"))))
}

/// The directory that was read into the file `kept` within the last `refresh_s` seconds, by this machine's clock: who is up reads it that often, so a new circuit right after
/// one needs not ask anybody from its own address.
pub fn read_lately(file: &ChainFile, kept: &Path) -> Option<VerifiedDirectory> {
    let age = std::fs::metadata(kept).ok()?.modified().ok()?.elapsed().ok()?;
    if age > Duration::from_secs(file.refresh_s) {
        return None;
    }
    VerifiedDirectory::of_reading(&read_kept(kept)?, &file.trust(), file.max_age_s, 0).ok()
}

/// Keeps a reading; a warning when it cannot.
fn keep(kept: &Path, reading: &Reading) -> Option<String> {
    let folder = kept.parent().unwrap_or(Path::new("."));
    let written = std::fs::create_dir_all(folder).and_then(|()| replace(kept, &reading.encode().unwrap_or_default()));
    written.err().map(|error| format!("cannot keep the directory in {}: {error}", kept.display()))
}

fn read_kept(path: &Path) -> Option<Reading> {
    let size = std::fs::metadata(path).ok()?.len();
    if size > u64::try_from(MAX_READING).ok()? {
        return None;
    }
    Reading::decode(&std::fs::read(path).ok()?).ok()
}
