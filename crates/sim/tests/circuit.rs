//! A client, an ingress and an egress, connected by function calls on virtual time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue must stop")]

use std::collections::BTreeSet;
use std::time::Duration;

use openrelay_proto::client::{Event, Failure};
use openrelay_proto::cookie;
use openrelay_proto::drops::DropReason;
use openrelay_proto::handshake::Role;
use openrelay_proto::ip::Packet;
use openrelay_proto::mask::IndexMask;
use openrelay_proto::message::{Announced, Evidence};
use openrelay_sim::faults::{Faults, Seeded};
use openrelay_sim::packets;
use openrelay_sim::world::World;

#[test]
fn packet_crosses_two_hops_and_back() {
    let mut net = World::new(1);
    net.connect();
    let up = net.send_up(&packets::udp4(b"ping over two hops"));
    assert_eq!(up.len(), 1);
    assert_eq!(&up[0].bytes[28..46], b"ping over two hops");
    let down = net.send_down(&packets::answer4(&up[0].bytes, b"pong"));
    assert_eq!(down.len(), 1);
    assert_eq!(&down[0][28..32], b"pong");
    net.check_accounting();
}

#[test]
fn no_eight_byte_string_appears_on_both_legs() {
    let mut net = World::new(2);
    net.connect();
    for _ in 0..200 {
        let up = net.send_up(&packets::udp4(&[0x55; 1300]));
        net.send_down(&packets::answer4(&up[0].bytes, &[0xaa; 1200]));
    }
    let legs = net.wire_bytes();
    let mut windows = std::collections::HashSet::new();
    for datagram in &legs.client {
        windows.extend(datagram.windows(8).map(|w| <[u8; 8]>::try_from(w).unwrap()));
    }
    assert!(windows.len() > 400_000);
    for datagram in &legs.relay {
        for window in datagram.windows(8) {
            assert!(!windows.contains(window), "a byte string crossed the ingress");
        }
    }
}

/// A client that does not accept a relay's evidence is shown it and opens no circuit, whether it accepts none or
/// other evidence.
#[test]
fn circuit_fails_with_unaccepted_evidence() {
    let announced = Announced { digest: [7; 32], shown: Evidence::Staple(vec![5; 3_000]) };
    for role in [Role::Ingress, Role::Egress] {
        for forgets in [true, false] {
            let mut net = World::new(33);
            if forgets {
                net.accept_evidence(role, Vec::new());
            } else {
                net.set_evidence(role, announced.clone());
            }
            assert_eq!(net.try_connect(), Err(Event::Failed(Failure::OtherEvidence(role))));
            let shown = if forgets { Evidence::Open } else { announced.shown.clone() };
            assert_eq!(net.take_shown(), Some(shown));
        }
    }
}

/// While a relay renews its evidence, it still announces the old one and clients already know the new one: both are
/// accepted.
#[test]
fn circuit_opens_with_any_accepted_evidence() {
    for role in [Role::Ingress, Role::Egress] {
        let mut net = World::new(33);
        net.set_evidence(role, Announced { digest: [7; 32], shown: Evidence::Staple(vec![5; 3_000]) });
        net.accept_evidence(role, vec![[8; 32], [7; 32]]);
        net.connect();
    }
}

#[test]
fn keys_are_replaced_without_losing_a_packet() {
    let mut net = World::new(3);
    net.connect();
    let mut keys = [BTreeSet::new(), BTreeSet::new()];
    for round in 0..400u32 {
        let up = net.send_up(&packets::udp4(&round.to_be_bytes()));
        assert_eq!(up.len(), 1, "round {round}");
        let down = net.send_down(&packets::answer4(&up[0].bytes, &round.to_be_bytes()));
        assert_eq!(down.len(), 1, "round {round}");
        for (seen, now) in keys.iter_mut().zip(net.sealing_epochs()) {
            seen.insert(now);
        }
        net.advance_millis(1_000);
    }
    for seen in keys {
        let generations: BTreeSet<u8> = seen.iter().map(|(generation, _)| *generation).collect();
        assert!(generations.len() >= 3, "a handshake every two to three minutes: {seen:?}");
        assert!(seen.len() >= 6, "a new epoch every minute: {seen:?}");
    }
    net.check_accounting();
}

/// Regression: keys of the generation before the previous one were taken for keys of the next generation.
#[test]
fn rekeys_in_quick_succession_lose_no_packet() {
    let mut net = World::new(13);
    net.connect();
    for round in 0..12u32 {
        let before = net.sealing_epochs();
        net.rekey();
        assert!(net.sealing_epochs().iter().zip(before).all(|(now, before)| now.0 != before.0), "round {round}");
        for _ in 0..5 {
            let up = net.send_up(&packets::udp4(&round.to_be_bytes()));
            assert_eq!(up.len(), 1, "round {round}");
            assert_eq!(net.send_down(&packets::answer4(&up[0].bytes, b"x")).len(), 1, "round {round}");
        }
        net.advance_millis(300);
    }
    net.check_accounting();
}

#[test]
fn a_client_that_moves_keeps_its_circuit() {
    let mut net = World::new(4);
    net.connect();
    for round in 0..20u16 {
        net.move_client(5000 + round);
        let mut answered = 0;
        for _ in 0..10 {
            let up = net.send_up(&packets::udp4(&[1; 600]));
            assert_eq!(up.len(), 1);
            answered += net.send_down(&packets::answer4(&up[0].bytes, &[2; 600])).len();
        }
        assert!(answered >= 9, "{answered}");
    }
    net.check_accounting();
}

/// Regression: the echo of a challenge was lost, the client moved again, and the two ends shared no index.
#[test]
fn a_client_that_moves_on_a_lossy_path_keeps_its_circuit() {
    for seed in 0..400 {
        let mut net = World::new(seed);
        net.connect();
        net.faults.delay = Duration::from_millis(20);
        net.faults.jitter = Duration::from_millis(if seed % 2 == 0 { 400 } else { 0 });
        net.faults.loss = 300;
        for round in 0..20u16 {
            net.move_client(5_000 + round);
            for _ in 0..seed / 2 % 8 {
                net.push_up(&packets::udp4(&[1; 600]));
                net.advance_millis(100);
            }
        }
        net.faults = Faults::default();
        assert!(net.push_up(&packets::udp4(&[1; 600])), "seed {seed}: lost");
        net.advance_millis(1_000);
        let up = net.send_up(&packets::udp4(&[1; 600]));
        let down = up.first().map(|up| net.send_down(&packets::answer4(&up.bytes, &[2; 600])).len());
        assert_eq!(down, Some(1), "seed {seed}");
        net.check_accounting();
    }
}

/// Regression: a client that only received waited for its keepalive.
#[test]
fn listening_client_recovers_after_its_nat_mapping_changes() {
    let mut net = World::new(14);
    net.connect();
    let up = net.send_up(&packets::udp4(b"subscribe"));
    assert_eq!(net.send_down(&packets::answer4(&up[0].bytes, b"news")).len(), 1);
    net.move_client(7000);
    assert_eq!(net.send_down(&packets::answer4(&up[0].bytes, b"lost")).len(), 0, "sent to the previous address");
    net.advance_millis(600);
    assert_eq!(net.send_down(&packets::answer4(&up[0].bytes, b"news")).len(), 1);
}

#[test]
fn spoofed_source_receives_at_most_three_times_its_bytes() {
    let mut net = World::new(5);
    net.connect();
    let up = net.send_up(&packets::udp4(&[1; 100]));
    net.hold_control = true;
    net.move_client(6000);
    let sent = net.client_bytes();
    net.send_up(&packets::udp4(&[1; 100]));
    let sent = net.client_bytes() - sent;
    let before = net.bytes_to_client();
    for _ in 0..50 {
        net.send_down(&packets::answer4(&up[0].bytes, &[2; 1000]));
    }
    assert!(net.bytes_to_client() - before <= 3 * sent);
    assert!(net.ingress_drops(DropReason::PathUnproven) > 40);
}

/// The ciphertext is repeated only to the address that sent the complete key, so it cannot be reflected to a third
/// party.
#[test]
fn kem_ciphertext_is_repeated_only_to_the_sender_of_the_whole_key() {
    let mut net = World::new(31);
    net.connect();
    let key = net.wire_bytes().client_up.iter().find(|datagram| datagram.len() > 1_200).unwrap().clone();
    let sent = |net: &mut World, from, datagram: &[u8]| {
        let before = net.datagrams_from_ingress();
        net.inject_from(from, datagram.to_vec());
        net.datagrams_from_ingress() - before
    };
    let (client, victim) = (net.client_address(), "192.0.2.99:9".parse().unwrap());
    assert_eq!(sent(&mut net, client, &key), 1, "the client may ask again");
    assert_eq!(sent(&mut net, victim, &key), 0);
    for len in 26..key.len() {
        assert_eq!(sent(&mut net, client, &key[..len]), 0, "{len} bytes");
    }
    // The mask's sample begins right after the header.
    for at in 26..key.len() {
        let mut other = key.clone();
        other[at] ^= 1;
        assert_eq!(sent(&mut net, client, &other), 0, "byte {at}");
    }
    net.check_accounting();
}

/// All three handshakes get a cookie request: client to ingress, ingress to egress, and client to egress through the
/// ingress.
#[test]
fn circuit_opens_through_relays_that_require_cookies() {
    let mut net = World::new(32);
    net.put_relays_under_load();
    net.connect();
    assert_eq!(net.send_up(&packets::udp4(b"hello")).len(), 1);
    let legs = net.wire_bytes();
    let cookies = |datagrams: &[Vec<u8>], len| datagrams.iter().filter(|datagram| datagram.len() == len).count();
    assert_eq!((cookies(&legs.client, 42), cookies(&legs.relay, 42)), (1, 1));
    assert_eq!(cookies(&legs.client_up, 112), 1);
    assert_eq!(cookies(&legs.client_up, 128), 1);
    net.check_accounting();
}

/// Regression: an idle relay refused packets with a wrong proof, and the client put it on each further packet.
#[test]
fn forged_cookies_do_not_keep_a_client_out() {
    for load in [false, true] {
        let mut net = World::new(3);
        net.faults.delay = Duration::from_millis(150);
        if load {
            net.put_relays_under_load();
        }
        let (key, mut random, mut seen) = (net.ingress_key(), Seeded(9), BTreeSet::new());
        let outcome = net.connect_watched(|datagram| {
            if ![112, 128].contains(&datagram.len()) || !seen.insert(datagram.to_vec()) {
                return None;
            }
            let mut first = datagram.to_vec();
            IndexMask::to_relay(&key).remove(&mut first);
            let mut forged = cookie::forge(&first, &[0x66; 16], &key, &mut random);
            IndexMask::to_client(&key).remove(&mut forged);
            Some(forged)
        });
        assert_eq!(outcome, Ok(()), "load {load}");
    }
}

#[test]
fn dead_egress_is_detected_and_usable_after_recovery() {
    let mut net = World::new(33);
    net.connect();
    net.advance_millis(60_000);
    assert!(net.is_connected(), "an idle circuit over a live session stays connected");
    net.egress_cut = true;
    net.push_up(&packets::udp4(b"into the void"));
    net.advance_millis(13_000);
    assert!(!net.is_connected(), "the ingress reports the loss before the client's own fifteen seconds");
    net.egress_cut = false;
    net.connect();
    assert_eq!(net.send_up(&packets::udp4(b"hello")).len(), 1);
}

#[test]
fn replayed_first_packet_gets_no_answer() {
    let mut net = World::new(39);
    net.connect();
    let first = net.wire_bytes().client_up.into_iter().find(|datagram| datagram.len() == 112).unwrap();
    let before = net.datagrams_from_ingress();
    net.inject_at_ingress(first);
    assert_eq!(net.datagrams_from_ingress(), before);
    assert_eq!(net.ingress_handshake_drops(DropReason::HandshakeReplay), 1);
}

/// Regression: two unanswered packets more than fifteen seconds apart ended the circuit.
#[test]
fn unanswered_packets_do_not_end_the_circuit() {
    let mut net = World::new(34);
    net.connect();
    for round in 0..8 {
        net.push_up(&packets::udp4(b"is anybody there"));
        net.advance_millis(1_000);
        net.push_up(&packets::udp4(b"or there"));
        net.advance_millis(15_000 + round * 5_000);
        assert!(net.is_connected(), "round {round}");
    }
}

/// Regression: the session had been idle for a minute when the circuit opened, so the next liveness check ended both.
#[test]
fn circuit_over_an_idle_session_stays_connected() {
    for offset in 0..10 {
        let mut net = World::new(35);
        net.connect();
        net.close();
        net.advance_millis(60_000 + offset * 100);
        net.faults.delay = Duration::from_millis(150);
        net.connect();
        net.advance_millis(5_000);
        assert!(net.is_connected(), "{offset}");
        net.faults.delay = Duration::ZERO;
        net.advance_millis(1_000);
        assert_eq!(net.send_up(&packets::udp4(b"hello")).len(), 1);
    }
}

#[test]
fn lost_circuit_requests_no_timeout() {
    let mut net = World::new(36);
    net.connect();
    net.advance_millis(1_000);
    net.egress_cut = true;
    net.push_up(&packets::udp4(b"into the void"));
    net.advance_millis(30_000);
    assert!(!net.is_connected());
    net.advance_millis(600_000);
    assert!(net.client_rests_for() > Duration::from_secs(3_600));
}

/// Regression: keepalives refreshed only the session with the ingress.
#[test]
fn client_with_keepalives_is_reachable_after_an_idle_hour() {
    let mut net = World::new(37);
    net.use_keepalives();
    net.connect();
    let up = net.send_up(&packets::udp4(b"subscribe"));
    net.advance_millis(3_600_000);
    assert!(net.is_connected());
    assert_eq!(net.send_down(&packets::answer4(&up[0].bytes, b"news")).len(), 1);
}

/// Regression: after a burst, the first keepalive came almost a period late.
#[test]
fn keepalive_period_is_never_exceeded() {
    let mut net = World::new(38);
    net.use_keepalives();
    net.connect();
    let up = net.send_up(&packets::udp4(b"subscribe"));
    net.send_down(&packets::answer4(&up[0].bytes, b"news"));
    let (mut bytes, mut silent) = (net.client_bytes(), 0);
    for second in 0..300 {
        net.advance_millis(1_000);
        silent = if net.client_bytes() > bytes { 0 } else { silent + 1 };
        bytes = net.client_bytes();
        assert!(silent <= 26, "silent for {silent} s after {second} s");
    }
}

#[test]
fn foreign_sources_and_private_destinations_are_refused() {
    let mut net = World::new(6);
    net.connect();
    let mut foreign = packets::udp4(b"x");
    foreign[15] = 9;
    assert!(net.send_up(&foreign).is_empty());
    assert_eq!(net.egress_drops(DropReason::ForeignSource), 1);
    for private in [[10, 0, 0, 1], [127, 0, 0, 1], [192, 168, 1, 1], [169, 254, 169, 254], [100, 64, 1, 0]] {
        let mut packet = packets::udp4(b"x");
        packet[16..20].copy_from_slice(&private);
        assert!(net.send_up(&packet).is_empty());
    }
    assert_eq!(net.egress_drops(DropReason::ForbiddenDestination), 5);
    net.check_accounting();
}

/// Delivers `golden` to the ingress with each bit flipped and truncated to each length.
fn damage_is_met_with_silence(net: &mut World, golden: &[u8]) {
    let before = net.datagrams_from_ingress();
    for bit in 0..golden.len() * 8 {
        let mut copy = golden.to_vec();
        copy[bit / 8] ^= 1 << (bit % 8);
        net.inject_at_ingress(copy);
    }
    for length in 0..golden.len() {
        net.inject_at_ingress(golden[..length].to_vec());
    }
    assert_eq!(net.datagrams_from_ingress(), before);
}

#[test]
fn damaged_data_packet_is_dropped_silently() {
    let mut net = World::new(7);
    net.connect();
    let golden = net.seal_up(&packets::udp4(b"golden"));
    damage_is_met_with_silence(&mut net, &golden);
    assert_eq!(net.delivered_up(), 0);
    net.inject_at_ingress(golden.clone());
    assert_eq!(net.delivered_up(), 1, "dropped datagrams must change no state");
    let replays = net.ingress_drops(DropReason::Replayed);
    net.inject_at_ingress(golden);
    assert_eq!(net.delivered_up(), 0);
    assert_eq!(net.ingress_drops(DropReason::Replayed), replays + 1);
    net.check_accounting();
}

#[test]
fn damaged_first_packet_is_dropped_silently() {
    let mut net = World::new(35);
    net.hold_control = true;
    net.try_connect().unwrap_err();
    let golden = net.held_back().swap_remove(0);
    assert_eq!(golden.len(), 112);
    damage_is_met_with_silence(&mut net, &golden);
    let before = net.datagrams_from_ingress();
    net.inject_at_ingress(golden);
    assert_eq!(net.datagrams_from_ingress(), before + 1, "dropped datagrams must change no state");
    net.check_accounting();
}

#[test]
fn damaged_control_packet_is_dropped_silently() {
    let mut net = World::new(34);
    net.connect();
    net.hold_control = true;
    net.rekey();
    let held = net.held_back();
    let golden = held.iter().max_by_key(|datagram| datagram.len()).unwrap();
    damage_is_met_with_silence(&mut net, golden);
    let before = net.datagrams_from_ingress();
    for datagram in held {
        net.inject_at_ingress(datagram);
    }
    assert!(net.datagrams_from_ingress() > before, "dropped datagrams must change no state");
    net.hold_control = false;
    net.advance_millis(1_000);
    assert_eq!(net.send_up(&packets::udp4(b"under new keys")).len(), 1);
    net.check_accounting();
}

#[test]
fn ingress_opens_circuits_only_to_relays_in_its_directory() {
    for (id, expected) in [(99, "UnknownRelay"), (1, "Itself")] {
        let mut net = World::new(8);
        net.ask_for_egress(id);
        let failure = format!("{:?}", net.try_connect().unwrap_err());
        assert!(failure.contains(expected), "{failure}");
    }
}

#[test]
fn first_packet_for_a_wrong_relay_key_gets_no_answer() {
    let mut net = World::new(9);
    net.use_wrong_ingress_key();
    let failure = format!("{:?}", net.try_connect().unwrap_err());
    assert!(failure.contains("IngressSilent"), "{failure}");
    assert_eq!(net.datagrams_from_ingress(), 0);
}

#[test]
fn closed_circuit_leaves_no_client_session() {
    let mut net = World::new(10);
    net.connect();
    net.close();
    assert_eq!(net.held(), ((1, 0), (1, 0)), "only the session between the relays remains");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let run = |seed| {
        let mut net = World::new(seed);
        net.connect();
        net.send_up(&packets::udp4(b"same"));
        net.wire_bytes()
    };
    assert_eq!(run(11), run(11));
    assert_ne!(run(11), run(12));
}

/// Checks a tunnel on a bad network against a reference model: packets may be lost, but each packet that arrives was
/// sent, is unchanged and arrives once.
fn survive(seed: u64) -> (usize, openrelay_sim::world::Wire) {
    let mut net = World::new(seed);
    let mut dice = Seeded(seed);
    let pick = |dice: &mut Seeded, most: u64| u32::try_from(dice.number() % most).unwrap();
    net.faults = Faults {
        delay: Duration::from_millis(dice.number() % 60),
        jitter: Duration::from_millis(dice.number() % 40),
        loss: pick(&mut dice, 150),
        duplication: pick(&mut dice, 100),
        corruption: pick(&mut dice, 50),
        ..Faults::default()
    };
    let mut tries = 0;
    while net.try_connect().is_err() {
        tries += 1;
        assert!(tries < 10, "seed {seed}: no connection in ten tries");
    }
    let (mut arrived, mut answered, mut keys) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let number_of = |bytes: &[u8]| u32::from_be_bytes(bytes[28..32].try_into().unwrap());
    for round in 0..200u32 {
        if round % 50 == 49 {
            net.move_client(4000 + u16::try_from(round).unwrap());
        }
        if round % 60 == 30 {
            net.rekey();
        }
        net.faults.partition = (100..105).contains(&round);
        net.push_up(&packets::udp4(&[&round.to_be_bytes()[..], &[7; 300]].concat()));
        // Advances slowly now and then, so that keys also age.
        net.advance_millis(if round % 10 == 0 { 4_000 } else { 20 });
        let mut down = net.delivered_down();
        for packet in net.taken_up() {
            let number = number_of(&packet.bytes);
            assert_eq!(packet.bytes[32..], [7; 300], "seed {seed}: changed on the way up");
            assert!(arrived.insert(number), "seed {seed}: packet {number} arrived twice");
            let answer = [&number.to_be_bytes()[..], &[8; 200]].concat();
            down.extend(net.send_down(&packets::answer4(&packet.bytes, &answer)));
        }
        for packet in down {
            let number = number_of(&packet);
            assert_eq!(packet[32..], [8; 200], "seed {seed}: changed on the way down");
            assert!(arrived.contains(&number) && answered.insert(number), "seed {seed}: answer {number} twice");
        }
        keys.insert(net.sealing_epochs());
    }
    assert!(keys.len() >= 4, "seed {seed}: {keys:?}");
    assert!(answered.len() * 2 > arrived.len(), "seed {seed}: {} answers to {}", answered.len(), arrived.len());
    net.faults = Faults::default();
    net.advance_millis(2_000);
    net.taken_up();
    assert_eq!(net.send_up(&packets::udp4(b"after the storm")).len(), 1, "seed {seed}");
    net.check_accounting();
    (arrived.len(), net.wire_bytes())
}

#[test]
fn bad_network_causes_only_packet_loss() {
    for seed in 0..60 {
        let (arrived, _) = survive(seed);
        assert!(arrived > 60, "seed {seed}: only {arrived} of 200");
    }
}

#[test]
fn the_same_seed_gives_the_same_trace_on_a_bad_network() {
    for seed in 1000..1010 {
        assert!(survive(seed) == survive(seed), "seed {seed}");
    }
}

#[test]
fn shrinking_path_mtu_is_detected() {
    let mut net = World::new(15);
    net.connect();
    net.advance_millis(2_000);
    assert_eq!(net.client_mtu(), 1408);
    net.faults.largest = 1_400;
    for _ in 0..200 {
        net.push_up(&packets::udp4(&[1; 100]));
        net.advance_millis(100);
    }
    assert_eq!(net.client_mtu(), 1328, "headers and tags take 58 bytes");
}

#[test]
fn lost_mtu_report_is_repeated_with_the_next_probe() {
    let mut net = World::new(16);
    net.faults.delay = Duration::from_millis(50);
    net.try_connect().unwrap();
    net.send_up(&packets::udp4(b"hello"));
    net.advance_millis(10);
    net.hold_control = true;
    net.advance_millis(300);
    assert_eq!(net.client_mtu(), 1408, "the probe was echoed");
    assert!(!net.held_back().is_empty(), "the report is withheld");
    net.hold_control = false;
    let inner = Packet::parse(&net.taken_up()[0].bytes).unwrap().source;
    assert_eq!(net.egress_mtu(inner), 1280);
    for _ in 0..60 {
        net.push_up(&packets::udp4(b"traffic"));
        net.advance_millis(100);
    }
    assert_eq!(net.egress_mtu(inner), 1408);
}
