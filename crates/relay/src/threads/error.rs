//! Why a relay does not start.

use std::io;

use openrelay_node::config::ConfigError;

/// Why a relay does not start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// The configuration, or a file that it names, is unusable.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// This host refused a step.
    #[error("cannot {step}: {source}")]
    Host {
        /// What was attempted.
        step: String,
        /// The cause.
        source: io::Error,
    },
    /// nftables refused the table, or is missing.
    #[error(transparent)]
    Firewall(#[from] openrelay_sys::nft::NftError),
}

impl StartError {
    pub(super) fn host(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |source| Self::Host { step, source }
    }

    /// Returns whether the process lacks a privilege.
    pub(crate) fn is_privilege(&self) -> bool {
        matches!(self, Self::Host { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Returns whether the `nft` program is missing.
    pub(crate) fn is_missing_tool(&self) -> bool {
        matches!(self, Self::Firewall(openrelay_sys::nft::NftError::Missing))
    }
}
