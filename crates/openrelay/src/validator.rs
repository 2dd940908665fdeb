//! `openrelay validator`: runs a validator on a chain, from its key to its votes.
//!
//! Owns a validator's folder and the commands. `vote` takes the findings of a round as arguments; `run` finds them
//! itself.

mod builds;
mod collateral;
mod round;
mod run;
mod tree;
mod vendors;

pub(crate) use collateral::ENDING as COLLATERAL_ENDING;
pub(crate) use round::Found;
pub(crate) use run::RunArguments;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use alloy_primitives::{Address, U256};
use alloy_sol_types::SolCall;
use k256::ecdsa::SigningKey;
use openrelay_chain::Endpoint;
use openrelay_chain::journal::Sender;
use openrelay_chain::registry::Token;
use openrelay_chain::voting::{ImageRegistry, ValidatorSet};
use openrelay_node::chain_file::ChainFile;
use openrelay_node::clock::unix_seconds;
use openrelay_node::config::{read, read_bytes};
use openrelay_node::directory::replace;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::failure::Failure;
use crate::keystore;
use crate::output::{say, talk};
use crate::program::Program;
use crate::rpc::{ask, faucet};

const PLAN: &str = "validator.toml";
const KEY: &str = "validator-key.json";
const CHAIN: &str = "chain.toml";
/// Maximum cost of a round, in wei: one hundredth of an ether.
const GAS_FUNDS: u64 = 10_000_000_000_000_000;

/// The operator's settings for the validator.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
    path: PathBuf,
    plan: ValidatorPlan,
    chain: ChainFile,
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
        ValidatorCommand::Status { dir } => status(&Folder::open(dir)?),
        ValidatorCommand::Run(arguments) => run::run(program, arguments),
        ValidatorCommand::Source { tree } => run::source(tree),
        ValidatorCommand::Report { dir, one, other, password_file } => {
            run::report(&Folder::open(dir)?, [one, other], password_file.as_deref())
        }
        ValidatorCommand::Vote { dir, round, answer, password_file } => {
            let folder = Folder::open(dir)?;
            round::step(&folder, round::Contest::Images, *round, answer.given(), password_file.as_deref())
        }
    }
}

impl Folder {
    fn open(path: &Path) -> Result<Self, Failure> {
        let plan: ValidatorPlan = read(&path.join(PLAN)).map_err(Failure::plain)?;
        let chain = ChainFile::load(&path.join(CHAIN)).map_err(Failure::plain)?;
        let (images, validators) = contracts(&chain, &path.join(CHAIN))?;
        Ok(Self { path: path.to_owned(), plan, chain, images, validators })
    }

    fn key(&self, password_file: Option<&Path>) -> Result<SigningKey, Failure> {
        keystore::open(&self.path.join(KEY), &keystore::password(password_file, false)?)
    }

    fn sender(&self, key: SigningKey) -> Sender {
        Sender::new(&self.chain, key, &self.path)
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::new(self.chain.endpoints.first().map_or("", String::as_str))
    }

    fn ask<C: SolCall>(&self, to: Address, call: &C) -> Result<C::Return, Failure> {
        ask(&self.endpoint(), to, call)
    }

    fn standing(&self) -> Result<Option<Standing>, Failure> {
        let (validators, operator) = (self.validators, keystore::address(&self.path.join(KEY))?);
        let id = self.ask(validators, &ValidatorSet::validatorOfCall { operator })?;
        if id == 0 {
            return Ok(None);
        }
        let shown = self.ask(validators, &ValidatorSet::getCall { validatorId: id })?;
        Ok(Some(Standing { id, shown }))
    }

    fn bonded(&self) -> Result<Standing, Failure> {
        let next =
            format!("this key has no validator yet; run: openrelay validator bond --dir {}", self.path.display());
        self.standing()?.ok_or_else(|| Failure::new(3, next))
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
    contracts(&ChainFile::load(chain).map_err(Failure::plain)?, chain)?;
    if dir.join(KEY).exists() {
        return Err(Failure::plain(format!("{} already exists; nothing was changed", dir.join(KEY).display())));
    }
    if plan.withdrawal == Address::ZERO || plan.bond == 0 {
        return Err(Failure::new(2, "the withdrawal address and the bond must not be zero"));
    }
    let password = keystore::password(password_file, true)?;
    let write = |name: &str, bytes: &[u8]| {
        replace(&dir.join(name), bytes).map_err(|error| Failure::plain(format!("cannot write {name}: {error}")))
    };
    std::fs::create_dir_all(dir)
        .map_err(|error| Failure::plain(format!("cannot create {}: {error}", dir.display())))?;
    write(CHAIN, &read_bytes(chain).map_err(Failure::plain)?)?;
    write(PLAN, to_toml(plan).as_bytes())?;
    let key = keystore::create(&dir.join(KEY), &password)?;
    let address = Address::from_public_key(key.verifying_key());
    say(&format!("validator_key {address}"));
    talk(&format!(
        "openrelay: the folder {0} holds the voting key; keep a copy of it. \
         Send {address} the bond and some ether, then run: openrelay validator bond --dir {0}",
        dir.display()
    ));
    Ok(())
}

fn to_toml(plan: &ValidatorPlan) -> String {
    let family = plan.family.map(|family| format!("family = \"{family}\"\n")).unwrap_or_default();
    format!(
        "# Settings of the validator; the bond is in the token's smallest unit.\n\
         withdrawal = \"{}\"\n{family}bond = {}\n",
        plan.withdrawal, plan.bond
    )
}

/// Joins the validators with the bond. Prints only the validator's number if it has joined already.
fn bond(folder: &Folder, password_file: Option<&Path>) -> Result<(), Failure> {
    if let Some(standing) = folder.standing()? {
        say(&format!("validator {}", standing.id));
        return Ok(());
    }
    let sender = folder.sender(folder.key(password_file)?);
    let (account, validators) = (sender.address(), folder.validators);
    let token = folder.ask(validators, &ValidatorSet::tokenCall {})?;
    let least: u128 = folder.ask(validators, &ValidatorSet::minBondCall {})?.to();
    let amount = folder.plan.bond;
    if amount < least {
        return Err(Failure::plain(format!("{PLAN}: the bond of {amount} is below the minimum of {least}")));
    }
    let needed = U256::from(amount);
    let has = || ask(sender.endpoint(), token, &Token::balanceOfCall { account });
    if has()? < needed {
        faucet(&folder.chain, sender.endpoint(), account, token, needed)?;
    }
    let balance = has()?;
    if balance < needed {
        return Err(Failure::plain(format!(
            "{account} has {balance} of token {token}, the bond is {needed}: send it the rest"
        )));
    }
    let allowed = Token::allowanceCall { owner: account, spender: validators };
    if ask(sender.endpoint(), token, &allowed)? < needed {
        let approve = Token::approveCall { spender: validators, value: needed };
        sender.send("approve the bond", token, &approve.abi_encode())?;
    }
    let too_much = |_| Failure::plain(format!("{PLAN}: the bond of {amount} is too large"));
    let call = ValidatorSet::joinCall {
        family: folder.plan.family.unwrap_or(account),
        withdrawal: folder.plan.withdrawal,
        amount: amount.try_into().map_err(too_much)?,
    };
    let receipt = sender.send("join the validators", validators, &call.abi_encode())?;
    talk(&format!("openrelay: joined in block {} for {} gas", receipt.block, receipt.gas_used));
    say(&format!("validator {}", folder.bonded()?.id));
    Ok(())
}

/// Prints the state of the validator and its open duties.
///
/// # Errors
///
/// Exit code 3, with the reason, if it does not vote.
fn status(folder: &Folder) -> Result<(), Failure> {
    let operator = keystore::address(&folder.path.join(KEY))?;
    let wei = folder.endpoint().ask_number("eth_getBalance", &json!([operator.to_string(), "latest"]))?;
    say(&format!("key            {operator}   {wei} wei for gas"));
    let Standing { id, shown } = folder.bonded()?;
    let credit = folder.ask(folder.validators, &ValidatorSet::creditOfCall { owner: shown.withdrawal })?;
    say(&format!("validator      {id}   bond {}, {} open commitments", shown.bond, shown.locks));
    say(&format!("paid to        {}   {credit} can be claimed", shown.withdrawal));
    let count = folder.ask(folder.images, &ImageRegistry::roundCountCall {})?;
    // The newest rounds, and those that this folder has an answer for.
    let mut numbers: BTreeSet<u64> = ((count.saturating_sub(30) + 1)..=count).collect();
    numbers.extend(round::answered(&folder.path));
    for number in numbers {
        if let Some(line) = round::line(folder, number, id)? {
            say(&line);
        }
    }
    let left: u64 = shown.freeAt.to();
    match shown.status {
        1 if shown.bond.is_zero() => Err(Failure::new(3, "its whole bond was taken; it can only leave")),
        1 if shown.operator != operator => Err(Failure::new(3, "another key votes for this validator")),
        1 => {
            if wei < U256::from(GAS_FUNDS) {
                talk(&format!("openrelay: warning: send {operator} some ether; a round may cost more than it has"));
            }
            Ok(())
        }
        2 => Err(Failure::new(3, format!("leaving; its bond is free in {} s", left.saturating_sub(unix_seconds())))),
        _ => Err(Failure::new(3, "it has left and its bond was paid")),
    }
}
