//! `openrelay-dev devnet check`: scenarios with real processes in namespaces.
//!
//! Owns what no unit test can see: memory of running relays, keys and paths that change under a running TCP
//! connection, exit codes. After each scenario it takes the account: every program against its host's kernel, and all
//! hosts together against the counters of the links.

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::account::{self, Datagrams};
use crate::flood::{self, Flood, Kind, SPOOFED};
use crate::host::{Service, checked};
use crate::loss;
use crate::say;
use crate::services::{ECHO, NAME, WEB};
use crate::topology::{CLIENT_V4, CLIENT_V6, Network, Programs, RELAYS, Services, relay_in_status};
use crate::wire;

/// The longest time in which a change must show.
const PATIENCE: Duration = Duration::from_secs(20);

type Scenario = fn(&mut Bench) -> Result<()>;

/// Whether a scenario makes links lose datagrams.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Links {
    Whole,
    Broken,
}

struct Bench {
    network: Network,
    services: Services,
    programs: Programs,
    config: PathBuf,
    /// What the kernel of the client's host had counted when the client connected.
    before: Datagrams,
    /// Datagrams that links had counted as lost at the last account.
    lost: u64,
}

/// Runs all scenarios on one network. An error names the first that fails.
pub(crate) fn run(dir: &Path) -> Result<()> {
    let programs = Programs::find()?;
    let network = Network::new(dir)?;
    network.selfhost(&programs)?;
    let config = dir.join("config/client/client.toml");
    // Without trains each datagram is one packet, so the kernel's counters are exact. The demo uses trains.
    for file in RELAYS.map(|name| dir.join("config").join(name).join("relay.toml")).iter().chain([&config]) {
        fs::write(file, format!("udp_trains = false\n{}", fs::read_to_string(file)?))?;
    }
    for name in WATCHED {
        account::watch(network.host(name)?)?;
    }
    loss::watch(&network)?;
    let services = network.start(&programs, &["--unconfined"])?;
    let mut bench = Bench { network, services, programs, config, before: Datagrams::default(), lost: 0 };
    let scenarios: [(&str, Scenario, Links); 12] = [
        ("memory of both relays holds no canary", memory, Links::Whole),
        ("garbage datagrams are counted and stop nothing", garbage, Links::Whole),
        ("a TCP connection survives rekeying, roaming and a smaller path MTU", changes_under_load, Links::Broken),
        (
            "an egress forwards nothing to forbidden destinations and nothing with an inner address",
            firewall,
            Links::Whole,
        ),
        ("a circuit survives a path that loses a fifth, and all losses are the path's", lossy, Links::Broken),
        ("floods and crowds are counted to the last datagram", crowds, Links::Broken),
        ("one hop works and the status reports it", one_hop, Links::Whole),
        ("nothing leaves outside the tunnel when the relay is cut off", blocked, Links::Broken),
        ("a host without a network feeds nothing into its own tunnel", unplugged, Links::Whole),
        ("a daemon that is killed leaves nothing open, and down cleans up", crash, Links::Whole),
        ("refused directories and configurations are reported with the reason", refusals, Links::Whole),
        ("nothing leaves outside the tunnel when relays are killed", killed, Links::Whole),
    ];
    for (name, scenario, links) in scenarios {
        let (started, before) = (Instant::now(), bench.lost);
        scenario(&mut bench).with_context(|| format!("scenario failed: {name}"))?;
        let lost = bench.lost - before;
        ensure!((links == Links::Broken) == (lost > 0), "{name}: links lost {lost} datagrams");
        say(&format!("ok  {:>5.1} s  {name}; links lost {lost} datagrams", started.elapsed().as_secs_f64()));
    }
    let Bench { network, services, .. } = bench;
    drop(services);
    nothing_logged(&network)?;
    say("ok           no log contains an address of the client or of a destination");
    Ok(())
}

/// Searches all logs of relays, client and daemon for addresses and names that must not be logged.
fn nothing_logged(network: &Network) -> Result<()> {
    let client =
        [CLIENT_V4.parse()?, CLIENT_V6.parse()?, network.address("nat", false)?, network.address("nat", true)?];
    let server = [network.address("server", false)?, network.address("server", true)?];
    let canaries: Vec<String> =
        client.iter().chain(&server).map(ToString::to_string).chain([NAME.to_owned()]).collect();
    let mut read = 0;
    for host in ["client", "ingress-1", "ingress-2", "egress-1", "egress-2"] {
        for folder in [network.host(host)?.dir().to_owned(), network.host(host)?.dir().join("run")] {
            for file in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if file.path().extension().is_none_or(|extension| extension != "log") {
                    continue;
                }
                let text = String::from_utf8_lossy(&fs::read(file.path())?).into_owned();
                let found = canaries.iter().find(|canary| text.contains(*canary));
                ensure!(found.is_none(), "{} contains {found:?}", file.path().display());
                read += 1;
            }
        }
    }
    ensure!(read >= 5, "found only {read} logs");
    Ok(())
}

impl Bench {
    fn openrelay(&self, arguments: &[&str]) -> Result<std::process::Output> {
        Ok(self.network.client.command(&self.programs.openrelay).args(arguments).stdin(Stdio::null()).output()?)
    }

    fn up(&mut self, extra: &[&str]) -> Result<Value> {
        self.before = account::of_kernel(&self.network.client)?;
        let config = self.config.display().to_string();
        let mut arguments = vec!["up", "--wait", "--config", &config];
        arguments.extend(extra);
        checked(&self.openrelay(&arguments)?, "openrelay up")?;
        let status = self.status()?;
        let first = relay_in_status(&status, if status["ingress"].is_null() { "egress" } else { "ingress" })?;
        wire::watch(
            self.network.host("nat")?,
            [self.network.address(first, false)?, self.network.address(first, true)?],
        )?;
        Ok(status)
    }

    /// Takes the account and then disconnects the client.
    fn down(&mut self) -> Result<()> {
        self.lost = self.account_in_peace()?;
        self.take_down()
    }

    /// Checks what has left the client's host and then disconnects the client.
    fn take_down(&self) -> Result<()> {
        wire::judge(self.network.host("nat")?)?;
        wire::unwatch(self.network.host("nat")?)?;
        checked(&self.openrelay(&["down"])?, "openrelay down").map(drop)
    }

    fn status(&self) -> Result<Value> {
        Ok(serde_json::from_slice(&self.openrelay(&["status", "--json"])?.stdout)?)
    }

    fn fetch(&self, mib: u64) -> Result<Value> {
        self.fetch_from(&format!("{NAME}:{WEB}"), mib)
    }

    fn fetch_from(&self, host: &str, mib: u64) -> Result<Value> {
        let output =
            self.network.client.command(&self.programs.dev).args(["fetch", host, &(mib << 20).to_string()]).output()?;
        Ok(serde_json::from_str(checked(&output, "fetch")?.trim())?)
    }

    /// Tries to reach the Internet as programs would, through the tunnel and directly through the outer interface.
    ///
    /// No attempt may get an answer. The wire's counters judge what leaves.
    fn try_everything(&self) -> Result<()> {
        let mut attempts = Vec::new();
        for v6 in [false, true] {
            let server = self.network.address("server", v6)?.to_string();
            let family = if v6 { "-6" } else { "-4" };
            for interface in [&[][..], &["-I", "eth0"]] {
                let mut command = self.network.client.command("ping");
                command.args(["-n", family, "-c", "3", "-i", "0.1", "-W", "1"]).args(interface).arg(&server);
                attempts.push(command);
            }
            for (what, to) in [("fetch", self.network.server(WEB, v6)?), ("echo", self.network.server(ECHO, v6)?)] {
                let mut command = self.network.client.command("timeout");
                command.args(["1"]).arg(&self.programs.dev).args([what, &to.to_string(), "1"]);
                attempts.push(command);
            }
        }
        let mut by_name = self.network.client.command("timeout");
        by_name.args(["1"]).arg(&self.programs.dev).args(["fetch", &format!("{NAME}:{WEB}"), "1"]);
        attempts.push(by_name);
        let running: std::io::Result<Vec<_>> = attempts
            .iter_mut()
            .map(|command| command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn())
            .collect();
        for (mut child, command) in running?.into_iter().zip(&attempts) {
            ensure!(!child.wait()?.success(), "a blocked program got an answer: {command:?}");
        }
        Ok(())
    }

    /// Returns whether the server answers one ping of the client.
    fn ping(&self) -> Result<bool> {
        let server = self.network.address("server", false)?.to_string();
        let output = self.network.client.command("ping").args(["-n", "-c", "1", "-W", "1", &server]).output()?;
        Ok(output.status.success())
    }

    /// Takes the account when no datagram is in flight. A ping beforehand makes every socket report what its kernel
    /// dropped before.
    fn account_in_peace(&mut self) -> Result<u64> {
        self.in_peace(|bench| {
            bench.ping()?;
            bench.account()
        })
    }

    /// Repeats `judge` until it succeeds, because datagrams may be in flight. Returns its result, or its last error
    /// after 20 attempts.
    fn in_peace<T>(&mut self, mut judge: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        for _ in 1..20 {
            if let Ok(outcome) = judge(self) {
                return Ok(outcome);
            }
        }
        judge(self)
    }

    /// Compares the counts of client and relays with those of their hosts' kernels, and missing datagrams with the
    /// losses of links.
    ///
    /// Returns how many datagrams links have lost so far.
    fn account(&mut self) -> Result<u64> {
        let before = self.all_kernels()?;
        self.account_of_client()?;
        for name in RELAYS {
            self.account_of_relay(name)?;
        }
        let all = self.all_kernels()?;
        ensure!(all == before, "datagrams were still in flight");
        self.account_of_links(all)
    }

    fn account_of_client(&self) -> Result<()> {
        let client = account::of_client(&self.status()?["traffic"])?;
        let kernel = account::of_kernel(&self.network.client)?.since(self.before);
        ensure!(client == kernel, "the client counted {client:?}, its host's kernel {kernel:?}");
        Ok(())
    }

    fn account_of_relay(&mut self, name: &str) -> Result<()> {
        let counted = account::of_relay(name, &serde_json::from_str(&self.service(name)?.ask("USR1")?)?)?;
        let kernel = account::of_kernel(self.network.host(name)?)?;
        ensure!(counted == kernel, "{name} counted {counted:?}, its host's kernel {kernel:?}");
        Ok(())
    }

    fn account_of_links(&self, all: Datagrams) -> Result<u64> {
        let refused: u64 =
            WATCHED.iter().map(|name| account::refused(self.network.host(name)?)).sum::<Result<u64>>()?;
        let lost = loss::counted(&self.network)?;
        ensure!(all.sent == all.received + refused + lost, "{all:?}, {refused} refused, links lost {lost}");
        Ok(lost)
    }

    fn all_kernels(&self) -> Result<Datagrams> {
        let mut all = Datagrams::default();
        for name in WATCHED {
            all += account::of_kernel(self.network.host(name)?)?;
        }
        Ok(all)
    }

    fn wait_for(&self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !holds()? {
            ensure!(Instant::now() < deadline, "{what} did not happen within {} s", PATIENCE.as_secs());
            std::thread::yield_now();
        }
        Ok(())
    }

    fn service(&mut self, name: &str) -> Result<&mut Service> {
        let found = self.services.relays.iter_mut().find(|(own, _)| *own == name);
        found.map(|(_, service)| service).with_context(|| format!("there is no relay {name}"))
    }

    fn relay(&mut self, name: &str) -> Result<u32> {
        Ok(self.service(name)?.pid())
    }
}

/// Hosts whose kernels count. The NAT is one of them, because it drops datagrams to a mapping that it has deleted.
const WATCHED: [&str; 7] = ["client", "nat", "ingress-1", "ingress-2", "egress-1", "egress-2", "server"];
fn memory(bench: &mut Bench) -> Result<()> {
    let status = bench.up(&[])?;
    let answer = bench.fetch(32)?;
    ensure!(answer["sha256_ok"] == true, "the fetched bytes are wrong");
    let server = [bench.network.address("server", false)?, bench.network.address("server", true)?];
    for (number, address) in server.iter().enumerate() {
        let to = bench.network.server(ECHO, number == 1)?.to_string();
        let output = bench.network.client.command(&bench.programs.dev).args(["echo", &to, "50"]).output()?;
        checked(&output, &format!("echo {address}"))?;
    }
    let ingress = bench.relay(relay_in_status(&status, "ingress")?)?;
    let egress = bench.relay(relay_in_status(&status, "egress")?)?;
    let client = [CLIENT_V4.parse()?, CLIENT_V6.parse()?, bench.network.address("nat", false)?];
    let mut needles: Vec<Vec<u8>> = server.iter().map(octets).collect();
    // As a query encodes it: each label after its length.
    needles
        .push(NAME.split('.').flat_map(|label| [&[label.len().to_le_bytes()[0]], label.as_bytes()].concat()).collect());
    let found = search(ingress, &needles)?;
    ensure!(found == [0; 3], "the ingress's memory contains destinations: {found:?}");
    let needles: Vec<Vec<u8>> = client.iter().map(octets).collect();
    let found = search(egress, &needles)?;
    ensure!(found == [0; 3], "the egress's memory contains the client's addresses: {found:?}");
    // Proves that the search can find something: an ingress must know the client's address.
    let own = search(ingress, &[octets(&bench.network.address("nat", false)?)])?;
    ensure!(own[0] > 0, "the search does not find the client's address at the ingress");
    bench.down()
}

fn octets(address: &IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// Returns how often each needle occurs in a process's writable memory. A needle of four bytes occurs by chance once
/// in about 4 GB of random bytes.
fn search(pid: u32, needles: &[Vec<u8>]) -> Result<Vec<usize>> {
    let mut found = vec![0; needles.len()];
    let mut memory = fs::File::open(format!("/proc/{pid}/mem"))?;
    for line in BufReader::new(fs::File::open(format!("/proc/{pid}/maps"))?).lines() {
        let line = line?;
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
        let Some((start, end)) = range.split_once('-') else { continue };
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        if !rights.starts_with("rw") {
            continue;
        }
        let mut bytes = vec![0; usize::try_from(end - start)?];
        memory.seek(SeekFrom::Start(start))?;
        if memory.read_exact(&mut bytes).is_err() {
            continue;
        }
        for (needle, count) in needles.iter().zip(&mut found) {
            *count += bytes.windows(needle.len()).filter(|window| window == needle).count();
        }
    }
    Ok(found)
}

/// Sends meaningless datagrams of all sizes to all relays, among them those of the circuit.
fn garbage(bench: &mut Bench) -> Result<()> {
    bench.up(&[])?;
    for name in RELAYS {
        for v6 in [false, true] {
            let to = std::net::SocketAddr::new(bench.network.address(name, v6)?, 443).to_string();
            let output = bench.network.host("server")?.command(&bench.programs.dev).args(["garbage", &to]).output()?;
            checked(&output, "garbage")?;
        }
    }
    ensure!(bench.fetch(4)?["sha256_ok"] == true, "the fetched bytes are wrong");
    bench.down()
}

fn changes_under_load(bench: &mut Bench) -> Result<()> {
    bench.up(&[])?;
    let mut command = bench.network.client.command(&bench.programs.dev);
    let mut child = command
        .args(["fetch", &format!("{NAME}:{WEB}"), &(1024u64 << 20).to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let progress =
        |bench: &Bench| -> Result<u64> { Ok(bench.status()?["traffic"]["delivered_bytes"].as_u64().unwrap_or(0)) };
    let goes_on = |bench: &Bench, after: &str| -> Result<()> {
        let before = progress(bench)?;
        bench.wait_for(&format!("progress after {after}"), || Ok(progress(bench)? > before + (32 << 20)))
    };
    goes_on(bench, "the start")?;
    for _ in 0..3 {
        let socket = bench.network.client.dir().join("run/control.sock");
        post(&socket, "/v1/rekey")?;
        goes_on(bench, "rekeying")?;
    }
    // Another address: to the ingress this looks like a phone that changes networks.
    renumber_nat(bench, "192.0.2.2", "192.0.2.3")?;
    goes_on(bench, "roaming")?;
    // Full packets do not pass any longer. The client ignores ICMP errors and trusts only its own probes.
    bench.network.core.sh("ip link set nat mtu 1400")?;
    goes_on(bench, "a smaller path")?;
    let status = child.wait()?;
    let mut text = String::new();
    if let Some(mut out) = child.stdout.take() {
        out.read_to_string(&mut text)?;
    }
    ensure!(status.success(), "the fetch failed: {text}");
    // The hosts fragment these datagrams for the devices, and OpenRelay fragments them again for the path. No router
    // reports the path MTU to their senders.
    let to = bench.network.server(ECHO, false)?.to_string();
    let echo = |count: &str| {
        bench.network.client.command(&bench.programs.dev).args(["echo", &to, count, "--size", "1390"]).output()
    };
    // The first answer tells the server that the egress's device has a smaller MTU than Ethernet.
    let _ = echo("1")?;
    checked(&echo("20")?, "datagrams larger than the path")?;
    bench.network.core.sh("ip link set nat mtu 1500")?;
    bench.down()?;
    renumber_nat(bench, "192.0.2.3", "192.0.2.2")?;
    loss::mend(&bench.network.core)
}

/// Gives the NAT another address and makes it delete its mappings.
///
/// Datagrams that arrive meanwhile, or that go to the old address afterwards, are lost.
fn renumber_nat(bench: &Bench, old: &str, new: &str) -> Result<()> {
    let (core, nat) = (&bench.network.core, bench.network.host("nat")?);
    loss::lose(nat, &["udp dport 443", "udp sport 443"])?;
    loss::mend(core)?;
    loss::lose(core, &[&format!("ip daddr {old} udp sport 443")])?;
    let script = format!(
        "ip addr del {old}/24 dev wan; ip addr add {new}/24 dev wan; ip route replace default via 192.0.2.1; \
         nft delete table ip nat; \
         nft 'table ip nat {{ chain post {{ type nat hook postrouting priority srcnat; \
         oifname \"wan\" masquerade; }}; }}'"
    );
    nat.sh(&script)?;
    let forget = nat.command(&bench.programs.dev).args(["forget", CLIENT_V4]).output()?;
    checked(&forget, "forget the NAT's mapping")?;
    loss::mend(nat)
}

fn post(socket: &Path, path: &str) -> Result<()> {
    use std::io::Write as _;
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    write!(stream, "POST {path} HTTP/1.1\r\nHost: openrelay\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{path}: {answer}");
    Ok(())
}

fn firewall(bench: &mut Bench) -> Result<()> {
    let status = bench.up(&[])?;
    let egress = bench.network.host(relay_in_status(&status, "egress")?)?;
    egress.sh("nft 'table ip stray { counter leaving { }; counter untranslated { }; \
         chain out { type filter hook postrouting priority 400; oifname wan counter name leaving; \
         oifname wan ip saddr 100.64.0.0/10 counter name untranslated; }; }'")?;
    let packets = |table: &str, counter: &str| egress.counter(table, counter).map(|(packets, _)| packets);
    let server = bench.network.address("server", false)?.to_string();
    // An ingress that the circuit does not use: packets to the one in use do not enter the tunnel.
    let other = if relay_in_status(&status, "ingress")? == "ingress-1" { "ingress-2" } else { "ingress-1" };
    let other = bench.network.address(other, false)?.to_string();
    let mut blocked = packets("inet openrelay_egress", "blocked")?;
    for (what, line) in [
        ("mail", format!("timeout 1 bash -c '</dev/tcp/{server}/25'")),
        ("another port of a relay", format!("timeout 1 bash -c '</dev/tcp/{other}/22'")),
        ("the end of no connection", format!("{} stray {server}", bench.programs.dev.display())),
    ] {
        let _ = bench.network.client.sh(&line);
        let now = || packets("inet openrelay_egress", "blocked");
        bench.wait_for(&format!("the egress blocking {what}"), || Ok(now()? > blocked))?;
        blocked = now()?;
    }
    ensure!(bench.fetch(1)?["sha256_ok"] == true, "the web is blocked too");
    let (all, inner) = (packets("ip stray", "leaving")?, packets("ip stray", "untranslated")?);
    ensure!(all > 0 && inner == 0, "{inner} of {all} packets left with an inner address");
    egress.sh("nft delete table ip stray")?;
    bench.down()
}

fn lossy(bench: &mut Bench) -> Result<()> {
    bench.up(&[])?;
    let fifth = |what: &str| format!("udp {what} 443 numgen random mod 5 == 0");
    loss::lose(bench.network.host("nat")?, &[&fifth("dport"), &fifth("sport")])?;
    // By address and not by name: glibc sends a query twice, and one time in ten both are lost.
    let server = bench.network.server(WEB, false)?.to_string();
    ensure!(bench.fetch_from(&server, 1)?["sha256_ok"] == true, "the fetched bytes are wrong");
    loss::mend(bench.network.host("nat")?)?;
    let before = bench.lost;
    bench.down()?;
    ensure!(bench.lost - before > 100, "links lost only {} datagrams", bench.lost - before);
    Ok(())
}

fn one_hop(bench: &mut Bench) -> Result<()> {
    let status = bench.up(&["--one-hop"])?;
    ensure!(status["hops"] == 1 && status["ingress"].is_null(), "the status does not report one hop: {status}");
    let text = String::from_utf8_lossy(&bench.openrelay(&["status"])?.stdout).into_owned();
    ensure!(text.contains("ONE HOP"), "the status does not report one hop: {text}");
    ensure!(bench.fetch(16)?["sha256_ok"] == true, "the fetched bytes are wrong");
    bench.down()
}

fn blocked(bench: &mut Bench) -> Result<()> {
    let status = bench.up(&[])?;
    let ingress = relay_in_status(&status, "ingress")?;
    let rules: Vec<String> = [("ip", false), ("ip6", true)]
        .into_iter()
        .flat_map(|(family, v6)| ["s", "d"].map(|end| (family, v6, end)))
        .map(|(family, v6, end)| Ok(format!("{family} {end}addr {}", bench.network.address(ingress, v6)?)))
        .collect::<Result<_>>()?;
    let rules: Vec<&str> = rules.iter().map(String::as_str).collect();
    // First a path that silently drops everything, then a router that reports "no route".
    for cut in [loss::lose, loss::refuse] {
        cut(&bench.network.core, &rules)?;
        bench.try_everything()?;
        loss::mend(&bench.network.core)?;
        bench.wait_for("the tunnel carrying again", || bench.ping())?;
    }
    bench.down()
}

/// Runs last, because killed relays stay dead. It takes each relay's account until it dies, and its host kernel's
/// afterwards.
fn killed(bench: &mut Bench) -> Result<()> {
    let status = bench.up(&[])?;
    let (ingress, egress) = (relay_in_status(&status, "ingress")?, relay_in_status(&status, "egress")?);
    let egress_at_its_end = kill(bench, egress)?;
    bench.try_everything()?;
    bench.wait_for("the loss of the egress showing", || {
        bench.ping()?;
        Ok(bench.status()?["state"] == "blocked")
    })?;
    bench.try_everything()?;
    let ingress_at_its_end = kill(bench, ingress)?;
    bench.try_everything()?;
    bench.lost = bench.in_peace(|bench| {
        bench.account_of_client()?;
        for name in RELAYS.into_iter().filter(|name| ![ingress, egress].contains(name)) {
            bench.account_of_relay(name)?;
        }
        for (name, at_its_end) in [(egress, egress_at_its_end), (ingress, ingress_at_its_end)] {
            let now = account::of_kernel(bench.network.host(name)?)?;
            ensure!(now == at_its_end, "the dead {name} sends or receives: {at_its_end:?}, {now:?}");
        }
        bench.account_of_links(bench.all_kernels()?)
    })?;
    bench.take_down()?;
    // A relay whose device is removed ends, so that a service manager can restart it.
    let other = if egress == "egress-1" { "egress-2" } else { "egress-1" };
    bench.network.host(other)?.sh("ip link del orp-egress")?;
    ended(bench.service(other)?)
}

/// Waits until a service has ended.
fn ended(service: &mut Service) -> Result<()> {
    let started = Instant::now();
    while service.is_running() {
        ensure!(started.elapsed() < PATIENCE, "a relay that should end still runs");
        std::thread::yield_now();
    }
    Ok(())
}

/// Kills a relay at a moment at which its account is exact, because no other process runs.
///
/// Returns what its host's kernel had counted.
fn kill(bench: &mut Bench, name: &str) -> Result<Datagrams> {
    let victim = bench.relay(name)?;
    let mut others = vec![daemon_pid()?];
    for (_, service) in &mut bench.services.relays {
        if service.pid() != victim && service.is_running() {
            others.push(service.pid());
        }
    }
    for other in &others {
        signal("STOP", *other)?;
    }
    bench.in_peace(|bench| bench.account_of_relay(name))?;
    signal("KILL", victim)?;
    // The relay's sockets stay open until its process is gone.
    ended(bench.service(name)?)?;
    let at_its_end = account::of_kernel(bench.network.host(name)?)?;
    for other in others {
        signal("CONT", other)?;
    }
    Ok(at_its_end)
}

fn signal(name: &str, pid: u32) -> Result<()> {
    let output = std::process::Command::new("kill").args(["-s", name, &pid.to_string()]).output()?;
    checked(&output, &format!("kill -s {name}")).map(drop)
}

/// An ingress under attack, and one with hundreds of clients, count every datagram that arrives.
fn crowds(bench: &mut Bench) -> Result<()> {
    flood::prepare_links(&bench.network)?;
    loss::lose(&bench.network.core, &[&format!("ip daddr {SPOOFED} udp sport 443")])?;
    bench.up(&[])?;
    for kind in [Kind::Fresh, Kind::Replayed, Kind::Flipped, Kind::Proven] {
        let mut attack = Flood::prepare(&bench.network, &bench.programs, kind, 1, 10_000, true)?;
        attack.begin()?;
        ensure!(bench.fetch(4)?["sha256_ok"] == true, "the bytes fetched during a flood are wrong");
        ensure!(attack.finish()?["sent"] == 10_000, "the flood was smaller than requested");
    }
    let before = bench.lost;
    bench.down()?;
    let ingress = bench.network.host("ingress-1")?;
    let ((come, _), (gone, _)) = (ingress.counter("ip flood", "in")?, ingress.counter("ip flood", "out")?);
    let lost = bench.lost - before;
    ensure!(
        come == 40_000 && gone > 0 && lost == gone,
        "{come} datagrams arrived, {gone} were answered, {lost} are missing"
    );
    flood::mend_links(&bench.network)?;
    loss::mend(&bench.network.core)?;

    let mut load = bench.network.client.command(&bench.programs.dev);
    load.args(["load", "--circuits", "300", "--active", "300", "--config"]).arg(&bench.config);
    let output = load.stdin(Stdio::null()).output()?;
    let text = checked(&output, "openrelay-dev load")?;
    ensure!(text.contains("\"answered\":300"), "not all of 300 circuits were answered: {text}");
    // A circuit afterwards makes every socket report what its kernel dropped.
    bench.up(&[])?;
    bench.down()
}

/// Checks that a client without a route to the first hop does not seal its own datagrams again and again.
///
/// Without this protection the circuit's datagrams would enter the tunnel.
fn unplugged(bench: &mut Bench) -> Result<()> {
    bench.up(&[])?;
    let read = |bench: &Bench| -> Result<u64> {
        bench.status()?["traffic"]["device_read"].as_u64().context("the status has no traffic")
    };
    bench.wait_for("the tunnel carrying", || bench.ping())?;
    let route = bench.network.client.sh("ip route show default table main")?;
    bench.network.client.sh("ip route del default table main")?;
    let before = read(bench)?;
    for _ in 0..3 {
        ensure!(!bench.ping()?, "a packet was answered without a route");
    }
    let added = read(bench)? - before;
    // The kernel also solicits routers now and then. A loop would repeat each packet about a hundred times.
    ensure!(added <= 10, "the client read {added} packets from the device, but only 3 were sent");
    bench.network.client.sh(&format!("ip route add {}", route.trim()))?;
    bench.wait_for("the tunnel carrying again", || bench.ping())?;
    bench.down()
}

fn crash(bench: &mut Bench) -> Result<()> {
    let state = "ip rule; nft -s list ruleset; cat /etc/resolv.conf";
    let before = bench.network.client.sh(state)?;
    bench.up(&[])?;
    bench.lost = bench.account_in_peace()?;
    // Another program removes the device. The client reports that nothing flows, and stays idle.
    bench.network.client.sh("ip link del orp0")?;
    bench.wait_for("the loss showing", || Ok(bench.status()?["state"] == "blocked"))?;
    let daemon = daemon_pid()?;
    let busy = crate::load::cpu_seconds(daemon)?;
    for _ in 0..3 {
        bench.ping()?;
    }
    let busy = crate::load::cpu_seconds(daemon)? - busy;
    ensure!(busy < 0.5, "an idle client used {busy:.1} s of CPU time");
    signal("KILL", daemon)?;
    bench.wait_for("the daemon's end", || Ok(daemon_pid().is_err()))?;
    ensure!(!bench.ping()?, "traffic bypasses the tunnel after a crash");
    let text = String::from_utf8_lossy(&bench.openrelay(&["status"])?.stdout).into_owned();
    ensure!(
        text.contains("Blocked") && text.contains("openrelay down"),
        "the status does not report the block: {text}"
    );
    let again = bench.openrelay(&["up", "--wait", "--config", &bench.config.display().to_string()])?;
    let text = String::from_utf8_lossy(&again.stderr).into_owned();
    ensure!(
        !again.status.success() && text.contains("openrelay down"),
        "up after a crash does not say what to do: {text}"
    );
    bench.take_down()?;
    ensure!(bench.network.client.sh(state)? == before, "the host's state was not restored completely");
    ensure!(bench.ping()?, "no traffic passes after down");
    Ok(())
}

/// Returns the daemon that `openrelay up` started. This process namespace has only one.
fn daemon_pid() -> Result<u32> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.windows(15).any(|window| window == b"up\0--foreground") {
            return Ok(pid);
        }
    }
    bail!("no daemon is running")
}

fn refusals(bench: &mut Bench) -> Result<()> {
    let dir = bench.network.dir.join("refusals");
    fs::create_dir_all(&dir)?;
    let good = fs::read_to_string(&bench.config)?;
    let signed = fs::read(bench.config.with_file_name("directory.signed"))?;
    let mut flipped = signed.clone();
    if let Some(last) = flipped.iter_mut().rev().nth(30) {
        *last ^= 1;
    }
    let cases: [(&str, String, &[u8], i32, &str); 8] = [
        ("flipped", good.clone(), &flipped, 5, "not signed by the trusted key"),
        ("unsigned", good.clone(), b"{}", 5, "not a directory file"),
        ("unknown key", format!("{good}colour = \"blue\"\n"), &signed, 1, "colour"),
        ("missing key", good.replace("admission", "# admission"), &signed, 1, "admission"),
        ("bad address", good.replace("dns = [", "dns = [\"nowhere\", "), &signed, 1, "dns"),
        ("no such relay", format!("ingress = 9\n{good}"), &signed, 1, "line 1, key ingress"),
        ("bad device", format!("device = \"a b\"\n{good}"), &signed, 1, "line 1, key device"),
        (
            "bad key",
            format!("directory_key = \"12\"\n{}", good.replace("directory_key", "# directory_key")),
            &signed,
            1,
            "line 1, key directory_key",
        ),
    ];
    for (name, config, directory, code, text) in cases {
        let path = dir.join("client.toml");
        fs::write(&path, config)?;
        fs::write(dir.join("directory.signed"), directory)?;
        let output = bench.openrelay(&["up", "--wait", "--config", &path.display().to_string()])?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            output.status.code() == Some(code),
            "{name}: exit code {:?} instead of {code}: {said}",
            output.status.code()
        );
        ensure!(
            said.contains(text) && said.contains("client.toml") | said.contains("directory.signed"),
            "{name}: {said}"
        );
    }
    // The client accepts the next directory. It then refuses the previous one, although that is signed and has not
    // expired.
    let network = bench.network.dir.join("config").display().to_string();
    checked(&bench.openrelay(&["selfhost", "renew", "--dir", &network, "--remove", "2"])?, "selfhost renew")?;
    ensure!(bench.up(&[])?["directory_sequence"] == 2, "the renewed directory is not in use");
    bench.down()?;
    let directory = bench.config.with_file_name("directory.signed");
    let renewed = fs::read(&directory)?;
    fs::write(&directory, &signed)?;
    let output = bench.openrelay(&["up", "--wait", "--config", &bench.config.display().to_string()])?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(5) && said.contains("seen before"), "rolled back: {said}");
    if bench.openrelay(&["status"])?.status.code() != Some(3) {
        bail!("status without a connection does not end with exit code 3");
    }
    Ok(fs::write(&directory, renewed)?)
}
