//! Rates of events.
//!
//! Owns the arithmetic of a bucket: events use up time, and time passes.

use openrelay_proto::time::Time;

/// A rate of events.
pub(super) struct Rate {
    /// Events per second.
    pub(super) per_second: u32,
    /// Events at once.
    pub(super) burst: u32,
}

impl Rate {
    /// Microseconds of one event.
    fn one(&self) -> u64 {
        1_000_000 / u64::from(self.per_second)
    }
}

/// What is left of a rate.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Bucket {
    /// Microseconds that events have used up.
    debt: u64,
    at: Time,
}

impl Bucket {
    /// Counts one event. Returns false if it exceeds the rate.
    pub(super) fn take(&mut self, rate: &Rate, now: Time) -> bool {
        let passed = u64::try_from(now.since(self.at).as_micros()).unwrap_or(u64::MAX);
        self.debt = self.debt.saturating_sub(passed);
        self.at = now;
        let fits = self.debt + rate.one() <= rate.one() * u64::from(rate.burst);
        if fits {
            self.debt += rate.one();
        }
        fits
    }

    /// Takes back events that were counted.
    pub(super) fn give_back(&mut self, rate: &Rate, events: u32) {
        self.debt = self.debt.saturating_sub(rate.one() * u64::from(events));
    }
}
