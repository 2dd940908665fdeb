//! An egress' tunnel device and firewall.
//!
//! Owns the nftables table `inet openrelay_egress`: what clients may reach, and the translation to the host's
//! address. The table is applied in one transaction before the relay serves. Touches no other rule of the host.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::Path;

use openrelay_ledger::directory::{Directory, Source};
use openrelay_proto::ip::destination::{BLOCKED_V4, BLOCKED_V6};
use openrelay_proto::ip::{GATEWAY_V4, GATEWAY_V6};
use openrelay_proto::relay::INNER_POOL;
use openrelay_proto::wire::MAX_MTU;
use openrelay_sys::conntrack::Conntrack;
use openrelay_sys::net::Netlink;
use openrelay_sys::nft;
use openrelay_sys::tun::Tun;

use openrelay_node::directory::VerifiedDirectory;

use super::Prepared;
use super::error::StartError;

/// Maximum number of connections of one client: more than browsers and a torrent client open, fewer than would fill
/// the host's table.
const CONNECTIONS: u32 = 4_096;
/// New connections per second to relays' own ports, for testers that enter through another relay.
const RELAY_RATE: u32 = 500;

/// Creates the device and applies the firewall.
pub(super) fn prepare(
    prepared: &mut Prepared,
    device: &str,
    directory: &VerifiedDirectory,
    shards: u8,
) -> Result<(), StartError> {
    let step = |what: &str| StartError::host(format!("{what} the tunnel device {device}"));
    let tun = Tun::create(device, shards.into()).map_err(step("create"))?;
    let mut netlink = Netlink::open().map_err(step("configure"))?;
    let link = netlink.link(&tun.name).map_err(step("find"))?;
    let ((_, v4_len), (_, v6_len)) = INNER_POOL;
    netlink.add_address(link, IpAddr::V4(GATEWAY_V4), v4_len).map_err(step("assign an IPv4 address to"))?;
    if let Err(error) = netlink.add_address(link, IpAddr::V6(GATEWAY_V6), v6_len) {
        prepared.warnings.push(format!("clients get no IPv6: {error}"));
    }
    netlink.set_mtu(link, MAX_MTU.into()).map_err(step("set the MTU of"))?;
    netlink.set_up(link).map_err(step("bring up"))?;
    switch_forwarding_on()?;
    // ICMP errors that this relay creates for outside senders leave the device with an address of the host.
    let accept_local = format!("/proc/sys/net/ipv4/conf/{}/accept_local", tun.name);
    fs::write(&accept_local, "1").map_err(step("set accept_local of"))?;
    nft::apply(&table(&tun.name, directory.directory()))?;
    prepared.udp_segmentation = tun.udp_segmentation;
    prepared.queues = tun.queues.into_iter().map(Some).collect();
    let conntrack = Conntrack::open().map_err(StartError::host("open connection tracking"))?;
    match conntrack.forget(IpAddr::V4(GATEWAY_V4)) {
        Ok(()) => prepared.conntrack = Some(conntrack),
        Err(error) => prepared.warnings.push(format!(
            "cannot delete connections of ended sessions ({error}; needs Linux 6.12); instead, their addresses stay \
             unused for five minutes"
        )),
    }
    Ok(())
}

/// Makes the host a router that still accepts router advertisements. Unless `accept_ra` is 2, a router ignores them
/// and drops the routes that it has from them.
/// Source: Linux Documentation/networking/ip-sysctl.rst.
fn switch_forwarding_on() -> Result<(), StartError> {
    let is = |path: &Path, value: &str| fs::read_to_string(path).is_ok_and(|now| now.trim() == value);
    let v6 = Path::new("/proc/sys/net/ipv6/conf");
    let forwarding = v6.join("all/forwarding");
    if !is(&forwarding, "1") {
        let interfaces = fs::read_dir(v6).into_iter().flatten().flatten();
        for accept in interfaces.map(|entry| entry.path().join("accept_ra")).filter(|path| is(path, "1")) {
            // If this fails, so do the writes below.
            let _ = fs::write(accept, "2");
        }
    }
    for path in [Path::new("/proc/sys/net/ipv4/ip_forward"), &forwarding] {
        // Writing an unchanged value would make the kernel drop routes too.
        if path.exists() && !is(path, "1") {
            let step = format!("enable forwarding ({})", path.display());
            fs::write(path, "1").map_err(StartError::host(step))?;
        }
    }
    Ok(())
}

/// Returns the table's text.
fn table(device: &str, directory: &Directory) -> String {
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
    let ((pool4, len4), (pool6, len6)) = INNER_POOL;
    let mut text = String::from(
        "add table inet openrelay_egress\ndelete table inet openrelay_egress\ntable inet openrelay_egress {\n",
    );
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
    let _ = write!(
        text,
        r#"  set clients4 {{ type ipv4_addr; flags dynamic; size 65536; }}
  set clients6 {{ type ipv6_addr; flags dynamic; size 65536; }}
  counter blocked {{ }}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    iifname "{device}" goto from_clients
    oifname "{device}" ct state established,related accept
    oifname "{device}" counter name blocked drop
  }}
  chain from_clients {{
    ct state established,related accept
    ct state invalid,untracked counter name blocked drop
    ip daddr @blocked4 counter name blocked drop
    ip6 daddr @blocked6 counter name blocked drop
    tcp dport 25 counter name blocked drop
    ip daddr . udp dport @relay_ports4 limit rate {RELAY_RATE}/second accept
    ip6 daddr . udp dport @relay_ports6 limit rate {RELAY_RATE}/second accept
    ip daddr . udp dport @relay_ports4 counter name blocked drop
    ip6 daddr . udp dport @relay_ports6 counter name blocked drop
    ip daddr @relays4 counter name blocked drop
    ip6 daddr @relays6 counter name blocked drop
    add @clients4 {{ ip saddr ct count over {CONNECTIONS} }} counter name blocked drop
    add @clients6 {{ ip6 saddr ct count over {CONNECTIONS} }} counter name blocked drop
  }}
  chain input {{
    type filter hook input priority filter; policy accept;
    iifname "{device}" icmp type echo-request ip daddr {GATEWAY_V4} accept
    iifname "{device}" icmpv6 type echo-request ip6 daddr {GATEWAY_V6} accept
    iifname "{device}" counter name blocked drop
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat; policy accept;
    ip saddr {pool4}/{len4} oifname != "{device}" masquerade fully-random
    ip6 saddr {pool6}/{len6} oifname != "{device}" masquerade fully-random
  }}
}}
"#
    );
    text
}
