//! Compiles what goes into an image, so that everyone gets the same bytes.
//!
//! Owns the compiler's settings; `openrelay-image` packs the result. Whatever the source brings runs only within
//! [`confined`](crate::confined).

use std::path::{Path, PathBuf};
use std::time::Instant;

use openrelay_image::lock::{Lock, Tool};
use openrelay_image::{hex, sha256};

use super::vendor::vendor;
use super::{BuildArguments, CLIENT, Kind, read};
use crate::confined::{self, Confined, Ended};
use crate::failure::Failure;

/// The target triple of images.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// The largest program, in bytes.
const MAX_PROGRAM: u64 = 256 << 20;
/// The longest output of a command that finds a tool, in bytes.
const MAX_ANSWER: u64 = 65_536;
/// The name by which cargo knows the folder of crates.
const VENDORED: &str = "crates-of-the-lock";

/// Checks that this machine's tools match the lock. Programs and firmware are compiled by no others.
///
/// # Errors
/// [`Failure`] with code 77 if this machine has another tool, or cannot confine a build.
pub(super) fn check_tools(build: &BuildArguments, lock: &Lock) -> Result<(), Failure> {
    let deadline = build.until();
    let toolchain = toolchain(&build.source.canonicalize().map_err(Failure::plain)?);
    Confined::check(build.confinement)?;
    lock.tools
        .iter()
        .try_for_each(|tool| check_tool(tool, |program| confined(program, build, toolchain.as_deref(), deadline)))
}

/// Returns a confined program that uses the tree's toolchain.
fn confined(program: &str, build: &BuildArguments, toolchain: Option<&str>, deadline: Instant) -> Confined {
    let program = Confined::new(program, build.confinement).until(deadline);
    match toolchain {
        Some(name) => program.env("RUSTUP_TOOLCHAIN", name),
        None => program,
    }
}

/// Compiles the programs, without traces of this machine in them. [`check_tools`] comes first.
pub(super) fn compile(build: &BuildArguments) -> Result<Vec<Vec<u8>>, Failure> {
    let deadline = build.until();
    let source = build.source.canonicalize().map_err(Failure::plain)?;
    let toolchain = toolchain(&source);
    let confined = |program: &str| confined(program, build, toolchain.as_deref(), deadline);
    let target = target(build, &source)?;
    let (crates, home) = (target.join("vendor"), target.join("cargo"));
    vendor(build, &source, &crates, toolchain.as_deref(), deadline)?;
    super::remove(&home)?;
    std::fs::create_dir(&home)
        .map_err(|error| Failure::new(77, format!("cannot create {}: {error}", home.display())))?;
    let mut places: Vec<(&Path, &str)> = vec![(&crates, "/registry"), (&target, "/target"), (&source, "/source")];
    // Where several prefixes match, the compilers use the last one, so an inner folder must come after an outer one.
    places.sort_by_key(|(place, _)| place.as_os_str().len());
    let mut flags = vec!["-Clink-arg=-Wl,--build-id=none".to_owned()];
    if build.kind == Kind::Relay {
        // An image has no libraries. The client uses the system's, which look up names.
        flags.push("-Ctarget-feature=+crt-static".to_owned());
    }
    // As in .cargo/config.toml, whose flags these replace: C would otherwise be tuned for the builder's processor.
    let mut c_flags = vec!["-mtune=generic".to_owned()];
    for (place, name) in &places {
        flags.push(format!("--remap-path-prefix={}={name}", place.display()));
        c_flags.push(format!("-ffile-prefix-map={}={name}", place.display()));
    }
    // Each program with its package.
    let programs: &[(&str, &str)] = match (build.kind, build.simulate) {
        (Kind::Relay, false) => &[("openrelay-init", "openrelay-relay"), ("openrelay-relay", "openrelay-relay")],
        (Kind::Relay, true) => &[("openrelay-init", "openrelay-relay"), ("openrelay-relay-sim", "openrelay-simulated")],
        (Kind::Client, false) => &[(CLIENT, CLIENT)],
        (Kind::Client, true) => return Err(Failure::new(2, "--simulate is for relay images only")),
    };
    for (name, package) in programs {
        let mut cargo = confined("cargo").read(&source).read(&crates).write(&target);
        cargo = cargo.limits(confined::BUILD).until(deadline);
        cargo = cargo.current_dir(&source).env("CARGO_HOME", &home);
        // Cargo reads these too, and fails if they exist but cannot be read.
        for folder in source.ancestors().skip(1) {
            for name in ["config", "config.toml"] {
                cargo = cargo.read_without_view(folder.join(".cargo").join(name));
            }
        }
        // Arguments take precedence over every file, so crates come from this folder whatever the tree says. A JSON
        // string is also a TOML string.
        let folder = serde_json::Value::from(crates.display().to_string());
        cargo = cargo.args(["--config", &format!("source.crates-io.replace-with=\"{VENDORED}\"")]);
        cargo = cargo.args(["--config", &format!("source.{VENDORED}.directory={folder}")]);
        cargo = cargo.args(["build", "--release", "--locked", "--offline", "--target", TARGET]);
        cargo = cargo.args(["--package", package, "--bin", name]).env("TMPDIR", target.join("tmp"));
        cargo = cargo.env("CARGO_TARGET_DIR", &target).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        cargo = cargo.env("CFLAGS", c_flags.join(" ")).env("CARGO_INCREMENTAL", "0");
        for (setting, value) in [("STRIP", "symbols"), ("DEBUG", "0"), ("CODEGEN_UNITS", "1"), ("PANIC", "abort")] {
            cargo = cargo.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
        }
        confined::succeeded(cargo.run_aloud()?, &format!("the build of {name}"))?;
    }
    let built = target.join(TARGET).join("release");
    let read = |(name, _): &(&str, &str)| confined::read_made(confined("cat"), &built.join(name), &target, MAX_PROGRAM);
    programs.iter().map(read).collect()
}

/// Returns the toolchain that a tree requests from rustup, if it is a release of Rust. All other toolchain settings
/// of the tree are ignored.
fn toolchain(source: &Path) -> Option<String> {
    let text = std::fs::read_to_string(source.join("rust-toolchain.toml")).ok()?;
    let file: toml::Table = text.parse().ok()?;
    let channel = file.get("toolchain")?.get("channel")?.as_str()?;
    let release = !channel.is_empty() && channel.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    (release || channel == "stable").then(|| channel.to_owned())
}

/// Returns the folder that the compiler writes to: the given one, or one that is really below the tree, even if the
/// tree contains links.
pub(super) fn target(build: &BuildArguments, source: &Path) -> Result<PathBuf, Failure> {
    let target = build.target.clone().unwrap_or_else(|| source.join("target/image"));
    let make = |dir: &Path| std::fs::create_dir_all(dir).and_then(|()| dir.canonicalize()).map_err(Failure::plain);
    let found = make(&target)?;
    if build.target.is_none() && !found.starts_with(source) {
        return Err(Failure::plain(format!(
            "{} leads out of the source tree; choose a folder with --target",
            target.display()
        )));
    }
    make(&found.join("tmp")).map(|_| found)
}

/// Checks that a tool is the one in the lock.
fn check_tool(tool: &Tool, confined: impl Fn(&str) -> Confined) -> Result<(), Failure> {
    let (path, found) = find_tool(tool, confined)?;
    if found == tool.sha256 {
        return Ok(());
    }
    Err(Failure::new(
        77,
        format!(
            "{} ({}) has SHA-256 {found}, but the lock file requires {}; another tool would build another image",
            tool.name,
            path.display(),
            tool.sha256
        ),
    ))
}

/// Returns where a tool is on this machine, and its SHA-256.
pub(super) fn find_tool(tool: &Tool, confined: impl Fn(&str) -> Confined) -> Result<(PathBuf, String), Failure> {
    let Some((program, arguments)) = tool.ask.split_first() else {
        return Err(Failure::of_source(format!("the lock file does not say how to find {}", tool.name)));
    };
    let (ended, said) = confined(program).args(arguments).heard(MAX_ANSWER)?;
    if let Ended::Limit(_) = ended {
        confined::succeeded(ended, &format!("the search for {}", tool.name))?;
    }
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    if ended != Ended::Exit(0) || said.is_empty() {
        let why = format!("{program} does not say where {} is; is it installed in a folder for all users?", tool.name);
        return Err(Failure::new(77, why));
    }
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
    // The hash is shown, and the tree chooses the path, so only hash files that every program may read.
    let readable = confined::readable();
    let mut readable = readable.iter().filter_map(|folder| folder.canonicalize().ok());
    if !readable.any(|folder| path.starts_with(folder)) {
        let fault = format!("{} is outside the program folders: {}", tool.name, path.display());
        return Err(Failure::new(77, format!("{fault}; install it for all users")));
    }
    let found = hex(&hash_of(&path)?);
    Ok((path, found))
}

/// Returns the hash of a file, or the hash of the hashes of a folder's files, sorted by name.
fn hash_of(path: &Path) -> Result<[u8; 32], Failure> {
    if !path.is_dir() {
        // A tool that cannot be hashed is a fault of this machine or of the lock, not a failed build.
        return read(path).map(|bytes| sha256(&bytes)).map_err(|failure| Failure::new(77, failure.to_string()));
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
