//! `openrelay-dev` runs a whole network on one machine, for experiments and tests.
//!
//! Owns none of the product's functions. It starts `openrelay` and `openrelay-relay`, gives them hosts and links, and
//! watches the links.

mod account;
mod approved;
mod attacks;
mod boot;
mod chain;
mod chain_check;
mod check;
mod checkpoint_check;
mod demo;
mod devchain;
mod devnet;
mod evidence_check;
mod flood;
mod host;
mod judge;
mod leak;
mod load;
mod local_chain;
mod loss;
mod packed;
mod reorganisation_check;
mod scenario;
mod services;
mod share_check;
mod simulation;
mod thin;
mod tiny;
mod topology;
mod vote_check;
mod wire;
mod withholding_check;

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "openrelay-dev", version, about = "Development tools of OpenRelay")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run client, NAT, relays and a small internet in namespaces
    Devnet {
        #[command(subcommand)]
        command: devnet::Command,
    },
    /// Run a development EVM chain with JSON-RPC
    Devchain {
        #[command(subcommand)]
        command: devchain::Command,
    },
    /// Boot an image in an emulated machine and check measurements
    ///
    /// Compares what the firmware measures with the prediction.
    Boot {
        /// Image to boot
        image: PathBuf,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Attack the boot of an image as a hostile host
    Attacks(attacks::Options),
    /// Deploy the contracts on another development chain
    ///
    /// Writes the file that says where the contracts are.
    #[command(hide = true)]
    ChainDeploy { url: String, file: PathBuf, mirror: String, simulate: PathBuf, relay: PathBuf },
    /// Give an account ether and tokens on a development chain
    #[command(hide = true)]
    ChainFund { url: String, file: PathBuf, account: alloy_primitives::Address },
    /// Set exactly these faults at a development chain's endpoint
    #[command(hide = true)]
    ChainFaults { url: String, faults: String },
    /// Make the chain's validators vote to revoke an image
    #[command(hide = true)]
    ChainRevoke { file: PathBuf, round: u64 },
    /// Register an egress that does not run
    ///
    /// Prints the relay ID and the block.
    #[command(hide = true)]
    ChainRegister { file: PathBuf, number: u8 },
    /// Mine the next block of the development chain
    #[command(hide = true)]
    ChainMine { url: String },
    /// Serve the small internet: web, DNS and echo
    Internet {
        /// Addresses to serve on
        #[arg(required = true)]
        addresses: Vec<IpAddr>,
        /// Address of the chain's host, for the name server
        #[arg(long)]
        chain: Option<std::net::Ipv4Addr>,
    },
    /// Fetch bytes from the small internet's web server and check them
    Fetch {
        /// HOST:PORT, or NAME:PORT to query the resolver
        host: String,
        /// Number of bytes to fetch
        bytes: u64,
        /// Use IPv6 only; the default is IPv4 only
        #[arg(long)]
        v6: bool,
    },
    /// Download endlessly from the web server, to keep a path busy
    #[command(hide = true)]
    Drain { host: String },
    /// Exchange datagrams with the small internet's echo server
    Echo {
        server: SocketAddr,
        #[arg(default_value_t = 100)]
        count: u32,
        /// Bytes per datagram; by default the size grows
        #[arg(long)]
        size: Option<usize>,
    },
    /// Run openrelay-relay and leak beside it, to test the judge
    LeakingRelay {
        /// Arguments for openrelay-relay: run --config FILE
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Open many circuits and keep them open
    Load {
        #[arg(long)]
        config: PathBuf,
        #[arg(long, default_value_t = 1000)]
        circuits: usize,
        #[arg(long, default_value_t = 100)]
        active: usize,
    },
    /// Send first packets from addresses that do not exist
    Flood(flood::Options),
    /// Hold a UDP port without reading from it
    #[command(hide = true)]
    HoldUnread { address: SocketAddrV4 },
    /// Send meaningless datagrams of all sizes
    #[command(hide = true)]
    Garbage { to: SocketAddr },
    /// Send the FIN of a TCP connection that never existed
    #[command(hide = true)]
    Stray { to: std::net::Ipv4Addr },
    /// Delete the tracked connections that an address opened
    #[command(hide = true)]
    Forget { address: IpAddr },
    /// Leak traffic beside the relay of this configuration
    #[command(hide = true)]
    Leak { config: PathBuf },
    /// Serve another mirror's records without some descriptors
    #[command(hide = true)]
    Thin {
        #[arg(long)]
        listen: SocketAddr,
        /// URL of the other mirror's records
        #[arg(long)]
        of: String,
        /// Folder with a file for each reader to deceive
        ///
        /// The file lists the relays that the reader is shown.
        #[arg(long)]
        lists: PathBuf,
    },
    /// Watch links of this network namespace
    Judge {
        /// File that says what the judge must look for
        #[arg(long)]
        rules: PathBuf,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Devnet { command } => devnet::run(command),
        Command::Devchain { command } => devchain::run(command),
        Command::Boot { image, json } => boot::check(&image, json),
        Command::Attacks(options) => attacks::run(&options),
        Command::ChainDeploy { url, file, mirror, simulate, relay } => {
            devchain::deploy(&url, &file, &mirror, &simulate, &relay)
        }
        Command::ChainFund { url, file, account } => devchain::fund(&url, &file, account),
        Command::ChainFaults { url, faults } => devchain::set_faults(&url, &faults),
        Command::ChainRevoke { file, round } => devchain::revoke(&file, round),
        Command::ChainRegister { file, number } => {
            devchain::register(&file, number).map(|(relay, block)| say(&format!("{relay} {block}")))
        }
        Command::ChainMine { url } => devchain::mine(&url),
        Command::Internet { addresses, chain } => services::serve(&addresses, chain),
        Command::Fetch { host, bytes, v6 } => services::fetch(&host, bytes, v6),
        Command::Drain { host } => services::drain(&host),
        Command::Echo { server, count, size } => services::exchange(server, count, size),
        Command::LeakingRelay { arguments } => leak::run(&arguments),
        Command::Load { config, circuits, active } => load::run(&config, circuits, active),
        Command::Flood(options) => flood::send(&options),
        Command::HoldUnread { address } => flood::hold_unread(address),
        Command::Garbage { to } => services::garbage(to),
        Command::Stray { to } => services::stray(to),
        Command::Forget { address } => forget(address),
        Command::Leak { config } => leak::beside(&config),
        Command::Thin { listen, of, lists } => thin::serve(listen, &of, &lists),
        Command::Judge { rules } => judge::run(&rules),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            talk(&format!("openrelay-dev: {error:#}"));
            ExitCode::from(if error.is::<host::Missing>() { 77 } else { 1 })
        }
    }
}

fn forget(address: IpAddr) -> anyhow::Result<()> {
    Ok(openrelay_sys::conntrack::Conntrack::open()?.forget(address)?)
}

/// Prints a result line on standard output.
fn say(line: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Prints a progress or error line on standard error.
fn talk(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}
