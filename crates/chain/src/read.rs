//! Reads the directory: a header that a quorum of endpoints shows, a proof from one of them, and records from several
//! sources.
//!
//! Owns which servers are queried, for what, and in which order. All clients send the same queries.

use std::sync::mpsc;
use std::time::{Duration, Instant};

use alloy_primitives::{B256, Bytes};
use openrelay_attest::verdict::Staple;
use openrelay_ledger::chain::header::{Header, from_json};
use openrelay_ledger::chain::proof::Account;
use openrelay_ledger::chain::reading::{MAX_LAG, Reading, ReadingError};
use openrelay_ledger::directory::Directory;
use serde_json::{Value, json};

use super::endpoint::{Endpoint, EndpointError};
use super::transport::{Direct, Transport};
use super::{evidence, records};
use openrelay_node::chain_file::ChainFile;
use openrelay_node::random::OsRandom;

/// How often an endpoint that does not have a block yet is asked, and the pause in between. Endpoints are not all at
/// the same block.
pub(crate) const AGAIN: u32 = 4;
pub(crate) const PAUSE: Duration = Duration::from_millis(500);
const SLOW: Duration = Duration::from_secs(3);

/// Why the directory cannot be read from the chain.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ChainError {
    /// No endpoint gave both a header and a proof.
    #[error("no endpoint of the chain gave a usable answer: {}", list(.0))]
    Endpoints(Vec<String>),
    /// No server was reached.
    #[error("{what} was reached: {}", list(.faults))]
    Unreached {
        /// The servers that were not reached, beginning with "no".
        what: &'static str,
        /// The faults of each.
        faults: Vec<String>,
    },
    /// The cached directory is too old, and no newer one can be read.
    #[error(
        "the directory is {} old; the limit is {} while no newer one can be read: {why}",
        span(*.age),
        span(*.limit)
    )]
    Outdated {
        /// Its age, in seconds.
        age: u64,
        /// The greatest accepted age, in seconds.
        limit: u64,
        /// Why no newer one can be read.
        why: Box<ChainError>,
    },
    /// Too few endpoints show the same header.
    #[error(
        "endpoints disagree about block {number}: {agree} of {asked} match, quorum is {quorum}; {}",
        list(.others)
    )]
    Quorum {
        /// How many endpoints show it.
        agree: usize,
        /// How many endpoints were asked.
        asked: usize,
        /// The quorum.
        quorum: usize,
        /// The block number.
        number: u64,
        /// What the other endpoints answer.
        others: Vec<String>,
    },
    /// The reading was refused.
    #[error(transparent)]
    Refused(#[from] ReadingError),
    /// A first start without a usable checkpoint.
    #[error("at this first start, no mirror has a usable checkpoint: {}", list(.0))]
    Checkpoints(Vec<String>),
    /// No source has the chain's records.
    #[error("no mirror has the records of the chain: {}", list(.0))]
    Mirrors(Vec<String>),
    /// Endpoints answered, but no source of records was reached.
    #[error("no records mirror was reached: {}", list(.0))]
    Unserved(Vec<String>),
}

/// Returns a readable time span of this many seconds.
fn span(seconds: u64) -> String {
    if seconds < 7_200 { format!("{seconds} s") } else { format!("{} hours", seconds.div_ceil(3_600)) }
}

fn list(faults: &[String]) -> String {
    faults.join("; ")
}

/// Reads and proves the directory at the time `now`, in seconds since the Unix epoch, directly from this machine.
/// Blocks below the highest block `seen` are refused.
///
/// # Errors
/// [`ChainError`] names the servers that failed, and why.
pub fn read(file: &ChainFile, now: u64, seen: u64) -> Result<(Reading, Directory), ChainError> {
    read_by(&Direct, file, (now, seen), None, &[])
}

/// Does the same as [`read`] over another transport, with an older reading and with evidence that relays have shown.
///
/// Every descriptor of the older reading that the chain still names is reused. If none is missing then, no source is
/// asked for records. Endpoints are asked for the headers of the blocks in `extra`, which reveals its relays. Clients
/// hide which relays they use, so they pass none.
///
/// # Errors
/// [`ChainError`] names the servers that failed, and why.
pub fn read_by(
    transport: &dyn Transport,
    file: &ChainFile,
    (now, seen): (u64, u64),
    older: Option<&Reading>,
    extra: &[Staple],
) -> Result<(Reading, Directory), ChainError> {
    read_noting(transport, file, (now, seen), older, extra).map(|(reading, directory, _)| (reading, directory))
}

/// Does the same as [`read_by`], and also returns the faults in sources' evidence files.
pub(crate) fn read_noting(
    transport: &dyn Transport,
    file: &ChainFile,
    (now, seen): (u64, u64),
    older: Option<&Reading>,
    extra: &[Staple],
) -> Result<(Reading, Directory, Vec<String>), ChainError> {
    let endpoints: Vec<Endpoint> = file.endpoints.iter().map(|url| Endpoint::by(transport, url)).collect();
    let mut faults = Vec::new();
    let (mut failed, mut answered) = (vec![false; endpoints.len()], false);
    let (mut last, mut without_records) = (None, None);
    // Kept for the next leader, so that mirrors do not have to send all records again if this one fails later.
    let mut gathered: Option<Vec<u8>> = None;
    // Each endpoint leads once it has answered. One that lies or is behind therefore costs only its own turn, and one
    // that is slow or gone delays nobody.
    for (at, shown) in ask_all(transport, file) {
        let leader = &endpoints[at];
        let shown = match shown {
            Ok(shown) => shown,
            Err(error) => {
                answered |= error.is_answer();
                faults.push(error.to_string());
                failed[at] = true;
                continue;
            }
        };
        answered = true;
        // Endpoints that have failed are asked last, and only if the quorum needs them.
        let mut others: Vec<usize> = (0..endpoints.len()).filter(|other| *other != at).collect();
        others.sort_by_key(|other| failed[*other]);
        if let Err(error) = agree(&shown, leader, others.into_iter().map(|other| &endpoints[other]), file) {
            last = Some(error);
            continue;
        }
        let root = shown.account.storage_root;
        if without_records == Some(root) {
            continue;
        }
        let earlier: Vec<&[u8]> = gathered.iter().chain(older.map(|older| &older.records)).map(Vec::as_slice).collect();
        match proven(transport, shown, file, (now, seen), &earlier) {
            Ok((mut reading, directory)) => {
                gathered = Some(reading.records.clone());
                match evidence::add(transport, file, leader, (&mut reading, &directory), older, extra) {
                    Ok(noted) => return Ok((reading, directory, noted)),
                    Err(error) => faults.push(error.to_string()),
                }
            }
            // A leader that is behind shows a root that mirrors have already dropped.
            Err(error @ (ChainError::Mirrors(_) | ChainError::Unserved(_))) => {
                without_records = Some(root);
                last = Some(error);
            }
            // A forged proof or an old block is only this leader's fault; another leader may succeed.
            Err(error) => last = Some(error),
        }
    }
    Err(match last {
        Some(error) => error,
        None if answered => ChainError::Endpoints(faults),
        None => ChainError::Unreached { what: "no endpoint of the chain", faults },
    })
}

/// What an endpoint shows of its newest block.
pub(crate) struct Shown {
    rlp: Vec<u8>,
    pub(crate) header: Header,
    account: Account,
    proof: Vec<Bytes>,
}

/// Returns what each endpoint shows, with its index, in the order in which they answer.
pub(crate) fn ask_all(
    transport: &dyn Transport,
    file: &ChainFile,
) -> mpsc::Receiver<(usize, Result<Shown, EndpointError>)> {
    let (answers, all) = mpsc::channel();
    for (at, url) in file.endpoints.iter().enumerate() {
        let (answers, file, endpoint) = (answers.clone(), file.clone(), Endpoint::by(transport, url));
        // The receiver may be gone.
        std::thread::spawn(move || answers.send((at, show(&endpoint, &file))).ok());
    }
    all
}

fn show(leader: &Endpoint, file: &ChainFile) -> Result<Shown, EndpointError> {
    leader.check_chain(file.chain_id)?;
    let method = "eth_getBlockByNumber";
    let shown = leader.ask(method, &json!(["latest", false]))?;
    let rlp = from_json(&shown).map_err(|error| leader.malformed(method, error))?;
    let header = Header::decode(&rlp).map_err(|error| leader.malformed(method, error))?;
    let method = "eth_getProof";
    let answer = leader.ask(method, &json!([file.directory.to_string(), [], height(header.number)]))?;
    let (account, proof) =
        evidence::account(&answer).ok_or_else(|| leader.malformed(method, "it has no account or no proof"))?;
    Ok(Shown { rlp, header, account, proof })
}

/// Checks that a quorum of endpoints shows the same header at this height.
pub(crate) fn agree<'a>(
    shown: &Shown,
    leader: &Endpoint,
    others: impl Iterator<Item = &'a Endpoint>,
    file: &ChainFile,
) -> Result<(), ChainError> {
    let (mut agree, mut asked, mut doubts) = (1, 1, Vec::new());
    for other in others {
        if agree >= file.quorum {
            break;
        }
        asked += 1;
        match hash_at(other, file, shown.header.number) {
            Ok(hash) if hash == shown.header.hash => agree += 1,
            Ok(hash) => {
                doubts.push(format!("{} shows {hash}, {} shows {}", other.url(), leader.url(), shown.header.hash))
            }
            Err(error) => doubts.push(error.to_string()),
        }
    }
    if agree >= file.quorum {
        return Ok(());
    }
    let number = shown.header.number;
    Err(ChainError::Quorum { agree, asked, quorum: file.quorum, number, others: doubts })
}

/// Returns the hash of the block that each endpoint shows at a height, computed from its header; `None` for an
/// endpoint that shows none.
pub fn hashes_at(file: &ChainFile, number: u64) -> Vec<Option<B256>> {
    file.endpoints.iter().map(|url| hash_at(&Endpoint::new(url), file, number).ok()).collect()
}

/// Returns the hash of the block that an endpoint shows at a height, computed from its header.
fn hash_at(endpoint: &Endpoint, file: &ChainFile, number: u64) -> Result<B256, EndpointError> {
    endpoint.check_chain(file.chain_id)?;
    let method = "eth_getBlockByNumber";
    let mut shown = Value::Null;
    let started = Instant::now();
    for again in 0..AGAIN {
        // An endpoint that is slow as well is not worth the wait.
        if started.elapsed() > SLOW {
            break;
        }
        if again > 0 {
            std::thread::sleep(PAUSE);
        }
        shown = endpoint.ask(method, &json!([height(number), false]))?;
        if !shown.is_null() {
            break;
        }
    }
    if shown.is_null() {
        return Err(endpoint.malformed(method, format!("it is behind: it has no block {number}")));
    }
    let rlp = from_json(&shown).map_err(|error| endpoint.malformed(method, error))?;
    let header = Header::decode(&rlp).map_err(|error| endpoint.malformed(method, error))?;
    if header.number == number {
        Ok(header.hash)
    } else {
        Err(endpoint.malformed(method, format!("it returned block {} instead of {number}", header.number)))
    }
}

fn proven(
    transport: &dyn Transport,
    shown: Shown,
    file: &ChainFile,
    (now, seen): (u64, u64),
    earlier: &[&[u8]],
) -> Result<(Reading, Directory), ChainError> {
    let mut reading = Reading {
        header: shown.rlp,
        account: shown.account,
        proof: shown.proof,
        states: Vec::new(),
        attestation: Vec::new(),
        records: Vec::new(),
    };
    // Checks header and account before any source is asked for records.
    match reading.verify(&file.trust(), now, MAX_LAG, seen) {
        Ok(_) | Err(ReadingError::Records(_)) => {}
        Err(error) => return Err(error.into()),
    }
    reading.records = records::gather(transport, file, shown.account.storage_root, earlier, &mut OsRandom::default())?;
    let directory = reading.verify(&file.trust(), now, MAX_LAG, seen)?;
    Ok((reading, directory))
}

/// Formats a height for RPC.
pub(crate) fn height(number: u64) -> String {
    format!("{number:#x}")
}
