//! One RPC endpoint: JSON-RPC over HTTP(S).
//!
//! Owns limits: an endpoint that is slow, silent or endless costs bounded time and bounded memory. Never trusts an
//! answer.
//! Source: JSON-RPC 2.0.

use std::time::Duration;

use alloy_primitives::{Address, Bytes, U256};
use serde::Deserialize;
use serde_json::{Value, json};
use ureq::{Agent, Timeout};

use super::transport::{Direct, PATIENCE, Transport};

/// Largest accepted answer, in bytes.
pub(crate) const MAX_ANSWER: u64 = 8 << 20;

/// Why an endpoint gave no usable answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum EndpointError {
    /// The endpoint cannot be reached, or the connection failed.
    #[error("{url}: {why}")]
    Transport {
        /// The endpoint.
        url: String,
        /// The cause.
        why: String,
    },
    /// The answer exceeds the size limit.
    #[error("{url}: {method}: the answer is larger than the limit of {limit} bytes")]
    TooLarge {
        /// The endpoint.
        url: String,
        /// The RPC method.
        method: String,
        /// The limit, in bytes.
        limit: u64,
    },
    /// The endpoint accepted the request, but did not answer it in time.
    #[error("{url}: {method}: no answer within {seconds} s")]
    TimedOut {
        /// The endpoint.
        url: String,
        /// The RPC method.
        method: String,
        /// The time limit, in seconds.
        seconds: u64,
    },
    /// The endpoint answered with an unsuccessful HTTP status and without a JSON-RPC error.
    #[error("{url}: {method}: HTTP status {status}")]
    Status {
        /// The endpoint.
        url: String,
        /// The RPC method.
        method: String,
        /// The status.
        status: u16,
    },
    /// The endpoint answered with a JSON-RPC error.
    #[error("{url}: {method}: {message} (code {code})")]
    Refused {
        /// The endpoint.
        url: String,
        /// The RPC method.
        method: String,
        /// The error code.
        code: i64,
        /// The error message.
        message: String,
        /// The data that a contract reverted with.
        data: Option<Bytes>,
    },
    /// The answer is malformed, or not what was asked for.
    #[error("{url}: {method}: malformed answer: {why}")]
    Malformed {
        /// The endpoint.
        url: String,
        /// The RPC method.
        method: String,
        /// What is wrong.
        why: String,
    },
    /// The endpoint serves another chain.
    #[error("{url}: serves chain {found}, not {wanted}")]
    OtherChain {
        /// The endpoint.
        url: String,
        /// The chain ID that it serves.
        found: u64,
        /// The expected chain ID.
        wanted: u64,
    },
}

/// Maximum number of calls in one batch.
const BATCH: usize = 100;

/// Limits of one query.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bound {
    /// Largest answer, in bytes.
    pub(crate) bytes: u64,
    /// Longest time for request and answer together.
    pub(crate) time: Duration,
}

/// An answer whose result has a known form.
#[derive(Deserialize)]
#[serde(bound = "T: Deserialize<'de>")]
struct Answer<T> {
    error: Option<RpcError>,
    result: Option<T>,
}

/// An error as endpoints return it. Some leave parts out or give them another type.
#[derive(Default, Deserialize)]
#[serde(default)]
struct RpcError {
    code: Value,
    message: Value,
    data: Value,
}

/// An RPC endpoint.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// The URL without secrets, which may be shown to anyone.
    url: String,
    target: String,
    agent: Agent,
}

/// Returns a URL without path, query, user and password, because providers put keys there.
fn without_secrets(url: &str) -> String {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let authority = rest.split(['/', '?', '#']).next().unwrap_or("");
    let host = authority.rsplit('@').next().unwrap_or("");
    format!("{scheme}://{host}")
}

/// Returns an endpoint's text shortened and escaped, so that it is safe for terminals and readers.
fn readable(text: &str) -> String {
    text.chars().take(300).flat_map(char::escape_debug).collect()
}

impl EndpointError {
    /// Returns whether the endpoint was reached and gave any answer.
    pub const fn is_answer(&self) -> bool {
        match self {
            Self::Transport { .. } | Self::TimedOut { .. } | Self::Status { .. } => false,
            Self::TooLarge { .. } | Self::Refused { .. } | Self::Malformed { .. } | Self::OtherChain { .. } => true,
        }
    }
}

impl Endpoint {
    /// Returns the endpoint at this URL, asked directly from this machine.
    pub fn new(url: &str) -> Self {
        Self::by(&Direct, url)
    }

    /// Returns the endpoint at this URL, asked over this transport.
    pub fn by(transport: &dyn Transport, url: &str) -> Self {
        Self { url: without_secrets(url), target: url.to_owned(), agent: transport.agent(url) }
    }

    /// Returns its URL without secrets.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Sends a request. Returns its result, which may be null.
    ///
    /// # Errors
    /// Any [`EndpointError`] except `OtherChain`.
    pub fn ask(&self, method: &str, params: &Value) -> Result<Value, EndpointError> {
        let answer: Value = self.post(method, params, Bound { bytes: MAX_ANSWER, time: PATIENCE })?;
        if !answer["error"].is_null() {
            let error = Deserialize::deserialize(&answer["error"]).unwrap_or_default();
            return Err(self.refused(method, error));
        }
        answer.get("result").cloned().ok_or_else(|| self.malformed(method, "it has neither result nor error"))
    }

    /// Sends a request with other limits for a result of a known form. Uses less memory than [`Endpoint::ask`].
    ///
    /// # Errors
    /// As for [`Endpoint::ask`].
    pub(crate) fn ask_for<T: for<'de> Deserialize<'de>>(
        &self,
        method: &str,
        params: &Value,
        bound: Bound,
    ) -> Result<T, EndpointError> {
        let answer: Answer<T> = self.post(method, params, bound)?;
        match (answer.error, answer.result) {
            (Some(error), _) => Err(self.refused(method, error)),
            (None, Some(result)) => Ok(result),
            (None, None) => Err(self.malformed(method, "it has neither result nor error")),
        }
    }

    fn post<T: for<'de> Deserialize<'de>>(
        &self,
        method: &str,
        params: &Value,
        bound: Bound,
    ) -> Result<T, EndpointError> {
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        self.send(method, &request.to_string(), bound)
    }

    fn send<T: for<'de> Deserialize<'de>>(
        &self,
        method: &str,
        request: &str,
        bound: Bound,
    ) -> Result<T, EndpointError> {
        let fault = |error: ureq::Error| {
            let (url, method) = (self.url.clone(), method.to_owned());
            if let ureq::Error::BodyExceedsLimit(limit) = error {
                return EndpointError::TooLarge { url, method, limit };
            }
            let silent = [Timeout::Global, Timeout::PerCall, Timeout::RecvResponse, Timeout::RecvBody];
            if matches!(&error, ureq::Error::Timeout(kind) if silent.contains(kind)) {
                return EndpointError::TimedOut { url, method, seconds: bound.time.as_secs() };
            }
            EndpointError::Transport { url, why: error.to_string() }
        };
        let asked = self.agent.post(&self.target).config().timeout_global(Some(bound.time)).build();
        let mut response = asked.header("content-type", "application/json").send(request).map_err(fault)?;
        let status = response.status();
        let body = response.body_mut().with_config().limit(bound.bytes).read_to_vec().map_err(fault)?;
        serde_json::from_slice(&body).map_err(|error| {
            if status.is_success() {
                self.malformed(method, error)
            } else {
                EndpointError::Status { url: self.url.clone(), method: method.into(), status: status.as_u16() }
            }
        })
    }

    fn refused(&self, method: &str, error: RpcError) -> EndpointError {
        EndpointError::Refused {
            url: self.url.clone(),
            method: method.into(),
            code: error.code.as_i64().unwrap_or(0),
            message: readable(error.message.as_str().unwrap_or("no reason given")),
            data: error.data.as_str().and_then(|text| text.parse().ok()),
        }
    }

    /// Sends a request for a number.
    ///
    /// # Errors
    /// As for [`Endpoint::ask`].
    pub fn ask_number(&self, method: &str, params: &Value) -> Result<U256, EndpointError> {
        let result = self.ask(method, params)?;
        let number = result.as_str().filter(|text| text.starts_with("0x")).and_then(|text| text.parse().ok());
        number.ok_or_else(|| self.malformed(method, "the result is not a quantity"))
    }

    /// Checks that the endpoint serves this chain.
    ///
    /// # Errors
    /// [`EndpointError`]; `OtherChain` if it serves another one.
    pub fn check_chain(&self, wanted: u64) -> Result<(), EndpointError> {
        let found = self.ask_number("eth_chainId", &json!([]))?.saturating_to();
        if found == wanted { Ok(()) } else { Err(EndpointError::OtherChain { url: self.url.clone(), found, wanted }) }
    }

    /// Returns a contract's answer to a call with `data`, at the newest block.
    ///
    /// # Errors
    /// [`EndpointError`]; `Refused` if the contract reverts.
    pub fn call(&self, to: Address, data: &[u8]) -> Result<Bytes, EndpointError> {
        self.call_at(to, data, "latest")
    }

    /// Returns a contract's answer to a call with `data`, at this block.
    ///
    /// # Errors
    /// As for [`Endpoint::call`].
    pub fn call_at(&self, to: Address, data: &[u8], block: &str) -> Result<Bytes, EndpointError> {
        let call = json!({"to": to.to_string(), "input": alloy_primitives::hex::encode_prefixed(data)});
        let result = self.ask("eth_call", &json!([call, block]))?;
        let bytes = result.as_str().and_then(|text| text.parse().ok());
        bytes.ok_or_else(|| self.malformed("eth_call", "the result is not a byte string"))
    }

    /// Returns a contract's answers to several calls at this block. The calls are sent in batches.
    ///
    /// # Errors
    /// As for [`Endpoint::call`].
    pub(crate) fn call_all(&self, to: Address, calls: &[Vec<u8>], block: &str) -> Result<Vec<Bytes>, EndpointError> {
        let mut answers = Vec::with_capacity(calls.len());
        for batch in calls.chunks(BATCH) {
            match self.call_batch(to, batch, block) {
                Some(batch) => answers.extend(batch),
                // Some endpoints accept no batches, or only small ones.
                None => {
                    for data in batch {
                        answers.push(self.call_at(to, data, block)?);
                    }
                }
            }
        }
        Ok(answers)
    }

    /// Returns the answers to a batch in the order of its calls; `None` if one is missing.
    fn call_batch(&self, to: Address, calls: &[Vec<u8>], block: &str) -> Option<Vec<Bytes>> {
        let request = |(id, data): (usize, &Vec<u8>)| {
            let call = json!({"to": to.to_string(), "input": alloy_primitives::hex::encode_prefixed(data)});
            json!({"jsonrpc": "2.0", "id": id, "method": "eth_call", "params": [call, block]})
        };
        let requests: Value = calls.iter().enumerate().map(request).collect();
        let bound = Bound { bytes: MAX_ANSWER, time: PATIENCE };
        let answers: Vec<Value> = self.send("eth_call", &requests.to_string(), bound).ok()?;
        let mut found = vec![None; calls.len()];
        for answer in answers {
            let place = found.get_mut(usize::try_from(answer["id"].as_u64()?).ok()?)?;
            *place = Some(answer["result"].as_str()?.parse().ok()?);
        }
        found.into_iter().collect()
    }

    pub(crate) fn malformed(&self, method: &str, why: impl std::fmt::Display) -> EndpointError {
        EndpointError::Malformed { url: self.url.clone(), method: method.into(), why: why.to_string() }
    }
}
