//! Sessions: the keys between two ends, their counters, epochs and generations.
//!
//! Owns sealing and opening of data packets, replay protection, the ratchet, and the switch to the keys of a
//! re-handshake. Never looks inside a frame and never decides where a packet goes.
//!
//! ```text
//! generation 0: epoch 0 ─ratchet▶ epoch 1 ─ratchet▶ …        counter and replay window run on
//!      └─ re-handshake ─▶ generation 1: epoch 0 ─▶ …         through every change of key
//! ```
//!
//! Source of the ratchet: RFC 9001 §6 (key update), with the epoch on the wire instead of a phase bit.

use std::time::Duration;

use crate::drops::DropReason;
use crate::handshake::{Established, RekeyRequest, SessionKeys};
use crate::keys::{Secret, expand};
use crate::suite::{MaskKey, PacketKey, Suite};
use crate::time::Time;
use crate::window::Window;
use crate::wire::{HEADER_LEN, MIN_DATAGRAM, PacketType, TAG_LEN};

/// Most packets sealed under one key. Well below AES-GCM's bound for packets of this size (RFC 9001 §B.1: 2^23
/// packets of up to 2^14 bytes give 2^-57; 2^26 of 2^11 bytes stay below 2^-50).
const EPOCH_PACKETS: u32 = 1 << 26;
/// Longest time that one key seals while there is traffic.
pub(crate) const EPOCH_TIME: Duration = Duration::from_secs(60);
/// Last epoch of a generation: six bits on the wire. It is reached only when re-handshakes fail for an hour.
const LAST_EPOCH: u8 = EPOCH_MASK;
/// How many epochs ahead of the current one a packet may be. At one epoch a minute, a peer can have sealed this many
/// while this end was away for as long as a relay keeps a silent session.
pub(crate) const EPOCHS_AHEAD: u8 = 16;
/// How long the previous key still opens reordered packets.
const PREVIOUS_TIME: Duration = Duration::from_secs(10);
/// Position of the generation in the flags on the wire: two bits of generation, six of epoch. Two bits, so that the
/// previous generation is not mistaken for the next one.
const GENERATION_SHIFT: u32 = 6;
const EPOCH_MASK: u8 = (1 << GENERATION_SHIFT) - 1;
/// Counters behind the highest one that are still accepted, once each, in sessions of clients.
pub const CLIENT_WINDOW: u64 = 64 * 63;
/// The same for sessions between relays, where many users share one counter.
pub const HOP_WINDOW: u64 = 65_536;

/// Secret and key of one direction in one epoch.
#[derive(Debug)]
struct Epoch {
    generation: u8,
    number: u8,
    secret: Secret,
    key: PacketKey,
}

impl Epoch {
    fn first(suite: Suite, generation: u8, secret: Secret) -> Self {
        let key = PacketKey::new(suite, &expand(&secret, b"ORP/1 key").0);
        Self { generation, number: 0, secret, key }
    }

    fn next(&self, suite: Suite) -> Self {
        let secret = expand(&self.secret, b"ORP/1 next epoch");
        let key = PacketKey::new(suite, &expand(&secret, b"ORP/1 key").0);
        Self { generation: self.generation, number: self.number + 1, secret, key }
    }

    fn flags(&self) -> u8 {
        (self.generation << GENERATION_SHIFT) | self.number
    }
}

/// Keys and counters of one session.
#[derive(Debug)]
pub struct Session {
    suite: Suite,
    initiator: bool,
    mask: MaskKey,
    hash: [u8; 32],
    rekey_secret: Secret,
    /// The index that packets to the peer carry.
    pub remote_index: u32,
    send: Epoch,
    send_counter: u64,
    sealed_in_epoch: u32,
    epoch_since: Time,
    receive: Epoch,
    window: Window,
    previous: Option<Box<(Epoch, Time)>>,
    /// Keys of a re-handshake that this end has but the peer has not used yet.
    upcoming: Option<Box<Upcoming>>,
    generation_since: Time,
    confirmed: bool,
    last_received: Time,
    sealed_since_generation: u64,
}

#[derive(Debug)]
struct Upcoming {
    receive: Epoch,
    keys: SessionKeys,
}

impl Session {
    /// Creates the session that a handshake gave, with a replay window of `reach` counters.
    pub fn new(established: &Established, reach: u64, now: Time) -> Self {
        let suite = established.suite;
        let keys = &established.keys;
        Self {
            suite,
            initiator: established.initiator,
            mask: MaskKey::of_session(suite, &keys.mask.0),
            hash: established.hash,
            rekey_secret: keys.rekey.clone(),
            remote_index: established.remote_index,
            send: Epoch::first(suite, 0, keys.send.clone()),
            send_counter: 0,
            sealed_in_epoch: 0,
            epoch_since: now,
            receive: Epoch::first(suite, 0, keys.receive.clone()),
            window: Window::new(reach),
            previous: None,
            upcoming: None,
            generation_since: now,
            confirmed: established.initiator,
            last_received: now,
            sealed_since_generation: 0,
        }
    }

    /// Returns whether this end sent the first packet of the handshake.
    pub fn is_initiator(&self) -> bool {
        self.initiator
    }

    /// Returns whether the peer has shown that it has the keys. A responder sends nothing before that.
    pub fn is_confirmed(&self) -> bool {
        self.confirmed
    }

    /// Makes a session believe that its peer has confirmed it.
    #[cfg(test)]
    pub(crate) fn confirm(&mut self) {
        self.confirmed = true;
    }

    /// Returns the transcript hash of the handshake that began the session. Tokens and re-handshakes are bound to it.
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// Returns generation and epoch of the key that seals.
    pub(crate) fn sealing_epoch(&self) -> (u8, u8) {
        (self.send.generation, self.send.number)
    }

    /// Returns when the peer's last packet was accepted.
    pub fn last_received(&self) -> Time {
        self.last_received
    }

    /// Returns since when the current generation of keys is in use.
    pub fn generation_since(&self) -> Time {
        self.generation_since
    }

    /// Returns the number of packets sealed since the current generation began.
    pub fn sealed_since_generation(&self) -> u64 {
        self.sealed_since_generation
    }

    /// Returns the counter after the highest one received. A packet that increases it is the newest.
    pub fn newest(&self) -> u64 {
        self.window.next()
    }

    /// Seals `datagram` in place: ten bytes for the header, the frame, sixteen bytes for the tag. Leaves type and
    /// index to be masked by the caller.
    ///
    /// # Errors
    /// [`DropReason::NotAdmitted`] before the peer has confirmed the session, [`DropReason::KeyExhausted`] when the
    /// last epoch is used up, [`DropReason::BadLength`] when there is no room for header and tag.
    pub fn seal(&mut self, datagram: &mut [u8], now: Time) -> Result<(), DropReason> {
        if !self.confirmed {
            return Err(DropReason::NotAdmitted);
        }
        if self.sealed_in_epoch >= EPOCH_PACKETS || now.since(self.epoch_since) >= EPOCH_TIME {
            self.ratchet(now)?;
        }
        let counter = self.send_counter;
        let header = datagram.first_chunk_mut::<HEADER_LEN>().ok_or(DropReason::BadLength)?;
        write_header(header, self.remote_index, self.send.flags(), counter);
        self.send.key.seal(counter, datagram).map_err(|_| DropReason::BadLength)?;
        self.send_counter += 1;
        self.sealed_in_epoch += 1;
        self.sealed_since_generation += 1;
        let mask = self.mask.mask(datagram).ok_or(DropReason::BadLength)?;
        apply(datagram, mask);
        Ok(())
    }

    /// Opens `datagram` in place. Its type and index must be unmasked; its frame then stands between header and tag.
    ///
    /// # Errors
    /// The reason why the packet was refused; the session has not changed then.
    pub fn open(&mut self, datagram: &mut [u8], now: Time) -> Result<(), DropReason> {
        if datagram.len() < MIN_DATAGRAM {
            return Err(DropReason::BadLength);
        }
        let mask = self.mask.mask(datagram).ok_or(DropReason::BadLength)?;
        apply(datagram, mask);
        let header = datagram.first_chunk::<HEADER_LEN>().ok_or(DropReason::BadLength)?;
        let flags = header[5];
        let truncated = u32::from_be_bytes([header[6], header[7], header[8], header[9]]);
        let counter = self.window.expand(truncated);
        self.window.check(counter)?;
        if flags == self.receive.flags() {
            self.receive.key.open(counter, datagram).map_err(|_| DropReason::BadTag)?;
        } else {
            self.open_other_epoch(flags, counter, datagram, now)?;
        }
        self.window.mark(counter);
        self.confirmed = true;
        self.last_received = now;
        Ok(())
    }

    /// Opens a packet of the previous epoch, of a later one, or of a re-handshake's keys.
    #[cold]
    fn open_other_epoch(&mut self, flags: u8, counter: u64, datagram: &mut [u8], now: Time) -> Result<(), DropReason> {
        if let Some(previous) = &self.previous
            && previous.0.flags() == flags
            && now <= previous.1
        {
            return previous.0.key.open(counter, datagram).map_err(|_| DropReason::BadTag);
        }
        let (generation, number) = (flags >> GENERATION_SHIFT, flags & EPOCH_MASK);
        let base = if generation == self.receive.generation {
            if number <= self.receive.number {
                return Err(DropReason::UnknownEpoch);
            }
            &self.receive
        } else {
            let upcoming = self.upcoming.as_ref().filter(|upcoming| upcoming.receive.generation == generation);
            &upcoming.ok_or(DropReason::UnknownEpoch)?.receive
        };
        // Each epoch ahead costs two HMACs, even for a stranger's garbage, so the limit is what the peer can have
        // sealed since.
        let minutes = now.since(self.last_received).as_secs() / EPOCH_TIME.as_secs();
        if u64::from(number - base.number) > (2 + minutes).min(EPOCHS_AHEAD.into()) {
            return Err(DropReason::UnknownEpoch);
        }
        let mut ahead = None;
        while let step = ahead.as_ref().unwrap_or(base)
            && step.number < number
        {
            ahead = Some(step.next(self.suite));
        }
        ahead.as_ref().unwrap_or(base).key.open(counter, datagram).map_err(|_| DropReason::BadTag)?;
        self.advance(generation, ahead, now);
        Ok(())
    }

    /// Follows a peer that has moved on to a later key.
    fn advance(&mut self, generation: u8, ahead: Option<Epoch>, now: Time) {
        let mut current = None;
        if generation != self.receive.generation
            && let Some(upcoming) = self.upcoming.take()
        {
            let Upcoming { receive, keys } = *upcoming;
            current = Some(receive);
            if !self.initiator {
                self.use_generation(&keys, generation, now);
            }
        }
        if let Some(epoch) = ahead.or(current) {
            let old = std::mem::replace(&mut self.receive, epoch);
            self.previous = Some(Box::new((old, now.after(PREVIOUS_TIME))));
        }
    }

    /// Wipes the previous epoch's keys once no packet may use them any more. Returns whether there still are some.
    pub(crate) fn forget_old_keys(&mut self, now: Time) -> bool {
        if self.previous.as_ref().is_some_and(|previous| previous.1 < now) {
            self.previous = None;
        }
        self.previous.is_some()
    }

    /// Moves the sending direction to its next epoch.
    #[cold]
    fn ratchet(&mut self, now: Time) -> Result<(), DropReason> {
        if self.send.number >= LAST_EPOCH {
            return Err(DropReason::KeyExhausted);
        }
        self.send = self.send.next(self.suite);
        self.sealed_in_epoch = 0;
        self.epoch_since = now;
        Ok(())
    }

    /// Installs the keys of a finished re-handshake. The initiator uses them at once, the responder once the
    /// initiator does.
    pub(crate) fn install(&mut self, keys: SessionKeys, now: Time) {
        let generation = next_generation(self.receive.generation);
        if self.initiator {
            self.use_generation(&keys, generation, now);
        }
        let receive = Epoch::first(self.suite, generation, keys.receive.clone());
        self.upcoming = Some(Box::new(Upcoming { receive, keys }));
    }

    fn use_generation(&mut self, keys: &SessionKeys, generation: u8, now: Time) {
        self.send = Epoch::first(self.suite, generation, keys.send.clone());
        self.rekey_secret = keys.rekey.clone();
        self.sealed_in_epoch = 0;
        self.sealed_since_generation = 0;
        self.epoch_since = now;
        self.generation_since = now;
    }

    /// Returns whether the keys of a re-handshake wait for the peer's first packet under them.
    pub(crate) fn has_upcoming(&self) -> bool {
        self.upcoming.is_some()
    }

    /// Returns the secret to which a re-handshake inside this session is bound.
    pub(crate) fn rekey_secret(&self) -> &Secret {
        &self.rekey_secret
    }

    /// Combines a peer's re-handshake message with the state that this session adds to it.
    pub(crate) fn rekey_request(&self, message: Vec<u8>) -> RekeyRequest {
        RekeyRequest { message, hash: self.hash, psk: self.rekey_secret.clone() }
    }
}

const fn next_generation(generation: u8) -> u8 {
    (generation + 1) & 3
}

fn write_header(header: &mut [u8; HEADER_LEN], index: u32, flags: u8, counter: u64) {
    let truncated = counter.to_be_bytes();
    header[0] = PacketType::Data.byte();
    header[1..5].copy_from_slice(&index.to_be_bytes());
    header[5] = flags;
    header[6..].copy_from_slice(&truncated[4..]);
}

fn apply(datagram: &mut [u8], mask: [u8; 5]) {
    if let Some(masked) = datagram.get_mut(5..HEADER_LEN) {
        for (byte, mask) in masked.iter_mut().zip(mask) {
            *byte ^= mask;
        }
    }
}

/// Returns the frame of an opened datagram.
pub(crate) fn frame(datagram: &[u8]) -> &[u8] {
    datagram.get(HEADER_LEN..datagram.len().saturating_sub(TAG_LEN)).unwrap_or(&[])
}

#[cfg(test)]
mod tests;
