//! Votes on collateral: the contract compared with its model, and what a silent or lying third can do.

use crate::model::Revert;
use crate::model::collateral::{Collateral, Entry};
use crate::model::rounds::{Answer, Commitment, Outcome};
use alloy_primitives::{B256, Bytes, U256, keccak256};
use openrelay_chain::voting::collateral::Collateral as C;
use proptest::prelude::*;

use crate::sequences;
use crate::world::{DAY, HOUR, World, everybody};

/// Five families with 66 % of the weight, and two with 34 %.
const SPLIT: [u128; 7] = [1_320, 1_320, 1_320, 1_320, 1_320, 1_700, 1_700];

/// A validator's answer. `None` stands for a silent validator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Vote {
    For(Entry),
    Failed,
    Abstain,
}

struct Both {
    world: World,
    model: Collateral,
}

const fn entry(bundle: u16, intel_floor: u16, amd_floor: u16) -> Entry {
    Entry { bundle, intel_floor, amd_floor }
}

fn told_of(entry: Entry) -> C::Entry {
    C::Entry {
        bundle: U256::from(entry.bundle).into(),
        intelFloor: entry.intel_floor.into(),
        amdFloor: entry.amd_floor.into(),
    }
}

impl Both {
    fn crowd(bonds: &[u128]) -> Self {
        let world = World::crowd(bonds);
        let model = Collateral::new(world.model.set.clone(), 5);
        Self { world, model }
    }

    fn agree<T>(told: Result<(), Bytes>, modelled: Result<T, Revert>) -> Result<T, Revert> {
        match (told, modelled) {
            (Ok(()), Ok(done)) => Ok(done),
            (Err(why), Err(refusal)) => {
                assert_eq!(
                    why[..],
                    keccak256(format!("{refusal:?}()"))[..4],
                    "the contract has another reason than {refusal:?}"
                );
                Err(refusal)
            }
            (told, modelled) => panic!("contract {told:?}, model {:?}", modelled.map(|_| ())),
        }
    }

    /// Runs a round with these answers, and settles it.
    fn round(&mut self, votes: &[Option<Vote>]) -> Result<u64, Revert> {
        let at = self.world.at.collateral;
        let told = self.world.tell(1, at, &C::openCall {});
        let number = Self::agree(told, self.model.open(self.world.now()))?;
        let voters = (1u64..).zip(votes).filter_map(|(id, vote)| vote.map(|vote| (id, vote)));
        let mut openings = Vec::new();
        for (id, vote) in voters {
            let (answer, kind, value) = match vote {
                Vote::For(entry) => (entry.value(), 1, self.world.ask(at, &C::valueOfCall { entry: told_of(entry) })),
                Vote::Failed => (Answer::Failed, 2, B256::ZERO),
                Vote::Abstain => (Answer::Abstain, 3, B256::ZERO),
            };
            let opening = C::commitmentOfCall { round: number, validatorId: id, answer: kind, value, salt: B256::ZERO };
            let commitment = self.world.ask(at, &opening);
            let told = self.world.tell(id, at, &C::commitCall { round: number, validatorId: id, commitment });
            let what = Commitment { author: (number, id), answer, salt: 0 };
            Self::agree(told, self.model.commit(id, number, id, what, self.world.now()))?;
            openings.push((what, opening));
        }
        self.world.wait(3 * HOUR);
        for (what, opening) in openings {
            let (id, salt) = (what.author.1, opening.salt);
            let call =
                C::revealCall { round: number, validatorId: id, answer: opening.answer, value: opening.value, salt };
            let told = self.world.tell(id, at, &call);
            Self::agree(told, self.model.reveal(id, what, self.world.now()))?;
        }
        self.world.wait(2 * HOUR);
        let told = self.world.tell(1, at, &C::finishCall { round: number });
        Self::agree(told, self.model.finish(number, self.world.now()))?;
        let told = self.world.tell(1, at, &C::settleCall { round: number, ids: everybody() });
        Self::agree(told, self.model.settle(number, &everybody()))?;
        Ok(number)
    }

    fn post(&mut self, round: u64, entry: Entry) -> Result<(), Revert> {
        let told = self.world.tell(1, self.world.at.collateral, &C::postCall { round, entry: told_of(entry) });
        Self::agree(told, self.model.post(round, entry, self.world.now()))
    }

    /// Asserts that the contract's state equals the model's, and that bonds changed only as in the model.
    fn compare(&self) {
        let at = self.world.at.collateral;
        let current = self.world.ask(at, &C::currentCall {});
        let held = self.model.current;
        let expected = told_of(held.map_or(entry(0, 0, 0), |held| held.entry));
        assert_eq!(
            (current.bundle, current.intelFloor, current.amdFloor),
            (expected.bundle, expected.intelFloor, expected.amdFloor)
        );
        assert_eq!(self.world.ask(at, &C::currentRoundCall {}), held.map_or(0, |held| held.round));
        for (number, round) in &self.model.rounds {
            let shown = self.world.ask(at, &C::roundOfCall { round: *number });
            let outcome = match round.outcome {
                Outcome::Open => 0,
                Outcome::Approved => 1,
                Outcome::Rejected => 2,
                Outcome::NoQuorum => 3,
            };
            assert_eq!(shown.outcome, outcome, "round {number}");
            assert_eq!(shown.right.is_zero(), round.right.is_none(), "round {number}");
        }
        for (id, validator) in &self.model.set.validators {
            let call = openrelay_chain::voting::validators::ValidatorSet::getCall { validatorId: *id };
            let bond: u128 = self.world.ask(self.world.at.validators, &call).bond.to();
            assert_eq!(bond, validator.bond, "validator {id}");
        }
    }
}

fn votes(honest: Option<Vote>, rivals: Option<Vote>) -> [Option<Vote>; 7] {
    [honest, honest, honest, honest, honest, rivals, rivals]
}

fn any_vote() -> impl Strategy<Value = Option<Vote>> {
    let good = || Vote::For(entry(1, 5, 5));
    prop_oneof![
        8 => Just(Some(good())),
        2 => (1u16..=2, 4u16..=6, 5u16..=6).prop_map(|(b, i, a)| Some(Vote::For(entry(b, i, a)))),
        1 => Just(Some(Vote::Failed)),
        1 => Just(Some(Vote::Abstain)),
        2 => Just(None),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: sequences() / 4, failure_persistence: None, ..ProptestConfig::default()
    })]

    /// Rounds with random answers, random days between them, and random entries posted for random rounds: contract
    /// and model agree.
    #[test]
    fn collateral_matches_its_model(
        first in any::<bool>(),
        rounds in prop::collection::vec(
            (prop::array::uniform7(any_vote()), 0u64..60, prop::collection::vec((0u64..5, 0u16..3, 3u16..7), 0..4)),
            1..5,
        ),
    ) {
        let mut both = Both::crowd(&SPLIT);
        if first {
            let round = both.round(&votes(Some(Vote::For(entry(1, 4, 5))), Some(Vote::For(entry(1, 4, 5))))).unwrap();
            both.post(round, entry(1, 4, 5)).unwrap();
        }
        for (votes, quarters, posts) in rounds {
            both.world.wait(6 * HOUR + quarters * 6 * HOUR * u64::from(quarters > 8));
            let round = both.round(&votes).unwrap();
            let _ = both.post(round, entry(1, 5, 5));
            for (back, bundle, floor) in posts {
                let _ = both.post(round.saturating_sub(back), entry(bundle, floor, 5));
            }
        }
        both.compare();
    }
}

#[test]
fn collateral_is_renewed_while_34_percent_are_silent_abstain_or_name_nonsense() {
    let rivals = [None, Some(Vote::Abstain), Some(Vote::Failed), Some(Vote::For(entry(666, 5, 5)))];
    for rival in rivals {
        let mut both = Both::crowd(&SPLIT);
        let old = entry(1, 5, 5);
        let round = both.round(&votes(Some(Vote::For(old)), Some(Vote::For(old)))).unwrap();
        both.post(round, old).unwrap();
        let new = entry(2, 6, 5);
        for (days, renewed) in [(1, false), (12, false), (1, true)] {
            both.world.wait(days * DAY);
            let round = both.round(&votes(Some(Vote::For(new)), rival)).unwrap();
            assert_eq!(both.model.rounds[&round].outcome, Outcome::NoQuorum);
            assert_eq!(both.post(round, new).is_ok(), renewed, "{rival:?}");
        }
        assert_eq!(both.model.current.unwrap().entry, entry(2, 5, 5), "a majority must not raise a floor");
        assert!(
            both.model.set.validators.values().zip(SPLIT).all(|(one, bond)| one.bond == bond),
            "the answers of 34 % must cost nothing"
        );
        both.compare();
    }
}

/// Mutants: half of the weight renews; recent collateral is renewed; an old round renews; a majority posts the first
/// entry.
#[test]
fn renewal_needs_more_than_half_old_collateral_and_a_new_round() {
    let (old, new) = (entry(1, 5, 5), entry(2, 5, 5));
    let mut both = Both::crowd(&[1_000; 10]);
    let answers = |yes: usize| {
        let mut all = [None; 10];
        all[..yes].fill(Some(Vote::For(new)));
        all
    };
    let round = both.round(&answers(6)).unwrap();
    assert_eq!(both.post(round, new), Err(Revert::NotApproved), "the first entry needs two thirds");
    both.world.wait(6 * HOUR);
    let round = both.round(&[Some(Vote::For(old)); 10]).unwrap();
    both.post(round, old).unwrap();
    both.world.wait(13 * DAY);
    let early = both.round(&answers(6)).unwrap();
    assert_eq!(both.post(early, new), Err(Revert::NotApproved), "the collateral is not old enough");
    both.world.wait(2 * DAY);
    assert_eq!(both.post(early, new), Err(Revert::NotApproved), "the round is too old");
    let half = both.round(&answers(5)).unwrap();
    assert_eq!(both.post(half, new), Err(Revert::NotApproved), "half is not more than half");
    both.world.wait(6 * HOUR);
    let round = both.round(&answers(6)).unwrap();
    assert_eq!(both.post(round, old), Err(Revert::NotApproved), "no validator named this entry");
    both.post(round, new).unwrap();
    assert_eq!(both.post(round, new), Err(Revert::NotApproved), "an entry is posted only once");
    both.compare();
}

#[test]
fn renewal_never_lowers_floors() {
    let mut both = Both::crowd(&SPLIT);
    let (old, lower) = (entry(1, 5, 5), entry(2, 4, 5));
    let round = both.round(&votes(Some(Vote::For(old)), Some(Vote::For(old)))).unwrap();
    both.post(round, old).unwrap();
    both.world.wait(14 * DAY);
    let round = both.round(&votes(Some(Vote::For(lower)), None)).unwrap();
    assert_eq!(both.post(round, lower), Err(Revert::FloorFalls));
    both.compare();
}
