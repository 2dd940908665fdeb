//! `openrelay confined`: runs a program that nobody has looked at. What a source tree brings runs so: its build scripts, its
//! settings for cargo and git, and the questions by which its lock finds tools.
//!
//! Owns which of this machine's files such a program may read: the system's programs and Rust's toolchains. Keys, cargo's
//! folder with its settings and sources, and whatever else the user has, are not among them. How a program is confined
//! belongs to [`openrelay_sys::confine`].

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use openrelay_sys::confine::{self, ConfineError, Isolation, Spec};
pub(crate) use openrelay_sys::confine::{Ended, Limit, Limits};

use crate::failure::{Failure, LIMIT_EXCEEDED};
use crate::talk;

/// What all programs may read of the system.
const SYSTEM: [&str; 10] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/nix", "/etc/ld.so.cache", "/etc/alternatives"];

/// Longest line that is shown of a program's output, in bytes.
const MAX_LINE: u64 = 4_096;
/// Most of a program's output that is shown, in bytes: it may print without end.
const MAX_SHOWN: usize = 4 << 20;
/// Longest report of a supervisor, in bytes.
const MAX_REPORT: u64 = 4_096;
/// The signal that no program can catch.
const SIGKILL: i32 = 9;
/// The exit code of `openrelay confined` where a limit has ended the program, whose own codes it hands on otherwise.
const LIMITED: u8 = 124;

/// What a short question may use: which files a tree has, where a tool is.
pub(crate) const QUESTION: Limits =
    Limits { time: Duration::from_secs(60), memory: 2 << 30, disk: 64 << 20, processes: 64 };
/// What one step of a build may use.
pub(crate) const BUILD: Limits =
    Limits { time: Duration::from_secs(3_600), memory: 12 << 30, disk: 16 << 30, processes: 1_024 };

/// The hidden command's arguments.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// File or folder that it may read; repeatable
    #[arg(long, value_name = "PATH")]
    read: Vec<PathBuf>,
    /// The same, but only where there are no namespaces
    #[arg(long, value_name = "PATH")]
    read_without_view: Vec<PathBuf>,
    /// Folder that it may write too; repeatable
    #[arg(long, value_name = "DIR")]
    write: Vec<PathBuf>,
    /// Time limit in seconds
    #[arg(long, default_value_t = 3_600.0)]
    time: f64,
    /// Memory limit of all processes together, in bytes
    #[arg(long, default_value_t = BUILD.memory)]
    memory: u64,
    /// Limit of what the writable folders hold, in bytes
    #[arg(long, default_value_t = BUILD.disk)]
    disk: u64,
    /// Limit of processes and threads at once
    #[arg(long, default_value_t = BUILD.processes)]
    processes: u64,
    /// Go on where the kernel confines nothing
    #[arg(long)]
    where_possible: bool,
    /// Report to the caller through standard input, and end with the caller
    #[arg(long)]
    tied: bool,
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

/// A program that is to run confined. It gets nothing of the environment but `PATH` and where Rust's toolchains are.
#[derive(Clone, Debug)]
pub(crate) struct Confined {
    confinement: Confinement,
    limits: Limits,
    folder: Option<PathBuf>,
    environment: Vec<(OsString, OsString)>,
    paths: Vec<(&'static str, PathBuf)>,
    program: Vec<OsString>,
}

impl Confined {
    /// A program that may read the system's programs, write nothing, and use [`QUESTION`].
    pub(crate) fn new(program: impl AsRef<OsStr>, confinement: Confinement) -> Self {
        let mut environment = vec![("HOME".into(), "/tmp".into())];
        environment.extend(std::env::var_os("PATH").map(|path| ("PATH".into(), path)));
        environment.extend(std::env::var_os("RUSTUP_TOOLCHAIN").map(|name| ("RUSTUP_TOOLCHAIN".into(), name)));
        environment.extend(toolchains().map(|path| ("RUSTUP_HOME".into(), path.into())));
        let program = vec![program.as_ref().to_owned()];
        // Looked up here: the supervisor has another environment.
        let paths = tools().into_iter().map(|path| ("--read", path)).collect();
        Self { confinement, limits: QUESTION, folder: None, environment, paths, program }
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.program.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.program.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets a variable of the environment.
    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Runs it in this folder, which it must be able to read.
    pub(crate) fn current_dir(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// Lets it read and execute a file, or a folder and what is below.
    pub(crate) fn read(mut self, path: impl Into<PathBuf>) -> Self {
        self.paths.push(("--read", path.into()));
        self
    }

    /// The same, only where there are no namespaces to hide that these files exist.
    pub(crate) fn read_without_view(mut self, path: impl Into<PathBuf>) -> Self {
        self.paths.push(("--read-without-view", path.into()));
        self
    }

    /// Lets it write below a folder too.
    pub(crate) fn write(mut self, folder: impl Into<PathBuf>) -> Self {
        self.paths.push(("--write", folder.into()));
        self
    }

    /// Ends it at this moment at the latest.
    pub(crate) fn until(mut self, deadline: Instant) -> Self {
        self.limits.time = self.limits.time.min(deadline.saturating_duration_since(Instant::now()));
        self
    }

    /// Sets what it may use.
    pub(crate) fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Runs it to its end, and shows its output meanwhile.
    ///
    /// # Errors
    /// [`Failure`] with code 77 where this machine cannot run it so.
    pub(crate) fn run_aloud(&self) -> Result<Ended, Failure> {
        let (mut child, report) = self.start(Stdio::piped())?;
        let aloud = |pipe: &mut dyn Read| {
            let (mut pipe, mut line, mut shown) = (BufReader::new(pipe), Vec::new(), 0);
            while pipe.by_ref().take(MAX_LINE).read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
                if shown <= MAX_SHOWN {
                    let text = String::from_utf8_lossy(&line);
                    talk(text.replace(|letter: char| letter.is_control(), " ").trim_end());
                    shown += line.len();
                    if shown > MAX_SHOWN {
                        talk("openrelay: the rest of its output is not shown");
                    }
                }
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
        self.ended(child, report)
    }

    /// Runs it to its end: how it ended, and the first `most` bytes of its output.
    ///
    /// # Errors
    /// [`Failure`] with code 77 where this machine cannot run it so.
    pub(crate) fn heard(&self, most: u64) -> Result<(Ended, Vec<u8>), Failure> {
        let (mut child, report) = self.start(Stdio::null())?;
        let mut bytes = Vec::new();
        if let Some(out) = child.stdout.take() {
            // Closed then: whoever writes on is ended by that.
            let _ = out.take(most).read_to_end(&mut bytes);
        }
        Ok((self.ended(child, report)?, bytes))
    }

    /// Whether this machine can run programs so.
    ///
    /// # Errors
    /// [`Failure`] with code 77 and the reason where it cannot.
    pub(crate) fn check(confinement: Confinement) -> Result<(), Failure> {
        Self::new("true", confinement).heard(0).map(|_| ())
    }

    fn start(&self, errors: Stdio) -> Result<(Child, UnixStream), Failure> {
        let fault = |error: std::io::Error| Failure::new(77, format!("cannot run a confined program: {error}"));
        let (report, theirs) = UnixStream::pair().map_err(fault)?;
        // Another file may have taken this program's place.
        let mut command = Command::new("/proc/self/exe");
        let limits = &self.limits;
        command.args(["confined", "--tied", "--time"]).arg(limits.time.as_secs_f64().to_string());
        command.arg("--memory").arg(limits.memory.to_string()).arg("--disk").arg(limits.disk.to_string());
        command.arg("--processes").arg(limits.processes.to_string());
        command.args(self.paths.iter().flat_map(|(option, path)| [OsStr::new(*option), path.as_os_str()]));
        if self.confinement == Confinement::WherePossible {
            command.arg("--where-possible");
        }
        command.arg("--").args(&self.program);
        command.env_clear().envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.current_dir(self.folder.as_deref().unwrap_or(Path::new("/")));
        command.stdin(OwnedFd::from(theirs)).stdout(Stdio::piped()).stderr(errors);
        Ok((command.spawn().map_err(fault)?, report))
    }

    /// How the supervisor says that the program has ended.
    fn ended(&self, mut child: Child, report: UnixStream) -> Result<Ended, Failure> {
        let mut text = String::new();
        let read = report.take(MAX_REPORT).read_to_string(&mut text);
        let status = child.wait();
        let program = self.program.first().map(|name| name.to_string_lossy()).unwrap_or_default();
        let fault = |why: &dyn std::fmt::Display| Failure::new(77, format!("cannot run {program} confined: {why}"));
        read.map_err(|error| fault(&error))?;
        let (first, warning) = text.split_once('\n').unwrap_or((&text, ""));
        if !warning.is_empty() {
            talk(&format!("openrelay: warning: {}", warning.trim_end()));
        }
        match (confine::parse(first), first.strip_prefix(FAULT)) {
            (Some(ended), _) => Ok(ended),
            (None, Some(why)) => Err(fault(&why)),
            (None, None) => Err(fault(&status.map_or_else(|error| error.to_string(), |status| status.to_string()))),
        }
    }
}

/// What a supervisor's report begins with where the program was not run.
const FAULT: &str = "fault: ";

/// The failure of a program that did not end with success, if it did not: with code 1 and the source's where it ended by
/// itself, with [`LIMIT_EXCEEDED`] where one of our limits ended it.
pub(crate) fn succeeded(ended: Ended, what: &str) -> Result<(), Failure> {
    match ended {
        Ended::Exit(0) => Ok(()),
        Ended::Exit(code) => Err(Failure::of_source(format!("{what} failed with exit code {code}"))),
        Ended::Signal(signal) => {
            let why = format!("{what} ended by signal {signal}");
            // This is also how the kernel ends a program when the machine has no memory left.
            Err(if signal == SIGKILL { Failure::plain(why) } else { Failure::of_source(why) })
        }
        Ended::Limit(limit) => {
            Err(Failure::new(LIMIT_EXCEEDED, format!("{what} exceeded its limit of {}", name(limit))))
        }
    }
}

fn name(limit: Limit) -> &'static str {
    match limit {
        Limit::Time => "time",
        Limit::Memory => "memory",
        Limit::Disk => "disk space",
        Limit::Processes => "processes",
    }
}

/// The bytes of a file that a confined program has made, at most `most` of them. It may be a link to a file that its maker
/// cannot read, so `cat` reads it with the same rights.
pub(crate) fn read_made(cat: Confined, path: &Path, folder: &Path, most: u64) -> Result<Vec<u8>, Failure> {
    let fault = |why: &str| Failure::of_source(format!("cannot read {}: {why}", path.display()));
    let (ended, bytes) = cat.read(folder).arg("--").arg(path).heard(most + 1)?;
    if bytes.len() as u64 > most {
        return Err(fault(&format!("it has more than {most} bytes")));
    }
    match ended {
        Ended::Exit(0) => Ok(bytes),
        Ended::Exit(_) | Ended::Signal(_) => Err(fault("it is not a file of the build")),
        Ended::Limit(_) => succeeded(ended, "reading it").map(|()| bytes),
    }
}

/// The folder of cargo, by the environment.
pub(crate) fn cargo_home() -> Option<PathBuf> {
    home("CARGO_HOME", ".cargo")
}

fn toolchains() -> Option<PathBuf> {
    home("RUSTUP_HOME", ".rustup")
}

fn home(name: &str, below: &str) -> Option<PathBuf> {
    let named = std::env::var_os(name).map(PathBuf::from);
    named.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(below)))
}

/// The folders that every confined program may read.
pub(crate) fn readable() -> Vec<PathBuf> {
    SYSTEM.iter().map(PathBuf::from).chain(tools()).collect()
}

/// Rust's tools, wherever they are for this user: the two programs that are called, and rustup's folder.
fn tools() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &str| std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file());
    // Whole, for rustup looks for all of its folders.
    ["cargo", "rustc"].into_iter().filter_map(found).chain(toolchains()).collect()
}

/// Runs the program, and ends as it did.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let report = arguments.tied.then(|| std::io::stdin().as_fd().try_clone_to_owned()).transpose();
    let mut report = report.map_err(Failure::plain)?.map(File::from);
    let time = Duration::try_from_secs_f64(arguments.time).map_err(|error| Failure::new(2, error.to_string()))?;
    // A caller that is tied to it has named them.
    let tools = if arguments.tied { Vec::new() } else { tools() };
    let (program, rest) = arguments.program.split_first().ok_or_else(|| Failure::new(2, "no program is named"))?;
    let spec = Spec {
        program: program.clone(),
        arguments: rest.to_vec(),
        read: SYSTEM.iter().map(PathBuf::from).chain(tools).chain(arguments.read.iter().cloned()).collect(),
        read_without_view: arguments.read_without_view.clone(),
        write: arguments.write.clone(),
        limits: Limits { time, memory: arguments.memory, disk: arguments.disk, processes: arguments.processes },
        where_possible: arguments.where_possible,
        tied: arguments.tied,
    };
    let told = match confine::run(&spec) {
        Ok((ended, isolation)) => Ok((ended, warning(isolation))),
        Err(ConfineError::Nothing) => Err("this kernel grants neither user namespaces nor Landlock (Linux 5.13), \
            without which a foreign source could read this user's keys; build it on another machine"
            .to_owned()),
        Err(error @ (ConfineError::Step(_) | ConfineError::Start(_))) => Err(error.to_string()),
    };
    if let Some(report) = report.as_mut() {
        let text = match &told {
            Ok((ended, warning)) => format!("{}\n{}", confine::line(*ended), warning.unwrap_or_default()),
            Err(why) => format!("{FAULT}{}", why.replace('\n', " ")),
        };
        return report.write_all(text.as_bytes()).map_err(Failure::plain);
    }
    let (ended, warning) = told.map_err(|why| Failure::new(77, why))?;
    if let Some(warning) = warning {
        talk(&format!("openrelay: warning: {warning}"));
    }
    match ended {
        Ended::Exit(0) => Ok(()),
        Ended::Exit(code) => Err(Failure::new(u8::try_from(code).unwrap_or(1), "")),
        Ended::Signal(signal) => Err(Failure::new(u8::try_from(128 + signal).unwrap_or(128), "")),
        Ended::Limit(_) => {
            succeeded(ended, "the program").map_err(|failure| Failure::new(LIMITED, failure.to_string()))
        }
    }
}

/// What a user should know of a kernel that grants less.
fn warning(isolation: Isolation) -> Option<&'static str> {
    match isolation {
        Isolation::Namespaces => None,
        Isolation::Landlock => {
            Some("no user namespaces are granted: a build sees names of files, and which processes there are")
        }
        Isolation::LandlockWithoutSignals => Some(
            "no user namespaces are granted: a build sees names of files, and can send signals to your processes \
             (Linux 6.12 prevents that)",
        ),
        Isolation::Calls => Some("this kernel keeps no file from a build: it can read what you can"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_exceeded_limit_is_told_from_a_program_that_failed() {
        let code = |ended| succeeded(ended, "a build").err().map(|failure| failure.code());
        for limit in [Limit::Time, Limit::Memory, Limit::Disk, Limit::Processes] {
            assert_eq!(code(Ended::Limit(limit)), Some(LIMIT_EXCEEDED), "{limit:?}");
        }
        assert_eq!([Ended::Exit(7), Ended::Exit(124), Ended::Signal(9)].map(code), [Some(1); 3]);
        assert_eq!(code(Ended::Exit(0)), None);
        // A build that ends by itself with an error is the tree's; the kernel may have killed it for want of memory.
        let of_source = |ended| succeeded(ended, "a build").err().map(|failure| failure.is_of_source());
        assert_eq!([Ended::Exit(1), Ended::Signal(11)].map(of_source), [Some(true); 2]);
        assert_eq!([Ended::Signal(9), Ended::Limit(Limit::Memory)].map(of_source), [Some(false); 2]);
    }
}
