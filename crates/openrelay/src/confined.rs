//! `openrelay confined`: runs an unreviewed program in a sandbox. Everything that a source tree brings runs this way:
//! build scripts, settings for cargo and git, and the commands by which its lock finds tools.
//!
//! Owns which of this machine's files such a program may read: the system's programs and Rust's toolchains. It may
//! not read keys, cargo's folder with its settings and sources, or any other file of the user.
//! [`openrelay_sys::confine`] implements the sandbox.

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
use crate::output::talk;

/// The system's files that every program may read.
const SYSTEM: [&str; 10] =
    ["/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/opt", "/nix", "/etc/ld.so.cache", "/etc/alternatives"];

/// The longest line of a program's output that is shown, in bytes.
const MAX_LINE: u64 = 4_096;
/// Maximum length of the output that is shown, in bytes, because a program may print without end.
const MAX_SHOWN: usize = 4 << 20;
/// The longest report of a supervisor, in bytes.
const MAX_REPORT: u64 = 4_096;
/// The signal that no program can catch.
const SIGKILL: i32 = 9;
/// The exit code of `openrelay confined` if a limit ended the program. Otherwise the program's own code is passed on.
const LIMITED: u8 = 124;

/// The limits of a short query: which files a tree has, where a tool is.
pub(crate) const QUESTION: Limits =
    Limits { time: Duration::from_secs(60), memory: 2 << 30, disk: 64 << 20, processes: 64 };
/// The limits of one build step.
pub(crate) const BUILD: Limits =
    Limits { time: Duration::from_secs(3_600), memory: 12 << 30, disk: 16 << 30, processes: 1_024 };

/// The arguments of the hidden command.
#[derive(clap::Args, Debug)]
pub(crate) struct Arguments {
    /// File or folder that the program may read; repeatable
    #[arg(long, value_name = "PATH")]
    read: Vec<PathBuf>,
    /// File or folder to read only if there are no namespaces
    #[arg(long, value_name = "PATH")]
    read_without_view: Vec<PathBuf>,
    /// Folder that the program may write; repeatable
    #[arg(long, value_name = "DIR")]
    write: Vec<PathBuf>,
    /// Time limit in seconds
    #[arg(long, default_value_t = 3_600.0)]
    time: f64,
    /// Memory limit of all processes together, in bytes
    #[arg(long, default_value_t = BUILD.memory)]
    memory: u64,
    /// Size limit of all writable folders, in bytes
    #[arg(long, default_value_t = BUILD.disk)]
    disk: u64,
    /// Maximum number of processes and threads
    #[arg(long, default_value_t = BUILD.processes)]
    processes: u64,
    /// Run even if the kernel cannot confine the program
    #[arg(long)]
    where_possible: bool,
    /// Report to the caller through stdin, and end when it ends
    #[arg(long)]
    tied: bool,
    /// Program and its arguments
    #[arg(last = true, required = true)]
    program: Vec<OsString>,
}

/// Whether a build continues if the kernel cannot confine it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Confinement {
    /// The build fails, because the source is third-party.
    Required,
    /// The build continues, because the source is the user's own.
    WherePossible,
}

/// A program to run confined. It inherits only `PATH` and the settings of Rust's toolchains from the environment.
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
    /// Returns a program that may read the system's programs, write nothing, and is subject to the limits [`QUESTION`].
    pub(crate) fn new(program: impl AsRef<OsStr>, confinement: Confinement) -> Self {
        let mut environment = vec![("HOME".into(), "/tmp".into())];
        environment.extend(std::env::var_os("PATH").map(|path| ("PATH".into(), path)));
        environment.extend(std::env::var_os("RUSTUP_TOOLCHAIN").map(|name| ("RUSTUP_TOOLCHAIN".into(), name)));
        environment.extend(toolchains().map(|path| ("RUSTUP_HOME".into(), path.into())));
        let program = vec![program.as_ref().to_owned()];
        // Looked up here, because the supervisor has another environment.
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

    /// Runs the program in this folder, which it must be able to read.
    pub(crate) fn current_dir(mut self, folder: &Path) -> Self {
        self.folder = Some(folder.to_owned());
        self
    }

    /// Lets the program read and execute a file, or a folder and everything below it.
    pub(crate) fn read(mut self, path: impl Into<PathBuf>) -> Self {
        self.paths.push(("--read", path.into()));
        self
    }

    /// Does the same, but only if there are no namespaces to hide that these files exist.
    pub(crate) fn read_without_view(mut self, path: impl Into<PathBuf>) -> Self {
        self.paths.push(("--read-without-view", path.into()));
        self
    }

    /// Lets the program also write below a folder.
    pub(crate) fn write(mut self, folder: impl Into<PathBuf>) -> Self {
        self.paths.push(("--write", folder.into()));
        self
    }

    /// Ends the program at this moment at the latest.
    pub(crate) fn until(mut self, deadline: Instant) -> Self {
        self.limits.time = self.limits.time.min(deadline.saturating_duration_since(Instant::now()));
        self
    }

    /// Sets the program's limits.
    pub(crate) fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Runs the program to its end, and shows its output meanwhile.
    ///
    /// # Errors
    /// [`Failure`] with code 77 if this machine cannot run it confined.
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
                        talk("openrelay: the rest of the program's output is not shown");
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

    /// Runs the program to its end. Returns how it ended, and the first `most` bytes of its output.
    ///
    /// # Errors
    /// [`Failure`] with code 77 if this machine cannot run it confined.
    pub(crate) fn heard(&self, most: u64) -> Result<(Ended, Vec<u8>), Failure> {
        let (mut child, report) = self.start(Stdio::null())?;
        let mut bytes = Vec::new();
        if let Some(out) = child.stdout.take() {
            // The pipe is closed after that, which ends a program that keeps writing.
            let _ = out.take(most).read_to_end(&mut bytes);
        }
        Ok((self.ended(child, report)?, bytes))
    }

    /// Checks whether this machine can run programs confined.
    ///
    /// # Errors
    /// [`Failure`] with code 77 and the reason if it cannot.
    pub(crate) fn check(confinement: Confinement) -> Result<(), Failure> {
        Self::new("true", confinement).heard(0).map(|_| ())
    }

    fn start(&self, errors: Stdio) -> Result<(Child, UnixStream), Failure> {
        let fault = |error: std::io::Error| Failure::new(77, format!("cannot run a confined program: {error}"));
        let (report, theirs) = UnixStream::pair().map_err(fault)?;
        // Another file may have replaced this program at its path.
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

    /// Returns how the program ended, as the supervisor reports it.
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

/// The beginning of a supervisor's report if the program was not run.
const FAULT: &str = "fault: ";

/// Turns an unsuccessful end into a failure. If the program ended by itself, the code is 1 and the source is at
/// fault. If a limit ended it, the code is [`LIMIT_EXCEEDED`].
pub(crate) fn succeeded(ended: Ended, what: &str) -> Result<(), Failure> {
    match ended {
        Ended::Exit(0) => Ok(()),
        Ended::Exit(code) => Err(Failure::of_source(format!("{what} failed with exit code {code}"))),
        Ended::Signal(signal) => {
            let why = format!("{what} ended by signal {signal}");
            // The kernel also ends a program this way when the machine is out of memory.
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

/// Returns a file that a confined program has made, at most `most` bytes. The file may be a link to one that its
/// maker cannot read, so `cat` reads it with the same rights.
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

/// Returns cargo's folder, according to the environment.
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

/// Returns the folders that every confined program may read.
pub(crate) fn readable() -> Vec<PathBuf> {
    SYSTEM.iter().map(PathBuf::from).chain(tools()).collect()
}

/// Returns Rust's tools of this user: the two programs that builds call, and rustup's folder.
fn tools() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = |name: &str| std::env::split_paths(&path).map(|folder| folder.join(name)).find(|path| path.is_file());
    // The whole folder, because rustup looks for all of its subfolders.
    ["cargo", "rustc"].into_iter().filter_map(found).chain(toolchains()).collect()
}

/// Runs the program, and ends as it did.
pub(crate) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let report = arguments.tied.then(|| std::io::stdin().as_fd().try_clone_to_owned()).transpose();
    let mut report = report.map_err(Failure::plain)?.map(File::from);
    let time = Duration::try_from_secs_f64(arguments.time).map_err(|error| Failure::new(2, error.to_string()))?;
    // A caller that started this one with `--tied` has passed them.
    let tools = if arguments.tied { Vec::new() } else { tools() };
    let (program, rest) = arguments.program.split_first().ok_or_else(|| Failure::new(2, "no program is given"))?;
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
        Err(ConfineError::Nothing) => Err("this kernel offers neither user namespaces nor Landlock (Linux 5.13), \
            so a third-party source could read this user's keys; build it on another machine"
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

/// Returns what the user should know about a kernel that offers less isolation.
fn warning(isolation: Isolation) -> Option<&'static str> {
    match isolation {
        Isolation::Namespaces => None,
        Isolation::Landlock => {
            Some("user namespaces are unavailable: a build can see file names, and which processes are running")
        }
        Isolation::LandlockWithoutSignals => Some(
            "user namespaces are unavailable: a build can see file names, and send signals to your processes \
             (Linux 6.12 prevents that)",
        ),
        Isolation::Calls => Some("this kernel confines nothing but system calls: a build can read whatever you can"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exceeded_limit_is_distinguished_from_failed_program() {
        let code = |ended| succeeded(ended, "a build").err().map(|failure| failure.code());
        for limit in [Limit::Time, Limit::Memory, Limit::Disk, Limit::Processes] {
            assert_eq!(code(Ended::Limit(limit)), Some(LIMIT_EXCEEDED), "{limit:?}");
        }
        assert_eq!([Ended::Exit(7), Ended::Exit(124), Ended::Signal(9)].map(code), [Some(1); 3]);
        assert_eq!(code(Ended::Exit(0)), None);
        // An error that ends a build is the tree's fault. SIGKILL may mean that the kernel ran out of memory.
        let of_source = |ended| succeeded(ended, "a build").err().map(|failure| failure.is_of_source());
        assert_eq!([Ended::Exit(1), Ended::Signal(11)].map(of_source), [Some(true); 2]);
        assert_eq!([Ended::Signal(9), Ended::Limit(Limit::Memory)].map(of_source), [Some(false); 2]);
    }
}
