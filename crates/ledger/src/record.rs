//! Records: what the directory states about each relay.
//!
//! Owns the record's fields, the check that they are well-formed, and the rules that keep two relays out of one
//! circuit. It never checks where a record comes from; [`crate::directory`] and [`crate::chain`] do.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// The role of a relay.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// First hop.
    Ingress,
    /// Last hop.
    Egress,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        })
    }
}

/// One relay of the directory.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Relay ID: a stable number in the registry.
    pub relay_id: u64,
    /// Role.
    pub role: Role,
    /// Handshake key, X25519, as 64 hexadecimal digits.
    pub handshake_key: String,
    /// Number of times that the handshake key was replaced.
    pub key_epoch: u32,
    /// Addresses on which the relay listens, at most one of each address family.
    pub endpoints: Vec<SocketAddr>,
    /// Operator of the relay.
    pub operator: String,
    /// Family: a name that operators declare for relays that belong together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub family: Option<String>,
    /// Stake behind the relay, in whole tokens.
    #[serde(default)]
    pub stake: u64,
    /// Advertised bandwidth, in Mbit/s.
    #[serde(default)]
    pub bandwidth_mbit: u32,
}

impl Record {
    /// Returns the bytes of the handshake key; `None` if the text is not a key.
    pub fn key(&self) -> Option<[u8; 32]> {
        crate::hex::decode(&self.handshake_key)
    }

    /// Returns the endpoint of this address family.
    pub fn endpoint(&self, v6: bool) -> Option<SocketAddr> {
        self.endpoints.iter().copied().find(|endpoint| endpoint.is_ipv6() == v6)
    }

    /// Returns what is wrong with the record, if anything.
    pub(crate) fn fault(&self) -> Option<&'static str> {
        if self.key().is_none() {
            return Some("handshake_key is not 64 hexadecimal digits");
        }
        if self.endpoints.is_empty() || self.endpoints.len() > 2 {
            return Some("endpoints must be one or two addresses");
        }
        if self.endpoints.len() == 2 && self.endpoints.iter().filter(|e| e.is_ipv6()).count() != 1 {
            return Some("two endpoints must be of different address families");
        }
        if self.endpoints.iter().any(|e| e.port() == 0 || e.ip().is_unspecified() || e.ip().is_multicast()) {
            return Some("an endpoint is not a reachable address");
        }
        if self.operator.is_empty() || self.operator.len() > 64 {
            return Some("operator must have 1 to 64 bytes");
        }
        None
    }

    /// Returns whether this relay and `other` must not be hops of one circuit.
    pub fn conflicts_with(&self, other: &Self) -> bool {
        let same_family = self.family.is_some() && self.family == other.family;
        let same_network = self.endpoints.iter().any(|a| other.endpoints.iter().any(|b| same_network(a.ip(), b.ip())));
        self.relay_id == other.relay_id || self.operator == other.operator || same_family || same_network
    }
}

/// Returns whether two addresses are in one /16 (IPv4) or one /32 (IPv6).
fn same_network(a: IpAddr, b: IpAddr) -> bool {
    match (a, b) {
        (IpAddr::V4(a), IpAddr::V4(b)) => a.to_bits() >> 16 == b.to_bits() >> 16,
        (IpAddr::V6(a), IpAddr::V6(b)) => a.to_bits() >> 96 == b.to_bits() >> 96,
        _ => false,
    }
}
