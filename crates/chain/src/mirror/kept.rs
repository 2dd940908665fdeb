//! A mirror's collection on disk, so that a restart continues where the mirror stopped.
//!
//! Owns the file's format: JSON, always replaced as a whole. The content is checked like everything that a mirror
//! collects: the block's hash when the state is used, and the root of all records afterwards.

use std::io::Read as _;
use std::path::Path;

use crate::registry::Collection;
use alloy_primitives::{Address, B256, Bytes};
use openrelay_ledger::chain::header::Header;
use openrelay_ledger::chain::set::{Registration, Status};
use serde::{Deserialize, Serialize};

use super::Collected;
use openrelay_node::chain_file::ChainFile;
use openrelay_node::directory::replace;

const SCHEMA: &str = "openrelay.mirror/1";
/// Largest accepted file, in bytes: enough for more than 100,000 relays.
const MAX_FILE: u64 = 128 << 20;

/// A state of a mirror, with the hash of its last block.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    collected: Collected,
    hash: B256,
}

/// The content of the file.
#[derive(Serialize, Deserialize)]
struct File {
    schema: String,
    chain_id: u64,
    registry: Address,
    directory: Address,
    first_block: u64,
    next: u64,
    hash: B256,
    changed: Vec<u64>,
    relays: Vec<Relay>,
}

#[derive(Serialize, Deserialize)]
struct Relay {
    relay: u64,
    registration: Option<(Address, u32, u8, u8)>,
    descriptor: Bytes,
}

impl Kept {
    /// Returns the state whose last block has this header; `None` if the header belongs to another block or is
    /// malformed.
    pub(super) fn of(collected: Collected, header: &[u8]) -> Option<Self> {
        let header = Header::decode(header).ok()?;
        (header.number.checked_add(1)? == collected.next).then_some(Self { collected, hash: header.hash })
    }

    /// Returns the first block after this state.
    pub(super) fn next(&self) -> u64 {
        self.collected.next
    }

    /// Returns whether this is the header of the state's last block.
    pub(super) fn is_at(&self, header: &Header) -> bool {
        (header.number.saturating_add(1), header.hash) == (self.collected.next, self.hash)
    }

    pub(super) fn collected(&self) -> &Collected {
        &self.collected
    }

    /// Reads the file at `path`; `None` if it does not exist.
    ///
    /// # Errors
    /// A message about why it is not used.
    pub(super) fn read(path: &Path, chain: &ChainFile) -> Result<Option<Self>, String> {
        let fault = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(fault(&error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(|error| fault(&error))?;
        if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > MAX_FILE {
            return Err(fault(&format!("it is larger than {MAX_FILE} bytes")));
        }
        let file: File = serde_json::from_slice(&bytes).map_err(|error| fault(&error))?;
        if file.schema != SCHEMA {
            return Err(fault(&"it has another schema"));
        }
        let same = (file.chain_id, file.registry, file.directory, file.first_block);
        if same != (chain.chain_id, chain.registry, chain.directory, chain.first_block) {
            return Err(fault(&"it belongs to another chain, contract or first block"));
        }
        let mut collection = Collection::default();
        for Relay { relay, registration, descriptor } in file.relays {
            let registration = registration.map(|(operator, advertised_mbit, bond_class, status)| {
                let known = [Status::Active, Status::Draining, Status::Unbonding];
                let status = known.into_iter().find(|known| known.byte() == status)?;
                Some(Registration { relay_id: relay, operator, advertised_mbit, bond_class, status })
            });
            let registration = match registration {
                Some(None) => return Err(fault(&format!("relay {relay} has an unknown status"))),
                Some(known) => known,
                None => None,
            };
            collection.insert(relay, registration, descriptor.to_vec());
        }
        let collected = Collected { collection, changed: file.changed.into_iter().collect(), next: file.next };
        Ok(Some(Self { collected, hash: file.hash }))
    }

    /// Writes the state to `path`, as a whole.
    pub(super) fn write(&self, path: &Path, chain: &ChainFile) -> std::io::Result<()> {
        let relays = self.collected.collection.relays().map(|(relay, registration, descriptor)| Relay {
            relay,
            registration: registration
                .map(|own| (own.operator, own.advertised_mbit, own.bond_class, own.status.byte())),
            descriptor: Bytes::copy_from_slice(descriptor),
        });
        let file = File {
            schema: SCHEMA.into(),
            chain_id: chain.chain_id,
            registry: chain.registry,
            directory: chain.directory,
            first_block: chain.first_block,
            next: self.collected.next,
            hash: self.hash,
            changed: self.collected.changed.iter().copied().collect(),
            relays: relays.collect(),
        };
        std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
        replace(path, &serde_json::to_vec(&file)?)
    }
}
