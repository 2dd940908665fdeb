// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {ImageRegistry} from "../src/ImageRegistry.sol";
import {ReleaseKeys} from "../src/ReleaseKeys.sol";
import {Rounds} from "../src/Rounds.sol";
import {TestToken} from "../src/TestToken.sol";
import {ValidatorSet} from "../src/ValidatorSet.sol";
import {cheats} from "./Cheats.sol";

/// @dev What seven validators, two proposers and strangers may try, in whatever order. A validator's salt is its number.
contract VoteHandler {
    TestToken public immutable token;
    ValidatorSet public immutable set;
    ImageRegistry public immutable images;
    ReleaseKeys public immutable keys;
    bytes32 public constant GOOD = bytes32(uint256(1));
    bytes32 public constant BAD = bytes32(uint256(2));
    /// Images that were revoked once.
    mapping(uint64 round => bool) public revoked;
    mapping(uint64 round => mapping(uint64 validatorId => uint256)) private _answers;

    constructor() {
        token = new TestToken();
        address[] memory holders = new address[](1);
        holders[0] = cheats.addr(99);
        keys = new ReleaseKeys(1, holders);
        uint64 nonce = cheats.getNonce(address(this));
        address[3] memory judges = [cheats.computeCreateAddress(address(this), nonce + 1), address(3), address(4)];
        set = new ValidatorSet(token, address(1), address(2), 1000, judges);
        images = new ImageRegistry(address(1), address(2), set, keys, 100, 2, 1);
        require(address(images) == judges[0], "elsewhere");
        for (uint256 i = 0; i < 7; ++i) {
            token.mint(voter(i), 1e12);
            cheats.prank(voter(i));
            token.approve(address(set), type(uint256).max);
        }
        for (uint256 i = 0; i < 4; ++i) {
            cheats.prank(voter(i));
            set.join(voter(i), voter(i), 1000);
        }
    }

    function voter(uint256 i) public pure returns (address) {
        return address(uint160(0x2000 + i % 7));
    }

    function join(uint256 who, uint96 amount) external {
        cheats.prank(voter(who));
        set.join(voter(who), voter(who), 900 + amount % 3000);
    }

    function topUp(uint256 who, uint64 id, uint96 amount) external {
        id = _validator(id);
        cheats.prank(voter(who));
        set.topUp(id, amount % 3000);
    }

    function unbond(uint64 id) external {
        id = _validator(id);
        address operator = set.get(id).operator;
        cheats.prank(operator);
        set.unbond(id);
    }

    function withdraw(uint64 id) external {
        set.withdraw(_validator(id));
    }

    function claim(uint256 who) external {
        set.claim(voter(who));
    }

    function fund(uint256 who, uint256 amount) external {
        cheats.prank(voter(who));
        set.fund(amount % 1000);
    }

    function propose(uint256 who, uint64 version, bool bad, bool emergency) external {
        ReleaseKeys.Release memory release = ReleaseKeys.Release(bytes32(0), bytes32(0), 1, version % 3);
        bytes32 hash = keys.releaseHash(release);
        bytes[] memory signatures = new bytes[](1);
        (uint8 v, bytes32 r, bytes32 s) = cheats.sign(99, hash);
        signatures[0] = abi.encodePacked(r, s, v);
        bytes32 blind = images.blindOf(voter(who), hash, bad ? BAD : GOOD, bytes32(0), bytes32(0));
        cheats.prank(voter(who));
        images.propose(
            emergency ? ImageRegistry.RoundKind.Emergency : ImageRegistry.RoundKind.Normal, release, signatures, blind
        );
    }

    function open(uint64 round, bool bad) external {
        round = _round(round);
        address proposer = images.imageBy(round).proposer;
        cheats.prank(proposer);
        images.open(round, bad ? BAD : GOOD, bytes32(0), bytes32(0));
    }

    /// All who may commit and reveal, most of them alike, so that something is approved now and then.
    function vote(uint64 round, uint256 odd) external {
        round = _round(round);
        for (uint64 id = 1; id <= set.count(); ++id) {
            _answers[round][id] = odd % 8 == id ? 1 + odd % 4 : 1;
            (Rounds.Answer answer, bytes32 value) = _said(_answers[round][id]);
            bytes31 commitment = images.commitmentOf(round, id, answer, value, bytes32(uint256(id)));
            address operator = set.get(id).operator;
            cheats.prank(operator);
            try images.commit(round, id, commitment) {} catch {}
        }
    }

    function reveal(uint64 round, uint64 but) external {
        round = _round(round);
        for (uint64 id = 1; id <= set.count(); ++id) {
            if (but % 16 == id) continue;
            (Rounds.Answer answer, bytes32 value) = _said(_answers[round][id]);
            address operator = set.get(id).operator;
            cheats.prank(operator);
            try images.reveal(round, id, answer, value, bytes32(uint256(id))) {} catch {}
        }
    }

    /// A round from its proposal to its end: what is rare by chance is there to be played with.
    function campaign(uint256 who, uint64 version, bool bad, uint256 odd) external {
        this.propose(who, version, bad, false);
        uint64 round = images.roundCount();
        this.vote(round - 1, odd);
        cheats.roll(block.number + 1);
        cheats.warp(block.timestamp + 3 days);
        this.open(round - 1, bad);
        this.reveal(round - 1, uint64(odd >> 8));
        cheats.roll(block.number + 1);
        cheats.warp(block.timestamp + 5 days);
        images.finish(round);
    }

    function reportSalt(uint64 round, uint64 id) external {
        (Rounds.Answer answer, bytes32 value) = _said(_answers[_round(round)][_validator(id)]);
        images.reportSalt(_round(round), _validator(id), answer, value, bytes32(uint256(_validator(id))));
    }

    function finish(uint64 round) external {
        images.finish(_round(round));
    }

    function settle(uint64 round) external {
        uint64[] memory ids = new uint64[](set.count());
        for (uint64 id = 1; id <= ids.length; ++id) {
            ids[id - 1] = id;
        }
        images.settle(_round(round), ids);
    }

    function decide(uint64 round, uint64 id) external {
        images.decide(_round(round), _validator(id));
    }

    function accuse(uint64 round, uint64 id) external {
        (round, id) = (_round(round), _validator(id));
        address operator = set.get(id).operator;
        cheats.prank(operator);
        images.accuse(round, id, bytes32(0));
        revoked[round] = images.stateOf(round) == ImageRegistry.State.Revoked;
    }

    function pass(uint256 time) external {
        uint24[6] memory steps = [uint24(1 hours), 6 hours, 1 days, 1 days, 3 days, 15 days];
        cheats.roll(block.number + 1);
        cheats.warp(block.timestamp + steps[time % 6]);
    }

    function _said(uint256 what) private view returns (Rounds.Answer answer, bytes32 value) {
        if (what == 1) return (Rounds.Answer.Value, images.valueOf(GOOD, bytes32(0)));
        if (what == 2) return (Rounds.Answer.Value, images.valueOf(BAD, bytes32(0)));
        return (what == 3 ? Rounds.Answer.Failed : Rounds.Answer.Abstain, bytes32(0));
    }

    function _validator(uint64 id) private view returns (uint64) {
        return 1 + id % set.count();
    }

    function _round(uint64 round) private view returns (uint64) {
        uint64 count = images.roundCount();
        return count == 0 ? 1 : 1 + round % count;
    }
}

/// @title Invariants of votes, bonds and images.
contract VotesTest {
    VoteHandler private _handler;

    function setUp() public {
        _handler = new VoteHandler();
        cheats.roll(10);
        cheats.warp(1_000_000);
    }

    function targetContracts() public view returns (address[] memory targets) {
        targets = new address[](1);
        targets[0] = address(_handler);
    }

    function invariant_each_token_is_in_one_place() public view {
        ValidatorSet set = _handler.set();
        uint256 sum = set.held() + set.credits() + set.pot() + set.reserved() + set.burned();
        for (uint64 id = 1; id <= set.count(); ++id) {
            sum += set.get(id).bond;
        }
        require(_handler.token().balanceOf(address(set)) == sum, "tokens were made or lost");
    }

    function invariant_no_more_is_counted_than_was_bonded() public view {
        ImageRegistry images = _handler.images();
        bytes31[4] memory answers = [
            images.answerKey(Rounds.Answer.Value, images.valueOf(_handler.GOOD(), bytes32(0))),
            images.answerKey(Rounds.Answer.Value, images.valueOf(_handler.BAD(), bytes32(0))),
            images.answerKey(Rounds.Answer.Failed, bytes32(0)),
            images.answerKey(Rounds.Answer.Abstain, bytes32(0))
        ];
        for (uint64 round = 1; round <= images.roundCount(); ++round) {
            uint256 counted;
            for (uint256 i = 0; i < answers.length; ++i) {
                counted += images.tallyOf(round, answers[i]).weight;
            }
            Rounds.Round memory r = images.roundOf(round);
            require(counted <= r.revealed && r.revealed <= r.total, "counted too much");
        }
    }

    function invariant_what_is_usable_has_two_thirds_for_what_was_opened() public view {
        ImageRegistry images = _handler.images();
        for (uint64 round = 1; round <= images.roundCount(); ++round) {
            if (images.imageBy(round).usableFrom == 0) continue;
            Rounds.Round memory r = images.roundOf(round);
            bytes31 opened = images.answerKey(Rounds.Answer.Value, r.value);
            require(r.opened && 3 * uint256(images.tallyOf(round, opened).weight) >= 2 * uint256(r.total), "approved");
            require(images.imageOf(1, images.imageBy(round).version) == round, "two images of one version");
        }
    }

    function invariant_others_pay_only_where_more_than_half_named_what_was_opened() public view {
        ImageRegistry images = _handler.images();
        for (uint64 round = 1; round <= images.roundCount(); ++round) {
            Rounds.Round memory r = images.roundOf(round);
            if (r.price == Rounds.Price.None) continue;
            bytes31 opened = images.answerKey(Rounds.Answer.Value, r.value);
            require(r.opened && r.right == opened, "another answer is right");
            require(2 * uint256(images.tallyOf(round, opened).weight) > r.total, "too few");
            require(r.outcome != Rounds.Outcome.Rejected, "a rejected round makes nobody pay");
        }
    }

    function invariant_revoked_is_for_ever() public view {
        ImageRegistry images = _handler.images();
        for (uint64 round = 1; round <= images.roundCount(); ++round) {
            bool now_ = images.stateOf(round) == ImageRegistry.State.Revoked;
            require(!_handler.revoked(round) || now_, "it came back");
        }
    }

    function testFuzz_a_commitment_opens_for_its_author_alone(uint64 round, uint64 id, uint64 other, bytes32 salt)
        public
        view
    {
        cheats.assume(id != other);
        ImageRegistry images = _handler.images();
        bytes31 own = images.commitmentOf(round, id, Rounds.Answer.Value, _handler.GOOD(), salt);
        require(own != images.commitmentOf(round, other, Rounds.Answer.Value, _handler.GOOD(), salt), "copied");
        require(own != images.commitmentOf(round ^ 1, id, Rounds.Answer.Value, _handler.GOOD(), salt), "replayed");
    }

    function testFuzz_the_capped_sum_is_at_most_the_sum(uint96[5] calldata bonds) public {
        ValidatorSet set = _handler.set();
        uint256 sum = 4000;
        for (uint256 i = 0; i < 3; ++i) {
            uint96 bond = 1000 + bonds[i] % 1e9;
            sum += bond;
            address operator = _handler.voter(4 + i);
            cheats.prank(operator);
            set.join(operator, operator, bond);
        }
        cheats.roll(block.number + 1);
        (uint96 total, uint96 cap) = set.snapshot(uint48(block.number) - 1);
        uint256 weights;
        for (uint64 id = 1; id <= set.count(); ++id) {
            (uint96 weight,) = set.weightAt(id, uint48(block.number) - 1, cap);
            require(cap == 0 || weight <= cap, "more than the cap");
            weights += weight;
        }
        require(weights <= total && total <= sum, "more than there is");
    }
}
