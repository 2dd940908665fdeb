//! Merging packets for a device and splitting packets from a device: nothing panics, every packet is either written
//! or refused, and every piece fits the MTU.
#![no_main]
use libfuzzer_sys::fuzz_target;
use openrelay_node::merge::Merger;
use openrelay_node::split::Split;
use openrelay_proto::ip::Packet;
use openrelay_sys::tun::{TunQueue, VNET_LEN, VnetHeader};

thread_local! {
    static SINK: TunQueue = TunQueue::sink().expect("/dev/null");
}

fuzz_target!(|data: &[u8]| {
    let Some((&kind, rest)) = data.split_first() else { return };
    SINK.with(|queue| join(queue, kind, rest));
    cut(rest);
});

/// Treats the bytes as consecutive packets for the device.
fn join(queue: &TunQueue, kind: u8, bytes: &[u8]) {
    let mut merger = Merger::new(kind & 1 == 0);
    let (mut start, mut packets) = (0, 0);
    while start < bytes.len() {
        let Ok(packet) = Packet::parse(&bytes[start..]) else {
            start += 1;
            continue;
        };
        // As the protocol allows: a partial checksum only in packets with a checksum to complete.
        let partial = kind & 2 == 0 && !packet.fragment && packet.checksum_at().is_some();
        merger.push(queue, bytes, start, packet, partial);
        packets += 1;
        start += packet.len;
    }
    merger.flush(queue, bytes);
    assert_eq!(merger.written + merger.refused, packets);
}

/// Treats the bytes as one read from the device.
fn cut(read: &[u8]) {
    let Some((vnet, bytes)) = read.split_first_chunk::<VNET_LEN>() else { return };
    let (Some(vnet), Ok(packet)) = (VnetHeader::parse(vnet), Packet::parse(bytes)) else { return };
    for mtu in [1_152, 1_280, 1_408] {
        let Ok(split) = Split::plan(&vnet, &packet, bytes, mtu) else { continue };
        // A kernel never asks for more pieces than there are bytes.
        for number in 0..split.pieces {
            let len = split.len(&packet, number);
            assert!(len <= usize::from(mtu) && len <= packet.len, "{len} bytes in a piece");
            let mut piece = vec![0; len];
            split.write(&packet, bytes, number, &mut piece);
        }
    }
}
