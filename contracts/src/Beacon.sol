// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {ValidatorSet} from "./ValidatorSet.sol";

/// @title Randomness from validators: commit, reveal, and a penalty for withholding.
/// @notice In each epoch validators commit to secrets in its first half and show them in its second. The output is made of all secrets that were shown, in
/// whatever order. A validator that withholds a secret chooses between two outputs. {outputOf} returns the number of
/// withheld secrets, which is the maximum bias in bits; each costs half a percent of a bond.
contract Beacon {
    /// @dev Two slots.
    struct Epoch {
        bytes32 mixed;
        uint64 committed;
        uint64 revealed;
    }

    /// @notice Ten-thousandths of a bond that a withheld secret costs.
    uint256 public constant WITHHELD = 50;

    /// @notice The validators, and all money.
    ValidatorSet public immutable validators;
    /// @notice Seconds of an epoch.
    uint48 public immutable period;

    mapping(uint48 epoch => Epoch) private _epochs;
    mapping(uint48 epoch => mapping(uint64 validatorId => bytes32)) private _commitments;

    /// @notice A validator has committed.
    event Committed(uint48 indexed epoch, uint64 indexed validatorId, bytes32 commitment);
    /// @notice A validator has shown its secret.
    event Revealed(uint48 indexed epoch, uint64 indexed validatorId, bytes32 secret);

    /// @notice It is not the time for this.
    error WrongPhase();
    /// @notice The caller is not the validator's hot key.
    error NotTheVoter();
    /// @notice The secret is not what was committed, or nothing was, or it was already.
    error WrongOpening();
    /// @notice A value is zero.
    error BadValue();

    /// @param validators_ The validators.
    /// @param period_ Seconds of an epoch.
    constructor(ValidatorSet validators_, uint48 period_) {
        if (period_ < 2) revert BadValue();
        (validators, period) = (validators_, period_);
    }

    /// @notice Commits to a secret in the first half of this epoch.
    /// @param validatorId The caller's validator.
    /// @param commitment From {commitmentOf}.
    function commit(uint64 validatorId, bytes32 commitment) external {
        uint48 epoch = uint48(block.timestamp) / period;
        if (block.timestamp % period >= period / 2) revert WrongPhase();
        if (commitment == 0) revert BadValue();
        if (_commitments[epoch][validatorId] != 0) revert WrongOpening();
        validators.lock(validatorId, msg.sender);
        _commitments[epoch][validatorId] = commitment;
        ++_epochs[epoch].committed;
        emit Committed(epoch, validatorId, commitment);
    }

    /// @notice Shows the secret in the second half of this epoch.
    /// @param validatorId The caller's validator.
    /// @param secret 32 random bytes.
    function reveal(uint64 validatorId, bytes32 secret) external {
        uint48 epoch = uint48(block.timestamp) / period;
        if (block.timestamp % period < period / 2) revert WrongPhase();
        if (validators.get(validatorId).operator != msg.sender) revert NotTheVoter();
        if (_commitments[epoch][validatorId] != commitmentOf(epoch, validatorId, secret)) revert WrongOpening();
        delete _commitments[epoch][validatorId];
        validators.unlock(validatorId);
        Epoch storage e = _epochs[epoch];
        e.mixed ^= keccak256(abi.encode(validatorId, secret));
        ++e.revealed;
        emit Revealed(epoch, validatorId, secret);
    }

    /// @notice Charges a validator for a secret that it has not shown; anybody may.
    /// @param epoch A past epoch.
    /// @param validatorId The validator.
    function charge(uint48 epoch, uint64 validatorId) external {
        if (block.timestamp / period <= epoch) revert WrongPhase();
        if (_commitments[epoch][validatorId] == 0) revert WrongOpening();
        delete _commitments[epoch][validatorId];
        validators.unlock(validatorId);
        validators.slash(validatorId, WITHHELD, address(0), 0);
    }

    /// @notice Returns the output of an epoch.
    /// @param epoch A past epoch, in which somebody has shown a secret.
    /// @return output 32 bytes that nobody knew before its second half.
    /// @return bias How many secrets were withheld: bits of it that one party may have chosen.
    function outputOf(uint48 epoch) external view returns (bytes32 output, uint64 bias) {
        Epoch memory e = _epochs[epoch];
        if (block.timestamp / period <= epoch || e.revealed == 0) revert WrongPhase();
        return (keccak256(abi.encode(epoch, e.mixed)), e.committed - e.revealed);
    }

    /// @notice What a validator commits to: bound to chain, contract, epoch and voter.
    /// @param epoch The epoch.
    /// @param validatorId The voter.
    /// @param secret Its secret.
    /// @return The commitment.
    function commitmentOf(uint48 epoch, uint64 validatorId, bytes32 secret) public view returns (bytes32) {
        return keccak256(abi.encode(block.chainid, address(this), epoch, validatorId, secret));
    }
}
