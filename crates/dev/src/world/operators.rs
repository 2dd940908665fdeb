//! Operators who register and run relays as the README describes.
//!
//! Owns the commands. The product's own programs do all the work, on the hosts of the network.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::programs::Programs;
use super::secret::write_secret;
use super::simulation::{Simulation, TOLD};
use crate::net::host::{Host, Service, checked};
use crate::net::network::{Network, PORT};

/// Bandwidth that each relay advertises, in Mbit/s.
const ADVERTISED: u32 = 1_000;
/// Address to which bonds return. Nobody has its key.
const WITHDRAWAL: &str = "0x00000000000000000000000000000000c01dc01d";

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
        Self::init_at(network, programs, name, folder, PORT)
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
        // Some networks have no approved image yet; `journey` bonds after a check that passes.
        command.args(["relay", "bond", "--anyway"]);
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
