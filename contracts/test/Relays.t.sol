// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {RelayRegistry} from "../src/RelayRegistry.sol";
import {TestToken} from "../src/TestToken.sol";
import {cheats} from "./Cheats.sol";

/// @dev What five operators, their withdrawal addresses and a judge may try, in whatever order.
contract RelayHandler {
    RelayRegistry public immutable registry;
    TestToken public immutable token;
    uint256 public paidIn;
    uint256 public immutable begun;
    /// Changes that each relay's operators have made.
    mapping(uint64 relayId => uint256) public changes;
    mapping(uint64 relayId => bytes) private _descriptors;

    constructor() {
        token = new TestToken();
        begun = block.timestamp;
        registry = new RelayRegistry(token, address(1), address(2), 10, 1, 1000, 50, [address(this), address(0)]);
        for (uint256 i = 0; i < 5; ++i) {
            token.mint(operator(i), 1e12);
            cheats.prank(operator(i));
            token.approve(address(registry), type(uint256).max);
        }
    }

    function operator(uint256 i) public pure returns (address) {
        return address(uint160(0x1000 + i % 5));
    }

    function register(uint256 who, uint32 mbit, uint96 amount, bytes calldata descriptor) external {
        amount %= 100_000;
        cheats.prank(operator(who));
        uint64 relayId = registry.register(mbit % 1000, operator(who + 1), amount, descriptor);
        paidIn += amount;
        _descriptors[relayId] = descriptor;
    }

    function describe(uint256 who, uint64 relay, uint32 mbit, bytes calldata descriptor) external {
        relay = _pick(relay);
        cheats.prank(operator(who));
        registry.describe(relay, mbit % 1000, descriptor);
        _descriptors[relay] = descriptor;
        ++changes[relay];
    }

    function topUp(uint256 who, uint64 relay, uint96 amount) external {
        (relay, amount) = (_pick(relay), amount % 100_000);
        bytes32 hash = keccak256(_descriptors[relay]);
        cheats.prank(operator(who));
        registry.topUp(relay, amount, hash);
        paidIn += amount;
    }

    function drain(uint256 who, uint64 relay, bool draining) external {
        relay = _pick(relay);
        bytes32 hash = keccak256(_descriptors[relay]);
        cheats.prank(operator(who));
        registry.drain(relay, draining, hash);
        ++changes[relay];
    }

    /// As often as it is taken: what is rare by chance is there to be played with.
    function flood(uint64 relay, uint8 times) external {
        relay = _pick(relay);
        RelayRegistry.Relay memory shown = registry.relayOf(relay);
        for (uint256 i = 0; i < times % 20; ++i) {
            cheats.prank(shown.operator);
            try registry.describe(relay, shown.advertisedMbit, _descriptors[relay]) {
                ++changes[relay];
            } catch {}
        }
    }

    function setOperator(uint256 who, uint64 relay, uint256 next) external {
        relay = _pick(relay);
        bytes32 hash = keccak256(_descriptors[relay]);
        cheats.prank(operator(who));
        registry.setOperator(relay, operator(next), hash);
        ++changes[relay];
    }

    function slash(uint64 relay, uint256 basisPoints, uint256 reporter) external {
        registry.slash(_pick(relay), basisPoints % 10_001, reporter % 2 == 0 ? address(0) : operator(reporter), 500);
    }

    function reclass(uint64 relay) external {
        relay = _pick(relay);
        registry.reclass(relay, keccak256(_descriptors[relay]));
    }

    function claim(uint256 who) external {
        uint256 credit = registry.creditOf(operator(who));
        registry.claim(operator(who));
        paidIn -= credit;
    }

    function unbond(uint256 who, uint64 relay) external {
        relay = _pick(relay);
        bytes32 hash = keccak256(_descriptors[relay]);
        cheats.prank(operator(who));
        registry.unbond(relay, hash);
    }

    function withdraw(uint64 relay) external {
        relay = _pick(relay);
        uint96 bond = registry.relayOf(relay).bond;
        registry.withdraw(relay);
        paidIn -= bond;
    }

    function pass(uint32 time) external {
        cheats.warp(block.timestamp + time % 20 days);
    }

    function _pick(uint64 relay) private view returns (uint64) {
        uint64 count = registry.count();
        return count == 0 ? 1 : 1 + relay % count;
    }
}

/// @title Invariants of relays and their bonds.
contract RelaysTest {
    RelayHandler private _handler;

    function setUp() public {
        _handler = new RelayHandler();
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_handler);
    }

    function invariant_bonds_are_all_there() public view {
        RelayRegistry registry = _handler.registry();
        uint256 bonds;
        for (uint64 relayId = 1; relayId <= registry.count(); ++relayId) {
            bonds += registry.relayOf(relayId).bond;
        }
        bonds += registry.burned();
        for (uint256 i = 0; i < 5; ++i) {
            bonds += registry.creditOf(_handler.operator(i));
        }
        require(_handler.token().balanceOf(address(registry)) == bonds, "bonds and balance differ");
        require(_handler.paidIn() == bonds, "something was made or lost");
    }

    function invariant_a_record_is_there_as_long_as_its_relay() public view {
        RelayRegistry registry = _handler.registry();
        for (uint64 relayId = 1; relayId <= registry.count(); ++relayId) {
            bool there = registry.relayOf(relayId).status != RelayRegistry.Status.None;
            require((registry.directory().read(relayId) != 0) == there, "record and relay differ");
        }
    }

    function invariant_a_withdrawal_address_is_known_for_ever() public view {
        RelayRegistry registry = _handler.registry();
        for (uint64 relayId = 1; relayId <= registry.count(); ++relayId) {
            require(registry.relayOf(relayId).withdrawal != address(0), "it was forgotten");
        }
    }

    function invariant_a_relay_changes_no_more_often_than_its_budget() public view {
        RelayRegistry registry = _handler.registry();
        uint256 budget = 2 * registry.BURST() + (block.timestamp - _handler.begun()) / registry.REFILL();
        for (uint64 relayId = 1; relayId <= registry.count(); ++relayId) {
            require(_handler.changes(relayId) <= budget, "a flood");
        }
    }

    function testFuzz_nobody_but_a_judge_slashes(address stranger, uint256 basisPoints) public {
        RelayRegistry registry = _handler.registry();
        cheats.assume(stranger != address(_handler));
        _handler.register(0, 1, 50, "descriptor");
        cheats.prank(stranger);
        try registry.slash(1, basisPoints, stranger, 500) {
            revert("a stranger has taken a bond");
        } catch {}
    }

    function testFuzz_only_the_withdrawal_address_replaces_the_operator(address thief, uint96 amount) public {
        cheats.assume(thief != _handler.operator(1));
        RelayRegistry registry = _handler.registry();
        _handler.register(0, 1, 50 + amount % 90_000, "descriptor");
        cheats.prank(thief);
        try registry.setOperator(1, thief, keccak256("descriptor")) {
            revert("a thief has the relay");
        } catch {}
    }

    function testFuzz_a_bond_class_is_the_doublings_of_what_is_needed(uint96 amount, uint32 mbit) public {
        RelayRegistry registry = _handler.registry();
        (amount, mbit) = (amount % 100_000, 1 + mbit % 999);
        uint256 needed = registry.neededBond(mbit);
        try _handler.register(0, mbit, amount, "descriptor") {
            uint8 class = registry.relayOf(1).bondClass;
            require(amount >= needed && amount >= needed << (class - 1), "class too high");
            require(class == 8 || amount < needed << class, "class too low");
        } catch {
            require(amount < needed, "a bond that is enough was refused");
        }
    }
}
