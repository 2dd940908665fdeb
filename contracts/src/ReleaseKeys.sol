// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";
import {EIP712} from "@openzeppelin/contracts/utils/cryptography/EIP712.sol";

/// @title The keys that sign releases.
/// @notice Votes prove that an image is what a source gives; these signatures prove whose source it is. A threshold of the keys must sign. The
/// same threshold can replace the keys after two weeks, and can cancel the change until then. No one else can sign or change keys,
/// including governors of other contracts.
contract ReleaseKeys is EIP712 {
    /// @notice What is signed.
    /// @dev `kind`: 1 relay image, 2 client package, 3 issuer image.
    struct Release {
        bytes32 sourceTree;
        bytes32 inputsLock;
        uint8 kind;
        uint64 version;
    }

    /// @notice How long new keys are announced before they hold.
    uint48 public constant CHANGE_LOCK = 14 days;
    /// @notice Keys at most.
    uint256 public constant MAX_KEYS = 32;

    bytes32 private constant RELEASE =
        keccak256("Release(bytes32 sourceTree,bytes32 inputsLock,uint8 kind,uint64 version)");
    bytes32 private constant CHANGE = keccak256("Change(uint64 serial,uint8 threshold,address[] keys)");

    /// @notice How many keys must sign.
    uint8 public threshold;
    /// @notice How many announcements there were; a signature of a change is good for one.
    uint64 public serial;
    /// @notice From when the announced keys may be put in force; zero when none are announced.
    uint48 public nextAt;
    /// @notice How many of the announced keys will have to sign.
    uint8 public nextThreshold;
    /// @notice Versions of a kind for which two sources were signed; nothing of them is a release any more.
    mapping(uint8 kind => mapping(uint64 version => bool)) public conflicted;

    address[] private _keys;
    address[] private _nextKeys;
    mapping(address key => bool) private _isKey;

    /// @notice Keys were announced; none, when a change was called off.
    event ChangeAnnounced(uint64 serial, uint8 threshold, address[] keys, uint48 validFrom);
    /// @notice Keys are in force.
    event Changed(uint64 serial, uint8 threshold, address[] keys);
    /// @notice Two different sources were signed for one version: the proof is in the call.
    event Conflict(uint8 indexed kind, uint64 indexed version, Release first, Release second);

    /// @notice Keys are not strictly ascending, too many, or fewer than must sign.
    error BadKeys();
    /// @notice Too few signatures, a signer that holds no key, or signers that are not strictly ascending.
    error BadSignatures();
    /// @notice Two sources were signed for this version.
    error Conflicted();
    /// @notice The two releases do not contradict each other.
    error NoConflict();
    /// @notice It is too early, or nothing was announced.
    error TooEarly();

    /// @param threshold_ How many must sign.
    /// @param keys_ The keys, ascending.
    constructor(uint8 threshold_, address[] memory keys_) EIP712("OpenRelay releases", "1") {
        _check(threshold_, keys_);
        _set(threshold_, keys_);
    }

    /// @notice Announces new keys with the signatures of the present ones; an empty list calls the announced change off.
    /// @param nextThreshold_ How many of them will have to sign.
    /// @param nextKeys_ The keys, ascending, or none.
    /// @param signatures Of {changeHash}, ascending by signer.
    function announce(uint8 nextThreshold_, address[] calldata nextKeys_, bytes[] calldata signatures) external {
        _checkSignatures(changeHash(nextThreshold_, nextKeys_), signatures);
        ++serial;
        if (nextKeys_.length == 0) {
            if (nextAt == 0 || nextThreshold_ != 0) revert BadKeys();
            nextAt = 0;
        } else {
            _check(nextThreshold_, nextKeys_);
            nextAt = uint48(block.timestamp) + CHANGE_LOCK;
        }
        (nextThreshold, _nextKeys) = (nextThreshold_, nextKeys_);
        emit ChangeAnnounced(serial, nextThreshold_, nextKeys_, nextAt);
    }

    /// @notice Puts the announced keys in force; anybody may.
    function change() external {
        if (nextAt == 0 || block.timestamp < nextAt) revert TooEarly();
        for (uint256 i = 0; i < _keys.length; ++i) {
            _isKey[_keys[i]] = false;
        }
        nextAt = 0;
        _set(nextThreshold, _nextKeys);
    }

    /// @notice Shows that two different sources were signed for one version; anybody may, and nothing of that version is a release any more.
    /// @param first A release.
    /// @param firstSignatures Its signatures, ascending by signer.
    /// @param second Another one of the same kind and version.
    /// @param secondSignatures Its signatures, ascending by signer.
    function reportConflict(
        Release calldata first,
        bytes[] calldata firstSignatures,
        Release calldata second,
        bytes[] calldata secondSignatures
    ) external {
        if (first.kind != second.kind || first.version != second.version) revert NoConflict();
        (bytes32 one, bytes32 other) = (releaseHash(first), releaseHash(second));
        if (one == other) revert NoConflict();
        _checkSignatures(one, firstSignatures);
        _checkSignatures(other, secondSignatures);
        conflicted[first.kind][first.version] = true;
        emit Conflict(first.kind, first.version, first, second);
    }

    /// @notice Refuses what is not a release.
    /// @param release What was signed.
    /// @param signatures Of {releaseHash}, ascending by signer.
    /// @return hash The release's hash.
    function check(Release calldata release, bytes[] calldata signatures) external view returns (bytes32 hash) {
        if (conflicted[release.kind][release.version]) revert Conflicted();
        hash = releaseHash(release);
        _checkSignatures(hash, signatures);
    }

    /// @notice The keys in force.
    /// @return Ascending.
    function keys() external view returns (address[] memory) {
        return _keys;
    }

    /// @notice What a key signs for a release (EIP-712).
    /// @param release The release.
    /// @return The hash to sign.
    function releaseHash(Release calldata release) public view returns (bytes32) {
        return _hashTypedDataV4(
            keccak256(abi.encode(RELEASE, release.sourceTree, release.inputsLock, release.kind, release.version))
        );
    }

    /// @notice What a key signs for the next change of keys (EIP-712).
    /// @param nextThreshold_ How many will have to sign.
    /// @param nextKeys_ The keys, ascending, or none.
    /// @return The hash to sign.
    function changeHash(uint8 nextThreshold_, address[] calldata nextKeys_) public view returns (bytes32) {
        return _hashTypedDataV4(
            keccak256(abi.encode(CHANGE, serial, nextThreshold_, keccak256(abi.encodePacked(nextKeys_))))
        );
    }

    function _check(uint8 threshold_, address[] memory keys_) private pure {
        if (threshold_ == 0 || keys_.length < threshold_ || keys_.length > MAX_KEYS) revert BadKeys();
        address last = address(0);
        for (uint256 i = 0; i < keys_.length; ++i) {
            if (keys_[i] <= last) revert BadKeys();
            last = keys_[i];
        }
    }

    function _set(uint8 threshold_, address[] memory keys_) private {
        (threshold, _keys) = (threshold_, keys_);
        for (uint256 i = 0; i < keys_.length; ++i) {
            _isKey[keys_[i]] = true;
        }
        emit Changed(serial, threshold_, keys_);
    }

    function _checkSignatures(bytes32 hash, bytes[] calldata signatures) private view {
        if (signatures.length < threshold) revert BadSignatures();
        address last = address(0);
        for (uint256 i = 0; i < signatures.length; ++i) {
            (address signer, ECDSA.RecoverError fault,) = ECDSA.tryRecoverCalldata(hash, signatures[i]);
            if (fault != ECDSA.RecoverError.NoError || signer <= last || !_isKey[signer]) revert BadSignatures();
            last = signer;
        }
    }
}
