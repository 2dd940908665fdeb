//! The packet path allocates nothing at the client, the ingress and the egress, in both directions.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]

use openrelay_sim::packets;
use openrelay_sim::world::World;

#[test]
fn ten_thousand_packets_allocate_nothing() {
    let mut net = World::new(1);
    net.connect();
    let packet = packets::udp4(&[7; 1300]);
    let up = net.send_up(&packet);
    let mut answer = packets::answer4(&up[0].bytes, &[9; 1300]);
    let mut buffer = vec![0; 2_048];
    let mut carried = 0;
    let counted = allocation_counter::measure(|| {
        for _ in 0..10_000 {
            carried += u32::from(net.carry(&packet, &mut answer, &mut buffer));
        }
    });
    assert_eq!(carried, 10_000);
    assert_eq!(counted.count_total, 0, "{counted:?}");
    // Control: the counter does count allocations.
    assert_ne!(allocation_counter::measure(|| drop(net.send_up(&packet))).count_total, 0);
}
