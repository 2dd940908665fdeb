//! Clocks: monotonic time for the protocol, Unix time for handshakes, directories and evidence.
//!
//! Owns the only code of the data path that reads a clock.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use openrelay_proto::time::Time;

/// A monotonic clock; copies agree with each other.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// Starts a clock.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Returns the time since the clock started.
    pub fn now(&self) -> Time {
        Time::from_micros(u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// Returns the system clock's seconds since the Unix epoch.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Returns the system clock's minutes since the Unix epoch. Self-hosted networks check the system clock against
/// nothing else.
pub fn unix_minutes() -> u32 {
    u32::try_from(unix_seconds() / 60).unwrap_or(u32::MAX)
}
