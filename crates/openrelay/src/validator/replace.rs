//! `openrelay validator replace-key`: another key votes for the validator.
//!
//! Owns the order of the steps, each of which can be repeated after a crash: a new key in the folder, its naming by
//! the withdrawal address, the contract's `takeOver`, the change of the files. Replaced keys stay in the folder,
//! because the salts of open commitments are derived from them.

use std::fs;
use std::path::{Path, PathBuf};

use alloy_primitives::{Address, U256};
use alloy_sol_types::SolCall;
use openrelay_chain::voting::ValidatorSet;

use super::{Folder, KEY, Standing};
use crate::account::GAS_FUNDS;
use crate::confirm::confirm;
use crate::failure::Failure;
use crate::keystore;
use crate::output::{say, talk};
use crate::rpc::faucet;
use crate::units::Ether;

/// The file with the key that has not taken over yet.
const NEXT: &str = "validator-next-key.json";
/// The files with replaced keys: this, and the address.
const REPLACED: &str = "validator-replaced-";

/// The options of `replace-key`.
#[derive(clap::Args)]
pub(crate) struct ReplaceArguments {
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Keystore of the withdrawal address, to name the new key
    ///
    /// Without it, name the key with the wallet that has the withdrawal address.
    #[arg(long, value_name = "FILE")]
    withdrawal_key: Option<PathBuf>,
    /// File with the password of that keystore
    #[arg(long, value_name = "FILE", requires = "withdrawal_key")]
    withdrawal_password_file: Option<PathBuf>,
    /// Agree to what is lost
    #[arg(long)]
    yes: bool,
    /// File with the voting key's password; the new key gets it
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

/// Returns the files with replaced keys.
pub(super) fn replaced(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(REPLACED)).map(|entry| entry.path())
}

/// Takes the next steps of replacing the key, as far as they can be taken.
pub(super) fn replace_key(arguments: &ReplaceArguments) -> Result<(), Failure> {
    let folder = Folder::open(&arguments.dir)?;
    let Standing { id, shown } = folder.bonded()?;
    let next = folder.account.path.join(NEXT);
    if next.exists() && keystore::address(&next)? == shown.operator {
        // An earlier call was killed between `takeOver` and this.
        return exchange(&folder, &next);
    }
    if shown.status != 1 {
        return Err(Failure::new(3, "only an active validator can replace its key"));
    }
    let password = keystore::password(arguments.password_file.as_deref(), false)?;
    // The new key gets the same password, which later also opens the old one.
    keystore::open(&folder.account.path.join(KEY), &password)?;
    if !next.exists() {
        keystore::create(&next, &password)?;
    }
    let wanted = keystore::address(&next)?;
    if folder.ask(folder.validators, &ValidatorSet::nextOperatorOfCall { validatorId: id })? != wanted {
        name(&folder, arguments, (id, shown.withdrawal), wanted)?;
    }
    agree(&folder, (id, &shown), wanted, arguments.yes)?;
    let sender = folder.account.sender_of(keystore::open(&next, &password)?);
    let token = folder.ask(folder.validators, &ValidatorSet::tokenCall {})?;
    if folder.account.ether_of(wanted)? < GAS_FUNDS {
        faucet(&folder.account.chain, sender.endpoint(), wanted, token, U256::ZERO)?;
    }
    let call = ValidatorSet::takeOverCall { validatorId: id };
    let receipt = sender.send("take over", folder.validators, &call.abi_encode())?;
    talk(&format!("openrelay: taken over in block {}", receipt.block));
    exchange(&folder, &next)
}

/// Has the withdrawal address name the new key, if its keystore is given.
///
/// # Errors
/// Exit code 3, with what to do, without its keystore.
fn name(
    folder: &Folder,
    arguments: &ReplaceArguments,
    (id, withdrawal): (u64, Address),
    wanted: Address,
) -> Result<(), Failure> {
    let Some(path) = &arguments.withdrawal_key else {
        let call = format!("setOperator({id}, {wanted}) of the contract {}", folder.validators);
        let how = "with its wallet, or give its keystore with --withdrawal-key; then run this again";
        return Err(Failure::new(3, format!("the address {withdrawal} must call {call}: {how}")));
    };
    if keystore::address(path)? != withdrawal {
        return Err(Failure::plain(format!("{} is not the key of the address {withdrawal}", path.display())));
    }
    let password = keystore::password(arguments.withdrawal_password_file.as_deref(), false)?;
    let sender = folder.account.sender_of(keystore::open(path, &password)?);
    let call = ValidatorSet::setOperatorCall { validatorId: id, operator: wanted };
    let receipt = sender.send("name the next key", folder.validators, &call.abi_encode())?;
    talk(&format!("openrelay: the key {wanted} was named in block {}", receipt.block));
    Ok(())
}

fn agree(
    folder: &Folder,
    (id, shown): (u64, &ValidatorSet::Validator),
    wanted: Address,
    yes: bool,
) -> Result<(), Failure> {
    let old = shown.operator;
    let mut costs = vec![
        format!("the key {old} never votes again, for this or any other validator: nothing undoes this"),
        "a running openrelay validator run must be started again".into(),
        format!("the key {wanted} needs about {} for gas of each round", Ether(GAS_FUNDS)),
    ];
    if shown.locks != 0 {
        let file = folder.account.path.join(format!("{REPLACED}{old}.json"));
        costs.push(format!("{} open commitments need the old key, which stays in {}", shown.locks, file.display()));
    }
    confirm(&format!("the key {wanted} votes for validator {id}"), &costs, yes)
}

/// Keeps the old key under another name and puts the new one in its place. The folder has a voting key at any time.
fn exchange(folder: &Folder, next: &Path) -> Result<(), Failure> {
    let own = folder.account.path.join(KEY);
    let kept = folder.account.path.join(format!("{REPLACED}{}.json", folder.account.address()?));
    let change = |error: std::io::Error| Failure::plain(format!("cannot replace {}: {error}", own.display()));
    if !kept.exists() {
        fs::hard_link(&own, &kept).map_err(change)?;
    }
    fs::rename(next, &own).map_err(change)?;
    say(&format!("validator_key {}", folder.account.address()?));
    Ok(())
}
