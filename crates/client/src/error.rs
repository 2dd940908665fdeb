//! Why the client is not connected, in words for its user.

use std::time::Duration;

use openrelay_chain::ChainError;
use openrelay_chain::circuit::OpenError;
use openrelay_ledger::selection::SelectionError;
use openrelay_node::config::ConfigError;
use openrelay_proto::client::Failure;
use openrelay_proto::handshake::Role as ProtoRole;

use crate::host::HostError;

/// Why the client is not connected.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The configuration, or a file that it names, is unusable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The chain does not prove a directory.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// No hops can be selected.
    #[error("no circuit: {0}")]
    Selection(#[from] SelectionError),
    /// A circuit cannot be started.
    #[error("no circuit: {0}")]
    Open(#[from] OpenError),
    /// This host refused a change.
    #[error(transparent)]
    Host(#[from] HostError),
    /// No relay was accepted.
    #[error("no circuit: {0}")]
    Untrusted(String),
    /// No mirror delivered evidence, so no relay was judged.
    #[error("no circuit: {0}")]
    Unserved(String),
    /// A relay shows evidence that was not judged beforehand.
    #[error("no circuit: {}", failure_text(Failure::OtherEvidence(*.0)))]
    OtherEvidence(ProtoRole),
    /// The circuit failed.
    #[error("no circuit: {}", failure_text(*.0))]
    Failed(Failure),
    /// The circuit did not open in time.
    #[error("no circuit within {} s", .0.as_secs())]
    TimedOut(Duration),
}

/// Returns what a failure of the circuit means for the user.
pub(crate) fn failure_text(failure: Failure) -> &'static str {
    match failure {
        Failure::IngressSilent => "the ingress does not answer; check that it runs and that UDP to it is allowed",
        Failure::EgressSilent => "the egress does not answer the ingress; try another egress",
        Failure::Refused(_) => "the ingress refused the circuit; its directory may be older than yours",
        Failure::OtherEvidence(ProtoRole::Ingress) => "the ingress shows unverified evidence; try again soon",
        Failure::OtherEvidence(ProtoRole::Egress) => "the egress shows unverified evidence; try again soon",
        Failure::Full { role: ProtoRole::Ingress, .. } => "the ingress is full; try again in a minute",
        Failure::Full { role: ProtoRole::Egress, .. } => "the egress is full; try another egress",
        Failure::Protocol => "a relay violated the protocol; try another relay",
    }
}
