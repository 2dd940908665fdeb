//! `openrelay-dev`: a whole network on one machine, for trying and testing.
//!
//! Owns nothing of the product: it starts `openrelay` and `openrelay-relay`, gives them hosts and links, and watches the links.

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
    /// Client, NAT, two ingresses, two egresses and a small internet, in namespaces
    Devnet {
        #[command(subcommand)]
        command: devnet::Command,
    },
    /// An EVM chain for development, with JSON-RPC
    Devchain {
        #[command(subcommand)]
        command: devchain::Command,
    },
    /// Starts an image in an emulated machine, and compares what firmware measures with what was predicted
    Boot {
        /// The image
        image: PathBuf,
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Attack the boot of an image as a hostile host
    Attacks(attacks::Options),
    /// Puts the contracts on a development chain of others, and writes the file that says where they are
    #[command(hide = true)]
    ChainDeploy { url: String, file: PathBuf, mirror: String, simulate: PathBuf, relay: PathBuf },
    /// Gives an account ether and tokens there
    #[command(hide = true)]
    ChainFund { url: String, file: PathBuf, account: alloy_primitives::Address },
    /// Gives an endpoint of the development chain these faults and no others
    #[command(hide = true)]
    ChainFaults { url: String, faults: String },
    /// Lets its validators vote against an image
    #[command(hide = true)]
    ChainRevoke { file: PathBuf, round: u64 },
    /// Registers an egress that does not run; prints its number and the block
    #[command(hide = true)]
    ChainRegister { file: PathBuf, number: u8 },
    /// Makes the next block of the development chain
    #[command(hide = true)]
    ChainMine { url: String },
    /// The servers of the small internet: web, DNS, echo
    Internet {
        /// Addresses to serve on
        #[arg(required = true)]
        addresses: Vec<IpAddr>,
        /// The chain's host, for the name server
        #[arg(long)]
        chain: Option<std::net::Ipv4Addr>,
    },
    /// Fetches bytes from the small internet's web server and checks them
    Fetch {
        /// HOST:PORT, or NAME:PORT to ask the resolver
        host: String,
        /// How many bytes
        bytes: u64,
        /// Use IPv6 only, or IPv4 only
        #[arg(long)]
        v6: bool,
    },
    /// Downloads without end from the small internet's web server, to keep a path busy
    #[command(hide = true)]
    Drain { host: String },
    /// Exchanges datagrams with the small internet's echo server
    Echo {
        server: SocketAddr,
        #[arg(default_value_t = 100)]
        count: u32,
        /// Bytes of each; growing if not given
        #[arg(long)]
        size: Option<usize>,
    },
    /// Runs openrelay-relay and leaks beside it, for judging the judge
    LeakingRelay {
        /// run --config FILE
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Opens many circuits and keeps them
    Load {
        #[arg(long)]
        config: PathBuf,
        #[arg(long, default_value_t = 1000)]
        circuits: usize,
        #[arg(long, default_value_t = 100)]
        active: usize,
    },
    /// Sends first packets from addresses that do not exist
    Flood(flood::Options),
    /// Holds a UDP port that nobody reads
    #[command(hide = true)]
    HoldUnread { address: SocketAddrV4 },
    /// Sends datagrams of all sizes and no sense
    #[command(hide = true)]
    Garbage { to: SocketAddr },
    /// Sends the end of a TCP connection that never was
    #[command(hide = true)]
    Stray { to: std::net::Ipv4Addr },
    /// Makes connection tracking forget what an address began
    #[command(hide = true)]
    Forget { address: IpAddr },
    /// Leaks beside the relay of a configuration
    #[command(hide = true)]
    Leak { config: PathBuf },
    /// Serves another mirror's records, without descriptors that are to be withheld
    #[command(hide = true)]
    Thin {
        #[arg(long)]
        listen: SocketAddr,
        /// URL of the other mirror's records
        #[arg(long)]
        of: String,
        /// Folder with a file for each reader that is lied to: the relays that it may know
        #[arg(long)]
        lists: PathBuf,
    },
    /// Watches links of this network namespace
    Judge {
        /// What to look for
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

/// Prints a line of result.
fn say(line: &str) {
    use std::io::Write as _;
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Prints a line of talk.
fn talk(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}
