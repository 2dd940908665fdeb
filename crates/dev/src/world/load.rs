//! `openrelay-dev load`: many clients at once.
//!
//! Owns clients without tunnel devices. They open circuits as `openrelay up` does and keep them.

use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use openrelay_chain::circuit::{self, Hop, Hops, OpenConsent, OwnRelays};
use openrelay_client::directory_of;
use openrelay_ledger::selection::{self, Wish};
use openrelay_node::clock::{Clock, unix_minutes};
use openrelay_node::config::{ClientFile, read};
use openrelay_node::directory::VerifiedDirectory;
use openrelay_node::random::OsRandom;
use openrelay_proto::client::{Client, DatagramEvent, Event};
use openrelay_proto::time::Time;
use openrelay_proto::wire::padded;
use serde_json::json;

use crate::net::output::say;

/// Circuits that open at the same time: enough to keep an ingress busy, and few enough that none has to wait for its
/// turn.
const AT_ONCE: usize = 192;
/// Circuits that begin in one turn: few enough that the ingress does not take them for a flood and ask for cookies.
const NEW: usize = 16;
const PATIENCE: Duration = Duration::from_secs(20);
/// Longer than a client waits for anything while it opens a circuit, and shorter than it waits when the circuit is
/// idle.
const SETTLED: Duration = Duration::from_millis(500);

struct One {
    client: Client,
    socket: UdpSocket,
}

/// Opens `count` circuits through ingress 1 and egress 3 and keeps them. Then sends a packet through each of `active`
/// circuits, and prints the results as JSON.
pub(crate) fn run(config: &Path, count: usize, active: usize) -> Result<()> {
    let file: ClientFile = read(config)?;
    let (directory, _) = directory_of(config, &config.with_file_name("state"))?;
    let clock = Clock::start();
    let started = Instant::now();
    let mut random = OsRandom::default();
    let (mut open, mut opening): (Vec<One>, Vec<One>) = (Vec::new(), Vec::new());
    while open.len() < count {
        for _ in 0..NEW.min(AT_ONCE - opening.len()).min(count - open.len() - opening.len()) {
            opening.push(begin(&file, &directory, &clock, &mut random)?);
        }
        for one in &mut opening {
            drive(one, &clock, &mut random)?;
        }
        // All clients send together, so that a busy relay finds several datagrams whenever it reads.
        for one in &mut opening {
            one.send();
        }
        let now = clock.now();
        let (done, still) = opening.into_iter().partition(|one: &One| one.is_settled(now));
        open.extend::<Vec<One>>(done);
        opening = still;
        ensure!(
            started.elapsed() < PATIENCE * 10,
            "only {} of {count} circuits within {:?}",
            open.len(),
            started.elapsed()
        );
    }
    let seconds = started.elapsed().as_secs_f64();
    say(&json!({ "circuits": open.len(), "seconds": seconds }).to_string());
    // `bench::load` reads the ingress's counters here and then writes a line to continue.
    std::io::stdin().read_line(&mut String::new())?;
    let answered = exchange(&mut open, active, &clock, &mut random)?;
    say(&json!({ "active": active, "answered": answered }).to_string());
    Ok(())
}

fn begin(file: &ClientFile, directory: &VerifiedDirectory, clock: &Clock, random: &mut OsRandom) -> Result<One> {
    let client = open(file, directory, clock, random)?;
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect(client.remote())?;
    socket.set_nonblocking(true)?;
    Ok(One { client, socket })
}

/// Returns a client that begins to open a circuit through ingress 1 and egress 3.
pub(crate) fn open(
    file: &ClientFile,
    directory: &VerifiedDirectory,
    clock: &Clock,
    random: &mut OsRandom,
) -> Result<Client> {
    let wish = Wish { ingress: Some(1), egress: Some(3), ..Wish::default() };
    let (ingress, egress) = selection::circuit(directory.directory(), &wish, |_, _| true, |_| 0)?;
    let own = OwnRelays::from_config(file.attestation, directory)
        .context("the configuration does not allow the user's own relays")?;
    let register = |record| {
        Ok::<_, anyhow::Error>(Hop::Own(directory.register(record).context("the relay is not in the directory")?, own))
    };
    let hops = Hops::Two(register(ingress)?, register(egress)?);
    let consent = OpenConsent::from_config(file.admission).context("the configuration does not set `admission`")?;
    let pick = |endpoints: &[SocketAddr]| endpoints.iter().copied().find(SocketAddr::is_ipv4);
    Ok(circuit::open(hops, consent, None, pick, clock.now(), random)?)
}

impl One {
    /// Returns whether the circuit is open, its path is measured, and nothing is left to send or repeat.
    fn is_settled(&self, now: Time) -> bool {
        self.client.is_connected() && self.client.poll_timeout().since(now) > SETTLED
    }

    fn send(&mut self) {
        while let Some(datagram) = self.client.poll_transmit() {
            // Lost datagrams are repeated.
            let _ = self.socket.send(&datagram);
        }
    }
}

/// Handles received datagrams and due timeouts.
fn drive(one: &mut One, clock: &Clock, random: &mut OsRandom) -> Result<()> {
    let mut buffer = [0; 2_048];
    while let Ok(len) = one.socket.recv(&mut buffer) {
        one.client.handle_datagram(&mut buffer[..len], clock.now(), unix_minutes(), random);
    }
    if one.client.poll_timeout() <= clock.now() {
        one.client.handle_timeout(clock.now(), unix_minutes(), random);
    }
    while let Some(event) = one.client.poll_event() {
        if let Event::Failed(_) | Event::Lost = event {
            bail!("a circuit did not open: {event:?}");
        }
    }
    Ok(())
}

/// Sends a ping to the devnet's server through each of the first `active` circuits. Returns how many were answered.
fn exchange(open: &mut [One], active: usize, clock: &Clock, random: &mut OsRandom) -> Result<usize> {
    let mut answered = 0;
    for one in open.iter_mut().take(active) {
        let ping = ping();
        let offset = one.client.offset();
        let mut datagram = vec![0; offset + padded(ping.len()) + one.client.trailer()];
        datagram[offset..offset + ping.len()].copy_from_slice(&ping);
        one.client.seal(&mut datagram, false, clock.now()).map_err(|reason| anyhow::anyhow!("{}", reason.name()))?;
        one.socket.send(&datagram)?;
        one.socket.set_nonblocking(false)?;
        one.socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut buffer = [0; 2_048];
        while let Ok(len) = one.socket.recv(&mut buffer) {
            let verdict = one.client.handle_datagram(&mut buffer[..len], clock.now(), unix_minutes(), random);
            if matches!(verdict, DatagramEvent::Deliver { .. }) {
                answered += 1;
                break;
            }
        }
    }
    Ok(answered)
}

/// Returns an echo request from the client's address to the devnet's server.
fn ping() -> Vec<u8> {
    let mut packet =
        vec![0x45, 0, 0, 28, 0, 0, 0x40, 0, 64, 1, 0, 0, 100, 64, 0, 2, 93, 184, 215, 2, 8, 0, 0, 0, 0, 1, 0, 1];
    let check = !openrelay_proto::ip::checksum::fold(openrelay_proto::ip::checksum::sum(&packet[20..], 0));
    packet[22..24].copy_from_slice(&check.to_be_bytes());
    openrelay_proto::ip::checksum::fill_v4_header(&mut packet, 20);
    packet
}
