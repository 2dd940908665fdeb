//! What relays and clients share around the protocol: files, clock, randomness, and the trains of the packet path.
//!
//! Owns the formats of configuration files and the verified directory. Queries nobody, and starts no thread.

pub mod chain_file;
pub mod clock;
pub mod config;
pub mod directory;
pub mod driver;
pub mod merge;
pub mod random;
pub mod split;
pub mod train;

use openrelay_proto::suite::{Suite, Suites};

/// Returns the cipher suites that this processor runs fast. ChaCha20-Poly1305 is always among them. Each of the
/// others is added only if the processor has all instructions that the library needs. Without them the library falls
/// back to code that is many times slower.
pub fn suites() -> Suites {
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
