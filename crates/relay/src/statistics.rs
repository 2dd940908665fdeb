//! The declared statistics: how exactly a relay reports them, and how often.
//!
//! Owns the rule in docs/statistics.md. The operator of a relay's host sees its datagrams. Exact numbers, requested
//! before and after one datagram, would reveal what that datagram was. The hardware hides that, so the relay must not
//! reveal it.

use std::time::{Duration, Instant};

use crate::threads::Report;
use openrelay_node::random::OsRandom;
use openrelay_proto::random::array;
use serde_json::{Map, Value, json};

/// Sums of datagrams and packets are reported in multiples of this.
pub(crate) const STEP: u64 = 1_024;
/// Numbers of open sessions and circuits are reported in multiples of this.
pub(crate) const HELD_STEP: u64 = 16;
/// The shortest time between two answers.
const PAUSE: Duration = Duration::from_secs(60);

/// How exactly a relay that proves what it runs reports its statistics. `main` passes it in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Detail {
    /// Rounded at random, at most once a minute.
    Rounded,
    /// Exactly and at once. For programs that are never released, whose tests account for every datagram.
    Exact,
}

/// Answers requests for statistics.
pub(crate) struct Statistics {
    detail: Detail,
    answered: Option<Instant>,
}

impl Statistics {
    /// Returns statistics before the first request. `attesting` is whether the relay proves what it runs. One that
    /// does not is its user's own relay. It has nothing to hide from its host, because the host can read its memory
    /// anyway.
    pub(crate) fn new(detail: Detail, attesting: bool) -> Self {
        Self { detail: if attesting { detail } else { Detail::Exact }, answered: None }
    }

    /// Returns the line for a request at `now`; `None` if the last answer is less than a minute old. Calls `report`
    /// only when it answers.
    pub(crate) fn answer(&mut self, now: Instant, report: impl FnOnce() -> Report) -> Option<String> {
        let recent = self.answered.is_some_and(|at| now.saturating_duration_since(at) < PAUSE);
        if self.detail == Detail::Rounded && recent {
            return None;
        }
        self.answered = Some(now);
        Some(self.line(&report()))
    }

    /// Returns the line for the end, after which no request comes.
    pub(crate) fn line(&self, report: &Report) -> String {
        let mut random = OsRandom::default();
        match self.detail {
            Detail::Exact => line(report, |number, _| number),
            Detail::Rounded => line(report, |number, step| round(number, step, u64::from_be_bytes(array(&mut random)))),
        }
    }
}

/// Rounds to a multiple of `step`: up with a probability of remainder / `step`, by these random bits. Rounding that
/// always went down would show exactly when a number reaches a multiple, and the host can bring a number to that
/// point.
const fn round(number: u64, step: u64, random: u64) -> u64 {
    let down = number - number % step;
    if random % step < number % step { down.saturating_add(step) } else { down }
}

/// Returns one JSON object in a line. Reasons for drops that were reported as zero are left out.
fn line(report: &Report, mut told: impl FnMut(u64, u64) -> u64) -> String {
    let counts = &report.counts;
    let drops = counts.drops.iter().map(|(reason, count)| (reason.name().to_owned(), told(count, STEP)));
    let drops: Map<String, Value> =
        drops.filter(|(_, count)| *count != 0).map(|(reason, count)| (reason, count.into())).collect();
    let mut sum = |number| told(number, STEP);
    let mut line = json!({
        "schema": "openrelay.relay-statistics/1",
        "received": sum(counts.received),
        "forwarded": sum(counts.forwarded),
        "delivered": sum(counts.delivered),
        "control": sum(counts.control),
        "handshakes": sum(counts.handshakes),
        "passed": sum(counts.passed),
        "sent": sum(report.sent),
        "originated": sum(report.originated),
        "device_read": sum(report.device_read),
        "device_written": sum(report.device_written),
        "receive_overflows": sum(report.overflows),
        // Public: everyone can read the number of relays in the directory.
        "peers": report.peers,
    });
    line["drops"] = drops.into();
    line["sessions"] = told(report.sessions, HELD_STEP).into();
    line["circuits"] = told(report.circuits, HELD_STEP).into();
    line.to_string()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
    use super::*;

    fn report(number: u64) -> Report {
        let mut report = Report { sent: number, sessions: number, peers: 3, ..Report::default() };
        report.counts.received = number;
        report
    }

    fn read(line: &str) -> Value {
        serde_json::from_str(line).unwrap()
    }

    /// Checks that docs/statistics.md states the steps and the pause that the code has.
    #[test]
    fn documentation_names_the_steps_and_the_pause() {
        let text = include_str!("../../../docs/statistics.md");
        for words in ["multiple of 1,024", "multiple of 16", "at most once a minute"] {
            assert!(text.contains(words), "{words}");
        }
        assert_eq!((STEP, HELD_STEP, PAUSE.as_secs()), (1_024, 16, 60));
    }

    #[test]
    fn attested_relay_answers_once_a_minute_and_only_multiples() {
        let mut statistics = Statistics::new(Detail::Rounded, true);
        let start = Instant::now();
        for number in [0, 1, 15, 16, 1_023, 1_024, 1_025, 123_456_789] {
            let said = read(&Statistics::new(Detail::Rounded, true).answer(start, || report(number)).unwrap());
            for (key, step) in [("received", STEP), ("sent", STEP), ("sessions", HELD_STEP)] {
                let told = said[key].as_u64().unwrap();
                assert!(told.is_multiple_of(step) && told.abs_diff(number) < step, "{key}: {told} for {number}");
            }
            assert_eq!(said["peers"], 3);
        }
        assert!(statistics.answer(start, || report(5)).is_some());
        for millis in [0, 1, 59_999] {
            let asked = start + Duration::from_millis(millis);
            assert_eq!(statistics.answer(asked, || unreachable!("nothing is counted without an answer")), None);
        }
        assert!(statistics.answer(start + PAUSE, || report(5)).is_some());
    }

    /// One more datagram changes the reported number in one of 1,024 draws, whatever the number is. So a host cannot
    /// make it visible.
    #[test]
    fn one_datagram_changes_a_reported_number_in_one_of_1024_draws() {
        for number in [0, 1, 511, 1_022, 1_023, 1_024, 2_047] {
            let moved = (0..STEP).filter(|draw| round(number, STEP, *draw) != round(number + 1, STEP, *draw)).count();
            assert_eq!(moved, 1, "{number}");
            let sum: u64 = (0..STEP).map(|draw| round(number, STEP, draw)).sum();
            assert_eq!(sum, number * STEP, "the mean is the number");
        }
        // Control: rounding down shows the datagram that reaches a multiple.
        let down = |number: u64| number / STEP * STEP;
        assert_ne!(down(1_023), down(1_024));
        assert_eq!(round(u64::MAX, STEP, 0), u64::MAX, "no number overflows");
    }

    #[test]
    fn own_relays_and_development_programs_report_exactly_and_at_once() {
        for (detail, attesting) in [(Detail::Exact, true), (Detail::Rounded, false), (Detail::Exact, false)] {
            let mut statistics = Statistics::new(detail, attesting);
            for number in [7, 8] {
                let said = read(&statistics.answer(Instant::now(), || report(number)).unwrap());
                assert_eq!((&said["received"], &said["sessions"]), (&number.into(), &number.into()));
            }
        }
    }
}
