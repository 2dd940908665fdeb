//! Converts results of system calls into results of Rust.

use std::io;

/// Returns the value of a system call.
///
/// # Errors
/// The error that the call left in errno.
pub fn cvt(value: libc::c_int) -> io::Result<libc::c_int> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Returns the length that a system call returned.
///
/// # Errors
/// As for [`cvt`].
pub fn cvt_len(value: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| io::Error::last_os_error())
}
