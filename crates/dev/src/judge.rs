//! The judge: what a link shows to whoever listens on it.
//!
//! Owns captures and the three questions: does a packet on this link carry an address that must not be here, in a header or in
//! a quote; does a name; and does any string of eight bytes of one leg appear on the other. Packets that it missed are told, and are no acquittal.

use std::collections::BTreeMap;
use std::io::Read;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use openrelay_sys::capture::Capture;
use openrelay_sys::event::wait;
use openrelay_sys::net::Netlink;
use serde::{Deserialize, Serialize};

use crate::say;

/// Bytes of payload kept of each leg: a little more than the eight MiB that are compared at least.
const SAMPLE: usize = 9 << 20;
const ETHERNET: usize = 14;

/// What to watch.
#[derive(Serialize, Deserialize)]
pub(crate) struct Rules {
    pub(crate) links: Vec<LinkRule>,
    /// The relays' port: payloads of other ports are in clear for everybody and are not compared.
    pub(crate) port: u16,
}

/// What must not be seen on one link.
#[derive(Serialize, Deserialize)]
pub(crate) struct LinkRule {
    pub(crate) link: String,
    /// Addresses that no header and no quote may carry.
    pub(crate) forbidden: Vec<IpAddr>,
    /// The leg whose bytes are compared: 1 or 2.
    pub(crate) leg: Option<u8>,
    /// Names that no payload may carry; with a leg or a name, payloads are looked through for the addresses too.
    pub(crate) names: Vec<String>,
}

/// What was seen.
#[derive(Serialize, Deserialize, Default, Debug)]
pub(crate) struct Verdict {
    pub(crate) links: BTreeMap<String, Seen>,
    /// Bytes of UDP payload compared, of leg 1 and leg 2.
    pub(crate) sampled: [usize; 2],
    /// Strings of eight bytes that stand on both legs.
    pub(crate) shared: usize,
}

/// What was seen on one link.
#[derive(Serialize, Deserialize, Default, Debug)]
pub(crate) struct Seen {
    /// Packets that crossed it, trains as one, by the link's own counters.
    pub(crate) packets: u64,
    /// Packets with a forbidden address or a name.
    pub(crate) guilty: u64,
    /// Packets whose headers the capture missed.
    pub(crate) missed: u64,
}

/// Watches until the input ends, then prints the verdict as JSON.
pub(crate) fn run(rules: &Path) -> Result<()> {
    let rules: Rules = serde_json::from_slice(&std::fs::read(rules)?)?;
    let mut netlink = Netlink::open()?;
    let (mut captures, mut samplers) = (Vec::new(), Vec::new());
    for rule in &rules.links {
        let link = netlink.link(&rule.link).with_context(|| format!("there is no link {}", rule.link))?;
        let start = || Capture::start(link).context("cannot capture; this needs CAP_NET_RAW");
        // One sees every header, of which the kernel passes on the suspicious: it must miss nothing. The other takes samples of payload for as
        // long as they are wanted, and may miss what it has no room for.
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
    let mut watch = Watch { rules, verdict: Verdict::default(), samples: [Vec::new(), Vec::new()], searched };
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

/// Packets that have crossed a link of this network namespace in either direction. Source: proc(5), /proc/net/dev.
fn crossed(link: &str) -> u64 {
    let table = std::fs::read_to_string("/proc/net/dev").unwrap_or_default();
    let own = table.lines().find_map(|line| line.trim().strip_prefix(&format!("{link}:"))).unwrap_or("");
    let numbers: Vec<u64> = own.split_whitespace().filter_map(|number| number.parse().ok()).collect();
    numbers.get(1).unwrap_or(&0) + numbers.get(9).unwrap_or(&0)
}

struct Watch {
    rules: Rules,
    verdict: Verdict,
    samples: [Vec<u8>; 2],
    /// Bytes of payload that were looked through on each link.
    searched: Vec<usize>,
}

impl Watch {
    /// Looks for what must not stand in a header or in a quoted one.
    fn see_header(&mut self, number: usize, frame: &[u8]) {
        let (Some(rule), Some(packet)) = (self.rules.links.get(number), frame.get(ETHERNET..)) else { return };
        let guilty = is_guilty(rule, packet, udp_payload(packet, self.rules.port), false);
        self.verdict.links.entry(rule.link.clone()).or_default().guilty += u64::from(guilty);
    }

    /// Looks for what must not stand in a payload of the relays' port, and keeps it for comparison.
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

    /// Whether payloads of this link need not be seen any more.
    fn has_enough(&self, number: usize) -> bool {
        self.searched.get(number).is_none_or(|searched| *searched >= SAMPLE)
    }

    /// Counts strings of eight bytes that stand in both samples.
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

/// Whether a packet carries what it must not.
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
        // Ciphertext: four bytes would turn up by chance, sixteen or a name do not.
        // An IPv4 address is looked for as it is written in sixteen bytes.
        Some(payload) if search => {
            let long = |address: &IpAddr| match address {
                IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                IpAddr::V6(v6) => v6.octets(),
            };
            rule.forbidden.iter().map(long).any(|needle| contains(payload, &needle))
                || rule.names.iter().any(|name| contains(payload, name.as_bytes()))
        }
        Some(_) => false,
        // Errors of ICMP quote packets in clear.
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

/// The payload of a UDP packet from or to `port`; trains are one payload.
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
    fn finds_addresses_in_headers_and_quotes_and_shared_strings() {
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
            verdict: Verdict::default(),
            samples: [(0..100).collect(), (90..200).collect()],
            searched: vec![],
        };
        watch.compare();
        assert_eq!(watch.verdict.shared, 3);
    }
}
