//! Tests an endpoint with signed transactions, and a chain that is stored in a file.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on must stop")]

use alloy_consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, B256, Bytes, Signature, TxKind, U256, hex};
use k256::ecdsa::SigningKey;
use openrelay_devchain::{KNOWN, Node, Store, development};
use openrelay_ledger::chain::header::Header;
use openrelay_ledger::chain::proof::{Account, verify_account};
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;
const GWEI: u128 = 1_000_000_000;

fn signed(who: usize, nonce: u64, fee: u128, value: u64) -> TxEnvelope {
    let transaction = TxEip1559 {
        chain_id: 31_337,
        nonce,
        gas_limit: 21_000,
        max_fee_per_gas: fee,
        max_priority_fee_per_gas: 1,
        to: TxKind::Call(Address::repeat_byte(9)),
        value: U256::from(value),
        ..TxEip1559::default()
    };
    let key = SigningKey::from_slice(KNOWN[who].1.as_slice()).unwrap();
    let (signature, recovery) = key.sign_prehash_recoverable(transaction.signature_hash().as_slice()).unwrap();
    transaction.into_signed(Signature::from((signature, recovery))).into()
}

fn ask(node: &mut Node, method: &str, params: Value) -> Value {
    node.handle(&json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}))
}

fn send(node: &mut Node, transaction: &TxEnvelope) -> Value {
    ask(node, "eth_sendRawTransaction", json!([hex::encode_prefixed(transaction.encoded_2718())]))
}

fn number(answer: &Value) -> u64 {
    u64::from_str_radix(answer["result"].as_str().unwrap().strip_prefix("0x").unwrap(), 16).unwrap()
}

fn node() -> Node {
    Node::new(development(NOW), true, None)
}

#[test]
fn known_accounts_match_their_keys() {
    for (address, key) in KNOWN {
        let key = SigningKey::from_slice(key.as_slice()).unwrap();
        assert_eq!(Address::from_public_key(key.verifying_key()), address);
    }
}

#[test]
fn signed_transaction_is_mined_and_has_a_receipt() {
    let mut node = node();
    node.tell_time(NOW + 100);
    let transaction = signed(0, 0, 10 * GWEI, 5);
    assert_eq!(send(&mut node, &transaction)["result"], json!(transaction.tx_hash()));
    let receipt = ask(&mut node, "eth_getTransactionReceipt", json!([transaction.tx_hash()]));
    assert_eq!(receipt["result"]["status"], "0x1");
    assert_eq!(receipt["result"]["gasUsed"], "0x5208");
    assert_eq!(number(&ask(&mut node, "eth_getBalance", json!([Address::repeat_byte(9)]))), 5);
    assert_eq!(node.chain().last().header.timestamp, NOW + 100);
    assert!(send(&mut node, &transaction)["error"]["message"].as_str().unwrap().contains("already known"));
    let again = signed(0, 0, 11 * GWEI, 6);
    assert!(send(&mut node, &again)["error"]["message"].as_str().unwrap().contains("nonce too low"));
}

#[test]
fn nonce_gap_waits_and_replacement_pays_ten_percent_more() {
    let mut node = node();
    send(&mut node, &signed(0, 1, 10 * GWEI, 1));
    assert_eq!(node.chain().last().transactions.len(), 0, "the previous transaction is missing");
    let count =
        |node: &mut Node, block: &str| number(&ask(node, "eth_getTransactionCount", json!([KNOWN[0].0, block])));
    assert_eq!((count(&mut node, "latest"), count(&mut node, "pending")), (0, 0));
    let cheap = send(&mut node, &signed(0, 1, 11 * GWEI - 1, 2));
    assert!(cheap["error"]["message"].as_str().unwrap().contains("underpriced"));
    assert!(send(&mut node, &signed(0, 1, 11 * GWEI, 2))["error"].is_null());
    ask(&mut node, "evm_setAutomine", json!([false]));
    send(&mut node, &signed(0, 0, 10 * GWEI, 4));
    assert_eq!((count(&mut node, "latest"), count(&mut node, "pending")), (0, 2));
    node.mine();
    assert_eq!(count(&mut node, "latest"), 2);
    assert_eq!(number(&ask(&mut node, "eth_getBalance", json!([Address::repeat_byte(9)]))), 6, "4 and the replaced 2");
}

#[test]
fn pending_transaction_can_be_dropped_and_block_reverted() {
    let mut node = node();
    send(&mut node, &signed(0, 0, 10 * GWEI, 1));
    assert_eq!(ask(&mut node, "devchain_reorganise", json!(["0x1"]))["result"], true);
    assert_eq!(number(&ask(&mut node, "eth_getBalance", json!([Address::repeat_byte(9)]))), 0);
    ask(&mut node, "evm_setAutomine", json!([false]));
    let waiting = signed(0, 0, 10 * GWEI, 2);
    send(&mut node, &waiting);
    assert_eq!(ask(&mut node, "devchain_dropTransaction", json!([waiting.tx_hash()]))["result"], true);
    node.mine();
    assert!(ask(&mut node, "eth_getTransactionReceipt", json!([waiting.tx_hash()]))["result"].is_null());
}

#[test]
fn account_proofs_are_accepted_by_readers() {
    let mut node = node();
    send(&mut node, &signed(0, 0, 10 * GWEI, 7));
    let raw = ask(&mut node, "debug_getRawHeader", json!(["latest"]));
    let header = Header::decode(&hex::decode(raw["result"].as_str().unwrap()).unwrap()).unwrap();
    let shown = ask(&mut node, "eth_getBlockByNumber", json!(["latest", false]));
    assert_eq!(shown["result"]["hash"], json!(header.hash));
    for address in [Address::repeat_byte(9), Address::repeat_byte(8)] {
        let answer = ask(&mut node, "eth_getProof", json!([address, [], "latest"]));
        let result = &answer["result"];
        let nodes: Vec<Bytes> = serde_json::from_value(result["accountProof"].clone()).unwrap();
        let there = Account {
            nonce: 0,
            balance: U256::from(7),
            storage_root: serde_json::from_value(result["storageHash"].clone()).unwrap(),
            code_hash: serde_json::from_value(result["codeHash"].clone()).unwrap(),
        };
        let claimed = (address == Address::repeat_byte(9)).then_some(&there);
        verify_account(header.state_root, address, claimed, &nodes).unwrap();
        let other = if claimed.is_some() { None } else { Some(&there) };
        verify_account(header.state_root, address, other, &nodes).unwrap_err();
    }
}

#[test]
fn stored_chain_is_restored_and_changed_one_is_refused() {
    let path = std::env::temp_dir().join(format!("openrelay-devchain-{}", std::process::id()));
    let _ = std::fs::remove_file(&path);
    let (store, chain) = Store::open(&path, NOW).unwrap();
    let mut node = Node::new(chain, true, Some(store));
    for nonce in 0..3 {
        node.tell_time(NOW + 10 * nonce);
        send(&mut node, &signed(0, nonce, 10 * GWEI, 1));
    }
    let head: B256 = node.chain().last().hash;
    drop(node);
    let (_, chain) = Store::open(&path, 0).unwrap();
    assert_eq!((chain.last().hash, chain.last().header.number), (head, 3));
    // A crash during a write leaves an incomplete last line.
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, &text.as_bytes()[..text.len() - 9]).unwrap();
    assert_eq!(Store::open(&path, 0).unwrap().1.last().header.number, 2);
    let flipped = text.replacen("\"senders\":[\"0xf", "\"senders\":[\"0xe", 1).replacen("0xf9", "0xf8", 1);
    std::fs::write(&path, flipped).unwrap();
    assert!(Store::open(&path, 0).unwrap_err().to_string().contains("line 2"));
    std::fs::remove_file(&path).unwrap();
}
