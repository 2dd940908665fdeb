//! Tests the validators' voting contracts against their reference model, and what each party may do.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::cast_possible_truncation,
    reason = "a test that cannot go on must stop, and its numbers are small"
)]

mod collateral;
mod contracts;
#[path = "../model/mod.rs"]
mod model;
mod shares;
mod world;

use model::Revert;
use model::rounds::{Answer, Outcome};
use openrelay_ledger::chain::voted::State;
use proptest::prelude::*;
use world::{DAY, HOUR, World, cold, everybody};

/// A call that anybody may try. Numbers of validators, rounds and motions may exceed the existing ones.
#[derive(Clone, Debug)]
enum Step {
    Join {
        who: u64,
        family: u64,
        amount: u128,
    },
    TopUp {
        id: u64,
        amount: u128,
    },
    SetOperator {
        caller: u64,
        id: u64,
        operator: u64,
    },
    TakeOver {
        caller: u64,
        id: u64,
    },
    Unbond {
        caller: u64,
        id: u64,
    },
    Withdraw {
        id: u64,
    },
    Claim {
        who: u64,
    },
    Fund {
        amount: u128,
    },
    Propose {
        who: u64,
        version: u64,
        value: u64,
        emergency: bool,
    },
    Open {
        who: u64,
        round: u64,
        value: u64,
    },
    Commit {
        caller: Option<u64>,
        round: u64,
        id: u64,
        answer: Answer,
    },
    /// Commits another validator's commitment.
    Copy {
        round: u64,
        id: u64,
        of: u64,
    },
    Reveal {
        caller: Option<u64>,
        round: u64,
        id: u64,
        honest: bool,
    },
    ReportSalt {
        who: u64,
        round: u64,
        id: u64,
        honest: bool,
    },
    Equivocate {
        who: u64,
        round: u64,
        id: u64,
        said: [(Answer, bool); 2],
        forged: bool,
    },
    Finish {
        round: u64,
    },
    Settle {
        round: u64,
        id: u64,
    },
    SettleAll {
        round: u64,
    },
    Decide {
        round: u64,
        id: u64,
    },
    Accuse {
        caller: Option<u64>,
        round: u64,
        id: u64,
    },
    SettleMotion {
        round: u64,
        number: u64,
        id: u64,
    },
    Wait {
        seconds: u64,
    },
    /// Runs a round with these answers up to a part, so that states that are rare by chance also occur.
    Campaign {
        who: u64,
        version: u64,
        emergency: bool,
        answers: [Option<Answer>; 7],
        parts: u8,
    },
    AccuseMany {
        round: u64,
        voters: [bool; 7],
    },
    SettleMotions {
        round: u64,
    },
    /// Waits for the next moment at which a round changes, exactly or one second short of it.
    WaitFor {
        round: u64,
        short: bool,
    },
}

fn any_answer() -> impl Strategy<Value = Answer> {
    prop_oneof![5 => (1u64..=2).prop_map(Answer::Value), 1 => Just(Answer::Failed), 1 => Just(Answer::Abstain)]
}

fn mostly_right() -> impl Strategy<Value = Answer> {
    prop_oneof![6 => Just(Answer::Value(1)), 1 => any_answer()]
}

fn any_step() -> impl Strategy<Value = Step> {
    let who = || 1u64..=6;
    let id = || 1u64..=7;
    let round = || 1u64..=4;
    let caller = || prop_oneof![9 => Just(None), 1 => (1u64..=6).prop_map(Some)];
    let bond = || prop_oneof![4 => Just(1_000u128), 3 => 900u128..3_000, 1 => 3_000u128..40_000];
    let waits = prop::sample::select(vec![10, HOUR, 6 * HOUR, DAY, 3 * DAY, 14 * DAY, 31 * DAY]);
    prop_oneof![
        3 => (who(), who(), bond()).prop_map(|(who, family, amount)| Step::Join { who, family, amount }),
        1 => (id(), 1u128..2_000).prop_map(|(id, amount)| Step::TopUp { id, amount }),
        1 => (who(), id(), 1u64..=9).prop_map(|(caller, id, operator)| Step::SetOperator { caller, id, operator }),
        1 => (1u64..=9, id()).prop_map(|(caller, id)| Step::TakeOver { caller, id }),
        1 => (who(), id()).prop_map(|(caller, id)| Step::Unbond { caller, id }),
        2 => id().prop_map(|id| Step::Withdraw { id }),
        1 => who().prop_map(|who| Step::Claim { who }),
        1 => (1u128..5_000).prop_map(|amount| Step::Fund { amount }),
        3 => (who(), 1u64..=3, 1u64..=2, prop::bool::weighted(0.4))
            .prop_map(|(who, version, value, emergency)| Step::Propose { who, version, value, emergency }),
        5 => (who(), round(), 1u64..=2).prop_map(|(who, round, value)| Step::Open { who, round, value }),
        2 => (caller(), round(), id(), any_answer())
            .prop_map(|(caller, round, id, answer)| Step::Commit { caller, round, id, answer }),
        1 => (round(), id(), id()).prop_map(|(round, id, of)| Step::Copy { round, id, of }),
        8 => (
            who(),
            1u64..=3,
            prop::bool::weighted(0.2),
            prop::array::uniform7(prop::option::weighted(0.9, mostly_right())),
            1u8..=6,
        )
            .prop_map(|(who, version, emergency, answers, parts)| {
                Step::Campaign { who, version, emergency, answers, parts }
            }),
        4 => (round(), prop::array::uniform7(any::<bool>()))
            .prop_map(|(round, voters)| Step::AccuseMany { round, voters }),
        1 => round().prop_map(|round| Step::SettleMotions { round }),
        2 => (caller(), round(), id(), prop::bool::weighted(0.8))
            .prop_map(|(caller, round, id, honest)| Step::Reveal { caller, round, id, honest }),
        1 => (who(), round(), id(), any::<bool>())
            .prop_map(|(who, round, id, honest)| Step::ReportSalt { who, round, id, honest }),
        2 => (who(), round(), id(), any_answer(), any::<bool>(), any_answer(), any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(who, round, id, a, sa, b, sb, forged)| {
                Step::Equivocate { who, round, id, said: [(a, sa), (b, sb)], forged }
            }),
        4 => round().prop_map(|round| Step::Finish { round }),
        1 => (round(), id()).prop_map(|(round, id)| Step::Settle { round, id }),
        3 => round().prop_map(|round| Step::SettleAll { round }),
        2 => (round(), id()).prop_map(|(round, id)| Step::Decide { round, id }),
        4 => (caller(), round(), id()).prop_map(|(caller, round, id)| Step::Accuse { caller, round, id }),
        2 => (round(), 0u64..2, id()).prop_map(|(round, number, id)| Step::SettleMotion { round, number, id }),
        3 => waits.prop_map(|seconds| Step::Wait { seconds }),
        8 => (round(), prop::bool::weighted(0.2)).prop_map(|(round, short)| Step::WaitFor { round, short }),
    ]
}

fn play(world: &mut World, step: Step) {
    match step {
        Step::Join { who, family, amount } => _ = world.join(who, family, amount),
        Step::TopUp { id, amount } => _ = world.top_up(id, amount),
        Step::SetOperator { caller, id, operator } => _ = world.set_operator(cold(caller), id, operator),
        Step::TakeOver { caller, id } => _ = world.take_over(caller, id),
        Step::Unbond { caller, id } => _ = world.unbond(caller, id),
        Step::Withdraw { id } => _ = world.withdraw(id),
        Step::Claim { who } => world.claim(cold(who)),
        Step::Fund { amount } => world.fund(amount),
        Step::Propose { who, version, value, emergency } => _ = world.propose(who, version, value, emergency),
        Step::Open { who, round, value } => _ = world.open(who, round, value),
        Step::Commit { caller, round, id, answer } => _ = world.commit(caller, round, id, answer),
        Step::Copy { round, id, of } => _ = world.copy(round, id, of),
        Step::Campaign { who, version, emergency, answers, parts } => {
            world.campaign(who, version, emergency, &answers, parts)
        }
        Step::AccuseMany { round, voters } => {
            for (id, _) in (1u64..).zip(voters).filter(|(_, votes)| *votes) {
                let _ = world.accuse(None, round, id);
            }
        }
        Step::SettleMotions { round } => {
            for number in 0..3 {
                let _ = world.settle_motion(round, number, &everybody());
            }
        }
        Step::Reveal { caller, round, id, honest } => _ = world.reveal(caller, round, id, honest),
        Step::ReportSalt { who, round, id, honest } => _ = world.report_salt(cold(who), round, id, honest),
        Step::Equivocate { who, round, id, said, forged } => _ = world.equivocate(cold(who), round, id, said, forged),
        Step::Finish { round } => _ = world.finish(round),
        Step::Settle { round, id } => _ = world.settle(round, &[id]),
        Step::SettleAll { round } => _ = world.settle(round, &everybody()),
        Step::Decide { round, id } => _ = world.decide(round, id),
        Step::Accuse { caller, round, id } => _ = world.accuse(caller, round, id),
        Step::SettleMotion { round, number, id } => _ = world.settle_motion(round, number as usize, &[id]),
        Step::Wait { seconds } => world.wait(seconds),
        Step::WaitFor { round, short } => world.wait_for(round, short),
    }
}

/// Returns the number of random sequences: a few by default, or the number that `./x test` sets.
pub(crate) fn sequences() -> u32 {
    std::env::var("OPENRELAY_SEQUENCES").ok().and_then(|count| count.parse().ok()).unwrap_or(200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: sequences(), failure_persistence: None, ..ProptestConfig::default() })]

    /// Random calls in random order. The contracts allow exactly what the model allows and refuse with the same
    /// error. Every bond, lock, credit and state equals the model's, and no token is created or lost.
    #[test]
    fn votes_match_their_model(
        crowd in prop::sample::select(vec![0u64, 4, 5, 6, 7]),
        steps in prop::collection::vec(any_step(), 1..40),
    ) {
        let mut world = World::new();
        for party in 1..=crowd {
            world.join(party, party, 1_000).unwrap();
        }
        for step in steps {
            play(&mut world, step);
        }
        world.compare();
    }
}

#[test]
fn five_families_approve_and_the_image_passes_through_its_states() {
    let mut world = World::crowd(&[1_000; 5]);
    world.fund(5_000);
    let round = world.round(1, 1, &[Some(Answer::Value(1)); 5]);
    assert_eq!(world.state(round), State::ApprovedPending);
    world.settle(round, &everybody()).unwrap();
    assert_eq!(world.model.set.credits[&cold(1)], 100, "one tenth of the pot is shared by five");
    assert_eq!(world.model.set.credits[&1], 100, "the deposit");
    world.wait(DAY);
    assert_eq!(world.state(round), State::Active);
    let newer = world.round(2, 2, &[Some(Answer::Value(2)); 5]);
    assert_eq!(world.state(round), State::Active, "the older image stays active until the newer one is usable");
    world.wait(DAY);
    assert_eq!((world.state(round), world.state(newer)), (State::Deprecated, State::Active));
    world.wait(14 * DAY);
    assert_eq!((world.state(round), world.state(newer)), (State::Retired, State::Active));
    assert_eq!(world.propose(3, 2, 2, false), Err(Revert::NotNow), "an approved version cannot be proposed again");
    world.compare();
}

/// Mutant: `>` instead of `>=` where two thirds approve.
#[test]
fn exactly_two_thirds_approve_and_one_unit_less_does_not() {
    let yes = Some(Answer::Value(1));
    let mut world = World::crowd(&[1_000; 9]);
    let round = world.round(1, 1, &[yes; 6]);
    assert_eq!(world.state(round), State::ApprovedPending);
    let mut world = World::crowd(&[1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_001]);
    let round = world.round(1, 1, &[yes; 6]);
    assert_eq!(world.state(round), State::NoQuorum);
}

/// Mutant: `>=` instead of `>` where more than a third rejects.
#[test]
fn exactly_a_third_cannot_stop_an_approval_and_more_rejects() {
    let (yes, no, failed) = (Some(Answer::Value(1)), Some(Answer::Value(2)), Some(Answer::Failed));
    let mut world = World::crowd(&[1_000; 9]);
    let round = world.round(1, 1, &[yes, yes, yes, yes, None, None, no, no, no]);
    assert_eq!(world.state(round), State::NoQuorum, "a third is not more than a third");
    let round = world.round(1, 2, &[yes, yes, yes, yes, yes, yes, no, no, no]);
    assert_eq!(world.state(round), State::ApprovedPending, "a third cannot stop it");
    let mut world = World::crowd(&[1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_000, 1_001]);
    let round = world.round(1, 1, &[yes, yes, yes, yes, None, None, no, no, no]);
    assert_eq!(world.state(round), State::Rejected);
    let round = world.round(1, 2, &[yes, yes, yes, yes, None, None, failed, failed, failed]);
    assert_eq!(world.state(round), State::Rejected, "failures count as one answer");
}

/// Mutants: current stake instead of the snapshot; weight read at the reveal.
#[test]
fn bond_added_after_the_proposal_has_no_weight() {
    let mut world = World::crowd(&[1_000; 9]);
    world.propose(1, 1, 1, false).unwrap();
    world.top_up(9, 50_000).unwrap();
    let late = world.join(10, 10, 90_000).unwrap();
    for id in [1, 2, 3, 4, 5, 6, late] {
        world.commit(None, 1, id, Answer::Value(1)).unwrap();
    }
    world.commit(None, 1, 9, Answer::Value(2)).unwrap();
    world.await_reveals(1);
    world.open(1, 1, 1).unwrap();
    for id in [1, 2, 3, 4, 5, 6, 9, late] {
        world.reveal(None, 1, id, true).unwrap();
    }
    assert_eq!(world.tally(1, Answer::Value(2)), 1_000);
    assert_eq!(world.end(1), Outcome::Approved);
    world.compare();
}

/// Mutant: a snapshot that includes the proposal's own block.
#[test]
fn bond_added_in_the_proposal_block_has_no_weight() {
    let mut world = World::crowd(&[1_000; 5]);
    world.propose_in_the_block_of_a_bond(1, 6, 900_000);
    assert_eq!(world.total(1), 5_000);
}

/// Mutant: a salt without its author. A commitment could then be copied unseen and revealed with what its author
/// reveals.
#[test]
fn copied_commitment_cannot_be_revealed() {
    let mut world = World::crowd(&[1_000; 5]);
    world.propose(1, 1, 1, false).unwrap();
    world.commit(None, 1, 1, Answer::Value(1)).unwrap();
    world.copy(1, 2, 1).unwrap();
    world.await_reveals(1);
    world.reveal(None, 1, 1, true).unwrap();
    assert_eq!(world.reveal_what_another_showed(1, 2), Err(Revert::WrongOpening));
}

/// Mutant: a vote that can be revealed twice.
#[test]
fn validator_is_counted_only_once() {
    let mut world = World::crowd(&[1_000; 5]);
    world.propose(1, 1, 1, false).unwrap();
    world.commit(None, 1, 1, Answer::Value(1)).unwrap();
    world.commit(None, 1, 1, Answer::Value(2)).unwrap();
    world.await_reveals(1);
    world.reveal(None, 1, 1, true).unwrap();
    assert_eq!(world.reveal_again(1, 1, Answer::Value(2)), Err(Revert::WrongMark));
    assert_eq!(world.tally(1, Answer::Value(2)), 1_000);
    assert_eq!(world.tally(1, Answer::Value(1)), 0);
}

/// Mutant: a round that closes before its reveals end.
#[test]
fn round_cannot_end_before_its_reveals_and_its_challenge() {
    let mut world = World::crowd(&[1_000; 5]);
    world.propose(1, 1, 1, false).unwrap();
    for id in 1..=5 {
        world.commit(None, 1, id, Answer::Value(1)).unwrap();
    }
    assert_eq!(world.finish(1), Err(Revert::WrongPhase));
    world.await_reveals(1);
    for id in 1..=4 {
        world.reveal(None, 1, id, true).unwrap();
    }
    assert_eq!(world.finish(1), Err(Revert::WrongPhase), "all but one have revealed");
    world.reveal(None, 1, 5, true).unwrap();
    world.open(1, 1, 1).unwrap();
    world.wait(DAY);
    assert_eq!(world.state(1), State::Challenge);
    assert_eq!(world.finish(1), Err(Revert::WrongPhase), "equivocation can still be reported");
    world.wait(3 * DAY);
    assert_eq!(world.finish(1), Ok(()));
}

/// Mutant: unbonding that ignores open commitments.
#[test]
fn validator_that_unbonds_after_committing_can_reveal_and_pays_for_a_wrong_value() {
    let mut world = World::crowd(&[1_000; 6]);
    world.propose(1, 1, 1, false).unwrap();
    for id in 1..=6 {
        world.commit(None, 1, id, if id == 6 { Answer::Value(2) } else { Answer::Value(1) }).unwrap();
    }
    world.unbond(6, 6).unwrap();
    world.await_reveals(1);
    world.open(1, 1, 1).unwrap();
    for id in 1..=6 {
        world.reveal(None, 1, id, true).unwrap();
    }
    assert_eq!(world.tally(1, Answer::Value(2)), 1_000, "unbonding after a commitment changes nothing");
    world.wait(22 * DAY);
    assert_eq!(world.withdraw(6), Err(Revert::Locked), "its commitment is open");
    world.finish(1).unwrap();
    world.settle(1, &everybody()).unwrap();
    world.withdraw(6).unwrap();
    assert_eq!(world.balance(cold(6)), 1_000 - 20, "a wrong value of a sixth of the weight costs 2 %");
    world.compare();
}

#[test]
fn family_weight_is_capped_and_new_members_need_admission() {
    // With twelve families the cap is 12.5 %. Here one family wants half.
    let mut world = World::crowd(&[1_000; 11]);
    world.join(12, 12, 6_000).unwrap();
    assert_eq!(world.join(13, 12, 5_000), Err(Revert::NotAllowed));
    world.admit(12, 13);
    world.join(13, 12, 5_000).unwrap();
    world.propose(1, 1, 1, false).unwrap();
    assert_eq!(world.total(1), 11_000 + 22_000 / 8);
    let yes: Vec<u64> = (1..=11).collect();
    for id in yes.iter().copied().chain([12, 13]) {
        world.commit(None, 1, id, if id > 11 { Answer::Value(2) } else { Answer::Value(1) }).unwrap();
    }
    world.await_reveals(1);
    world.open(1, 1, 1).unwrap();
    for id in 1..=13 {
        world.reveal(None, 1, id, true).unwrap();
    }
    assert_eq!(world.tally(1, Answer::Value(2)), 1_500 + 1_250);
    assert_eq!(world.end(1), Outcome::Approved);
}

#[test]
fn fewer_than_five_families_approve_nothing() {
    let mut world = World::new();
    for id in 1..=8 {
        world.admit(1 + id % 4, id);
        world.join(id, 1 + id % 4, 1_000).unwrap();
    }
    let round = world.round(1, 1, &[Some(Answer::Value(1)); 8]);
    assert_eq!(world.state(round), State::NoQuorum);
    assert_eq!(world.propose(1, 1, 1, false), Err(Revert::NotNow), "a version cannot be proposed again for a day");
    world.wait(DAY);
    world.propose(1, 1, 1, false).unwrap();
}

#[test]
fn equivocation_costs_the_whole_bond_and_removes_the_vote() {
    let mut world = World::crowd(&[1_000; 6]);
    let yes = Answer::Value(1);
    world.propose(1, 1, 1, false).unwrap();
    for id in 1..=6 {
        world.commit(None, 1, id, yes).unwrap();
    }
    world.await_reveals(1);
    world.open(1, 1, 1).unwrap();
    for id in 1..=6 {
        world.reveal(None, 1, id, true).unwrap();
    }
    let said = [(yes, false), (Answer::Value(2), true)];
    assert_eq!(world.equivocate(cold(9), 1, 6, said, true), Err(Revert::NotSigned), "the signature is a stranger's");
    assert_eq!(world.equivocate(cold(9), 1, 6, [(yes, false), (yes, true)], false), Err(Revert::BadAnswer));
    world.equivocate(cold(9), 1, 6, said, false).unwrap();
    assert_eq!(world.equivocate(cold(9), 1, 6, said, false), Err(Revert::WrongMark), "a report counts only once");
    assert_eq!((world.tally(1, yes), world.model.set.credits[&cold(9)]), (5_000, 50));
    assert_eq!(world.top_up(6, 500), Err(Revert::WrongStatus), "the validator can only leave");
    assert_eq!(world.end(1), Outcome::Approved);
    // A new hot key does not clear the old one.
    world.set_operator(cold(5), 5, 11).unwrap();
    world.take_over(11, 5).unwrap();
    world.equivocate(cold(9), 1, 5, [(yes, true), (Answer::Failed, true)], false).unwrap();
    assert_eq!(world.model.set.validators[&5].bond, 0);
    world.settle(1, &everybody()).unwrap();
    world.compare();
}

#[test]
fn penalties_match_the_table() {
    // Of seven validators four reveal, one commits without revealing, one is absent, and the salt of one is reported.
    let mut world = World::crowd(&[10_000; 7]);
    world.fund(1_000);
    world.propose(1, 1, 1, false).unwrap();
    for id in 1..=6 {
        world.commit(None, 1, id, Answer::Value(1)).unwrap();
    }
    assert_eq!(world.report_salt(cold(9), 1, 1, false), Err(Revert::WrongOpening));
    world.report_salt(cold(9), 1, 1, true).unwrap();
    assert_eq!(world.commit(None, 1, 1, Answer::Value(1)), Err(Revert::WrongMark), "a voided vote stays void");
    world.await_reveals(1);
    world.open(1, 1, 1).unwrap();
    for id in 2..=5 {
        world.reveal(None, 1, id, true).unwrap();
    }
    world.wait(DAY);
    assert_eq!(world.state(1), State::Reveal, "less than two thirds revealed, so reveals last one day longer");
    assert_eq!(world.end(1), Outcome::NoQuorum);
    world.settle(1, &everybody()).unwrap();
    world.settle(1, &everybody()).unwrap();
    let bonds: Vec<u128> = world.model.set.validators.values().map(|validator| validator.bond).collect();
    assert_eq!(bonds, [9_950, 10_000, 10_000, 10_000, 10_000, 9_950, 9_995], "no penalty applies twice");
    assert_eq!(world.model.set.credits[&cold(9)], 50);
    assert_eq!(world.model.set.pot, 1_000, "no reward is paid without a quorum");
    world.compare();
}

#[test]
fn penalty_for_a_wrong_value_is_refunded_when_the_image_is_revoked() {
    let (yes, no) = (Some(Answer::Value(1)), Some(Answer::Value(2)));
    let mut world = World::crowd(&[3_000; 9]);
    let round = world.round(1, 1, &[yes, yes, yes, yes, yes, yes, no, no, no]);
    world.settle(round, &everybody()).unwrap();
    assert_eq!(world.model.set.validators[&7].bond, 2_910, "a wrong value of a third of the weight costs 3 %");
    world.wait(2 * DAY);
    assert_eq!(world.decide(round, 7), Err(Revert::WrongPhase));
    for id in 3..=8 {
        world.accuse(None, round, id).unwrap();
    }
    assert_eq!(world.state(round), State::Revoked);
    world.decide(round, 7).unwrap();
    assert_eq!(world.model.set.credits[&cold(7)], 90);
    assert_eq!(world.decide(round, 7), Err(Revert::WrongMark));
    assert_eq!(world.accuse(None, round, 1), Err(Revert::WrongState), "a revoked image cannot be accused");
    world.settle_motion(round, 0, &everybody()).unwrap();
    assert!(world.model.set.validators.values().all(|validator| validator.locks == 0));
    world.compare();
}

#[test]
fn a_third_can_suspend_an_image_at_a_price_but_not_the_last_one() {
    let yes = Some(Answer::Value(1));
    let mut world = World::crowd(&[1_000; 6]);
    let old = world.round(1, 1, &[yes; 6]);
    world.settle(old, &everybody()).unwrap();
    world.wait(DAY);
    world.accuse(None, old, 1).unwrap();
    world.accuse(None, old, 2).unwrap();
    assert_eq!(world.state(old), State::Active, "the only usable image cannot be suspended");
    assert_eq!(world.accuse(None, old, 2), Err(Revert::WrongMark));
    world.wait(3 * DAY);
    world.settle_motion(old, 0, &everybody()).unwrap();
    assert_eq!(world.model.set.validators[&1].bond, 1_000, "a motion without effect costs nothing");
    let new = world.round(1, 2, &[yes; 6]);
    world.settle(new, &everybody()).unwrap();
    world.wait(DAY);
    world.accuse(None, new, 1).unwrap();
    assert_eq!(world.state(new), State::Active);
    world.accuse(None, new, 2).unwrap();
    assert_eq!((world.state(new), world.state(old)), (State::Suspended, State::Deprecated));
    world.accuse(None, old, 1).unwrap();
    world.accuse(None, old, 2).unwrap();
    assert_eq!(world.state(old), State::Deprecated, "a third cannot leave the network without an image");
    world.wait(3 * DAY);
    assert_eq!(world.state(new), State::Active);
    world.settle_motion(new, 0, &everybody()).unwrap();
    assert_eq!(world.model.set.validators[&1].bond, 990);
    world.compare();
}

#[test]
fn proposer_that_opens_nothing_or_a_wrong_value_loses_the_deposit() {
    let mut world = World::crowd(&[1_000; 5]);
    let yes = Some(Answer::Value(2));
    let round = world.round(1, 1, &[yes; 5]);
    assert_eq!(world.state(round), State::Rejected, "the proposer had proposed another value");
    assert!(!world.model.set.credits.contains_key(&cold(1)));
    world.propose(1, 1, 2, false).unwrap();
    assert_eq!(world.open(2, 2, 2), Err(Revert::WrongPhase));
    world.await_reveals(2);
    assert_eq!(world.open(2, 2, 2), Err(Revert::WrongProposal), "only the proposer can open a proposal");
    assert_eq!(world.open(1, 2, 1), Err(Revert::WrongProposal), "only the proposed value opens a proposal");
    assert_eq!(world.end(2), Outcome::NoQuorum);
    assert_eq!(world.model.set.burned, 200);
    world.compare();
}

#[test]
fn at_most_eight_rounds_are_open_besides_emergencies() {
    let mut world = World::crowd(&[1_000; 5]);
    for version in 1..=8 {
        world.propose(1, version, 1, false).unwrap();
        world.commit(None, version, 1, Answer::Value(1)).unwrap();
    }
    assert_eq!(world.propose(1, 9, 1, false), Err(Revert::TooManyRounds));
    let urgent = world.propose(1, 9, 1, true).unwrap();
    world.commit(None, urgent, 1, Answer::Value(1)).unwrap();
    world.wait(8 * DAY);
    world.finish(3).unwrap();
    let round = world.propose(1, 10, 1, false).unwrap();
    world.commit(None, round, 1, Answer::Value(1)).unwrap();
    world.compare();
}

/// Mutant: a validator without weight in a round can be reported in it, which marks the family that has its place
/// now.
#[test]
fn report_on_a_former_validator_does_not_affect_the_family_in_its_place() {
    let both = [(Answer::Value(1), true), (Answer::Value(2), true)];
    let mut world = World::crowd(&[1_000; 5]);
    world.join(6, 6, 1_000).unwrap();
    world.unbond(6, 6).unwrap();
    world.wait(21 * DAY);
    world.withdraw(6).unwrap();
    world.prune(6);
    world.join(7, 7, 1_000).unwrap();
    let yes = Answer::Value(1);
    // Five of six families are required, among them the first and the newest.
    let round = world.propose(1, 1, 1, false).unwrap();
    assert_eq!(
        world.equivocate(cold(9), round, 0, both, true),
        Err(Revert::NotSigned),
        "a stranger's validator ID is 0"
    );
    world.equivocate(cold(9), round, 6, both, false).unwrap();
    let voters = [1, 2, 3, 4, 7];
    for id in voters {
        world.commit(None, round, id, yes).unwrap();
    }
    world.await_reveals(round);
    world.open(1, round, 1).unwrap();
    for id in voters {
        world.reveal(None, round, id, true).unwrap();
    }
    assert_eq!(world.end(round), Outcome::Approved);
    world.compare();
}

#[test]
fn replaced_key_cannot_prove_equivocation_in_later_rounds() {
    let both = [(Answer::Value(1), true), (Answer::Value(2), true)];
    let mut world = World::crowd(&[1_000; 5]);
    let before = world.propose(1, 1, 1, false).unwrap();
    world.set_operator(cold(5), 5, 11).unwrap();
    world.take_over(11, 5).unwrap();
    let after = world.propose(1, 2, 1, false).unwrap();
    assert_eq!(
        world.equivocate(cold(9), after, 5, both, false),
        Err(Revert::NotSigned),
        "a thief of the key earns nothing"
    );
    world.equivocate(cold(9), before, 5, both, false).unwrap();
    assert_eq!(world.model.set.validators[&5].bond, 0, "what the key signed before is charged");
}

#[test]
fn validator_caught_before_committing_cannot_vote() {
    let both = [(Answer::Value(1), true), (Answer::Value(2), true)];
    let mut world = World::crowd(&[1_000; 5]);
    let round = world.propose(1, 1, 1, false).unwrap();
    world.equivocate(cold(9), round, 5, both, false).unwrap();
    assert_eq!(world.commit(None, round, 5, Answer::Value(1)), Err(Revert::WrongStatus));
    world.compare();
}

#[test]
fn validator_that_unbonds_before_committing_pays_nothing() {
    let mut world = World::crowd(&[10_000; 6]);
    world.propose(1, 1, 1, false).unwrap();
    world.unbond(6, 6).unwrap();
    world.end(1);
    world.settle(1, &everybody()).unwrap();
    let bonds: Vec<u128> = world.model.set.validators.values().map(|validator| validator.bond).collect();
    assert_eq!(bonds, [9_995, 9_995, 9_995, 9_995, 9_995, 10_000]);
    world.compare();
}

/// Filling the rounds with one release is not free, and rejected rounds earn nothing on balance.
#[test]
fn redundant_or_rejected_rounds_cost_more_than_they_earn() {
    let yes = Answer::Value(1);
    let mut world = World::crowd(&[1_000; 5]);
    world.fund(100_000);
    for round in 1..=3 {
        world.propose(round, 1, 1, false).unwrap();
        for id in 1..=5 {
            world.commit(None, round, id, yes).unwrap();
        }
    }
    world.await_reveals(3);
    for round in 1..=3 {
        if round < 3 {
            world.open(round, round, 1).unwrap();
        }
        for id in 1..=5 {
            world.reveal(None, round, id, true).unwrap();
        }
    }
    world.wait(5 * DAY);
    for round in 1..=3 {
        world.finish(round).unwrap();
    }
    let outcomes: Vec<Outcome> = world.model.images.values().map(|image| image.round.outcome).collect();
    assert_eq!(outcomes, [Outcome::Approved, Outcome::NoQuorum, Outcome::Rejected]);
    let earned: Vec<u128> = world.model.images.values().map(|image| image.round.earned).collect();
    assert_eq!(earned, [10_000, 0, 100]);
    assert_eq!((world.model.set.credits[&1], world.model.set.credits[&2]), (100, 50));
    assert!(!world.model.set.credits.contains_key(&3));
    world.compare();
}

/// A vote takes one slot, which settling frees, and at most 120,000 gas.
#[test]
fn vote_stays_within_its_budget_of_slots_and_gas() {
    let mut world = World::crowd(&[1_000; 6]);
    let yes = Answer::Value(1);
    world.propose(1, 1, 1, false).unwrap();
    world.commit(None, 1, 1, yes).unwrap();
    let before = world.slots();
    world.commit(None, 1, 2, yes).unwrap();
    let commit = world.gas;
    assert_eq!(world.slots() - before, 1);
    world.await_reveals(1);
    world.reveal(None, 1, 1, true).unwrap();
    let before = world.slots();
    world.reveal(None, 1, 2, true).unwrap();
    let reveal = world.gas;
    assert_eq!(world.slots(), before, "a reveal needs no further slot");
    println!("gas of a vote: commit {commit}, reveal {reveal}, in all {}", commit + reveal);
    assert!(commit + reveal <= 120_000, "{commit} + {reveal}");
    world.end(1);
    let before = world.slots();
    world.settle(1, &[1, 2]).unwrap();
    println!("gas of settling two: {}", world.gas);
    assert!(world.slots() < before, "settling frees the slots");
}
