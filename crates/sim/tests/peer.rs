//! Messages that an authenticated peer must not send: each end enforces the protocol's states on the other.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]

use std::time::Duration;

use openrelay_proto::client::{DatagramEvent, Event, Failure};
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
fn packet_before_admission_is_dropped() {
    let mut egress = AtRelay::new(Role::Egress, false);
    egress.say(&packet());
    assert_eq!((egress.shard.counts().delivered, egress.shard.counts().drops.of(DropReason::NotAdmitted)), (0, 1));
    assert!(!egress.is_over());
    egress.say(&control(&Message::Token(Token::Open)));
    egress.say(&packet());
    assert_eq!(egress.shard.counts().delivered, 1, "delivered after admission");
}

#[test]
fn message_that_needs_admission_ends_an_unadmitted_session() {
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
fn relay_message_from_a_client_ends_the_session() {
    for message in
        [Message::Evidence(Evidence::Open), Message::PaymentNeeded, Message::CircuitOpened { request: 1, tag: 1 }]
    {
        let mut relay = AtRelay::new(Role::Ingress, false);
        relay.say(&control(&message));
        assert!(relay.is_over(), "{message:?}");
    }
}

#[test]
fn unadmitted_session_ends_after_ten_seconds() {
    let mut relay = AtRelay::new(Role::Ingress, false);
    for seconds in 1..=12u64 {
        relay.now = relay.now.after(Duration::from_secs(1));
        relay.pass_time();
        assert_eq!(relay.is_over(), seconds > 10, "after {seconds} s");
    }
}

#[test]
fn client_message_from_a_relay_ends_the_circuit() {
    for message in
        [Message::EvidenceRequest, Message::Token(Token::Open), Message::CircuitOpen { request: 1, egress: RelayId(1) }]
    {
        let mut client = AtClient::new(false);
        client.say(&control(&message));
        assert!(client.is_over(), "{message:?}");
    }
}

#[test]
fn client_reports_that_a_relay_is_full() {
    let full = Message::Full { retry: Duration::from_secs(60) };
    let mut connecting = AtClient::new(false);
    connecting.say(&control(&full));
    let failure = Failure::Full { role: Role::Egress, retry: Duration::from_secs(60) };
    assert_eq!(connecting.client.poll_event(), Some(Event::Failed(failure)));
    let mut connected = AtClient::new(true);
    connected.say(&control_at(AFTER_TOKEN, &full));
    assert!(connected.is_over());
}

#[test]
fn client_drops_packets_until_it_is_admitted() {
    let inner = packets::answer4(&packets::udp4(b"question"), b"answer");
    let frame = [&[FrameKind::Packet { partial: false }.byte()][..], &inner].concat();
    let mut client = AtClient::new(false);
    assert!(matches!(client.say(&frame), DatagramEvent::Dropped(DropReason::NotAdmitted)));
    client.say(&control(&Message::Admitted(Admission::Open)));
    assert!(matches!(client.say(&frame), DatagramEvent::Deliver { .. }), "delivered after admission");
}

#[test]
fn relay_with_unaccepted_evidence_gets_no_circuit() {
    for shown in [Evidence::Open, Evidence::Staple(b"a staple".to_vec())] {
        let mut client = AtClient::announcing([9; 32], false);
        client.say(&control(&Message::Evidence(shown.clone())));
        assert!(client.is_over() && !client.client.is_connected());
        assert_eq!(client.client.take_shown(), Some(shown));
    }
}

#[test]
fn only_an_ingress_opens_circuits_and_only_by_relay_id() {
    let open = control_at(AFTER_TOKEN, &Message::CircuitOpen { request: 1, egress: RelayId(2) });
    let mut egress = AtRelay::new(Role::Egress, true);
    egress.say(&open);
    assert!(egress.is_over(), "an egress opens no circuits");
    let mut ingress = AtRelay::new(Role::Ingress, true);
    ingress.say(&open);
    assert!(!ingress.is_over(), "an unknown relay is refused with a message");
    // An address in place of the relay ID: request 1, then IPv4 address and port.
    let mut longer =
        [&[FrameKind::Control.byte()][..], &AFTER_TOKEN.to_be_bytes(), &[0; 4], &16u16.to_be_bytes()].concat();
    longer.extend([0, 0x10, 0, 0, 0, 10, 0, 0, 0, 1, 203, 0, 113, 9, 1, 187]);
    let mut ingress = AtRelay::new(Role::Ingress, true);
    ingress.say(&longer);
    assert!(ingress.is_over());
}
