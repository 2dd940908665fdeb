//! The whole directory as a mirror serves it, held against the storage root that the chain proves.
//!
//! Owns the file's form and the check that makes it correct and complete: the root is computed anew from every record. A descriptor that is withheld costs only
//! its own relay; everything else that differs costs the mirror its file.
//!
//! ```text
//! "openrelay-records/1\n" | count 4 | per record, by rising relay id:
//! relay id 8 | kind 1 │ 1: operator 20 | advertised Mbit/s 4 | bond class 1 | status 1 | length 2 | descriptor
//!                     │ 0: hash of the record 32
//! ```

use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_rlp::encode;
use alloy_trie::{HashBuilder, Nibbles};

use super::descriptor::{Descriptor, MAX_DESCRIPTOR};

const HEAD: &[u8] = b"openrelay-records/1\n";
/// Largest file that is read, in bytes: one MiB, more than three thousand relays.
pub const MAX_FILE: usize = 1 << 20;
const WHOLE: u8 = 1;
const WITHHELD: u8 = 0;

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
    /// Those whose descriptors were there and read.
    pub records: Vec<ChainRecord>,
    /// Relays whose descriptor the mirror withheld.
    pub withheld: Vec<u64>,
    /// Relays whose descriptor does not read: their operators wrote nonsense.
    pub malformed: Vec<u64>,
}

/// Why a mirror's file is refused whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SetError {
    /// Too large to be read.
    #[error("the mirror's file has {0} bytes; at most {MAX_FILE} are read")]
    TooLarge(usize),
    /// Not such a file, or cut.
    #[error("the mirror's file does not read")]
    Malformed,
    /// Its records are not those of the chain.
    #[error(
        "the mirror's records are not the chain's: some are wrong, missing, stale or too many; another mirror may be honest"
    )]
    Different,
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
    /// Reads a mirror's file and holds it against `proven`, the storage root of the Directory contract.
    ///
    /// # Errors
    /// [`SetError`]: nothing of the file may be used then.
    pub fn verify(file: &[u8], proven: B256) -> Result<Self, SetError> {
        if file.len() > MAX_FILE {
            return Err(SetError::TooLarge(file.len()));
        }
        let mut rest = file.strip_prefix(HEAD).ok_or(SetError::Malformed)?;
        let count = u32::from_be_bytes(take(&mut rest)?);
        let mut this = Self::default();
        let (mut hashes, mut last) = (Vec::new(), None);
        for _ in 0..count {
            let relay_id = u64::from_be_bytes(take(&mut rest)?);
            if last.is_some_and(|last| last >= relay_id) {
                return Err(SetError::Malformed);
            }
            last = Some(relay_id);
            let hash = match take(&mut rest)? {
                [WITHHELD] => {
                    this.withheld.push(relay_id);
                    B256::new(take(&mut rest)?)
                }
                [WHOLE] => this.take_record(relay_id, &mut rest)?,
                [_] => return Err(SetError::Malformed),
            };
            hashes.push((relay_id, hash));
        }
        if !rest.is_empty() {
            return Err(SetError::Malformed);
        }
        if directory_root(hashes) == proven { Ok(this) } else { Err(SetError::Different) }
    }

    fn take_record(&mut self, relay_id: u64, rest: &mut &[u8]) -> Result<B256, SetError> {
        let operator = Address::new(take(rest)?);
        let advertised_mbit = u32::from_be_bytes(take(rest)?);
        let [bond_class, status] = take(rest)?;
        let status = Status::parse(status).ok_or(SetError::Malformed)?;
        let length = usize::from(u16::from_be_bytes(take(rest)?));
        let (bytes, tail) = rest.split_at_checked(length).ok_or(SetError::Malformed)?;
        *rest = tail;
        let registration = Registration { relay_id, operator, advertised_mbit, bond_class, status };
        match Descriptor::decode(bytes) {
            Ok(descriptor) => self.records.push(ChainRecord { registration, descriptor }),
            Err(_) => self.malformed.push(relay_id),
        }
        Ok(record_hash(&registration, Descriptor::hash(bytes)))
    }
}

/// What a mirror has of a relay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// All of it: the descriptor's bytes as the operator published them.
    Whole(Registration, Vec<u8>),
    /// The record's hash alone.
    Withheld(u64, B256),
}

impl Entry {
    const fn relay_id(&self) -> u64 {
        match self {
            Self::Whole(registration, _) => registration.relay_id,
            Self::Withheld(relay_id, _) => *relay_id,
        }
    }
}

/// A mirror's file; `None` when a relay is there twice. A descriptor that is longer than one can be, which the registry does not refuse, is left out: it costs its own relay.
pub fn write(mut entries: Vec<Entry>) -> Option<Vec<u8>> {
    entries.sort_by_key(Entry::relay_id);
    let mut out = HEAD.to_vec();
    out.extend(u32::try_from(entries.len()).ok()?.to_be_bytes());
    if entries.windows(2).any(|pair| matches!(pair, [a, b] if a.relay_id() == b.relay_id())) {
        return None;
    }
    for entry in entries {
        out.extend(entry.relay_id().to_be_bytes());
        match entry {
            Entry::Withheld(_, hash) => {
                out.push(WITHHELD);
                out.extend(hash);
            }
            Entry::Whole(registration, descriptor) if descriptor.len() > MAX_DESCRIPTOR => {
                out.push(WITHHELD);
                out.extend(record_hash(&registration, Descriptor::hash(&descriptor)));
            }
            Entry::Whole(registration, descriptor) => {
                out.push(WHOLE);
                out.extend(registration.operator);
                out.extend(registration.advertised_mbit.to_be_bytes());
                out.extend([registration.bond_class, registration.status.byte()]);
                out.extend(u16::try_from(descriptor.len()).ok()?.to_be_bytes());
                out.extend(descriptor);
            }
        }
    }
    Some(out)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N], SetError> {
    let (head, tail) = rest.split_first_chunk::<N>().ok_or(SetError::Malformed)?;
    *rest = tail;
    Ok(*head)
}

#[cfg(test)]
mod tests;
