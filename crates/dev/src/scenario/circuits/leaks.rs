//! What relays know and what leaves outside the tunnel: memory, firewall, and a path that is cut.

use std::fs;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::net::IpAddr;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};

use crate::net::host::checked;
use crate::net::loss;
use crate::net::network::CLIENT_V4;
use crate::net::network::CLIENT_V6;
use crate::scenario::bench::Bench;
use crate::world::internet::{ECHO, NAME, WEB};
use crate::world::relays::relay_in_status;

pub(super) fn memory(bench: &mut Bench) -> Result<()> {
    let status = bench.connect(&[])?;
    let answer = bench.fetch(32)?;
    ensure!(answer["sha256_ok"] == true, "the fetched bytes are wrong");
    let server = [bench.network.address("server", false)?, bench.network.address("server", true)?];
    for (number, address) in server.iter().enumerate() {
        let to = bench.network.server(ECHO, number == 1)?.to_string();
        let output = bench.network.client.command(&bench.programs.dev).args(["echo", &to, "50"]).output()?;
        checked(&output, &format!("echo {address}"))?;
    }
    let ingress = bench.service(relay_in_status(&status, "ingress")?)?.pid();
    let egress = bench.service(relay_in_status(&status, "egress")?)?.pid();
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
    bench.disconnect()
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

pub(super) fn firewall(bench: &mut Bench) -> Result<()> {
    let status = bench.connect(&[])?;
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
        bench.soon(&format!("the egress blocking {what}"), || Ok(now()? > blocked))?;
        blocked = now()?;
    }
    ensure!(bench.fetch(1)?["sha256_ok"] == true, "the web is blocked too");
    let (all, inner) = (packets("ip stray", "leaving")?, packets("ip stray", "untranslated")?);
    ensure!(all > 0 && inner == 0, "{inner} of {all} packets left with an inner address");
    egress.sh("nft delete table ip stray")?;
    bench.disconnect()
}

/// Tries to reach the Internet as programs would, through the tunnel and directly through the outer interface.
///
/// No attempt may get an answer. The wire's counters judge what leaves.
pub(super) fn try_everything(bench: &Bench) -> Result<()> {
    let mut attempts = Vec::new();
    for v6 in [false, true] {
        let server = bench.network.address("server", v6)?.to_string();
        let family = if v6 { "-6" } else { "-4" };
        for interface in [&[][..], &["-I", "eth0"]] {
            let mut command = bench.network.client.command("ping");
            command.args(["-n", family, "-c", "3", "-i", "0.1", "-W", "1"]).args(interface).arg(&server);
            attempts.push(command);
        }
        for (what, to) in [("fetch", bench.network.server(WEB, v6)?), ("echo", bench.network.server(ECHO, v6)?)] {
            let mut command = bench.network.client.command("timeout");
            command.args(["1"]).arg(&bench.programs.dev).args([what, &to.to_string(), "1"]);
            attempts.push(command);
        }
    }
    let mut by_name = bench.network.client.command("timeout");
    by_name.args(["1"]).arg(&bench.programs.dev).args(["fetch", &format!("{NAME}:{WEB}"), "1"]);
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

pub(super) fn blocked(bench: &mut Bench) -> Result<()> {
    let status = bench.connect(&[])?;
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
        try_everything(bench)?;
        loss::mend(&bench.network.core)?;
        bench.soon("the tunnel carrying again", || bench.ping())?;
    }
    bench.disconnect()
}

/// Checks that a client without a route to the first hop does not seal its own datagrams again and again.
///
/// Without this protection the circuit's datagrams would enter the tunnel.
pub(super) fn unplugged(bench: &mut Bench) -> Result<()> {
    bench.connect(&[])?;
    let read = |bench: &Bench| -> Result<u64> {
        bench.status()?["traffic"]["device_read"].as_u64().context("the status has no traffic")
    };
    bench.soon("the tunnel carrying", || bench.ping())?;
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
    bench.soon("the tunnel carrying again", || bench.ping())?;
    bench.disconnect()
}
