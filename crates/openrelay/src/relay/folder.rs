//! An operator's folder: its files, and what the chain knows about its relay.
//!
//! Owns the names and formats of its files. The handshake key is never here.

use std::net::SocketAddr;
use std::path::Path;

use alloy_primitives::{Address, B256, Log, U256};
use alloy_sol_types::{SolCall, SolEvent as _};
use openrelay_chain::journal::Sender;
use openrelay_chain::logs::{Logs, Wanted};
use openrelay_chain::registry::{RelayRegistry, registration};
use openrelay_ledger::chain::descriptor::Descriptor;
use openrelay_ledger::chain::set::{Registration, Status};
use openrelay_ledger::record::Role;
use openrelay_node::config::read;
use serde::{Deserialize, Serialize};

use crate::account::{Account, CHAIN};
use crate::failure::Failure;
use crate::rpc::newest_block;

pub(super) const OPERATOR: &str = "operator.toml";
pub(super) const KEY: &str = "operator-key.json";
pub(super) const NUMBER: &str = "relay-id";
pub(super) const RELAY: &str = "relay.toml";

/// The operator's settings for the relay.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RelayPlan {
    pub(super) role: Role,
    /// Addresses at which clients reach the relay.
    pub(super) endpoints: Vec<SocketAddr>,
    pub(super) advertised_mbit: u32,
    #[serde(with = "openrelay_ledger::address")]
    pub(super) withdrawal: Address,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) family: Option<String>,
    /// SHA-256 of the image that the relay runs; zeros before one is chosen.
    #[serde(default, skip_serializing_if = "B256::is_zero")]
    pub(super) image: B256,
}

/// An operator's folder that was opened.
pub(super) struct Folder {
    pub(super) account: Account,
    pub(super) plan: RelayPlan,
}

impl Folder {
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let plan: RelayPlan = read(&path.join(OPERATOR)).map_err(Failure::plain)?;
        Ok(Self { account: Account::open(path, KEY)?, plan })
    }

    pub(super) fn path(&self) -> &Path {
        &self.account.path
    }

    pub(super) fn sender(&self, password_file: Option<&Path>) -> Result<Sender, Failure> {
        self.account.sender(password_file)
    }

    /// Returns the relay ID, once the relay is registered.
    pub(super) fn relay_id(&self) -> Result<Option<u64>, Failure> {
        let path = self.path().join(NUMBER);
        match std::fs::read_to_string(&path) {
            Ok(text) => text
                .trim()
                .parse()
                .map(Some)
                .map_err(|_| Failure::plain(format!("{}: must hold the relay ID", path.display()))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Failure::plain(format!("{}: {error}", path.display()))),
        }
    }

    pub(super) fn registered(&self) -> Result<u64, Failure> {
        self.relay_id()?.ok_or_else(|| Failure::new(3, "not registered yet; run: openrelay relay bond"))
    }

    pub(super) fn descriptor(&self, key_epoch: u32, handshake_key: [u8; 32]) -> Result<Vec<u8>, Failure> {
        let descriptor = Descriptor {
            role: self.plan.role,
            key_epoch,
            handshake_key,
            image: self.plan.image,
            key_root: B256::ZERO,
            endpoints: self.plan.endpoints.clone(),
            family: self.plan.family.clone(),
        };
        descriptor
            .encode()
            .map_err(|error| Failure::plain(format!("{}: {error}", self.path().join(OPERATOR).display())))
    }

    pub(super) fn ask<C: SolCall>(&self, call: &C) -> Result<C::Return, Failure> {
        self.account.ask(self.account.chain.registry, call)
    }

    /// Returns whether the registry has the relay, and this folder's key operates it.
    pub(super) fn is_registered(&self, relay_id: u64) -> Result<bool, Failure> {
        let own = self.account.address()?;
        Ok(self.registration_of_anybody(relay_id)?.is_some_and(|(registration, _)| registration.operator == own))
    }

    fn registration_of_anybody(&self, relay_id: u64) -> Result<Option<(Registration, RelayRegistry::Relay)>, Failure> {
        let shown = self.ask(&RelayRegistry::relayOfCall { relayId: relay_id })?;
        Ok(registration(relay_id, &shown).map(|registration| (registration, shown)))
    }

    /// Returns the relay as the registry has it.
    ///
    /// # Errors
    ///
    /// Exit code 3 if another key operates it.
    pub(super) fn registration(&self, relay_id: u64) -> Result<Option<(Registration, RelayRegistry::Relay)>, Failure> {
        let Some((registration, shown)) = self.registration_of_anybody(relay_id)? else { return Ok(None) };
        let own = self.account.address()?;
        if registration.operator != own {
            let operator = registration.operator;
            let why = "its withdrawal address has set another operator key, or the chain reverted the registration and \
                       gave the ID to another relay";
            return Err(Failure::new(
                3,
                format!("relay {relay_id} is operated by {operator}, not by {own}: {why}; run: openrelay relay bond"),
            ));
        }
        Ok(Some((registration, shown)))
    }

    /// Returns the descriptor on the chain, from this relay's newest events. Other relays' events are not requested.
    pub(super) fn published(&self, relay_id: u64) -> Result<Vec<u8>, Failure> {
        let kinds = vec![RelayRegistry::Registered::SIGNATURE_HASH, RelayRegistry::Described::SIGNATURE_HASH];
        let newest = self.events(vec![kinds, vec![U256::from(relay_id).into()]])?.newest()?;
        let descriptor = newest.iter().rev().find_map(|log| match RelayRegistry::Described::decode_log(log) {
            Ok(event) => Some(event.data.descriptor),
            Err(_) => RelayRegistry::Registered::decode_log(log).ok().map(|event| event.data.descriptor),
        });
        let gone =
            || Failure::plain(format!("no event of the registry describes relay {relay_id}: it is not on the chain"));
        Ok(descriptor.ok_or_else(gone)?.to_vec())
    }

    /// Returns the newest relay that `operator` has registered and still operates, unless it is leaving.
    pub(super) fn relay_of(&self, operator: Address) -> Result<Option<u64>, Failure> {
        let kind = vec![RelayRegistry::Registered::SIGNATURE_HASH];
        let registered = self.events(vec![kind, Vec::new(), vec![operator.into_word()]])?.all()?;
        for event in registered.iter().rev().filter_map(|log| RelayRegistry::Registered::decode_log(log).ok()) {
            let relay_id = event.relayId;
            let held = self.registration_of_anybody(relay_id)?.map(|(registration, _)| registration);
            if held.is_some_and(|held| held.operator == operator && held.status != Status::Unbonding) {
                return Ok(Some(relay_id));
            }
        }
        Ok(None)
    }

    fn events(&self, topics: Vec<Vec<B256>>) -> Result<Events, Failure> {
        let (endpoint, chain) = (self.account.endpoint(), &self.account.chain);
        endpoint.check_chain(chain.chain_id)?;
        let head = newest_block(&endpoint)?;
        let logs = Logs::new(endpoint, Wanted { address: chain.registry, topics });
        Ok(Events { logs, first: chain.first_block, head })
    }
}

/// Events of the registry, from all blocks.
struct Events {
    logs: Logs,
    first: u64,
    head: u64,
}

impl Events {
    fn newest(mut self) -> Result<Vec<Log>, Failure> {
        Ok(self.logs.newest(self.first, self.head)?)
    }

    fn all(mut self) -> Result<Vec<Log>, Failure> {
        Ok(self.logs.all(self.first, self.head)?)
    }
}

/// Returns the plan as the file [`OPERATOR`].
pub(super) fn to_toml(plan: &RelayPlan) -> Result<String, Failure> {
    let text = toml::to_string(plan).map_err(Failure::plain)?;
    Ok(format!("# Settings of the relay. `openrelay relay run` publishes them at the next start.\n{text}"))
}

/// The relay's own configuration, as far as the plan decides it.
#[derive(Serialize)]
struct RelayConfig<'a> {
    role: Role,
    relay_id: u64,
    listen: &'a [SocketAddr],
    chain: &'static str,
    image: String,
    admission: &'static str,
}

/// Writes the relay's own configuration, made from the plan.
pub(super) fn write_relay_config(folder: &Folder, relay_id: u64) -> Result<(), Failure> {
    let plan = &folder.plan;
    let config = RelayConfig {
        role: plan.role,
        relay_id,
        listen: &plan.endpoints,
        chain: CHAIN,
        image: alloy_primitives::hex::encode(plan.image),
        admission: "open",
    };
    let text = toml::to_string(&config).map_err(Failure::plain)?;
    let head = format!(
        "# The relay may listen at other addresses than the endpoints in {OPERATOR}, at which clients reach it."
    );
    folder.account.write(RELAY, format!("{head}\n{text}").as_bytes())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
    use super::*;

    #[test]
    fn written_plan_is_read_back_unchanged() {
        let plan = RelayPlan {
            role: Role::Egress,
            endpoints: vec!["203.0.113.9:443".parse().unwrap(), "[2001:db8::9]:443".parse().unwrap()],
            advertised_mbit: 1_000,
            withdrawal: Address::repeat_byte(0xab),
            family: Some("a \"quoted\" name".into()),
            image: B256::repeat_byte(7),
        };
        for plan in [plan.clone(), RelayPlan { family: None, image: B256::ZERO, ..plan }] {
            let text = to_toml(&plan).unwrap();
            assert!(text.contains(&plan.withdrawal.to_string()), "the checksum is written: {text}");
            assert_eq!(toml::from_str::<RelayPlan>(&text).unwrap(), plan, "{text}");
        }
    }
}
