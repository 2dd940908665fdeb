//! Builds beside the loop that votes: a build may take as long as its limits allow, and no vote waits for it.
//!
//! Owns which round is built next, and which answer a validator gives from its builds. Rounds that were built less
//! often come first, so rounds whose builds hang do not keep other rounds from being built. A failed build is
//! reported only if two builds have ended with the same error. If a limit or the deadline ended a build, the
//! validator abstains, because that proves nothing.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel};
use std::time::{Duration, Instant};

use super::round::Found;

/// The result of a rebuild.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Rebuilt {
    /// Success, with image and manifest by hash.
    Good(Found),
    /// The build ended with an error; its log.
    Failed(String),
    /// A limit, this machine or an unavailable input ended the build; the reason.
    Local(String),
}

/// What a validator does in a round that wants an answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Decision {
    /// Does nothing yet.
    Wait,
    /// Commits to what was built.
    Image(Found),
    /// Commits to a failed build, with this log.
    Failed(String),
    /// Abstains, for this reason.
    Abstain(String),
}

/// How much time a round has, and how it is used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    /// The time until commitments end.
    pub(super) left: Duration,
    /// A build without a result is answered only when this much time is left, so that its cause can be fixed until
    /// then.
    pub(super) late: Duration,
    /// The time that is reserved for committing, before which every build must have ended.
    pub(super) last: Duration,
    /// The time between two builds of one round.
    pub(super) again: Duration,
    /// The time limit of one build.
    pub(super) whole: Duration,
}

/// A build that has not ended.
struct Running {
    round: u64,
    result: Receiver<Rebuilt>,
}

/// The results of a round's builds.
#[derive(Default)]
struct Record {
    good: Option<Found>,
    /// Logs of builds that failed, the newest last.
    failed: Vec<String>,
    /// Why the newest build gave no result.
    local: Option<String>,
    /// The number of builds started, and when the last one was.
    tries: u32,
    tried: Option<Instant>,
}

impl Record {
    /// Returns the log of the last two builds, if both failed with the same log.
    fn failed_alike(&self) -> Option<&str> {
        match self.failed.as_slice() {
            [.., one, two] if one == two && self.local.is_none() => Some(two),
            _ => None,
        }
    }
}

/// The builds of a validator, of which one runs at a time.
#[derive(Default)]
pub(super) struct Builds {
    running: Option<Running>,
    rounds: BTreeMap<u64, Record>,
}

impl Builds {
    /// Sorts rounds, each with the time until its commitments end, into the order in which to decide them. The first
    /// round for which a build is due gets the only slot. An emergency round ends sooner than other rounds opened
    /// with it.
    pub(super) fn order(&self, rounds: &mut [(u64, Duration)]) {
        rounds.sort_by_key(|(round, left)| (self.rounds.get(round).map_or(0, |record| record.tries), *left, *round));
    }

    /// Returns what to do in a round at `now`, and starts a build if one is due. `build` gets the time by which it
    /// must end.
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
            return Decision::Abstain("no two builds gave the same result in time".into());
        }
        // With little time left, the second of two builds that must fail alike follows the first at once.
        let soon = late && record.failed.len() == 1;
        let waits = record.tried.is_some_and(|at| now.saturating_duration_since(at) < again) && !soon;
        if busy || waits {
            return Decision::Wait;
        }
        record.tries += 1;
        record.tried = Some(now);
        let deadline = now + whole.min(left - last);
        let (sender, result) = channel();
        // The build ends by its limits, whether or not anyone waits for it.
        std::thread::spawn(move || sender.send(build(deadline)));
        self.running = Some(Running { round, result });
        Decision::Wait
    }

    /// Returns whether a build of this round is running.
    pub(super) fn is_running(&self, round: u64) -> bool {
        self.running.as_ref().is_some_and(|running| running.round == round)
    }

    /// Waits for the running build for at most this time. Returns whether there was one.
    pub(super) fn wait(&mut self, most: Duration) -> bool {
        let Some(running) = self.running.take() else { return false };
        match running.result.recv_timeout(most) {
            Ok(result) => self.note(running.round, result),
            Err(RecvTimeoutError::Timeout) => self.running = Some(running),
            Err(RecvTimeoutError::Disconnected) => self.note(running.round, Rebuilt::Local(BROKEN.into())),
        }
        true
    }

    /// Forgets the rounds before this one.
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
                crate::output::talk(&format!("openrelay: round {round}: the build failed: {}", log.trim_end()));
                record.failed.push(log);
            }
            Rebuilt::Local(why) => {
                crate::output::talk(&format!("openrelay: warning: round {round}: not built: {why}"));
                record.local = Some(why);
            }
        }
    }
}

/// The reason if a build's thread ended without a result.
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

    /// A schedule with time for nothing but a commitment.
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
    fn hanging_build_delays_no_vote_and_ends_in_abstention() {
        let mut builds = Builds::default();
        let now = Instant::now();
        let (hold, held) = channel::<()>();
        let (told, deadline) = channel();
        let hangs = move |until| {
            told.send(until).unwrap();
            // Blocks as long as the test runs.
            let _ = held.recv();
            Rebuilt::Good(FOUND)
        };
        assert_eq!(builds.decide(1, left(24), now, hangs), Decision::Wait);
        assert_eq!(deadline.recv().unwrap(), now + HOUR, "it is told when its time is over");
        // Later questions, also about another round, get an answer at once, so the loop can reveal and commit
        // elsewhere.
        assert_eq!(builds.decide(1, left(23), now, never), Decision::Wait);
        assert_eq!(builds.decide(2, left(23), now, never), Decision::Wait);
        assert!(matches!(builds.decide(1, over(), now, never), Decision::Abstain(_)));
        assert!(matches!(builds.decide(2, over(), now, never), Decision::Abstain(_)));
        // Control: once the build ends, the other round is built.
        drop(hold);
        assert!(builds.wait(HOUR));
        assert_eq!(builds.decide(1, over(), now, never), Decision::Image(FOUND));
        assert_eq!(builds.decide(2, left(23), now, |_| Rebuilt::Good(FOUND)), Decision::Wait);
        assert!(builds.wait(HOUR));
        assert_eq!(builds.decide(2, left(23), now, never), Decision::Image(FOUND));
    }

    /// Returns the hour in which each round got a result, if the rounds are asked once an hour.
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
            // A running build ends within its hour.
            builds.wait(HOUR);
        }
        served
    }

    #[test]
    fn hanging_rounds_do_not_keep_other_rounds_from_being_built() {
        // Seven rounds hang. They were opened before one that does not, and all have three days.
        let rounds: Vec<(u64, u32)> = (1..=8).map(|round| (round, 72)).collect();
        // A build may end within the hour in which it began, so these are the latest hours.
        assert!((1..=8).contains(&served(&rounds, |round| round < 8)[&8]));
        // An emergency round, which has six hours, is built first although it was opened last.
        let rounds: Vec<(u64, u32)> = (1..=7).map(|round| (round, 72)).chain([(8, 6)]).collect();
        assert_eq!(served(&rounds, |round| round < 8)[&8], 1);
        // A hanging emergency round takes its turn and no more.
        assert!((1..=2).contains(&served(&[(1, 72), (2, 6)], |round| round == 2)[&1]));
    }

    #[test]
    fn build_must_end_before_the_time_reserved_for_committing() {
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
    fn failure_is_answered_only_after_two_equal_failures_and_late() {
        let mut builds = Builds::default();
        let now = Instant::now();
        let failed = || Rebuilt::Failed("exit code 101".into());
        after(&mut builds, left(24), now, failed());
        assert_eq!(builds.decide(1, left(24), now, never), Decision::Wait, "not again at once");
        after(&mut builds, left(23), now + HOUR, failed());
        assert_eq!(builds.decide(1, left(23), now + HOUR, never), Decision::Wait, "there is time");
        assert_eq!(builds.decide(1, left(6), now + HOUR, never), Decision::Failed("exit code 101".into()));
        // In a short round the second build follows at once.
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
        // A limit after two failures leaves the result open.
        let mut builds = Builds::default();
        after(&mut builds, left(24), now, Rebuilt::Failed("one".into()));
        after(&mut builds, left(23), now + HOUR, Rebuilt::Failed("one".into()));
        after(&mut builds, left(22), now + HOUR * 2, Rebuilt::Local("its limit of time".into()));
        assert_eq!(builds.decide(1, left(6), now, never), Decision::Abstain("its limit of time".into()));
        // One failure alone is not enough.
        let mut builds = Builds::default();
        after(&mut builds, left(24), now, Rebuilt::Failed("one".into()));
        assert!(matches!(builds.decide(1, over(), now, never), Decision::Abstain(_)));
        // Control: a later success is committed.
        let mut builds = Builds::default();
        after(&mut builds, left(24), now, Rebuilt::Failed("one".into()));
        after(&mut builds, left(23), now + HOUR, Rebuilt::Good(FOUND));
        assert_eq!(builds.decide(1, over(), now, never), Decision::Image(FOUND));
    }

    #[test]
    fn build_without_result_counts_as_a_local_fault() {
        let mut builds = Builds::default();
        let now = Instant::now();
        assert_eq!(builds.decide(1, left(6), now, |_| panic!("broken")), Decision::Wait);
        assert!(builds.wait(HOUR));
        assert_eq!(builds.decide(1, left(6), now, never), Decision::Abstain(BROKEN.into()));
    }
}
