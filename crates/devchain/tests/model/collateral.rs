//! The vendors' collateral, and the rounds of votes on it. The contract: `Collateral`.
//!
//! Owns the entry in force and its renewal. It never checks collateral itself.

use std::collections::BTreeMap;

use super::rounds::{Answer, Commitment, MAX_OPEN, Outcome, Round, Terms};
use super::set::Set;
use super::{Party, Revert};

const HOUR: u64 = 3_600;
/// Seconds between the beginnings of rounds.
pub(crate) const PERIOD: u64 = 6 * HOUR;
/// Seconds for which collateral is in force before more than half of the weight can renew it.
pub(crate) const RENEWABLE_AFTER: u64 = 14 * 24 * HOUR;
/// Seconds after its reveals for which a round can renew collateral.
pub(crate) const RENEWS_FOR: u64 = 24 * HOUR;

/// An entry that validators vote for: a bundle by its number, and the floors.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Entry {
    /// The bundle.
    pub(crate) bundle: u16,
    /// Floor of Intel's evaluation number.
    pub(crate) intel_floor: u16,
    /// Floor of AMD's TCB.
    pub(crate) amd_floor: u16,
}

impl Entry {
    /// Returns the value that stands for the entry.
    pub(crate) fn value(self) -> Answer {
        Answer::Value((u64::from(self.bundle) << 32) | (u64::from(self.intel_floor) << 16) | u64::from(self.amd_floor))
    }
}

/// The entry in force.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Current {
    /// The entry.
    pub(crate) entry: Entry,
    /// The round that gave it.
    pub(crate) round: u64,
    /// Time from which it is in force.
    pub(crate) since: u64,
}

/// Validators and their rounds on collateral.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Collateral {
    /// The validators.
    pub(crate) set: Set,
    /// Rounds by number, from 1.
    pub(crate) rounds: BTreeMap<u64, Round>,
    /// Number of the round of each period.
    pub(crate) periods: BTreeMap<u64, u64>,
    /// The entry in force, if there is one.
    pub(crate) current: Option<Current>,
    /// Number of families that must name a value.
    pub(crate) families: usize,
}

impl Collateral {
    /// Creates the model without an entry in force.
    pub(crate) const fn new(set: Set, families: usize) -> Self {
        Self { set, rounds: BTreeMap::new(), periods: BTreeMap::new(), current: None, families }
    }

    /// Opens this period's round.
    ///
    /// # Errors
    /// A [`Revert`], as with all the following calls.
    pub(crate) fn open(&mut self, now: u64) -> Result<u64, Revert> {
        if self.periods.contains_key(&(now / PERIOD)) {
            return Err(Revert::AlreadyOpen);
        }
        if self.rounds.values().filter(|round| round.outcome == Outcome::Open).count() == MAX_OPEN {
            return Err(Revert::TooManyRounds);
        }
        let snapshot = self.set.snapshot();
        if snapshot.total == 0 {
            return Err(Revert::NoValidators);
        }
        let terms = Terms {
            commit: 3 * HOUR,
            reveal: 2 * HOUR,
            extra: 0,
            challenge: 0,
            part: (2, 3),
            families: self.families,
            opening: false,
            costs: false,
        };
        let number = self.rounds.len() as u64 + 1;
        self.rounds.insert(number, Round::new(snapshot, terms, now));
        self.periods.insert(now / PERIOD, number);
        Ok(number)
    }

    /// Commits to an answer.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn commit(
        &mut self,
        caller: Party,
        round: u64,
        id: u64,
        what: Commitment,
        now: u64,
    ) -> Result<(), Revert> {
        let round = self.rounds.get_mut(&round).ok_or(Revert::WrongPhase)?;
        round.commit(&mut self.set, caller, id, what, now)
    }

    /// Reveals an answer.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn reveal(&mut self, caller: Party, opening: Commitment, now: u64) -> Result<(), Revert> {
        let round = self.rounds.get_mut(&opening.author.0).ok_or(Revert::WrongPhase)?;
        round.reveal(&self.set, caller, opening, now)
    }

    /// Finishes a round.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn finish(&mut self, round: u64, now: u64) -> Result<Outcome, Revert> {
        let round = self.rounds.get_mut(&round).ok_or(Revert::WrongPhase)?;
        if round.outcome != Outcome::Open || now < round.end() {
            return Err(Revert::WrongPhase);
        }
        let counted = round.count();
        round.close(&mut self.set, counted, true, (400, u128::MAX), now);
        Ok(round.outcome)
    }

    /// Settles what validators earned or lost in a round.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn settle(&mut self, round: u64, ids: &[u64]) -> Result<(), Revert> {
        let round = self.rounds.get_mut(&round).ok_or(Revert::WrongPhase)?;
        round.settle(&mut self.set, ids)
    }

    /// Puts an entry in force: the one that a round approved, or a renewal that more than half of the weight named.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn post(&mut self, number: u64, entry: Entry, now: u64) -> Result<(), Revert> {
        let round = self.rounds.get(&number).ok_or(Revert::NotApproved)?;
        let older = self.current.is_some_and(|current| number <= current.round);
        if round.right != Some(entry.value()) || older {
            return Err(Revert::NotApproved);
        }
        let floors = self.current.map_or((0, 0), |current| (current.entry.intel_floor, current.entry.amd_floor));
        let next = match round.outcome {
            Outcome::Approved => entry,
            Outcome::NoQuorum => {
                let in_time = now < round.reveal_end() + RENEWS_FOR;
                if !in_time || self.renewable_from().is_none_or(|from| now < from) {
                    return Err(Revert::NotApproved);
                }
                Entry { intel_floor: floors.0, amd_floor: floors.1, ..entry }
            }
            Outcome::Open | Outcome::Rejected => return Err(Revert::NotApproved),
        };
        if entry.intel_floor < floors.0 || entry.amd_floor < floors.1 {
            return Err(Revert::FloorFalls);
        }
        self.current = Some(Current { entry: next, round: number, since: now });
        Ok(())
    }

    /// Returns the time from which more than half of the weight can renew the entry in force; `None` while no entry is
    /// in force.
    pub(crate) fn renewable_from(&self) -> Option<u64> {
        self.current.map(|current| current.since + RENEWABLE_AFTER)
    }
}
