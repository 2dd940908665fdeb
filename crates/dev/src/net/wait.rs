//! Waiting for something that another program does.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Interval between two looks.
///
/// The thread is parked meanwhile. A loop without pauses would take processor time from the programs whose time it
/// judges.
const INTERVAL: Duration = Duration::from_millis(100);

/// Repeats `holds` until it returns true. Returns how long that took.
///
/// # Errors
/// Fails when `holds` fails, and when it is still false after `patience`.
pub(crate) fn wait_for(what: &str, patience: Duration, mut holds: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let started = Instant::now();
    while !holds()? {
        ensure!(started.elapsed() < patience, "{what} did not happen within {} s", patience.as_secs());
        std::thread::park_timeout(INTERVAL);
    }
    Ok(started.elapsed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn condition_is_not_polled_without_pauses() {
        let mut looks = 0;
        let waited = wait_for("the third look", Duration::from_secs(60), || {
            looks += 1;
            Ok(looks == 3)
        });
        assert!(waited.unwrap() >= INTERVAL * 2);
    }

    #[test]
    fn condition_that_never_holds_fails_with_its_name() {
        let error = wait_for("nothing", Duration::ZERO, || Ok(false)).unwrap_err();
        assert_eq!(error.to_string(), "nothing did not happen within 0 s");
    }
}
