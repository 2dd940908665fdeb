//! `openrelay validator status`: what the chain says of a validator, as text and as JSON.
//!
//! Owns the schema `openrelay.validator-status/1`, from which the text is made too.

use std::collections::BTreeSet;

use alloy_primitives::{Address, U256};
use openrelay_chain::voting::{ImageRegistry, ValidatorSet};
use openrelay_node::clock::unix_seconds;
use serde::Serialize;

use super::round::{RoundV1, answered, shown};
use super::{Folder, Standing};
use crate::account::GAS_FUNDS;
use crate::failure::Failure;
use crate::output::{Reason, say, say_json, talk};
use crate::units::{Ether, Tokens, Unit, span};

/// The number of newest rounds to show. Older ones are shown if the folder has an answer.
const ROUNDS: u64 = 30;

/// The status of a validator. What is not known is `null`.
#[derive(Serialize)]
struct ValidatorStatusV1 {
    schema: &'static str,
    /// Address of the voting key.
    #[serde(with = "openrelay_ledger::address")]
    key: Address,
    gas_wei: Ether,
    /// Whether the key votes for the validator at present.
    voting: bool,
    /// Why it does not vote.
    reason: Option<Reason>,
    validator: Option<u64>,
    bond: Option<Tokens>,
    /// Commitments that are not settled; the bond stays locked with them.
    open_commitments: Option<u16>,
    #[serde(with = "openrelay_ledger::address::optional")]
    withdrawal: Option<Address>,
    claimable: Option<Tokens>,
    /// When the bond is free, in seconds since the Unix epoch; `null` for a validator that is not leaving.
    free_at: Option<u64>,
    rounds: Vec<RoundV1>,
}

/// Prints the state of the validator and its open duties.
///
/// # Errors
/// Exit code 3, with the reason, if it does not vote.
pub(super) fn status(folder: &Folder, as_json: bool) -> Result<(), Failure> {
    let key = folder.account.address()?;
    let mut this = ValidatorStatusV1 {
        schema: "openrelay.validator-status/1",
        key,
        gas_wei: Ether(folder.account.ether_of(key)?),
        voting: false,
        reason: None,
        validator: None,
        bond: None,
        open_commitments: None,
        withdrawal: None,
        claimable: None,
        free_at: None,
        rounds: Vec::new(),
    };
    this.reason = match folder.bonded() {
        Ok(standing) => this.read(folder, &standing)?,
        // Only a key without a validator is a status; other failures are failures.
        Err(failure) if failure.code() == 3 => Some(Reason::of("not-bonded", &failure)),
        Err(failure) => return Err(failure),
    };
    this.voting = this.reason.is_none();
    if as_json {
        say_json(&this);
    } else {
        this.lines().iter().for_each(|line| say(line));
    }
    if this.voting && this.gas_wei.0 < GAS_FUNDS {
        talk(&format!("openrelay: warning: send {key} some ether; a round may cost more than it has"));
    }
    this.reason.map_or(Ok(()), |reason| Err(reason.into()))
}

impl ValidatorStatusV1 {
    /// Reads what is known of the validator, and returns why it does not vote.
    fn read(&mut self, folder: &Folder, standing: &Standing) -> Result<Option<Reason>, Failure> {
        let Standing { id, shown: held } = standing;
        let unit: Unit = folder.unit()?;
        let credit = folder.ask(folder.validators, &ValidatorSet::creditOfCall { owner: held.withdrawal })?;
        self.validator = Some(*id);
        self.bond = Some(unit.show(U256::from(held.bond)));
        self.open_commitments = Some(held.locks);
        self.withdrawal = Some(held.withdrawal);
        self.claimable = Some(unit.show(credit));
        let count = folder.ask(folder.images, &ImageRegistry::roundCountCall {})?;
        let mut numbers: BTreeSet<u64> = ((count.saturating_sub(ROUNDS) + 1)..=count).collect();
        numbers.extend(answered(&folder.account.path));
        for number in numbers {
            self.rounds.extend(shown(folder, number, *id)?);
        }
        let free_at: u64 = held.freeAt.to();
        Ok(match held.status {
            1 if held.bond.is_zero() => Some(Reason::new(3, "no-bond", "its whole bond was taken; it can only leave")),
            1 if held.operator != self.key => Some(Reason::new(3, "other-key", "another key votes for this validator")),
            1 => None,
            2 => {
                self.free_at = Some(free_at);
                let left = span(free_at.saturating_sub(unix_seconds()));
                Some(Reason::new(3, "leaving", format!("leaving; its bond is free in {left}")))
            }
            _ => Some(Reason::new(3, "left", "it has left and its bond was paid")),
        })
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("key            {}   {} for gas", self.key, self.gas_wei)];
        if let (Some(id), Some(bond), Some(locks)) = (self.validator, &self.bond, self.open_commitments) {
            lines.push(format!("validator      {id}   bond {bond}, {locks} open commitments"));
        }
        if let (Some(withdrawal), Some(claimable)) = (self.withdrawal, &self.claimable) {
            lines.push(format!("paid to        {withdrawal}   {claimable} can be claimed"));
        }
        lines.extend(self.rounds.iter().map(RoundV1::line));
        lines
    }
}
