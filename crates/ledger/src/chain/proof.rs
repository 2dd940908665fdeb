//! Proofs of accounts and slots under a state root, as `eth_getProof` returns them.
//!
//! Owns the bounds of a proof and the treatment of absent values; alloy-trie verifies the tries. It never fetches
//! proofs. Source: EIP-1186.

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_rlp::{RlpEncodable, encode};
use alloy_trie::Nibbles;
use alloy_trie::proof::verify_proof;

/// Maximum number of nodes in a proof: one for each half byte of a hashed key, and the leaf.
pub const MAX_NODES: usize = 65;
/// Largest node, in bytes. A branch with sixteen hashes has 532.
pub const MAX_NODE: usize = 1_024;

/// State of an account under a state root.
#[derive(Clone, Copy, PartialEq, Eq, Debug, RlpEncodable)]
pub struct Account {
    /// Number of transactions sent, or contracts created.
    pub nonce: u64,
    /// Balance, in wei.
    pub balance: U256,
    /// Root of the account's storage.
    pub storage_root: B256,
    /// Keccak-256 of the account's code.
    pub code_hash: B256,
}

/// A proof that does not prove the claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProofError {
    /// The proof is larger than a proof can be.
    #[error("the proof is too large; the limit is {MAX_NODES} nodes of {MAX_NODE} bytes")]
    TooLarge,
    /// The proof does not lead from the root to the claim.
    #[error("the proof does not show what is claimed: the endpoint is wrong about the chain")]
    Wrong,
}

/// Verifies that `address` is `claimed` under `state_root`. `None` claims that there is no such account.
///
/// # Errors
/// [`ProofError`] if the nodes prove anything else.
pub fn verify_account(
    state_root: B256,
    address: Address,
    claimed: Option<&Account>,
    nodes: &[Bytes],
) -> Result<(), ProofError> {
    verify(state_root, keccak256(address), claimed.map(encode), nodes)
}

/// Verifies that `slot` holds `claimed` under `storage_root`. Zero claims that the slot is empty.
///
/// # Errors
/// [`ProofError`] if the nodes prove anything else.
pub fn verify_slot(storage_root: B256, slot: B256, claimed: U256, nodes: &[Bytes]) -> Result<(), ProofError> {
    let value = (!claimed.is_zero()).then(|| encode(claimed));
    verify(storage_root, keccak256(slot), value, nodes)
}

fn verify(root: B256, key: B256, value: Option<Vec<u8>>, nodes: &[Bytes]) -> Result<(), ProofError> {
    if nodes.len() > MAX_NODES || nodes.iter().any(|node| node.len() > MAX_NODE) {
        return Err(ProofError::TooLarge);
    }
    verify_proof(root, Nibbles::unpack(key), value, nodes).map_err(|_| ProofError::Wrong)
}

#[cfg(test)]
mod tests;
