//! Transactions that are sent once and only once.
//!
//! Owns the journal: a transaction is written down, signed, before it leaves, so that whoever is killed between signing and sending finds it again and sends the same one. What
//! is done under one name is never signed anew while it may still be in a block.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alloy_consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718 as _;
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

/// The most that one transaction may cost, in wei: a tenth of an ether. What an endpoint says of fees is its own word.
const MAX_COST: U256 = U256::from_limbs([100_000_000_000_000_000, 0, 0, 0]);

/// Signs a hash as contracts take it: r, s, v.
///
/// # Errors
/// [`SendError::Refused`] for a hash that cannot be signed, which nobody has ever seen.
pub fn sign(key: &SigningKey, hash: B256) -> Result<[u8; 65], SendError> {
    signature(key, hash).map(|signature| signature.as_bytes())
}

fn signature(key: &SigningKey, hash: B256) -> Result<Signature, SendError> {
    let signed = key.sign_prehash_recoverable(hash.as_slice());
    signed.map(Signature::from).map_err(|error| SendError::Refused(error.to_string()))
}

/// Gas that a call may use more in the next block than it is estimated to use: what a contract writes for the first time in a block, two slots of it, was written already in the block that estimates
/// are made by. What is not used costs nothing.
const NEXT_BLOCK: u64 = 60_000;

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
    /// Another transaction of the account is in its place.
    #[error(
        "transaction {0} was overtaken by another of this account, which was not sent from here; look what that did, then run the command again"
    )]
    Overtaken(B256),
    /// The endpoint's fees are out of proportion.
    #[error(
        "this would cost {needed} wei by the endpoint's word, and at most {limit} are spent on a transaction: wait for lower fees, or ask another endpoint"
    )]
    TooExpensive {
        /// What it would cost.
        needed: U256,
        /// The most that is spent.
        limit: U256,
    },
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
        let receipt = self.send_and_keep(name, to, data)?;
        self.forget()?;
        Ok(receipt)
    }

    /// The same, with the transaction kept in the journal until [`Sender::forget`]: for who has to write down first what came of it.
    ///
    /// # Errors
    /// [`SendError`].
    pub fn send_and_keep(&self, name: &str, to: Address, data: &[u8]) -> Result<Receipt, SendError> {
        let _lock = self.lock()?;
        self.endpoint.check_chain(self.chain_id)?;
        match self.pending()? {
            // Whatever was under way comes first: the next has its nonce after it.
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

    /// Waits for what is under way under this name, if anything is; kept until [`Sender::forget`].
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

    /// Takes what is done out of the journal.
    ///
    /// # Errors
    /// [`SendError::Journal`].
    pub fn forget(&self) -> Result<(), SendError> {
        self.keep(None)
    }

    /// One process at a time: two would take the same nonce.
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
        let signature = signature(&self.key, transaction.signature_hash())?;
        let transaction: TxEnvelope = transaction.into_signed(signature).into();
        entry.hashes.push(*transaction.tx_hash());
        entry.raw.push(transaction.encoded_2718().into());
        self.keep(Some(entry))
    }

    /// Sends it, again where it was lost, until it is in a block. What is `fresh` was never sent.
    fn wait(&self, entry: &mut Entry, fresh: bool) -> Result<Receipt, SendError> {
        let started = Instant::now();
        let mut raised = started;
        let mut to_send = true;
        loop {
            // Asked before the receipts: when it has passed and no receipt is there, another has taken the place.
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
                    // Nobody has it, and nobody shall.
                    Err(error @ SendError::Refused(_)) if fresh && entry.hashes.len() == 1 => {
                        self.forget()?;
                        return Err(error);
                    }
                    // It may be in a pool all the same, or its fees are too low now.
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
                // What a pool takes in place of another pays at least a tenth more.
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

    /// The number of the account's next transaction.
    fn nonce(&self) -> Result<u64, SendError> {
        let account = self.address().to_string();
        Ok(self.endpoint.ask_number("eth_getTransactionCount", &json!([account, "latest"]))?.saturating_to())
    }

    /// What is known already, or was overtaken by another of the same nonce, is no fault: its receipt decides.
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

/// Whether a node refuses what it has, or what is in a block: in the words of several.
fn is_known(message: &str) -> bool {
    let message = message.to_lowercase().replace(' ', "");
    ["alreadyknown", "knowntransaction", "alreadyimported", "noncetoolow", "underpriced"]
        .iter()
        .any(|known| message.contains(known))
}

/// A contract that refuses is told apart from an endpoint that fails.
fn refused(error: EndpointError) -> SendError {
    match error {
        EndpointError::Refused { data: Some(data), message, .. } => {
            SendError::Refused(openrelay_ledger::chain::voting::reason(&data).unwrap_or(message))
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
