//! `openrelay devnet`: the network, kept by one process.
//!
//! Owns how it enters the namespaces, as root or as a user inside a user namespace. It also owns the short protocol
//! with which `break`, `status` and `down` talk to the keeper. Everything ends with the keeper.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::{Subcommand, ValueEnum as _};
use openrelay_node::chain_file::ChainFile;
use openrelay_sys::sandbox;

use crate::chain;
use crate::host::{PATH, check_tools};
use crate::packed::with_packed;
use crate::scenario::in_a_folder;
use crate::simulation::{LIES, Simulation};
use crate::topology::{Network, Programs, Services};
use crate::{
    chain_check, check, checkpoint_check, demo, evidence_check, flood, load, reorganisation_check, say, share_check,
    talk, vote_check, withholding_check,
};

/// What to do with the network.
#[derive(Subcommand)]
pub(crate) enum Command {
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
    part: Option<Part>,
    /// Run all rows of scenarios, not only a selection
    #[arg(long)]
    long: bool,
}

/// The parts of the scenarios, each on its own network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Part {
    /// Circuits on broken links, firewall, crashes
    Circuits,
    /// A directory that a chain proves, and operators
    Chain,
    /// Record sources that lie by omission
    Withholding,
    /// Validators' votes
    Votes,
    /// A validator and source trees whose builds never end
    Builds,
    /// 34 % of the weight attack a network for thirty days
    ///
    /// Runs only with --long or when it is named.
    Shares,
    /// Updates of the client's program by validators' votes
    Updates,
    /// Vendors' collateral by validators' votes
    Collateral,
    /// Clients that reach no endpoint
    Checkpoints,
    /// A chain that reorganises
    Reorganisation,
    /// Relay evidence and its refusals
    Evidence,
}

impl Part {
    /// Runs the part's scenarios below a folder; with `long`, all of their rows.
    fn run(self, dir: &Path, long: bool) -> Result<()> {
        match self {
            Self::Circuits => check::run(dir),
            Self::Chain => chain_check::run(dir),
            Self::Withholding => withholding_check::run(dir),
            Self::Votes => vote_check::run(dir),
            Self::Builds => vote_check::endless(dir),
            Self::Shares => share_check::run(dir, long),
            Self::Updates => vote_check::updates(dir),
            Self::Collateral => vote_check::collateral(dir),
            Self::Checkpoints => checkpoint_check::run(dir),
            Self::Reorganisation => reorganisation_check::run(dir),
            Self::Evidence => evidence_check::run(dir),
        }
    }

    /// Runs the scenarios in their own namespaces.
    fn enter(self, long: bool) -> Result<()> {
        let name = format!("{self:?}").to_lowercase();
        let long = long.then_some("--long");
        let arguments: Vec<_> = ["check", &name].into_iter().chain(long).map(Into::into).collect();
        let status = run_inside(&arguments)?;
        ensure!(status.success(), "the part {name} failed ({status})");
        Ok(())
    }
}

impl CheckOptions {
    /// Runs the named part, or all parts.
    ///
    /// The circuits part runs alone, because its results depend on timing. The others mostly wait, so two run at
    /// once.
    fn run(&self) -> Result<()> {
        check_tools()?;
        if let Some(part) = self.part {
            return part.enter(self.long);
        }
        Part::Circuits.enter(self.long)?;
        // Each row of `Shares` takes about two minutes. Tests of the model check what the attackers lose in every
        // run.
        let is_wanted = |part: &Part| *part != Part::Circuits && (self.long || *part != Part::Shares);
        let left = Mutex::new(Part::value_variants().iter().filter(|part| is_wanted(part)));
        let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
        let lane = || {
            while let Some(part) = next() {
                // After a failure the other lane finishes its part and starts no further one.
                part.enter(self.long).inspect_err(|_| while next().is_some() {})?;
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(lane);
            let here = lane();
            other.join().map_err(|_| anyhow!("a lane of scenarios panicked"))?.and(here)
        })
    }
}

/// Which image to approve.
#[derive(clap::Args)]
pub(crate) struct ApproveOptions {
    /// Source tree
    #[arg(long, value_name = "DIR", default_value = ".")]
    source: PathBuf,
    /// Folder of the image that was built from the tree
    #[arg(long, value_name = "DIR")]
    image: PathBuf,
}

/// How much load to create.
#[derive(clap::Args)]
pub(crate) struct LoadOptions {
    /// Circuits to open
    #[arg(long, default_value_t = 11_000)]
    circuits: usize,
    /// Circuits that carry a packet at the end
    #[arg(long, default_value_t = 1_000)]
    active: usize,
}

/// How strong the floods are.
#[derive(clap::Args)]
pub(crate) struct FloodOptions {
    /// Duration of each flood, in seconds
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Packets per second
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
    /// Rounds of floods
    ///
    /// In each round every flood goes once to the relay, and once to a port that no process reads.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Run this kind of flood only
    #[arg(long)]
    kind: Option<flood::Kind>,
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
        long: bool,
    },
    Approve(ApproveOptions),
    /// On the chain's host of such a network, run thirty days of its validators
    Shares {
        dir: PathBuf,
        against: vote_check::Against,
    },
    Load(LoadOptions),
    Flood(FloodOptions),
}

pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Up => up(),
        Command::Demo(options) => {
            check_tools()?;
            let run = |image: Option<&Path>| {
                let mut arguments = vec!["demo".into()];
                arguments.extend(options.to_arguments());
                arguments.extend(image.into_iter().flat_map(|image| ["--packed".into(), image.into()]));
                run_inside(&arguments)
            };
            end_as(if options.wants_image() { with_packed(run)? } else { run(None)? })
        }
        Command::Load(options) => inside(&[
            "load".into(),
            "--circuits".into(),
            options.circuits.to_string().into(),
            "--active".into(),
            options.active.to_string().into(),
        ]),
        Command::Flood(options) => {
            let mut arguments = vec!["flood".into()];
            for (option, value) in
                [("--seconds", options.seconds), ("--rate", options.rate), ("--rounds", options.rounds as u64)]
            {
                arguments.extend([option.into(), value.to_string().into()]);
            }
            if let Some(kind) = options.kind {
                arguments.extend(["--kind".into(), format!("{kind:?}").to_lowercase().into()]);
            }
            inside(&arguments)
        }
        Command::Check(options) => options.run(),
        Command::Approve(options) => {
            let ApproveOptions { source, image } = options;
            inside(&["approve".into(), "--source".into(), source.into(), "--image".into(), image.into()])
        }
        Command::Break { link, mend, lie } => {
            if !["evidence", "collateral", "vote", "image"].contains(&link.as_str()) {
                Network::link_of(&link)?;
            }
            say(&ask(&format!("{} {link} {lie}", if mend { "mend" } else { "break" }))?);
            Ok(())
        }
        Command::Status => {
            say(&status()?);
            Ok(())
        }
        Command::Down => {
            say(&ask("down")?);
            Ok(())
        }
        Command::Inside { command: Inside::Keep { packed } } => keep(packed),
        Command::Inside { command: Inside::Demo(options) } => demo::run(&options),
        Command::Inside { command: Inside::Load(options) } => load::measure(options.circuits, options.active),
        Command::Inside { command: Inside::Flood(options) } => {
            flood::measure(options.kind, options.seconds, options.rate, options.rounds)
        }
        Command::Inside { command: Inside::Check { part, long } } => in_a_folder(|dir| part.run(dir, long)),
        Command::Inside { command: Inside::Shares { dir, against } } => vote_check::shares(&dir, against),
        Command::Inside { command: Inside::Approve(ApproveOptions { source, image }) } => {
            in_a_folder(|dir| vote_check::from_source(dir, &source, &image))
        }
    }
}

/// Runs `devnet inside …` and exits with its exit code.
fn inside(arguments: &[std::ffi::OsString]) -> Result<()> {
    check_tools()?;
    end_as(run_inside(arguments)?)
}

fn run_inside(arguments: &[std::ffi::OsString]) -> Result<ExitStatus> {
    enter()?.args(["devnet", "inside"]).args(arguments).status().context("cannot enter namespaces")
}

fn end_as(status: ExitStatus) -> Result<()> {
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => std::process::exit(code),
        None => bail!("the inner process was ended by a signal"),
    }
}

/// Returns a command that runs this program in its own namespaces. Everything that it starts ends with it.
fn enter() -> Result<Process> {
    let mut command = Process::new("unshare");
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args([
        "--net",
        "--mount",
        "--pid",
        "--fork",
        "--kill-child",
        "--mount-proc",
        "--propagation",
        "private",
        "--",
    ]);
    command.arg(std::env::current_exe()?).env("PATH", format!("{PATH}:{}", std::env::var("PATH").unwrap_or_default()));
    Ok(command)
}

fn is_root() -> bool {
    sandbox::user() == 0
}

/// Returns the path of the keeper's socket, for this user.
fn socket() -> PathBuf {
    let user = sandbox::user();
    let dir = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    dir.join(format!("openrelay-devnet-{user}.sock"))
}

fn ask(what: &str) -> Result<String> {
    let mut stream =
        UnixStream::connect(socket()).context("no devnet is running; start one with: openrelay devnet up")?;
    stream.write_all(format!("{what}\n").as_bytes())?;
    let mut answer = String::new();
    for line in BufReader::new(stream).lines() {
        answer += &line?;
        answer.push('\n');
    }
    let answer = answer.trim().to_owned();
    match answer.strip_prefix("error: ") {
        Some(error) => bail!("{error}"),
        None => Ok(answer),
    }
}

fn up() -> Result<()> {
    check_tools()?;
    if UnixStream::connect(socket()).is_ok() {
        bail!("a devnet is already running; see: openrelay devnet status");
    }
    with_packed(up_with)
}

fn up_with(image: Option<&Path>) -> Result<()> {
    let started = Instant::now();
    let mut command = enter()?;
    command.args(["devnet", "inside", "keep"]).args(image);
    command.env("OPENRELAY_DEVNET_SOCKET", socket());
    // The keeper outlives this process, so it inherits no open output: whoever reads this process's output sees its
    // end.
    let log = socket().with_extension("log");
    let errors = std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().context("cannot enter namespaces")?;
    while UnixStream::connect(socket()).is_err() {
        if let Some(status) = child.try_wait()? {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("the devnet did not start ({status}): {}", said.trim());
        }
        if started.elapsed() > Duration::from_secs(30) {
            let _ = child.kill();
            bail!("the devnet did not start within 30 s");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    say(&status()?);
    talk("to run a program on the client, through two hops, use the nsenter line above");
    Ok(())
}

/// Returns the devnet's status, with the line that runs a program on its client.
///
/// Process IDs inside the namespaces differ from those outside, so the client is found by its network namespace.
fn status() -> Result<String> {
    let told = ask("status")?;
    let Some((text, namespace)) = told.rsplit_once(CLIENT) else { return Ok(told) };
    let is_client = |process: &std::fs::DirEntry| {
        std::fs::read_link(process.path().join("ns/net")).is_ok_and(|own| own.as_os_str() == namespace.trim())
    };
    let client = std::fs::read_dir("/proc")?.flatten().find(is_client).context("cannot find the devnet's client")?;
    let user = if sandbox::user() == 0 { "" } else { " --user --preserve-credentials" };
    let pid = client.file_name();
    Ok(format!("{text}{CLIENT}nsenter --target {}{user} --net --mount --pid -- PROGRAM", pid.display()))
}

/// Start of the line about the client in the devnet's answer. Its network namespace follows.
const CLIENT: &str = "  client      ";

/// Keeps the network running until `down`.
fn keep(packed: Option<PathBuf>) -> Result<()> {
    let dir = temporary_dir()?;
    let programs = Programs { image: packed, ..Programs::simulating()? };
    let network = Network::new(&dir)?;
    let mut services = network.serve_by_chain(&programs)?;
    let mut command = network.client.command(&programs.openrelay);
    let output = command.args(["up", "--wait", "--config"]).arg(dir.join("config/client/client.toml")).output()?;
    crate::host::checked(&output, "openrelay up")?;
    let path =
        PathBuf::from(std::env::var_os("OPENRELAY_DEVNET_SOCKET").context("OPENRELAY_DEVNET_SOCKET is not set")?);
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).context("cannot listen for devnet commands")?;
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut line = String::new();
        if BufReader::new(&stream).read_line(&mut line).is_err() {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["status"] => describe(&network, &programs, &mut services),
            ["break", "evidence", lie] => tell_lie(&network, &programs, &mut services, Some(lie)),
            ["mend", "evidence", _] => tell_lie(&network, &programs, &mut services, None),
            ["break", "collateral", _] => other_collateral(&network, &programs, true),
            ["mend", "collateral", _] => other_collateral(&network, &programs, false),
            ["break", "vote", _] => other_votes(&network, &programs, true),
            ["mend", "vote", _] => other_votes(&network, &programs, false),
            ["break", "image", _] => chain::revoke(&network, &programs, 1).and_then(|()| refusals(&network, &programs)),
            ["mend", "image", _] => Err(anyhow::anyhow!(
                "a revoked image stays revoked; to start again, run: openrelay devnet down, then openrelay devnet up"
            )),
            ["break", link, _] => network.set_link(link, false).map(|()| format!("the link of {link} is cut")),
            ["mend", link, _] => network.set_link(link, true).map(|()| format!("the link of {link} is restored")),
            ["down"] => {
                let _ = stream.write_all(b"the devnet has stopped\n");
                break;
            }
            _ => Err(anyhow::anyhow!("unknown command")),
        };
        let text = answer.unwrap_or_else(|error| format!("error: {error:#}"));
        let _ = writeln!(stream, "{text}");
    }
    let _ = std::fs::remove_file(path.with_extension("log"));
    let _ = std::fs::remove_file(path);
    let _ = network.client.command(&programs.openrelay).arg("down").output();
    drop(services);
    drop(network);
    let _ = std::fs::remove_dir_all(dir);
    Ok(())
}

/// Restarts egress-2 with evidence that lies, or with true evidence.
fn tell_lie(network: &Network, programs: &Programs, services: &mut Services, lie: Option<&str>) -> Result<String> {
    if let Some(unknown) = lie.filter(|lie| LIES.iter().all(|(kind, _)| kind != lie)) {
        bail!("unknown lie {unknown}; use one of: {}", LIES.map(|(kind, _)| kind).join(", "));
    }
    start_again((network, programs), services, "egress-2", lie)?;
    refusals(network, programs)
}

/// Restarts an egress, with this lie in its evidence or without one.
pub(crate) fn start_again(
    (network, programs): (&Network, &Programs),
    services: &mut Services,
    name: &'static str,
    lie: Option<&str>,
) -> Result<()> {
    let simulation = Simulation::of(&network.dir)?;
    let told = lie.map(|lie| simulation.lie(lie)).transpose()?;
    simulation.tell(&network.dir.join("config").join(name), "SEV-SNP", told.as_ref())?;
    let place = services.relays.iter().position(|(own, _)| *own == name).context("no such relay is running")?;
    services.relays.remove(place);
    let started = services.operator(name)?.start(network.host(name)?, programs, &[])?;
    services.relays.insert(place, (name, started));
    Ok(())
}

/// Makes mirrors serve other collateral than the chain names, or the correct one again.
fn other_collateral(network: &Network, programs: &Programs, broken: bool) -> Result<String> {
    let path = Simulation::of(&network.dir)?.published().join("collateral.json");
    let bytes = std::fs::read(&path)?;
    let own: &[u8] = bytes.strip_suffix(b" ").unwrap_or(&bytes);
    std::fs::write(&path, if broken { [own, b" "].concat() } else { own.to_vec() })?;
    refusals_anew(network, programs)
}

/// Makes mirrors serve rebuilders' statements for a value that was not approved, or the correct ones again.
fn other_votes(network: &Network, programs: &Programs, broken: bool) -> Result<String> {
    let chain = ChainFile::load(&network.dir.join("config/chain.toml"))?;
    let images = chain.images.context("the chain file has no image registry")?;
    Simulation::of(&network.dir)?.sign_votes(chain.chain_id, images, !broken)?;
    refusals_anew(network, programs)
}

/// Returns what clients without any saved state report. Saved evidence from before would still be accepted.
fn refusals_anew(network: &Network, programs: &Programs) -> Result<String> {
    let _ = std::fs::remove_dir_all(network.host("chain")?.dir().join("state"));
    refusals(network, programs)
}

/// Returns what clients that read the chain now report about all relays, once mirrors have collected evidence.
fn refusals(network: &Network, programs: &Programs) -> Result<String> {
    let until = Instant::now() + Duration::from_secs(20);
    let mut before = String::new();
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let line = |relay: &serde_json::Value| {
            let code =
                relay["refused"]["code"].as_str().map_or("trusted".to_owned(), |code| format!("REFUSED [{code}]"));
            format!("relay {}   {code}   {}", relay["relay"], relay["refused"]["why"].as_str().unwrap_or(""))
        };
        let said: Vec<String> = chain::verified(network, programs)?.iter().map(line).collect();
        let said = said.join("\n");
        if Instant::now() > until || (said == before && !said.contains("no-evidence")) {
            return Ok(said);
        }
        before = said;
    }
}

fn describe(network: &Network, programs: &Programs, services: &mut Services) -> Result<String> {
    let output = network.client.command(&programs.openrelay).arg("status").output()?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    for (name, relay) in &mut services.relays {
        let state = if relay.is_running() { relay.ready.clone() } else { "ended".to_owned() };
        text += &format!("  {name:<11} {} {state}\n", network.address(name, false)?);
    }
    text += &format!("  links       {}\n", Network::links().join(" "));
    let pid = std::fs::read_link(format!("/proc/{}/ns/net", network.client.pid())).ok();
    text += &format!("{CLIENT}{}\n", pid.map_or_else(|| "?".into(), |ns| ns.display().to_string()));
    Ok(text)
}

/// Creates a folder for this run.
pub(crate) fn temporary_dir() -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("openrelay-devnet-{}-{}", sandbox::user(), unique()));
    std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

fn unique() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}
