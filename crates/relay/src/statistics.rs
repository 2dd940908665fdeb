//! The declared statistics: how exactly a relay reports them, and how often.
//!
//! Owns the rule in docs/statistics.md. The operator of a relay's host sees its datagrams. Exact numbers, requested
//! before and after one datagram, would reveal what that datagram was. The hardware hides that, so the relay must not
//! reveal it.

use std::time::{Duration, Instant};

use crate::threads::Report;
use openrelay_node::random::OsRandom;
use openrelay_proto::drops::{DropReason, Drops};
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

/// Counts that tell an operator why clients fail, each with what it usually means. Counts of single packets inside
/// sessions are left out: networks lose and repeat packets, and no client fails because of it.
const REFUSALS: [(DropReason, &str); 10] = [
    (DropReason::HandshakeInvalid, "they have an older directory or another key of this relay"),
    (DropReason::HandshakeReplay, "their clock or this machine's is wrong, or packets are repeated"),
    (DropReason::HandshakeLoad, "too many handshakes at once; add cores, or wait for a flood to end"),
    (DropReason::HandshakeStray, "answers arrive too late"),
    (DropReason::TableFull, "no room for sessions; raise capacity"),
    (DropReason::NotAdmitted, "they send before they are admitted"),
    (DropReason::UnknownIndex, "their session ended here, for example at a restart"),
    (DropReason::UnknownCircuit, "their circuit ended here"),
    (DropReason::SendFailed, "this machine cannot send; look at its network"),
    (DropReason::TunnelFailed, "the tunnel device refuses packets"),
];

/// Answers requests for statistics, and reports refusals.
pub(crate) struct Statistics {
    detail: Detail,
    answered: Option<Instant>,
    /// The last rounded numbers. Within a minute all output shows these, so that a host sees one draw a minute,
    /// whatever it asks for.
    drawn: Option<(Instant, Report)>,
    /// When refusals are looked at next.
    next: Instant,
    /// The highest counts that were reported of [`REFUSALS`], and of overflows.
    told: [u64; REFUSALS.len() + 1],
}

impl Statistics {
    /// Returns statistics before the first request. `attesting` is whether the relay proves what it runs. One that
    /// does not is its user's own relay. It has nothing to hide from its host, because the host can read its memory
    /// anyway.
    pub(crate) fn new(detail: Detail, attesting: bool, now: Instant) -> Self {
        let detail = if attesting { detail } else { Detail::Exact };
        Self { detail, answered: None, drawn: None, next: now + PAUSE, told: [0; REFUSALS.len() + 1] }
    }

    /// Returns the line for a request at `now`; `None` if the last answer is less than a minute old. Calls `report`
    /// only when it answers.
    pub(crate) fn answer(&mut self, now: Instant, report: impl FnOnce() -> Report) -> Option<String> {
        let recent = self.answered.is_some_and(|at| now.saturating_duration_since(at) < PAUSE);
        if self.detail == Detail::Rounded && recent {
            return None;
        }
        self.answered = Some(now);
        Some(line(&self.draw(now, report)))
    }

    /// Returns the line for the end, after which no request comes.
    pub(crate) fn last(&self, report: &Report) -> String {
        line(&self.told_of(report))
    }

    /// Returns how long to wait until refusals are looked at next.
    pub(crate) fn rest(&self, now: Instant) -> Duration {
        self.next.saturating_duration_since(now)
    }

    /// Returns a line about why clients fail, once a minute at most and only if a count has grown. Calls `report` only
    /// when it looks.
    pub(crate) fn refusals(&mut self, now: Instant, report: impl FnOnce() -> Report) -> Option<String> {
        if now < self.next {
            return None;
        }
        self.next = now + PAUSE;
        let report = self.draw(now, report);
        let overflows = ("receive-overflows", report.overflows, "packets arrive faster than this machine takes them");
        let counts = REFUSALS.iter().map(|(reason, why)| (reason.name(), report.counts.drops.of(*reason), *why));
        let mut said = Vec::new();
        for (told, (name, count, why)) in self.told.iter_mut().zip(counts.chain([overflows])) {
            // A later draw can be smaller.
            if count > *told {
                *told = count;
                said.push(format!("{name} {count} ({why})"));
            }
        }
        (!said.is_empty()).then(|| format!("refused since the start: {}", said.join(", ")))
    }

    fn draw(&mut self, now: Instant, report: impl FnOnce() -> Report) -> Report {
        if let (Detail::Rounded, Some((at, drawn))) = (self.detail, &self.drawn)
            && now.saturating_duration_since(*at) < PAUSE
        {
            return drawn.clone();
        }
        let drawn = self.told_of(&report());
        self.drawn = Some((now, drawn.clone()));
        drawn
    }

    /// Returns the numbers that may be told.
    fn told_of(&self, report: &Report) -> Report {
        let mut random = OsRandom::default();
        match self.detail {
            Detail::Exact => report.clone(),
            Detail::Rounded => {
                rounded(report, |number, step| round(number, step, u64::from_be_bytes(array(&mut random))))
            }
        }
    }
}

/// Returns a report with all numbers rounded, except that of the relays in the directory, which everyone can read.
fn rounded(report: &Report, mut round: impl FnMut(u64, u64) -> u64) -> Report {
    let mut told = report.clone();
    let counts = &mut told.counts;
    counts.drops = Drops::default();
    for (reason, count) in report.counts.drops.iter() {
        counts.drops.count_many(reason, round(count, STEP));
    }
    let sums = [
        &mut counts.received,
        &mut counts.forwarded,
        &mut counts.delivered,
        &mut counts.control,
        &mut counts.handshakes,
        &mut counts.withheld,
        &mut counts.passed,
        &mut told.sent,
        &mut told.originated,
        &mut told.device_read,
        &mut told.device_written,
        &mut told.overflows,
    ];
    for sum in sums {
        *sum = round(*sum, STEP);
    }
    for held in [&mut told.sessions, &mut told.circuits] {
        *held = round(*held, HELD_STEP);
    }
    told
}

/// Rounds to a multiple of `step`: up with a probability of remainder / `step`, by these random bits. Rounding that
/// always went down would show exactly when a number reaches a multiple, and the host can bring a number to that
/// point.
const fn round(number: u64, step: u64, random: u64) -> u64 {
    let down = number - number % step;
    if random % step < number % step { down.saturating_add(step) } else { down }
}

/// Returns one JSON object in a line. Reasons for drops that were reported as zero are left out.
fn line(report: &Report) -> String {
    let counts = &report.counts;
    let drops: Map<String, Value> =
        counts.drops.iter().map(|(reason, count)| (reason.name().to_owned(), count.into())).collect();
    json!({
        "schema": "openrelay.relay-statistics/1",
        "received": counts.received,
        "forwarded": counts.forwarded,
        "delivered": counts.delivered,
        "control": counts.control,
        "handshakes": counts.handshakes,
        "passed": counts.passed,
        "sent": report.sent,
        "originated": report.originated,
        "device_read": report.device_read,
        "device_written": report.device_written,
        "receive_overflows": report.overflows,
        "peers": report.peers,
        "drops": drops,
        "sessions": report.sessions,
        "circuits": report.circuits,
    })
    .to_string()
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
        let mut statistics = Statistics::new(Detail::Rounded, true, Instant::now());
        let start = Instant::now();
        for number in [0, 1, 15, 16, 1_023, 1_024, 1_025, 123_456_789] {
            let said = read(&Statistics::new(Detail::Rounded, true, start).answer(start, || report(number)).unwrap());
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
            let mut statistics = Statistics::new(detail, attesting, Instant::now());
            for number in [7, 8] {
                let said = read(&statistics.answer(Instant::now(), || report(number)).unwrap());
                assert_eq!((&said["received"], &said["sessions"]), (&number.into(), &number.into()));
            }
        }
    }

    fn refusing(invalid: u64, full: u64) -> Report {
        let mut report = Report::default();
        report.counts.drops.count_many(DropReason::HandshakeInvalid, invalid);
        report.counts.drops.count_many(DropReason::TableFull, full);
        // Losses inside sessions are no refusals.
        report.counts.drops.count_many(DropReason::Replayed, 7);
        report
    }

    #[test]
    fn refusals_are_reported_once_a_minute_and_only_if_they_have_grown() {
        let start = Instant::now();
        let mut statistics = Statistics::new(Detail::Exact, false, start);
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(statistics.rest(after(10)), Duration::from_secs(50));
        assert_eq!(statistics.refusals(after(59), || unreachable!("it is not time to look")), None);
        let said = statistics.refusals(after(60), || refusing(3, 0)).unwrap();
        assert!(said.contains("handshake-invalid 3 (") && !said.contains("table-full"), "{said}");
        assert!(!said.contains("replayed"), "{said}");
        assert_eq!(statistics.refusals(after(61), || unreachable!("it has just looked")), None);
        assert_eq!(statistics.refusals(after(120), || refusing(3, 0)), None);
        let said = statistics.refusals(after(180), || refusing(3, 1)).unwrap();
        assert!(said.contains("table-full 1 (") && !said.contains("handshake-invalid"), "{said}");
        assert_eq!(statistics.rest(after(180)), PAUSE);
    }

    /// A host that asks for statistics right after a line about refusals learns no second draw of the same numbers.
    #[test]
    fn attested_relay_shows_one_draw_a_minute_in_all_its_lines() {
        let start = Instant::now();
        for _ in 0..64 {
            let mut statistics = Statistics::new(Detail::Rounded, true, start);
            let at = start + PAUSE;
            let said = statistics.refusals(at, || refusing(STEP / 2, 0));
            let drawn = said.is_some_and(|said| said.contains(&format!("handshake-invalid {STEP} (")));
            let soon = at + PAUSE / 2;
            let shown = read(&statistics.answer(soon, || unreachable!("the numbers were drawn already")).unwrap());
            assert_eq!(shown["drops"]["handshake-invalid"] == STEP, drawn);
        }
    }

    /// Checks that docs/statistics.md lists exactly the counts of the line about refusals.
    #[test]
    fn documentation_lists_the_refusals() {
        let text = include_str!("../../../docs/statistics.md");
        let rows = text.lines().skip_while(|line| !line.starts_with("| refusal |")).skip(2);
        let rows = rows.take_while(|line| !line.is_empty()).filter_map(|row| row.split('`').nth(1));
        let own = REFUSALS.iter().map(|(reason, _)| reason.name()).chain(["receive-overflows"]);
        assert_eq!(rows.collect::<Vec<_>>(), own.collect::<Vec<_>>());
    }
}
