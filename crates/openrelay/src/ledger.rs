//! `openrelay exits`, `openrelay verify` and `openrelay mirror`: what the directory says, why it is believed, and serving it to others.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use alloy_primitives::{Address, U256, hex};
use alloy_sol_types::SolCall;
use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use openrelay_ledger::chain::reading::MAX_LAG;
use openrelay_ledger::chain::set::{ChainRecord, Status, record_hash};
use openrelay_ledger::directory::{Directory, Source};
use openrelay_ledger::record::Role;
use openrelay_node::chain::mirror::Mirror;
use openrelay_node::chain::{Endpoint, EndpointError};
use openrelay_node::chain_file::ChainFile;
use openrelay_node::client::directory_of;
use openrelay_node::clock::unix_seconds;
use openrelay_node::config::{ClientFile, Origin, read};
use serde_json::{Value, json};

use crate::control::folders;
use crate::failure::Failure;
use crate::{say, talk};

/// Development chains with a faucet have this number.
pub(crate) const DEVELOPMENT: u64 = 31_337;

/// Asks a contract, by one endpoint's word.
pub(crate) fn ask<C: SolCall>(endpoint: &Endpoint, to: Address, call: &C) -> Result<C::Return, Failure> {
    let answer = endpoint.call(to, &call.abi_encode())?;
    C::abi_decode_returns(&answer)
        .map_err(|error| Failure::plain(format!("{}: {to} does not answer as it should: {error}", endpoint.url())))
}

/// Lets a development chain give an account so much of a token, and ether; does nothing on other chains.
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
        Ok(_) => talk("openrelay: this is a development chain; its faucet gave the bond and ether"),
        // Another development chain, without one.
        Err(EndpointError::Refused { code: -32_601, .. }) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// What a directory was checked by, as JSON; null for a signature.
pub(crate) fn facts_json(source: Source) -> Value {
    match source {
        Source::Signed => Value::Null,
        Source::Chain(facts) => json!({
            "block": facts.block, "block_hash": facts.block_hash.to_string(), "timestamp": facts.timestamp,
            "withheld": facts.withheld, "malformed": facts.malformed, "inactive": facts.inactive,
        }),
    }
}

fn origin(config: &Path) -> Result<Origin, Failure> {
    let file: ClientFile = read(config).map_err(Failure::plain)?;
    file.origin(config).map_err(Failure::plain)
}

/// Lists the egresses that there are.
pub(crate) fn exits(config: &Path, as_json: bool) -> Result<(), Failure> {
    let directory = match origin(config)? {
        Origin::Chain(chain) if folders().is_changed() => {
            let kept = openrelay_node::client::kept_of(&chain, &folders().state);
            talk(WHILE_UP);
            openrelay_node::chain::kept_directory(&chain, &kept).ok_or_else(nothing_kept)?
        }
        Origin::Chain(_) | Origin::Signed { .. } => {
            let (directory, warning) = directory_of(config, &folders().state)?;
            if let Some(warning) = warning {
                talk(&format!("openrelay: warning: {warning}"));
            }
            directory
        }
    };
    let directory = directory.directory();
    let exits: Vec<_> = directory.body().relays.iter().filter(|relay| relay.role == Role::Egress).collect();
    if as_json {
        let list: Vec<Value> = exits
            .iter()
            .map(|relay| {
                json!({
                    "relay": relay.relay_id, "operator": relay.operator, "family": relay.family,
                    "advertised_mbit": relay.bandwidth_mbit, "endpoints": relay.endpoints,
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
        say(&format!(
            "{:>6}  {:>7} Mbit/s  {}   operator {}{family}",
            relay.relay_id,
            relay.bandwidth_mbit,
            endpoints.join(" "),
            relay.operator
        ));
    }
    Ok(())
}

/// What a directory was checked by, in words.
fn believed(directory: &Directory) -> String {
    let body = directory.body();
    match directory.source() {
        Source::Signed => format!("{}, directory number {}, signed by who runs it", body.network, body.sequence),
        Source::Chain(facts) => format!(
            "{}, proven at block {} ({}); not usable: {} without descriptor, {} that do not read, {} that take no circuits",
            body.network, facts.block, facts.block_hash, facts.withheld, facts.malformed, facts.inactive
        ),
    }
}

/// Said where a question would go through the user's own circuit, whose egress need not know that this user asks the chain.
const WHILE_UP: &str =
    "openrelay: a client is up: this is what it has read, through a circuit of its own; nobody was asked now";

fn nothing_kept() -> Failure {
    Failure::new(5, "a client is up and keeps no directory; run openrelay down first, then this again")
}

/// Prints how the key of a relay is proven.
pub(crate) fn verify(config: &Path, relay_id: u64) -> Result<(), Failure> {
    let chain = match origin(config)? {
        Origin::Chain(chain) => chain,
        Origin::Signed { .. } => return verify_signed(config, relay_id),
    };
    let now = unix_seconds();
    let mut trusted = format!("{} of {} endpoints show the same header", chain.quorum, chain.endpoints.len());
    let (reading, max_age) = if folders().is_changed() {
        talk(WHILE_UP);
        trusted = "shown by endpoints, or signed as a checkpoint, when the client that is up read it".into();
        let kept = openrelay_node::client::kept_of(&chain, &folders().state);
        (openrelay_node::chain::read_kept(&kept).ok_or_else(nothing_kept)?, chain.max_age_s)
    } else {
        (openrelay_node::chain::read(&chain, now, 0)?.0, MAX_LAG)
    };
    let (set, header) = reading.record_set(&chain.trust(), now, max_age, 0).map_err(Failure::plain)?;
    say(&format!("block          {} {}   {} s old", header.number, header.hash, now.saturating_sub(header.timestamp)));
    say(&format!(
        "header         {trusted}; its hash was computed here. This is the one thing that is trusted to them"
    ));
    say(&format!("state root     {}", header.state_root));
    say(&format!(
        "account        {} proven by {} nodes; its code is the trusted one",
        chain.directory,
        reading.proof.len()
    ));
    say(&format!("storage root   {}", reading.account.storage_root));
    let total = set.records.len() + set.withheld.len() + set.malformed.len();
    say(&format!("records        {total}; together they give this storage root: none is missing, none was added"));
    let Some(record) = set.records.iter().find(|record| record.registration.relay_id == relay_id) else {
        return Err(Failure::new(5, missing(relay_id, &set.withheld, &set.malformed)));
    };
    print_record(record);
    Ok(())
}

fn missing(relay_id: u64, withheld: &[u64], malformed: &[u64]) -> String {
    if withheld.contains(&relay_id) {
        format!("relay {relay_id} is on the chain, but no mirror has its descriptor: it cannot be used")
    } else if malformed.contains(&relay_id) {
        format!("relay {relay_id} is on the chain, but its descriptor does not read: it cannot be used")
    } else {
        format!("relay {relay_id} is not on the chain")
    }
}

fn print_record(record: &ChainRecord) {
    let (registration, descriptor) = (&record.registration, &record.descriptor);
    // What was read encodes: it was written back the same when it was read.
    let bytes = descriptor.encode().unwrap_or_default();
    let hash = record_hash(registration, openrelay_ledger::chain::descriptor::Descriptor::hash(&bytes));
    let status = match registration.status {
        Status::Active if registration.bond_class == 0 => "bond too small: takes no circuits",
        Status::Active => "active",
        Status::Draining => "draining: takes no new circuits",
        Status::Unbonding => "leaving: takes no circuits",
    };
    let endpoints: Vec<String> = descriptor.endpoints.iter().map(ToString::to_string).collect();
    say(&format!("record         {hash}"));
    say(&format!("relay          {} {} at {}   {status}", registration.relay_id, descriptor.role, endpoints.join(" ")));
    say(&format!(
        "operator       {}   {} Mbit/s advertised, bond class {}",
        registration.operator, registration.advertised_mbit, registration.bond_class
    ));
    say(&format!("handshake key  {} epoch {}", hex::encode(descriptor.handshake_key), descriptor.key_epoch));
    say("               a circuit to this relay opens with this key or not at all");
}

fn verify_signed(config: &Path, relay_id: u64) -> Result<(), Failure> {
    let (directory, _) = directory_of(config, &folders().state)?;
    let directory = directory.directory();
    say(&believed(directory));
    let relay = directory
        .relay(relay_id)
        .ok_or_else(|| Failure::new(5, format!("relay {relay_id} is not in the directory")))?;
    say(&format!("relay          {} {}   operator {}", relay.relay_id, relay.role, relay.operator));
    say(&format!("handshake key  {} epoch {}", relay.handshake_key, relay.key_epoch));
    say("               a circuit to this relay opens with this key or not at all");
    Ok(())
}

/// How often a mirror looks for news.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);

/// Follows the chain and serves its records until it is ended.
pub(crate) fn mirror(chain: &Path, listen: SocketAddr, checkpoint: Option<PathBuf>) -> Result<(), Failure> {
    let mut mirror = Mirror::new(ChainFile::load(chain).map_err(Failure::plain)?);
    mirror.follow()?;
    let records = Arc::new(Mutex::new(mirror.records().to_vec()));
    let shared = records.clone();
    std::thread::Builder::new()
        .name("mirror".into())
        .spawn(move || {
            let mut silent = true;
            loop {
                std::thread::sleep(FOLLOW_EVERY);
                match mirror.follow() {
                    Ok(()) => {
                        mirror.records().clone_into(&mut shared.lock().unwrap_or_else(PoisonError::into_inner));
                        silent = true;
                    }
                    // Said once, not every second.
                    Err(error) if silent => {
                        talk(&format!("openrelay: warning: the records are those of before: {error}"));
                        silent = false;
                    }
                    Err(_) => {}
                }
            }
        })
        .map_err(Failure::plain)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::plain)?;
    runtime.block_on(async move {
        let listener = tokio::net::TcpListener::bind(listen)
            .await
            .map_err(|error| Failure::plain(format!("cannot listen on {listen}: {error}")))?;
        let address = listener.local_addr().map_err(Failure::plain)?;
        say(&format!("ready url=http://{address}/records"));
        let routes = Router::new()
            .route("/records", get(move || serve(records.clone())))
            .route("/checkpoint", get(move || serve_checkpoint(checkpoint.clone())));
        axum::serve(listener, routes).await.map_err(Failure::plain)
    })
}

#[expect(clippy::unused_async, reason = "axum wants it so")]
async fn serve(records: Arc<Mutex<Vec<u8>>>) -> Response {
    let bytes = records.lock().unwrap_or_else(PoisonError::into_inner).clone();
    if bytes.is_empty() {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    ([("content-type", "application/octet-stream")], bytes).into_response()
}

/// The file as it is now: whoever signs the next one writes it anew.
async fn serve_checkpoint(path: Option<PathBuf>) -> Response {
    let Some(path) = path else { return StatusCode::NOT_FOUND.into_response() };
    match tokio::task::spawn_blocking(move || std::fs::read(path)).await {
        Ok(Ok(bytes)) => ([("content-type", "application/octet-stream")], bytes).into_response(),
        Ok(Err(_)) | Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
