//! Classic BPF programs on sockets.
//!
//! Owns the instructions that this crate uses, and how a program is attached. Never decides which packets pass.
//!
//! Source: linux/Documentation/networking/filter.rst.
#![allow(unsafe_code, reason = "system calls")]
#![allow(clippy::cast_possible_truncation, reason = "sizes and constants of C structures")]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::cvt::cvt;

/// Loads a word at an absolute offset.
pub const LOAD_WORD: u16 = 0x20;
/// Loads a half-word at an absolute offset.
pub const LOAD_HALF: u16 = 0x28;
/// Loads a byte at an absolute offset.
pub const LOAD_BYTE: u16 = 0x30;
/// Loads a half-word at an offset relative to the index register.
pub const LOAD_HALF_X: u16 = 0x48;
/// Loads the length of the packet.
pub const LOAD_LENGTH: u16 = 0x80;
/// Sets the index register to the length of the IPv4 header at an offset.
pub const HEADER_TO_X: u16 = 0xb1;
/// Jumps if the accumulator equals a constant.
pub const JUMP_EQUAL: u16 = 0x15;
/// Jumps if the accumulator has any of these bits.
pub const JUMP_BITS: u16 = 0x45;
/// Ends the program with the number of bytes to keep.
pub const RETURN: u16 = 0x06;
/// Offset at which [`LOAD_WORD`] loads a random number: `SKF_AD_OFF + SKF_AD_RANDOM`.
pub const RANDOM: u32 = 0xffff_f000 + 56;
/// The value that [`RETURN`] takes to keep all bytes of the packet.
pub const ALL: u32 = u32::MAX;

/// Builds an instruction without jumps.
pub fn op(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

/// Attaches this program to `socket`, in place of any other.
///
/// # Errors
/// When the kernel refuses the program.
pub fn attach(socket: BorrowedFd<'_>, program: &mut [libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_mut_ptr(),
    };
    let size = size_of::<libc::sock_fprog>() as libc::socklen_t;
    let name = libc::SO_ATTACH_FILTER;
    // SAFETY: `program` and the instructions that it points to live through the call, which copies them.
    cvt(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, (&raw const program).cast(), size) })
        .map(drop)
}
