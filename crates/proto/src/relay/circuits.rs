//! Circuits of an ingress shard: which client's frames go into which hop session, by tag.
//!
//! Owns tags: slot (20 bits) and generation (12 bits), so that frames of a circuit that was closed find nothing.

use super::EntryId;

/// Circuits of one shard at most.
const MAX_CIRCUITS: usize = 1 << SLOT_BITS;
const SLOT_BITS: u32 = 20;
const SLOT_MASK: u32 = (1 << SLOT_BITS) - 1;

/// One circuit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Circuit {
    /// Entry of the client's session.
    pub(super) client: EntryId,
    /// Entry of the session with the egress.
    pub(super) hop: EntryId,
}

#[derive(Debug, Default)]
pub(super) struct Circuits {
    slots: Vec<(u32, Option<Circuit>)>,
    free: Vec<u32>,
    open: usize,
}

impl Circuits {
    /// Opens a circuit and returns its tag; `None` when there is no room.
    pub(super) fn open(&mut self, circuit: Circuit) -> Option<u32> {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None if self.slots.len() < MAX_CIRCUITS => {
                self.slots.push((0, None));
                u32::try_from(self.slots.len() - 1).ok()?
            }
            None => return None,
        };
        let (generation, room) = self.slots.get_mut(slot as usize)?;
        *room = Some(circuit);
        self.open += 1;
        Some((*generation << SLOT_BITS) | slot)
    }

    /// The circuit with this tag.
    pub(super) fn find(&self, tag: u32) -> Option<Circuit> {
        let (generation, circuit) = self.slots.get((tag & SLOT_MASK) as usize)?;
        if *generation == tag >> SLOT_BITS { *circuit } else { None }
    }

    /// Closes the circuit with this tag.
    pub(super) fn close(&mut self, tag: u32) -> Option<Circuit> {
        let circuit = self.find(tag)?;
        let slot = tag & SLOT_MASK;
        let (generation, room) = self.slots.get_mut(slot as usize)?;
        *room = None;
        *generation = (*generation + 1) & 0xfff;
        self.free.push(slot);
        self.open -= 1;
        Some(circuit)
    }

    /// The tags of all circuits of which `matches` is true.
    pub(super) fn tags(&self, matches: impl Fn(&Circuit) -> bool) -> Vec<u32> {
        let mut tags = Vec::new();
        for (slot, (generation, circuit)) in self.slots.iter().enumerate() {
            if circuit.as_ref().is_some_and(&matches) {
                tags.push((generation << SLOT_BITS) | u32::try_from(slot).unwrap_or(0));
            }
        }
        tags
    }

    /// Whether there is a circuit of which `matches` is true.
    pub(super) fn any(&self, matches: impl Fn(&Circuit) -> bool) -> bool {
        self.slots.iter().any(|(_, circuit)| circuit.as_ref().is_some_and(&matches))
    }

    pub(super) fn len(&self) -> usize {
        self.open
    }
}
