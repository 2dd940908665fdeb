//! The changes that the client makes on its host, and their reversal.
//!
//! Owns the order of changes, and the notes about them in the runtime and state folders. From these notes `down`
//! restores the host after a crash.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use openrelay_proto::ip::{CLIENT_V4, CLIENT_V6};
use openrelay_proto::wire::{MAX_DATAGRAM, MAX_MTU};
use openrelay_sys::net::{MAIN_TABLE, Netlink, Rule};
use openrelay_sys::nft::NftError;
use openrelay_sys::tun::TunError;
use openrelay_sys::udp::TRAIN_BYTES;

use crate::{lockdown, resolver};

/// The tunnel's routing table. [`RULES`] has the priorities of the rules that lead to it.
const TABLE: u32 = 0x6f72;
/// Full-size datagrams in a train.
#[expect(clippy::cast_possible_truncation, reason = "43")]
const FULL_TRAIN: u32 = (TRAIN_BYTES / MAX_DATAGRAM) as u32;
const RULES: [u32; 4] = [5_200, 5_201, 5_202, 5_203];
/// The note in the runtime folder. It exists from before the first change until after the last one is undone.
const NOTE: &str = "host.note";

/// The folders in which changes to the host are recorded.
#[derive(Clone, Debug)]
pub struct Folders {
    /// For changes that a reboot undoes: rules and firewall. A reboot clears this folder too.
    pub runtime: PathBuf,
    /// For changes that survive a reboot: /etc/resolv.conf.
    pub state: PathBuf,
}

impl Folders {
    /// Returns whether rules and firewall are changed, by a connected client or by one that crashed.
    pub fn is_changed(&self) -> bool {
        self.runtime.join(NOTE).exists()
    }
}

/// Why a change to the host failed.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A system call failed.
    #[error("cannot {step}: {source}")]
    System {
        /// What was attempted.
        step: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// There is no tunnel device.
    #[error("cannot create the tunnel device: {0}")]
    Device(#[from] TunError),
    /// nftables refused a change, or is missing.
    #[error(transparent)]
    Firewall(#[from] NftError),
    /// /etc/resolv.conf could not be replaced or restored.
    #[error("cannot write /etc/resolv.conf: {0}; make it writable, or set dns = [] in the client's configuration")]
    Resolver(#[source] io::Error),
    /// Another client is up, or has crashed.
    #[error("a tunnel is already up, or was left behind by a crash; run: openrelay down")]
    AlreadyUp,
}

impl HostError {
    pub(crate) fn at(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { step, source }
    }

    /// Returns whether the process lacks a privilege.
    pub fn is_privilege(&self) -> bool {
        let (Self::System { source, .. } | Self::Device(TunError::Refused(source))) = self else { return false };
        source.kind() == io::ErrorKind::PermissionDenied
    }

    /// Returns whether the `nft` program or the kernel's TUN driver is missing.
    pub fn is_missing_tool(&self) -> bool {
        matches!(self, Self::Firewall(NftError::Missing) | Self::Device(TunError::NoDriver(_)))
    }
}

/// The changes of one connection. Dropping it early, as when a later step fails, restores everything.
#[derive(Debug)]
pub struct HostState {
    folders: Folders,
    device: String,
    remote: SocketAddr,
    given_back: bool,
}

impl Drop for HostState {
    fn drop(&mut self) {
        if !self.given_back {
            // Anything that could not be restored keeps its note, and `down` tries again.
            let _ = give_back(&self.folders);
        }
    }
}

impl HostState {
    /// Records in `folders` that changes are about to be made.
    ///
    /// # Errors
    /// [`HostError::AlreadyUp`] if there is such a note already.
    pub(crate) fn new(folders: &Folders, device: &str, remote: SocketAddr) -> Result<Self, HostError> {
        for folder in [&folders.runtime, &folders.state] {
            fs::create_dir_all(folder).map_err(HostError::at("create the folder for notes about changes"))?;
        }
        if folders.is_changed() {
            return Err(HostError::AlreadyUp);
        }
        // Restores what a power failure left replaced. Otherwise it would be saved as the host's own file.
        resolver::restore(&folders.state).map_err(HostError::Resolver)?;
        let note = folders.runtime.join(NOTE);
        fs::write(note, remote.ip().to_string()).map_err(HostError::at("write the note about changes"))?;
        Ok(Self { folders: folders.clone(), device: device.to_owned(), remote, given_back: false })
    }

    /// Installs the firewall table, which blocks all traffic outside the tunnel.
    pub(crate) fn lock_down(&mut self) -> Result<(), HostError> {
        Ok(lockdown::apply(&self.device, self.remote)?)
    }

    /// Gives the device its addresses and brings it up.
    pub(crate) fn configure_device(&mut self) -> Result<(), HostError> {
        let mut netlink = Netlink::open().map_err(HostError::at("open a netlink socket"))?;
        let link = netlink.link(&self.device).map_err(HostError::at("find the tunnel device"))?;
        netlink.add_address(link, IpAddr::V4(CLIENT_V4), 32).map_err(HostError::at("assign the tunnel's address"))?;
        netlink.set_mtu(link, MAX_MTU.into()).map_err(HostError::at("set the tunnel's MTU"))?;
        // Limits what the kernel hands over at once to one full train. Without it, a second, short train follows each
        // one.
        let _ = netlink.set_segments(link, FULL_TRAIN);
        netlink.set_up(link).map_err(HostError::at("bring the tunnel up"))?;
        // A host without IPv6 has no IPv6 traffic that could leak.
        let v6 = netlink.add_address(link, IpAddr::V6(CLIENT_V6), 128).is_ok();
        for family in [Some(false), v6.then_some(true)].into_iter().flatten() {
            netlink.add_default_route(link, family, TABLE).map_err(HostError::at("route into the tunnel"))?;
        }
        Ok(())
    }

    /// Routes everything into the tunnel except the tunnel's own datagrams and destinations on the same link.
    pub(crate) fn route_everything(&mut self) -> Result<(), HostError> {
        let mut netlink = Netlink::open().map_err(HostError::at("open a netlink socket"))?;
        for rule in rules(self.remote.ip()) {
            let result = netlink.add_rule(rule);
            if !rule.v6 || self.remote.is_ipv6() {
                result.map_err(HostError::at("route into the tunnel"))?;
            }
        }
        Ok(())
    }

    /// Makes the host use these name servers, through the tunnel.
    pub(crate) fn use_resolvers(&mut self, servers: &[IpAddr]) -> Result<(), HostError> {
        if servers.is_empty() {
            return Ok(());
        }
        resolver::replace(&self.folders.state, servers).map_err(HostError::Resolver)
    }

    /// Restores everything.
    pub(crate) fn give_back(mut self) -> Result<(), HostError> {
        self.given_back = true;
        give_back(&self.folders).map(drop)
    }
}

/// Restores what the notes in `folders` record. Returns whether there were any. The firewall is removed last, so that
/// nothing leaks in between. It is removed even if DNS or a routing rule could not be restored.
///
/// # Errors
/// [`HostError`]. Whatever was not restored stays noted, and the call can be repeated.
pub fn give_back(folders: &Folders) -> Result<bool, HostError> {
    let resolver = resolver::restore(&folders.state).map_err(HostError::Resolver);
    let note = folders.runtime.join(NOTE);
    let text = match fs::read_to_string(&note) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return resolver,
        Err(error) => return Err(HostError::at("read the note about changes")(error)),
    };
    let mut netlink = Netlink::open().map_err(HostError::at("open a netlink socket"))?;
    if let Ok(remote) = text.trim().parse::<IpAddr>() {
        for rule in rules(remote) {
            // A host without this address family has no such rule.
            let _ = netlink.remove_rule(rule);
        }
    }
    lockdown::remove()?;
    fs::remove_file(note).map_err(HostError::at("remove the note about changes"))?;
    resolver.map(|_| true)
}

/// Returns the routing rules for this first hop, in order of priority:
///
/// 1. Datagrams to the first hop use the main table.
/// 2. Without a route in it they fail. In the tunnel, the circuit would carry its own datagrams.
/// 3. Destinations on the same link use the main table. The firewall drops such packets with an error to the sender.
/// 4. Everything else goes into the tunnel.
fn rules(remote: IpAddr) -> Vec<Rule> {
    let first_hop = Rule {
        v6: remote.is_ipv6(),
        priority: RULES[0],
        table: Some(MAIN_TABLE),
        to: Some(remote),
        suppress_prefix: None,
    };
    let mut rules = vec![first_hop, Rule { priority: RULES[1], table: None, ..first_hop }];
    for v6 in [false, true] {
        let all = Rule { v6, priority: RULES[3], table: Some(TABLE), to: None, suppress_prefix: None };
        rules.push(Rule { priority: RULES[2], table: Some(MAIN_TABLE), suppress_prefix: Some(0), ..all });
        rules.push(all);
    }
    rules
}
