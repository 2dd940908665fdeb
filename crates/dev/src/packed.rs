//! The image that a network's validators approve: packed from the programs that are already built, by each of three for itself, before there are namespaces, in which nothing can be downloaded.
//!
//! Owns that they agree. Where the packages that an image is made of cannot be had, nothing is packed, and that is said.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};

use crate::approved::VALIDATORS;
use crate::host::checked;
use crate::scenario::in_a_folder;
use crate::talk;
use crate::topology::Programs;

/// What an image is packed of beside the programs, by hash.
const LOCK: &str = include_str!("../../../image/inputs.lock");
/// What starts an image, built by `./x firmware`, beside this program.
const FIRMWARE: &str = "firmware.fd";
/// The builder's exit code where this machine lacks something: with programs and firmware given, a package that nobody has.
const MISSING: i32 = 77;
/// What is packed: built already, beside this program.
const PROGRAMS: [&str; 2] = ["openrelay-init", "openrelay-relay"];

/// Runs `act` with the folder of the image, while it is there.
pub(crate) fn with_packed<T>(act: impl FnOnce(Option<&Path>) -> Result<T>) -> Result<T> {
    in_a_folder(|dir| act(pack(&Programs::find()?, dir)?.as_deref()))
}

/// Packs the image below `dir`, once for each validator; returns the folder of the first, or `None` where its packages cannot be had.
fn pack(programs: &Programs, dir: &Path) -> Result<Option<PathBuf>> {
    let started = Instant::now();
    let lock = dir.join("inputs.lock");
    fs::write(&lock, LOCK)?;
    let stripped = PROGRAMS.map(|name| (programs.dev.with_file_name(name), dir.join(name)));
    for (built, stripped) in &stripped {
        ensure!(built.exists(), "{} is not there; run: cargo build --release", built.display());
        let output = Command::new("strip").arg("-o").arg(stripped).arg(built).output();
        checked(&output.context("cannot run strip, of the package binutils")?, "strip")?;
    }
    let firmware = programs.dev.with_file_name(FIRMWARE);
    if !firmware.exists() {
        talk(
            "no image is packed; the relay's program stands for one: no firmware is built; build it with ./x firmware",
        );
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
    // What the first has downloaded the others find.
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
            bail!("validators 1 and {validator} have packed different images of the same programs");
        }
    }
    let (count, seconds) = (others.len() + 1, started.elapsed().as_secs_f64());
    talk(&format!("{seconds:>6.1} s  {count} validators have packed the relay's image, and have the same"));
    Ok(Some(place(1)))
}
