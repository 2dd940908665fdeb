//! A file system view that holds nothing but what a confined program is given.
//!
//! Owns the mounts of the view and the change of the root. Never changes a mount outside.
//!
//! Source: pivot_root(2), mount_setattr(2), proc(5).

use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::{SLACK, Spec};
use crate::cvt::cvt;

/// Where the file system outside is mounted while the view is built.
const OUTSIDE: &str = "/.outside";
/// A folder that every system has; the view is mounted over it before it becomes the root.
const BASE: &str = "/tmp";
/// Devices that every program may use.
const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];
/// Size of the folder for temporary files, in bytes.
const TEMPORARY: u64 = 64 << 20;
/// Process IDs that are given once and not reused. Source: linux, kernel/pid.c.
const RESERVED_NUMBERS: u64 = 300;

fn text(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn mount(source: &Path, at: &Path, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
    let (source, at, kind, data) = (text(source)?, text(at)?, text(Path::new(kind))?, text(Path::new(data))?);
    // SAFETY: all strings are NUL-terminated and live through the call.
    cvt(unsafe { libc::mount(source.as_ptr(), at.as_ptr(), kind.as_ptr(), flags, data.as_ptr().cast()) })?;
    Ok(())
}

fn unmount(at: &Path) -> io::Result<()> {
    let at = text(at)?;
    // SAFETY: the string is NUL-terminated and lives through the call.
    cvt(unsafe { libc::umount2(at.as_ptr(), libc::MNT_DETACH) })?;
    Ok(())
}

/// Sets attributes of a mount; with `recursive`, of all mounts below it too.
fn restrict(at: &Path, attributes: u64, recursive: bool) -> io::Result<()> {
    let at = text(at)?;
    let set = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path and the attributes live through the call, and the size is that of the attributes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            at.as_ptr(),
            flags,
            &raw const set,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// A part of the file system outside that the view shows.
struct Shown {
    /// Canonical path, without symbolic links.
    path: PathBuf,
    writable: bool,
}

/// Builds the view and makes it the root of this process, which is the first of its namespaces. Leaves out paths that
/// do not exist.
///
/// # Errors
/// When the kernel refuses a step.
pub(super) fn enter(spec: &Spec) -> io::Result<()> {
    let cwd = std::env::current_dir();
    let named = spec.read.iter().map(|path| (path, false)).chain(spec.write.iter().map(|path| (path, true)));
    let (mut shown, mut links) = (Vec::new(), Vec::new());
    for (path, writable) in named {
        let Ok(real) = path.canonicalize() else { continue };
        if path.is_absolute() && *path != real {
            links.push((path.clone(), real.clone()));
        }
        shown.push(Shown { path: real, writable });
    }
    // A path inside a shown folder comes after that folder.
    shown.sort_by(|one, two| (&one.path, one.writable).cmp(&(&two.path, two.writable)));
    shown.dedup_by(|later, earlier| later.writable == earlier.writable && later.path.starts_with(&earlier.path));

    mount(Path::new("none"), Path::new("/"), "", libc::MS_REC | libc::MS_SLAVE, "")?;
    let quiet = libc::MS_NOSUID | libc::MS_NODEV;
    mount(Path::new("tmpfs"), Path::new(BASE), "tmpfs", quiet, "size=8m,nr_inodes=16k,mode=755")?;
    std::env::set_current_dir(BASE)?;
    fs::create_dir(".outside")?;
    // SAFETY: both strings are NUL-terminated.
    let pivoted = unsafe { libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".outside".as_ptr()) };
    if pivoted != 0 {
        return Err(io::Error::last_os_error());
    }
    std::env::set_current_dir("/")?;

    proc(spec.limits.processes)?;
    fs::create_dir("/tmp")?;
    mount(Path::new("tmpfs"), Path::new("/tmp"), "tmpfs", quiet, &format!("size={TEMPORARY},nr_inodes=16k,mode=700"))?;
    for one in &shown {
        let attributes = if one.writable { 0 } else { libc::MOUNT_ATTR_RDONLY };
        bind(&one.path, attributes | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV)?;
    }
    for device in DEVICES {
        bind(&Path::new("/dev").join(device), libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC)?;
    }
    let standard = [("fd", "fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")];
    links.extend(standard.map(|(name, to)| (Path::new("/dev").join(name), Path::new("/proc/self").join(to))));
    // Python's process pool keeps semaphores there; only the confined program sees them.
    links.push(("/dev/shm".into(), "/tmp".into()));
    for (link, to) in links {
        // Below a shown folder, the link exists already.
        if fs::symlink_metadata(&link).is_err() {
            fs::create_dir_all(link.parent().unwrap_or(&link))?;
            symlink(to, &link)?;
        }
    }
    unmount(Path::new(OUTSIDE))?;
    fs::remove_dir(OUTSIDE)?;
    restrict(Path::new("/"), libc::MOUNT_ATTR_RDONLY, false)?;
    // The previous working directory, if the view shows it.
    if cwd.and_then(std::env::set_current_dir).is_err() {
        std::env::set_current_dir("/")?;
    }
    Ok(())
}

/// Shows a folder or file of the file system outside at its own path.
fn bind(path: &Path, attributes: u64) -> io::Result<()> {
    let inside = path.strip_prefix("/").map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let source = Path::new(OUTSIDE).join(inside);
    if source.is_dir() {
        fs::create_dir_all(path)?;
    } else if fs::symlink_metadata(path).is_err() {
        fs::create_dir_all(path.parent().unwrap_or(path))?;
        fs::write(path, "")?;
    }
    mount(&source, path, "", libc::MS_BIND | libc::MS_REC, "")?;
    restrict(path, attributes, true)
}

/// Shows the processes of this namespace, and nothing else that the kernel reports.
fn proc(processes: u64) -> io::Result<()> {
    let (at, kernel) = (Path::new("/proc"), Path::new("/proc/sys/kernel/pid_max"));
    let quiet = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    fs::create_dir(at)?;
    mount(Path::new("proc"), at, "proc", quiet, "")?;
    if own_numbers() {
        fs::write(kernel, (processes.saturating_mul(SLACK) + RESERVED_NUMBERS).to_string())?;
    }
    unmount(at)?;
    // Linux 5.8 and later can show processes alone.
    mount(Path::new("proc"), at, "proc", quiet | libc::MS_RDONLY, "subset=pid")
        .or_else(|_| mount(Path::new("proc"), at, "proc", quiet | libc::MS_RDONLY, ""))
}

/// Returns whether each PID namespace has its own highest process ID. Before Linux 6.14 the file applies to the whole
/// machine.
fn own_numbers() -> bool {
    let release = fs::read_to_string(Path::new(OUTSIDE).join("proc/sys/kernel/osrelease")).unwrap_or_default();
    let mut parts = release.split(|letter: char| !letter.is_ascii_digit()).map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (6, 14)
}
