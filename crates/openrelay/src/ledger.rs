//! `openrelay egresses`, `openrelay verify` and `openrelay mirror`: shows a verified directory, and serves one to
//! clients.
//!
//! Owns the output that explains how a directory was verified, and the mirror's HTTP routes. A mirror proves nothing
//! itself: clients verify what it serves.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, Log, U256, hex};
use alloy_sol_types::SolCall;
use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use openrelay_ledger::chain::reading::MAX_MISSING;
use openrelay_ledger::chain::set::{ChainRecord, RecordSet, Status, record_hash};
use openrelay_ledger::chain::voting::ImageRegistry;
use openrelay_ledger::directory::{Directory, Source};
use openrelay_ledger::record::Role;
use openrelay_ledger::selection::percent;
use openrelay_node::chain::collector::Collector;
use openrelay_node::chain::logs::{Logs, Wanted};
use openrelay_node::chain::mirror::Mirror;
use openrelay_node::chain::{Endpoint, EndpointError};
use openrelay_node::chain_file::ChainFile;
use openrelay_node::client::directory_of;
use openrelay_node::clock::unix_seconds;
use openrelay_node::config::{ClientFile, Origin, read};
use openrelay_node::directory::VerifiedDirectory;
use serde_json::{Value, json};

use crate::control::folders;
use crate::failure::Failure;
use crate::{Program, say, talk};

/// The chain ID of development chains with a faucet.
pub(crate) const DEVELOPMENT: u64 = 31_337;

/// Calls a contract through one endpoint, without a proof.
pub(crate) fn ask<C: SolCall>(endpoint: &Endpoint, to: Address, call: &C) -> Result<C::Return, Failure> {
    let answer = endpoint.call(to, &call.abi_encode())?;
    C::abi_decode_returns(&answer)
        .map_err(|error| Failure::plain(format!("{}: {to} returned malformed data: {error}", endpoint.url())))
}

/// Returns the events of these kinds in a round of votes on images, as one endpoint reports them. Covers the blocks
/// from the round's proposal to the end of its reveals.
pub(crate) fn round_logs(
    endpoint: &Endpoint,
    chain: &ChainFile,
    images: Address,
    kinds: &[B256],
    round: u64,
) -> Result<Vec<Log>, Failure> {
    let held = ask(endpoint, images, &ImageRegistry::roundOfCall { round })?;
    let first = held.snapshotBlock.to::<u64>().max(chain.first_block);
    let until = ask(endpoint, images, &ImageRegistry::revealEndCall { round })?;
    let last = last_block_by(endpoint, until.to(), first)?;
    let topics = vec![kinds.to_vec(), vec![U256::from(round).into()]];
    Ok(Logs::new(endpoint.clone(), Wanted { address: images, topics }).all(first, last)?)
}

/// Returns the number of the newest block, as one endpoint reports it.
pub(crate) fn newest_block(endpoint: &Endpoint) -> Result<u64, Failure> {
    Ok(endpoint.ask_number("eth_blockNumber", &json!([]))?.saturating_to())
}

/// Returns the last block from `first` on that is not newer than `time`, in seconds since the Unix epoch. Returns
/// `first` if all blocks are newer.
fn last_block_by(endpoint: &Endpoint, time: u64, first: u64) -> Result<u64, Failure> {
    let is_by = |number: u64| -> Result<bool, Failure> {
        let block = endpoint.ask("eth_getBlockByNumber", &json!([format!("{number:#x}"), false]))?;
        let shown = block["timestamp"].as_str().and_then(|text| text.parse::<U256>().ok());
        let missing = || Failure::plain(format!("{}: block {number} is unavailable", endpoint.url()));
        Ok(shown.ok_or_else(missing)? <= U256::from(time))
    };
    let (mut good, mut beyond) = (first, newest_block(endpoint)?.max(first).saturating_add(1));
    while beyond - good > 1 {
        let middle = good + (beyond - good) / 2;
        if is_by(middle)? {
            good = middle;
        } else {
            beyond = middle;
        }
    }
    Ok(good)
}

/// Asks a development chain's faucet to give an account `amount` of a token, and ether. Does nothing on other chains.
pub(crate) fn faucet(
    chain: &ChainFile,
    endpoint: &Endpoint,
    account: Address,
    token: Address,
    amount: U256,
) -> Result<(), Failure> {
    if chain.chain_id != DEVELOPMENT {
        return Ok(());
    }
    let fund = json!([account.to_string(), token.to_string(), format!("{amount:#x}")]);
    match endpoint.ask("devchain_fund", &fund) {
        Ok(_) => talk("openrelay: this is a development chain; its faucet paid the bond and ether"),
        // A development chain without a faucet.
        Err(EndpointError::Refused { code: -32_601, .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Returns the facts that a directory was verified by, as JSON; null for a signature.
pub(crate) fn facts_json(source: Source) -> Value {
    match source {
        Source::Signed => Value::Null,
        Source::Chain(facts) => json!({
            "block": facts.block, "block_hash": facts.block_hash.to_string(), "timestamp": facts.timestamp,
            "withheld": facts.withheld, "malformed": facts.malformed, "inactive": facts.inactive,
            "missing_permille": facts.missing,
        }),
    }
}

/// Returns where the configuration takes its directory from.
pub(crate) fn origin(config: &Path) -> Result<Origin, Failure> {
    let file: ClientFile = read(config).map_err(Failure::plain)?;
    file.origin(config).map_err(Failure::plain)
}

/// Returns the directory as a client would use it: the cached one of a running client, or one that is read for this
/// call.
pub(crate) fn directory_for(config: &Path) -> Result<VerifiedDirectory, Failure> {
    match origin(config)? {
        Origin::Chain(chain) if folders().is_changed() => {
            let kept = openrelay_node::client::kept_of(&chain, &folders().state);
            talk(WHILE_UP);
            openrelay_node::chain::kept_directory(&chain, &kept).ok_or_else(nothing_kept)
        }
        Origin::Chain(_) | Origin::Signed { .. } => {
            let (directory, warning) = directory_of(config, &folders().state)?;
            if let Some(warning) = warning {
                talk(&format!("openrelay: warning: {warning}"));
            }
            Ok(directory)
        }
    }
}

/// Returns the directory as the chain shows it. A cached directory is accepted only from a running client.
pub(crate) fn directory_shown(config: &Path) -> Result<VerifiedDirectory, Failure> {
    match origin(config)? {
        Origin::Chain(chain) if !folders().is_changed() => {
            let (reading, directory) = openrelay_node::chain::read(&chain, unix_seconds(), 0)?;
            Ok(VerifiedDirectory::of_proven(directory, reading))
        }
        Origin::Chain(_) | Origin::Signed { .. } => directory_for(config),
    }
}

/// Lists egress relays.
pub(crate) fn egresses(program: &Program, config: &Path, as_json: bool) -> Result<(), Failure> {
    let directory = directory_for(config)?;
    let judged = crate::page::judge(program, config, &directory)?;
    let refusal = |relay: u64| judged.as_ref().and_then(|judged| judged.verdict(relay).err());
    let directory = directory.directory();
    let exits: Vec<_> = directory.body().relays.iter().filter(|relay| relay.role == Role::Egress).collect();
    if as_json {
        let list: Vec<Value> = exits
            .iter()
            .map(|relay| {
                json!({
                    "relay": relay.relay_id, "operator": relay.operator, "family": relay.family,
                    "advertised_mbit": relay.bandwidth_mbit, "endpoints": relay.endpoints,
                    "refused": refusal(relay.relay_id).map(|refusal| refusal.code()),
                })
            })
            .collect();
        let proof = facts_json(directory.source());
        say(&json!({"schema": "openrelay.exits/1", "exits": list, "directory_proof": proof}).to_string());
        return Ok(());
    }
    say(&believed(directory));
    for relay in exits {
        let endpoints: Vec<String> = relay.endpoints.iter().map(ToString::to_string).collect();
        let family = relay.family.as_deref().map(|family| format!("   family {family}")).unwrap_or_default();
        let refused =
            refusal(relay.relay_id).map(|refusal| format!("   REFUSED [{}]", refusal.code())).unwrap_or_default();
        say(&format!(
            "{:>6}  {:>7} Mbit/s  {}   operator {}{family}{refused}",
            relay.relay_id,
            relay.bandwidth_mbit,
            endpoints.join(" "),
            relay.operator
        ));
    }
    Ok(())
}

/// Returns in words what a directory was verified by.
fn believed(directory: &Directory) -> String {
    let body = directory.body();
    match directory.source() {
        Source::Signed => format!("{}, directory number {}, signed by its operator", body.network, body.sequence),
        Source::Chain(facts) => format!(
            "{}, proven at block {} ({}); not usable: {} without descriptor{}, {} malformed, {} inactive",
            body.network,
            facts.block,
            facts.block_hash,
            facts.withheld,
            missing_share(facts.missing),
            facts.malformed,
            facts.inactive
        ),
    }
}

/// Returns the missing share of weight in words, or an empty string if none is missing.
fn missing_share(missing: u16) -> String {
    let (share, most) = (percent(missing), percent(MAX_MISSING));
    match missing {
        0 => String::new(),
        1..=MAX_MISSING => format!(" (up to {share} of the weight of a role)"),
        _ => format!(" (up to {share} of the weight of a role; no circuit opens while that is more than {most})"),
    }
}

/// Shown instead of asking the chain through the user's own circuit, whose egress should not learn that this user
/// asks.
const WHILE_UP: &str = "openrelay: showing the running client's cached directory; no endpoint was contacted";

fn nothing_kept() -> Failure {
    Failure::new(5, "the running client has no cached directory; run openrelay down first, then retry")
}

/// Prints how the handshake key of a relay is proven.
pub(crate) fn verify(config: &Path, directory: &VerifiedDirectory, relay_id: u64) -> Result<(), Failure> {
    let chain = match origin(config)? {
        Origin::Chain(chain) => chain,
        Origin::Signed { .. } => return verify_signed(directory.directory(), relay_id),
    };
    let now = unix_seconds();
    let trusted = if folders().is_changed() {
        "shown by endpoints, or signed as a checkpoint, when the running client read it".to_owned()
    } else {
        format!("{} of {} endpoints show the same header", chain.quorum, chain.endpoints.len())
    };
    let reading = directory.reading().ok_or_else(nothing_kept)?;
    let (set, header) = reading.record_set(&chain.trust(), now, chain.max_age_s, 0).map_err(Failure::plain)?;
    say(&format!("block          {} {}   {} s old", header.number, header.hash, now.saturating_sub(header.timestamp)));
    say(&format!("header         {trusted}; its hash was computed here. Only this is taken on trust"));
    say(&format!("state root     {}", header.state_root));
    say(&format!(
        "account        {} proven by {} nodes; its code is the expected one",
        chain.directory,
        reading.proof.len()
    ));
    say(&format!("storage root   {}", reading.account.storage_root));
    let total = set.records.len() + set.withheld.len() + set.malformed.len();
    say(&format!("records        {total}; together they give this storage root: none is missing, none was added"));
    let Some(record) = set.records.iter().find(|record| record.registration.relay_id == relay_id) else {
        return Err(Failure::new(5, missing(relay_id, &set)));
    };
    print_record(record);
    Ok(())
}

/// Returns why a relay is not in a directory.
pub(crate) fn no_such_relay(config: &Path, directory: &VerifiedDirectory, relay_id: u64) -> Failure {
    let set = match (origin(config), directory.reading()) {
        (Ok(Origin::Chain(chain)), Some(reading)) => {
            reading.record_set(&chain.trust(), unix_seconds(), chain.max_age_s, 0).ok().map(|(set, _)| set)
        }
        _ => None,
    };
    let known = |set: &RecordSet| set.records.iter().any(|record| record.registration.relay_id == relay_id);
    let why = match set {
        Some(set) if !known(&set) => missing(relay_id, &set),
        Some(_) => format!("relay {relay_id} accepts no circuits"),
        None => format!("relay {relay_id} is not in the directory"),
    };
    Failure::new(5, why)
}

fn missing(relay_id: u64, set: &RecordSet) -> String {
    if set.withheld.iter().any(|registration| registration.relay_id == relay_id) {
        format!("relay {relay_id} is on the chain but cannot be used: no source has its descriptor")
    } else if set.malformed.contains(&relay_id) {
        format!("relay {relay_id} is on the chain but cannot be used: its descriptor is malformed")
    } else {
        format!("relay {relay_id} is not on the chain")
    }
}

fn print_record(record: &ChainRecord) {
    let (registration, descriptor) = (&record.registration, &record.descriptor);
    // A decoded descriptor always encodes: both directions apply the same checks.
    let bytes = descriptor.encode().unwrap_or_default();
    let hash = record_hash(registration, openrelay_ledger::chain::descriptor::Descriptor::hash(&bytes));
    let status = match registration.status {
        Status::Active if registration.bond_class == 0 => "bond too small: accepts no circuits",
        Status::Active => "active",
        Status::Draining => "draining: accepts no new circuits",
        Status::Unbonding => "leaving: accepts no circuits",
    };
    let endpoints: Vec<String> = descriptor.endpoints.iter().map(ToString::to_string).collect();
    say(&format!("record         {hash}"));
    say(&format!("relay          {} {} at {}   {status}", registration.relay_id, descriptor.role, endpoints.join(" ")));
    say(&format!(
        "operator       {}   {} Mbit/s advertised, bond class {}",
        registration.operator, registration.advertised_mbit, registration.bond_class
    ));
    say(&format!("handshake key  {} epoch {}", hex::encode(descriptor.handshake_key), descriptor.key_epoch));
    say("               a circuit to this relay uses this key or does not open");
}

fn verify_signed(directory: &Directory, relay_id: u64) -> Result<(), Failure> {
    say(&believed(directory));
    let relay = directory
        .relay(relay_id)
        .ok_or_else(|| Failure::new(5, format!("relay {relay_id} is not in the directory")))?;
    say(&format!("relay          {} {}   operator {}", relay.relay_id, relay.role, relay.operator));
    say(&format!("handshake key  {} epoch {}", relay.handshake_key, relay.key_epoch));
    say("               a circuit to this relay uses this key or does not open");
    Ok(())
}

/// How often a mirror looks for new blocks.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// How often a mirror looks for relays whose evidence it does not have.
const COLLECT_EVERY: Duration = Duration::from_millis(500);
/// After it has made the file of evidence, a mirror rests this many times as long as that took, at most
/// [`LONGEST_REST`]. The file has some 50 MiB in a network of 20,000 relays.
const REST: u32 = 20;
const LONGEST_REST: Duration = Duration::from_secs(5);

/// Follows the chain until the process ends, and serves its records and what clients judge relays by.
pub(crate) fn mirror(
    program: &Program,
    chain: &Path,
    listen: SocketAddr,
    checkpoint: Option<PathBuf>,
    files: Option<PathBuf>,
) -> Result<(), Failure> {
    let file = ChainFile::load(chain).map_err(Failure::plain)?;
    // One chain can have several networks; the directory's address tells them apart.
    let collection = folders().state.join(format!("mirror-{}-{:#x}.json", file.chain_id, file.directory));
    let mut mirror = Mirror::keeping(file.clone(), collection);
    let begun = mirror.follow();
    warn(&mut mirror);
    begun?;
    let records = Arc::new(Mutex::new(Bytes::copy_from_slice(mirror.records())));
    let directory = Arc::new(Mutex::new(mirror.directory().cloned()));
    let attestation = Arc::new(Mutex::new(Bytes::new()));
    let (shared, known) = (records.clone(), directory.clone());
    let follow = move || {
        let mut silent = true;
        loop {
            std::thread::sleep(FOLLOW_EVERY);
            let followed = mirror.follow();
            warn(&mut mirror);
            match followed {
                Ok(()) => {
                    if mirror.records() != lock(&shared).as_ref() {
                        *lock(&shared) = Bytes::copy_from_slice(mirror.records());
                    }
                    *lock(&known) = mirror.directory().cloned();
                    silent = true;
                }
                // Reported once, not every second.
                Err(error) if silent => {
                    talk(&format!("openrelay: warning: still serving the previous records: {error}"));
                    silent = false;
                }
                Err(_) => {}
            }
        }
    };
    let (collected, by_hash) = (attestation.clone(), Arc::new(Files::of(files.clone())));
    let roots = program.standard.roots.clone();
    let collect = move || {
        let mut collector = Collector::new(file, roots);
        loop {
            let (known, mut rest) = (lock(&directory).clone(), COLLECT_EVERY);
            if let Some(known) = known {
                collector.collect(&known);
                let begun = Instant::now();
                *lock(&collected) = collector.attestation(files.as_deref()).into();
                rest = rest.max((begun.elapsed() * REST).min(LONGEST_REST));
                collector.refused().iter().for_each(|why| talk(&format!("openrelay: warning: {why}")));
            }
            std::thread::sleep(rest);
        }
    };
    std::thread::Builder::new().name("mirror".into()).spawn(follow).map_err(Failure::plain)?;
    // In its own thread, because a relay that does not answer would delay the records.
    std::thread::Builder::new().name("evidence".into()).spawn(collect).map_err(Failure::plain)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::plain)?;
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind(listen)
            .await
            .map_err(|error| Failure::plain(format!("cannot listen on {listen}: {error}")))?;
        let address = listener.local_addr().map_err(Failure::plain)?;
        say(&format!("ready url=http://{address}/records"));
        let routes = Router::new()
            .route("/records", get(move || serve(records.clone())))
            .route("/attestation", get(move || serve(attestation.clone())))
            .route("/files/{hash}", get(move |axum::extract::Path(hash)| serve_file(by_hash.clone(), hash)))
            .route("/checkpoint", get(move || serve_checkpoint(checkpoint.clone())));
        axum::serve(listener, routes).await.map_err(Failure::plain)
    })
}

fn warn(mirror: &mut Mirror) {
    if let Some(warning) = mirror.take_warning() {
        talk(&format!("openrelay: warning: {warning}"));
    }
}

fn lock<T>(shared: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::unused_async, reason = "axum requires an async handler")]
async fn serve(file: Arc<Mutex<Bytes>>) -> Response {
    let bytes = lock(&file).clone();
    if bytes.is_empty() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    ([("content-type", "application/octet-stream")], bytes).into_response()
}

/// Returns the hashes of the collateral bundles in a folder, one a line, the newest first.
fn collateral_in(folder: &Path) -> String {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let hash = |entry: std::fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let modified = entry.metadata().and_then(|metadata| metadata.modified()).ok();
        Some((modified, name.strip_suffix(crate::validator::COLLATERAL_ENDING)?.to_owned()))
    };
    let mut found: Vec<_> = entries.filter_map(hash).collect();
    found.sort_unstable();
    found.iter().rev().map(|(_, hash)| format!("{hash}\n")).collect()
}

/// Serves the file with this hash. Builders name their inputs by the hash; validators begin the names of what they
/// have built with it. Clients compare the file with the hash themselves.
async fn serve_file(files: Arc<Files>, hash: String) -> Response {
    let Some(folder) = files.folder.clone() else { return StatusCode::NOT_FOUND.into_response() };
    if hash == "collateral" {
        let listed = tokio::task::spawn_blocking(move || collateral_in(&folder)).await;
        return listed.unwrap_or_default().into_response();
    }
    // Only hexadecimal digits, so the name cannot lead out of the folder.
    if openrelay_ledger::hex::decode::<32>(&hash).is_none() {
        return StatusCode::NOT_FOUND.into_response();
    }
    // One file is read at a time, and everyone who asks for it shares it.
    let mut held = files.held.lock().await;
    if let Some((_, bytes)) = held.iter().find(|(own, _)| *own == hash) {
        return ([("content-type", "application/octet-stream")], bytes.clone()).into_response();
    }
    let wanted = hash.clone();
    let find = move || {
        let entries = std::fs::read_dir(folder)?.flatten();
        // An image's manifest is named after the image too.
        let named = entries.filter(|entry| {
            let name = entry.file_name();
            name.to_string_lossy().strip_prefix(hash.as_str()).is_some_and(|end| end.is_empty() || end.starts_with('.'))
        });
        let small = named.filter(|entry| entry.metadata().is_ok_and(|file| file.len() <= MAX_SERVED));
        let mut read = small.filter_map(|entry| std::fs::read(entry.path()).ok());
        let found = read.find(|bytes| openrelay_image::hex(&openrelay_image::sha256(bytes)) == hash);
        found.ok_or(std::io::Error::from(std::io::ErrorKind::NotFound))
    };
    match tokio::task::spawn_blocking(find).await {
        Ok(Ok(bytes)) => {
            let bytes = Bytes::from(bytes);
            held.push_back((wanted, bytes.clone()));
            if held.len() > HELD {
                held.pop_front();
            }
            ([("content-type", "application/octet-stream")], bytes).into_response()
        }
        Ok(Err(_)) | Err(_) => StatusCode::NOT_FOUND.into_response(),
    }
}

/// Files that are served by their hash; the last ones come from memory.
struct Files {
    folder: Option<PathBuf>,
    held: tokio::sync::Mutex<VecDeque<(String, Bytes)>>,
}

/// The largest file that is served by its hash, in bytes, and the number of files kept in memory.
const MAX_SERVED: u64 = 64 << 20;
const HELD: usize = 4;

impl Files {
    fn of(folder: Option<PathBuf>) -> Self {
        Self { folder, held: tokio::sync::Mutex::default() }
    }
}

/// Serves the checkpoint file as it is at this moment, because each signer writes it again.
async fn serve_checkpoint(path: Option<PathBuf>) -> Response {
    let Some(path) = path else { return StatusCode::NOT_FOUND.into_response() };
    match tokio::task::spawn_blocking(move || std::fs::read(path)).await {
        Ok(Ok(bytes)) => ([("content-type", "application/octet-stream")], bytes).into_response(),
        Ok(Err(_)) | Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

#[cfg(test)]
mod tests;
