//! Converts results of system calls into results of Rust.

use std::io;

/// Returns the value of a system call, or the error that it left in errno.
pub(crate) fn cvt(value: libc::c_int) -> io::Result<libc::c_int> {
    if value < 0 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Does the same for calls that return a length.
pub(crate) fn cvt_len(value: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(value).map_err(|_| io::Error::last_os_error())
}
