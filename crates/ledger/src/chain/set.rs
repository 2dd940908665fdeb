//! All relays of the chain, verified against the storage root of the Directory contract.
//!
//! Owns what the registry says of a relay, how a record is hashed, and the set that a complete file of records gives. [`file`] owns the form of that file.

use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_rlp::encode;
use alloy_trie::{HashBuilder, Nibbles};

use super::descriptor::Descriptor;

pub mod file;

pub use file::{Assembly, Entry, MAX_FILE, MAX_RELAYS, PageError, PageFault, SetError, write};

/// What the chain says of a relay besides its descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registration {
    /// Its number in the registry, from 1.
    pub relay_id: u64,
    /// The operator's hot key.
    pub operator: Address,
    /// What it says that it carries, in Mbit/s.
    pub advertised_mbit: u32,
    /// How its bond relates to what it must be: the registry's classes, 0 for too little.
    pub bond_class: u8,
    /// Whether it serves.
    pub status: Status,
}

/// Where a relay stands with the registry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Status {
    /// It serves.
    Active,
    /// It takes no new circuits.
    Draining,
    /// It gets its bond back and does not serve.
    Unbonding,
}

impl Status {
    /// As the registry writes it.
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
    /// What the registry says of it.
    pub registration: Registration,
    /// What it says of itself.
    pub descriptor: Descriptor,
}

/// All relays that the chain has, as proven.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecordSet {
    /// Those whose descriptors are known and well-formed.
    pub records: Vec<ChainRecord>,
    /// Relays whose descriptor no source gave. What the registry says of them is proven all the same.
    pub withheld: Vec<Registration>,
    /// Relays whose descriptor is malformed: their operators published nonsense.
    pub malformed: Vec<u64>,
}

/// The hash of a record, as the registry makes it: Keccak-256 over six words.
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

/// The storage root of a Directory with these records: slot `relay id` holds the hash. No relay id may be there twice.
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
    /// Reads a complete file of records and checks it against `proven`, the storage root of the Directory contract.
    ///
    /// # Errors
    /// [`SetError`] when any page is bad or missing; nothing of the file may be used then. [`Assembly`] takes the good
    /// pages of several files instead.
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
