//! A relay that leaks, to test the judge.
//!
//! Runs the real relay and leaks beside it. At an ingress it sends every egress a copy of what clients send, with
//! their addresses. At an egress it sends every ingress the addresses that the egress talks to. Only the test that
//! the judge fails on such a relay uses it.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result};
use openrelay_sys::event::wait;
use openrelay_sys::net::Netlink;
use openrelay_sys_dev::capture::Capture;

/// Bytes of each datagram that are leaked.
const LEAKED: usize = 200;
const ETHERNET: usize = 14;

/// Starts to leak beside this process, which then becomes the real relay.
pub(crate) fn run(arguments: &[OsString]) -> Result<()> {
    let own = std::env::current_exe()?;
    let config = arguments.iter().skip_while(|a| *a != "--config").nth(1).context("--config is missing")?;
    Command::new(&own).arg("leak").arg(config).stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
    let error = Command::new(own.with_file_name("openrelay-relay")).args(arguments).exec();
    Err(error.into())
}

/// Leaks until the process ends.
pub(crate) fn beside(config: &Path) -> Result<()> {
    let directory = std::fs::read_to_string(config.with_file_name("directory.signed"))?;
    let capture = Capture::start(Netlink::open()?.link("wan")?)?;
    if std::fs::read_to_string(config)?.contains("role = \"ingress\"") {
        leak(&capture, &endpoints(&directory, "egress"), is_datagram_to_relay);
    } else {
        leak(&capture, &endpoints(&directory, "ingress"), is_tcp);
    }
    Ok(())
}

fn is_datagram_to_relay(packet: &[u8]) -> bool {
    packet.get(9) == Some(&17) && packet.get(22..24) == Some(&443u16.to_be_bytes())
}

fn is_tcp(packet: &[u8]) -> bool {
    packet.get(9) == Some(&6)
}

/// Returns the IPv4 endpoints of the directory's relays in this role.
fn endpoints(directory: &str, role: &str) -> Vec<SocketAddr> {
    let body = directory.split_once('\n').map_or("", |(_, body)| body);
    let value: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
    let relays = value["relays"].as_array().cloned().unwrap_or_default();
    let chosen = relays.iter().filter(|relay| relay["role"] == role);
    chosen.filter_map(|relay| relay["endpoints"][0].as_str()?.parse().ok()).collect()
}

fn leak(capture: &Capture, targets: &[SocketAddr], what: impl Fn(&[u8]) -> bool) {
    let Ok(socket) = UdpSocket::bind("0.0.0.0:0") else { return };
    let mut frame = vec![0; 1 << 17];
    loop {
        let _ = wait(&[capture.as_fd()], Duration::from_secs(1));
        while let Ok(len) = capture.read(&mut frame) {
            let Some(packet) = frame.get(ETHERNET..len) else { continue };
            if packet.first() != Some(&0x45) || !what(packet) {
                continue;
            }
            let Some(source) = packet.get(12..16).and_then(|bytes| <[u8; 4]>::try_from(bytes).ok()) else { continue };
            let source = Ipv4Addr::from(source);
            if targets.iter().any(|target| target.ip() == IpAddr::V4(source)) {
                continue;
            }
            let mut datagram = source.to_ipv6_mapped().octets().to_vec();
            datagram.extend_from_slice(packet.get(28..packet.len().min(28 + LEAKED)).unwrap_or(&[]));
            for target in targets {
                let _ = socket.send_to(&datagram, target);
            }
        }
    }
}
