//! A mirror: follows the registry's events and serves the records of all relays as one file.
//!
//! Owns nothing that has to be trusted: readers check the file against the chain. If the collected records do not
//! give the chain's root, the mirror goes back to the last settled state. If that does not help, it starts from the
//! first block.

mod kept;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::registry::{Collection, RelayRegistry, registration, topics};
use alloy_primitives::Address;
use alloy_sol_types::SolCall;
use openrelay_ledger::chain::header::Header;
use openrelay_ledger::chain::reading::{MAX_LAG, Reading};
use openrelay_ledger::chain::set::{RecordSet, write};
use serde_json::json;

use self::kept::Kept;
use super::endpoint::{Endpoint, EndpointError};
use super::evidence;
use super::logs::{Logs, Wanted};
use super::read::height;
use openrelay_node::chain_file::ChainFile;
use openrelay_node::directory::VerifiedDirectory;

/// Maximum number of blocks that a mirror searches: several years of the fastest chains.
const MOST_BLOCKS: u64 = 1 << 30;
/// Blocks after which no reorganisation is expected. The saved state is that old.
const SETTLED: u64 = 64;
/// How often a mirror that catches up writes its collection to disk.
const KEEP_EVERY: Duration = Duration::from_secs(10);

/// A mirror of one registry.
#[derive(Debug)]
pub struct Mirror {
    file: ChainFile,
    endpoint: Endpoint,
    logs: Logs,
    collected: Collected,
    /// The state to go back to after a reorganisation.
    kept: Option<Kept>,
    /// Whether nothing was proven since the mirror went back to that state.
    doubted: bool,
    /// A newer state that is saved once it is settled.
    waiting: Option<Kept>,
    /// The file that keeps the state across restarts.
    path: Option<PathBuf>,
    warning: Option<String>,
    /// The records that were last checked against the chain, and the directory that they give.
    records: Vec<u8>,
    directory: Option<VerifiedDirectory>,
}

/// What a mirror knows from the events of all blocks before `next`.
#[derive(Clone, Default, Debug)]
struct Collected {
    collection: Collection,
    /// Relays whose registration must be requested.
    changed: BTreeSet<u64>,
    next: u64,
}

impl Mirror {
    /// Returns an empty mirror that asks the first endpoint.
    pub fn new(file: ChainFile) -> Self {
        let endpoint = Endpoint::new(file.endpoints.first().map_or("", String::as_str));
        let wanted = Wanted { address: file.registry, topics: vec![topics().to_vec()] };
        Self {
            logs: Logs::new(endpoint.clone(), wanted),
            collected: Collected { next: file.first_block, ..Collected::default() },
            kept: None,
            doubted: false,
            waiting: None,
            path: None,
            warning: None,
            records: Vec::new(),
            directory: None,
            file,
            endpoint,
        }
    }

    /// Returns a mirror that saves its collection in the file `path`. Continues from the collection there, if it
    /// belongs to this chain and registry.
    pub fn keeping(file: ChainFile, path: PathBuf) -> Self {
        let mut this = Self::new(file);
        match Kept::read(&path, &this.file) {
            Ok(kept) => this.kept = kept,
            Err(why) => this.warning = Some(format!("the mirror starts from the first block: {why}")),
        }
        this.path = Some(path);
        this
    }

    /// Returns the warning for the operator about the collection's file, once.
    pub fn take_warning(&mut self) -> Option<String> {
        self.warning.take()
    }

    /// Returns the file of records; empty before [`Mirror::follow`] succeeds for the first time.
    pub fn records(&self) -> &[u8] {
        &self.records
    }

    /// Returns the directory that the file gives; `None` before there is one. It rests on the first endpoint alone.
    pub fn directory(&self) -> Option<&VerifiedDirectory> {
        self.directory.as_ref()
    }

    /// Returns the first block whose events have not been read.
    pub fn next_block(&self) -> u64 {
        self.collected.next
    }

    /// Returns the newest relay of this operator that is not leaving.
    pub fn relay_of(&self, operator: Address) -> Option<u64> {
        self.collected.collection.relay_of(operator)
    }

    /// Reads what has happened on the chain since the last call.
    ///
    /// # Errors
    /// [`EndpointError`]. The file is then the previous one, and the events that were read are not lost.
    pub fn follow(&mut self) -> Result<(), EndpointError> {
        self.endpoint.check_chain(self.file.chain_id)?;
        if self.collected.next == self.file.first_block && self.kept.is_some() {
            self.doubted = true;
            self.step_back()?;
        }
        let head = self.catch_up()?;
        self.ask_registrations(head)?;
        let file = write(self.collected.collection.entries()).unwrap_or_default();
        let proof = self.endpoint.ask("eth_getProof", &json!([self.file.directory.to_string(), [], height(head)]))?;
        let (account, proof) =
            evidence::account(&proof).ok_or_else(|| self.endpoint.malformed("eth_getProof", "it has no account"))?;
        if let Err(error) = RecordSet::verify(&file, account.storage_root) {
            // The cause is a reorganisation, or an endpoint that withholds events.
            let error = self.endpoint.malformed("eth_getLogs", error);
            if std::mem::replace(&mut self.doubted, true) {
                self.kept = None;
            }
            self.step_back()?;
            return Err(error);
        }
        self.doubted = false;
        let header = evidence::header_at(&self.endpoint, head)?.unwrap_or_default();
        self.settle(head, &header);
        let (states, attestation) = (Vec::new(), Vec::new());
        let reading = Reading { header, account, proof, states, attestation, records: file.clone() };
        self.directory = VerifiedDirectory::of_reading(reading, &self.file.trust(), MAX_LAG, 0).ok();
        self.records = file;
        Ok(())
    }

    /// Reads events up to the newest block, and returns that block.
    fn catch_up(&mut self) -> Result<u64, EndpointError> {
        let mut kept_at = Instant::now();
        loop {
            let head: u64 = self.endpoint.ask_number("eth_blockNumber", &json!([]))?.saturating_to();
            if head.saturating_add(1) < self.collected.next {
                self.step_back()?;
            }
            if head.saturating_sub(self.collected.next) > MOST_BLOCKS {
                return Err(self.endpoint.malformed("eth_blockNumber", format!("block {head} is too far ahead")));
            }
            if self.collected.next > head {
                return Ok(head);
            }
            // The last blocks are read separately, so that the settled state can be saved.
            let settled = head.saturating_sub(SETTLED);
            let before = self.collected.next;
            while self.collected.next <= settled {
                self.take(settled)?;
                if self.collected.next > settled || kept_at.elapsed() >= KEEP_EVERY {
                    kept_at = Instant::now();
                    let last = self.collected.next - 1;
                    let header = evidence::header_at(&self.endpoint, last)?.unwrap_or_default();
                    self.keep(Kept::of(self.collected.clone(), &header));
                }
            }
            while self.collected.next <= head {
                self.take(head)?;
            }
            // Catching up takes time, and endpoints may drop the state of an old block meanwhile.
            if self.collected.next - before <= SETTLED {
                return Ok(head);
            }
        }
    }

    /// Reads the next range of blocks, at most up to `to`.
    fn take(&mut self, to: u64) -> Result<(), EndpointError> {
        let (logs, last) = self.logs.after(self.collected.next, to)?;
        let Collected { collection, changed, next } = &mut self.collected;
        changed.extend(logs.iter().filter_map(|log| collection.take(log)));
        *next = last.saturating_add(1);
        Ok(())
    }

    /// Requests the registrations of changed relays: once for each relay, however many events it has.
    fn ask_registrations(&mut self, head: u64) -> Result<(), EndpointError> {
        let Collected { collection, changed, .. } = &mut self.collected;
        let relays: Vec<u64> = changed.iter().copied().collect();
        let calls: Vec<Vec<u8>> =
            relays.iter().map(|relay| RelayRegistry::relayOfCall { relayId: *relay }.abi_encode()).collect();
        let answers = self.endpoint.call_all(self.file.registry, &calls, &height(head))?;
        for (relay_id, answer) in relays.into_iter().zip(answers) {
            let shown = RelayRegistry::relayOfCall::abi_decode_returns(&answer)
                .map_err(|error| self.endpoint.malformed("eth_call", error))?;
            collection.set(relay_id, registration(relay_id, &shown));
            changed.remove(&relay_id);
        }
        Ok(())
    }

    /// Saves the state at `head`, whose header this is, once it is settled.
    fn settle(&mut self, head: u64, header: &[u8]) {
        if let Some(settled) = self.waiting.take_if(|waiting| waiting.next().saturating_add(SETTLED) <= head) {
            self.keep(Some(settled));
        }
        let old = self.kept.as_ref().is_none_or(|kept| kept.next().saturating_add(SETTLED) <= head);
        if old && self.waiting.is_none() {
            self.waiting = Kept::of(self.collected.clone(), header);
        }
    }

    fn keep(&mut self, state: Option<Kept>) {
        let Some(state) = state else { return };
        if let Some(path) = &self.path
            && let Err(error) = state.write(path, &self.file)
        {
            // Without the file, a restart reads all events again.
            self.warning = Some(format!("cannot save the collected records in {}: {error}", path.display()));
        }
        self.kept = Some(state);
    }

    /// Goes back to the saved state if the chain still has its block, otherwise to the first block.
    fn step_back(&mut self) -> Result<(), EndpointError> {
        self.waiting = None;
        let known = match &self.kept {
            Some(kept) => {
                let shown = evidence::header_at(&self.endpoint, kept.next().saturating_sub(1))?;
                shown.and_then(|rlp| Header::decode(&rlp).ok()).is_some_and(|header| kept.is_at(&header))
            }
            None => false,
        };
        self.kept.take_if(|_| !known);
        self.collected = match &self.kept {
            Some(kept) => kept.collected().clone(),
            None => Collected { next: self.file.first_block, ..Collected::default() },
        };
        Ok(())
    }
}
