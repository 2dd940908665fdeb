//! `openrelay confined`: becomes a program that reads what compilers need, writes below given folders, and reaches nobody. What a source tree brings runs so: its build scripts, and the questions by
//! which its lock finds tools.
//!
//! Owns which of this machine's files that is. Keys, and whatever else the user has, are none of them.

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use openrelay_sys::sandbox::{Enforced, only_file_capabilities, only_files};

use crate::failure::Failure;
use crate::talk;

/// What all programs may read of the system.
const SYSTEM: [&str; 14] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/opt",
    "/nix",
    "/etc/ld.so.cache",
    "/proc",
    "/sys",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
];
/// Below cargo's folder: not who may publish what.
const CARGO: [&str; 5] = ["bin", "registry", "git", "config", "config.toml"];
/// What of the environment says where toolchains are and crates come from.
const ENVIRONMENT: [&str; 5] = ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"];
const SOURCES: [&str; 2] = ["CARGO_SOURCE_", "CARGO_REGISTRIES_"];

/// The hidden command's arguments.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// What it may read besides what compilers need
    #[arg(long)]
    read: Vec<PathBuf>,
    /// What it may write too
    #[arg(long)]
    write: Vec<PathBuf>,
    /// Go on where the kernel confines nothing
    #[arg(long)]
    where_possible: bool,
    /// The program and its arguments
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

/// Whether a build goes on where the kernel confines nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Confinement {
    /// It does not: the source is others'.
    Required,
    /// It does: the source is the user's own.
    WherePossible,
}

/// A command that runs a program so, which may read `read` and write `write`.
pub(crate) fn command(program: &str, (read, write): (&[&Path], &[&Path]), confinement: Confinement) -> Command {
    // Another file may have taken this program's place.
    let mut command = Command::new("/proc/self/exe");
    command.arg("confined");
    for (option, paths) in [("--read", read), ("--write", write)] {
        command.args(paths.iter().flat_map(|path| [option.as_ref(), path.as_os_str()]));
    }
    if confinement == Confinement::WherePossible {
        command.arg("--where-possible");
    }
    command.arg("--").arg(program);
    command.env_clear().envs(std::env::vars_os().filter(|(name, _)| {
        name.to_str().is_some_and(|name| {
            let of_sources = SOURCES.iter().any(|start| name.starts_with(start)) && !name.ends_with("_TOKEN");
            ENVIRONMENT.contains(&name) || of_sources
        })
    }));
    command
}

/// Becomes the program.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let home = |name: &str, below: &str| {
        let named = std::env::var_os(name).map(PathBuf::from);
        named.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(below)))
    };
    let mut read: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
    let cargo = home("CARGO_HOME", ".cargo");
    read.extend(cargo.iter().flat_map(|cargo| CARGO.map(|name| cargo.join(name))));
    read.extend(home("RUSTUP_HOME", ".rustup"));
    read.extend(arguments.read.iter().cloned());
    let mut write = arguments.write.clone();
    write.push("/dev/null".into());
    only_file_capabilities().map_err(Failure::plain)?;
    match only_files(&read, &write).map_err(Failure::plain)? {
        Enforced::Fully => {}
        Enforced::Partly => {
            talk("openrelay: warning: this kernel keeps a build from files, not from the network (Linux 6.12 does)");
        }
        Enforced::Not if arguments.where_possible => {
            talk("openrelay: warning: this kernel confines nothing: what is built can read what you can");
        }
        Enforced::Not => {
            let why = "this kernel has no Landlock (Linux 5.13), without which a foreign source could read this user's keys while it is built; build it on another machine";
            return Err(Failure::new(77, why));
        }
    }
    let (program, rest) = arguments.program.split_first().ok_or_else(|| Failure::plain("no program is named"))?;
    let error = Command::new(program).args(rest).exec();
    Err(Failure::new(77, format!("cannot run {}: {error}", program.display())))
}
