//! Building the firmware that starts images: edk2's source, with a platform and patches of the source tree.
//!
//! Owns the steps around `image/firmware/build.sh`, which runs confined: edk2's build is made of scripts of others. What
//! firmware must not contain, `openrelay-image` says. Never fetches anything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use openrelay_image::firmware::{MAX_FIRMWARE, check, modules};
use openrelay_image::lock::{Lock, Role};

use super::{BuildArguments, compile, read, remove};
use crate::confined::{self, Confined};
use crate::failure::Failure;

/// Where the source tree has the platform.
const FOLDER: &str = "image/firmware";
/// The modules that the firmware has, one a line.
const MODULES: &str = "OpenRelayPkg/Modules.txt";
/// The script in it, and what it leaves.
const SCRIPT: &str = "build.sh";
const BUILT: &str = "firmware.fd";

/// Builds the firmware from `packages`, which hold edk2's source alone of what this needs; further `patches` are for tests.
///
/// # Errors
/// [`Failure`] where the build fails or what it made has a way to load what was not measured; the second is not asked
/// of firmware with further patches, whose purpose that may be.
pub(super) fn build(
    build: &BuildArguments,
    lock: &Lock,
    packages: &BTreeMap<String, Vec<u8>>,
    patches: &[PathBuf],
) -> Result<Vec<u8>, Failure> {
    let source = build.source.canonicalize().map_err(Failure::plain)?;
    let named = lock.packages.iter().find(|package| package.role == Role::Firmware);
    let archive = named.and_then(|package| packages.get(&package.name));
    let archive = archive.ok_or_else(|| Failure::plain("the lock names no source of the firmware"))?;
    let dir = compile::target(build, &source)?.join("firmware");
    remove(&dir)?;
    let work = dir.join("edk2");
    std::fs::create_dir_all(&work).map_err(Failure::plain)?;
    let packed = dir.join("edk2.tar.xz");
    std::fs::write(&packed, archive).map_err(Failure::plain)?;
    let ours = source.join(FOLDER);
    let patches: Vec<PathBuf> =
        patches.iter().map(|patch| patch.canonicalize().map_err(Failure::plain)).collect::<Result<_, _>>()?;
    let readable: Vec<&Path> = [&ours, &packed].into_iter().chain(&patches).map(PathBuf::as_path).collect();
    let confined = |program: &str| Confined::new(program, build.confinement).until(build.until());
    let mut shell = confined("sh").limits(confined::BUILD).until(build.until());
    for path in readable {
        shell = shell.read(path);
    }
    shell = shell.write(&work).current_dir(&work).env("TMPDIR", &work);
    let ended = shell.arg(ours.join(SCRIPT)).arg(&ours).arg(&packed).args(&patches).run_aloud()?;
    confined::succeeded(ended, "the build of the firmware")?;
    let built = confined::read_made(confined("cat"), &work.join(BUILT), &work, MAX_FIRMWARE as u64)?;
    remove(&dir)?;
    if patches.is_empty() {
        check(&built).map_err(Failure::plain)?;
        let listed = String::from_utf8_lossy(&read(&ours.join(MODULES))?).into_owned();
        let found = modules(&built).map_err(Failure::plain)?;
        if !found.iter().map(String::as_str).eq(listed.lines()) {
            let found = found.join(" ");
            let why = format!("the firmware has other modules than {FOLDER}/{MODULES} lists: {found}; list them there");
            return Err(Failure::plain(why));
        }
    }
    Ok(built)
}
