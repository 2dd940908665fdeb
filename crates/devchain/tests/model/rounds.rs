//! Rounds of commitments and reveals. The contract: `Rounds`.
//!
//! Owns the phases of a round, the count of votes, and the penalties. It never moves money itself; [`super::set`]
//! does.

use std::collections::{BTreeMap, BTreeSet};

use super::set::{Set, Snapshot};
use super::{Party, Revert};

/// Cost of equivocation, in ten-thousandths of the bond.
const EQUIVOCATION: u128 = 10_000;
/// The reporter's share of that cost, in ten-thousandths.
const REPORTER: u128 = 500;
/// Cost of a wrong value in an approved round, in ten-thousandths of the bond.
const WRONG: u128 = 100;
/// Additional cost if a third of the weight gave the wrong value, in ten-thousandths of the bond.
const WRONG_TOGETHER: u128 = 200;
/// Cost of a missing reveal, or of a salt shown too early, in ten-thousandths of the bond.
const UNREVEALED: u128 = 50;
/// Cost of a round without an answer, in ten-thousandths of the bond. Each further consecutive one costs this much
/// more.
const MISSED: u128 = 5;
/// Number of consecutive rounds from which on the cost no longer rises.
const MOST_IN_A_ROW: u128 = 10;
/// Seconds for which the cost of a wrong value can be given back.
pub(crate) const HOLD: u64 = 30 * 86_400;
/// Maximum number of open rounds, separately for emergencies and for others.
pub(crate) const MAX_OPEN: usize = 8;

/// An answer. Values differ from each other, while all failures are the same answer.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum Answer {
    /// The build gave this value.
    Value(u64),
    /// The build gave no value.
    Failed,
    /// No answer.
    Abstain,
}

/// A commitment. It contains its author, so a copy is of no use to another validator.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Commitment {
    /// Round and validator for which it was made.
    pub(crate) author: (u64, u64),
    /// The committed answer.
    pub(crate) answer: Answer,
    /// The salt.
    pub(crate) salt: u64,
}

/// State of a vote.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Mark {
    /// Committed and hidden.
    Committed(Commitment),
    /// Revealed.
    Revealed(Answer),
    /// Voided; it does not count.
    Voided,
}

/// Outcome of a round.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Outcome {
    /// The round has not ended.
    Open,
    /// The value is approved.
    Approved,
    /// The value is rejected.
    Rejected,
    /// Neither approved nor rejected.
    NoQuorum,
}

/// Cost of an answer other than the right one.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Price {
    /// Nothing.
    None,
    /// As much as no answer.
    Idle,
    /// As much as a wrong value.
    Wrong,
}

/// Durations of a round's phases, in seconds, and the conditions of approval.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Terms {
    /// Time for commitments.
    pub(crate) commit: u64,
    /// Time for reveals.
    pub(crate) reveal: u64,
    /// Additional time for reveals if less than two thirds of the weight revealed.
    pub(crate) extra: u64,
    /// Time for proofs of equivocation.
    pub(crate) challenge: u64,
    /// Part of the whole weight that approves, as numerator and denominator.
    pub(crate) part: (u128, u128),
    /// Number of families that must name the value.
    pub(crate) families: usize,
    /// Whether a proposer must have opened the value.
    pub(crate) opening: bool,
    /// Whether missed rounds and wrong answers cost anything.
    pub(crate) costs: bool,
}

/// A round.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Round {
    /// Weights before the round.
    pub(crate) snapshot: Snapshot,
    /// Durations and conditions.
    pub(crate) terms: Terms,
    /// End of the commitments.
    pub(crate) commit_end: u64,
    /// Whether a validator revealed in the additional time.
    pub(crate) extended: bool,
    /// The value that the proposer opened.
    pub(crate) opened: Option<u64>,
    /// Votes by validator. They stay after they are settled.
    pub(crate) votes: BTreeMap<u64, Mark>,
    /// Sum of all revealed weight, including voided votes.
    pub(crate) revealed: u128,
    /// Validators whose equivocation was proven during the round. Their families do not count.
    pub(crate) equivocal: BTreeSet<u64>,
    /// Validators whose equivocation was proven at any time.
    pub(crate) caught: BTreeSet<u64>,
    /// Validators that are settled.
    pub(crate) settled: BTreeSet<u64>,
    /// Outcome.
    pub(crate) outcome: Outcome,
    /// The right answer, if there was one, also without quorum.
    pub(crate) right: Option<Answer>,
    /// Cost of the other answers.
    pub(crate) price: Price,
    /// Time at which the round was finished.
    pub(crate) finished_at: u64,
    /// Amount that the round earned.
    pub(crate) earned: u128,
    /// Costs of wrong values, by validator, that are not decided yet.
    pub(crate) held: BTreeMap<u64, u128>,
}

impl Round {
    pub(super) fn new(snapshot: Snapshot, terms: Terms, now: u64) -> Self {
        Self {
            snapshot,
            terms,
            commit_end: now + terms.commit,
            extended: false,
            opened: None,
            votes: BTreeMap::new(),
            revealed: 0,
            equivocal: BTreeSet::new(),
            caught: BTreeSet::new(),
            settled: BTreeSet::new(),
            outcome: Outcome::Open,
            right: None,
            price: Price::None,
            finished_at: 0,
            earned: 0,
            held: BTreeMap::new(),
        }
    }

    /// Returns the end of the reveals.
    pub(crate) fn reveal_end(&self) -> u64 {
        let base = self.commit_end + self.terms.reveal;
        let short = 3 * self.revealed < 2 * self.snapshot.total;
        if self.extended || short { base + self.terms.extra } else { base }
    }

    /// Returns the time from which the round can be finished.
    pub(crate) fn end(&self) -> u64 {
        self.reveal_end() + self.terms.challenge
    }

    /// Returns the weight of an answer, recounted from the validators that revealed it.
    pub(crate) fn weight(&self, answer: Answer) -> u128 {
        self.voters(answer).map(|id| self.snapshot.weight(id)).sum()
    }

    /// Returns the number of families in which a validator gave this answer and none was caught equivocating.
    pub(crate) fn families(&self, answer: Answer) -> usize {
        let family = |id: &u64| self.snapshot.weights.get(id).map(|(_, family)| *family);
        let bad: BTreeSet<Party> = self.equivocal.iter().filter_map(family).collect();
        let good: BTreeSet<Party> = self.voters(answer).filter_map(|id| family(&id)).collect();
        good.difference(&bad).count()
    }

    fn voters(&self, answer: Answer) -> impl Iterator<Item = u64> {
        self.votes.iter().filter(move |(_, mark)| **mark == Mark::Revealed(answer)).map(|(id, _)| *id)
    }

    fn answers(&self) -> BTreeSet<Answer> {
        let revealed = |mark: &Mark| if let Mark::Revealed(answer) = mark { Some(*answer) } else { None };
        self.votes.values().filter_map(revealed).collect()
    }

    pub(super) fn commit(
        &mut self,
        set: &mut Set,
        caller: Party,
        id: u64,
        commitment: Commitment,
        now: u64,
    ) -> Result<(), Revert> {
        if now >= self.commit_end {
            return Err(Revert::WrongPhase);
        }
        match self.votes.get(&id) {
            None => set.lock(id, caller)?,
            Some(mark) => {
                set.is_voter(id, caller)?;
                if !matches!(mark, Mark::Committed(_)) {
                    return Err(Revert::WrongMark);
                }
            }
        }
        self.votes.insert(id, Mark::Committed(commitment));
        Ok(())
    }

    pub(super) fn reveal(&mut self, set: &Set, caller: Party, opening: Commitment, now: u64) -> Result<(), Revert> {
        if now < self.commit_end || now >= self.reveal_end() {
            return Err(Revert::WrongPhase);
        }
        let id = opening.author.1;
        set.is_voter(id, caller)?;
        self.check_opening(opening)?;
        self.extended |= now >= self.commit_end + self.terms.reveal;
        self.votes.insert(id, Mark::Revealed(opening.answer));
        self.revealed += self.snapshot.weight(id);
        Ok(())
    }

    pub(super) fn report_salt(
        &mut self,
        set: &mut Set,
        caller: Party,
        opening: Commitment,
        now: u64,
    ) -> Result<(), Revert> {
        if now >= self.commit_end {
            return Err(Revert::WrongPhase);
        }
        self.check_opening(opening)?;
        self.votes.insert(opening.author.1, Mark::Voided);
        set.slash(opening.author.1, UNREVEALED, Some((caller, 10_000)));
        Ok(())
    }

    /// Reports two contradicting statements. The flag of each statement tells whether this validator signed it; an
    /// unsigned one must be what the validator revealed.
    pub(super) fn report_equivocation(
        &mut self,
        set: &mut Set,
        caller: Party,
        id: u64,
        said: [(Answer, bool); 2],
    ) -> Result<(), Revert> {
        if id == 0 {
            return Err(Revert::NotSigned);
        }
        if self.caught.contains(&id) {
            return Err(Revert::WrongMark);
        }
        if said[0].0 == said[1].0 {
            return Err(Revert::BadAnswer);
        }
        // A revealed answer is forgotten when it is settled.
        let shown = self.votes.get(&id).copied().filter(|_| !self.settled.contains(&id));
        if said.iter().any(|(answer, signed)| !signed && shown != Some(Mark::Revealed(*answer))) {
            return Err(Revert::NotSigned);
        }
        self.caught.insert(id);
        if self.outcome == Outcome::Open {
            self.equivocal.insert(id);
            if let Some(mark) = self.votes.get_mut(&id) {
                *mark = Mark::Voided;
            }
        }
        set.slash(id, EQUIVOCATION, Some((caller, REPORTER)));
        Ok(())
    }

    /// Returns the outcome and the right answer, computed from the votes alone.
    pub(super) fn count(&self) -> (Outcome, Option<Answer>) {
        let (total, (part, whole)) = (self.snapshot.total, self.terms.part);
        let opening = self.opened.map(Answer::Value);
        let may = |answer: &Answer| match answer {
            Answer::Value(_) => !self.terms.opening || Some(*answer) == opening,
            Answer::Failed | Answer::Abstain => false,
        };
        let answers = self.answers();
        let good = answers.iter().copied().filter(may).filter(|one| self.families(*one) >= self.terms.families);
        // At most one answer has more than half of the weight.
        if let Some(value) = good.into_iter().find(|value| 2 * self.weight(*value) > total) {
            let approved = self.weight(value) * whole >= total * part;
            return (if approved { Outcome::Approved } else { Outcome::NoQuorum }, Some(value));
        }
        let against = |answer: &Answer| *answer != Answer::Abstain && !may(answer) && 3 * self.weight(*answer) > total;
        let against: Vec<Answer> = answers.iter().copied().filter(against).collect();
        let right = against.iter().copied().find(|answer| 3 * self.weight(*answer) >= 2 * total);
        (if against.is_empty() { Outcome::NoQuorum } else { Outcome::Rejected }, right)
    }

    /// Finishes the round. `stands` tells whether the right answer holds without quorum. `earns` is the divisor of the
    /// pot and the largest amount that the round earns.
    pub(super) fn close(
        &mut self,
        set: &mut Set,
        counted: (Outcome, Option<Answer>),
        stands: bool,
        earns: (u128, u128),
        now: u64,
    ) {
        let (outcome, right) = counted;
        (self.outcome, self.finished_at) = (outcome, now);
        self.right = right.filter(|_| outcome != Outcome::NoQuorum || stands);
        self.price = self.price();
        if self.right.is_some() && outcome != Outcome::NoQuorum {
            self.earned = set.reserve(earns.0, earns.1);
        }
    }

    fn price(&self) -> Price {
        let Some(right) = self.right.filter(|_| self.terms.costs) else { return Price::None };
        match self.outcome {
            Outcome::Open | Outcome::Rejected => Price::None,
            Outcome::Approved => Price::Wrong,
            Outcome::NoQuorum => {
                let named = self.revealed - self.weight(Answer::Failed) - self.weight(Answer::Abstain);
                if 3 * self.weight(right) >= 2 * named { Price::Wrong } else { Price::Idle }
            }
        }
    }

    pub(super) fn settle(&mut self, set: &mut Set, ids: &[u64]) -> Result<(), Revert> {
        if self.outcome == Outcome::Open {
            return Err(Revert::WrongPhase);
        }
        for id in ids {
            if !self.settled.insert(*id) {
                continue;
            }
            let mark = self.votes.get(id).copied();
            if mark.is_some() {
                set.unlock(*id);
            }
            match mark {
                // A validator that has left since then could not commit.
                None if self.snapshot.weight(*id) > 0 && self.terms.costs && set.votes(*id) => charge_idle(set, *id, 0),
                Some(Mark::Committed(_)) => set.slash(*id, UNREVEALED, None),
                Some(Mark::Revealed(answer)) if Some(answer) == self.right => {
                    if self.terms.costs {
                        set.idle.remove(id);
                    }
                    if self.earned > 0 && !self.caught.contains(id) {
                        set.share(*id, self.earned * self.snapshot.weight(*id) / self.weight(answer));
                    }
                }
                Some(Mark::Revealed(Answer::Abstain)) if self.price != Price::None => charge_idle(set, *id, 1),
                Some(Mark::Revealed(_)) if self.price == Price::Idle => charge_idle(set, *id, 0),
                Some(Mark::Revealed(answer)) if self.price == Price::Wrong => {
                    let together = 3 * WRONG_TOGETHER * self.weight(answer) / self.snapshot.total;
                    let amount = set.hold(*id, WRONG + together.min(WRONG_TOGETHER));
                    self.held.insert(*id, amount);
                }
                None | Some(Mark::Revealed(_) | Mark::Voided) => {}
            }
        }
        Ok(())
    }

    /// Decides an undecided cost. `overturned_at` is the time at which the right answer turned out to be wrong.
    pub(super) fn decide(
        &mut self,
        set: &mut Set,
        id: u64,
        overturned_at: Option<u64>,
        now: u64,
    ) -> Result<(), Revert> {
        let amount = self.held.get(&id).copied().filter(|amount| *amount > 0).ok_or(Revert::WrongMark)?;
        let end = self.finished_at + HOLD;
        let back = overturned_at.is_some_and(|at| at < end);
        if !back && now < end {
            return Err(Revert::WrongPhase);
        }
        self.held.remove(&id);
        match set.validators.get(&id).map(|validator| validator.withdrawal) {
            Some(owner) if back => set.give_back(owner, amount),
            Some(_) | None => set.burn_held(amount),
        }
        Ok(())
    }

    fn check_opening(&self, opening: Commitment) -> Result<(), Revert> {
        match self.votes.get(&opening.author.1) {
            Some(Mark::Committed(committed)) if *committed == opening => Ok(()),
            Some(Mark::Committed(_)) => Err(Revert::WrongOpening),
            Some(Mark::Revealed(_) | Mark::Voided) | None => Err(Revert::WrongMark),
        }
    }
}

/// Charges one more consecutive round without an answer. The first `free` ones cost nothing.
fn charge_idle(set: &mut Set, id: u64, free: u128) {
    let idle = set.idle.entry(id).or_default();
    *idle += 1;
    let times = (*idle - free).min(MOST_IN_A_ROW);
    set.slash(id, MISSED * times, None);
}
