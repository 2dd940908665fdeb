//! The start of a chain: from a genesis file, or with accounts for development.
//!
//! Owns the parsing of `genesis.json` and `chain.rlp`. Source: go-ethereum, core/genesis.go; execution-apis, tests/.

use alloy_consensus::{Block, Header, TxEnvelope};
use alloy_eips::eip2935::{HISTORY_STORAGE_ADDRESS, HISTORY_STORAGE_CODE};
use alloy_primitives::{Address, B256, Bytes, U256, address, b256, hex};
use alloy_rlp::Decodable;
use serde_json::Value;

use crate::chain::{Chain, ImportError};
use crate::fork::Schedule;
use crate::state::State;

/// Accounts with public keys, each with 10,000 ether.
///
/// They belong to the phrase "test test test test test test test test test test test junk". Other development chains
/// use the same, so that one scenario runs on both.
pub const KNOWN: [(Address, B256); 5] = [
    (
        address!("f39Fd6e51aad88F6F4ce6aB8827279cffFb92266"),
        b256!("ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80"),
    ),
    (
        address!("70997970C51812dc3A010C7d01b50e0d17dc79C8"),
        b256!("59c6995e998f97a5a0044966f0945389dc9e86dae88c7a8412f4603b6b78690d"),
    ),
    (
        address!("3C44CdDdB6a900fa2b585dd299e03d12FA4293BC"),
        b256!("5de4111afa1a4b94908f83103eb1f1706367c2e68ca870fc3fb9a804cdab365a"),
    ),
    (
        address!("90F79bf6EB2c4f870365E785982E1f101E93b906"),
        b256!("7c852118294e51e653712a81e05800f419141751be58f605c371e15141b007a6"),
    ),
    (
        address!("15d34AAf54267DB7D7c367839AAf71A00a2C6A65"),
        b256!("47e179ec197488593b187f80a00eb0da91f1b9d0b13f8733639f19c30a34926a"),
    ),
];

/// Why a genesis file or a file of blocks is refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GenesisError {
    /// The genesis file is malformed.
    #[error("the genesis file is malformed: {0}")]
    Genesis(String),
    /// The file of blocks is malformed.
    #[error("the file of blocks is malformed at byte {at}: {why}")]
    Blocks {
        /// Position in the file, in bytes.
        at: usize,
        /// The error of the decoder.
        why: String,
    },
    /// A block does not fit the chain.
    #[error(transparent)]
    Import(#[from] ImportError),
}

/// Creates a development chain with the [`KNOWN`] accounts, at this time.
pub fn development(timestamp: u64) -> Chain {
    let mut state = State::default();
    for (account, _) in KNOWN {
        state.account_mut(account).balance = U256::from(10_000) * U256::from(1_000_000_000_000_000_000_u64);
    }
    // Chains since Prague store the hashes of their blocks, with which evidence is compared.
    state.account_mut(HISTORY_STORAGE_ADDRESS).set_code(HISTORY_STORAGE_CODE.clone());
    Chain::with_genesis(31_337, state, timestamp)
}

/// Creates the chain that a genesis file describes.
///
/// # Errors
/// [`GenesisError::Genesis`] names what is missing.
pub fn read_genesis(text: &str) -> Result<Chain, GenesisError> {
    let bad = |what: &str| GenesisError::Genesis(what.to_owned());
    let file: Value = serde_json::from_str(text).map_err(|error| bad(&error.to_string()))?;
    let config = &file["config"];
    let chain_id = config["chainId"].as_u64().ok_or_else(|| bad("config has no chainId"))?;
    let schedule = Schedule::of_genesis(config);
    let mut state = State::default();
    for (address, entry) in file["alloc"].as_object().ok_or_else(|| bad("alloc is missing"))? {
        let address: Address = address.parse().map_err(|_| bad(&format!("alloc: {address} is not an address")))?;
        let account = state.account_mut(address);
        account.balance = number(&entry["balance"]).unwrap_or_default();
        account.nonce = number(&entry["nonce"]).unwrap_or_default().saturating_to();
        account.set_code(bytes(&entry["code"]).unwrap_or_default());
        for (slot, value) in entry["storage"].as_object().into_iter().flatten() {
            let slot = number(&Value::from(slot.as_str())).ok_or_else(|| bad("a slot is not a number"))?;
            let value = number(value).ok_or_else(|| bad("a slot's value is not a number"))?;
            if !value.is_zero() {
                account.storage.insert(slot, value);
            }
        }
    }
    let field = |name: &str| number(&file[name]).unwrap_or_default();
    let timestamp = field("timestamp").saturating_to();
    let header = Header {
        state_root: state.root(),
        difficulty: field("difficulty"),
        gas_limit: field("gasLimit").saturating_to(),
        timestamp,
        extra_data: bytes(&file["extraData"]).unwrap_or_default(),
        mix_hash: field("mixHash").into(),
        nonce: field("nonce").saturating_to::<u64>().to_be_bytes().into(),
        beneficiary: file["coinbase"].as_str().and_then(|text| text.parse().ok()).unwrap_or_default(),
        base_fee_per_gas: file["baseFeePerGas"].is_string().then(|| field("baseFeePerGas").saturating_to()),
        ..Header::default()
    };
    let mut chain = Chain::begin(chain_id, schedule, header, state);
    chain.keep_all_states();
    Ok(chain)
}

/// Adds the blocks of a `chain.rlp` in their order.
///
/// # Errors
/// [`GenesisError`] with the first block that is malformed or does not fit.
pub fn read_chain(chain: &mut Chain, rlp: &[u8]) -> Result<(), GenesisError> {
    let mut rest = rlp;
    while !rest.is_empty() {
        let at = rlp.len() - rest.len();
        let block = Block::<TxEnvelope>::decode(&mut rest)
            .map_err(|error| GenesisError::Blocks { at, why: error.to_string() })?;
        // Some files start with the first block, which the genesis file already defines.
        if block.header.number == 0 && block.header.hash_slow() == chain.last().hash {
            continue;
        }
        chain.import(block, &[])?;
    }
    Ok(())
}

fn number(value: &Value) -> Option<U256> {
    match value {
        Value::Number(number) => number.as_u64().map(U256::from),
        Value::String(text) => text.parse().ok(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

fn bytes(value: &Value) -> Option<Bytes> {
    hex::decode(value.as_str()?).ok().map(Bytes::from)
}
