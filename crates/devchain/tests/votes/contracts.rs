//! Tests release keys, collateral, beacon and issuers, and what each party may do with them.

use crate::model::rounds::Answer;
use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_sol_types::SolValue;
use openrelay_chain::registry::Token;
use openrelay_chain::voting::beacon::Beacon;
use openrelay_chain::voting::collateral::Collateral as C;
use openrelay_chain::voting::images::ImageRegistry as I;
use openrelay_chain::voting::issuers::Issuers;
use openrelay_chain::voting::release::ReleaseKeys as R;
use openrelay_chain::voting::validators::ValidatorSet as V;

use crate::world::{DAY, HOUR, World, address, cold, key, sign};

/// Asserts that the contract refused the call with this error.
fn refused(told: Result<(), Bytes>, reason: &str) {
    let why = told.expect_err("the contract accepted the call");
    assert_eq!(why[..4], keccak256(format!("{reason}()"))[..4], "another reason than {reason}");
}

fn release(source: u8, version: u64) -> R::Release {
    R::Release { sourceTree: B256::repeat_byte(source), inputsLock: B256::ZERO, kind: 1, version }
}

/// Returns the first `count` parties in the order of their addresses.
fn sorted(count: usize) -> Vec<(Address, u64)> {
    let mut all: Vec<(Address, u64)> = (1..=6).map(|party| (address(party), party)).collect();
    all.sort_unstable();
    all.truncate(count);
    all
}

/// Replaces the one release key of the test world by two of three, and returns the holders.
fn two_of_three(world: &mut World) -> Vec<u64> {
    let keys: Vec<Address> = sorted(3).into_iter().map(|(address, _)| address).collect();
    let at = world.at.release_keys;
    let hash = world.ask(at, &R::changeHashCall { nextThreshold_: 2, nextKeys_: keys.clone() });
    let announce = R::announceCall { nextThreshold_: 2, nextKeys_: keys, signatures: vec![sign(&key(0), hash)] };
    world.tell(1, at, &announce).unwrap();
    refused(world.tell(1, at, &announce), "BadSignatures");
    refused(world.tell(1, at, &R::changeCall {}), "TooEarly");
    world.wait(14 * DAY);
    world.tell(1, at, &R::changeCall {}).unwrap();
    sorted(3).into_iter().map(|(_, party)| party).collect()
}

#[test]
fn release_needs_a_threshold_of_the_keys() {
    let mut world = World::new();
    let holders = two_of_three(&mut world);
    let at = world.at.release_keys;
    let hash = world.ask(at, &R::releaseHashCall { release: release(1, 1) });
    let by = |parties: &[u64]| parties.iter().map(|party| sign(&key(*party), hash)).collect::<Vec<Bytes>>();
    let mut check = |signatures: Vec<Bytes>| world.tell(1, at, &R::checkCall { release: release(1, 1), signatures });
    check(by(&[holders[0], holders[2]])).unwrap();
    check(by(&holders)).unwrap();
    let stranger = (1..=6).find(|party| !holders.contains(party)).unwrap();
    for few in
        [vec![], vec![holders[0]], vec![holders[0], holders[0]], vec![holders[1], holders[0]], vec![0, holders[2]]]
    {
        refused(check(by(&few)), "BadSignatures");
    }
    let mut mixed = [(address(holders[0]), holders[0]), (address(stranger), stranger)];
    mixed.sort_unstable();
    refused(check(by(&mixed.map(|(_, party)| party))), "BadSignatures");
    refused(check(vec![Bytes::from(vec![0; 65]), by(&[holders[0]])[0].clone()]), "BadSignatures");
}

#[test]
fn release_not_signed_by_the_release_keys_is_not_proposed() {
    let mut world = World::crowd(&[1_000; 5]);
    let foreign = I::proposeCall {
        roundKind: 0,
        release: SolValue::abi_decode(&release(9, 1).abi_encode()).unwrap(),
        signatures: vec![sign(
            &key(3),
            world.ask(world.at.release_keys, &R::releaseHashCall { release: release(9, 1) }),
        )],
        blind: B256::ZERO,
    };
    refused(world.tell(1, world.at.images, &foreign), "BadSignatures");
    refused(
        world.tell(1, world.at.images, &I::proposeCall { signatures: Vec::new(), ..foreign.clone() }),
        "BadSignatures",
    );
    refused(world.tell(1, world.at.images, &I::proposeCall { roundKind: 2, ..foreign }), "BadValue");
}

#[test]
fn two_source_trees_of_one_version_are_a_provable_conflict() {
    let mut world = World::crowd(&[1_000; 5]);
    let at = world.at.release_keys;
    let signed = |world: &World, one: &R::Release| {
        vec![sign(&key(0), world.ask(at, &R::releaseHashCall { release: one.clone() }))]
    };
    let report = |world: &World, one: R::Release, other: R::Release| R::reportConflictCall {
        firstSignatures: signed(world, &one),
        secondSignatures: signed(world, &other),
        first: one,
        second: other,
    };
    let same = report(&world, release(1, 1), release(1, 1));
    refused(world.tell(2, at, &same), "NoConflict");
    let unlike = report(&world, release(1, 1), release(2, 2));
    refused(world.tell(2, at, &unlike), "NoConflict");
    let forged = R::reportConflictCall {
        secondSignatures: vec![sign(&key(1), B256::ZERO)],
        ..report(&world, release(1, 1), release(2, 1))
    };
    refused(world.tell(2, at, &forged), "BadSignatures");
    let proof = report(&world, release(1, 1), release(2, 1));
    world.tell(2, at, &proof).unwrap();
    let signatures = signed(&world, &release(1, 1));
    refused(world.tell(2, at, &R::checkCall { release: release(1, 1), signatures }), "Conflicted");
}

#[test]
fn conflict_reported_during_the_round_stops_it() {
    let mut world = World::crowd(&[1_000; 5]);
    let yes = Answer::Value(1);
    let round = world.propose(1, 1, 1, true).unwrap();
    for id in 1..=5 {
        world.commit(None, round, id, yes).unwrap();
    }
    world.await_reveals(round);
    world.open(1, round, 1).unwrap();
    for id in 1..=5 {
        world.reveal(None, round, id, true).unwrap();
    }
    let at = world.at.release_keys;
    let sign_one = |world: &World, one: &R::Release| {
        vec![sign(&key(0), world.ask(at, &R::releaseHashCall { release: one.clone() }))]
    };
    let (first, second) = (release(7, 1), release(8, 1));
    let report = R::reportConflictCall {
        firstSignatures: sign_one(&world, &first),
        secondSignatures: sign_one(&world, &second),
        first,
        second,
    };
    world.tell(2, at, &report).unwrap();
    world.wait(6 * HOUR);
    world.tell(2, world.at.images, &I::finishCall { round }).unwrap();
    assert_eq!(world.ask(world.at.images, &I::stateOfCall { round }), 6, "no quorum");
}

#[test]
fn change_of_keys_can_be_cancelled_by_the_keys() {
    let mut world = World::new();
    let at = world.at.release_keys;
    let announce = |world: &World, threshold: u8, keys: Vec<Address>| {
        let hash = world.ask(at, &R::changeHashCall { nextThreshold_: threshold, nextKeys_: keys.clone() });
        R::announceCall { nextThreshold_: threshold, nextKeys_: keys, signatures: vec![sign(&key(0), hash)] }
    };
    let bad = announce(&world, 2, vec![address(1)]);
    refused(world.tell(1, at, &bad), "BadKeys");
    let call = announce(&world, 1, vec![address(1)]);
    world.tell(1, at, &call).unwrap();
    let off = announce(&world, 0, Vec::new());
    world.tell(1, at, &off).unwrap();
    world.wait(15 * DAY);
    refused(world.tell(1, at, &R::changeCall {}), "TooEarly");
    assert_eq!(world.ask(at, &R::keysCall {}), [address(0)]);
}

#[test]
fn beacon_ignores_order_and_charges_a_validator_that_withholds() {
    let mut outputs = Vec::new();
    for order in [[1u64, 2, 3], [3, 1, 2]] {
        let mut world = World::crowd(&[10_000; 4]);
        let at = world.at.beacon;
        let period = world.ask(at, &Beacon::periodCall {}).to::<u64>();
        world.wait(period - world.now() % period);
        let epoch = world.now() / period;
        let commitment = |world: &World, id: u64| {
            let call = Beacon::commitmentOfCall {
                epoch: U256::from(epoch).to(),
                validatorId: id,
                secret: B256::repeat_byte(id as u8),
            };
            Beacon::commitCall { validatorId: id, commitment: world.ask(at, &call) }
        };
        for id in 1..=4 {
            let call = commitment(&world, id);
            world.tell(id, at, &call).unwrap();
            refused(world.tell(id, at, &call), "WrongOpening");
        }
        let reveal = |id: u64| Beacon::revealCall { validatorId: id, secret: B256::repeat_byte(id as u8) };
        refused(world.tell(1, at, &reveal(1)), "WrongPhase");
        world.wait(period / 2);
        let late = commitment(&world, 1);
        refused(world.tell(1, at, &late), "WrongPhase");
        refused(world.tell(2, at, &reveal(1)), "NotTheVoter");
        refused(world.tell(1, at, &Beacon::revealCall { validatorId: 1, secret: B256::ZERO }), "WrongOpening");
        for id in order {
            world.tell(id, at, &reveal(id)).unwrap();
        }
        refused(world.tell(1, at, &reveal(1)), "WrongOpening");
        let charge = |id: u64| Beacon::chargeCall { epoch: U256::from(epoch).to(), validatorId: id };
        refused(world.tell(5, at, &charge(4)), "WrongPhase");
        world.wait(period);
        refused(world.tell(5, at, &charge(1)), "WrongOpening");
        world.tell(5, at, &charge(4)).unwrap();
        refused(world.tell(5, at, &charge(4)), "WrongOpening");
        let bond =
            |world: &World, id: u64| world.ask(world.at.validators, &V::getCall { validatorId: id }).bond.to::<u64>();
        assert_eq!((bond(&world, 1), bond(&world, 4)), (10_000, 9_950));
        let output = world.ask(at, &Beacon::outputOfCall { epoch: U256::from(epoch).to() });
        assert_eq!(output.bias, 1, "one bit of bias");
        outputs.push(output.output);
    }
    assert_eq!(outputs[0], outputs[1]);
}

#[test]
fn collateral_needs_two_thirds_and_its_floors_never_fall() {
    let mut world = World::crowd(&[1_000; 6]);
    let at = world.at.collateral;
    let entry = |bundle: u8, floor: u32| C::Entry { bundle: B256::repeat_byte(bundle), intelFloor: floor, amdFloor: 7 };
    let mut holds = None;
    for (turn, floor) in [17, 16, 18].into_iter().enumerate() {
        world.wait(6 * HOUR);
        let round = turn as u64 + 1;
        world.tell(9, at, &C::openCall {}).unwrap();
        refused(world.tell(9, at, &C::openCall {}), "AlreadyOpen");
        let value = |world: &World, entry: C::Entry| world.ask(at, &C::valueOfCall { entry });
        let vote =
            |world: &World, id: u64| if id < 6 { value(world, entry(1, floor)) } else { value(world, entry(2, floor)) };
        for id in 1..=6 {
            let what =
                C::commitmentOfCall { round, validatorId: id, answer: 1, value: vote(&world, id), salt: B256::ZERO };
            let commitment = world.ask(at, &what);
            world.tell(id, at, &C::commitCall { round, validatorId: id, commitment }).unwrap();
        }
        world.wait(3 * HOUR);
        for id in 1..=6 {
            let value = vote(&world, id);
            world.tell(id, at, &C::revealCall { round, validatorId: id, answer: 1, value, salt: B256::ZERO }).unwrap();
        }
        refused(world.tell(9, at, &C::postCall { round, entry: entry(1, floor) }), "NotApproved");
        world.wait(2 * HOUR);
        world.tell(9, at, &C::finishCall { round }).unwrap();
        refused(world.tell(9, at, &C::postCall { round, entry: entry(2, floor) }), "NotApproved");
        let posted = world.tell(9, at, &C::postCall { round, entry: entry(1, floor) });
        if floor == 16 {
            refused(posted, "FloorFalls");
        } else {
            posted.unwrap();
            holds = Some(floor);
        }
        world.tell(9, at, &C::settleCall { round, ids: (1..=6).collect() }).unwrap();
        assert_eq!(Some(world.ask(at, &C::currentCall {}).intelFloor), holds);
    }
    let bond = world.ask(world.at.validators, &V::getCall { validatorId: 6 }).bond.to::<u64>();
    assert_eq!(bond, 1_000, "a validator that fetched at another time names another value and pays nothing");
}

#[test]
fn issuer_joins_with_a_bond_and_gets_it_back() {
    let mut world = World::new();
    let at = world.at.issuers;
    let register = |endpoint: &str| Issuers::registerCall {
        withdrawal: address(cold(1)),
        key: B256::repeat_byte(1),
        image: B256::repeat_byte(2),
        endpoint: endpoint.to_owned(),
    };
    world.tell(1, world.at.token, &Token::approveCall { spender: at, value: U256::MAX }).unwrap();
    refused(world.tell(1, at, &register("")), "BadValue");
    refused(world.tell(1, at, &register(&"x".repeat(129))), "BadValue");
    world.tell(1, at, &register("issuer.example:443")).unwrap();
    let describe = Issuers::describeCall {
        issuerId: 1,
        key: B256::repeat_byte(3),
        image: B256::repeat_byte(2),
        endpoint: "other.example:443".to_owned(),
    };
    refused(world.tell(2, at, &describe), "NotAllowed");
    world.tell(1, at, &describe).unwrap();
    assert_eq!(world.ask(at, &Issuers::getCall { issuerId: 1 }).key, B256::repeat_byte(3));
    refused(world.tell(2, at, &Issuers::unbondCall { issuerId: 1 }), "NotAllowed");
    refused(world.tell(2, at, &Issuers::withdrawCall { issuerId: 1 }), "WrongStatus");
    world.tell(cold(1), at, &Issuers::unbondCall { issuerId: 1 }).unwrap();
    refused(world.tell(1, at, &describe), "WrongStatus");
    refused(world.tell(2, at, &Issuers::withdrawCall { issuerId: 1 }), "TooEarly");
    world.wait(21 * DAY);
    world.tell(2, at, &Issuers::withdrawCall { issuerId: 1 }).unwrap();
    assert_eq!(world.balance(cold(1)), 100);
}

#[test]
fn guardian_pauses_joins_but_not_running_rounds_or_withdrawals() {
    let mut world = World::crowd(&[1_000; 6]);
    world.propose(1, 1, 1, false).unwrap();
    world.commit(None, 1, 1, Answer::Value(1)).unwrap();
    // The world's guardian is the second known account of development chains.
    world.pause();
    refused(
        world.tell(
            7,
            world.at.validators,
            &V::joinCall { family: address(7), withdrawal: address(7), amount: U256::from(1_000).to() },
        ),
        "NewOnesPaused",
    );
    world.commit(None, 1, 2, Answer::Value(1)).unwrap();
    world.await_reveals(1);
    world.reveal(None, 1, 1, true).unwrap();
    world.unbond(3, 3).unwrap();
    world.end(1);
    world.settle(1, &[1, 2, 3]).unwrap();
    world.wait(21 * DAY);
    world.withdraw(3).unwrap();
    world.compare();
}

#[test]
fn only_voting_contracts_move_money() {
    let mut world = World::crowd(&[1_000; 2]);
    let at = world.at.validators;
    refused(
        world.tell(
            1,
            at,
            &V::slashCall {
                validatorId: 2,
                basisPoints: U256::from(1),
                reporter: address(1),
                reporterBasisPoints: U256::from(1),
            },
        ),
        "NotAllowed",
    );
    refused(world.tell(1, at, &V::holdCall { validatorId: 2, basisPoints: U256::from(1) }), "NotAllowed");
    refused(world.tell(1, at, &V::giveBackCall { owner: address(1), amount: U256::ZERO }), "NotAllowed");
    refused(world.tell(1, at, &V::burnHeldCall { amount: U256::ZERO }), "NotAllowed");
    refused(world.tell(1, at, &V::reserveCall { part: U256::from(1), most: U256::MAX }), "NotAllowed");
    refused(world.tell(1, at, &V::shareCall { validatorId: 1, amount: U256::ZERO }), "NotAllowed");
    refused(world.tell(1, at, &V::lockCall { validatorId: 1, caller: address(1) }), "NotAllowed");
    refused(world.tell(1, at, &V::unlockCall { validatorId: 1 }), "NotAllowed");
    refused(world.tell(1, at, &V::depositCall { from: address(2), amount: U256::from(1) }), "NotAllowed");
}

#[test]
fn empty_family_frees_its_place_and_a_bonded_one_does_not() {
    let mut world = World::crowd(&[1_000; 3]);
    let at = world.at.validators;
    let prune = V::pruneCall { family: address(2) };
    refused(world.tell(9, at, &prune), "WrongStatus");
    world.unbond(2, 2).unwrap();
    world.tell(9, at, &prune).unwrap();
    refused(world.tell(9, at, &prune), "BadValue");
    world.join(4, 4, 1_000).unwrap();
    assert_eq!(world.ask(at, &V::placeOfCall { family: address(4) }), 2, "the freed place is reused");
    world.propose(1, 1, 1, false).unwrap();
    assert_eq!(world.total(1), 3_000);
    world.compare();
}
