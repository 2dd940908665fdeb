//! The shells around the protocol: sockets, devices, threads, files.
//!
//! Owns the data path's loops, which are plain threads. A feature per role: `relay` and `client`; `chain` for what asks a chain's endpoints.
//! Roots of trust are values that `main` passes in.

#[cfg(feature = "chain")]
pub mod attestation;
#[cfg(feature = "chain")]
pub mod chain;
pub mod chain_file;
#[cfg(feature = "chain")]
pub mod circuit;
#[cfg(feature = "client")]
pub mod client;
pub mod clock;
pub mod config;
pub mod directory;
#[cfg(feature = "chain")]
pub mod inquirer;
pub mod merge;
pub mod random;
#[cfg(feature = "relay")]
pub mod relay;
pub mod split;
#[cfg(any(feature = "client", feature = "relay"))]
mod train;

use openrelay_proto::suite::{Suite, Suites};

/// The suites that this processor is good at: ChaCha20-Poly1305, and each of the others where it has all instructions
/// that the library needs (without them it falls back to code that is many times slower).
pub(crate) fn suites() -> Suites {
    #[cfg(target_arch = "x86_64")]
    let (gcm, aegis) = {
        use std::arch::is_x86_feature_detected as has;
        (has!("aes") && has!("pclmulqdq"), has!("aes") && has!("avx"))
    };
    #[cfg(target_arch = "aarch64")]
    let (gcm, aegis) = {
        let aes = std::arch::is_aarch64_feature_detected!("aes");
        (aes, aes)
    };
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let (gcm, aegis) = (false, false);
    let suites = if gcm { Suites::CHACHA.with(Suite::Aes256Gcm) } else { Suites::CHACHA };
    if aegis { suites.with(Suite::Aegis256X2) } else { suites }
}
