//! The shells around the protocol: sockets, devices, threads, files.
//!
//! Owns the data path's loops, which are plain threads. A feature per role: `relay` and `client`.
//! Roots of trust are values that `main` passes in.

#[cfg(feature = "client")]
pub mod circuit;
#[cfg(feature = "client")]
pub mod client;
pub mod clock;
pub mod config;
pub mod directory;
pub mod merge;
pub mod random;
#[cfg(feature = "relay")]
pub mod relay;
pub mod split;
mod train;

use openrelay_proto::suite::Suites;

/// The suites that this processor is good at: AES only with AES instructions.
pub(crate) fn suites() -> Suites {
    #[cfg(target_arch = "x86_64")]
    let fast_aes = std::arch::is_x86_feature_detected!("aes") && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    let fast_aes = std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let fast_aes = false;
    if fast_aes { Suites::ALL } else { Suites::CHACHA }
}
