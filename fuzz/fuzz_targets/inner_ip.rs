//! Inner packets: translation keeps checksums right and touches nothing outside the packet.
#![no_main]
use std::net::IpAddr;

use libfuzzer_sys::fuzz_target;
use openrelay_proto::ip::translate::{Side, replace};
use openrelay_proto::ip::{CLIENT_V4, CLIENT_V6, Packet, checksum, icmp, tcp};

fuzz_target!(|data: &[u8]| {
    let mut bytes = data.to_vec();
    let Ok(mut packet) = Packet::parse(&bytes) else { return };
    assert!(packet.len <= bytes.len() && packet.transport <= packet.len);
    let mut error = [0; 600];
    icmp::packet_too_big(&packet, &bytes, 1280, &mut error);
    let valid = !packet.fragment && checksum::transport_is_valid(&packet, &bytes);
    let to = if packet.is_v6() { IpAddr::V6(CLIENT_V6) } else { IpAddr::V4(CLIENT_V4) };
    let rest = bytes[packet.len..].to_vec();
    replace(&mut packet, &mut bytes, Side::Source, to, false);
    tcp::clamp_mss(&packet, &mut bytes, 1280, false);
    assert_eq!(bytes[packet.len..], rest);
    let again = Packet::parse(&bytes).expect("a translated packet reads");
    assert_eq!(again.source, to);
    if valid {
        assert!(checksum::transport_is_valid(&again, &bytes));
    }
});
