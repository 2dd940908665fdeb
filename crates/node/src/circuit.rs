//! The only way to a circuit.
//!
//! Owns [`open`], which takes what only verifiers make, by value. `proto` opens sessions from plain keys and is called from here alone:
//! an unchecked tunnel does not compile. Attestation adds its verdicts to the arguments.

use std::net::SocketAddr;
use std::time::Duration;

use openrelay_proto::client::{Client, ClientConfig};
use openrelay_proto::message::Evidence;
use openrelay_proto::random::Random;
use openrelay_proto::time::Time;

use crate::clock::unix_minutes;
use crate::config::AdmissionMode;
use crate::directory::RegisteredRelay;

/// The hops of a circuit, each from a verified directory.
#[derive(Debug)]
pub enum Hops {
    /// Ingress and egress.
    Two(RegisteredRelay, RegisteredRelay),
    /// An egress alone: it sees the client's address as well. Said so in status.
    One(RegisteredRelay),
}

/// The user's consent to relays that prove nothing and admit everybody. Made only where the configuration names it.
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
    let (ingress, egress, egress_address) = match hops {
        Hops::Two(ingress, egress) => {
            let (responder, endpoints) = ingress.into_parts();
            let address = pick(&endpoints).ok_or(OpenError::Unreachable)?;
            (Some((responder, address)), egress.into_parts().0, None)
        }
        Hops::One(egress) => {
            let (responder, endpoints) = egress.into_parts();
            (None, responder, Some(pick(&endpoints).ok_or(OpenError::Unreachable)?))
        }
    };
    // What the consent is about.
    let evidence = Some(Evidence::Open.digest());
    let config = ClientConfig {
        ingress,
        egress,
        egress_address,
        suites: crate::suites(),
        ingress_evidence: evidence,
        egress_evidence: evidence,
        keepalive,
    };
    Client::new(config, now, unix_minutes(), random).ok_or(OpenError::BadKey)
}
