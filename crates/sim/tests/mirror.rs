//! Relays as mirrors: a client fetches the records of all relays inside its sessions.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue must stop")]

use std::time::Duration;

use openrelay_proto::drops::DropReason;
use openrelay_proto::handshake::Role;
use openrelay_proto::message::{MIRROR_PIECE, Message, MirrorFile, MirrorPiece};
use openrelay_sim::faults::Faults;
use openrelay_sim::packets;
use openrelay_sim::peer::{AFTER_TOKEN, AtClient, AtRelay, control_at};
use openrelay_sim::world::World;

fn file(length: usize) -> Vec<u8> {
    (0..length).map(|at| u8::try_from(at * 31 % 251).unwrap()).collect()
}

/// Requests the records and advances time until the answer arrives.
fn fetch(net: &mut World, from: Role) -> Vec<u8> {
    assert!(net.ask_for_records(from), "the first request is sent");
    assert!(!net.ask_for_records(from), "a second request is not sent meanwhile");
    for _ in 0..6_000 {
        if let Some(fetched) = net.fetched() {
            assert_eq!((fetched.from, fetched.file), (from, MirrorFile::Records));
            return fetched.bytes;
        }
        net.advance_millis(10);
    }
    panic!("no answer in a minute");
}

#[test]
fn both_relays_of_a_circuit_serve_mirrored_records() {
    let mut net = World::new(40);
    net.connect();
    assert_eq!(fetch(&mut net, Role::Ingress), b"", "the relay mirrors nothing");
    let (large, small) = (file(600_000), file(MIRROR_PIECE));
    net.mirror_records(Role::Ingress, &large);
    net.mirror_records(Role::Egress, &small);
    assert_eq!(fetch(&mut net, Role::Ingress), large);
    assert_eq!(fetch(&mut net, Role::Egress), small);
    assert_eq!(net.send_up(&packets::udp4(b"packets pass besides")).len(), 1);
    net.check_accounting();
}

#[test]
fn file_changed_during_a_lossy_fetch_arrives_complete() {
    let mut net = World::new(41);
    net.connect();
    net.mirror_records(Role::Egress, &file(90_000));
    net.faults = Faults { loss: 100, delay: Duration::from_millis(30), ..Faults::default() };
    assert!(net.ask_for_records(Role::Egress));
    net.advance_millis(500);
    assert_eq!(net.fetched(), None);
    let newer = file(70_001);
    net.mirror_records(Role::Egress, &newer);
    for _ in 0..6_000 {
        if let Some(fetched) = net.fetched() {
            assert!(fetched.bytes == newer, "only the new file arrives");
            return;
        }
        net.advance_millis(10);
    }
    panic!("no answer in a minute");
}

#[test]
fn mirror_request_before_admission_ends_the_session() {
    let request = Message::MirrorRequest { file: MirrorFile::Records, offset: 0 };
    for admitted in [false, true] {
        let mut relay = AtRelay::new(Role::Ingress, admitted);
        relay.say(&control_at(if admitted { AFTER_TOKEN } else { 0 }, &request));
        assert_eq!(relay.is_over(), !admitted);
        assert_eq!(relay.shard.counts().drops.of(DropReason::BadFrame), u64::from(!admitted));
    }
}

/// A relay holds at most one piece for each session, however often a client asks.
#[test]
fn mirror_request_before_the_last_piece_is_acknowledged_ends_the_session() {
    let request = |offset| control_at(offset, &Message::MirrorRequest { file: MirrorFile::Records, offset: 0 });
    let mut relay = AtRelay::new(Role::Egress, true);
    relay.mirror_records(&file(MIRROR_PIECE));
    relay.say(&request(AFTER_TOKEN));
    assert!(!relay.is_over());
    relay.say(&request(AFTER_TOKEN + 11));
    assert!(relay.is_over());
}

#[test]
fn unrequested_mirror_piece_ends_the_circuit() {
    let mut client = AtClient::new(true);
    let bytes = vec![1; 3];
    let piece = MirrorPiece { file: MirrorFile::Records, version: [1; 8], total: 3, offset: 0, bytes };
    client.say(&control_at(AFTER_TOKEN, &Message::MirrorPiece(piece)));
    assert!(client.is_over());
}
