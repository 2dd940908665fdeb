//! The devnet's chain: endpoints, a mirror, and operators who register and run relays as the README describes.
//!
//! Owns the commands. The product's own programs do all the work, on the hosts of the network.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use openrelay_devchain::KNOWN;
use openrelay_node::clock::unix_seconds;
use serde_json::Value;

use crate::account;
use crate::approved::{BEGINS_AGO, VALIDATORS};
use crate::host::{Host, Service, checked};
use crate::simulation::{Simulation, TOLD};
use crate::topology::{Network, Programs};

/// Ports of the three endpoints, of which two must agree. They stand for three operators and share one chain.
const ENDPOINTS: [u16; 3] = [8545, 8546, 8547];
const MIRROR: u16 = 8550;
/// Bandwidth that each relay advertises, in Mbit/s.
const ADVERTISED: u32 = 1_000;

/// Address to which bonds return. Nobody has its key.
const WITHDRAWAL: &str = "0x00000000000000000000000000000000c01dc01d";

/// Starts the chain and its mirror, and writes `config/chain.toml` and `config/client/client.toml` for clients and
/// operators.
pub(crate) fn start(network: &Network, programs: &Programs) -> Result<Vec<Service>> {
    let mut options = vec!["--simulate".into(), network.dir.clone(), "--relay".into(), programs.relay.clone()];
    options.extend(programs.image.iter().flat_map(|image| ["--image".into(), image.clone()]));
    let chain = start_chain(network, programs, &options)?;
    Ok(vec![chain, mirror_and_client(network, programs)?])
}

/// Starts a chain without approved images that begins `seconds` seconds in the past.
///
/// Its rounds last their full number of days, and only transactions make blocks.
pub(crate) fn start_behind(network: &Network, programs: &Programs, seconds: u64) -> Result<Service> {
    let seconds = seconds.to_string();
    let options = ["--behind", &seconds, "--time-divisor", "1", "--block-time", "0"];
    start_chain(network, programs, &options.map(PathBuf::from))
}

/// Starts the chain with these further options.
fn start_chain(network: &Network, programs: &Programs, options: &[PathBuf]) -> Result<Service> {
    let host = network.host("chain")?;
    // The mirror queries relays for their evidence and counts no datagrams itself.
    account::watch(host)?;
    // With trains the kernel would count several datagrams as one packet.
    network.core.sh(&format!("ip link set {} gso_max_segs 1", Network::link_of("chain")?))?;
    let address = network.address("chain", false)?;
    fs::create_dir_all(network.dir.join("config/client"))?;
    let mut command = host.command(&programs.dev);
    command.args(["devchain", "run", "--expose"]);
    for port in ENDPOINTS {
        command.arg("--listen").arg(SocketAddr::new(address, port).to_string());
    }
    command.arg("--network").arg(network.dir.join("config/chain.toml"));
    command.arg("--mirror").arg(format!("http://{}/records", SocketAddr::new(address, MIRROR)));
    command.args(options);
    host.start(command, "ready")
}

/// Starts a mirror of the chain and writes the client's configuration.
pub(crate) fn mirror_and_client(network: &Network, programs: &Programs) -> Result<Service> {
    let host = network.host("chain")?;
    let mut command = host.command(&programs.openrelay);
    command.args(["mirror", "run", "--chain"]).arg(network.dir.join("config/chain.toml"));
    command.arg("--listen").arg(SocketAddr::new(network.address("chain", false)?, MIRROR).to_string());
    command.arg("--files").arg(Simulation::of(&network.dir)?.published());
    let mirror = host.start(command, "ready")?;
    let dns = network.address("server", false)?;
    let client =
        format!("policy = \"rebuilders.toml\"\nchain = \"../chain.toml\"\nadmission = \"open\"\ndns = [\"{dns}\"]\n");
    fs::write(network.dir.join("config/client/client.toml"), client)?;
    let named = VALIDATORS.map(|place| format!("\"{}\"", KNOWN[place].0)).join(", ");
    fs::write(
        network.dir.join("config/client/rebuilders.toml"),
        format!(
            "# Of these two must have signed that they rebuilt an image.\nrebuilders = [{named}]\n\
             rebuilders_needed = 2\n"
        ),
    )?;
    Ok(mirror)
}

/// Does what [`start`] does, with anvil as the chain. `OPENRELAY_ANVIL` names anvil's program; without it returns
/// `None`.
pub(crate) fn start_anvil(network: &Network, programs: &Programs) -> Result<Option<Vec<Service>>> {
    let Some(anvil) = std::env::var_os("OPENRELAY_ANVIL") else { return Ok(None) };
    let (host, address) = (network.host("chain")?, network.address("chain", false)?);
    let (port, file) = (ENDPOINTS[0], network.dir.join("config/chain.toml"));
    fs::create_dir_all(network.dir.join("config/client"))?;
    let mut command = host.command(&anvil);
    let begins = (unix_seconds() - BEGINS_AGO).to_string();
    command.args(["--timestamp", &begins]);
    command.args(["--silent", "--hardfork", "osaka", "--port", &port.to_string(), "--host", &address.to_string()]);
    let chain = host.start_quietly(command)?;
    let url = format!("http://{}", SocketAddr::new(address, port));
    let mirror = format!("http://{}/records", SocketAddr::new(address, MIRROR));
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let mut command = host.command(&programs.dev);
        let output = command
            .args(["chain-deploy", &url])
            .arg(&file)
            .arg(&mirror)
            .arg(&network.dir)
            .arg(&programs.relay)
            .output()?;
        if output.status.success() {
            break;
        }
        if Instant::now() > deadline {
            checked(&output, "deploy on anvil")?;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(Some(vec![chain, mirror_and_client(network, programs)?]))
}

/// Gives an operator's account ether and tokens on anvil, which has no faucet.
pub(crate) fn fund(network: &Network, programs: &Programs, account: &str) -> Result<()> {
    let host = network.host("chain")?;
    let url = format!("http://{}", SocketAddr::new(network.address("chain", false)?, ENDPOINTS[0]));
    let mut command = host.command(&programs.dev);
    let output = command.args(["chain-fund", &url]).arg(network.dir.join("config/chain.toml")).arg(account).output()?;
    checked(&output, "fund an operator").map(drop)
}

/// Returns what `openrelay verify` reports about all relays, queried on the chain's host.
pub(crate) fn verified(network: &Network, programs: &Programs) -> Result<Vec<Value>> {
    let mut command = network.host("chain")?.command(&programs.openrelay);
    command.args(["verify", "--json", "--config"]).arg(network.dir.join("config/client/client.toml"));
    let output = command.output()?;
    // Exit code 5: some relays are refused.
    ensure!(
        matches!(output.status.code(), Some(0 | 5)),
        "openrelay verify: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let said: Value = serde_json::from_slice(&output.stdout).context("the output of openrelay verify is malformed")?;
    Ok(said["relays"].as_array().cloned().unwrap_or_default())
}

/// Writes a file that only this user can read.
pub(crate) fn write_secret(path: &Path, text: &str) -> Result<()> {
    fs::write(path, "")?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(fs::write(path, text)?)
}

/// Waits until clients accept this many relays. Mirrors must have their evidence first.
pub(crate) fn await_evidence(network: &Network, programs: &Programs, count: usize) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let relays = verified(network, programs)?;
        if relays.iter().filter(|relay| relay["believed"] == true).count() >= count {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("too few relays were accepted within 20 s: {}", Value::from(relays));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Makes all validators, whose keys are public, vote to revoke an image.
pub(crate) fn revoke(network: &Network, programs: &Programs, round: u64) -> Result<()> {
    let mut command = network.host("chain")?.command(&programs.dev);
    command.arg("chain-revoke").arg(network.dir.join("config/chain.toml")).arg(round.to_string());
    checked(&command.output()?, "revoke an image").map(drop)
}

/// An operator's folder and password.
pub(crate) struct Operator {
    folder: PathBuf,
    password: PathBuf,
    /// The operator's account, as `relay init` prints it.
    pub(crate) account: String,
}

impl Operator {
    /// Runs `relay init` for a relay on the host `name`, into a folder called `folder`.
    pub(crate) fn init(network: &Network, programs: &Programs, name: &str, folder: &str) -> Result<Self> {
        Self::init_at(network, programs, name, folder, crate::topology::PORT)
    }

    fn init_at(network: &Network, programs: &Programs, name: &str, folder: &str, port: u16) -> Result<Self> {
        let host = network.host(name)?;
        // Operators on one host run at the same time, so each has its own password file.
        let password = host.dir().join(format!("password-{folder}"));
        let folder = network.dir.join("config").join(folder);
        let mut this = Self { folder, password, account: String::new() };
        write_secret(&this.password, &format!("password of {name}\n"))?;
        let role = if name.starts_with("ingress") { "ingress" } else { "egress" };
        let mut command = host.command(&programs.openrelay);
        command.args(["relay", "init", "--role", role, "--withdrawal", WITHDRAWAL]);
        command.arg("--chain").arg(network.dir.join("config/chain.toml"));
        command.args(["--advertised", &ADVERTISED.to_string()]);
        let simulation = Simulation::of(&network.dir)?;
        command.arg("--image").arg(simulation.image.to_string());
        for v6 in if programs.outer_v6 { &[true][..] } else { &[false, true] } {
            let endpoint = SocketAddr::new(network.address(name, *v6)?, port);
            command.arg("--endpoint").arg(endpoint.to_string());
        }
        let said = this.run(host, command, "relay init", true)?;
        simulation.tell(&this.folder, if role == "ingress" { "TDX" } else { "SEV-SNP" }, None)?;
        this.account = said.trim().strip_prefix("operator ").context("relay init printed no account")?.to_owned();
        Ok(this)
    }

    /// Registers and starts a relay on the host `name` whose evidence is a lie of this kind. It listens on its own
    /// port.
    pub(crate) fn liar(network: &Network, programs: &Programs, name: &str, kind: &str, port: u16) -> Result<Service> {
        let this = Self::init_at(network, programs, name, &format!("liar-{kind}"), port)?;
        this.bond(network, programs, name)?;
        let simulation = Simulation::of(&network.dir)?;
        simulation.tell(&this.folder, "TDX", Some(&simulation.lie(kind)?))?;
        this.start(network.host(name)?, programs, &[])
    }

    /// Runs `relay init` and `relay bond` for the host `name`.
    pub(crate) fn register(network: &Network, programs: &Programs, name: &str) -> Result<Self> {
        let this = Self::init(network, programs, name, name)?;
        this.bond(network, programs, name)?;
        Ok(this)
    }

    fn bond(&self, network: &Network, programs: &Programs, name: &str) -> Result<()> {
        let mut command = network.host(name)?.command(&programs.openrelay);
        command.args(["relay", "bond"]);
        self.run(network.host(name)?, command, "relay bond", true).map(drop)
    }

    /// Runs a command on this operator's folder until it ends.
    pub(crate) fn run(
        &self,
        host: &Host,
        mut command: std::process::Command,
        what: &str,
        with_password: bool,
    ) -> Result<String> {
        command.arg("--dir").arg(&self.folder).env("OPENRELAY_SIM", self.folder.join(TOLD));
        if with_password {
            command.arg("--password-file").arg(&self.password);
        }
        let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {what}"))?;
        checked(&output, &format!("{what} on {}", host.name))
    }

    /// Returns the configuration of a machine that runs this operator's relay: its addresses, the relay's files, and
    /// what to simulate.
    pub(crate) fn machine_config(&self, network: &Network, name: &str) -> Result<Vec<u8>> {
        let mut out = b"openrelay-machine/1\n".to_vec();
        for v6 in [false, true] {
            let (own, neighbour, prefix) = network.link_addresses(name, v6)?;
            out.extend(format!("address {own}/{prefix} {neighbour}\n").bytes());
        }
        let simulation = network.dir.join("config/sim");
        let told: Value = serde_json::from_slice(&fs::read(self.folder.join(TOLD))?)?;
        let told = serde_json::json!({
            "vendors": "/run/vendors", "manifest": "/run/manifest.json",
            "platform": told["platform"], "lie": told["lie"],
        });
        let files = [
            ("relay.toml", fs::read(self.folder.join("relay.toml"))?),
            ("chain.toml", fs::read(self.folder.join("chain.toml"))?),
            ("sim.json", told.to_string().into_bytes()),
            ("vendors", fs::read(simulation.join("vendors"))?),
            ("manifest.json", fs::read(simulation.join("published/image-1.json"))?),
        ];
        for (name, content) in files {
            out.extend(format!("file {name} {}\n", content.len()).bytes());
            out.extend(content);
        }
        out.extend(b"end\n");
        Ok(out)
    }

    /// Starts `relay run` and waits until the relay is ready.
    pub(crate) fn start(&self, host: &Host, programs: &Programs, arguments: &[&str]) -> Result<Service> {
        let mut command = host.command(&programs.openrelay);
        command.args(["relay", "run"]).arg("--dir").arg(&self.folder).arg("--password-file").arg(&self.password);
        command.args(arguments).env("OPENRELAY_SIM", self.folder.join(TOLD));
        host.start(command, "ready")
    }
}
