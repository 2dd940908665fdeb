//! Transactions that are sent exactly once.
//!
//! Owns the journal: a signed transaction is written to it before it is sent. A process that is killed between
//! signing and sending finds the transaction again and sends the same one. Never signs a second transaction under a
//! name while the first may still be included in a block.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alloy_consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718 as _;
use alloy_primitives::{Address, B256, Bytes, Signature, TxKind, U256, hex};
use k256::ecdsa::SigningKey;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::endpoint::{Endpoint, EndpointError};
use openrelay_node::chain_file::ChainFile;
use openrelay_node::directory::replace;

/// How long a transaction is waited for, and how often its receipt is requested.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(300);
/// Time without inclusion in a block after which the fees are raised.
const SPEED_UP: Duration = Duration::from_secs(20);

/// Maximum cost of one transaction, in wei: a tenth of an ether. The fees come from an endpoint and are not proven.
const MAX_COST: U256 = U256::from_limbs([100_000_000_000_000_000, 0, 0, 0]);

/// Signs a hash in the form that contracts accept: r, s, v.
///
/// # Errors
/// [`SendError::Refused`] for a hash that cannot be signed. No such hash is known.
pub fn sign(key: &SigningKey, hash: B256) -> Result<[u8; 65], SendError> {
    signature(key, hash).map(|signature| signature.as_bytes())
}

fn signature(key: &SigningKey, hash: B256) -> Result<Signature, SendError> {
    let signed = key.sign_prehash_recoverable(hash.as_slice());
    signed.map(Signature::from).map_err(|error| SendError::Refused(error.to_string()))
}

/// Gas that is added to each estimate. The endpoint estimates within the newest block, where two slots may already be
/// written that the contract writes for the first time in each block. In the next block writing them costs more.
/// Unused gas costs nothing.
const NEXT_BLOCK: u64 = 60_000;

/// Why a transaction did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// An endpoint failed.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The journal cannot be read or written.
    #[error("{path}: {why}")]
    Journal {
        /// The file.
        path: PathBuf,
        /// The cause.
        why: String,
    },
    /// The contract or the endpoint rejected the call. Nothing was included in a block.
    #[error("the call was rejected: {0}")]
    Refused(String),
    /// The transaction is in a block, but reverted.
    #[error("transaction {0} is in a block, but it reverted there")]
    Failed(B256),
    /// Another transaction of the account took its nonce.
    #[error(
        "another program replaced transaction {0} by one with the same nonce; check what that one did, then run the \
         command again"
    )]
    Overtaken(B256),
    /// The endpoint's fees exceed the limit.
    #[error(
        "according to the endpoint this transaction costs {needed} wei, and the limit is {limit} wei; wait for lower \
         fees, or use another endpoint"
    )]
    TooExpensive {
        /// The cost, in wei.
        needed: U256,
        /// The limit, in wei.
        limit: U256,
    },
    /// The transaction is not in a block yet.
    #[error("transaction {0} is not in a block yet; run the same command again to continue")]
    Waiting(B256),
    /// The account cannot pay for the transaction.
    #[error("{account} has {balance} wei, but this may cost {needed} wei; send it more")]
    Funds {
        /// The account.
        account: Address,
        /// Its balance, in wei.
        balance: U256,
        /// The possible cost, in wei.
        needed: U256,
    },
}

/// A signed transaction in the journal.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    /// Purpose of the transaction.
    name: String,
    nonce: u64,
    to: Address,
    data: Bytes,
    gas: u64,
    max_fee: u128,
    tip: u128,
    /// The signed bytes and their hashes, the newest last. Each one pays higher fees than the one before it.
    raw: Vec<Bytes>,
    hashes: Vec<B256>,
}

/// An account that sends transactions.
pub struct Sender {
    endpoint: Endpoint,
    chain_id: u64,
    key: SigningKey,
    path: PathBuf,
    patience: Duration,
}

/// The result of a transaction.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// Hash of the transaction.
    pub hash: B256,
    /// Number of the block that includes it.
    pub block: u64,
    /// Gas that it used.
    pub gas_used: u64,
    /// Events that it logged.
    pub logs: Vec<alloy_primitives::Log>,
}

impl Sender {
    /// Returns the account with this key. Its journal is in the folder `state`.
    pub fn new(file: &ChainFile, key: SigningKey, state: &Path) -> Self {
        let endpoint = Endpoint::new(file.endpoints.first().map_or("", String::as_str));
        let account = Address::from_public_key(key.verifying_key());
        let path = state.join(format!("transaction-{}-{account:#x}.json", file.chain_id));
        Self { endpoint, chain_id: file.chain_id, key, path, patience: PATIENCE }
    }

    /// Sets how long to wait for a block, instead of one minute.
    #[must_use]
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Returns the account's address.
    pub fn address(&self) -> Address {
        Address::from_public_key(self.key.verifying_key())
    }

    /// Returns the endpoint that it uses.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Calls `to` with `data` for the purpose `name`, and waits until the transaction is in a block. If the same call
    /// is already pending under this name, waits for that transaction instead.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send(&self, name: &str, to: Address, data: &[u8]) -> Result<Receipt, SendError> {
        let receipt = self.send_and_keep(name, to, data)?;
        self.forget()?;
        Ok(receipt)
    }

    /// Does the same as [`Sender::send`], but leaves the transaction in the journal until [`Sender::forget`]. For
    /// callers that must save its result first.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send_and_keep(&self, name: &str, to: Address, data: &[u8]) -> Result<Receipt, SendError> {
        let _lock = self.lock()?;
        self.endpoint.check_chain(self.chain_id)?;
        match self.pending()? {
            // A pending transaction comes first, because the next one has the nonce after it.
            Some(mut entry) if entry.name == name && entry.to == to && *entry.data == *data => {
                return self.wait(&mut entry, false);
            }
            Some(mut other) => match self.wait(&mut other, false) {
                Ok(_) | Err(SendError::Failed(_) | SendError::Overtaken(_)) => self.forget()?,
                Err(error) => return Err(error),
            },
            None => {}
        }
        let mut entry = self.prepare(name, to, data)?;
        self.wait(&mut entry, true)
    }

    /// Waits for the transaction that is pending under this name, if there is one. It stays in the journal until
    /// [`Sender::forget`].
    ///
    /// # Errors
    /// [`SendError`].
    pub fn resume(&self, name: &str) -> Result<Option<Receipt>, SendError> {
        let _lock = self.lock()?;
        match self.pending()? {
            Some(mut entry) if entry.name == name => {
                self.endpoint.check_chain(self.chain_id)?;
                self.wait(&mut entry, false).map(Some)
            }
            Some(_) | None => Ok(None),
        }
    }

    /// Removes a finished transaction from the journal.
    ///
    /// # Errors
    /// [`SendError::Journal`].
    pub fn forget(&self) -> Result<(), SendError> {
        self.keep(None)
    }

    /// Lets one process in at a time. Two would use the same nonce.
    fn lock(&self) -> Result<std::fs::File, SendError> {
        let path = self.path.with_extension("lock");
        let folder = path.parent().unwrap_or(Path::new("."));
        let locked = std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::File::create(&path))
            .and_then(|file| file.lock().map(|()| file));
        locked.map_err(|error| SendError::Journal { path, why: error.to_string() })
    }

    fn prepare(&self, name: &str, to: Address, data: &[u8]) -> Result<Entry, SendError> {
        let from = self.address();
        let call = json!({"from": from.to_string(), "to": to.to_string(), "input": hex::encode_prefixed(data)});
        let gas = self.endpoint.ask_number("eth_estimateGas", &json!([call])).map_err(refused)?;
        let gas = (u64::try_from(gas).unwrap_or(u64::MAX).saturating_mul(6) / 5).saturating_add(NEXT_BLOCK);
        let nonce = self.nonce()?;
        let tip: u128 = self.endpoint.ask_number("eth_maxPriorityFeePerGas", &json!([]))?.saturating_to();
        let block = self.endpoint.ask("eth_getBlockByNumber", &json!(["latest", false]))?;
        let base = block["baseFeePerGas"].as_str().and_then(|text| text.parse::<U256>().ok()).unwrap_or_default();
        let max_fee = base.saturating_to::<u128>().saturating_mul(2).saturating_add(tip);
        let needed = U256::from(max_fee) * U256::from(gas);
        if needed > MAX_COST {
            return Err(SendError::TooExpensive { needed, limit: MAX_COST });
        }
        let balance = self.endpoint.ask_number("eth_getBalance", &json!([from.to_string(), "latest"]))?;
        if balance < needed {
            return Err(SendError::Funds { account: from, balance, needed });
        }
        let mut entry = Entry {
            name: name.to_owned(),
            nonce,
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

    /// Signs the entry's transaction with its current fees, and writes it to the journal.
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
        let signature = signature(&self.key, transaction.signature_hash())?;
        let transaction: TxEnvelope = transaction.into_signed(signature).into();
        entry.hashes.push(*transaction.tx_hash());
        entry.raw.push(transaction.encoded_2718().into());
        self.keep(Some(entry))
    }

    /// Sends the transaction, again if it was lost, until it is in a block. A `fresh` transaction was never sent
    /// before.
    fn wait(&self, entry: &mut Entry, fresh: bool) -> Result<Receipt, SendError> {
        let started = Instant::now();
        let mut raised = started;
        let mut to_send = true;
        loop {
            // Asked before the receipts: if the nonce has passed and there is no receipt, another transaction took
            // it.
            let passed = self.nonce()? > entry.nonce;
            for hash in &entry.hashes {
                let shown = self.endpoint.ask("eth_getTransactionReceipt", &json!([hash.to_string()]))?;
                if let Some(block) = shown["blockNumber"].as_str().and_then(|text| text.parse::<U256>().ok()) {
                    if shown["status"] != "0x1" {
                        self.forget()?;
                        return Err(SendError::Failed(*hash));
                    }
                    return Ok(receipt(*hash, block.saturating_to(), &shown));
                }
            }
            let newest = entry.hashes.last().copied().unwrap_or_default();
            if passed {
                self.forget()?;
                return Err(SendError::Overtaken(newest));
            }
            if to_send {
                to_send = false;
                match self.broadcast(entry) {
                    Ok(()) => {}
                    // No node has the transaction, and none shall get it.
                    Err(error @ SendError::Refused(_)) if fresh && entry.hashes.len() == 1 => {
                        self.forget()?;
                        return Err(error);
                    }
                    // It may still be in a pool, or its fees may be too low.
                    Err(SendError::Refused(_)) => {}
                    Err(error) => return Err(error),
                }
            }
            if started.elapsed() >= self.patience {
                return Err(SendError::Waiting(newest));
            }
            std::thread::sleep(LOOK_EVERY);
            if raised.elapsed() > SPEED_UP {
                raised = Instant::now();
                // A pool accepts a replacement only if it pays at least a tenth more.
                let more = |fee: u128| fee.saturating_mul(5) / 4 + 1;
                let max_fee = more(entry.max_fee);
                if U256::from(max_fee) * U256::from(entry.gas) <= MAX_COST {
                    (entry.max_fee, entry.tip) = (max_fee, more(entry.tip).min(max_fee));
                    self.sign(entry)?;
                }
                to_send = true;
            }
        }
    }

    /// Returns the account's next nonce.
    fn nonce(&self) -> Result<u64, SendError> {
        let account = self.address().to_string();
        Ok(self.endpoint.ask_number("eth_getTransactionCount", &json!([account, "latest"]))?.saturating_to())
    }

    /// Sends the newest transaction of the entry. It is not an error if the node knows it already, or if another one
    /// with the same nonce replaced it: the receipt decides.
    fn broadcast(&self, entry: &Entry) -> Result<(), SendError> {
        let Some(raw) = entry.raw.last() else { return Ok(()) };
        match self.endpoint.ask("eth_sendRawTransaction", &json!([raw.to_string()])) {
            Ok(_) => Ok(()),
            Err(EndpointError::Refused { message, .. }) if is_known(&message) => Ok(()),
            Err(EndpointError::Refused { message, .. }) => Err(SendError::Refused(message)),
            Err(error) => Err(error.into()),
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
            None => match std::fs::remove_file(&self.path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
                other => other,
            },
        };
        kept.map_err(|error| SendError::Journal { path: self.path.clone(), why: error.to_string() })
    }
}

/// Returns whether a node refuses a transaction that it has, or that is in a block. Knows the wordings of several
/// nodes.
fn is_known(message: &str) -> bool {
    let message = message.to_lowercase().replace(' ', "");
    ["alreadyknown", "knowntransaction", "alreadyimported", "noncetoolow", "underpriced"]
        .iter()
        .any(|known| message.contains(known))
}

/// Distinguishes a call that the contract rejects from an endpoint that fails.
fn refused(error: EndpointError) -> SendError {
    match error {
        EndpointError::Refused { data: Some(data), message, .. } => {
            SendError::Refused(crate::voting::reason(&data).unwrap_or(message))
        }
        EndpointError::Refused { code: 3, message, .. } => SendError::Refused(message),
        other @ (EndpointError::Refused { .. }
        | EndpointError::Transport { .. }
        | EndpointError::TooLarge { .. }
        | EndpointError::TimedOut { .. }
        | EndpointError::Status { .. }
        | EndpointError::Malformed { .. }
        | EndpointError::OtherChain { .. }) => other.into(),
    }
}

fn receipt(hash: B256, block: u64, shown: &Value) -> Receipt {
    let gas = shown["gasUsed"].as_str().and_then(|text| text.parse::<U256>().ok()).unwrap_or_default();
    let logs = shown["logs"].as_array().cloned().unwrap_or_default();
    let logs = logs.iter().filter_map(super::logs::read_log).collect();
    Receipt { hash, block, gas_used: gas.saturating_to(), logs }
}
