//! `openrelay-dev devchain`: the development chain by itself.
//!
//! Owns arguments and the ready line. The chain proves nothing to anybody: whoever has its address can do everything to it.

use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use openrelay_devchain::{Node, Server, Store, development, read_chain, read_genesis, serve};

use crate::say;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Answers JSON-RPC until it is ended; prints one `ready` line with its URL
    Run(Options),
}

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Where to answer; port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Answer on an address that is not loopback: in test networks only, for everybody can do everything to this chain
    #[arg(long)]
    expose: bool,
    /// Keep the chain in this file, and go on with what is in it
    #[arg(long, value_name = "FILE", conflicts_with = "import")]
    state: Option<PathBuf>,
    /// Answer for the chain that these files hold; nothing is added to it unless asked to (`evm_mine`)
    #[arg(long, num_args = 2, value_names = ["GENESIS.json", "CHAIN.rlp"])]
    import: Option<Vec<PathBuf>>,
    /// Seconds between two blocks; 0 for blocks with transactions only
    #[arg(long, default_value_t = 2)]
    block_time: u64,
}

pub(crate) fn run(command: Command) -> Result<()> {
    let Command::Run(options) = command;
    let server = start(&options)?;
    let (chain_id, number) = {
        let node = server.node.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        (node.chain().chain_id(), node.chain().last().header.number)
    };
    say(&format!("ready url={} chain={chain_id} block={number} DEVELOPMENT", server.url()));
    server.wait();
    Ok(())
}

fn start(options: &Options) -> Result<Server> {
    ensure!(
        options.expose || options.listen.ip().is_loopback(),
        "{} is not loopback, and everybody who reaches this chain can do everything to it; if that is meant: --expose",
        options.listen
    );
    let (node, block_time) = if let Some(files) = &options.import {
        let [genesis, blocks] = files.as_slice() else { anyhow::bail!("--import takes two files") };
        let text = std::fs::read_to_string(genesis).with_context(|| format!("cannot read {}", genesis.display()))?;
        let rlp = std::fs::read(blocks).with_context(|| format!("cannot read {}", blocks.display()))?;
        let mut chain = read_genesis(&text).with_context(|| genesis.display().to_string())?;
        read_chain(&mut chain, &rlp).with_context(|| blocks.display().to_string())?;
        (Node::new(chain, false, None), 0)
    } else {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs();
        let (store, chain) = match &options.state {
            Some(path) => Store::open(path, now).map(|(store, chain)| (Some(store), chain))?,
            None => (None, development(now)),
        };
        (Node::new(chain, true, store), options.block_time)
    };
    let listener = TcpListener::bind(options.listen).with_context(|| format!("cannot listen on {}", options.listen))?;
    Ok(serve(node, listener, (block_time > 0).then(|| Duration::from_secs(block_time)))?)
}
