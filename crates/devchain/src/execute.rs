//! Executes transactions in the EVM.
//!
//! Owns how revm sees a block and a transaction, and the system calls of every block.

use alloy_consensus::{Header, Transaction, TxEnvelope, Typed2718};
use alloy_primitives::{Address, B256, Bytes, TxKind, U256, address};
use revm::context::either::Either;
use revm::context::result::{ExecutionResult, ResultAndState};
use revm::context::{BlockEnv, CfgEnv, Context, Journal, TxEnv};
use revm::context_interface::block::BlobExcessGasAndPrice;
use revm::database::{CacheDB, WrapDatabaseRef};
use revm::primitives::hardfork::SpecId;
use revm::{ExecuteEvm, MainBuilder, SystemCallEvm};

use crate::fork::Rules;
use crate::state::{Account, State, View};

/// The contract with the beacon chain's roots. Source: EIP-4788.
const BEACON_ROOTS: Address = address!("000F3df6D732807Ef1319fB7B8bB8522d0Beac02");
/// The contract with the hashes of blocks. Source: EIP-2935.
const HISTORY: Address = address!("0000F90827F1C53a10cb7A02335B175320002935");
/// The queues of withdrawals and consolidations. Source: EIP-7002, EIP-7251.
const QUEUES: [Address; 2] =
    [address!("00000961Ef480Eb55e80D19ad83579A64c007002"), address!("0000BBdDc7CE488642fb579F8B00f3a590007251")];
/// Gas that a transaction may use under Osaka. Source: EIP-7825.
pub(crate) const TRANSACTION_GAS: u64 = 1 << 24;

/// The context in which transactions run.
pub(crate) struct Surroundings<'a> {
    pub(crate) chain_id: u64,
    pub(crate) rules: Rules,
    pub(crate) header: &'a Header,
    /// Block hashes by number.
    pub(crate) hashes: &'a [B256],
}

/// Which checks apply to a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Rigour {
    /// All checks, as in a block.
    Whole,
    /// A call: without checks of nonce, balance for gas and base fee.
    Question,
    /// A call that names a gas price, which must cover the base fee.
    PricedQuestion,
    /// An unsigned transaction of the chain's owner. Gas is free.
    Unsigned,
}

type Evm<'a> = revm::MainnetEvm<
    Context<
        BlockEnv,
        TxEnv,
        CfgEnv,
        CacheDB<WrapDatabaseRef<View<'a>>>,
        Journal<CacheDB<WrapDatabaseRef<View<'a>>>>,
        (),
    >,
>;

impl<'a> Surroundings<'a> {
    fn evm<'s>(&'s self, state: &'s State, rigour: Rigour) -> Evm<'s> {
        let view = View { state, hashes: self.hashes };
        let mut context: Context<BlockEnv, TxEnv, CfgEnv, _, Journal<_>, ()> =
            Context::new(CacheDB::new(WrapDatabaseRef(view)), self.rules.spec);
        let header = self.header;
        let merged = self.rules.spec.is_enabled_in(SpecId::MERGE);
        context.modify_block(|block| {
            block.number = U256::from(header.number);
            block.beneficiary = header.beneficiary;
            block.timestamp = U256::from(header.timestamp);
            block.gas_limit = header.gas_limit;
            // Nodes answer calls that name no gas price in this way.
            let free = rigour == Rigour::Question;
            block.basefee = header.base_fee_per_gas.filter(|_| !free).unwrap_or_default();
            block.difficulty = header.difficulty;
            block.prevrandao = merged.then_some(header.mix_hash);
            let excess = header.excess_blob_gas.unwrap_or_default();
            block.blob_excess_gas_and_price = Some(BlobExcessGasAndPrice::new(excess, self.rules.blob_fraction));
        });
        context.modify_cfg(|cfg| {
            cfg.chain_id = self.chain_id;
            cfg.max_blobs_per_tx = Some(self.rules.blobs.1);
            if rigour != Rigour::Whole {
                cfg.disable_base_fee = rigour != Rigour::PricedQuestion;
                cfg.disable_eip3607 = true;
            }
            if matches!(rigour, Rigour::Question | Rigour::PricedQuestion) {
                cfg.disable_nonce_check = true;
                cfg.disable_balance_check = true;
                cfg.disable_block_gas_limit = true;
                cfg.tx_gas_limit_cap = Some(u64::MAX);
            }
        });
        context.build_mainnet()
    }

    /// Runs a transaction without changing the state.
    pub(crate) fn run(&self, state: &State, transaction: TxEnv, rigour: Rigour) -> Result<ResultAndState, String> {
        self.evm(state, rigour).transact(transaction).map_err(|error| {
            if let revm::context::result::EVMError::Transaction(why) = error {
                why.to_string()
            } else {
                error.to_string()
            }
        })
    }

    /// Runs the system calls before a block's transactions.
    pub(crate) fn begin(&self, state: &mut State) {
        if self.rules.spec.is_enabled_in(SpecId::CANCUN)
            && let Some(root) = self.header.parent_beacon_block_root
        {
            self.system_call(state, BEACON_ROOTS, root.into());
        }
        if self.rules.spec.is_enabled_in(SpecId::PRAGUE) {
            self.system_call(state, HISTORY, self.header.parent_hash.into());
        }
    }

    /// Runs the system calls after a block's transactions.
    pub(crate) fn end(&self, state: &mut State) {
        if self.rules.spec.is_enabled_in(SpecId::PRAGUE) {
            QUEUES.into_iter().for_each(|queue| self.system_call(state, queue, Bytes::new()));
        }
    }

    fn system_call(&self, state: &mut State, to: Address, data: Bytes) {
        if !state.account(to).is_some_and(Account::is_contract) {
            return;
        }
        let done = self.evm(state, Rigour::Whole).system_call(to, data);
        // This kind of database cannot fail.
        if let Ok(done) = done {
            state.commit(done.state, self.rules.spec);
        }
    }

    /// Pays the miner's reward for a block. Source: EIP-649, EIP-1234.
    pub(crate) fn reward(&self, state: &mut State, ommers: &[Header]) {
        if self.rules.spec.is_enabled_in(SpecId::MERGE) || self.header.number == 0 {
            return;
        }
        let ether = match self.rules.spec {
            spec if spec.is_enabled_in(SpecId::PETERSBURG) => 2,
            spec if spec.is_enabled_in(SpecId::BYZANTIUM) => 3,
            _ => 5,
        };
        let reward = U256::from(ether) * U256::from(1_000_000_000_000_000_000_u64);
        for ommer in ommers {
            let share = U256::from(8 + ommer.number - self.header.number);
            state.account_mut(ommer.beneficiary).balance += reward * share / U256::from(8);
        }
        let own = reward + reward / U256::from(32) * U256::from(ommers.len());
        state.account_mut(self.header.beneficiary).balance += own;
    }
}

/// Converts a transaction for the EVM.
///
/// # Errors
/// Why the transaction is invalid.
pub(crate) fn environment(transaction: &TxEnvelope, sender: Address) -> Result<TxEnv, String> {
    let authorizations = transaction.authorization_list().unwrap_or_default();
    let mut environment = TxEnv::builder()
        .caller(sender)
        .gas_limit(transaction.gas_limit())
        .gas_price(transaction.max_fee_per_gas())
        .kind(transaction.kind())
        .value(transaction.value())
        .data(transaction.input().clone())
        .nonce(transaction.nonce())
        .chain_id(transaction.chain_id())
        .gas_priority_fee(transaction.max_priority_fee_per_gas())
        .access_list(transaction.access_list().cloned().unwrap_or_default())
        .blob_hashes(transaction.blob_versioned_hashes().unwrap_or_default().to_vec())
        .max_fee_per_blob_gas(transaction.max_fee_per_blob_gas().unwrap_or_default());
    environment = environment.authorization_list(authorizations.iter().cloned().map(Either::Left).collect());
    environment.tx_type(Some(transaction.ty())).build().map_err(|error| format!("{error:?}"))
}

/// A call without a signature.
#[derive(Clone, Debug)]
pub struct Call {
    /// The sender.
    pub from: Address,
    /// The called contract, or a creation.
    pub to: TxKind,
    /// The input data.
    pub data: Bytes,
    /// The value in wei.
    pub value: U256,
    /// The gas limit.
    pub gas: Option<u64>,
    /// Maximum fee for each gas, and the miner's part of it.
    pub fees: Option<(u128, Option<u128>)>,
}

impl Call {
    pub(crate) fn environment(&self, chain_id: u64, gas_limit: u64, nonce: u64) -> Result<TxEnv, String> {
        let (price, tip) = self.fees.unwrap_or_default();
        TxEnv::builder()
            .caller(self.from)
            .kind(self.to)
            .data(self.data.clone())
            .value(self.value)
            .gas_limit(self.gas.unwrap_or(gas_limit))
            .gas_price(price)
            .gas_priority_fee(tip)
            .nonce(nonce)
            .chain_id(Some(chain_id))
            .build()
            .map_err(|error| format!("{error:?}"))
    }
}

/// Converts the result of a run into an error unless it succeeded.
pub(crate) fn outcome(result: &ExecutionResult) -> Result<(), crate::Failure> {
    match result {
        ExecutionResult::Success { .. } => Ok(()),
        ExecutionResult::Revert { output, .. } => Err(crate::Failure::Reverted(output.clone())),
        ExecutionResult::Halt { reason, .. } => Err(crate::Failure::Halted(format!("{reason:?}"))),
    }
}
