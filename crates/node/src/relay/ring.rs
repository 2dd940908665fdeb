//! Rings between shards: for datagrams that reached the wrong one, as those of a client do that has moved.
//!
//! Owns bounded single-producer rings whose buffers are made once and travel back and forth: nothing is allocated, nobody waits.

use std::net::SocketAddr;

use openrelay_sys::tun::MAX_READ;
use rtrb::{Consumer, Producer, RingBuffer};

/// Packets that wait for another shard at most, each with room for the largest one.
const DEPTH: usize = 16;

/// What is passed on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Passed {
    /// Datagrams of a train, type and index unmasked.
    Datagrams {
        /// Where they came from.
        from: SocketAddr,
        /// Length of each but the last, which may be shorter.
        stride: usize,
    },
    /// A packet that the tunnel device handed over, virtio header first.
    Device,
}

struct Parcel {
    what: Passed,
    len: usize,
    bytes: Vec<u8>,
}

/// The sending end.
pub(crate) struct RingSender {
    full: Producer<Box<Parcel>>,
    empty: Consumer<Box<Parcel>>,
}

/// The receiving end.
pub(crate) struct RingReceiver {
    full: Consumer<Box<Parcel>>,
    empty: Producer<Box<Parcel>>,
}

impl RingSender {
    /// Passes a copy of `bytes` on; false when the ring is full.
    pub(crate) fn pass(&mut self, what: Passed, bytes: &[u8]) -> bool {
        let Ok(mut parcel) = self.empty.pop() else { return false };
        parcel.what = what;
        parcel.len = bytes.len();
        if let Some(room) = parcel.bytes.get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
        }
        self.full.push(parcel).is_ok()
    }
}

impl RingReceiver {
    /// What the next parcel is.
    pub(crate) fn peek(&self) -> Option<Passed> {
        self.full.peek().ok().map(|parcel| parcel.what)
    }

    /// Takes the next parcel into `buffer`; its length.
    pub(crate) fn take(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let parcel = self.full.pop().ok()?;
        let len = parcel.len;
        if let (Some(room), Some(bytes)) = (buffer.get_mut(..len), parcel.bytes.get(..len)) {
            room.copy_from_slice(bytes);
        }
        let _ = self.empty.push(parcel);
        Some(len)
    }
}

/// The ends of one shard: to each shard by number (none to itself), and from all others.
pub(crate) type Ends = (Vec<Option<RingSender>>, Vec<RingReceiver>);

/// Rings between each two of `shards` shards.
pub(crate) fn mesh(shards: usize) -> Vec<Ends> {
    let mut ends: Vec<Ends> = (0..shards).map(|_| Ends::default()).collect();
    for from in 0..shards {
        for to in 0..shards {
            if from == to {
                ends[from].0.push(None);
                continue;
            }
            let (full_in, full_out) = RingBuffer::new(DEPTH);
            let (mut empty_in, empty_out) = RingBuffer::new(DEPTH);
            for _ in 0..DEPTH {
                let parcel = Parcel { what: Passed::Device, len: 0, bytes: vec![0; MAX_READ] };
                let _ = empty_in.push(Box::new(parcel));
            }
            ends[from].0.push(Some(RingSender { full: full_in, empty: empty_out }));
            ends[to].1.push(RingReceiver { full: full_out, empty: empty_in });
        }
    }
    ends
}
