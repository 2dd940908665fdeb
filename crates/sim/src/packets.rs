//! Inner packets for simulations.
//!
//! Owns two builders of UDP packets. Never computes UDP or IP checksums.

use std::net::IpAddr;

use openrelay_proto::ip::{CLIENT_V4, Packet};

/// Returns a UDP packet from the client's tunnel address to 192.0.2.80, port 7.
pub fn udp4(payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(28 + payload.len()).unwrap();
    let mut packet = vec![0x45, 0];
    packet.extend_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&[0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend_from_slice(&CLIENT_V4.octets());
    packet.extend_from_slice(&[192, 0, 2, 80]);
    packet.extend_from_slice(&[0x10, 0, 0, 7]);
    packet.extend_from_slice(&(length - 20).to_be_bytes());
    packet.extend_from_slice(&[0, 0]);
    packet.extend_from_slice(payload);
    packet
}

/// Returns an answer to `packet` that carries `payload`.
pub fn answer4(packet: &[u8], payload: &[u8]) -> Vec<u8> {
    let IpAddr::V4(to) = Packet::parse(packet).unwrap().source else { panic!("IPv4") };
    let mut answer = udp4(payload);
    answer[12..16].copy_from_slice(&[192, 0, 2, 80]);
    answer[16..20].copy_from_slice(&to.octets());
    answer
}
