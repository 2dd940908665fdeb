//! What a genuine peer may not say: each end holds the other to the protocol's states.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]

use std::time::Duration;

use openrelay_proto::client::Verdict;
use openrelay_proto::drops::DropReason;
use openrelay_proto::handshake::{REKEY_LEN, Role};
use openrelay_proto::keys::RelayId;
use openrelay_proto::message::{Admission, Evidence, Message, Token};
use openrelay_proto::wire::FrameKind;
use openrelay_sim::packets;
use openrelay_sim::peer::{AFTER_TOKEN, AtClient, AtRelay, control, control_at};

fn packet() -> Vec<u8> {
    [&[FrameKind::Packet { partial: false }.byte()][..], &packets::udp4(b"too early")].concat()
}

#[test]
fn before_admission_a_relay_carries_nothing() {
    let mut egress = AtRelay::new(Role::Egress, false);
    egress.say(&packet());
    assert_eq!((egress.shard.counts().delivered, egress.shard.counts().drops.of(DropReason::NotAdmitted)), (0, 1));
    assert!(!egress.is_over());
    egress.say(&control(&Message::Token(Token::Open)));
    egress.say(&packet());
    assert_eq!(egress.shard.counts().delivered, 1, "but afterwards");
}

#[test]
fn what_needs_admission_ends_a_session_that_has_none() {
    let circuit = Message::CircuitOpen { request: 1, egress: RelayId(2) };
    let close = Message::CircuitClose { tag: 1 };
    for message in [circuit, close, Message::Rekey(vec![1; REKEY_LEN]), Message::Preimage] {
        let mut early = AtRelay::new(Role::Ingress, false);
        early.say(&control(&message));
        assert!(early.is_over(), "{message:?}");
        assert_eq!(early.shard.counts().drops.of(DropReason::BadFrame), 1);
    }
}

#[test]
fn what_only_a_relay_says_ends_the_session_of_a_client_that_says_it() {
    for message in
        [Message::Evidence(Evidence::Open), Message::PaymentNeeded, Message::CircuitOpened { request: 1, tag: 1 }]
    {
        let mut relay = AtRelay::new(Role::Ingress, false);
        relay.say(&control(&message));
        assert!(relay.is_over(), "{message:?}");
    }
}

#[test]
fn a_session_that_is_never_admitted_ends_after_ten_seconds() {
    let mut relay = AtRelay::new(Role::Ingress, false);
    for seconds in 1..=12u64 {
        relay.now = relay.now.after(Duration::from_secs(1));
        relay.pass_time();
        assert_eq!(relay.is_over(), seconds > 10, "after {seconds} s");
    }
}

#[test]
fn what_only_a_client_says_ends_the_circuit_of_a_relay_that_says_it() {
    for message in
        [Message::EvidenceRequest, Message::Token(Token::Open), Message::CircuitOpen { request: 1, egress: RelayId(1) }]
    {
        let mut client = AtClient::new(false);
        client.say(&control(&message));
        assert!(client.is_over(), "{message:?}");
    }
}

#[test]
fn a_client_takes_packets_for_itself_and_none_before_it_is_admitted() {
    let inner = packets::answer4(&packets::udp4(b"question"), b"answer");
    let frame = [&[FrameKind::Packet { partial: false }.byte()][..], &inner].concat();
    let mut client = AtClient::new(false);
    assert!(matches!(client.say(&frame), Verdict::Dropped(DropReason::NotAdmitted)));
    client.say(&control(&Message::Admitted(Admission::Open)));
    assert!(matches!(client.say(&frame), Verdict::Deliver { .. }), "but afterwards");
}

#[test]
fn a_relay_that_announces_other_evidence_than_was_accepted_gets_no_circuit_whatever_it_shows() {
    for shown in [Evidence::Open, Evidence::Staple(b"a staple".to_vec())] {
        let mut client = AtClient::announcing([9; 32], false);
        client.say(&control(&Message::Evidence(shown.clone())));
        assert!(client.is_over() && !client.client.is_connected());
        assert_eq!(client.client.take_shown(), Some(shown));
    }
}

#[test]
fn circuits_are_opened_by_an_ingress_and_by_relay_id_alone() {
    let open = control_at(AFTER_TOKEN, &Message::CircuitOpen { request: 1, egress: RelayId(2) });
    let mut egress = AtRelay::new(Role::Egress, true);
    egress.say(&open);
    assert!(egress.is_over(), "an egress opens none");
    let mut ingress = AtRelay::new(Role::Ingress, true);
    ingress.say(&open);
    assert!(!ingress.is_over(), "unknown, and refused in words");
    // An address where the id belongs: request 1, then IPv4 address and port.
    let mut longer =
        [&[FrameKind::Control.byte()][..], &AFTER_TOKEN.to_be_bytes(), &[0; 4], &16u16.to_be_bytes()].concat();
    longer.extend([0, 0x10, 0, 0, 0, 10, 0, 0, 0, 1, 203, 0, 113, 9, 1, 187]);
    let mut ingress = AtRelay::new(Role::Ingress, true);
    ingress.say(&longer);
    assert!(ingress.is_over());
}
