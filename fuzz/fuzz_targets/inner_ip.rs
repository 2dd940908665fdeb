//! Inner packets: translation preserves valid checksums and changes nothing outside the packet.
#![no_main]
use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use openrelay_proto::ip::translate::{Side, replace};
use openrelay_proto::ip::{CLIENT_V4, CLIENT_V6, Packet, TCP, UDP, checksum, icmp, tcp};

fuzz_target!(|data: &[u8]| {
    translate(data.to_vec(), false);
    // Structured input: a packet with right lengths and checksums, whose transport header and payload are these bytes.
    if let Some((&kind, rest)) = data.split_first()
        && rest.len() >= 20
    {
        translate(well_formed(kind, rest), true);
    }
});

fn well_formed(kind: u8, rest: &[u8]) -> Vec<u8> {
    let protocol = if kind & 1 == 0 { TCP } else { UDP };
    let mut transport = rest.get(..rest.len().min(1_200)).unwrap_or(rest).to_vec();
    let length = u16::try_from(transport.len()).expect("short");
    if protocol == TCP {
        // A header of 20 to 60 bytes, as far as the input allows, with the fuzzer's options.
        let words = (5 + (kind >> 1) % 11).min(u8::try_from(transport.len() / 4).unwrap_or(15));
        transport[12] = words << 4 | transport[12] & 0x0f;
    } else {
        transport[4..6].copy_from_slice(&length.to_be_bytes());
    }
    let mut bytes = if kind & 0x20 == 0 {
        let mut header = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol, 0, 0, 100, 64, 0, 2, 93, 184, 215, 2];
        header[2..4].copy_from_slice(&(length + 20).to_be_bytes());
        header
    } else {
        let mut header = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        header[4..6].copy_from_slice(&length.to_be_bytes());
        header.extend_from_slice(&CLIENT_V6.octets());
        header.extend_from_slice(&[0x2a; 16]);
        header
    };
    let start = bytes.len();
    bytes.extend_from_slice(&transport);
    if start == 20 {
        checksum::fill_v4_header(&mut bytes, 20);
    }
    let at = start + if protocol == TCP { 16 } else { 6 };
    bytes[at..at + 2].fill(0);
    let packet = Packet::parse(&bytes).expect("a packet with right lengths parses");
    let sum = u32::from(checksum::pseudo_header(&packet, transport.len()));
    let sum = !checksum::fold(checksum::sum(&bytes[start..], sum.into()));
    // A UDP checksum of zero means that there is no checksum.
    let sum = if protocol == UDP && sum == 0 { 0xffff } else { sum };
    bytes[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    bytes
}

fn translate(mut bytes: Vec<u8>, is_valid: bool) {
    let Ok(mut packet) = Packet::parse(&bytes) else {
        assert!(!is_valid);
        return;
    };
    assert!(packet.len <= bytes.len() && packet.transport <= packet.len);
    let mut error = [0; 600];
    icmp::packet_too_big(&packet, &bytes, 1280, &mut error);
    let valid = !packet.fragment && checksum::transport_is_valid(&packet, &bytes);
    assert!(valid || !is_valid);
    let to = if packet.is_v6() { IpAddr::V6(CLIENT_V6) } else { IpAddr::V4(CLIENT_V4) };
    let rest = bytes[packet.len..].to_vec();
    replace(&mut packet, &mut bytes, Side::Source, to, false);
    tcp::clamp_mss(&packet, &mut bytes, 1280, false);
    assert_eq!(bytes[packet.len..], rest);
    let again = Packet::parse(&bytes).expect("a translated packet parses");
    assert_eq!(again.source, to);
    if valid {
        assert!(checksum::transport_is_valid(&again, &bytes));
    }
}
