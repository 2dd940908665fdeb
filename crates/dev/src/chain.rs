//! The devnet's chain: endpoints, a mirror, and operators who register and run the relays as the README tells them to.
//!
//! Owns the commands; everything is done by the product's own programs on the hosts of the network.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result};

use crate::host::{Host, Service, checked};
use crate::topology::{Network, Programs};

/// Ports of the endpoints: three, of which two must agree. They stand for three operators and share one chain.
const ENDPOINTS: [u16; 3] = [8545, 8546, 8547];
const MIRROR: u16 = 8550;
/// What each relay advertises, in Mbit/s.
const ADVERTISED: u32 = 1_000;

/// Where bonds go back to: nobody's.
const WITHDRAWAL: &str = "0x00000000000000000000000000000000c01dc01d";

/// The relays of the devnet in the order in which they register, which gives them their numbers.
pub(crate) const RELAYS: [&str; 4] = ["ingress-1", "ingress-2", "egress-1", "egress-2"];

/// Starts the chain and its mirror, and writes what clients and operators need: `config/chain.toml`, `config/client/client.toml`.
pub(crate) fn start(network: &Network, programs: &Programs) -> Result<Vec<Service>> {
    let host = network.host("chain")?;
    let address = network.address("chain", false)?;
    let file = network.dir.join("config/chain.toml");
    fs::create_dir_all(network.dir.join("config/client"))?;
    let mut command = host.command(&programs.dev);
    command.args(["devchain", "run", "--expose"]);
    for port in ENDPOINTS {
        command.arg("--listen").arg(SocketAddr::new(address, port).to_string());
    }
    command.arg("--network").arg(&file);
    command.arg("--mirror").arg(format!("http://{}/records", SocketAddr::new(address, MIRROR)));
    let chain = host.start(command, "ready")?;
    let mut command = host.command(&programs.openrelay);
    command.args(["mirror", "run", "--chain"]).arg(&file);
    command.arg("--listen").arg(SocketAddr::new(address, MIRROR).to_string());
    let mirror = host.start(command, "ready")?;
    let dns = network.address("server", false)?;
    let client = format!("chain = \"../chain.toml\"\nadmission = \"open\"\ndns = [\"{dns}\"]\n");
    fs::write(network.dir.join("config/client/client.toml"), client)?;
    Ok(vec![chain, mirror])
}

/// An operator's folder and password.
pub(crate) struct Operator {
    folder: PathBuf,
    password: PathBuf,
}

impl Operator {
    /// `relay init` for a relay on the host `name`, into a folder called `folder`.
    pub(crate) fn init(network: &Network, programs: &Programs, name: &str, folder: &str) -> Result<Self> {
        let host = network.host(name)?;
        let this = Self { folder: network.dir.join("config").join(folder), password: host.dir().join("password") };
        fs::write(&this.password, format!("password of {name}\n"))?;
        let role = if name.starts_with("ingress") { "ingress" } else { "egress" };
        let mut command = host.command(&programs.openrelay);
        command.args(["relay", "init", "--role", role, "--withdrawal", WITHDRAWAL]);
        command.arg("--chain").arg(network.dir.join("config/chain.toml"));
        command.args(["--advertised", &ADVERTISED.to_string()]);
        for v6 in if programs.outer_v6 { &[true][..] } else { &[false, true] } {
            let endpoint = SocketAddr::new(network.address(name, *v6)?, crate::topology::PORT);
            command.arg("--endpoint").arg(endpoint.to_string());
        }
        this.run(host, command, "relay init", true)?;
        Ok(this)
    }

    /// `relay init` and `relay bond` for the host `name`.
    pub(crate) fn register(network: &Network, programs: &Programs, name: &str) -> Result<Self> {
        let this = Self::init(network, programs, name, name)?;
        let mut command = network.host(name)?.command(&programs.openrelay);
        command.args(["relay", "bond"]);
        this.run(network.host(name)?, command, "relay bond", true)?;
        Ok(this)
    }

    /// A command on this operator's folder, to its end.
    pub(crate) fn run(
        &self,
        host: &Host,
        mut command: std::process::Command,
        what: &str,
        with_password: bool,
    ) -> Result<String> {
        command.arg("--dir").arg(&self.folder);
        if with_password {
            command.arg("--password-file").arg(&self.password);
        }
        let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot run {what}"))?;
        checked(&output, &format!("{what} on {}", host.name))
    }

    /// Starts `relay run`, and waits until the relay is ready.
    pub(crate) fn start(&self, host: &Host, programs: &Programs, arguments: &[&str]) -> Result<Service> {
        let mut command = host.command(&programs.openrelay);
        command.args(["relay", "run"]).arg("--dir").arg(&self.folder).arg("--password-file").arg(&self.password);
        command.args(arguments);
        host.start(command, "ready")
    }
}
