// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity 0.8.37;

/// @title The directory: relay id to the hash of its record, and nothing else.
/// @notice Slot `relayId` of this contract's storage holds the record's hash, so the storage root that a chain proves (EIP-1186) commits to all
/// relays: a reader that has every record can recompute it, which proves that none is wrong, missing or extra.
/// @dev Therefore no other storage, no proxy, no mapping. The registry is part of the code.
contract Directory {
    /// @notice The only address that may write.
    address public immutable registry;

    /// @notice The caller is not the registry.
    error OnlyRegistry();

    constructor() {
        registry = msg.sender;
    }

    /// @notice Sets, or with zero deletes, the hash of a relay's record.
    /// @param relayId The relay's number in the registry.
    /// @param recordHash Keccak-256 of the record.
    function write(uint64 relayId, bytes32 recordHash) external {
        if (msg.sender != registry) revert OnlyRegistry();
        assembly ("memory-safe") {
            sstore(relayId, recordHash)
        }
    }

    /// @notice The hash of a relay's record; zero when there is no such relay.
    /// @param relayId The relay's number in the registry.
    /// @return recordHash Keccak-256 of the record.
    function read(uint64 relayId) external view returns (bytes32 recordHash) {
        assembly ("memory-safe") {
            recordHash := sload(relayId)
        }
    }
}
