//! Randomness as the protocol sees it: bytes that the caller hands in.
//!
//! Owns the only trait through which keys, indices and padding get entropy, so that a simulation with a seed repeats
//! itself byte for byte. Never touches the system's generator.

/// A source of random bytes. It must be cryptographically secure outside simulations.
pub trait Random {
    /// Fills `bytes` with fresh random bytes.
    fn fill(&mut self, bytes: &mut [u8]);
}

/// Returns `N` fresh random bytes.
pub fn array<const N: usize>(random: &mut dyn Random) -> [u8; N] {
    let mut bytes = [0; N];
    random.fill(&mut bytes);
    bytes
}

/// A generator that gives the same bytes in every test, and different ones with every call.
#[cfg(test)]
#[derive(Default)]
pub(crate) struct Counting(pub(crate) u64);

#[cfg(test)]
impl Random for Counting {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(32) {
            self.0 += 1;
            let digest = crate::keys::sha256(&[&self.0.to_be_bytes()]);
            chunk.copy_from_slice(&digest[..chunk.len()]);
        }
    }
}
