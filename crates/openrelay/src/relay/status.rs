//! `openrelay relay status`: what the chain and clients say of a relay, as text and as JSON.
//!
//! Owns the schema `openrelay.relay-status/1`, from which the text is made too.

use alloy_primitives::{Address, U256};
use openrelay_chain::attestation::JudgedRelays;
use openrelay_chain::registry::RelayRegistry;
use openrelay_ledger::chain::reading::{MAX_LAG, Reading};
use openrelay_ledger::chain::set::{RecordSet, Registration, Status};
use openrelay_ledger::directory::Directory;
use openrelay_ledger::record::Role;
use openrelay_node::clock::unix_seconds;
use openrelay_node::directory::VerifiedDirectory;
use serde::Serialize;

use super::folder::Folder;
use crate::account::GAS_FUNDS;
use crate::failure::Failure;
use crate::findings;
use crate::output::{Reason, say, say_json, talk};
use crate::program::Program;
use crate::units::{Ether, Tokens, Unit, span};

/// The status of a relay. What is not known is `null`; `reason` says why the rest was not read.
#[derive(Serialize)]
struct RelayStatusV1 {
    schema: &'static str,
    /// Address of the operator's key.
    #[serde(with = "openrelay_ledger::address")]
    operator: Address,
    gas_wei: Ether,
    /// Whether clients use the relay at present.
    serving: bool,
    /// Why clients do not use it.
    reason: Option<Reason>,
    role: Role,
    relay_id: Option<u64>,
    registration: Option<RegistrationV1>,
    directory: Option<DirectoryV1>,
    listed: Option<ListedV1>,
    evidence: Option<EvidenceV1>,
}

#[derive(Serialize)]
struct RegistrationV1 {
    state: State,
    bond: Tokens,
    bond_class: u8,
    #[serde(with = "openrelay_ledger::address")]
    withdrawal: Address,
    /// When the bond is free, in seconds since the Unix epoch.
    free_at: Option<u64>,
}

#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Active,
    Draining,
    Unbonding,
}

#[derive(Serialize)]
struct DirectoryV1 {
    block: u64,
    relays: usize,
}

#[derive(Serialize)]
struct ListedV1 {
    handshake_key: String,
    key_epoch: u32,
}

#[derive(Serialize)]
struct EvidenceV1 {
    platform: &'static str,
    simulated: bool,
    image: String,
    image_state: &'static str,
}

/// Prints the status of the relay.
///
/// # Errors
/// Exit code 3, with the reason, if clients do not use the relay; 5 if the directory is refused.
pub(super) fn status(program: &Program, folder: &Folder, as_json: bool) -> Result<(), Failure> {
    let operator = folder.account.address()?;
    let mut this = RelayStatusV1 {
        schema: "openrelay.relay-status/1",
        operator,
        gas_wei: Ether(folder.account.ether_of(operator)?),
        serving: false,
        reason: None,
        role: folder.plan.role,
        relay_id: folder.relay_id()?,
        registration: None,
        directory: None,
        listed: None,
        evidence: None,
    };
    this.reason = this.read(program, folder)?;
    this.serving = this.reason.is_none();
    if as_json {
        say_json(&this);
    } else {
        this.lines().iter().for_each(|line| say(line));
    }
    if this.serving && this.gas_wei.0 < GAS_FUNDS {
        talk(&format!(
            "openrelay: warning: send {operator} some ether; the next start may not be able to publish its key"
        ));
    }
    this.reason.map_or(Ok(()), |reason| Err(reason.into()))
}

impl RelayStatusV1 {
    /// Reads what is known of the relay, in order, and returns why clients do not use it.
    fn read(&mut self, program: &Program, folder: &Folder) -> Result<Option<Reason>, Failure> {
        let Some(relay_id) = self.relay_id else {
            return Ok(Some(Reason::new(3, "not-registered", "not registered yet; run: openrelay relay bond")));
        };
        let Some((standing, shown)) = folder.registration(relay_id)? else {
            let why = "it has left, or the chain reverted the registration; to register again: openrelay relay bond";
            let said = format!("relay {relay_id} is not in the registry: {why}");
            return Ok(Some(Reason::new(3, "not-in-registry", said)));
        };
        let token = folder.ask(&RelayRegistry::tokenCall {})?;
        self.registration = Some(RegistrationV1::of(&standing, &shown, Unit::of(&folder.account.endpoint(), token)));
        let now = unix_seconds();
        let (reading, directory) = match openrelay_chain::read(&folder.account.chain, now, 0) {
            Ok(read) => read,
            Err(error) => return Ok(Some(Reason::of("directory", &error.into()))),
        };
        let trust = folder.account.chain.trust();
        let (set, header) = reading.record_set(&trust, now, MAX_LAG, 0).map_err(Failure::plain)?;
        self.directory = Some(DirectoryV1 { block: header.number, relays: directory.body().relays.len() });
        match directory.relay(relay_id) {
            None => Ok(Some(unlisted(&set, &standing))),
            Some(own) => {
                let (handshake_key, key_epoch) = (own.handshake_key.clone(), own.key_epoch);
                self.listed = Some(ListedV1 { handshake_key, key_epoch });
                Ok(self.judge(program, folder, relay_id, (reading, directory)))
            }
        }
    }

    /// Judges the relay as clients do, by the policy that they are released with.
    fn judge(
        &mut self,
        program: &Program,
        folder: &Folder,
        relay_id: u64,
        (reading, directory): (Reading, Directory),
    ) -> Option<Reason> {
        let directory = VerifiedDirectory::of_proven(directory, reading);
        let judged = JudgedRelays::of(&directory, &folder.account.chain.trust(), &program.standard, unix_seconds());
        match (judged.verdict(relay_id), judged.fault()) {
            (Ok(verdict), _) => {
                self.evidence = Some(EvidenceV1 {
                    platform: verdict.facts().platform.name(),
                    simulated: verdict.facts().simulated,
                    image: openrelay_image::hex(&verdict.binding().image),
                    image_state: findings::state(verdict.image()),
                });
                None
            }
            (Err(_), Some(fault)) => {
                Some(Reason::new(3, "no-judgement", format!("clients cannot verify any relay of this chain: {fault}")))
            }
            (Err(refusal), None) => {
                let why = format!("clients refuse the relay [{}]: {refusal}", refusal.code());
                Some(Reason::new(3, refusal.code(), format!("{why}; clients are told: {}", refusal.next_step())))
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!("operator       {}   {} for gas", self.operator, self.gas_wei)];
        if let (Some(relay_id), Some(own)) = (self.relay_id, &self.registration) {
            lines.push(format!("relay          {relay_id} {} {:?}", self.role, own.state));
            lines
                .push(format!("bond           {}, class {}, returned to {}", own.bond, own.bond_class, own.withdrawal));
            if let Some(free_at) = own.free_at {
                lines.push(format!("               free in {}", span(free_at.saturating_sub(unix_seconds()))));
            }
        }
        if let Some(DirectoryV1 { block, relays }) = self.directory {
            lines.push(format!("directory      block {block}, {relays} relays accept circuits"));
        }
        if let Some(ListedV1 { handshake_key, key_epoch }) = &self.listed {
            lines.push(format!("listed         handshake key {handshake_key} epoch {key_epoch}"));
        }
        if let Some(EvidenceV1 { platform, simulated, image, image_state }) = &self.evidence {
            let simulated = if *simulated { "SIMULATED " } else { "" };
            lines.push(format!("evidence       {simulated}{platform} with the image {image}, {image_state}"));
        }
        lines
    }
}

impl RegistrationV1 {
    fn of(standing: &Registration, shown: &RelayRegistry::Relay, unit: Unit) -> Self {
        let state = match standing.status {
            Status::Active => State::Active,
            Status::Draining => State::Draining,
            Status::Unbonding => State::Unbonding,
        };
        Self {
            state,
            bond: unit.show(U256::from(shown.bond)),
            bond_class: standing.bond_class,
            withdrawal: shown.withdrawal,
            free_at: matches!(state, State::Unbonding).then(|| shown.timer.to()),
        }
    }
}

/// Returns why a registered relay is not in the directory.
fn unlisted(set: &RecordSet, standing: &Registration) -> Reason {
    let listed = set.records.iter().any(|record| record.registration.relay_id == standing.relay_id);
    let (code, why) = match standing.status {
        _ if set.malformed.contains(&standing.relay_id) => {
            ("malformed-descriptor", "its descriptor is malformed; run the relay again")
        }
        _ if !listed => ("no-descriptor", "no mirror has its descriptor yet"),
        Status::Draining => ("draining", "it is draining; undo: openrelay relay drain --undo"),
        Status::Unbonding => ("leaving", "it is leaving"),
        Status::Active if standing.bond_class == 0 => {
            ("bond-too-small", "its bond is below the current rate; top it up")
        }
        Status::Active => ("never-started", "it was never started; run: openrelay relay run"),
    };
    Reason::new(3, code, format!("the relay accepts no circuits: {why}"))
}
