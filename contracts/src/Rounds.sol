// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {BitMaps} from "@openzeppelin/contracts/utils/structs/BitMaps.sol";
import {ValidatorSet} from "./ValidatorSet.sol";

/// @title Rounds in which validators vote for a value, unseen and then shown.
/// @notice A round takes commitments, then reveals, then proofs of equivocation; then anybody finishes it, and anybody settles what each validator
/// earned or lost. The question has one right answer, so a validator that has not computed it has nothing to copy. Weights are bonds at the block before
/// the round; all shares are of the whole bonded weight, not of what was revealed.
/// @dev The inheriting contract defines who opens rounds, what an opening is and what follows from an approval.
abstract contract Rounds is EIP712 {
    using BitMaps for BitMaps.BitMap;

    /// @notice What a validator can answer.
    enum Answer {
        None,
        Value,
        Failed,
        Abstain
    }

    /// @notice Where a vote stands.
    enum Mark {
        None,
        Committed,
        Revealed,
        Voided
    }

    /// @notice How a round has ended.
    enum Outcome {
        Open,
        Approved,
        Rejected,
        NoQuorum
    }

    /// @notice What another answer than the right one costs in a round.
    enum Price {
        /// Nothing: no answer was right, or the round's sort costs nothing.
        None,
        /// As much as giving no answer.
        Idle,
        /// As much as a wrong value.
        Wrong
    }

    /// @notice How long each part of a round takes, and what is asked of it.
    struct Terms {
        uint32 commitTime;
        uint32 revealTime;
        uint32 extraTime;
        uint32 challengeTime;
        /// Approved from `part` of `whole` of all weight on.
        uint8 part;
        uint8 whole;
        uint8 families;
    }

    /// @dev Three slots, and up to three more: the value that was opened and the answers that more than a third gave.
    struct Round {
        uint48 snapshotBlock;
        uint48 commitEnd;
        uint48 revealEnd;
        uint96 cap;
        bool extended;
        bool opened;
        uint96 total;
        uint96 revealed;
        uint32 extraTime;
        uint32 challengeTime;
        Outcome outcome;
        uint8 part;
        uint8 whole;
        uint8 families;
        bool costs;
        bool urgent;
        Price price;
        uint48 finishedAt;
        uint96 earned;
        uint96 earnedBy;
        uint128 equivocal;
        bytes32 value;
        bytes31 right;
        bytes31[2] strong;
    }

    /// @dev A commitment, and after the reveal the answer: one slot for each round and voter, freed when it is settled.
    struct Vote {
        bytes31 hash;
        Mark mark;
    }

    /// @dev What an answer weighs, and which families gave it.
    struct Tally {
        uint128 weight;
        uint128 families;
    }

    /// @notice Ten-thousandths of a bond that equivocation costs, and the reporter's part of it.
    uint256 public constant EQUIVOCATION = 10_000;
    /// @notice The reporter's ten-thousandths of what equivocation costs.
    uint256 public constant REPORTER = 500;
    /// @notice Ten-thousandths of a bond that a wrong value costs, when few gave it.
    uint256 public constant WRONG = 100;
    /// @notice As many more, in proportion, when a third of the weight gave the same wrong value.
    uint256 public constant WRONG_TOGETHER = 200;
    /// @notice Ten-thousandths of a bond that a commitment without a reveal costs, or a salt that was shown too early.
    uint256 public constant UNREVEALED = 50;
    /// @notice Ten-thousandths of a bond that a missed round costs; as much again for each one in a row, up to {MOST_IN_A_ROW}.
    uint256 public constant MISSED = 5;
    /// @notice From this many rounds without an answer in a row on, each costs the same.
    uint256 public constant MOST_IN_A_ROW = 10;
    /// @notice How long what a wrong value cost can come back.
    uint48 public constant HOLD = 30 days;
    /// @notice Open rounds at most, of those that are urgent and of the others, so that a validator can commit in all of them.
    uint256 public constant MAX_OPEN = 8;

    /// @dev {answerKey} of a failure and of an abstention.
    bytes31 private constant FAILED = 0xabbb5caa7dda850e60932de0934eb1f9d0f59695050f761dc64e443e5030a5;
    bytes31 private constant ABSTAIN = 0x101e368776582e57ab3d116ffe2517c0a585cd5b23174b01e275c2d8329c3d;
    bytes32 private constant STATEMENT = keccak256("Statement(uint64 round,uint8 answer,bytes32 value)");

    /// @notice The validators, and all money.
    ValidatorSet public immutable validators;

    /// @notice Rounds that were ever opened.
    uint64 public roundCount;
    /// @notice Rounds that are not finished: those that are urgent, and the others.
    mapping(bool urgent => uint256) public openRounds;
    /// @notice What a wrong value has cost a validator, until it is decided.
    mapping(uint64 round => mapping(uint64 validatorId => uint256 amount)) public heldOf;

    mapping(uint64 round => Round) internal _rounds;
    mapping(uint64 round => mapping(uint64 validatorId => Vote)) private _votes;
    mapping(uint64 round => mapping(bytes31 answer => Tally)) private _tallies;
    mapping(uint64 round => BitMaps.BitMap) private _settled;
    mapping(uint64 round => BitMaps.BitMap) private _caught;
    /// @notice Rounds in a row in which a validator gave no answer, where others did, as they were settled.
    mapping(uint64 validatorId => uint256 rounds) public idleOf;

    /// @notice A validator has committed.
    event Committed(uint64 indexed round, uint64 indexed validatorId, bytes31 commitment);
    /// @notice A validator has shown its answer; for {Answer.Failed} the value is the hash of its log.
    event Revealed(uint64 indexed round, uint64 indexed validatorId, Answer answer, bytes32 value, uint96 weight);
    /// @notice A vote counts no more: its salt was shown too early, or it was equivocal.
    event Voided(uint64 indexed round, uint64 indexed validatorId, address reporter);
    /// @notice A round has ended.
    event Finished(uint64 indexed round, Outcome outcome, bytes31 right);
    /// @notice What a validator earned or lost in a round is settled.
    event Settled(uint64 indexed round, uint64 indexed validatorId);

    /// @notice The round is not there or not at this point.
    error WrongPhase();
    /// @notice The caller is not the validator's hot key.
    error NotTheVoter();
    /// @notice The vote is not in a state for this, or was settled.
    error WrongMark();
    /// @notice What is shown is not what was committed.
    error WrongOpening();
    /// @notice No such answer, or the two answers are the same.
    error BadAnswer();
    /// @notice The statement was not signed by a hot key of this validator.
    error NotSigned();
    /// @notice {MAX_OPEN} rounds are open.
    error TooManyRounds();
    /// @notice Nobody has a bond.
    error NoValidators();

    /// @param validators_ The validators.
    constructor(ValidatorSet validators_) {
        validators = validators_;
    }

    /// @notice Commits to an answer, or to another one while commitments are taken.
    /// @param round The round.
    /// @param validatorId The caller's validator.
    /// @param commitment From {commitmentOf}.
    function commit(uint64 round, uint64 validatorId, bytes31 commitment) external {
        if (block.timestamp >= _rounds[round].commitEnd) revert WrongPhase();
        Vote storage vote = _votes[round][validatorId];
        if (vote.mark == Mark.None) {
            validators.lock(validatorId, msg.sender);
        } else {
            if (validators.get(validatorId).operator != msg.sender) revert NotTheVoter();
            if (vote.mark != Mark.Committed) revert WrongMark();
        }
        (vote.hash, vote.mark) = (commitment, Mark.Committed);
        emit Committed(round, validatorId, commitment);
    }

    /// @notice Reveals the answer; a validator that has since left may still call it.
    /// @param round The round.
    /// @param validatorId The caller's validator.
    /// @param answer What it is.
    /// @param value The value; for {Answer.Failed} the hash of the log, for {Answer.Abstain} zero.
    /// @param salt What was committed with it.
    function reveal(uint64 round, uint64 validatorId, Answer answer, bytes32 value, bytes32 salt) external {
        Round storage r = _rounds[round];
        if (block.timestamp < r.commitEnd || block.timestamp >= _revealEnd(r)) revert WrongPhase();
        (uint96 weight, uint16 place) = validators.weightOf(validatorId, msg.sender, r.snapshotBlock, r.cap);
        _checkOpening(round, validatorId, answer, value, salt);
        if (block.timestamp >= r.revealEnd) r.extended = true;
        bytes31 key = answerKey(answer, value);
        Vote storage vote = _votes[round][validatorId];
        (vote.hash, vote.mark) = (key, Mark.Revealed);
        if (weight != 0) {
            r.revealed += weight;
            Tally storage tally = _tallies[round][key];
            uint128 sum = tally.weight + weight;
            (tally.weight, tally.families) = (sum, tally.families | uint128(1 << place));
            if (answer != Answer.Abstain && 3 * uint256(sum) > r.total) _remember(r, key);
        }
        emit Revealed(round, validatorId, answer, value, weight);
    }

    /// @notice Voids a vote whose salt is known before reveals are taken; the reporter gets what it costs.
    /// @param round The round.
    /// @param validatorId Whose vote.
    /// @param answer Its answer.
    /// @param value Its value.
    /// @param salt Its salt.
    function reportSalt(uint64 round, uint64 validatorId, Answer answer, bytes32 value, bytes32 salt) external {
        if (block.timestamp >= _rounds[round].commitEnd) revert WrongPhase();
        _checkOpening(round, validatorId, answer, value, salt);
        _votes[round][validatorId].mark = Mark.Voided;
        validators.slash(validatorId, UNREVEALED, msg.sender, 10_000);
        emit Voided(round, validatorId, msg.sender);
    }

    /// @notice Shows that a validator said two things of one round: two signed statements, or one against what it revealed. Its whole bond is
    /// gone; until the round is finished its vote is too. Good as long as the validator has a bond.
    /// @param round The round.
    /// @param validatorId Whose.
    /// @param answers What it said, twice.
    /// @param values The values that it named.
    /// @param signatures Of {statementHash}; an empty one stands for the revealed vote.
    function reportEquivocation(
        uint64 round,
        uint64 validatorId,
        Answer[2] calldata answers,
        bytes32[2] calldata values,
        bytes[2] calldata signatures
    ) external {
        Round storage r = _rounds[round];
        if (r.commitEnd == 0) revert WrongPhase();
        // A key that serves nobody has the number 0.
        if (validatorId == 0) revert NotSigned();
        if (_caught[round].get(validatorId)) revert WrongMark();
        (bytes31 one, bytes31 other) = (answerKey(answers[0], values[0]), answerKey(answers[1], values[1]));
        if (one == other) revert BadAnswer();
        _checkSaid(round, validatorId, answers[0], values[0], signatures[0]);
        _checkSaid(round, validatorId, answers[1], values[1], signatures[1]);
        _caught[round].set(validatorId);
        if (r.outcome == Outcome.Open) _void(round, r, validatorId);
        validators.slash(validatorId, EQUIVOCATION, msg.sender, REPORTER);
        emit Voided(round, validatorId, msg.sender);
    }

    /// @notice Ends a round whose time is over; anybody may.
    /// @param round The round.
    function finish(uint64 round) external {
        Round storage r = _rounds[round];
        if (r.commitEnd == 0 || r.outcome != Outcome.Open) revert WrongPhase();
        if (block.timestamp < _revealEnd(r) + r.challengeTime) revert WrongPhase();
        bytes31 opening = r.opened ? answerKey(Answer.Value, r.value) : bytes31(0);
        (Outcome outcome, bytes31 right) = _count(round, r, opening);
        bool stands;
        (outcome, stands) = _finished(round, outcome);
        if (outcome == Outcome.NoQuorum && !stands) right = 0;
        (r.outcome, r.right, r.finishedAt) = (outcome, right, uint48(block.timestamp));
        if (right != 0 && r.costs) r.price = _priceOf(round, r, outcome, right);
        if (right != 0 && outcome != Outcome.NoQuorum) {
            (uint256 part, uint256 most) = _earns(outcome);
            (r.earned, r.earnedBy) = (uint96(validators.reserve(part, most)), uint96(_tallies[round][right].weight));
        }
        --openRounds[r.urgent];
        emit Finished(round, outcome, right);
    }

    /// @notice Settles what validators earned or lost in a finished round; anybody may.
    /// @param round The round.
    /// @param ids The validators; those already settled are passed over.
    function settle(uint64 round, uint64[] calldata ids) external {
        Round storage r = _rounds[round];
        if (r.outcome == Outcome.Open) revert WrongPhase();
        for (uint256 i = 0; i < ids.length; ++i) {
            if (_settled[round].get(ids[i])) continue;
            _settled[round].set(ids[i]);
            _settle(round, r, ids[i]);
            emit Settled(round, ids[i]);
        }
    }

    /// @notice Decides over what a wrong value has cost: back if the right one was overturned within {HOLD}, otherwise nobody's; anybody may.
    /// @param round The round.
    /// @param validatorId Whose.
    function decide(uint64 round, uint64 validatorId) external {
        uint256 amount = heldOf[round][validatorId];
        if (amount == 0) revert WrongMark();
        uint48 end = _rounds[round].finishedAt + HOLD;
        uint48 overturnedAt = _overturnedAt(round);
        bool back = overturnedAt != 0 && overturnedAt < end;
        if (!back && block.timestamp < end) revert WrongPhase();
        delete heldOf[round][validatorId];
        if (back) validators.giveBack(validators.get(validatorId).withdrawal, amount);
        else validators.burnHeld(amount);
    }

    /// @notice A round.
    /// @param round Its number.
    /// @return All of it.
    function roundOf(uint64 round) external view returns (Round memory) {
        return _rounds[round];
    }

    /// @notice A vote.
    /// @param round The round.
    /// @param validatorId Whose.
    /// @return The commitment or answer, and where it stands.
    function voteOf(uint64 round, uint64 validatorId) external view returns (Vote memory) {
        return _votes[round][validatorId];
    }

    /// @notice What an answer weighs, and the places of the families that gave it.
    /// @param round The round.
    /// @param answer From {answerKey}.
    /// @return Weight and families.
    function tallyOf(uint64 round, bytes31 answer) external view returns (Tally memory) {
        return _tallies[round][answer];
    }

    /// @notice When a round takes reveals no more: later by its extra time when less than two thirds were revealed in time.
    /// @param round The round.
    /// @return The first second in which it does not.
    function revealEnd(uint64 round) external view returns (uint48) {
        return _revealEnd(_rounds[round]);
    }

    /// @notice What stands for an answer: all failures are one.
    /// @param answer The answer.
    /// @param value The value, for {Answer.Value}.
    /// @return The key.
    function answerKey(Answer answer, bytes32 value) public pure returns (bytes31) {
        if (answer == Answer.None) revert BadAnswer();
        return bytes31(keccak256(abi.encode(answer, answer == Answer.Value ? value : bytes32(0))));
    }

    /// @notice What a validator commits to: bound to chain, contract, round and voter.
    /// @param round The round.
    /// @param validatorId The voter.
    /// @param answer Its answer.
    /// @param value Its value.
    /// @param salt 32 random bytes.
    /// @return The commitment.
    function commitmentOf(uint64 round, uint64 validatorId, Answer answer, bytes32 value, bytes32 salt)
        public
        view
        returns (bytes31)
    {
        return bytes31(keccak256(abi.encode(block.chainid, address(this), round, validatorId, answer, value, salt)));
    }

    /// @notice What a validator signs beside its vote, for those who ask it (EIP-712).
    /// @param round The round.
    /// @param answer Its answer.
    /// @param value Its value.
    /// @return The hash to sign.
    function statementHash(uint64 round, Answer answer, bytes32 value) public view returns (bytes32) {
        return _hashTypedDataV4(keccak256(abi.encode(STATEMENT, round, answer, value)));
    }

    /// @dev Opens a round under these terms.
    /// @param terms The terms.
    /// @param costs Whether a missed round and a wrong value cost something.
    /// @param urgent Of which of the two sorts it is, that do not crowd each other out.
    function _open(Terms memory terms, bool costs, bool urgent) internal returns (uint64 round) {
        if (openRounds[urgent] == MAX_OPEN) revert TooManyRounds();
        ++openRounds[urgent];
        round = ++roundCount;
        uint48 before = uint48(block.number) - 1;
        (uint96 total, uint96 cap) = validators.snapshot(before);
        if (total == 0) revert NoValidators();
        Round storage r = _rounds[round];
        r.snapshotBlock = before;
        r.commitEnd = uint48(block.timestamp) + terms.commitTime;
        r.revealEnd = r.commitEnd + terms.revealTime;
        (r.cap, r.total) = (cap, total);
        (r.extraTime, r.challengeTime) = (terms.extraTime, terms.challengeTime);
        (r.part, r.whole, r.families, r.costs, r.urgent) = (terms.part, terms.whole, terms.families, costs, urgent);
    }

    /// @dev What follows of a counted round; may turn an approval into no quorum. Without quorum a right answer stands only where this says so.
    function _finished(uint64 round, Outcome counted) internal virtual returns (Outcome outcome, bool stands);

    /// @dev Returns the reward of a round with this outcome: a divisor of the pot, and an upper limit.
    function _earns(Outcome outcome) internal view virtual returns (uint256 part, uint256 most);

    /// @dev Whether a value must have been opened by a proposer to be approved.
    function _needsOpening() internal pure virtual returns (bool);

    /// @dev When the round's right answer turned out not to be; zero while it has not.
    function _overturnedAt(uint64 round) internal view virtual returns (uint48);

    function _revealEnd(Round storage r) internal view returns (uint48) {
        bool longer = r.extended || 3 * uint256(r.revealed) < 2 * uint256(r.total);
        return longer ? r.revealEnd + r.extraTime : r.revealEnd;
    }

    /// @dev The outcome, and the answer that was right. Without quorum that is a value that could have been approved and has more than half of
    /// all weight: then no other answer rejects the round, so a little more than a third cannot take a proposer's deposit by lying.
    function _count(uint64 round, Round storage r, bytes31 opening) private view returns (Outcome, bytes31) {
        Outcome outcome = Outcome.NoQuorum;
        bytes31 right;
        for (uint256 i = 0; i < 2; ++i) {
            bytes31 key = r.strong[i];
            if (key == 0) continue;
            Tally storage tally = _tallies[round][key];
            uint256 weight = tally.weight;
            bool may = _needsOpening() ? key == opening : key != FAILED;
            if (may) {
                if (_ones(tally.families & ~r.equivocal) < r.families) continue;
                if (weight * r.whole >= uint256(r.total) * r.part) return (Outcome.Approved, key);
                if (2 * weight > r.total) return (Outcome.NoQuorum, key);
            } else if (3 * weight > r.total) {
                outcome = Outcome.Rejected;
                if (3 * weight >= 2 * uint256(r.total)) right = key;
            }
        }
        return (outcome, right);
    }

    /// @dev What other answers than the right one cost. Without quorum a wrong value's price is due only when two thirds of the weight that named
    /// values named this one: "failed" names nothing, so it cannot hold that up, while two values of similar weight leave open which is a lie.
    function _priceOf(uint64 round, Round storage r, Outcome outcome, bytes31 right) private view returns (Price) {
        if (outcome == Outcome.Rejected) return Price.None;
        if (outcome == Outcome.Approved) return Price.Wrong;
        uint256 named = uint256(r.revealed) - _tallies[round][FAILED].weight - _tallies[round][ABSTAIN].weight;
        return 3 * uint256(_tallies[round][right].weight) >= 2 * named ? Price.Wrong : Price.Idle;
    }

    function _settle(uint64 round, Round storage r, uint64 validatorId) private {
        Vote memory vote = _votes[round][validatorId];
        (uint96 weight,) = validators.weightAt(validatorId, r.snapshotBlock, r.cap);
        bool idle;
        uint256 cost;
        if (vote.mark == Mark.None) {
            // A validator that has since left could not commit.
            idle = weight != 0 && r.costs && validators.get(validatorId).status == ValidatorSet.Status.Active;
        } else {
            delete _votes[round][validatorId];
            validators.unlock(validatorId);
            if (vote.mark == Mark.Committed) {
                cost = UNREVEALED;
            } else if (vote.mark == Mark.Revealed && vote.hash == r.right) {
                if (r.costs && idleOf[validatorId] != 0) delete idleOf[validatorId];
                if (r.earned != 0 && !_caught[round].get(validatorId)) {
                    validators.share(validatorId, uint256(r.earned) * weight / r.earnedBy);
                }
            } else if (vote.mark == Mark.Revealed && r.price != Price.None) {
                idle = vote.hash == ABSTAIN || r.price == Price.Idle;
                if (!idle) {
                    uint256 together = 3 * WRONG_TOGETHER * _tallies[round][vote.hash].weight / r.total;
                    uint256 more = together < WRONG_TOGETHER ? together : WRONG_TOGETHER;
                    heldOf[round][validatorId] = validators.hold(validatorId, WRONG + more);
                }
            }
        }
        if (idle) {
            uint256 times = ++idleOf[validatorId];
            // The first abstention in a row is free: a builder may be out of order for a day.
            if (vote.hash == ABSTAIN) --times;
            cost = MISSED * (times < MOST_IN_A_ROW ? times : MOST_IN_A_ROW);
        }
        if (cost != 0) validators.slash(validatorId, cost, address(0), 0);
    }

    /// @dev Takes a vote out of the count, and its whole family out of those that are asked for.
    function _void(uint64 round, Round storage r, uint64 validatorId) private {
        Vote storage vote = _votes[round][validatorId];
        (uint96 weight, uint16 place) = validators.weightAt(validatorId, r.snapshotBlock, r.cap);
        // The place of a validator without weight here may since belong to another family.
        if (weight != 0) r.equivocal |= uint128(1 << place);
        if (vote.mark == Mark.Revealed) _tallies[round][vote.hash].weight -= weight;
        if (vote.mark != Mark.None) vote.mark = Mark.Voided;
    }

    /// @dev At most two answers can have more than a third.
    function _remember(Round storage r, bytes31 key) private {
        if (r.strong[0] == key || r.strong[1] == key) return;
        r.strong[r.strong[0] == 0 ? 0 : 1] = key;
    }

    function _checkOpening(uint64 round, uint64 validatorId, Answer answer, bytes32 value, bytes32 salt) private view {
        Vote storage vote = _votes[round][validatorId];
        if (vote.mark != Mark.Committed) revert WrongMark();
        if (vote.hash != commitmentOf(round, validatorId, answer, value, salt)) revert WrongOpening();
    }

    /// @dev Refuses what the validator has neither signed nor, with an empty signature, revealed.
    function _checkSaid(uint64 round, uint64 validatorId, Answer answer, bytes32 value, bytes calldata signature)
        private
        view
    {
        if (signature.length == 0) {
            Vote storage vote = _votes[round][validatorId];
            if (vote.mark != Mark.Revealed || vote.hash != answerKey(answer, value)) revert NotSigned();
            return;
        }
        (address signer, ECDSA.RecoverError fault,) =
            ECDSA.tryRecoverCalldata(statementHash(round, answer, value), signature);
        if (fault != ECDSA.RecoverError.NoError || validators.validatorOf(signer) != validatorId) revert NotSigned();
        uint48 replaced = validators.replacedAt(signer);
        if (replaced != 0 && replaced <= _rounds[round].snapshotBlock) revert NotSigned();
    }

    function _ones(uint128 bits) private pure returns (uint8 ones) {
        for (; bits != 0; bits &= bits - 1) {
            ++ones;
        }
    }
}
