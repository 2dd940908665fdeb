//! Parses the parameters of requests.

use alloy_primitives::{Address, B256, Bytes, TxKind, U256};
use serde_json::Value;

use super::RpcError;
use crate::execute::Call;

pub(super) fn text(params: &Value, at: usize) -> Result<&str, RpcError> {
    params[at].as_str().ok_or_else(|| RpcError::params(format!("missing value for required argument {at}")))
}

pub(super) fn address(params: &Value, at: usize) -> Result<Address, RpcError> {
    prefixed(text(params, at)?)
        .ok_or_else(|| RpcError::params(format!("invalid argument {at}: expected 0x and an address of 20 bytes")))
}

pub(super) fn hash(params: &Value, at: usize) -> Result<B256, RpcError> {
    prefixed(text(params, at)?)
        .ok_or_else(|| RpcError::params(format!("invalid argument {at}: expected 0x and a hash of 32 bytes")))
}

fn prefixed<T: std::str::FromStr>(text: &str) -> Option<T> {
    text.starts_with("0x").then(|| text.parse().ok()).flatten()
}

pub(super) fn bytes(text: &str) -> Result<Bytes, RpcError> {
    text.parse().map_err(|_| RpcError::params("invalid argument: not hexadecimal bytes"))
}

/// Parses a quantity: hexadecimal without leading zeros, or a plain number.
pub(super) fn quantity(value: &Value) -> Result<U256, RpcError> {
    let bad = || RpcError::params(format!("invalid argument: {value} is not a quantity"));
    match value {
        Value::Number(number) => number.as_u64().map(U256::from).ok_or_else(bad),
        Value::String(text) => {
            let digits = text.strip_prefix("0x").ok_or_else(bad)?;
            if digits.is_empty() || digits.len() > 64 || (digits.len() > 1 && digits.starts_with('0')) {
                return Err(bad());
            }
            U256::from_str_radix(digits, 16).map_err(|_| bad())
        }
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => Err(bad()),
    }
}

pub(super) fn small(value: &Value) -> Result<u64, RpcError> {
    u64::try_from(quantity(value)?).map_err(|_| RpcError::params("invalid argument: larger than 64 bits"))
}

/// Parses a storage slot, which clients pad or not.
pub(super) fn slot(text: &str) -> Result<U256, RpcError> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    if digits.len() > 64 {
        return Err(RpcError::params(format!("storage key too long (want at most 32 bytes): {text:?}")));
    }
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(RpcError::params(format!("invalid hex in storage key: {text:?}")));
    }
    U256::from_str_radix(digits, 16).map_err(|_| RpcError::params("invalid storage key"))
}

/// Parses a call object.
pub(super) fn call(value: &Value) -> Result<Call, RpcError> {
    let object = value.as_object().ok_or_else(|| RpcError::params("missing value for required argument 0"))?;
    let optional = |key: &str| object.get(key).filter(|value| !value.is_null());
    let address = |key: &str| -> Result<Option<Address>, RpcError> {
        let Some(value) = optional(key) else { return Ok(None) };
        let parsed = value.as_str().and_then(|text| text.parse().ok());
        parsed.map(Some).ok_or_else(|| RpcError::params(format!("invalid argument 0: {key} is not an address")))
    };
    let number = |key: &str| optional(key).map(quantity).transpose();
    let price = |key: &str| -> Result<Option<u128>, RpcError> { Ok(number(key)?.map(|wei| wei.saturating_to())) };
    let data = optional("input").or_else(|| optional("data")).and_then(Value::as_str).unwrap_or("0x");
    let fees = match (price("maxFeePerGas")?, price("gasPrice")?) {
        (Some(most), _) => Some((most, Some(price("maxPriorityFeePerGas")?.unwrap_or(0)))),
        (None, Some(price)) => Some((price, None)),
        (None, None) => None,
    };
    Ok(Call {
        from: address("from")?.unwrap_or_default(),
        to: address("to")?.map_or(TxKind::Create, TxKind::Call),
        data: bytes(data)?,
        value: number("value")?.unwrap_or_default(),
        gas: number("gas")?.map(|gas| gas.saturating_to()),
        fees: fees.filter(|(price, _)| *price > 0),
    })
}

/// Which logs are requested.
pub(super) struct Filter {
    pub(super) block: Option<B256>,
    pub(super) from: Value,
    pub(super) to: Value,
    addresses: Vec<Address>,
    /// The accepted topics at each position. An empty list accepts any topic.
    topics: Vec<Vec<B256>>,
}

impl Filter {
    pub(super) fn read(value: &Value) -> Result<Self, RpcError> {
        let block = Some(&value["blockHash"]).filter(|hash| !hash.is_null()).map(one).transpose()?;
        if block.is_some() && !(value["fromBlock"].is_null() && value["toBlock"].is_null()) {
            return Err(RpcError::params(
                "invalid argument 0: cannot specify both BlockHash and FromBlock/ToBlock, choose one or the other",
            ));
        }
        let topics = value["topics"].as_array().cloned().unwrap_or_default();
        Ok(Self {
            block,
            from: value["fromBlock"].clone(),
            to: value["toBlock"].clone(),
            addresses: many(&value["address"])?,
            topics: topics.iter().map(many).collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn takes(&self, log: &alloy_primitives::Log) -> bool {
        let topics = log.topics();
        let fits = |(at, wanted): (usize, &Vec<B256>)| {
            topics.get(at).is_some_and(|topic| wanted.is_empty() || wanted.contains(topic))
        };
        (self.addresses.is_empty() || self.addresses.contains(&log.address)) && self.topics.iter().enumerate().all(fits)
    }
}

fn one<T: std::str::FromStr>(value: &Value) -> Result<T, RpcError> {
    let parsed = value.as_str().and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| RpcError::params(format!("invalid argument 0: {value}")))
}

/// Parses one value, a list of values, or null.
fn many<T: std::str::FromStr>(value: &Value) -> Result<Vec<T>, RpcError> {
    if value.is_null() {
        return Ok(Vec::new());
    }
    value.as_array().map_or_else(|| Ok(vec![one(value)?]), |all| all.iter().map(one).collect())
}
