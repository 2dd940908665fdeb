//! `openrelay-dev devchain`: the development chain by itself.
//!
//! Owns arguments and the ready line. The chain proves nothing to anybody: whoever has its address can do everything to it.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_sol_types::{SolCall as _, SolEvent as _};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use k256::ecdsa::SigningKey;
use openrelay_devchain::{
    Contracts, KNOWN, Network, Node, Rules, Server, Store, committed, development, mint_call, read_chain, read_genesis,
    serve,
};
use openrelay_ledger::chain::descriptor::Descriptor;
use openrelay_ledger::chain::registry::{RelayRegistry, Token};
use openrelay_ledger::chain::voted::ANCHOR_EVERY;
use openrelay_ledger::chain::voting::ImageRegistry;
use openrelay_ledger::record::Role;
use openrelay_node::chain::Endpoint;
use openrelay_node::chain::journal::Sender;
use openrelay_node::chain_file::ChainFile;
use openrelay_node::clock::unix_seconds;
use serde_json::{Value, json};

use crate::approved::{BEGINS_AGO, ByRpc, HASTE, InProcess, VALIDATORS, approve};
use crate::devnet::temporary_dir;
use crate::say;
use crate::simulation::Simulation;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Answers JSON-RPC until it is ended; prints one `ready` line with its URL
    Run(Options),
}

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where to answer; port 0 takes a free one. Repeatable: several endpoints of one chain
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: Vec<SocketAddr>,
    /// Answer on an address that is not loopback: in test networks only, for everybody can do everything to this chain
    #[arg(long)]
    expose: bool,
    /// Keep the chain in this file, and go on with what is in it
    #[arg(long, value_name = "FILE", conflicts_with = "import")]
    state: Option<PathBuf>,
    /// Answer for the chain that these files hold; nothing is added to it unless asked to (`evm_mine`)
    #[arg(long, num_args = 2, value_names = ["GENESIS.json", "CHAIN.rlp"])]
    import: Option<Vec<PathBuf>>,
    /// Put the contracts on the chain, and write the file for clients and operators that says where they are
    #[arg(long, value_name = "FILE", conflicts_with_all = ["import", "state"])]
    network: Option<PathBuf>,
    /// A mirror that this file shall name; repeatable
    #[arg(long, value_name = "URL", requires = "network")]
    mirror: Vec<String>,
    /// What times of rounds and images are divided by
    #[arg(long, value_name = "NUMBER", requires = "network")]
    haste: Option<u32>,
    /// Begin with an approved image and collateral, which validators of known keys have voted for hours ago: those of a simulation in this folder, for which the file shall name the
    /// mirror
    #[arg(long, value_name = "DIR", requires = "network")]
    simulate: Option<PathBuf>,
    /// The relay's program, which the image of the simulation stands for
    #[arg(long, value_name = "FILE", requires = "simulate")]
    relay: Option<PathBuf>,
    /// Folder of a built image, which is the one that was approved then
    #[arg(long, value_name = "DIR", requires = "relay")]
    image: Option<PathBuf>,
    /// Seconds between two blocks; 0 for blocks with transactions only
    #[arg(long, default_value_t = 2)]
    block_time: u64,
    /// Begin this many seconds ago, with a clock that stays so far behind until evm_increaseTime moves it
    #[arg(long, value_name = "SECONDS", default_value_t = 0, conflicts_with_all = ["import", "state", "simulate"])]
    behind: u64,
}

/// Blocks of the last minutes that a chain with a simulation begins with: one of them is a block that evidence can name.
pub(crate) const YOUNG_BLOCKS: u64 = ANCHOR_EVERY + 64;

pub(crate) fn run(command: Command) -> Result<()> {
    let Command::Run(options) = command;
    if let Some(exposed) = options.listen.iter().find(|address| !options.expose && !address.ip().is_loopback()) {
        bail!(
            "{exposed} is not loopback, and everybody who reaches this chain can do everything to it; if that is meant: --expose"
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
            simulation.note_old_block(0, node.chain().block(0).context("no block")?.hash)?;
            approve(&mut InProcess(&mut node), network.chain_id, &network.contracts, begins, &publication)?;
            simulation.sign_votes(network.chain_id, network.contracts.images, true)?;
            // Evidence names blocks on which others stand; each is a second younger than the one before.
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
        // One of them passes the time.
        let block_time = (at == 0 && block_time > 0).then(|| Duration::from_secs(block_time));
        servers.push(serve(node.clone(), listener, block_time)?);
    }
    say(&format!("ready url={} chain={chain_id} block={number} DEVELOPMENT", urls.join(",")));
    servers.into_iter().for_each(Server::wait);
    Ok(())
}

impl Options {
    fn rules(&self) -> Rules {
        let usual = if self.simulate.is_some() { HASTE } else { Rules::default().haste };
        let haste = self.haste.unwrap_or(usual);
        Rules { haste, ..Rules::default() }
    }
}

/// The file for clients and operators. Two of three endpoints must agree; of fewer, all.
fn network_file(network: &Network, rules: &Rules, urls: &[String], mirrors: &[String]) -> String {
    let list = |all: &[String]| all.iter().map(|url| format!("\"{url}\"")).collect::<Vec<_>>().join(", ");
    format!(
        "# A development chain: it proves nothing to anybody.\nchain_id = {}\ndirectory = \"{}\"\ncode_hash = \"{}\"\nregistry = \"{}\"\nimages = \"{}\"\nvalidators = \"{}\"\ncollateral = \"{}\"\nhaste = {}\n\
         endpoints = [{}]\nquorum = {}\ninsecure = true\nmirrors = [{}]\nevidence = [{}]\nrefresh_s = 1\n",
        network.chain_id,
        network.directory,
        network.code_hash,
        network.contracts.registry,
        network.contracts.images,
        network.contracts.validators,
        network.contracts.collateral,
        rules.haste,
        list(urls),
        urls.len().min(2),
        list(mirrors),
        list(&mirrors.iter().map(|url| url.replace("/records", "/attestation")).collect::<Vec<_>>())
    )
}

/// The node that the options ask for, and its block time.
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

/// Gives an endpoint faults.
pub(crate) fn set_faults(url: &str, faults: &str) -> Result<()> {
    let faults: Value = serde_json::from_str(faults).context("the faults are no JSON")?;
    Endpoint::new(url).ask("devchain_setFaults", &json!([faults]))?;
    Ok(())
}

/// Makes the next block.
pub(crate) fn mine(url: &str) -> Result<()> {
    Endpoint::new(url).ask("evm_mine", &json!([]))?;
    Ok(())
}

/// Puts the contracts on a development chain of others, whose first known account signs for everybody, and writes the file for clients and operators.
pub(crate) fn deploy(url: &str, path: &Path, mirror: &str, dir: &Path, relay: &Path) -> Result<()> {
    let endpoint = Endpoint::new(url);
    let chain_id = endpoint.ask_number("eth_chainId", &json!([]))?.saturating_to();
    let nonce = endpoint.ask_number("eth_getTransactionCount", &json!([KNOWN[0].0, "latest"]))?.saturating_to();
    let rules = Rules { haste: HASTE, ..Rules::default() };
    let (contracts, creations) = Contracts::creations(KNOWN[0].0, nonce, &rules, &committed);
    for creation in creations {
        send(&endpoint, &json!({"from": KNOWN[0].0, "data": creation}))?;
    }
    let answer = endpoint.call(contracts.registry, &RelayRegistry::directoryCall {}.abi_encode())?;
    let directory = RelayRegistry::directoryCall::abi_decode_returns(&answer)?;
    let code = endpoint.ask("eth_getCode", &json!([directory, "latest"]))?;
    let code: Bytes = code.as_str().context("no code")?.parse()?;
    let network = Network { chain_id, directory, code_hash: keccak256(&code), contracts };
    let block = endpoint.ask("eth_getBlockByNumber", &json!(["latest", false]))?;
    let begins: U256 = block["timestamp"].as_str().context("no time")?.parse()?;
    let (simulation, publication) = Simulation::prepare(dir, relay, None)?;
    let first = endpoint.ask("eth_getBlockByNumber", &json!(["0x0", false]))?;
    simulation.note_old_block(0, first["hash"].as_str().context("no hash")?.parse()?)?;
    approve(&mut ByRpc(&endpoint), chain_id, &network.contracts, begins.saturating_to(), &publication)?;
    simulation.sign_votes(chain_id, network.contracts.images, true)?;
    endpoint.ask("evm_setNextBlockTimestamp", &json!([unix_seconds() - YOUNG_BLOCKS]))?;
    endpoint.ask("evm_mine", &json!([]))?;
    endpoint.ask("anvil_mine", &json!([format!("{YOUNG_BLOCKS:#x}"), "0x1"]))?;
    Ok(fs::write(path, network_file(&network, &rules, &[url.to_owned()], &[mirror.to_owned()]))?)
}

/// Lets the validators of a chain that began with an approved image vote against one: two thirds revoke it.
pub(crate) fn revoke(path: &Path, round: u64) -> Result<()> {
    let file = ChainFile::load(path)?;
    let images = file.images.context("the chain's file names no images")?;
    let dir = temporary_dir()?;
    for (id, place) in (1..).zip(VALIDATORS) {
        let sender = Sender::new(&file, SigningKey::from_slice(KNOWN[place].1.as_slice())?, &dir);
        let call = ImageRegistry::accuseCall { round, validatorId: id, reason: B256::ZERO };
        // The third vote finds the image revoked already.
        if sender.send(&format!("accuse {id}"), images, &call.abi_encode()).is_err() && id < 3 {
            bail!("validator {id} cannot vote against image {round}");
        }
    }
    fs::remove_dir_all(dir).context("cannot clean up")
}

/// Registers an egress that does not run, with a key of its own; its number and the block that it is in.
pub(crate) fn register(path: &Path, number: u8) -> Result<(u64, u64)> {
    /// What it says that it carries, in Mbit/s.
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
    let relay_id = registered.next().context("nothing was registered")?.relayId;
    fs::remove_dir_all(dir).context("cannot clean up")?;
    Ok((relay_id, receipt.block))
}

/// Gives an account ether and tokens there.
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
            ensure!(receipt["status"] == "0x1", "refused: {transaction}");
            return Ok(receipt);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    bail!("not in a block in time: {transaction}")
}
