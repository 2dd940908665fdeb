//! Circuits on paths that change, lose, or carry garbage, floods and crowds.

use std::io::Read as _;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Result, ensure};

use crate::net::host::checked;
use crate::net::loss;
use crate::net::network::CLIENT_V4;
use crate::scenario::bench::Bench;
use crate::world::flood::{self, Flood, Kind, SPOOFED};
use crate::world::internet::{ECHO, NAME, WEB};
use crate::world::relays::RELAYS;

/// Sends meaningless datagrams of all sizes to all relays, among them those of the circuit.
pub(super) fn garbage(bench: &mut Bench) -> Result<()> {
    bench.connect(&[])?;
    for name in RELAYS {
        for v6 in [false, true] {
            let to = std::net::SocketAddr::new(bench.network.address(name, v6)?, 443).to_string();
            let output = bench.network.host("server")?.command(&bench.programs.dev).args(["garbage", &to]).output()?;
            checked(&output, "garbage")?;
        }
    }
    ensure!(bench.fetch(4)?["sha256_ok"] == true, "the fetched bytes are wrong");
    bench.disconnect()
}

pub(super) fn changes_under_load(bench: &mut Bench) -> Result<()> {
    bench.connect(&[])?;
    let mut command = bench.network.client.command(&bench.programs.dev);
    let mut child = command
        .args(["fetch", &format!("{NAME}:{WEB}"), &(1024u64 << 20).to_string()])
        .stdout(Stdio::piped())
        .spawn()?;
    let progress =
        |bench: &Bench| -> Result<u64> { Ok(bench.status()?["traffic"]["delivered_bytes"].as_u64().unwrap_or(0)) };
    let goes_on = |bench: &Bench, after: &str| -> Result<()> {
        let before = progress(bench)?;
        bench.soon(&format!("progress after {after}"), || Ok(progress(bench)? > before + (32 << 20)))
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
    bench.disconnect()?;
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

pub(super) fn lossy(bench: &mut Bench) -> Result<()> {
    bench.connect(&[])?;
    let fifth = |what: &str| format!("udp {what} 443 numgen random mod 5 == 0");
    loss::lose(bench.network.host("nat")?, &[&fifth("dport"), &fifth("sport")])?;
    // By address and not by name: glibc sends a query twice, and one time in ten both are lost.
    let server = bench.network.server(WEB, false)?.to_string();
    ensure!(bench.fetch_from(&server, 1)?["sha256_ok"] == true, "the fetched bytes are wrong");
    loss::mend(bench.network.host("nat")?)?;
    let before = bench.account.lost;
    bench.disconnect()?;
    ensure!(bench.account.lost - before > 100, "links lost only {} datagrams", bench.account.lost - before);
    Ok(())
}

pub(super) fn one_hop(bench: &mut Bench) -> Result<()> {
    let status = bench.connect(&["--one-hop"])?;
    ensure!(status["hops"] == 1 && status["ingress"].is_null(), "the status does not report one hop: {status}");
    let text = bench.openrelay(&["status"])?.1;
    ensure!(text.contains("ONE HOP"), "the status does not report one hop: {text}");
    ensure!(bench.fetch(16)?["sha256_ok"] == true, "the fetched bytes are wrong");
    bench.disconnect()
}

/// An ingress under attack, and one with hundreds of clients, count every datagram that arrives.
pub(super) fn crowds(bench: &mut Bench) -> Result<()> {
    flood::prepare_links(&bench.network)?;
    loss::lose(&bench.network.core, &[&format!("ip daddr {SPOOFED} udp sport 443")])?;
    bench.connect(&[])?;
    for kind in [Kind::Fresh, Kind::Replayed, Kind::Flipped, Kind::Proven] {
        let mut attack = Flood::prepare(&bench.network, &bench.programs, kind, 1, 10_000, true)?;
        attack.begin()?;
        ensure!(bench.fetch(4)?["sha256_ok"] == true, "the bytes fetched during a flood are wrong");
        ensure!(attack.finish()?["sent"] == 10_000, "the flood was smaller than requested");
    }
    let before = bench.account.lost;
    bench.disconnect()?;
    let ingress = bench.network.host("ingress-1")?;
    let ((come, _), (gone, _)) = (ingress.counter("ip flood", "in")?, ingress.counter("ip flood", "out")?);
    let lost = bench.account.lost - before;
    ensure!(
        come == 40_000 && gone > 0 && lost == gone,
        "{come} datagrams arrived, {gone} were answered, {lost} are missing"
    );
    flood::mend_links(&bench.network)?;
    loss::mend(&bench.network.core)?;

    let mut load = bench.network.client.command(&bench.programs.dev);
    load.args(["load", "--circuits", "300", "--active", "300", "--config"]).arg(bench.config());
    let output = load.stdin(Stdio::null()).output()?;
    let text = checked(&output, "openrelay-dev load")?;
    ensure!(text.contains("\"answered\":300"), "not all of 300 circuits were answered: {text}");
    // A circuit afterwards makes every socket report what its kernel dropped.
    bench.connect(&[])?;
    bench.disconnect()
}
