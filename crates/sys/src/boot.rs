//! Operations of a machine's first process: mounting file systems, loading kernel modules, powering off.
//!
//! Owns these three system calls. Never decides what is mounted or loaded; no other process of the machine uses it.
//!
//! Source: mount(2), finit_module(2), reboot(2).
#![allow(unsafe_code, reason = "system calls")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::cvt::cvt;

/// Tells the kernel to unpack the module itself. Source: linux, include/uapi/linux/module.h.
const COMPRESSED: libc::c_int = 4;

/// Mounts a file system without a device on a folder. Programs in it gain no privileges, and only `devtmpfs` may hold
/// device files.
///
/// # Errors
/// Without CAP_SYS_ADMIN, or when the kernel does not have this file system.
pub fn mount(kind: &str, at: &Path) -> io::Result<()> {
    let text = |text: &[u8]| CString::new(text).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (kind_text, at) = (text(kind.as_bytes())?, text(at.as_os_str().as_encoded_bytes())?);
    let devices = if kind == "devtmpfs" { 0 } else { libc::MS_NODEV };
    let flags = libc::MS_NOSUID | devices;
    // SAFETY: both strings are NUL-terminated and live through the call; the data may be null.
    cvt(unsafe { libc::mount(kind_text.as_ptr(), at.as_ptr(), kind_text.as_ptr(), flags, std::ptr::null()) })?;
    Ok(())
}

/// Loads a kernel module from a file. `packed` says that xz has compressed it.
///
/// # Errors
/// The kernel's error: `ENODEV` when the module is for hardware that is not present.
pub fn load_module(file: &File, packed: bool) -> io::Result<()> {
    let flags = if packed { COMPRESSED } else { 0 };
    // SAFETY: the descriptor is open, and the parameters are an empty, NUL-terminated string.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Powers the machine off. Returns only when that is not allowed.
pub fn power_off() -> io::Error {
    // SAFETY: takes only a number.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    io::Error::last_os_error()
}
