// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {IERC20} from "@openzeppelin/contracts/token/ERC20/IERC20.sol";
import {SafeERC20} from "@openzeppelin/contracts/token/ERC20/utils/SafeERC20.sol";
import {ReentrancyGuardTransient} from "@openzeppelin/contracts/utils/ReentrancyGuardTransient.sol";
import {Governed} from "./Governed.sol";

/// @title Issuers of tokens: where they are, their keys, and what they run.
/// @notice An entry holds an issuer's own claims; a client trusts them only if the issuer's evidence shows the same key and image. A bond keeps the
/// list short.
contract Issuers is Governed, ReentrancyGuardTransient {
    using SafeERC20 for IERC20;

    /// @dev Four slots and the endpoint.
    struct Issuer {
        address operator;
        uint48 freeAt;
        address withdrawal;
        bytes32 key;
        bytes32 image;
        string endpoint;
    }

    /// @notice How long a bond is held after its issuer has left.
    uint48 public constant UNBONDING = 21 days;
    /// @notice Bytes of an endpoint at most.
    uint256 public constant MAX_ENDPOINT = 128;

    /// @notice The token of bonds; one that takes a fee on transfers is refused.
    IERC20 public immutable token;
    /// @notice What each issuer bonds.
    uint96 public immutable bond;

    /// @notice Issuers that were ever registered.
    uint64 public count;

    mapping(uint64 issuerId => Issuer) private _issuers;

    /// @notice An issuer has come, or says something else of itself.
    event Described(
        uint64 indexed issuerId, address indexed operator, bytes32 key, bytes32 image, string endpoint
    );
    /// @notice An issuer leaves.
    event Unbonded(uint64 indexed issuerId, uint48 freeAt);
    /// @notice A bond went back.
    event Withdrawn(uint64 indexed issuerId, address withdrawal);

    /// @notice The issuer is not there, or not in a state for this.
    error WrongStatus();
    /// @notice The token took a part of the transfer.
    error FeeOnTransfer();

    /// @param token_ The token of bonds.
    /// @param governor_ Who announces a successor.
    /// @param guardian_ Who may stop registrations.
    /// @param bond_ What each issuer bonds.
    constructor(IERC20 token_, address governor_, address guardian_, uint96 bond_) Governed(governor_, guardian_) {
        if (address(token_) == address(0) || bond_ == 0) revert BadValue();
        (token, bond) = (token_, bond_);
    }

    /// @notice Registers an issuer of the caller, with its bond.
    /// @param withdrawal Where the bond goes back to.
    /// @param key SHA-256 of the key that its evidence binds.
    /// @param image SHA-256 of the image that it runs.
    /// @param endpoint Where it is.
    /// @return issuerId Its number for ever.
    function register(address withdrawal, bytes32 key, bytes32 image, string calldata endpoint)
        external
        nonReentrant
        whenNotPaused
        returns (uint64 issuerId)
    {
        if (withdrawal == address(0)) revert BadValue();
        issuerId = ++count;
        (_issuers[issuerId].operator, _issuers[issuerId].withdrawal) = (msg.sender, withdrawal);
        _describe(issuerId, key, image, endpoint);
        uint256 before = token.balanceOf(address(this));
        token.safeTransferFrom(msg.sender, address(this), bond);
        if (token.balanceOf(address(this)) != before + bond) revert FeeOnTransfer();
    }

    /// @notice Changes what an issuer says of itself.
    /// @param issuerId The issuer.
    /// @param key SHA-256 of its key now.
    /// @param image SHA-256 of its image now.
    /// @param endpoint Where it is now.
    function describe(uint64 issuerId, bytes32 key, bytes32 image, string calldata endpoint) external {
        if (msg.sender != _issuers[issuerId].operator) revert NotAllowed();
        if (_issuers[issuerId].freeAt != 0) revert WrongStatus();
        _describe(issuerId, key, image, endpoint);
    }

    /// @notice Leaves; the bond is free after {UNBONDING}.
    /// @param issuerId The issuer.
    function unbond(uint64 issuerId) external {
        Issuer storage issuer = _issuers[issuerId];
        if (msg.sender != issuer.operator && msg.sender != issuer.withdrawal) revert NotAllowed();
        if (issuer.freeAt != 0) revert WrongStatus();
        issuer.freeAt = uint48(block.timestamp) + UNBONDING;
        emit Unbonded(issuerId, issuer.freeAt);
    }

    /// @notice Pays a free bond to its withdrawal address and forgets the issuer; anybody may.
    /// @param issuerId The issuer.
    function withdraw(uint64 issuerId) external nonReentrant {
        Issuer memory issuer = _issuers[issuerId];
        if (issuer.freeAt == 0) revert WrongStatus();
        if (block.timestamp < issuer.freeAt) revert TooEarly();
        delete _issuers[issuerId];
        emit Withdrawn(issuerId, issuer.withdrawal);
        token.safeTransfer(issuer.withdrawal, bond);
    }

    /// @notice An issuer.
    /// @param issuerId The issuer.
    /// @return All of it; empty when there is none, and not to be used when it leaves.
    function get(uint64 issuerId) external view returns (Issuer memory) {
        return _issuers[issuerId];
    }

    function _describe(uint64 issuerId, bytes32 key, bytes32 image, string calldata endpoint) private {
        uint256 length = bytes(endpoint).length;
        if (key == 0 || image == 0 || length == 0 || length > MAX_ENDPOINT) revert BadValue();
        Issuer storage issuer = _issuers[issuerId];
        (issuer.key, issuer.image, issuer.endpoint) = (key, image, endpoint);
        emit Described(issuerId, issuer.operator, key, image, endpoint);
    }
}
