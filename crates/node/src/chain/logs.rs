//! Events of one contract, read in ranges of blocks.
//!
//! Owns the size of a range: it halves when an endpoint refuses a range or its answer is too large, down to one block, and
//! grows again while answers are good. Anyone can fill blocks with events, and endpoints limit ranges in their own ways, so
//! no fixed range suits all. An event that was not asked for is refused.

use std::time::Duration;

use alloy_primitives::{Address, B256, Bytes, Log};
use serde::Deserialize;
use serde_json::{Value, json};

use super::endpoint::{Bound, Endpoint, EndpointError, MAX_ANSWER};
use super::read::height;

/// Blocks that are asked for at first, and at most.
const FIRST: u64 = 2_000;
const WIDEST: u64 = 1 << 16;
/// Good answers before a range grows: an endpoint that limits ranges refuses one question in so many.
const GROW_AFTER: u32 = 16;
/// Largest answer for a single block, in bytes: 100,000 events of 256 bytes are 130 MB of JSON.
const MAX_BLOCK_ANSWER: u64 = 160 << 20;
/// How long an answer may take, and one for a single block.
const PATIENCE: Duration = Duration::from_secs(20);
const BLOCK_PATIENCE: Duration = Duration::from_secs(120);
/// Events that [`Logs::all`] returns at most.
const MOST: usize = 1 << 16;

/// Which events: of one contract, with these topics.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The contract.
    pub address: Address,
    /// For each place the topics that will do; an empty list takes any.
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
    /// Blocks that are asked for at once.
    width: u64,
    /// Good answers since the range changed.
    good: u32,
}

/// A log as an endpoint shows it.
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
    /// A reader of these events.
    pub fn new(endpoint: Endpoint, wanted: Wanted) -> Self {
        Self { endpoint, wanted, width: FIRST, good: 0 }
    }

    /// The events of the first blocks from `from` on, and the last of these blocks, which is at most `to`.
    ///
    /// # Errors
    /// [`EndpointError`], of a single block where ranges were refused.
    pub fn after(&mut self, from: u64, to: u64) -> Result<(Vec<Log>, u64), EndpointError> {
        loop {
            let last = to.min(from.saturating_add(self.width - 1));
            if let Some(logs) = self.attempt(from, last)? {
                return Ok((logs, last));
            }
        }
    }

    /// The events of the last blocks up to `to`, and the first of these blocks, which is at least `from`.
    ///
    /// # Errors
    /// As [`Logs::after`].
    pub fn before(&mut self, from: u64, to: u64) -> Result<(Vec<Log>, u64), EndpointError> {
        loop {
            let first = from.max(to.saturating_sub(self.width - 1));
            if let Some(logs) = self.attempt(first, to)? {
                return Ok((logs, first));
            }
        }
    }

    /// All events of these blocks.
    ///
    /// # Errors
    /// As [`Logs::after`]; also when there are more than 65,536 of them.
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

    /// The newest events of these blocks: those of the last range that has any.
    ///
    /// # Errors
    /// As [`Logs::after`].
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

    /// Asks for a range; `None` where the range was too large, and the next one is smaller.
    fn attempt(&mut self, from: u64, to: u64) -> Result<Option<Vec<Log>>, EndpointError> {
        let asked = to.saturating_sub(from).saturating_add(1);
        match self.ask(from, to) {
            Ok(found) => {
                // A shorter range at the end of the chain says nothing of longer ones.
                self.good += u32::from(asked >= self.width);
                if self.good >= GROW_AFTER {
                    (self.width, self.good) = (WIDEST.min(self.width * 2), 0);
                }
                Ok(Some(found))
            }
            Err(error) if asked <= 1 => Err(error),
            // How endpoints refuse a range differs, and their words decide nothing here.
            Err(EndpointError::TooLarge { .. } | EndpointError::Status { .. } | EndpointError::Refused { .. }) => {
                (self.width, self.good) = (asked / 2, 0);
                Ok(None)
            }
            // Steeper, for each try takes its time.
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
            let why = || format!("it shows an event of {address} that was not asked for");
            log.ok_or_else(|| self.endpoint.malformed(method, why()))
        };
        shown.into_iter().map(read).collect()
    }
}

/// A log as an endpoint shows it in a receipt; `None` for what has another form.
pub fn read_log(shown: &Value) -> Option<Log> {
    let topics = shown["topics"].as_array()?.iter().map(|topic| topic.as_str()?.parse().ok());
    let data: Bytes = shown["data"].as_str()?.parse().ok()?;
    Log::new(shown["address"].as_str()?.parse().ok()?, topics.collect::<Option<_>>()?, data)
}
