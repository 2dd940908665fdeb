//! The system calls that compilers, linkers, interpreters and build tools need.
//!
//! Owns the list of allowed calls. All others are answered as if the kernel did not have them, so that programs fall
//! back to older calls. A number of the x32 interface, which lists of numbers do not cover, ends the process.

use std::collections::BTreeMap;
use std::io;

use libc::c_long;
use seccompiler::{
    SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, sock_filter,
};

use super::other;

/// fchmodat2, on all architectures.
const SYS_FCHMODAT2: c_long = 452;
/// First number of the x32 interface. Source: linux, arch/x86/include/uapi/asm/unistd.h.
#[cfg(target_arch = "x86_64")]
const X32: u32 = 0x4000_0000;
/// All flags of clone that create a namespace.
const NAMESPACES: u64 = 0x7e02_0000;
/// Type of a socket that carries packets between two connected ends. Source: linux, include/linux/net.h, whose mask
/// of types is 0xf.
const SEQPACKET: u64 = 5;
/// Set-user-ID and set-group-ID.
const SET_ID: u64 = 0o6000;

/// Calls that are allowed with any arguments.
const ALLOWED: &[c_long] = &[
    // Files.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_pread64,
    libc::SYS_pwrite64,
    libc::SYS_readv,
    libc::SYS_writev,
    libc::SYS_preadv,
    libc::SYS_pwritev,
    libc::SYS_preadv2,
    libc::SYS_pwritev2,
    libc::SYS_lseek,
    libc::SYS_close,
    libc::SYS_close_range,
    libc::SYS_dup,
    libc::SYS_dup3,
    libc::SYS_fcntl,
    libc::SYS_flock,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_ftruncate,
    // A separate filter answers this call.
    libc::SYS_fallocate,
    libc::SYS_fadvise64,
    libc::SYS_readahead,
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_pipe2,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_statfs,
    libc::SYS_fstatfs,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_chdir,
    libc::SYS_fchdir,
    libc::SYS_mkdirat,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_linkat,
    libc::SYS_symlinkat,
    libc::SYS_readlinkat,
    libc::SYS_fchown,
    libc::SYS_fchownat,
    libc::SYS_utimensat,
    libc::SYS_umask,
    libc::SYS_getxattr,
    libc::SYS_lgetxattr,
    libc::SYS_fgetxattr,
    libc::SYS_listxattr,
    libc::SYS_llistxattr,
    libc::SYS_flistxattr,
    // Memory.
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_mprotect,
    libc::SYS_madvise,
    libc::SYS_msync,
    libc::SYS_mincore,
    libc::SYS_brk,
    libc::SYS_membarrier,
    // Processes and threads, which the PID namespace bounds.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_exit,
    libc::SYS_exit_group,
    libc::SYS_wait4,
    libc::SYS_waitid,
    libc::SYS_kill,
    libc::SYS_tkill,
    libc::SYS_tgkill,
    libc::SYS_futex,
    libc::SYS_set_robust_list,
    libc::SYS_get_robust_list,
    libc::SYS_set_tid_address,
    libc::SYS_rseq,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getppid,
    libc::SYS_getpgid,
    libc::SYS_setpgid,
    libc::SYS_getsid,
    libc::SYS_setsid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getgid,
    libc::SYS_getegid,
    libc::SYS_getresuid,
    libc::SYS_getresgid,
    libc::SYS_getgroups,
    // Without capabilities these change nothing; the C library makes sure of it when it starts a program.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_capget,
    libc::SYS_getpriority,
    libc::SYS_setpriority,
    libc::SYS_prlimit64,
    libc::SYS_getrusage,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_getparam,
    libc::SYS_sched_getscheduler,
    libc::SYS_sched_get_priority_max,
    libc::SYS_sched_get_priority_min,
    libc::SYS_getcpu,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigpending,
    libc::SYS_rt_sigsuspend,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Time, waiting, and facts about the machine.
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    libc::SYS_times,
    libc::SYS_setitimer,
    libc::SYS_getitimer,
    libc::SYS_timer_create,
    libc::SYS_timer_settime,
    libc::SYS_timer_gettime,
    libc::SYS_timer_getoverrun,
    libc::SYS_timer_delete,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
    libc::SYS_signalfd4,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    libc::SYS_getrandom,
];

/// The same for calls that only this architecture has.
#[cfg(target_arch = "x86_64")]
const ALLOWED_HERE: &[c_long] = &[
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_access,
    libc::SYS_poll,
    libc::SYS_select,
    libc::SYS_dup2,
    libc::SYS_pipe,
    libc::SYS_getdents,
    libc::SYS_rename,
    libc::SYS_renameat,
    libc::SYS_mkdir,
    libc::SYS_rmdir,
    libc::SYS_link,
    libc::SYS_unlink,
    libc::SYS_symlink,
    libc::SYS_readlink,
    libc::SYS_chown,
    libc::SYS_lchown,
    libc::SYS_utime,
    libc::SYS_utimes,
    libc::SYS_futimesat,
    libc::SYS_fork,
    libc::SYS_vfork,
    libc::SYS_getpgrp,
    libc::SYS_getrlimit,
    libc::SYS_setrlimit,
    libc::SYS_arch_prctl,
    libc::SYS_time,
    libc::SYS_alarm,
    libc::SYS_pause,
    libc::SYS_epoll_create,
    libc::SYS_epoll_wait,
    libc::SYS_eventfd,
];
#[cfg(not(target_arch = "x86_64"))]
const ALLOWED_HERE: &[c_long] = &[libc::SYS_renameat];

/// Requests of ioctl that inspect a descriptor or change only how it is read.
const IOCTLS: [u64; 6] = [libc::TCGETS, libc::TIOCGWINSZ, libc::FIOCLEX, libc::FIONCLEX, libc::FIONBIO, libc::FIONREAD];

/// Requests of prctl that affect only the caller.
const PRCTLS: [libc::c_int; 7] = [
    libc::PR_SET_NAME,
    libc::PR_GET_NAME,
    libc::PR_SET_PDEATHSIG,
    libc::PR_SET_NO_NEW_PRIVS,
    libc::PR_GET_DUMPABLE,
    libc::PR_CAPBSET_READ,
    libc::PR_SET_VMA,
];

/// Builds a rule: for each argument, a mask and the value that the masked bits must have.
fn rule(conditions: &[(u8, u64, u64)]) -> Result<SeccompRule, seccompiler::BackendError> {
    let condition = |&(argument, mask, value): &(u8, u64, u64)| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(mask), value)
    };
    SeccompRule::new(conditions.iter().map(condition).collect::<Result<_, _>>()?)
}

/// Returns the rules of calls that are allowed only with some arguments.
fn with_arguments() -> Result<Vec<(c_long, Vec<SeccompRule>)>, seccompiler::BackendError> {
    const ALL: u64 = 0xffff_ffff;
    let any_of = |argument: u8, values: &[u64]| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        values.iter().map(|value| rule(&[(argument, ALL, *value)])).collect()
    };
    let prctls: Vec<u64> = PRCTLS.iter().map(|request| request.unsigned_abs().into()).collect();
    let format = u64::from(libc::S_IFMT);
    // A file can be created with these bits as well as be given them later.
    let makes = u64::from((libc::O_CREAT | libc::O_TMPFILE & !libc::O_DIRECTORY).unsigned_abs());
    let opening = |flags: u8| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        Ok(vec![rule(&[(flags, makes, 0)])?, rule(&[(flags + 1, SET_ID, 0)])?])
    };
    // A regular file or a named pipe. The kernel also takes a mode without a format for a regular file.
    let node = |mode: u8| -> Result<Vec<SeccompRule>, seccompiler::BackendError> {
        [0, u64::from(libc::S_IFREG), u64::from(libc::S_IFIFO)]
            .into_iter()
            .map(|kind| rule(&[(mode, format | SET_ID, kind)]))
            .collect()
    };
    let no_address = SeccompCondition::new(4, SeccompCmpArgLen::Qword, SeccompCmpOp::Eq, 0)?;
    let without_name = SeccompRule::new(vec![no_address])?;
    let mode = |argument: u8| rule(&[(argument, SET_ID, 0)]).map(|rule| vec![rule]);
    Ok(vec![
        // clone3 takes its flags by reference. Without it, programs use clone.
        (libc::SYS_clone, vec![rule(&[(0, NAMESPACES, 0)])?]),
        // Two connected ends without names. Rust's standard library creates such a pair when it starts a program.
        (libc::SYS_socketpair, vec![rule(&[(0, ALL, u64::from(libc::AF_UNIX.unsigned_abs())), (1, 0xf, SEQPACKET)])?]),
        (libc::SYS_recvfrom, vec![]),
        (libc::SYS_sendto, vec![without_name]),
        (libc::SYS_ioctl, any_of(1, &IOCTLS)?),
        (libc::SYS_prctl, any_of(0, &prctls)?),
        (libc::SYS_openat, opening(2)?),
        (libc::SYS_mknodat, node(2)?),
        (libc::SYS_fchmod, mode(1)?),
        (libc::SYS_fchmodat, mode(2)?),
        (SYS_FCHMODAT2, mode(2)?),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, opening(1)?),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_creat, mode(1)?),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_mknod, node(1)?),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_chmod, mode(1)?),
    ])
}

/// Restricts the process, and what it starts, to these calls.
///
/// # Errors
/// When the kernel has no seccomp, or new privileges are not forbidden yet.
pub(super) fn allow_only() -> io::Result<()> {
    let plain = ALLOWED.iter().chain(ALLOWED_HERE).map(|call| (*call, vec![]));
    let rules: BTreeMap<i64, Vec<SeccompRule>> = plain.chain(with_arguments().map_err(other)?).collect();
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    // Space that is reserved without being written would fill a disk between two checks. With this answer the C
    // library writes instead.
    let unsupported = SeccompAction::Errno(libc::EOPNOTSUPP.unsigned_abs());
    let reserve = BTreeMap::from([(libc::SYS_fallocate, vec![])]);
    #[cfg(target_arch = "x86_64")]
    seccompiler::apply_filter(&foreign_numbers()).map_err(other)?;
    apply(reserve, SeccompAction::Allow, unsupported)?;
    // Applied last, because it allows no filter after it. Of two filters, the stricter answer counts.
    apply(rules, missing, SeccompAction::Allow)
}

/// Applies a filter: `listed` for calls that match these rules, `otherwise` for all others.
fn apply(rules: BTreeMap<i64, Vec<SeccompRule>>, otherwise: SeccompAction, listed: SeccompAction) -> io::Result<()> {
    let arch = std::env::consts::ARCH.try_into().map_err(other)?;
    let filter = SeccompFilter::new(rules, otherwise, listed, arch).map_err(other)?;
    let program: Vec<sock_filter> = filter.try_into().map_err(|error: seccompiler::BackendError| other(error))?;
    seccompiler::apply_filter(&program).map_err(other)
}

/// Builds a filter that ends a process that uses the x32 interface.
#[cfg(target_arch = "x86_64")]
fn foreign_numbers() -> [sock_filter; 4] {
    // Source: linux, include/uapi/linux/bpf_common.h; the number comes first in seccomp_data.
    let instruction = |code: u32, jt: u8, k: u32| sock_filter { code: u16::try_from(code).unwrap_or(0), jt, jf: 0, k };
    [
        instruction(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0),
        instruction(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 1, X32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_ALLOW),
        instruction(libc::BPF_RET | libc::BPF_K, 0, libc::SECCOMP_RET_KILL_PROCESS),
    ]
}
