//! Failures as people and scripts see them: a message and an exit code.
//!
//! Owns the exit codes:
//!
//! - 0: success
//! - 1: failed
//! - 2: wrong usage
//! - 3: not connected, or no daemon; no endpoint or mirror reached; not registered, not serving or not due
//! - 5: verification refused
//! - 7: exceeded a limit set by this program: time, or a build's memory, disk space or processes
//! - 77: missing privileges or tools

use std::process::ExitCode;

use openrelay_chain::journal::SendError;
use openrelay_chain::{ChainError, EndpointError};
use openrelay_client::ConnectError;
use openrelay_client::host::HostError;
use openrelay_ledger::selection::SelectionError;
use openrelay_node::config::ConfigError;

/// The exit code for exceeding a limit set by this program: time, or what a build may use. The request itself is not
/// at fault.
pub(crate) const LIMIT_EXCEEDED: u8 = 7;

/// A failure with its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    text: String,
    of_source: bool,
}

impl Failure {
    pub(crate) fn new(code: u8, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), of_source: false }
    }

    /// Returns a failure that has no exit code of its own.
    pub(crate) fn plain(text: impl std::fmt::Display) -> Self {
        Self::new(1, text.to_string())
    }

    /// Returns a failure that the source tree under build causes, on any machine alike.
    pub(crate) fn of_source(text: impl std::fmt::Display) -> Self {
        Self { of_source: true, ..Self::plain(text) }
    }

    /// Returns whether the source tree caused the failure, and not this machine.
    pub(crate) fn is_of_source(&self) -> bool {
        self.of_source
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    pub(crate) fn report(&self) -> ExitCode {
        if !self.text.is_empty() {
            crate::output::talk(&format!("openrelay: {}", self.text));
        }
        ExitCode::from(self.code)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl From<ChainError> for Failure {
    /// Refuses a directory that is unproven or too old. If no endpoint or mirror was reached, nothing was refused.
    fn from(error: ChainError) -> Self {
        if matches!(error, ChainError::Unreached { .. } | ChainError::Unserved(_)) {
            return Self::new(3, format!("no directory: {error}; check the connection"));
        }
        Self::new(5, format!("directory refused: {error}"))
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        let code = if matches!(error, SendError::Waiting(_)) { LIMIT_EXCEEDED } else { 1 };
        Self::new(code, error.to_string())
    }
}

impl From<EndpointError> for Failure {
    fn from(error: EndpointError) -> Self {
        Self::plain(error)
    }
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        let code = match &error {
            ConnectError::Config(ConfigError::Directory { .. }) => 5,
            ConnectError::TimedOut(_) => LIMIT_EXCEEDED,
            ConnectError::Host(host) => return host_failure(host),
            ConnectError::Chain(error) => return error.clone().into(),
            ConnectError::Untrusted(_)
            | ConnectError::OtherEvidence(..)
            | ConnectError::Selection(SelectionError::Missing { .. }) => 5,
            ConnectError::Failed(_) | ConnectError::Unserved(_) => 3,
            ConnectError::Config(_) | ConnectError::Selection(_) | ConnectError::Open(_) => 1,
        };
        Self::new(code, error.to_string())
    }
}

impl From<HostError> for Failure {
    fn from(error: HostError) -> Self {
        host_failure(&error)
    }
}

fn host_failure(error: &HostError) -> Failure {
    if error.is_privilege() {
        return Failure::new(77, format!("{error}; this needs CAP_NET_ADMIN, run: sudo openrelay up"));
    }
    Failure::new(if error.is_missing_tool() { 77 } else { 1 }, error.to_string())
}
