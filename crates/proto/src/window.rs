//! Replay window: remembers which packet counters were seen.
//!
//! Owns the bitmap of one receiving direction. `check` comes before decryption, `mark` only after the tag has been
//! verified, so that a forged packet never moves the window.
//!
//! Source: RFC 6479 (ring of 64-bit words; words between the old and the new head are cleared).

use crate::drops::DropReason;

const BITS: u64 = 64;

/// Sliding window over packet counters. It has `64 × words` bits in memory, of which all but the partly used first
/// word are usable.
#[derive(Debug)]
pub struct Window {
    words: Box<[u64]>,
    /// The counter after the highest one that was marked.
    next: u64,
}

impl Window {
    /// Creates a window that remembers at least `reach` counters behind the highest one.
    pub fn new(reach: u64) -> Self {
        let words = (reach.div_ceil(BITS) + 1).next_power_of_two();
        Self { words: (0..words).map(|_| 0).collect(), next: 0 }
    }

    /// Returns the counter after the highest one that was marked.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Returns the full counter whose low 32 bits are `truncated` and that is closest to the expected counter.
    ///
    /// Source: RFC 9000 appendix A.3, for a fixed width of 32 bits.
    pub fn expand(&self, truncated: u32) -> u64 {
        const SPAN: u64 = 1 << 32;
        let candidate = (self.next & !(SPAN - 1)) | u64::from(truncated);
        if candidate + SPAN / 2 <= self.next {
            candidate + SPAN
        } else if candidate > self.next + SPAN / 2 && candidate >= SPAN {
            candidate - SPAN
        } else {
            candidate
        }
    }

    /// Checks that a packet with `counter` may still be accepted.
    ///
    /// # Errors
    /// [`DropReason::TooOld`] when it is behind the window, [`DropReason::Replayed`] when it was marked.
    pub fn check(&self, counter: u64) -> Result<(), DropReason> {
        if counter >= self.next {
            return Ok(());
        }
        let reach = (self.words.len() as u64 - 1) * BITS;
        if self.next - counter > reach {
            return Err(DropReason::TooOld);
        }
        let seen = self.words.get(self.slot(counter)).copied().unwrap_or(u64::MAX);
        if seen & bit(counter) != 0 { Err(DropReason::Replayed) } else { Ok(()) }
    }

    /// Records that `counter` was accepted. Call it only after [`Window::check`] and the tag have passed.
    pub fn mark(&mut self, counter: u64) {
        if counter >= self.next {
            self.clear_words_up_to(counter);
            self.next = counter + 1;
        }
        let slot = self.slot(counter);
        if let Some(word) = self.words.get_mut(slot) {
            *word |= bit(counter);
        }
    }

    /// Clears every word that the head newly enters on its way to `counter`.
    fn clear_words_up_to(&mut self, counter: u64) {
        let target = counter / BITS;
        // The word of the highest marked counter is in use; in a fresh window, all words are clear.
        let current = self.next.saturating_sub(1) / BITS;
        let fresh = (target - current).min(self.words.len() as u64);
        for step in 0..fresh {
            let slot = self.slot((target - step) * BITS);
            if let Some(word) = self.words.get_mut(slot) {
                *word = 0;
            }
        }
    }

    fn slot(&self, counter: u64) -> usize {
        let mask = self.words.len() as u64 - 1;
        usize::try_from((counter / BITS) & mask).unwrap_or(usize::MAX)
    }
}

const fn bit(counter: u64) -> u64 {
    1 << (counter % BITS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_counter_is_accepted_exactly_once_across_word_boundaries() {
        let mut window = Window::new(8192);
        for counter in 0..100_000 {
            window.check(counter).unwrap();
            window.mark(counter);
            assert_eq!(window.check(counter), Err(DropReason::Replayed), "{counter}");
            for back in [1, 63, 64, 65, 8191] {
                if let Some(old) = counter.checked_sub(back) {
                    assert_eq!(window.check(old), Err(DropReason::Replayed), "{counter} - {back}");
                }
            }
        }
    }

    #[test]
    fn reordering_within_the_window_loses_nothing() {
        let mut window = Window::new(8192);
        window.mark(8191);
        for counter in (0..8191).rev() {
            window.check(counter).unwrap();
            window.mark(counter);
        }
        assert_eq!(window.next(), 8192);
    }

    #[test]
    fn truncated_counter_expands_to_the_nearest() {
        let mut window = Window::new(64);
        assert_eq!(window.expand(5), 5);
        window.mark((1 << 32) - 2);
        assert_eq!(window.expand(u32::MAX), (1 << 32) - 1);
        assert_eq!(window.expand(3), (1 << 32) + 3);
        window.mark((1 << 32) + 10);
        assert_eq!(window.expand(u32::MAX - 1), (1 << 32) - 2);
    }

    proptest! {
        #[test]
        fn window_matches_a_set_of_counters(jumps in prop::collection::vec((0u64..20_000, 0u64..20_000), 1..400)) {
            let mut window = Window::new(8192);
            let mut seen = BTreeSet::new();
            let mut head = 0u64;
            for (forward, back) in jumps {
                head += forward;
                let counter = head.saturating_sub(back);
                let verdict = window.check(counter);
                if seen.contains(&counter) {
                    prop_assert!(verdict.is_err());
                } else if counter + 8192 >= window.next() {
                    prop_assert_eq!(verdict, Ok(()));
                }
                if verdict.is_ok() {
                    window.mark(counter);
                    seen.insert(counter);
                }
            }
        }
    }
}
