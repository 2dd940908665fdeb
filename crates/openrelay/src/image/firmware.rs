//! Builds the boot firmware from edk2's source, with a platform and patches of the source tree.
//!
//! Owns the steps around `image/firmware/build.sh`, which runs confined, because edk2's build consists of third-party
//! scripts. `openrelay-image` defines what firmware must not contain. Never fetches anything.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use openrelay_image::firmware::{MAX_FIRMWARE, check, modules};
use openrelay_image::lock::{Lock, Role};

use super::{BuildArguments, compile, read, remove};
use crate::confined::{self, Confined};
use crate::failure::Failure;

/// The platform's folder in the source tree.
const FOLDER: &str = "image/firmware";
/// The file that lists the firmware's modules, one a line.
const MODULES: &str = "OpenRelayPkg/Modules.txt";
/// Maximum number of modules: few enough for a reviewer to read the list.
const MAX_MODULES: usize = 25;
/// The build script, and the file that it leaves.
const SCRIPT: &str = "build.sh";
const BUILT: &str = "firmware.fd";
/// Checks for the system programs that the script and edk2's tools need, apart from the tools in the lock. None of
/// these changes a byte of the firmware, so their versions are not pinned.
const CALLED: &str =
    "for program in tar xz patch sed seq; do command -v \"$program\" >/dev/null || echo \"$program\"; done
cc -fsyntax-only -include uuid/uuid.h -x c /dev/null 2>/dev/null || echo uuid/uuid.h";
/// The longest list of missing programs, in bytes.
const MAX_ANSWER: u64 = 4_096;

/// Builds the firmware from `packages`, of which it needs only edk2's source. Further `patches` are for tests.
///
/// # Errors
/// [`Failure`] if the build fails, or if the firmware could load something unmeasured. Firmware with further patches
/// is not checked for that, because it may be their purpose.
pub(super) fn build(
    build: &BuildArguments,
    lock: &Lock,
    packages: &BTreeMap<String, Vec<u8>>,
    patches: &[PathBuf],
) -> Result<Vec<u8>, Failure> {
    check_called(build)?;
    let source = build.source.canonicalize().map_err(Failure::plain)?;
    let named = lock.packages.iter().find(|package| package.role == Role::Firmware);
    let archive = named.and_then(|package| packages.get(&package.name));
    let archive = archive.ok_or_else(|| Failure::of_source("the lock file lists no firmware source"))?;
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
        check(&built).map_err(Failure::of_source)?;
        let listed = read(&ours.join(MODULES)).map_err(Failure::of_source)?;
        let listed = String::from_utf8_lossy(&listed).into_owned();
        let count = listed.lines().count();
        if count > MAX_MODULES {
            let why = format!("{FOLDER}/{MODULES} lists {count} modules; at most {MAX_MODULES} are accepted");
            return Err(Failure::of_source(why));
        }
        let found = modules(&built).map_err(Failure::of_source)?;
        if !found.iter().map(String::as_str).eq(listed.lines()) {
            let found = found.join(" ");
            let why = format!("the firmware's modules differ from {FOLDER}/{MODULES}: {found}; list them there");
            return Err(Failure::of_source(why));
        }
    }
    Ok(built)
}

/// Checks that this machine has the programs that the build calls. Otherwise the build would fail, and the source
/// would seem to be at fault.
fn check_called(build: &BuildArguments) -> Result<(), Failure> {
    let shell = Confined::new("sh", build.confinement).until(build.until());
    let (ended, missing) = shell.args(["-c", CALLED]).heard(MAX_ANSWER)?;
    confined::succeeded(ended, "the check for the firmware's build tools")
        .map_err(|failure| Failure::new(77, failure.to_string()))?;
    let missing: Vec<String> = String::from_utf8_lossy(&missing).lines().map(str::to_owned).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let why = format!(
        "the firmware cannot be built here; missing: {}; install tar, xz-utils, patch, sed, coreutils and uuid-dev",
        missing.join(", ")
    );
    Err(Failure::new(77, why))
}
