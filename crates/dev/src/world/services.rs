//! Everything that runs on a network: servers, relays, and a machine if one relay has its own.
//!
//! Owns the order in which they start. They end with the value that is returned.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::attacks;
use super::boot::machine::Machine;
use super::boot::{self, Parts};
use super::chain;
use super::operators::Operator;
use super::programs::Programs;
use super::relays::{BOOTED, RELAYS};
use super::simulation::Simulation;
use crate::net::account;
use crate::net::host::{Service, checked};
use crate::net::network::{Network, PORT};
use crate::net::wait::wait_for;

/// The longest time for relays to learn of each other.
const PATIENCE: Duration = Duration::from_secs(20);

/// All running processes.
pub(crate) struct Services {
    #[expect(dead_code, reason = "held for as long as they must run")]
    pub(crate) others: Vec<Service>,
    pub(crate) relays: Vec<(&'static str, Service)>,
    /// The machine in which the relay [`BOOTED`] runs, if any does.
    pub(crate) machine: Option<Machine>,
    /// The operators of the relays, on a network with a chain.
    pub(crate) operators: Vec<(&'static str, Operator)>,
}

impl Services {
    /// Returns the operator of a relay.
    pub(crate) fn operator(&self, name: &str) -> Result<&Operator> {
        let found = self.operators.iter().find(|(own, _)| *own == name);
        found.map(|(_, operator)| operator).with_context(|| format!("no operator on a chain runs {name}"))
    }
}

/// Writes configurations, and starts servers and relays.
pub(crate) fn serve(network: &Network, programs: &Programs, relay_arguments: &[&str]) -> Result<Services> {
    selfhost(network, programs)?;
    start(network, programs, relay_arguments)
}

/// Starts servers, a chain with its mirror, and relays that register on the chain.
pub(crate) fn serve_by_chain(network: &Network, programs: &Programs) -> Result<Services> {
    let mut others = vec![internet(network, programs)?];
    others.extend(chain::start(network, programs)?);
    let registered: Result<Vec<_>> = RELAYS.iter().map(|name| Operator::register(network, programs, name)).collect();
    let registered = registered?;
    let machine = boot_one(network, programs, &registered)?;
    let feed = machine.as_ref().map(|(_, feed)| feed.as_path());
    let mut relays: Vec<_> = RELAYS.into_iter().zip(start_all(network, programs, &registered, feed)?).collect();
    // Each relay must have read the keys that the others generated.
    let deadline = Instant::now() + PATIENCE;
    for (name, relay) in &mut relays {
        let what = format!("{name} learning of the other relays");
        wait_for(&what, deadline.saturating_duration_since(Instant::now()), || {
            Ok(serde_json::from_str::<serde_json::Value>(&relay.ask("USR1")?)?["peers"] == 2)
        })?;
    }
    chain::await_evidence(network, programs, RELAYS.len())?;
    let machine = machine.map(|(machine, _)| machine);
    Ok(Services { others, relays, operators: RELAYS.into_iter().zip(registered).collect(), machine })
}

/// Boots the machine of the relay [`BOOTED`], if it has one. Returns it with its relay's feed.
fn boot_one(network: &Network, programs: &Programs, registered: &[Operator]) -> Result<Option<(Machine, PathBuf)>> {
    let Some(image) = programs.image.as_ref().filter(|_| programs.boot) else { return Ok(None) };
    let booted = RELAYS.iter().position(|name| *name == BOOTED).and_then(|place| registered.get(place));
    // Ingresses connect to the relay as soon as its key is on the chain, which may be before it listens.
    for name in RELAYS.iter().filter(|name| **name != BOOTED) {
        account::watch_machine(network.host(name)?, network.address(BOOTED, false)?)?;
    }
    let booted = booted.context("the booted relay is not registered")?;
    boot_relay(network, BOOTED, booted, image, &programs.attacked).map(Some)
}

/// Starts all relays in parallel, because each start derives a key from a password and waits for a block.
fn start_all(
    network: &Network,
    programs: &Programs,
    registered: &[Operator],
    feed: Option<&Path>,
) -> Result<Vec<Service>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = RELAYS
            .iter()
            .zip(registered)
            .map(|(name, operator)| {
                let feed = feed.filter(|_| *name == BOOTED).map(|feed| feed.display().to_string());
                scope.spawn(move || {
                    let arguments: Vec<&str> = feed.iter().flat_map(|feed| ["--machine", feed.as_str()]).collect();
                    operator.start(network.host(name)?, programs, &arguments)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| bail!("a relay's start panicked"))).collect()
    })
}

/// Starts the small internet on the host `server`.
pub(crate) fn internet(network: &Network, programs: &Programs) -> Result<Service> {
    let server = network.host("server")?;
    let mut command = server.command(&programs.dev);
    command
        .arg("internet")
        .arg(network.address("server", false)?.to_string())
        .arg(network.address("server", true)?.to_string())
        .arg("--chain")
        .arg(network.address("chain", false)?.to_string());
    server.start(command, "ready")
}

/// Starts servers and relays from existing configurations.
pub(crate) fn start(network: &Network, programs: &Programs, relay_arguments: &[&str]) -> Result<Services> {
    let internet = internet(network, programs)?;
    let mut relays = Vec::new();
    for name in RELAYS {
        let host = network.host(name)?;
        let mut command = host.command(if programs.leak { &programs.dev } else { &programs.relay });
        if programs.leak {
            command.arg("leaking-relay");
        }
        command
            .arg("run")
            .arg("--config")
            .arg(network.dir.join("config").join(name).join("relay.toml"))
            .args(relay_arguments);
        relays.push((name, host.start(command, "ready")?));
    }
    Ok(Services { others: vec![internet], relays, operators: Vec::new(), machine: None })
}

/// Runs `openrelay selfhost init` for this network.
pub(crate) fn selfhost(network: &Network, programs: &Programs) -> Result<()> {
    // A name with both addresses makes a relay listen on both.
    let mut hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
    for name in RELAYS {
        for v6 in if programs.outer_v6 { &[true][..] } else { &[false, true] } {
            hosts += &format!("{} {name}.devnet\n", network.address(name, *v6)?);
        }
    }
    std::fs::write(network.client.dir().join("etc/hosts"), hosts)?;
    let config = network.dir.join("config");
    let mut command = network.client.command(&programs.openrelay);
    command.args(["selfhost", "init", "--out"]).arg(&config);
    for (option, names) in [("--ingress", ["ingress-1", "ingress-2"]), ("--egress", ["egress-1", "egress-2"])] {
        for name in names {
            command.arg(option).arg(format!("{name}.devnet:{PORT}"));
        }
    }
    command.args(["--dns", &network.address("server", false)?.to_string()]);
    let output = command.stdin(Stdio::null()).output().context("cannot run openrelay selfhost init")?;
    checked(&output, "openrelay selfhost init").map(drop)
}

/// Boots an image in a machine on the network of a host.
///
/// The machine takes the host's place. The host may attack it.
fn boot_relay(
    network: &Network,
    name: &str,
    operator: &Operator,
    image: &Path,
    attacks: &[String],
) -> Result<(Machine, PathBuf)> {
    network.bridge(name)?;
    let host = network.host(name)?;
    let image = image.join("image.efi");
    let parts = Parts::of(&image, host.dir())?;
    let card =
        ["-netdev", "tap,id=net,ifname=tap0,script=no,downscript=no", "-device", "virtio-net-pci,netdev=net,romfile="];
    let mut more: Vec<OsString> = card.map(Into::into).to_vec();
    if !attacks.is_empty() {
        more.extend(attacks::ignored(&image, &host.dir().join("attacks"), attacks)?);
    }
    let machine = parts.start(host.command(boot::TIE), &more, Some(host.dir()))?;
    boot::configure(host.dir(), &operator.machine_config(network, name)?)?;
    machine.await_line(boot::READY, boot::BOOT)?;
    Ok((machine, host.dir().join("feed")))
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
