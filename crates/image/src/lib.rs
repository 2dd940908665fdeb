//! Images of relays: packed from inputs that are named by hash, the same bytes on every machine, and what firmware and chips will report of them.
//!
//! Owns the formats: packages, the first file system, the unified kernel image; and the calculators. Pure: bytes in, bytes out; files and downloads are the caller's. Never runs
//! anything of what it packs.
//!
//! ```text
//! inputs.lock ─▶ packages (deb) ─▶ kernel, modules, nft ─┐
//!                              init, relay ─▶ initrd (newc, zstd) ─▶ unified kernel image (pe) ─▶ measurements (pcr, snp, tdx) ─▶ manifest
//! ```

pub mod compare;
pub mod crates;
pub mod deb;
pub mod firmware;
pub mod lock;
pub mod newc;
pub mod pack;
pub mod pcr;
pub mod pe;
pub mod snp;
pub mod tdx;

use aws_lc_rs::digest::{SHA256, SHA384, digest};

/// What is wrong with an input.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ImageError {
    /// The lock file.
    #[error("the lock file: {0}")]
    Lock(String),
    /// A file that is another one than the lock names.
    #[error("{name} has SHA-256 {found}, but the lock names {wanted}: it is another file")]
    OtherInput {
        /// Which.
        name: String,
        /// Its hash.
        found: String,
        /// What the lock says.
        wanted: String,
    },
    /// Something in a package.
    #[error("package {package}: {why}")]
    Package {
        /// Which.
        package: String,
        /// What is wrong.
        why: String,
    },
    /// A kernel image or stub.
    #[error("the boot stub or kernel: {0}")]
    Executable(&'static str),
    /// Firmware.
    #[error("the firmware: {0}")]
    Firmware(&'static str),
    /// A packer.
    #[error("cannot pack: {0}")]
    Packing(String),
}

/// SHA-256.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// SHA-384.
pub(crate) fn sha384(bytes: &[u8]) -> [u8; 48] {
    let mut out = [0; 48];
    out.copy_from_slice(digest(&SHA384, bytes).as_ref());
    out
}

/// Hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A number of N bytes, little-endian, at a place.
pub(crate) fn le<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let found: [u8; N] = *bytes.get(at..)?.first_chunk()?;
    Some(found.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// The same as an index.
pub(crate) fn index<const N: usize>(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(le::<N>(bytes, at)?).ok()
}
