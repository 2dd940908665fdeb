//! The other relays that a relay may communicate with.
//!
//! Owns the look-ups by identifier, by address and by key, each of which costs the same however many relays there are:
//! strangers cause them. Never changes while it is in use; a new directory makes new ones.

use std::collections::{BTreeMap, HashMap};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::net::SocketAddr;
use std::sync::Arc;

use crate::handshake::Responder;
use crate::keys::{RelayId, RelayKey};
use crate::mask::IndexMask;

/// Another relay of the directory, with which this relay may communicate.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its identity.
    pub responder: Responder,
    /// Its UDP address: the first one of a family that this relay has.
    pub address: SocketAddr,
}

/// Hashes without a key of this relay's own: what is stored comes from the directory, where each entry costs a bond.
type Fixed = BuildHasherDefault<DefaultHasher>;

/// The relays that a relay may communicate with: egresses for an ingress, ingresses for an egress.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    by_id: BTreeMap<RelayId, Peer>,
    /// The mask under which the relay at an address asks for cookies.
    cookie_masks: HashMap<SocketAddr, Arc<IndexMask>, Fixed>,
    by_key: HashMap<[u8; 32], RelayId, Fixed>,
    /// Relays that take no new circuits; `None` where no more than the registration is known.
    leaving: BTreeMap<RelayId, Option<Responder>>,
}

impl Peers {
    /// Returns the same relays, and others with which no session begins but running ones go on: those that drain, with
    /// their identities, and those of which only the registration is known.
    #[must_use]
    pub fn with_leaving(self, leaving: impl IntoIterator<Item = (RelayId, Option<Responder>)>) -> Self {
        Self { leaving: leaving.into_iter().collect(), ..self }
    }

    /// Returns the same relays, with the identities that `before` had for those of which now only the registration is
    /// known. A source that withholds a descriptor can thus not end sessions.
    #[must_use]
    pub fn remembering(mut self, before: &Self) -> Self {
        for (id, known) in &mut self.leaving {
            if known.is_none() {
                *known = before.responder(id).cloned();
            }
        }
        self
    }

    /// Returns the identity of a relay, whether or not sessions with it may begin.
    pub(crate) fn responder(&self, id: &RelayId) -> Option<&Responder> {
        let leaving = || self.leaving.get(id)?.as_ref();
        self.by_id.get(id).map(|peer| &peer.responder).or_else(leaving)
    }

    /// Returns whether a running session with the relay of this identifier and handshake key may go on. A key that any
    /// listed relay has is enough: keys are public, and one that was copied must not end the sessions of its owner.
    pub(crate) fn keeps(&self, id: RelayId, key: &RelayKey) -> bool {
        self.responder(&id).is_some_and(|known| known.key == *key) || self.with_key(key).is_some()
    }

    /// Returns the relay with this identifier.
    pub fn get(&self, id: &RelayId) -> Option<&Peer> {
        self.by_id.get(id)
    }

    /// Returns whether there is a relay with this identifier.
    pub fn contains(&self, id: &RelayId) -> bool {
        self.by_id.contains_key(id)
    }

    /// Returns all relays, in ascending order of their identifiers.
    pub fn values(&self) -> impl Iterator<Item = &Peer> {
        self.by_id.values()
    }

    /// Returns the number of relays.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Returns whether there are no relays.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// Returns the mask under which the relay at `address` asks for a cookie.
    pub(crate) fn cookie_mask(&self, address: &SocketAddr) -> Option<&IndexMask> {
        self.cookie_masks.get(address).map(Arc::as_ref)
    }

    /// Returns the relay with this handshake key.
    pub(crate) fn with_key(&self, key: &RelayKey) -> Option<RelayId> {
        self.by_key.get(key.as_bytes()).copied()
    }

    /// Returns whether the relay with this identifier has this handshake key.
    pub(crate) fn has(&self, id: RelayId, key: &RelayKey) -> bool {
        self.by_id.get(&id).is_some_and(|peer| peer.responder.key == *key)
    }
}

impl FromIterator<(RelayId, Peer)> for Peers {
    fn from_iter<I: IntoIterator<Item = (RelayId, Peer)>>(peers: I) -> Self {
        let by_id: BTreeMap<RelayId, Peer> = peers.into_iter().collect();
        let mut this = Self::default();
        for (id, peer) in &by_id {
            let key = peer.responder.key;
            this.cookie_masks.entry(peer.address).or_insert_with(|| Arc::new(IndexMask::to_client(&key)));
            this.by_key.entry(*key.as_bytes()).or_insert(*id);
        }
        Self { by_id, ..this }
    }
}

impl<const N: usize> From<[(RelayId, Peer); N]> for Peers {
    fn from(peers: [(RelayId, Peer); N]) -> Self {
        peers.into_iter().collect()
    }
}
