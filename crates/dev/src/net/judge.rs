//! The judge: reports what an eavesdropper sees on a link.
//!
//! Owns captures and three questions. Does a packet on this link carry a forbidden address, in a header or in a
//! quoted header? Does it carry a forbidden name? Does any string of eight bytes of one leg also occur on the other?
//! The judge reports packets that its captures missed, and a result with missed packets is not a pass.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use openrelay_sys::event::wait;
use openrelay_sys::net::Netlink;
use openrelay_sys_dev::capture::Capture;
use serde::{Deserialize, Serialize};

use super::output::say;

/// Bytes of payload that are kept of each leg. The demonstration requires a comparison of at least 8 MiB.
const SAMPLE: usize = 9 << 20;
const ETHERNET: usize = 14;

/// What to watch.
#[derive(Serialize, Deserialize)]
pub(crate) struct Rules {
    pub(crate) links: Vec<LinkRule>,
    /// Port of the relays. Payloads of other ports are plain text in any case and are not compared.
    pub(crate) port: u16,
}

/// What must not be seen on one link.
#[derive(Serialize, Deserialize)]
pub(crate) struct LinkRule {
    pub(crate) link: String,
    /// Addresses that no header and no quoted header may carry.
    pub(crate) forbidden: Vec<IpAddr>,
    /// The leg whose bytes are compared: 1 or 2.
    pub(crate) leg: Option<u8>,
    /// Names that no payload may carry. With a leg or a name, payloads are also searched for the addresses.
    pub(crate) names: Vec<String>,
}

/// What was seen.
#[derive(Serialize, Deserialize, Default, Debug)]
pub(crate) struct Sightings {
    pub(crate) links: BTreeMap<String, Seen>,
    /// Bytes of UDP payload that were compared, for leg 1 and leg 2.
    pub(crate) sampled: [usize; 2],
    /// Number of strings of eight bytes that occur on both legs.
    pub(crate) shared: usize,
}

/// What was seen on one link.
#[derive(Serialize, Deserialize, Default, Debug)]
pub(crate) struct Seen {
    /// Packets that crossed the link, by its own counters. A train counts as one.
    pub(crate) packets: u64,
    /// Packets with a forbidden address or name.
    pub(crate) guilty: u64,
    /// Packets whose headers the capture missed.
    pub(crate) missed: u64,
}

/// Watches until standard input ends, then prints the verdict as JSON.
pub(crate) fn run(rules: &Path) -> Result<()> {
    let rules: Rules = serde_json::from_slice(&std::fs::read(rules)?)?;
    let mut netlink = Netlink::open()?;
    let (mut captures, mut samplers) = (Vec::new(), Vec::new());
    for rule in &rules.links {
        let link = netlink.link(&rule.link).with_context(|| format!("there is no link {}", rule.link))?;
        let start = || Capture::start(link).context("cannot capture; this needs CAP_NET_RAW");
        // The capture sees every header, of which the kernel passes on only suspicious ones, so it must miss nothing.
        // The sampler collects payload while more is wanted, and may miss packets for which it has no room.
        let capture = start()?;
        capture.narrow(rules.port, &rule.forbidden)?;
        captures.push(capture);
        samplers.push(if rule.leg.is_some() || !rule.names.is_empty() { Some(start()?) } else { None });
    }
    let over = Arc::new(AtomicBool::new(false));
    let told = over.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read(&mut [0]);
        told.store(true, Ordering::Relaxed);
    });
    let before: Vec<u64> = rules.links.iter().map(|rule| crossed(&rule.link)).collect();
    say("ready");
    let searched = vec![0; rules.links.len()];
    let mut watch = Watch { rules, verdict: Sightings::default(), samples: [Vec::new(), Vec::new()], searched };
    let mut buffer = vec![0; 1 << 17];
    loop {
        let ending = over.load(Ordering::Relaxed);
        let fds: Vec<_> = samplers.iter().flatten().chain(&captures).map(AsFd::as_fd).collect();
        wait(&fds, Duration::from_millis(20))?;
        for (number, (capture, sampler)) in captures.iter().zip(&mut samplers).enumerate() {
            while let Ok(len) = capture.read(&mut buffer) {
                watch.see_header(number, buffer.get(..len).unwrap_or(&[]));
            }
            while let Some(len) = sampler.as_ref().and_then(|sampler| sampler.read(&mut buffer).ok()) {
                watch.see_payload(number, buffer.get(..len).unwrap_or(&[]));
                if watch.has_enough(number) {
                    *sampler = None;
                }
            }
        }
        if ending {
            break;
        }
    }
    for ((rule, capture), before) in watch.rules.links.iter().zip(&captures).zip(before) {
        let seen = watch.verdict.links.entry(rule.link.clone()).or_default();
        seen.missed = capture.missed()?.into();
        seen.packets = crossed(&rule.link) - before;
    }
    watch.compare();
    say(&serde_json::to_string(&watch.verdict)?);
    Ok(())
}

/// Returns the packets that have crossed a link of this network namespace in either direction.
///
/// Source: proc(5), /proc/net/dev.
fn crossed(link: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let own = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{link}:"))).unwrap_or("");
    let numbers: Vec<u64> = own.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    numbers.get(1).unwrap_or(&0) + numbers.get(9).unwrap_or(&0)
}

struct Watch {
    rules: Rules,
    verdict: Sightings,
    samples: [Vec<u8>; 2],
    /// Bytes of payload that were searched on each link.
    searched: Vec<usize>,
}

impl Watch {
    /// Searches a packet's header, and headers that it quotes, for forbidden addresses.
    fn see_header(&mut self, number: usize, frame: &[u8]) {
        let (Some(rule), Some(packet)) = (self.rules.links.get(number), frame.get(ETHERNET..)) else { return };
        let guilty = is_guilty(rule, packet, udp_payload(packet, self.rules.port), false);
        self.verdict.links.entry(rule.link.clone()).or_default().guilty += u64::from(guilty);
    }

    /// Searches a payload of the relays' port for forbidden addresses and names, and keeps it for comparison.
    fn see_payload(&mut self, number: usize, frame: &[u8]) {
        let (Some(rule), Some(packet)) = (self.rules.links.get(number), frame.get(ETHERNET..)) else { return };
        let Some(payload) = udp_payload(packet, self.rules.port) else { return };
        let guilty = is_guilty(rule, packet, Some(payload), true);
        self.verdict.links.entry(rule.link.clone()).or_default().guilty += u64::from(guilty);
        if let Some(searched) = self.searched.get_mut(number) {
            *searched += payload.len();
        }
        if let Some(sample) = rule.leg.and_then(|leg| self.samples.get_mut(usize::from(leg) - 1)) {
            let room = SAMPLE.saturating_sub(sample.len());
            sample.extend_from_slice(payload.get(..payload.len().min(room)).unwrap_or(&[]));
        }
    }

    /// Returns whether enough payload of this link has been searched.
    fn has_enough(&self, number: usize) -> bool {
        self.searched.get(number).is_none_or(|searched| *searched >= SAMPLE)
    }

    /// Counts strings of eight bytes that occur in both samples.
    fn compare(&mut self) {
        self.verdict.sampled = [self.samples[0].len(), self.samples[1].len()];
        let mut windows = self.samples.each_ref().map(|sample| {
            let mut windows: Vec<u64> =
                sample.windows(8).filter_map(|w| w.first_chunk::<8>()).map(|w| u64::from_be_bytes(*w)).collect();
            windows.sort_unstable();
            windows.dedup();
            windows
        });
        let [first, second] = &mut windows;
        let mut second = second.iter().peekable();
        for window in first {
            while second.next_if(|other| *other < window).is_some() {}
            if second.peek().is_some_and(|other| *other == window) {
                self.verdict.shared += 1;
            }
        }
    }
}

/// Returns whether a packet carries anything forbidden.
fn is_guilty(rule: &LinkRule, packet: &[u8], payload: Option<&[u8]>, search: bool) -> bool {
    let header = match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.get(12..20),
        Some(6) => packet.get(8..40),
        _ => return false,
    };
    let contains = |haystack: &[u8], needle: &[u8]| haystack.windows(needle.len()).any(|window| window == needle);
    let octets = |address: &IpAddr| match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let in_header = |address: &IpAddr| {
        let octets = octets(address);
        header.is_some_and(|header| header.chunks(octets.len()).any(|own| own == octets))
    };
    if rule.forbidden.iter().any(in_header) {
        return true;
    }
    match payload {
        // In ciphertext a string of four bytes would occur by chance; one of sixteen bytes or a name does not. An
        // IPv4 address is therefore searched in its form of sixteen bytes.
        Some(payload) if search => {
            let long = |address: &IpAddr| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            rule.forbidden.iter().map(long).any(|needle| contains(payload, &needle))
                || rule.names.iter().any(|name| contains(payload, name.as_bytes()))
        }
        Some(_) => false,
        // ICMP errors quote packets in plain text.
        None if is_icmp(packet) => rule.forbidden.iter().map(octets).any(|needle| contains(packet, &needle)),
        None => false,
    }
}

fn is_icmp(packet: &[u8]) -> bool {
    match packet.first().map(|byte| byte >> 4) {
        Some(4) => packet.get(9) == Some(&1),
        Some(6) => packet.get(6) == Some(&58),
        _ => false,
    }
}

/// Returns the payload of a UDP packet from or to `port`. A train is one payload.
fn udp_payload(packet: &[u8], port: u16) -> Option<&[u8]> {
    let start = match packet.first()? >> 4 {
        4 if packet.get(9) == Some(&17) => usize::from(packet.first()? & 0x0f) * 4,
        6 if packet.get(6) == Some(&17) => 40,
        _ => return None,
    };
    let ports = packet.get(start..start + 4)?;
    ports.chunks(2).any(|own| own == port.to_be_bytes()).then(|| packet.get(start + 8..))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_in_headers_and_quotes_and_shared_strings_are_found() {
        let rule =
            LinkRule { link: "x".into(), forbidden: vec!["192.0.2.9".parse().unwrap()], leg: Some(1), names: vec![] };
        let mut packet = vec![0; 60];
        packet[0] = 0x45;
        packet[9] = 1;
        assert!(!is_guilty(&rule, &packet, None, true));
        packet[41..45].copy_from_slice(&[192, 0, 2, 9]);
        assert!(is_guilty(&rule, &packet, None, true), "in a quote");
        packet[41..45].fill(0);
        packet[16..20].copy_from_slice(&[192, 0, 2, 9]);
        assert!(is_guilty(&rule, &packet, Some(&[]), true), "in the header");

        let rules = Rules { links: vec![], port: 443 };
        let mut watch = Watch {
            rules,
            verdict: Sightings::default(),
            samples: [(0..100).collect(), (90..200).collect()],
            searched: vec![],
        };
        watch.compare();
        assert_eq!(watch.verdict.shared, 3);
    }
}
