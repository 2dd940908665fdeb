//! Runs an untrusted program in confinement. The program gets its own namespaces, a file system with only the given
//! paths, a list of system calls, and limits on time, memory, disk and processes.
//!
//! ```text
//! caller ── supervisor (time; the caller's death) ── first process of the namespaces ── program
//!                                                    (memory, disk, processes)
//! ```
//!
//! When the first process of a PID namespace ends, the kernel ends all others, so nothing outlives the program or its
//! limits. Where the kernel grants no namespaces, Landlock replaces the file system view, and the supervisor ends all
//! descendants. [`Isolation`] tells which isolation was in force.
//!
//! Source: namespaces(7), landlock(7), seccomp(2), prctl(2).
#![allow(unsafe_code, reason = "system calls")]

mod calls;
mod view;
mod watch;

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsRawFd as _, FromRawFd as _, RawFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use caps::{CapSet, Capability};

use crate::cvt::cvt;
use crate::sandbox::{Enforced, only_files};
use watch::{Scope, TICK, Watch};

/// How late the first process may be: it may be busy with a large folder.
const GRACE: Duration = Duration::from_secs(2);
/// Maximum number of open files of one process.
const FILES: u64 = 1_024;
/// More bytes than a disk writes between two checks.
const FAST: u64 = 1 << 30;
/// The kernel's own limits are this many times the checked ones, so that an exceeded limit can be told from a failure.
const SLACK: u64 = 2;

/// The limits of a confined program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Time from start to end.
    pub time: Duration,
    /// Memory of all processes together, in bytes.
    pub memory: u64,
    /// Disk space of all writable folders together, including what they held before, in bytes.
    pub disk: u64,
    /// Maximum number of processes and threads at the same time.
    pub processes: u64,
}

/// A limit that was exceeded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Limit {
    /// [`Limits::time`].
    Time,
    /// [`Limits::memory`], or the machine ran out of memory.
    Memory,
    /// [`Limits::disk`].
    Disk,
    /// [`Limits::processes`].
    Processes,
}

/// How a program ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ended {
    /// By itself, with this code.
    Exit(i32),
    /// By a signal that the confinement did not send.
    Signal(i32),
    /// By one of its limits.
    Limit(Limit),
}

/// The isolation that the kernel grants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Isolation {
    /// Namespaces and a separate file system view.
    Namespaces,
    /// Landlock and the list of system calls.
    Landlock,
    /// Landlock and the list of system calls, but signals reach other processes of the user: Linux before 6.12.
    LandlockWithoutSignals,
    /// Only the list of system calls.
    Calls,
}

/// A program to run confined.
#[derive(Clone, Debug)]
pub struct Spec {
    /// The program, which is looked up in `PATH`.
    pub program: OsString,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Folders and files that it may read and execute.
    pub read: Vec<PathBuf>,
    /// The same, but only where there are no namespaces. A namespace view hides that these files exist; without one,
    /// they have to be readable.
    pub read_without_view: Vec<PathBuf>,
    /// Folders and files that it may also write.
    pub write: Vec<PathBuf>,
    /// Its limits.
    pub limits: Limits,
    /// Whether it runs even if the kernel cannot hide any file from it.
    pub where_possible: bool,
    /// Whether standard input is a connection to the caller; the program ends when that connection does.
    pub tied: bool,
}

/// The reason why a program could not be run confined.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// The kernel has neither namespaces for this user nor Landlock.
    #[error("this kernel grants neither user namespaces nor Landlock")]
    Nothing,
    /// A step failed.
    #[error("cannot confine a program: {0}")]
    Step(#[from] io::Error),
    /// The program cannot be started.
    #[error("{0}")]
    Start(String),
}

fn other<E: std::fmt::Display>(error: E) -> io::Error {
    io::Error::other(error.to_string())
}

/// Runs a program confined, and waits until the program and everything that it started have ended.
///
/// # Errors
/// [`ConfineError`]; the program has not run then. The calling process must have one thread.
pub fn run(spec: &Spec) -> Result<(Ended, Isolation), ConfineError> {
    let threads = fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!("the process has {threads} threads")).into());
    }
    let killed = out_of_memory();
    let (ended, isolation) = match in_namespaces(spec)? {
        Some(ended) => (ended, Isolation::Namespaces),
        None => without_namespaces(spec)?,
    };
    // The machine had less memory than the limit, and the kernel took some back.
    let short = !matches!(ended, Ended::Exit(0) | Ended::Limit(_)) && out_of_memory() > killed;
    Ok((if short { Ended::Limit(Limit::Memory) } else { ended }, isolation))
}

/// Returns how many processes the kernel has ended for lack of memory.
fn out_of_memory() -> u64 {
    let all = fs::read_to_string("/proc/vmstat").unwrap_or_default();
    let count = all.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse().ok());
    count.unwrap_or(0)
}

/// Creates a pipe whose ends no started program inherits.
fn pipe() -> io::Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    cvt(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: both were just created and have no other owner.
    Ok(unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) })
}

/// Returns how many bytes the file system of a folder has left for this user.
///
/// # Errors
/// When the folder does not exist.
pub fn free(folder: &std::path::Path) -> io::Result<u64> {
    room(folder).map(|room| room.bytes)
}

/// The space that a file system has left.
struct Room {
    /// Space for users' files, in bytes.
    bytes: u64,
    /// Number of files and folders. Some file systems have no fixed number and report none.
    entries: u64,
}

fn room(folder: &std::path::Path) -> io::Result<Room> {
    let path = std::ffi::CString::new(folder.as_os_str().as_encoded_bytes()).map_err(other)?;
    // SAFETY: the struct has only numbers, the path is NUL-terminated, and both live through the call.
    let about = unsafe {
        let mut about = std::mem::zeroed::<libc::statvfs>();
        cvt(libc::statvfs(path.as_ptr(), &raw mut about))?;
        about
    };
    Ok(Room { bytes: about.f_bavail.saturating_mul(about.f_frsize), entries: about.f_ffree })
}

/// Waits until one of these descriptors can be read or is closed. Returns for each whether it is.
fn wait_for(files: &[RawFd], time: Duration) -> io::Result<Vec<bool>> {
    let mut polled: Vec<libc::pollfd> =
        files.iter().map(|fd| libc::pollfd { fd: *fd, events: libc::POLLIN, revents: 0 }).collect();
    let milliseconds = libc::c_int::try_from(time.as_millis()).unwrap_or(libc::c_int::MAX);
    let count = libc::nfds_t::try_from(polled.len()).map_err(other)?;
    // SAFETY: the array lives through the call and has this many entries.
    match cvt(unsafe { libc::poll(polled.as_mut_ptr(), count, milliseconds) }) {
        Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
        _ => {}
    }
    Ok(polled.iter().map(|one| one.revents != 0).collect())
}

/// Creates a process. Returns its process ID in the old process, and `None` in the new one.
fn fork(namespaces: libc::c_int) -> io::Result<Option<libc::pid_t>> {
    let flags = libc::c_long::from(namespaces | libc::SIGCHLD);
    // SAFETY: without a stack of its own the new process is a copy, and this process has one thread.
    let id = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match libc::pid_t::try_from(id).map_err(other)? {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        id => Ok(Some(id)),
    }
}

fn kill(id: libc::pid_t) {
    // SAFETY: takes numbers.
    unsafe { libc::kill(id, libc::SIGKILL) };
}

/// Waits for a child. Returns `None` when the child still runs and `flags` do not wait for it.
fn wait(id: libc::pid_t, flags: libc::c_int) -> io::Result<Option<(libc::pid_t, Ended)>> {
    let mut status = 0;
    // SAFETY: the number lives through the call.
    let found = cvt(unsafe { libc::waitpid(id, &raw mut status, flags) })?;
    let ended = if libc::WIFSIGNALED(status) {
        Ended::Signal(libc::WTERMSIG(status))
    } else {
        Ended::Exit(libc::WEXITSTATUS(status))
    };
    Ok((found != 0).then_some((found, ended)))
}

/// Ends this process without the caller's clean-up.
fn end() -> ! {
    // SAFETY: takes a number and does not return.
    unsafe { libc::_exit(0) }
}

/// Beginnings of the lines in which the first process reports to the supervisor. The program has no descriptor for
/// them.
mod told {
    pub(super) const NO_VIEW: &str = "no view: ";
    pub(super) const NO_START: &str = "no start: ";
    pub(super) const NOTHING: &str = "nothing confines";
    pub(super) const ENDED: &str = "ended: ";
}

/// Formats how a program ended, as one line.
pub fn line(ended: Ended) -> String {
    let (what, number) = match ended {
        Ended::Exit(code) => ("exit", code),
        Ended::Signal(signal) => ("signal", signal),
        Ended::Limit(limit) => ("limit", limit as i32),
    };
    format!("{what} {number}")
}

/// Parses a line of [`line`].
pub fn parse(line: &str) -> Option<Ended> {
    let (what, number) = line.split_once(' ')?;
    let number: i32 = number.parse().ok()?;
    match what {
        "exit" => Some(Ended::Exit(number)),
        "signal" => Some(Ended::Signal(number)),
        "limit" => [Limit::Time, Limit::Memory, Limit::Disk, Limit::Processes]
            .into_iter()
            .find(|limit| *limit as i32 == number)
            .map(Ended::Limit),
        _ => None,
    }
}

/// Runs the program in namespaces. Returns `None` where the kernel grants none.
fn in_namespaces(spec: &Spec) -> Result<Option<Ended>, ConfineError> {
    let (mut report, tell) = pipe()?;
    let spaces = libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWNET | libc::CLONE_NEWUTS;
    // SAFETY: these have no preconditions.
    let (user, group) = unsafe { (libc::geteuid(), libc::getegid()) };
    let mut first = fork(spaces | libc::CLONE_NEWUSER);
    // Root may create the other namespaces where users may not create any.
    if first.is_err() && user == 0 {
        first = fork(spaces);
    }
    let Ok(first) = first else { return Ok(None) };
    let Some(first) = first else {
        drop(report);
        let mut tell = tell;
        if let Err(error) = first_process(spec, (user, group), &mut tell) {
            let _ = writeln!(tell, "{}{error}", told::NO_VIEW);
        }
        end();
    };
    drop(tell);
    let deadline = Instant::now() + spec.limits.time + GRACE;
    let mut files = vec![report.as_raw_fd()];
    files.extend(spec.tied.then_some(libc::STDIN_FILENO));
    while Instant::now() < deadline {
        if wait_for(&files, deadline.saturating_duration_since(Instant::now()))?.contains(&true) {
            break;
        }
    }
    // The first process ends by itself once it has reported how the program ended.
    let said = wait_for(&files[..1], Duration::ZERO)?.contains(&true);
    if !said {
        kill(first);
    }
    let mut lines = String::new();
    report.read_to_string(&mut lines)?;
    let status = wait(first, 0)?;
    let told = |what: &str| lines.lines().find_map(|line| line.strip_prefix(what));
    if let Some(why) = told(told::NO_START) {
        return if why == told::NOTHING {
            Err(ConfineError::Nothing)
        } else {
            Err(ConfineError::Start(why.to_owned()))
        };
    }
    if told(told::NO_VIEW).is_some() {
        return Ok(None);
    }
    if let Some(ended) = told(told::ENDED).and_then(parse) {
        return Ok(Some(ended));
    }
    // The time is up, or the caller has ended. Otherwise something outside has ended the process, such as the kernel
    // for lack of memory.
    let killed = status.map_or(Ended::Signal(libc::SIGKILL), |(_, ended)| ended);
    Ok(Some(if said { killed } else { Ended::Limit(Limit::Time) }))
}

/// Runs as the first process of the namespaces: builds the view, starts the program, watches it, and ends all other
/// processes with itself.
fn first_process(spec: &Spec, (user, group): (u32, u32), tell: &mut File) -> io::Result<()> {
    // SAFETY: takes its arguments by value. When the supervisor ends, this process ends too.
    cvt(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) })?;
    if fs::read_to_string("/proc/self/uid_map")?.trim().is_empty() {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
        fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
    }
    expendable();
    let deadline = Instant::now() + spec.limits.time;
    view::enter(spec)?;
    let ended = start_and_watch(spec, deadline, tell);
    // From here on no other way is tried: the program may have run.
    let _ = match ended {
        Ok(ended) => writeln!(tell, "{}{}", told::ENDED, line(ended)),
        Err(error) => writeln!(tell, "{}{error}", told::NO_START),
    };
    Ok(())
}

fn start_and_watch(spec: &Spec, deadline: Instant, tell: &mut File) -> io::Result<Ended> {
    // SAFETY: takes its arguments by value. It keeps the program from inspecting this process.
    cvt(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) })?;
    let Some(program) = fork(0)? else {
        let why = become_program(spec, true);
        let _ = writeln!(tell, "{}{why}", told::NO_START);
        end();
    };
    supervise(program, Scope::Namespace, spec, deadline, None)
}

/// Makes this process and its children the first that the kernel ends for lack of memory.
fn expendable() {
    // Without permission, the kernel chooses as it otherwise does.
    let _ = fs::write("/proc/self/oom_score_adj", "1000");
}

/// Waits until the program ends or exceeds a limit. `caller` is a descriptor; when it closes, the program ends too.
fn supervise(
    program: libc::pid_t,
    scope: Scope,
    spec: &Spec,
    deadline: Instant,
    caller: Option<RawFd>,
) -> io::Result<Ended> {
    let mut watch = Watch::new(scope, spec.limits, &spec.write);
    loop {
        while let Some((id, ended)) = wait(-1, libc::WNOHANG)? {
            if id == program {
                // The kernel's own limit on the size of a file.
                let too_large = ended == Ended::Signal(libc::SIGXFSZ);
                return Ok(if too_large { Ended::Limit(Limit::Disk) } else { ended });
            }
        }
        if Instant::now() >= deadline {
            return Ok(Ended::Limit(Limit::Time));
        }
        if let Some(limit) = watch.exceeded() {
            return Ok(Ended::Limit(limit));
        }
        match caller {
            Some(caller) if wait_for(&[caller], TICK)?.contains(&true) => return Ok(Ended::Signal(libc::SIGHUP)),
            Some(_) => {}
            None => child_or(TICK),
        }
    }
}

/// Sleeps until a child ends, but at most for `time`.
fn child_or(time: Duration) {
    // SAFETY: sigemptyset and sigaddset fill the set before it is read, and both values live through the calls.
    unsafe {
        let mut set = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        let time = libc::timespec { tv_sec: 0, tv_nsec: i64::from(time.subsec_nanos()) };
        libc::sigtimedwait(&raw const set, std::ptr::null_mut(), &raw const time);
    }
}

/// Runs the program where there are no namespaces.
fn without_namespaces(spec: &Spec) -> Result<(Ended, Isolation), ConfineError> {
    let (mut report, mut tell) = pipe()?;
    // SAFETY: takes its arguments by value. It makes orphaned descendants children of this process.
    cvt(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) })?;
    let deadline = Instant::now() + spec.limits.time;
    let Some(program) = fork(0)? else {
        drop(report);
        expendable();
        let why = become_program(spec, false);
        let _ = writeln!(tell, "{why}");
        end();
    };
    drop(tell);
    let scope = Scope::Below(std::process::id());
    let ended = supervise(program, scope, spec, deadline, spec.tied.then_some(libc::STDIN_FILENO));
    loop {
        for id in watch::numbers(scope) {
            kill(libc::pid_t::try_from(id).map_err(other)?);
        }
        if wait(-1, 0).is_err() {
            break;
        }
    }
    let ended = ended?;
    let mut why = String::new();
    report.read_to_string(&mut why)?;
    let isolation = match landlock_of_this_kernel() {
        Enforced::Fully => Isolation::Landlock,
        Enforced::Partly => Isolation::LandlockWithoutSignals,
        Enforced::Not => Isolation::Calls,
    };
    match why.trim() {
        "" => Ok((ended, isolation)),
        told::NOTHING => Err(ConfineError::Nothing),
        why => Err(ConfineError::Start(why.to_owned())),
    }
}

/// Returns what Landlock enforces on this kernel, by the version that the kernel reports. Source: landlock(7).
fn landlock_of_this_kernel() -> Enforced {
    const VERSION: libc::c_int = 1;
    // SAFETY: with this flag the call takes no attributes.
    match unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0, VERSION) } {
        6.. => Enforced::Fully,
        1..6 => Enforced::Partly,
        _ => Enforced::Not,
    }
}

/// Drops all privileges and becomes the program. Returns the reason when that fails.
fn become_program(spec: &Spec, in_view: bool) -> String {
    match give_up(spec, in_view) {
        Ok(()) => {}
        Err(ConfineError::Nothing) => return told::NOTHING.into(),
        Err(error) => return error.to_string().replace('\n', " "),
    }
    let error = Command::new(&spec.program).args(&spec.arguments).exec();
    format!("cannot run {}: {error}", spec.program.to_string_lossy())
}

fn give_up(spec: &Spec, in_view: bool) -> Result<(), ConfineError> {
    let null = File::open("/dev/null")?;
    // SAFETY: these take numbers, or a set that is filled before it is read.
    unsafe {
        cvt(libc::dup2(null.as_raw_fd(), libc::STDIN_FILENO))?;
        // No terminal, and the signal mask that a program expects.
        libc::setsid();
        let mut none = std::mem::zeroed::<libc::sigset_t>();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
        // The first process cannot be inspected; the program and what it starts may inspect themselves.
        cvt(libc::prctl(libc::PR_SET_DUMPABLE, 1, 0, 0, 0))?;
    }
    limit(&spec.limits, in_view)?;
    let mut read = spec.read.clone();
    read.push("/proc".into());
    if !in_view {
        read.extend(spec.read_without_view.iter().cloned());
    }
    read.extend(["zero", "random", "urandom", "full"].map(|name| PathBuf::from("/dev").join(name)));
    let mut write = spec.write.clone();
    write.push("/dev/null".into());
    if in_view {
        write.push("/tmp".into());
    }
    forget_capabilities()?;
    let enforced = only_files(&read, &write).map_err(other)?;
    if enforced == Enforced::Not && !in_view && !spec.where_possible {
        return Err(ConfineError::Nothing);
    }
    Ok(calls::allow_only()?)
}

/// Drops all capabilities, and every way to get them back.
fn forget_capabilities() -> io::Result<()> {
    for capability in caps::runtime::thread_all_supported() {
        // A user without capabilities may not drop these, and need not: new privileges are forbidden below.
        let may = caps::has_cap(None, CapSet::Effective, Capability::CAP_SETPCAP).map_err(other)?;
        if may {
            caps::drop(None, CapSet::Bounding, capability).map_err(other)?;
        }
    }
    for set in [CapSet::Ambient, CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set).map_err(other)?;
    }
    // SAFETY: takes its arguments by value.
    cvt(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    Ok(())
}

/// Sets the kernel's own limits, which apply between two checks.
fn limit(limits: &Limits, in_view: bool) -> io::Result<()> {
    let mut all = vec![
        (libc::RLIMIT_CORE, 0),
        (libc::RLIMIT_NOFILE, FILES),
        (libc::RLIMIT_AS, limits.memory.saturating_mul(SLACK)),
        (libc::RLIMIT_FSIZE, limits.disk.saturating_mul(SLACK).saturating_add(FAST)),
        (libc::RLIMIT_MSGQUEUE, 0),
        (libc::RLIMIT_MEMLOCK, 0),
        (libc::RLIMIT_NICE, 0),
        (libc::RLIMIT_RTPRIO, 0),
    ];
    if in_view {
        // Without a view, the user's other processes count too.
        all.push((libc::RLIMIT_NPROC, limits.processes.saturating_mul(SLACK)));
    }
    for (which, most) in all {
        let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: the limit lives through both calls.
        unsafe {
            cvt(libc::getrlimit(which, &raw mut now))?;
            let most = now.rlim_max.min(most);
            let limit = libc::rlimit { rlim_cur: most, rlim_max: most };
            cvt(libc::setrlimit(which, &raw const limit))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ended_line_parses_back() {
        for ended in [
            Ended::Exit(0),
            Ended::Exit(101),
            Ended::Signal(9),
            Ended::Limit(Limit::Time),
            Ended::Limit(Limit::Memory),
            Ended::Limit(Limit::Disk),
            Ended::Limit(Limit::Processes),
        ] {
            assert_eq!(parse(&line(ended)), Some(ended));
        }
        for wrong in ["", "exit", "exit x", "limit 9", "else 1"] {
            assert_eq!(parse(wrong), None);
        }
    }
}
