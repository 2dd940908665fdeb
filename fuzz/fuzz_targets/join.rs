//! Joining packets for a device and cutting what it hands over: nothing panics, every packet is written or refused, every byte of payload is in one piece.
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

/// Takes the bytes for packets that came one after the other.
fn join(queue: &TunQueue, kind: u8, bytes: &[u8]) {
    let mut merger = Merger::new(kind & 1 == 0);
    let (mut start, mut packets) = (0, 0);
    while start < bytes.len() {
        let Ok(packet) = Packet::parse(&bytes[start..]) else {
            start += 1;
            continue;
        };
        // As the protocol lets them through: a partial checksum only where there is one to fill in.
        let partial = kind & 2 == 0 && !packet.fragment && packet.checksum_at().is_some();
        merger.push(queue, bytes, start, packet, partial);
        packets += 1;
        start += packet.len;
    }
    merger.flush(queue, bytes);
    assert_eq!(merger.written + merger.refused, packets);
}

/// Takes the bytes for what a device handed over.
fn cut(read: &[u8]) {
    let Some((vnet, bytes)) = read.split_first_chunk::<VNET_LEN>() else { return };
    let (Some(vnet), Ok(packet)) = (VnetHeader::parse(vnet), Packet::parse(bytes)) else { return };
    for mtu in [1_152, 1_280, 1_408] {
        let Ok(split) = Split::plan(&vnet, &packet, bytes, mtu) else { continue };
        // A kernel never asks for more pieces than bytes.
        for number in 0..split.pieces {
            let len = split.len(&packet, number);
            assert!(len <= usize::from(mtu) && len <= packet.len, "{len} bytes in a piece");
            let mut piece = vec![0; len];
            split.write(&packet, bytes, number, &mut piece);
        }
    }
}
