//! `openrelay validator`: runs a validator on a chain, from its key to its votes.
//!
//! Owns a validator's folder and the commands. `vote` takes the findings of a round as arguments; `run` finds them
//! itself.

mod accuse;
mod builds;
mod collateral;
mod leave;
mod replace;
mod round;
mod run;
mod status;
mod tree;
mod vendors;

pub(crate) use collateral::ENDING as COLLATERAL_ENDING;
pub(crate) use round::Found;
pub(crate) use run::RunArguments;

use std::path::{Path, PathBuf};

use alloy_primitives::{Address, U256};
use alloy_sol_types::SolCall;
use k256::ecdsa::SigningKey;
use openrelay_chain::Endpoint;
use openrelay_chain::journal::Sender;
use openrelay_chain::voting::ValidatorSet;
use openrelay_node::chain_file::ChainFile;
use openrelay_node::config::read;
use serde::{Deserialize, Serialize};

use crate::account::{Account, CHAIN};
use crate::failure::Failure;
use crate::keystore;
use crate::output::{quoted, say, talk};
use crate::program::Program;
use crate::units::Unit;

const PLAN: &str = "validator.toml";
const KEY: &str = "validator-key.json";

/// The operator's settings for the validator.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ValidatorPlan {
    #[serde(with = "openrelay_ledger::address")]
    withdrawal: Address,
    /// The family that it belongs to; without one it forms its own family.
    #[serde(default, with = "openrelay_ledger::address::optional", skip_serializing_if = "Option::is_none")]
    family: Option<Address>,
    /// The bond in the token's smallest unit.
    bond: u128,
}

/// A validator's folder, and the addresses of the contracts.
struct Folder {
    account: Account,
    plan: ValidatorPlan,
    images: Address,
    validators: Address,
}

/// A validator as the chain has it.
struct Standing {
    id: u64,
    shown: ValidatorSet::Validator,
}

#[derive(clap::Subcommand)]
pub(crate) enum ValidatorCommand {
    /// Make the voting key and its folder
    Init {
        /// Folder to write
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Chain file
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
        /// Address that receives payments; keep its key offline
        #[arg(long, value_name = "ADDRESS", value_parser = openrelay_ledger::address::parse)]
        withdrawal: Address,
        /// Address of the family that admitted this key
        ///
        /// Without it the validator forms its own family.
        #[arg(long, value_name = "ADDRESS", value_parser = openrelay_ledger::address::parse)]
        family: Option<Address>,
        /// Bond in the token's smallest unit
        #[arg(long, value_name = "AMOUNT")]
        bond: u128,
        /// File with the password in line 1; `-` for stdin
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Post the bond and join the validators
    Bond {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Show status, open duties, and why it does not vote
    Status {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Run unattended: rebuild, vote, publish, check relays
    ///
    /// Rebuilds proposals, votes on them, publishes its votes, and spot-checks the evidence of relays.
    Run(RunArguments),
    /// Print the hashes that a release of this tree must name
    Source {
        /// Source tree
        #[arg(default_value = ".")]
        tree: PathBuf,
    },
    /// Report a validator that signed two different answers
    ///
    /// Takes two attestations of one validator with different values for one round.
    Report {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// First attestation
        one: PathBuf,
        /// Second attestation
        other: PathBuf,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Stop voting, and start the bond's notice period
    ///
    /// Says what is lost. Without consent it changes nothing and ends with exit code 2.
    Unbond {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Agree to what is lost
        #[arg(long)]
        yes: bool,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Pay the bond back after its notice period
    Withdraw {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Pay out what the validator has earned
    Claim {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Replace the voting key, step by step
    ///
    /// Makes a new key, has the withdrawal address name it, and takes over with it. Run it again after each step.
    ReplaceKey(replace::ReplaceArguments),
    /// Vote to suspend or revoke an approved image
    ///
    /// Says what can be lost. Without consent it changes nothing and ends with exit code 2.
    Accuse(accuse::AccuseArguments),
    /// Take a round's next step: commit, reveal, finish, settle
    Vote {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Number of the round
        round: u64,
        #[command(flatten)]
        answer: VoteAnswer,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
}

/// What the validator found; needed once, to commit.
#[derive(clap::Args)]
#[group(multiple = true)]
pub(crate) struct VoteAnswer {
    /// SHA-256 of the rebuilt image
    #[arg(long, value_name = "SHA256", requires = "measurements", conflicts_with_all = ["failed", "abstain"])]
    image: Option<alloy_primitives::B256>,
    /// SHA-256 of the image's list of measurements
    #[arg(long, value_name = "SHA256", requires = "image")]
    measurements: Option<alloy_primitives::B256>,
    /// SHA-256 of the log of a failed build
    #[arg(long, value_name = "SHA256", conflicts_with = "abstain")]
    failed: Option<alloy_primitives::B256>,
    /// Abstain; only the first abstention in a row costs nothing
    #[arg(long)]
    abstain: bool,
}

impl VoteAnswer {
    fn given(&self) -> Option<Found> {
        match (self.image.zip(self.measurements), self.failed) {
            (Some((image, measurements)), _) => Some(Found::Image { image, measurements }),
            (None, Some(log)) => Some(Found::Failed { log }),
            (None, None) => self.abstain.then_some(Found::Abstain {}),
        }
    }
}

pub(crate) fn run(program: &Program, command: &ValidatorCommand) -> Result<(), Failure> {
    match command {
        ValidatorCommand::Init { dir, chain, withdrawal, family, bond, password_file } => {
            let plan = ValidatorPlan { withdrawal: *withdrawal, family: *family, bond: *bond };
            init(dir, chain, &plan, password_file.as_deref())
        }
        ValidatorCommand::Bond { dir, password_file } => bond(&Folder::open(dir)?, password_file.as_deref()),
        ValidatorCommand::Status { dir, json } => status::status(&Folder::open(dir)?, *json),
        ValidatorCommand::Run(arguments) => run::run(program, arguments),
        ValidatorCommand::Source { tree } => run::source(tree),
        ValidatorCommand::Report { dir, one, other, password_file } => {
            run::report(&Folder::open(dir)?, [one, other], password_file.as_deref())
        }
        ValidatorCommand::Unbond { dir, yes, password_file } => {
            leave::unbond(&Folder::open(dir)?, *yes, password_file.as_deref())
        }
        ValidatorCommand::Withdraw { dir, password_file } => {
            leave::withdraw(&Folder::open(dir)?, password_file.as_deref())
        }
        ValidatorCommand::Claim { dir, password_file } => leave::claim(&Folder::open(dir)?, password_file.as_deref()),
        ValidatorCommand::ReplaceKey(arguments) => replace::replace_key(arguments),
        ValidatorCommand::Accuse(arguments) => accuse::accuse(arguments),
        ValidatorCommand::Vote { dir, round, answer, password_file } => {
            let folder = Folder::open(dir)?;
            round::step(&folder, round::Contest::Images, *round, answer.given(), password_file.as_deref())
        }
    }
}

impl Folder {
    fn open(path: &Path) -> Result<Self, Failure> {
        let plan: ValidatorPlan = read(&path.join(PLAN)).map_err(Failure::plain)?;
        let account = Account::open(path, KEY)?;
        let (images, validators) = contracts(&account.chain, &path.join(CHAIN))?;
        Ok(Self { account, plan, images, validators })
    }

    fn key(&self, password_file: Option<&Path>) -> Result<SigningKey, Failure> {
        self.account.signing_key(password_file)
    }

    /// Returns the voting key, and those that it has replaced and that its password opens.
    fn keys(&self, password_file: Option<&Path>) -> Result<Keys, Failure> {
        let password = keystore::password(password_file, false)?;
        let voting = keystore::open(&self.account.path.join(KEY), &password)?;
        let replaced = replace::replaced(&self.account.path);
        Ok(Keys { voting, replaced: replaced.filter_map(|path| keystore::open(&path, &password).ok()).collect() })
    }

    fn sender(&self, key: SigningKey) -> Sender {
        self.account.sender_of(key)
    }

    fn endpoint(&self) -> Endpoint {
        self.account.endpoint()
    }

    fn ask<C: SolCall>(&self, to: Address, call: &C) -> Result<C::Return, Failure> {
        self.account.ask(to, call)
    }

    /// Returns how amounts of the bonds' token are shown.
    fn unit(&self) -> Result<Unit, Failure> {
        Ok(Unit::of(&self.endpoint(), self.ask(self.validators, &ValidatorSet::tokenCall {})?))
    }

    fn standing(&self) -> Result<Option<Standing>, Failure> {
        let (validators, operator) = (self.validators, self.account.address()?);
        let id = self.ask(validators, &ValidatorSet::validatorOfCall { operator })?;
        if id == 0 {
            return Ok(None);
        }
        let shown = self.ask(validators, &ValidatorSet::getCall { validatorId: id })?;
        Ok(Some(Standing { id, shown }))
    }

    fn bonded(&self) -> Result<Standing, Failure> {
        let next = format!(
            "this key has no validator yet; run: openrelay validator bond --dir {}",
            quoted(&self.account.path)
        );
        self.standing()?.ok_or_else(|| Failure::new(3, next))
    }
}

/// The keys of a folder.
struct Keys {
    voting: SigningKey,
    /// Keys that voted earlier. They can only open what they have committed.
    replaced: Vec<SigningKey>,
}

impl Keys {
    fn all(&self) -> impl Iterator<Item = &SigningKey> {
        std::iter::once(&self.voting).chain(&self.replaced)
    }
}

/// Returns the addresses of the ImageRegistry and the ValidatorSet. They are trusted like the rest of the chain file,
/// because bonds are paid to these contracts.
fn contracts(chain: &ChainFile, path: &Path) -> Result<(Address, Address), Failure> {
    let missing =
        || format!("{}: images and validators must be set to the ImageRegistry and ValidatorSet", path.display());
    chain.images.zip(chain.validators).ok_or_else(|| Failure::plain(missing()))
}

fn init(dir: &Path, chain: &Path, plan: &ValidatorPlan, password_file: Option<&Path>) -> Result<(), Failure> {
    let account = Account::planned(dir, chain, KEY)?;
    contracts(&account.chain, chain)?;
    if plan.withdrawal == Address::ZERO || plan.bond == 0 {
        return Err(Failure::new(2, "the withdrawal address and the bond must not be zero"));
    }
    let address = account.create(chain, (PLAN, &to_toml(plan)?), password_file)?;
    say(&format!("validator_key {address}"));
    talk(&format!(
        "openrelay: the folder {0} holds the voting key; keep a copy of it. \
         Send {address} the bond and some ether, then run: openrelay validator bond --dir {0}",
        quoted(dir)
    ));
    Ok(())
}

fn to_toml(plan: &ValidatorPlan) -> Result<String, Failure> {
    let text = toml::to_string(plan).map_err(Failure::plain)?;
    Ok(format!("# Settings of the validator; the bond is in the token's smallest unit.\n{text}"))
}

/// Joins the validators with the bond. Prints only the validator's number if it has joined already.
fn bond(folder: &Folder, password_file: Option<&Path>) -> Result<(), Failure> {
    if let Some(standing) = folder.standing()? {
        say(&format!("validator {}", standing.id));
        return Ok(());
    }
    let (token, unit) = (folder.ask(folder.validators, &ValidatorSet::tokenCall {})?, folder.unit()?);
    let least = folder.ask(folder.validators, &ValidatorSet::minBondCall {})?;
    let needed = U256::from(folder.plan.bond);
    let said = unit.show(needed);
    if needed < U256::from(least) {
        let least = unit.show(U256::from(least));
        return Err(Failure::plain(format!("{PLAN}: the bond of {said} is below the minimum of {least}")));
    }
    let too_much = |_| Failure::plain(format!("{PLAN}: the bond of {said} is too large"));
    let amount = folder.plan.bond.try_into().map_err(too_much)?;
    let sender = folder.sender(folder.key(password_file)?);
    folder.account.approve_bond(&sender, (token, folder.validators), needed)?;
    let call = ValidatorSet::joinCall {
        family: folder.plan.family.unwrap_or(sender.address()),
        withdrawal: folder.plan.withdrawal,
        amount,
    };
    let receipt = sender.send("join the validators", folder.validators, &call.abi_encode())?;
    talk(&format!("openrelay: joined in block {} with a bond of {said}", receipt.block));
    say(&format!("validator {}", folder.bonded()?.id));
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
    use super::*;

    #[test]
    fn written_plan_is_read_back_unchanged() {
        let plan = ValidatorPlan { withdrawal: Address::repeat_byte(0xab), family: None, bond: 10u128.pow(21) };
        for plan in [plan.clone(), ValidatorPlan { family: Some(Address::repeat_byte(0xcd)), ..plan }] {
            assert_eq!(toml::from_str::<ValidatorPlan>(&to_toml(&plan).unwrap()).unwrap(), plan);
        }
    }
}
