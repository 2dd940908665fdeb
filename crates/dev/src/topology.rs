//! The network of the devnet.
//!
//! ```text
//! client ── nat ──┐              ┌── ingress-1   ingress-2
//!                 core (a router)┤
//!      server ────┤              └── egress-1    egress-2
//!       chain ────┘
//! ```
//! Each relay has its own network, so that the rules that keep hops apart hold here as on the Internet. All addresses
//! look public and exist in namespaces only.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use crate::account;
use crate::attacks;
use crate::boot::{self, Machine, Parts};
use crate::chain::{self, Operator};
use crate::host::{Host, Service, checked};

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
/// The longest time for relays to learn of each other, and the interval between queries.
const PATIENCE: Duration = Duration::from_secs(20);
const ASK_EVERY: Duration = Duration::from_millis(100);
/// The relays in the order in which they are named or register. The order gives them their numbers.
pub(crate) const RELAYS: [&str; 4] = ["ingress-1", "ingress-2", "egress-1", "egress-2"];

/// Returns the relay whose number is under `key` in a client's status.
pub(crate) fn relay_in_status(status: &serde_json::Value, key: &str) -> Result<&'static str> {
    let number = status[key].as_u64().with_context(|| format!("the status has no {key}"))?;
    RELAYS.get(usize::try_from(number)?.wrapping_sub(1)).copied().with_context(|| format!("there is no relay {number}"))
}

/// The relay that runs in a machine, if any does.
pub(crate) const BOOTED: &str = "egress-2";

/// Port of the relays.
pub(crate) const PORT: u16 = 443;
/// Port of the first relay that lies. The other lying relays use the ports after it.
pub(crate) const FIRST_LIAR: u16 = 4431;

/// All hosts and the links between them.
pub(crate) struct Network {
    pub(crate) core: Host,
    pub(crate) client: Host,
    hosts: Vec<Host>,
    pub(crate) dir: PathBuf,
}

impl Network {
    /// Creates hosts and links below `dir`.
    pub(crate) fn new(dir: &Path) -> Result<Self> {
        let core = Host::new("core", dir)?;
        let client = Host::new("client", dir)?;
        let hosts: Result<Vec<Host>> = SITES.iter().map(|site| Host::new(site.name, dir)).collect();
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
    fn bridge(&self, name: &str) -> Result<()> {
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

    /// Boots an image in a machine on the network of a host.
    ///
    /// The machine takes the host's place. The host may attack it.
    fn boot(&self, name: &str, operator: &Operator, image: &Path, attacks: &[String]) -> Result<(Machine, PathBuf)> {
        self.bridge(name)?;
        let host = self.host(name)?;
        let image = image.join("image.efi");
        let parts = Parts::of(&image, host.dir())?;
        let network = [
            "-netdev",
            "tap,id=net,ifname=tap0,script=no,downscript=no",
            "-device",
            "virtio-net-pci,netdev=net,romfile=",
        ];
        let mut more: Vec<OsString> = network.map(Into::into).to_vec();
        if !attacks.is_empty() {
            more.extend(attacks::ignored(&image, &host.dir().join("attacks"), attacks)?);
        }
        let machine = parts.start(host.command(boot::TIE), &more, Some(host.dir()))?;
        boot::configure(host.dir(), &operator.machine_config(self, name)?)?;
        machine.await_line(boot::READY, boot::BOOT)?;
        Ok((machine, host.dir().join("feed")))
    }

    /// Returns the names of all links at the core, as `break` takes them.
    pub(crate) fn links() -> Vec<&'static str> {
        SITES.iter().map(|site| site.name).collect()
    }

    /// Returns the core's end of the link to `name`.
    pub(crate) fn link_of(name: &str) -> Result<&'static str> {
        match SITES.iter().find(|site| site.name == name) {
            Some(site) => Ok(site.link),
            None => {
                bail!(
                    "unknown link {name}; use one of: {}, evidence, collateral, vote, image",
                    Self::links().join(", ")
                )
            }
        }
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

    /// Writes configurations, and starts servers and relays.
    pub(crate) fn serve(&self, programs: &Programs, relay_arguments: &[&str]) -> Result<Services> {
        self.selfhost(programs)?;
        self.start(programs, relay_arguments)
    }

    /// Starts servers, a chain with its mirror, and relays that register on the chain.
    pub(crate) fn serve_by_chain(&self, programs: &Programs) -> Result<Services> {
        let mut others = vec![self.internet(programs)?];
        others.extend(chain::start(self, programs)?);
        let registered: Result<Vec<_>> = RELAYS.iter().map(|name| Operator::register(self, programs, name)).collect();
        let registered = registered?;
        let machine = match programs.image.as_ref().filter(|_| programs.boot) {
            Some(image) => {
                let booted = RELAYS.iter().position(|name| *name == BOOTED).and_then(|place| registered.get(place));
                // Ingresses connect to the relay as soon as its key is on the chain, which may be before it listens.
                for name in RELAYS.iter().filter(|name| **name != BOOTED) {
                    account::watch_machine(self.host(name)?, self.address(BOOTED, false)?)?;
                }
                Some(self.boot(
                    BOOTED,
                    booted.context("the booted relay is not registered")?,
                    image,
                    &programs.attacked,
                )?)
            }
            None => None,
        };
        // Each start derives a key from a password and waits for a block, so relays start in parallel.
        let started: Result<Vec<Service>> = std::thread::scope(|scope| {
            let threads: Vec<_> = RELAYS
                .iter()
                .zip(&registered)
                .map(|(name, operator)| {
                    let arguments = match &machine {
                        Some((_, feed)) if *name == BOOTED => vec!["--machine".into(), feed.display().to_string()],
                        _ => Vec::new(),
                    };
                    scope.spawn(move || {
                        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                        operator.start(self.host(name)?, programs, &arguments)
                    })
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| bail!("a relay's start panicked")))
                .collect()
        });
        let mut relays: Vec<_> = RELAYS.into_iter().zip(started?).collect();
        // Each relay must have read the keys that the others generated.
        let deadline = Instant::now() + PATIENCE;
        for (name, relay) in &mut relays {
            while serde_json::from_str::<serde_json::Value>(&relay.ask("USR1")?)?["peers"] != 2 {
                ensure!(Instant::now() < deadline, "{name} did not learn of the other relays within 20 s");
                std::thread::sleep(ASK_EVERY);
            }
        }
        chain::await_evidence(self, programs, RELAYS.len())?;
        let machine = machine.map(|(machine, _)| machine);
        Ok(Services { others, relays, operators: RELAYS.into_iter().zip(registered).collect(), machine })
    }

    pub(crate) fn internet(&self, programs: &Programs) -> Result<Service> {
        let server = self.host("server")?;
        let mut command = server.command(&programs.dev);
        command
            .arg("internet")
            .arg(self.address("server", false)?.to_string())
            .arg(self.address("server", true)?.to_string())
            .arg("--chain")
            .arg(self.address("chain", false)?.to_string());
        server.start(command, "ready")
    }

    /// Starts servers and relays from existing configurations.
    pub(crate) fn start(&self, programs: &Programs, relay_arguments: &[&str]) -> Result<Services> {
        let internet = self.internet(programs)?;
        let mut relays = Vec::new();
        for name in RELAYS {
            let host = self.host(name)?;
            let mut command = host.command(if programs.leak { &programs.dev } else { &programs.relay });
            if programs.leak {
                command.arg("leaking-relay");
            }
            command
                .arg("run")
                .arg("--config")
                .arg(self.dir.join("config").join(name).join("relay.toml"))
                .args(relay_arguments);
            relays.push((name, host.start(command, "ready")?));
        }
        Ok(Services { others: vec![internet], relays, operators: Vec::new(), machine: None })
    }

    /// Runs `openrelay selfhost init` for this network.
    pub(crate) fn selfhost(&self, programs: &Programs) -> Result<()> {
        // A name with both addresses makes a relay listen on both.
        let mut hosts = std::fs::read_to_string("/etc/hosts").unwrap_or_default();
        for name in RELAYS {
            for v6 in if programs.outer_v6 { &[true][..] } else { &[false, true] } {
                hosts += &format!("{} {name}.devnet\n", self.address(name, *v6)?);
            }
        }
        std::fs::write(self.client.dir().join("etc/hosts"), hosts)?;
        let config = self.dir.join("config");
        let mut command = self.client.command(&programs.openrelay);
        command.args(["selfhost", "init", "--out"]).arg(&config);
        for (option, names) in [("--ingress", ["ingress-1", "ingress-2"]), ("--egress", ["egress-1", "egress-2"])] {
            for name in names {
                command.arg(option).arg(format!("{name}.devnet:{PORT}"));
            }
        }
        command.args(["--dns", &self.address("server", false)?.to_string()]);
        let output = command.stdin(Stdio::null()).output().context("cannot run openrelay selfhost init")?;
        checked(&output, "openrelay selfhost init").map(drop)
    }

    /// Returns the address at which the small internet's servers answer on `port`.
    pub(crate) fn server(&self, port: u16, v6: bool) -> Result<SocketAddr> {
        Ok(SocketAddr::new(self.address("server", v6)?, port))
    }
}

/// The programs of this checkout or installation, beside this program.
#[derive(Clone)]
pub(crate) struct Programs {
    pub(crate) dev: PathBuf,
    pub(crate) openrelay: PathBuf,
    pub(crate) relay: PathBuf,
    /// Folder of the approved image. Without it the relay's program stands for an image.
    pub(crate) image: Option<PathBuf>,
    /// Whether one relay runs from that image, in its own machine.
    pub(crate) boot: bool,
    /// The attacks of the machine's host on its boot.
    pub(crate) attacked: Vec<String>,
    /// Whether relays are started so that they leak.
    pub(crate) leak: bool,
    /// Whether relays have IPv6 addresses only.
    pub(crate) outer_v6: bool,
}

impl Programs {
    /// Returns the programs that simulate trusted execution environments, for networks with a chain, whose relays
    /// must show evidence.
    pub(crate) fn simulating() -> Result<Self> {
        let product = Self::find()?;
        let beside = |name| product.dev.with_file_name(name);
        Ok(Self { openrelay: beside("openrelay-sim"), relay: beside("openrelay-relay-sim"), ..product })
    }

    pub(crate) fn find() -> Result<Self> {
        let dev = std::env::current_exe()?;
        let beside = |name: &str| -> Result<PathBuf> {
            let path = dev.with_file_name(name);
            if path.exists() {
                Ok(path)
            } else {
                bail!("{name} is not beside openrelay-dev; run: cargo build --release")
            }
        };
        Ok(Self {
            openrelay: beside("openrelay")?,
            relay: beside("openrelay-relay")?,
            dev,
            image: None,
            boot: false,
            attacked: Vec::new(),
            leak: false,
            outer_v6: false,
        })
    }
}

/// All running processes.
pub(crate) struct Services {
    #[expect(dead_code, reason = "held for as long as they must run")]
    pub(crate) others: Vec<Service>,
    pub(crate) relays: Vec<(&'static str, Service)>,
    /// The machine in which the relay [`BOOTED`] runs, if any does.
    pub(crate) machine: Option<Machine>,
    /// The operators of the relays, on a network with a chain.
    pub(crate) operators: Vec<(&'static str, Operator)>,
}

impl Services {
    /// Returns the operator of a relay.
    pub(crate) fn operator(&self, name: &str) -> Result<&Operator> {
        let found = self.operators.iter().find(|(own, _)| *own == name);
        found.map(|(_, operator)| operator).with_context(|| format!("no operator on a chain runs {name}"))
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
