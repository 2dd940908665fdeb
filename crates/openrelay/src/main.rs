//! `openrelay`: the command line.
//!
//! Owns arguments, exit codes and what people read. Results go to stdout, talk to stderr.

mod control;
mod daemon;
mod devnet;
mod failure;
mod selfhost;
mod status;
mod up;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "openrelay",
    version,
    about = "A VPN that people can verify instead of trust",
    arg_required_else_help = true
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Connect: send everything through two relays
    Up(UpArguments),
    /// Disconnect and give routes, names and firewall back
    Down,
    /// Say what is going on
    Status {
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Run relays and client for yourself
    Selfhost {
        #[command(subcommand)]
        command: SelfhostCommand,
    },
    /// Try everything on this machine, in namespaces (needs openrelay-dev)
    #[command(disable_help_flag = true)]
    Devnet {
        /// up, demo, break LINK, status, down
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Run an EVM chain for development (needs openrelay-dev)
    #[command(disable_help_flag = true)]
    Devchain {
        /// run --listen ADDR [--state FILE] [--import GENESIS.json CHAIN.rlp]
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

#[derive(clap::Args)]
pub(crate) struct UpArguments {
    /// The client's configuration
    #[arg(long, env = "OPENRELAY_CONFIG", value_name = "FILE", default_value = "/etc/openrelay/client.toml")]
    config: PathBuf,
    /// Stay in the foreground instead of going on as a daemon
    #[arg(long)]
    foreground: bool,
    /// Return only when packets flow
    #[arg(long)]
    wait: bool,
    /// Do without an ingress: the egress then sees your address, and status says so
    #[arg(long)]
    one_hop: bool,
}

#[derive(Subcommand)]
enum SelfhostCommand {
    /// Write configurations, keys and a signed directory for relays of your own
    Init {
        /// Folder to write to; must not exist or be empty
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Address of an ingress, HOST:PORT; repeatable
        #[arg(long, value_name = "HOST:PORT", required = true)]
        ingress: Vec<String>,
        /// Address of an egress, HOST:PORT; repeatable
        #[arg(long, value_name = "HOST:PORT", required = true)]
        egress: Vec<String>,
        /// Name server that clients ask through the tunnel; repeatable
        #[arg(long, value_name = "ADDRESS", default_values = ["9.9.9.9", "2620:fe::fe"])]
        dns: Vec<std::net::IpAddr>,
        /// Days until the directory must be signed anew
        #[arg(long, default_value_t = 365)]
        days: u32,
    },
    /// Sign the next directory, before the old one expires or without a relay
    Renew {
        /// Folder that `init` wrote
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Relay to leave out, by its number; repeatable
        #[arg(long, value_name = "RELAY")]
        remove: Vec<u64>,
        /// Days until the directory must be signed anew
        #[arg(long, default_value_t = 365)]
        days: u32,
    },
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Up(arguments) => up::run(&arguments),
        Command::Down => up::down(),
        Command::Status { json } => status::run(json),
        Command::Selfhost { command: SelfhostCommand::Init { out, ingress, egress, dns, days } } => {
            selfhost::init(&selfhost::Plan { out, ingress, egress, dns, days })
        }
        Command::Selfhost { command: SelfhostCommand::Renew { dir, remove, days } } => {
            selfhost::renew(&dir, &remove, days)
        }
        Command::Devnet { arguments } => devnet::run("devnet", &arguments),
        Command::Devchain { arguments } => devnet::run("devchain", &arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Prints a line of result; a reader that has gone away ends the program quietly.
pub(crate) fn say(line: &str) {
    use std::io::Write as _;
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(0);
    }
}

/// Prints a line of talk.
pub(crate) fn talk(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}
