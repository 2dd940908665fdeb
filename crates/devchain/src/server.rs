//! JSON-RPC over HTTP, on loopback or in a test's own network.
//!
//! Owns the socket, the clock, and the empty blocks that are mined as time passes.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};

use crate::faults::Fault;
use crate::rpc::Node;

/// Largest request, in bytes.
const MAX_REQUEST: usize = 4 << 20;
/// Length of the answer that [`Fault::Huge`] sends, in bytes.
const HUGE: u64 = 1 << 30;

type Faults = Arc<Mutex<Vec<Fault>>>;

/// A running server. Dropping it ends it.
#[derive(Debug)]
pub struct Server {
    /// The address on which it listens.
    pub address: SocketAddr,
    /// The node that answers.
    pub node: Arc<Mutex<Node>>,
    faults: Faults,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Returns the URL for clients.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Gives this endpoint exactly these faults. Endpoints that share its node are unaffected.
    pub fn set_faults(&self, faults: Vec<Fault>) {
        *self.faults.lock().unwrap_or_else(PoisonError::into_inner) = faults;
    }

    /// Waits until the server ends.
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Serves `node` on `listener`. With a block time, mines a block at that interval, even an empty one.
///
/// # Errors
/// Fails when the socket or the thread cannot be set up.
pub fn serve(node: Arc<Mutex<Node>>, listener: TcpListener, block_time: Option<Duration>) -> io::Result<Server> {
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (end, ended) = tokio::sync::oneshot::channel();
    let faults = Faults::default();
    let (shared, own) = (node.clone(), faults.clone());
    let thread = std::thread::Builder::new().name("devchain".into()).spawn(move || {
        runtime.block_on(async move {
            if let Some(every) = block_time {
                tokio::spawn(pass_time(shared.clone(), every));
            }
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else { return };
            let routes = Router::new().route("/", post(answer)).with_state((shared, own));
            let served = axum::serve(listener, routes).into_future();
            tokio::select! {
                _ = served => {}
                _ = ended => {}
            }
        });
    })?;
    Ok(Server { address, node, faults, end: Some(end), thread: Some(thread) })
}

fn lock(node: &Mutex<Node>) -> MutexGuard<'_, Node> {
    node.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

async fn pass_time(node: Arc<Mutex<Node>>, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    loop {
        ticks.tick().await;
        let mut node = lock(&node);
        node.tell_time(unix_seconds());
        node.mine();
    }
}

async fn answer(State((node, faults)): State<(Arc<Mutex<Node>>, Faults)>, request: Bytes) -> Response {
    if request.len() > MAX_REQUEST {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    }
    let request = serde_json::from_slice::<Value>(&request);
    // Handled before any fault, so that every fault can be removed.
    if let Ok(request) = &request
        && request["method"] == "devchain_setFaults"
    {
        let wanted = serde_json::from_value(request["params"][0].clone());
        let answer = match wanted {
            Ok(wanted) => {
                *faults.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
                json!({"jsonrpc": "2.0", "id": request["id"], "result": true})
            }
            Err(error) => {
                let error = json!({"code": -32602, "message": error.to_string()});
                json!({"jsonrpc": "2.0", "id": request["id"], "error": error})
            }
        };
        return axum::Json(answer).into_response();
    }
    let faults = faults.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let answer = {
        let mut node = lock(&node);
        node.tell_time(unix_seconds());
        node.set_faults(faults.clone());
        let answer = match &request {
            Ok(request) => node.handle(request),
            Err(_) => json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32700, "message": "parse error"}}),
        };
        node.set_faults(Vec::new());
        answer
    };
    let mut text = answer.to_string();
    for fault in &faults {
        match fault {
            Fault::Down => return StatusCode::SERVICE_UNAVAILABLE.into_response(),
            Fault::Slow { ms } => tokio::time::sleep(Duration::from_millis(*ms)).await,
            Fault::Truncated => text.truncate(text.len() / 2),
            Fault::Huge => return huge(),
            Fault::StaleHead { .. }
            | Fault::OtherChain { .. }
            | Fault::ForgedHeader
            | Fault::ForgedBlock { .. }
            | Fault::LiesAbout { .. }
            | Fault::ForgedProof
            | Fault::NoProof
            | Fault::ProofWindow0
            | Fault::NullForError
            | Fault::StuckBaseFee { .. }
            | Fault::RangeLimit { .. }
            | Fault::EventLimit { .. }
            | Fault::ForeignEvents
            | Fault::DropTransactions => {}
        }
    }
    ([("content-type", "application/json")], text).into_response()
}

/// Returns an answer that is longer than any client should read.
fn huge() -> Response {
    const PIECE: usize = 1 << 16;
    let pieces = HUGE / PIECE as u64;
    let body = Body::from_stream(Pieces { left: pieces, piece: Bytes::from(vec![b' '; PIECE]) });
    ([("content-type", "application/json")], body).into_response()
}

struct Pieces {
    left: u64,
    piece: Bytes,
}

impl futures_core::Stream for Pieces {
    type Item = io::Result<Bytes>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        let next = self.left.checked_sub(1);
        self.left = next.unwrap_or(0);
        std::task::Poll::Ready(next.map(|_| Ok(self.piece.clone())))
    }
}
