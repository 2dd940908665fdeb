//! Calls and events of the relay registry, from its ABI.
//!
//! Owns the bindings, generated from the committed artifacts, and the collection that a mirror makes from events. It
//! never fetches events. Source: contracts/src/RelayRegistry.sol.
#![allow(
    missing_docs,
    clippy::too_many_arguments,
    reason = "a macro generates the bindings; the contract documents them"
)]

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Log};
use alloy_sol_types::{SolEvent, sol};

use openrelay_ledger::chain::set::{Entry, Registration, Status};

sol!(
    #[derive(Debug)]
    RelayRegistry,
    "../../contracts/artifacts/RelayRegistry.json"
);
sol!(
    interface Token {
        function approve(address spender, uint256 value) external returns (bool);
        function allowance(address owner, address spender) external view returns (uint256);
        function balanceOf(address account) external view returns (uint256);
    }
);

/// Converts the registry's entry of a relay. `None` if its status is unknown, or if the relay is gone.
pub fn registration(relay_id: u64, shown: &RelayRegistry::Relay) -> Option<Registration> {
    let status = [Status::Active, Status::Draining, Status::Unbonding];
    let status = status.into_iter().find(|status| status.byte() == shown.status)?;
    Some(Registration {
        relay_id,
        operator: shown.operator,
        advertised_mbit: shown.advertisedMbit,
        bond_class: shown.bondClass,
        status,
    })
}

/// A mirror's collection: the newest descriptor of each relay, from events, and its registration, from the registry.
#[derive(Clone, Default, Debug)]
pub struct Collection {
    relays: BTreeMap<u64, (Option<Registration>, Vec<u8>)>,
}

impl Collection {
    /// Processes a log of the registry. Returns the relay that changed, whose registration the caller must query.
    pub fn take(&mut self, log: &Log) -> Option<u64> {
        if let Ok(event) = RelayRegistry::Registered::decode_log(log) {
            self.relays.insert(event.relayId, (None, event.descriptor.to_vec()));
            return Some(event.relayId);
        }
        if let Ok(event) = RelayRegistry::Described::decode_log(log) {
            self.relays.entry(event.relayId).or_default().1 = event.descriptor.to_vec();
            return Some(event.relayId);
        }
        if let Ok(event) = RelayRegistry::Changed::decode_log(log) {
            return Some(event.relayId);
        }
        RelayRegistry::Withdrawn::decode_log(log).ok().map(|event| event.relayId)
    }

    /// Sets the current registration of a relay; `None` removes the relay.
    pub fn set(&mut self, relay_id: u64, registration: Option<Registration>) {
        match registration {
            Some(registration) => self.relays.entry(relay_id).or_default().0 = Some(registration),
            None => drop(self.relays.remove(&relay_id)),
        }
    }

    /// Returns the newest relay of this operator that is not unbonding.
    pub fn relay_of(&self, operator: Address) -> Option<u64> {
        let own = |(registration, _): &(Option<Registration>, Vec<u8>)| {
            registration.is_some_and(|r| r.operator == operator && r.status != Status::Unbonding)
        };
        self.relays.iter().rev().find(|(_, entry)| own(entry)).map(|(relay_id, _)| *relay_id)
    }

    /// Returns the descriptor of a relay.
    pub fn descriptor(&self, relay_id: u64) -> Option<&[u8]> {
        self.relays.get(&relay_id).map(|(_, descriptor)| descriptor.as_slice())
    }

    /// Returns all relays by ascending ID, each with its registration, if it was queried, and its newest descriptor.
    pub fn relays(&self) -> impl Iterator<Item = (u64, Option<&Registration>, &[u8])> {
        self.relays
            .iter()
            .map(|(relay_id, (registration, descriptor))| (*relay_id, registration.as_ref(), descriptor.as_slice()))
    }

    /// Adds a relay in the form that [`Collection::relays`] returns.
    pub fn insert(&mut self, relay_id: u64, registration: Option<Registration>, descriptor: Vec<u8>) {
        self.relays.insert(relay_id, (registration, descriptor));
    }

    /// Returns all entries for a mirror's records file.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |(registration, descriptor): &(Option<Registration>, Vec<u8>)| {
            registration.map(|registration| Entry::Whole(registration, descriptor.clone()))
        };
        self.relays.values().filter_map(entry).collect()
    }
}

/// Returns the topics of the events that [`Collection::take`] processes.
pub fn topics() -> [B256; 4] {
    [
        RelayRegistry::Registered::SIGNATURE_HASH,
        RelayRegistry::Described::SIGNATURE_HASH,
        RelayRegistry::Changed::SIGNATURE_HASH,
        RelayRegistry::Withdrawn::SIGNATURE_HASH,
    ]
}
