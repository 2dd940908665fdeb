//! Events of one contract, read in ranges of blocks.
//!
//! Owns the size of a range. It halves when an endpoint refuses a range or its answer is too large, and falls to an
//! eighth when the answer takes too long. The smallest range is one block. It grows again while answers are good.
//! Anyone can fill blocks with events, and each endpoint limits ranges in its own way, so no fixed range suits all.
//! An event that was not asked for is refused.

use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes, Log};
use serde::Deserialize;
use serde_json::{Value, json};

use super::endpoint::{Bound, Endpoint, EndpointError, MAX_ANSWER};
use super::read::height;

/// Blocks in the first range, and in the widest.
const FIRST: u64 = 2_000;
const WIDEST: u64 = 1 << 16;
/// Good answers before a range grows. An endpoint that limits ranges then refuses only one request in this many.
const GROW_AFTER: u32 = 16;
/// Largest answer for a single block, in bytes: 100,000 events of 256 bytes are 130 MB of JSON.
const MAX_BLOCK_ANSWER: u64 = 160 << 20;
/// How long an answer may take: for a range, and for a single block.
const PATIENCE: Duration = Duration::from_secs(20);
const BLOCK_PATIENCE: Duration = Duration::from_secs(120);
/// Maximum number of events that [`Logs::all`] returns.
const MOST: usize = 1 << 16;

/// Which events to read: of one contract, with these topics.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The contract.
    pub address: Address,
    /// For each position the accepted topics; an empty list accepts any.
    pub topics: Vec<Vec<B256>>,
}

impl Wanted {
    fn takes(&self, log: &Log) -> bool {
        let has = |(place, any): (usize, &Vec<B256>)| {
            any.is_empty() || log.topics().get(place).is_some_and(|topic| any.contains(topic))
        };
        log.address == self.address && self.topics.iter().enumerate().all(has)
    }
}

/// Reads events of one contract from one endpoint.
#[derive(Clone, Debug)]
pub struct Logs {
    endpoint: Endpoint,
    wanted: Wanted,
    /// Blocks in the next range.
    width: u64,
    /// Good answers since the range changed.
    good: u32,
}

/// A log as an endpoint returns it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shown {
    address: Address,
    topics: Vec<B256>,
    data: Bytes,
    block_number: Option<alloy_primitives::U64>,
    #[serde(default)]
    removed: bool,
}

impl Logs {
    /// Returns a reader of these events.
    pub fn new(endpoint: Endpoint, wanted: Wanted) -> Self {
        Self { endpoint, wanted, width: FIRST, good: 0 }
    }

    /// Returns the events of the first blocks from `from` on, and the last of these blocks, which is at most `to`.
    ///
    /// # Errors
    /// [`EndpointError`]. If ranges were refused, it is the error for a single block.
    pub fn after(&mut self, from: u64, to: u64) -> Result<(Vec<Log>, u64), EndpointError> {
        loop {
            let last = to.min(from.saturating_add(self.width - 1));
            if let Some(logs) = self.attempt(from, last)? {
                return Ok((logs, last));
            }
        }
    }

    /// Returns the events of the last blocks up to `to`, and the first of these blocks, which is at least `from`.
    ///
    /// # Errors
    /// As for [`Logs::after`].
    pub fn before(&mut self, from: u64, to: u64) -> Result<(Vec<Log>, u64), EndpointError> {
        loop {
            let first = from.max(to.saturating_sub(self.width - 1));
            if let Some(logs) = self.attempt(first, to)? {
                return Ok((logs, first));
            }
        }
    }

    /// Returns all events of these blocks.
    ///
    /// # Errors
    /// As for [`Logs::after`]; also if there are more than 65,536 events.
    pub fn all(&mut self, from: u64, to: u64) -> Result<Vec<Log>, EndpointError> {
        let (mut found, mut next) = (Vec::new(), from);
        while next <= to {
            let (logs, last) = self.after(next, to)?;
            found.extend(logs);
            if found.len() > MOST {
                return Err(self.endpoint.malformed("eth_getLogs", format!("there are more than {MOST} events")));
            }
            next = last.saturating_add(1);
        }
        Ok(found)
    }

    /// Returns the newest events of these blocks: those of the last range that has any.
    ///
    /// # Errors
    /// As for [`Logs::after`].
    pub fn newest(&mut self, from: u64, to: u64) -> Result<Vec<Log>, EndpointError> {
        let mut last = to;
        loop {
            let (logs, first) = self.before(from, last)?;
            if !logs.is_empty() || first <= from {
                return Ok(logs);
            }
            last = first - 1;
        }
    }

    /// Requests a range. Returns `None` if the range was too large; the next one is smaller.
    fn attempt(&mut self, from: u64, to: u64) -> Result<Option<Vec<Log>>, EndpointError> {
        let asked = to.saturating_sub(from).saturating_add(1);
        match self.ask(from, to) {
            Ok(found) => {
                // A shorter range at the end of the chain says nothing about longer ones.
                self.good += u32::from(asked >= self.width);
                if self.good >= GROW_AFTER {
                    (self.width, self.good) = (WIDEST.min(self.width * 2), 0);
                }
                Ok(Some(found))
            }
            Err(error) if asked <= 1 => Err(error),
            // Endpoints refuse a range in different ways. Their wording does not matter here.
            Err(EndpointError::TooLarge { .. } | EndpointError::Status { .. } | EndpointError::Refused { .. }) => {
                (self.width, self.good) = (asked / 2, 0);
                Ok(None)
            }
            // Shrinks faster, because each attempt takes the full time.
            Err(EndpointError::TimedOut { .. }) => {
                (self.width, self.good) = ((asked / 8).max(1), 0);
                Ok(None)
            }
            Err(
                error @ (EndpointError::Transport { .. }
                | EndpointError::Malformed { .. }
                | EndpointError::OtherChain { .. }),
            ) => Err(error),
        }
    }

    fn ask(&self, from: u64, to: u64) -> Result<Vec<Log>, EndpointError> {
        let method = "eth_getLogs";
        let of_place = |any: &Vec<B256>| match any.as_slice() {
            [] => Value::Null,
            any => any.iter().map(ToString::to_string).collect(),
        };
        let topics: Value = self.wanted.topics.iter().map(of_place).collect();
        let filter = json!({
            "address": self.wanted.address.to_string(), "fromBlock": height(from), "toBlock": height(to),
            "topics": topics,
        });
        let bound = if from == to {
            Bound { bytes: MAX_BLOCK_ANSWER, time: BLOCK_PATIENCE }
        } else {
            Bound { bytes: MAX_ANSWER, time: PATIENCE }
        };
        let shown: Vec<Shown> = self.endpoint.ask_for(method, &json!([filter]), bound)?;
        let read = |shown: Shown| {
            let inside = shown.block_number.is_some_and(|number| (from..=to).contains(&number.to())) && !shown.removed;
            let address = shown.address;
            let log = Log::new(shown.address, shown.topics, shown.data).filter(|log| inside && self.wanted.takes(log));
            let why = || format!("it returned an event of {address} that was not asked for");
            log.ok_or_else(|| self.endpoint.malformed(method, why()))
        };
        shown.into_iter().map(read).collect()
    }
}

/// Parses a log of a receipt; `None` if it has another form.
pub fn read_log(shown: &Value) -> Option<Log> {
    let topics = shown["topics"].as_array()?.iter().map(|topic| topic.as_str()?.parse().ok());
    let data: Bytes = shown["data"].as_str()?.parse().ok()?;
    Log::new(shown["address"].as_str()?.parse().ok()?, topics.collect::<Option<_>>()?, data)
}
