//! The packages that an image is made of: kept by hash, or downloaded.
//!
//! Owns the choice of servers for them. Nobody has to be trusted: each file is checked against the hash in the lock
//! file.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use openrelay_image::lock::{Lock, Package, Role};

use super::BuildArguments;
use crate::control::folders;
use crate::failure::Failure;
use crate::output::talk;

/// How long the download of one package may take.
pub(super) const DOWNLOAD: Duration = Duration::from_secs(600);

/// Returns the folder in which inputs are kept, by hash.
pub(super) fn kept(build: &BuildArguments) -> PathBuf {
    build.inputs.clone().unwrap_or_else(|| folders().state.join("inputs"))
}

/// Returns the packages whose roles are wanted, from the folder of inputs or from a download.
pub(super) fn packages_of(
    build: &BuildArguments,
    lock: &Lock,
    wanted: impl Fn(Role) -> bool,
) -> Result<BTreeMap<String, Vec<u8>>, Failure> {
    let kept = kept(build);
    // If the folder cannot be created, nothing is kept, and a warning reports that later.
    let _ = std::fs::create_dir_all(&kept);
    let mut found = BTreeMap::new();
    let mut archives = None;
    for package in lock.packages.iter().filter(|package| wanted(package.role)) {
        let path = kept.join(&package.sha256);
        // A kept package is checked against its hash like any other, because disks corrupt data.
        let bytes = match std::fs::read(&path).ok().filter(|bytes| package.check(bytes).is_ok()) {
            Some(bytes) => bytes,
            None => {
                let archives = archives
                    .get_or_insert_with(|| build.from.iter().cloned().chain(debian_archives()).collect::<Vec<_>>());
                let bytes = download(package, archives)?;
                if let Err(error) = openrelay_node::directory::replace(&path, &bytes) {
                    talk(&format!("openrelay: warning: cannot keep {}: {error}", path.display()));
                }
                bytes
            }
        };
        found.insert(package.name.clone(), bytes);
    }
    Ok(found)
}

/// Returns Debian's archives, as apt on this machine knows them.
fn debian_archives() -> Vec<String> {
    let arguments = ["indextargets", "--format", "$(SITE)", "Created-By: Packages"];
    let said = Command::new("apt-get").args(arguments).output().map(|output| output.stdout).unwrap_or_default();
    let mut sites: Vec<String> = String::from_utf8_lossy(&said).lines().map(str::to_owned).collect();
    sites.sort();
    sites.dedup();
    sites
}

/// Returns the first file with the right hash that any archive has.
fn download(package: &Package, archives: &[String]) -> Result<Vec<u8>, Failure> {
    let mut faults = Vec::new();
    for archive in archives {
        let base = archive.trim_end_matches('/');
        for url in [format!("{base}/{}", package.path), format!("{base}/{}", package.sha256)] {
            match fetch(&url, package.size) {
                Ok(bytes) => match package.check(&bytes) {
                    Ok(()) => return Ok(bytes),
                    Err(error) => faults.push(error.to_string()),
                },
                Err(why) => faults.push(why),
            }
        }
    }
    if archives.is_empty() {
        faults.push("no archive is known here; add one with --from".into());
    }
    // A missing input says nothing about the tree that names it.
    let why = format!(
        "cannot fetch the input {} ({}): {}; \
         put the file with SHA-256 {} into --inputs, or add an archive that has it with --from",
        package.name,
        package.path,
        faults.join("; "),
        package.sha256
    );
    Err(Failure::new(77, why))
}

fn fetch(url: &str, size: u64) -> Result<Vec<u8>, String> {
    let (_, bytes) = openrelay_chain::transport::get(url, DOWNLOAD, size + 1)?;
    if bytes.len() as u64 == size { Ok(bytes) } else { Err(format!("{url}: its size is not {size} bytes")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unavailable_input_is_not_the_source_trees_fault() {
        let (name, path) = ("kernel".to_owned(), "pool/kernel.deb".to_owned());
        let package = Package {
            name,
            path,
            sha256: "ab".repeat(32),
            size: 5,
            role: Role::Kernel,
            file: None,
            generation: None,
            files: Vec::new(),
        };
        let failure = download(&package, &["http://127.0.0.1:1".to_owned()]).unwrap_err();
        assert_eq!((failure.code(), failure.is_of_source()), (77, false), "{failure}");
    }
}
