//! `openrelay relay`: runs an operator's relay on a chain, from its key to its retirement.
//!
//! Owns the commands. The files of an operator's folder are in `folder`; `agent` runs the relay.

mod agent;
mod folder;

use std::path::{Path, PathBuf};

use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_sol_types::{SolCall, SolEvent as _};
use openrelay_chain::Endpoint;
use openrelay_chain::attestation::JudgedRelays;
use openrelay_chain::journal::{Receipt, Sender};
use openrelay_chain::registry::{RelayRegistry, Token};
use openrelay_ledger::chain::reading::MAX_LAG;
use openrelay_ledger::chain::set::{RecordSet, Status};
use openrelay_ledger::record::Role;
use openrelay_node::chain_file::ChainFile;
use openrelay_node::clock::unix_seconds;
use openrelay_node::config::{RelayFile, read, read_bytes};
use openrelay_node::directory::{VerifiedDirectory, replace};
use serde_json::json;

use crate::failure::Failure;
use crate::keystore;
use crate::output::{say, talk};
use crate::program::Program;
use crate::rpc::{DEVELOPMENT, ask, faucet};
use agent::{Place, publish, relay_program, serve};
use folder::{CHAIN, Folder, KEY, NUMBER, OPERATOR, RELAY, RelayPlan, to_toml, write_relay_config};

const REGISTER: &str = "register the relay";
const DRAIN: &str = "drain";
/// Maximum cost of a start and a few changes, in wei: one hundredth of an ether.
const GAS_FUNDS: u64 = 10_000_000_000_000_000;

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
    Check {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Register the relay and post its bond
    Bond {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
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
    Unbond {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Take the next step of leaving, and name the one after
    Retire {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
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
        RelayCommand::Check { dir } => check(program, dir),
        RelayCommand::Bond { dir, password_file } => bond(dir, password_file.as_deref()),
        RelayCommand::Run { dir, password_file, unconfined, machine } => {
            let here = || Place::Here { unconfined: *unconfined };
            let place = machine.clone().map_or_else(here, Place::Machine);
            serve(program, dir, password_file.as_deref(), &place)
        }
        RelayCommand::Status { dir } => status(program, dir),
        RelayCommand::Drain { dir, undo, password_file } => {
            let folder = Folder::open(dir)?;
            let sender = folder.sender(password_file.as_deref())?;
            change(&folder, &sender, if *undo { "serve again" } else { DRAIN }, |relay_id, hash| {
                RelayRegistry::drainCall { relayId: relay_id, draining: !undo, descriptorHash: hash }.abi_encode()
            })
        }
        RelayCommand::Unbond { dir, password_file } => {
            let folder = Folder::open(dir)?;
            change(&folder, &folder.sender(password_file.as_deref())?, "unbond", |relay_id, hash| {
                RelayRegistry::unbondCall { relayId: relay_id, descriptorHash: hash }.abi_encode()
            })
        }
        RelayCommand::Retire { dir, password_file } => retire(dir, password_file.as_deref()),
        RelayCommand::Rotate { dir, handshake_key, password_file } => {
            let folder = Folder::open(dir)?;
            let relay_id = folder.registered()?;
            publish(&folder, &folder.sender(password_file.as_deref())?, relay_id, handshake_key.0)
        }
    }
}

fn init(dir: &Path, chain: &Path, plan: RelayPlan, password_file: Option<&Path>) -> Result<(), Failure> {
    let loaded = ChainFile::load(chain).map_err(Failure::plain)?;
    if dir.join(KEY).exists() {
        return Err(Failure::plain(format!("{} already exists; nothing was changed", dir.join(KEY).display())));
    }
    let folder = Folder { path: dir.to_owned(), plan, chain: loaded };
    // Encode the descriptor here, so that a bad plan is refused before a key is made.
    folder.descriptor(0, [0; 32])?;
    if folder.plan.withdrawal == Address::ZERO || folder.plan.advertised_mbit == 0 {
        return Err(Failure::new(2, "the withdrawal address and the advertised bandwidth must not be zero"));
    }
    let password = keystore::password(password_file, true)?;
    let write = |name: &str, bytes: &[u8]| {
        replace(&dir.join(name), bytes).map_err(|error| Failure::plain(format!("cannot write {name}: {error}")))
    };
    std::fs::create_dir_all(dir)
        .map_err(|error| Failure::plain(format!("cannot create {}: {error}", dir.display())))?;
    write(CHAIN, &read_bytes(chain).map_err(Failure::plain)?)?;
    write(OPERATOR, to_toml(&folder.plan).as_bytes())?;
    let key = keystore::create(&dir.join(KEY), &password)?;
    let address = Address::from_public_key(key.verifying_key());
    say(&format!("operator {address}"));
    talk(&format!(
        "openrelay: the folder {0} holds the operator's key; keep a copy of it. \
         Send {address} the bond and some ether, then run: openrelay relay check --dir {0}",
        dir.display()
    ));
    Ok(())
}

/// Prints what the relay still needs before it can earn, with a remedy for each point.
fn check(program: &Program, dir: &Path) -> Result<(), Failure> {
    let folder = Folder::open(dir)?;
    let mut missing = 0;
    let mut point = |ok: bool, what: String, otherwise: String| {
        say(&if ok { format!("ok       {what}") } else { format!("missing  {what}: {otherwise}") });
        missing += u32::from(!ok);
    };
    let operator = keystore::address(&folder.path.join(KEY))?;
    folder.descriptor(0, [0; 32])?;
    point(true, format!("the {} has valid endpoints: {:?}", folder.plan.role, folder.plan.endpoints), String::new());
    let listen = read::<RelayFile>(&dir.join(RELAY)).map_or_else(|_| folder.plan.endpoints.clone(), |file| file.listen);
    for endpoint in &listen {
        let bound = std::net::UdpSocket::bind(endpoint);
        let running = bound.as_ref().err().is_some_and(|error| error.kind() == std::io::ErrorKind::AddrInUse);
        let why = bound.as_ref().err().map(ToString::to_string).unwrap_or_default();
        point(bound.is_ok() || running, format!("this machine can listen on {endpoint} (UDP)"), why);
    }
    let mut alive = 0;
    for url in &folder.chain.endpoints {
        let checked = Endpoint::new(url).check_chain(folder.chain.chain_id);
        alive += usize::from(checked.is_ok());
        let why = checked.err().map(|error| error.to_string()).unwrap_or_default();
        point(why.is_empty(), format!("endpoint {url}"), why);
    }
    if alive == 0 {
        return Err(Failure::new(3, "no endpoint of the chain answers"));
    }
    let needed = folder.ask(&RelayRegistry::neededBondCall { advertisedMbit: folder.plan.advertised_mbit })?;
    let token = folder.ask(&RelayRegistry::tokenCall {})?;
    let faucet = folder.chain.chain_id == DEVELOPMENT;
    let bonded = folder.relay_id()?;
    if bonded.is_none() {
        let has = ask(&folder.endpoint(), token, &Token::balanceOfCall { account: operator })?;
        let what = format!("{operator} has the bond: {has} of {needed} of token {token}");
        let how = if faucet { "openrelay relay bond gets it from the development chain" } else { "send it the rest" };
        point(has >= needed || faucet, what, how.into());
    }
    let wei = folder.endpoint().ask_number("eth_getBalance", &json!([operator.to_string(), "latest"]))?;
    let what = format!("{operator} has ether for gas: {wei} wei");
    point(wei >= U256::from(GAS_FUNDS) || faucet, what, format!("send it at least {GAS_FUNDS} wei"));
    let image = folder.plan.image;
    let how = format!("write image = \"…\" into {OPERATOR}: openrelay image show lists approved images");
    point(!image.is_zero(), format!("the relay's image is set: {image}"), how);
    let relay = relay_program(program);
    let how = format!("install {}", program.relay());
    point(relay.exists(), format!("the relay's program {}", relay.display()), how);
    if missing > 0 {
        return Err(Failure::new(1, format!("{missing} requirements are not met")));
    }
    let next = if bonded.is_some() { "run" } else { "bond" };
    talk(&format!("openrelay: ready; next: openrelay relay {next} --dir {}", dir.display()));
    Ok(())
}

/// Registers the relay with its bond. Prints only its ID if it is registered already.
fn bond(dir: &Path, password_file: Option<&Path>) -> Result<(), Failure> {
    let folder = Folder::open(dir)?;
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
    if folder.plan.image.is_zero() {
        return Err(Failure::plain(format!(
            "{OPERATOR} sets no image, and clients refuse a relay without one; run: openrelay relay check"
        )));
    }
    let sender = folder.sender(password_file)?;
    // A registration may have been sent or included before this program was killed; it is for this relay.
    if let Some(receipt) = sender.resume(REGISTER)? {
        return write_down(&folder, &sender, &receipt);
    }
    if let Some(relay_id) = folder.relay_of(sender.address())? {
        talk("openrelay: this key already has a registered relay; using that one");
        return write_relay(&folder, relay_id);
    }
    let needed = folder.ask(&RelayRegistry::neededBondCall { advertisedMbit: folder.plan.advertised_mbit })?;
    let token = folder.ask(&RelayRegistry::tokenCall {})?;
    let account = sender.address();
    let has = |account| ask(sender.endpoint(), token, &Token::balanceOfCall { account });
    if has(account)? < needed {
        faucet(&folder.chain, sender.endpoint(), account, token, needed)?;
    }
    if needed.bit_len() > 96 {
        return Err(Failure::plain(format!("the endpoint asks for a bond of {needed}, which no registry accepts")));
    }
    let balance = has(account)?;
    if balance < needed {
        return Err(Failure::plain(format!(
            "{account} has {balance} of token {token}, the bond is {needed}: send it the rest"
        )));
    }
    let allowed = Token::allowanceCall { owner: account, spender: folder.chain.registry };
    if ask(sender.endpoint(), token, &allowed)? < needed {
        let approve = Token::approveCall { spender: folder.chain.registry, value: needed };
        sender.send("approve the bond", token, &approve.abi_encode())?;
    }
    let call = RelayRegistry::registerCall {
        advertisedMbit: folder.plan.advertised_mbit,
        withdrawal: folder.plan.withdrawal,
        // The amount fits: its length was checked.
        amount: needed.to(),
        descriptor: folder.descriptor(0, [0; 32])?.into(),
    };
    let receipt = sender.send_and_keep(REGISTER, folder.chain.registry, &call.abi_encode())?;
    write_down(&folder, &sender, &receipt)
}

/// Writes down the ID of the registered relay, and only then removes the registration from the journal.
fn write_down(folder: &Folder, sender: &Sender, receipt: &Receipt) -> Result<(), Failure> {
    let mut registered = receipt.logs.iter().filter_map(|log| RelayRegistry::Registered::decode_log(log).ok());
    let event =
        registered.next().ok_or_else(|| Failure::plain("registered, but the receipt does not name the relay"))?;
    write_relay(folder, event.relayId)?;
    sender.forget()?;
    talk(&format!("openrelay: registered in block {} for {} gas", receipt.block, receipt.gas_used));
    Ok(())
}

fn write_relay(folder: &Folder, relay_id: u64) -> Result<(), Failure> {
    write_relay_config(folder, relay_id)?;
    folder.write(NUMBER, format!("{relay_id}\n").as_bytes())?;
    say(&format!("relay_id {relay_id}"));
    talk(&format!("openrelay: next: openrelay relay run --dir {}", folder.path.display()));
    Ok(())
}

/// Sends a change that names the hash of the current descriptor.
fn change(folder: &Folder, sender: &Sender, name: &str, call: impl Fn(u64, B256) -> Vec<u8>) -> Result<(), Failure> {
    let relay_id = folder.registered()?;
    let hash = keccak256(folder.published(relay_id)?);
    let receipt = sender.send(name, folder.chain.registry, &call(relay_id, hash))?;
    say(&format!("{name}: block {} ({} gas)", receipt.block, receipt.gas_used));
    Ok(())
}

/// Takes the next step of leaving, and prints which step follows.
fn retire(dir: &Path, password_file: Option<&Path>) -> Result<(), Failure> {
    let folder = Folder::open(dir)?;
    let relay_id = folder.registered()?;
    let sender = folder.sender(password_file)?;
    if sender.resume(DRAIN)?.is_some() {
        sender.forget()?;
        say("no new circuits are accepted; when the old ones have ended, run this again to start the bond's notice");
        return Ok(());
    }
    let Some((standing, shown)) = folder.registration(relay_id)? else {
        say("the relay has left and its bond was paid; nothing is left to do");
        return Ok(());
    };
    match standing.status {
        Status::Active => {
            change(&folder, &sender, DRAIN, |relay_id, hash| {
                RelayRegistry::drainCall { relayId: relay_id, draining: true, descriptorHash: hash }.abi_encode()
            })?;
            say(
                "no new circuits are accepted; when the old ones have ended, run this again to start the bond's notice",
            );
        }
        Status::Draining => {
            change(&folder, &sender, "unbond", |relay_id, hash| {
                RelayRegistry::unbondCall { relayId: relay_id, descriptorHash: hash }.abi_encode()
            })?;
            say("the relay no longer serves; stop it. The bond is free after 14 days; run this again then");
        }
        Status::Unbonding => {
            let free: u64 = shown.timer.to();
            let left = free.saturating_sub(unix_seconds());
            if left > 0 {
                return Err(Failure::new(
                    3,
                    format!(
                        "the bond is free in about {} days; run this again then",
                        (left / 43_200).div_ceil(2).max(1)
                    ),
                ));
            }
            let call = RelayRegistry::withdrawCall { relayId: relay_id };
            sender.send("withdraw the bond", folder.chain.registry, &call.abi_encode())?;
            say(&format!("the bond was paid to {}", shown.withdrawal));
        }
    }
    Ok(())
}

/// Prints the state of the relay.
///
/// # Errors
///
/// Exit code 3, with the reason, if the relay earns nothing.
fn status(program: &Program, dir: &Path) -> Result<(), Failure> {
    let folder = Folder::open(dir)?;
    let operator = keystore::address(&folder.path.join(KEY))?;
    let wei = folder.endpoint().ask_number("eth_getBalance", &json!([operator.to_string(), "latest"]))?;
    say(&format!("operator       {operator}   {wei} wei for gas"));
    let relay_id = folder.registered()?;
    let Some((standing, shown)) = folder.registration(relay_id)? else {
        let why = "it has left, or the chain reverted the registration; to register again: openrelay relay bond";
        return Err(Failure::new(3, format!("relay {relay_id} is not in the registry: {why}")));
    };
    say(&format!("relay          {relay_id} {} {:?}", folder.plan.role, standing.status));
    say(&format!("bond           {}, class {}, returned to {}", shown.bond, standing.bond_class, shown.withdrawal));
    if standing.status == Status::Unbonding {
        let free: u64 = shown.timer.to();
        say(&format!("               free in {} s", free.saturating_sub(unix_seconds())));
    }
    let now = unix_seconds();
    let (reading, directory) = openrelay_chain::read(&folder.chain, now, 0)?;
    let (set, header) = reading.record_set(&folder.chain.trust(), now, MAX_LAG, 0).map_err(Failure::plain)?;
    say(&format!("directory      block {}, {} relays accept circuits", header.number, directory.body().relays.len()));
    let directory = VerifiedDirectory::of_proven(directory, reading);
    if let Some(own) = directory.directory().relay(relay_id) {
        say(&format!("listed         handshake key {} epoch {}", own.handshake_key, own.key_epoch));
        // As clients judge it, by the policy that they are released with.
        let judged = JudgedRelays::of(&directory, &folder.chain.trust(), &program.standard, now);
        match (judged.verdict(relay_id), judged.fault()) {
            (Ok(verdict), _) => say(&format!(
                "evidence       {}{} with the image {}, {}",
                if verdict.facts().simulated { "SIMULATED " } else { "" },
                verdict.facts().platform.name(),
                openrelay_image::hex(&verdict.binding().image),
                crate::findings::state(verdict.image())
            )),
            (Err(_), Some(fault)) => {
                return Err(Failure::new(3, format!("clients cannot verify any relay of this chain: {fault}")));
            }
            (Err(refusal), None) => {
                let why = format!("clients refuse the relay [{}]: {refusal}", refusal.code());
                return Err(Failure::new(3, format!("{why}; clients are told: {}", refusal.next_step())));
            }
        }
        if wei < U256::from(GAS_FUNDS) {
            talk(&format!(
                "openrelay: warning: send {operator} some ether; the next start may not be able to publish its key"
            ));
        }
        return Ok(());
    }
    let own = set.records.iter().find(|record| record.registration.relay_id == relay_id);
    let why = match own {
        None => missing_descriptor(&set, relay_id),
        Some(_) if standing.status == Status::Draining => "it is draining; undo: openrelay relay drain --undo".into(),
        Some(_) if standing.status == Status::Unbonding => "it is leaving".into(),
        Some(_) if standing.bond_class == 0 => "its bond is below the current rate; top it up".into(),
        Some(_) => "it was never started; run: openrelay relay run".into(),
    };
    Err(Failure::new(3, format!("the relay accepts no circuits: {why}")))
}

fn missing_descriptor(set: &RecordSet, relay_id: u64) -> String {
    if set.malformed.contains(&relay_id) {
        "its descriptor is malformed; run the relay again".into()
    } else {
        "no mirror has its descriptor yet".into()
    }
}
