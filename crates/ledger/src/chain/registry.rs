//! The registry's calls and events, as its ABI says.
//!
//! Owns the bindings, made from the committed artifacts, and what a mirror keeps of events. Source: contracts/src/RelayRegistry.sol.
#![allow(
    missing_docs,
    clippy::too_many_arguments,
    reason = "the bindings are made by a macro; their words are in the contract"
)]

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Log};
use alloy_sol_types::{SolEvent, sol};

use super::set::{Entry, Registration, Status};

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

/// What the registry holds of a relay; `None` when its bytes are none, or it is not there any more.
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

/// What a mirror keeps: the newest descriptor of each relay, from events, and what the registry says of it.
#[derive(Clone, Default, Debug)]
pub struct Collection {
    relays: BTreeMap<u64, (Option<Registration>, Vec<u8>)>,
}

impl Collection {
    /// Takes a log of the registry in; the relay of which something has changed, to be asked of the registry.
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

    /// What the registry says of a relay now; `None` when it is gone.
    pub fn set(&mut self, relay_id: u64, registration: Option<Registration>) {
        match registration {
            Some(registration) => self.relays.entry(relay_id).or_default().0 = Some(registration),
            None => drop(self.relays.remove(&relay_id)),
        }
    }

    /// The newest relay of this operator that does not leave.
    pub fn relay_of(&self, operator: Address) -> Option<u64> {
        let own = |(registration, _): &(Option<Registration>, Vec<u8>)| {
            registration.is_some_and(|r| r.operator == operator && r.status != Status::Unbonding)
        };
        self.relays.iter().rev().find(|(_, entry)| own(entry)).map(|(relay_id, _)| *relay_id)
    }

    /// The descriptor of a relay.
    pub fn descriptor(&self, relay_id: u64) -> Option<&[u8]> {
        self.relays.get(&relay_id).map(|(_, descriptor)| descriptor.as_slice())
    }

    /// What is known of each relay, by ascending number: its registration where it was asked for, and its newest descriptor.
    pub fn relays(&self) -> impl Iterator<Item = (u64, Option<&Registration>, &[u8])> {
        self.relays
            .iter()
            .map(|(relay_id, (registration, descriptor))| (*relay_id, registration.as_ref(), descriptor.as_slice()))
    }

    /// Adds a relay as [`Collection::relays`] shows it.
    pub fn insert(&mut self, relay_id: u64, registration: Option<Registration>, descriptor: Vec<u8>) {
        self.relays.insert(relay_id, (registration, descriptor));
    }

    /// All entries for a mirror's file.
    pub fn entries(&self) -> Vec<Entry> {
        let entry = |(registration, descriptor): &(Option<Registration>, Vec<u8>)| {
            registration.map(|registration| Entry::Whole(registration, descriptor.clone()))
        };
        self.relays.values().filter_map(entry).collect()
    }
}

/// The topics of the events that [`Collection::take`] knows.
pub fn topics() -> [B256; 4] {
    [
        RelayRegistry::Registered::SIGNATURE_HASH,
        RelayRegistry::Described::SIGNATURE_HASH,
        RelayRegistry::Changed::SIGNATURE_HASH,
        RelayRegistry::Withdrawn::SIGNATURE_HASH,
    ]
}
