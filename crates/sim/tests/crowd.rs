//! One client takes all that it can, beside others: what they keep, and what a newcomer gets.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]

use std::net::SocketAddr;
use std::time::Duration;

use openrelay_sim::crowd::{Crowd, Greedy, State};

/// Sessions of each relay.
const CAPACITY: u32 = 120;
/// How long a newcomer may take.
const SOON: Duration = Duration::from_secs(2);

/// Ten honest clients, five of them in the hostile client's own network.
fn honest() -> Vec<SocketAddr> {
    let neighbours = (0..5u8).map(|number| ([192, 0, 2, 100 + number], 4_000).into());
    let others = (0..5u8).map(|number| ([198, 18, number, 1], 4_000).into());
    neighbours.chain(others).collect()
}

/// Newcomers, one of them in the hostile client's own network.
fn newcomers() -> [SocketAddr; 2] {
    [([192, 0, 2, 200], 4_000).into(), ([198, 19, 0, 1], 4_000).into()]
}

/// Creates the crowd with the honest clients connected.
fn crowd(shares: bool) -> Crowd {
    let mut crowd = Crowd::new(1, CAPACITY);
    if !shares {
        crowd.ignore_shares();
    }
    honest().into_iter().for_each(|address| crowd.join(address));
    crowd.advance(SOON);
    assert_eq!(crowd.working(&honest()), 10);
    crowd
}

/// Returns how many of the honest clients and of the newcomers work after the attack.
fn outcome(crowd: &mut Crowd) -> (usize, usize) {
    for relay in crowd.held() {
        assert!(relay.0 <= CAPACITY as usize + 2, "{relay:?}");
    }
    let old = crowd.working(&honest());
    newcomers().into_iter().for_each(|address| crowd.join(address));
    crowd.advance(SOON);
    (old, crowd.working(&newcomers()))
}

/// Opens sessions with the ingress from one address, as fast as the ingress lets it. Returns how many it got.
fn take_sessions(crowd: &mut Crowd) -> usize {
    let mut got = 0;
    for port in 0..4 * CAPACITY {
        let greedy = Greedy::new(crowd, ([192, 0, 2, 66], 1_000 + u16::try_from(port).unwrap()).into());
        got += usize::from(greedy.is_some());
        crowd.advance(Duration::from_millis(50));
    }
    got
}

#[test]
fn client_that_takes_all_sessions_of_an_ingress_takes_none_of_others() {
    let mut crowd = crowd(true);
    assert!(take_sessions(&mut crowd) > 3 * CAPACITY as usize);
    assert_eq!(outcome(&mut crowd), (10, 2));
}

#[test]
fn without_shares_one_client_keeps_newcomers_out_of_an_ingress() {
    let mut crowd = crowd(false);
    take_sessions(&mut crowd);
    assert_eq!(outcome(&mut crowd).1, 0);
}

/// A hostile client with all free addresses of its network: its neighbours hold less than each of those and keep it.
#[test]
fn network_full_of_greedy_addresses_takes_nothing_of_its_honest_ones() {
    let mut crowd = crowd(true);
    let mut got = 0;
    for round in 0..3 * CAPACITY {
        let address = [192, 0, 2, u8::try_from(1 + round % 20).unwrap()];
        let greedy = Greedy::new(&mut crowd, (address, 1_000 + u16::try_from(round).unwrap()).into());
        got += usize::from(greedy.is_some());
        crowd.advance(Duration::from_millis(50));
    }
    assert!(got > 2 * CAPACITY as usize, "{got}");
    assert_eq!(outcome(&mut crowd), (10, 2));
}

/// Opens sessions with the egress over a few circuits, with a packet through every other one. Returns how many it got.
fn take_inner_sessions(crowd: &mut Crowd) -> usize {
    let mut greedy = Greedy::new(crowd, ([192, 0, 2, 66], 1_000).into()).unwrap();
    for _ in 0..3 {
        assert!(greedy.open_circuit(crowd));
    }
    let mut got = 0;
    for round in 0..4 * CAPACITY as usize {
        let tag = greedy.tags[round % greedy.tags.len()];
        got += usize::from(greedy.inner_session(crowd, tag));
        if round % 2 == 0 {
            greedy.use_and_close(crowd, tag);
        }
        crowd.advance(Duration::from_millis(50));
    }
    got
}

#[test]
fn client_that_takes_all_sessions_of_an_egress_takes_none_of_others() {
    let mut crowd = crowd(true);
    assert!(take_inner_sessions(&mut crowd) > 3 * CAPACITY as usize);
    assert_eq!(outcome(&mut crowd), (10, 2));
}

#[test]
fn without_shares_one_client_keeps_newcomers_out_of_an_egress() {
    let mut crowd = crowd(false);
    take_inner_sessions(&mut crowd);
    assert_eq!(outcome(&mut crowd).1, 0);
}

/// What docs/limits.md says of clients behind the hostile client's own address: the oldest of them give way.
#[test]
fn clients_behind_the_greedy_address_share_its_fate_and_can_return() {
    let mut crowd = crowd(true);
    let shared: SocketAddr = ([192, 0, 2, 66], 900).into();
    crowd.join(shared);
    crowd.advance(SOON);
    assert_eq!(crowd.working(&[shared]), 1);
    take_sessions(&mut crowd);
    assert_eq!(crowd.state(shared), State::Lost, "it was told");
    crowd.join(shared);
    crowd.advance(SOON);
    assert_eq!(crowd.working(&[shared]), 1);
    assert_eq!(outcome(&mut crowd), (10, 2));
}

/// An egress without `one_hop` takes no packet from a client that has opened its session through an ingress.
#[test]
fn egress_takes_no_packets_straight_from_a_client() {
    let mut crowd = Crowd::new(2, CAPACITY);
    let mut greedy = Greedy::new(&mut crowd, ([192, 0, 2, 66], 1_000).into()).unwrap();
    assert!(greedy.open_circuit(&mut crowd));
    let tag = greedy.tags[0];
    assert!(greedy.inner_session(&mut crowd, tag));
    assert!(!greedy.send_straight(&mut crowd));
}

/// Circuits are never used up: each session has its own eight.
#[test]
fn client_with_all_its_circuits_is_refused_and_takes_none_of_others() {
    let mut crowd = crowd(true);
    for number in 0..CAPACITY / 2 {
        let address = ([192, 0, 2, 66], 1_000 + u16::try_from(number).unwrap()).into();
        let mut greedy = Greedy::new(&mut crowd, address).unwrap();
        assert_eq!((0..12).filter(|_| greedy.open_circuit(&mut crowd)).count(), 8);
        crowd.advance(Duration::from_millis(50));
    }
    assert_eq!(outcome(&mut crowd), (10, 2));
}
