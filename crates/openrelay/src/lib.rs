//! The `openrelay` command line as a library; its programs differ only in the vendors whose evidence they trust.
//!
//! Owns arguments, exit codes and what people read. Results go to stdout, messages to stderr. It never opens a tunnel
//! or checks evidence itself: `openrelay-node`, `openrelay-ledger` and `openrelay-attest` do.

mod checkpoint;
mod confined;
mod control;
mod daemon;
mod devnet;
mod evidence;
mod failure;
mod image;
mod keystore;
mod ledger;
mod operator;
mod page;
mod selfhost;
mod status;
mod up;
mod update;
mod validator;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use openrelay_attest::Roots;
use openrelay_node::attestation::TrustPolicy;

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
    /// Connect, and route all traffic through two relays
    Up(UpArguments),
    /// Disconnect, and restore routes, DNS and firewall
    Down,
    /// Show connection status
    Status {
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Run relays and a client for yourself
    Selfhost {
        #[command(subcommand)]
        command: SelfhostCommand,
    },
    /// List egress relays
    #[command(alias = "exits")]
    Egresses {
        #[command(flatten)]
        config: ConfigArgument,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Explain why a relay is trusted or refused
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
    Relay {
        #[command(subcommand)]
        command: RelayCommand,
    },
    /// Stake a bond on a chain and vote on images
    Validator {
        #[command(subcommand)]
        command: ValidatorCommand,
    },
    /// Serve relay records, which clients verify themselves
    Mirror {
        #[command(subcommand)]
        command: MirrorCommand,
    },
    /// Sign blocks for clients that have no trusted endpoint
    ///
    /// Such a client starts for the first time, or reaches no endpoint of the chain.
    Checkpoint {
        #[command(subcommand)]
        command: CheckpointCommand,
    },
    /// Inspect evidence that a processor signed
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

#[derive(clap::Args)]
struct ConfigArgument {
    /// Client configuration
    #[arg(long, env = "OPENRELAY_CONFIG", value_name = "FILE", default_value = "/etc/openrelay/client.toml")]
    config: PathBuf,
}

#[derive(Subcommand)]
enum MirrorCommand {
    /// Follow the chain until stopped; prints one `ready` line
    ///
    /// The `ready` line has the URL.
    Run {
        /// Chain file
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
        /// Address to serve plain HTTP on
        ///
        /// Clients verify everything that is served, so the connection needs no TLS.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
        listen: std::net::SocketAddr,
        /// Signed checkpoint to serve as /checkpoint
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
        /// Folder with collateral and image manifests
        ///
        /// They are served with the evidence of all relays as /attestation.
        #[arg(long, value_name = "DIR")]
        files: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum CheckpointCommand {
    /// Make a key, and print its public part for chain files
    Key {
        /// File to write; must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Sign the block in FILE, or the newest one
    ///
    /// Signs only after checking the block on the chain.
    Sign {
        /// Chain file that lists all keys
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
        /// File with the signing key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// Checkpoint file, with the reading at its block
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Sign the newest block, whatever the file holds
        #[arg(long)]
        newest: bool,
    },
}

#[derive(Subcommand)]
pub(crate) enum ImageCommand {
    /// Build an image from a source tree and its locked inputs
    Build {
        #[command(flatten)]
        build: image::BuildArguments,
        /// Folder for image, manifest and firmware
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Build the boot firmware from the source in the lock file
    Firmware {
        #[command(flatten)]
        build: image::BuildArguments,
        /// File to write the firmware to
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Apply another patch, for tests only; repeatable
        ///
        /// The result is not the approved firmware.
        #[arg(long = "patch", value_name = "FILE")]
        patches: Vec<PathBuf>,
    },
    /// Compare this machine's tools with the lock file
    Lock {
        /// Write this machine's tools into the lock file
        #[arg(long)]
        update: bool,
        /// Lock file
        #[arg(long, value_name = "FILE", default_value = "image/inputs.lock")]
        lock: PathBuf,
    },
    /// Print what firmware and chips will report of an image
    Measure {
        /// Image file
        image: PathBuf,
        /// Lock file of the image's inputs
        #[arg(long, value_name = "FILE", default_value = "image/inputs.lock")]
        lock: PathBuf,
        /// Firmware; by default the one beside the image
        #[arg(long, value_name = "FILE")]
        firmware: Option<PathBuf>,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Rebuild an image here and compare it with approved ones
    Verify {
        #[command(flatten)]
        build: image::BuildArguments,
        #[command(flatten)]
        config: ConfigArgument,
    },
    /// List approved images, with rebuilders and votes
    ///
    /// Rebuilders have signed that they rebuilt an image. Votes are listed by validator.
    Show {
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigArgument,
    },
    /// Show where two images differ: section, file and byte
    Diff {
        /// First image
        one: PathBuf,
        /// Second image
        two: PathBuf,
    },
}

#[derive(Subcommand)]
enum EvidenceCommand {
    /// Check whether evidence is genuine, and print its claims
    ///
    /// Accepts a quote of SGX or TDX, or a report of SEV-SNP. Does not judge whether the claims are good enough.
    Inspect {
        /// Raw quote or report
        file: PathBuf,
        /// Vendor collateral to check the evidence with
        ///
        /// Intel: a JSON object with TCB info, QE identity, their signatures and chains, and both CRLs. AMD: VCEK or
        /// VLEK and CRL, PEM.
        #[arg(long, value_name = "FILE")]
        collateral: Option<PathBuf>,
        /// Check as of this RFC 3339 time; default: now
        #[arg(long, value_name = "TIME", value_parser = time)]
        at: Option<chrono::DateTime<chrono::FixedOffset>>,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
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

#[derive(Subcommand)]
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
        #[arg(long, value_name = "ADDRESS")]
        withdrawal: alloy_primitives::Address,
        /// Family name, the same for all relays that you run
        ///
        /// Clients never use two relays of one family in a circuit.
        #[arg(long, value_name = "NAME")]
        family: Option<String>,
        /// SHA-256 of the image that the relay runs
        #[arg(long, value_name = "SHA256")]
        image: Option<alloy_primitives::B256>,
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
        /// Keep all privileges, for tests that inspect it
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

#[derive(Subcommand)]
pub(crate) enum ValidatorCommand {
    /// Make the voting key and its folder
    Init {
        /// Folder to write
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Chain file
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
        /// Address that receives payments; keep its key offline
        #[arg(long, value_name = "ADDRESS")]
        withdrawal: alloy_primitives::Address,
        /// Address of the family that admitted this key
        ///
        /// Without it the validator forms its own family.
        #[arg(long, value_name = "ADDRESS")]
        family: Option<alloy_primitives::Address>,
        /// Bond in the token's smallest unit
        #[arg(long, value_name = "AMOUNT")]
        bond: u128,
        /// File with the password in line 1; `-` for stdin
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Post the bond and join the validators
    Bond {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Show status, open duties, and why it does not vote
    Status {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Run unattended: rebuild, vote, publish, check relays
    ///
    /// Rebuilds proposals, votes on them, publishes its votes, and spot-checks the evidence of relays.
    Run(validator::RunArguments),
    /// Print the hashes that a release of this tree must name
    Source {
        /// Source tree
        #[arg(default_value = ".")]
        tree: PathBuf,
    },
    /// Report a validator that signed two different answers
    ///
    /// Takes two attestations of one validator with different values for one round.
    Report {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// First attestation
        one: PathBuf,
        /// Second attestation
        other: PathBuf,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Take a round's next step: commit, reveal, finish, settle
    Vote {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Number of the round
        round: u64,
        #[command(flatten)]
        answer: VoteAnswer,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
}

/// What the validator found; needed once, to commit.
#[derive(clap::Args)]
#[group(multiple = true)]
pub(crate) struct VoteAnswer {
    /// SHA-256 of the rebuilt image
    #[arg(long, value_name = "SHA256", requires = "measurements", conflicts_with_all = ["failed", "abstain"])]
    image: Option<alloy_primitives::B256>,
    /// SHA-256 of the image's list of measurements
    #[arg(long, value_name = "SHA256", requires = "image")]
    measurements: Option<alloy_primitives::B256>,
    /// SHA-256 of the log of a failed build
    #[arg(long, value_name = "SHA256", conflicts_with = "abstain")]
    failed: Option<alloy_primitives::B256>,
    /// Commit no opinion; only the first in a row is free
    #[arg(long)]
    abstain: bool,
}

impl VoteAnswer {
    fn given(&self) -> Option<validator::Found> {
        match (self.image.zip(self.measurements), self.failed) {
            (Some((image, measurements)), _) => Some(validator::Found::Image { image, measurements }),
            (None, Some(log)) => Some(validator::Found::Failed { log }),
            (None, None) => self.abstain.then_some(validator::Found::Abstain {}),
        }
    }
}

#[derive(clap::Args)]
pub(crate) struct UpArguments {
    /// Client configuration
    #[arg(long, env = "OPENRELAY_CONFIG", value_name = "FILE", default_value = "/etc/openrelay/client.toml")]
    config: PathBuf,
    /// Stay in the foreground instead of becoming a daemon
    #[arg(long)]
    foreground: bool,
    /// Return only once packets flow
    #[arg(long)]
    wait: bool,
    /// Use no ingress; the egress then sees your address
    ///
    /// `openrelay status` shows that the circuit has one hop.
    #[arg(long)]
    one_hop: bool,
}

#[derive(Subcommand)]
enum SelfhostCommand {
    /// Write configurations, keys and a directory for relays
    ///
    /// The directory is signed and lists only your own relays.
    Init {
        /// Folder to write; must be empty or not exist
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Address of an ingress, HOST:PORT; repeatable
        #[arg(long, value_name = "HOST:PORT", required = true)]
        ingress: Vec<String>,
        /// Address of an egress, HOST:PORT; repeatable
        #[arg(long, value_name = "HOST:PORT", required = true)]
        egress: Vec<String>,
        /// Name server to use through the tunnel; repeatable
        #[arg(long, value_name = "ADDRESS", default_values = ["9.9.9.9", "2620:fe::fe"])]
        dns: Vec<std::net::IpAddr>,
        /// Days until the directory must be signed again
        #[arg(long, default_value_t = 365)]
        days: u32,
    },
    /// Sign the next directory, before the old one expires
    ///
    /// Also removes relays from the directory.
    Renew {
        /// Folder that `init` wrote
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// ID of a relay to leave out; repeatable
        #[arg(long, value_name = "RELAY")]
        remove: Vec<u64>,
        /// Days until the directory must be signed again
        #[arg(long, default_value_t = 365)]
        days: u32,
    },
}

/// What a program trusts, and which relay it starts.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) standard: TrustPolicy,
}

impl Program {
    /// Returns the name of the relay's program: a simulating program starts the simulated relay.
    pub(crate) fn relay(&self) -> &'static str {
        if self.standard.roots.simulated { "openrelay-relay-sim" } else { "openrelay-relay" }
    }
}

/// Runs the command that the arguments name, trusting the vendors behind `roots`.
pub fn main(roots: Roots) -> ExitCode {
    let program = Program { standard: TrustPolicy::of(roots) };
    let result = match Cli::parse().command {
        Command::Up(arguments) => up::run(&program, &arguments),
        Command::Down => up::down(),
        Command::Status { json } => status::run(json),
        Command::Selfhost { command: SelfhostCommand::Init { out, ingress, egress, dns, days } } => {
            selfhost::init(&selfhost::NetworkPlan { out, ingress, egress, dns, days })
        }
        Command::Selfhost { command: SelfhostCommand::Renew { dir, remove, days } } => {
            selfhost::renew(&dir, &remove, days)
        }
        Command::Egresses { config, json } => ledger::egresses(&program, &config.config, json),
        Command::Verify { relay, config, json } => page::verify(&program, &config.config, relay, json),
        Command::Relay { command } => operator::run(&program, &command),
        Command::Validator { command } => validator::run(&program, &command),
        Command::Mirror { command: MirrorCommand::Run { chain, listen, checkpoint, files } } => {
            ledger::mirror(&program, &chain, listen, checkpoint, files)
        }
        Command::Checkpoint { command: CheckpointCommand::Key { out } } => checkpoint::make_key(&out),
        Command::Checkpoint { command: CheckpointCommand::Sign { chain, key, file, newest } } => {
            checkpoint::sign(&chain, &key, &file, newest)
        }
        Command::Evidence { command: EvidenceCommand::Inspect { file, collateral, at, json } } => {
            evidence::inspect(&file, collateral.as_deref(), at, json)
        }
        Command::Update { config, into, check, json } => {
            update::update(&program, &config.config, into.as_deref(), check, json)
        }
        Command::Image { command } => image::run(&program, &command),
        Command::Confined(arguments) => confined::run(&arguments),
        Command::Devnet { arguments } => devnet::run("devnet", &arguments),
        Command::Devchain { arguments } => devnet::run("devchain", &arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

/// Parses a time in RFC 3339 format.
fn time(text: &str) -> Result<chrono::DateTime<chrono::FixedOffset>, String> {
    chrono::DateTime::parse_from_rfc3339(text)
        .map_err(|error| format!("{error}; write a time with its zone, like 2026-11-28T00:00:00Z"))
}

/// Prints a line of the result to stdout.
///
/// A line that cannot be written ends the program, and never with success, because an unwritten line may be a
/// refusal. Where the reader has closed the pipe, the program ends quietly with the exit code of SIGPIPE.
pub(crate) fn say(line: &str) {
    use std::io::Write as _;
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            std::process::exit(141);
        }
        talk(&format!("openrelay: cannot write the result: {error}"));
        std::process::exit(1);
    }
}

/// Prints a message to stderr.
pub(crate) fn talk(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}
