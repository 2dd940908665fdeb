//! Where a relay listens.
//!
//! Owns what a wildcard address in `listen` means, and what is said about an address that the host does not have yet.
//!
//! Clients accept answers only from the address that they asked. A wildcard socket answers from the address that the
//! kernel prefers, so it serves only on a host with a single address.

use std::net::{IpAddr, SocketAddr};

use openrelay_sys::net::Netlink;

/// Returns the addresses of this host, without loopback and link-local ones.
pub(super) fn addresses() -> Vec<IpAddr> {
    Netlink::open().and_then(|mut netlink| netlink.addresses()).unwrap_or_default()
}

/// Returns the address to bind for one in `listen`: the relay's own address in the directory for a wildcard, if the
/// host has it.
///
/// # Errors
/// The reason why a wildcard does not work on this host.
pub(super) fn resolve(listen: SocketAddr, endpoints: &[SocketAddr], host: &[IpAddr]) -> Result<SocketAddr, String> {
    if !listen.ip().is_unspecified() {
        return Ok(listen);
    }
    let same = |ip: IpAddr| ip.is_ipv6() == listen.is_ipv6();
    if let Some(own) = endpoints.iter().map(SocketAddr::ip).find(|ip| same(*ip) && host.contains(ip)) {
        return Ok(SocketAddr::new(own, listen.port()));
    }
    let several: Vec<String> = host.iter().filter(|ip| same(**ip)).map(ToString::to_string).collect();
    if several.len() < 2 {
        return Ok(listen);
    }
    Err(format!(
        "must name one address: this host has several ({}), none of them in the relay's record, and answers would \
         leave from any of them",
        several.join(", ")
    ))
}

/// Returns a warning if the host does not have the address.
pub(super) fn missing(listen: SocketAddr, host: &[IpAddr]) -> Option<String> {
    let ip = listen.ip();
    let known = ip.is_unspecified() || ip.is_loopback() || host.contains(&ip);
    (!known).then(|| format!("this host does not have the address {ip} yet; the relay serves once it has it"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
    use super::*;

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn wildcard_is_the_address_in_the_directory_or_the_only_one() {
        let (first, second): (IpAddr, IpAddr) = ("192.0.2.10".parse().unwrap(), "192.0.2.11".parse().unwrap());
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        let record = [at("192.0.2.11:443"), at("[2001:db8::2]:443")];
        let wild = at("0.0.0.0:4433");
        assert_eq!(resolve(wild, &record, &[first, second, v6]), Ok(at("192.0.2.11:4433")));
        assert_eq!(resolve(wild, &record, &[first, v6]), Ok(wild), "behind a NAT");
        assert_eq!(resolve(wild, &record, &[]), Ok(wild), "before DHCP");
        let refused = resolve(wild, &[], &[first, second, v6]).unwrap_err();
        assert!(refused.contains("192.0.2.10, 192.0.2.11") && !refused.contains("2001"), "{refused}");
        assert_eq!(resolve(at("[::]:4433"), &record, &[first, v6]), Ok(at("[::]:4433")));
        assert_eq!(resolve(at("192.0.2.99:1"), &record, &[first]), Ok(at("192.0.2.99:1")));
    }

    #[test]
    fn missing_address_is_named() {
        let host = ["192.0.2.10".parse().unwrap()];
        assert!(missing(at("192.0.2.11:1"), &host).unwrap().contains("192.0.2.11"));
        for present in ["192.0.2.10:1", "0.0.0.0:1", "127.0.0.1:1", "[::1]:1"] {
            assert_eq!(missing(at(present), &host), None, "{present}");
        }
    }
}
