//! JSON-RPC: the answers of an endpoint.
//!
//! Owns the methods, all of which [`Node::answer`] lists. Other methods are refused as unknown. Source:
//! ethereum/execution-apis.

mod json;
mod params;

use alloy_consensus::{Transaction, TxEnvelope};
use alloy_eips::eip2718::{Decodable2718, Encodable2718};
use alloy_primitives::{Address, B256, Bytes, U256};
use revm::context::result::ExecutionResult;
use revm::context_interface::block::BlobExcessGasAndPrice;
use serde_json::{Value, json};

use crate::Failure;
use crate::chain::{Block, Chain};
use crate::faults::{Fault, Lie};
use crate::state::{Account, Proof, State};
use crate::store::Store;
use json::{data, quantity};
use params::Filter;

/// A JSON-RPC error.
#[derive(Clone, Debug)]
pub(crate) struct RpcError {
    code: i64,
    message: String,
    data: Option<Value>,
}

impl RpcError {
    fn params(message: impl Into<String>) -> Self {
        Self { code: -32_602, message: message.into(), data: None }
    }

    fn server(message: impl Into<String>) -> Self {
        Self { code: -32_000, message: message.into(), data: None }
    }
}

impl From<Failure> for RpcError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Reverted(output) => {
                let reason = json::revert_reason(&output).map(|reason| format!(": {reason}")).unwrap_or_default();
                Self { code: 3, message: format!("execution reverted{reason}"), data: Some(data(&output)) }
            }
            Failure::Halted(why) | Failure::Refused(why) => Self::server(why),
        }
    }
}

/// A chain, and the state of an endpoint besides it.
#[derive(Debug)]
pub struct Node {
    chain: Chain,
    faults: Vec<Fault>,
    store: Option<Store>,
    automine: bool,
    /// Seconds by which the node's time is ahead of the real time, and behind it.
    ahead: u64,
    behind: u64,
    snapshots: Vec<u64>,
}

type Answer = Result<Value, RpcError>;

impl Node {
    /// Creates an endpoint for `chain`. With `automine` each transaction mines a block.
    pub fn new(chain: Chain, automine: bool, store: Option<Store>) -> Self {
        Self { chain, faults: Vec::new(), store, automine, ahead: 0, behind: 0, snapshots: Vec::new() }
    }

    /// Returns the node's chain.
    pub fn chain(&self) -> &Chain {
        &self.chain
    }

    pub(crate) fn chain_mut(&mut self) -> &mut Chain {
        &mut self.chain
    }

    /// Stores blocks that were added to the chain directly.
    pub(crate) fn keep_all(&mut self) {
        if let Some(store) = &mut self.store {
            store.rewrite(&self.chain);
        }
    }

    /// Gives the node exactly these faults.
    pub(crate) fn set_faults(&mut self, faults: Vec<Fault>) {
        let stuck = faults.iter().find_map(|f| if let Fault::StuckBaseFee { wei } = f { Some(*wei) } else { None });
        self.chain.stuck_base_fee = stuck;
        self.faults = faults;
    }

    /// Keeps the node's time this many seconds behind the time that it is told.
    pub fn stay_behind(&mut self, seconds: u64) {
        self.behind = seconds;
    }

    /// Tells the node the time, in seconds since the Unix epoch.
    pub fn tell_time(&mut self, now: u64) {
        self.chain.set_now((now + self.ahead).saturating_sub(self.behind));
    }

    /// Mines a block, possibly an empty one, and stores it.
    pub fn mine(&mut self) {
        let block = self.chain.mine();
        if let Some(store) = &mut self.store {
            store.append(block);
        }
    }

    /// Answers a request or a batch of requests.
    pub fn handle(&mut self, request: &Value) -> Value {
        match request.as_array().filter(|all| !all.is_empty()) {
            Some(all) => all.iter().map(|one| self.handle_one(one)).collect(),
            None => self.handle_one(request),
        }
    }

    fn handle_one(&mut self, request: &Value) -> Value {
        let id = request["id"].clone();
        let answer = match request["method"].as_str() {
            Some(method) => self.answer(method, &request["params"]),
            None => Err(RpcError { code: -32_600, message: "invalid request".into(), data: None }),
        };
        match answer {
            Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
            Err(_) if self.has(&Fault::NullForError) => json!({"jsonrpc": "2.0", "id": id, "result": null}),
            Err(error) => {
                let mut object = json!({"code": error.code, "message": error.message});
                if let (Some(data), Some(object)) = (error.data, object.as_object_mut()) {
                    object.insert("data".into(), data);
                }
                json!({"jsonrpc": "2.0", "id": id, "error": object})
            }
        }
    }

    fn has(&self, fault: &Fault) -> bool {
        self.faults.contains(fault)
    }

    fn answer(&mut self, method: &str, params: &Value) -> Answer {
        match method {
            "web3_clientVersion" => Ok(concat!("openrelay-devchain/", env!("CARGO_PKG_VERSION")).into()),
            "net_version" => Ok(self.chain_id().to_string().into()),
            "eth_chainId" => Ok(quantity(U256::from(self.chain_id()))),
            "eth_syncing" => Ok(false.into()),
            "eth_blockNumber" => Ok(quantity(U256::from(self.head()))),
            "eth_baseFee" => Ok(quantity(U256::from(self.chain.next_base_fee()))),
            "eth_gasPrice" => Ok(quantity(U256::from(self.chain.next_base_fee()) + U256::from(TIP))),
            "eth_maxPriorityFeePerGas" => Ok(quantity(U256::from(TIP))),
            "eth_feeHistory" => self.fee_history(params),
            "eth_getBlockByNumber" => {
                let number = self.height(&params[0])?;
                Ok(self.show_block(self.chain.block(number), params))
            }
            "eth_getBlockByHash" => Ok(self.show_block(self.chain.block_by_hash(params::hash(params, 0)?), params)),
            "eth_getBlockTransactionCountByNumber" => {
                let block = self.chain.block(self.height(&params[0])?);
                Ok(block.map_or(Value::Null, |block| quantity(U256::from(block.transactions.len()))))
            }
            "eth_getBlockTransactionCountByHash" => {
                let block = self.chain.block_by_hash(params::hash(params, 0)?);
                Ok(block.map_or(Value::Null, |block| quantity(U256::from(block.transactions.len()))))
            }
            "eth_getBlockReceipts" => {
                let Ok(block) = self.block(&params[0]) else { return Ok(Value::Null) };
                Ok((0..block.transactions.len()).map(|index| self.show_receipt(block, index)).collect())
            }
            "eth_getTransactionByHash" => self.transaction(params::hash(params, 0)?),
            "eth_getTransactionByBlockNumberAndIndex" => {
                Ok(at_index(self.chain.block(self.height(&params[0])?), params::small(&params[1])?))
            }
            "eth_getTransactionByBlockHashAndIndex" => {
                Ok(at_index(self.chain.block_by_hash(params::hash(params, 0)?), params::small(&params[1])?))
            }
            "eth_getTransactionReceipt" => {
                let place = self.chain.place(params::hash(params, 0)?);
                Ok(place.map_or(Value::Null, |(block, index)| self.show_receipt(block, index)))
            }
            "eth_getBalance" => {
                let (address, (_, state)) = (params::address(params, 0)?, self.state(&params[1])?);
                Ok(quantity(state.account(address).map_or(U256::ZERO, |account| account.balance)))
            }
            "eth_getTransactionCount" => self.transaction_count(params),
            "eth_getCode" => self.code(params),
            "eth_getStorageAt" => {
                let (address, slot) = (params::address(params, 0)?, params::slot(params::text(params, 1)?)?);
                let (_, state) = self.state(&params[2])?;
                let value = state.account(address).and_then(|account| account.storage.get(&slot)).copied();
                Ok(data(&value.unwrap_or_default().to_be_bytes::<32>()))
            }
            "eth_getProof" => self.proof(params),
            "eth_getLogs" => self.logs(&params[0]),
            "eth_call" => {
                let (number, _) = self.state(&params[1])?;
                let result = self.chain.ask(&params::call(&params[0])?, number)?;
                Ok(data(&result.into_output().unwrap_or_default()))
            }
            "eth_estimateGas" => self.estimate(params),
            "eth_sendRawTransaction" => self.send(params::text(params, 0)?),
            "debug_getRawHeader" => Ok(data(&alloy_rlp::encode(&self.block(&params[0])?.header))),
            "debug_getRawBlock" => Ok(data(&self.block(&params[0])?.to_rlp())),
            "debug_getRawReceipts" => {
                let block = self.block(&params[0])?;
                Ok(block.transactions.iter().map(|done| data(&done.receipt.encoded_2718())).collect())
            }
            "debug_getRawTransaction" => {
                let place = self.chain.place(params::hash(params, 0)?);
                let raw = place.map(|(block, index)| block.transactions[index].transaction.encoded_2718());
                Ok(data(&raw.unwrap_or_default()))
            }
            "evm_mine" => {
                self.mine();
                Ok("0x0".into())
            }
            "evm_increaseTime" => {
                let seconds = params::small(&params[0])?;
                self.ahead += seconds;
                self.chain.advance(seconds);
                Ok(quantity(U256::from(self.ahead)))
            }
            "evm_setNextBlockTimestamp" => {
                let timestamp = params::small(&params[0])?;
                if timestamp <= self.chain.last().header.timestamp {
                    return Err(RpcError::params("the next block must be later than the last one"));
                }
                self.chain.set_next_timestamp(timestamp);
                Ok(Value::Null)
            }
            "evm_setAutomine" => {
                self.automine = params[0].as_bool().unwrap_or(true);
                Ok(true.into())
            }
            "evm_snapshot" => {
                self.snapshots.push(self.chain.last().header.number);
                Ok(quantity(U256::from(self.snapshots.len())))
            }
            "evm_revert" => {
                let wanted = usize::try_from(params::small(&params[0])?).unwrap_or(0);
                let Some(height) = wanted.checked_sub(1).and_then(|at| self.snapshots.get(at).copied()) else {
                    return Ok(false.into());
                };
                self.snapshots.truncate(wanted - 1);
                Ok(self.revert(height).into())
            }
            "devchain_reorganise" => {
                let depth = params::small(&params[0])?;
                Ok(self.revert(self.chain.last().header.number.saturating_sub(depth)).into())
            }
            "devchain_dropTransaction" => Ok(self.chain.drop_from_pool(params::hash(params, 0)?).into()),
            "devchain_fund" => {
                let (account, token) = (params::address(params, 0)?, params::address(params, 1)?);
                self.fund(account, token, params::quantity(&params[2])?)?;
                Ok(true.into())
            }
            unknown => {
                let message = format!("the method {unknown} does not exist/is not available");
                Err(RpcError { code: -32_601, message, data: None })
            }
        }
    }

    fn chain_id(&self) -> u64 {
        let other = self.faults.iter().find_map(|f| if let Fault::OtherChain { id } = f { Some(*id) } else { None });
        other.unwrap_or_else(|| self.chain.chain_id())
    }

    /// Returns the height that the node reports as the newest.
    fn head(&self) -> u64 {
        let behind =
            self.faults.iter().find_map(|f| if let Fault::StaleHead { blocks } = f { Some(*blocks) } else { None });
        self.chain.last().header.number.saturating_sub(behind.unwrap_or(0))
    }

    fn revert(&mut self, height: u64) -> bool {
        let reverted = self.chain.revert(height);
        if reverted && let Some(store) = &mut self.store {
            store.rewrite(&self.chain);
        }
        reverted
    }

    fn height(&self, block: &Value) -> Result<u64, RpcError> {
        match block {
            Value::Null => Ok(self.head()),
            Value::String(tag) => match tag.as_str() {
                "latest" | "pending" | "safe" | "finalized" => Ok(self.head()),
                "earliest" => Ok(0),
                _ => params::small(block),
            },
            Value::Number(_) | Value::Bool(_) | Value::Array(_) | Value::Object(_) => params::small(block),
        }
    }

    /// Returns a block by number, tag or hash.
    fn block(&self, wanted: &Value) -> Result<&Block, RpcError> {
        let hash = match wanted {
            Value::String(text) if text.len() == 66 => Some(text.as_str()),
            Value::Object(object) => object.get("blockHash").and_then(Value::as_str),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => None,
        };
        let found = match hash {
            Some(hash) => self
                .chain
                .block_by_hash(hash.parse().map_err(|_| RpcError::params("invalid argument: not a block hash"))?),
            None => {
                let number = wanted.as_object().and_then(|object| object.get("blockNumber")).unwrap_or(wanted);
                self.chain.block(self.height(number)?)
            }
        };
        found.ok_or_else(|| RpcError::server("header not found"))
    }

    fn state(&self, wanted: &Value) -> Result<(u64, &State), RpcError> {
        let number = self.block(wanted)?.header.number;
        let state = self.chain.state(number).filter(|_| !self.has(&Fault::ProofWindow0));
        state.map(|state| (number, state)).ok_or_else(|| {
            RpcError::server(format!(
                "historical state of block {number} is not available: \
                 distance to target block exceeds maximum proof window"
            ))
        })
    }

    fn show_block(&self, block: Option<&Block>, params: &Value) -> Value {
        let Some(block) = block else { return Value::Null };
        let mut shown = json::block(block, params[1].as_bool().unwrap_or(false));
        if self.has(&Fault::ForgedHeader) || self.has(&Fault::ForgedBlock { number: block.header.number }) {
            let mut root = block.header.state_root;
            root[31] ^= 1;
            shown["stateRoot"] = json!(root);
        }
        shown
    }

    fn show_receipt(&self, block: &Block, index: usize) -> Value {
        let excess = block.header.excess_blob_gas.unwrap_or_default();
        let rules = self.chain.rules_of(block);
        json::receipt(block, index, BlobExcessGasAndPrice::new(excess, rules.blob_fraction).blob_gasprice)
    }

    fn transaction(&self, hash: B256) -> Answer {
        if let Some((block, index)) = self.chain.place(hash) {
            return Ok(json::transaction(block, index));
        }
        let waiting = self.chain.pool().find(|(transaction, _)| *transaction.tx_hash() == hash);
        Ok(waiting.map_or(Value::Null, |(transaction, sender)| {
            let mut shown = json::bare(transaction, *sender, None);
            for key in ["blockHash", "blockNumber", "transactionIndex"] {
                shown[key] = Value::Null;
            }
            shown
        }))
    }

    fn transaction_count(&self, params: &Value) -> Answer {
        let address = params::address(params, 0)?;
        let (_, state) = self.state(&params[1])?;
        let mut nonce = state.account(address).map_or(0, |account| account.nonce);
        if params[1] == "pending" {
            while self.chain.pool().any(|(waiting, by)| *by == address && waiting.nonce() == nonce) {
                nonce += 1;
            }
        }
        Ok(quantity(U256::from(nonce)))
    }

    fn code(&self, params: &Value) -> Answer {
        let wanted = params::address(params, 0)?;
        let (_, state) = self.state(&params[1])?;
        Ok(data(&state.account(wanted).map(Account::code).unwrap_or_default()))
    }

    fn proof(&self, params: &Value) -> Answer {
        let address = params::address(params, 0)?;
        let keys = params[1].as_array().cloned().unwrap_or_default();
        let keys: Vec<&str> = keys.iter().map(|key| key.as_str().unwrap_or_default()).collect();
        let slots = keys.iter().map(|key| params::slot(key)).collect::<Result<Vec<_>, _>>()?;
        let (_, state) = self.state(&params[2])?;
        let (mut account_proof, proofs) = state.prove(address, &slots);
        if self.has(&Fault::NoProof) {
            account_proof.clear();
        }
        if self.has(&Fault::ForgedProof) {
            change(&mut account_proof);
        }
        let none = Account::default();
        let lies: Vec<Lie> = self.faults.iter().filter_map(|fault| lie_about(fault, address)).collect();
        let account = state.account(address).filter(|_| !lies.contains(&Lie::Absent)).unwrap_or(&none);
        let storage = keys.iter().zip(slots).zip(proofs).filter_map(|((key, slot), mut proof)| {
            // Echoes the key as requested, padded or not.
            let key = if key.len() == 66 { data(&slot.to_be_bytes::<32>()) } else { quantity(slot) };
            let mut value = account.storage.get(&slot).copied().unwrap_or_default();
            for lie in &lies {
                match lie {
                    Lie::Value { slot: about } if *about == slot => value = value.wrapping_add(U256::ONE),
                    Lie::Empty { slot: about } if *about == slot => value = U256::ZERO,
                    Lie::Proof { slot: about } if *about == slot => change(&mut proof),
                    Lie::Omitted { slot: about } if *about == slot => return None,
                    Lie::Value { .. }
                    | Lie::Empty { .. }
                    | Lie::Proof { .. }
                    | Lie::Omitted { .. }
                    | Lie::Balance
                    | Lie::Absent => {}
                }
            }
            Some(json!({"key": key, "value": quantity(value), "proof": proof}))
        });
        let storage: Vec<Value> = storage.collect();
        Ok(json!({
            "address": data(address.as_slice()),
            "accountProof": account_proof,
            "balance": quantity(account.balance.wrapping_add(U256::from(u8::from(lies.contains(&Lie::Balance))))),
            "codeHash": account.code_hash(),
            "nonce": quantity(U256::from(account.nonce)),
            "storageHash": account.storage_root(),
            "storageProof": storage,
        }))
    }

    fn logs(&self, wanted: &Value) -> Answer {
        let filter = Filter::read(wanted)?;
        let blocks: Vec<&Block> = match filter.block {
            Some(hash) => vec![self.chain.block_by_hash(hash).ok_or_else(|| RpcError::server("unknown block"))?],
            None => {
                let (from, to) = (self.height(&filter.from)?, self.height(&filter.to)?);
                if from > to {
                    return Err(RpcError::params("invalid block range params"));
                }
                if to > self.head() {
                    return Err(RpcError::params("block range extends beyond current head block"));
                }
                let limit = |fault: &Fault| if let Fault::RangeLimit { blocks } = fault { Some(*blocks) } else { None };
                let most = self.faults.iter().find_map(limit);
                if most.is_some_and(|most| to - from >= most) {
                    return Err(RpcError {
                        code: -32_005,
                        message: "query exceeds the range limit".into(),
                        data: None,
                    });
                }
                (from..=to).filter_map(|number| self.chain.block(number)).collect()
            }
        };
        let mut found = Vec::new();
        for block in blocks {
            for (index, done) in block.transactions.iter().enumerate() {
                let shown = json::logs(block, index);
                let taken = done.receipt.logs().iter().zip(shown).filter(|(log, _)| filter.takes(log));
                found.extend(taken.map(|(_, shown)| shown));
            }
        }
        let limit = |fault: &Fault| if let Fault::EventLimit { events } = fault { Some(*events) } else { None };
        let most = self.faults.iter().find_map(limit);
        if most.is_some_and(|most| found.len() > most) {
            return Err(RpcError { code: -32_005, message: "query returned too many results".into(), data: None });
        }
        if self.has(&Fault::ForeignEvents) {
            let foreign = json!(Address::repeat_byte(0xee));
            found.iter_mut().for_each(|log: &mut Value| log["address"] = foreign.clone());
        }
        Ok(found.into())
    }

    /// Returns the smallest gas limit with which the call succeeds.
    fn estimate(&self, params: &Value) -> Answer {
        let mut call = params::call(&params[0])?;
        let (number, _) = self.state(&params[1])?;
        let most = call.gas.unwrap_or(crate::execute::TRANSACTION_GAS);
        call.gas = Some(most);
        let first = self.chain.ask(&call, number)?;
        let (mut fails, mut does) = (first.tx_gas_used().saturating_sub(1), most);
        while fails + 1 < does {
            let middle = fails + (does - fails) / 2;
            call.gas = Some(middle);
            if matches!(self.chain.try_call(&call, number), Ok(ExecutionResult::Success { .. })) {
                does = middle;
            } else {
                fails = middle;
            }
        }
        Ok(quantity(U256::from(does)))
    }

    fn send(&mut self, raw: &str) -> Answer {
        let bytes: Bytes = params::bytes(raw)?;
        let transaction = TxEnvelope::decode_2718(&mut bytes.as_ref())
            .map_err(|error| RpcError::params(format!("invalid transaction: {error}")))?;
        if self.has(&Fault::DropTransactions) {
            return Ok(json!(transaction.tx_hash()));
        }
        let hash = self.chain.submit(transaction).map_err(RpcError::server)?;
        if self.automine {
            self.mine();
        }
        Ok(json!(hash))
    }

    fn fee_history(&self, params: &Value) -> Answer {
        let count = params::small(&params[0])?.clamp(1, 1_024);
        let newest = self.height(&params[1])?;
        if newest > self.head() {
            return Err(RpcError::server("request beyond head block"));
        }
        let oldest = (newest + 1).saturating_sub(count);
        let blocks: Vec<&Block> = (oldest..=newest).filter_map(|number| self.chain.block(number)).collect();
        let fee = |block: &Block| quantity(U256::from(block.header.base_fee_per_gas.unwrap_or_default()));
        let blob_fee = |block: &Block| {
            let excess = block.header.excess_blob_gas;
            let fraction = self.chain.rules_of(block).blob_fraction;
            let fee = excess.map_or(0, |excess| BlobExcessGasAndPrice::new(excess, fraction).blob_gasprice);
            quantity(U256::from(fee))
        };
        let mut fees: Vec<Value> = blocks.iter().map(|block| fee(block)).collect();
        let mut blob_fees: Vec<Value> = blocks.iter().map(|block| blob_fee(block)).collect();
        match self.chain.block(newest + 1) {
            Some(next) => {
                fees.push(fee(next));
                blob_fees.push(blob_fee(next));
            }
            None => {
                fees.push(quantity(U256::from(self.chain.next_base_fee())));
                blob_fees.extend(blob_fees.last().cloned());
            }
        }
        #[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
        let ratio = |part: u64, whole: u64| if whole == 0 { 0.0 } else { part as f64 / whole as f64 };
        let used: Vec<f64> = blocks.iter().map(|b| ratio(b.header.gas_used, b.header.gas_limit)).collect();
        let blob_used = |block: &&Block| {
            let most = self.chain.rules_of(block).blobs.1 << 17;
            json!(ratio(block.header.blob_gas_used.unwrap_or_default(), most))
        };
        let blob_used: Vec<Value> = blocks.iter().map(blob_used).collect();
        let mut answer = json!({
            "oldestBlock": quantity(U256::from(oldest)),
            "baseFeePerGas": fees,
            "gasUsedRatio": used,
            "baseFeePerBlobGas": blob_fees,
            "blobGasUsedRatio": blob_used,
        });
        if let Some(percentiles) = params[2].as_array().filter(|all| !all.is_empty()) {
            let percentiles: Vec<f64> = percentiles.iter().filter_map(Value::as_f64).collect();
            let rewards: Vec<Vec<Value>> = blocks.iter().map(|block| rewards(block, &percentiles)).collect();
            answer["reward"] = json!(rewards);
        }
        Ok(answer)
    }
}

/// The miner's fee for each gas that this chain suggests, in wei.
const TIP: u64 = 1_000_000_000;

fn at_index(block: Option<&Block>, index: u64) -> Value {
    let place = block.zip(usize::try_from(index).ok());
    let place = place.filter(|(block, index)| *index < block.transactions.len());
    place.map_or(Value::Null, |(block, index)| json::transaction(block, index))
}

/// Returns the tips of a block at these percentiles of its gas.
fn rewards(block: &Block, percentiles: &[f64]) -> Vec<Value> {
    let base_fee = block.header.base_fee_per_gas.unwrap_or_default();
    let tip = |done: &crate::chain::Done| done.transaction.effective_tip_per_gas(base_fee).unwrap_or_default();
    let mut tips: Vec<(u128, u64)> = block.transactions.iter().map(|done| (tip(done), done.gas_used)).collect();
    tips.sort_unstable();
    let at = |percent: &f64| {
        #[expect(clippy::cast_precision_loss, reason = "a share of a block's gas")]
        let wanted = block.header.gas_used as f64 * percent / 100.0;
        let mut sum = 0;
        let reached = tips.iter().find(|(_, gas)| {
            sum += gas;
            #[expect(clippy::cast_precision_loss, reason = "a share of a block's gas")]
            let sum = sum as f64;
            sum >= wanted
        });
        quantity(U256::from(reached.or(tips.last()).map_or(0, |(tip, _)| *tip)))
    };
    percentiles.iter().map(at).collect()
}

/// Returns how a fault changes the proof of this account.
fn lie_about(fault: &Fault, address: Address) -> Option<Lie> {
    if let Fault::LiesAbout { account, lie } = fault
        && *account == address
    {
        Some(*lie)
    } else {
        None
    }
}

/// Changes a byte of a proof's last node.
fn change(proof: &mut Proof) {
    let Some(last) = proof.last_mut() else { return };
    let mut changed = last.to_vec();
    if let Some(byte) = changed.last_mut() {
        *byte ^= 1;
    }
    *last = changed.into();
}
