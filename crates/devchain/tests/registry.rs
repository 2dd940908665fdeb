//! The registry's contracts against the readers of `ledger`, and against what operators and strangers may do.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a test that cannot go on must stop; the bindings are made by a macro"
)]

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_sol_types::{SolCall, SolError, SolValue, sol};
use openrelay_devchain::{Chain, Failure, Receipt};
use openrelay_ledger::chain::descriptor::Descriptor;
use openrelay_ledger::chain::set::{Entry, RecordSet, Registration, Status, directory_root, write};
use openrelay_ledger::record::Role;
use proptest::prelude::*;
use sha2::{Digest, Sha256};

sol!(RelayRegistry, "../../contracts/artifacts/RelayRegistry.json");
sol!(TestToken, "../../contracts/artifacts/TestToken.json");

const DAY: u64 = 86_400;
const RATE: u64 = 10;
const GOVERNOR: Address = Address::repeat_byte(0xa0);
const GUARDIAN: Address = Address::repeat_byte(0xa1);
const RICH: u64 = 1_000_000_000;

fn person(number: u8) -> Address {
    Address::repeat_byte(number)
}

/// A chain with the contracts on it and three people who have tokens.
struct World {
    chain: Chain,
    token: Address,
    registry: Address,
    directory: Address,
}

impl World {
    fn new() -> Self {
        let mut chain = Chain::new(1_800_000_000);
        let token = chain.deploy(GOVERNOR, TestToken::BYTECODE.clone()).unwrap().created.unwrap();
        let arguments =
            (token, GOVERNOR, GUARDIAN, U256::from(RATE), U256::from(1), U256::from(1_000)).abi_encode_params();
        let code = [&RelayRegistry::BYTECODE[..], &arguments].concat();
        let registry = chain.deploy(GOVERNOR, code.into()).unwrap().created.unwrap();
        let mut this = Self { chain, token, registry, directory: Address::ZERO };
        this.directory = this.ask(&RelayRegistry::directoryCall {});
        for number in 1..=3 {
            let mint = TestToken::mintCall { to: person(number), amount: U256::from(RICH) };
            this.chain.send(GOVERNOR, token, mint.abi_encode().into()).unwrap();
            let approve = TestToken::approveCall { spender: registry, value: U256::MAX };
            this.chain.send(person(number), token, approve.abi_encode().into()).unwrap();
        }
        this
    }

    fn tell<C: SolCall>(&mut self, from: Address, call: &C) -> Result<Receipt, Failure> {
        self.chain.send(from, self.registry, call.abi_encode().into())
    }

    fn ask<C: SolCall>(&self, call: &C) -> C::Return {
        let output = self.chain.call(GOVERNOR, self.registry, call.abi_encode().into()).unwrap();
        C::abi_decode_returns(&output).unwrap()
    }

    fn balance(&self, of: Address) -> U256 {
        let call = TestToken::balanceOfCall { account: of };
        let output = self.chain.call(GOVERNOR, self.token, call.abi_encode().into()).unwrap();
        TestToken::balanceOfCall::abi_decode_returns(&output).unwrap()
    }

    fn register(&mut self, from: Address, mbit: u32, bond: u64, descriptor: &[u8]) -> Result<Receipt, Failure> {
        self.tell(
            from,
            &RelayRegistry::registerCall {
                advertisedMbit: mbit,
                withdrawal: cold(from),
                amount: bond.try_into().unwrap(),
                descriptor: descriptor.to_vec().into(),
            },
        )
    }

    /// The storage root of the directory as the chain has it.
    fn root(&self) -> B256 {
        let slots = self.chain.storage(self.directory);
        directory_root(slots.into_iter().map(|(slot, hash)| (slot.to(), B256::from(hash))))
    }
}

/// The withdrawal address of a person's relays.
fn cold(operator: Address) -> Address {
    Address::from_word(keccak256(operator))
}

fn descriptor(number: u8) -> Vec<u8> {
    Descriptor {
        role: if number.is_multiple_of(2) { Role::Ingress } else { Role::Egress },
        key_epoch: number.into(),
        handshake_key: [number; 32],
        image: B256::ZERO,
        key_root: B256::ZERO,
        endpoints: vec![format!("203.{number}.113.9:443").parse().unwrap()],
        family: None,
    }
    .encode()
    .unwrap()
}

fn entry(relay_id: u64, operator: Address, mbit: u32, bond_class: u8, status: Status, bytes: Vec<u8>) -> Entry {
    Entry::Whole(Registration { relay_id, operator, advertised_mbit: mbit, bond_class, status }, bytes)
}

fn refusal<T: SolError>(result: Result<Receipt, Failure>, error: &T) {
    assert_eq!(result.unwrap_err(), Failure::Reverted(error.abi_encode().into()));
}

#[test]
fn artifacts_are_of_these_sources() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contracts");
    let mut checked = 0;
    let names = [
        "Beacon",
        "Collateral",
        "Directory",
        "ImageRegistry",
        "Issuers",
        "RelayRegistry",
        "ReleaseKeys",
        "TestToken",
        "ValidatorSet",
    ];
    for name in names {
        let text = std::fs::read_to_string(folder.join(format!("artifacts/{name}.json"))).unwrap();
        let artifact: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (path, hash) in artifact["inputs"].as_object().unwrap().iter().filter(|(path, _)| path.starts_with("src/"))
        {
            let found: String = Sha256::digest(std::fs::read(folder.join(path)).unwrap())
                .iter()
                .map(|byte| format!("{byte:02x}"))
                .collect();
            assert_eq!(
                hash.as_str().unwrap(),
                found,
                "{path} has changed since {name} was compiled; run: ./x contracts"
            );
            checked += 1;
        }
    }
    assert!(checked > names.len(), "{checked}: some have others in them");
}

#[test]
fn what_the_registry_writes_is_what_readers_prove() {
    let mut world = World::new();
    assert_eq!(world.root(), directory_root([]), "nothing but records is in the directory");
    world.register(person(1), 100, 1_000, &descriptor(1)).unwrap();
    world.register(person(2), 100, 4_000, &descriptor(2)).unwrap();
    world.register(person(3), 7, 100, b"nonsense").unwrap();
    let first = keccak256(descriptor(1));
    world.tell(person(1), &RelayRegistry::drainCall { relayId: 1, draining: true, descriptorHash: first }).unwrap();
    let describe = RelayRegistry::describeCall { relayId: 2, advertisedMbit: 200, descriptor: descriptor(4).into() };
    world.tell(person(2), &describe).unwrap();
    let entries = vec![
        entry(1, person(1), 100, 1, Status::Draining, descriptor(1)),
        entry(2, person(2), 200, 2, Status::Active, descriptor(4)),
        entry(3, person(3), 7, 1, Status::Active, b"nonsense".to_vec()),
    ];
    let set = RecordSet::verify(&write(entries.clone()).unwrap(), world.root()).unwrap();
    assert_eq!((set.records.len(), set.malformed), (2, vec![3]));
    assert_eq!(set.records[1].descriptor.key_epoch, 4);
    // What was true before is refused.
    let mut stale = entries;
    stale[1] = entry(2, person(2), 100, 3, Status::Active, descriptor(2));
    assert!(RecordSet::verify(&write(stale).unwrap(), world.root()).is_err());
}

#[test]
fn a_registration_stays_within_its_budget() {
    let mut world = World::new();
    world.register(person(1), 100, 1_000, &descriptor(1)).unwrap();
    let before = world.chain.storage(world.registry).len() + world.chain.storage(world.directory).len();
    let gas = world.register(person(2), 100, 1_000, &descriptor(2)).unwrap().gas_used;
    let after = world.chain.storage(world.registry).len() + world.chain.storage(world.directory).len();
    assert_eq!(after - before, 3, "new slots");
    println!("gas of a registration: {gas}");
    assert!(gas <= 150_000, "{gas} gas");
}

#[test]
fn a_relay_leaves_with_its_bond_after_two_weeks_and_not_before() {
    let mut world = World::new();
    world.register(person(1), 100, 1_500, &descriptor(1)).unwrap();
    assert_eq!(world.balance(person(1)), U256::from(RICH - 1_500));
    let hash = keccak256(descriptor(1));
    let withdraw = RelayRegistry::withdrawCall { relayId: 1 };
    refusal(world.tell(person(1), &withdraw), &RelayRegistry::WrongStatus {});
    world.tell(person(1), &RelayRegistry::unbondCall { relayId: 1, descriptorHash: hash }).unwrap();
    world.chain.advance(14 * DAY - 10);
    refusal(world.tell(person(1), &withdraw), &RelayRegistry::TooEarly {});
    world.chain.advance(10);
    world.tell(person(3), &withdraw).unwrap();
    assert_eq!((world.balance(cold(person(1))), world.balance(world.registry)), (U256::from(1_500), U256::ZERO));
    assert_eq!(world.root(), directory_root([]), "nothing is left in the directory");
    refusal(world.tell(person(1), &withdraw), &RelayRegistry::WrongStatus {});
    // Its number is never given to another.
    world.register(person(2), 100, 1_000, &descriptor(2)).unwrap();
    assert_eq!(world.ask(&RelayRegistry::countCall {}), 2);
}

#[test]
fn strangers_and_stolen_hot_keys_get_nowhere() {
    let mut world = World::new();
    world.register(person(1), 100, 1_000, &descriptor(1)).unwrap();
    let hash = keccak256(descriptor(1));
    let describe = RelayRegistry::describeCall { relayId: 1, advertisedMbit: 100, descriptor: descriptor(3).into() };
    refusal(world.tell(person(2), &describe), &RelayRegistry::NotAllowed {});
    refusal(
        world.tell(person(2), &RelayRegistry::unbondCall { relayId: 1, descriptorHash: hash }),
        &RelayRegistry::NotAllowed {},
    );
    let take = RelayRegistry::setOperatorCall { relayId: 1, operator: person(2), descriptorHash: hash };
    refusal(world.tell(person(1), &take), &RelayRegistry::NotAllowed {});
    world.tell(cold(person(1)), &take).unwrap();
    refusal(world.tell(person(1), &describe), &RelayRegistry::NotAllowed {});
    world.tell(person(2), &describe).unwrap();
    refusal(
        world.tell(person(2), &RelayRegistry::drainCall { relayId: 1, draining: true, descriptorHash: hash }),
        &RelayRegistry::StaleDescriptor {},
    );
    let write = sol_write(1, B256::ZERO);
    assert!(world.chain.send(person(1), world.directory, write).is_err(), "the directory obeys the registry alone");
}

fn sol_write(relay_id: u64, hash: B256) -> Bytes {
    sol! { function write(uint64 relayId, bytes32 recordHash); }
    writeCall { relayId: relay_id, recordHash: hash }.abi_encode().into()
}

#[test]
fn bad_registrations_are_refused_in_words() {
    let mut world = World::new();
    refusal(
        world.register(person(1), 100, 999, &descriptor(1)),
        &RelayRegistry::BondTooSmall { bond: U256::from(999), needed: U256::from(1_000) },
    );
    refusal(world.register(person(1), 0, 999, &descriptor(1)), &RelayRegistry::BadValue {});
    refusal(world.register(person(1), 1, 999, &[]), &RelayRegistry::BadDescriptor {});
    refusal(world.register(person(1), 1, 999, &[1; 257]), &RelayRegistry::BadDescriptor {});
    assert!(world.register(person(9), 1, 999, &descriptor(1)).is_err(), "who has no tokens");
    assert_eq!(world.ask(&RelayRegistry::countCall {}), 0);
    assert_eq!(world.root(), directory_root([]));
}

#[test]
fn powers_are_bounded_in_time_and_size() {
    let mut world = World::new();
    let rate = |rate: u64| RelayRegistry::announceRateCall { next: rate.try_into().unwrap() };
    refusal(world.tell(GUARDIAN, &rate(20)), &RelayRegistry::NotAllowed {});
    refusal(world.tell(GOVERNOR, &rate(1_001)), &RelayRegistry::BadValue {});
    world.register(person(1), 100, 1_500, &descriptor(1)).unwrap();
    world.tell(GOVERNOR, &rate(20)).unwrap();
    refusal(world.tell(GOVERNOR, &RelayRegistry::applyRateCall {}), &RelayRegistry::TooEarly {});
    world.chain.advance(7 * DAY);
    world.tell(person(3), &RelayRegistry::applyRateCall {}).unwrap();
    let reclass = RelayRegistry::reclassCall { relayId: 1, descriptorHash: keccak256(descriptor(1)) };
    world.tell(person(3), &reclass).unwrap();
    assert_eq!(world.ask(&RelayRegistry::relayOfCall { relayId: 1 }).bondClass, 0, "too little under the new rate");

    refusal(world.tell(GOVERNOR, &RelayRegistry::pauseCall {}), &RelayRegistry::NotAllowed {});
    world.tell(GUARDIAN, &RelayRegistry::pauseCall {}).unwrap();
    refusal(world.register(person(2), 1, 100, &descriptor(2)), &RelayRegistry::NewOnesPaused {});
    world.chain.advance(14 * DAY);
    world.register(person(2), 1, 100, &descriptor(2)).unwrap();
    refusal(world.tell(GUARDIAN, &RelayRegistry::pauseCall {}), &RelayRegistry::TooEarly {});
    world.chain.advance(14 * DAY);
    world.tell(GUARDIAN, &RelayRegistry::pauseCall {}).unwrap();

    let next = RelayRegistry::announceSuccessorCall { next: person(7) };
    world.tell(GOVERNOR, &next).unwrap();
    refusal(world.tell(GOVERNOR, &RelayRegistry::nameSuccessorCall {}), &RelayRegistry::TooEarly {});
    world.chain.advance(14 * DAY);
    world.tell(person(3), &RelayRegistry::nameSuccessorCall {}).unwrap();
    assert_eq!(world.ask(&RelayRegistry::successorCall {}), person(7));
    refusal(world.tell(GOVERNOR, &next), &RelayRegistry::BadValue {});
}

/// What anybody may try.
#[derive(Clone, Debug)]
enum Step {
    Register { mbit: u32, bond: u64 },
    Describe { relay: u64, mbit: u32 },
    TopUp { relay: u64, amount: u64 },
    Drain { relay: u64, draining: bool },
    Unbond { relay: u64 },
    Withdraw { relay: u64 },
    Wait { days: u64 },
}

fn any_step() -> impl Strategy<Value = Step> {
    let relay = || 1u64..6;
    prop_oneof![
        3 => (0u32..50, 0u64..2_000).prop_map(|(mbit, bond)| Step::Register { mbit, bond }),
        2 => (relay(), 0u32..100).prop_map(|(relay, mbit)| Step::Describe { relay, mbit }),
        2 => (relay(), 0u64..2_000).prop_map(|(relay, amount)| Step::TopUp { relay, amount }),
        2 => (relay(), any::<bool>()).prop_map(|(relay, draining)| Step::Drain { relay, draining }),
        2 => relay().prop_map(|relay| Step::Unbond { relay }),
        2 => relay().prop_map(|relay| Step::Withdraw { relay }),
        2 => (0u64..20).prop_map(|days| Step::Wait { days }),
    ]
}

/// A relay as the model has it.
#[derive(Clone)]
struct Modelled {
    owner: u8,
    mbit: u32,
    bond: u64,
    status: Status,
    free_at: u64,
    bytes: Vec<u8>,
}

fn class(bond: u64, mbit: u32) -> u8 {
    let needed = RATE * u64::from(mbit);
    (0u8..8).take_while(|doublings| bond >= needed << doublings).count().try_into().unwrap()
}

/// How many random sequences: a few by hand, as many as `./x test` says there.
fn sequences() -> u32 {
    std::env::var("OPENRELAY_SEQUENCES").ok().and_then(|count| count.parse().ok()).unwrap_or(200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: sequences(), failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever three people try in whatever order: the registry allows what the model allows, the directory is the model's, and no token is made or lost.
    #[test]
    fn the_registry_does_what_its_model_does(steps in prop::collection::vec((1u8..=3, any_step()), 1..40)) {
        let mut world = World::new();
        let mut model: std::collections::BTreeMap<u64, Modelled> = std::collections::BTreeMap::new();
        let mut count = 0;
        let mut paid = std::collections::BTreeMap::<u8, u64>::new();
        for (turn, (who, step)) in steps.into_iter().enumerate() {
            let turn = u8::try_from(turn).unwrap();
            let caller = person(who);
            let serves = |relay: Option<&Modelled>| relay.is_some_and(|relay| relay.status != Status::Unbonding);
            let hash = |relay: u64, model: &std::collections::BTreeMap<u64, Modelled>| {
                model.get(&relay).map_or(B256::ZERO, |relay| keccak256(&relay.bytes))
            };
            match step {
                Step::Register { mbit, bond } => {
                    let done = world.register(caller, mbit, bond, &descriptor(turn)).is_ok();
                    prop_assert_eq!(done, mbit > 0 && class(bond, mbit) > 0);
                    if done {
                        count += 1;
                        *paid.entry(who).or_default() += bond;
                        let relay = Modelled { owner: who, mbit, bond, status: Status::Active, free_at: 0, bytes: descriptor(turn) };
                        model.insert(count, relay);
                    }
                }
                Step::Describe { relay, mbit } => {
                    let bytes = descriptor(turn);
                    let call = RelayRegistry::describeCall { relayId: relay, advertisedMbit: mbit, descriptor: bytes.clone().into() };
                    let done = world.tell(caller, &call).is_ok();
                    let held = model.get(&relay);
                    let may = serves(held) && held.is_some_and(|r| r.owner == who && mbit > 0 && class(r.bond, mbit) > 0);
                    prop_assert_eq!(done, may);
                    if let (true, Some(held)) = (done, model.get_mut(&relay)) {
                        (held.mbit, held.bytes) = (mbit, bytes);
                    }
                }
                Step::TopUp { relay, amount } => {
                    let call = RelayRegistry::topUpCall { relayId: relay, amount: amount.try_into().unwrap(), descriptorHash: hash(relay, &model) };
                    let done = world.tell(caller, &call).is_ok();
                    prop_assert_eq!(done, serves(model.get(&relay)));
                    if let (true, Some(held)) = (done, model.get_mut(&relay)) {
                        held.bond += amount;
                        *paid.entry(who).or_default() += amount;
                    }
                }
                Step::Drain { relay, draining } => {
                    let call = RelayRegistry::drainCall { relayId: relay, draining, descriptorHash: hash(relay, &model) };
                    let done = world.tell(caller, &call).is_ok();
                    let from = if draining { Status::Active } else { Status::Draining };
                    prop_assert_eq!(done, model.get(&relay).is_some_and(|r| r.owner == who && r.status == from));
                    if let (true, Some(held)) = (done, model.get_mut(&relay)) {
                        held.status = if draining { Status::Draining } else { Status::Active };
                    }
                }
                Step::Unbond { relay } => {
                    let call = RelayRegistry::unbondCall { relayId: relay, descriptorHash: hash(relay, &model) };
                    let done = world.tell(caller, &call).is_ok();
                    let held = model.get(&relay);
                    prop_assert_eq!(done, serves(held) && held.is_some_and(|r| r.owner == who));
                    if let (true, Some(held)) = (done, model.get_mut(&relay)) {
                        (held.status, held.free_at) = (Status::Unbonding, world.chain.timestamp() + 14 * DAY);
                    }
                }
                Step::Withdraw { relay } => {
                    let done = world.tell(caller, &RelayRegistry::withdrawCall { relayId: relay }).is_ok();
                    let now = world.chain.timestamp();
                    prop_assert_eq!(done, model.get(&relay).is_some_and(|r| r.status == Status::Unbonding && now >= r.free_at));
                    if done {
                        model.remove(&relay);
                    }
                }
                Step::Wait { days } => world.chain.advance(days * DAY),
            }
        }
        let entries = model.iter().map(|(id, relay)| {
            entry(*id, person(relay.owner), relay.mbit, class(relay.bond, relay.mbit), relay.status, relay.bytes.clone())
        });
        prop_assert!(RecordSet::verify(&write(entries.collect()).unwrap(), world.root()).is_ok());
        let held: u64 = model.values().map(|relay| relay.bond).sum();
        prop_assert_eq!(world.balance(world.registry), U256::from(held), "bonds are all there");
        let cold_sum: U256 = (1..=3).map(|who| world.balance(cold(person(who)))).sum();
        let spent: u64 = paid.values().sum();
        prop_assert_eq!(cold_sum + U256::from(held), U256::from(spent), "what was paid in is held or was paid back");
    }
}
