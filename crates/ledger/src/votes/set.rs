//! Validators, their bonds, and all money that votes move. The contract: `ValidatorSet`.

use std::collections::{BTreeMap, BTreeSet};

use super::{Party, Refusal};

/// Seconds that a bond is held after its validator has left.
pub const UNBONDING: u64 = 21 * 86_400;

/// Where a validator stands.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Status {
    /// Has its bond back.
    Gone,
    /// Votes.
    Active,
    /// Leaves.
    Unbonding,
}

/// One validator.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Validator {
    /// Its hot key.
    pub operator: Option<Party>,
    /// The hot key that is to take over.
    pub next_operator: Option<Party>,
    /// Who is paid.
    pub withdrawal: Party,
    /// Whose it is.
    pub family: Party,
    /// In the token's smallest unit.
    pub bond: u128,
    /// Open commitments.
    pub locks: u16,
    /// Where it stands.
    pub status: Status,
    /// When an unbonding one is free.
    pub free_at: u64,
}

/// All validators, and each token in one place.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Set {
    /// Smallest bond to join with.
    pub min_bond: u128,
    /// By number, from 1.
    pub validators: BTreeMap<u64, Validator>,
    /// Which validator a hot key has ever served.
    pub served: BTreeMap<Party, u64>,
    /// Family and hot key that it lets in.
    pub admits: BTreeSet<(Party, Party)>,
    /// Deposits, and what is undecided.
    pub held: u128,
    /// What each may claim.
    pub credits: BTreeMap<Party, u128>,
    /// What future rounds earn.
    pub pot: u128,
    /// What finished rounds have earned and is not shared out.
    pub reserved: u128,
    /// What belongs to nobody.
    pub burned: u128,
    /// Rounds in a row in which a validator gave no answer; where there were none, it has no entry.
    pub idle: BTreeMap<u64, u128>,
}

/// What everybody weighs at one moment.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Snapshot {
    /// The sum of all families, each capped.
    pub total: u128,
    /// What one family weighs at most.
    pub cap: u128,
    /// Weight and family of each that weighs something.
    pub weights: BTreeMap<u64, (u128, Party)>,
}

impl Snapshot {
    /// What a validator weighs.
    pub fn weight(&self, validator: u64) -> u128 {
        self.weights.get(&validator).map_or(0, |(weight, _)| *weight)
    }
}

impl Set {
    /// Nobody yet.
    pub const fn new(min_bond: u128) -> Self {
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

    /// All money that is here.
    pub fn money(&self) -> u128 {
        let bonds: u128 = self.validators.values().map(|validator| validator.bond).sum();
        let credits: u128 = self.credits.values().sum();
        bonds + credits + self.held + self.pot + self.reserved + self.burned
    }

    /// What everybody weighs now: a family more than the larger of a tenth and one and a half times its even share is scaled down to that.
    pub fn snapshot(&self) -> Snapshot {
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
    /// A [`Refusal`], as with all that follow.
    pub fn join(&mut self, caller: Party, family: Party, withdrawal: Party, amount: u128) -> Result<u64, Refusal> {
        if family != caller && !self.admits.contains(&(family, caller)) {
            return Err(Refusal::NotAllowed);
        }
        if amount < self.min_bond {
            return Err(Refusal::BondTooSmall);
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
    /// A [`Refusal`].
    pub fn top_up(&mut self, id: u64, amount: u128) -> Result<(), Refusal> {
        let validator = self.validators.get_mut(&id).ok_or(Refusal::WrongStatus)?;
        if validator.status != Status::Active || validator.bond == 0 {
            return Err(Refusal::WrongStatus);
        }
        validator.bond += amount;
        Ok(())
    }

    /// Lets a hot key into the caller's family.
    pub fn admit(&mut self, caller: Party, operator: Party) {
        self.admits.insert((caller, operator));
    }

    /// Names the next hot key.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn set_operator(&mut self, caller: Party, id: u64, operator: Party) -> Result<(), Refusal> {
        let validator = self.validators.get_mut(&id).ok_or(Refusal::NotAllowed)?;
        if validator.status == Status::Gone || validator.withdrawal != caller {
            return Err(Refusal::NotAllowed);
        }
        validator.next_operator = Some(operator);
        Ok(())
    }

    /// Becomes the hot key.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn take_over(&mut self, caller: Party, id: u64) -> Result<(), Refusal> {
        if self.validators.get(&id).is_none_or(|validator| validator.next_operator != Some(caller)) {
            return Err(Refusal::NotAllowed);
        }
        self.serve(id, caller)?;
        let validator = self.validators.get_mut(&id).ok_or(Refusal::NotAllowed)?;
        (validator.operator, validator.next_operator) = (Some(caller), None);
        Ok(())
    }

    /// Leaves.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn unbond(&mut self, caller: Party, id: u64, now: u64) -> Result<(), Refusal> {
        let validator = self.validators.get_mut(&id).ok_or(Refusal::WrongStatus)?;
        if validator.status != Status::Active {
            return Err(Refusal::WrongStatus);
        }
        if validator.operator != Some(caller) && validator.withdrawal != caller {
            return Err(Refusal::NotAllowed);
        }
        (validator.status, validator.free_at) = (Status::Unbonding, now + UNBONDING);
        Ok(())
    }

    /// Pays a free bond out.
    ///
    /// # Errors
    /// A [`Refusal`].
    pub fn withdraw(&mut self, id: u64, now: u64) -> Result<(Party, u128), Refusal> {
        let validator = self.validators.get_mut(&id).ok_or(Refusal::WrongStatus)?;
        if validator.status != Status::Unbonding {
            return Err(Refusal::WrongStatus);
        }
        if now < validator.free_at {
            return Err(Refusal::TooEarly);
        }
        if validator.locks != 0 {
            return Err(Refusal::Locked);
        }
        (validator.operator, validator.next_operator, validator.status) = (None, None, Status::Gone);
        Ok((validator.withdrawal, std::mem::take(&mut validator.bond)))
    }

    /// Pays out what somebody may claim.
    pub fn claim(&mut self, owner: Party) -> u128 {
        self.credits.remove(&owner).unwrap_or(0)
    }

    /// Adds to the pot.
    pub const fn fund(&mut self, amount: u128) {
        self.pot += amount;
    }

    /// Whether it has not left.
    pub(super) fn votes(&self, id: u64) -> bool {
        self.validators.get(&id).is_some_and(|validator| validator.status == Status::Active)
    }

    /// Whether this is the validator's hot key.
    pub(super) fn is_voter(&self, id: u64, caller: Party) -> Result<(), Refusal> {
        let own = self.validators.get(&id).is_some_and(|validator| validator.operator == Some(caller));
        if own { Ok(()) } else { Err(Refusal::NotTheVoter) }
    }

    /// Whether it can be locked once more.
    pub(super) fn can_lock(&self, id: u64, caller: Party) -> Result<(), Refusal> {
        self.is_voter(id, caller)?;
        match self.validators.get(&id) {
            // One of which everything was taken can only leave.
            Some(validator) if validator.status != Status::Active || validator.bond == 0 => Err(Refusal::WrongStatus),
            Some(_) | None => Ok(()),
        }
    }

    pub(super) fn lock(&mut self, id: u64, caller: Party) -> Result<(), Refusal> {
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

    /// Takes ten-thousandths of a bond; the reporter gets ten-thousandths of that, the rest is nobody's.
    pub(super) fn slash(&mut self, id: u64, basis_points: u128, reporter: Option<(Party, u128)>) {
        let amount = self.cut(id, basis_points);
        let bounty = reporter.map_or(0, |(_, part)| amount * part / 10_000);
        if let (Some((party, _)), true) = (reporter, bounty > 0) {
            self.credit(party, bounty);
        }
        self.burned += amount - bounty;
    }

    /// Takes ten-thousandths of a bond until it is decided.
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

    fn serve(&mut self, id: u64, operator: Party) -> Result<(), Refusal> {
        if self.served.contains_key(&operator) {
            return Err(Refusal::OperatorTaken);
        }
        self.served.insert(operator, id);
        Ok(())
    }
}
