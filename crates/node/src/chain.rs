//! The chain as this node uses it: asked over RPC, believed only as far as proofs and a quorum go.
//!
//! Owns what leaves the machine for it. Checks are `ledger`'s; nothing here makes a directory but by them.

mod asking;
pub mod checkpoint;
pub mod collector;
pub mod endpoint;
mod evidence;
pub mod journal;
pub mod logs;
pub mod mirror;
mod newest;
pub mod package;
pub mod read;
mod records;
mod sources;
mod staples;
mod voted;
pub mod way;

pub use endpoint::{Endpoint, EndpointError};
pub use read::{ChainError, hashes_at, read, read_by};
pub use voted::voted;
pub use way::{Outside, Way};

use std::path::{Path, PathBuf};

use openrelay_attest::file::AttestationFile;
use openrelay_attest::verdict::Staple;
use openrelay_ledger::chain::reading::{MAX_AGE, MAX_READING, Reading, ReadingError};
use openrelay_ledger::directory::Source;

use crate::attestation::Judged;
use crate::chain_file::ChainFile;
use crate::clock::unix_seconds;
use crate::directory::{VerifiedDirectory, replace};
use crate::random::OsRandom;

/// The directory as the chain proves it now; or, when its endpoints or mirrors give none, at a block that the keys of checkpoints have signed; or the last one that was kept in
/// the file `kept`. Either only while it is young enough, and with a warning. What is read is kept there. Nothing older than the block `floor` is taken.
///
/// A client that has kept nothing yet and has no floor, and knows keys of checkpoints, takes nothing that is older than a checkpoint, and nothing at all without one.
///
/// # Errors
/// [`ChainError`] of reading it now, when nothing that was kept will do.
pub fn directory(
    way: &dyn Way,
    file: &ChainFile,
    kept: &Path,
    floor: u64,
) -> Result<(VerifiedDirectory, Option<String>), ChainError> {
    let last = read_kept(kept);
    let old = last.clone();
    let old = old.map(|last| VerifiedDirectory::of_reading(last, &file.trust(), file.max_age_s, floor));
    // What is too old to be used is still young enough to tell that something is older.
    let seen = last.as_ref().and_then(|last| last.verify(&file.trust(), unix_seconds(), MAX_AGE, 0).ok());
    let mut seen = seen.map_or(0, |seen| seen.body().sequence).max(floor);
    let mut signed = None;
    if last.is_none() && floor == 0 && !file.checkpoints.is_empty() {
        let first = checkpoint::fetch(way, file, unix_seconds(), 0)?;
        seen = first.checkpoint.number;
        signed = Some(first);
    }
    let error = match read::read_noting(way, file, (unix_seconds(), seen), last.as_ref(), &[]) {
        Ok((reading, directory, mut faults)) => {
            faults.extend(keep(kept, &reading));
            note_reading(kept);
            newest::forget(kept);
            let warning = (!faults.is_empty()).then(|| faults.join("; "));
            return Ok((VerifiedDirectory::of_proven(directory, reading), warning));
        }
        Err(error) => error,
    };
    // Endpoints may show a newer block and not prove it: then what is older is not taken for long.
    let newest = newest::learn(way, file, kept, &error);
    if signed.is_none() && file.checkpoint_quorum > 0 {
        signed = checkpoint::fetch(way, file, unix_seconds(), seen).ok();
    }
    if let Some(mut signed) = signed {
        if let Some(last) = &last {
            // Which evidence comes with a checkpoint nobody has signed.
            evidence::add_kept(file, &mut signed.reading, last);
        }
        let age = unix_seconds().saturating_sub(signed.checkpoint.timestamp);
        let warning = format!("the directory is one of a signed checkpoint, {age} s old: {error}");
        let found = VerifiedDirectory::of_proven(signed.directory, signed.reading);
        let found = completed(way, file, found, last.as_ref());
        let unkept = found.reading().and_then(|reading| keep(kept, reading));
        let unkept = unkept.map(|why| format!("; {why}")).unwrap_or_default();
        return Ok((found.as_newest_of(newest), Some(warning + &unkept)));
    }
    match old {
        Some(Ok(old)) => {
            let old = completed(way, file, old, None);
            let age = unix_seconds().saturating_sub(old.directory().body().issued);
            let warning = format!("the directory is one that was kept, {age} s old: {error}");
            Ok((old.as_newest_of(newest), Some(warning)))
        }
        Some(Err(ReadingError::Stale { age, limit })) => Err(ChainError::Outdated { age, limit, why: Box::new(error) }),
        Some(Err(_)) | None => Err(error),
    }
}

/// The directory with the descriptors that it lacks, as far as sources or an older reading have them.
fn completed(
    way: &dyn Way,
    file: &ChainFile,
    directory: VerifiedDirectory,
    older: Option<&Reading>,
) -> VerifiedDirectory {
    let Some(reading) = directory.reading().filter(|_| withheld(&directory) > 0) else { return directory };
    let earlier: Vec<&[u8]> =
        [Some(reading), older].into_iter().flatten().map(|reading| &reading.records[..]).collect();
    let root = reading.account.storage_root;
    let gathered = records::gather(way, file, root, &earlier, &mut OsRandom::default());
    let filled = gathered.ok().map(|records| Reading { records, ..reading.clone() });
    let filled = filled.and_then(|reading| {
        // It was verified just now, but for the descriptors.
        VerifiedDirectory::of_reading(reading, &file.trust(), MAX_AGE, 0).ok()
    });
    filled.unwrap_or(directory)
}

/// Relays of which it has no descriptor.
fn withheld(directory: &VerifiedDirectory) -> usize {
    match directory.directory().source() {
        Source::Chain(facts) => facts.withheld,
        Source::Signed => 0,
    }
}

/// The directory in the file `kept`, if endpoints have shown it within the last `refresh_s` seconds and no descriptor is
/// missing from it. A client that is up reads it that often, so a new circuit right after one asks nobody from the user's
/// own address.
pub fn read_lately(file: &ChainFile, kept: &Path) -> Option<VerifiedDirectory> {
    let at: u64 = std::fs::read_to_string(note(kept)).ok()?.trim().parse().ok()?;
    let age = unix_seconds().checked_sub(at)?;
    if age > file.refresh_s { None } else { kept_directory(file, kept).filter(|directory| withheld(directory) == 0) }
}

/// The directory in the file `kept`, however it came there, if it is young enough.
pub fn kept_directory(file: &ChainFile, kept: &Path) -> Option<VerifiedDirectory> {
    let directory = VerifiedDirectory::of_reading(read_kept(kept)?, &file.trust(), file.max_age_s, 0).ok()?;
    Some(directory.as_newest_of(newest::known(kept)))
}

/// From now on [`read_lately`] gives nothing until endpoints are asked again: a relay in it does not answer, so it may have another key by now.
pub fn doubt_reading(kept: &Path) {
    // One that cannot be removed ends by itself soon.
    let _ = std::fs::remove_file(note(kept));
}

/// The file that says when the reading beside it was shown by endpoints.
fn note(kept: &Path) -> PathBuf {
    kept.with_extension("read-at")
}

fn note_reading(kept: &Path) {
    // Without it endpoints are asked once more than they need be.
    let _ = std::fs::write(note(kept), format!("{}\n", unix_seconds()));
}

/// All evidence that mirrors have and `genuine` says a chip has signed, the collateral that each mirror has, and what is wrong
/// with mirrors' files. Nothing else of it is checked.
pub fn mirrored_evidence(
    file: &ChainFile,
    genuine: &dyn Fn(&Staple) -> bool,
) -> (Vec<Staple>, Vec<Vec<u8>>, Vec<String>) {
    staples::all(file, genuine)
}

/// Keeps a reading; a warning when it cannot.
fn keep(kept: &Path, reading: &Reading) -> Option<String> {
    let folder = kept.parent().unwrap_or(Path::new("."));
    let Some(bytes) = reading.encode() else {
        return Some("the directory is larger than one can be, and is not kept".into());
    };
    let written = std::fs::create_dir_all(folder).and_then(|()| replace(kept, &bytes));
    written.err().map(|error| format!("cannot keep the directory in {}: {error}", kept.display()))
}

/// Keeps of the evidence in the file `kept` what was believed, and of relays that are not believed all, if the file is of this directory: what mirrors bring later then takes no place of it.
/// A warning when that cannot be written.
pub fn keep_believed(kept: &Path, directory: &VerifiedDirectory, judged: &Judged) -> Option<String> {
    let mut reading = read_kept(kept).filter(|reading| Some(reading) == directory.reading())?;
    let mut file = AttestationFile::decode(&reading.attestation).ok()?;
    judged.keep_believed(&mut file);
    let bytes = file.encode();
    if bytes == reading.attestation {
        return None;
    }
    reading.attestation = bytes;
    keep(kept, &reading)
}

/// The reading in the file `kept`; nothing is checked.
pub fn read_kept(path: &Path) -> Option<Reading> {
    let size = std::fs::metadata(path).ok()?.len();
    if size > u64::try_from(MAX_READING).ok()? {
        return None;
    }
    Reading::decode(&std::fs::read(path).ok()?).ok()
}
