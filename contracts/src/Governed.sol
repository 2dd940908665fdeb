// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @title Rights of governor and guardian: few, and delayed.
/// @notice The governor names a successor, once and for ever, two weeks after announcing it. The guardian can stop new entries for two weeks, then
/// not again for two weeks. Neither can touch a bond, or stop anyone from leaving, revealing or claiming.
abstract contract Governed {
    /// @notice How long a successor is announced before it is named.
    uint48 public constant SUCCESSOR_LOCK = 14 days;
    /// @notice How long the guardian may stop what is new, and must then let it be before he may again.
    uint48 public constant PAUSE = 14 days;

    /// @notice May announce a successor.
    address public immutable governor;
    /// @notice May stop what is new for a while; nothing else.
    address public immutable guardian;

    /// @notice The contract that takes this one's place; set once.
    address public successor;
    /// @notice From when the announced one may be named; zero when none is announced.
    uint48 public nextSuccessorAt;
    /// @notice The announced successor.
    address public nextSuccessor;
    /// @notice Until when nothing new is taken.
    /// @dev Too wide for the slot before: it shares one with what the inheriting contract declares first, which is read together with it.
    uint104 public pausedUntil;

    /// @notice Nothing new is taken until then.
    event Paused(uint48 until);
    /// @notice A successor was announced.
    event SuccessorAnnounced(address successor, uint48 validFrom);
    /// @notice A successor was named.
    event SuccessorNamed(address successor);

    /// @notice The caller may not do this.
    error NotAllowed();
    /// @notice A value is zero, or out of its bounds.
    error BadValue();
    /// @notice It is too early, or nothing was announced.
    error TooEarly();
    /// @notice Nothing new is taken for a while.
    error NewOnesPaused();

    /// @param governor_ Who announces a successor.
    /// @param guardian_ Who may stop what is new.
    constructor(address governor_, address guardian_) {
        if (governor_ == address(0) || guardian_ == address(0)) revert BadValue();
        (governor, guardian) = (governor_, guardian_);
    }

    modifier whenNotPaused() {
        if (block.timestamp < pausedUntil) revert NewOnesPaused();
        _;
    }

    /// @notice Stops new entries for {PAUSE}. It can be called again after another {PAUSE}.
    function pause() external {
        if (msg.sender != guardian) revert NotAllowed();
        if (pausedUntil != 0 && block.timestamp < pausedUntil + PAUSE) revert TooEarly();
        uint48 until = uint48(block.timestamp) + PAUSE;
        pausedUntil = until;
        emit Paused(until);
    }

    /// @notice Announces the contract that will take this one's place.
    /// @param next That contract.
    function announceSuccessor(address next) external {
        if (msg.sender != governor) revert NotAllowed();
        if (next == address(0) || successor != address(0)) revert BadValue();
        (nextSuccessor, nextSuccessorAt) = (next, uint48(block.timestamp) + SUCCESSOR_LOCK);
        emit SuccessorAnnounced(next, nextSuccessorAt);
    }

    /// @notice Names the announced successor, for ever; anybody may.
    function nameSuccessor() external {
        if (nextSuccessorAt == 0 || block.timestamp < nextSuccessorAt) revert TooEarly();
        (successor, nextSuccessorAt) = (nextSuccessor, 0);
        emit SuccessorNamed(successor);
    }
}
