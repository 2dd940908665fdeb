//! Signals as a descriptor that a thread can wait for.
//!
//! Owns the signal mask of the process: call [`Signals::block`] before the first thread starts.
#![allow(unsafe_code, reason = "system calls")]
#![allow(clippy::cast_possible_truncation, reason = "sizes and constants of C structures")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::cvt::{cvt, cvt_len};

/// A request to the process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Signal {
    /// SIGTERM or SIGINT: stop.
    Stop,
    /// SIGUSR1: print statistics.
    Report,
}

/// SIGTERM, SIGINT and SIGUSR1, delivered to a descriptor instead of handlers.
#[derive(Debug)]
pub struct Signals(OwnedFd);

impl Signals {
    /// Blocks the signals for this thread and all threads that it starts.
    ///
    /// # Errors
    /// When the process has no file descriptors left.
    pub fn block() -> io::Result<Self> {
        // SAFETY: sigset_t is plain data that sigemptyset initialises; all pointers live through their calls;
        // the descriptor that signalfd returns is new and owned by nobody else.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&raw mut set);
            for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGUSR1] {
                libc::sigaddset(&raw mut set, signal);
            }
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            let fd = cvt(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK))?;
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// Returns the next signal that has arrived.
    pub fn next(&self) -> Option<Signal> {
        // SAFETY: signalfd_siginfo is plain data for which all zeros are valid.
        let mut info: libc::signalfd_siginfo = unsafe { std::mem::zeroed() };
        let size = size_of_val(&info);
        // SAFETY: `info` lives through the call and has `size` bytes.
        let read = cvt_len(unsafe { libc::read(self.0.as_raw_fd(), (&raw mut info).cast(), size) }).ok()?;
        if read != size {
            return None;
        }
        let report = i64::from(info.ssi_signo) == i64::from(libc::SIGUSR1);
        Some(if report { Signal::Report } else { Signal::Stop })
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
