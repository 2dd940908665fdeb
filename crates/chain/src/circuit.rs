//! The only way to open a circuit.
//!
//! Owns [`open`], which takes by value what only verifiers make. `proto` opens sessions from plain keys and is called
//! from here alone, so code that opens an unchecked tunnel does not compile.

use std::net::SocketAddr;
use std::time::Duration;

use openrelay_proto::client::{Client, ClientConfig};
use openrelay_proto::handshake::Role;
use openrelay_proto::message::{Announced, EvidenceDigest};
use openrelay_proto::random::Random;
use openrelay_proto::time::Time;

use crate::attestation::AttestedRelay;
use openrelay_node::clock::unix_minutes;
use openrelay_node::config::{AdmissionMode, AttestationMode};
use openrelay_node::directory::{RegisteredRelay, VerifiedDirectory};

/// A relay that a circuit may use.
#[derive(Debug)]
pub enum Hop {
    /// A relay whose evidence was accepted.
    Attested(AttestedRelay),
    /// One of the user's own relays, which proves nothing.
    Own(RegisteredRelay, OwnRelays),
}

/// The hops of a circuit.
#[derive(Debug)]
pub enum Hops {
    /// Ingress and egress.
    Two(Hop, Hop),
    /// An egress alone. It also sees the client's address, which the status reports.
    One(Hop),
}

/// The user's statement that all relays are their own and need no evidence. Made only if the configuration makes that
/// statement and the directory is signed by one person, not proven by a chain.
#[derive(Clone, Copy, Debug)]
pub struct OwnRelays(());

impl OwnRelays {
    /// Returns the statement if the configuration has `attestation = "none"` and one person runs all relays of the
    /// directory.
    pub fn from_config(mode: AttestationMode, directory: &VerifiedDirectory) -> Option<Self> {
        let own = directory.reading().is_none() && directory.directory().body().single_operator;
        (mode == AttestationMode::None && own).then_some(Self(()))
    }
}

/// The user's consent to relays that admit everybody. Made only if the configuration gives it.
#[derive(Debug)]
pub struct OpenConsent(());

impl OpenConsent {
    /// Returns the consent if the configuration has `admission = "open"`.
    pub fn from_config(mode: AdmissionMode) -> Option<Self> {
        match mode {
            AdmissionMode::Open => Some(Self(())),
        }
    }
}

/// Why a circuit could not be started.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// This host shares no address family with the first hop.
    #[error("the first hop has no address that this machine can reach")]
    Unreachable,
    /// A handshake key in the directory is not a valid public key.
    #[error("a relay's handshake key in the directory is a low-order point")]
    BadKey,
}

impl Hop {
    fn into_parts(self) -> (RegisteredRelay, Vec<EvidenceDigest>) {
        match self {
            Self::Attested(relay) => relay.into_parts(),
            Self::Own(relay, OwnRelays(())) => (relay, vec![Announced::open().digest]),
        }
    }
}

/// Starts to open a circuit. `pick` chooses the first hop's address among its endpoints.
///
/// # Errors
/// [`OpenError`] when the first hop has no usable address, or a key is invalid.
pub fn open(
    hops: Hops,
    OpenConsent(()): OpenConsent,
    keepalive: Option<Duration>,
    pick: impl Fn(&[SocketAddr]) -> Option<SocketAddr>,
    now: Time,
    random: &mut dyn Random,
) -> Result<Client, OpenError> {
    let (ingress, egress) = match hops {
        Hops::Two(ingress, egress) => (Some(ingress.into_parts()), egress.into_parts()),
        Hops::One(egress) => (None, egress.into_parts()),
    };
    begin(ingress, egress, keepalive, pick, now, random)
}

/// Starts to ask a relay for its evidence. An egress is asked through an ingress whose evidence digest the caller
/// knows. Opens no circuit and sends nothing that belongs to a user.
///
/// # Errors
/// [`OpenError`] when the first hop has no usable address, or a key is invalid.
pub fn ask_for_evidence(
    relay: RegisteredRelay,
    through: Option<(RegisteredRelay, EvidenceDigest)>,
    pick: impl Fn(&[SocketAddr]) -> Option<SocketAddr>,
    now: Time,
    random: &mut dyn Random,
) -> Result<Client, OpenError> {
    begin(through.map(|(ingress, evidence)| (ingress, vec![evidence])), (relay, Vec::new()), None, pick, now, random)
}

fn begin(
    ingress: Option<(RegisteredRelay, Vec<EvidenceDigest>)>,
    (egress, egress_evidence): (RegisteredRelay, Vec<EvidenceDigest>),
    keepalive: Option<Duration>,
    pick: impl Fn(&[SocketAddr]) -> Option<SocketAddr>,
    now: Time,
    random: &mut dyn Random,
) -> Result<Client, OpenError> {
    let (egress, endpoints) = egress.into_parts();
    // An ingress that is asked for its own evidence is the only hop: it is told of no further relay.
    let (ingress, ingress_evidence, egress_address) = match ingress {
        Some((ingress, evidence)) => {
            let (responder, endpoints) = ingress.into_parts();
            (Some((responder, pick(&endpoints).ok_or(OpenError::Unreachable)?)), evidence, None)
        }
        None => {
            let address = pick(&endpoints).ok_or(OpenError::Unreachable)?;
            match egress.role {
                Role::Ingress => (Some((egress.clone(), address)), Vec::new(), None),
                Role::Egress => (None, Vec::new(), Some(address)),
            }
        }
    };
    let config = ClientConfig {
        ingress,
        egress,
        egress_address,
        suites: openrelay_node::suites(),
        ingress_evidence,
        egress_evidence,
        keepalive,
    };
    Client::new(config, now, unix_minutes(), random).ok_or(OpenError::BadKey)
}
