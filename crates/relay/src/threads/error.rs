//! Why a relay does not start.

use std::io;

use openrelay_node::config::ConfigError;
use openrelay_sys::nft::NftError;
use openrelay_sys::tun::TunError;

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
    /// There is no tunnel device.
    #[error("cannot create the tunnel device: {0}")]
    Device(#[from] TunError),
    /// A route of this host leads where clients will be.
    #[error(
        "this host's route to {route} overlaps {network}, which this relay gives to its clients; remove the route, \
         give the relay a network namespace of its own, or set a smaller number of `shards`"
    )]
    Route {
        /// The route.
        route: String,
        /// The network of the clients.
        network: String,
    },
    /// nftables refused the table, or is missing.
    #[error(transparent)]
    Firewall(#[from] NftError),
}

impl StartError {
    pub(crate) fn host(step: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let step = step.into();
        move |source| Self::Host { step, source }
    }

    /// Returns whether the process lacks a privilege.
    pub(crate) fn is_privilege(&self) -> bool {
        let (Self::Host { source, .. } | Self::Device(TunError::Refused(source))) = self else { return false };
        source.kind() == io::ErrorKind::PermissionDenied
    }

    /// Returns whether the `nft` program or the kernel's TUN driver is missing.
    pub(crate) fn is_missing_tool(&self) -> bool {
        matches!(self, Self::Firewall(NftError::Missing) | Self::Device(TunError::NoDriver(_)))
    }
}
