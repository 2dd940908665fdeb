//! Proposals, images and motions against them. The contract: `ImageRegistry`.

use std::collections::{BTreeMap, BTreeSet};

use super::rounds::{Answer, Commitment, MAX_OPEN, Outcome, Round, Terms};
use super::set::{Set, Snapshot};
use super::{Party, Refusal};

const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;
/// From approval to use, in seconds.
pub const PENDING: u64 = DAY;
/// How long an image stays good after a newer one can be used.
pub const GRACE: u64 = 14 * DAY;
/// How long a suspension lasts, and how long a motion collects.
pub const SUSPENSION: u64 = 72 * HOUR;
/// Ten-thousandths of a bond that a suspension costs its voters when it lapses.
const LAPSED: u128 = 100;
/// How long a release waits after a round without quorum.
const RETRY: u64 = DAY;

/// Where a proposal or image stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// Takes commitments.
    Proposed,
    /// Takes reveals.
    Reveal,
    /// Takes proofs of equivocation.
    Challenge,
    /// Can be finished.
    Ended,
    /// Another answer has more than a third.
    Rejected,
    /// Neither.
    NoQuorum,
    /// Approved and not to be used yet.
    ApprovedPending,
    /// The newest.
    Active,
    /// A newer one can be used.
    Deprecated,
    /// Too old.
    Retired,
    /// Not to be used for a while.
    Suspended,
    /// Never to be used again.
    Revoked,
}

impl State {
    /// Whether clients use it.
    pub const fn usable(self) -> bool {
        matches!(self, Self::Active | Self::Deprecated)
    }
}

/// What is proposed: a signed source of a version, and a hidden value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Proposal {
    /// Who proposes.
    pub proposer: Party,
    /// Of one kind of image.
    pub version: u64,
    /// What the proposer says that it gives.
    pub value: u64,
    /// Hours instead of days, and no time for proofs of equivocation.
    pub emergency: bool,
}

/// Validators against an image.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Motion {
    /// What everybody weighed before it.
    pub snapshot: Snapshot,
    /// When it is over.
    pub end: u64,
    /// Whether it has suspended.
    pub suspended: bool,
    /// Whether it has revoked.
    pub revoked: bool,
    /// Who voted.
    pub voters: BTreeSet<u64>,
    /// Whose votes are settled.
    pub settled: BTreeSet<u64>,
}

/// A round with what was proposed and what became of it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Image {
    /// What was proposed.
    pub proposal: Proposal,
    /// The votes.
    pub round: Round,
    /// From when it can be used; `None` when it was not approved.
    pub usable_from: Option<u64>,
    /// Until when it is suspended.
    pub suspended_until: u64,
    /// When it was revoked.
    pub revoked_at: Option<u64>,
    /// Motions against it.
    pub motions: Vec<Motion>,
}

/// Validators and the images of one kind.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Images {
    /// The validators.
    pub set: Set,
    /// By the number of the round, from 1.
    pub images: BTreeMap<u64, Image>,
    /// What a proposal deposits.
    pub deposit: u128,
    /// Families that must name a value.
    pub families: usize,
    /// From when a version can be proposed again.
    pub retry_at: BTreeMap<u64, u64>,
}

impl Images {
    /// No image yet.
    pub const fn new(min_bond: u128, deposit: u128, families: usize) -> Self {
        Self { set: Set::new(min_bond), images: BTreeMap::new(), deposit, families, retry_at: BTreeMap::new() }
    }

    /// Opens a round.
    ///
    /// # Errors
    /// A [`Refusal`], as with all that follow.
    pub fn propose(&mut self, proposal: Proposal, now: u64) -> Result<u64, Refusal> {
        let waits = self.retry_at.get(&proposal.version).is_some_and(|at| now < *at);
        if self.approved(proposal.version).is_some() || waits {
            return Err(Refusal::NotNow);
        }
        let crowds =
            |image: &&Image| image.round.outcome == Outcome::Open && image.proposal.emergency == proposal.emergency;
        if self.images.values().filter(crowds).count() == MAX_OPEN {
            return Err(Refusal::TooManyRounds);
        }
        let snapshot = self.set.snapshot();
        if snapshot.total == 0 {
            return Err(Refusal::NoValidators);
        }
        let terms = if proposal.emergency {
            terms([6 * HOUR, 6 * HOUR, 6 * HOUR, 0], self.families)
        } else {
            terms([3 * DAY, DAY, DAY, 3 * DAY], self.families)
        };
        let image = Image {
            proposal,
            round: Round::new(snapshot, terms, now),
            usable_from: None,
            suspended_until: 0,
            revoked_at: None,
            motions: Vec::new(),
        };
        let number = self.images.len() as u64 + 1;
        self.images.insert(number, image);
        self.set.held += self.deposit;
        Ok(number)
    }

    /// Shows the proposed value.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn open(&mut self, caller: Party, round: u64, value: u64, now: u64) -> Result<(), Refusal> {
        let image = self.images.get_mut(&round).ok_or(Refusal::WrongPhase)?;
        if now < image.round.commit_end || now >= image.round.reveal_end() {
            return Err(Refusal::WrongPhase);
        }
        if caller != image.proposal.proposer || value != image.proposal.value {
            return Err(Refusal::WrongProposal);
        }
        image.round.opened = Some(value);
        Ok(())
    }

    /// Commits to an answer.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn commit(&mut self, caller: Party, round: u64, id: u64, what: Commitment, now: u64) -> Result<(), Refusal> {
        let (set, image) = self.both(round)?;
        image.round.commit(set, caller, id, what, now)
    }

    /// Shows an answer.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn reveal(&mut self, caller: Party, opening: Commitment, now: u64) -> Result<(), Refusal> {
        let (set, image) = self.both(opening.author.0)?;
        image.round.reveal(set, caller, opening, now)
    }

    /// Voids a vote whose salt is known too early.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn report_salt(&mut self, caller: Party, opening: Commitment, now: u64) -> Result<(), Refusal> {
        let (set, image) = self.both(opening.author.0)?;
        image.round.report_salt(set, caller, opening, now)
    }

    /// Shows that a validator said two things; of each, whether it is signed or what was revealed.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn report_equivocation(
        &mut self,
        caller: Party,
        round: u64,
        id: u64,
        said: [(Answer, bool); 2],
    ) -> Result<(), Refusal> {
        let (set, image) = self.both(round)?;
        image.round.report_equivocation(set, caller, id, said)
    }

    /// Ends a round.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn finish(&mut self, round: u64, now: u64) -> Result<Outcome, Refusal> {
        let deposit = self.deposit;
        let image = self.images.get(&round).ok_or(Refusal::WrongPhase)?;
        if image.round.outcome != Outcome::Open || now < image.round.end() {
            return Err(Refusal::WrongPhase);
        }
        let version = image.proposal.version;
        let (mut outcome, right) = image.round.count();
        let second = self.approved(version).is_some();
        if outcome == Outcome::Approved && second {
            outcome = Outcome::NoQuorum;
        }
        let (set, image) = self.both(round)?;
        let opened = image.round.opened.is_some();
        // Half of it for a round that was one too many.
        let back = match outcome {
            _ if !opened => 0,
            Outcome::Rejected => 0,
            Outcome::Open | Outcome::Approved | Outcome::NoQuorum if second => deposit / 2,
            Outcome::Open | Outcome::Approved | Outcome::NoQuorum => deposit,
        };
        set.give_back(image.proposal.proposer, back);
        set.burn_held(deposit - back);
        // A rejected round earns no more than its proposer has lost.
        let most = if outcome == Outcome::Approved { u128::MAX } else { deposit };
        image.round.close(set, (outcome, right), !second, (10, most), now);
        if outcome == Outcome::Approved {
            image.usable_from = Some(now + PENDING);
        } else if outcome == Outcome::NoQuorum && opened {
            self.retry_at.insert(version, now + RETRY);
        }
        Ok(outcome)
    }

    /// Settles what validators earned or lost in a round.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn settle(&mut self, round: u64, ids: &[u64]) -> Result<(), Refusal> {
        let (set, image) = self.both(round)?;
        image.round.settle(set, ids)
    }

    /// Decides over what a wrong value has cost.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn decide(&mut self, round: u64, id: u64, now: u64) -> Result<(), Refusal> {
        let overturned_at = self.overturned_at(round);
        let (set, image) = self.both(round).map_err(|_| Refusal::WrongMark)?;
        image.round.decide(set, id, overturned_at, now)
    }

    /// Votes against an image.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn accuse(&mut self, caller: Party, round: u64, id: u64, now: u64) -> Result<(), Refusal> {
        let lasts = self.another_lasts(round, now);
        let snapshot = self.set.snapshot();
        let (set, image) = self.both(round).map_err(|_| Refusal::WrongState)?;
        if image.usable_from.is_none() || image.revoked_at.is_some() {
            return Err(Refusal::WrongState);
        }
        let fresh = Motion {
            snapshot,
            end: now + SUSPENSION,
            suspended: false,
            revoked: false,
            voters: BTreeSet::new(),
            settled: BTreeSet::new(),
        };
        let mut motion = match image.motions.last() {
            Some(motion) if now < motion.end => motion.clone(),
            Some(_) | None => fresh,
        };
        if motion.voters.contains(&id) {
            return Err(Refusal::WrongMark);
        }
        set.can_lock(id, caller)?;
        if motion.snapshot.weight(id) == 0 {
            return Err(Refusal::NotAllowed);
        }
        set.lock(id, caller)?;
        if image.motions.last().is_some_and(|motion| now < motion.end) {
            image.motions.pop();
        }
        motion.voters.insert(id);
        let weight: u128 = motion.voters.iter().map(|id| motion.snapshot.weight(*id)).sum();
        if 3 * weight >= 2 * motion.snapshot.total {
            (motion.revoked, motion.end) = (true, now);
            image.revoked_at = Some(now);
        } else if !motion.suspended && 3 * weight >= motion.snapshot.total && lasts {
            (motion.suspended, motion.end) = (true, now + SUSPENSION);
            image.suspended_until = motion.end;
        }
        image.motions.push(motion);
        Ok(())
    }

    /// Settles a motion that is over.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn settle_motion(&mut self, round: u64, number: usize, ids: &[u64], now: u64) -> Result<(), Refusal> {
        let (set, image) = self.both(round)?;
        let motion = image.motions.get_mut(number).ok_or(Refusal::BadValue)?;
        if now < motion.end {
            return Err(Refusal::WrongPhase);
        }
        for id in ids {
            if motion.voters.contains(id) && motion.settled.insert(*id) {
                set.unlock(*id);
                if motion.suspended && !motion.revoked {
                    set.slash(*id, LAPSED, None);
                }
            }
        }
        Ok(())
    }

    /// Where a proposal or image stands.
    pub fn state(&self, round: u64, now: u64) -> Option<State> {
        let image = self.images.get(&round)?;
        let round = &image.round;
        Some(match (round.outcome, image.usable_from) {
            (Outcome::Open, _) if now < round.commit_end => State::Proposed,
            (Outcome::Open, _) if now < round.reveal_end() => State::Reveal,
            (Outcome::Open, _) if now < round.end() => State::Challenge,
            (Outcome::Open, _) => State::Ended,
            (Outcome::Rejected, _) => State::Rejected,
            (Outcome::NoQuorum, _) | (Outcome::Approved, None) => State::NoQuorum,
            (Outcome::Approved, Some(_)) if image.revoked_at.is_some() => State::Revoked,
            (Outcome::Approved, Some(_)) if now < image.suspended_until => State::Suspended,
            (Outcome::Approved, Some(from)) if now < from => State::ApprovedPending,
            (Outcome::Approved, Some(_)) => match self.superseded_at(image.proposal.version) {
                Some(at) if now >= at + GRACE => State::Retired,
                Some(at) if now >= at => State::Deprecated,
                Some(_) | None => State::Active,
            },
        })
    }

    /// The approved image of a version.
    pub fn approved(&self, version: u64) -> Option<u64> {
        let of = |image: &Image| image.proposal.version == version && image.usable_from.is_some();
        self.images.iter().find(|(_, image)| of(image)).map(|(number, _)| *number)
    }

    /// When the image of a round's version was revoked, or approved with another value.
    fn overturned_at(&self, round: u64) -> Option<u64> {
        let winner = self.images.get(&self.approved(self.images.get(&round)?.proposal.version)?)?;
        let same = winner.round.right == self.images.get(&round)?.round.right;
        if same { winner.revoked_at } else { Some(winner.round.finished_at) }
    }

    fn superseded_at(&self, version: u64) -> Option<u64> {
        let newer = |image: &&Image| image.proposal.version > version && image.revoked_at.is_none();
        self.images.values().filter(newer).filter_map(|image| image.usable_from).min()
    }

    fn another_lasts(&self, round: u64, now: u64) -> bool {
        self.images.iter().any(|(number, image)| {
            let good = image.revoked_at.is_none() && now >= image.suspended_until;
            let from = image.usable_from.is_some_and(|from| now >= from);
            let until = self.superseded_at(image.proposal.version).is_none_or(|at| now + SUSPENSION < at + GRACE);
            *number != round && good && from && until
        })
    }

    fn both(&mut self, round: u64) -> Result<(&mut Set, &mut Image), Refusal> {
        Ok((&mut self.set, self.images.get_mut(&round).ok_or(Refusal::WrongPhase)?))
    }
}

/// The terms of a round on an image, with the seconds for commitments, reveals, late reveals and proofs of equivocation.
const fn terms([commit, reveal, extra, challenge]: [u64; 4], families: usize) -> Terms {
    Terms { commit, reveal, extra, challenge, part: (2, 3), families, opening: true, costs: true }
}
