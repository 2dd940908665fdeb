//! `openrelay relay`: an operator's relay on a chain, from its key to its end.
//!
//! Owns the operator's folder and what stands in it: the hot key, encrypted; what the relay is to be; its number once it is registered. The handshake key is never here: the
//! relay makes it in its memory at each start, and `run` puts it on the chain.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_sol_types::{SolCall, SolEvent as _};
use openrelay_ledger::chain::descriptor::Descriptor;
use openrelay_ledger::chain::reading::{MAX_LAG, Reading};
use openrelay_ledger::chain::registry::{RelayRegistry, Token, registration};
use openrelay_ledger::chain::set::{RecordSet, Registration, Status};
use openrelay_ledger::record::Role;
use openrelay_node::chain::journal::{Receipt, Sender};
use openrelay_node::chain::mirror::Mirror;
use openrelay_node::chain::{Endpoint, EndpointError};
use openrelay_node::chain_file::ChainFile;
use openrelay_node::clock::unix_seconds;
use openrelay_node::config::{RelayFile, read};
use openrelay_node::directory::replace;
use openrelay_sys::event::{Waker, wait};
use openrelay_sys::signal::{Signal, Signals};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::failure::Failure;
use crate::{RelayCommand, keystore, say, talk};

const OPERATOR: &str = "operator.toml";
const KEY: &str = "operator-key.json";
const CHAIN: &str = "chain.toml";
const NUMBER: &str = "relay-id";
const RELAY: &str = "relay.toml";
const REGISTER: &str = "register the relay";
const DRAIN: &str = "drain";
/// Development chains with a faucet have this number.
const DEVELOPMENT: u64 = 31_337;
/// Ether that a start and a few changes cost at most, in wei: a hundredth.
const GAS_FUNDS: u64 = 10_000_000_000_000_000;
/// How long `run` waits until mirrors have the new key.
const PATIENCE: Duration = Duration::from_secs(60);

/// What the relay is to be, as its operator says.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Plan {
    role: Role,
    /// Addresses that the world reaches it at.
    endpoints: Vec<SocketAddr>,
    advertised_mbit: u32,
    withdrawal: Address,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    family: Option<String>,
}

/// An operator's folder.
struct Folder {
    path: PathBuf,
    plan: Plan,
    chain: ChainFile,
}

impl Folder {
    fn open(path: &Path) -> Result<Self, Failure> {
        let plan: Plan = read(&path.join(OPERATOR)).map_err(Failure::plain)?;
        let chain = ChainFile::load(&path.join(CHAIN)).map_err(Failure::plain)?;
        Ok(Self { path: path.to_owned(), plan, chain })
    }

    fn sender(&self, password_file: Option<&Path>) -> Result<Sender, Failure> {
        let password = keystore::password(password_file, false)?;
        let key = keystore::open(&self.path.join(KEY), &password)?;
        Ok(Sender::new(&self.chain, key, &self.path))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Failure> {
        let path = self.path.join(name);
        replace(&path, bytes).map_err(|error| Failure::plain(format!("cannot write {}: {error}", path.display())))
    }

    fn endpoint(&self) -> Endpoint {
        Endpoint::new(self.chain.endpoints.first().map_or("", String::as_str))
    }

    /// The relay's number, once it is registered.
    fn relay_id(&self) -> Result<Option<u64>, Failure> {
        let path = self.path.join(NUMBER);
        match std::fs::read_to_string(&path) {
            Ok(text) => text
                .trim()
                .parse()
                .map(Some)
                .map_err(|_| Failure::plain(format!("{}: must hold the relay's number", path.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::plain(format!("{}: {error}", path.display()))),
        }
    }

    fn registered(&self) -> Result<u64, Failure> {
        self.relay_id()?.ok_or_else(|| Failure::new(3, "not registered yet; run: openrelay relay bond"))
    }

    fn descriptor(&self, key_epoch: u32, handshake_key: [u8; 32]) -> Result<Vec<u8>, Failure> {
        let descriptor = Descriptor {
            role: self.plan.role,
            key_epoch,
            handshake_key,
            image: B256::ZERO,
            key_root: B256::ZERO,
            endpoints: self.plan.endpoints.clone(),
            family: self.plan.family.clone(),
        };
        descriptor.encode().map_err(|error| Failure::plain(format!("{}: {error}", self.path.join(OPERATOR).display())))
    }

    fn ask<C: SolCall>(&self, call: &C) -> Result<C::Return, Failure> {
        ask(&self.endpoint(), self.chain.registry, call)
    }

    fn registration(&self, relay_id: u64) -> Result<Option<(Registration, RelayRegistry::Relay)>, Failure> {
        let shown = self.ask(&RelayRegistry::relayOfCall { relayId: relay_id })?;
        Ok(registration(relay_id, &shown).map(|registration| (registration, shown)))
    }

    /// The descriptor that is on the chain now, from the registry's events.
    fn published(&self, relay_id: u64) -> Result<Vec<u8>, Failure> {
        let mut mirror = Mirror::new(self.chain.clone());
        mirror.follow()?;
        let descriptor = mirror.descriptor(relay_id).map(<[u8]>::to_vec);
        descriptor.ok_or_else(|| Failure::plain(format!("relay {relay_id} is not on the chain any more")))
    }
}

fn ask<C: SolCall>(endpoint: &Endpoint, to: Address, call: &C) -> Result<C::Return, Failure> {
    let answer = endpoint.call(to, &call.abi_encode())?;
    C::abi_decode_returns(&answer)
        .map_err(|error| Failure::plain(format!("{}: {to} does not answer as the registry: {error}", endpoint.url())))
}

pub(crate) fn run(command: &RelayCommand) -> Result<(), Failure> {
    match command {
        RelayCommand::Init { dir, chain, role, endpoint, advertised, withdrawal, family, password_file } => {
            let plan = Plan {
                role: if role == "ingress" { Role::Ingress } else { Role::Egress },
                endpoints: endpoint.clone(),
                advertised_mbit: *advertised,
                withdrawal: *withdrawal,
                family: family.clone(),
            };
            init(dir, chain, plan, password_file.as_deref())
        }
        RelayCommand::Check { dir } => check(dir),
        RelayCommand::Bond { dir, password_file } => bond(dir, password_file.as_deref()),
        RelayCommand::Run { dir, password_file, unconfined } => serve(dir, password_file.as_deref(), *unconfined),
        RelayCommand::Status { dir } => status(dir),
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

fn init(dir: &Path, chain: &Path, plan: Plan, password_file: Option<&Path>) -> Result<(), Failure> {
    let loaded = ChainFile::load(chain).map_err(Failure::plain)?;
    if dir.join(KEY).exists() {
        return Err(Failure::plain(format!("{} is there already; nothing was changed", dir.join(KEY).display())));
    }
    let folder = Folder { path: dir.to_owned(), plan, chain: loaded };
    // What would be refused later is refused now.
    folder.descriptor(0, [0; 32])?;
    if folder.plan.withdrawal == Address::ZERO || folder.plan.advertised_mbit == 0 {
        return Err(Failure::new(2, "the withdrawal address and the advertised bandwidth must not be zero"));
    }
    let password = keystore::password(password_file, true)?;
    let write = |name: &str, bytes: &[u8]| {
        replace(&dir.join(name), bytes).map_err(|error| Failure::plain(format!("cannot write {name}: {error}")))
    };
    std::fs::create_dir_all(dir).map_err(|error| Failure::plain(format!("cannot make {}: {error}", dir.display())))?;
    write(CHAIN, &std::fs::read(chain).map_err(Failure::plain)?)?;
    write(OPERATOR, to_toml(&folder.plan).as_bytes())?;
    let key = keystore::create(&dir.join(KEY), &password)?;
    let address = Address::from_public_key(key.verifying_key());
    say(&format!("operator {address}"));
    talk(&format!(
        "openrelay: the folder {0} holds the operator's key; keep a copy of it. Send {address} the bond and some ether, then: openrelay relay check --dir {0}",
        dir.display()
    ));
    Ok(())
}

fn to_toml(plan: &Plan) -> String {
    let endpoints: Vec<String> = plan.endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    let mut text = format!(
        "# What the relay is to be. `openrelay relay run` publishes it at the next start.\nrole = \"{}\"\nendpoints = [{}]\nadvertised_mbit = {}\nwithdrawal = \"{}\"\n",
        plan.role,
        endpoints.join(", "),
        plan.advertised_mbit,
        plan.withdrawal
    );
    if let Some(family) = &plan.family {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "family = \"{family}\"");
    }
    text
}

/// The operator's address, without its password.
fn address(folder: &Folder) -> Result<Address, Failure> {
    let path = folder.path.join(KEY);
    let text =
        std::fs::read_to_string(&path).map_err(|error| Failure::plain(format!("{}: {error}", path.display())))?;
    let file: serde_json::Value = serde_json::from_str(&text).map_err(Failure::plain)?;
    let address = file["address"].as_str().and_then(|text| format!("0x{text}").parse().ok());
    address.ok_or_else(|| Failure::plain(format!("{}: is no keystore", path.display())))
}

/// What is missing for the relay to earn, each with what to do.
fn check(dir: &Path) -> Result<(), Failure> {
    let folder = Folder::open(dir)?;
    let mut missing = 0;
    let mut point = |ok: bool, what: String, otherwise: String| {
        say(&if ok { format!("ok       {what}") } else { format!("missing  {what}: {otherwise}") });
        missing += u32::from(!ok);
    };
    let operator = address(&folder)?;
    folder.descriptor(0, [0; 32])?;
    point(true, format!("the {} is described: {:?}", folder.plan.role, folder.plan.endpoints), String::new());
    let listen = read::<RelayFile>(&dir.join(RELAY)).map_or_else(|_| folder.plan.endpoints.clone(), |file| file.listen);
    for endpoint in &listen {
        let bound = std::net::UdpSocket::bind(endpoint);
        let running = bound.as_ref().err().is_some_and(|error| error.kind() == std::io::ErrorKind::AddrInUse);
        let why = bound.as_ref().err().map(ToString::to_string).unwrap_or_default();
        point(bound.is_ok() || running, format!("this machine has {endpoint} (UDP)"), why);
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
        let how = if faucet { "openrelay relay bond asks the development chain for it" } else { "send it the rest" };
        point(has >= needed || faucet, what, how.into());
    }
    let wei = folder.endpoint().ask_number("eth_getBalance", &json!([operator.to_string(), "latest"]))?;
    let what = format!("{operator} has ether for gas: {wei} wei");
    point(wei >= U256::from(GAS_FUNDS) || faucet, what, format!("send it at least {GAS_FUNDS} wei"));
    let program = relay_program();
    point(program.exists(), format!("the relay's program {}", program.display()), "install openrelay-relay".into());
    if missing > 0 {
        return Err(Failure::new(1, format!("{missing} things are missing")));
    }
    let next = if bonded.is_some() { "run" } else { "bond" };
    talk(&format!("openrelay: all is there; next: openrelay relay {next} --dir {}", dir.display()));
    Ok(())
}

/// Registers the relay with its bond; a second time it only says so.
fn bond(dir: &Path, password_file: Option<&Path>) -> Result<(), Failure> {
    let folder = Folder::open(dir)?;
    if let Some(relay_id) = folder.relay_id()? {
        say(&format!("relay_id {relay_id}"));
        return Ok(());
    }
    let sender = folder.sender(password_file)?;
    // One that was sent before this was killed, or that is in a block though nobody wrote it down, is this relay.
    if let Some(receipt) = sender.resume(REGISTER)? {
        return write_down(&folder, &sender, &receipt);
    }
    let mut mirror = Mirror::new(folder.chain.clone());
    mirror.follow()?;
    if let Some(relay_id) = mirror.relay_of(sender.address()) {
        talk("openrelay: this key has registered a relay already, which is taken for this one");
        return write_relay(&folder, relay_id);
    }
    let needed = folder.ask(&RelayRegistry::neededBondCall { advertisedMbit: folder.plan.advertised_mbit })?;
    let token = folder.ask(&RelayRegistry::tokenCall {})?;
    let account = sender.address();
    let has = |account| ask(sender.endpoint(), token, &Token::balanceOfCall { account });
    if has(account)? < needed && folder.chain.chain_id == DEVELOPMENT {
        let fund = json!([account.to_string(), token.to_string(), format!("{needed:#x}")]);
        match sender.endpoint().ask("devchain_fund", &fund) {
            Ok(_) => talk("openrelay: this is a development chain; its faucet gave bond and ether"),
            // Another development chain, without one.
            Err(EndpointError::Refused { code: -32_601, .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if needed.bit_len() > 96 {
        return Err(Failure::plain(format!("the endpoint asks for a bond of {needed}, which no registry takes")));
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
        // Fits: it was compared.
        amount: needed.to(),
        descriptor: folder.descriptor(0, [0; 32])?.into(),
    };
    let receipt = sender.send_and_keep(REGISTER, folder.chain.registry, &call.abi_encode())?;
    write_down(&folder, &sender, &receipt)
}

/// Writes down which relay a registration has made, and only then takes it out of the journal.
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

/// The relay's own configuration, from the plan.
fn write_relay_config(folder: &Folder, relay_id: u64) -> Result<(), Failure> {
    let listen: Vec<String> = folder.plan.endpoints.iter().map(|endpoint| format!("\"{endpoint}\"")).collect();
    let text = format!(
        "# Where it listens may differ from the endpoints in {OPERATOR}, which the world reaches it at.\nrole = \"{}\"\nrelay_id = {relay_id}\nlisten = [{}]\nchain = \"{CHAIN}\"\nadmission = \"open\"\n",
        folder.plan.role,
        listen.join(", ")
    );
    folder.write(RELAY, text.as_bytes())
}

fn relay_program() -> PathBuf {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("openrelay-relay")));
    beside.filter(|path| path.exists()).unwrap_or_else(|| "openrelay-relay".into())
}

/// Runs the relay: puts the key of this start on the chain, then hands it what the chain proves, again and again.
fn serve(dir: &Path, password_file: Option<&Path>, unconfined: bool) -> Result<(), Failure> {
    let folder = Folder::open(dir)?;
    let relay_id = folder.registered()?;
    let lock = std::fs::File::create(dir.join("running")).map_err(Failure::plain)?;
    if lock.try_lock().is_err() {
        return Err(Failure::plain("another openrelay relay run serves this folder"));
    }
    ready_to_serve(&folder, relay_id)?;
    let sender = folder.sender(password_file)?;
    // Before the first thread starts; the relay takes its signals the same way.
    let signals = Signals::block().map_err(Failure::plain)?;
    let mut command = Command::new(relay_program());
    command.args(["run", "--config"]).arg(dir.join(RELAY));
    if unconfined {
        command.arg("--unconfined");
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| Failure::new(77, format!("cannot start openrelay-relay: {error}; install it")))?;
    let result = attend(&folder, &sender, relay_id, &mut child, &signals);
    if matches!(child.try_wait(), Ok(None)) {
        tell(&child, "TERM");
    }
    let _ = child.wait();
    result
}

/// What would make a start useless is said before the key of it is paid for.
fn ready_to_serve(folder: &Folder, relay_id: u64) -> Result<(), Failure> {
    let Some((standing, _)) = folder.registration(relay_id)? else {
        return Err(Failure::new(3, format!("relay {relay_id} has left the registry")));
    };
    match standing.status {
        Status::Active => {}
        Status::Draining => return Err(Failure::new(3, "the relay drains; openrelay relay drain --undo ends that")),
        Status::Unbonding => return Err(Failure::new(3, "the relay leaves; openrelay relay retire goes on with that")),
    }
    let path = folder.path.join(RELAY);
    let file: RelayFile = read(&path).map_err(Failure::plain)?;
    if file.role != folder.plan.role || file.relay_id != relay_id {
        return Err(Failure::plain(format!("{} has another role or number than {OPERATOR}", path.display())));
    }
    for address in &file.listen {
        std::net::UdpSocket::bind(address).map_err(|error| {
            Failure::plain(format!("cannot listen on {address} (UDP): {error}; does a relay run there already?"))
        })?;
    }
    Ok(())
}

fn attend(
    folder: &Folder,
    sender: &Sender,
    relay_id: u64,
    child: &mut Child,
    signals: &Signals,
) -> Result<(), Failure> {
    let gone = || Failure::plain("the relay has ended; its reason stands above");
    let (mut input, output) = (child.stdin.take().ok_or_else(gone)?, child.stdout.take().ok_or_else(gone)?);
    let mut lines = BufReader::new(output);
    let mut line = String::new();
    lines.read_line(&mut line).map_err(Failure::plain)?;
    let key = line.split_whitespace().find_map(|word| word.strip_prefix("handshake_key="));
    let key: [u8; 32] = key.and_then(|key| alloy_primitives::hex::decode_to_array(key).ok()).ok_or_else(gone)?;
    publish(folder, sender, relay_id, key)?;
    let started = Instant::now();
    let mut last = loop {
        let read = openrelay_node::chain::read(&folder.chain, unix_seconds(), 0);
        match read {
            Ok((reading, directory)) if directory.relay(relay_id).is_some_and(|own| own.key() == Some(key)) => {
                hand_over(&mut input, &reading)?;
                break reading;
            }
            _ if started.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(300)),
            Ok(_) => return Err(Failure::new(7, "the directory does not name the new key in time")),
            Err(error) => return Err(error.into()),
        }
    };
    // The relay's own lines, the ready line first, are this program's; after the last one it has ended.
    let ended = Arc::new(Waker::new().map_err(Failure::plain)?);
    let bell = ended.clone();
    std::thread::spawn(move || {
        for line in lines.lines().map_while(Result::ok) {
            say(&line);
        }
        bell.wake();
    });
    let refresh = Duration::from_secs(folder.chain.refresh_s);
    let (mut warned, mut seen) = (false, 0);
    loop {
        let ready = wait(&[signals.as_fd(), ended.as_fd()], refresh).unwrap_or_default();
        while let Some(signal) = signals.next() {
            tell(child, if matches!(signal, Signal::Stop) { "TERM" } else { "USR1" });
        }
        if ready[1] {
            let status = child.wait().map_err(Failure::plain)?;
            return if status.success() {
                Ok(())
            } else {
                Err(Failure::plain(format!("the relay has ended: {status}")))
            };
        }
        match openrelay_node::chain::read(&folder.chain, unix_seconds(), seen) {
            Ok((reading, directory)) => {
                warned = false;
                seen = directory.body().sequence;
                if reading.account.storage_root != last.account.storage_root && hand_over(&mut input, &reading).is_ok()
                {
                    last = reading;
                }
            }
            Err(error) if !warned => {
                talk(&format!("openrelay: warning: the relay goes on with the directory that it has: {error}"));
                warned = true;
            }
            Err(_) => {}
        }
    }
}

fn tell(child: &Child, signal: &str) {
    // A relay that has ended just now needs no signal.
    let _ = Command::new("kill").args(["-s", signal, &child.id().to_string()]).status();
}

/// Gives the relay a reading, after its length.
fn hand_over(input: &mut ChildStdin, reading: &Reading) -> Result<(), Failure> {
    let bytes = reading.encode().ok_or_else(|| Failure::plain("the reading is larger than one can be"))?;
    let length = u32::try_from(bytes.len()).map_err(Failure::plain)?.to_be_bytes();
    let written = input.write_all(&length).and_then(|()| input.write_all(&bytes)).and_then(|()| input.flush());
    written.map_err(|error| Failure::plain(format!("the relay takes no directory: {error}")))
}

/// Puts a handshake key on the chain, with everything else that the plan says.
fn publish(folder: &Folder, sender: &Sender, relay_id: u64, key: [u8; 32]) -> Result<(), Failure> {
    let old = Descriptor::decode(&folder.published(relay_id)?).map(|descriptor| descriptor.key_epoch).unwrap_or(0);
    let call = RelayRegistry::describeCall {
        relayId: relay_id,
        advertisedMbit: folder.plan.advertised_mbit,
        descriptor: folder.descriptor(old + 1, key)?.into(),
    };
    let receipt = sender.send("publish the handshake key", folder.chain.registry, &call.abi_encode())?;
    talk(&format!("openrelay: the key of this start is in block {} ({} gas)", receipt.block, receipt.gas_used));
    Ok(())
}

/// Sends a change that names the present descriptor.
fn change(folder: &Folder, sender: &Sender, name: &str, call: impl Fn(u64, B256) -> Vec<u8>) -> Result<(), Failure> {
    let relay_id = folder.registered()?;
    let hash = keccak256(folder.published(relay_id)?);
    let receipt = sender.send(name, folder.chain.registry, &call(relay_id, hash))?;
    say(&format!("{name}: block {} ({} gas)", receipt.block, receipt.gas_used));
    Ok(())
}

/// Takes the next step of leaving, and says which comes after it.
fn retire(dir: &Path, password_file: Option<&Path>) -> Result<(), Failure> {
    let folder = Folder::open(dir)?;
    let relay_id = folder.registered()?;
    let sender = folder.sender(password_file)?;
    if sender.resume(DRAIN)?.is_some() {
        sender.forget()?;
        say(
            "no new circuits come from now on; when the old ones have ended, run this again: the bond is then given notice",
        );
        return Ok(());
    }
    let Some((standing, shown)) = folder.registration(relay_id)? else {
        say("the relay has left and its bond was paid; nothing is to be done");
        return Ok(());
    };
    match standing.status {
        Status::Active => {
            change(&folder, &sender, DRAIN, |relay_id, hash| {
                RelayRegistry::drainCall { relayId: relay_id, draining: true, descriptorHash: hash }.abi_encode()
            })?;
            say(
                "no new circuits come from now on; when the old ones have ended, run this again: the bond is then given notice",
            );
        }
        Status::Draining => {
            change(&folder, &sender, "unbond", |relay_id, hash| {
                RelayRegistry::unbondCall { relayId: relay_id, descriptorHash: hash }.abi_encode()
            })?;
            say("the relay serves no more; stop it. The bond is free after 14 days: run this again then");
        }
        Status::Unbonding => {
            let free: u64 = shown.unbondedAt.to();
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

/// Where the relay stands; exit code 3 and the reason when it earns nothing.
fn status(dir: &Path) -> Result<(), Failure> {
    let folder = Folder::open(dir)?;
    let operator = address(&folder)?;
    let wei = folder.endpoint().ask_number("eth_getBalance", &json!([operator.to_string(), "latest"]))?;
    say(&format!("operator       {operator}   {wei} wei for gas"));
    let relay_id = folder.registered()?;
    let Some((standing, shown)) = folder.registration(relay_id)? else {
        return Err(Failure::new(3, format!("relay {relay_id} has left the registry")));
    };
    say(&format!("relay          {relay_id} {} {:?}", folder.plan.role, standing.status));
    say(&format!("bond           {}, class {}, goes back to {}", shown.bond, standing.bond_class, shown.withdrawal));
    if standing.status == Status::Unbonding {
        let free: u64 = shown.unbondedAt.to();
        say(&format!("               free in {} s", free.saturating_sub(unix_seconds())));
    }
    let now = unix_seconds();
    let (reading, directory) = openrelay_node::chain::read(&folder.chain, now, 0)?;
    let (set, header) = reading.record_set(&folder.chain.trust(), now, MAX_LAG, 0).map_err(Failure::plain)?;
    say(&format!("directory      block {}, {} relays take circuits", header.number, directory.body().relays.len()));
    if let Some(own) = directory.relay(relay_id) {
        say(&format!("in it          handshake key {} epoch {}", own.handshake_key, own.key_epoch));
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
        Some(_) if standing.status == Status::Draining => "it drains: openrelay relay drain --undo ends that".into(),
        Some(_) if standing.status == Status::Unbonding => "it leaves".into(),
        Some(_) if standing.bond_class == 0 => "its bond is smaller than the rate asks for now: top it up".into(),
        Some(_) => "it was never started: openrelay relay run".into(),
    };
    Err(Failure::new(3, format!("the relay takes no circuits: {why}")))
}

fn missing_descriptor(set: &RecordSet, relay_id: u64) -> String {
    if set.malformed.contains(&relay_id) {
        "its descriptor does not read: run it again".into()
    } else {
        "no mirror has its descriptor yet".into()
    }
}
