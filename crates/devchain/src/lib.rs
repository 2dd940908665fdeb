//! An EVM chain in this process: for development and tests, never part of a release.
//!
//! Owns state and time. Each transaction is a block of its own, gas costs nothing, and nobody signs: who sends is an argument. The hard fork is pinned, for later ones
//! price storage otherwise.

use std::collections::BTreeMap;

use alloy_primitives::{Address, Bytes, Log, TxKind, U256};
use revm::context::{BlockEnv, CfgEnv, Context, Journal, TxEnv};
use revm::context_interface::result::{ExecutionResult, Output};
use revm::database::{CacheDB, EmptyDB};
use revm::primitives::hardfork::SpecId;
use revm::{Database, DatabaseCommit, ExecuteEvm, MainBuilder};

/// Gas that a transaction may use: what the pinned fork allows it. Source: EIP-7825.
const GAS_LIMIT: u64 = 1 << 24;
/// Seconds between two blocks.
const BLOCK_TIME: u64 = 2;

/// A chain.
#[derive(Debug)]
pub struct Chain {
    state: CacheDB<EmptyDB>,
    number: u64,
    timestamp: u64,
}

/// What a transaction did.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// What it returned.
    pub output: Bytes,
    /// Gas that it used, refunds taken off.
    pub gas_used: u64,
    /// What it logged.
    pub logs: Vec<Log>,
    /// The contract that it made.
    pub created: Option<Address>,
}

/// Why a transaction did nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// The contract refused, with these bytes.
    #[error("reverted with {0}")]
    Reverted(Bytes),
    /// It ended otherwise: out of gas, an opcode that is none.
    #[error("halted: {0}")]
    Halted(String),
    /// It was never begun.
    #[error("refused: {0}")]
    Refused(String),
}

impl Chain {
    /// An empty chain at this time, in seconds since the Unix epoch.
    pub fn new(timestamp: u64) -> Self {
        Self { state: CacheDB::new(EmptyDB::new()), number: 0, timestamp }
    }

    /// The time of the last block.
    pub fn timestamp(&self) -> u64 {
        self.timestamp
    }

    /// Lets time pass without transactions.
    pub fn advance(&mut self, seconds: u64) {
        self.timestamp += seconds;
    }

    /// Makes a contract of `code`, constructor and its arguments.
    ///
    /// # Errors
    /// [`Failure`]: nothing has changed then but the time.
    pub fn deploy(&mut self, from: Address, code: Bytes) -> Result<Receipt, Failure> {
        self.transact(from, TxKind::Create, code)
    }

    /// Calls the contract `to` and keeps what that changes.
    ///
    /// # Errors
    /// [`Failure`]: nothing has changed then but the time.
    pub fn send(&mut self, from: Address, to: Address, data: Bytes) -> Result<Receipt, Failure> {
        self.transact(from, TxKind::Call(to), data)
    }

    /// Calls the contract `to` and keeps nothing.
    ///
    /// # Errors
    /// [`Failure`] of the call.
    pub fn call(&self, from: Address, to: Address, data: Bytes) -> Result<Bytes, Failure> {
        let mut state = self.state.clone();
        run(&mut state, (self.number, self.timestamp), from, TxKind::Call(to), data).map(|(receipt, _)| receipt.output)
    }

    /// The slots of a contract that are not zero.
    pub fn storage(&self, address: Address) -> BTreeMap<U256, U256> {
        let account = self.state.cache.accounts.get(&address);
        let slots = account.into_iter().flat_map(|account| &account.storage);
        slots.filter(|(_, value)| !value.is_zero()).map(|(slot, value)| (*slot, *value)).collect()
    }

    fn transact(&mut self, from: Address, kind: TxKind, data: Bytes) -> Result<Receipt, Failure> {
        self.number += 1;
        self.timestamp += BLOCK_TIME;
        let (receipt, changes) = run(&mut self.state, (self.number, self.timestamp), from, kind, data)?;
        self.state.commit(changes);
        Ok(receipt)
    }
}

type Changes = revm::state::EvmState;

fn run(
    state: &mut CacheDB<EmptyDB>,
    (number, timestamp): (u64, u64),
    from: Address,
    kind: TxKind,
    data: Bytes,
) -> Result<(Receipt, Changes), Failure> {
    let refused = |error: String| Failure::Refused(error);
    let nonce = state.basic(from).map_err(|error| refused(error.to_string()))?.map_or(0, |account| account.nonce);
    let mut context: Context<BlockEnv, TxEnv, CfgEnv, _, Journal<_>, ()> = Context::new(state, SpecId::OSAKA);
    context.modify_block(|block| {
        block.number = U256::from(number);
        block.timestamp = U256::from(timestamp);
        block.gas_limit = GAS_LIMIT;
    });
    let transaction = TxEnv::builder().caller(from).kind(kind).data(data).nonce(nonce).gas_limit(GAS_LIMIT);
    let transaction = transaction.build().map_err(|error| refused(format!("{error:?}")))?;
    let done = context.build_mainnet().transact(transaction).map_err(|error| refused(error.to_string()))?;
    match done.result {
        ExecutionResult::Success { gas, logs, output, .. } => {
            let (output, created) = match output {
                Output::Call(bytes) => (bytes, None),
                Output::Create(bytes, address) => (bytes, address),
            };
            Ok((Receipt { output, gas_used: gas.tx_gas_used(), logs, created }, done.state))
        }
        ExecutionResult::Revert { output, .. } => Err(Failure::Reverted(output)),
        ExecutionResult::Halt { reason, .. } => Err(Failure::Halted(format!("{reason:?}"))),
    }
}
