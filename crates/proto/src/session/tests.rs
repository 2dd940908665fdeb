//! Tests of both ends of a session on virtual time: late, early, repeated and old packets.

use super::*;

const MINUTE: u64 = 60;

fn at(seconds: u64) -> Time {
    Time::from_micros(seconds * 1_000_000)
}

fn keys(number: u8, initiator: bool) -> SessionKeys {
    let (first, second) = (Secret([number; 32]), Secret([number + 1; 32]));
    let (send, receive) = if initiator { (first, second) } else { (second, first) };
    SessionKeys { send, receive, mask: Secret([200; 32]), rekey: Secret([number + 2; 32]) }
}

/// Returns an initiator and a responder whose session is confirmed.
fn pair(reach: u64) -> (Session, Session) {
    let end = |initiator| {
        let established = Established {
            initiator,
            suite: Suite::Aegis256X2,
            local_index: 1,
            remote_index: 2,
            evidence: [0; 32],
            hash: [9; 32],
            keys: keys(10, initiator),
        };
        Session::new(&established, reach, at(0))
    };
    let (mut a, mut b) = (end(true), end(false));
    let mut hello = sealed(&mut a, at(0));
    b.open(&mut hello, at(0)).unwrap();
    (a, b)
}

fn sealed(session: &mut Session, now: Time) -> Vec<u8> {
    let mut datagram = vec![0; 48];
    session.seal(&mut datagram, now).unwrap();
    datagram
}

fn open(session: &mut Session, datagram: &[u8], now: Time) -> Result<(), DropReason> {
    session.open(&mut datagram.to_vec(), now)
}

#[test]
fn late_packet_of_the_previous_epoch_opens_once_within_ten_seconds() {
    let (mut a, mut b) = pair(64);
    let late: Vec<_> = (0..3).map(|_| sealed(&mut a, at(MINUTE - 1))).collect();
    let new = sealed(&mut a, at(MINUTE));
    open(&mut b, &new, at(MINUTE)).unwrap();
    open(&mut b, &late[1], at(MINUTE)).unwrap();
    assert_eq!(open(&mut b, &late[1], at(MINUTE)), Err(DropReason::Replayed));
    open(&mut b, &late[0], at(MINUTE + 10)).unwrap();
    assert_eq!(open(&mut b, &late[2], at(MINUTE + 11)), Err(DropReason::UnknownEpoch));
}

#[test]
fn epochs_open_up_to_one_behind_and_sixteen_ahead() {
    for ahead in 1..=20 {
        let (mut a, mut b) = pair(64);
        let packets: Vec<_> = (0..=ahead).map(|minute| sealed(&mut a, at(minute * MINUTE))).collect();
        let last = packets.last().unwrap();
        let verdict = open(&mut b, last, at(ahead * MINUTE));
        if ahead > u64::from(EPOCHS_AHEAD) {
            assert_eq!(verdict, Err(DropReason::UnknownEpoch), "{ahead}");
            // The session has not changed: it continues from where it was.
            open(&mut b, &packets[0], at(ahead * MINUTE)).unwrap();
            continue;
        }
        assert_eq!(verdict, Ok(()), "{ahead}");
        let oldest = open(&mut b, &packets[0], at(ahead * MINUTE));
        assert_eq!(oldest, Ok(()), "the previous epoch is the one that was in use");
        for between in &packets[1..packets.len() - 1] {
            assert_eq!(open(&mut b, between, at(ahead * MINUTE)), Err(DropReason::UnknownEpoch));
        }
    }
}

#[test]
fn no_packet_opens_twice_across_windows_epochs_and_generations() {
    for reach in [64, CLIENT_WINDOW, HOP_WINDOW] {
        let (mut a, mut b) = pair(reach);
        let mut seen = Vec::new();
        for number in 0..20_000u64 {
            // 100 packets a second: more than three epochs, with a re-handshake in between.
            let now = at(number / 100);
            if number == 9_000 {
                b.install(keys(20, false), now);
                a.install(keys(20, true), now);
            }
            let packet = sealed(&mut a, now);
            assert_eq!(open(&mut b, &packet, now), Ok(()), "{number}");
            assert_eq!(open(&mut b, &packet, now), Err(DropReason::Replayed), "{number}");
            seen.push(packet);
        }
        assert_eq!((a.send.generation, b.receive.generation), (1, 1));
        assert!(a.send.number > 0);
        for (number, packet) in seen.iter().enumerate() {
            // Whatever the clock says: now, long ago, far ahead.
            for now in [at(200), at(0), at(1 << 40)] {
                let verdict = open(&mut b, packet, now);
                assert!(matches!(verdict, Err(DropReason::Replayed | DropReason::TooOld)), "{number}: {verdict:?}");
            }
        }
        let packet = sealed(&mut a, at(200));
        assert_eq!(open(&mut b, &packet, at(200)), Ok(()), "the session continues");
    }
}

#[test]
fn crossing_packets_of_two_generations_open() {
    let (mut a, mut b) = pair(64);
    let old: Vec<_> = (0..2).map(|_| sealed(&mut a, at(1))).collect();
    let answer = sealed(&mut b, at(1));
    b.install(keys(20, false), at(1));
    a.install(keys(20, true), at(1));
    let new = sealed(&mut a, at(1));
    // The responder uses the old keys until it has seen the new ones in use.
    let before = sealed(&mut b, at(1));
    open(&mut b, &new, at(2)).unwrap();
    for late in &old {
        open(&mut b, late, at(2)).unwrap();
    }
    let after = sealed(&mut b, at(2));
    for packet in [&after, &answer, &before] {
        open(&mut a, packet, at(3)).unwrap();
    }
    assert_eq!(open(&mut a, &before, at(3)), Err(DropReason::Replayed));
}

#[test]
fn garbage_of_any_length_is_refused() {
    let (_, mut b) = pair(64);
    for length in (0..200).chain([1_500, 65_507, 65_535]) {
        let verdict = open(&mut b, &vec![0x5a; length], at(1));
        assert!(verdict.is_err(), "{length}");
        assert_eq!(verdict == Err(DropReason::BadLength), length < MIN_DATAGRAM, "{length}: {verdict:?}");
    }
}

#[test]
fn key_seals_a_bounded_number_of_packets_and_the_last_epoch_ends() {
    let (mut a, _) = pair(64);
    a.sealed_in_epoch = EPOCH_PACKETS;
    sealed(&mut a, at(1));
    assert_eq!((a.send.number, a.sealed_in_epoch), (1, 1));
    for number in 2..=u64::from(LAST_EPOCH) {
        sealed(&mut a, at(number * MINUTE + 1));
    }
    assert_eq!(a.send.number, LAST_EPOCH);
    assert_eq!(a.seal(&mut [0; 48], at(10_000)), Err(DropReason::KeyExhausted));
}

/// Flags are masked by exclusive or, so an attacker that flips bits chooses how far ahead the epoch seems.
#[test]
fn garbage_of_an_impossible_epoch_is_refused_before_any_work() {
    let (mut a, mut b) = pair(64);
    let datagram = sealed(&mut a, at(0));
    let refusal = |b: &mut Session, ahead: u8, now| {
        let mut copy = datagram.clone();
        copy[5] ^= ahead;
        b.open(&mut copy, now)
    };
    assert_eq!(refusal(&mut b, 2, at(0)), Err(DropReason::BadTag));
    for ahead in [3, 16, 63] {
        assert_eq!(refusal(&mut b, ahead, at(0)), Err(DropReason::UnknownEpoch), "{ahead}");
    }
    assert_eq!(refusal(&mut b, 8, at(6 * MINUTE)), Err(DropReason::BadTag));
    assert_eq!(refusal(&mut b, 9, at(6 * MINUTE)), Err(DropReason::UnknownEpoch));
    open(&mut b, &datagram, at(6 * MINUTE)).unwrap();
}

#[test]
fn expired_keys_are_wiped() {
    let (mut a, mut b) = pair(64);
    let new = sealed(&mut a, at(MINUTE));
    open(&mut b, &new, at(MINUTE)).unwrap();
    assert!(b.forget_old_keys(at(MINUTE + 10)) && b.previous.is_some());
    assert!(!b.forget_old_keys(at(MINUTE + 11)) && b.previous.is_none());
}
