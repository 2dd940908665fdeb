//! Relay images: deterministic packing of inputs named by hash, and prediction of the measurements that firmware and
//! chips will report.
//!
//! Owns the formats (packages, initrd, unified kernel image) and the measurement calculators. Pure: bytes in, bytes
//! out; the caller reads files and downloads. Never runs anything that it packs.
//!
//! ```text
//! inputs.lock ─▶ packages (deb) ─▶ kernel, modules, nft ─┐
//! init, relay ─▶ initrd (newc, zstd) ─▶ unified kernel image (pe)
//! unified kernel image ─▶ measurements (pcr, snp, tdx) ─▶ manifest
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

/// A fault of an input.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ImageError {
    /// The lock file is malformed or inconsistent.
    #[error("the lock file: {0}")]
    Lock(String),
    /// A file has another hash than the lock file requires.
    #[error("{name} has SHA-256 {found}, but the lock file requires {wanted}; fetch the right file")]
    OtherInput {
        /// Name of the input.
        name: String,
        /// Its actual hash.
        found: String,
        /// The hash in the lock file.
        wanted: String,
    },
    /// A package is malformed or lacks a file.
    #[error("package {package}: {why}")]
    Package {
        /// Name of the package.
        package: String,
        /// The fault.
        why: String,
    },
    /// A kernel image or boot stub is malformed.
    #[error("the boot stub or kernel: {0}")]
    Executable(&'static str),
    /// Firmware is malformed or forbidden.
    #[error("the firmware: {0}")]
    Firmware(&'static str),
    /// Compression failed.
    #[error("cannot pack: {0}")]
    Packing(String),
}

/// Returns the SHA-256 of `bytes`.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(digest(&SHA256, bytes).as_ref());
    out
}

/// Returns the SHA-384 of `bytes`.
pub(crate) fn sha384(bytes: &[u8]) -> [u8; 48] {
    let mut out = [0; 48];
    out.copy_from_slice(digest(&SHA384, bytes).as_ref());
    out
}

/// Returns `bytes` as lower-case hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a little-endian number of N bytes at an offset.
pub(crate) fn le<const N: usize>(bytes: &[u8], at: usize) -> Option<u64> {
    let found: [u8; N] = *bytes.get(at..)?.first_chunk()?;
    Some(found.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
}

/// Reads a little-endian number of N bytes at an offset, as an index.
pub(crate) fn index<const N: usize>(bytes: &[u8], at: usize) -> Option<usize> {
    usize::try_from(le::<N>(bytes, at)?).ok()
}
