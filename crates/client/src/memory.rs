//! What the client keeps between connections: one set of files for each network.
//!
//! Owns their names. Never keeps anything about what the user did.

use std::fs;
use std::path::{Path, PathBuf};

use openrelay_chain::Direct;
use openrelay_ledger::hex;
use openrelay_node::chain_file::ChainFile;
use openrelay_node::config::{ClientFile, Origin, read};
use openrelay_node::directory::VerifiedDirectory;

use crate::error::ConnectError;

/// Returns the path of the file in the folder `state` that caches this chain's last reading.
pub fn kept_of(chain: &ChainFile, state: &Path) -> PathBuf {
    Memory::of(state, &chain.trust().network_id()).reading
}

/// Returns the directory of the configuration `path`, proven as recently as possible, and a warning. Uses and updates
/// the files in the folder `state`.
///
/// # Errors
/// [`ConnectError`] says why there is no directory.
pub fn directory_of(path: &Path, state: &Path) -> Result<(VerifiedDirectory, Option<String>), ConnectError> {
    let file: ClientFile = read(path)?;
    let origin = file.origin(path)?;
    look_up(&origin, state).map(|(directory, _, warning)| (directory, warning))
}

/// Returns the cached directory of a chain, if it was read recently.
pub(crate) fn read_lately(origin: &Origin, state: &Path) -> Option<(VerifiedDirectory, Memory)> {
    let Origin::Chain(chain) = origin else { return None };
    let memory = Memory::of(state, &chain.trust().network_id());
    Some((openrelay_chain::read_lately(chain, &memory.reading)?, memory))
}

pub(crate) fn look_up(
    origin: &Origin,
    state: &Path,
) -> Result<(VerifiedDirectory, Memory, Option<String>), ConnectError> {
    match origin {
        Origin::Signed { path, trusted } => {
            let memory = Memory::of(state, trusted);
            let (directory, warning) = VerifiedDirectory::read_newest(path, *trusted, &memory.sequence)?;
            Ok((directory, memory, warning))
        }
        Origin::Chain(chain) => {
            let memory = Memory::of(state, &chain.trust().network_id());
            let (directory, warning) = openrelay_chain::directory(&Direct, chain, &memory.reading, 0)?;
            Ok((directory, memory, warning))
        }
    }
}

/// Files that the client keeps between connections. Each network has its own. The key that signs its directory, or
/// its network ID on a chain, tells networks apart.
pub(crate) struct Memory {
    /// Holds the highest directory sequence number seen.
    pub(crate) sequence: PathBuf,
    /// Holds the ingress of the previous circuit.
    pub(crate) ingress: PathBuf,
    /// Caches the chain's last reading.
    pub(crate) reading: PathBuf,
}

impl Memory {
    pub(crate) fn of(folder: &Path, trusted: &[u8; 32]) -> Self {
        // If this fails, so does writing the files, which is reported.
        let _ = fs::create_dir_all(folder);
        let network = hex::encode(trusted.first_chunk::<8>().unwrap_or(&[0; 8]));
        Self {
            sequence: folder.join(format!("{network}.seen")),
            ingress: folder.join(format!("{network}.ingress")),
            reading: folder.join(format!("{network}.reading")),
        }
    }

    /// Returns the ingress of the previous circuit. A host that cannot read or write the file uses a new ingress each
    /// time.
    pub(crate) fn ingress(&self) -> Option<u64> {
        fs::read_to_string(&self.ingress).ok()?.trim().parse().ok()
    }

    pub(crate) fn keep(&self, ingress: u64) {
        let _ = fs::write(&self.ingress, format!("{ingress}\n"));
    }
}
