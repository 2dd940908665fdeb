//! Tests the registry's contracts against the readers of `ledger`, and what operators and strangers may do.
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
const HIGHEST_RATE: u64 = 1_000;
const MIN_BOND: u64 = 50;
/// Number of changes that a relay can make at once, and the seconds until it can make one more.
const BURST: u64 = 16;
const REFILL: u64 = 600;
/// The contract that may slash.
const JUDGE: Address = Address::repeat_byte(0xa2);
const GOVERNOR: Address = Address::repeat_byte(0xa0);
const GUARDIAN: Address = Address::repeat_byte(0xa1);
const RICH: u64 = 1_000_000_000;

fn person(number: u8) -> Address {
    Address::repeat_byte(number)
}

/// A chain with the contracts, and three people who have tokens.
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
        let registry = chain.deploy(GOVERNOR, creation(token, MIN_BOND, [JUDGE, Address::ZERO])).unwrap();
        let registry = registry.created.unwrap();
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

    fn describe(&mut self, from: Address, relay: u64, number: u8) -> Result<Receipt, Failure> {
        let call =
            RelayRegistry::describeCall { relayId: relay, advertisedMbit: 100, descriptor: descriptor(number).into() };
        self.tell(from, &call)
    }

    fn slash(&mut self, from: Address, relay: u64, part: u64, reporter: Address) -> Result<Receipt, Failure> {
        let call = RelayRegistry::slashCall {
            relayId: relay,
            basisPoints: U256::from(part),
            reporter,
            reporterBasisPoints: U256::from(500),
        };
        self.tell(from, &call)
    }

    fn bond(&self, relay: u64) -> u64 {
        self.ask(&RelayRegistry::relayOfCall { relayId: relay }).bond.to()
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

    /// Returns the storage root of the directory on the chain.
    fn root(&self) -> B256 {
        let slots = self.chain.storage(self.directory);
        directory_root(slots.into_iter().map(|(slot, hash)| (slot.to(), B256::from(hash))))
    }
}

/// Returns the creation code of the registry with its arguments.
fn creation(token: Address, min_bond: u64, judges: [Address; 2]) -> Bytes {
    let [rate, least, most, min_bond] = [RATE, 1, HIGHEST_RATE, min_bond].map(U256::from);
    let arguments = (token, GOVERNOR, GUARDIAN, rate, least, most, min_bond, judges).abi_encode_params();
    [&code("RelayRegistry")[..], &arguments].concat().into()
}

/// Returns the creation code of a contract from the folder in `OPENRELAY_ARTIFACTS`, so that mutants can be tested.
fn code(name: &str) -> Bytes {
    let committed = || std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../contracts/artifacts");
    let folder = std::env::var_os("OPENRELAY_ARTIFACTS").map_or_else(committed, std::path::PathBuf::from);
    let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
    let artifact: serde_json::Value = serde_json::from_str(&text).unwrap();
    artifact["bytecode"].as_str().unwrap().parse().unwrap()
}

/// Returns the withdrawal address of a person's relays.
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
fn artifacts_are_compiled_from_these_sources() {
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
    assert!(checked > names.len(), "only {checked} sources were checked, although some contracts import others");
}

#[test]
fn registry_writes_what_readers_prove() {
    let mut world = World::new();
    assert_eq!(world.root(), directory_root([]), "the directory contains only records");
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
    // A record with previous content is refused.
    let mut stale = entries;
    stale[1] = entry(2, person(2), 100, 3, Status::Active, descriptor(2));
    assert!(RecordSet::verify(&write(stale).unwrap(), world.root()).is_err());
}

#[test]
fn registration_stays_within_gas_budget() {
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
fn bond_is_returned_after_two_weeks_and_not_before() {
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
    assert_eq!(world.root(), directory_root([]), "the directory is empty");
    refusal(world.tell(person(1), &withdraw), &RelayRegistry::WrongStatus {});
    let left = world.ask(&RelayRegistry::relayOfCall { relayId: 1 });
    assert_eq!((left.withdrawal, left.operator, left.status), (cold(person(1)), Address::ZERO, 0));
    // The relay's number is never reused.
    world.register(person(2), 100, 1_000, &descriptor(2)).unwrap();
    assert_eq!(world.ask(&RelayRegistry::countCall {}), 2);
}

#[test]
fn strangers_and_stolen_hot_keys_are_refused() {
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
    assert!(world.chain.send(person(1), world.directory, write).is_err(), "only the registry writes the directory");
}

fn sol_write(relay_id: u64, hash: B256) -> Bytes {
    sol! { function write(uint64 relayId, bytes32 recordHash); }
    writeCall { relayId: relay_id, recordHash: hash }.abi_encode().into()
}

#[test]
fn bad_registrations_are_refused_with_named_errors() {
    let mut world = World::new();
    refusal(
        world.register(person(1), 100, 999, &descriptor(1)),
        &RelayRegistry::BondTooSmall { bond: U256::from(999), needed: U256::from(1_000) },
    );
    refusal(world.register(person(1), 0, 999, &descriptor(1)), &RelayRegistry::BadValue {});
    refusal(world.register(person(1), 1, 999, &[]), &RelayRegistry::BadDescriptor {});
    refusal(world.register(person(1), 1, 999, &[1; 257]), &RelayRegistry::BadDescriptor {});
    assert!(world.register(person(9), 1, 999, &descriptor(1)).is_err(), "an account without tokens cannot register");
    assert_eq!(world.ask(&RelayRegistry::countCall {}), 0);
    assert_eq!(world.root(), directory_root([]));
}

#[test]
fn governor_and_guardian_powers_are_bounded_in_time_and_size() {
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
    refusal(world.tell(person(3), &reclass), &RelayRegistry::NothingChanges {});
    assert_eq!(
        world.ask(&RelayRegistry::relayOfCall { relayId: 1 }).bondClass,
        0,
        "the bond is too small under the new rate"
    );

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

#[test]
fn relay_below_the_minimum_bond_is_refused_at_any_bandwidth() {
    let mut world = World::new();
    refusal(
        world.register(person(1), 1, MIN_BOND - 1, &descriptor(1)),
        &RelayRegistry::BondTooSmall { bond: U256::from(MIN_BOND - 1), needed: U256::from(MIN_BOND) },
    );
    world.register(person(1), 1, MIN_BOND, &descriptor(1)).unwrap();
    assert_eq!(world.ask(&RelayRegistry::relayOfCall { relayId: 1 }).bondClass, 1);
    let (token, most) = (world.token, HIGHEST_RATE * 10_000);
    for (min_bond, good) in [(0, false), (1, true), (most, true), (most + 1, false)] {
        let made = world.chain.deploy(GOVERNOR, creation(token, min_bond, [Address::ZERO; 2]));
        assert_eq!(made.is_ok(), good, "{min_bond}");
    }
}

#[test]
fn restarting_relay_never_waits_but_a_flood_of_descriptions_does() {
    let mut world = World::new();
    world.register(person(1), 100, 1_000, &descriptor(1)).unwrap();
    for number in 0..16 {
        world.describe(person(1), 1, number).unwrap();
    }
    let refused = world.describe(person(1), 1, 1).unwrap_err();
    let Failure::Reverted(why) = refused else { panic!("{refused:?}") };
    let from: u64 = RelayRegistry::TooManyChanges::abi_decode(&why).unwrap().from.to();
    assert!(from > world.chain.timestamp() && from <= world.chain.timestamp() + REFILL, "{from}");
    // One change in ten minutes, and not two.
    world.chain.set_next_timestamp(from - 1);
    world.describe(person(1), 1, 1).unwrap_err();
    world.chain.set_next_timestamp(from);
    world.describe(person(1), 1, 2).unwrap();
    world.describe(person(1), 1, 3).unwrap_err();
    // Each relay has its own budget, so another relay is unaffected. One day later the whole budget is available
    // again.
    world.register(person(2), 100, 1_000, &descriptor(2)).unwrap();
    world.describe(person(2), 2, 4).unwrap();
    world.chain.advance(DAY);
    for number in 0..16 {
        world.describe(person(1), 1, number).unwrap();
    }
    world.describe(person(1), 1, 1).unwrap_err();
}

#[test]
fn events_of_a_relay_that_cost_nothing_are_bounded() {
    let mut world = World::new();
    world.register(person(1), 100, 1_000, &descriptor(1)).unwrap();
    let hash = keccak256(descriptor(1));
    let drain = |draining| RelayRegistry::drainCall { relayId: 1, draining, descriptorHash: hash };
    for turn in 0..16 {
        world.tell(person(1), &drain(turn % 2 == 0)).unwrap();
    }
    world.tell(person(1), &drain(true)).unwrap_err();
    let top_up =
        |amount: u64| RelayRegistry::topUpCall { relayId: 1, amount: amount.try_into().unwrap(), descriptorHash: hash };
    refusal(world.tell(person(3), &top_up(0)), &RelayRegistry::NothingChanges {});
    let registry = world.registry;
    let changed = |receipt: Receipt| receipt.logs.iter().filter(|log| log.address == registry).count();
    let little = world.tell(person(3), &top_up(1)).unwrap();
    assert_eq!(changed(little), 0, "the record is unchanged, so mirrors have nothing to read");
    let doubled = world.tell(person(3), &top_up(1_000)).unwrap();
    assert_eq!(changed(doubled), 1);
    let reclass = RelayRegistry::reclassCall { relayId: 1, descriptorHash: hash };
    refusal(world.tell(person(3), &reclass), &RelayRegistry::NothingChanges {});
}

/// A thief of the hot key uses the whole budget at every chance, but the withdrawal address can still replace the
/// thief.
#[test]
fn stolen_hot_key_cannot_block_the_withdrawal_address() {
    let mut world = World::new();
    world.register(person(1), 100, 1_000, &descriptor(1)).unwrap();
    for _ in 0..3 {
        world.chain.advance(REFILL);
        while world.describe(person(1), 1, 1).is_ok() {}
    }
    let hash = keccak256(descriptor(1));
    let take = |operator| RelayRegistry::setOperatorCall { relayId: 1, operator, descriptorHash: hash };
    let owner = cold(person(1));
    refusal(world.tell(owner, &take(person(1))), &RelayRegistry::NothingChanges {});
    world.tell(owner, &take(person(2))).unwrap();
    world.describe(person(1), 1, 1).unwrap_err();
    // The withdrawal address's own calls are bounded too.
    let mut calls = 1;
    while world.tell(owner, &take(person(2 - calls % 2))).is_ok() {
        calls += 1;
    }
    assert!((15..=16).contains(&calls), "{calls}");
    world.tell(owner, &RelayRegistry::unbondCall { relayId: 1, descriptorHash: hash }).unwrap();
}

#[test]
fn judge_slashes_a_bond_even_while_unbonding_and_nobody_else_does() {
    let mut world = World::new();
    world.register(person(1), 100, 2_000, &descriptor(1)).unwrap();
    for stranger in [person(1), person(2), GOVERNOR, GUARDIAN, Address::ZERO] {
        refusal(world.slash(stranger, 1, 100, person(3)), &RelayRegistry::NotAllowed {});
    }
    refusal(world.slash(JUDGE, 2, 100, person(3)), &RelayRegistry::WrongStatus {});
    refusal(world.slash(JUDGE, 1, 10_001, person(3)), &RelayRegistry::BadValue {});
    // Slashing needs no descriptor. The record stays until any account writes it again.
    world.slash(JUDGE, 1, 1_000, person(3)).unwrap();
    assert_eq!((world.bond(1), world.ask(&RelayRegistry::burnedCall {})), (1_800, U256::from(190)));
    let before = entry(1, person(1), 100, 2, Status::Active, descriptor(1));
    assert!(RecordSet::verify(&write(vec![before]).unwrap(), world.root()).is_ok());
    let hash = keccak256(descriptor(1));
    world.tell(person(2), &RelayRegistry::reclassCall { relayId: 1, descriptorHash: hash }).unwrap();
    let after = entry(1, person(1), 100, 1, Status::Active, descriptor(1));
    assert!(RecordSet::verify(&write(vec![after]).unwrap(), world.root()).is_ok());
    // With half the required bond the relay cannot describe itself. The bond can be topped up.
    world.slash(JUDGE, 1, 5_000, Address::ZERO).unwrap();
    assert!(world.describe(person(1), 1, 2).is_err());
    world.tell(person(1), &RelayRegistry::unbondCall { relayId: 1, descriptorHash: hash }).unwrap();
    world.chain.advance(14 * DAY - 60);
    world.slash(JUDGE, 1, 10_000, person(3)).unwrap();
    world.chain.advance(60);
    world.tell(person(1), &RelayRegistry::withdrawCall { relayId: 1 }).unwrap();
    assert_eq!(world.balance(cold(person(1))), U256::ZERO, "the whole bond was slashed");
    refusal(world.slash(JUDGE, 1, 100, person(3)), &RelayRegistry::WrongStatus {});
    let bounty = 10 + 45;
    let rich = world.balance(person(3));
    world.tell(person(2), &RelayRegistry::claimCall { owner: person(3) }).unwrap();
    world.tell(person(2), &RelayRegistry::claimCall { owner: person(3) }).unwrap();
    assert_eq!(world.balance(person(3)) - rich, U256::from(bounty), "a bounty is paid once");
    assert_eq!(
        world.balance(world.registry),
        U256::from(2_000 - bounty),
        "the rest is burned and stays in the registry"
    );
}

/// The zero address stands for a missing judge, so its holder must not be able to slash.
#[test]
fn deployment_without_judges_slashes_nothing() {
    let mut world = World::new();
    let registry = world.chain.deploy(GOVERNOR, creation(world.token, MIN_BOND, [Address::ZERO; 2])).unwrap();
    world.registry = registry.created.unwrap();
    for caller in [JUDGE, GOVERNOR, person(1), Address::ZERO] {
        refusal(world.slash(caller, 1, 100, person(3)), &RelayRegistry::NotAllowed {});
    }
}

/// A call that anybody may try.
#[derive(Clone, Debug)]
enum Step {
    Slash { relay: u64, part: u64 },
    Reclass { relay: u64 },
    SetOperator { relay: u64, operator: u8 },
    Register { mbit: u32, bond: u64 },
    Describe { relay: u64, mbit: u32 },
    TopUp { relay: u64, amount: u64 },
    Drain { relay: u64, draining: bool },
    Unbond { relay: u64 },
    Withdraw { relay: u64 },
    Wait { minutes: u64 },
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
        2 => (0u64..20).prop_map(|days| Step::Wait { minutes: days * 1_440 }),
        2 => (0u64..40).prop_map(|minutes| Step::Wait { minutes }),
        1 => (relay(), 0u64..11_000).prop_map(|(relay, part)| Step::Slash { relay, part }),
        1 => relay().prop_map(|relay| Step::Reclass { relay }),
        1 => (relay(), 1u8..=3).prop_map(|(relay, operator)| Step::SetOperator { relay, operator }),
    ]
}

/// A relay in the model: its owner, its operator, and its remaining budget.
#[derive(Clone)]
struct Modelled {
    owner: u8,
    operator: u8,
    mbit: u32,
    bond: u64,
    class: u8,
    status: Status,
    free_at: u64,
    /// Times of its last changes, the newest last.
    changes: Vec<u64>,
    bytes: Vec<u8>,
}

impl Modelled {
    fn serves(&self) -> bool {
        self.status != Status::Unbonding
    }

    /// Returns whether the relay can make one more change: a bucket that drains by one in [`REFILL`] seconds,
    /// recomputed from all changes.
    fn may_change(&self, now: u64, most: u64) -> bool {
        let (mut level, mut last) = (0u64, 0);
        for at in &self.changes {
            level = level.saturating_sub(at - last) + REFILL;
            last = *at;
        }
        level.saturating_sub(now - last) + REFILL <= most * REFILL
    }
}

fn class(bond: u64, mbit: u32) -> u8 {
    let needed = (RATE * u64::from(mbit)).max(MIN_BOND);
    (0u8..8).take_while(|doublings| bond >= needed << doublings).count().try_into().unwrap()
}

/// A model of the registry: the effect of each call, or its refusal.
#[derive(Default)]
struct Registry {
    relays: std::collections::BTreeMap<u64, Modelled>,
    count: u64,
    burned: u64,
    bounties: u64,
    paid_in: u64,
}

impl Registry {
    /// Applies a call in a block at the time `now`, and returns `None` if it is refused.
    fn play(&mut self, who: u8, step: &Step, bytes: Vec<u8>, now: u64) -> Option<()> {
        match *step {
            Step::Register { mbit, bond } => {
                let class = class(bond, mbit);
                (mbit > 0 && class > 0).then_some(())?;
                self.count += 1;
                self.paid_in += bond;
                let (status, changes) = (Status::Active, Vec::new());
                let (owner, operator) = (who, who);
                let relay = Modelled { owner, operator, mbit, bond, class, status, free_at: 0, changes, bytes };
                self.relays.insert(self.count, relay);
            }
            Step::Describe { relay, mbit } => {
                let held = self.relays.get_mut(&relay).filter(|held| held.operator == who && held.serves())?;
                let class = class(held.bond, mbit);
                (mbit > 0 && class > 0 && held.may_change(now, BURST)).then_some(())?;
                held.changes.push(now);
                (held.mbit, held.class, held.bytes) = (mbit, class, bytes);
            }
            Step::TopUp { relay, amount } => {
                let held = self.relays.get_mut(&relay).filter(|held| held.serves() && amount > 0)?;
                held.bond += amount;
                held.class = class(held.bond, held.mbit);
                self.paid_in += amount;
            }
            Step::Drain { relay, draining } => {
                let (from, to) = (Status::Active, Status::Draining);
                let (from, to) = if draining { (from, to) } else { (to, from) };
                let held = self.relays.get_mut(&relay).filter(|held| held.operator == who && held.status == from)?;
                held.may_change(now, BURST).then_some(())?;
                held.changes.push(now);
                held.status = to;
            }
            Step::SetOperator { relay, operator } => {
                let held = self.relays.get_mut(&relay).filter(|held| held.owner == who && held.serves())?;
                (held.operator != operator && held.may_change(now, 2 * BURST)).then_some(())?;
                held.changes.push(now);
                held.operator = operator;
            }
            Step::Unbond { relay } => {
                let held = self.relays.get_mut(&relay).filter(|held| held.operator == who && held.serves())?;
                (held.status, held.free_at) = (Status::Unbonding, now + 14 * DAY);
            }
            Step::Withdraw { relay } => {
                self.relays.get(&relay).filter(|held| !held.serves() && now >= held.free_at)?;
                self.relays.remove(&relay);
            }
            Step::Slash { relay, part } => {
                let held = self.relays.get_mut(&relay).filter(|_| part <= 10_000)?;
                let amount = held.bond * part / 10_000;
                held.bond -= amount;
                self.bounties += amount * 500 / 10_000;
                self.burned += amount - amount * 500 / 10_000;
            }
            Step::Reclass { relay } => {
                let held = self.relays.get_mut(&relay)?;
                let class = class(held.bond, held.mbit);
                (class != held.class).then_some(())?;
                held.class = class;
            }
            Step::Wait { .. } => {}
        }
        Some(())
    }
}

/// Returns the number of random sequences: a few by default, or the number that `./x test` sets.
fn sequences() -> u32 {
    std::env::var("OPENRELAY_SEQUENCES").ok().and_then(|count| count.parse().ok()).unwrap_or(200)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: sequences(), failure_persistence: None, ..ProptestConfig::default() })]

    /// Three people try random calls in random order. The registry allows exactly what the model allows, the
    /// directory equals the model's, and no token is created or lost.
    #[test]
    fn registry_matches_its_model(steps in prop::collection::vec((1u8..=3, any_step()), 1..40)) {
        let mut world = World::new();
        let mut model = Registry::default();
        for (turn, (who, step)) in steps.into_iter().enumerate() {
            let bytes = descriptor(u8::try_from(turn).unwrap());
            let hash = |relay: u64| model.relays.get(&relay).map_or(B256::ZERO, |relay| keccak256(&relay.bytes));
            let caller = person(who);
            let told = match step {
                Step::Register { mbit, bond } => world.register(caller, mbit, bond, &bytes),
                Step::Describe { relay, mbit } => {
                    let descriptor = bytes.clone().into();
                    world.tell(
                        caller,
                        &RelayRegistry::describeCall { relayId: relay, advertisedMbit: mbit, descriptor },
                    )
                }
                Step::TopUp { relay, amount } => {
                    let (amount, hash) = (amount.try_into().unwrap(), hash(relay));
                    world.tell(caller, &RelayRegistry::topUpCall { relayId: relay, amount, descriptorHash: hash })
                }
                Step::Drain { relay, draining } => {
                    let call = RelayRegistry::drainCall { relayId: relay, draining, descriptorHash: hash(relay) };
                    world.tell(caller, &call)
                }
                Step::SetOperator { relay, operator } => {
                    let (operator, hash) = (person(operator), hash(relay));
                    let call = RelayRegistry::setOperatorCall { relayId: relay, operator, descriptorHash: hash };
                    world.tell(cold(caller), &call)
                }
                Step::Unbond { relay } => {
                    world.tell(caller, &RelayRegistry::unbondCall { relayId: relay, descriptorHash: hash(relay) })
                }
                Step::Withdraw { relay } => world.tell(caller, &RelayRegistry::withdrawCall { relayId: relay }),
                Step::Slash { relay, part } => world.slash(JUDGE, relay, part, person(9)),
                Step::Reclass { relay } => {
                    world.tell(caller, &RelayRegistry::reclassCall { relayId: relay, descriptorHash: hash(relay) })
                }
                Step::Wait { minutes } => {
                    world.chain.advance(60 * minutes);
                    continue;
                }
            };
            let modelled = model.play(who, &step, bytes, world.chain.timestamp());
            prop_assert_eq!(told.is_ok(), modelled.is_some(), "{:?}: {:?}", step, told.err());
        }
        let entries = model.relays.iter().map(|(id, relay)| {
            entry(*id, person(relay.operator), relay.mbit, relay.class, relay.status, relay.bytes.clone())
        });
        prop_assert!(RecordSet::verify(&write(entries.collect()).unwrap(), world.root()).is_ok());
        let held: u64 = model.relays.values().map(|relay| relay.bond).sum();
        let burned = world.ask(&RelayRegistry::burnedCall {});
        let bounties = world.ask(&RelayRegistry::creditOfCall { owner: person(9) });
        prop_assert_eq!((burned, bounties), (U256::from(model.burned), U256::from(model.bounties)));
        prop_assert_eq!(
            world.balance(world.registry),
            U256::from(held) + burned + bounties,
            "the registry holds all bonds"
        );
        let cold_sum: U256 = (1..=3).map(|who| world.balance(cold(person(who)))).sum();
        let inside = U256::from(held) + burned + bounties;
        prop_assert_eq!(cold_sum + inside, U256::from(model.paid_in), "every deposit is held or was paid back");
    }
}
