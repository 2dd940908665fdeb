//! Half-open handshakes of one shard: how many there may be, and which of them gives way.
//!
//! Owns the bound and the order. A handshake of a sender that has proven its address always finds room: in place of its
//! own network's oldest, of a stranger's, or of the largest network's. Never touches a packet.

use std::collections::VecDeque;

use super::holders::{Holders, Holding, Owner};

/// The half-open handshakes of one shard, by index.
#[derive(Debug)]
pub(super) struct HalfOpen {
    most: usize,
    count: usize,
    /// Those of senders that have proven their addresses.
    proven: Holders<u32>,
    /// The others, in the order in which they began. Some have ended already.
    strangers: VecDeque<u32>,
}

/// Why there is no room for another handshake.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Full;

impl HalfOpen {
    pub(super) fn new(most: u32) -> Self {
        let most = most as usize;
        Self { most, count: 0, proven: Holders::new(most), strangers: VecDeque::new() }
    }

    /// Switches shares off: first come, first served.
    pub(super) fn ignore_shares(&mut self) {
        self.proven.ignore_shares();
    }

    /// Returns whether half of the handshakes are half-open, so that cookies are required.
    pub(super) fn is_half_full(&self) -> bool {
        2 * self.count >= self.most
    }

    /// Returns the handshake that must end before `owner` can begin one; `None` when nothing has to. `is_stranger` says
    /// whether an index still is a stranger's half-open handshake.
    pub(super) fn gives_way(
        &mut self,
        owner: Option<Owner>,
        is_stranger: impl Fn(u32) -> bool,
    ) -> Result<Option<u32>, Full> {
        if let Some(index) = owner.and_then(|owner| self.proven.gives_way(owner)) {
            return Ok(Some(index));
        }
        if self.count < self.most {
            return Ok(None);
        }
        // Whoever has proven nothing waits until there is room.
        owner.ok_or(Full)?;
        while let Some(index) = self.strangers.pop_front() {
            if is_stranger(index) {
                return Ok(Some(index));
            }
        }
        Err(Full)
    }

    /// Records a new half-open handshake.
    pub(super) fn begin(&mut self, owner: Option<Owner>, index: u32) -> Option<Holding> {
        self.count += 1;
        if owner.is_none() {
            self.strangers.push_back(index);
        }
        owner.map(|owner| self.proven.hold(owner, index))
    }

    /// Records that one is not half-open any more.
    pub(super) fn end(&mut self, holding: Option<Holding>) {
        self.count = self.count.saturating_sub(1);
        if let Some(holding) = holding {
            self.proven.release(holding);
        }
    }

    /// Forgets the oldest stranger if it is `index`, whose time is over.
    pub(super) fn expire(&mut self, index: u32) {
        if self.strangers.front() == Some(&index) {
            self.strangers.pop_front();
        }
    }
}
