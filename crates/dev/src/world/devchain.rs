//! `openrelay-dev devchain`: the development chain alone.
//!
//! Owns its options and the ready line. The chain proves nothing to anybody: anyone who reaches its address has full
//! control of it.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_sol_types::{SolCall as _, SolEvent as _};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use k256::ecdsa::SigningKey;
use openrelay_chain::Endpoint;
use openrelay_chain::journal::Sender;
use openrelay_chain::registry::{RelayRegistry, Token};
use openrelay_chain::voting::ImageRegistry;
use openrelay_devchain::{
    Contracts, KNOWN, Network, Node, Rules, Server, Store, committed, development, mint_call, read_chain, read_genesis,
    serve,
};
use openrelay_ledger::chain::descriptor::Descriptor;
use openrelay_ledger::chain::voted::ANCHOR_EVERY;
use openrelay_ledger::record::Role;
use openrelay_node::chain_file::ChainFile;
use openrelay_node::clock::unix_seconds;
use serde_json::{Value, json};

use super::approved::{BEGINS_AGO, ByRpc, InProcess, TIME_DIVISOR, VALIDATORS, approve};
use super::simulation::Simulation;
use crate::net::folder::temporary_dir;
use crate::net::output::say;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Answer JSON-RPC until the process ends
    ///
    /// Prints one `ready` line with its URL.
    Run(Options),
}

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Address to listen on; port 0 takes a free port
    ///
    /// Repeat the option for several endpoints of one chain.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: Vec<SocketAddr>,
    /// Listen on an address that is not loopback
    ///
    /// For test networks only: anyone who reaches the address has full control of the chain.
    #[arg(long)]
    expose: bool,
    /// Keep the chain in this file and continue from its content
    #[arg(long, value_name = "FILE", conflicts_with = "import")]
    state: Option<PathBuf>,
    /// Serve the chain in these files
    ///
    /// Blocks are added only on request (`evm_mine`).
    #[arg(long, num_args = 2, value_names = ["GENESIS.json", "CHAIN.rlp"])]
    import: Option<Vec<PathBuf>>,
    /// Deploy the contracts and write the chain file
    ///
    /// Clients and operators read the file, which says where the contracts are.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["import", "state"])]
    network: Option<PathBuf>,
    /// Mirror to name in the chain file; repeatable
    #[arg(long, value_name = "URL", requires = "network")]
    mirror: Vec<String>,
    /// Divisor of the times of rounds and images
    #[arg(long, value_name = "NUMBER", requires = "network")]
    time_divisor: Option<u32>,
    /// Start with an approved image and collateral
    ///
    /// Validators with public keys voted for them hours ago. The simulation in this folder supplies both, and the
    /// chain file must name the mirror that serves them.
    #[arg(long, value_name = "DIR", requires = "network")]
    simulate: Option<PathBuf>,
    /// Relay program that the simulated image represents
    #[arg(long, value_name = "FILE", requires = "simulate")]
    relay: Option<PathBuf>,
    /// Folder of the image to approve; default: a simulated image
    #[arg(long, value_name = "DIR", requires = "relay")]
    image: Option<PathBuf>,
    /// Seconds between blocks; 0 mines only with transactions
    #[arg(long, default_value_t = 2)]
    block_time: u64,
    /// Start this many seconds in the past
    ///
    /// The clock stays that far behind until evm_increaseTime moves it.
    #[arg(long, value_name = "SECONDS", default_value_t = 0, conflicts_with_all = ["import", "state", "simulate"])]
    behind: u64,
}

/// Number of recent blocks, one per second, with which a chain with a simulation starts. Evidence can name one of
/// them.
pub(crate) const YOUNG_BLOCKS: u64 = ANCHOR_EVERY + 64;

pub(crate) fn run(command: Command) -> Result<()> {
    let Command::Run(options) = command;
    if let Some(exposed) = options.listen.iter().find(|address| !options.expose && !address.ip().is_loopback()) {
        bail!(
            "{exposed} is not loopback, and anyone who reaches this chain has full control of it; \
             to allow that, pass --expose"
        );
    }
    let (mut node, block_time) = make(&options)?;
    let listeners = options
        .listen
        .iter()
        .map(|address| TcpListener::bind(address).with_context(|| format!("cannot listen on {address}")));
    let listeners: Vec<TcpListener> = listeners.collect::<Result<_>>()?;
    let urls: Vec<String> =
        listeners.iter().map(|listener| Ok(format!("http://{}", listener.local_addr()?))).collect::<Result<_>>()?;
    if let Some(path) = &options.network {
        let rules = options.rules();
        let network = node.deploy(&rules).map_err(|error| anyhow!("cannot deploy the contracts: {error}"))?;
        if let Some((dir, relay)) = options.simulate.as_ref().zip(options.relay.as_ref()) {
            let begins = node.chain().last().header.timestamp;
            let (simulation, publication) = Simulation::prepare(dir, relay, options.image.as_deref())?;
            simulation.note_old_block(0, node.chain().block(0).context("the chain has no block 0")?.hash)?;
            approve(&mut InProcess(&mut node), network.chain_id, &network.contracts, begins, &publication)?;
            simulation.sign_votes(network.chain_id, network.contracts.images, true)?;
            // Evidence names blocks that later blocks build on. Each block is one second after the previous one.
            node.tell_time(unix_seconds() - YOUNG_BLOCKS);
            for _ in 0..YOUNG_BLOCKS {
                node.mine();
            }
            node.tell_time(unix_seconds());
            node.mine();
        }
        fs::write(path, network_file(&network, &rules, &urls, &options.mirror))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    let (chain_id, number) = (node.chain().chain_id(), node.chain().last().header.number);
    let node = Arc::new(Mutex::new(node));
    let mut servers = Vec::new();
    for (at, listener) in listeners.into_iter().enumerate() {
        // Only the first server makes blocks as time passes.
        let block_time = (at == 0 && block_time > 0).then(|| Duration::from_secs(block_time));
        servers.push(serve(node.clone(), listener, block_time)?);
    }
    say(&format!("ready url={} chain={chain_id} block={number} DEVELOPMENT", urls.join(",")));
    servers.into_iter().for_each(Server::wait);
    Ok(())
}

impl Options {
    fn rules(&self) -> Rules {
        let usual = if self.simulate.is_some() { TIME_DIVISOR } else { Rules::default().time_divisor };
        let time_divisor = self.time_divisor.unwrap_or(usual);
        Rules { time_divisor, ..Rules::default() }
    }
}

/// Returns the chain file for clients and operators. Two of three endpoints must agree; with fewer endpoints all
/// must.
fn network_file(network: &Network, rules: &Rules, urls: &[String], mirrors: &[String]) -> String {
    let list = |all: &[String]| all.iter().map(|url| format!("\"{url}\"")).collect::<Vec<_>>().join(", ");
    format!(
        "# A development chain: it proves nothing to anybody.\nchain_id = {}\ndirectory = \"{}\"\n\
         code_hash = \"{}\"\nregistry = \"{}\"\nimages = \"{}\"\nvalidators = \"{}\"\ncollateral = \"{}\"\n\
         time_divisor = {}\n\
         endpoints = [{}]\nquorum = {}\ninsecure = true\nmirrors = [{}]\nevidence = [{}]\nrefresh_s = 1\n",
        network.chain_id,
        network.directory,
        network.code_hash,
        network.contracts.registry,
        network.contracts.images,
        network.contracts.validators,
        network.contracts.collateral,
        rules.time_divisor,
        list(urls),
        urls.len().min(2),
        list(mirrors),
        list(&mirrors.iter().map(|url| url.replace("/records", "/attestation")).collect::<Vec<_>>())
    )
}

/// Creates the node for these options, and returns it with its block time.
fn make(options: &Options) -> Result<(Node, u64)> {
    if let Some(files) = &options.import {
        let [genesis, blocks] = files.as_slice() else { bail!("--import takes two files") };
        let text = fs::read_to_string(genesis).with_context(|| format!("cannot read {}", genesis.display()))?;
        let rlp = fs::read(blocks).with_context(|| format!("cannot read {}", blocks.display()))?;
        let mut chain = read_genesis(&text).with_context(|| genesis.display().to_string())?;
        read_chain(&mut chain, &rlp).with_context(|| blocks.display().to_string())?;
        return Ok((Node::new(chain, false, None), 0));
    }
    let now = unix_seconds();
    let (store, chain) = match &options.state {
        Some(path) => Store::open(path, now).map(|(store, chain)| (Some(store), chain))?,
        None if options.simulate.is_some() => (None, development(now - BEGINS_AGO)),
        None => (None, development(now - options.behind)),
    };
    let mut node = Node::new(chain, true, store);
    node.stay_behind(options.behind);
    Ok((node, options.block_time))
}

/// Sets the faults of an endpoint.
pub(crate) fn set_faults(url: &str, faults: &str) -> Result<()> {
    let faults: Value = serde_json::from_str(faults).context("the faults are not JSON")?;
    Endpoint::new(url).ask("devchain_setFaults", &json!([faults]))?;
    Ok(())
}

/// Mines the next block.
pub(crate) fn mine(url: &str) -> Result<()> {
    Endpoint::new(url).ask("evm_mine", &json!([]))?;
    Ok(())
}

/// Deploys the contracts on another development chain and writes the file for clients and operators.
///
/// That chain's first known account signs for all accounts.
pub(crate) fn deploy(url: &str, path: &Path, mirror: &str, dir: &Path, relay: &Path) -> Result<()> {
    let endpoint = Endpoint::new(url);
    let chain_id = endpoint.ask_number("eth_chainId", &json!([]))?.saturating_to();
    let nonce = endpoint.ask_number("eth_getTransactionCount", &json!([KNOWN[0].0, "latest"]))?.saturating_to();
    let rules = Rules { time_divisor: TIME_DIVISOR, ..Rules::default() };
    let (contracts, creations) = Contracts::creations(KNOWN[0].0, nonce, &rules, &committed);
    for creation in creations {
        send(&endpoint, &json!({"from": KNOWN[0].0, "data": creation}))?;
    }
    let answer = endpoint.call(contracts.registry, &RelayRegistry::directoryCall {}.abi_encode())?;
    let directory = RelayRegistry::directoryCall::abi_decode_returns(&answer)?;
    let code = endpoint.ask("eth_getCode", &json!([directory, "latest"]))?;
    let code: Bytes = code.as_str().context("the endpoint returned no code")?.parse()?;
    let network = Network { chain_id, directory, code_hash: keccak256(&code), contracts };
    let block = endpoint.ask("eth_getBlockByNumber", &json!(["latest", false]))?;
    let begins: U256 = block["timestamp"].as_str().context("the endpoint returned no time")?.parse()?;
    let (simulation, publication) = Simulation::prepare(dir, relay, None)?;
    let first = endpoint.ask("eth_getBlockByNumber", &json!(["0x0", false]))?;
    simulation.note_old_block(0, first["hash"].as_str().context("the endpoint returned no hash")?.parse()?)?;
    approve(&mut ByRpc(&endpoint), chain_id, &network.contracts, begins.saturating_to(), &publication)?;
    simulation.sign_votes(chain_id, network.contracts.images, true)?;
    endpoint.ask("evm_setNextBlockTimestamp", &json!([unix_seconds() - YOUNG_BLOCKS]))?;
    endpoint.ask("evm_mine", &json!([]))?;
    endpoint.ask("anvil_mine", &json!([format!("{YOUNG_BLOCKS:#x}"), "0x1"]))?;
    Ok(fs::write(path, network_file(&network, &rules, &[url.to_owned()], &[mirror.to_owned()]))?)
}

/// Makes the validators of a chain that started with an approved image vote to revoke an image. Two thirds revoke it.
pub(crate) fn revoke(path: &Path, round: u64) -> Result<()> {
    let file = ChainFile::load(path)?;
    let images = file.images.context("the chain file has no image registry")?;
    let dir = temporary_dir()?;
    for (id, place) in (1..).zip(VALIDATORS) {
        let sender = Sender::new(&file, SigningKey::from_slice(KNOWN[place].1.as_slice())?, &dir);
        let call = ImageRegistry::accuseCall { round, validatorId: id, reason: B256::ZERO };
        // The third vote fails, because two votes have already revoked the image.
        if sender.send(&format!("accuse {id}"), images, &call.abi_encode()).is_err() && id < 3 {
            bail!("validator {id} cannot vote against image {round}");
        }
    }
    fs::remove_dir_all(dir).context("cannot clean up")
}

/// Registers an egress that does not run, with its own key. Returns its relay ID and the block of its registration.
pub(crate) fn register(path: &Path, number: u8) -> Result<(u64, u64)> {
    /// Bandwidth that the relay advertises, in Mbit/s.
    const ADVERTISED: u32 = 1_000;
    let file = ChainFile::load(path)?;
    let dir = temporary_dir()?;
    let key = SigningKey::from_slice(keccak256([b"an operator".as_slice(), &[number]].concat()).as_slice())?;
    let sender = Sender::new(&file, key, &dir);
    let ask = |call: Vec<u8>| sender.endpoint().call(file.registry, &call);
    let token = RelayRegistry::tokenCall::abi_decode_returns(&ask(RelayRegistry::tokenCall {}.abi_encode())?)?;
    let bond = U256::from(10u64.pow(18)) * U256::from(ADVERTISED);
    sender.endpoint().ask("devchain_fund", &json!([sender.address(), token, format!("{bond:#x}")]))?;
    let approve = Token::approveCall { spender: file.registry, value: bond };
    sender.send("approve", token, &approve.abi_encode())?;
    let descriptor = Descriptor {
        role: Role::Egress,
        key_epoch: 1,
        handshake_key: [number; 32],
        image: B256::ZERO,
        key_root: B256::ZERO,
        endpoints: vec![format!("45.{number}.0.1:443").parse()?],
        family: None,
    };
    let call = RelayRegistry::registerCall {
        advertisedMbit: ADVERTISED,
        withdrawal: sender.address(),
        amount: bond.to(),
        descriptor: descriptor.encode()?.into(),
    };
    let receipt = sender.send("register", file.registry, &call.abi_encode())?;
    let mut registered = receipt.logs.iter().filter_map(|log| RelayRegistry::Registered::decode_log(log).ok());
    let relay_id = registered.next().context("the receipt has no Registered event")?.relayId;
    fs::remove_dir_all(dir).context("cannot clean up")?;
    Ok((relay_id, receipt.block))
}

/// Gives an account ether and tokens on that chain.
pub(crate) fn fund(url: &str, path: &Path, account: Address) -> Result<()> {
    let endpoint = Endpoint::new(url);
    let file = ChainFile::load(path)?;
    let answer = endpoint.call(file.registry, &RelayRegistry::tokenCall {}.abi_encode())?;
    let token = RelayRegistry::tokenCall::abi_decode_returns(&answer)?;
    let ether = U256::from(10u64.pow(18));
    send(&endpoint, &json!({"from": KNOWN[0].0, "to": account, "value": ether}))?;
    let mint = mint_call(account, ether * U256::from(1_000_000));
    send(&endpoint, &json!({"from": KNOWN[0].0, "to": token, "data": mint})).map(drop)
}

/// Sends from an account that the chain itself signs for, and waits for the receipt.
fn send(endpoint: &Endpoint, transaction: &Value) -> Result<Value> {
    let hash = endpoint.ask("eth_sendTransaction", &json!([transaction]))?;
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline {
        let receipt = endpoint.ask("eth_getTransactionReceipt", &json!([hash]))?;
        if !receipt.is_null() {
            ensure!(receipt["status"] == "0x1", "the transaction failed: {transaction}");
            return Ok(receipt);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("the transaction was not mined within 20 s: {transaction}")
}
