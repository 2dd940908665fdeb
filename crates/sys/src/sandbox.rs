//! Drops privileges that a relay does not need once it runs.
//!
//! Owns the order: no core dumps ▶ own user, few capabilities or none ▶ no files ▶ (threads start) ▶ few system calls.
//! Everything fails closed: a step that does not work is an error, and the relay does not start.
//!
//! Source: capabilities(7), landlock(7), seccomp(2).
#![allow(unsafe_code, reason = "system calls")]

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;

use caps::{CapSet, Capability, CapsHashSet};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::cvt::cvt;

/// A step of the sandbox that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step}: {source}")]
pub struct SandboxError {
    step: &'static str,
    source: io::Error,
}

fn failed(step: &'static str) -> impl Fn(io::Error) -> SandboxError {
    move |source| SandboxError { step, source }
}

fn other<E: std::fmt::Display>(error: E) -> io::Error {
    io::Error::other(error.to_string())
}

/// Forbids core dumps, and debuggers of the same user.
///
/// # Errors
/// When the kernel refuses.
pub fn forbid_core_dumps() -> Result<(), SandboxError> {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `none` lives through the call; prctl with PR_SET_DUMPABLE takes its arguments by value.
    unsafe {
        cvt(libc::setrlimit(libc::RLIMIT_CORE, &raw const none)).map_err(failed("forbid core dumps"))?;
        cvt(libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0)).map_err(failed("forbid core dumps"))?;
    }
    Ok(())
}

/// Returns the effective user ID of the process.
pub fn user() -> u32 {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() }
}

/// Returns whether the process is in a user namespace that maps only its own user.
pub fn only_own_user() -> bool {
    let Ok(map) = std::fs::read_to_string("/proc/self/uid_map") else { return false };
    map.split_whitespace().nth(2).is_some_and(|count| count == "1")
}

/// The capabilities that a process keeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Keep {
    /// None.
    Nothing,
    /// CAP_NET_ADMIN alone.
    NetAdmin,
}

/// Becomes user and group `id` permanently, and keeps only these capabilities. With `None` the user stays. Must be
/// called while there is one thread.
///
/// # Errors
/// When a step fails; the process must not continue.
pub fn drop_privileges(id: Option<u32>, keep: Keep) -> Result<(), SandboxError> {
    let keep: CapsHashSet = match keep {
        Keep::Nothing => CapsHashSet::new(),
        Keep::NetAdmin => [Capability::CAP_NET_ADMIN].into(),
    };
    for capability in caps::runtime::thread_all_supported() {
        if !keep.contains(&capability) {
            caps::drop(None, CapSet::Bounding, capability).map_err(other).map_err(failed("drop capabilities"))?;
        }
    }
    if let Some(id) = id {
        let change = failed("change to the relay's own user");
        // SAFETY: prctl takes its arguments by value; setgroups with a count of zero reads no list; set*id take
        // theirs by value.
        unsafe {
            cvt(libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0)).map_err(&change)?;
            cvt(libc::setgroups(0, std::ptr::null())).map_err(&change)?;
            cvt(libc::setresgid(id, id, id)).map_err(&change)?;
            cvt(libc::setresuid(id, id, id)).map_err(&change)?;
            cvt(libc::prctl(libc::PR_SET_KEEPCAPS, 0, 0, 0, 0)).map_err(&change)?;
        }
    }
    let capabilities = failed("drop capabilities");
    caps::clear(None, CapSet::Ambient).map_err(other).map_err(&capabilities)?;
    caps::set(None, CapSet::Effective, &keep).map_err(other).map_err(&capabilities)?;
    caps::set(None, CapSet::Permitted, &keep).map_err(other).map_err(&capabilities)?;
    caps::clear(None, CapSet::Inheritable).map_err(other).map_err(&capabilities)?;
    // SAFETY: prctl with PR_SET_NO_NEW_PRIVS takes its arguments by value; setresuid likewise.
    unsafe {
        cvt(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)).map_err(failed("forbid new privileges"))?;
        if id.is_some_and(|id| id != 0) && libc::setresuid(0, 0, 0) == 0 {
            return Err(failed("change user for good")(io::Error::other("root could be regained")));
        }
    }
    // The change of user made the process dumpable again.
    forbid_core_dumps()
}

/// Runs `act`, and passes CAP_NET_ADMIN on to the programs that it starts, whoever their user is.
///
/// # Errors
/// When the process does not have the capability.
pub fn lending_net_admin<T>(act: impl FnOnce() -> T) -> Result<T, SandboxError> {
    let lend = failed("pass CAP_NET_ADMIN on");
    for set in [CapSet::Inheritable, CapSet::Ambient] {
        caps::raise(None, set, Capability::CAP_NET_ADMIN).map_err(other).map_err(&lend)?;
    }
    let result = act();
    for set in [CapSet::Ambient, CapSet::Inheritable] {
        caps::clear(None, set).map_err(other).map_err(&lend)?;
    }
    Ok(result)
}

/// Gives up the file system and TCP. Threads that start later inherit this. Returns whether the kernel enforces it
/// fully.
///
/// # Errors
/// When a kernel that has Landlock refuses.
pub fn forbid_files() -> Result<bool, SandboxError> {
    only_files(&[], &[]).map(|enforced| enforced == Enforced::Fully)
}

/// How much of a confinement a kernel enforces.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Enforced {
    /// All of it.
    Fully,
    /// Files, but not everything else: before Linux 6.12 signals reach other processes of the same user.
    Partly,
    /// Nothing.
    Not,
}

/// Gives up TCP, other processes, and the file system except below these folders and files.
///
/// Paths in `read` may be read and executed, paths in `write` may also be written; paths that do not exist are left
/// out. Threads and programs that start later inherit this.
///
/// # Errors
/// When a kernel that has Landlock refuses.
pub fn only_files(read: &[PathBuf], write: &[PathBuf]) -> Result<Enforced, SandboxError> {
    use landlock::{
        ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreated,
        RulesetCreatedAttr, RulesetStatus, Scope, path_beneath_rules,
    };
    let abi = ABI::V6;
    let restricted = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(abi)))
        .and_then(|rules| rules.scope(Scope::from_all(abi)))
        .and_then(Ruleset::create)
        .and_then(|rules| rules.add_rules(path_beneath_rules(read, AccessFs::from_read(abi))))
        .and_then(|rules| rules.add_rules(path_beneath_rules(write, AccessFs::from_all(abi))))
        .and_then(RulesetCreated::restrict_self)
        .map_err(other)
        .map_err(failed("give up the file system"))?;
    Ok(match restricted.ruleset {
        RulesetStatus::FullyEnforced => Enforced::Fully,
        RulesetStatus::PartiallyEnforced => Enforced::Partly,
        RulesetStatus::NotEnforced => Enforced::Not,
    })
}

/// Restricts the process to the system calls of a process that answers messages over descriptors that it has already.
/// Any other call ends the process. Must be called while there is one thread.
///
/// # Errors
/// When the kernel has no seccomp.
pub fn only_messages() -> Result<(), SandboxError> {
    let allowed = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_close,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_ppoll,
        libc::SYS_clock_gettime,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_exit_group,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigprocmask,
        libc::SYS_sigaltstack,
        libc::SYS_restart_syscall,
        libc::SYS_futex,
    ];
    let step = failed("forbid system calls");
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = allowed.into_iter().map(|call| (call, vec![])).collect();
    // The standard library checks descriptors before it closes them, in builds with assertions.
    rules.insert(libc::SYS_fcntl, vec![when(&[(1, libc::F_GETFD)]).map_err(&step)?]);
    filter_system_calls(rules, SeccompAction::KillProcess, SeccompAction::Allow).map_err(step)
}

/// Restricts the process to the system calls that a running relay makes. Any other call ends the process, except
/// opening a file, which is refused. Must be called after all threads have started.
///
/// # Errors
/// When the kernel has no seccomp.
pub fn forbid_system_calls() -> Result<(), SandboxError> {
    let step = failed("forbid system calls");
    let allowed = [
        libc::SYS_read,
        libc::SYS_write,
        libc::SYS_readv,
        libc::SYS_writev,
        libc::SYS_close,
        libc::SYS_recvmsg,
        libc::SYS_sendmsg,
        libc::SYS_recvfrom,
        libc::SYS_sendto,
        libc::SYS_ppoll,
        #[cfg(target_arch = "x86_64")]
        libc::SYS_poll,
        libc::SYS_futex,
        libc::SYS_clock_gettime,
        libc::SYS_clock_nanosleep,
        libc::SYS_mmap,
        libc::SYS_munmap,
        libc::SYS_mremap,
        libc::SYS_madvise,
        libc::SYS_brk,
        libc::SYS_mprotect,
        libc::SYS_exit,
        libc::SYS_exit_group,
        libc::SYS_rt_sigreturn,
        libc::SYS_rt_sigprocmask,
        libc::SYS_rt_sigaction,
        libc::SYS_sigaltstack,
        libc::SYS_getrandom,
        libc::SYS_restart_syscall,
        libc::SYS_tgkill,
        libc::SYS_gettid,
        libc::SYS_getpid,
        libc::SYS_sched_yield,
        libc::SYS_sched_getaffinity,
        libc::SYS_rseq,
        libc::SYS_set_robust_list,
        libc::SYS_membarrier,
        // The other filter refuses it; of two filters, the stricter answer counts.
        libc::SYS_openat,
    ];
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = allowed.into_iter().map(|call| (call, vec![])).collect();
    let mut only = |call, cases: &[&[(u8, libc::c_int)]]| {
        let cases: io::Result<_> = cases.iter().map(|case| when(case)).collect();
        rules.insert(call, cases.map_err(&step)?);
        Ok(())
    };
    only(libc::SYS_prctl, &[&[(0, libc::PR_SET_NAME)]])?;
    only(libc::SYS_fcntl, &[&[(1, libc::F_GETFD)], &[(1, libc::F_GETFL)]])?;
    // A filter on one of the process's sockets only takes away what the process receives.
    only(libc::SYS_setsockopt, &[&[(1, libc::SOL_SOCKET), (2, libc::SO_ATTACH_FILTER)]])?;
    // glibc's allocator opens /proc/sys/vm/overcommit_memory when a thread's heap shrinks, and works without an answer.
    let files = BTreeMap::from([(libc::SYS_openat, vec![])]);
    let refuse = SeccompAction::Errno(libc::EACCES.unsigned_abs());
    filter_system_calls(files, SeccompAction::Allow, refuse)
        .and_then(|()| filter_system_calls(rules, SeccompAction::KillProcess, SeccompAction::Allow))
        .map_err(step)
}

/// Returns the rule for calls whose arguments, by number, have these values.
fn when(arguments: &[(u8, libc::c_int)]) -> io::Result<SeccompRule> {
    let equal = |&(argument, value): &(u8, libc::c_int)| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value.unsigned_abs().into())
    };
    let conditions = arguments.iter().map(equal).collect::<Result<_, _>>();
    conditions.and_then(SeccompRule::new).map_err(other)
}

/// Applies a filter to all threads: `listed` for calls in `rules`, `otherwise` for the others.
fn filter_system_calls(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    listed: SeccompAction,
) -> io::Result<()> {
    let arch = std::env::consts::ARCH.try_into().map_err(other)?;
    let filter = SeccompFilter::new(rules, otherwise, listed, arch).map_err(other)?;
    let program: BpfProgram = filter.try_into().map_err(|error: seccompiler::BackendError| other(error))?;
    seccompiler::apply_filter_all_threads(&program).map_err(other)
}
