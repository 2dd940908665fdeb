//! The client's firewall: while it is up, no traffic leaves outside the tunnel.
//!
//! Owns the nftables table `inet openrelay`. The table outlives the process that made it, so a crash leaks nothing.
//! `openrelay down` removes it.

use std::net::SocketAddr;

use openrelay_sys::nft::{self, NftError};

/// Firewall mark of the tunnel's own datagrams.
pub const MARK: u32 = 0x6f72;
const TABLE: &str = "openrelay";

/// Installs or replaces the table in one transaction. It passes the tunnel's own datagrams to `ingress`, traffic of
/// the device `device`, loopback, DHCP and neighbour discovery. It also accepts ICMP errors about unreachable
/// destinations and packets that are too big.
///
/// # Errors
/// [`NftError`]. If `nft` refuses the table, nothing has changed.
pub fn apply(device: &str, ingress: SocketAddr) -> Result<(), NftError> {
    nft::apply(&table(device, ingress))?;
    if nft::list("inet", TABLE)?.is_some_and(|text| text.contains("policy drop")) {
        Ok(())
    } else {
        Err(NftError::Refused("the table is missing after it was applied".into()))
    }
}

/// Removes the table, if there is one.
///
/// # Errors
/// [`NftError`] if it could not be removed.
pub fn remove() -> Result<(), NftError> {
    nft::apply(&format!("add table inet {TABLE}\ndelete table inet {TABLE}\n"))
}

fn table(device: &str, ingress: SocketAddr) -> String {
    let family = if ingress.is_ipv4() { "ip" } else { "ip6" };
    let (address, port) = (ingress.ip(), ingress.port());
    format!(
        r#"add table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  counter blocked {{ }}
  chain output {{
    type filter hook output priority filter; policy drop;
    oifname "lo" accept
    oifname "{device}" accept
    meta mark {MARK:#x} {family} daddr {address} udp dport {port} accept
    udp sport 68 udp dport 67 accept
    udp sport 546 udp dport 547 accept
    icmpv6 type {{ nd-router-solicit, nd-neighbor-solicit, nd-neighbor-advert }} accept
    counter name blocked drop
  }}
  chain forward {{
    type filter hook forward priority filter; policy drop;
    oifname "{device}" accept
    iifname "{device}" accept
    counter name blocked drop
  }}
  chain input {{
    type filter hook input priority filter; policy drop;
    iifname "lo" accept
    iifname "{device}" accept
    {family} saddr {address} udp sport {port} accept
    udp sport 67 udp dport 68 accept
    udp sport 547 udp dport 546 accept
    icmpv6 type {{ nd-router-advert, nd-neighbor-solicit, nd-neighbor-advert }} accept
    icmp type destination-unreachable accept
    icmpv6 type packet-too-big accept
    counter name blocked drop
  }}
}}
"#
    )
}
