//! Serialises answers. Source: ethereum/execution-apis, src/schemas, and the answers of go-ethereum where they
//! differ.

use alloy_consensus::{Eip658Value, Transaction, TxEnvelope, TxReceipt, Typed2718};
use alloy_primitives::{B256, Bytes, U256, hex};
use serde_json::{Map, Value, json};

use crate::chain::{Block, Done};

pub(super) fn quantity(value: impl Into<U256>) -> Value {
    format!("{:#x}", value.into()).into()
}

pub(super) fn data(bytes: &[u8]) -> Value {
    hex::encode_prefixed(bytes).into()
}

fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(object) = object.as_object_mut() {
        object.insert(key.to_owned(), value);
    }
}

pub(super) fn block(block: &Block, whole: bool) -> Value {
    let header = &block.header;
    let transactions: Vec<Value> = (0..block.transactions.len())
        .map(
            |index| {
                if whole { transaction(block, index) } else { json!(block.transactions[index].transaction.tx_hash()) }
            },
        )
        .collect();
    let ommers: Vec<B256> = block.ommers.iter().map(alloy_consensus::Header::hash_slow).collect();
    let mut object = json!({
        "hash": block.hash,
        "parentHash": header.parent_hash,
        "sha3Uncles": header.ommers_hash,
        "miner": data(header.beneficiary.as_slice()),
        "stateRoot": header.state_root,
        "transactionsRoot": header.transactions_root,
        "receiptsRoot": header.receipts_root,
        "logsBloom": data(header.logs_bloom.as_slice()),
        "difficulty": quantity(header.difficulty),
        "number": quantity(U256::from(header.number)),
        "gasLimit": quantity(U256::from(header.gas_limit)),
        "gasUsed": quantity(U256::from(header.gas_used)),
        "timestamp": quantity(U256::from(header.timestamp)),
        "extraData": data(&header.extra_data),
        "mixHash": header.mix_hash,
        "nonce": data(header.nonce.as_slice()),
        "size": quantity(U256::from(block.to_rlp().len())),
        "transactions": transactions,
        "uncles": ommers,
    });
    for (key, value) in [
        ("baseFeePerGas", header.base_fee_per_gas),
        ("blobGasUsed", header.blob_gas_used),
        ("excessBlobGas", header.excess_blob_gas),
    ] {
        if let Some(value) = value {
            set(&mut object, key, quantity(U256::from(value)));
        }
    }
    for (key, value) in [
        ("withdrawalsRoot", header.withdrawals_root),
        ("parentBeaconBlockRoot", header.parent_beacon_block_root),
        ("requestsHash", header.requests_hash),
    ] {
        if let Some(value) = value {
            set(&mut object, key, json!(value));
        }
    }
    if let Some(withdrawals) = &block.withdrawals
        && header.withdrawals_root.is_some()
    {
        let one = |w: &alloy_eips::eip4895::Withdrawal| {
            json!({
                "index": quantity(U256::from(w.index)),
                "validatorIndex": quantity(U256::from(w.validator_index)),
                "address": data(w.address.as_slice()),
                "amount": quantity(U256::from(w.amount)),
            })
        };
        set(&mut object, "withdrawals", withdrawals.iter().map(one).collect());
    }
    object
}

/// Returns a transaction in a block.
pub(super) fn transaction(block: &Block, index: usize) -> Value {
    let Done { transaction, sender, .. } = &block.transactions[index];
    let base_fee = block.header.base_fee_per_gas;
    let mut object = bare(transaction, *sender, base_fee);
    for (key, value) in [
        ("blockHash", json!(block.hash)),
        ("blockNumber", quantity(U256::from(block.header.number))),
        ("blockTimestamp", quantity(U256::from(block.header.timestamp))),
        ("transactionIndex", quantity(U256::from(index))),
    ] {
        set(&mut object, key, value);
    }
    object
}

/// Returns a transaction without its block.
pub(super) fn bare(transaction: &TxEnvelope, sender: alloy_primitives::Address, base_fee: Option<u64>) -> Value {
    let signature = transaction.signature();
    let parity = u64::from(signature.v());
    let mut object = json!({
        "type": quantity(U256::from(transaction.ty())),
        "hash": transaction.tx_hash(),
        "from": data(sender.as_slice()),
        "to": transaction.to().map(|to| data(to.as_slice())),
        "nonce": quantity(U256::from(transaction.nonce())),
        "gas": quantity(U256::from(transaction.gas_limit())),
        "gasPrice": quantity(U256::from(transaction.effective_gas_price(base_fee))),
        "value": quantity(transaction.value()),
        "input": data(transaction.input()),
        "r": quantity(signature.r()),
        "s": quantity(signature.s()),
    });
    if let Some(id) = transaction.chain_id() {
        set(&mut object, "chainId", quantity(U256::from(id)));
    }
    // Source: EIP-155.
    let v = match (transaction.is_legacy(), transaction.chain_id()) {
        (true, Some(id)) => U256::from(id) * U256::from(2) + U256::from(35 + parity),
        (true, None) => U256::from(27 + parity),
        (false, _) => U256::from(parity),
    };
    set(&mut object, "v", quantity(v));
    if transaction.is_legacy() {
        return object;
    }
    set(&mut object, "yParity", quantity(U256::from(parity)));
    let list = transaction.access_list().map(|list| list.0.as_slice()).unwrap_or_default();
    let entry = |item: &alloy_eips::eip2930::AccessListItem| {
        json!({
            "address": data(item.address.as_slice()), "storageKeys": item.storage_keys
        })
    };
    set(&mut object, "accessList", list.iter().map(entry).collect());
    if let Some(tip) = transaction.max_priority_fee_per_gas() {
        set(&mut object, "maxFeePerGas", quantity(U256::from(transaction.max_fee_per_gas())));
        set(&mut object, "maxPriorityFeePerGas", quantity(U256::from(tip)));
    }
    if let Some(hashes) = transaction.blob_versioned_hashes() {
        set(&mut object, "blobVersionedHashes", json!(hashes));
        let fee = transaction.max_fee_per_blob_gas().unwrap_or_default();
        set(&mut object, "maxFeePerBlobGas", quantity(U256::from(fee)));
    }
    if let Some(list) = transaction.authorization_list() {
        let entry = |signed: &alloy_eips::eip7702::SignedAuthorization| {
            json!({
                "chainId": quantity(*signed.chain_id()),
                "address": data(signed.address().as_slice()),
                "nonce": quantity(U256::from(signed.nonce())),
                "yParity": quantity(U256::from(signed.y_parity())),
                "r": quantity(signed.r()),
                "s": quantity(signed.s()),
            })
        };
        set(&mut object, "authorizationList", list.iter().map(entry).collect());
    }
    object
}

/// Gas of one blob. Source: EIP-4844.
const BLOB_GAS: u64 = 1 << 17;

/// Returns the receipt of a transaction in a block.
pub(super) fn receipt(block: &Block, index: usize, blob_fee: u128) -> Value {
    let done = &block.transactions[index];
    let created = done.created.filter(|_| done.transaction.is_create());
    let mut object = json!({
        "type": quantity(U256::from(done.transaction.ty())),
        "transactionHash": done.transaction.tx_hash(),
        "transactionIndex": quantity(U256::from(index)),
        "blockHash": block.hash,
        "blockNumber": quantity(U256::from(block.header.number)),
        "from": data(done.sender.as_slice()),
        "to": done.transaction.to().map(|to| data(to.as_slice())),
        "contractAddress": created.map(|address| data(address.as_slice())),
        "cumulativeGasUsed": quantity(U256::from(done.receipt.cumulative_gas_used())),
        "gasUsed": quantity(U256::from(done.gas_used)),
        "effectiveGasPrice": quantity(U256::from(done.transaction.effective_gas_price(block.header.base_fee_per_gas))),
        "logs": logs(block, index),
        "logsBloom": data(done.receipt.logs_bloom().as_slice()),
    });
    match done.receipt.status_or_post_state() {
        Eip658Value::Eip658(status) => set(&mut object, "status", quantity(U256::from(u8::from(status)))),
        Eip658Value::PostState(root) => set(&mut object, "root", json!(root)),
    }
    if let Some(hashes) = done.transaction.blob_versioned_hashes() {
        let gas = U256::from(BLOB_GAS) * U256::from(hashes.len());
        set(&mut object, "blobGasUsed", quantity(gas));
        set(&mut object, "blobGasPrice", quantity(U256::from(blob_fee)));
    }
    object
}

/// Returns the logs of a transaction in a block.
pub(super) fn logs(block: &Block, index: usize) -> Vec<Value> {
    let before: usize = block.transactions[..index].iter().map(|done| done.receipt.logs().len()).sum();
    let done = &block.transactions[index];
    let one = |(place, log): (usize, &alloy_primitives::Log)| {
        let mut object = Map::new();
        object.insert("address".into(), data(log.address.as_slice()));
        object.insert("topics".into(), json!(log.topics()));
        object.insert("data".into(), data(&log.data.data));
        object.insert("blockNumber".into(), quantity(U256::from(block.header.number)));
        object.insert("blockHash".into(), json!(block.hash));
        object.insert("blockTimestamp".into(), quantity(U256::from(block.header.timestamp)));
        object.insert("transactionHash".into(), json!(done.transaction.tx_hash()));
        object.insert("transactionIndex".into(), quantity(U256::from(index)));
        object.insert("logIndex".into(), quantity(U256::from(before + place)));
        object.insert("removed".into(), false.into());
        Value::Object(object)
    };
    done.receipt.logs().iter().enumerate().map(one).collect()
}

/// Returns the text for the data with which a contract reverted.
///
/// Source: the Solidity documentation, "Panic via assert and Error via require".
pub(super) fn revert_reason(output: &Bytes) -> Option<String> {
    use alloy_sol_types::{Panic, Revert, SolError};
    if let Ok(revert) = Revert::abi_decode(output) {
        return Some(revert.reason);
    }
    let code: u64 = Panic::abi_decode(output).ok()?.code.try_into().ok()?;
    let text = match code {
        0x00 => "generic panic",
        0x01 => "assert(false)",
        0x11 => "arithmetic underflow or overflow",
        0x12 => "division or modulo by zero",
        0x21 => "enum overflow",
        0x22 => "invalid encoded storage byte array accessed",
        0x31 => "out-of-bounds array access; popping on an empty array",
        0x32 => "out-of-bounds access of an array or bytesN",
        0x41 => "out of memory",
        0x51 => "uninitialized function",
        _ => return Some(format!("unknown panic code: {code:#x}")),
    };
    Some(text.into())
}
