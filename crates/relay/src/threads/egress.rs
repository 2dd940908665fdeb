//! An egress' tunnel device, routes, kernel settings and firewall.
//!
//! Owns the text of the nftables table `inet openrelay_egress`: what clients may reach, and the translation to the
//! host's address. The table is applied in one transaction before the relay serves. Changes no other rule and takes
//! no address from the host.

mod host;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use openrelay_ledger::directory::{Directory, Source};
use openrelay_proto::ip::destination::{BLOCKED_V4, BLOCKED_V6};
use openrelay_proto::ip::{GATEWAY_V4, GATEWAY_V6};
use openrelay_proto::relay::INNER_POOL;
use openrelay_proto::wire::MAX_MTU;
use openrelay_sys::net::Netlink;
use openrelay_sys::nft;
use openrelay_sys::tun::Tun;

use openrelay_node::directory::VerifiedDirectory;

use super::Prepared;
use super::error::StartError;
use crate::guard::{Guard, Setup};
use host::Forwarding;

/// How long the guard of a previous egress may take to end.
const PREDECESSOR: Duration = Duration::from_secs(3);
/// The table's name.
const TABLE: &str = "openrelay_egress";
/// New connections per second to relays' own ports, for testers that enter through another relay: of all clients, and
/// of one.
const RELAY_RATE: u32 = 500;
const RELAY_RATE_EACH: u32 = 20;
/// Errors per second that one client gets for what it may not reach.
const ERROR_RATE: u32 = 10;
/// Clients of one shard.
const CLIENTS: u32 = 1 << 16;
/// Length of the prefix of one shard's IPv4 addresses.
const SHARD_PREFIX: u8 = 16;

/// Creates the device and applies the firewall. `user` is the user that the guard becomes.
pub(super) fn prepare(
    prepared: &mut Prepared,
    device: &str,
    directory: &VerifiedDirectory,
    shards: u8,
    user: Option<u32>,
) -> Result<(), StartError> {
    let step = |what: &str| StartError::host(format!("{what} the tunnel device {device}"));
    // The guard of an egress that was killed restores the host's settings before its table goes. A table that stays is
    // replaced, if nobody owns it.
    nft::wait_until_gone(TABLE, PREDECESSOR)?;
    let mut netlink = Netlink::open().map_err(step("configure"))?;
    let networks: Vec<Ipv4Addr> = (0..shards).map(network_of).collect();
    host::check_routes(&mut netlink, &networks, SHARD_PREFIX)?;
    let tun = Tun::create(device, shards.into())?;
    let link = netlink.link(&tun.name).map_err(step("find"))?;
    // Not the whole pool: the host may have routes to the rest of 100.64.0.0/10.
    netlink.add_address(link, IpAddr::V4(GATEWAY_V4), 32).map_err(step("assign an IPv4 address to"))?;
    let (_, (_, v6_len)) = INNER_POOL;
    let v6 = host::allow_v6(&tun.name).and_then(|()| {
        netlink.add_address(link, IpAddr::V6(GATEWAY_V6), v6_len).map_err(step("assign an IPv6 address to"))
    });
    prepared.v6 = v6.is_ok();
    if let Err(error) = v6 {
        prepared
            .warnings
            .push(format!("clients get an error for IPv6 destinations, because this host has none: {error}"));
    } else if netlink.route_link(host::SOMEWHERE_V6).is_err() {
        let warning = "this host has no IPv6 route to the Internet; clients get an error for IPv6 destinations";
        prepared.warnings.push(warning.into());
    }
    netlink.set_mtu(link, MAX_MTU.into()).map_err(step("set the MTU of"))?;
    netlink.set_up(link).map_err(step("bring up"))?;
    for network in networks {
        netlink.add_route(link, network.into(), SHARD_PREFIX).map_err(step("add a route to"))?;
    }
    let forwarding = Forwarding::plan();
    // ICMP errors that this relay creates for outside senders leave the device with an address of the host.
    host::accept_local(&tun.name)?;
    let text = table(&tun.name, directory.directory(), shards, forwarding.was_off);
    // The guard restores the settings from here on, and nothing is forwarded before its table is in force.
    let setup = Setup { user, table: TABLE, text, restore: forwarding.earlier() };
    prepared.guard = Some(Guard::start(&setup)?);
    forwarding.switch_on()?;
    prepared.warnings.extend(host::foreign_chains(TABLE, &tun.name));
    prepared.flows = host::flow_capacity() / u32::from(shards.max(1));
    prepared.udp_segmentation = tun.udp_segmentation;
    prepared.queues = tun.queues.into_iter().map(Some).collect();
    Ok(())
}

/// Returns the first IPv4 address of a shard's clients.
fn network_of(shard: u8) -> Ipv4Addr {
    let ((pool, _), _) = INNER_POOL;
    Ipv4Addr::from_bits(pool.to_bits() | u32::from(shard) << 16)
}

/// Returns the table's text. Packets between other devices are dropped for the families (IPv4, IPv6) in `elsewhere`.
fn table(device: &str, directory: &Directory, shards: u8, elsewhere: [bool; 2]) -> String {
    let mut relays: [(Vec<String>, Vec<String>); 2] = Default::default();
    for endpoint in directory.body().relays.iter().flat_map(|relay| &relay.endpoints) {
        let (addresses, ports) = &mut relays[usize::from(endpoint.is_ipv6())];
        // On a chain anybody can claim any address, and must not be able to block it for all clients that way.
        if directory.source() == Source::Signed {
            addresses.push(endpoint.ip().to_string());
        }
        ports.push(format!("{} . {}", endpoint.ip(), endpoint.port()));
    }
    let networks4: Vec<String> = BLOCKED_V4.iter().map(|(net, len)| format!("{net}/{len}")).collect();
    let networks6: Vec<String> = BLOCKED_V6.iter().map(|(net, len)| format!("{net}/{len}")).collect();
    let [(relays4, ports4), (relays6, ports6)] = relays;
    let (_, (pool6, len6)) = INNER_POOL;
    let first = network_of(0);
    let last = Ipv4Addr::from_bits(network_of(shards.max(1) - 1).to_bits() | 0xffff);
    let mut text = format!("add table inet {TABLE}\ndelete table inet {TABLE}\ntable inet {TABLE} {{\n  flags owner\n");
    for (name, kind, elements) in [
        ("blocked4", "ipv4_addr; flags interval", networks4),
        ("blocked6", "ipv6_addr; flags interval", networks6),
        ("relays4", "ipv4_addr", relays4),
        ("relays6", "ipv6_addr", relays6),
        ("relay_ports4", "ipv4_addr . inet_service", ports4),
        ("relay_ports6", "ipv6_addr . inet_service", ports6),
    ] {
        let mut elements = elements;
        elements.sort();
        elements.dedup();
        let list =
            if elements.is_empty() { String::new() } else { format!(" elements = {{ {} }};", elements.join(", ")) };
        // Writing to a string cannot fail.
        let _ = writeln!(text, "  set {name} {{ type {kind};{list} }}");
    }
    let clients = CLIENTS * u32::from(shards.max(1));
    for (name, kind) in [("testers4", "ipv4"), ("testers6", "ipv6"), ("told4", "ipv4"), ("told6", "ipv6")] {
        // One place for each client, so that nobody fills the set for others.
        let _ = writeln!(text, "  set {name} {{ type {kind}_addr; flags dynamic; timeout 60s; size {clients}; }}");
    }
    let elsewhere: String = [("ipv4", elsewhere[0]), ("ipv6", elsewhere[1])]
        .into_iter()
        .filter(|(_, drops)| *drops)
        .map(|(family, _)| format!("    meta nfproto {family} iifname != \"{device}\" counter name elsewhere drop\n"))
        .collect();
    let _ = write!(
        text,
        r#"  counter blocked {{ }}
  counter elsewhere {{ }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{device}" goto from_clients
    oifname "{device}" ct state established,related accept
    oifname "{device}" counter name blocked drop
{elsewhere}  }}
  chain from_clients {{
    oifname "{device}" goto refused
    ct state established,related accept
    ct state invalid,untracked counter name blocked drop
    meta l4proto != {{ tcp, udp, icmp, icmpv6 }} goto refused
    icmp type != echo-request counter name blocked drop
    icmpv6 type != echo-request counter name blocked drop
    tcp flags & (fin | syn | rst | ack) != syn goto strayed
    ip daddr @blocked4 goto refused
    ip6 daddr @blocked6 goto refused
    tcp dport 25 goto refused
    ip daddr . udp dport @relay_ports4 goto testers
    ip6 daddr . udp dport @relay_ports6 goto testers
    ip daddr @relays4 goto refused
    ip6 daddr @relays6 goto refused
  }}
  chain testers {{
    update @testers4 {{ ip saddr limit rate {RELAY_RATE_EACH}/second }} limit rate {RELAY_RATE}/second accept
    update @testers6 {{ ip6 saddr limit rate {RELAY_RATE_EACH}/second }} limit rate {RELAY_RATE}/second accept
    counter name blocked drop
  }}
  chain refused {{
    counter name blocked
    update @told4 {{ ip saddr limit rate {ERROR_RATE}/second }} reject with icmpx type admin-prohibited
    update @told6 {{ ip6 saddr limit rate {ERROR_RATE}/second }} reject with icmpx type admin-prohibited
    drop
  }}
  chain strayed {{
    counter name blocked
    update @told4 {{ ip saddr limit rate {ERROR_RATE}/second }} meta l4proto tcp reject with tcp reset
    update @told6 {{ ip6 saddr limit rate {ERROR_RATE}/second }} meta l4proto tcp reject with tcp reset
    drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{device}" icmp type echo-request ip daddr {GATEWAY_V4} accept
    iifname "{device}" icmpv6 type echo-request ip6 daddr {GATEWAY_V6} accept
    iifname "{device}" counter name blocked drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {first}-{last} oifname != "{device}" masquerade fully-random
    ip6 saddr {pool6}/{len6} oifname != "{device}" masquerade fully-random
  }}
}}
"#
    );
    text
}
