//! The memory of a shard's control streams.
//!
//! Owns the bound on what all sessions together hold: bytes of their own that a peer has not acknowledged, and parts of
//! unfinished messages. Bytes that many sessions share, such as evidence, do not count. When the bound is reached, the
//! session that has held more than [`SMALL`] for longest ends. One whose peer acknowledges holds that much for a round
//! trip only. Never touches a packet.

use std::collections::BTreeMap;

use super::EntryId;

/// Most bytes that the control streams of one shard hold beyond [`SMALL`] for each.
pub(super) const MOST: usize = 32 << 20;
/// Bytes that a session may hold whatever the others do. They are part of the 4 KiB of each session and do not count.
pub(super) const SMALL: usize = 512;

/// What a session holds of the budget.
#[derive(Debug, Default)]
pub(super) struct Charge {
    bytes: usize,
    /// Its number among those that hold more than [`SMALL`].
    number: Option<u64>,
}

/// The budget of one shard.
#[derive(Debug, Default)]
pub(super) struct Budget {
    held: usize,
    next: u64,
    /// Sessions with more than [`SMALL`], the longest first.
    large: BTreeMap<u64, EntryId>,
}

impl Budget {
    /// Returns how many bytes all sessions hold beyond [`SMALL`] for each.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// Records that session `id` holds `bytes`.
    pub(super) fn charge(&mut self, id: EntryId, charge: &mut Charge, bytes: usize) {
        self.held = self.held.saturating_sub(charge.bytes.saturating_sub(SMALL)) + bytes.saturating_sub(SMALL);
        charge.bytes = bytes;
        match charge.number {
            None if bytes > SMALL => {
                charge.number = Some(self.next);
                self.large.insert(self.next, id);
                self.next += 1;
            }
            Some(number) if bytes <= SMALL => {
                self.large.remove(&number);
                charge.number = None;
            }
            None | Some(_) => {}
        }
    }

    /// Returns the session that must end, if all together hold too much.
    pub(super) fn gives_way(&self) -> Option<EntryId> {
        if self.held <= MOST {
            return None;
        }
        self.large.first_key_value().map(|(_, id)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn session_that_holds_much_for_longest_gives_way() {
        let mut budget = Budget::default();
        let id = |slot| EntryId { slot, serial: slot };
        let mut charges: Vec<Charge> = (0..4).map(|_| Charge::default()).collect();
        budget.charge(id(0), &mut charges[0], SMALL);
        budget.charge(id(1), &mut charges[1], SMALL + 1);
        budget.charge(id(2), &mut charges[2], MOST + SMALL - 1);
        assert_eq!((budget.held(), budget.gives_way()), (MOST, None));
        // However many small ones there are, none of the large ones gives way for them.
        budget.charge(id(3), &mut charges[3], SMALL);
        assert_eq!(budget.gives_way(), None);
        budget.charge(id(3), &mut charges[3], SMALL + 1);
        assert_eq!(budget.gives_way(), Some(id(1)), "not the small one and not the largest");
        budget.charge(id(1), &mut charges[1], 0);
        assert_eq!(budget.gives_way(), None);
        budget.charge(id(1), &mut charges[1], SMALL + 1);
        assert_eq!(budget.gives_way(), Some(id(2)), "one that was acknowledged in between begins again");
    }
}
