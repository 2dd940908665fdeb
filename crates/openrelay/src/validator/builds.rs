//! Builds beside the loop that votes: a build may take as long as its limits allow, and a vote waits for none.
//!
//! Owns what a validator answers by what its builds gave, and which round is built next: one that was built less often
//! before one that was built more often, so that rounds whose builds hang keep no other round from being built. "The build
//! failed" is said only of a build that has ended with the same error twice; where a limit or the deadline ended it, the
//! validator abstains, for that proves nothing.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::{Duration, Instant};

use super::round::Found;

/// The result of a rebuild.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Rebuilt {
    /// Image and manifest, by hash.
    Good(Found),
    /// The build ended with an error; the log.
    Failed(String),
    /// A limit, this machine or an input that cannot be fetched ended it; the reason.
    Local(String),
}

/// What a validator does in a round that wants an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Decision {
    /// Nothing yet.
    Wait,
    /// Commits to what was built.
    Image(Found),
    /// Commits to a failed build, with this log.
    Failed(String),
    /// Abstains, for this reason.
    Abstain(String),
}

/// How much time there is, and how it is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// Until the last commitment is taken.
    pub(super) left: Duration,
    /// A build without a result is answered with this much left: until then others may put things right.
    pub(super) late: Duration,
    /// What is left for committing when every build must have ended.
    pub(super) last: Duration,
    /// Between two builds of one round.
    pub(super) again: Duration,
    /// Longest build.
    pub(super) whole: Duration,
}

/// A build that has not ended.
struct Running {
    round: u64,
    result: Receiver<Rebuilt>,
}

/// What the builds of a round gave.
#[derive(Default)]
struct Record {
    good: Option<Found>,
    /// Logs of builds that failed, the newest last.
    failed: Vec<String>,
    /// Why the newest build gave no result.
    local: Option<String>,
    /// How often a build was started, and when the last time.
    tries: u32,
    tried: Option<Instant>,
}

impl Record {
    /// The log of the last two builds, where both failed alike.
    fn failed_alike(&self) -> Option<&str> {
        match self.failed.as_slice() {
            [.., one, two] if one == two && self.local.is_none() => Some(two),
            _ => None,
        }
    }
}

/// The builds of a validator, one at a time.
#[derive(Default)]
pub(super) struct Builds {
    running: Option<Running>,
    rounds: BTreeMap<u64, Record>,
}

impl Builds {
    /// Sorts rounds, each with the time until its last commitment, into the order in which they are to be decided: the
    /// first for which a build is due gets the only place. An emergency ends sooner than what was opened with it.
    pub(super) fn order(&self, rounds: &mut [(u64, Duration)]) {
        rounds.sort_by_key(|(round, left)| (self.rounds.get(round).map_or(0, |record| record.tries), *left, *round));
    }

    /// What to do in a round now. Starts a build where one is due; `build` is told by when it must have ended.
    pub(super) fn decide(
        &mut self,
        round: u64,
        schedule: Schedule,
        now: Instant,
        build: impl FnOnce(Instant) -> Rebuilt + Send + 'static,
    ) -> Decision {
        self.collect();
        let Schedule { left, late, last, again, whole } = schedule;
        let (late, over) = (left <= late, left <= last);
        let runs = self.is_running(round);
        let busy = self.running.is_some();
        let record = self.rounds.entry(round).or_default();
        if let Some(found) = record.good {
            return Decision::Image(found);
        }
        if runs {
            return if over { Decision::Abstain("its build has not ended".into()) } else { Decision::Wait };
        }
        if late && let Some(log) = record.failed_alike() {
            return Decision::Failed(log.to_owned());
        }
        if late && let Some(why) = &record.local {
            return Decision::Abstain(why.clone());
        }
        if over {
            return Decision::Abstain("no two builds have ended alike in time".into());
        }
        // With little time left, the second build of two that must fail alike follows the first at once.
        let soon = late && record.failed.len() == 1;
        let waits = record.tried.is_some_and(|at| now.saturating_duration_since(at) < again) && !soon;
        if busy || waits {
            return Decision::Wait;
        }
        record.tries += 1;
        record.tried = Some(now);
        let deadline = now + whole.min(left - last);
        let (sender, result) = channel();
        // It ends by its limits, whether anybody waits for it or not.
        std::thread::spawn(move || sender.send(build(deadline)));
        self.running = Some(Running { round, result });
        Decision::Wait
    }

    /// Whether a build of this round has not ended.
    pub(super) fn is_running(&self, round: u64) -> bool {
        self.running.as_ref().is_some_and(|running| running.round == round)
    }

    /// Waits for the running build, at most this long; whether there was one.
    pub(super) fn wait(&mut self, most: Duration) -> bool {
        let Some(running) = self.running.take() else { return false };
        match running.result.recv_timeout(most) {
            Ok(result) => self.note(running.round, result),
            Err(RecvTimeoutError::Timeout) => self.running = Some(running),
            Err(RecvTimeoutError::Disconnected) => self.note(running.round, Rebuilt::Local(BROKEN.into())),
        }
        true
    }

    /// Forgets rounds before this one.
    pub(super) fn forget_before(&mut self, round: u64) {
        self.rounds = self.rounds.split_off(&round);
    }

    /// Takes the result of a build that has ended.
    fn collect(&mut self) {
        let Some(running) = self.running.take() else { return };
        match running.result.try_recv() {
            Ok(result) => self.note(running.round, result),
            Err(TryRecvError::Empty) => self.running = Some(running),
            Err(TryRecvError::Disconnected) => self.note(running.round, Rebuilt::Local(BROKEN.into())),
        }
    }

    fn note(&mut self, round: u64, result: Rebuilt) {
        let record = self.rounds.entry(round).or_default();
        record.local = None;
        match result {
            Rebuilt::Good(found) => record.good = Some(found),
            Rebuilt::Failed(log) => {
                crate::talk(&format!("openrelay: round {round}: the build failed: {}", log.trim_end()));
                record.failed.push(log);
            }
            Rebuilt::Local(why) => {
                crate::talk(&format!("openrelay: warning: round {round}: not built: {why}"));
                record.local = Some(why);
            }
        }
    }
}

/// Why there is no result where a build's thread has ended without one.
const BROKEN: &str = "the build ended without a result";

#[cfg(test)]
mod tests {

    use alloy_primitives::B256;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);
    const FOUND: Found = Found::Image { image: B256::repeat_byte(1), measurements: B256::repeat_byte(2) };

    fn left(hours: u32) -> Schedule {
        Schedule { left: HOUR * hours, late: HOUR * 6, last: HOUR / 4, again: HOUR, whole: HOUR }
    }

    /// With time for nothing but a commitment.
    fn over() -> Schedule {
        Schedule { left: HOUR / 8, ..left(0) }
    }

    fn never(_: Instant) -> Rebuilt {
        panic!("no build is due");
    }

    /// Decides once, and waits for the build that this starts.
    fn after(builds: &mut Builds, schedule: Schedule, now: Instant, result: Rebuilt) {
        assert_eq!(builds.decide(1, schedule, now, |_| result), Decision::Wait);
        assert!(builds.wait(HOUR), "a build was started");
    }

    #[test]
    fn build_that_hangs_holds_no_vote_and_ends_in_abstention_by_the_deadline() {
        let mut builds = Builds::default();
        let now = Instant::now();
        let (hold, held) = channel::<()>();
        let (told, deadline) = channel();
        let hangs = move |until| {
            told.send(until).unwrap();
            // As long as the test lasts.
            let _ = held.recv();
            Rebuilt::Good(FOUND)
        };
        assert_eq!(builds.decide(1, left(24), now, hangs), Decision::Wait);
        assert_eq!(deadline.recv().unwrap(), now + HOUR, "it is told when its time is over");
        // Asked again, and in another round, the loop gets an answer at once: it reveals and commits elsewhere meanwhile.
        assert_eq!(builds.decide(1, left(23), now, never), Decision::Wait);
        assert_eq!(builds.decide(2, left(23), now, never), Decision::Wait);
        assert!(matches!(builds.decide(1, over(), now, never), Decision::Abstain(_)));
        assert!(matches!(builds.decide(2, over(), now, never), Decision::Abstain(_)));
        // Control: once it ends, the other round is built.
        drop(hold);
        assert!(builds.wait(HOUR));
        assert_eq!(builds.decide(1, over(), now, never), Decision::Image(FOUND));
        assert_eq!(builds.decide(2, left(23), now, |_| Rebuilt::Good(FOUND)), Decision::Wait);
        assert!(builds.wait(HOUR));
        assert_eq!(builds.decide(2, left(23), now, never), Decision::Image(FOUND));
    }

    /// What a build gives, by its round, and how many builds there were, when the rounds are asked once an hour.
    fn served(rounds: &[(u64, u32)], hangs: impl Fn(u64) -> bool) -> BTreeMap<u64, u32> {
        let (mut builds, now) = (Builds::default(), Instant::now());
        let mut served = BTreeMap::new();
        for hour in 0..24 {
            let mut open: Vec<_> =
                rounds.iter().map(|(round, hours)| (*round, HOUR * hours.saturating_sub(hour))).collect();
            builds.order(&mut open);
            for (round, time) in open {
                let schedule = Schedule { left: time, ..left(0) };
                let result = if hangs(round) { Rebuilt::Local("time".into()) } else { Rebuilt::Good(FOUND) };
                let decision = builds.decide(round, schedule, now + HOUR * hour, |_| result);
                if decision == Decision::Image(FOUND) {
                    served.entry(round).or_insert(hour);
                }
            }
            // Whatever runs ends within the hour that it has.
            builds.wait(HOUR);
        }
        served
    }

    #[test]
    fn rounds_that_hang_keep_no_other_round_from_being_built() {
        // Seven that hang, opened before one that does not, all with their three days.
        let rounds: Vec<(u64, u32)> = (1..=8).map(|round| (round, 72)).collect();
        assert_eq!(served(&rounds, |round| round < 8), BTreeMap::from([(8, 8)]));
        // An emergency, which has six hours, that is opened last is built first.
        let rounds: Vec<(u64, u32)> = (1..=7).map(|round| (round, 72)).chain([(8, 6)]).collect();
        assert_eq!(served(&rounds, |round| round < 8), BTreeMap::from([(8, 1)]));
        // One that hangs itself takes its turn and no more.
        assert_eq!(served(&[(1, 72), (2, 6)], |round| round == 2), BTreeMap::from([(1, 2)]));
    }

    #[test]
    fn build_never_lasts_into_the_time_that_committing_needs() {
        let mut builds = Builds::default();
        let now = Instant::now();
        let (told, deadline) = channel();
        let schedule = Schedule { left: HOUR / 2, ..left(0) };
        let build = move |until| {
            told.send(until).unwrap();
            Rebuilt::Good(FOUND)
        };
        assert_eq!(builds.decide(1, schedule, now, build), Decision::Wait);
        assert_eq!(deadline.recv().unwrap(), now + HOUR / 4);
    }

    #[test]
    fn failure_is_answered_only_when_two_builds_fail_alike_and_time_is_short() {
        let mut builds = Builds::default();
        let now = Instant::now();
        let failed = || Rebuilt::Failed("exit code 101".into());
        after(&mut builds, left(24), now, failed());
        assert_eq!(builds.decide(1, left(24), now, never), Decision::Wait, "not again at once");
        after(&mut builds, left(23), now + HOUR, failed());
        assert_eq!(builds.decide(1, left(23), now + HOUR, never), Decision::Wait, "there is time");
        assert_eq!(builds.decide(1, left(6), now + HOUR, never), Decision::Failed("exit code 101".into()));
        // In a short round the second follows at once.
        let mut builds = Builds::default();
        after(&mut builds, left(6), now, failed());
        after(&mut builds, left(6), now, failed());
        assert_eq!(builds.decide(1, left(6), now, never), Decision::Failed("exit code 101".into()));
    }

    #[test]
    fn failures_that_differ_or_a_limit_end_in_abstention() {
        let now = Instant::now();
        let mut builds = Builds::default();
        after(&mut builds, left(6), now, Rebuilt::Failed("one".into()));
        after(&mut builds, left(6), now, Rebuilt::Failed("other".into()));
        assert_eq!(builds.decide(1, left(6), now, never), Decision::Wait);
        assert!(matches!(builds.decide(1, over(), now, never), Decision::Abstain(_)));
        // A limit between two failures proves nothing either way.
        let mut builds = Builds::default();
        after(&mut builds, left(24), now, Rebuilt::Failed("one".into()));
        after(&mut builds, left(23), now + HOUR, Rebuilt::Failed("one".into()));
        after(&mut builds, left(22), now + HOUR * 2, Rebuilt::Local("its limit of time".into()));
        assert_eq!(builds.decide(1, left(6), now, never), Decision::Abstain("its limit of time".into()));
        // One failure alone is not enough.
        let mut builds = Builds::default();
        after(&mut builds, left(24), now, Rebuilt::Failed("one".into()));
        assert!(matches!(builds.decide(1, over(), now, never), Decision::Abstain(_)));
        // Control: what is built after all is committed.
        let mut builds = Builds::default();
        after(&mut builds, left(24), now, Rebuilt::Failed("one".into()));
        after(&mut builds, left(23), now + HOUR, Rebuilt::Good(FOUND));
        assert_eq!(builds.decide(1, over(), now, never), Decision::Image(FOUND));
    }

    #[test]
    fn build_that_breaks_down_is_this_machines_fault() {
        let mut builds = Builds::default();
        let now = Instant::now();
        assert_eq!(builds.decide(1, left(6), now, |_| panic!("broken")), Decision::Wait);
        assert!(builds.wait(HOUR));
        assert_eq!(builds.decide(1, left(6), now, never), Decision::Abstain(BROKEN.into()));
    }
}
