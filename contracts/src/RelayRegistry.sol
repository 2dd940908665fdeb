// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {Directory} from "./Directory.sol";
import {Governed} from "./Governed.sol";

/// @title Relays and their bonds.
/// @notice A relay's number here is its name for ever. Its operator's hot key changes what it says of itself; its withdrawal address, which can stay
/// cold, is where the bond goes back to, and may replace the hot key. What a relay says of itself stands in events only; the directory
/// holds the hash of its record, which every change writes anew.
/// @dev Immutable, no proxy. A relay has two slots here and one in the directory. Descriptors are not stored: who changes something else passes the
/// hash of the present one, which is checked against the record.
contract RelayRegistry is Governed, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @notice Where a relay stands.
    enum Status {
        None,
        Active,
        Draining,
        Unbonding
    }

    /// @dev First slot: 160 + 32 + 8 + 8 + 48 bits; second: 160 + 96.
    struct Relay {
        address operator;
        uint32 advertisedMbit;
        uint8 bondClass;
        Status status;
        uint48 unbondedAt;
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

    /// @notice The token that bonds are in; one that takes a fee on transfers is refused.
    IERC20 public immutable token;
    /// @notice Holds the hashes of all records.
    Directory public immutable directory;
    /// @notice Smallest stake for each Mbit/s that can be set.
    uint96 public immutable minRate;
    /// @notice Largest stake for each Mbit/s that can be set.
    uint96 public immutable maxRate;

    /// @notice Stake for each advertised Mbit/s.
    uint96 public rate;
    /// @notice The announced rate.
    uint96 public nextRate;
    /// @notice From when the announced rate may be put in force; zero when none is announced.
    uint48 public nextRateAt;
    /// @notice Relays that were ever registered.
    uint64 public count;

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
    /// @notice A rate was announced.
    event RateAnnounced(uint96 rate, uint48 validFrom);
    /// @notice A rate is in force.
    event RateChanged(uint96 rate);

    /// @notice The relay is not there, or not in a state for this.
    error WrongStatus();
    /// @notice The bond is smaller than the rate times the advertised bandwidth.
    error BondTooSmall(uint256 bond, uint256 needed);
    /// @notice A descriptor of this length is none.
    error BadDescriptor();
    /// @notice The hash is not that of the present descriptor: it has changed meanwhile.
    error StaleDescriptor();
    /// @notice The token took a part of the transfer.
    error FeeOnTransfer();

    /// @param token_ The token of bonds.
    /// @param governor_ Who announces rates and a successor.
    /// @param guardian_ Who may stop registrations.
    /// @param rate_ Stake for each Mbit/s at first.
    /// @param minRate_ Lower bound of the rate.
    /// @param maxRate_ Upper bound of the rate.
    constructor(IERC20 token_, address governor_, address guardian_, uint96 rate_, uint96 minRate_, uint96 maxRate_)
        Governed(governor_, guardian_)
    {
        if (address(token_) == address(0)) revert BadValue();
        if (minRate_ == 0 || rate_ < minRate_ || rate_ > maxRate_) revert BadValue();
        token = token_;
        (rate, minRate, maxRate) = (rate_, minRate_, maxRate_);
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
            unbondedAt: 0,
            withdrawal: withdrawal,
            bond: amount
        });
        _relays[relayId] = relay;
        _record(relayId, relay, _hash(descriptor));
        emit Registered(relayId, msg.sender, withdrawal, advertisedMbit, descriptor);
        _take(amount);
    }

    /// @notice Changes what a relay says of itself; a new handshake key is such a change.
    /// @param relayId The relay.
    /// @param advertisedMbit What it says that it carries now.
    /// @param descriptor What it says of itself now.
    function describe(uint64 relayId, uint32 advertisedMbit, bytes calldata descriptor) external {
        Relay memory relay = _relays[relayId];
        if (msg.sender != relay.operator) revert NotAllowed();
        if (relay.status != Status.Active && relay.status != Status.Draining) revert WrongStatus();
        relay.bondClass = _enough(relay.bond, advertisedMbit);
        relay.advertisedMbit = advertisedMbit;
        _relays[relayId] = relay;
        _record(relayId, relay, _hash(descriptor));
        emit Described(relayId, advertisedMbit, descriptor);
    }

    /// @notice Adds to a relay's bond; anybody may.
    /// @param relayId The relay.
    /// @param amount How much.
    /// @param descriptorHash Keccak-256 of its present descriptor.
    function topUp(uint64 relayId, uint96 amount, bytes32 descriptorHash) external nonReentrant {
        Relay memory relay = _current(relayId, descriptorHash);
        if (relay.status != Status.Active && relay.status != Status.Draining) revert WrongStatus();
        relay.bond += amount;
        relay.bondClass = _class(relay.bond, relay.advertisedMbit);
        _change(relayId, relay, descriptorHash);
        _take(amount);
    }

    /// @notice Takes no new circuits, or takes them again.
    /// @param relayId The relay.
    /// @param draining Which of the two.
    /// @param descriptorHash Keccak-256 of its present descriptor.
    function drain(uint64 relayId, bool draining, bytes32 descriptorHash) external {
        Relay memory relay = _current(relayId, descriptorHash);
        if (msg.sender != relay.operator && msg.sender != relay.withdrawal) revert NotAllowed();
        if (relay.status != (draining ? Status.Active : Status.Draining)) revert WrongStatus();
        relay.status = draining ? Status.Draining : Status.Active;
        _change(relayId, relay, descriptorHash);
    }

    /// @notice Replaces the hot key; the withdrawal address alone may, so who steals the hot key does not keep the relay.
    /// @param relayId The relay.
    /// @param operator The new hot key.
    /// @param descriptorHash Keccak-256 of its present descriptor.
    function setOperator(uint64 relayId, address operator, bytes32 descriptorHash) external {
        Relay memory relay = _current(relayId, descriptorHash);
        if (msg.sender != relay.withdrawal) revert NotAllowed();
        if (operator == address(0)) revert BadValue();
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
        relay.unbondedAt = uint48(block.timestamp) + UNBONDING;
        _change(relayId, relay, descriptorHash);
    }

    /// @notice Pays a free bond to its withdrawal address and forgets the relay; anybody may call it.
    /// @param relayId The relay.
    function withdraw(uint64 relayId) external nonReentrant {
        Relay memory relay = _relays[relayId];
        if (relay.status != Status.Unbonding) revert WrongStatus();
        if (block.timestamp < relay.unbondedAt) revert TooEarly();
        delete _relays[relayId];
        directory.write(relayId, 0);
        emit Withdrawn(relayId, relay.withdrawal, relay.bond);
        token.safeTransfer(relay.withdrawal, relay.bond);
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

    /// @notice Writes a relay's record anew under the rate in force; anybody may.
    /// @param relayId The relay.
    /// @param descriptorHash Keccak-256 of its present descriptor.
    function reclass(uint64 relayId, bytes32 descriptorHash) external {
        Relay memory relay = _current(relayId, descriptorHash);
        relay.bondClass = _class(relay.bond, relay.advertisedMbit);
        _change(relayId, relay, descriptorHash);
    }

    /// @notice A relay's two slots.
    /// @param relayId The relay.
    /// @return What the registry holds of it.
    function relayOf(uint64 relayId) external view returns (Relay memory) {
        return _relays[relayId];
    }

    /// @notice The bond that a bandwidth needs at the rate in force.
    /// @param advertisedMbit The bandwidth.
    /// @return In the token's smallest unit.
    function neededBond(uint32 advertisedMbit) public view returns (uint256) {
        return uint256(rate) * advertisedMbit;
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
