//! Compiling what goes into an image, so that everybody gets the same bytes.
//!
//! Owns the compiler's settings. What is packed of it, `openrelay-image` says. Nothing that the source brings runs with more than [`confined`](crate::confined) leaves it.

use std::path::{Path, PathBuf};
use std::process::Command;

use openrelay_image::lock::{Lock, Tool};
use openrelay_image::{hex, sha256};

use super::{BuildArguments, CLIENT, Kind, read};
use crate::confined::{self, Confinement};
use crate::failure::Failure;

/// The platform that images are for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Compiles the programs, without anything of this machine in them.
pub(super) fn compile(build: &BuildArguments, lock: &Lock) -> Result<Vec<Vec<u8>>, Failure> {
    for tool in &lock.tools {
        check_tool(tool, build.confinement)?;
    }
    let source = build.source.canonicalize().map_err(Failure::plain)?;
    // First, for it makes the folders whose names are replaced below.
    fetch_crates(&source)?;
    let target = build.target.clone().unwrap_or_else(|| source.join("target/image"));
    std::fs::create_dir_all(target.join("tmp")).map_err(Failure::plain)?;
    let target = target.canonicalize().map_err(Failure::plain)?;
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    // The folder of the registry has another name on each machine.
    let registries =
        home.and_then(|home| std::fs::read_dir(home.join("registry/src")).ok()).into_iter().flatten().flatten();
    let mut places: Vec<(PathBuf, &str)> = registries.map(|entry| (entry.path(), "/registry")).collect();
    places.push((target.clone(), "/target"));
    places.push((source.clone(), "/source"));
    let mut flags = vec!["-Clink-arg=-Wl,--build-id=none".to_owned()];
    if build.kind == Kind::Relay {
        // An image has no libraries. The client's program has the system's, which look up names.
        flags.push("-Ctarget-feature=+crt-static".to_owned());
    }
    // As .cargo/config.toml says, whose flags these replace: C would be tuned for the builder's processor.
    let mut c_flags = vec!["-mtune=generic".to_owned()];
    for (place, name) in &places {
        flags.push(format!("--remap-path-prefix={}={name}", place.display()));
        c_flags.push(format!("-ffile-prefix-map={}={name}", place.display()));
    }
    let names: &[&str] = match (build.kind, build.simulate) {
        (Kind::Relay, false) => &["openrelay-init", "openrelay-relay"],
        (Kind::Relay, true) => &["openrelay-init", "openrelay-relay-sim"],
        (Kind::Client, false) => &[CLIENT],
        (Kind::Client, true) => return Err(Failure::new(2, "--simulate is for images of relays")),
    };
    for name in names {
        let mut command = confined::command("cargo", (&[&source], &[&target]), build.confinement);
        command.current_dir(&source).args(["build", "--release", "--locked", "--offline", "--target", TARGET]);
        command.env("TMPDIR", target.join("tmp")).args(["--package", name, "--bin", name]);
        command.env("CARGO_TARGET_DIR", &target).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        command.env("CFLAGS", c_flags.join(" ")).env("CARGO_INCREMENTAL", "0");
        for (setting, value) in [("STRIP", "symbols"), ("DEBUG", "0"), ("CODEGEN_UNITS", "1"), ("PANIC", "abort")] {
            command.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
        }
        let status = command.status().map_err(|error| Failure::new(77, format!("cannot run cargo: {error}")))?;
        if !status.success() {
            // What this machine lacks is no fault of the source's; cargo has other codes.
            let code = if status.code() == Some(77) { 77 } else { 1 };
            let why = format!("the build of {name} failed ({status}); its reason stands above");
            return Err(Failure::new(code, why));
        }
    }
    let built = target.join(TARGET).join("release");
    names.iter().map(|name| read(&built.join(name))).collect()
}

/// Has all crates that the source names: where their registry cannot be reached, that is no fault of the source's. From another folder, for cargo runs what settings in its own name, and this is not confined.
fn fetch_crates(source: &Path) -> Result<(), Failure> {
    let mut command = Command::new("cargo");
    command.current_dir("/").args(["fetch", "--locked", "--target", TARGET, "--manifest-path"]);
    command.arg(source.join("Cargo.toml"));
    let output =
        command.output().map_err(|error| Failure::new(77, format!("cannot run cargo: {error}; install Rust")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // By these words cargo says that the lock does not fit the source.
    let code = if said.contains("--locked") { 1 } else { 77 };
    Err(Failure::new(code, format!("cannot have the crates that Cargo.lock names: {}", said.trim())))
}

/// Whether a tool is the one that the lock names.
fn check_tool(tool: &Tool, confinement: Confinement) -> Result<(), Failure> {
    let Some((program, arguments)) = tool.ask.split_first() else {
        return Err(Failure::plain(format!("the lock does not say how {} is found", tool.name)));
    };
    let output = confined::command(program, (&[], &[]), confinement).args(arguments).output();
    let output = output.map_err(|error| Failure::new(77, format!("cannot look for {}: {error}", tool.name)))?;
    if output.status.code() == Some(77) {
        let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Failure::new(77, format!("cannot look for {}: {why}", tool.name)));
    }
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let mut path = PathBuf::from(&said);
    if let Some(below) = &tool.below {
        path.push(below);
    }
    let path = std::fs::canonicalize(&path)
        .or_else(|_| {
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .map(|dir| dir.join(&said))
                .find(|path| path.exists())
                .ok_or(std::io::ErrorKind::NotFound.into())
        })
        .map_err(|error: std::io::Error| Failure::new(77, format!("cannot find {}: {error}", tool.name)))?;
    let found = hex(&hash_of(&path)?);
    if found == tool.sha256 {
        return Ok(());
    }
    Err(Failure::new(
        77,
        format!(
            "{} ({}) has SHA-256 {found}, but the lock names {}: with another one the image would be another",
            tool.name,
            path.display(),
            tool.sha256
        ),
    ))
}

/// Of a file its hash; of a folder the hash of its files' hashes, by name.
fn hash_of(path: &Path) -> Result<[u8; 32], Failure> {
    if !path.is_dir() {
        return Ok(sha256(&read(path)?));
    }
    let mut names: Vec<PathBuf> =
        std::fs::read_dir(path).map_err(Failure::plain)?.flatten().map(|entry| entry.path()).collect();
    names.sort();
    let mut all = String::new();
    for name in names.iter().filter(|name| name.is_file()) {
        let file = name.file_name().map(|file| file.to_string_lossy().into_owned()).unwrap_or_default();
        all += &format!("{}  {file}\n", hex(&sha256(&read(name)?)));
    }
    Ok(sha256(all.as_bytes()))
}
