//! Hosts at a core, and a client behind a NAT.
//!
//! ```text
//! client ── nat ──┐              ┌── ingress-1   ingress-2
//!                 core (a router)┤
//!      server ────┤              └── egress-1    egress-2
//!       chain ────┘
//! ```
//! Each host at the core has its own network, so that the rules that keep hops apart hold here as on the Internet. All
//! addresses look public and exist in namespaces only.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};

use super::host::{Environment, Host, checked};

/// A host at the core: name, link, IPv4 network and IPv6 network. In both networks the core has .1 and the host .2.
struct Site {
    name: &'static str,
    link: &'static str,
    v4: &'static str,
    v6: &'static str,
}

const SITES: [Site; 7] = [
    Site { name: "nat", link: "nat", v4: "192.0.2", v6: "2001:db8:1:" },
    Site { name: "ingress-1", link: "in1", v4: "198.51.100", v6: "2a10:1:1:" },
    Site { name: "ingress-2", link: "in2", v4: "198.18.1", v6: "2a11:1:1:" },
    Site { name: "egress-1", link: "eg1", v4: "203.0.113", v6: "2a12:1:1:" },
    Site { name: "egress-2", link: "eg2", v4: "198.19.1", v6: "2a13:1:1:" },
    Site { name: "server", link: "srv", v4: "93.184.215", v6: "2a14:1:1:" },
    Site { name: "chain", link: "chn", v4: "185.199.108", v6: "2a15:1:1:" },
];

/// The client's IPv4 address, behind the NAT.
pub(crate) const CLIENT_V4: &str = "192.168.77.2";
/// The client's IPv6 address, which the NAT routes.
pub(crate) const CLIENT_V6: &str = "2001:db8:77::2";
/// Port of the datagrams that are watched.
pub(crate) const PORT: u16 = 443;
/// Further ports of watched datagrams: the first and the last.
pub(crate) const MORE_PORTS: u16 = 4431;
pub(crate) const LAST_PORT: u16 = 4434;

/// All hosts and the links between them.
pub(crate) struct Network {
    pub(crate) core: Host,
    pub(crate) client: Host,
    hosts: Vec<Host>,
    pub(crate) dir: PathBuf,
}

impl Network {
    /// Creates hosts and links below `dir`. Programs on a host get the variables that `environment` returns for it.
    pub(crate) fn new(dir: &Path, environment: Environment) -> Result<Self> {
        let core = Host::new("core", dir, environment)?;
        let client = Host::new("client", dir, environment)?;
        let hosts: Result<Vec<Host>> = SITES.iter().map(|site| Host::new(site.name, dir, environment)).collect();
        let network = Self { core, client, hosts: hosts?, dir: dir.to_owned() };
        network.link_sites()?;
        network.link_client()?;
        Ok(network)
    }

    fn link_sites(&self) -> Result<()> {
        let mut core = String::from(FORWARD);
        for (site, host) in SITES.iter().zip(&self.hosts) {
            veth(&self.core, site.link, host, "wan")?;
            core += &addresses(site.link, site.v4, site.v6, 1);
            host.sh(&format!(
                "{}ip route add default via {}.1\nip -6 route add default via {}:1\n",
                addresses("wan", site.v4, site.v6, 2),
                site.v4,
                site.v6
            ))?;
        }
        core += &format!("ip -6 route add 2001:db8:77::/64 via {}:2\n", SITES[0].v6);
        self.core.sh(&core).map(drop)
    }

    fn link_client(&self) -> Result<()> {
        let nat = self.host("nat")?;
        veth(nat, "lan", &self.client, "eth0")?;
        nat.sh(&format!(
            "{FORWARD}ip addr add 192.168.77.1/24 dev lan\nip addr add 2001:db8:77::1/64 dev lan nodad\n\
             ip link set lan up\n\
             nft 'table ip nat {{ chain post {{ type nat hook postrouting priority srcnat; \
             oifname \"wan\" masquerade; }}; }}'\n"
        ))?;
        let script = format!(
            "ip addr add {CLIENT_V4}/24 dev eth0\nip addr add {CLIENT_V6}/64 dev eth0 nodad\nip link set eth0 up\n\
             ip route add default via 192.168.77.1\nip -6 route add default via 2001:db8:77::1\n\
             echo 'nameserver {}' > /etc/resolv.conf\n",
            self.address("server", false)?
        );
        self.client.sh(&script).map(drop)
    }

    /// Returns the host called `name`.
    pub(crate) fn host(&self, name: &str) -> Result<&Host> {
        if name == "client" {
            return Ok(&self.client);
        }
        self.hosts.iter().find(|host| host.name == name).with_context(|| format!("there is no host {name}"))
    }

    /// Returns the address of a host at the core.
    pub(crate) fn address(&self, name: &str, v6: bool) -> Result<IpAddr> {
        let site = SITES.iter().find(|site| site.name == name).with_context(|| format!("there is no host {name}"))?;
        let text = if v6 { format!("{}:2", site.v6) } else { format!("{}.2", site.v4) };
        Ok(text.parse()?)
    }

    /// Returns the addresses of a host and of its neighbour at the core, and the prefix length of their network.
    pub(crate) fn link_addresses(&self, name: &str, v6: bool) -> Result<(IpAddr, IpAddr, u8)> {
        let site = SITES.iter().find(|site| site.name == name).with_context(|| format!("there is no host {name}"))?;
        let neighbour = if v6 { format!("{}:1", site.v6) } else { format!("{}.1", site.v4) };
        Ok((self.address(name, v6)?, neighbour.parse()?, if v6 { 64 } else { 24 }))
    }

    /// Connects a machine's network card to the network of a host. The host keeps another address beside it.
    pub(crate) fn bridge(&self, name: &str) -> Result<()> {
        let (v4, neighbour, _) = self.link_addresses(name, false)?;
        let beside = v4.to_string().trim_end_matches('2').to_owned() + "3";
        self.host(name)?.sh(&format!(
            "ip link add br0 type bridge\nip addr flush dev wan\nip link set wan master br0\nip link set br0 up\n\
             ip addr add {beside}/24 dev br0\nip route add default via {neighbour}\n\
             ip tuntap add tap0 mode tap\nip link set tap0 master br0 up\n"
        ))?;
        // The machine's card has the address from here on.
        self.core.sh(&format!("ip neigh flush dev {}", Self::link_of(name)?)).map(drop)
    }

    /// Returns the names of all links at the core, as `break` takes them.
    pub(crate) fn links() -> Vec<&'static str> {
        SITES.iter().map(|site| site.name).collect()
    }

    /// Returns the core's end of the link to `name`.
    pub(crate) fn link_of(name: &str) -> Result<&'static str> {
        let site = SITES.iter().find(|site| site.name == name).with_context(|| format!("there is no link {name}"))?;
        Ok(site.link)
    }

    /// Cuts or restores the link to `name`.
    pub(crate) fn set_link(&self, name: &str, up: bool) -> Result<()> {
        let link = Self::link_of(name)?;
        if up {
            let site = SITES.iter().find(|site| site.name == name).context("the link does not exist")?;
            // A link that was down has lost its IPv6 address.
            self.core
                .sh(&format!("ip link set {link} up; ip addr replace {}:1/64 dev {link} nodad\n", site.v6))
                .map(drop)
        } else {
            self.core.sh(&format!("ip link set {link} down")).map(drop)
        }
    }

    /// Returns the address of `port` at the host `server`.
    pub(crate) fn server(&self, port: u16, v6: bool) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.address("server", v6)?, port))
    }
}

const FORWARD: &str = "echo 1 > /proc/sys/net/ipv4/ip_forward\necho 1 > /proc/sys/net/ipv6/conf/all/forwarding\n";

fn addresses(link: &str, v4: &str, v6: &str, host: u8) -> String {
    format!(
        "ip addr add {v4}.{host}/24 dev {link}\nip addr add {v6}:{host}/64 dev {link} nodad\nip link set {link} up\n"
    )
}

/// Links two hosts.
fn veth(a: &Host, a_link: &str, b: &Host, b_link: &str) -> Result<()> {
    let line = format!(
        "ip link add {a_link} numtxqueues 1 numrxqueues 1 type veth peer name {b_link} netns /proc/{}/ns/net",
        b.pid()
    );
    let output = Command::new("nsenter")
        .args(["--net", "--target", &a.pid().to_string(), "--", "sh", "-ec", &line])
        .output()
        .context("cannot link two hosts")?;
    checked(&output, &line).map(drop)
}
