//! The directory as this node uses it: read, verified, and converted for the protocol.
//!
//! Owns [`RegisteredRelay`], which only a verified directory makes. No circuit opens without one.

use std::path::Path;
use std::sync::Arc;

use openrelay_ledger::chain::reading::{Reading, ReadingError, Trust};
use openrelay_ledger::directory::Directory;
use openrelay_ledger::record::{Record, Role};
use openrelay_proto::handshake::{Responder, Role as ProtoRole};
use openrelay_proto::keys::{RelayId, RelayKey};
use openrelay_proto::relay::{Peer, Peers};

use crate::clock::unix_seconds;
use crate::config::{ConfigError, fault, read_bytes};

/// A directory that was verified, by a signature or by a chain.
#[derive(Clone, Debug)]
pub struct VerifiedDirectory {
    directory: Directory,
    /// The reading that proves it, if a chain does.
    reading: Option<Arc<Reading>>,
    /// Whether its reader knew of no newer block.
    newest_known: bool,
}

/// A relay of a verified directory. Not `Clone`: it stands for one check, and a circuit consumes it.
#[derive(Debug)]
pub struct RegisteredRelay {
    responder: Responder,
    endpoints: Vec<std::net::SocketAddr>,
}

impl RegisteredRelay {
    /// Returns the key and the addresses. `openrelay_chain::circuit` consumes the value by this.
    pub fn into_parts(self) -> (Responder, Vec<std::net::SocketAddr>) {
        (self.responder, self.endpoints)
    }
}

impl VerifiedDirectory {
    /// Reads the directory in the file `path`. Verifies it against the key `trusted`, the current time and the
    /// highest sequence number `seen`.
    ///
    /// # Errors
    /// [`ConfigError`] says why it is refused.
    pub fn read(path: &Path, trusted: [u8; 32], seen: u64) -> Result<Self, ConfigError> {
        let bytes = read_bytes(path)?;
        let directory = Directory::verify(&bytes, &trusted, unix_seconds(), seen)
            .map_err(|source| ConfigError::Directory { path: path.to_owned(), source })?;
        Ok(Self { directory, reading: None, newest_known: false })
    }

    /// Returns the directory that a reading of a chain proves. It must be at most `max_age` seconds old and not older
    /// than the block `seen`. A newer block may be known, unless [`VerifiedDirectory::as_newest_of`] says otherwise.
    ///
    /// # Errors
    /// [`ReadingError`] says why it is refused.
    pub fn of_reading(reading: Reading, trust: &Trust, max_age: u64, seen: u64) -> Result<Self, ReadingError> {
        let directory = reading.verify(trust, unix_seconds(), max_age, seen)?;
        Ok(Self { directory, reading: Some(Arc::new(reading)), newest_known: false })
    }

    /// Does the same as [`VerifiedDirectory::read`], and remembers the highest sequence number seen in the file
    /// `memory`. Returns a warning if the number cannot be saved: an older directory would then go unnoticed after a
    /// restart.
    ///
    /// # Errors
    /// [`ConfigError`] says why it is refused. An existing but malformed `memory` is an error too.
    pub fn read_newest(path: &Path, trusted: [u8; 32], memory: &Path) -> Result<(Self, Option<String>), ConfigError> {
        let seen = Self::seen(memory)?;
        let this = Self::read(path, trusted, seen)?;
        let sequence = this.directory.body().sequence;
        if sequence == seen {
            return Ok((this, None));
        }
        let written = replace(memory, format!("{sequence}\n").as_bytes());
        let warning = |error| format!("cannot save the directory's sequence in {}: {error}", memory.display());
        Ok((this, written.err().map(warning)))
    }

    /// Returns the highest sequence number in the file `memory`; 0 without the file.
    ///
    /// # Errors
    /// [`ConfigError`] if the file is malformed or cannot be read.
    pub fn seen(memory: &Path) -> Result<u64, ConfigError> {
        match std::fs::read_to_string(memory) {
            Ok(text) => text.trim().parse().map_err(|_| {
                fault(memory, "must hold the highest directory sequence number seen; delete it to forget it")
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
            Err(source) => Err(ConfigError::Read { path: memory.to_owned(), source }),
        }
    }

    /// Returns a directory that was verified just now, with the reading that proves it. Only a verification makes a
    /// [`Directory`]. No newer block is known.
    pub fn of_proven(directory: Directory, reading: Reading) -> Self {
        Self { directory, reading: Some(Arc::new(reading)), newest_known: true }
    }

    /// Returns the same directory for a reader who knows of no block above `newest`.
    #[must_use]
    pub fn as_newest_of(mut self, newest: u64) -> Self {
        self.newest_known = self.directory.body().sequence >= newest;
        self
    }

    /// Returns whether its reader knew of no newer block. Evidence is then accepted against it for a longer time.
    pub const fn is_newest_known(&self) -> bool {
        self.newest_known
    }

    /// Returns the reading that proves it; `None` if it is verified by a signature.
    pub fn reading(&self) -> Option<&Reading> {
        self.reading.as_deref()
    }

    /// Returns the content of the directory.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// Returns the relay with this record, ready for a circuit; `None` if this directory has no such relay.
    pub fn register(&self, record: &Record) -> Option<RegisteredRelay> {
        let own = self.directory.relay(record.relay_id)?;
        Some(RegisteredRelay { responder: self.responder(own)?, endpoints: own.endpoints.clone() })
    }

    /// Returns the identity of `record` in handshakes; `None` if its key is malformed.
    pub fn responder(&self, record: &Record) -> Option<Responder> {
        Some(Responder {
            network: self.directory.network_id(),
            relay: RelayId(record.relay_id),
            role: match record.role {
                Role::Ingress => ProtoRole::Ingress,
                Role::Egress => ProtoRole::Egress,
            },
            key_epoch: record.key_epoch,
            key: RelayKey::from_bytes(record.key()?),
        })
    }

    /// Returns the relays of the other role, with the endpoints that a relay listening on these address families can
    /// reach.
    pub fn peers(&self, own: Role, v4: bool, v6: bool) -> Peers {
        let others = self.directory.body().relays.iter().filter(|record| record.role != own);
        let peers = others.filter_map(|record| {
            let v4 = record.endpoint(false).filter(|_| v4);
            let address = v4.or_else(|| record.endpoint(true).filter(|_| v6))?;
            Some((RelayId(record.relay_id), Peer { responder: self.responder(record)?, address }))
        });
        let leaving = self.directory.leaving();
        let draining = leaving.draining.iter().filter(|record| record.role != own);
        let draining = draining.map(|record| (RelayId(record.relay_id), self.responder(record)));
        let withheld = leaving.withheld.iter().map(|relay| (RelayId(*relay), None));
        peers.collect::<Peers>().with_leaving(draining.chain(withheld))
    }
}

/// Replaces a file in two steps, so that a crash leaves either the old or the new content.
///
/// # Errors
/// The I/O error if the file, or the draft beside it, cannot be written.
pub fn replace(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    use std::io::Write as _;
    // Each process has its own draft, so that two processes do not mix their writes.
    let draft = path.with_extension(format!("{}.new", std::process::id()));
    let write = || {
        let mut file = std::fs::File::create(&draft)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&draft, path)
    };
    write().inspect_err(|_| {
        // On a full disk the draft would take up space. If it could not be created, there is nothing to remove.
        let _ = std::fs::remove_file(&draft);
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use openrelay_ledger::directory::{Body, DirectoryKey};
    use openrelay_ledger::hex;

    #[test]
    fn failed_write_leaves_no_draft() {
        let folder = std::env::temp_dir().join(format!("openrelay-draft-{}", std::process::id()));
        // A folder occupies the file's path.
        std::fs::create_dir_all(folder.join("file/inner")).unwrap();
        replace(&folder.join("file"), b"content").unwrap_err();
        let names: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        std::fs::remove_dir_all(&folder).unwrap();
        assert_eq!(names, ["file"]);
    }

    #[test]
    fn directory_older_than_one_seen_is_refused_after_restart() {
        let folder = std::env::temp_dir().join(format!("openrelay-test-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let (path, memory) = (folder.join("directory.signed"), folder.join("directory.seen"));
        let key = DirectoryKey::from_seed([7; 32]).unwrap();
        let publish = |sequence| {
            let relay = |relay_id: u8, role, endpoint: &str| Record {
                relay_id: relay_id.into(),
                role,
                handshake_key: hex::encode(&[relay_id; 32]),
                key_epoch: 0,
                endpoints: vec![endpoint.parse().unwrap()],
                operator: "self".into(),
                family: None,
                stake: 0,
                bandwidth_mbit: 0,
            };
            let body = Body {
                network: "test".into(),
                sequence,
                issued: unix_seconds(),
                expires: unix_seconds() + 1_000,
                single_operator: true,
                relays: vec![relay(1, Role::Ingress, "198.51.100.1:443"), relay(2, Role::Egress, "203.0.113.1:443")],
            };
            std::fs::write(&path, key.sign(&body).unwrap()).unwrap();
        };
        let read = || VerifiedDirectory::read_newest(&path, key.public(), &memory).map(|(_, warning)| warning);
        publish(5);
        assert_eq!(read().unwrap(), None);
        assert_eq!(read().unwrap(), None);
        publish(4);
        assert!(read().unwrap_err().to_string().contains('5'), "the error names the number seen");
        publish(6);
        assert_eq!(read().unwrap(), None);
        publish(5);
        read().unwrap_err();
        std::fs::write(&memory, "many").unwrap();
        read().unwrap_err();
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
