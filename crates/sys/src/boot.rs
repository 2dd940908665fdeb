//! What the first process of a machine does and no other: file systems, kernel modules, the end.
//!
//! Source: mount(2), finit_module(2), reboot(2).
#![allow(unsafe_code, reason = "system calls")]

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::cvt::cvt;

/// The kernel unpacks the module itself. Source: linux, include/uapi/linux/module.h.
const COMPRESSED: libc::c_int = 4;

/// Mounts a file system without a device on a folder: no programs with privileges of their own, no device files but in `devtmpfs`.
///
/// # Errors
/// Without CAP_SYS_ADMIN, or where the kernel has no such file system.
pub fn mount(kind: &str, at: &Path) -> io::Result<()> {
    let text = |text: &[u8]| CString::new(text).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let (kind_text, at) = (text(kind.as_bytes())?, text(at.as_os_str().as_encoded_bytes())?);
    let devices = if kind == "devtmpfs" { 0 } else { libc::MS_NODEV };
    let flags = libc::MS_NOSUID | devices;
    // SAFETY: both texts end with a zero and live through the call; the data may be null.
    cvt(unsafe { libc::mount(kind_text.as_ptr(), at.as_ptr(), kind_text.as_ptr(), flags, std::ptr::null()) })?;
    Ok(())
}

/// Loads a kernel module from a file, which xz may have packed.
///
/// # Errors
/// What the kernel says: `ENODEV` where it is for hardware that is not there.
pub fn load_module(file: &File, packed: bool) -> io::Result<()> {
    let flags = if packed { COMPRESSED } else { 0 };
    // SAFETY: the descriptor is open, and the parameters are an empty text that ends with a zero.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), flags) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Ends the machine. Returns only where that is not allowed.
pub fn power_off() -> io::Error {
    // SAFETY: takes nothing but a number.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    io::Error::last_os_error()
}
