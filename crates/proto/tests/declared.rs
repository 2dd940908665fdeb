//! Tests that `docs/statistics.md` lists every packet type, frame and message.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use openrelay_proto::handshake::{REKEY_LEN, REKEYED_LEN};
use openrelay_proto::message::Message;
use openrelay_proto::wire::{FrameKind, PacketType};

/// Returns the numbers in the first column of the table whose header row begins with `heading`.
fn declared(heading: &str) -> Vec<u16> {
    let text = include_str!("../../../docs/statistics.md");
    let table = text.split("\n\n").find(|table| table.lines().next().is_some_and(|head| head.starts_with(heading)));
    let rows = table.unwrap().lines().skip(2).map(|row| row.strip_prefix("| `0x").unwrap().split('`').next().unwrap());
    rows.map(|digits| u16::from_str_radix(digits, 16).unwrap()).collect()
}

#[test]
fn every_packet_type_is_declared() {
    // Suites are in the low bits of first packets.
    let mut types: Vec<u16> = (0..=255)
        .filter_map(PacketType::parse)
        .map(|kind| match kind {
            PacketType::FirstNk(_) => 0x10,
            PacketType::FirstIk(_) => 0x20,
            PacketType::Reply
            | PacketType::KemKey
            | PacketType::KemText
            | PacketType::Cookie
            | PacketType::Full
            | PacketType::Data => kind.byte().into(),
        })
        .collect();
    types.dedup();
    assert_eq!(declared("| type |"), types);
}

#[test]
fn every_frame_is_declared() {
    let mut frames = declared("| frame |");
    frames.sort_unstable();
    let kinds: Vec<u16> = (0..=255u8).filter(|byte| FrameKind::parse(*byte).is_some()).map(u16::from).collect();
    assert_eq!(frames, kinds);
}

#[test]
fn every_message_is_declared() {
    let lengths = [0, 1, 2, 4, 5, 8, 12, 17, REKEY_LEN, REKEYED_LEN];
    // Zeros, and zeros with the number of a file or reason as first or last byte.
    let bodies: Vec<Vec<u8>> = lengths
        .into_iter()
        .flat_map(|length| {
            let zeros = vec![0; length];
            let (mut first, mut last) = (zeros.clone(), zeros.clone());
            first.first_mut().into_iter().chain(last.last_mut()).for_each(|byte| *byte = 1);
            [zeros, first, last]
        })
        .collect();
    let reads = |kind: &u16| bodies.iter().any(|body| Message::decode(*kind, body).is_ok());
    let messages: Vec<u16> = (0..=u16::MAX).filter(reads).collect();
    assert_eq!(declared("| message |"), messages);
}
