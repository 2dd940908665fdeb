//! The relay: ingress and egress, without I/O.
//!
//! A relay is one [`Handshaker`] and one [`Shard`] per core. Shards own sessions and move packets; the handshaker owns
//! the secret handshake key and everything slow. They talk in the values of this module, over whatever
//! the caller connects them with: a channel between threads, or a function call in a simulation.
//!
//! ```text
//! datagram ─▶ Shard ─ Forward / Deliver ─▶ caller
//!               │ Request                        ▲ poll_transmit
//!               ▼                                │
//!           Handshaker ─ Output ─▶ Shard::apply ─┘
//! ```

mod circuits;
mod entry;
mod filter;
mod gate;
mod handshaker;
mod shard;
mod shares;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::handshake::{Established, RekeyRequest, Responder, Role, SessionKeys};
use crate::index::Place;
use crate::keys::{RelayId, RelayKey, sha256};
use crate::message::{Announced, MAX_MIRRORED, MIRROR_PIECE, MirrorFile, MirrorPiece};
use crate::suite::Suites;

pub use entry::Admit;
pub use entry::{EntryId, OpenAdmission};
pub use filter::Replays;
pub use gate::{Gate, Load};
pub(crate) use gate::{prove as prove_cookie, read_cookie};
pub use handshaker::{Handshaker, Outputs};
pub use shard::{Down, INNER_POOL, Shard, ShardCounts, Shared, Verdict};

/// What a relay knows of itself and of the others.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// Itself.
    pub own: Responder,
    /// The other relays that it may talk to: egresses for an ingress, ingresses for an egress.
    pub peers: BTreeMap<RelayId, Peer>,
    /// Suites in order of what this host is good at.
    pub suites: Suites,
    /// Whether an egress also takes clients without an ingress, which shows it their addresses.
    pub one_hop: bool,
    /// Sessions per shard at most.
    pub capacity: u32,
    /// What shows clients what it runs.
    pub evidence: Announced,
    /// What it mirrors.
    pub mirror: Mirror,
}

/// The files that a relay mirrors. It need not be believed: who asks holds them against the chain.
#[derive(Clone, Default, Debug)]
pub struct Mirror {
    /// The records of all relays; none with a signed directory.
    pub records: Option<Arc<Mirrored>>,
    /// A signed checkpoint.
    pub checkpoint: Option<Arc<Mirrored>>,
    /// What relays are judged by.
    pub attestation: Option<Arc<Mirrored>>,
}

/// A file that is mirrored.
#[derive(Debug)]
pub struct Mirrored {
    version: [u8; 8],
    bytes: Vec<u8>,
}

impl Mirrored {
    /// A file of these bytes; `None` when it is empty or too long to be one.
    pub fn new(bytes: Vec<u8>) -> Option<Arc<Self>> {
        if bytes.is_empty() || bytes.len() > MAX_MIRRORED {
            return None;
        }
        let version = *sha256(&[&bytes]).first_chunk()?;
        Some(Arc::new(Self { version, bytes }))
    }
}

impl Mirror {
    /// The piece of a file from `offset` on.
    fn piece(&self, file: MirrorFile, offset: u32) -> MirrorPiece {
        let found = match file {
            MirrorFile::Records => &self.records,
            MirrorFile::Checkpoint => &self.checkpoint,
            MirrorFile::Attestation => &self.attestation,
        };
        let (version, bytes) = found.as_ref().map_or(([0; 8], &[][..]), |found| (found.version, &found.bytes));
        // One that has become shorter is begun anew.
        let offset = if (offset as usize) < bytes.len() { offset } else { 0 };
        let rest = bytes.get(offset as usize..).unwrap_or(&[]);
        MirrorPiece {
            file,
            version,
            total: u32::try_from(bytes.len()).unwrap_or(0),
            offset,
            bytes: rest.get(..MIRROR_PIECE).unwrap_or(rest).to_vec(),
        }
    }
}

impl RelayConfig {
    /// Whether this relay is an ingress.
    pub fn is_ingress(&self) -> bool {
        self.own.role == Role::Ingress
    }

    fn peer_with_key(&self, key: &RelayKey) -> Option<(RelayId, &Peer)> {
        self.peers.iter().find(|(_, peer)| peer.responder.key == *key).map(|(id, peer)| (*id, peer))
    }
}

/// Another relay of the directory.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its identity.
    pub responder: Responder,
    /// Where it listens; the first one of a family that this relay has is used.
    pub address: SocketAddr,
}

/// How datagrams of a session travel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Route {
    /// Over UDP.
    Udp(SocketAddr),
    /// Inside a session with an ingress, under a circuit's tag. Only an egress has these.
    Circuit {
        /// The shard's entry of the session.
        hop: EntryId,
        /// The circuit's tag.
        tag: u32,
    },
}

impl Route {
    /// What a cookie is bound to: the route as bytes.
    fn to_bytes(self) -> [u8; 19] {
        let mut bytes = [0; 19];
        match self {
            Self::Udp(SocketAddr::V4(address)) => {
                bytes[0] = 4;
                bytes[1..5].copy_from_slice(&address.ip().octets());
                bytes[17..].copy_from_slice(&address.port().to_be_bytes());
            }
            Self::Udp(SocketAddr::V6(address)) => {
                bytes[0] = 6;
                bytes[1..17].copy_from_slice(&address.ip().octets());
                bytes[17..].copy_from_slice(&address.port().to_be_bytes());
            }
            Self::Circuit { hop, tag } => {
                bytes[0] = 1;
                bytes[1..9].copy_from_slice(&hop.to_bytes());
                bytes[9..13].copy_from_slice(&tag.to_be_bytes());
            }
        }
        bytes
    }
}

/// What a shard asks of the handshaker.
#[derive(Debug)]
pub enum Request {
    /// A handshake packet arrived, type and index unmasked.
    Arrival {
        /// The shard.
        shard: u8,
        /// The way back.
        route: Route,
        /// The packet.
        packet: Vec<u8>,
    },
    /// The shard needs a session with an egress.
    Connect {
        /// The shard.
        shard: u8,
        /// The egress.
        egress: RelayId,
    },
    /// A peer wants fresh keys.
    Rekey {
        /// The shard.
        shard: u8,
        /// The shard's entry of the session.
        entry: EntryId,
        /// What the peer sent.
        request: RekeyRequest,
    },
}

/// What the handshaker has for a shard.
#[derive(Debug)]
pub enum Output {
    /// Send this handshake packet, masked, along this route.
    Send {
        /// The way.
        route: Route,
        /// The packet.
        packet: Vec<u8>,
    },
    /// A session has begun.
    Install(Box<Install>),
    /// The egress did not answer.
    ConnectFailed {
        /// The egress.
        egress: RelayId,
    },
    /// Fresh keys for a session.
    Rekeyed(Box<Rekeyed>),
}

/// A session that a handshake began.
#[derive(Debug)]
pub struct Install {
    pub(crate) place: Place,
    pub(crate) established: Established,
    pub(crate) route: Route,
    /// The relay at the other end; `None` for a client.
    pub(crate) relay: Option<RelayId>,
}

/// Fresh keys of a session, and the answer to its peer.
#[derive(Debug)]
pub struct Rekeyed {
    pub(crate) entry: EntryId,
    pub(crate) answer: Vec<u8>,
    pub(crate) keys: SessionKeys,
}
