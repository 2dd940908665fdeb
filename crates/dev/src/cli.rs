//! The command line: arguments only.

use std::net::{IpAddr, SocketAddr, SocketAddrV4};
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::scenario::demo;
use crate::scenario::part::Part;
use crate::scenario::shares::thirty_days::Against;
use crate::world::{attacks, devchain, flood};

/// The command line.
#[derive(Parser)]
#[command(name = "openrelay-dev", version, about = "Development tools of OpenRelay")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Run client, NAT, relays and a small internet in namespaces
    Devnet {
        #[command(subcommand)]
        command: Devnet,
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
    Forget { address: std::net::Ipv4Addr },
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

/// What to do with the network.
#[derive(Subcommand)]
pub(crate) enum Devnet {
    /// Start the network and keep it running
    Up,
    /// Start the network, show two hops at work, and stop it
    Demo(demo::Options),
    /// Start the network and run all scenarios on it
    Check(CheckOptions),
    /// Let three validators rebuild an image and vote for it
    ///
    /// Each builds it from its source tree, without any earlier build.
    Approve(ApproveOptions),
    /// Open many circuits and print what they cost the ingress
    Load(LoadOptions),
    /// Flood an ingress and print what that costs its clients
    Flood(FloodOptions),
    /// Cut a link or falsify published data, or undo that
    Break {
        /// Name of a link, or kind of data
        ///
        /// Links: nat, ingress-1, ingress-2, egress-1, egress-2, server, chain. Data: evidence (of egress-2; see
        /// --lie), collateral, vote (what the rebuilders in the clients' policy signed), image (revoked, which cannot
        /// be undone).
        link: String,
        /// What to falsify in the evidence: image, debug, stale, key
        #[arg(long, default_value = "debug")]
        lie: String,
        /// Undo it instead
        #[arg(long)]
        mend: bool,
    },
    /// Show what is running
    Status,
    /// Stop the network
    Down,
    /// Run a command inside the namespaces
    #[command(hide = true)]
    Inside {
        #[command(subcommand)]
        command: Inside,
    },
}

/// Which scenarios to run.
#[derive(clap::Args)]
pub(crate) struct CheckOptions {
    /// Run this part only
    pub(crate) part: Option<Part>,
    /// Run only scenarios whose name contains NAME
    ///
    /// Scenarios that those need run first. No network is started for a part without such a scenario.
    #[arg(long, value_name = "NAME")]
    pub(crate) filter: Option<String>,
    /// Run all rows of scenarios, not only a selection
    #[arg(long)]
    pub(crate) long: bool,
    /// List the scenarios and exit
    #[arg(long, conflicts_with_all = ["filter", "long"])]
    pub(crate) list: bool,
}

/// Which image to approve.
#[derive(clap::Args)]
pub(crate) struct ApproveOptions {
    /// Source tree
    #[arg(long, value_name = "DIR", default_value = ".")]
    pub(crate) source: PathBuf,
    /// Folder of the image that was built from the tree
    #[arg(long, value_name = "DIR")]
    pub(crate) image: PathBuf,
}

/// How much load to create.
#[derive(clap::Args)]
pub(crate) struct LoadOptions {
    /// Circuits to open
    #[arg(long, default_value_t = 11_000)]
    pub(crate) circuits: usize,
    /// Circuits that carry a packet at the end
    #[arg(long, default_value_t = 1_000)]
    pub(crate) active: usize,
}

/// How strong the floods are.
#[derive(clap::Args)]
pub(crate) struct FloodOptions {
    /// Duration of each flood, in seconds
    #[arg(long, default_value_t = 10)]
    pub(crate) seconds: u64,
    /// Packets per second
    #[arg(long, default_value_t = 50_000)]
    pub(crate) rate: u64,
    /// Rounds of floods
    ///
    /// In each round every flood goes once to the relay, and once to a port that no process reads.
    #[arg(long, default_value_t = 3)]
    pub(crate) rounds: usize,
    /// Run this kind of flood only
    #[arg(long)]
    pub(crate) kind: Option<flood::Kind>,
}

/// Commands that run inside the namespaces.
#[derive(Subcommand)]
pub(crate) enum Inside {
    Keep {
        /// Folder of the image
        packed: Option<PathBuf>,
    },
    Demo(demo::Options),
    Check {
        part: Part,
        #[arg(long)]
        filter: Option<String>,
        #[arg(long)]
        long: bool,
    },
    Approve(ApproveOptions),
    /// On the chain's host of such a network, run thirty days of its validators
    Shares {
        dir: PathBuf,
        against: Against,
    },
    Load(LoadOptions),
    Flood(FloodOptions),
}
