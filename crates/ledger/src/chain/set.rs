//! All relays of the chain, verified against the storage root of the Directory contract.
//!
//! Owns a relay's registration, the hash of a record, and the set that a complete records file gives. It never trusts
//! the source of a file. [`file`] owns the file's format.

use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_rlp::encode;
use alloy_trie::{HashBuilder, Nibbles};

use super::descriptor::Descriptor;

pub mod file;

pub use file::{Assembly, Entry, MAX_FILE, MAX_RELAYS, PageError, PageFault, SetError, write};

/// The chain's data about a relay, without its descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registration {
    /// Relay ID: its number in the registry, from 1.
    pub relay_id: u64,
    /// The operator's hot key.
    pub operator: Address,
    /// Advertised bandwidth, in Mbit/s.
    pub advertised_mbit: u32,
    /// Bond class of the registry: the ratio of the bond to the required bond; 0 if it is too small.
    pub bond_class: u8,
    /// Status.
    pub status: Status,
}

impl Registration {
    /// Returns whether the relay serves and has the required bond.
    pub fn is_active(&self) -> bool {
        self.status == Status::Active && self.bond_class > 0
    }
}

/// A relay's status in the registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// The relay serves.
    Active,
    /// The relay takes no new circuits.
    Draining,
    /// The relay does not serve, and its bond is being released.
    Unbonding,
}

impl Status {
    /// Returns the registry's encoding of the status.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Active => 1,
            Self::Draining => 2,
            Self::Unbonding => 3,
        }
    }

    const fn parse(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Active,
            2 => Self::Draining,
            3 => Self::Unbonding,
            _ => return None,
        })
    }
}

/// A relay of the chain with the descriptor that its record names.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ChainRecord {
    /// Its registration, from the registry.
    pub registration: Registration,
    /// Its descriptor, from its operator.
    pub descriptor: Descriptor,
}

/// All relays of the chain, as proven.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecordSet {
    /// Relays whose descriptor is known and well-formed.
    pub records: Vec<ChainRecord>,
    /// Relays whose descriptor no source provided. Their registration is proven anyway.
    pub withheld: Vec<Registration>,
    /// Relays whose operator published a malformed descriptor.
    pub malformed: Vec<u64>,
}

/// Returns the hash of a record as the registry computes it: Keccak-256 over six words.
pub fn record_hash(registration: &Registration, descriptor: B256) -> B256 {
    let mut words = [0u8; 6 * 32];
    words[24..32].copy_from_slice(&registration.relay_id.to_be_bytes());
    words[44..64].copy_from_slice(registration.operator.as_slice());
    words[64..96].copy_from_slice(descriptor.as_slice());
    words[124..128].copy_from_slice(&registration.advertised_mbit.to_be_bytes());
    words[159] = registration.bond_class;
    words[191] = registration.status.byte();
    keccak256(words)
}

/// Returns the storage root of a Directory contract with these records. Slot `relay id` holds the record's hash. Relay
/// IDs must be unique.
pub fn directory_root(records: impl IntoIterator<Item = (u64, B256)>) -> B256 {
    let slot = |relay_id: u64| keccak256(B256::from(U256::from(relay_id)));
    let value = |hash: B256| encode(U256::from_be_bytes(hash.0));
    let mut leaves: Vec<(B256, Vec<u8>)> = records.into_iter().map(|(id, hash)| (slot(id), value(hash))).collect();
    leaves.sort_unstable();
    leaves.dedup_by_key(|(slot, _)| *slot);
    let mut builder = HashBuilder::default();
    for (slot, value) in leaves {
        builder.add_leaf(Nibbles::unpack(slot), &value);
    }
    builder.root()
}

impl RecordSet {
    /// Decodes a complete records file and checks it against `proven`, the storage root of the Directory contract.
    ///
    /// # Errors
    /// [`SetError`] if any page is bad or missing; then nothing of the file may be used. [`Assembly`] instead takes
    /// the good pages of several files.
    pub fn verify(file: &[u8], proven: B256) -> Result<Self, SetError> {
        let mut assembly = Assembly::new(proven);
        if let Some(fault) = assembly.add(file)?.into_iter().next() {
            return Err(SetError::Page(fault));
        }
        assembly.into_set()
    }
}

#[cfg(test)]
mod tests;
