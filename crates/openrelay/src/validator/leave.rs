//! How a validator leaves, and how it is paid.
//!
//! Owns the words about the loss. The contract pays only to the withdrawal address, whoever calls it.

use std::path::Path;

use alloy_primitives::U256;
use alloy_sol_types::SolCall;
use openrelay_chain::voting::ValidatorSet;

use super::{Folder, Standing};
use crate::confirm::confirm;
use crate::failure::Failure;
use crate::output::{quoted, say};
use crate::rpc::block_time;
use crate::units::span;

/// The contract's numbers for the status of a validator.
const ACTIVE: u8 = 1;
const UNBONDING: u8 = 2;

/// Stops voting, and starts the bond's notice period.
pub(super) fn unbond(folder: &Folder, yes: bool, password_file: Option<&Path>) -> Result<(), Failure> {
    let Standing { id, shown } = folder.bonded()?;
    match shown.status {
        ACTIVE => {}
        UNBONDING => return Err(Failure::new(3, format!("it is leaving already; {}", free(folder, &shown)?))),
        _ => return left(id),
    }
    let bond = folder.unit()?.show(U256::from(shown.bond));
    let days: u64 = folder.ask(folder.validators, &ValidatorSet::UNBONDINGCall {})?.to();
    let mut costs = vec![
        "it has no weight in later rounds and earns nothing there".into(),
        format!(
            "the bond of {bond} is locked for {}, can be slashed meanwhile, and then goes to {}",
            span(days),
            shown.withdrawal
        ),
        "this key never votes again, for any validator: nothing undoes this, and to vote again you bond another key"
            .into(),
    ];
    if shown.locks != 0 {
        costs.push(format!("it must still reveal and settle its {} open commitments; keep running it", shown.locks));
    }
    confirm(&format!("validator {id} leaves"), &costs, yes)?;
    let sender = folder.account.sender(password_file)?;
    let call = ValidatorSet::unbondCall { validatorId: id };
    let receipt = sender.send("unbond", folder.validators, &call.abi_encode())?;
    let next = format!("then: openrelay validator withdraw --dir {}", quoted(&folder.account.path));
    say(&format!("unbond: block {}; the bond is free in {}; {next}", receipt.block, span(days)));
    Ok(())
}

/// Pays the bond to the withdrawal address.
pub(super) fn withdraw(folder: &Folder, password_file: Option<&Path>) -> Result<(), Failure> {
    let Standing { id, shown } = folder.bonded()?;
    match shown.status {
        ACTIVE => return Err(Failure::new(3, "it is not leaving; first run: openrelay validator unbond")),
        UNBONDING => {}
        _ => return left(id),
    }
    if shown.freeAt.to::<u64>() > block_time(&folder.endpoint())? {
        return Err(Failure::new(3, format!("{}; run this again then", free(folder, &shown)?)));
    }
    if shown.locks != 0 {
        let why = format!("{} commitments are open; settle them with openrelay validator vote or accuse", shown.locks);
        return Err(Failure::new(3, format!("the bond cannot be paid yet: {why}")));
    }
    let bond = folder.unit()?.show(U256::from(shown.bond));
    let call = ValidatorSet::withdrawCall { validatorId: id };
    folder.account.sender(password_file)?.send("withdraw the bond", folder.validators, &call.abi_encode())?;
    say(&format!("the bond of {bond} was paid to {}", shown.withdrawal));
    Ok(())
}

/// Pays what can be claimed to the withdrawal address.
pub(super) fn claim(folder: &Folder, password_file: Option<&Path>) -> Result<(), Failure> {
    let owner = folder.bonded()?.shown.withdrawal;
    let credit = folder.ask(folder.validators, &ValidatorSet::creditOfCall { owner })?;
    if credit.is_zero() {
        say("nothing can be claimed");
        return Ok(());
    }
    let call = ValidatorSet::claimCall { owner };
    folder.account.sender(password_file)?.send("claim", folder.validators, &call.abi_encode())?;
    say(&format!("{} were paid to {owner}", folder.unit()?.show(credit)));
    Ok(())
}

fn left(id: u64) -> Result<(), Failure> {
    say(&format!("validator {id} has left and its bond was paid; nothing is left to do"));
    Ok(())
}

fn free(folder: &Folder, shown: &ValidatorSet::Validator) -> Result<String, Failure> {
    let left = shown.freeAt.to::<u64>().saturating_sub(block_time(&folder.endpoint())?);
    Ok(if left == 0 { "the bond is free".into() } else { format!("the bond is free in about {}", span(left)) })
}
