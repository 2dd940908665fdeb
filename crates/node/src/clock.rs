//! The clocks: monotonic time for the protocol, minutes for handshakes.
//!
//! Owns the only reading of clocks on the data path.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use openrelay_proto::time::Time;

/// A monotonic clock; copies agree with each other.
#[derive(Clone, Copy, Debug)]
pub struct Clock(Instant);

impl Clock {
    /// A clock that starts now.
    pub fn start() -> Self {
        Self(Instant::now())
    }

    /// Now.
    pub fn now(&self) -> Time {
        Time::from_micros(u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX))
    }
}

/// Seconds of the system's clock since the Unix epoch.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Minutes of the system's clock since the Unix epoch. Self-hosted networks verify no time beyond it.
pub fn unix_minutes() -> u32 {
    u32::try_from(unix_seconds() / 60).unwrap_or(u32::MAX)
}
