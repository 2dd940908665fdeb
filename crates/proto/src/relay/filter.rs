//! Replay filter: a replayed first packet is not answered again.
//!
//! Owns a table of fixed size over two windows of time. When it is full, first packets need a cookie, which a replay
//! from another address cannot have. Holds keyed fingerprints, never addresses.

use std::time::Duration;

use crate::drops::DropReason;
use crate::keys::sha256;
use crate::random::{Random, array};
use crate::time::Time;

/// Fingerprints in each of the two windows: 4 MiB each, of which only touched pages use memory.
const SLOTS: usize = 1 << 19;
/// Number of fingerprints from which cookies are required.
const FULL: usize = SLOTS / 4 * 3;
/// Minutes by which a first packet's time may differ from the relay's clock, in either direction.
const TOLERANCE: u32 = 1;
/// Length of a window: a packet accepted at the start of its tolerance stays acceptable for three minutes.
const WINDOW: Duration = Duration::from_secs(180);
const PROBES: usize = 32;

/// Remembers first packets for as long as they could be replayed.
#[derive(Debug)]
pub struct Replays {
    key: [u8; 32],
    current: Table,
    previous: Table,
    since: Time,
}

#[derive(Debug)]
struct Table {
    slots: Vec<u64>,
    used: usize,
}

impl Table {
    fn new() -> Self {
        Self { slots: vec![0; SLOTS], used: 0 }
    }

    /// Returns the slot of `fingerprint`, and whether it is stored there; `None` when its neighbourhood is full.
    fn find(&self, fingerprint: u64) -> Option<(usize, bool)> {
        let start = usize::try_from(fingerprint).unwrap_or(0);
        for step in 0..PROBES {
            let at = start.wrapping_add(step) & (SLOTS - 1);
            match self.slots.get(at).copied() {
                Some(0) => return Some((at, false)),
                Some(there) if there == fingerprint => return Some((at, true)),
                _ => {}
            }
        }
        None
    }
}

impl Replays {
    /// Creates an empty filter.
    pub fn new(now: Time, random: &mut dyn Random) -> Self {
        Self { key: array(random), current: Table::new(), previous: Table::new(), since: now }
    }

    /// Returns whether the filter is so full that cookies are required.
    pub fn is_full(&self) -> bool {
        self.current.used >= FULL
    }

    /// Accepts a first packet with this ephemeral key and time, once.
    ///
    /// # Errors
    /// [`DropReason::HandshakeReplay`] when the packet was seen, [`DropReason::HandshakeClock`] when its time is off by
    /// more than a minute,
    /// [`DropReason::HandshakeLoad`] when the filter has no room for it.
    pub fn accept(
        &mut self,
        ephemeral: &[u8; 32],
        minutes: u32,
        now: Time,
        now_minutes: u32,
    ) -> Result<(), DropReason> {
        if minutes.abs_diff(now_minutes) > TOLERANCE {
            return Err(DropReason::HandshakeClock);
        }
        self.rotate(now);
        let digest = sha256(&[&self.key, ephemeral]);
        let fingerprint = digest.first_chunk::<8>().map_or(1, |b| u64::from_be_bytes(*b)).max(1);
        if matches!(self.previous.find(fingerprint), Some((_, true))) {
            return Err(DropReason::HandshakeReplay);
        }
        match self.current.find(fingerprint) {
            Some((_, true)) => Err(DropReason::HandshakeReplay),
            None => Err(DropReason::HandshakeLoad),
            Some((at, false)) => {
                if let Some(slot) = self.current.slots.get_mut(at) {
                    *slot = fingerprint;
                    self.current.used += 1;
                }
                Ok(())
            }
        }
    }

    fn rotate(&mut self, now: Time) {
        let age = now.since(self.since);
        if age < WINDOW {
            return;
        }
        self.previous = std::mem::replace(&mut self.current, Table::new());
        if age >= 2 * WINDOW {
            self.previous = Table::new();
        }
        self.since = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_packet_is_accepted_once_while_its_time_is_valid() {
        let mut replays = Replays::new(Time::default(), &mut crate::random::Counting::default());
        let at = |seconds: u64| Time::from_micros(seconds * 1_000_000);
        for seconds in (0u64..600).step_by(7) {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&seconds.to_be_bytes());
            let minute = u32::try_from(seconds / 60).unwrap() + 10;
            replays.accept(&key, minute + 1, at(seconds), minute).unwrap();
            for later in (0..190).step_by(5) {
                let now_minute = u32::try_from((seconds + later) / 60).unwrap() + 10;
                let verdict = replays.accept(&key, minute + 1, at(seconds), now_minute);
                let refused = [Err(DropReason::HandshakeReplay), Err(DropReason::HandshakeClock)];
                assert!(refused.contains(&verdict), "{seconds} {later}");
            }
        }
    }

    #[test]
    fn replayed_packet_and_wrong_time_are_refused() {
        let mut replays = Replays::new(Time::default(), &mut crate::random::Counting::default());
        let now = Time::from_micros(1);
        replays.accept(&[1; 32], 100, now, 100).unwrap();
        assert_eq!(replays.accept(&[1; 32], 100, now, 100), Err(DropReason::HandshakeReplay));
        assert_eq!(replays.accept(&[2; 32], 98, now, 100), Err(DropReason::HandshakeClock));
        assert_eq!(replays.accept(&[2; 32], 102, now, 100), Err(DropReason::HandshakeClock));
        assert!(replays.accept(&[1; 32], 100, now.after(WINDOW), 100).is_err());
    }
}
