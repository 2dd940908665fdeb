//! Compiling what goes into an image, so that everybody gets the same bytes.
//!
//! Owns the compiler's settings. What is packed of it, `openrelay-image` says. Nothing that the source brings runs with more than [`confined`](crate::confined) leaves it.

use std::path::{Path, PathBuf};
use std::process::Command;

use openrelay_image::lock::{Lock, Tool};
use openrelay_image::{hex, sha256};

use super::{BuildArguments, CLIENT, Kind, read};
use crate::confined;
use crate::failure::Failure;
use crate::talk;

/// The platform that images are for.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Largest program, in bytes.
const MAX_PROGRAM: u64 = 256 << 20;
/// Longest answer to the question where a tool is, in bytes.
const MAX_ANSWER: u64 = 65_536;
/// Where crates may come from, as lock files write it: of other sources cargo reads files wherever they lead.
const CRATES: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// Compiles the programs, without anything of this machine in them.
pub(super) fn compile(build: &BuildArguments, lock: &Lock) -> Result<Vec<Vec<u8>>, Failure> {
    let source = build.source.canonicalize().map_err(Failure::plain)?;
    let toolchain = toolchain(&source);
    let confined = |program: &str, (read, write): (&[&Path], &[&Path])| {
        let mut command = confined::command(program, (read, write), build.confinement);
        command.envs(toolchain.iter().map(|name| ("RUSTUP_TOOLCHAIN", name)));
        command
    };
    let probe = confined("true", (&[], &[])).output().map_err(Failure::plain)?;
    if !probe.status.success() {
        return Err(Failure::new(77, String::from_utf8_lossy(&probe.stderr).trim().trim_start_matches("openrelay: ")));
    }
    for tool in &lock.tools {
        check_tool(tool, |program| confined(program, (&[], &[])))?;
    }
    // First, for it makes the folders whose names are replaced below.
    fetch_crates(&source, toolchain.as_deref())?;
    let target = target(build, &source)?;
    // The folder of the registry has another name on each machine.
    let sources = confined::cargo_home().and_then(|home| std::fs::read_dir(home.join("registry/src")).ok());
    let registries = sources.into_iter().flatten().flatten();
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
    // Cargo reads these too, and ends if it may not.
    let settings =
        source.ancestors().skip(1).flat_map(|dir| ["config", "config.toml"].map(|name| dir.join(".cargo").join(name)));
    let settings: Vec<PathBuf> = settings.collect();
    let read: Vec<&Path> = settings.iter().map(PathBuf::as_path).chain([source.as_path()]).collect();
    for name in names {
        let mut command = confined("cargo", (&read, &[&target]));
        command.current_dir(&source).args(["build", "--release", "--locked", "--offline", "--target", TARGET]);
        command.env("TMPDIR", target.join("tmp")).args(["--package", name, "--bin", name]);
        command.env("CARGO_TARGET_DIR", &target).env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"));
        command.env("CFLAGS", c_flags.join(" ")).env("CARGO_INCREMENTAL", "0");
        for (setting, value) in [("STRIP", "symbols"), ("DEBUG", "0"), ("CODEGEN_UNITS", "1"), ("PANIC", "abort")] {
            command.env(format!("CARGO_PROFILE_RELEASE_{setting}"), value);
        }
        let status = confined::run_aloud(&mut command);
        let status = status.map_err(|error| Failure::new(77, format!("cannot run cargo: {error}")))?;
        if !status.success() {
            return Err(Failure::plain(format!("the build of {name} failed ({status}); its reason stands above")));
        }
    }
    let built = target.join(TARGET).join("release");
    let read = |name: &&str| confined::read_made(&built.join(name), &target, MAX_PROGRAM, build.confinement);
    names.iter().map(read).collect()
}

/// The toolchain that a tree asks rustup for, if it is one of Rust's releases; nothing else that the tree says of toolchains counts.
fn toolchain(source: &Path) -> Option<String> {
    let text = std::fs::read_to_string(source.join("rust-toolchain.toml")).ok()?;
    let file: toml::Table = text.parse().ok()?;
    let channel = file.get("toolchain")?.get("channel")?.as_str()?;
    let release = !channel.is_empty() && channel.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    (release || channel == "stable").then(|| channel.to_owned())
}

/// The folder that the compiler writes: below the tree if none is named, and nowhere else, though the tree may have brought links.
pub(super) fn target(build: &BuildArguments, source: &Path) -> Result<PathBuf, Failure> {
    let target = build.target.clone().unwrap_or_else(|| source.join("target/image"));
    let make = |dir: &Path| std::fs::create_dir_all(dir).and_then(|()| dir.canonicalize()).map_err(Failure::plain);
    let found = make(&target)?;
    if build.target.is_none() && !found.starts_with(source) {
        return Err(Failure::plain(format!(
            "{} leads out of the source tree; name a folder with --target",
            target.display()
        )));
    }
    make(&found.join("tmp")).map(|_| found)
}

/// Has all crates that the source names: where their registry cannot be reached, that is no fault of the source's. From another folder, for cargo runs what settings in its own name, and this is not confined.
fn fetch_crates(source: &Path, toolchain: Option<&str>) -> Result<(), Failure> {
    let lock = read(&source.join("Cargo.lock"))?;
    let lock: toml::Table =
        String::from_utf8_lossy(&lock).parse().map_err(|_| Failure::plain("Cargo.lock does not read"))?;
    let packages = lock.get("package").and_then(toml::Value::as_array).into_iter().flatten();
    let mut sources = packages.filter_map(|package| package.get("source"));
    if sources.any(|source| source.as_str() != Some(CRATES)) {
        return Err(Failure::plain(format!("Cargo.lock names another source of crates than {CRATES}")));
    }
    let mut command = Command::new("cargo");
    command.current_dir("/").args(["fetch", "--locked", "--target", TARGET, "--manifest-path"]);
    command.arg(source.join("Cargo.toml")).envs(toolchain.map(|name| ("RUSTUP_TOOLCHAIN", name)));
    let output =
        command.output().map_err(|error| Failure::new(77, format!("cannot run cargo: {error}; install Rust")))?;
    if output.status.success() {
        return Ok(());
    }
    // Said here alone: what goes into a transcript is published, and this may quote files of this machine's.
    let said = String::from_utf8_lossy(&output.stderr);
    talk(said.trim());
    // By these words cargo says that the lock does not fit the source.
    let code = if said.contains("--locked") { 1 } else { 77 };
    Err(Failure::new(code, "cannot have the crates that Cargo.lock names"))
}

/// Whether a tool is the one that the lock names.
fn check_tool(tool: &Tool, command: impl Fn(&str) -> Command) -> Result<(), Failure> {
    let (path, found) = find_tool(tool, command)?;
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

/// Where a tool is on this machine, and its SHA-256.
pub(super) fn find_tool(tool: &Tool, command: impl Fn(&str) -> Command) -> Result<(PathBuf, String), Failure> {
    let Some((program, arguments)) = tool.ask.split_first() else {
        return Err(Failure::plain(format!("the lock does not say how {} is found", tool.name)));
    };
    let heard = confined::heard(command(program).args(arguments), MAX_ANSWER);
    let (status, said) = heard.map_err(|error| Failure::new(77, format!("cannot look for {}: {error}", tool.name)))?;
    let said = String::from_utf8_lossy(&said).trim().to_owned();
    if !status.success() || said.is_empty() {
        let why =
            format!("{program} does not say where {} is; is it installed where all users' programs are?", tool.name);
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
    let found = hex(&hash_of(&path)?);
    Ok((path, found))
}

/// Of a file its hash; of a folder the hash of its files' hashes, by name.
fn hash_of(path: &Path) -> Result<[u8; 32], Failure> {
    if !path.is_dir() {
        // Whatever the lock lets itself be told is a tool: what is none is a fault of this machine or of the lock, and no failed build.
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
