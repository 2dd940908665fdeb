// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {Directory} from "./Directory.sol";
import {Governed} from "./Governed.sol";

/// @title Relays and their bonds.
/// @notice A relay's number here is its permanent ID. Its operator's hot key changes its description; its withdrawal address, which can stay
/// cold, receives the bond and may replace the hot key. Descriptions are in events only; the directory holds the hash of the
/// relay's record, which every change rewrites.
/// @dev Immutable, no proxy. A relay has two slots here and one in the directory. Descriptors are not stored: a caller that changes something else
/// passes the hash of the current one, which is checked against the record.
contract RelayRegistry is Governed, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @notice Where a relay stands.
    enum Status {
        None,
        Active,
        Draining,
        Unbonding
    }

    /// @dev First slot: 160 + 32 + 8 + 8 + 48 bits; second: 160 + 96. While the relay serves, `timer` is the time at which its budget of changes is
    /// full again; while it unbonds, the time at which its bond is free. It never needs both.
    struct Relay {
        address operator;
        uint32 advertisedMbit;
        uint8 bondClass;
        Status status;
        uint48 timer;
        address withdrawal;
        uint96 bond;
    }

    /// @notice How long a bond is held after its relay has left: long enough for what it did to come out.
    uint48 public constant UNBONDING = 14 days;
    /// @notice How long a new stake rate is announced before it holds.
    uint48 public constant RATE_LOCK = 7 days;
    /// @notice Bytes of a descriptor at most; readers refuse more than 162.
    uint256 public constant MAX_DESCRIPTOR = 256;
    /// @notice Largest bond class: 2^7 times what is needed.
    uint8 public constant MAX_CLASS = 8;
    /// @notice Changes that a relay's operator can make at once; the withdrawal address can make as many more, so that a stolen hot key
    /// cannot keep it from acting.
    uint256 public constant BURST = 16;
    /// @notice How long one change of the budget takes to come back.
    uint256 public constant REFILL = 10 minutes;
    /// @notice The largest {minBond}: what this many Mbit/s cost at {maxRate}.
    uint256 public constant MIN_BOND_MBIT = 10_000;

    /// @notice The token that bonds are in; one that takes a fee on transfers is refused.
    IERC20 public immutable token;
    /// @notice Holds the hashes of all records.
    Directory public immutable directory;
    /// @notice Smallest stake for each Mbit/s that can be set.
    uint96 public immutable minRate;
    /// @notice Largest stake for each Mbit/s that can be set.
    uint96 public immutable maxRate;
    /// @notice Smallest bond of a relay, whatever it advertises.
    uint96 public immutable minBond;
    /// @notice A contract that may slash bonds; zero for none.
    address public immutable firstJudge;
    /// @notice Another contract that may slash bonds; zero for none.
    address public immutable secondJudge;

    /// @notice Stake for each advertised Mbit/s.
    uint96 public rate;
    /// @notice The announced rate.
    uint96 public nextRate;
    /// @notice From when the announced rate may be put in force; zero when none is announced.
    uint48 public nextRateAt;
    /// @notice Relays that were ever registered.
    uint64 public count;
    /// @notice Slashed tokens that belong to nobody.
    uint256 public burned;
    /// @notice What an address may claim.
    mapping(address owner => uint256 amount) public creditOf;

    mapping(uint64 relayId => Relay) private _relays;

    /// @notice A relay has come.
    event Registered(
        uint64 indexed relayId, address indexed operator, address withdrawal, uint32 advertisedMbit, bytes descriptor
    );
    /// @notice A relay says something else of itself: another key, address or rate.
    event Described(uint64 indexed relayId, uint32 advertisedMbit, bytes descriptor);
    /// @notice A relay's operator, bond class or status has changed.
    event Changed(uint64 indexed relayId, address operator, uint8 bondClass, Status status);
    /// @notice A bond went back.
    event Withdrawn(uint64 indexed relayId, address withdrawal, uint256 amount);
    /// @notice A judge took a part of a bond; the reporter's bounty is part of the amount.
    event Slashed(uint64 indexed relayId, uint256 amount, address indexed reporter, uint256 bounty);
    /// @notice An address has claimed.
    event Claimed(address indexed owner, uint256 amount);
    /// @notice A rate was announced.
    event RateAnnounced(uint96 rate, uint48 validFrom);
    /// @notice A rate is in force.
    event RateChanged(uint96 rate);

    /// @notice The relay is not there, or not in a state for this.
    error WrongStatus();
    /// @notice The bond is smaller than the rate times the advertised bandwidth, or than {minBond}.
    error BondTooSmall(uint256 bond, uint256 needed);
    /// @notice The descriptor's length is invalid.
    error BadDescriptor();
    /// @notice The hash is not that of the present descriptor: it has changed meanwhile.
    error StaleDescriptor();
    /// @notice The relay has changed too often; its next change is taken from this time on.
    error TooManyChanges(uint48 from);
    /// @notice The call would change nothing.
    error NothingChanges();
    /// @notice The token took a part of the transfer.
    error FeeOnTransfer();

    /// @param token_ The token of bonds.
    /// @param governor_ Who announces rates and a successor.
    /// @param guardian_ Who may stop registrations.
    /// @param rate_ Stake for each Mbit/s at first.
    /// @param minRate_ Lower bound of the rate.
    /// @param maxRate_ Upper bound of the rate.
    /// @param minBond_ Smallest bond of a relay: at least the lowest rate, at most the highest rate for {MIN_BOND_MBIT}.
    /// @param judges The contracts that may slash bonds; zero for none. They can never be changed.
    constructor(
        IERC20 token_,
        address governor_,
        address guardian_,
        uint96 rate_,
        uint96 minRate_,
        uint96 maxRate_,
        uint96 minBond_,
        address[2] memory judges
    ) Governed(governor_, guardian_) {
        if (address(token_) == address(0)) revert BadValue();
        if (minRate_ == 0 || rate_ < minRate_ || rate_ > maxRate_) revert BadValue();
        if (minBond_ < minRate_ || minBond_ > maxRate_ * MIN_BOND_MBIT) revert BadValue();
        token = token_;
        (rate, minRate, maxRate, minBond) = (rate_, minRate_, maxRate_, minBond_);
        (firstJudge, secondJudge) = (judges[0], judges[1]);
        directory = new Directory();
    }

    /// @notice Registers a relay of the caller, with its bond.
    /// @param advertisedMbit What it says that it carries.
    /// @param withdrawal Where the bond goes back to.
    /// @param amount The bond.
    /// @param descriptor What the relay says of itself.
    /// @return relayId Its number for ever.
    function register(uint32 advertisedMbit, address withdrawal, uint96 amount, bytes calldata descriptor)
        external
        nonReentrant
        whenNotPaused
        returns (uint64 relayId)
    {
        if (withdrawal == address(0)) revert BadValue();
        relayId = ++count;
        Relay memory relay = Relay({
            operator: msg.sender,
            advertisedMbit: advertisedMbit,
            bondClass: _enough(amount, advertisedMbit),
            status: Status.Active,
            timer: 0,
            withdrawal: withdrawal,
            bond: amount
        });
        _relays[relayId] = relay;
        _record(relayId, relay, _hash(descriptor));
        emit Registered(relayId, msg.sender, withdrawal, advertisedMbit, descriptor);
        _take(amount);
    }

    /// @notice Changes what a relay says of itself; a new handshake key is such a change. Takes one of its budget of changes.
    /// @param relayId The relay.
    /// @param advertisedMbit What it says that it carries now.
    /// @param descriptor What it says of itself now.
    function describe(uint64 relayId, uint32 advertisedMbit, bytes calldata descriptor) external {
        Relay memory relay = _relays[relayId];
        if (msg.sender != relay.operator) revert NotAllowed();
        if (relay.status != Status.Active && relay.status != Status.Draining) revert WrongStatus();
        relay.bondClass = _enough(relay.bond, advertisedMbit);
        relay.advertisedMbit = advertisedMbit;
        _spend(relay);
        _relays[relayId] = relay;
        _record(relayId, relay, _hash(descriptor));
        emit Described(relayId, advertisedMbit, descriptor);
    }

    /// @notice Adds to a relay's bond; anybody may.
    /// @param relayId The relay.
    /// @param amount How much; not zero.
    /// @param descriptorHash Keccak-256 of its present descriptor.
    function topUp(uint64 relayId, uint96 amount, bytes32 descriptorHash) external nonReentrant {
        Relay memory relay = _current(relayId, descriptorHash);
        if (relay.status != Status.Active && relay.status != Status.Draining) revert WrongStatus();
        if (amount == 0) revert NothingChanges();
        relay.bond += amount;
        uint8 class = _class(relay.bond, relay.advertisedMbit);
        if (class == relay.bondClass) {
            // The record stays as it is, so mirrors have nothing to read: small amounts of strangers are no events.
            _relays[relayId] = relay;
        } else {
            relay.bondClass = class;
            _change(relayId, relay, descriptorHash);
        }
        _take(amount);
    }

    /// @notice Takes no new circuits, or takes them again. Takes one of the relay's budget of changes.
    /// @param relayId The relay.
    /// @param draining Which of the two.
    /// @param descriptorHash Keccak-256 of its present descriptor.
    function drain(uint64 relayId, bool draining, bytes32 descriptorHash) external {
        Relay memory relay = _current(relayId, descriptorHash);
        if (msg.sender != relay.operator && msg.sender != relay.withdrawal) revert NotAllowed();
        if (relay.status != (draining ? Status.Active : Status.Draining)) revert WrongStatus();
        relay.status = draining ? Status.Draining : Status.Active;
        _spend(relay);
        _change(relayId, relay, descriptorHash);
    }

    /// @notice Replaces the hot key of a relay that serves; the withdrawal address alone may, so a thief of the hot key does not keep the
    /// relay. Takes one of the relay's budget of changes, of which the hot key can use up only half.
    /// @param relayId The relay.
    /// @param operator The new hot key.
    /// @param descriptorHash Keccak-256 of its present descriptor.
    function setOperator(uint64 relayId, address operator, bytes32 descriptorHash) external {
        Relay memory relay = _current(relayId, descriptorHash);
        if (msg.sender != relay.withdrawal) revert NotAllowed();
        if (relay.status != Status.Active && relay.status != Status.Draining) revert WrongStatus();
        if (operator == address(0)) revert BadValue();
        if (operator == relay.operator) revert NothingChanges();
        _spend(relay);
        relay.operator = operator;
        _change(relayId, relay, descriptorHash);
    }

    /// @notice Leaves: the relay serves no more, and its bond is free after {UNBONDING}.
    /// @param relayId The relay.
    /// @param descriptorHash Keccak-256 of its present descriptor.
    function unbond(uint64 relayId, bytes32 descriptorHash) external {
        Relay memory relay = _current(relayId, descriptorHash);
        if (msg.sender != relay.operator && msg.sender != relay.withdrawal) revert NotAllowed();
        if (relay.status != Status.Active && relay.status != Status.Draining) revert WrongStatus();
        relay.status = Status.Unbonding;
        relay.timer = uint48(block.timestamp) + UNBONDING;
        _change(relayId, relay, descriptorHash);
    }

    /// @notice Pays a free bond to its withdrawal address, and keeps of the relay that address alone; anybody may call it.
    /// @param relayId The relay.
    function withdraw(uint64 relayId) external nonReentrant {
        Relay memory relay = _relays[relayId];
        if (relay.status != Status.Unbonding) revert WrongStatus();
        if (block.timestamp < relay.timer) revert TooEarly();
        delete _relays[relayId];
        _relays[relayId].withdrawal = relay.withdrawal;
        directory.write(relayId, 0);
        emit Withdrawn(relayId, relay.withdrawal, relay.bond);
        token.safeTransfer(relay.withdrawal, relay.bond);
    }

    /// @notice Takes a part of a bond; judges only. It needs no descriptor: the record keeps the previous bond class until anybody calls
    /// {reclass}. What the reporter does not get belongs to nobody.
    /// @param relayId A relay that has a bond, also one that unbonds.
    /// @param basisPoints Ten-thousandths of the bond.
    /// @param reporter Gets the bounty; zero for nobody.
    /// @param reporterBasisPoints Ten-thousandths of what is taken.
    function slash(uint64 relayId, uint256 basisPoints, address reporter, uint256 reporterBasisPoints) external {
        bool judges = msg.sender == firstJudge || msg.sender == secondJudge;
        // A judge that is left out is nobody, also in a call that is only tried.
        if (!judges || msg.sender == address(0)) revert NotAllowed();
        if (basisPoints > 10_000 || reporterBasisPoints > 10_000) revert BadValue();
        Relay storage relay = _relays[relayId];
        if (relay.status == Status.None) revert WrongStatus();
        uint256 amount = uint256(relay.bond) * basisPoints / 10_000;
        uint256 bounty = reporter == address(0) ? 0 : amount * reporterBasisPoints / 10_000;
        relay.bond -= uint96(amount);
        burned += amount - bounty;
        if (bounty != 0) creditOf[reporter] += bounty;
        emit Slashed(relayId, amount, reporter, bounty);
    }

    /// @notice Pays an address what it may claim; anybody may call it.
    /// @param owner The address.
    function claim(address owner) external nonReentrant {
        uint256 amount = creditOf[owner];
        creditOf[owner] = 0;
        emit Claimed(owner, amount);
        token.safeTransfer(owner, amount);
    }

    /// @notice Announces a rate, which {applyRate} puts in force after {RATE_LOCK}; bonds that are there stay as they are until they change.
    /// @param next The rate.
    function announceRate(uint96 next) external {
        if (msg.sender != governor) revert NotAllowed();
        if (next < minRate || next > maxRate) revert BadValue();
        (nextRate, nextRateAt) = (next, uint48(block.timestamp) + RATE_LOCK);
        emit RateAnnounced(next, nextRateAt);
    }

    /// @notice Puts the announced rate in force; anybody may.
    function applyRate() external {
        if (nextRateAt == 0 || block.timestamp < nextRateAt) revert TooEarly();
        (rate, nextRateAt) = (nextRate, 0);
        emit RateChanged(rate);
    }

    /// @notice Writes a relay's record again where its class has changed with the rate or with its bond; anybody may.
    /// @param relayId The relay.
    /// @param descriptorHash Keccak-256 of its present descriptor.
    function reclass(uint64 relayId, bytes32 descriptorHash) external {
        Relay memory relay = _current(relayId, descriptorHash);
        uint8 class = _class(relay.bond, relay.advertisedMbit);
        if (class == relay.bondClass) revert NothingChanges();
        relay.bondClass = class;
        _change(relayId, relay, descriptorHash);
    }

    /// @notice A relay's two slots; of one that has left, its withdrawal address alone.
    /// @param relayId The relay.
    /// @return What the registry holds of it.
    function relayOf(uint64 relayId) external view returns (Relay memory) {
        return _relays[relayId];
    }

    /// @notice The bond that a bandwidth needs at the rate in force, and at least {minBond}.
    /// @param advertisedMbit The bandwidth.
    /// @return In the token's smallest unit.
    function neededBond(uint32 advertisedMbit) public view returns (uint256) {
        uint256 needed = uint256(rate) * advertisedMbit;
        return needed < minBond ? minBond : needed;
    }

    /// @dev Takes one change of the relay's budget, which comes back at one for each {REFILL}. Mirrors read every change, so a flood of them
    /// must cost a bond for each few.
    function _spend(Relay memory relay) private view {
        uint256 most = REFILL * (msg.sender == relay.withdrawal ? 2 * BURST : BURST);
        uint256 full = relay.timer < block.timestamp ? block.timestamp : relay.timer;
        if (full + REFILL > block.timestamp + most) revert TooManyChanges(uint48(full + REFILL - most));
        relay.timer = uint48(full + REFILL);
    }

    function _enough(uint96 bond, uint32 advertisedMbit) private view returns (uint8 class) {
        if (advertisedMbit == 0) revert BadValue();
        class = _class(bond, advertisedMbit);
        if (class == 0) revert BondTooSmall(bond, neededBond(advertisedMbit));
    }

    /// @dev 0 for too little, otherwise 1 and one more for each doubling.
    function _class(uint96 bond, uint32 advertisedMbit) private view returns (uint8 class) {
        uint256 needed = neededBond(advertisedMbit);
        while (class < MAX_CLASS && bond >= needed << class) ++class;
    }

    function _hash(bytes calldata descriptor) private pure returns (bytes32) {
        if (descriptor.length == 0 || descriptor.length > MAX_DESCRIPTOR) revert BadDescriptor();
        return keccak256(descriptor);
    }

    /// @dev The relay, if this is the hash of its descriptor.
    function _current(uint64 relayId, bytes32 descriptorHash) private view returns (Relay memory relay) {
        relay = _relays[relayId];
        if (relay.status == Status.None) revert WrongStatus();
        if (directory.read(relayId) != _recordHash(relayId, relay, descriptorHash)) revert StaleDescriptor();
    }

    function _change(uint64 relayId, Relay memory relay, bytes32 descriptorHash) private {
        _relays[relayId] = relay;
        _record(relayId, relay, descriptorHash);
        emit Changed(relayId, relay.operator, relay.bondClass, relay.status);
    }

    function _record(uint64 relayId, Relay memory relay, bytes32 descriptorHash) private {
        directory.write(relayId, _recordHash(relayId, relay, descriptorHash));
    }

    function _recordHash(uint64 relayId, Relay memory relay, bytes32 descriptorHash) private pure returns (bytes32) {
        return keccak256(
            abi.encode(
                relayId, relay.operator, descriptorHash, relay.advertisedMbit, relay.bondClass, uint8(relay.status)
            )
        );
    }

    function _take(uint96 amount) private {
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), amount);
        if (token.balanceOf(address(this)) != before + amount) revert FeeOnTransfer();
    }
}
