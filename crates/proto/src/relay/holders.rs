//! Who holds how much of a resource, and who gives way when it is scarce.
//!
//! Owns the rule of shares. Half of a resource is for whoever comes. In the other half each owner has a share: half of
//! the capacity, divided by the number of owners. An owner at its share gets more only in place of what it holds
//! already; when nothing is left, the largest owner gives way. Inside an owner the member with the most gives way, and
//! of that its oldest: so one client takes nothing from its neighbours, and nobody from those who were there first
//! without holding less than they do.
//!
//! At an ingress an owner is a network and a member an address; at an egress they are a session with an ingress and a
//! circuit. Both are keyed hashes: no address is stored. Costs O(log n) when something is taken or released, and
//! nothing for a packet.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

/// The owner of something: keyed hashes of its network or relay, and of its address or circuit.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owner {
    /// The network, or the session with an ingress.
    pub(crate) group: u64,
    /// The address, or the circuit.
    pub(crate) member: u64,
}

/// Something held; needed to release it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Holding {
    owner: Owner,
    number: u64,
}

impl Holding {
    /// Returns whether `owner` holds it.
    pub(crate) fn is_of(self, owner: Owner) -> bool {
        self.owner == owner
    }
}

/// What is held of one resource, each with a value of type `T`.
#[derive(Debug)]
pub(crate) struct Holders<T> {
    capacity: usize,
    /// Whether shares apply. Tests switch them off to show what happens without.
    fair: bool,
    next: u64,
    /// Everything held: group, member, number.
    held: BTreeMap<(u64, u64, u64), T>,
    members: BTreeMap<(u64, u64), usize>,
    groups: BTreeMap<u64, usize>,
    /// Members by what they hold; of equal ones the one that holds its oldest for longest comes last.
    ranked_members: BTreeSet<(u64, usize, Reverse<u64>, u64)>,
    ranked_groups: BTreeSet<(usize, u64)>,
}

impl<T: Copy> Holders<T> {
    /// Creates a resource of which `capacity` can be held.
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            capacity,
            fair: true,
            next: 0,
            held: BTreeMap::new(),
            members: BTreeMap::new(),
            groups: BTreeMap::new(),
            ranked_members: BTreeSet::new(),
            ranked_groups: BTreeSet::new(),
        }
    }

    /// Switches shares off: first come, first served.
    pub(crate) fn ignore_shares(&mut self) {
        self.fair = false;
    }

    /// Returns how much is held.
    pub(crate) fn len(&self) -> usize {
        self.held.len()
    }

    /// Returns whether at least half of the capacity is held.
    pub(crate) fn is_half_full(&self) -> bool {
        2 * self.len() >= self.capacity
    }

    /// Returns whether the whole capacity is held.
    pub(crate) fn is_full(&self) -> bool {
        self.len() >= self.capacity
    }

    /// Returns the one thing that gives way before `owner` may hold one more; `None` when nothing has to.
    pub(crate) fn gives_way(&self, owner: Owner) -> Option<T> {
        if !self.fair || !self.is_half_full() {
            return None;
        }
        let own = self.groups.get(&owner.group).copied().unwrap_or(0);
        let groups = self.groups.len() + usize::from(own == 0);
        let share = (self.capacity / (2 * groups)).max(1);
        let group = match self.ranked_groups.last() {
            _ if own >= share => owner.group,
            Some(&(_, largest)) if self.is_full() => largest,
            _ => return None,
        };
        let largest = self.ranked_members.range(..=(group, usize::MAX, Reverse(0), u64::MAX)).next_back()?;
        let &(_, _, Reverse(oldest), member) = largest;
        self.held.get(&(group, member, oldest)).copied()
    }

    /// Records that `owner` holds `what`.
    pub(crate) fn hold(&mut self, owner: Owner, what: T) -> Holding {
        let number = self.next;
        self.next += 1;
        self.rank_member(owner, |this| {
            this.held.insert((owner.group, owner.member, number), what);
            *this.members.entry((owner.group, owner.member)).or_insert(0) += 1;
        });
        self.rank_group(owner.group, 1);
        Holding { owner, number }
    }

    /// Records that `holding` is not held any more. What was released already is ignored.
    pub(crate) fn release(&mut self, holding: Holding) {
        let Holding { owner, number } = holding;
        if !self.held.contains_key(&(owner.group, owner.member, number)) {
            return;
        }
        self.rank_member(owner, |this| {
            this.held.remove(&(owner.group, owner.member, number));
            let left = this.members.get_mut(&(owner.group, owner.member)).map_or(0, |count| {
                *count -= 1;
                *count
            });
            if left == 0 {
                this.members.remove(&(owner.group, owner.member));
            }
        });
        self.rank_group(owner.group, -1);
    }

    /// Changes what a member holds, and its rank with it.
    fn rank_member(&mut self, owner: Owner, change: impl FnOnce(&mut Self)) {
        if let Some(rank) = self.rank_of(owner) {
            self.ranked_members.remove(&rank);
        }
        change(self);
        if let Some(rank) = self.rank_of(owner) {
            self.ranked_members.insert(rank);
        }
    }

    fn rank_of(&self, Owner { group, member }: Owner) -> Option<(u64, usize, Reverse<u64>, u64)> {
        let count = *self.members.get(&(group, member))?;
        let (&(_, _, oldest), _) = self.held.range((group, member, 0)..=(group, member, u64::MAX)).next()?;
        Some((group, count, Reverse(oldest), member))
    }

    fn rank_group(&mut self, group: u64, by: isize) {
        let before = self.groups.get(&group).copied().unwrap_or(0);
        let after = before.saturating_add_signed(by);
        self.ranked_groups.remove(&(before, group));
        if after == 0 {
            self.groups.remove(&group);
        } else {
            self.groups.insert(group, after);
            self.ranked_groups.insert((after, group));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn owner(group: u64, member: u64) -> Owner {
        Owner { group, member }
    }

    /// Lets `owner` take one more; returns what gave way, in order.
    fn take(holders: &mut Holders<u32>, taken: &mut Vec<Option<Holding>>, owner: Owner) -> Vec<u32> {
        let mut gone = Vec::new();
        if let Some(what) = holders.gives_way(owner) {
            holders.release(taken[what as usize].take().unwrap());
            gone.push(what);
        }
        let what = u32::try_from(taken.len()).unwrap();
        taken.push(Some(holders.hold(owner, what)));
        gone
    }

    #[test]
    fn single_owner_holds_half_and_then_replaces_its_oldest() {
        let (mut holders, mut taken) = (Holders::new(10), Vec::new());
        for _ in 0..5 {
            assert_eq!(take(&mut holders, &mut taken, owner(1, 1)), []);
        }
        assert_eq!(take(&mut holders, &mut taken, owner(1, 1)), [0]);
        assert_eq!(take(&mut holders, &mut taken, owner(1, 1)), [1]);
        assert_eq!(holders.len(), 5);
    }

    #[test]
    fn largest_member_of_an_owner_gives_way() {
        let (mut holders, mut taken) = (Holders::new(10), Vec::new());
        take(&mut holders, &mut taken, owner(1, 7));
        for _ in 0..100 {
            let gone = take(&mut holders, &mut taken, owner(1, 8));
            assert!(!gone.contains(&0), "the neighbour with one keeps it");
        }
        for newcomer in 20..23 {
            assert_eq!(take(&mut holders, &mut taken, owner(1, newcomer)).len(), 1);
            assert!(taken[0].is_some());
        }
    }

    #[test]
    fn oldest_gives_way_among_equal_members() {
        let (mut holders, mut taken) = (Holders::new(10), Vec::new());
        for member in [5, 3, 9, 1, 7] {
            take(&mut holders, &mut taken, owner(1, member));
        }
        assert_eq!(take(&mut holders, &mut taken, owner(1, 2)), [0]);
        assert_eq!(take(&mut holders, &mut taken, owner(1, 4)), [1]);
    }

    #[test]
    fn without_shares_nobody_gives_way() {
        let (mut holders, mut taken) = (Holders::new(10), Vec::new());
        holders.ignore_shares();
        for _ in 0..10 {
            assert_eq!(take(&mut holders, &mut taken, owner(1, 1)), []);
        }
        assert!(holders.is_full());
        assert_eq!(holders.gives_way(owner(2, 2)), None);
    }

    proptest! {
        /// Whatever others do, an owner below its share gets more and loses nothing, and the capacity is never
        /// exceeded.
        #[test]
        fn owner_below_its_share_loses_nothing(
            steps in prop::collection::vec((0u64..6, 0u64..4, 0u8..8), 1..400),
        ) {
            let (mut holders, mut taken) = (Holders::new(24), Vec::new());
            let honest = owner(99, 1);
            take(&mut holders, &mut taken, honest);
            for (group, member, fate) in steps {
                if fate == 0 {
                    // Something ends by itself, but not the honest owner's.
                    if let Some(holding) = taken.iter_mut().skip(1).find_map(Option::take) {
                        holders.release(holding);
                        holders.release(holding);
                    }
                } else {
                    take(&mut holders, &mut taken, owner(group, member));
                }
                prop_assert!(taken[0].is_some());
                prop_assert!(holders.len() <= 24);
                prop_assert_eq!(holders.len(), taken.iter().flatten().count());
                prop_assert_eq!(holders.members.values().sum::<usize>(), holders.len());
                prop_assert_eq!(holders.groups.values().sum::<usize>(), holders.len());
                prop_assert_eq!(holders.ranked_members.len(), holders.members.len());
                prop_assert_eq!(holders.ranked_groups.len(), holders.groups.len());
            }
        }
    }
}
