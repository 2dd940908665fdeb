//! The allow list on the client's wire: what may leave its host while a circuit is up, broken or gone.
//!
//! Owns a table at the other end of the link, where the client's host cannot change it. The table counts everything
//! except datagrams to the first hop, ARP and neighbour discovery. The kernel counts every packet, so the counts say
//! how much leaked, but not what.

use std::net::IpAddr;

use anyhow::{Result, ensure};

use super::host::Host;
use super::network::PORT;

const TABLE: &str = "netdev wire";

/// Counts packets that leave the client's host and are not for the relay with these addresses, at the link of `nat`
/// to the client.
pub(crate) fn watch(nat: &Host, first_hop: [IpAddr; 2]) -> Result<()> {
    unwatch(nat)?;
    let to_first_hop = first_hop.map(|address| {
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        format!("{family} daddr {address} udp dport {PORT} counter name expected accept;")
    });
    nat.sh(&format!(
        "nft 'table {TABLE} {{ counter expected {{ }}; counter foreign {{ }}; \
         chain out {{ type filter hook ingress device lan priority 0; {} ether type arp accept; \
         icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept; \
         counter name foreign; }}; }}'",
        to_first_hop.join(" ")
    ))
    .map(drop)
}

/// Stops counting, if a count is active.
pub(crate) fn unwatch(nat: &Host) -> Result<()> {
    nat.sh(&format!("nft delete table {TABLE} 2>/dev/null || true")).map(drop)
}

/// Fails if a forbidden packet left the client's host since the count began.
pub(crate) fn judge(nat: &Host) -> Result<()> {
    let ((expected, _), (foreign, _)) = (nat.counter(TABLE, "expected")?, nat.counter(TABLE, "foreign")?);
    ensure!(foreign == 0, "{foreign} forbidden packets left the client's host, besides {expected} to the first hop");
    ensure!(expected > 0, "no datagram to the first hop left the client's host");
    Ok(())
}
