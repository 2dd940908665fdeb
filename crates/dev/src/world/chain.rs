//! The devnet's chain: endpoints and a mirror.
//!
//! Owns the commands. The product's own programs do all the work, on the hosts of the network.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use openrelay_devchain::KNOWN;
use openrelay_node::clock::unix_seconds;
use serde_json::Value;

use super::approved::{BEGINS_AGO, VALIDATORS};
use super::programs::Programs;
use super::simulation::Simulation;
use crate::net::account;
use crate::net::host::{Service, checked};
use crate::net::network::Network;
use crate::net::wait::wait_for;

/// Ports of the three endpoints, of which two must agree. They stand for three operators and share one chain.
const ENDPOINTS: [u16; 3] = [8545, 8546, 8547];
const MIRROR: u16 = 8550;
/// The longest time for mirrors to collect the relays' evidence.
const PATIENCE: Duration = Duration::from_secs(20);

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

/// Waits until clients accept this many relays. Mirrors must have their evidence first.
pub(crate) fn await_evidence(network: &Network, programs: &Programs, count: usize) -> Result<()> {
    let mut last = Value::Null;
    let accepted = wait_for("the acceptance of the relays", PATIENCE, || {
        let relays = verified(network, programs)?;
        let accepted = relays.iter().filter(|relay| relay["believed"] == true).count();
        last = relays.into();
        Ok(accepted >= count)
    });
    accepted.map(drop).with_context(|| format!("clients accept too few relays: {last}"))
}

/// Makes all validators, whose keys are public, vote to revoke an image.
pub(crate) fn revoke(network: &Network, programs: &Programs, round: u64) -> Result<()> {
    let mut command = network.host("chain")?.command(&programs.dev);
    command.arg("chain-revoke").arg(network.dir.join("config/chain.toml")).arg(round.to_string());
    checked(&command.output()?, "revoke an image").map(drop)
}
