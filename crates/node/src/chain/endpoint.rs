//! One RPC endpoint: JSON-RPC over HTTP(S).
//!
//! Owns limits: an endpoint that is slow, silent or endless costs a bounded time and a bounded memory. Believes nothing. Source: JSON-RPC 2.0.

use alloy_primitives::{Address, Bytes, U256};
use serde_json::{Value, json};
use ureq::Agent;

use super::way::{Outside, Way};

/// Largest answer that is read, in bytes.
const MAX_ANSWER: u64 = 8 << 20;

/// Why an endpoint gave no answer that can be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EndpointError {
    /// It cannot be reached, is too slow, or sends too much.
    #[error("{url}: {why}")]
    Transport {
        /// Which.
        url: String,
        /// Why.
        why: String,
    },
    /// It answers with an error.
    #[error("{url}: {method}: {message} (code {code})")]
    Refused {
        /// Which.
        url: String,
        /// What was asked.
        method: String,
        /// Its code.
        code: i64,
        /// Its words.
        message: String,
        /// What a contract reverted with.
        data: Option<Bytes>,
    },
    /// What it answers is not what was asked for.
    #[error("{url}: {method}: the answer does not read: {why}")]
    Malformed {
        /// Which.
        url: String,
        /// What was asked.
        method: String,
        /// What is wrong.
        why: String,
    },
    /// It serves another chain.
    #[error("{url}: serves chain {found}, not {wanted}")]
    OtherChain {
        /// Which.
        url: String,
        /// Its chain.
        found: u64,
        /// Ours.
        wanted: u64,
    },
}

/// An endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// As far as everybody may read it.
    url: String,
    target: String,
    agent: Agent,
}

/// A URL without path, query, user and password: providers put keys there.
fn without_secrets(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    let host = authority.rsplit('@').next().unwrap_or("");
    format!("{scheme}://{host}")
}

/// What an endpoint says, as far as a terminal and a reader can take it.
fn readable(text: &str) -> String {
    text.chars().take(300).flat_map(char::escape_debug).collect()
}

impl Endpoint {
    /// The endpoint at this URL, asked straight from this machine.
    pub fn new(url: &str) -> Self {
        Self::by(&Outside, url)
    }

    /// The endpoint at this URL, asked by this way.
    pub fn by(way: &dyn Way, url: &str) -> Self {
        Self { url: without_secrets(url), target: url.to_owned(), agent: way.agent(url) }
    }

    /// Its URL, as far as everybody may read it.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Asks; the result, which may be null.
    ///
    /// # Errors
    /// [`EndpointError`] but for `OtherChain`.
    pub fn ask(&self, method: &str, params: &Value) -> Result<Value, EndpointError> {
        let transport = |why: String| EndpointError::Transport { url: self.url.clone(), why };
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        let mut response = self
            .agent
            .post(&self.target)
            .header("content-type", "application/json")
            .send(request)
            .map_err(|error| transport(error.to_string()))?;
        let status = response.status();
        let body = response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec();
        let body = body.map_err(|error| transport(error.to_string()))?;
        let answer: Value = serde_json::from_slice(&body).map_err(|error| {
            if status.is_success() { self.malformed(method, error) } else { transport(format!("HTTP status {status}")) }
        })?;
        let error = &answer["error"];
        if !error.is_null() {
            return Err(EndpointError::Refused {
                url: self.url.clone(),
                method: method.into(),
                code: error["code"].as_i64().unwrap_or(0),
                message: readable(error["message"].as_str().unwrap_or("no reason given")),
                data: error["data"].as_str().and_then(|text| text.parse().ok()),
            });
        }
        answer.get("result").cloned().ok_or_else(|| self.malformed(method, "it has neither result nor error"))
    }

    /// Asks for a number.
    ///
    /// # Errors
    /// As [`Endpoint::ask`].
    pub fn ask_number(&self, method: &str, params: &Value) -> Result<U256, EndpointError> {
        let result = self.ask(method, params)?;
        let number = result.as_str().filter(|text| text.starts_with("0x")).and_then(|text| text.parse().ok());
        number.ok_or_else(|| self.malformed(method, "no quantity"))
    }

    /// Makes sure that it serves this chain.
    ///
    /// # Errors
    /// [`EndpointError`].
    pub fn check_chain(&self, wanted: u64) -> Result<(), EndpointError> {
        let found = self.ask_number("eth_chainId", &json!([]))?.saturating_to();
        if found == wanted { Ok(()) } else { Err(EndpointError::OtherChain { url: self.url.clone(), found, wanted }) }
    }

    /// What a contract answers to a call of `data` at the newest block.
    ///
    /// # Errors
    /// [`EndpointError`]; `Refused` when the contract reverts.
    pub fn call(&self, to: Address, data: &[u8]) -> Result<Bytes, EndpointError> {
        self.call_at(to, data, "latest")
    }

    /// The same at a block.
    ///
    /// # Errors
    /// As [`Endpoint::call`].
    pub fn call_at(&self, to: Address, data: &[u8], block: &str) -> Result<Bytes, EndpointError> {
        let call = json!({"to": to.to_string(), "input": alloy_primitives::hex::encode_prefixed(data)});
        let result = self.ask("eth_call", &json!([call, block]))?;
        let bytes = result.as_str().and_then(|text| text.parse().ok());
        bytes.ok_or_else(|| self.malformed("eth_call", "no bytes"))
    }

    pub(super) fn malformed(&self, method: &str, why: impl std::fmt::Display) -> EndpointError {
        EndpointError::Malformed { url: self.url.clone(), method: method.into(), why: why.to_string() }
    }
}
