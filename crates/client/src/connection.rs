//! A connected client.
//!
//! Owns the order of connecting: plan, socket, tunnel, circuit, routes, names, refreshing. Disconnecting restores all
//! of them in reverse.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use openrelay_ledger::directory::Source;
use openrelay_node::clock::Clock;
use openrelay_node::driver::Counts;

use crate::circuit::{Circuit, socket_towards};
use crate::error::ConnectError;
use crate::host::HostError;
use crate::judge::AttestedHop;
use crate::plan::{CircuitPlan, Options, choose};
use crate::pump::Command;
use crate::refresh::{Reader, Refreshed, Refresher};
use crate::tunnel::Tunnel;

/// Status of a connected client.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Relay ID of the ingress; `None` with one hop.
    pub ingress: Option<u64>,
    /// Relay ID of the egress.
    pub egress: u64,
    /// Whether one person runs all relays of the directory.
    pub single_operator: bool,
    /// Name of the network.
    pub network: String,
    /// Sequence number of the directory; on a chain, the block number.
    pub sequence: u64,
    /// How the directory was verified.
    pub source: Source,
    /// Whether the chain file accepts plain HTTP or a quorum of one.
    pub insecure: bool,
    /// The tunnel device.
    pub device: String,
    /// How the client is admitted.
    pub admission: &'static str,
    /// Verdicts on the relays, the first hop first. Empty if the relays are the user's own and prove nothing.
    pub attested: Vec<AttestedHop>,
    /// Milliseconds from the first datagram to the first packet.
    pub setup_ms: u64,
    /// A warning for the user.
    pub warning: Option<String>,
}

impl Facts {
    fn of(plan: &CircuitPlan, device: String, setup: Duration) -> Self {
        let body = plan.directory.directory().body();
        Self {
            ingress: plan.ingress,
            egress: plan.egress,
            single_operator: body.single_operator,
            network: body.network.clone(),
            sequence: body.sequence,
            source: plan.directory.directory().source(),
            insecure: plan.chain.as_ref().is_some_and(|chain| chain.insecure),
            device,
            admission: "open",
            attested: plan.attested.clone(),
            setup_ms: u64::try_from(setup.as_millis()).unwrap_or(u64::MAX),
            warning: plan.warning.clone(),
        }
    }
}

/// A connected client. Dropping it disconnects: first the queries end, then the circuit, then the host is restored.
pub struct Connection {
    /// Status of the connection.
    pub facts: Facts,
    /// Refreshes the directory, if a chain proves it.
    refresher: Option<Refresher>,
    circuit: Circuit,
    tunnel: Tunnel,
    /// The file that caches the chain's last reading.
    reading: Option<PathBuf>,
}

impl Connection {
    /// Connects with the configuration `path` and waits up to `patience` for the circuit. The firewall is up before
    /// the first datagram leaves. On failure everything is restored.
    ///
    /// # Errors
    /// [`ConnectError`] gives the cause and the remedy.
    pub fn open(path: &Path, options: &Options, patience: Duration) -> Result<Self, ConnectError> {
        match Self::open_once(path, options, patience) {
            // The relay renewed its evidence after mirrors were asked. They are asked again, once, the same way as by
            // every client. The client never asks about the evidence that the relay has just shown. Such a query
            // would depend on what the relay shows, and whoever answers would see it together with this address.
            Err(ConnectError::OtherEvidence(_)) => Self::open_once(path, options, patience),
            other => other,
        }
    }

    fn open_once(path: &Path, options: &Options, patience: Duration) -> Result<Self, ConnectError> {
        let (plan, opening) = choose(path, options)?;
        tracing::debug!(ingress = plan.ingress, egress = plan.egress, "chose the hops");
        let clock = Clock::start();
        let client = plan.begin(opening, &clock)?;
        let remote = client.remote();
        let socket = socket_towards(remote)?;
        if !plan.file.udp_trains {
            socket.without_trains();
        }
        let (mut tunnel, device) = Tunnel::open(&options.folders, &plan.file.device, remote)?;
        tracing::debug!(device = tunnel.device, "the firewall is up");
        let started = Instant::now();
        let circuit = Circuit::start(client, socket, clock, device)?;
        circuit.come_up(patience).inspect_err(|_| openrelay_chain::doubt_reading(&plan.memory.reading))?;
        let setup = started.elapsed();
        if let Some(ingress) = plan.ingress {
            plan.memory.keep(ingress);
        }
        tunnel.carry_everything(&plan.file.dns)?;
        let facts = Facts::of(&plan, tunnel.device.clone(), setup);
        let reading = plan.chain.is_some().then(|| plan.memory.reading.clone());
        let reader = Reader::of(plan, remote, circuit.orders().clone());
        let refresher = reader.map(Refresher::start).transpose()?;
        Ok(Self { facts, refresher, circuit, tunnel, reading })
    }

    /// Returns the counts of the traffic so far.
    pub fn counts(&self) -> Counts {
        let mut counts = self.circuit.counts();
        if let Some(refresher) = &self.refresher {
            counts.add_without_device(&refresher.carried());
        }
        counts
    }

    /// Returns the state of the directory. `None` if no chain proves it: such a directory is read at `up` only.
    pub fn refreshed(&self) -> Option<Refreshed> {
        self.refresher.as_ref().map(Refresher::known)
    }

    /// Returns the largest inner packet that the path carries, in bytes.
    pub fn mtu(&self) -> u16 {
        self.circuit.published().mtu
    }

    /// Returns whether the circuit was lost. Traffic stays blocked until `down`.
    pub fn is_lost(&self) -> bool {
        self.circuit.published().lost
    }

    /// Replaces all keys of the circuit.
    pub fn rekey(&self) {
        self.circuit.orders().give(Command::Rekey);
    }

    /// Closes the circuit and restores routes, DNS and firewall.
    ///
    /// # Errors
    /// [`HostError`] with the change that could not be restored. The others were restored.
    pub fn close(self) -> Result<Counts, HostError> {
        if let (true, Some(reading)) = (self.is_lost(), &self.reading) {
            openrelay_chain::doubt_reading(reading);
        }
        let queries = self.refresher.map(Refresher::stop);
        let mut counts = self.circuit.close();
        if let Some(queries) = queries {
            counts.add_without_device(&queries);
        }
        self.tunnel.close().map(|()| counts)
    }
}
