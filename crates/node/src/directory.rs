//! The directory as this node uses it: read, checked, turned into what the protocol takes.
//!
//! Owns [`RegisteredRelay`], which only a verified directory makes: no circuit opens without one.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;

use openrelay_ledger::directory::Directory;
use openrelay_ledger::record::{Record, Role};
use openrelay_proto::handshake::{Responder, Role as ProtoRole};
use openrelay_proto::keys::{RelayId, RelayKey};
use openrelay_proto::relay::Peer;

use crate::clock::unix_seconds;
use crate::config::{ConfigError, fault, read_bytes};

/// A directory that was verified, with the key that it was verified by.
#[derive(Clone, Debug)]
pub struct VerifiedDirectory {
    directory: Directory,
    trusted: [u8; 32],
}

/// A relay that a verified directory names. Not `Clone`: it stands for one check and is used up by one circuit.
#[derive(Debug)]
pub struct RegisteredRelay {
    responder: Responder,
    endpoints: Vec<SocketAddr>,
}

impl RegisteredRelay {
    /// The relay's number.
    pub fn relay_id(&self) -> u64 {
        self.responder.relay.0
    }

    pub(crate) fn into_parts(self) -> (Responder, Vec<SocketAddr>) {
        (self.responder, self.endpoints)
    }
}

impl VerifiedDirectory {
    /// Reads the directory in the file `path` and checks it against `trusted`, now, given the highest sequence `seen`.
    ///
    /// # Errors
    /// [`ConfigError`] says why it is refused.
    pub fn read(path: &Path, trusted: [u8; 32], seen: u64) -> Result<Self, ConfigError> {
        let bytes = read_bytes(path)?;
        let directory = Directory::verify(&bytes, &trusted, unix_seconds(), seen)
            .map_err(|error| fault(path, format!("directory refused: {error}")))?;
        Ok(Self { directory, trusted })
    }

    /// What the directory says.
    pub fn directory(&self) -> &Directory {
        &self.directory
    }

    /// The relay with this record as a circuit takes it; `None` when the record is not of this directory.
    pub fn register(&self, record: &Record) -> Option<RegisteredRelay> {
        let own = self.directory.relay(record.relay_id)?;
        Some(RegisteredRelay { responder: self.responder(own)?, endpoints: own.endpoints.clone() })
    }

    /// The identity of `record` in handshakes.
    pub fn responder(&self, record: &Record) -> Option<Responder> {
        Some(Responder {
            network: self.directory.network_id(&self.trusted),
            relay: RelayId(record.relay_id),
            role: match record.role {
                Role::Ingress => ProtoRole::Ingress,
                Role::Egress => ProtoRole::Egress,
            },
            key_epoch: record.key_epoch,
            key: RelayKey::from_bytes(record.key()?),
        })
    }

    /// The relays of the other role, with the endpoints that a relay which listens on these families can reach.
    pub fn peers(&self, own: Role, v4: bool, v6: bool) -> BTreeMap<RelayId, Peer> {
        let others = self.directory.body().relays.iter().filter(|record| record.role != own);
        let peers = others.filter_map(|record| {
            let v4 = record.endpoint(false).filter(|_| v4);
            let address = v4.or_else(|| record.endpoint(true).filter(|_| v6))?;
            Some((RelayId(record.relay_id), Peer { responder: self.responder(record)?, address }))
        });
        peers.collect()
    }
}
