//! Everything that is chosen before anything is changed: directory, relays, hops.
//!
//! Owns the order of the choices. Changes nothing on the host but the files of the state folder.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use openrelay_chain::attestation::JudgedRelays;
use openrelay_chain::circuit::{self, Hops, OpenConsent};
use openrelay_chain::policy::TrustPolicy;
use openrelay_ledger::directory::Directory;
use openrelay_ledger::record::{Record, Role};
use openrelay_ledger::selection::{self, Families, SelectionError, Wish};
use openrelay_node::chain_file::ChainFile;
use openrelay_node::clock::Clock;
use openrelay_node::config::{ClientFile, Origin, check_device, key_fault, read};
use openrelay_node::directory::VerifiedDirectory;
use openrelay_node::random::OsRandom;
use openrelay_proto::client::Client;
use openrelay_proto::random::array;
use openrelay_sys::net::Netlink;

use crate::error::ConnectError;
use crate::host::{Folders, HostError};
use crate::judge::{AttestedHop, Judge};
use crate::memory::{Memory, look_up, read_lately};

/// What the user asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Connect without an ingress.
    pub one_hop: bool,
    /// Where changes to the host are recorded, so that they can be restored.
    pub folders: Folders,
    /// Trust policy, before the policy file of the configuration is applied.
    pub standard: TrustPolicy,
}

/// Everything that is chosen before anything is changed.
pub(crate) struct CircuitPlan {
    pub(crate) file: ClientFile,
    pub(crate) directory: VerifiedDirectory,
    pub(crate) ingress: Option<u64>,
    pub(crate) egress: u64,
    /// The records of the hops, the first hop first.
    pub(crate) chosen: Vec<Record>,
    pub(crate) chain: Option<ChainFile>,
    pub(crate) attested: Vec<AttestedHop>,
    pub(crate) trusted: Option<(JudgedRelays, TrustPolicy)>,
    pub(crate) memory: Memory,
    pub(crate) warning: Option<String>,
}

/// What a circuit consumes when it opens.
pub(crate) struct Opening {
    hops: Hops,
    consent: OpenConsent,
}

/// Reads the configuration, verifies the directory, judges its relays and chooses the hops. Changes nothing on the
/// host.
pub(crate) fn choose(path: &Path, options: &Options) -> Result<(CircuitPlan, Opening), ConnectError> {
    let file: ClientFile = read(path)?;
    check_device(path, &file.device)?;
    let origin = file.origin(path)?;
    let (directory, memory, forgetful) = match read_lately(&origin, &options.folders.state) {
        Some((directory, memory)) => (directory, memory, None),
        None => look_up(&origin, &options.folders.state)?,
    };
    let judge = Judge::of(path, &file, &origin, &directory, options)?;
    let usable = judge.usable(&directory);
    let wish = Wish {
        ingress: file.ingress,
        egress: file.egress,
        sticky_ingress: memory.ingress(),
        families: reachable_families(&usable)?,
    };
    let mut random = OsRandom::default();
    let mut below = below(&mut random);
    // If the configuration names a relay that is missing, the error points to that line. If the relay is present but
    // refused, the error gives the reason.
    let named = |error: SelectionError| -> ConnectError {
        if let Some(why) = judge.refused(&directory, &error) {
            return if judge.is_unserved() { ConnectError::Unserved(why) } else { ConnectError::Untrusted(why) };
        }
        match error {
            SelectionError::NotThere(id, role) if [wish.ingress, wish.egress].contains(&Some(id)) => {
                let key = if role == Role::Egress { "egress" } else { "ingress" };
                key_fault(path, key, format!("relay {id} is not in the directory as {role}")).into()
            }
            SelectionError::NotThere(..)
            | SelectionError::None(_)
            | SelectionError::Conflict
            | SelectionError::Missing { .. } => error.into(),
        }
    };
    let (ingress, egress) = if options.one_hop {
        (None, selection::one_hop(&usable, &wish, &mut below).map_err(named)?)
    } else {
        let (ingress, egress) = judge.pair(&usable, &wish, &mut below, named)?;
        (Some(ingress), egress)
    };
    let chosen: Vec<Record> = ingress.into_iter().chain([egress]).cloned().collect();
    let attested = chosen.iter().filter_map(|record| judge.facts(record)).collect();
    let hop = |record: &Record| judge.hop(&directory, record);
    let hops = match ingress {
        Some(ingress) => Hops::Two(hop(ingress)?, hop(egress)?),
        None => Hops::One(hop(egress)?),
    };
    let (ingress, egress) = (ingress.map(|ingress| ingress.relay_id), egress.relay_id);
    let consent = OpenConsent::from_config(file.admission)
        .ok_or_else(|| openrelay_node::config::fault(path, "`admission` must be set"))?;
    let chain = match origin {
        Origin::Chain(chain) => Some(*chain),
        Origin::Signed { .. } => None,
    };
    let trusted = match judge {
        Judge::Evidence(trusted) => Some(*trusted),
        Judge::Own(_) => None,
    };
    let plan =
        CircuitPlan { file, directory, ingress, egress, chosen, chain, attested, trusted, memory, warning: forgetful };
    Ok((plan, Opening { hops, consent }))
}

impl CircuitPlan {
    /// Begins to open the circuit through the hops. The first hop is reached at an address to which this host has a
    /// route.
    ///
    /// # Errors
    /// [`ConnectError::Open`], and [`ConnectError::Host`] if routes cannot be read.
    pub(crate) fn begin(&self, opening: Opening, clock: &Clock) -> Result<Client, ConnectError> {
        let keepalive = Some(Duration::from_secs(self.file.keepalive_s.into())).filter(|every| !every.is_zero());
        let netlink = RefCell::new(Netlink::open().map_err(HostError::at("open a netlink socket"))?);
        let reachable = |endpoint: &SocketAddr| netlink.borrow_mut().route_link(endpoint.ip()).is_ok();
        let pick = |endpoints: &[SocketAddr]| endpoints.iter().copied().find(reachable);
        let mut random = OsRandom::default();
        let Opening { hops, consent } = opening;
        Ok(circuit::open(hops, consent, keepalive, pick, clock.now(), &mut random)?)
    }
}

/// Returns a source of random numbers below a limit, for drawing hops.
pub(crate) fn below(random: &mut OsRandom) -> impl FnMut(u64) -> u64 + '_ {
    |limit| u64::from_le_bytes(array(random)) % limit.max(1)
}

/// Returns the address families in which this host has a route to some relay.
fn reachable_families(directory: &Directory) -> Result<Families, HostError> {
    let mut netlink = Netlink::open().map_err(HostError::at("open a netlink socket"))?;
    let mut has = |v6: bool| {
        let mut endpoints = directory.body().relays.iter().filter_map(|relay| relay.endpoint(v6));
        endpoints.any(|endpoint| netlink.route_link(endpoint.ip()).is_ok())
    };
    Ok(Families { v4: has(false), v6: has(true) })
}
