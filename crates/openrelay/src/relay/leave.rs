//! How a relay leaves: its operator hears what that costs, agrees, and takes one step at a time.
//!
//! Owns the words about the loss. Each step is read from the chain, told, agreed to, and only then signed.

use std::path::Path;

use alloy_primitives::{B256, U256, keccak256};
use alloy_sol_types::SolCall;
use openrelay_chain::journal::Sender;
use openrelay_chain::registry::RelayRegistry;
use openrelay_ledger::chain::set::Status;

use super::folder::Folder;
use crate::confirm::confirm;
use crate::failure::Failure;
use crate::output::{quoted, say};
use crate::rpc::block_time;
use crate::units::{Unit, span};

pub(super) const DRAIN: &str = "drain";
const UNBOND: &str = "unbond";
const DRAINED: &str =
    "no new circuits are accepted; when the old ones have ended, run this again to start the bond's notice";

/// What an operator has agreed to, and with which password.
#[derive(Clone, Copy)]
pub(super) struct Consent<'a> {
    pub(super) yes: bool,
    pub(super) password_file: Option<&'a Path>,
}

/// Stops serving, and starts the bond's notice period.
pub(super) fn unbond(folder: &Folder, consent: Consent<'_>) -> Result<(), Failure> {
    let relay_id = folder.registered()?;
    let Some((standing, shown)) = folder.registration(relay_id)? else { return gone() };
    if standing.status == Status::Unbonding {
        return Err(Failure::new(3, format!("relay {relay_id} is leaving already; {}", free(folder, &shown)?)));
    }
    agree_to_unbond(folder, (relay_id, &shown), consent.yes)?;
    change(folder, &folder.sender(consent.password_file)?, UNBOND, unbond_call)
}

/// Takes the next step of leaving, and prints which step follows.
pub(super) fn retire(folder: &Folder, consent: Consent<'_>) -> Result<(), Failure> {
    let relay_id = folder.registered()?;
    let Some((standing, shown)) = folder.registration(relay_id)? else { return gone() };
    match standing.status {
        Status::Active => {
            let costs = [
                "no client opens a new circuit through it, so it earns less and then nothing".into(),
                format!("it can be undone: openrelay relay drain --undo --dir {}", quoted(folder.path())),
            ];
            confirm(&format!("relay {relay_id} stops accepting circuits"), &costs, consent.yes)?;
            let sender = folder.sender(consent.password_file)?;
            if sender.resume(DRAIN)?.is_some() {
                sender.forget()?;
            } else {
                change(folder, &sender, DRAIN, |relay_id, hash| drain_call(relay_id, true, hash))?;
            }
            say(DRAINED);
        }
        Status::Draining => {
            agree_to_unbond(folder, (relay_id, &shown), consent.yes)?;
            let sender = folder.sender(consent.password_file)?;
            // A step that was agreed to earlier, and whose result nobody has seen, is not followed by the next one.
            if sender.resume(DRAIN)?.is_some() {
                sender.forget()?;
                say(DRAINED);
                return Ok(());
            }
            change(folder, &sender, UNBOND, unbond_call)?;
            say("the relay no longer serves; stop it. The bond is free after 14 days; run this again then");
        }
        Status::Unbonding => {
            if shown.timer.to::<u64>() > block_time(&folder.account.endpoint())? {
                return Err(Failure::new(3, format!("{}; run this again then", free(folder, &shown)?)));
            }
            let call = RelayRegistry::withdrawCall { relayId: relay_id };
            let sender = folder.sender(consent.password_file)?;
            sender.send("withdraw the bond", folder.account.chain.registry, &call.abi_encode())?;
            say(&format!("the bond was paid to {}", shown.withdrawal));
        }
    }
    Ok(())
}

fn gone() -> Result<(), Failure> {
    say("the relay has left and its bond was paid; nothing is left to do");
    Ok(())
}

fn free(folder: &Folder, shown: &RelayRegistry::Relay) -> Result<String, Failure> {
    let left = shown.timer.to::<u64>().saturating_sub(block_time(&folder.account.endpoint())?);
    Ok(if left == 0 { "the bond is free".into() } else { format!("the bond is free in about {}", span(left)) })
}

fn agree_to_unbond(folder: &Folder, (relay_id, shown): (u64, &RelayRegistry::Relay), yes: bool) -> Result<(), Failure> {
    let token = folder.ask(&RelayRegistry::tokenCall {})?;
    let days: u64 = folder.ask(&RelayRegistry::UNBONDINGCall {})?.to();
    let bond = Unit::of(&folder.account.endpoint(), token).show(U256::from(shown.bond));
    let costs = [
        "the relay serves no more clients and earns nothing from now on; running circuits end".into(),
        format!(
            "the bond of {bond} is locked for {}, can be slashed meanwhile, and then goes to {}",
            span(days),
            shown.withdrawal
        ),
        format!("relay ID {relay_id} is gone for good: nothing undoes this, and to serve again you bond a new relay"),
    ];
    confirm(&format!("relay {relay_id} leaves"), &costs, yes)
}

fn unbond_call(relay_id: u64, hash: B256) -> Vec<u8> {
    RelayRegistry::unbondCall { relayId: relay_id, descriptorHash: hash }.abi_encode()
}

pub(super) fn drain_call(relay_id: u64, draining: bool, hash: B256) -> Vec<u8> {
    RelayRegistry::drainCall { relayId: relay_id, draining, descriptorHash: hash }.abi_encode()
}

/// Sends a change that names the hash of the current descriptor.
pub(super) fn change(
    folder: &Folder,
    sender: &Sender,
    name: &str,
    call: impl Fn(u64, B256) -> Vec<u8>,
) -> Result<(), Failure> {
    let relay_id = folder.registered()?;
    let hash = keccak256(folder.published(relay_id)?);
    let receipt = sender.send(name, folder.account.chain.registry, &call(relay_id, hash))?;
    say(&format!("{name}: block {} ({} gas)", receipt.block, receipt.gas_used));
    Ok(())
}
