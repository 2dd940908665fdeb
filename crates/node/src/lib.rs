//! Everything around the protocol that touches the system: sockets, devices, threads, files, and queries to a chain.
//!
//! Owns the loops of the data path, which are plain threads. Each role has a feature: `relay` and `client`; `chain`
//! adds queries to a chain's endpoints. Never chooses roots of trust: `main` passes them in as values.

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
pub mod evidence_client;
pub mod merge;
#[cfg(feature = "chain")]
pub mod policy;
pub mod random;
#[cfg(feature = "relay")]
pub mod relay;
pub mod split;
#[cfg(any(feature = "client", feature = "relay"))]
mod train;

use openrelay_proto::suite::{Suite, Suites};

/// Returns the cipher suites that this processor runs fast. ChaCha20-Poly1305 is always among them. Each of the
/// others is added only if the processor has all instructions that the library needs. Without them the library falls
/// back to code that is many times slower.
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
