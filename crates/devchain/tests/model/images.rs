//! Proposals, images, and motions against images. The contract: `ImageRegistry`.
//!
//! Owns the states of an image and the effects of votes on them. It never counts votes of a round; [`super::rounds`]
//! does.

use std::collections::{BTreeMap, BTreeSet};

use openrelay_ledger::chain::voted::{GRACE, State};

use super::rounds::{Answer, Commitment, MAX_OPEN, Outcome, Round, Terms};
use super::set::{Set, Snapshot};
use super::{Party, Revert};

const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;
/// Seconds from approval to use.
pub(crate) const PENDING: u64 = DAY;
/// Seconds for which a suspension lasts, and for which a motion collects votes.
pub(crate) const SUSPENSION: u64 = 72 * HOUR;
/// Cost of a lapsed suspension for its voters, in ten-thousandths of the bond.
const LAPSED: u128 = 100;
/// Seconds for which a release waits after a round without quorum.
const RETRY: u64 = DAY;

/// A proposal: a signed source of a version, and a hidden value.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Proposal {
    /// The proposer.
    pub(crate) proposer: Party,
    /// Version of the image, within its kind.
    pub(crate) version: u64,
    /// The value that the source gives, according to the proposer.
    pub(crate) value: u64,
    /// Whether the round takes hours instead of days, without time for proofs of equivocation.
    pub(crate) emergency: bool,
}

/// A motion of validators against an image.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Motion {
    /// Weights before the motion.
    pub(crate) snapshot: Snapshot,
    /// End of the motion.
    pub(crate) end: u64,
    /// Whether it suspended the image.
    pub(crate) suspended: bool,
    /// Whether it revoked the image.
    pub(crate) revoked: bool,
    /// Validators that voted.
    pub(crate) voters: BTreeSet<u64>,
    /// Validators whose votes are settled.
    pub(crate) settled: BTreeSet<u64>,
}

/// A proposal, its round and the resulting image.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Image {
    /// The proposal.
    pub(crate) proposal: Proposal,
    /// The votes.
    pub(crate) round: Round,
    /// Time from which the image can be used; `None` if it was not approved.
    pub(crate) usable_from: Option<u64>,
    /// Time until which the image is suspended.
    pub(crate) suspended_until: u64,
    /// Time at which the image was revoked.
    pub(crate) revoked_at: Option<u64>,
    /// Motions against the image.
    pub(crate) motions: Vec<Motion>,
}

/// Validators and the images of one kind.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Images {
    /// The validators.
    pub(crate) set: Set,
    /// Images by number of their round, from 1.
    pub(crate) images: BTreeMap<u64, Image>,
    /// Deposit of a proposal.
    pub(crate) deposit: u128,
    /// Number of families that must name a value.
    pub(crate) families: usize,
    /// Time from which a version can be proposed again.
    pub(crate) retry_at: BTreeMap<u64, u64>,
}

impl Images {
    /// Creates the model without images.
    pub(crate) const fn new(min_bond: u128, deposit: u128, families: usize) -> Self {
        Self { set: Set::new(min_bond), images: BTreeMap::new(), deposit, families, retry_at: BTreeMap::new() }
    }

    /// Opens a round.
    ///
    /// # Errors
    /// A [`Revert`], as with all the following calls.
    pub(crate) fn propose(&mut self, proposal: Proposal, now: u64) -> Result<u64, Revert> {
        let waits = self.retry_at.get(&proposal.version).is_some_and(|at| now < *at);
        if self.approved(proposal.version).is_some() || waits {
            return Err(Revert::NotNow);
        }
        let crowds =
            |image: &&Image| image.round.outcome == Outcome::Open && image.proposal.emergency == proposal.emergency;
        if self.images.values().filter(crowds).count() == MAX_OPEN {
            return Err(Revert::TooManyRounds);
        }
        let snapshot = self.set.snapshot();
        if snapshot.total == 0 {
            return Err(Revert::NoValidators);
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

    /// Opens the proposed value.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn open(&mut self, caller: Party, round: u64, value: u64, now: u64) -> Result<(), Revert> {
        let image = self.images.get_mut(&round).ok_or(Revert::WrongPhase)?;
        if now < image.round.commit_end || now >= image.round.reveal_end() {
            return Err(Revert::WrongPhase);
        }
        if caller != image.proposal.proposer || value != image.proposal.value {
            return Err(Revert::WrongProposal);
        }
        image.round.opened = Some(value);
        Ok(())
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
        let (set, image) = self.both(round)?;
        image.round.commit(set, caller, id, what, now)
    }

    /// Reveals an answer.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn reveal(&mut self, caller: Party, opening: Commitment, now: u64) -> Result<(), Revert> {
        let (set, image) = self.both(opening.author.0)?;
        image.round.reveal(set, caller, opening, now)
    }

    /// Voids a vote whose salt is known too early.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn report_salt(&mut self, caller: Party, opening: Commitment, now: u64) -> Result<(), Revert> {
        let (set, image) = self.both(opening.author.0)?;
        image.round.report_salt(set, caller, opening, now)
    }

    /// Proves that a validator gave two answers. The flag of each answer tells whether it is signed; an unsigned one
    /// was revealed.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn report_equivocation(
        &mut self,
        caller: Party,
        round: u64,
        id: u64,
        said: [(Answer, bool); 2],
    ) -> Result<(), Revert> {
        let (set, image) = self.both(round)?;
        image.round.report_equivocation(set, caller, id, said)
    }

    /// Finishes a round.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn finish(&mut self, round: u64, now: u64) -> Result<Outcome, Revert> {
        let deposit = self.deposit;
        let image = self.images.get(&round).ok_or(Revert::WrongPhase)?;
        if image.round.outcome != Outcome::Open || now < image.round.end() {
            return Err(Revert::WrongPhase);
        }
        let version = image.proposal.version;
        let (mut outcome, right) = image.round.count();
        let second = self.approved(version).is_some();
        if outcome == Outcome::Approved && second {
            outcome = Outcome::NoQuorum;
        }
        let (set, image) = self.both(round)?;
        let opened = image.round.opened.is_some();
        // A round for a version that was approved meanwhile returns half of the deposit.
        let back = match outcome {
            _ if !opened => 0,
            Outcome::Rejected => 0,
            Outcome::Open | Outcome::Approved | Outcome::NoQuorum if second => deposit / 2,
            Outcome::Open | Outcome::Approved | Outcome::NoQuorum => deposit,
        };
        set.give_back(image.proposal.proposer, back);
        set.burn_held(deposit - back);
        // A rejected round earns no more than its proposer lost.
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
    /// A [`Revert`].
    pub(crate) fn settle(&mut self, round: u64, ids: &[u64]) -> Result<(), Revert> {
        let (set, image) = self.both(round)?;
        image.round.settle(set, ids)
    }

    /// Decides the cost of a wrong value.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn decide(&mut self, round: u64, id: u64, now: u64) -> Result<(), Revert> {
        let overturned_at = self.overturned_at(round);
        let (set, image) = self.both(round).map_err(|_| Revert::WrongMark)?;
        image.round.decide(set, id, overturned_at, now)
    }

    /// Votes against an image.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn accuse(&mut self, caller: Party, round: u64, id: u64, now: u64) -> Result<(), Revert> {
        let lasts = self.another_lasts(round, now);
        let snapshot = self.set.snapshot();
        let (set, image) = self.both(round).map_err(|_| Revert::WrongState)?;
        if image.usable_from.is_none() || image.revoked_at.is_some() {
            return Err(Revert::WrongState);
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
            return Err(Revert::WrongMark);
        }
        set.can_lock(id, caller)?;
        if motion.snapshot.weight(id) == 0 {
            return Err(Revert::NotAllowed);
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
    /// A [`Revert`].
    pub(crate) fn settle_motion(&mut self, round: u64, number: usize, ids: &[u64], now: u64) -> Result<(), Revert> {
        let (set, image) = self.both(round)?;
        let motion = image.motions.get_mut(number).ok_or(Revert::BadValue)?;
        if now < motion.end {
            return Err(Revert::WrongPhase);
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

    /// Returns the state of a proposal or image.
    pub(crate) fn state(&self, round: u64, now: u64) -> Option<State> {
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

    /// Returns the approved image of a version.
    pub(crate) fn approved(&self, version: u64) -> Option<u64> {
        let of = |image: &Image| image.proposal.version == version && image.usable_from.is_some();
        self.images.iter().find(|(_, image)| of(image)).map(|(number, _)| *number)
    }

    /// Returns the time at which the image of a round's version was revoked, or approved with another value.
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

    fn both(&mut self, round: u64) -> Result<(&mut Set, &mut Image), Revert> {
        Ok((&mut self.set, self.images.get_mut(&round).ok_or(Revert::WrongPhase)?))
    }
}

/// Returns the terms of a round on an image, from the seconds for commitments, reveals, late reveals and proofs of
/// equivocation.
const fn terms([commit, reveal, extra, challenge]: [u64; 4], families: usize) -> Terms {
    Terms { commit, reveal, extra, challenge, part: (2, 3), families, opening: true, costs: true }
}
