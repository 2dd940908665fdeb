//! Transactions that are sent once and only once.
//!
//! Owns the journal: a transaction is written down, signed, before it leaves, so that whoever is killed between signing and sending finds it again and sends the same one. What
//! is done under one name is never signed anew while it may still be in a block.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alloy_consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy_primitives::{Address, B256, Bytes, Signature, TxKind, U256, hex};
use k256::ecdsa::SigningKey;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::endpoint::{Endpoint, EndpointError};
use crate::chain_file::ChainFile;
use crate::directory::replace;

/// How long a transaction is waited for, and how often it is looked for.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// After so long without a block its fees are raised.
const SPEED_UP: Duration = Duration::from_secs(20);

/// Why a transaction did not come to pass.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// An endpoint.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The journal.
    #[error("{path}: {why}")]
    Journal {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The contract refuses it; nothing was sent.
    #[error("the contract refuses: {0}")]
    Refused(String),
    /// It is in a block and did nothing.
    #[error("transaction {0} is in a block, but the contract refused it there")]
    Failed(B256),
    /// It is not in a block yet.
    #[error("transaction {0} is not in a block yet; run the same command again to go on")]
    Waiting(B256),
    /// The account cannot pay for it.
    #[error("{account} has {balance} wei and this may cost {needed} wei: send it more")]
    Funds {
        /// Which account.
        account: Address,
        /// What it has.
        balance: U256,
        /// What is needed.
        needed: U256,
    },
}

/// A transaction that was signed.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    /// What it is for.
    name: String,
    nonce: u64,
    to: Address,
    data: Bytes,
    gas: u64,
    max_fee: u128,
    tip: u128,
    /// The signed bytes and their hashes, the newest last: each pays more than the one before it.
    raw: Vec<Bytes>,
    hashes: Vec<B256>,
}

/// An account that sends.
pub struct Sender {
    endpoint: Endpoint,
    chain_id: u64,
    key: SigningKey,
    path: PathBuf,
    patience: Duration,
}

/// What a transaction did.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// Its hash.
    pub hash: B256,
    /// The block that it is in.
    pub block: u64,
    /// Gas that it used.
    pub gas_used: u64,
    /// What it logged.
    pub logs: Vec<alloy_primitives::Log>,
}

impl Sender {
    /// The account with this key, whose journal is in the folder `state`.
    pub fn new(file: &ChainFile, key: SigningKey, state: &Path) -> Self {
        let endpoint = Endpoint::new(file.endpoints.first().map_or("", String::as_str));
        let account = Address::from_public_key(key.verifying_key());
        let path = state.join(format!("transaction-{}-{account:#x}.json", file.chain_id));
        Self { endpoint, chain_id: file.chain_id, key, path, patience: PATIENCE }
    }

    /// Waits so long for a block instead of a minute.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Its address.
    pub fn address(&self) -> Address {
        Address::from_public_key(self.key.verifying_key())
    }

    /// Whom it asks.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Calls `to` with `data`, for what `name` says, and waits until it is in a block. When a transaction under this name is under way already, that one is waited for.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send(&self, name: &str, to: Address, data: &[u8]) -> Result<Receipt, SendError> {
        self.endpoint.check_chain(self.chain_id)?;
        let mut entry = match self.pending()? {
            // Whatever was under way comes first: the next has its nonce after it.
            Some(entry) if entry.name == name && entry.to == to && *entry.data == *data => entry,
            Some(mut other) => {
                let done = self.wait(&mut other);
                if matches!(done, Err(SendError::Waiting(_) | SendError::Endpoint(_) | SendError::Journal { .. })) {
                    done?;
                }
                self.prepare(name, to, data)?
            }
            None => self.prepare(name, to, data)?,
        };
        self.wait(&mut entry)
    }

    fn prepare(&self, name: &str, to: Address, data: &[u8]) -> Result<Entry, SendError> {
        let from = self.address();
        let call = json!({"from": from.to_string(), "to": to.to_string(), "input": hex::encode_prefixed(data)});
        let gas = self.endpoint.ask_number("eth_estimateGas", &json!([call])).map_err(refused)?;
        let gas = u64::try_from(gas).unwrap_or(u64::MAX).saturating_mul(6) / 5;
        let nonce = self.endpoint.ask_number("eth_getTransactionCount", &json!([from.to_string(), "latest"]))?;
        let tip: u128 = self.endpoint.ask_number("eth_maxPriorityFeePerGas", &json!([]))?.saturating_to();
        let block = self.endpoint.ask("eth_getBlockByNumber", &json!(["latest", false]))?;
        let base = block["baseFeePerGas"].as_str().and_then(|text| text.parse::<U256>().ok()).unwrap_or_default();
        let max_fee = base.saturating_to::<u128>().saturating_mul(2).saturating_add(tip);
        let needed = U256::from(max_fee) * U256::from(gas);
        let balance = self.endpoint.ask_number("eth_getBalance", &json!([from.to_string(), "latest"]))?;
        if balance < needed {
            return Err(SendError::Funds { account: from, balance, needed });
        }
        let mut entry = Entry {
            name: name.to_owned(),
            nonce: nonce.saturating_to(),
            to,
            data: Bytes::copy_from_slice(data),
            gas,
            max_fee,
            tip,
            raw: Vec::new(),
            hashes: Vec::new(),
        };
        self.sign(&mut entry)?;
        Ok(entry)
    }

    /// Signs with the fees that the entry has, and writes it down.
    fn sign(&self, entry: &mut Entry) -> Result<(), SendError> {
        let transaction = TxEip1559 {
            chain_id: self.chain_id,
            nonce: entry.nonce,
            gas_limit: entry.gas,
            max_fee_per_gas: entry.max_fee,
            max_priority_fee_per_gas: entry.tip,
            to: TxKind::Call(entry.to),
            value: U256::ZERO,
            access_list: Default::default(),
            input: entry.data.clone(),
        };
        let signed = self.key.sign_prehash_recoverable(transaction.signature_hash().as_slice());
        let (signature, recovery) = signed.map_err(|error| SendError::Refused(error.to_string()))?;
        let transaction: TxEnvelope = transaction.into_signed(Signature::from((signature, recovery))).into();
        entry.hashes.push(*transaction.tx_hash());
        entry.raw.push(alloy_consensus::private::alloy_eips::eip2718::Encodable2718::encoded_2718(&transaction).into());
        self.keep(Some(entry))
    }

    /// Sends it, again where it was lost, until it is in a block.
    fn wait(&self, entry: &mut Entry) -> Result<Receipt, SendError> {
        let started = Instant::now();
        let mut raised = started;
        self.broadcast(entry)?;
        loop {
            for hash in &entry.hashes {
                let shown = self.endpoint.ask("eth_getTransactionReceipt", &json!([hash.to_string()]))?;
                if let Some(block) = shown["blockNumber"].as_str().and_then(|text| text.parse::<U256>().ok()) {
                    self.keep(None)?;
                    if shown["status"] != "0x1" {
                        return Err(SendError::Failed(*hash));
                    }
                    return Ok(receipt(*hash, block.saturating_to(), &shown));
                }
            }
            let newest = entry.hashes.last().copied().unwrap_or_default();
            if started.elapsed() > self.patience {
                return Err(SendError::Waiting(newest));
            }
            std::thread::sleep(LOOK_EVERY);
            if raised.elapsed() > SPEED_UP {
                raised = Instant::now();
                // What a pool takes in place of another pays at least a tenth more.
                entry.max_fee = entry.max_fee.saturating_mul(5) / 4;
                entry.tip = entry.tip.saturating_mul(5) / 4;
                self.sign(entry)?;
                self.broadcast(entry)?;
            }
        }
    }

    /// What is known already, or was overtaken by another of the same nonce, is no fault: its receipt decides.
    fn broadcast(&self, entry: &Entry) -> Result<(), SendError> {
        let Some(raw) = entry.raw.last() else { return Ok(()) };
        match self.endpoint.ask("eth_sendRawTransaction", &json!([raw.to_string()])) {
            Ok(_) => Ok(()),
            Err(EndpointError::Refused { message, .. })
                if ["already known", "nonce too low", "underpriced"].iter().any(|known| message.contains(known)) =>
            {
                Ok(())
            }
            Err(error) => Err(refused(error)),
        }
    }

    fn pending(&self) -> Result<Option<Entry>, SendError> {
        let journal = |why: String| SendError::Journal { path: self.path.clone(), why };
        match std::fs::read(&self.path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| journal(error.to_string())),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(journal(error.to_string())),
        }
    }

    fn keep(&self, entry: Option<&Entry>) -> Result<(), SendError> {
        let kept = match entry {
            Some(entry) => {
                let folder = self.path.parent().unwrap_or(Path::new("."));
                let bytes = serde_json::to_vec(entry).unwrap_or_default();
                std::fs::create_dir_all(folder).and_then(|()| replace(&self.path, &bytes))
            }
            None => std::fs::remove_file(&self.path),
        };
        kept.map_err(|error| SendError::Journal { path: self.path.clone(), why: error.to_string() })
    }
}

/// A contract that refuses is told apart from an endpoint that fails.
fn refused(error: EndpointError) -> SendError {
    use alloy_sol_types::SolInterface;
    use openrelay_ledger::chain::registry::RelayRegistry::RelayRegistryErrors;
    match error {
        EndpointError::Refused { data: Some(data), message, .. } => {
            let known = RelayRegistryErrors::abi_decode(&data).map(|error| format!("{error:?}"));
            SendError::Refused(known.unwrap_or(message))
        }
        EndpointError::Refused { code: 3, message, .. } => SendError::Refused(message),
        other @ (EndpointError::Refused { .. }
        | EndpointError::Transport { .. }
        | EndpointError::Malformed { .. }
        | EndpointError::OtherChain { .. }) => other.into(),
    }
}

fn receipt(hash: B256, block: u64, shown: &Value) -> Receipt {
    let gas = shown["gasUsed"].as_str().and_then(|text| text.parse::<U256>().ok()).unwrap_or_default();
    let logs = shown["logs"].as_array().cloned().unwrap_or_default();
    let logs = logs.iter().filter_map(super::mirror::read_log).collect();
    Receipt { hash, block, gas_used: gas.saturating_to(), logs }
}
