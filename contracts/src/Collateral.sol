// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";
import {Rounds} from "./Rounds.sol";
import {ValidatorSet} from "./ValidatorSet.sol";

/// @title The vendors' collateral that everybody uses, by hash, and how old the vendors' firmware may be.
/// @notice Validators fetch what vendors publish (TCB information, identities, revocation lists) and vote for its hash and for floors, as they vote for
/// images, in rounds of six hours. The bytes are served by mirrors.
contract Collateral is Rounds {
    /// @notice What is voted for.
    struct Entry {
        bytes32 bundle;
        uint32 intelFloor;
        uint64 amdFloor;
    }

    /// @notice Rounds begin at multiples of this many seconds.
    uint48 public constant PERIOD = 6 hours;
    /// @notice How long collateral holds before more than half of the weight can renew it: about half of the time after which Intel's expires.
    uint48 public constant RENEWABLE_AFTER = 14 days;
    /// @notice How long after its reveals a round can renew collateral, so that nobody renews it by an old one.
    uint48 public constant RENEWS_FOR = 24 hours;

    /// @notice Families that must name the value.
    uint8 public immutable minFamilies;
    /// @notice 1; development networks divide all times by more.
    uint32 public immutable haste;

    /// @notice The round of each period; zero when nobody has opened it.
    mapping(uint48 period => uint64 round) public roundOfPeriod;
    /// @notice What holds now: SHA-256 of the bundle, the smallest `tcbEvaluationDataNumber`, the smallest AMD TCB.
    Entry public current;
    /// @notice Of which round it is; an older one never follows a newer one.
    uint64 public currentRound;
    /// @notice Since when it holds.
    uint48 public currentSince;

    /// @notice Other collateral holds.
    event Posted(uint64 indexed round, Entry entry);

    /// @notice The period has its round.
    error AlreadyOpen();
    /// @notice The round approved another entry, or none, or a newer one holds.
    error NotApproved();
    /// @notice A floor never falls.
    error FloorFalls();
    /// @notice A value is zero, or out of its bounds.
    error BadValue();

    /// @param validators_ The validators.
    /// @param minFamilies_ Families that must name the value.
    /// @param haste_ 1, or what a development network divides times by.
    constructor(ValidatorSet validators_, uint8 minFamilies_, uint32 haste_)
        Rounds(validators_)
        EIP712("OpenRelay collateral", "1")
    {
        if (minFamilies_ == 0 || haste_ == 0 || haste_ > 7_200) revert BadValue();
        (minFamilies, haste) = (minFamilies_, haste_);
    }

    /// @notice Opens this period's round; anybody may, once.
    /// @return round The round.
    function open() external returns (uint64 round) {
        uint48 period = uint48(block.timestamp) / (PERIOD / haste);
        if (roundOfPeriod[period] != 0) revert AlreadyOpen();
        // Vendors publish at any time, so a validator that misses a round or fetched earlier than others is not penalised.
        round = _open(Terms(3 hours / haste, 2 hours / haste, 0, 0, 2, 3, minFamilies), false, false);
        roundOfPeriod[period] = round;
    }

    /// @notice Puts in force what a round approved; anybody may. What has more than half of the weight, and less than two thirds, renews
    /// collateral that is {RENEWABLE_AFTER} old, and leaves the floors unchanged. So a silent third cannot let collateral expire, and any
    /// harm by a majority ends with the next entry: vendors sign collateral, and only floors are permanent.
    /// @param round The round.
    /// @param entry What was voted for.
    function post(uint64 round, Entry calldata entry) external {
        Round storage r = _rounds[round];
        bool named = r.right == answerKey(Answer.Value, valueOf(entry));
        if (r.outcome == Outcome.Open || !named || round <= currentRound) revert NotApproved();
        Entry memory next = entry;
        if (r.outcome != Outcome.Approved) {
            bool late = block.timestamp >= _revealEnd(r) + RENEWS_FOR / haste;
            if (r.outcome != Outcome.NoQuorum || late || block.timestamp < renewableFrom()) revert NotApproved();
            (next.intelFloor, next.amdFloor) = (current.intelFloor, current.amdFloor);
        }
        if (entry.intelFloor < current.intelFloor || entry.amdFloor < current.amdFloor) revert FloorFalls();
        (current, currentRound, currentSince) = (next, round, uint48(block.timestamp));
        emit Posted(round, next);
    }

    /// @notice From when more than half of the weight can renew what holds; far in the future while nothing does.
    /// @return Seconds since 1970.
    function renewableFrom() public view returns (uint48) {
        return currentRound == 0 ? type(uint48).max : currentSince + RENEWABLE_AFTER / haste;
    }

    /// @notice What validators vote for.
    /// @param entry The collateral and its floors.
    /// @return The value.
    function valueOf(Entry calldata entry) public pure returns (bytes32) {
        return keccak256(abi.encode(entry));
    }

    function _finished(uint64, Outcome counted) internal pure override returns (Outcome outcome, bool stands) {
        return (counted, true);
    }

    /// @dev About a hundredth of the pot a day.
    function _earns(Outcome) internal pure override returns (uint256 part, uint256 most) {
        return (400, type(uint96).max);
    }

    function _needsOpening() internal pure override returns (bool) {
        return false;
    }

    function _overturnedAt(uint64) internal pure override returns (uint48) {
        return 0;
    }
}
