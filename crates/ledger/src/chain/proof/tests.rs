//! Third-party proofs, and every way in which they can be wrong.

use super::*;
use alloy_primitives::{address, b256, hex, keccak256};
use alloy_trie::proof::ProofRetainer;
use alloy_trie::{EMPTY_ROOT_HASH, HashBuilder};
use proptest::prelude::*;

/// State root of mainnet block 21,925,176, whose header the tests of `header` parse.
const STATE_ROOT: B256 = b256!("7b3d5a01f69b7d2ea7479fd7ae35f4bac2700ab6d6d7b4807a7fedf53ced710e");
const DEPOSIT_CONTRACT: Address = address!("00000000219ab540356cbb839cbe05303d7705fa");

fn mainnet() -> serde_json::Value {
    serde_json::from_str(include_str!("../../../testdata/mainnet-proof.json")).unwrap()
}

fn nodes(value: &serde_json::Value) -> Vec<Bytes> {
    value.as_array().unwrap().iter().map(|node| hex::decode(node.as_str().unwrap()).unwrap().into()).collect()
}

fn account(value: &serde_json::Value) -> Account {
    let text = |key: &str| value[key].as_str().unwrap().to_owned();
    Account {
        nonce: text("nonce").parse::<U256>().unwrap().to(),
        balance: text("balance").parse().unwrap(),
        storage_root: text("storageHash").parse().unwrap(),
        code_hash: text("codeHash").parse().unwrap(),
    }
}

#[test]
fn mainnet_account_and_slot_are_proven() {
    let proof = mainnet();
    let account = account(&proof);
    let own = nodes(&proof["accountProof"]);
    verify_account(STATE_ROOT, DEPOSIT_CONTRACT, Some(&account), &own).unwrap();
    let slot = &proof["storageProof"][0];
    let (key, value): (B256, U256) =
        (slot["key"].as_str().unwrap().parse().unwrap(), slot["value"].as_str().unwrap().parse().unwrap());
    verify_slot(account.storage_root, key, value, &nodes(&slot["proof"])).unwrap();

    let wrong = |claimed: Option<&Account>| verify_account(STATE_ROOT, DEPOSIT_CONTRACT, claimed, &own);
    assert_eq!(wrong(None), Err(ProofError::Wrong), "claimed absent");
    for change in 0..4 {
        let mut other = account;
        match change {
            0 => other.nonce += 1,
            1 => other.balance += U256::from(1),
            2 => other.storage_root.0[31] ^= 1,
            _ => other.code_hash.0[0] ^= 1,
        }
        assert_eq!(wrong(Some(&other)), Err(ProofError::Wrong));
    }
    let elsewhere = address!("00000000219ab540356cbb839cbe05303d7705fb");
    assert!(verify_account(STATE_ROOT, elsewhere, Some(&account), &own).is_err());
    assert!(verify_account(keccak256(b"another state"), DEPOSIT_CONTRACT, Some(&account), &own).is_err());
    assert!(verify_slot(account.storage_root, key, U256::ZERO, &nodes(&slot["proof"])).is_err(), "claimed empty");
}

#[test]
fn missing_repeated_or_changed_node_is_refused() {
    let proof = mainnet();
    let account = account(&proof);
    let own = nodes(&proof["accountProof"]);
    let check = |nodes: &[Bytes]| verify_account(STATE_ROOT, DEPOSIT_CONTRACT, Some(&account), nodes);
    for at in 0..own.len() {
        let mut missing = own.clone();
        missing.remove(at);
        assert!(check(&missing).is_err());
        let mut twice = own.clone();
        twice.insert(at, own[at].clone());
        assert!(check(&twice).is_err());
        for bit in (0..own[at].len() * 8).step_by(7) {
            let mut bytes = own[at].to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let mut flipped = own.clone();
            flipped[at] = bytes.into();
            assert!(check(&flipped).is_err(), "node {at}, bit {bit}");
        }
    }
    assert_eq!(check(&[]), Err(ProofError::Wrong));
    assert_eq!(check(&vec![Bytes::from(vec![0; 8]); MAX_NODES + 1]), Err(ProofError::TooLarge));
    assert_eq!(check(&[Bytes::from(vec![0; MAX_NODE + 1])]), Err(ProofError::TooLarge));
}

#[test]
fn empty_trie_proves_only_absence() {
    let slot = B256::ZERO;
    verify_slot(EMPTY_ROOT_HASH, slot, U256::ZERO, &[]).unwrap();
    assert!(verify_slot(EMPTY_ROOT_HASH, slot, U256::from(1), &[]).is_err());
    assert!(verify_slot(keccak256(b"not empty"), slot, U256::ZERO, &[]).is_err(), "an empty proof proves nothing");
}

/// The official trie tests whose keys are hashes or have the length of hashes.
#[test]
fn trie_roots_match_the_official_tests() {
    let suite: serde_json::Value = serde_json::from_str(include_str!("../../../testdata/trietest.json")).unwrap();
    let bytes = |value: &serde_json::Value| hex::decode(value.as_str().unwrap()).unwrap();
    let mut seen = 0;
    for (name, test) in suite.as_object().unwrap().iter().filter(|(_, test)| test.is_object()) {
        let mut trie = std::collections::BTreeMap::new();
        for pair in test["in"].as_array().unwrap() {
            let mut key = bytes(&pair[0]);
            if name.ends_with("(secure)") {
                key = keccak256(key).to_vec();
            }
            if pair[1].is_null() {
                trie.remove(&key);
            } else {
                trie.insert(key, bytes(&pair[1]));
            }
        }
        let mut builder = HashBuilder::default();
        for (key, value) in &trie {
            builder.add_leaf(Nibbles::unpack(key), value);
        }
        assert_eq!(builder.root().to_string(), test["root"].as_str().unwrap(), "{name}");
        seen += 1;
    }
    assert_eq!(seen, 2);
}

proptest! {
    /// For any storage, each present slot is proven with its value and no other, and an absent slot is proven empty.
    #[test]
    fn slot_is_proven_with_its_value_only(
        storage in prop::collection::btree_map(any::<[u8; 32]>(), 1u64.., 0..40),
        absent: [u8; 32],
    ) {
        let value = |slot: &[u8; 32]| storage.get(slot).map_or(U256::ZERO, |value| U256::from(*value));
        let keys: Vec<[u8; 32]> = storage.keys().copied().chain([absent]).collect();
        let hashed: Vec<Nibbles> = keys.iter().map(|key| Nibbles::unpack(keccak256(key))).collect();
        let mut leaves: Vec<(Nibbles, Vec<u8>)> =
            storage.iter().map(|(key, value)| (Nibbles::unpack(keccak256(key)), encode(U256::from(*value)))).collect();
        leaves.sort();
        let mut builder = HashBuilder::default().with_proof_retainer(ProofRetainer::new(hashed.clone()));
        for (key, value) in &leaves {
            builder.add_leaf(*key, value);
        }
        let root = builder.root();
        let all = builder.take_proof_nodes();
        for (key, path) in keys.iter().zip(&hashed) {
            let nodes: Vec<Bytes> = all.matching_nodes_sorted(path).into_iter().map(|(_, node)| node).collect();
            prop_assert_eq!(verify_slot(root, B256::new(*key), value(key), &nodes), Ok(()));
            prop_assert!(verify_slot(root, B256::new(*key), value(key) + U256::from(1), &nodes).is_err());
            // For an empty trie, an empty proof proves the same.
            if let Some((_, shorter)) = nodes.split_last()
                && !storage.is_empty()
            {
                prop_assert!(verify_slot(root, B256::new(*key), value(key), shorter).is_err());
            }
        }
    }
}
