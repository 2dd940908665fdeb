//! What more than a third and less than two thirds of the weight can do, and what that costs.

use crate::model::Revert;
use crate::model::rounds::{Answer, Outcome, Price};
use openrelay_ledger::chain::voted::State;

use crate::world::{DAY, HOUR, World, cold, everybody};

const YES: Option<Answer> = Some(Answer::Value(1));
const OTHER: Option<Answer> = Some(Answer::Value(2));
const FAILED: Option<Answer> = Some(Answer::Failed);
const ABSTAIN: Option<Answer> = Some(Answer::Abstain);
/// Five families with 66 % of the weight, and two with 34 %.
const SPLIT: [u128; 7] = [13_200, 13_200, 13_200, 13_200, 13_200, 17_000, 17_000];

fn split(honest: Option<Answer>, rivals: [Option<Answer>; 2]) -> [Option<Answer>; 7] {
    [honest, honest, honest, honest, honest, rivals[0], rivals[1]]
}

fn bond(world: &World, id: u64) -> u128 {
    world.model.set.validators[&id].bond
}

fn price(world: &World, round: u64) -> (Outcome, Price) {
    let round = &world.model.images[&round].round;
    (round.outcome, round.price)
}

/// Runs rounds of successive versions in which the rivals give these answers. Returns what validator 6 has lost after
/// each.
fn losses(world: &mut World, rivals: &[[Option<Answer>; 2]]) -> Vec<u128> {
    let begin = bond(world, 6);
    let mut all = Vec::new();
    for answers in rivals {
        let version = world.model.images.len() as u64 + 1;
        let round = world.round(1, version, &split(YES, *answers));
        world.settle(round, &everybody()).unwrap();
        all.push(begin - bond(world, 6));
    }
    world.compare();
    all
}

#[test]
fn false_failure_of_34_percent_costs_its_voters_and_the_next_round_approves() {
    let mut world = World::crowd(&SPLIT);
    let round = world.round(1, 1, &split(YES, [FAILED; 2]));
    assert_eq!(price(&world, round), (Outcome::NoQuorum, Price::Wrong));
    assert_eq!(world.model.set.credits[&1], 100, "the proposer gets its deposit back");
    world.settle(round, &everybody()).unwrap();
    assert_eq!((bond(&world, 6), bond(&world, 7)), (16_490, 16_490), "a false failure costs 3 %");
    assert_eq!(bond(&world, 1), 13_200);
    world.wait(DAY);
    let next = world.round(1, 1, &split(YES, [FAILED; 2]));
    assert_eq!(world.state(next), State::ApprovedPending, "their remaining weight is below a third");
    world.compare();
}

/// Mutant: half of the weight is enough to charge others.
#[test]
fn exactly_half_agrees_on_nothing_and_more_than_half_does() {
    for (bonds, outcome) in [([1_000; 10], Outcome::Rejected), ([1_001; 10], Outcome::NoQuorum)] {
        let mut bonds = bonds;
        bonds[5..].fill(1_000);
        let mut world = World::crowd(&bonds);
        let mut answers = [FAILED; 10];
        answers[..5].fill(YES);
        let round = world.round(1, 1, &answers);
        assert_eq!(world.model.images[&round].round.outcome, outcome);
        assert_eq!(world.model.set.credits.contains_key(&1), outcome == Outcome::NoQuorum, "the deposit");
        world.settle(round, &everybody()).unwrap();
        let lost = 1_000 - bond(&world, 6);
        assert_eq!(lost, if outcome == Outcome::NoQuorum { 30 } else { 0 });
        world.compare();
    }
}

/// Two values of similar weight leave open which one is false. A different answer then costs as much as silence.
#[test]
fn common_wrong_value_of_34_percent_costs_as_much_as_silence_and_no_deposit() {
    let mut world = World::crowd(&SPLIT);
    let round = world.round(1, 1, &split(YES, [OTHER; 2]));
    assert_eq!(price(&world, round), (Outcome::NoQuorum, Price::Idle));
    assert_eq!(world.model.set.credits[&1], 100);
    world.settle(round, &everybody()).unwrap();
    assert_eq!(bond(&world, 6), 17_000 - 8, "0.05 %");
    world.compare();
}

/// Mutant: `>` instead of `>=` where two thirds of the named weight agree.
#[test]
fn wrong_values_cost_more_from_two_thirds_of_the_named_weight_on() {
    // A weight of 9,000 names a value, or of 9,001, and 6,000 of it names this one. A weight of 1,000 votes "failed".
    for (last, expected) in [(1_000, Price::Wrong), (1_001, Price::Idle)] {
        let mut world = World::crowd(&[1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, last, 1_000]);
        let round = world.round(1, 1, &[YES, YES, YES, YES, YES, YES, OTHER, OTHER, OTHER, FAILED]);
        assert_eq!(price(&world, round), (Outcome::NoQuorum, expected));
        world.compare();
    }
}

/// Mutant: a price that does not rise, or that rises without bound.
#[test]
fn silence_costs_more_each_time_up_to_a_bound_and_an_answer_ends_the_row() {
    let mut world = World::crowd(&SPLIT.map(|bond| bond * 1_000));
    let silent = losses(&mut world, &[[None; 2]; 12]);
    let mut bond = 17_000_000u128;
    for (turn, lost) in (1u128..).zip(&silent) {
        bond -= bond * 5 * turn.min(10) / 10_000;
        assert_eq!(17_000_000 - lost, bond, "round {turn}");
    }
    let answered = losses(&mut world, &[[YES; 2], [None; 2]]);
    assert_eq!(answered, [0, bond * 5 / 10_000], "the price starts again at 0.05 %");
}

/// Mutant: the first abstention has a price, or no abstention has one.
#[test]
fn first_abstention_is_free_and_each_further_one_in_a_row_costs_more() {
    let mut world = World::crowd(&SPLIT.map(|bond| bond * 1_000));
    let lost = losses(&mut world, &[[ABSTAIN; 2]; 3]);
    assert_eq!(lost, [0, 8_500, 8_500 + 16_991]);
    assert_eq!(losses(&mut world, &[[YES; 2], [ABSTAIN; 2], [ABSTAIN; 2]])[..2], [0, 0], "an answer ends the row");
}

#[test]
fn abstaining_costs_nothing_where_nobody_could_build() {
    let mut world = World::crowd(&SPLIT);
    for version in 1..=3 {
        let round = world.round(1, version, &[ABSTAIN; 7]);
        world.settle(round, &everybody()).unwrap();
    }
    assert!((1..=7).all(|id| bond(&world, id) == SPLIT[id as usize - 1]));
    // A failure that more than half report is real, so it costs nothing.
    let round = world.round(1, 9, &split(FAILED, [YES; 2]));
    assert_eq!(price(&world, round), (Outcome::Rejected, Price::None));
    world.settle(round, &everybody()).unwrap();
    assert!((1..=7).all(|id| bond(&world, id) == SPLIT[id as usize - 1]));
    world.compare();
}

/// Mutant: a value of too few families charges others.
#[test]
fn value_of_fewer_than_five_families_charges_nobody() {
    let mut world = World::crowd(&[2_000, 2_000, 2_000, 2_000, 2_000, 2_000]);
    let round = world.round(1, 1, &[YES, YES, YES, YES, FAILED, FAILED]);
    assert_eq!(price(&world, round), (Outcome::NoQuorum, Price::None), "two thirds, but four families");
    world.settle(round, &everybody()).unwrap();
    assert_eq!(bond(&world, 6), 2_000);
}

/// Mutant: the price of a failure stays lost when the majority was wrong.
#[test]
fn price_of_a_failure_is_refunded_on_another_approval_or_revocation() {
    for revoked in [true, false] {
        let mut world = World::crowd(&SPLIT);
        let round = world.round(1, 1, &split(YES, [FAILED; 2]));
        world.settle(round, &everybody()).unwrap();
        assert_eq!(world.decide(round, 6), Err(Revert::WrongPhase));
        world.wait(DAY);
        let value = if revoked { 1 } else { 2 };
        let urgent = world.propose(1, 1, value, true).unwrap();
        for id in 1..=7 {
            world.commit(None, urgent, id, Answer::Value(value)).unwrap();
        }
        world.await_reveals(urgent);
        world.open(1, urgent, value).unwrap();
        for id in 1..=7 {
            world.reveal(None, urgent, id, true).unwrap();
        }
        assert_eq!(world.end(urgent), Outcome::Approved);
        if revoked {
            assert_eq!(world.decide(round, 6), Err(Revert::WrongPhase), "the same value was approved");
            for id in 1..=5 {
                world.accuse(None, urgent, id).unwrap();
            }
        }
        let before = world.model.set.credits.get(&cold(6)).copied().unwrap_or(0);
        world.decide(round, 6).unwrap();
        assert_eq!(world.model.set.credits[&cold(6)] - before, 510);
        world.compare();
    }
}

/// Mutant: a round's right answer stands although its version already has an image.
#[test]
fn round_that_ends_second_charges_nobody() {
    for (order, expected) in [([0, 1], Price::None), ([1, 0], Price::Wrong)] {
        let mut world = World::crowd(&SPLIT);
        let rounds = [1, 2].map(|proposer| world.propose(proposer, 1, 1, false).unwrap());
        for id in 1..=7 {
            world.commit(None, rounds[0], id, Answer::Value(1)).unwrap();
            world.commit(None, rounds[1], id, if id > 5 { Answer::Failed } else { Answer::Value(1) }).unwrap();
        }
        world.await_reveals(rounds[1]);
        for (round, proposer) in rounds.into_iter().zip([1, 2]) {
            world.open(proposer, round, 1).unwrap();
            for id in 1..=7 {
                world.reveal(None, round, id, true).unwrap();
            }
        }
        for which in order {
            world.end(rounds[which]);
        }
        assert_eq!(price(&world, rounds[1]), (Outcome::NoQuorum, expected), "{order:?}");
        world.compare();
    }
}

/// Mutants: four fifths in an emergency; a reveal period of only six hours.
#[test]
fn emergency_takes_hours_and_two_thirds_and_waits_for_late_reveals() {
    let yes = Answer::Value(1);
    for (voters, outcome) in [(8, Outcome::Approved), (7, Outcome::NoQuorum)] {
        let mut world = World::crowd(&[1_000; 12]);
        world.propose(1, 1, 1, true).unwrap();
        for id in 1..=voters {
            world.commit(None, 1, id, yes).unwrap();
        }
        world.wait(6 * HOUR);
        world.open(1, 1, 1).unwrap();
        for id in 1..=7 {
            world.reveal(None, 1, id, true).unwrap();
        }
        world.wait(6 * HOUR);
        assert_eq!(world.finish(1), Err(Revert::WrongPhase), "less than two thirds have revealed");
        if voters == 8 {
            world.reveal(None, 1, 8, true).unwrap();
        }
        world.wait(6 * HOUR);
        world.finish(1).unwrap();
        assert_eq!(world.model.images[&1].round.outcome, outcome);
        world.compare();
    }
}

#[test]
fn fifth_of_the_weight_cannot_stop_an_emergency() {
    let mut world = World::crowd(&[1_320, 1_320, 1_320, 1_320, 1_320, 1_320, 2_050]);
    let round = world.propose(1, 1, 1, true).unwrap();
    for id in 1..=7 {
        world.commit(None, round, id, if id == 7 { Answer::Abstain } else { Answer::Value(1) }).unwrap();
    }
    world.await_reveals(round);
    world.open(1, round, 1).unwrap();
    for id in 1..=7 {
        world.reveal(None, round, id, true).unwrap();
    }
    assert_eq!(world.end(round), Outcome::Approved);
    world.compare();
}
