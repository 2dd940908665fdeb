//! Receiver indices: they tell which session of which shard a datagram belongs to.
//!
//! An index holds shard (6 bits), slot (18 bits) and generation (8 bits). It passes through a keyed permutation of 32
//! bits, so that indices reveal neither the number of sessions nor their order. Owns allocation and the permutation.
//! Never looks at packets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::random::{Random, array};
use zeroize::Zeroize;

/// Most shards of one relay.
pub const MAX_SHARDS: u8 = 64;
/// Most slots of one shard.
pub const MAX_SLOTS: u32 = 1 << SLOT_BITS;
/// Most sessions of clients of one shard: the other half of the slots is for handshakes and moving sessions.
pub const MAX_SESSIONS: u32 = MAX_SLOTS / 2;
const SLOT_BITS: u32 = 18;
const GENERATION_BITS: u32 = 8;

/// The session slot that an index points to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    /// The shard, below [`MAX_SHARDS`].
    pub shard: u8,
    /// The slot in the shard's table, below [`MAX_SLOTS`].
    pub slot: u32,
    /// How often the slot has been given out, modulo 256.
    pub generation: u8,
}

/// The keyed permutation between places and indices, shared by all shards of one relay.
#[derive(Clone, Debug)]
pub struct IndexKey([u32; 4]);

impl Drop for IndexKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl IndexKey {
    /// Creates a fresh random permutation.
    pub fn new(random: &mut dyn Random) -> Self {
        Self([(); 4].map(|()| u32::from_le_bytes(array(random))))
    }

    /// Returns the index of `place`.
    pub fn index(&self, place: Place) -> u32 {
        let packed = (u32::from(place.shard) << (SLOT_BITS + GENERATION_BITS))
            | (place.slot << GENERATION_BITS)
            | u32::from(place.generation);
        let (mut left, mut right) = (packed >> 16, packed & 0xffff);
        for key in self.0 {
            (left, right) = (right, left ^ round(right, key));
        }
        (left << 16) | right
    }

    /// Returns the place that `index` points to. Every index points to a place; the table knows whether a session is
    /// there.
    pub fn place(&self, index: u32) -> Place {
        let (mut left, mut right) = (index >> 16, index & 0xffff);
        for key in self.0.iter().rev() {
            (left, right) = (right ^ round(left, *key), left);
        }
        let packed = (left << 16) | right;
        Place {
            shard: (packed >> (SLOT_BITS + GENERATION_BITS)).to_le_bytes()[0],
            slot: (packed >> GENERATION_BITS) & (MAX_SLOTS - 1),
            generation: packed.to_le_bytes()[0],
        }
    }
}

/// One Feistel round: a 16-bit mixing function. It hides counts from observers but is not a cipher: the index is also
/// encrypted on the wire.
const fn round(half: u32, key: u32) -> u32 {
    let mut x = half.wrapping_add(key).wrapping_mul(0x9e37_79b1);
    x ^= x >> 15;
    x = x.wrapping_mul(0x85eb_ca77 ^ key);
    (x ^ (x >> 13)) & 0xffff
}

/// The slots of one shard whose handshake is in progress: one bit each, which the handshaker sets and the shard reads.
/// An answer to a handshake that nobody makes then costs the handshaker nothing.
#[derive(Debug)]
pub(crate) struct InProgress(Box<[AtomicU64]>);

impl InProgress {
    fn new(slots: u32) -> Self {
        Self((0..slots.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn set(&self, slot: u32, in_progress: bool) {
        let Some(word) = self.0.get((slot / 64) as usize) else { return };
        if in_progress {
            word.fetch_or(1 << (slot % 64), Ordering::Relaxed);
        } else {
            word.fetch_and(!(1 << (slot % 64)), Ordering::Relaxed);
        }
    }

    /// Returns whether a handshake for `slot` is in progress.
    pub(crate) fn contains(&self, slot: u32) -> bool {
        self.0.get((slot / 64) as usize).is_some_and(|word| word.load(Ordering::Relaxed) >> (slot % 64) & 1 == 1)
    }
}

/// The slots of one shard.
///
/// There are twice as many as sessions of clients: a quarter is for half-open handshakes, and a quarter for sessions
/// between relays and for second indices of sessions that move.
#[derive(Debug)]
pub struct Slots {
    shard: u8,
    sessions: u32,
    used: u32,
    free: std::collections::VecDeque<u32>,
    generations: Vec<u8>,
    in_progress: Arc<InProgress>,
}

impl Slots {
    /// Creates the slots of shard `shard` for up to `sessions` sessions of clients, at most [`MAX_SESSIONS`].
    pub fn new(shard: u8, sessions: u32) -> Self {
        let sessions = sessions.clamp(1, MAX_SESSIONS);
        Self {
            shard,
            sessions,
            used: 0,
            free: std::collections::VecDeque::new(),
            generations: Vec::new(),
            in_progress: Arc::new(InProgress::new(2 * sessions)),
        }
    }

    /// Returns how many sessions of clients the shard may have.
    pub fn sessions(&self) -> u32 {
        self.sessions
    }

    /// Returns the slots whose handshake is in progress.
    pub(crate) fn in_progress(&self) -> Arc<InProgress> {
        self.in_progress.clone()
    }

    /// Takes a free place; `None` when all are taken. Slots are reused as late as possible.
    pub fn take(&mut self) -> Option<Place> {
        let fresh = u32::try_from(self.generations.len()).unwrap_or(u32::MAX);
        let slot = if fresh < 2 * self.sessions {
            self.generations.push(0);
            fresh
        } else {
            self.free.pop_front()?
        };
        self.used += 1;
        let generation = self.generations.get(slot as usize).copied().unwrap_or(0);
        Some(Place { shard: self.shard, slot, generation })
    }

    /// Takes a free place for a handshake.
    pub(crate) fn take_for_handshake(&mut self) -> Option<Place> {
        let place = self.take()?;
        self.in_progress.set(place.slot, true);
        Some(place)
    }

    /// Records that no packet of the handshake for `place` is expected any more.
    pub(crate) fn settle(&mut self, place: Place) {
        if self.generations.get(place.slot as usize) == Some(&place.generation) {
            self.in_progress.set(place.slot, false);
        }
    }

    /// Releases `place`. A place that was already released is ignored.
    pub fn release(&mut self, place: Place) {
        let Some(generation) = self.generations.get_mut(place.slot as usize) else { return };
        if *generation != place.generation {
            return;
        }
        *generation = generation.wrapping_add(1);
        self.in_progress.set(place.slot, false);
        self.free.push_back(place.slot);
        self.used -= 1;
    }

    /// Returns how many places are taken.
    pub fn used(&self) -> u32 {
        self.used
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn index_maps_back_to_its_place(shard in 0u8..64, slot in 0u32..MAX_SLOTS, generation: u8) {
            let key = IndexKey::new(&mut crate::random::Counting::default());
            let place = Place { shard, slot, generation };
            prop_assert_eq!(key.place(key.index(place)), place);
        }
    }

    #[test]
    fn handshake_is_in_progress_until_it_settle() {
        let mut slots = Slots::new(0, 4);
        let (first, second) = (slots.take_for_handshake().unwrap(), slots.take_for_handshake().unwrap());
        let in_progress = slots.in_progress();
        assert!(in_progress.contains(first.slot) && in_progress.contains(second.slot));
        assert!(!in_progress.contains(2) && !in_progress.contains(u32::MAX));
        slots.settle(Place { generation: 7, ..first });
        assert!(in_progress.contains(first.slot), "an earlier owner of the place changes nothing");
        slots.settle(first);
        slots.release(second);
        assert!(!in_progress.contains(first.slot) && !in_progress.contains(second.slot));
    }

    #[test]
    fn released_place_is_reused_with_a_new_generation() {
        let mut slots = Slots::new(0, 1);
        let first = slots.take().unwrap();
        let second = slots.take().unwrap();
        assert!(slots.take().is_none());
        slots.release(first);
        slots.release(first);
        assert_eq!(slots.used(), 1);
        let again = slots.take().unwrap();
        assert_eq!((again.slot, again.generation), (first.slot, 1));
        assert!(slots.take().is_none());
        assert_ne!(again, second);
    }
}
