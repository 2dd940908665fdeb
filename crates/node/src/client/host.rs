//! What the client changes on its host, and gives back.
//!
//! Owns the order of changes and the note of them in the state folder, from which `down` works after a crash.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use openrelay_proto::ip::{CLIENT_V4, CLIENT_V6};
use openrelay_proto::wire::{MAX_DATAGRAM, MAX_MTU};
use openrelay_sys::net::{MAIN_TABLE, Netlink, Rule};
use openrelay_sys::nft::NftError;
use openrelay_sys::udp::TRAIN_BYTES;

use super::{lockdown, resolver};

/// The routing table of the tunnel, and the places of the four rules that lead to it.
const TABLE: u32 = 0x6f72;
/// Datagrams of full size in a train.
#[expect(clippy::cast_possible_truncation, reason = "43")]
const FULL_TRAIN: u32 = (TRAIN_BYTES / MAX_DATAGRAM) as u32;
const RULES: [u32; 4] = [5_200, 5_201, 5_202, 5_203];
/// The note in the runtime folder: it is there from before the first change until after the last one is undone.
const NOTE: &str = "host.note";

/// Where is written down what was changed.
#[derive(Clone, Debug)]
pub struct Folders {
    /// For what a reboot undoes: rules and firewall. Gone after one, like them.
    pub runtime: PathBuf,
    /// For what outlives a reboot: /etc/resolv.conf.
    pub state: PathBuf,
}

impl Folders {
    /// Whether rules and firewall are changed, be it by a client that is up or by one that crashed.
    pub fn is_changed(&self) -> bool {
        self.runtime.join(NOTE).exists()
    }
}

/// What the host refused.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A system call.
    #[error("cannot {step}: {source}")]
    System {
        /// What was tried.
        step: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The firewall.
    #[error(transparent)]
    Firewall(#[from] NftError),
    /// The file that says who is asked for names.
    #[error("cannot write /etc/resolv.conf: {0}; make it writable, or set dns = [] in the client's configuration")]
    Resolver(#[source] io::Error),
    /// Another client is up.
    #[error("a tunnel is up already, or was left behind by a crash; run: openrelay down")]
    AlreadyUp,
}

impl HostError {
    pub(super) fn at(step: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { step, source }
    }

    /// Whether the process lacks a privilege.
    pub fn is_privilege(&self) -> bool {
        matches!(self, Self::System { source, .. } if source.kind() == io::ErrorKind::PermissionDenied)
    }

    /// Whether a tool is missing.
    pub fn is_missing_tool(&self) -> bool {
        matches!(self, Self::Firewall(NftError::Missing))
    }
}

/// The changes of one connection. Dropped before its time, as when a later step fails, it gives everything back.
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
            // What could not be given back keeps its note, and `down` tries again.
            let _ = give_back(&self.folders);
        }
    }
}

impl HostState {
    /// Notes in `folders` that changes are about to be made.
    ///
    /// # Errors
    /// [`HostError::AlreadyUp`] when there is such a note already.
    pub(super) fn new(folders: &Folders, device: &str, remote: SocketAddr) -> Result<Self, HostError> {
        for folder in [&folders.runtime, &folders.state] {
            fs::create_dir_all(folder).map_err(HostError::at("make the folder for notes"))?;
        }
        if folders.is_changed() {
            return Err(HostError::AlreadyUp);
        }
        // What a power failure has left: it would be taken for the host's own.
        resolver::restore(&folders.state).map_err(HostError::Resolver)?;
        let note = folders.runtime.join(NOTE);
        fs::write(note, remote.ip().to_string()).map_err(HostError::at("write a note of what will be changed"))?;
        Ok(Self { folders: folders.clone(), device: device.to_owned(), remote, given_back: false })
    }

    /// Closes the firewall around the tunnel.
    pub(super) fn lock_down(&mut self) -> Result<(), HostError> {
        Ok(lockdown::apply(&self.device, self.remote)?)
    }

    /// Gives the device its addresses and brings it up.
    pub(super) fn configure_device(&mut self) -> Result<(), HostError> {
        let mut netlink = Netlink::open().map_err(HostError::at("talk to the kernel's routing"))?;
        let link = netlink.link(&self.device).map_err(HostError::at("find the tunnel device"))?;
        netlink.add_address(link, IpAddr::V4(CLIENT_V4), 32).map_err(HostError::at("give the tunnel its address"))?;
        netlink.set_mtu(link, MAX_MTU.into()).map_err(HostError::at("set the tunnel's MTU"))?;
        // What the kernel hands over at once then fills one train; without it a second, short one follows each.
        let _ = netlink.set_segments(link, FULL_TRAIN);
        netlink.set_up(link).map_err(HostError::at("bring the tunnel up"))?;
        // A host without IPv6 has nothing to leak there.
        let v6 = netlink.add_address(link, IpAddr::V6(CLIENT_V6), 128).is_ok();
        for family in [Some(false), v6.then_some(true)].into_iter().flatten() {
            netlink.add_default_route(link, family, TABLE).map_err(HostError::at("route into the tunnel"))?;
        }
        Ok(())
    }

    /// Sends everything into the tunnel but its own datagrams and what is on the same link.
    pub(super) fn route_everything(&mut self) -> Result<(), HostError> {
        let mut netlink = Netlink::open().map_err(HostError::at("talk to the kernel's routing"))?;
        for rule in rules(self.remote.ip()) {
            let result = netlink.add_rule(rule);
            if !rule.v6 || self.remote.is_ipv6() {
                result.map_err(HostError::at("route into the tunnel"))?;
            }
        }
        Ok(())
    }

    /// Makes the host ask these name servers, through the tunnel.
    pub(super) fn use_resolvers(&mut self, servers: &[IpAddr]) -> Result<(), HostError> {
        if servers.is_empty() {
            return Ok(());
        }
        resolver::replace(&self.folders.state, servers).map_err(HostError::Resolver)
    }

    /// Gives everything back.
    pub(super) fn give_back(mut self) -> Result<(), HostError> {
        self.given_back = true;
        give_back(&self.folders).map(drop)
    }
}

/// Gives back what the notes in `folders` say; whether there were any. The firewall goes last, so that nothing leaks in between; but it goes, whatever became
/// of the rest.
///
/// # Errors
/// [`HostError`]; what was not given back stays written down, and the call can be repeated.
pub fn give_back(folders: &Folders) -> Result<bool, HostError> {
    let resolver = resolver::restore(&folders.state).map_err(HostError::Resolver);
    let note = folders.runtime.join(NOTE);
    let text = match fs::read_to_string(&note) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return resolver,
        Err(error) => return Err(HostError::at("read the note of what was changed")(error)),
    };
    let mut netlink = Netlink::open().map_err(HostError::at("talk to the kernel's routing"))?;
    if let Ok(remote) = text.trim().parse::<IpAddr>() {
        for rule in rules(remote) {
            // A host without this family has no such rule.
            let _ = netlink.remove_rule(rule);
        }
    }
    lockdown::remove()?;
    fs::remove_file(note).map_err(HostError::at("remove the note of what was changed"))?;
    resolver.map(|_| true)
}

/// To the first hop as before, and never through the tunnel, not even while the host has no other route: the circuit would carry its own datagrams.
/// Then what is on the same link (the firewall drops it, with an error to the sender); then all into the tunnel.
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
