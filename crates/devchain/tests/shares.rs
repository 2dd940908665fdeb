//! The power of each share of the weight, and what its use costs, played in the model. The tables of docs/contracts.md
//! are this test's output.
//!
//! `OPENRELAY_WRITE_TABLES=1 cargo test -p openrelay-devchain --test shares` writes them there.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on must stop, and prints the tables"
)]

mod model;

use std::fmt::Write as _;

use model::collateral::{Collateral, Entry, PERIOD};
use model::images::{Images, PENDING, Proposal};
use model::rounds::{Answer, Commitment, Outcome};
use openrelay_ledger::chain::voted::State;

const GOOD: u64 = 1;
const BAD: u64 = 2;
const DAY: u64 = 86_400;
/// Number of validators in the coalition, and of the others. All validators of a side have the same weight, and each
/// is its own family.
const SIDE: u64 = 50;
const TOTAL: u128 = 30_000_000_000;
const DEPOSIT: u128 = 1_000;
const PROPOSER: u64 = 1_000;
const BEGIN: u64 = 1_000_000 * PERIOD;

/// The rows: name and weight of a share.
const SHARES: [(&str, u128); 6] = [
    ("1/5", TOTAL / 5),
    ("1/3", TOTAL / 3),
    ("34 %", TOTAL * 34 / 100),
    ("1/2", TOTAL / 2),
    ("just under 2/3", TOTAL / 3 * 2 - SIDE as u128),
    ("2/3", TOTAL / 3 * 2),
];

/// What the coalition does in a round that the others want to end well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Way {
    Silent,
    Abstains,
    Fails,
    Lies,
}

const WAYS: [(Way, &str); 4] = [
    (Way::Silent, "stays silent"),
    (Way::Abstains, "abstains"),
    (Way::Fails, "says \"failed\""),
    (Way::Lies, "names one wrong value"),
];

impl Way {
    const fn answer(self, wrong: Answer) -> Option<Answer> {
        match self {
            Self::Silent => None,
            Self::Abstains => Some(Answer::Abstain),
            Self::Fails => Some(Answer::Failed),
            Self::Lies => Some(wrong),
        }
    }
}

fn others() -> std::ops::RangeInclusive<u64> {
    1..=SIDE
}

fn coalition() -> std::ops::RangeInclusive<u64> {
    SIDE + 1..=2 * SIDE
}

fn everybody() -> Vec<u64> {
    (1..=2 * SIDE).collect()
}

/// Returns the answers of the others and of the coalition.
fn answers(others_say: Option<Answer>, coalition_says: Option<Answer>) -> Vec<(u64, Answer)> {
    let with = |say: Option<Answer>| move |id| say.map(|answer| (id, answer));
    others().filter_map(with(others_say)).chain(coalition().filter_map(with(coalition_says))).collect()
}

struct World {
    images: Images,
    now: u64,
}

impl World {
    fn new(share: u128) -> Self {
        let mut images = Images::new(1, DEPOSIT, 5);
        for id in everybody() {
            let side = if others().contains(&id) { TOTAL - share } else { share };
            images.set.join(id, id, 10_000 + id, side / u128::from(SIDE)).unwrap();
        }
        Self { images, now: BEGIN }
    }

    fn bond(&self, id: u64) -> u128 {
        self.images.set.validators[&id].bond
    }

    /// Runs and settles a whole round on a proposal with this value.
    fn round(&mut self, version: u64, value: u64, emergency: bool, answers: &[(u64, Answer)]) -> (u64, Outcome) {
        let proposal = Proposal { proposer: PROPOSER, version, value, emergency };
        let round = self.images.propose(proposal, self.now).unwrap();
        let what = |id: u64, answer| Commitment { author: (round, id), answer, salt: id };
        for (id, answer) in answers {
            self.images.commit(*id, round, *id, what(*id, *answer), self.now).unwrap();
        }
        self.now = self.images.images[&round].round.commit_end;
        self.images.open(PROPOSER, round, value, self.now).unwrap();
        for (id, answer) in answers {
            self.images.reveal(*id, what(*id, *answer), self.now).unwrap();
        }
        self.now = self.images.images[&round].round.end();
        let outcome = self.images.finish(round, self.now).unwrap();
        self.images.settle(round, &everybody()).unwrap();
        (round, outcome)
    }

    /// Has everybody approve an image, and waits until it can be used.
    fn approve(&mut self, version: u64) -> u64 {
        let good = Some(Answer::Value(GOOD));
        let (round, outcome) = self.round(version, GOOD, false, &answers(good, good));
        assert_eq!(outcome, Outcome::Approved);
        self.now += PENDING;
        round
    }

    /// Has the coalition vote against an image.
    fn accuse(&mut self, image: u64) -> State {
        for id in coalition() {
            if self.images.accuse(id, image, id, self.now).is_err() {
                break;
            }
        }
        self.images.state(image, self.now).unwrap()
    }
}

struct Bundles {
    model: Collateral,
    now: u64,
}

impl Bundles {
    const HELD: Entry = Entry { bundle: 1, intel_floor: 5, amd_floor: 5 };
    const NEXT: Entry = Entry { bundle: 2, intel_floor: 5, amd_floor: 5 };
    const RAISED: Entry = Entry { bundle: 3, intel_floor: u16::MAX, amd_floor: 5 };

    fn new(share: u128) -> Self {
        let mut this = Self { model: Collateral::new(World::new(share).images.set, 5), now: BEGIN };
        let all = Some(Self::HELD.value());
        let round = this.round(&answers(all, all));
        this.model.post(round, Self::HELD, this.now).unwrap();
        this
    }

    /// Runs and settles a whole round of the next period.
    fn round(&mut self, answers: &[(u64, Answer)]) -> u64 {
        self.now = (self.now / PERIOD + 1) * PERIOD;
        let round = self.model.open(self.now).unwrap();
        let what = |id: u64, answer| Commitment { author: (round, id), answer, salt: id };
        for (id, answer) in answers {
            self.model.commit(*id, round, *id, what(*id, *answer), self.now).unwrap();
        }
        self.now = self.model.rounds[&round].commit_end;
        for (id, answer) in answers {
            self.model.reveal(*id, what(*id, *answer), self.now).unwrap();
        }
        self.now = self.model.rounds[&round].end();
        self.model.finish(round, self.now).unwrap();
        self.model.settle(round, &everybody()).unwrap();
        round
    }

    /// Returns the days until one of the rounds puts `wanted` in force; `None` if none does within 29 days.
    fn days_until(&mut self, wanted: Entry, answers: &[(u64, Answer)]) -> Option<u64> {
        let begin = self.now;
        while self.now < begin + 29 * DAY {
            let round = self.round(answers);
            if self.model.post(round, wanted, self.now).is_ok() {
                return Some((self.now - begin) / DAY);
            }
        }
        None
    }
}

/// Returns what a round cost one validator, in hundredths of a percent of its bond.
fn lost(before: u128, after: u128) -> u128 {
    (before - after) * 10_000 / before
}

fn percent(basis_points: u128) -> String {
    format!("{}.{:02} %", basis_points / 100, basis_points % 100)
}

const fn yes(is: bool) -> &'static str {
    if is { "yes" } else { "no" }
}

/// Returns whether the coalition can force such an outcome on a true image: in no way, in every way, or by lying.
fn ways(share: u128, emergency: bool, is: impl Fn(Outcome) -> bool) -> String {
    let by = |(way, _): &&(Way, &str)| {
        let mut world = World::new(share);
        let said = answers(Some(Answer::Value(GOOD)), way.answer(Answer::Value(BAD)));
        is(world.round(1, GOOD, emergency, &said).1)
    };
    match WAYS.iter().filter(by).count() {
        0 => "no".to_owned(),
        4 => "yes".to_owned(),
        _ => "by lying".to_owned(),
    }
}

/// Returns the most that one of the others pays for an honest answer, in a round that the coalition proposed.
fn harm(share: u128) -> String {
    let mut most = 0;
    for honest in [Answer::Value(GOOD), Answer::Failed] {
        let mut world = World::new(share);
        let before = world.bond(1);
        world.round(1, BAD, false, &answers(Some(honest), Some(Answer::Value(BAD))));
        most = most.max(lost(before, world.bond(1)));
    }
    if most == 0 { "no".to_owned() } else { percent(most) }
}

fn powers() -> String {
    let mut text = String::from(
        "| share | approve a bad image | stop a true one | have it rejected | stop an emergency | suspend | revoke \
         | make the others pay in a round | let collateral expire | post any collateral | raise floors |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for (name, share) in SHARES {
        let mut world = World::new(share);
        let lie = Some(Answer::Value(BAD));
        let approves = world.round(1, BAD, false, &answers(Some(Answer::Value(GOOD)), lie)).1 == Outcome::Approved;
        let stops = ways(share, false, |outcome| outcome != Outcome::Approved);
        let rejects = ways(share, false, |outcome| outcome == Outcome::Rejected);
        let urgent = ways(share, true, |outcome| outcome != Outcome::Approved);
        let mut world = World::new(share);
        world.approve(1);
        let newest = world.approve(2);
        let state = world.accuse(newest);
        let (suspends, revokes) = (state == State::Suspended || state == State::Revoked, state == State::Revoked);
        let expires = WAYS.iter().any(|(way, _)| {
            let said = answers(Some(Bundles::NEXT.value()), way.answer(Bundles::RAISED.value()));
            Bundles::new(share).days_until(Bundles::NEXT, &said).is_none()
        });
        let mut bundles = Bundles::new(share);
        let said = answers(Some(Bundles::NEXT.value()), Some(Bundles::RAISED.value()));
        let posts = match bundles.days_until(Bundles::RAISED, &said) {
            None => "no".to_owned(),
            Some(0) => "yes".to_owned(),
            Some(days) => format!("once in {days} days"),
        };
        let floor = bundles.model.current.unwrap().entry.intel_floor == Bundles::RAISED.intel_floor;
        let row = [
            name.to_owned(),
            yes(approves).to_owned(),
            stops,
            rejects,
            urgent,
            yes(suspends).to_owned(),
            yes(revokes).to_owned(),
            harm(share),
            yes(expires).to_owned(),
            posts,
            yes(floor).to_owned(),
        ];
        writeln!(text, "| {} |", row.join(" | ")).unwrap();
    }
    text
}

fn prices() -> String {
    let mut text = String::from(
        "| 34 % for 30 days | rounds that ended | approved | each of the 34 % lost | each of the others lost \
         | deposits that the proposer lost | days without a usable image | collateral renewed on day \
         | first approval on day, if it goes on |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    for (way, name) in WAYS {
        let share = TOTAL * 34 / 100;
        let mut world = World::new(share);
        let old = world.approve(1);
        let begin = world.now;
        let (rival, other) = (world.bond(SIDE + 1), world.bond(1));
        let said = answers(Some(Answer::Value(GOOD)), way.answer(Answer::Value(BAD)));
        let (mut rounds, mut approved, mut paid, mut version) = (0u128, 0, 0u128, 2);
        let (mut dark, mut day) = (0, begin);
        loop {
            let mut ahead = World { images: world.images.clone(), now: world.now };
            let (round, outcome) = ahead.round(version, GOOD, false, &said);
            if ahead.now > begin + 30 * DAY {
                break;
            }
            world = ahead;
            rounds += 1;
            paid += DEPOSIT;
            if outcome == Outcome::Approved {
                approved += 1;
                version += 1;
            } else {
                world.now = world.now.max(world.images.retry_at[&version]);
            }
            while day < world.now {
                let usable = |image: u64| world.images.state(image, day).is_some_and(State::usable);
                dark += u64::from(!(old..=round).any(usable));
                day += DAY;
            }
        }
        let back = world.images.set.credits[&PROPOSER] - DEPOSIT;
        let collateral = answers(Some(Bundles::NEXT.value()), way.answer(Bundles::RAISED.value()));
        let renewed = Bundles::new(share).days_until(Bundles::NEXT, &collateral).unwrap();
        writeln!(
            text,
            "| {name} | {rounds} | {approved} | {} | {} | {} | {dark} | {renewed} | {} |",
            percent(lost(rival, world.bond(SIDE + 1))),
            percent(lost(other, world.bond(1))),
            (paid - back) / DEPOSIT,
            first_approval(share, &said),
        )
        .unwrap();
    }
    text
}

/// Returns the day on which a release is approved that is proposed again and again.
fn first_approval(share: u128, said: &[(u64, Answer)]) -> u64 {
    let mut world = World::new(share);
    world.approve(1);
    let begin = world.now;
    loop {
        assert!(world.now < begin + 365 * DAY, "the coalition stops the release for ever");
        if world.round(2, GOOD, false, said).1 == Outcome::Approved {
            return (world.now - begin) / DAY;
        }
        world.now = world.now.max(world.images.retry_at[&2]);
    }
}

/// The tables in docs/contracts.md are the model's output.
#[test]
fn tables_of_shares_match_the_model() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/contracts.md");
    let document = std::fs::read_to_string(&path).unwrap();
    let mut made = document.clone();
    for (name, table) in [("powers", powers()), ("prices", prices())] {
        println!("{table}");
        let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
        let (before, rest) = made.split_once(&begin).unwrap();
        let (_, after) = rest.split_once(&end).unwrap();
        made = format!("{before}{begin}{table}{end}{after}");
    }
    if std::env::var_os("OPENRELAY_WRITE_TABLES").is_some() {
        std::fs::write(&path, &made).unwrap();
    } else {
        let how = "OPENRELAY_WRITE_TABLES=1 cargo test -p openrelay-devchain --test shares";
        assert_eq!(document, made, "docs/contracts.md does not match the model; run: {how}");
    }
}

/// The promises of the documents, in numbers: the network goes on, and liars pay.
#[test]
fn network_goes_on_for_30_days_against_34_percent() {
    for (way, name) in WAYS {
        let mut world = World::new(TOTAL * 34 / 100);
        world.approve(1);
        let rival = world.bond(SIDE + 1);
        let said = answers(Some(Answer::Value(GOOD)), way.answer(Answer::Value(BAD)));
        let begin = world.now;
        let mut version = 2;
        while world.now < begin + 30 * DAY {
            let (_, outcome) = world.round(version, GOOD, false, &said);
            version += u64::from(outcome == Outcome::Approved);
            world.now += DAY;
            assert_ne!(outcome, Outcome::Rejected, "{name}");
            let usable = |round: &u64| world.images.state(*round, world.now).is_some_and(State::usable);
            assert!(world.images.images.keys().any(usable), "{name}: no image is usable");
        }
        assert!(world.bond(SIDE + 1) < rival, "{name}: the coalition pays nothing");
        assert!(others().all(|id| world.bond(id) == (TOTAL * 66 / 100) / u128::from(SIDE)), "{name}: the others pay");
    }
}
