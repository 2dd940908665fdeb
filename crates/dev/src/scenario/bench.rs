//! A network, everything that runs on it, and its client: what scenarios act on.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::net::account::Datagrams;
use crate::net::host::{Service, checked};
use crate::net::network::Network;
use crate::net::wait::wait_for;
use crate::world::chain;
use crate::world::internet::{NAME, WEB};
use crate::world::programs::{Programs, network};
use crate::world::services::{Services, serve_by_chain};

/// The longest time until a relay must be in use, or out of use.
pub(crate) const IN_USE: Duration = Duration::from_secs(60);

/// A network and everything that runs on it.
pub(crate) struct Bench {
    pub(crate) network: Network,
    pub(crate) services: Services,
    pub(crate) programs: Programs,
    /// The account of datagrams, where hosts and links count them.
    pub(crate) account: Account,
}

/// What was counted before.
#[derive(Default)]
pub(crate) struct Account {
    /// Counts of the kernel of the client's host when the client connected.
    pub(crate) before: Datagrams,
    /// Packets that links had counted as lost before any program ran.
    pub(crate) lost_before: u64,
    /// Datagrams that links had counted as lost since then at the last account.
    pub(crate) lost: u64,
    /// The same at the end of the previous scenario.
    pub(crate) judged: u64,
}

impl Bench {
    /// Starts a network whose directory is proven by a chain.
    pub(crate) fn start(dir: &Path) -> Result<Self> {
        let programs = Programs::simulating()?;
        let network = network(dir)?;
        let services = serve_by_chain(&network, &programs)?;
        Ok(Self::of(network, services, programs))
    }

    /// Takes over what already runs.
    pub(crate) fn of(network: Network, services: Services, programs: Programs) -> Self {
        Self { network, services, programs, account: Account::default() }
    }

    /// Runs `openrelay` on the client's host. Returns the exit code, standard output and standard error.
    pub(crate) fn openrelay(&self, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
        let mut command = self.network.client.command(&self.programs.openrelay);
        let output = command.args(arguments).stdin(std::process::Stdio::null()).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ok((output.status.code(), text(&output.stdout), text(&output.stderr)))
    }

    pub(crate) fn config(&self) -> String {
        self.network.dir.join("config/client/client.toml").display().to_string()
    }

    /// Writes a configuration for a circuit through these relays and returns its path.
    pub(crate) fn through(&self, ingress: u64, egress: u64) -> Result<String> {
        let path = self.network.dir.join(format!("config/client/through-{ingress}-{egress}.toml"));
        let text = std::fs::read_to_string(self.config())?;
        std::fs::write(&path, format!("ingress = {ingress}\negress = {egress}\n{text}"))?;
        Ok(path.display().to_string())
    }

    pub(crate) fn up(&self, config: &str) -> Result<()> {
        let (code, _, said) = self.openrelay(&["up", "--wait", "--config", config])?;
        ensure!(code == Some(0), "openrelay up: exit code {code:?}: {said}");
        Ok(())
    }

    pub(crate) fn down(&self) -> Result<()> {
        let (code, _, said) = self.openrelay(&["down"])?;
        ensure!(code == Some(0), "openrelay down: {said}");
        Ok(())
    }

    pub(crate) fn status(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.openrelay(&["status", "--json"])?.1)?)
    }

    /// Returns the numbers of the egresses in the directory.
    pub(crate) fn egresses(&self) -> Result<Vec<u64>> {
        let (_, json, said) = self.openrelay(&["egresses", "--json", "--config", &self.config()])?;
        let shown: Value = serde_json::from_str(&json).with_context(|| format!("egresses: {json}{said}"))?;
        Ok(shown["exits"].as_array().into_iter().flatten().filter_map(|egress| egress["relay"].as_u64()).collect())
    }

    /// Returns whether the client fetches 1 MiB correctly.
    pub(crate) fn fetches(&self) -> Result<bool> {
        let server = self.network.server(WEB, false)?.to_string();
        let mut command = self.network.client.command(&self.programs.dev);
        let output = command.args(["fetch", &server, &(1 << 20).to_string()]).output()?;
        Ok(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("\"sha256_ok\":true"))
    }

    /// Fetches from the web server by its name. Returns what `openrelay-dev fetch` reports.
    pub(crate) fn fetch(&self, mib: u64) -> Result<Value> {
        self.fetch_from(&format!("{NAME}:{WEB}"), mib)
    }

    /// Does what [`Self::fetch`] does, from this address.
    pub(crate) fn fetch_from(&self, host: &str, mib: u64) -> Result<Value> {
        let mut command = self.network.client.command(&self.programs.dev);
        let output = command.args(["fetch", host, &(mib << 20).to_string()]).output()?;
        Ok(serde_json::from_str(checked(&output, "fetch")?.trim())?)
    }

    /// Returns whether the server answers one ping of the client.
    pub(crate) fn ping(&self) -> Result<bool> {
        let server = self.network.address("server", false)?.to_string();
        let output = self.network.client.command("ping").args(["-n", "-c", "1", "-W", "1", &server]).output()?;
        Ok(output.status.success())
    }

    /// Waits until `holds` returns true, at most for [`IN_USE`]. Returns how long that took.
    pub(crate) fn within(&self, what: &str, holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
        wait_for(what, IN_USE, holds)
    }

    /// Deletes the client's state, so that it has no cache.
    pub(crate) fn forget(&self) -> Result<()> {
        let state = self.network.client.dir().join("state");
        if state.exists() {
            std::fs::remove_dir_all(state)?;
        }
        Ok(())
    }

    /// Returns a running relay.
    pub(crate) fn service(&mut self, name: &str) -> Result<&mut Service> {
        let found = self.services.relays.iter_mut().find(|(own, _)| *own == name);
        found.map(|(_, service)| service).with_context(|| format!("there is no relay {name}"))
    }

    /// Tells a relay to end, and waits until it has.
    pub(crate) fn stop(&mut self, name: &str) -> Result<()> {
        let at = self.services.relays.iter().position(|(own, _)| *own == name).context("no such relay")?;
        let (_, mut service): (_, Service) = self.services.relays.remove(at);
        service.signal("TERM")?;
        self.within("the relay's end", || Ok(!service.is_running()))?;
        ensure!(service.ended_in_order(), "{name} failed when it was told to end");
        Ok(())
    }

    /// Returns what `openrelay verify` reports about all relays.
    pub(crate) fn verified(&self) -> Result<Vec<Value>> {
        chain::verified(&self.network, &self.programs)
    }

    /// Makes all validators vote to revoke an image.
    pub(crate) fn revoke(&self, round: u64) -> Result<()> {
        chain::revoke(&self.network, &self.programs, round)
    }

    /// Mines the chain's next block.
    pub(crate) fn mine(&self) -> Result<()> {
        let address = self.network.address("chain", false)?;
        let line = format!("{} chain-mine http://{address}:8545", self.programs.dev.display());
        self.network.host("chain")?.sh(&line).map(drop)
    }

    pub(crate) fn set_faults(&self, port: u16, faults: &str) -> Result<()> {
        let address = self.network.address("chain", false)?;
        let line = format!("{} chain-faults http://{address}:{port} '{faults}'", self.programs.dev.display());
        self.network.host("chain")?.sh(&line).map(drop)
    }
}
