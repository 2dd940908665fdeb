//! What one timer call of an ingress shard costs when 65,536 sessions with 8 circuits fall silent together.
//!
//! Prints the median and the longest call beside an empty one, and how many sessions and circuits one call ended. Fails
//! when the median exceeds its bound.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "a benchmark prints and may stop")]

use std::time::{Duration, Instant};

use openrelay_proto::time::Time;
use openrelay_sim::crowd::{Crowd, Greedy};
use openrelay_sim::faults::Seeded;

const SESSIONS: u32 = 65_536;
const CIRCUITS: usize = 8;
/// Largest median time of one call.
const BOUND: Duration = Duration::from_millis(5);

fn main() {
    let started = Instant::now();
    let mut crowd = Crowd::new(1, SESSIONS);
    let mut opened = 0;
    for number in 0..SESSIONS {
        // One network each.
        let address = std::net::Ipv4Addr::from_bits(0x0100_0001 + (number << 8));
        let Some(mut client) = Greedy::new(&mut crowd, (address, 4_000).into()) else { continue };
        opened += (0..CIRCUITS).filter(|_| client.open_circuit(&mut crowd)).count();
    }
    let shard = crowd.ingress();
    println!("opened {:?}, {opened} circuits, in {:?}", shard.held(), started.elapsed());
    // Later than any session may be silent.
    let (now, mut random) = (Time::from_micros(1_000_000_000), Seeded(1));
    let mut calls = Vec::new();
    let mut most = (0, 0);
    while shard.held().0 > 0 {
        let before = shard.held();
        let started = Instant::now();
        shard.handle_timeout(now, &mut random);
        calls.push(started.elapsed());
        let after = shard.held();
        most = (most.0.max(before.0 - after.0), most.1.max(before.1 - after.1));
        while shard.poll_transmit().is_some() || shard.poll_freed().is_some() {}
    }
    let started = Instant::now();
    (0..1_000).for_each(|_| shard.handle_timeout(now, &mut random));
    let empty = started.elapsed() / 1_000;
    calls.sort_unstable();
    let (median, longest) = (calls[calls.len() / 2], calls[calls.len() - 1]);
    let rare = calls[calls.len() * 99 / 100];
    println!("{} calls: median {median:?}, 99 % within {rare:?}, longest {longest:?}", calls.len());
    println!("empty call: {empty:?}");
    println!("most in one call: {} sessions, {} circuits", most.0, most.1);
    std::process::exit(i32::from(median > BOUND));
}
