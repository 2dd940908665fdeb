//! Path MTU discovery: probes how large an inner packet the path carries.
//!
//! Owns the search and its timers. Probes travel as frames of the inner session, so one probe tests both hops, and
//! the answer of the same size tests the way back. Never sends a probe itself: the client does.
//!
//! Source: RFC 8899 §5.2, with a fixed table of sizes instead of a binary search.

use std::time::Duration;

use crate::time::Time;
use crate::wire::{MAX_MTU, MIN_MTU};

/// Sizes to probe, largest first: full Ethernet over IPv4, over IPv6, with PPPoE and other tunnels below it, and two
/// below IPv6's minimum for paths that are worse than the standards allow.
const SIZES: [u16; 10] = [MAX_MTU, 1392, 1376, 1360, 1344, 1328, 1312, MIN_MTU, 1216, 1152];
/// Probes of one size before it counts as too large.
const TRIES: u32 = 3;
/// Wait for the answer to a probe.
const WAIT: Duration = Duration::from_millis(400);
/// Interval at which the size in use is confirmed while there is traffic.
const CONFIRM: Duration = Duration::from_secs(5);
/// Interval at which a larger size is tried.
const RAISE: Duration = Duration::from_secs(600);

/// The search for one path's MTU.
#[derive(Debug)]
pub(super) struct Pmtu {
    confirmed: u16,
    probe: Option<Probe>,
    confirm_at: Time,
    raise_at: Time,
}

#[derive(Debug)]
struct Probe {
    size: u16,
    nonce: [u8; 8],
    sent: u32,
    again: Time,
}

impl Pmtu {
    pub(super) fn new() -> Self {
        Self { confirmed: MIN_MTU, probe: None, confirm_at: Time::default(), raise_at: Time::default() }
    }

    pub(super) fn confirmed(&self) -> u16 {
        self.confirmed
    }

    /// Starts a search from the largest size down.
    pub(super) fn search(&mut self, now: Time, nonce: [u8; 8]) {
        self.raise_at = now.after(RAISE);
        self.probe = Some(Probe { size: MAX_MTU, nonce, sent: 0, again: now });
    }

    /// Confirms the size in use as soon as possible, because something makes the path doubtful.
    pub(super) fn doubt(&mut self, now: Time) {
        self.confirm_at = self.confirm_at.min(now);
    }

    /// Returns nonce and size of the next probe, if one is due. `busy` says whether there was traffic lately.
    pub(super) fn handle_timeout(&mut self, now: Time, nonce: [u8; 8], busy: bool) -> Option<([u8; 8], usize)> {
        if self.probe.is_none() {
            if !busy {
                return None;
            }
            if self.raise_at <= now && self.confirmed < MAX_MTU {
                self.search(now, nonce);
            } else if self.confirm_at <= now {
                self.probe = Some(Probe { size: self.confirmed, nonce, sent: 0, again: now });
            }
        }
        let probe = self.probe.as_mut()?;
        if probe.again > now {
            return None;
        }
        if probe.sent >= TRIES {
            self.refused(now, nonce);
        }
        let probe = self.probe.as_mut()?;
        probe.sent += 1;
        probe.again = now.after(WAIT);
        Some((probe.nonce, probe.size.into()))
    }

    /// Handles a size that does not pass: tries the next smaller one, or, if it was the size in use, starts from the
    /// top.
    fn refused(&mut self, now: Time, nonce: [u8; 8]) {
        let Some(probe) = self.probe.take() else { return };
        if probe.size == self.confirmed {
            let smaller = SIZES.into_iter().find(|&size| size < probe.size).unwrap_or(probe.size);
            // Falls back at once to what every path should carry. The search then finds out how much more passes.
            self.confirmed = if probe.size > MIN_MTU { MIN_MTU } else { smaller };
            return self.search(now, nonce);
        }
        let smaller = SIZES.into_iter().find(|&size| size < probe.size && size > self.confirmed);
        match smaller {
            Some(size) => self.probe = Some(Probe { size, nonce, sent: 0, again: now }),
            // Nothing above the size in use passes; confirm that the size in use still does.
            None => self.probe = Some(Probe { size: self.confirmed, nonce, sent: 0, again: now }),
        }
    }

    /// Handles the answer to a probe of `size` bytes.
    pub(super) fn acknowledged(&mut self, nonce: [u8; 8], size: usize, now: Time) {
        if let Some(probe) = &self.probe
            && probe.nonce == nonce
            && usize::from(probe.size) == size
        {
            self.confirmed = probe.size;
            self.confirm_at = now.after(CONFIRM);
            self.probe = None;
        }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.probe.as_ref().map(|probe| probe.again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs the search on a path that carries `limit` bytes. Returns the size found and when the search ended.
    fn settle(pmtu: &mut Pmtu, limit: usize, mut now: Time) -> (u16, Time) {
        for step in 0u64..200 {
            if let Some((nonce, size)) = pmtu.handle_timeout(now, step.to_be_bytes(), true)
                && size <= limit
            {
                pmtu.acknowledged(nonce, size, now);
                if pmtu.probe.is_none() {
                    return (pmtu.confirmed(), now);
                }
            }
            now = now.after(WAIT);
        }
        panic!("did not settle");
    }

    #[test]
    fn largest_passing_size_is_found_before_and_after_the_path_shrinks() {
        for limit in [1408, 1400, 1392, 1300, 1280, 1216, 1152] {
            let mut pmtu = Pmtu::new();
            pmtu.search(Time::default(), [0; 8]);
            let best = SIZES.into_iter().find(|&size| usize::from(size) <= limit).unwrap();
            let (found, at) = settle(&mut pmtu, 1408, Time::default());
            assert_eq!(found, 1408);
            let (found, _) = settle(&mut pmtu, limit, at.after(CONFIRM));
            assert_eq!(found, best, "{limit}");
        }
    }

    #[test]
    fn no_probe_is_sent_without_traffic() {
        let mut pmtu = Pmtu::new();
        pmtu.search(Time::default(), [0; 8]);
        let (_, at) = settle(&mut pmtu, 1408, Time::default());
        assert_eq!(pmtu.handle_timeout(at.after(RAISE * 2), [1; 8], false), None);
        assert_eq!(pmtu.deadline(), None);
    }
}
