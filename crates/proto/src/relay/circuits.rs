//! Circuits of an ingress shard: a tag leads to a client's session and to the session with the egress.
//!
//! Owns tags. They are random, because client and egress see them: a counter would tell each of them how many
//! circuits others have, and when those open and close. Never moves packets.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::EntryId;
use crate::index::MAX_SESSIONS;
use crate::random::{Random, array};

/// Most circuits of one session of a client.
pub(super) const MAX_CLIENT_CIRCUITS: usize = 8;
/// Most circuits of one shard. Each session may have its own, so they are never used up.
const MAX_CIRCUITS: usize = 1 << 20;
const _: () = assert!(MAX_CIRCUITS == MAX_SESSIONS as usize * MAX_CLIENT_CIRCUITS);
/// Draws of a tag before a circuit is refused. With all circuits open, one draw in 4,096 finds its tag taken.
const DRAWS: usize = 8;

/// One circuit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Circuit {
    /// Entry of the client's session.
    pub(super) client: EntryId,
    /// Entry of the session with the egress.
    pub(super) hop: EntryId,
}

/// Hashes tags. The relay draws them, so nobody can choose tags that collide, and spreading their bits is enough.
/// Source: Knuth, TAOCP volume 3, section 6.4.
#[derive(Default)]
struct Spread(u64);

impl Hasher for Spread {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, tag: u32) {
        self.0 = (self.0 ^ u64::from(tag)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[derive(Default)]
pub(super) struct Circuits(HashMap<u32, Circuit, BuildHasherDefault<Spread>>);

impl Circuits {
    /// Opens a circuit and returns its tag; `None` when there is no room.
    pub(super) fn open(&mut self, circuit: Circuit, random: &mut dyn Random) -> Option<u32> {
        if self.0.len() >= MAX_CIRCUITS {
            return None;
        }
        let tag = (0..DRAWS).map(|_| u32::from_be_bytes(array(random))).find(|tag| !self.0.contains_key(tag))?;
        self.0.insert(tag, circuit);
        Some(tag)
    }

    /// Returns the circuit with this tag.
    pub(super) fn find(&self, tag: u32) -> Option<Circuit> {
        self.0.get(&tag).copied()
    }

    /// Closes the circuit with this tag.
    pub(super) fn close(&mut self, tag: u32) -> Option<Circuit> {
        self.0.remove(&tag)
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Counting;

    /// A generator that always gives the same bytes.
    struct Stuck;

    impl Random for Stuck {
        fn fill(&mut self, bytes: &mut [u8]) {
            bytes.fill(7);
        }
    }

    fn circuit(client: u32) -> Circuit {
        Circuit { client: EntryId { slot: client, serial: 0 }, hop: EntryId { slot: 0, serial: 1 } }
    }

    #[test]
    fn tag_reveals_nothing_about_other_circuits() {
        let (mut alone, mut busy) = (Circuits::default(), Circuits::default());
        let mut random = Counting(1_000_000);
        let others: Vec<u32> = (0..1_000).map(|client| busy.open(circuit(client), &mut random).unwrap()).collect();
        for tag in &others[..500] {
            busy.close(*tag);
        }
        for seed in 0..100 {
            let tags = [&mut alone, &mut busy].map(|circuits| {
                let tag = circuits.open(circuit(0), &mut Counting(seed)).unwrap();
                circuits.close(tag);
                tag
            });
            assert_eq!(tags[0], tags[1]);
        }
    }

    #[test]
    fn tag_finds_its_circuit_until_it_is_closed() {
        let (mut circuits, mut random) = (Circuits::default(), Counting::default());
        let tags: Vec<u32> = (0..1_000).map(|client| circuits.open(circuit(client), &mut random).unwrap()).collect();
        for (tag, client) in tags.iter().zip(0..) {
            assert_eq!(circuits.find(*tag), Some(circuit(client)));
        }
        assert_eq!(circuits.close(tags[5]), Some(circuit(5)));
        assert_eq!((circuits.find(tags[5]), circuits.close(tags[5]), circuits.len()), (None, None, 999));
    }

    #[test]
    fn tag_is_never_given_twice_and_a_full_shard_refuses_circuits() {
        let mut circuits = Circuits::default();
        assert_eq!(circuits.open(circuit(0), &mut Stuck), Some(0x0707_0707));
        assert_eq!(circuits.open(circuit(1), &mut Stuck), None);
        assert_eq!(circuits.find(0x0707_0707), Some(circuit(0)));
        let mut random = Counting::default();
        while circuits.len() < MAX_CIRCUITS {
            circuits.open(circuit(2), &mut random).unwrap();
        }
        assert_eq!(circuits.open(circuit(3), &mut random), None);
    }
}
