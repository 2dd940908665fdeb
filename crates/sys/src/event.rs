//! Waiting for sockets, devices and other threads.
//!
//! Owns `ppoll` and `eventfd`. A shard sleeps here and nowhere else.
#![allow(unsafe_code, reason = "system calls")]
#![allow(clippy::cast_possible_truncation, reason = "sizes and constants of C structures")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

use crate::cvt::{cvt, cvt_len};

/// Wakes a thread that sleeps in [`wait`].
#[derive(Debug)]
pub struct Waker(OwnedFd);

impl Waker {
    /// Creates a waker in its unused state.
    ///
    /// # Errors
    /// When the process has no file descriptors left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes no pointers; on success the descriptor is new and owned by nobody else.
        unsafe {
            let fd = cvt(libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK))?;
            Ok(Self(OwnedFd::from_raw_fd(fd)))
        }
    }

    /// Wakes the thread.
    pub fn wake(&self) {
        let one = 1u64.to_ne_bytes();
        // SAFETY: the buffer lives through the call and has the eight bytes that eventfd wants.
        // A full counter (EAGAIN) means that the thread was woken already.
        let _ = cvt_len(unsafe { libc::write(self.0.as_raw_fd(), one.as_ptr().cast(), one.len()) });
    }

    /// Resets the waker. Returns whether it had been used.
    pub fn clear(&self) -> bool {
        let mut count = [0u8; 8];
        // SAFETY: the buffer lives through the call and has the eight bytes that eventfd writes.
        cvt_len(unsafe { libc::read(self.0.as_raw_fd(), count.as_mut_ptr().cast(), count.len()) }).is_ok()
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Maximum number of descriptors that one thread waits for.
pub const MAX_WAIT: usize = 8;

/// Sleeps until one of `fds` (at most [`MAX_WAIT`]) is readable or `timeout` has passed. Returns which are readable.
///
/// # Errors
/// Never `EINTR`: after a signal, no descriptor counts as readable.
pub fn wait(fds: &[BorrowedFd<'_>], timeout: Duration) -> io::Result<[bool; MAX_WAIT]> {
    let mut polls = [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; MAX_WAIT];
    for (poll, fd) in polls.iter_mut().zip(fds) {
        poll.fd = fd.as_raw_fd();
    }
    let timeout = libc::timespec {
        tv_sec: libc::time_t::try_from(timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_nsec: timeout.subsec_nanos().into(),
    };
    let count = fds.len().min(MAX_WAIT) as libc::nfds_t;
    // SAFETY: `polls` has at least `count` elements and lives through the call, as does `timeout`; the signal mask
    // may be null.
    let result = cvt(unsafe { libc::ppoll(polls.as_mut_ptr(), count, &raw const timeout, std::ptr::null()) });
    match result {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok([false; MAX_WAIT]),
        Err(error) => Err(error),
        Ok(_) => Ok(polls.map(|poll| poll.revents != 0)),
    }
}
