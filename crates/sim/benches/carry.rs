//! What a packet and its answer cost over two hops: client, ingress and egress, both ways, on one core.
#![allow(clippy::print_stdout, missing_docs, reason = "a benchmark prints")]

use std::time::Instant;

use openrelay_sim::packets;
use openrelay_sim::world::World;

/// Packets that are timed together, and how often.
const BATCH: u32 = 2_000;
const ROUNDS: usize = 15;

fn main() {
    let mut net = World::new(1);
    net.connect();
    let packet = packets::udp4(&[7; 1_300]);
    let up = net.send_up(&packet);
    let mut answer = packets::answer4(&up[0].bytes, &[9; 1_300]);
    let mut buffer = vec![0; 2_048];
    let mut times: Vec<_> = (0..ROUNDS)
        .map(|_| {
            let started = Instant::now();
            let carried = (0..BATCH).filter(|_| net.carry(&packet, &mut answer, &mut buffer)).count();
            assert_eq!(carried, BATCH as usize);
            started.elapsed() / BATCH
        })
        .collect();
    times.sort_unstable();
    println!("a packet and its answer over two hops: {:?} (fastest {:?})", times[ROUNDS / 2], times[0]);
}
