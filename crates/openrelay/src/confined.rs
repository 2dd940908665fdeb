//! `openrelay confined`: becomes a program that reads what compilers need, writes below given folders, and opens no socket. What a source tree brings runs so: its build scripts, its settings for cargo
//! and git, and the questions by which its lock finds tools.
//!
//! Owns which of this machine's files that is. Keys, and whatever else the user has, are none of them.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use openrelay_sys::sandbox::{Enforced, SandboxError, forbid_sockets, only_file_capabilities, only_files};

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
/// Below cargo's folder: settings say where crates come from; `credentials.toml` is left out.
const CARGO: [&str; 5] = ["bin", "registry", "git", "config", "config.toml"];
/// What of the environment says where toolchains are and crates come from.
const ENVIRONMENT: [&str; 5] = ["PATH", "HOME", "CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN"];
const SOURCES: [(&str, &str); 2] = [("CARGO_SOURCE_", ""), ("CARGO_REGISTRIES_", "_INDEX")];

/// Longest line that is said of what a program says, in bytes.
const MAX_LINE: u64 = 4_096;

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

/// A command that runs a program so, which may read `read` and write `write`; what it says is for [`Command::output`] and its like.
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
    // No terminal, into which it could type.
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_clear().envs(std::env::vars_os().filter(|(name, _)| {
        name.to_str().is_some_and(|name| {
            let of_sources = SOURCES.iter().any(|(start, end)| name.starts_with(start) && name.ends_with(end));
            ENVIRONMENT.contains(&name) || of_sources
        })
    }));
    command
}

/// Runs a command to its end, and says what it says while it runs, as talk alone.
pub(crate) fn run_aloud(command: &mut Command) -> std::io::Result<ExitStatus> {
    let mut child = command.spawn()?;
    let aloud = |pipe: &mut dyn Read| {
        let (mut pipe, mut line) = (BufReader::new(pipe), Vec::new());
        while pipe.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            talk(String::from_utf8_lossy(&line).replace(|letter: char| letter.is_control(), " ").trim_end());
            line.clear();
        }
    };
    let (mut out, mut err) = (child.stdout.take(), child.stderr.take());
    std::thread::scope(|scope| {
        scope.spawn(|| out.as_mut().map(|out| aloud(out)));
        if let Some(err) = err.as_mut() {
            aloud(err);
        }
    });
    child.wait()
}

/// Runs a command to its end: how it ends, and the first `most` bytes of what it puts out.
pub(crate) fn heard(command: &mut Command, most: u64) -> std::io::Result<(ExitStatus, Vec<u8>)> {
    let (mut child, mut bytes) = (command.stderr(Stdio::null()).spawn()?, Vec::new());
    if let Some(out) = child.stdout.take() {
        out.take(most).read_to_end(&mut bytes)?;
    }
    // With its output closed it ends, if it has not.
    Ok((child.wait()?, bytes))
}

/// The bytes of a file that a confined program has made, at most `most` of them. It may be a link to whatever its maker cannot read, so it is read with no more than that one had.
pub(crate) fn read_made(path: &Path, folder: &Path, most: u64, confinement: Confinement) -> Result<Vec<u8>, Failure> {
    let fault = |why: String| Failure::plain(format!("cannot read {}: {why}", path.display()));
    let found = heard(command("cat", (&[folder], &[]), confinement).arg("--").arg(path), most + 1);
    let (status, bytes) = found.map_err(|error| fault(error.to_string()))?;
    if bytes.len() as u64 > most {
        return Err(fault(format!("it has more than {most} bytes")));
    }
    if status.success() { Ok(bytes) } else { Err(fault("it is no file of the build's".into())) }
}

/// The folder of cargo, by the environment.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    home("CARGO_HOME", ".cargo")
}

fn home(name: &str, below: &str) -> Option<PathBuf> {
    let named = std::env::var_os(name).map(PathBuf::from);
    named.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(below)))
}

/// Becomes the program.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut read: Vec<PathBuf> = SYSTEM.iter().map(PathBuf::from).collect();
    read.extend(cargo_home().iter().flat_map(|cargo| CARGO.map(|name| cargo.join(name))));
    read.extend(home("RUSTUP_HOME", ".rustup"));
    read.extend(arguments.read.iter().cloned());
    let mut write = arguments.write.clone();
    write.push("/dev/null".into());
    // Of this machine, and no fault of what is to be built.
    let fault = |error: SandboxError| Failure::new(77, error.to_string());
    only_file_capabilities().map_err(fault)?;
    match only_files(&read, &write).map_err(fault)? {
        Enforced::Fully => {}
        Enforced::Partly => {
            talk("openrelay: warning: this kernel lets a build send signals to your processes (Linux 6.12 does not)");
        }
        Enforced::Not if arguments.where_possible => {
            talk("openrelay: warning: this kernel confines nothing: what is built can read what you can");
        }
        Enforced::Not => {
            let why = "this kernel has no Landlock (Linux 5.13), without which a foreign source could read this user's keys while it is built; build it on another machine";
            return Err(Failure::new(77, why));
        }
    }
    forbid_sockets().map_err(fault)?;
    let (program, rest) = arguments.program.split_first().ok_or_else(|| Failure::plain("no program is named"))?;
    let error = Command::new(program).args(rest).exec();
    Err(Failure::new(77, format!("cannot run {}: {error}", program.display())))
}
