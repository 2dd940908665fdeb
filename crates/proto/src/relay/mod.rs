//! The relay: ingress and egress, without I/O.
//!
//! A relay is one [`Handshaker`] and one [`Shard`] per core. Shards own sessions and move packets; the handshaker
//! owns the secret handshake key and all slow work. They exchange the values of this module over whatever the caller
//! connects them with: a channel between threads, or a function call in a simulation.
//!
//! ```text
//! datagram ─▶ Shard ─ Forward / Deliver ─▶ caller
//!               │ Request                        ▲ poll_transmit
//!               ▼                                │
//!           Handshaker ─ Output ─▶ Shard::apply ─┘
//! ```

mod budget;
mod circuits;
mod entry;
mod filter;
mod gate;
mod half_open;
mod handshaker;
mod holders;
mod peers;
mod shard;
mod shares;

use std::net::SocketAddr;

use crate::handshake::{Established, RekeyRequest, Responder, Role, SessionKeys};
use crate::index::Place;
use crate::keys::{RelayId, RelayKey};
use crate::message::Announced;
use crate::suite::Suites;

pub use crate::mirror::{Mirror, Mirrored};
pub use entry::{Admit, EntryId, OpenAdmission};
pub use filter::Replays;
pub use gate::{Gate, Load};
pub use handshaker::{Handshaker, Outputs};
pub use peers::{Peer, Peers};
pub use shard::{Down, Fate, INNER_POOL, Shard, ShardCounts, Shared};

/// What a relay knows about itself and its peers.
#[derive(Clone, Debug)]
pub struct RelayConfig {
    /// The relay's own identity.
    pub own: Responder,
    /// The relays that it may communicate with: egresses for an ingress, ingresses for an egress.
    pub peers: Peers,
    /// The suites that this host is good at.
    pub suites: Suites,
    /// Whether an egress also accepts clients without an ingress, which shows it their addresses.
    pub one_hop: bool,
    /// Most sessions of clients per shard: at most 131,072, and at an egress 48,960 (docs/limits.md).
    pub capacity: u32,
    /// The evidence that shows clients what the relay runs.
    pub evidence: Announced,
    /// The files that the relay mirrors.
    pub mirror: Mirror,
}

impl RelayConfig {
    /// Returns whether this relay is an ingress.
    pub fn is_ingress(&self) -> bool {
        self.own.role == Role::Ingress
    }
}

/// The route of a session's datagrams.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Route {
    /// Over UDP.
    Udp(SocketAddr),
    /// Inside a session with an ingress, under a circuit's tag. Only an egress has such routes.
    Circuit {
        /// The shard's entry of the session with the ingress.
        hop: EntryId,
        /// The circuit's tag.
        tag: u32,
    },
}

impl Route {
    /// Returns the route as bytes, to which a cookie is bound.
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

/// A request of a shard to the handshaker.
#[derive(Debug)]
pub enum Request {
    /// A handshake packet has arrived; its type and index are unmasked.
    Arrival {
        /// The shard.
        shard: u8,
        /// The route back to the sender.
        route: Route,
        /// The packet.
        packet: Vec<u8>,
        /// Whether the sender of a first packet has proven its address with a cookie.
        proven: bool,
    },
    /// The shard needs a session with an egress.
    Connect {
        /// The shard.
        shard: u8,
        /// The egress.
        egress: RelayId,
    },
    /// A peer requests fresh keys.
    Rekey {
        /// The shard.
        shard: u8,
        /// The shard's entry of the session.
        entry: EntryId,
        /// The peer's request.
        request: RekeyRequest,
    },
}

/// An output of the handshaker for a shard.
#[derive(Debug)]
pub enum Output {
    /// The shard must send this masked handshake packet along this route.
    Send {
        /// The route.
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
    /// A session has fresh keys.
    Rekeyed(Box<Rekeyed>),
}

/// A session that a handshake began.
#[derive(Debug)]
pub struct Install {
    pub(crate) place: Place,
    pub(crate) established: Established,
    pub(crate) route: Route,
    /// The relay at the other end and the key by which it was known; `None` for a client.
    pub(crate) relay: Option<(RelayId, RelayKey)>,
}

/// Fresh keys of a session, and the answer to its peer.
#[derive(Debug)]
pub struct Rekeyed {
    pub(crate) entry: EntryId,
    pub(crate) answer: Vec<u8>,
    pub(crate) keys: SessionKeys,
}
