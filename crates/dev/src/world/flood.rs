//! `openrelay-dev flood`: first packets from addresses that do not exist.
//!
//! Owns the attacker, who knows the relay's public key and can forge any source address. Sends inside the devnet only.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::SocketAddrV4;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use openrelay_client::directory_of;
use openrelay_node::clock::Clock;
use openrelay_node::config::{ClientFile, read};
use openrelay_node::random::OsRandom;
use openrelay_proto::ip::checksum;
use openrelay_proto::random::Random as _;
use serde_json::{Value, json};

use super::load::open;
use super::programs::Programs;
use crate::net::network::Network;
use crate::net::output::say;

/// What the attacker sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Kind {
    /// Up to 65,536 different valid first packets in turn
    ///
    /// The most expensive kind for a relay.
    Fresh,
    /// One valid first packet, repeated
    Replayed,
    /// One valid first packet with a different bit flipped each time
    Flipped,
    /// Valid first packets with a false cookie proof
    ///
    /// Their length does not distinguish them from the packets of a new client with a cookie.
    Proven,
}

/// Options of the attacker.
#[derive(clap::Args)]
pub(crate) struct Options {
    #[arg(long)]
    config: std::path::PathBuf,
    #[arg(long)]
    kind: Kind,
    /// Port to flood instead of the ingress; no relay reads it
    #[arg(long)]
    to: Option<SocketAddrV4>,
    /// Packets per second
    #[arg(long, default_value_t = 50_000)]
    rate: u64,
    #[arg(long, default_value_t = 10)]
    seconds: u64,
}

/// Forged source addresses are in 10.0.0.0/8. The devnet routes that network back to the attacker, which drops the
/// answers.
pub(crate) const SPOOFED: &str = "10.0.0.0/8";
/// Number of packets sent between two checks of the clock.
const BURST: u64 = 50;
/// A port of the ingress whose socket no process reads.
pub(crate) const UNREAD_PORT: u16 = 9;
const HEADERS: usize = 28;
/// Length of a cookie's proof, in bytes.
const PROOF: usize = 16;
/// Sends the flood and prints how many packets it had.
pub(crate) fn send(options: &Options) -> Result<()> {
    let file: ClientFile = read(&options.config)?;
    let (directory, _) = directory_of(&options.config, &options.config.with_file_name("state"))?;
    let (clock, mut random) = (Clock::start(), OsRandom::default());
    let total = options.rate * options.seconds;
    let distinct = match options.kind {
        Kind::Fresh | Kind::Proven => total.min(1 << 16),
        Kind::Replayed | Kind::Flipped => 1,
    };
    let mut packets = Vec::new();
    let mut to = options.to;
    for _ in 0..distinct {
        let mut client = open(&file, &directory, &clock, &mut random)?;
        let std::net::SocketAddr::V4(ingress) = client.remote() else {
            anyhow::bail!("the ingress has no IPv4 address")
        };
        let to = *to.get_or_insert(ingress);
        let mut first = client.poll_transmit().context("the client sent no first packet")?;
        if options.kind == Kind::Proven {
            let mut proof = [0; PROOF];
            random.fill(&mut proof);
            first.extend_from_slice(&proof);
        }
        packets.push(ip_packet(to, &first));
    }
    let to = to.context("there are no packets to send")?;
    let socket = openrelay_sys_dev::raw::RawSocket::open().context("cannot open a raw socket")?;
    say("ready");
    // `measure` writes a line when the flood must start.
    std::io::stdin().read_line(&mut String::new())?;
    let started = Instant::now();
    let (mut sent, mut refused) = (0, 0u64);
    while sent < total {
        for _ in 0..BURST {
            let at = usize::try_from(sent % distinct)?;
            let packet = packets.get_mut(at).context("no packet has this index")?;
            let mut source = [0; 5];
            random.fill(&mut source);
            spoof(packet, source);
            let flipped = (options.kind == Kind::Flipped).then(|| flip(packet, sent));
            refused += u64::from(socket.send(packet, *to.ip()).is_err());
            if let Some((byte, bit)) = flipped {
                packet[byte] ^= bit;
            }
            sent += 1;
        }
        let due = Duration::from_nanos(sent * 1_000_000_000 / options.rate);
        std::thread::sleep(due.saturating_sub(started.elapsed()));
    }
    let seconds = started.elapsed().as_secs_f64();
    say(&json!({ "sent": sent - refused, "seconds": seconds }).to_string());
    Ok(())
}

/// Returns `datagram` with UDP and IPv4 headers, without a source.
fn ip_packet(to: SocketAddrV4, datagram: &[u8]) -> Vec<u8> {
    let mut packet = vec![0; HEADERS];
    packet[0] = 0x45;
    packet[8] = 64;
    packet[9] = openrelay_proto::ip::UDP;
    packet[16..20].copy_from_slice(&to.ip().octets());
    packet[22..24].copy_from_slice(&to.port().to_be_bytes());
    // Without a UDP checksum, which is optional in IPv4.
    packet[24..26].copy_from_slice(&u16::try_from(datagram.len() + 8).unwrap_or(u16::MAX).to_be_bytes());
    packet.extend_from_slice(datagram);
    packet
}

fn spoof(packet: &mut [u8], [a, b, c, port @ ..]: [u8; 5]) {
    packet[12..16].copy_from_slice(&[10, a, b, c]);
    packet[20..22].copy_from_slice(&port);
    checksum::fill_v4_header(packet, 20);
}

/// Flips a bit of the datagram and returns its position.
fn flip(packet: &mut [u8], number: u64) -> (usize, u8) {
    let bits = (packet.len() - HEADERS) * 8;
    let at = usize::try_from(number).unwrap_or(0).wrapping_mul(7_919) % bits;
    let (byte, bit) = (HEADERS + at / 8, 1 << (at % 8));
    packet[byte] ^= bit;
    (byte, bit)
}

/// Holds a UDP socket that no process reads.
pub(crate) fn hold_unread(address: SocketAddrV4) -> Result<()> {
    let _socket = std::net::UdpSocket::bind(address)?;
    say("ready");
    loop {
        std::thread::park();
    }
}

/// A running flood.
pub(crate) struct Flood {
    child: Child,
    lines: BufReader<std::process::ChildStdout>,
}

impl Flood {
    /// Prepares an attacker that waits for [`Flood::begin`]. With `read` the ingress reads its packets; otherwise
    /// they go to the unread port.
    pub(crate) fn prepare(
        network: &Network,
        programs: &Programs,
        kind: Kind,
        seconds: u64,
        rate: u64,
        read: bool,
    ) -> Result<Self> {
        let mut command = network.host("server")?.command(&programs.dev);
        command.args(["flood", "--config"]).arg(network.dir.join("config/client/client.toml"));
        command.args(["--kind", &format!("{kind:?}").to_lowercase()]);
        command.args(["--seconds", &seconds.to_string(), "--rate", &rate.to_string()]);
        if !read {
            command.args(["--to", &format!("{}:{UNREAD_PORT}", network.address("ingress-1", false)?)]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut lines = BufReader::new(child.stdout.take().context("cannot read from the flood program")?);
        let mut line = String::new();
        lines.read_line(&mut line)?;
        ensure!(line.trim() == "ready", "the flood did not start");
        Ok(Self { child, lines })
    }

    pub(crate) fn begin(&mut self) -> Result<()> {
        Ok(self.child.stdin.take().context("the flood has already begun")?.write_all(b"\n")?)
    }

    /// Waits for the end and returns what was sent.
    pub(crate) fn finish(mut self) -> Result<Value> {
        let mut line = String::new();
        self.lines.read_line(&mut line)?;
        self.child.wait()?;
        serde_json::from_str(&line).context("the flood ended early")
    }
}

/// Routes forged addresses back to the attacker and counts their packets at the ingress.
pub(crate) fn prepare_links(network: &Network) -> Result<()> {
    let attacker = network.address("server", false)?;
    network.core.sh(&format!("ip route add {SPOOFED} via {attacker}"))?;
    network.host("server")?.sh("echo 0 > /proc/sys/net/ipv4/ip_forward")?;
    network
        .host("ingress-1")?
        .sh(&format!(
            "nft 'table ip flood {{ counter in {{ }}; counter out {{ }}; \
             chain in {{ type filter hook input priority 0; ip saddr {SPOOFED} counter name in; }}; \
             chain out {{ type filter hook output priority 0; ip daddr {SPOOFED} counter name out; }}; }}'"
        ))
        .map(drop)
}

/// Restores what [`prepare_links`] changed.
pub(crate) fn mend_links(network: &Network) -> Result<()> {
    network.core.sh(&format!("ip route del {SPOOFED}"))?;
    network.host("ingress-1")?.sh("nft delete table ip flood").map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn spoofed_packet_keeps_its_datagram() {
        let to = SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, 1), 443);
        let mut packet = ip_packet(to, &[7; 100]);
        spoof(&mut packet, [1, 2, 3, 4, 5]);
        assert_eq!(packet[12..16], [10, 1, 2, 3]);
        assert_eq!(checksum::fold(checksum::sum(&packet[..20], 0)), 0xffff);
        let (byte, bit) = flip(&mut packet, 9);
        assert!(byte >= HEADERS);
        packet[byte] ^= bit;
        assert_eq!(packet[HEADERS..], [7; 100]);
    }
}
