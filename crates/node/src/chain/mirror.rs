//! A mirror: follows the registry's events and serves the records of all relays as one file.
//!
//! Owns nothing that needs to be believed: readers hold the file against the chain. A mirror that sees something that does not fit begins anew.

use alloy_primitives::{Address, Bytes, Log};
use alloy_sol_types::SolCall;
use openrelay_ledger::chain::reading::{MAX_LAG, Reading};
use openrelay_ledger::chain::registry::{Collection, RelayRegistry, registration, topics};
use openrelay_ledger::chain::set::{RecordSet, write};
use serde_json::{Value, json};

use super::endpoint::{Endpoint, EndpointError};
use super::evidence;
use super::read::height;
use crate::chain_file::ChainFile;
use crate::directory::VerifiedDirectory;

/// Blocks whose events are asked for at once.
const RANGE: u64 = 2_000;
/// Blocks that a mirror may have to look through: some years of the fastest chains.
const MOST_BLOCKS: u64 = 1 << 30;

/// A mirror of one registry.
#[derive(Debug)]
pub struct Mirror {
    file: ChainFile,
    endpoint: Endpoint,
    collection: Collection,
    next: u64,
    /// The file that was last held against the chain, and the directory that it gives.
    records: Vec<u8>,
    directory: Option<VerifiedDirectory>,
}

impl Mirror {
    /// A mirror that knows nothing yet, and asks the first endpoint.
    pub fn new(file: ChainFile) -> Self {
        let endpoint = Endpoint::new(file.endpoints.first().map_or("", String::as_str));
        let next = file.first_block;
        Self { file, endpoint, collection: Collection::default(), next, records: Vec::new(), directory: None }
    }

    /// Its file; empty before the first success of [`Mirror::follow`].
    pub fn records(&self) -> &[u8] {
        &self.records
    }

    /// The directory that the file gives, by the first endpoint's word alone; `None` before there is one.
    pub fn directory(&self) -> Option<&VerifiedDirectory> {
        self.directory.as_ref()
    }

    /// The relay that this operator has registered last, if there is one.
    pub fn relay_of(&self, operator: Address) -> Option<u64> {
        self.collection.relay_of(operator)
    }

    /// The descriptor of a relay as it was last published.
    pub fn descriptor(&self, relay_id: u64) -> Option<&[u8]> {
        self.collection.descriptor(relay_id)
    }

    /// Takes in what has happened since.
    ///
    /// # Errors
    /// [`EndpointError`]; the file is the one of before then.
    pub fn follow(&mut self) -> Result<(), EndpointError> {
        self.endpoint.check_chain(self.file.chain_id)?;
        let head: u64 = self.endpoint.ask_number("eth_blockNumber", &json!([]))?.saturating_to();
        if head.saturating_add(1) < self.next {
            self.forget();
        }
        if head.saturating_sub(self.next) > MOST_BLOCKS {
            return Err(self.endpoint.malformed("eth_blockNumber", format!("block {head} is too far ahead")));
        }
        while self.next <= head {
            let to = head.min(self.next.saturating_add(RANGE - 1));
            self.take(self.next, to, head)?;
            self.next = to.saturating_add(1);
        }
        let file = write(self.collection.entries()).unwrap_or_default();
        let proof = self.endpoint.ask("eth_getProof", &json!([self.file.directory.to_string(), [], height(head)]))?;
        let (account, proof) =
            evidence::account(&proof).ok_or_else(|| self.endpoint.malformed("eth_getProof", "it has no account"))?;
        match RecordSet::verify(&file, account.storage_root) {
            Ok(_) => {
                let header = evidence::header_at(&self.endpoint, head)?.unwrap_or_default();
                let (states, attestation) = (Vec::new(), Vec::new());
                let reading = Reading { header, account, proof, states, attestation, records: file.clone() };
                self.directory = VerifiedDirectory::of_reading(reading, &self.file.trust(), MAX_LAG, 0).ok();
                self.records = file;
                Ok(())
            }
            Err(error) => {
                // A reorganisation, or an endpoint that keeps events back.
                self.forget();
                Err(self.endpoint.malformed("eth_getLogs", error))
            }
        }
    }

    fn forget(&mut self) {
        self.collection = Collection::default();
        self.next = self.file.first_block;
    }

    fn take(&mut self, from: u64, to: u64, head: u64) -> Result<(), EndpointError> {
        let filter = json!({
            "address": self.file.registry.to_string(), "fromBlock": height(from), "toBlock": height(to),
            "topics": [topics().map(|topic| topic.to_string())],
        });
        let logs = self.endpoint.ask("eth_getLogs", &json!([filter]))?;
        let mut changed = Vec::new();
        for log in logs.as_array().into_iter().flatten() {
            let log = read_log(log).ok_or_else(|| self.endpoint.malformed("eth_getLogs", "a log does not read"))?;
            changed.extend(self.collection.take(&log));
        }
        changed.sort_unstable();
        changed.dedup();
        for relay_id in changed {
            let call = RelayRegistry::relayOfCall { relayId: relay_id };
            let answer = self.endpoint.call_at(self.file.registry, &call.abi_encode(), &height(head))?;
            let shown = RelayRegistry::relayOfCall::abi_decode_returns(&answer)
                .map_err(|error| self.endpoint.malformed("eth_call", error))?;
            self.collection.set(relay_id, registration(relay_id, &shown));
        }
        Ok(())
    }
}

/// A log as an endpoint shows it.
pub fn read_log(shown: &Value) -> Option<Log> {
    let topics = shown["topics"].as_array()?.iter().map(|topic| topic.as_str()?.parse().ok());
    let data: Bytes = shown["data"].as_str()?.parse().ok()?;
    Log::new(shown["address"].as_str()?.parse().ok()?, topics.collect::<Option<_>>()?, data)
}
