//! Validators, their bonds, and all money that votes move. The contract: `ValidatorSet`.
//!
//! Owns the weights, the penalties and the place of every token. It never decides votes; [`super::rounds`] does.

use std::collections::{BTreeMap, BTreeSet};

use super::{Party, Revert};

/// Seconds for which a bond stays locked after its validator leaves.
pub(crate) const UNBONDING: u64 = 21 * 86_400;

/// Status of a validator.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Status {
    /// It got its bond back.
    Gone,
    /// It votes.
    Active,
    /// It is leaving.
    Unbonding,
}

/// A validator.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Validator {
    /// Hot key.
    pub(crate) operator: Option<Party>,
    /// Hot key that is to take over.
    pub(crate) next_operator: Option<Party>,
    /// Address that is paid.
    pub(crate) withdrawal: Party,
    /// Family that the validator belongs to.
    pub(crate) family: Party,
    /// Bond, in the token's smallest unit.
    pub(crate) bond: u128,
    /// Number of open commitments.
    pub(crate) locks: u16,
    /// Status.
    pub(crate) status: Status,
    /// Time from which an unbonding validator's bond can be withdrawn.
    pub(crate) free_at: u64,
}

/// All validators. Each token is in exactly one place.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Set {
    /// Smallest bond that allows a validator to join.
    pub(crate) min_bond: u128,
    /// Validators by number, from 1.
    pub(crate) validators: BTreeMap<u64, Validator>,
    /// The validator that a hot key has ever served.
    pub(crate) served: BTreeMap<Party, u64>,
    /// Pairs of a family and a hot key that it admits.
    pub(crate) admits: BTreeSet<(Party, Party)>,
    /// Deposits, and undecided penalties.
    pub(crate) held: u128,
    /// Claimable amount of each party.
    pub(crate) credits: BTreeMap<Party, u128>,
    /// Money from which future rounds are paid.
    pub(crate) pot: u128,
    /// Money that finished rounds earned and that is not yet shared out.
    pub(crate) reserved: u128,
    /// Money that belongs to nobody.
    pub(crate) burned: u128,
    /// Number of consecutive rounds in which a validator gave no answer; no entry if there are none.
    pub(crate) idle: BTreeMap<u64, u128>,
}

/// The weights of all validators at one moment.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub(crate) struct Snapshot {
    /// Sum of all families' weights, each capped.
    pub(crate) total: u128,
    /// Largest weight of one family.
    pub(crate) cap: u128,
    /// Weight and family of each validator that has a weight.
    pub(crate) weights: BTreeMap<u64, (u128, Party)>,
}

impl Snapshot {
    /// Returns the weight of a validator.
    pub(crate) fn weight(&self, validator: u64) -> u128 {
        self.weights.get(&validator).map_or(0, |(weight, _)| *weight)
    }
}

impl Set {
    /// Creates a set without validators.
    pub(crate) const fn new(min_bond: u128) -> Self {
        Self {
            min_bond,
            validators: BTreeMap::new(),
            served: BTreeMap::new(),
            admits: BTreeSet::new(),
            held: 0,
            credits: BTreeMap::new(),
            pot: 0,
            reserved: 0,
            burned: 0,
            idle: BTreeMap::new(),
        }
    }

    /// Returns the sum of all money in the set.
    pub(crate) fn money(&self) -> u128 {
        let bonds: u128 = self.validators.values().map(|validator| validator.bond).sum();
        let credits: u128 = self.credits.values().sum();
        bonds + credits + self.held + self.pot + self.reserved + self.burned
    }

    /// Returns the current weights. A family's weight is scaled down to at most the larger of one tenth of the whole
    /// and 1.5 times its even share.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let mut families = BTreeMap::<Party, u128>::new();
        let voting =
            || self.validators.iter().filter(|(_, validator)| validator.status == Status::Active && validator.bond > 0);
        for (_, validator) in voting() {
            *families.entry(validator.family).or_default() += validator.bond;
        }
        let sum: u128 = families.values().sum();
        let Some(cap) = (3 * sum).checked_div(2 * families.len() as u128).map(|even| even.max(sum / 10)) else {
            return Snapshot::default();
        };
        let weight = |validator: &Validator| {
            let family = families[&validator.family];
            if family > cap { validator.bond * cap / family } else { validator.bond }
        };
        Snapshot {
            total: families.values().map(|family| (*family).min(cap)).sum(),
            cap,
            weights: voting().map(|(id, validator)| (*id, (weight(validator), validator.family))).collect(),
        }
    }

    /// Joins with a bond.
    ///
    /// # Errors
    /// A [`Revert`], as with all the following calls.
    pub(crate) fn join(
        &mut self,
        caller: Party,
        family: Party,
        withdrawal: Party,
        amount: u128,
    ) -> Result<u64, Revert> {
        if family != caller && !self.admits.contains(&(family, caller)) {
            return Err(Revert::NotAllowed);
        }
        if amount < self.min_bond {
            return Err(Revert::BondTooSmall);
        }
        let id = self.validators.len() as u64 + 1;
        self.serve(id, caller)?;
        let validator = Validator {
            operator: Some(caller),
            next_operator: None,
            withdrawal,
            family,
            bond: amount,
            locks: 0,
            status: Status::Active,
            free_at: 0,
        };
        self.validators.insert(id, validator);
        Ok(id)
    }

    /// Adds to a bond.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn top_up(&mut self, id: u64, amount: u128) -> Result<(), Revert> {
        let validator = self.validators.get_mut(&id).ok_or(Revert::WrongStatus)?;
        if validator.status != Status::Active || validator.bond == 0 {
            return Err(Revert::WrongStatus);
        }
        validator.bond += amount;
        Ok(())
    }

    /// Admits a hot key to the caller's family.
    pub(crate) fn admit(&mut self, caller: Party, operator: Party) {
        self.admits.insert((caller, operator));
    }

    /// Names the next hot key.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn set_operator(&mut self, caller: Party, id: u64, operator: Party) -> Result<(), Revert> {
        let validator = self.validators.get_mut(&id).ok_or(Revert::NotAllowed)?;
        if validator.status == Status::Gone || validator.withdrawal != caller {
            return Err(Revert::NotAllowed);
        }
        validator.next_operator = Some(operator);
        Ok(())
    }

    /// Makes the caller the hot key.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn take_over(&mut self, caller: Party, id: u64) -> Result<(), Revert> {
        if self.validators.get(&id).is_none_or(|validator| validator.next_operator != Some(caller)) {
            return Err(Revert::NotAllowed);
        }
        self.serve(id, caller)?;
        let validator = self.validators.get_mut(&id).ok_or(Revert::NotAllowed)?;
        (validator.operator, validator.next_operator) = (Some(caller), None);
        Ok(())
    }

    /// Starts to leave.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn unbond(&mut self, caller: Party, id: u64, now: u64) -> Result<(), Revert> {
        let validator = self.validators.get_mut(&id).ok_or(Revert::WrongStatus)?;
        if validator.status != Status::Active {
            return Err(Revert::WrongStatus);
        }
        if validator.operator != Some(caller) && validator.withdrawal != caller {
            return Err(Revert::NotAllowed);
        }
        (validator.status, validator.free_at) = (Status::Unbonding, now + UNBONDING);
        Ok(())
    }

    /// Pays out a bond that is free.
    ///
    /// # Errors
    /// A [`Revert`].
    pub(crate) fn withdraw(&mut self, id: u64, now: u64) -> Result<(Party, u128), Revert> {
        let validator = self.validators.get_mut(&id).ok_or(Revert::WrongStatus)?;
        if validator.status != Status::Unbonding {
            return Err(Revert::WrongStatus);
        }
        if now < validator.free_at {
            return Err(Revert::TooEarly);
        }
        if validator.locks != 0 {
            return Err(Revert::Locked);
        }
        (validator.operator, validator.next_operator, validator.status) = (None, None, Status::Gone);
        Ok((validator.withdrawal, std::mem::take(&mut validator.bond)))
    }

    /// Pays out the claimable amount of a party.
    pub(crate) fn claim(&mut self, owner: Party) -> u128 {
        self.credits.remove(&owner).unwrap_or(0)
    }

    /// Adds to the pot.
    pub(crate) const fn fund(&mut self, amount: u128) {
        self.pot += amount;
    }

    /// Returns whether the validator has not left.
    pub(super) fn votes(&self, id: u64) -> bool {
        self.validators.get(&id).is_some_and(|validator| validator.status == Status::Active)
    }

    /// Checks that the caller is the validator's hot key.
    pub(super) fn is_voter(&self, id: u64, caller: Party) -> Result<(), Revert> {
        let own = self.validators.get(&id).is_some_and(|validator| validator.operator == Some(caller));
        if own { Ok(()) } else { Err(Revert::NotTheVoter) }
    }

    /// Checks that the validator can be locked once more.
    pub(super) fn can_lock(&self, id: u64, caller: Party) -> Result<(), Revert> {
        self.is_voter(id, caller)?;
        match self.validators.get(&id) {
            // A validator that lost its whole bond can only leave.
            Some(validator) if validator.status != Status::Active || validator.bond == 0 => Err(Revert::WrongStatus),
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn lock(&mut self, id: u64, caller: Party) -> Result<(), Revert> {
        self.can_lock(id, caller)?;
        if let Some(validator) = self.validators.get_mut(&id) {
            validator.locks += 1;
        }
        Ok(())
    }

    pub(super) fn unlock(&mut self, id: u64) {
        if let Some(validator) = self.validators.get_mut(&id) {
            validator.locks -= 1;
        }
    }

    /// Takes ten-thousandths of a bond. The reporter gets ten-thousandths of that amount, and nobody gets the rest.
    pub(super) fn slash(&mut self, id: u64, basis_points: u128, reporter: Option<(Party, u128)>) {
        let amount = self.cut(id, basis_points);
        let bounty = reporter.map_or(0, |(_, part)| amount * part / 10_000);
        if let (Some((party, _)), true) = (reporter, bounty > 0) {
            self.credit(party, bounty);
        }
        self.burned += amount - bounty;
    }

    /// Takes ten-thousandths of a bond until the penalty is decided, and returns the amount.
    pub(super) fn hold(&mut self, id: u64, basis_points: u128) -> u128 {
        let amount = self.cut(id, basis_points);
        self.held += amount;
        amount
    }

    pub(super) fn give_back(&mut self, owner: Party, amount: u128) {
        self.held -= amount;
        self.credit(owner, amount);
    }

    pub(super) const fn burn_held(&mut self, amount: u128) {
        self.held -= amount;
        self.burned += amount;
    }

    pub(super) fn reserve(&mut self, part: u128, most: u128) -> u128 {
        let amount = (self.pot / part).min(most);
        self.pot -= amount;
        self.reserved += amount;
        amount
    }

    pub(super) fn share(&mut self, id: u64, amount: u128) {
        let Some(owner) = self.validators.get(&id).map(|validator| validator.withdrawal) else { return };
        self.reserved -= amount;
        self.credit(owner, amount);
    }

    fn credit(&mut self, owner: Party, amount: u128) {
        if amount > 0 {
            *self.credits.entry(owner).or_default() += amount;
        }
    }

    fn cut(&mut self, id: u64, basis_points: u128) -> u128 {
        let Some(validator) = self.validators.get_mut(&id) else { return 0 };
        let amount = validator.bond * basis_points / 10_000;
        validator.bond -= amount;
        amount
    }

    fn serve(&mut self, id: u64, operator: Party) -> Result<(), Revert> {
        if self.served.contains_key(&operator) {
            return Err(Revert::OperatorTaken);
        }
        self.served.insert(operator, id);
        Ok(())
    }
}
