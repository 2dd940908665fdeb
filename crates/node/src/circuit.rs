//! The only way to a circuit.
//!
//! Owns [`open`], which takes what only verifiers make, by value. `proto` opens sessions from plain keys and is called from here alone:
//! an unchecked tunnel does not compile.

use std::net::SocketAddr;
use std::time::Duration;

use openrelay_proto::client::{Client, ClientConfig};
use openrelay_proto::handshake::Role;
use openrelay_proto::message::{Announced, EvidenceDigest};
use openrelay_proto::random::Random;
use openrelay_proto::time::Time;

use crate::attestation::AttestedRelay;
use crate::clock::unix_minutes;
use crate::config::{AdmissionMode, AttestationMode};
use crate::directory::{RegisteredRelay, VerifiedDirectory};

/// A relay that a circuit may go through.
#[derive(Debug)]
pub enum Hop {
    /// One that a verdict stands behind.
    Attested(AttestedRelay),
    /// One of the user's own, which proves nothing.
    Own(RegisteredRelay, OwnRelays),
}

/// The hops of a circuit.
#[derive(Debug)]
pub enum Hops {
    /// Ingress and egress.
    Two(Hop, Hop),
    /// An egress alone: it sees the client's address as well. Said so in status.
    One(Hop),
}

/// The user's word that all relays are his own and need prove nothing. Made only where the configuration says so, and the directory is one that one person has signed.
#[derive(Clone, Copy, Debug)]
pub struct OwnRelays(());

impl OwnRelays {
    /// The word, if the configuration says `attestation = "none"` and one person runs all relays of the directory.
    pub fn from_config(mode: AttestationMode, directory: &VerifiedDirectory) -> Option<Self> {
        let own = directory.reading().is_none() && directory.directory().body().single_operator;
        (mode == AttestationMode::None && own).then_some(Self(()))
    }
}

/// The user's consent to relays that admit everybody. Made only where the configuration names it.
#[derive(Debug)]
pub struct OpenConsent(());

impl OpenConsent {
    /// Consent, if the configuration says `admission = "open"`.
    pub fn from_config(mode: AdmissionMode) -> Option<Self> {
        match mode {
            AdmissionMode::Open => Some(Self(())),
        }
    }
}

/// Why no circuit was begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum OpenError {
    /// This host has no address family in common with the first hop.
    #[error("the first hop has no address that this machine can reach")]
    Unreachable,
    /// A key in the directory is not one.
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

/// Begins to open a circuit. `pick` chooses the first hop's address among its endpoints.
///
/// # Errors
/// [`OpenError`] when there is nothing to begin with.
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

/// Begins to ask a relay for its evidence, an egress through an ingress whose evidence is known to the asker: no circuit comes of it, and nothing of a user's goes along.
///
/// # Errors
/// [`OpenError`] when there is nothing to begin with.
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
    // What is asked of an ingress alone is asked of it as the only hop, for it names nobody further.
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
        suites: crate::suites(),
        ingress_evidence,
        egress_evidence,
        keepalive,
    };
    Client::new(config, now, unix_minutes(), random).ok_or(OpenError::BadKey)
}
