//! The state of all accounts at one block, its root, and proofs of its content.
//!
//! Copies are cheap: states of several blocks share accounts until one changes them. Each block's root is computed
//! from the start, but the storage roots of untouched accounts are kept.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, OnceLock};

use alloy_consensus::TrieAccount;
use alloy_primitives::{Address, B256, Bytes, KECCAK256_EMPTY, U256, keccak256};
use alloy_trie::proof::ProofRetainer;
use alloy_trie::{EMPTY_ROOT_HASH, HashBuilder, Nibbles};
use revm::DatabaseRef;
use revm::bytecode::Bytecode;
use revm::primitives::hardfork::SpecId;
use revm::state::{AccountInfo, EvmState};

/// A contract's code, analysed and hashed once.
#[derive(Clone, Debug)]
struct Code {
    bytecode: Bytecode,
    hash: B256,
}

impl Default for Code {
    fn default() -> Self {
        Self { bytecode: Bytecode::default(), hash: KECCAK256_EMPTY }
    }
}

/// One account.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// Number of transactions sent, or of contracts created.
    pub nonce: u64,
    /// Balance in wei.
    pub balance: U256,
    code: Code,
    /// The non-zero slots.
    pub storage: BTreeMap<U256, U256>,
    /// The cached root of `storage`. Every change clears it.
    root: OnceLock<B256>,
}

impl Account {
    /// Creates an account with this balance.
    pub fn with_balance(balance: U256) -> Self {
        Self { balance, ..Self::default() }
    }

    /// Returns the account's code.
    pub fn code(&self) -> Bytes {
        self.code.bytecode.original_bytes()
    }

    /// Sets the account's code.
    pub fn set_code(&mut self, code: Bytes) {
        self.code = Code { hash: keccak256(&code), bytecode: Bytecode::new_raw(code) };
    }

    /// Returns Keccak-256 of the account's code.
    pub const fn code_hash(&self) -> B256 {
        self.code.hash
    }

    /// Returns whether the account has code.
    pub fn is_contract(&self) -> bool {
        self.code.hash != KECCAK256_EMPTY
    }

    /// Returns the root of the account's storage trie.
    pub fn storage_root(&self) -> B256 {
        *self.root.get_or_init(|| {
            if self.storage.is_empty() {
                return EMPTY_ROOT_HASH;
            }
            build(self.slots(), Vec::new()).0
        })
    }

    fn slots(&self) -> BTreeMap<B256, Vec<u8>> {
        let leaf = |(slot, value): (&U256, &U256)| (keccak256(B256::from(*slot)), alloy_rlp::encode(value));
        self.storage.iter().map(leaf).collect()
    }

    fn leaf(&self) -> Vec<u8> {
        alloy_rlp::encode(TrieAccount {
            nonce: self.nonce,
            balance: self.balance,
            storage_root: self.storage_root(),
            code_hash: self.code_hash(),
        })
    }

    fn is_empty(&self) -> bool {
        self.nonce == 0 && self.balance.is_zero() && !self.is_contract()
    }
}

/// Nodes of a trie from its root towards a key.
pub type Proof = Vec<Bytes>;

/// All accounts.
#[derive(Clone, Debug, Default)]
pub struct State {
    accounts: BTreeMap<Address, Arc<Account>>,
}

impl State {
    /// Returns the account at `address`, if there is one.
    pub fn account(&self, address: Address) -> Option<&Account> {
        self.accounts.get(&address).map(Arc::as_ref)
    }

    /// Returns the account at `address` for changes, creating it if necessary.
    pub fn account_mut(&mut self, address: Address) -> &mut Account {
        let account = Arc::make_mut(self.accounts.entry(address).or_default());
        account.root = OnceLock::new();
        account
    }

    /// Returns the root of the state trie.
    pub fn root(&self) -> B256 {
        build(self.leaves(), Vec::new()).0
    }

    /// Returns the nodes that prove the account or its absence, and the nodes that prove each slot.
    pub fn prove(&self, address: Address, slots: &[U256]) -> (Proof, Vec<Proof>) {
        let account = build(self.leaves(), vec![keccak256(address)]).1.remove(0);
        let keys: Vec<B256> = slots.iter().map(|slot| keccak256(B256::from(*slot))).collect();
        let storage = self.account(address).map(Account::slots).unwrap_or_default();
        let slots = if storage.is_empty() { vec![Proof::new(); keys.len()] } else { build(storage, keys).1 };
        (account, slots)
    }

    fn leaves(&self) -> BTreeMap<B256, Vec<u8>> {
        self.accounts.iter().map(|(address, account)| (keccak256(address), account.leaf())).collect()
    }

    /// Applies the changes of a transaction.
    pub(crate) fn commit(&mut self, changes: EvmState, spec: SpecId) {
        for (address, change) in changes {
            if !change.is_touched() {
                continue;
            }
            if change.is_selfdestructed() {
                self.accounts.remove(&address);
                continue;
            }
            let account = self.account_mut(address);
            if change.is_created() {
                account.storage.clear();
            }
            account.nonce = change.info.nonce;
            account.balance = change.info.balance;
            if let Some(code) = change.info.code.filter(|_| change.info.code_hash != account.code_hash()) {
                account.code = Code { hash: change.info.code_hash, bytecode: code };
            }
            for (slot, value) in change.storage {
                let value = value.present_value();
                if value.is_zero() {
                    account.storage.remove(&slot);
                } else {
                    account.storage.insert(slot, value);
                }
            }
            // Source: EIP-161.
            if account.is_empty() && spec.is_enabled_in(SpecId::SPURIOUS_DRAGON) {
                self.accounts.remove(&address);
            }
        }
    }
}

/// Returns the root of a trie with these leaves, and the nodes towards each of `targets`.
fn build(leaves: BTreeMap<B256, Vec<u8>>, targets: Vec<B256>) -> (B256, Vec<Proof>) {
    let paths: Vec<Nibbles> = targets.into_iter().map(Nibbles::unpack).collect();
    let mut builder = HashBuilder::default();
    if !paths.is_empty() {
        builder = builder.with_proof_retainer(ProofRetainer::new(paths.clone()));
    }
    for (key, value) in leaves {
        builder.add_leaf(Nibbles::unpack(key), &value);
    }
    let root = builder.root();
    let nodes = builder.take_proof_nodes();
    let towards = |path: &Nibbles| nodes.matching_nodes_sorted(path).into_iter().map(|(_, node)| node).collect();
    (root, paths.iter().map(towards).collect())
}

/// A state as the EVM reads it, with the hashes of previous blocks.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) state: &'a State,
    /// Block hashes by number.
    pub(crate) hashes: &'a [B256],
}

impl DatabaseRef for View<'_> {
    type Error = Infallible;

    fn basic_ref(&self, address: Address) -> Result<Option<AccountInfo>, Infallible> {
        Ok(self.state.account(address).map(|account| AccountInfo {
            nonce: account.nonce,
            balance: account.balance,
            code_hash: account.code_hash(),
            code: Some(account.code.bytecode.clone()),
            ..AccountInfo::default()
        }))
    }

    /// Never called, because accounts contain their code.
    fn code_by_hash_ref(&self, _: B256) -> Result<Bytecode, Infallible> {
        Ok(Bytecode::default())
    }

    fn storage_ref(&self, address: Address, slot: U256) -> Result<U256, Infallible> {
        let account = self.state.account(address);
        Ok(account.and_then(|account| account.storage.get(&slot)).copied().unwrap_or_default())
    }

    fn block_hash_ref(&self, number: u64) -> Result<B256, Infallible> {
        let place = usize::try_from(number).unwrap_or(usize::MAX);
        Ok(self.hashes.get(place).copied().unwrap_or_default())
    }
}
