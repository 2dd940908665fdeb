//! The allow list on the client's wire: what may leave its host while a circuit is up, broken or gone.
//!
//! Owns a table on the other end of the link, out of reach of the client's host, that counts whatever is not a datagram to the first hop, ARP or neighbour
//! discovery. Counts by the kernel miss nothing; they say how much leaked, not what.

use std::net::IpAddr;

use anyhow::{Result, ensure};

use crate::host::Host;

const TABLE: &str = "netdev wire";

/// Begins to count what comes out of the link of `nat` to the client and is not for the relay with these addresses.
pub(crate) fn watch(nat: &Host, first_hop: [IpAddr; 2]) -> Result<()> {
    unwatch(nat)?;
    let to_first_hop = first_hop.map(|address| {
        let family = if address.is_ipv4() { "ip" } else { "ip6" };
        format!("{family} daddr {address} udp dport 443 counter name expected accept;")
    });
    nat.sh(&format!(
        "nft 'table {TABLE} {{ counter expected {{ }}; counter foreign {{ }}; \
         chain out {{ type filter hook ingress device lan priority 0; {} ether type arp accept; \
         icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept; counter name foreign; }}; }}'",
        to_first_hop.join(" ")
    ))
    .map(drop)
}

/// Ends the watch, if there is one.
pub(crate) fn unwatch(nat: &Host) -> Result<()> {
    nat.sh(&format!("nft delete table {TABLE} 2>/dev/null || true")).map(drop)
}

/// An error when anything left the client's host since the watch began that may not.
pub(crate) fn judge(nat: &Host) -> Result<()> {
    let ((expected, _), (foreign, _)) = (nat.counter(TABLE, "expected")?, nat.counter(TABLE, "foreign")?);
    ensure!(foreign == 0, "{foreign} packets left the client's host that may not, besides {expected} to the first hop");
    ensure!(expected > 0, "not even what may leave the client's host was seen");
    Ok(())
}
