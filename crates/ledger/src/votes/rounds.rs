//! Rounds of commitments and reveals. The contract: `Rounds`.

use std::collections::{BTreeMap, BTreeSet};

use super::set::{Set, Snapshot};
use super::{Party, Refusal};

/// Ten-thousandths of a bond that equivocation costs.
const EQUIVOCATION: u128 = 10_000;
/// The reporter's ten-thousandths of that.
const REPORTER: u128 = 500;
/// Ten-thousandths of a bond that a wrong value costs in an approved round.
const WRONG: u128 = 100;
/// As many more when a third of the weight gave it.
const WRONG_TOGETHER: u128 = 200;
/// What no reveal costs, or a salt shown too early.
const UNREVEALED: u128 = 50;
/// What a round without an answer costs; as much again for each one in a row.
const MISSED: u128 = 5;
/// From this many in a row on, each costs the same.
const MOST_IN_A_ROW: u128 = 10;
/// Seconds for which a wrong value's cost can come back.
pub const HOLD: u64 = 30 * 86_400;
/// Open rounds at most, of emergencies and of others.
pub const MAX_OPEN: usize = 8;

/// An answer: of values there are as many as one likes, failures are one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Answer {
    /// This is what the build gave.
    Value(u64),
    /// It gave nothing.
    Failed,
    /// No answer.
    Abstain,
}

/// What was committed: whoever copies it copies it with the author's name in it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Commitment {
    /// Who made it, for which round.
    pub author: (u64, u64),
    /// What is in it.
    pub answer: Answer,
    /// The salt.
    pub salt: u64,
}

/// Where a vote stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mark {
    /// Hidden.
    Committed(Commitment),
    /// Shown.
    Revealed(Answer),
    /// Counts no more.
    Voided,
}

/// How a round has ended.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// Not yet.
    Open,
    /// For the value.
    Approved,
    /// Against it.
    Rejected,
    /// Neither.
    NoQuorum,
}

/// What another answer than the right one costs in a round.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Price {
    /// Nothing.
    None,
    /// As much as giving no answer.
    Idle,
    /// As much as a wrong value.
    Wrong,
}

/// How long a round takes, in seconds, and what is asked of it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Terms {
    /// For commitments.
    pub commit: u64,
    /// For reveals.
    pub reveal: u64,
    /// For reveals when less than two thirds came.
    pub extra: u64,
    /// For proofs of equivocation.
    pub challenge: u64,
    /// Which part of the whole approves.
    pub part: (u128, u128),
    /// Families that must name the value.
    pub families: usize,
    /// Whether a proposer must have opened the value.
    pub opening: bool,
    /// Whether missed rounds and wrong answers cost something.
    pub costs: bool,
}

/// One round.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Round {
    /// What everybody weighed before it.
    pub snapshot: Snapshot,
    /// Its terms.
    pub terms: Terms,
    /// When commitments end.
    pub commit_end: u64,
    /// Whether somebody revealed in the extra time.
    pub extended: bool,
    /// The value that the proposer has shown.
    pub opened: Option<u64>,
    /// By validator; they stay when they are settled.
    pub votes: BTreeMap<u64, Mark>,
    /// What was revealed in all, voided or not.
    pub revealed: u128,
    /// Whose equivocation was proven in time: their families do not count.
    pub equivocal: BTreeSet<u64>,
    /// Whose equivocation was proven.
    pub caught: BTreeSet<u64>,
    /// Who is settled.
    pub settled: BTreeSet<u64>,
    /// How it ended.
    pub outcome: Outcome,
    /// The answer that was right, where one was: also without quorum.
    pub right: Option<Answer>,
    /// What the others cost.
    pub price: Price,
    /// When it was finished.
    pub finished_at: u64,
    /// What it has earned.
    pub earned: u128,
    /// What wrong values have cost, undecided.
    pub held: BTreeMap<u64, u128>,
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

    /// When reveals end.
    pub fn reveal_end(&self) -> u64 {
        let base = self.commit_end + self.terms.reveal;
        let short = 3 * self.revealed < 2 * self.snapshot.total;
        if self.extended || short { base + self.terms.extra } else { base }
    }

    /// When it can be finished.
    pub fn end(&self) -> u64 {
        self.reveal_end() + self.terms.challenge
    }

    /// What an answer weighs: those who revealed it, counted anew.
    pub fn weight(&self, answer: Answer) -> u128 {
        self.voters(answer).map(|id| self.snapshot.weight(id)).sum()
    }

    /// Families of which somebody gave this answer and nobody was caught.
    pub fn families(&self, answer: Answer) -> usize {
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
    ) -> Result<(), Refusal> {
        if now >= self.commit_end {
            return Err(Refusal::WrongPhase);
        }
        match self.votes.get(&id) {
            None => set.lock(id, caller)?,
            Some(mark) => {
                set.is_voter(id, caller)?;
                if !matches!(mark, Mark::Committed(_)) {
                    return Err(Refusal::WrongMark);
                }
            }
        }
        self.votes.insert(id, Mark::Committed(commitment));
        Ok(())
    }

    pub(super) fn reveal(&mut self, set: &Set, caller: Party, opening: Commitment, now: u64) -> Result<(), Refusal> {
        if now < self.commit_end || now >= self.reveal_end() {
            return Err(Refusal::WrongPhase);
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
    ) -> Result<(), Refusal> {
        if now >= self.commit_end {
            return Err(Refusal::WrongPhase);
        }
        self.check_opening(opening)?;
        self.votes.insert(opening.author.1, Mark::Voided);
        set.slash(opening.author.1, UNREVEALED, Some((caller, 10_000)));
        Ok(())
    }

    /// `signed`: whether each of the two statements was signed by this validator; one that is not stands for what it revealed.
    pub(super) fn report_equivocation(
        &mut self,
        set: &mut Set,
        caller: Party,
        id: u64,
        said: [(Answer, bool); 2],
    ) -> Result<(), Refusal> {
        if id == 0 {
            return Err(Refusal::NotSigned);
        }
        if self.caught.contains(&id) {
            return Err(Refusal::WrongMark);
        }
        if said[0].0 == said[1].0 {
            return Err(Refusal::BadAnswer);
        }
        // What was revealed is forgotten when it is settled.
        let shown = self.votes.get(&id).copied().filter(|_| !self.settled.contains(&id));
        if said.iter().any(|(answer, signed)| !signed && shown != Some(Mark::Revealed(*answer))) {
            return Err(Refusal::NotSigned);
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

    /// The outcome and the right answer, from the votes alone.
    pub(super) fn count(&self) -> (Outcome, Option<Answer>) {
        let (total, (part, whole)) = (self.snapshot.total, self.terms.part);
        let opening = self.opened.map(Answer::Value);
        let may = |answer: &Answer| match answer {
            Answer::Value(_) => !self.terms.opening || Some(*answer) == opening,
            Answer::Failed | Answer::Abstain => false,
        };
        let answers = self.answers();
        let good = answers.iter().copied().filter(may).filter(|one| self.families(*one) >= self.terms.families);
        // At most one answer has more than half.
        if let Some(value) = good.into_iter().find(|value| 2 * self.weight(*value) > total) {
            let approved = self.weight(value) * whole >= total * part;
            return (if approved { Outcome::Approved } else { Outcome::NoQuorum }, Some(value));
        }
        let against = |answer: &Answer| *answer != Answer::Abstain && !may(answer) && 3 * self.weight(*answer) > total;
        let against: Vec<Answer> = answers.iter().copied().filter(against).collect();
        let right = against.iter().copied().find(|answer| 3 * self.weight(*answer) >= 2 * total);
        (if against.is_empty() { Outcome::NoQuorum } else { Outcome::Rejected }, right)
    }

    /// `stands`: whether the right answer holds without quorum. `earns`: one part in this many of the pot, and at most this much.
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

    pub(super) fn settle(&mut self, set: &mut Set, ids: &[u64]) -> Result<(), Refusal> {
        if self.outcome == Outcome::Open {
            return Err(Refusal::WrongPhase);
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
                // Who has left since could not commit.
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

    /// `overturned_at`: when the right answer turned out not to be.
    pub(super) fn decide(
        &mut self,
        set: &mut Set,
        id: u64,
        overturned_at: Option<u64>,
        now: u64,
    ) -> Result<(), Refusal> {
        let amount = self.held.get(&id).copied().filter(|amount| *amount > 0).ok_or(Refusal::WrongMark)?;
        let end = self.finished_at + HOLD;
        let back = overturned_at.is_some_and(|at| at < end);
        if !back && now < end {
            return Err(Refusal::WrongPhase);
        }
        self.held.remove(&id);
        match set.validators.get(&id).map(|validator| validator.withdrawal) {
            Some(owner) if back => set.give_back(owner, amount),
            Some(_) | None => set.burn_held(amount),
        }
        Ok(())
    }

    fn check_opening(&self, opening: Commitment) -> Result<(), Refusal> {
        match self.votes.get(&opening.author.1) {
            Some(Mark::Committed(committed)) if *committed == opening => Ok(()),
            Some(Mark::Committed(_)) => Err(Refusal::WrongOpening),
            Some(Mark::Revealed(_) | Mark::Voided) | None => Err(Refusal::WrongMark),
        }
    }
}

/// One more round in a row without an answer, of which the first ones may be free.
fn charge_idle(set: &mut Set, id: u64, free: u128) {
    let idle = set.idle.entry(id).or_default();
    *idle += 1;
    let times = (*idle - free).min(MOST_IN_A_ROW);
    set.slash(id, MISSED * times, None);
}
