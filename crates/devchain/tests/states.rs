//! Explores every state of a small network of validators against a rival with a third of the stake, or slightly more.
//! It checks that what must never happen does not, and that what must be possible does. Random sequences of calls
//! compare the contracts with the same model.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a test that cannot go on must stop, and prints the number of states"
)]

mod model;

use model::images::{Image, Images, Proposal};
use model::rounds::{Answer, Commitment, HOLD, Mark, Outcome};
use model::set::Status;
use model::{Party, Revert};
use openrelay_ledger::chain::voted::State;
use stateright::{Checker, Model, Property};

/// The value that the source gives, and one that it does not give.
const GOOD: u64 = 1;
const BAD: u64 = 2;
const ANSWERS: [Answer; 4] = [Answer::Value(GOOD), Answer::Value(BAD), Answer::Failed, Answer::Abstain];
const BOND: u128 = 10_000;
const DEPOSIT: u128 = 100;
/// An honest proposer, and the rival's.
const PROPOSER: Party = 50;
const RIVAL: Party = 51;
/// Reporter of faults.
const ANYBODY: Party = 60;

/// Honest validators, and a rival with a third of the stake or slightly more. The rival has the last number.
#[derive(Clone, Copy)]
struct Network {
    honest: u64,
    /// Whether the rival has slightly more than a third.
    more: bool,
    /// Whether the rival also proposes: the same version with a bad value, or another version with either value.
    proposes: bool,
    /// Number of the rival's motions against each image.
    accuses: usize,
    /// Whether the rival copies, equivocates, shows salts, leaves and adds to its bond.
    tricks: bool,
    /// What must occur in some state.
    possible: &'static [Possible],
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct World {
    images: Images,
    now: u64,
    /// Tokens that were paid in and not paid out.
    inside: u128,
    topped: bool,
    /// Whether an undecided penalty was decided.
    decided: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    Commit(u64, u64),
    Reveal(u64, u64),
    Open(u64),
    Finish(u64),
    Settle(u64),
    Decide(u64),
    SettleMotion(u64, usize),
    Propose(u64, u64),
    RivalCommit(u64, Answer),
    /// Commits to a copy of the first validator's commitment.
    RivalCopy(u64),
    /// Reveals what the rival committed to, or what the author of a copied commitment revealed.
    RivalReveal(u64),
    RivalEquivocates(u64),
    RivalShowsSalt(u64),
    RivalUnbonds,
    RivalWithdraws,
    RivalTopsUp,
    RivalAccuses(u64),
    /// Advances the time to the next moment at which something changes.
    Tick,
}

fn commitment(round: u64, id: u64, answer: Answer) -> Commitment {
    Commitment { author: (round, id), answer, salt: id }
}

impl Network {
    const fn rival(self) -> u64 {
        self.honest + 1
    }

    fn everybody(self) -> Vec<u64> {
        (1..=self.rival()).collect()
    }

    /// Returns what honest validators do before time passes: commit, reveal, open and finish. The contracts' promises
    /// assume that they do.
    fn owed(self, world: &World) -> Vec<Action> {
        let mut owed = Vec::new();
        for (number, image) in &world.images.images {
            let round = &image.round;
            let voters = (1..=self.honest).filter(|id| round.snapshot.weight(*id) > 0);
            match world.images.state(*number, world.now) {
                Some(State::Proposed) => {
                    let silent = voters.filter(|id| !round.votes.contains_key(id));
                    owed.extend(silent.map(|id| Action::Commit(*number, id)));
                }
                Some(State::Reveal) => {
                    let hidden = voters.filter(|id| matches!(round.votes.get(id), Some(Mark::Committed(_))));
                    owed.extend(hidden.map(|id| Action::Reveal(*number, id)));
                    if image.proposal.proposer == PROPOSER && round.opened.is_none() {
                        owed.push(Action::Open(*number));
                    }
                }
                Some(State::Ended) => owed.push(Action::Finish(*number)),
                Some(_) if !self.tricks && round.outcome != Outcome::Open && round.settled.is_empty() => {
                    owed.push(Action::Settle(*number));
                }
                Some(_) | None => {}
            }
        }
        owed
    }

    fn moves(self, world: &World) -> Vec<Action> {
        let rival = self.rival();
        let mut all = Vec::new();
        if self.tricks {
            all.extend([Action::RivalUnbonds, Action::RivalWithdraws]);
        }
        if self.proposes && world.images.images.len() == 1 {
            all.extend([Action::Propose(1, BAD), Action::Propose(2, GOOD), Action::Propose(2, BAD)]);
        }
        // With proposals or motions after it, the rival would have more than a third.
        if self.tricks && !world.topped && self.accuses == 0 && (!self.proposes || world.images.images.len() == 2) {
            all.push(Action::RivalTopsUp);
        }
        for (number, image) in &world.images.images {
            let number = *number;
            if self.tricks && image.round.outcome == Outcome::Open {
                // Anybody may try to finish a round at any time, and may settle it late.
                all.push(Action::Finish(number));
            } else if self.tricks && image.round.settled.is_empty() {
                all.push(Action::Settle(number));
            }
            match world.images.state(number, world.now) {
                Some(State::Proposed) => {
                    all.extend(ANSWERS.map(|answer| Action::RivalCommit(number, answer)));
                    if self.tricks {
                        all.extend([Action::RivalCopy(number), Action::RivalShowsSalt(number)]);
                    }
                }
                Some(State::Reveal) => {
                    all.push(Action::RivalReveal(number));
                    if image.round.opened.is_none() {
                        all.push(Action::Open(number));
                    }
                }
                Some(_) | None => {}
            }
            if self.tricks && !image.round.caught.contains(&rival) {
                all.push(Action::RivalEquivocates(number));
            }
            if image.motions.len() < self.accuses {
                all.push(Action::RivalAccuses(number));
            }
            let open = |(_, motion): &(usize, &model::images::Motion)| motion.settled.is_empty();
            all.extend(image.motions.iter().enumerate().filter(open).map(|(at, _)| Action::SettleMotion(number, at)));
            if image.round.held.contains_key(&rival) {
                all.push(Action::Decide(number));
            }
        }
        all
    }

    fn next_moment(world: &World) -> Option<u64> {
        let mut moments: Vec<u64> = world.images.set.validators.values().map(|validator| validator.free_at).collect();
        for image in world.images.images.values() {
            let round = &image.round;
            moments.extend([round.commit_end, round.reveal_end(), round.end(), image.suspended_until]);
            moments.extend(image.usable_from);
            moments.extend(image.motions.iter().map(|motion| motion.end));
            if !round.held.is_empty() {
                moments.push(round.finished_at + HOLD);
            }
        }
        moments.into_iter().filter(|moment| *moment > world.now).min()
    }

    /// Returns the opening that the rival can give of its commitment.
    fn rivals_opening(self, world: &World, round: u64) -> Result<Commitment, Revert> {
        match world.images.images[&round].round.votes.get(&self.rival()) {
            Some(Mark::Committed(what)) => Ok(Commitment { author: (round, self.rival()), ..*what }),
            Some(_) | None => Err(Revert::WrongMark),
        }
    }

    fn apply(self, world: &mut World, action: Action) -> Result<(), Revert> {
        let (now, rival) = (world.now, self.rival());
        let images = &mut world.images;
        match action {
            Action::Commit(round, id) => images.commit(id, round, id, commitment(round, id, Answer::Value(GOOD)), now),
            Action::Reveal(round, id) => images.reveal(id, commitment(round, id, Answer::Value(GOOD)), now),
            Action::Open(round) => {
                let proposal = images.images[&round].proposal;
                images.open(proposal.proposer, round, proposal.value, now)
            }
            Action::Finish(round) => images.finish(round, now).map(drop),
            Action::Settle(round) => images.settle(round, &self.everybody()),
            Action::Decide(round) => {
                images.decide(round, rival, now)?;
                world.decided = true;
                Ok(())
            }
            Action::SettleMotion(round, motion) => images.settle_motion(round, motion, &self.everybody(), now),
            Action::Propose(version, value) => {
                images.propose(Proposal { proposer: RIVAL, version, value, emergency: false }, now)?;
                world.inside += DEPOSIT;
                Ok(())
            }
            Action::RivalCommit(round, answer) => {
                images.commit(rival, round, rival, commitment(round, rival, answer), now)
            }
            Action::RivalCopy(round) => match images.images[&round].round.votes.get(&1) {
                Some(Mark::Committed(what)) => {
                    let what = *what;
                    images.commit(rival, round, rival, what, now)
                }
                Some(_) | None => Err(Revert::WrongMark),
            },
            Action::RivalReveal(round) => {
                let what = self.rivals_opening(world, round)?;
                world.images.reveal(rival, what, now)
            }
            Action::RivalShowsSalt(round) => {
                let what = self.rivals_opening(world, round)?;
                world.images.report_salt(ANYBODY, what, now)
            }
            Action::RivalEquivocates(round) => {
                let said = [(Answer::Value(GOOD), true), (Answer::Value(BAD), true)];
                images.report_equivocation(ANYBODY, round, rival, said)
            }
            Action::RivalUnbonds => images.set.unbond(rival, rival, now),
            Action::RivalWithdraws => {
                let (_, amount) = images.set.withdraw(rival, now)?;
                world.inside -= amount;
                Ok(())
            }
            Action::RivalTopsUp => {
                images.set.top_up(rival, 10 * BOND)?;
                (world.topped, world.inside) = (true, world.inside + 10 * BOND);
                Ok(())
            }
            Action::RivalAccuses(round) => images.accuse(rival, round, rival, now),
            Action::Tick => {
                world.now = Self::next_moment(world).ok_or(Revert::TooEarly)?;
                Ok(())
            }
        }
    }
}

fn any_image(world: &World, is: impl Fn(&Image) -> bool) -> bool {
    world.images.images.values().any(is)
}

fn all_images(world: &World, are: impl Fn(&Image) -> bool) -> bool {
    world.images.images.values().all(are)
}

impl Model for Network {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        let families = usize::try_from(self.honest).unwrap();
        let mut images = Images::new(BOND, DEPOSIT, families);
        for id in 1..=self.honest {
            images.set.join(id, id, 100 + id, BOND).unwrap();
        }
        let third = u128::from(self.honest) * BOND / 2;
        let bond = if self.more { third * 104 / 100 } else { third };
        images.set.join(self.rival(), self.rival(), 100 + self.rival(), bond).unwrap();
        images.set.fund(1_000);
        let now = 1_000_000;
        images.propose(Proposal { proposer: PROPOSER, version: 1, value: GOOD, emergency: false }, now).unwrap();
        let inside = images.set.money();
        vec![World { images, now, inside, topped: false, decided: false }]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let owed = self.owed(world);
        if owed.is_empty() && Self::next_moment(world).is_some() {
            actions.push(Action::Tick);
        }
        actions.extend(owed);
        actions.extend(self.moves(world));
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        self.apply(&mut next, action).ok().map(|()| next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        let mut all = vec![
            Property::always("tokens are conserved", |_: &Self, world: &World| {
                world.images.set.money() == world.inside
            }),
            Property::always("the counted weight is at most the bonded weight", |_: &Self, world: &World| {
                let counted = |image: &Image| ANSWERS.map(|answer| image.round.weight(answer)).iter().sum::<u128>();
                all_images(world, |image| counted(image) <= image.round.snapshot.total)
            }),
            Property::always("a copied commitment is never revealed", |network: &Self, world: &World| {
                let rival = network.rival();
                world.images.images.iter().all(|(number, image)| {
                    let copies =
                        matches!(image.round.votes.get(&rival), Some(Mark::Committed(what)) if what.author.1 != rival);
                    !copies || network.apply(&mut world.clone(), Action::RivalReveal(*number)).is_err()
                })
            }),
            Property::always("nobody reveals two answers", |network: &Self, world: &World| {
                let rival = network.rival();
                world.images.images.iter().all(|(number, image)| {
                    let shown = matches!(image.round.votes.get(&rival), Some(Mark::Revealed(_)));
                    let again =
                        |answer| world.images.clone().reveal(rival, commitment(*number, rival, answer), world.now);
                    !shown || ANSWERS.into_iter().all(|answer| again(answer).is_err())
                })
            }),
            Property::always("an honest commitment can be revealed", |network: &Self, world: &World| {
                let hidden = network.owed(world).into_iter().filter(|owed| matches!(owed, Action::Reveal(..)));
                hidden.into_iter().all(|reveal| network.apply(&mut world.clone(), reveal).is_ok())
            }),
            Property::always(
                "an honest round is approved: a third cannot stop it, and slightly more only has it repeated",
                |network: &Self, world: &World| {
                    all_images(world, |image| {
                        let ended = image.proposal.proposer == PROPOSER && image.round.outcome != Outcome::Open;
                        let held_again = network.more && image.round.outcome == Outcome::NoQuorum;
                        !ended || image.round.outcome == Outcome::Approved || held_again
                    })
                },
            ),
            Property::always("an honest proposer keeps the deposit", |_: &Self, world: &World| {
                let ended =
                    |image: &&Image| image.proposal.proposer == PROPOSER && image.round.outcome != Outcome::Open;
                let rounds = world.images.images.values().filter(ended).count() as u128;
                world.images.set.credits.get(&PROPOSER).copied().unwrap_or(0) == rounds * DEPOSIT
            }),
            Property::always("a liar that stops a round pays when it is settled", |network: &Self, world: &World| {
                let rival = network.rival();
                all_images(world, |image| {
                    let round = &image.round;
                    let stopped = round.outcome == Outcome::NoQuorum && round.right == Some(Answer::Value(GOOD));
                    let lies = match round.votes.get(&rival) {
                        Some(Mark::Revealed(answer)) => *answer != Answer::Abstain && Some(*answer) != round.right,
                        Some(Mark::Committed(_) | Mark::Voided) | None => false,
                    };
                    let (held, idle) = (round.held.contains_key(&rival), world.images.set.idle.contains_key(&rival));
                    !(stopped && lies && round.settled.contains(&rival)) || held || idle || world.decided
                })
            }),
            Property::always("a third cannot approve", |_: &Self, world: &World| {
                all_images(world, |image| image.round.outcome != Outcome::Approved || image.round.opened == Some(GOOD))
            }),
            Property::always("two values are never both approved", |_: &Self, world: &World| {
                let images = || world.images.images.values().filter(|image| image.usable_from.is_some());
                images()
                    .all(|image| images().filter(|other| other.proposal.version == image.proposal.version).count() == 1)
            }),
            Property::always("a usable image has two thirds for its opened value", |_: &Self, world: &World| {
                all_images(world, |image| {
                    let (round, value) = (&image.round, image.round.opened.map(Answer::Value));
                    image.usable_from.is_none()
                        || value.is_some_and(|value| 3 * round.weight(value) >= 2 * round.snapshot.total)
                })
            }),
            Property::always("a third cannot keep the network down", |_: &Self, world: &World| {
                let usable = |number: &u64| world.images.state(*number, world.now).is_some_and(State::usable);
                let once = any_image(world, |image| image.usable_from.is_some_and(|from| from <= world.now));
                !once || world.images.images.keys().any(usable)
            }),
            Property::always("a third cannot revoke", |_: &Self, world: &World| {
                all_images(world, |image| image.revoked_at.is_none())
            }),
            Property::always("no honest bond is touched", |network: &Self, world: &World| {
                (1..=network.honest).all(|id| world.images.set.validators[&id].bond == BOND)
            }),
            Property::always("no funds are locked for ever", |network: &Self, world: &World| {
                // Anybody can finish and settle whatever locks a validator, in time.
                let mut images = world.images.clone();
                for number in images.images.keys().copied().collect::<Vec<_>>() {
                    let end = images.images[&number].round.end().max(world.now);
                    let _ = images.finish(number, end);
                    if images.settle(number, &network.everybody()).is_err() {
                        return false;
                    }
                    for motion in 0..images.images[&number].motions.len() {
                        let _ = images.settle_motion(number, motion, &network.everybody(), u64::MAX);
                    }
                }
                images.set.validators.values().all(|validator| validator.locks == 0)
            }),
            Property::always("a validator that has left has no open commitment", |_: &Self, world: &World| {
                world.images.set.validators.values().all(|one| one.status != Status::Gone || one.locks == 0)
            }),
        ];
        all.extend(self.possible.iter().map(|(name, seen)| Property::sometimes(name, *seen)));
        all
    }
}

/// A state that must be reachable; otherwise the properties above would hold for no case of interest.
type Possible = (&'static str, fn(&Network, &World) -> bool);

const APPROVED: Possible = ("an image is approved", |_, world| any_image(world, |image| image.usable_from.is_some()));
const PAYS: Possible = ("the rival pays for a wrong value", |network, world| {
    any_image(world, |image| image.round.held.contains_key(&network.rival()))
});
const PAYS_UNDECIDED: Possible = ("the rival pays for a false failure that stops a round", |network, world| {
    any_image(world, |image| {
        image.round.outcome == Outcome::NoQuorum && image.round.held.contains_key(&network.rival())
    })
});
const IDLE: Possible = ("the rival pays for silence or for a common wrong value", |network, world| {
    world.images.set.idle.contains_key(&network.rival())
});
const COPIES: Possible = ("the rival holds a copy", |network, world| {
    let copy = |mark: &Mark| matches!(mark, Mark::Committed(what) if what.author.1 != network.rival());
    any_image(world, |image| image.round.votes.get(&network.rival()).is_some_and(copy))
});
const CAUGHT: Possible = ("the rival has equivocated and left", |network, world| {
    let left = world.images.set.validators[&network.rival()].status == Status::Gone;
    left && any_image(world, |image| !image.round.caught.is_empty())
});
const REJECTED: Possible =
    ("a bad image is rejected", |_, world| any_image(world, |image| image.round.outcome == Outcome::Rejected));
const SUSPENDED: Possible =
    ("an image is suspended", |_, world| any_image(world, |image| image.motions.iter().any(|motion| motion.suspended)));

/// Explores all states, and checks the properties.
fn explore(network: Network) {
    let checker = network.checker().threads(2).spawn_bfs().join();
    println!("{} states, depth {}", checker.unique_state_count(), checker.max_depth());
    assert!(checker.is_done());
    checker.assert_properties();
}

#[test]
fn properties_hold_for_three_validators_with_a_tricky_rival_that_adds_stake() {
    explore(Network {
        honest: 2,
        more: false,
        proposes: false,
        accuses: 0,
        tricks: true,
        possible: &[APPROVED, PAYS, COPIES, CAUGHT],
    });
}

#[test]
fn properties_hold_for_three_validators_with_a_rival_above_a_third() {
    explore(Network {
        honest: 2,
        more: true,
        proposes: false,
        accuses: 0,
        tricks: true,
        possible: &[APPROVED, PAYS, PAYS_UNDECIDED, IDLE, COPIES, CAUGHT],
    });
}

#[test]
fn properties_hold_for_four_validators_with_a_tricky_rival_that_accuses() {
    explore(Network {
        honest: 3,
        more: false,
        proposes: false,
        accuses: 2,
        tricks: true,
        possible: &[APPROVED, PAYS, COPIES, CAUGHT],
    });
}

#[test]
fn properties_hold_for_three_validators_with_a_rival_that_proposes_and_accuses() {
    explore(Network {
        honest: 2,
        more: false,
        proposes: true,
        accuses: 1,
        tricks: false,
        possible: &[APPROVED, PAYS, REJECTED, SUSPENDED],
    });
}
