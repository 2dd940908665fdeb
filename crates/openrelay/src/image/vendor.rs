//! The crates in a source tree's lock: fetched by hash and unpacked into a folder, so that cargo builds offline.
//!
//! Owns their download. Cargo never sees the tree's own manifests or settings while it has a network. Archives come
//! from the folder of inputs, from cargo's own cache, from mirrors that serve files by hash, and last from cargo.
//! Cargo gets a manifest that this module writes, which lists the missing crates, and asks the sources in this
//! machine's settings. Each archive is checked against the lock's SHA-256, whatever its source.

use std::collections::BTreeMap;
use std::fs;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use openrelay_chain::transport;
use openrelay_image::crates::{Crate, MAX_ARCHIVE, locked, manifest};
use openrelay_node::directory::replace;

use super::BuildArguments;
use super::inputs::{DOWNLOAD, kept};
use crate::confined::cargo_home;
use crate::failure::Failure;
use crate::output::talk;

/// The largest lock that is read, in bytes.
const MAX_LOCK: u64 = 4 << 20;
/// Maximum size of all crates of a lock together, in bytes.
const MAX_CRATES: u64 = 6 << 30;
/// How often a running cargo is polled.
const TICK: Duration = Duration::from_millis(100);
/// Maximum length of cargo's messages that is shown, in bytes.
const MAX_SAID: u64 = 65_536;

/// Fetches the crates in the lock of `source`, and unpacks them into `folder`, which it replaces.
///
/// # Errors
/// [`Failure`] of the source, with code 1, if the lock or a crate is malformed; with code 77 if a crate cannot be
/// fetched.
pub(super) fn vendor(
    build: &BuildArguments,
    source: &Path,
    folder: &Path,
    toolchain: Option<&str>,
    deadline: Instant,
) -> Result<(), Failure> {
    let path = source.join("Cargo.lock");
    let fault = |error: std::io::Error| {
        let why = format!("cannot read {}: {error}", path.display());
        // The file is missing, or is not text.
        let of_tree = [ErrorKind::NotFound, ErrorKind::InvalidData].contains(&error.kind());
        if of_tree { Failure::of_source(why) } else { Failure::new(77, why) }
    };
    let file = fs::File::open(&path).map_err(fault)?;
    if !file.metadata().map_err(fault)?.is_file() {
        return Err(Failure::of_source(format!("{} is not a regular file", path.display())));
    }
    let mut text = String::new();
    file.take(MAX_LOCK + 1).read_to_string(&mut text).map_err(fault)?;
    if text.len() as u64 > MAX_LOCK {
        return Err(Failure::of_source(format!("{} has more than {MAX_LOCK} bytes", path.display())));
    }
    let crates = locked(&text).map_err(Failure::of_source)?;
    let archives = archives(build, &folder.with_file_name("inputs"), &crates, toolchain, deadline)?;
    let machine =
        |path: &Path, error: std::io::Error| Failure::new(77, format!("cannot write {}: {error}", path.display()));
    // Remove what an earlier build has left there.
    super::remove(folder)?;
    fs::create_dir(folder).map_err(|error| machine(folder, error))?;
    let mut left = MAX_CRATES;
    for one in &crates {
        let archive = archives.get(&one.sha256).ok_or_else(|| missing(&[one]))?;
        let bytes = fs::read(archive).map_err(|error| machine(archive, error))?;
        let files = one.unpack(&bytes).map_err(Failure::of_source)?;
        let place = folder.join(one.folder());
        for file in files {
            left = left.checked_sub(file.content.len() as u64).ok_or_else(|| {
                Failure::of_source(format!("the crates in the lock file hold more than {MAX_CRATES} bytes"))
            })?;
            let path = place.join(&file.path);
            let made =
                fs::create_dir_all(path.parent().unwrap_or(&place)).and_then(|()| fs::write(&path, &file.content));
            // Fails if the archive, which the lock lists, has a file and a folder of one name.
            made.map_err(|error| machine(&path, error))?;
            if file.executable {
                let mode = fs::Permissions::from_mode(0o755);
                fs::set_permissions(&path, mode).map_err(|error| machine(&path, error))?;
            }
        }
        // Cargo compares the package's hash with the lock. The list of files is empty, because they have just been
        // checked.
        let sum = format!("{{\"files\":{{}},\"package\":\"{}\"}}", one.sha256);
        let path = place.join(".cargo-checksum.json");
        fs::write(&path, sum).map_err(|error| machine(&path, error))?;
    }
    Ok(())
}

fn missing(crates: &[&Crate]) -> Failure {
    let (first, more) = (crates.first(), crates.len().saturating_sub(1));
    let first = first.map(|one| format!("{} (SHA-256 {})", one.folder(), one.sha256)).unwrap_or_default();
    let more = if more == 0 { String::new() } else { format!(" and {more} more") };
    Failure::new(
        77,
        format!(
            "cannot fetch the crate {first}{more}; put the file with this SHA-256 into --inputs, or add a mirror that \
             has it with --from"
        ),
    )
}

/// Returns where each crate's archive is, by hash. Archives are kept in `spare` if the folder of inputs cannot be
/// created.
fn archives(
    build: &BuildArguments,
    spare: &Path,
    crates: &[Crate],
    toolchain: Option<&str>,
    deadline: Instant,
) -> Result<BTreeMap<String, PathBuf>, Failure> {
    let mut kept = kept(build);
    if fs::create_dir_all(&kept).is_err() {
        kept = spare.to_owned();
        fs::create_dir_all(&kept)
            .map_err(|error| Failure::new(77, format!("cannot create {}: {error}", kept.display())))?;
    }
    let mut found = BTreeMap::new();
    let mut look = |crates: &[Crate], from: &mut dyn FnMut(&Crate) -> Option<Vec<u8>>| -> Result<Vec<Crate>, Failure> {
        let mut missing = Vec::new();
        for one in crates {
            let path = kept.join(&one.sha256);
            // A kept archive is checked like any other, because disks corrupt data.
            if file(&path).is_none_or(|bytes| one.check(&bytes).is_err()) {
                let Some(bytes) = from(one).filter(|bytes| one.check(bytes).is_ok()) else {
                    missing.push(one.clone());
                    continue;
                };
                replace(&path, &bytes)
                    .map_err(|error| Failure::new(77, format!("cannot keep {}: {error}", path.display())))?;
            }
            found.insert(one.sha256.clone(), path);
        }
        Ok(missing)
    };
    let mut left = look(crates, &mut |one| cached(&caches(), one))?;
    if !left.is_empty() {
        let mut mirrored = |one: &Crate| {
            let urls = build.from.iter().map(|base| format!("{}/{}", base.trim_end_matches('/'), one.sha256));
            let mut answers =
                urls.filter_map(|url| transport::get(&url, DOWNLOAD, MAX_ARCHIVE).ok().map(|(_, bytes)| bytes));
            answers.find(|bytes| one.check(bytes).is_ok())
        };
        left = look(&left, &mut mirrored)?;
    }
    if !left.is_empty() {
        download(&kept, &left, crates, toolchain, deadline)?;
        left = look(&left, &mut |one| cached(&caches(), one))?;
    }
    if left.is_empty() { Ok(found) } else { Err(missing(&left.iter().collect::<Vec<_>>())) }
}

/// Returns the content of a regular file that is not larger than an archive may be.
fn file(path: &Path) -> Option<Vec<u8>> {
    let about = fs::metadata(path).ok()?;
    (about.is_file() && about.len() <= MAX_ARCHIVE).then(|| fs::read(path).ok())?
}

/// Returns the archive of a crate from cargo's caches, if it is there.
fn cached(caches: &[PathBuf], one: &Crate) -> Option<Vec<u8>> {
    let name = format!("{}.crate", one.folder());
    caches.iter().find_map(|cache| file(&cache.join(&name)).filter(|bytes| one.check(bytes).is_ok()))
}

/// Returns the folders in which cargo keeps archives.
fn caches() -> Vec<PathBuf> {
    let folder = cargo_home().map(|home| home.join("registry/cache"));
    let entries = folder.and_then(|folder| fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Lets cargo download crates with this machine's settings and a manifest written here.
fn download(
    kept: &Path,
    wanted: &[Crate],
    all: &[Crate],
    toolchain: Option<&str>,
    deadline: Instant,
) -> Result<(), Failure> {
    let place = kept.join(format!("fetching-{}", std::process::id()));
    let result = download_in(&place, wanted, all, toolchain, deadline);
    super::remove(&place)?;
    result
}

fn download_in(
    place: &Path,
    wanted: &[Crate],
    all: &[Crate],
    toolchain: Option<&str>,
    deadline: Instant,
) -> Result<(), Failure> {
    super::remove(place)?;
    let (manifest, lock) = manifest(wanted, all);
    let fault = |error: std::io::Error| Failure::new(77, format!("cannot write {}: {error}", place.display()));
    fs::create_dir(place).map_err(fault)?;
    for (name, text) in [("Cargo.toml", manifest.as_str()), ("Cargo.lock", &lock), ("lib.rs", "")] {
        fs::write(place.join(name), text).map_err(fault)?;
    }
    let mut cargo = Command::new("cargo");
    // Cargo looks for settings from this folder upwards, so settings of a tree do not count.
    cargo.current_dir("/").arg("fetch").arg("--manifest-path").arg(place.join("Cargo.toml"));
    cargo.envs(toolchain.map(|name| ("RUSTUP_TOOLCHAIN", name)));
    cargo.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let fault = |error: std::io::Error| Failure::new(77, format!("cannot run cargo: {error}; install Rust"));
    let mut child = cargo.spawn().map_err(fault)?;
    let errors = child.stderr.take();
    let reader = std::thread::spawn(move || {
        let mut said = Vec::new();
        if let Some(mut errors) = errors {
            let _ = errors.by_ref().take(MAX_SAID).read_to_end(&mut said);
            let _ = std::io::copy(&mut errors, &mut std::io::sink());
        }
        said
    });
    let status = loop {
        if let Some(status) = child.try_wait().map_err(fault)? {
            break status;
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            return Err(Failure::new(77, "cargo did not fetch the crates in time"));
        }
        std::thread::sleep(TICK);
    };
    if status.success() {
        return Ok(());
    }
    // Only shown here: a transcript is published, and cargo's messages may quote this machine's settings.
    talk(String::from_utf8_lossy(&reader.join().unwrap_or_default()).trim());
    Err(missing(&wanted.iter().collect::<Vec<_>>()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kept_archive_is_read_up_to_the_largest_size() {
        let path = std::env::temp_dir().join(format!("openrelay-archive-{}", std::process::id()));
        let sized = |size: u64| {
            // Without its bytes on the disk.
            fs::File::create(&path).unwrap().set_len(size).unwrap();
            file(&path).map(|bytes| bytes.len() as u64)
        };
        assert_eq!(sized(MAX_ARCHIVE), Some(64 << 20));
        assert_eq!(sized(MAX_ARCHIVE + 1), None);
        fs::remove_file(&path).unwrap();
        assert_eq!(file(&std::env::temp_dir()), None, "a folder is no archive");
    }
}
