//! The tree of commands. Each command's arguments are in its own file.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::checkpoint::CheckpointCommand;
use crate::directory::ConfigArgument;
use crate::evidence::EvidenceCommand;
use crate::failure::Failure;
use crate::image::ImageCommand;
use crate::mirror::MirrorCommand;
use crate::program::Program;
use crate::relay::RelayCommand;
use crate::selfhost::SelfhostCommand;
use crate::up::UpArguments;
use crate::validator::ValidatorCommand;
use crate::{
    checkpoint, confined, devnet, egresses, evidence, image, log, mirror, relay, selfhost, status, up, update,
    validator, verify,
};

#[derive(Parser)]
#[command(
    name = "openrelay",
    version,
    about = "A VPN that people can verify instead of trust",
    arg_required_else_help = true
)]
struct Cli {
    /// Print more about what happens; -vv prints most
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Connect, and route all traffic through two relays
    #[command(version)]
    Up(UpArguments),
    /// Disconnect, and restore routes, DNS and firewall
    #[command(version)]
    Down,
    /// Show connection status
    #[command(version)]
    Status {
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Run relays and a client for yourself
    #[command(version, propagate_version = true)]
    Selfhost {
        #[command(subcommand)]
        command: SelfhostCommand,
    },
    /// List egress relays
    #[command(alias = "exits", version)]
    Egresses {
        #[command(flatten)]
        config: ConfigArgument,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Explain why a relay is trusted or refused
    #[command(version)]
    Verify {
        /// Relay ID; without it, summarise all relays
        relay: Option<u64>,
        #[command(flatten)]
        config: ConfigArgument,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Run your own relay on a chain
    #[command(version, propagate_version = true)]
    Relay {
        #[command(subcommand)]
        command: RelayCommand,
    },
    /// Stake a bond on a chain and vote on images
    #[command(version, propagate_version = true)]
    Validator {
        #[command(subcommand)]
        command: ValidatorCommand,
    },
    /// Serve relay records, which clients verify themselves
    #[command(version, propagate_version = true)]
    Mirror {
        #[command(subcommand)]
        command: MirrorCommand,
    },
    /// Sign blocks for clients that have no trusted endpoint
    ///
    /// A client needs such blocks at its first start, or when it reaches no endpoint of the chain.
    #[command(version, propagate_version = true)]
    Checkpoint {
        #[command(subcommand)]
        command: CheckpointCommand,
    },
    /// Inspect evidence that a processor signed
    #[command(version, propagate_version = true)]
    Evidence {
        #[command(subcommand)]
        command: EvidenceCommand,
    },
    /// Update this program to the newest approved release
    ///
    /// Validators have rebuilt and approved the release. The previous program is kept beside it.
    Update {
        #[command(flatten)]
        config: ConfigArgument,
        /// Program to replace; this one by default
        #[arg(long, value_name = "FILE")]
        into: Option<PathBuf>,
        /// Show the newest release, and install nothing
        #[arg(long)]
        check: bool,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Build, measure and compare relay images
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Run a program in a sandbox without network
    #[command(hide = true)]
    Confined(confined::Arguments),
    /// Try everything in local namespaces (needs openrelay-dev)
    #[command(disable_help_flag = true)]
    Devnet {
        /// One of: up, demo, break LINK, status, down
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
    /// Run a development EVM chain (needs openrelay-dev)
    #[command(disable_help_flag = true)]
    Devchain {
        /// run --listen ADDR [--state FILE] [--import GENESIS CHAIN]
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<std::ffi::OsString>,
    },
}

/// Runs the command that the arguments name.
pub(crate) fn run(program: &Program) -> Result<(), Failure> {
    let Cli { verbose, command } = Cli::parse();
    log::start(verbose);
    match command {
        Command::Up(arguments) => up::run(program, &arguments, verbose),
        Command::Down => up::down(),
        Command::Status { json } => status::run(json),
        Command::Selfhost { command } => selfhost::run(command),
        Command::Egresses { config, json } => egresses::run(program, &config.config, json),
        Command::Verify { relay, config, json } => verify::run(program, &config.config, relay, json),
        Command::Relay { command } => relay::run(program, &command),
        Command::Validator { command } => validator::run(program, &command),
        Command::Mirror { command } => mirror::run(program, command),
        Command::Checkpoint { command } => checkpoint::run(&command),
        Command::Evidence { command } => evidence::run(&command),
        Command::Update { config, into, check, json } => {
            update::update(program, &config.config, into.as_deref(), check, json)
        }
        Command::Image { command } => image::run(program, &command),
        Command::Confined(arguments) => confined::run(&arguments),
        Command::Devnet { arguments } => devnet::run("devnet", &arguments),
        Command::Devchain { arguments } => devnet::run("devchain", &arguments),
    }
}
