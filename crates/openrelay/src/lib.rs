//! The command line, for the programs that are one: whose evidence they believe is their only difference.
//!
//! Owns arguments, exit codes and what people read. Results go to stdout, talk to stderr.

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
use openrelay_node::attestation::Standard;

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
    /// List the egresses that there are
    Exits {
        #[command(flatten)]
        config: ConfigArgument,
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Show why a relay can be believed, or why not; without a number, of all of them in short
    Verify {
        /// Its number
        relay: Option<u64>,
        #[command(flatten)]
        config: ConfigArgument,
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Run a relay of your own on a chain
    Relay {
        #[command(subcommand)]
        command: RelayCommand,
    },
    /// Vote on images with a bond on a chain
    Validator {
        #[command(subcommand)]
        command: ValidatorCommand,
    },
    /// Serve the records of all relays to others, who hold them against the chain
    Mirror {
        #[command(subcommand)]
        command: MirrorCommand,
    },
    /// Sign blocks for clients that start for the first time, or reach no endpoint of the chain
    Checkpoint {
        #[command(subcommand)]
        command: CheckpointCommand,
    },
    /// Look at what a chip has signed
    Evidence {
        #[command(subcommand)]
        command: EvidenceCommand,
    },
    /// Replace this program by the newest that validators have rebuilt and approved; the one of before is kept beside it
    Update {
        #[command(flatten)]
        config: ConfigArgument,
        /// The program to replace; this one if not given
        #[arg(long, value_name = "FILE")]
        into: Option<PathBuf>,
        /// Only say what there is
        #[arg(long)]
        check: bool,
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Build, measure and compare images of relays
    Image {
        #[command(subcommand)]
        command: ImageCommand,
    },
    /// Become a program that reads and writes little and reaches nobody
    #[command(hide = true)]
    Confined(confined::Arguments),
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
struct ConfigArgument {
    /// The client's configuration
    #[arg(long, env = "OPENRELAY_CONFIG", value_name = "FILE", default_value = "/etc/openrelay/client.toml")]
    config: PathBuf,
}

#[derive(Subcommand)]
enum MirrorCommand {
    /// Follow the chain until it is ended; prints one `ready` line with the URL
    Run {
        /// The file that says which chain
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
        /// Where to serve, over plain HTTP: what is served proves itself
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
        listen: std::net::SocketAddr,
        /// A signed checkpoint to serve beside the records, as /checkpoint
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
        /// Folder with collateral and manifests of images, which are served with the evidence of all relays as /attestation
        #[arg(long, value_name = "DIR")]
        files: Option<PathBuf>,
    },
}

#[derive(Subcommand)]
enum CheckpointCommand {
    /// Make a key and print its public part, which chain files name
    Key {
        /// File to write to; must not exist
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Sign the block of the file that is there, or the newest, after looking at the chain
    Sign {
        /// The file that says which chain, with all keys
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
        /// The key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The checkpoint, with the reading at its block
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        /// Sign the newest block, whatever is in the file
        #[arg(long)]
        anew: bool,
    },
}

#[derive(Subcommand)]
pub(crate) enum ImageCommand {
    /// Build an image from a source tree and the inputs that it names
    Build {
        #[command(flatten)]
        build: image::BuildArguments,
        /// Folder to write image, manifest and firmware to
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Say what firmware and chips will report of an image
    Measure {
        /// The image
        image: PathBuf,
        /// The inputs that it was built from
        #[arg(long, value_name = "FILE", default_value = "image/inputs.lock")]
        lock: PathBuf,
        /// The firmware; beside the image if not given
        #[arg(long, value_name = "FILE")]
        firmware: Option<PathBuf>,
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
    /// Rebuild an image here and hold it against those that validators have approved
    Verify {
        #[command(flatten)]
        build: image::BuildArguments,
        #[command(flatten)]
        config: ConfigArgument,
    },
    /// Print the images that validators have approved: who has signed that they rebuilt them, and who voted how
    Show {
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        config: ConfigArgument,
    },
    /// Say where two images differ: section, file, byte
    Diff {
        /// One
        one: PathBuf,
        /// The other
        two: PathBuf,
    },
}

#[derive(Subcommand)]
enum EvidenceCommand {
    /// Say whether a quote of SGX or TDX, or a report of SEV-SNP, is genuine, and what it says; never whether that is good enough
    Inspect {
        /// The raw quote or report
        file: PathBuf,
        /// Intel: a JSON object with TCB info, QE identity, their signatures and chains, and both CRLs. AMD: VCEK or VLEK and CRL, PEM
        #[arg(long, value_name = "FILE")]
        collateral: Option<PathBuf>,
        /// Judge as at this time, RFC 3339; without it now
        #[arg(long, value_name = "TIME", value_parser = time)]
        at: Option<chrono::DateTime<chrono::FixedOffset>>,
        /// One JSON object instead of text
        #[arg(long)]
        json: bool,
    },
}

/// A key of 32 bytes as 64 hexadecimal digits.
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
        /// Folder to write to
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The file that says which chain
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
        /// What it serves as
        #[arg(long, value_parser = ["ingress", "egress"])]
        role: String,
        /// Where the world reaches it, IP:PORT; one, or an IPv4 and then an IPv6 one
        #[arg(long, value_name = "IP:PORT", required = true)]
        endpoint: Vec<std::net::SocketAddr>,
        /// What it carries, in Mbit/s; the bond grows with it
        #[arg(long, value_name = "MBIT")]
        advertised: u32,
        /// Where the bond goes back to; keep its key offline
        #[arg(long, value_name = "ADDRESS")]
        withdrawal: alloy_primitives::Address,
        /// Relays that you say belong together: never both hops of a circuit
        #[arg(long, value_name = "NAME")]
        family: Option<String>,
        /// SHA-256 of the image that it runs
        #[arg(long, value_name = "SHA256")]
        image: Option<alloy_primitives::B256>,
        /// File whose first line is the password; `-` for standard input
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Say what is missing for it to serve
    Check {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Register it with its bond
    Bond {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Run it: publish the key of this start, serve, follow the directory
    Run {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
        /// Keep all privileges, for tests that look into the process
        #[arg(long, hide = true)]
        unconfined: bool,
        /// It runs in a machine of its own, whose port org.openrelay.feed is this socket
        #[arg(long, value_name = "SOCKET", conflicts_with = "unconfined")]
        machine: Option<PathBuf>,
    },
    /// Say where it stands, and why it earns nothing
    Status {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Take no new circuits
    Drain {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Take them again
        #[arg(long)]
        undo: bool,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Leave: serve no more, and give the bond notice
    Unbond {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Take the next step of leaving, and say which comes after it
    Retire {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Publish a handshake key by hand, for a relay that `run` does not run
    Rotate {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The relay's public key
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
        /// Folder to write to
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The file that says which chain
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
        /// Where everything is paid to; keep its key offline
        #[arg(long, value_name = "ADDRESS")]
        withdrawal: alloy_primitives::Address,
        /// Whose it is, by an address that has admitted this key; without it a family of its own
        #[arg(long, value_name = "ADDRESS")]
        family: Option<alloy_primitives::Address>,
        /// The bond, in the token's smallest unit
        #[arg(long, value_name = "AMOUNT")]
        bond: u128,
        /// File whose first line is the password; `-` for standard input
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Join the validators with the bond
    Bond {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Say where it stands, what it owes in which round, and why it does not vote
    Status {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Do all by itself: rebuild what is proposed, vote, publish how, look at relays' evidence
    Run(validator::RunArguments),
    /// Say what a release of this source tree names
    Source {
        /// The tree
        #[arg(default_value = ".")]
        tree: PathBuf,
    },
    /// Hand in two attestations of one validator that name different values of one round
    Report {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// One
        one: PathBuf,
        /// The other
        other: PathBuf,
        #[arg(long, value_name = "FILE")]
        password_file: Option<PathBuf>,
    },
    /// Take the next step of a round: commit, reveal, finish or settle
    Vote {
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// Its number
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
    /// SHA-256 of the image that was rebuilt
    #[arg(long, value_name = "SHA256", requires = "measurements", conflicts_with_all = ["failed", "abstain"])]
    image: Option<alloy_primitives::B256>,
    /// SHA-256 of its list of measurements
    #[arg(long, value_name = "SHA256", requires = "image")]
    measurements: Option<alloy_primitives::B256>,
    /// The build failed; SHA-256 of its log
    #[arg(long, value_name = "SHA256", conflicts_with = "abstain")]
    failed: Option<alloy_primitives::B256>,
    /// Say nothing, and lose nothing
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

/// What a program believes, and which relay it starts.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) standard: Standard,
}

impl Program {
    /// The name of the relay's program: a simulation starts simulations.
    pub(crate) fn relay(&self) -> &'static str {
        if self.standard.roots.simulated { "openrelay-relay-sim" } else { "openrelay-relay" }
    }
}

/// Runs the command that the arguments name, believing these vendors.
pub fn main(roots: Roots) -> ExitCode {
    let program = Program { standard: Standard::of(roots) };
    let result = match Cli::parse().command {
        Command::Up(arguments) => up::run(&program, &arguments),
        Command::Down => up::down(),
        Command::Status { json } => status::run(json),
        Command::Selfhost { command: SelfhostCommand::Init { out, ingress, egress, dns, days } } => {
            selfhost::init(&selfhost::Plan { out, ingress, egress, dns, days })
        }
        Command::Selfhost { command: SelfhostCommand::Renew { dir, remove, days } } => {
            selfhost::renew(&dir, &remove, days)
        }
        Command::Exits { config, json } => ledger::exits(&program, &config.config, json),
        Command::Verify { relay, config, json } => page::verify(&program, &config.config, relay, json),
        Command::Relay { command } => operator::run(&program, &command),
        Command::Validator { command } => validator::run(&program, &command),
        Command::Mirror { command: MirrorCommand::Run { chain, listen, checkpoint, files } } => {
            ledger::mirror(&program, &chain, listen, checkpoint, files)
        }
        Command::Checkpoint { command: CheckpointCommand::Key { out } } => checkpoint::make_key(&out),
        Command::Checkpoint { command: CheckpointCommand::Sign { chain, key, file, anew } } => {
            checkpoint::sign(&chain, &key, &file, anew)
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

/// A time as RFC 3339 writes it.
fn time(text: &str) -> Result<chrono::DateTime<chrono::FixedOffset>, String> {
    chrono::DateTime::parse_from_rfc3339(text)
        .map_err(|error| format!("{error}; a time is written so, with its zone: 2026-11-28T00:00:00Z"))
}

/// Prints a line of result. One that cannot be written ends the program, never with success, for what was still to be said may have been a refusal: quietly, and as the signal would, where the
/// reader has gone away.
pub(crate) fn say(line: &str) {
    use std::io::Write as _;
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            std::process::exit(141);
        }
        talk(&format!("openrelay: cannot write what was found: {error}"));
        std::process::exit(1);
    }
}

/// Prints a line of talk.
pub(crate) fn talk(line: &str) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stderr(), "{line}");
}
