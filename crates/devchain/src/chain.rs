//! The chain: blocks, the states after the last of them, and the pool of pending transactions.
//!
//! Owns the rules by which a block follows another. Time is an argument. An imported block must have the roots that
//! its execution gives.

use std::collections::{BTreeMap, VecDeque};

use alloy_consensus::proofs::{
    calculate_ommers_root, calculate_receipt_root, calculate_transaction_root, calculate_withdrawals_root,
};
use alloy_consensus::transaction::SignerRecoverable;
use alloy_consensus::{
    Block as RlpBlock, BlockBody, EMPTY_OMMER_ROOT_HASH, Eip658Value, Header, Receipt as RlpReceipt, ReceiptEnvelope,
    SignableTransaction, Transaction, TxEnvelope, TxLegacy,
};
use alloy_eips::eip1559::BaseFeeParams;
use alloy_eips::eip4895::Withdrawals;
use alloy_primitives::{Address, B256, Bloom, Bytes, Log, Signature, TxKind, U256, b256};
use revm::context::result::ExecutionResult;
use revm::primitives::hardfork::SpecId;

use crate::Failure;
use crate::execute::{Call, Rigour, Surroundings, TRANSACTION_GAS, environment, outcome};
use crate::fork::Schedule;
use crate::state::State;

/// Gas limit of a block.
const GAS_LIMIT: u64 = 60_000_000;
/// Base fee of the first block, in wei.
const FIRST_BASE_FEE: u64 = 1_000_000_000;
/// Number of states that are kept behind the last block, as in nodes without an archive.
const STATES: usize = 256;
/// Seconds between two blocks of a chain whose time is an argument.
const STEP: u64 = 2;
/// SHA-256 of the empty list of requests. Source: EIP-7685.
const NO_REQUESTS: B256 = b256!("e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
/// By how much more a transaction must pay than the one that it replaces, in percent.
const REPLACE: u128 = 10;

/// A transaction in a block, and its result.
#[derive(Clone, Debug)]
pub struct Done {
    /// The signed transaction.
    pub transaction: TxEnvelope,
    /// The sender.
    pub sender: Address,
    /// The receipt.
    pub receipt: ReceiptEnvelope,
    /// Gas that it used, after refunds.
    pub gas_used: u64,
    /// Address of the contract that it created.
    pub created: Option<Address>,
}

/// A block.
#[derive(Clone, Debug)]
pub struct Block {
    /// The header.
    pub header: Header,
    /// The header's hash.
    pub hash: B256,
    /// The transactions.
    pub transactions: Vec<Done>,
    /// Ommers: blocks beside the chain.
    pub ommers: Vec<Header>,
    /// Withdrawals from the beacon chain.
    pub withdrawals: Option<Withdrawals>,
}

impl Block {
    /// Returns the block as peers send it.
    pub fn to_rlp(&self) -> Vec<u8> {
        let transactions = self.transactions.iter().map(|done| done.transaction.clone()).collect();
        let body = BlockBody { transactions, ommers: self.ommers.clone(), withdrawals: self.withdrawals.clone() };
        alloy_rlp::encode(RlpBlock { header: self.header.clone(), body })
    }
}

/// The result of a transaction, in short.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// The data that it returned.
    pub output: Bytes,
    /// Gas that it used, after refunds.
    pub gas_used: u64,
    /// The logs that it emitted.
    pub logs: Vec<Log>,
    /// Address of the contract that it created.
    pub created: Option<Address>,
}

/// Why a block is refused.
#[derive(Clone, Debug, thiserror::Error)]
#[error("block {number}: {why}")]
pub struct ImportError {
    /// Number of the block.
    pub number: u64,
    /// What is wrong with the block.
    pub why: String,
}

/// A chain.
#[derive(Clone, Debug)]
pub struct Chain {
    chain_id: u64,
    schedule: Schedule,
    blocks: Vec<Block>,
    hashes: Vec<B256>,
    /// States after the last blocks, the newest last.
    states: VecDeque<State>,
    keep_all: bool,
    /// Positions of transactions, by hash: block and index.
    places: BTreeMap<B256, (usize, usize)>,
    pool: Vec<(TxEnvelope, Address)>,
    now: u64,
    step: u64,
    /// Time of the next block only.
    next_timestamp: Option<u64>,
    /// A base fee that does not change.
    pub(crate) stuck_base_fee: Option<u64>,
}

impl Chain {
    /// Creates a development chain at this time, in seconds since the Unix epoch. Its blocks are two seconds apart.
    pub fn new(timestamp: u64) -> Self {
        let mut chain = crate::genesis::development(timestamp);
        chain.step = STEP;
        chain
    }

    /// Creates a chain that begins with `state`. [`Chain::set_now`] sets its time.
    pub fn with_genesis(chain_id: u64, state: State, timestamp: u64) -> Self {
        let header = Header {
            gas_limit: GAS_LIMIT,
            timestamp,
            state_root: state.root(),
            base_fee_per_gas: Some(FIRST_BASE_FEE),
            withdrawals_root: Some(alloy_trie::EMPTY_ROOT_HASH),
            blob_gas_used: Some(0),
            excess_blob_gas: Some(0),
            parent_beacon_block_root: Some(B256::ZERO),
            requests_hash: Some(NO_REQUESTS),
            ..Header::default()
        };
        Self::begin(chain_id, Schedule::osaka(), header, state)
    }

    /// Creates a chain that begins with this header and state.
    pub(crate) fn begin(chain_id: u64, schedule: Schedule, header: Header, state: State) -> Self {
        let hash = header.hash_slow();
        let now = header.timestamp;
        let withdrawals = header.withdrawals_root.map(|_| Withdrawals::default());
        Self {
            chain_id,
            schedule,
            blocks: vec![Block { header, hash, transactions: Vec::new(), ommers: Vec::new(), withdrawals }],
            hashes: vec![hash],
            states: [state].into(),
            keep_all: false,
            places: BTreeMap::new(),
            pool: Vec::new(),
            now,
            step: 0,
            next_timestamp: None,
            stuck_base_fee: None,
        }
    }

    pub(crate) fn keep_all_states(&mut self) {
        self.keep_all = true;
    }

    /// Returns the chain ID, which distinguishes this chain from others.
    pub fn chain_id(&self) -> u64 {
        self.chain_id
    }

    /// Returns the chain's time.
    pub fn timestamp(&self) -> u64 {
        self.now
    }

    /// Advances time without transactions.
    pub fn advance(&mut self, seconds: u64) {
        self.now += seconds;
    }

    /// Sets the chain's time. The next block is later than the last one in any case.
    pub fn set_now(&mut self, now: u64) {
        self.now = now;
    }

    /// Sets the exact time of the next block, which must be later than the last block.
    pub fn set_next_timestamp(&mut self, timestamp: u64) {
        self.next_timestamp = Some(timestamp);
    }

    /// Returns the newest block.
    pub fn last(&self) -> &Block {
        // A chain always has its first block: only `revert` removes blocks, and it keeps that one.
        &self.blocks[self.blocks.len() - 1]
    }

    /// Returns the block at this height.
    pub fn block(&self, number: u64) -> Option<&Block> {
        self.blocks.get(usize::try_from(number).ok()?)
    }

    /// Returns the block with this hash.
    pub fn block_by_hash(&self, hash: B256) -> Option<&Block> {
        self.blocks.iter().rev().find(|block| block.hash == hash)
    }

    /// Returns the state after the block at this height, if it is still kept.
    pub fn state(&self, number: u64) -> Option<&State> {
        let behind = self.blocks.len().checked_sub(1)?.checked_sub(usize::try_from(number).ok()?)?;
        self.states.get(self.states.len().checked_sub(1)?.checked_sub(behind)?)
    }

    /// Returns the state after the newest block.
    pub fn newest(&self) -> &State {
        // As in `last`: there is always one.
        &self.states[self.states.len() - 1]
    }

    /// Returns the position of a transaction: its block, and its index in the block.
    pub fn place(&self, hash: B256) -> Option<(&Block, usize)> {
        let (block, index) = *self.places.get(&hash)?;
        Some((self.blocks.get(block)?, index))
    }

    pub(crate) fn rules_of(&self, block: &Block) -> crate::fork::Rules {
        self.schedule.rules(block.header.number, block.header.timestamp)
    }

    /// Returns the pending transactions.
    pub fn pool(&self) -> impl Iterator<Item = &(TxEnvelope, Address)> {
        self.pool.iter()
    }

    /// Removes a pending transaction. Returns whether there was one.
    pub fn drop_from_pool(&mut self, hash: B256) -> bool {
        let before = self.pool.len();
        self.pool.retain(|(transaction, _)| *transaction.tx_hash() != hash);
        self.pool.len() < before
    }

    /// Returns the base fee of the next block, in wei.
    pub fn next_base_fee(&self) -> u64 {
        let fee = || self.last().header.next_block_base_fee(BaseFeeParams::ethereum());
        self.stuck_base_fee.or_else(fee).unwrap_or(FIRST_BASE_FEE)
    }

    /// Adds a signed transaction to the pool.
    ///
    /// # Errors
    /// Returns why it is refused, in the words of nodes.
    pub fn submit(&mut self, transaction: TxEnvelope) -> Result<B256, String> {
        if transaction.chain_id().is_some_and(|id| id != self.chain_id) {
            return Err(format!("invalid chain id: have {:?}, want {}", transaction.chain_id(), self.chain_id));
        }
        let sender = transaction.recover_signer().map_err(|_| "invalid sender")?;
        let hash = *transaction.tx_hash();
        if self.places.contains_key(&hash) || self.pool.iter().any(|(other, _)| *other.tx_hash() == hash) {
            return Err("already known".into());
        }
        let (nonce, balance) = self.newest().account(sender).map_or((0, U256::ZERO), |a| (a.nonce, a.balance));
        if transaction.nonce() < nonce {
            return Err(format!("nonce too low: next nonce {nonce}, tx nonce {}", transaction.nonce()));
        }
        let cost =
            U256::from(transaction.max_fee_per_gas()) * U256::from(transaction.gas_limit()) + transaction.value();
        if balance < cost {
            return Err(format!("insufficient funds for gas * price + value: balance {balance}, tx cost {cost}"));
        }
        if transaction.gas_limit() > TRANSACTION_GAS {
            return Err(format!(
                "transaction gas limit too high (cap: {TRANSACTION_GAS}, tx: {})",
                transaction.gas_limit()
            ));
        }
        let same = |(other, by): &(TxEnvelope, Address)| *by == sender && other.nonce() == transaction.nonce();
        if let Some(at) = self.pool.iter().position(same) {
            let needed = self.pool[at].0.max_fee_per_gas() * (100 + REPLACE) / 100;
            if transaction.max_fee_per_gas() < needed {
                return Err("replacement transaction underpriced".into());
            }
            self.pool.remove(at);
        }
        self.pool.push((transaction, sender));
        Ok(hash)
    }

    /// Mines a block from all transactions in the pool that can be included now.
    pub fn mine(&mut self) -> &Block {
        let mut header = self.next_header();
        let mut state = self.newest().clone();
        let mut done: Vec<Done> = Vec::new();
        let hashes = std::mem::take(&mut self.hashes);
        {
            let rules = self.schedule.rules(header.number, header.timestamp);
            let around = Surroundings { chain_id: self.chain_id, rules, header: &header, hashes: &hashes };
            around.begin(&mut state);
            let mut used = 0;
            // Repeats, because a transaction can make the sender's next one includable.
            loop {
                let fits = |(transaction, sender): &(TxEnvelope, Address)| {
                    state.account(*sender).map_or(0, |a| a.nonce) == transaction.nonce()
                        && used + transaction.gas_limit() <= header.gas_limit
                        && transaction.max_fee_per_gas() >= u128::from(header.base_fee_per_gas.unwrap_or_default())
                };
                let Some(at) = self.pool.iter().position(fits) else { break };
                let (transaction, sender) = self.pool.remove(at);
                // A transaction that cannot run is dropped, as nodes do.
                if let Ok(one) = execute(&around, &mut state, transaction, sender, used, Rigour::Whole) {
                    used += one.gas_used;
                    done.push(one);
                }
            }
            around.end(&mut state);
        }
        self.hashes = hashes;
        seal(&mut header, &state, &done);
        self.append(header, done, Vec::new(), Some(Withdrawals::default()), state);
        self.last()
    }

    /// Creates a contract from `code`, which is its constructor and arguments. The sender signs nothing and pays
    /// nothing.
    ///
    /// # Errors
    /// [`Failure`]; only the time has changed then.
    pub fn deploy(&mut self, from: Address, code: Bytes) -> Result<Receipt, Failure> {
        self.unsigned(from, TxKind::Create, U256::ZERO, code)
    }

    /// Calls the contract `to` and keeps the changes. The sender signs nothing and pays nothing.
    ///
    /// # Errors
    /// [`Failure`]; only the time has changed then.
    pub fn send(&mut self, from: Address, to: Address, data: Bytes) -> Result<Receipt, Failure> {
        self.unsigned(from, TxKind::Call(to), U256::ZERO, data)
    }

    /// Transfers `value` wei from `from` to `to`.
    ///
    /// # Errors
    /// [`Failure`]; only the time has changed then.
    pub fn give(&mut self, from: Address, to: Address, value: U256) -> Result<Receipt, Failure> {
        self.unsigned(from, TxKind::Call(to), value, Bytes::new())
    }

    /// Calls the contract `to` without keeping changes.
    ///
    /// # Errors
    /// [`Failure`] of the call.
    pub fn call(&self, from: Address, to: Address, data: Bytes) -> Result<Bytes, Failure> {
        let call = Call { from, to: to.into(), data, value: U256::ZERO, gas: None, fees: None };
        self.ask(&call, self.last().header.number).map(|result| result.into_output().unwrap_or_default())
    }

    /// Returns the result of a call on the state after the block at this height.
    ///
    /// On a chain whose time is an argument the call sees the present time, for any block.
    ///
    /// # Errors
    /// [`Failure`] of the call.
    pub fn ask(&self, call: &Call, number: u64) -> Result<ExecutionResult, Failure> {
        let result = self.try_call(call, number)?;
        outcome(&result).map(|()| result)
    }

    /// Does what [`Chain::ask`] does, but returns failed runs as results.
    ///
    /// # Errors
    /// [`Failure::Refused`] when the call did not run.
    pub fn try_call(&self, call: &Call, number: u64) -> Result<ExecutionResult, Failure> {
        let missing = || Failure::Refused("the state of this block is not kept".into());
        let (block, state) = self.block(number).zip(self.state(number)).ok_or_else(missing)?;
        let mut header = block.header.clone();
        if self.step > 0 {
            header.timestamp = self.now;
        }
        let rules = self.schedule.rules(header.number, header.timestamp);
        let around = Surroundings { chain_id: self.chain_id, rules, header: &header, hashes: &self.hashes };
        let nonce = state.account(call.from).map_or(0, |account| account.nonce);
        let environment = call.environment(self.chain_id, header.gas_limit, nonce).map_err(Failure::Refused)?;
        let rigour = if call.fees.is_some() { Rigour::PricedQuestion } else { Rigour::Question };
        around.run(state, environment, rigour).map(|done| done.result).map_err(Failure::Refused)
    }

    /// Returns the non-zero slots of a contract.
    pub fn storage(&self, address: Address) -> BTreeMap<U256, U256> {
        self.newest().account(address).map(|account| account.storage.clone()).unwrap_or_default()
    }

    /// Imports a block that another node made: runs it and compares the results with its header.
    ///
    /// # Errors
    /// [`ImportError`]; the chain is unchanged then.
    pub fn import(&mut self, block: RlpBlock<TxEnvelope>, senders: &[Address]) -> Result<(), ImportError> {
        let RlpBlock { header, body } = block;
        let wrong = |why: String| ImportError { number: header.number, why };
        if header.parent_hash != self.last().hash || header.number != self.last().header.number + 1 {
            return Err(wrong("the block does not follow the previous block".into()));
        }
        let rules = self.schedule.rules(header.number, header.timestamp);
        let mut state = self.newest().clone();
        let mut done: Vec<Done> = Vec::new();
        {
            let around = Surroundings { chain_id: self.chain_id, rules, header: &header, hashes: &self.hashes };
            around.begin(&mut state);
            let mut used = 0;
            for (index, transaction) in body.transactions.into_iter().enumerate() {
                let signed = transaction.recover_signer_unchecked().ok();
                // Only unsigned transactions have a recorded sender.
                let unsigned = *transaction.signature() == nobodys();
                let given = senders.get(index).copied().filter(|_| unsigned);
                let sender = given.or(signed).ok_or_else(|| wrong(format!("transaction {index} has no sender")))?;
                let rigour = if given.is_some() { Rigour::Unsigned } else { Rigour::Whole };
                let one = execute(&around, &mut state, transaction, sender, used, rigour)
                    .map_err(|why| wrong(format!("transaction {index}: {why}")))?;
                used += one.gas_used;
                done.push(one);
            }
            for withdrawal in body.withdrawals.iter().flat_map(|all| all.iter()) {
                state.account_mut(withdrawal.address).balance += U256::from(withdrawal.amount_wei());
            }
            around.reward(&mut state, &body.ommers);
            around.end(&mut state);
        }
        let mut own = header.clone();
        seal(&mut own, &state, &done);
        own.ommers_hash = calculate_ommers_root(&body.ommers);
        own.withdrawals_root = body.withdrawals.as_ref().map(|all| calculate_withdrawals_root(all));
        for (what, is, says) in [
            ("state root", own.state_root, header.state_root),
            ("receipts root", own.receipts_root, header.receipts_root),
            ("transactions root", own.transactions_root, header.transactions_root),
        ] {
            if is != says {
                return Err(wrong(format!("the {what} is {is}, but the header has {says}")));
            }
        }
        if own != header {
            return Err(wrong("the gas, bloom, ommers or withdrawals differ from the header".into()));
        }
        self.now = self.now.max(header.timestamp);
        self.append(header, done, body.ommers, body.withdrawals, state);
        Ok(())
    }

    /// Removes all blocks above this height, and all pending transactions.
    pub fn revert(&mut self, number: u64) -> bool {
        let Some(keep) = usize::try_from(number).ok().filter(|_| self.state(number).is_some()) else { return false };
        while self.blocks.len() > keep + 1 {
            self.blocks.pop();
            self.hashes.pop();
            self.states.pop_back();
        }
        let height = self.blocks.len();
        self.places.retain(|_, (block, _)| *block < height);
        self.pool.clear();
        true
    }

    fn unsigned(&mut self, from: Address, to: TxKind, value: U256, input: Bytes) -> Result<Receipt, Failure> {
        self.now += self.step;
        let mut header = self.next_header();
        let rules = self.schedule.rules(header.number, header.timestamp);
        let mut state = self.newest().clone();
        let nonce = state.account(from).map_or(0, |account| account.nonce);
        let transaction = TxLegacy {
            chain_id: Some(self.chain_id),
            nonce,
            gas_price: 0,
            gas_limit: TRANSACTION_GAS,
            to,
            value,
            input,
        };
        let transaction: TxEnvelope = transaction.into_signed(nobodys()).into();
        let around = Surroundings { chain_id: self.chain_id, rules, header: &header, hashes: &self.hashes };
        around.begin(&mut state);
        let environment = environment(&transaction, from).map_err(Failure::Refused)?;
        let run = around.run(&state, environment, Rigour::Unsigned).map_err(Failure::Refused)?;
        outcome(&run.result)?;
        state.commit(run.state, rules.spec);
        let one = finish(&run.result, &state, rules.spec, transaction, from, 0);
        around.end(&mut state);
        let receipt = Receipt {
            output: run.result.output().cloned().unwrap_or_default(),
            gas_used: one.gas_used,
            logs: run.result.logs().to_vec(),
            created: one.created,
        };
        let done = vec![one];
        seal(&mut header, &state, &done);
        self.append(header, done, Vec::new(), Some(Withdrawals::default()), state);
        Ok(receipt)
    }

    fn next_header(&self) -> Header {
        let parent = self.last();
        Header {
            parent_hash: parent.hash,
            ommers_hash: EMPTY_OMMER_ROOT_HASH,
            number: parent.header.number + 1,
            gas_limit: parent.header.gas_limit,
            timestamp: self.next_timestamp.unwrap_or(self.now).max(parent.header.timestamp + 1),
            base_fee_per_gas: Some(self.next_base_fee()),
            withdrawals_root: Some(alloy_trie::EMPTY_ROOT_HASH),
            blob_gas_used: Some(0),
            excess_blob_gas: Some(0),
            parent_beacon_block_root: Some(B256::ZERO),
            requests_hash: Some(NO_REQUESTS),
            ..Header::default()
        }
    }

    fn append(
        &mut self,
        header: Header,
        transactions: Vec<Done>,
        ommers: Vec<Header>,
        withdrawals: Option<Withdrawals>,
        state: State,
    ) {
        self.next_timestamp = None;
        let (hash, number) = (header.hash_slow(), self.blocks.len());
        for (index, done) in transactions.iter().enumerate() {
            self.places.insert(*done.transaction.tx_hash(), (number, index));
        }
        self.hashes.push(hash);
        self.blocks.push(Block { header, hash, transactions, ommers, withdrawals });
        self.states.push_back(state);
        if !self.keep_all && self.states.len() > STATES {
            self.states.pop_front();
        }
    }
}

/// Returns the signature of unsigned transactions.
fn nobodys() -> Signature {
    Signature::new(U256::ZERO, U256::ZERO, false)
}

fn execute(
    around: &Surroundings<'_>,
    state: &mut State,
    transaction: TxEnvelope,
    sender: Address,
    used: u64,
    rigour: Rigour,
) -> Result<Done, String> {
    let run = around.run(state, environment(&transaction, sender)?, rigour)?;
    state.commit(run.state, around.rules.spec);
    Ok(finish(&run.result, state, around.rules.spec, transaction, sender, used))
}

fn finish(
    result: &ExecutionResult,
    state: &State,
    spec: SpecId,
    transaction: TxEnvelope,
    sender: Address,
    used: u64,
) -> Done {
    let gas_used = result.tx_gas_used();
    // Source: EIP-658.
    let status = if spec.is_enabled_in(SpecId::BYZANTIUM) {
        Eip658Value::Eip658(result.is_success())
    } else {
        Eip658Value::PostState(state.root())
    };
    let receipt = RlpReceipt { status, cumulative_gas_used: used + gas_used, logs: result.logs().to_vec() };
    let receipt = ReceiptEnvelope::from_typed(transaction.tx_type(), receipt);
    let created = result.created_address().filter(|_| result.is_success());
    // A transaction that creates has a contract address, even when creation fails.
    let created = created.or_else(|| transaction.is_create().then(|| sender.create(transaction.nonce())));
    Done { transaction, sender, receipt, gas_used, created }
}

/// Writes the results of the block's execution into `header`.
fn seal(header: &mut Header, state: &State, done: &[Done]) {
    let transactions: Vec<&TxEnvelope> = done.iter().map(|one| &one.transaction).collect();
    let receipts: Vec<ReceiptEnvelope> = done.iter().map(|one| one.receipt.clone()).collect();
    header.state_root = state.root();
    header.transactions_root = calculate_transaction_root(&transactions);
    header.receipts_root = calculate_receipt_root(&receipts);
    header.gas_used = done.iter().map(|one| one.gas_used).sum();
    header.logs_bloom = receipts.iter().fold(Bloom::default(), |all, receipt| all | *receipt.logs_bloom());
}
