//! Rings between shards, for datagrams that reached the wrong shard, such as those of a client that has moved.
//!
//! Owns bounded single-producer rings. Their buffers are made once and travel back and forth: passing a datagram
//! never allocates and never waits.

use std::net::SocketAddr;

use openrelay_sys::tun::MAX_READ;
use rtrb::{Consumer, Producer, RingBuffer};

/// Maximum number of parcels that wait for another shard, each with room for a train. Unused ones cost no memory.
const DEPTH: usize = 32;
/// Maximum number of datagrams in one parcel.
pub(crate) const MAX_DATAGRAMS: usize = 1_024;

/// What a parcel holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Passed {
    /// Datagrams from this address, one after the other, with type and index unmasked.
    Datagrams(SocketAddr),
    /// A packet from the tunnel device, after its virtio header.
    Device,
}

struct Parcel {
    what: Passed,
    len: usize,
    bytes: Vec<u8>,
    /// The length of each datagram.
    lengths: Vec<u16>,
}

/// The sending end.
pub(crate) struct RingSender {
    full: Producer<Box<Parcel>>,
    empty: Consumer<Box<Parcel>>,
    /// Datagrams that wait for more from the same sender, until [`RingSender::finish`].
    open: Option<Box<Parcel>>,
    /// Whether there are parcels for which the other shard has not been woken.
    pushed: bool,
}

/// The receiving end.
pub(crate) struct RingReceiver {
    full: Consumer<Box<Parcel>>,
    empty: Producer<Box<Parcel>>,
}

impl RingSender {
    /// Passes on a copy of a packet from the device. Returns false if the ring is full.
    pub(crate) fn pass_device(&mut self, packet: &[u8]) -> bool {
        self.close();
        self.begin(Passed::Device, packet) && {
            self.close();
            true
        }
    }

    /// Passes on copies of datagrams of `stride` bytes each; the last one may be shorter. Returns false if the ring
    /// is full.
    pub(crate) fn pass_datagrams(&mut self, from: SocketAddr, stride: usize, datagrams: &[u8]) -> bool {
        let lengths = || datagrams.chunks(stride).map(|datagram| u16::try_from(datagram.len()).unwrap_or(u16::MAX));
        if let Some(open) = &mut self.open
            && open.what == Passed::Datagrams(from)
            && open.lengths.len() + lengths().len() <= MAX_DATAGRAMS
            && let Some(room) = open.bytes.get_mut(open.len..open.len + datagrams.len())
        {
            room.copy_from_slice(datagrams);
            open.len += datagrams.len();
            open.lengths.extend(lengths());
            return true;
        }
        self.close();
        let begun = self.begin(Passed::Datagrams(from), datagrams);
        if let Some(open) = &mut self.open {
            open.lengths.extend(lengths());
        }
        begun
    }

    /// Hands over what is left. Returns whether the other shard must be woken.
    pub(crate) fn finish(&mut self) -> bool {
        self.close();
        std::mem::take(&mut self.pushed)
    }

    fn begin(&mut self, what: Passed, bytes: &[u8]) -> bool {
        let Ok(mut parcel) = self.empty.pop() else { return false };
        parcel.what = what;
        parcel.len = bytes.len();
        parcel.lengths.clear();
        if let Some(room) = parcel.bytes.get_mut(..bytes.len()) {
            room.copy_from_slice(bytes);
        }
        self.open = Some(parcel);
        true
    }

    fn close(&mut self) {
        if let Some(parcel) = self.open.take() {
            // There are no more parcels than places in the ring.
            self.pushed |= self.full.push(parcel).is_ok();
        }
    }
}

impl RingReceiver {
    /// Returns what the next parcel holds.
    pub(crate) fn peek(&self) -> Option<Passed> {
        self.full.peek().ok().map(|parcel| parcel.what)
    }

    /// Moves the next parcel to `buffer`, and the lengths of its datagrams to `lengths`. Returns the total length.
    pub(crate) fn take(&mut self, buffer: &mut [u8], lengths: &mut Vec<u16>) -> Option<usize> {
        let parcel = self.full.pop().ok()?;
        let len = parcel.len;
        if let (Some(room), Some(bytes)) = (buffer.get_mut(..len), parcel.bytes.get(..len)) {
            room.copy_from_slice(bytes);
        }
        lengths.clone_from(&parcel.lengths);
        let _ = self.empty.push(parcel);
        Some(len)
    }
}

/// The ends of one shard: a sender for each shard by number (none for itself), and a receiver from each other shard.
pub(crate) type Ends = (Vec<Option<RingSender>>, Vec<RingReceiver>);

/// Returns rings between all pairs of `shards` shards.
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
                let lengths = Vec::with_capacity(MAX_DATAGRAMS);
                let parcel = Parcel { what: Passed::Device, len: 0, bytes: vec![0; MAX_READ], lengths };
                let _ = empty_in.push(Box::new(parcel));
            }
            ends[from].0.push(Some(RingSender { full: full_in, empty: empty_out, open: None, pushed: false }));
            ends[to].1.push(RingReceiver { full: full_out, empty: empty_in });
        }
    }
    ends
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(port: u16) -> SocketAddr {
        ([192, 0, 2, 1], port).into()
    }

    fn taken(ring: &mut RingReceiver) -> Option<(Passed, Vec<u8>, Vec<u16>)> {
        let (mut buffer, mut lengths) = (vec![0; MAX_READ], Vec::new());
        let what = ring.peek()?;
        let len = ring.take(&mut buffer, &mut lengths)?;
        Some((what, buffer[..len].to_vec(), lengths))
    }

    #[test]
    fn datagrams_of_one_sender_travel_together() {
        let mut ends = mesh(2);
        let (mut receiver, mut sender) = (ends[1].1.remove(0), ends[0].0[1].take().unwrap());
        assert!(!sender.finish(), "an empty ring wakes nobody");
        assert!(sender.pass_datagrams(address(1), 3, b"aaabbb"));
        assert!(sender.pass_datagrams(address(1), 3, b"cccd"));
        assert_eq!(taken(&mut receiver), None, "an unfinished parcel is not handed over");
        assert!(sender.pass_datagrams(address(1), 5, b"eeeee"));
        assert!(sender.pass_datagrams(address(2), 3, b"fff"));
        assert!(sender.pass_device(b"device"));
        assert!(sender.finish());
        assert!(!sender.finish());
        let datagrams = |port, bytes: &[u8], lengths: &[u16]| {
            Some((Passed::Datagrams(address(port)), bytes.to_vec(), lengths.to_vec()))
        };
        assert_eq!(taken(&mut receiver), datagrams(1, b"aaabbbcccdeeeee", &[3, 3, 3, 1, 5]));
        assert_eq!(taken(&mut receiver), datagrams(2, b"fff", &[3]));
        assert_eq!(taken(&mut receiver), Some((Passed::Device, b"device".to_vec(), vec![])));
        assert_eq!(taken(&mut receiver), None);
    }

    #[test]
    fn full_ring_refuses_and_recovers() {
        let mut ends = mesh(2);
        let (mut receiver, mut sender) = (ends[1].1.remove(0), ends[0].0[1].take().unwrap());
        let most = MAX_READ / 1_000 * 1_000;
        for _ in 0..DEPTH {
            assert!(sender.pass_datagrams(address(1), 1_000, &vec![1; most]));
        }
        assert!(!sender.pass_datagrams(address(1), 1_000, &[2; 1_000]));
        assert!(sender.finish());
        for _ in 0..DEPTH {
            assert_eq!(taken(&mut receiver).map(|(_, bytes, _)| bytes.len()), Some(most));
        }
        assert!(sender.pass_datagrams(address(1), 1_000, &[2; 1_000]) && sender.finish());
        assert_eq!(taken(&mut receiver).map(|(_, bytes, _)| bytes.len()), Some(1_000));
    }
}
