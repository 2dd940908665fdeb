//! `openrelay relay`: runs an operator's relay on a chain, from its key to its retirement.
//!
//! Owns the commands. The files of an operator's folder are in `folder`; `agent` runs the relay.

mod agent;
mod check;
mod folder;
mod leave;
mod status;

use std::path::{Path, PathBuf};

use alloy_primitives::{Address, B256};
use alloy_sol_types::{SolCall, SolEvent as _};
use openrelay_chain::journal::{Receipt, Sender};
use openrelay_chain::registry::RelayRegistry;
use openrelay_ledger::record::Role;

use crate::account::Account;
use crate::failure::Failure;
use crate::output::{quoted, say, talk};
use crate::program::Program;
use crate::units::Unit;
use agent::{Place, publish, serve};
use check::Checked;
use folder::{Folder, KEY, NUMBER, OPERATOR, RelayPlan, to_toml, write_relay_config};
use leave::{Consent, DRAIN, change, drain_call};

const REGISTER: &str = "register the relay";

#[derive(clap::Subcommand)]
pub(crate) enum RelayCommand {
    /// Make the operator's key and folder
    Init {
        /// Folder to write
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Chain file
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
        /// Role of the relay
        #[arg(long, value_parser = ["ingress", "egress"])]
        role: String,
        /// Public address; repeat for IPv6
        ///
        /// Give one address, or an IPv4 address followed by an IPv6 one.
        #[arg(long, value_name = "IP:PORT", required = true)]
        endpoint: Vec<std::net::SocketAddr>,
        /// Advertised bandwidth in Mbit/s; the bond grows with it
        #[arg(long, value_name = "MBIT")]
        advertised: u32,
        /// Address that receives the bond; keep its key offline
        #[arg(long, value_name = "ADDRESS", value_parser = openrelay_ledger::address::parse)]
        withdrawal: Address,
        /// Family name, the same for all relays that you run
        ///
        /// Clients never use two relays of one family in a circuit.
        #[arg(long, value_name = "NAME")]
        family: Option<String>,
        /// SHA-256 of the image that the relay runs
        #[arg(long, value_name = "SHA256")]
        image: Option<B256>,
        /// File with the password in line 1; `-` for stdin
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Check what the relay still needs before it can serve
    ///
    /// Tries everything that can fail, and changes nothing. A point that nothing here can decide is skipped.
    Check {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The relay will run in a virtual machine of this host
        #[arg(long)]
        machine: bool,
    },
    /// Register the relay and post its bond
    ///
    /// Runs the check first, and pays nothing unless it passes.
    Bond {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The relay will run in a virtual machine of this host
        #[arg(long)]
        machine: bool,
        /// Pay even if the check fails
        #[arg(long)]
        anyway: bool,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Run the relay: publish a new handshake key and serve
    ///
    /// Also follows the directory. Each start makes a new handshake key.
    Run {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Keep all privileges, for tests that inspect the relay
        #[arg(long, hide = true)]
        unconfined: bool,
        /// Feed socket, if the relay runs in a virtual machine
        ///
        /// The socket is the machine's port org.openrelay.feed.
        #[arg(long, value_name = "SOCKET", conflicts_with = "unconfined")]
        machine: Option<PathBuf>,
    },
    /// Show status, and why the relay earns nothing
    Status {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Stop accepting new circuits
    Drain {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Accept new circuits again
        #[arg(long)]
        undo: bool,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Stop serving, and start the bond's notice period
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
    /// Take the next step of leaving, and name the one after
    ///
    /// Says what is lost. Without consent it changes nothing and ends with exit code 2.
    Retire {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Agree to what is lost
        #[arg(long)]
        yes: bool,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Publish a handshake key by hand
    ///
    /// For a relay that `openrelay relay run` does not run.
    Rotate {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Public handshake key of the relay
        #[arg(long, value_name = "HEX")]
        handshake_key: Key,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
}

/// A 32-byte key, written as 64 hexadecimal digits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key([u8; 32]);

impl std::str::FromStr for Key {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        openrelay_ledger::hex::decode(text).map(Self).ok_or("must be 64 hexadecimal digits")
    }
}

pub(crate) fn run(program: &Program, command: &RelayCommand) -> Result<(), Failure> {
    match command {
        RelayCommand::Init { dir, chain, role, endpoint, advertised, withdrawal, family, image, password_file } => {
            let plan = RelayPlan {
                role: if role == "ingress" { Role::Ingress } else { Role::Egress },
                endpoints: endpoint.clone(),
                advertised_mbit: *advertised,
                withdrawal: *withdrawal,
                family: family.clone(),
                image: image.unwrap_or_default(),
            };
            init(dir, chain, plan, password_file.as_deref())
        }
        RelayCommand::Check { dir, machine } => check(program, dir, *machine),
        RelayCommand::Bond { dir, machine, anyway, password_file } => {
            bond(program, &Folder::open(dir)?, (*machine, *anyway), password_file.as_deref())
        }
        RelayCommand::Run { dir, password_file, unconfined, machine } => {
            let here = || Place::Here { unconfined: *unconfined };
            let place = machine.clone().map_or_else(here, Place::Machine);
            serve(program, dir, password_file.as_deref(), &place)
        }
        RelayCommand::Status { dir, json } => status::status(program, &Folder::open(dir)?, *json),
        RelayCommand::Drain { dir, undo, password_file } => {
            let folder = Folder::open(dir)?;
            let sender = folder.sender(password_file.as_deref())?;
            let name = if *undo { "serve again" } else { DRAIN };
            change(&folder, &sender, name, |relay_id, hash| drain_call(relay_id, !undo, hash))
        }
        RelayCommand::Unbond { dir, yes, password_file } => {
            leave::unbond(&Folder::open(dir)?, Consent { yes: *yes, password_file: password_file.as_deref() })
        }
        RelayCommand::Retire { dir, yes, password_file } => {
            leave::retire(&Folder::open(dir)?, Consent { yes: *yes, password_file: password_file.as_deref() })
        }
        RelayCommand::Rotate { dir, handshake_key, password_file } => {
            let folder = Folder::open(dir)?;
            let relay_id = folder.registered()?;
            publish(&folder, &folder.sender(password_file.as_deref())?, relay_id, handshake_key.0)
        }
    }
}

fn init(dir: &Path, chain: &Path, plan: RelayPlan, password_file: Option<&Path>) -> Result<(), Failure> {
    let folder = Folder { account: Account::planned(dir, chain, KEY)?, plan };
    // Encode the descriptor here, so that a bad plan is refused before a key is made.
    folder.descriptor(0, [0; 32])?;
    if folder.plan.withdrawal == Address::ZERO || folder.plan.advertised_mbit == 0 {
        return Err(Failure::new(2, "the withdrawal address and the advertised bandwidth must not be zero"));
    }
    let address = folder.account.create(chain, (OPERATOR, &to_toml(&folder.plan)?), password_file)?;
    say(&format!("operator {address}"));
    talk(&format!(
        "openrelay: the folder {0} holds the operator's key; keep a copy of it. \
         Send {address} the bond and some ether, then run: openrelay relay check --dir {0}",
        quoted(dir)
    ));
    Ok(())
}

/// Prints what the relay still needs before it can earn, with a remedy for each point.
fn check(program: &Program, dir: &Path, machine: bool) -> Result<(), Failure> {
    let folder = Folder::open(dir)?;
    let mut checked = Checked::default();
    let examined = check::examine(program, &folder, machine, &mut checked);
    checked.lines().for_each(|line| say(&line));
    examined?;
    passed(&checked)?;
    let next = if folder.relay_id()?.is_some() { "run" } else { "bond" };
    talk(&format!("openrelay: ready; next: openrelay relay {next} --dir {}", quoted(dir)));
    Ok(())
}

fn passed(checked: &Checked) -> Result<(), Failure> {
    match checked.missing() {
        0 => Ok(()),
        missing => Err(Failure::plain(format!("{missing} requirements are not met"))),
    }
}

/// Registers the relay with its bond. Prints only its ID if it is registered already.
fn bond(
    program: &Program,
    folder: &Folder,
    (machine, anyway): (bool, bool),
    password_file: Option<&Path>,
) -> Result<(), Failure> {
    if let Some(relay_id) = folder.relay_id()? {
        if folder.is_registered(relay_id)? {
            say(&format!("relay_id {relay_id}"));
            return Ok(());
        }
        talk(&format!(
            "openrelay: relay {relay_id} is not registered by this key: \
             it has left, or the chain reverted the registration"
        ));
    }
    let sender = folder.sender(password_file)?;
    // A registration may have been sent or included before this program was killed; it is for this relay.
    if let Some(receipt) = sender.resume(REGISTER)? {
        return write_down(folder, &sender, &receipt);
    }
    if let Some(relay_id) = folder.relay_of(sender.address())? {
        talk("openrelay: this key already has a registered relay; using that one");
        return write_relay(folder, relay_id);
    }
    check_before_bond(program, folder, machine, anyway)?;
    register(folder, &sender)
}

/// Runs the check. Its report goes to standard error, because the result is the relay ID.
///
/// # Errors
/// [`Failure`] if the check fails, unless the operator wants to pay anyway.
fn check_before_bond(program: &Program, folder: &Folder, machine: bool, anyway: bool) -> Result<(), Failure> {
    let mut checked = Checked::default();
    let examined = check::examine(program, folder, machine, &mut checked);
    checked.lines().for_each(|line| talk(&line));
    let failed = match examined.and_then(|()| passed(&checked)) {
        Ok(()) => return Ok(()),
        Err(failed) => failed,
    };
    if anyway {
        talk(&format!("openrelay: warning: {failed}; paying the bond because of --anyway"));
        return Ok(());
    }
    let why = "nothing was paid; meet them, or pay all the same with --anyway";
    Err(Failure::new(failed.code(), format!("{failed}: {why}")))
}

fn register(folder: &Folder, sender: &Sender) -> Result<(), Failure> {
    let chain = &folder.account.chain;
    let needed = folder.ask(&RelayRegistry::neededBondCall { advertisedMbit: folder.plan.advertised_mbit })?;
    let token = folder.ask(&RelayRegistry::tokenCall {})?;
    if needed.bit_len() > 96 {
        return Err(Failure::plain(format!("the endpoint asks for a bond of {needed}, which no registry accepts")));
    }
    folder.account.approve_bond(sender, (token, chain.registry), needed)?;
    let call = RelayRegistry::registerCall {
        advertisedMbit: folder.plan.advertised_mbit,
        withdrawal: folder.plan.withdrawal,
        // The amount fits: its length was checked.
        amount: needed.to(),
        descriptor: folder.descriptor(0, [0; 32])?.into(),
    };
    let receipt = sender.send_and_keep(REGISTER, chain.registry, &call.abi_encode())?;
    let bond = Unit::of(sender.endpoint(), token).show(needed);
    talk(&format!("openrelay: registered in block {} with a bond of {bond}", receipt.block));
    write_down(folder, sender, &receipt)
}

/// Writes down the ID of the registered relay, and only then removes the registration from the journal.
fn write_down(folder: &Folder, sender: &Sender, receipt: &Receipt) -> Result<(), Failure> {
    let mut registered = receipt.logs.iter().filter_map(|log| RelayRegistry::Registered::decode_log(log).ok());
    let event =
        registered.next().ok_or_else(|| Failure::plain("registered, but the receipt does not name the relay"))?;
    write_relay(folder, event.relayId)?;
    Ok(sender.forget()?)
}

fn write_relay(folder: &Folder, relay_id: u64) -> Result<(), Failure> {
    write_relay_config(folder, relay_id)?;
    folder.account.write(NUMBER, format!("{relay_id}\n").as_bytes())?;
    say(&format!("relay_id {relay_id}"));
    talk(&format!("openrelay: next: openrelay relay run --dir {}", quoted(folder.path())));
    Ok(())
}
