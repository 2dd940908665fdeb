//! `openrelay mirror`: serves records, evidence and files to clients.
//!
//! Owns the mirror's HTTP routes and what it keeps in memory. A mirror proves nothing itself: clients verify what it
//! serves.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use openrelay_chain::collector::Collector;
use openrelay_chain::mirror::Mirror;
use openrelay_node::chain_file::ChainFile;

use crate::control::folders;
use crate::failure::Failure;
use crate::output::say;
use crate::program::Program;

#[derive(clap::Subcommand)]
pub(crate) enum MirrorCommand {
    /// Follow the chain until stopped; prints one `ready` line
    ///
    /// The `ready` line has the URL.
    Run {
        /// Chain file
        #[arg(long, value_name = "FILE")]
        chain: PathBuf,
        /// Address to serve plain HTTP on
        ///
        /// Clients verify everything that is served, so the connection needs no TLS.
        #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
        listen: SocketAddr,
        /// Signed checkpoint to serve as /checkpoint
        #[arg(long, value_name = "FILE")]
        checkpoint: Option<PathBuf>,
        /// Folder with collateral and image manifests
        ///
        /// They are served with the evidence of all relays as /attestation.
        #[arg(long, value_name = "DIR")]
        files: Option<PathBuf>,
    },
}

/// Runs the command that the arguments name.
pub(crate) fn run(program: &Program, command: MirrorCommand) -> Result<(), Failure> {
    let MirrorCommand::Run { chain, listen, checkpoint, files } = command;
    follow_and_serve(program, &chain, listen, checkpoint, files)
}

/// How often a mirror looks for new blocks.
const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// How often a mirror looks for relays whose evidence it does not have.
const COLLECT_EVERY: Duration = Duration::from_millis(500);
/// After it has made the file of evidence, a mirror rests this many times as long as that took, at most
/// [`LONGEST_REST`]. The file is about 50 MiB in a network of 20,000 relays.
const REST: u32 = 20;
const LONGEST_REST: Duration = Duration::from_secs(5);

/// Follows the chain until the process ends, and serves its records and the data for judging relays.
fn follow_and_serve(
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
                    tracing::warn!("still serving the previous records: {error}");
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
                collector.refused().iter().for_each(|why| tracing::warn!("{why}"));
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
        tracing::warn!("{warning}");
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
