//! The chain as this machine uses it: queried over RPC, and trusted only as far as proofs and a quorum of endpoints
//! go. Relays are judged by what it proves, and a circuit opens through judged relays alone.
//!
//! Owns every query about the chain that leaves this machine, and [`circuit::open`]. The checks are in `ledger` and
//! `attest`; nothing here makes a directory or an attested relay without them. Knows no tunnel and no firewall.

mod asking;
pub mod attestation;
pub mod checkpoint;
pub mod circuit;
pub mod collector;
pub mod endpoint;
mod evidence;
pub mod evidence_client;
pub mod journal;
pub mod logs;
pub mod mirror;
mod newest;
pub mod package;
pub mod policy;
pub mod read;
mod records;
pub mod registry;
mod sources;
mod staples;
pub mod transport;
mod voted;
pub mod voting;

pub use endpoint::{Endpoint, EndpointError};
pub use read::{ChainError, hashes_at, read, read_by};
pub use transport::{Direct, Transport};
pub use voted::voted;

use std::path::{Path, PathBuf};

use openrelay_attest::file::AttestationFile;
use openrelay_attest::verdict::Staple;
use openrelay_ledger::chain::reading::{MAX_AGE, MAX_READING, Reading, ReadingError};
use openrelay_ledger::directory::Source;

use crate::attestation::JudgedRelays;
use openrelay_node::chain_file::ChainFile;
use openrelay_node::clock::unix_seconds;
use openrelay_node::directory::{VerifiedDirectory, replace};
use openrelay_node::random::OsRandom;

/// Returns the directory that the chain proves at its newest block. If endpoints or mirrors do not provide one, falls
/// back to a signed checkpoint, then to the last reading cached in the file `kept`. A fallback is used only while it
/// is young enough, and comes with a warning. A reading from endpoints or a checkpoint is cached in `kept`. Blocks
/// below `floor` are refused.
///
/// A client that knows checkpoint keys, but has no cached reading and no floor, first fetches a checkpoint. It
/// accepts nothing older than that checkpoint, and fails without one.
///
/// # Errors
/// [`ChainError`] of the attempt to read the newest block, if no fallback is usable; at a first start, of the missing
/// checkpoint.
pub fn directory(
    transport: &dyn Transport,
    file: &ChainFile,
    kept: &Path,
    floor: u64,
) -> Result<(VerifiedDirectory, Option<String>), ChainError> {
    let last = read_kept(kept);
    let old = last.clone();
    let old = old.map(|last| VerifiedDirectory::of_reading(last, &file.trust(), file.max_age_s, floor));
    // A reading that is too old to use still shows that another one is older.
    let seen = last.as_ref().and_then(|last| last.verify(&file.trust(), unix_seconds(), MAX_AGE, 0).ok());
    let mut seen = seen.map_or(0, |seen| seen.body().sequence).max(floor);
    let mut signed = None;
    if last.is_none() && floor == 0 && !file.checkpoints.is_empty() {
        let first = checkpoint::fetch(transport, file, unix_seconds(), 0)?;
        seen = first.checkpoint.number;
        signed = Some(first);
    }
    let error = match read::read_noting(transport, file, (unix_seconds(), seen), last.as_ref(), &[]) {
        Ok((reading, directory, mut faults)) => {
            faults.extend(keep(kept, &reading));
            note_reading(kept);
            newest::forget(kept);
            let warning = (!faults.is_empty()).then(|| faults.join("; "));
            return Ok((VerifiedDirectory::of_proven(directory, reading), warning));
        }
        Err(error) => error,
    };
    tracing::debug!("no directory of the newest block: {error}");
    // Endpoints may show a newer block without proving it. Evidence is then accepted against an older directory for a
    // shorter time.
    let newest = newest::learn(transport, file, kept, &error);
    if signed.is_none() && file.checkpoint_quorum > 0 {
        signed = checkpoint::fetch(transport, file, unix_seconds(), seen).ok();
    }
    if let Some(mut signed) = signed {
        if let Some(last) = &last {
            // The signatures of a checkpoint do not cover the evidence that comes with it.
            evidence::add_kept(file, &mut signed.reading, last);
        }
        let age = unix_seconds().saturating_sub(signed.checkpoint.timestamp);
        let warning = format!("using the directory of a signed checkpoint, which is {age} s old: {error}");
        let found = VerifiedDirectory::of_proven(signed.directory, signed.reading);
        let found = completed(transport, file, found, last.as_ref());
        let unkept = found.reading().and_then(|reading| keep(kept, reading));
        let unkept = unkept.map(|why| format!("; {why}")).unwrap_or_default();
        return Ok((found.as_newest_of(newest), Some(warning + &unkept)));
    }
    match old {
        Some(Ok(old)) => {
            let old = completed(transport, file, old, None);
            let age = unix_seconds().saturating_sub(old.directory().body().issued);
            let warning = format!("using the cached directory, which is {age} s old: {error}");
            Ok((old.as_newest_of(newest), Some(warning)))
        }
        Some(Err(ReadingError::Stale { age, limit })) => Err(ChainError::Outdated { age, limit, why: Box::new(error) }),
        Some(Err(_)) | None => Err(error),
    }
}

/// Returns the directory with its missing descriptors filled in, as far as sources or an older reading have them.
fn completed(
    transport: &dyn Transport,
    file: &ChainFile,
    directory: VerifiedDirectory,
    older: Option<&Reading>,
) -> VerifiedDirectory {
    let Some(reading) = directory.reading().filter(|_| withheld(&directory) > 0) else { return directory };
    let earlier: Vec<&[u8]> =
        [Some(reading), older].into_iter().flatten().map(|reading| &reading.records[..]).collect();
    let root = reading.account.storage_root;
    let gathered = records::gather(transport, file, root, &earlier, &mut OsRandom::default());
    let filled = gathered.ok().map(|records| Reading { records, ..reading.clone() });
    let filled = filled.and_then(|reading| {
        // Everything but the descriptors was verified just now.
        VerifiedDirectory::of_reading(reading, &file.trust(), MAX_AGE, 0).ok()
    });
    filled.unwrap_or(directory)
}

/// Returns the number of relays whose descriptor is missing.
fn withheld(directory: &VerifiedDirectory) -> usize {
    match directory.directory().source() {
        Source::Chain(facts) => facts.withheld,
        Source::Signed => 0,
    }
}

/// Returns the directory cached in the file `kept` if endpoints confirmed it within the last `refresh_s` seconds and
/// no descriptor is missing. A connected client refreshes the cache that often, so a new circuit right after another
/// one sends no query from the user's own address.
pub fn read_lately(file: &ChainFile, kept: &Path) -> Option<VerifiedDirectory> {
    let at: u64 = std::fs::read_to_string(note(kept)).ok()?.trim().parse().ok()?;
    let age = unix_seconds().checked_sub(at)?;
    if age > file.refresh_s { None } else { kept_directory(file, kept).filter(|directory| withheld(directory) == 0) }
}

/// Returns the directory cached in the file `kept`, from whatever source, if it is young enough.
pub fn kept_directory(file: &ChainFile, kept: &Path) -> Option<VerifiedDirectory> {
    let directory = VerifiedDirectory::of_reading(read_kept(kept)?, &file.trust(), file.max_age_s, 0).ok()?;
    Some(directory.as_newest_of(newest::known(kept)))
}

/// Makes [`read_lately`] return `None` until endpoints are asked again. Called when a relay of the directory does not
/// answer: its key may have changed.
pub fn doubt_reading(kept: &Path) {
    // A note that cannot be removed expires soon.
    let _ = std::fs::remove_file(note(kept));
}

/// Returns the path of the file that holds the time at which endpoints confirmed the reading beside it.
fn note(kept: &Path) -> PathBuf {
    kept.with_extension("read-at")
}

fn note_reading(kept: &Path) {
    // Without the note, endpoints are asked once more than necessary.
    let _ = std::fs::write(note(kept), format!("{}\n", unix_seconds()));
}

/// Returns all evidence held by mirrors that `genuine` attributes to a chip, the collateral of each mirror, and the
/// faults in mirrors' files. Checks nothing else.
pub fn mirrored_evidence(
    file: &ChainFile,
    genuine: &dyn Fn(&Staple) -> bool,
) -> (Vec<Staple>, Vec<Vec<u8>>, Vec<String>) {
    staples::all(file, genuine)
}

/// Caches a reading. Returns a warning on failure.
fn keep(kept: &Path, reading: &Reading) -> Option<String> {
    let folder = kept.parent().unwrap_or(Path::new("."));
    let Some(bytes) = reading.encode() else {
        return Some("the directory exceeds the maximum size and is not cached".into());
    };
    let written = std::fs::create_dir_all(folder).and_then(|()| replace(kept, &bytes));
    written.err().map(|error| format!("cannot cache the directory in {}: {error}", kept.display()))
}

/// Reduces the evidence in the cached file to what was accepted, if the file belongs to this directory. Relays
/// without accepted evidence keep all of theirs. Evidence that mirrors bring later therefore cannot displace accepted
/// evidence. Returns a warning when the file cannot be written.
pub fn keep_believed(kept: &Path, directory: &VerifiedDirectory, judged: &JudgedRelays) -> Option<String> {
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

/// Returns the reading in the file `path` without checking it.
pub fn read_kept(path: &Path) -> Option<Reading> {
    let size = std::fs::metadata(path).ok()?.len();
    if size > u64::try_from(MAX_READING).ok()? {
        return None;
    }
    Reading::decode(&std::fs::read(path).ok()?).ok()
}
