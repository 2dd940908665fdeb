//! A chain on disk: its start, and each block on a line.
//!
//! The file only grows, except for reorganisations. Opening it executes every block again, so its content is checked.
//! An incomplete last line, left by a crash, is discarded.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use alloy_consensus::{Block as RlpBlock, TxEnvelope};
use alloy_primitives::{Address, hex};
use alloy_rlp::Decodable;
use serde_json::{Value, json};

use crate::chain::{Block, Chain};
use crate::genesis::development;

/// Why a chain cannot be stored or read.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The content is malformed.
    #[error("{path}, line {line}: {why}; move the file away to start a new chain")]
    Line {
        /// Path of the file.
        path: PathBuf,
        /// Number of the line.
        line: usize,
        /// What is wrong with the line.
        why: String,
    },
}

/// The file of a chain.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    file: File,
    /// The first error in storing a block, if there was one.
    fault: Option<String>,
}

impl Store {
    /// Reads the chain in the file `path`, or starts a new one in it at the time `now`.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn open(path: &Path, now: u64) -> Result<(Self, Chain), StoreError> {
        let refuse = |source| StoreError::File { path: path.to_owned(), source };
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(refuse(error)),
        };
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut lines = text.get(..whole).unwrap_or_default().lines().enumerate();
        let bad = |line: usize, why: String| StoreError::Line { path: path.to_owned(), line: line + 1, why };
        let chain = match lines.next() {
            None => development(now),
            Some((number, line)) => {
                let began = serde_json::from_str::<Value>(line).ok().and_then(|first| first["began"].as_u64());
                let mut chain = development(began.ok_or_else(|| bad(number, "not a chain file".into()))?);
                for (number, line) in lines {
                    let (block, senders) = read(line).ok_or_else(|| bad(number, "not a block".into()))?;
                    chain.import(block, &senders).map_err(|error| bad(number, error.to_string()))?;
                }
                chain
            }
        };
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(refuse)?;
        file.set_len(u64::try_from(whole).unwrap_or(0)).map_err(refuse)?;
        let mut store = Self { path: path.to_owned(), file, fault: None };
        if whole == 0 {
            store.write(&first_line(&chain));
        }
        match store.fault.take() {
            Some(why) => Err(StoreError::File { path: path.to_owned(), source: std::io::Error::other(why) }),
            None => Ok((store, chain)),
        }
    }

    /// Adds a block.
    pub(crate) fn append(&mut self, block: &Block) {
        self.write(&line(block));
    }

    /// Rewrites the whole chain.
    pub(crate) fn rewrite(&mut self, chain: &Chain) {
        let mut text = first_line(chain);
        for number in 1..=chain.last().header.number {
            text.extend(chain.block(number).map(line));
        }
        let draft = self.path.with_extension("new");
        let written = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &self.path));
        match written.and_then(|()| OpenOptions::new().append(true).open(&self.path)) {
            Ok(file) => self.file = file,
            Err(error) => self.fault = self.fault.take().or(Some(error.to_string())),
        }
    }

    /// Returns the first error of writing the file, if there was one.
    pub fn fault(&self) -> Option<&str> {
        self.fault.as_deref()
    }

    fn write(&mut self, line: &str) {
        if let Err(error) = self.file.write_all(line.as_bytes()) {
            self.fault.get_or_insert(error.to_string());
        }
    }
}

fn first_line(chain: &Chain) -> String {
    let began = chain.block(0).map_or(0, |block| block.header.timestamp);
    format!("{}\n", json!({"schema": "openrelay.devchain/1", "began": began}))
}

fn line(block: &Block) -> String {
    let senders: Vec<Address> = block.transactions.iter().map(|done| done.sender).collect();
    format!("{}\n", json!({"block": hex::encode_prefixed(block.to_rlp()), "senders": senders}))
}

fn read(line: &str) -> Option<(RlpBlock<TxEnvelope>, Vec<Address>)> {
    let value: Value = serde_json::from_str(line).ok()?;
    let rlp = hex::decode(value["block"].as_str()?).ok()?;
    let block = RlpBlock::decode(&mut rlp.as_slice()).ok()?;
    let senders = value["senders"].as_array()?.iter().map(|text| text.as_str()?.parse().ok());
    Some((block, senders.collect::<Option<_>>()?))
}
