//! The egress' host: what of it must be changed, and what stands in the way.
//!
//! Owns the kernel settings of an egress and the checks at its start. Writes no setting that has the right value
//! already: where /proc/sys is read-only, somebody else may have set it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use openrelay_proto::relay::INNER_POOL;
use openrelay_sys::net::{Netlink, Route};
use openrelay_sys::nft;

use super::super::error::StartError;

/// An IPv6 address to which every host with a default route has a route.
pub(super) const SOMEWHERE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 1));
/// Limit of tracked connections that is assumed where the kernel does not tell.
const CONNECTIONS: u32 = 65_536;

/// What must be changed to make the host forward packets.
pub(super) struct Forwarding {
    /// Whether the host does not forward IPv4, and IPv6.
    pub(super) was_off: [bool; 2],
    /// The settings with their present and new values, in the order of the changes.
    changes: Vec<(PathBuf, &'static str, &'static str)>,
}

impl Forwarding {
    /// Returns what makes the host a router that still accepts router advertisements. Unless `accept_ra` is 2, a router
    /// ignores them and drops the routes that it has from them. Changes nothing.
    /// Source: Linux Documentation/networking/ip-sysctl.rst.
    pub(super) fn plan() -> Self {
        let mut forwarding = Self { was_off: [false; 2], changes: Vec::new() };
        let v6 = Path::new("/proc/sys/net/ipv6/conf");
        let switches = [PathBuf::from("/proc/sys/net/ipv4/ip_forward"), v6.join("all/forwarding")];
        for (off, path) in forwarding.was_off.iter_mut().zip(&switches) {
            *off = is(path, "0");
        }
        if forwarding.was_off[1] {
            let interfaces = fs::read_dir(v6).into_iter().flatten().flatten();
            let accepting = interfaces.map(|entry| entry.path().join("accept_ra")).filter(|path| is(path, "1"));
            forwarding.changes.extend(accepting.map(|path| (path, "1", "2")));
        }
        // Writing an unchanged value would make the kernel drop routes too.
        let off = switches.into_iter().zip(forwarding.was_off).filter(|(_, off)| *off);
        forwarding.changes.extend(off.map(|(path, _)| (path, "0", "1")));
        forwarding
    }

    /// Returns the settings that change, with their present values.
    pub(super) fn earlier(&self) -> Vec<(String, String)> {
        self.changes.iter().map(|(path, now, _)| (path.display().to_string(), (*now).to_owned())).collect()
    }

    /// Makes the changes.
    pub(super) fn switch_on(&self) -> Result<(), StartError> {
        self.changes.iter().try_for_each(|(path, _, new)| set(path, new))
    }
}

/// Makes the kernel accept packets from the device whose source is an address of this host.
pub(super) fn accept_local(device: &str) -> Result<(), StartError> {
    let of = |name: &str| PathBuf::from(format!("/proc/sys/net/ipv4/conf/{name}/accept_local"));
    if is(&of("all"), "1") || is(&of(device), "1") { Ok(()) } else { set(&of(device), "1") }
}

/// Lets the device have IPv6 addresses where the host's other devices have none. The kernel then answers packets that
/// it cannot forward.
pub(super) fn allow_v6(device: &str) -> Result<(), StartError> {
    let path = PathBuf::from(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"));
    if is(&path, "1") { set(&path, "0") } else { Ok(()) }
}

fn is(path: &Path, value: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|now| now.trim() == value)
}

fn set(path: &Path, value: &str) -> Result<(), StartError> {
    fs::write(path, value).map_err(StartError::host(format!("set {} to {value}", path.display())))
}

/// Checks that no route of the host leads to addresses that clients will have.
pub(super) fn check_routes(netlink: &mut Netlink, networks: &[Ipv4Addr], prefix: u8) -> Result<(), StartError> {
    let step = || StartError::host("list this host's routes");
    let (_, (net6, len6)) = INNER_POOL;
    let own = networks.iter().map(|network| (IpAddr::V4(*network), prefix)).chain([(net6.into(), len6)]);
    let routes = [netlink.routes(false).map_err(step())?, netlink.routes(true).unwrap_or_default()].concat();
    for (network, prefix) in own {
        if let Some(route) = conflict(&routes, network, prefix) {
            let link = netlink.link_name(route.link).unwrap_or_else(|_| route.link.to_string());
            return Err(StartError::Route {
                route: format!("{}/{} on {link}", route.network, route.prefix),
                network: format!("{network}/{prefix}"),
            });
        }
    }
    Ok(())
}

fn conflict(routes: &[Route], network: IpAddr, prefix: u8) -> Option<Route> {
    routes.iter().copied().find(|route| route.overlaps(network, prefix))
}

/// Returns how many flows clients may have in all: three quarters of what the kernel can track.
pub(super) fn flow_capacity() -> u32 {
    let most = fs::read_to_string("/proc/sys/net/netfilter/nf_conntrack_max");
    most.ok().and_then(|text| text.trim().parse().ok()).unwrap_or(CONNECTIONS) / 4 * 3
}

/// Returns a warning for each chain of other tables that drops forwarded packets unless one of its rules accepts them.
pub(super) fn foreign_chains(own: &str, device: &str) -> Vec<String> {
    let chains = nft::chains().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
    dropping(&chains, own)
        .into_iter()
        .map(|(family, table, chain)| {
            format!(
                "the firewall chain {family} {table} {chain} of this host drops forwarded packets that none of its \
                 rules accepts; if clients reach nothing, run: nft insert rule {family} {table} {chain} iifname \
                 {device} accept; nft insert rule {family} {table} {chain} oifname {device} accept"
            )
        })
        .collect()
}

/// Returns family, table and name of such chains. Source: libnftables-json(5).
fn dropping<'a>(chains: &'a serde_json::Value, own: &str) -> Vec<(&'a str, &'a str, &'a str)> {
    let all = chains["nftables"].as_array().into_iter().flatten().map(|object| &object["chain"]);
    all.filter(|chain| chain["hook"] == "forward" && chain["policy"] == "drop" && chain["table"] != own)
        .filter(|chain| ["ip", "ip6", "inet"].iter().any(|family| chain["family"] == **family))
        .filter_map(|chain| Some((chain["family"].as_str()?, chain["table"].as_str()?, chain["name"].as_str()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_into_the_clients_networks_conflict_and_their_neighbours_do_not() {
        let route = |network: &str, prefix| Route { network: network.parse().unwrap(), prefix, link: 1 };
        let pool = "100.64.0.0".parse().unwrap();
        for (network, prefix, conflicts) in [
            ("100.64.0.0", 10, true),
            ("100.64.0.5", 32, true),
            ("100.80.0.0", 24, false),
            ("100.100.2.136", 32, false),
            ("fd6f:7265:6c61:7900::", 64, false),
        ] {
            let routes = [route("192.0.2.0", 24), route(network, prefix)];
            assert_eq!(conflict(&routes, pool, 16), conflicts.then_some(routes[1]), "{network}/{prefix}");
        }
    }

    #[test]
    fn only_other_forward_chains_that_drop_are_found() {
        let chain = |family: &str, table: &str, name: &str, hook: &str, policy: &str| {
            serde_json::json!({"chain": {
                "family": family, "table": table, "name": name, "hook": hook, "policy": policy
            }})
        };
        let chains = serde_json::json!({"nftables": [
            {"metainfo": {"version": "1.0.6"}},
            chain("ip", "filter", "FORWARD", "forward", "drop"),
            chain("ip", "filter", "INPUT", "input", "drop"),
            chain("ip6", "filter", "FORWARD", "forward", "accept"),
            chain("inet", "own", "forward", "forward", "drop"),
            chain("bridge", "filter", "FORWARD", "forward", "drop"),
            {"chain": {"family": "inet", "table": "own", "name": "from_clients"}},
        ]});
        assert_eq!(dropping(&chains, "own"), [("ip", "filter", "FORWARD")]);
        assert!(dropping(&serde_json::Value::Null, "own").is_empty());
    }
}
