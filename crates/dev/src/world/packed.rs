//! Packs the image that a network's validators approve, from programs that are already built.
//!
//! Each of three validators packs it alone, and this module checks that they agree. It packs before the namespaces
//! exist, because nothing can be downloaded inside them. Where the packages of an image are unavailable it packs
//! nothing and reports that.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use super::approved::VALIDATORS;
use super::programs::Programs;
use crate::net::folder::in_a_folder;
use crate::net::host::checked;
use crate::net::output::talk;

/// The packages that an image is packed from, besides the programs, by hash.
const LOCK: &str = include_str!("../../../../image/inputs.lock");
/// The firmware that starts an image. `./x firmware` builds it, beside this program.
const FIRMWARE: &str = "firmware.fd";
/// The builder's exit code when this machine lacks something. Programs and firmware are given, so it means a package
/// that no source provides.
const MISSING: i32 = 77;
/// The programs that are packed. They are already built, beside this program.
const PROGRAMS: [&str; 2] = ["openrelay-init", "openrelay-relay"];

/// Runs `act` with the folder of the image, which exists while `act` runs.
pub(crate) fn with_packed<T>(act: impl FnOnce(Option<&Path>) -> Result<T>) -> Result<T> {
    in_a_folder(|dir| act(pack(&Programs::find()?, dir)?.as_deref()))
}

/// Packs the image below `dir`, once for each validator.
///
/// Returns the folder of the first validator's image, or `None` where its packages are unavailable.
fn pack(programs: &Programs, dir: &Path) -> Result<Option<PathBuf>> {
    let started = Instant::now();
    let lock = dir.join("inputs.lock");
    fs::write(&lock, LOCK)?;
    let stripped = PROGRAMS.map(|name| (programs.dev.with_file_name(name), dir.join(name)));
    for (built, stripped) in &stripped {
        ensure!(built.exists(), "{} does not exist; run: cargo build --release", built.display());
        let output = Command::new("strip").arg("-o").arg(stripped).arg(built).output();
        checked(&output.context("cannot run strip; install the package binutils")?, "strip")?;
    }
    let firmware = programs.dev.with_file_name(FIRMWARE);
    if !firmware.exists() {
        talk("no image is packed, because no firmware is built; the relay's program stands for one; run: ./x firmware");
        return Ok(None);
    }
    let place = |validator: usize| dir.join(format!("validator-{validator}"));
    let start = |validator: usize| -> Result<Child> {
        let mut command = Command::new(&programs.openrelay);
        command.args(["image", "build", "--lock"]).arg(&lock).arg("--out").arg(place(validator));
        command.arg("--firmware").arg(&firmware);
        command.arg("--programs").args(stripped.iter().map(|(_, stripped)| stripped));
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().context("cannot run openrelay image build")
    };
    // The first build downloads the packages; the others find them.
    let first = start(1)?.wait_with_output()?;
    if first.status.code() == Some(MISSING) {
        let said = String::from_utf8_lossy(&first.stderr).into_owned();
        let why = said.lines().last().unwrap_or_default();
        talk(&format!("no image is packed; the relay's program stands for one: {why}"));
        return Ok(None);
    }
    checked(&first, "openrelay image build")?;
    let others: Vec<Child> = (2..=VALIDATORS.len()).map(start).collect::<Result<_>>()?;
    let others: Vec<Output> = others.into_iter().map(Child::wait_with_output).collect::<std::io::Result<_>>()?;
    let packed = |validator: usize| fs::read(place(validator).join("manifest.json"));
    for (validator, output) in (2..).zip(&others) {
        checked(output, "openrelay image build")?;
        if packed(validator)? != packed(1)? {
            bail!("validators 1 and {validator} packed different images of the same programs");
        }
    }
    let (count, seconds) = (others.len() + 1, started.elapsed().as_secs_f64());
    talk(&format!("{seconds:>6.1} s  {count} validators packed the relay's image with the same result"));
    Ok(Some(place(1)))
}
