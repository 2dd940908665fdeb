//! Link faults: delay, reordering, loss, duplication and corruption of datagrams.
//!
//! Owns the seeded generator that decides each fault. Never reads a clock or the system's randomness.

use std::time::Duration;

use openrelay_proto::random::Random;

/// A generator for simulations, SplitMix64. Must never produce keys that protect anything.
#[derive(Clone, Debug)]
pub struct Seeded(pub u64);

impl Seeded {
    /// Returns the next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn one_in_thousand(&mut self, share: u32) -> bool {
        self.number() % 1000 < u64::from(share)
    }
}

impl Random for Seeded {
    fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let number = self.number().to_le_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
    }
}

/// The faults of all links; by default there are none. Probabilities are in thousandths.
#[derive(Clone, Copy, Default, Debug)]
pub struct Faults {
    /// Delay of every datagram.
    pub delay: Duration,
    /// Maximum of a random additional delay, which reorders datagrams.
    pub jitter: Duration,
    /// Probability that a datagram is lost.
    pub loss: u32,
    /// Probability that a datagram arrives twice.
    pub duplication: u32,
    /// Probability that one bit of a datagram flips.
    pub corruption: u32,
    /// Drops every datagram.
    pub partition: bool,
    /// Largest datagram that passes, in bytes; larger ones are dropped silently. Zero means no limit.
    pub largest: usize,
}

impl Faults {
    /// Returns the copies of `datagram` that arrive, each with its delay.
    pub(crate) fn apply(&self, datagram: Vec<u8>, dice: &mut Seeded) -> Vec<(Duration, Vec<u8>)> {
        let too_large = self.largest > 0 && datagram.len() > self.largest;
        if self.partition || too_large || dice.one_in_thousand(self.loss) {
            return Vec::new();
        }
        let copies = if dice.one_in_thousand(self.duplication) { 2 } else { 1 };
        let mut out = Vec::new();
        for _ in 0..copies {
            let jitter = u64::try_from(self.jitter.as_micros()).unwrap();
            let more = Duration::from_micros(if jitter == 0 { 0 } else { dice.number() % jitter });
            let mut copy = datagram.clone();
            if dice.one_in_thousand(self.corruption) && !copy.is_empty() {
                let bit = usize::try_from(dice.number() % (copy.len() as u64 * 8)).unwrap();
                copy[bit / 8] ^= 1 << (bit % 8);
            }
            out.push((self.delay + more, copy));
        }
        out
    }
}
