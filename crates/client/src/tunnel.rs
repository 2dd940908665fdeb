//! The tunnel on this host: device, firewall, routes and name servers.
//!
//! Owns them apart from any circuit. Never sends a packet.

use std::io;
use std::net::{IpAddr, SocketAddr};

use openrelay_sys::tun::{Tun, TunQueue};

use crate::host::{Folders, HostError, HostState};

/// A device whose firewall is up. Dropping it restores the host.
pub(crate) struct Tunnel {
    /// The name of the device.
    pub(crate) device: String,
    host: HostState,
}

/// The end of the device that the data thread reads and writes.
pub(crate) struct DeviceQueue {
    pub(crate) queue: TunQueue,
    /// Whether the kernel takes joined UDP packets.
    pub(crate) udp_segmentation: bool,
}

impl Tunnel {
    /// Creates the device, and blocks everything but datagrams to the first hop `remote` and packets into the device.
    ///
    /// # Errors
    /// [`HostError`]; everything is restored.
    pub(crate) fn open(folders: &Folders, device: &str, remote: SocketAddr) -> Result<(Self, DeviceQueue), HostError> {
        let tun = Tun::create(device, 1)?;
        let mut host = HostState::new(folders, &tun.name, remote)?;
        host.lock_down()?;
        host.configure_device()?;
        let queue = tun.queues.into_iter().next();
        let queue = queue.ok_or_else(|| HostError::at("create the tunnel device")(io::ErrorKind::Other.into()))?;
        let queue = DeviceQueue { queue, udp_segmentation: tun.udp_segmentation };
        Ok((Self { device: tun.name, host }, queue))
    }

    /// Leads the host's traffic, and its questions for names to `servers`, into the device.
    ///
    /// # Errors
    /// [`HostError`] with the change that failed.
    pub(crate) fn carry_everything(&mut self, servers: &[IpAddr]) -> Result<(), HostError> {
        self.host.route_everything()?;
        self.host.use_resolvers(servers)
    }

    /// Restores the host.
    ///
    /// # Errors
    /// [`HostError`] with the change that could not be restored. The others were restored.
    pub(crate) fn close(self) -> Result<(), HostError> {
        self.host.give_back()
    }
}
