//! Accounts and slots under a state root, as `eth_getProof` claims them.
//!
//! Source: EIP-1186. The tries are alloy-trie's; this adds bounds and what absence looks like.

use alloy_primitives::{Address, B256, Bytes, U256, keccak256};
use alloy_rlp::{RlpEncodable, encode};
use alloy_trie::Nibbles;
use alloy_trie::proof::verify_proof;

/// Nodes of a proof at most: one for each half byte of a hashed key, and the leaf.
pub const MAX_NODES: usize = 65;
/// Largest node, in bytes: a branch with sixteen hashes has 532.
pub const MAX_NODE: usize = 1_024;

/// What an account is under a state root.
#[derive(Clone, Copy, PartialEq, Eq, Debug, RlpEncodable)]
pub struct Account {
    /// Transactions sent, or contracts made.
    pub nonce: u64,
    /// In wei.
    pub balance: U256,
    /// The root of its storage.
    pub storage_root: B256,
    /// Keccak-256 of its code.
    pub code_hash: B256,
}

/// A proof that proves something else, or nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum ProofError {
    /// More than a proof can have.
    #[error("the proof is too large: at most {MAX_NODES} nodes of {MAX_NODE} bytes")]
    TooLarge,
    /// It does not lead from the root to what is claimed.
    #[error("the proof does not show what is claimed: the endpoint is wrong about the chain")]
    Wrong,
}

/// Checks that `address` is `claimed` under `state_root`; `None` claims that there is no such account.
///
/// # Errors
/// [`ProofError`] when the nodes show anything else.
pub fn verify_account(
    state_root: B256,
    address: Address,
    claimed: Option<&Account>,
    nodes: &[Bytes],
) -> Result<(), ProofError> {
    verify(state_root, keccak256(address), claimed.map(encode), nodes)
}

/// Checks that `slot` holds `claimed` under `storage_root`; zero claims that it is empty.
///
/// # Errors
/// [`ProofError`] when the nodes show anything else.
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
