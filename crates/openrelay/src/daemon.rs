//! The daemon: one connection and its control socket.
//!
//! Owns the routes that `openapi.json` describes: `GET /v1/status`, `POST /v1/rekey`, `POST /v1/down`. It never
//! checks itself who asks: the socket's owner, group and mode (0660) decide who may connect. The kernel enforces them
//! and knows all groups of a process, which SO_PEERCRED does not.

use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use openrelay_client::{Connection, Facts, Options};
use openrelay_ledger::directory::Source;
use tokio::net::UnixListener;
use tokio::sync::Notify;

use crate::control::objects::{self, CircuitV1, DirectoryProofV1, DownV1, HopV1, RekeyV1, StatusV1, TrafficV1};
use crate::control::{folders, runtime_dir, socket};
use crate::failure::Failure;
use crate::program::Program;
use crate::up::UpArguments;

/// How long the first connection may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// The routes, exactly as the OpenAPI file must list them.
const STATUS: &str = "/v1/status";
const REKEY: &str = "/v1/rekey";
const DOWN: &str = "/v1/down";

/// The group whose members may use the control socket.
const GROUP: &str = "openrelay";

struct Daemon {
    connection: Mutex<Option<Connection>>,
    since: Mutex<Option<Instant>>,
    down: Notify,
}

/// Connects and serves the control socket until the daemon is told to stop.
pub(crate) fn run(program: &Program, arguments: &UpArguments) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::plain)?;
    runtime.block_on(serve(program, arguments))
}

async fn serve(program: &Program, arguments: &UpArguments) -> Result<(), Failure> {
    let listener = listen()?;
    let daemon = Arc::new(Daemon { connection: Mutex::new(None), since: Mutex::new(None), down: Notify::new() });
    let app = Router::new()
        .route(STATUS, get(status))
        .route(REKEY, post(rekey))
        .route(DOWN, post(down))
        .with_state(daemon.clone());
    let server = tokio::spawn(async move {
        // Ends with the process.
        let _ = axum::serve(listener, app).await;
    });
    let result = connect_and_wait(program, arguments, &daemon).await;
    server.abort();
    let _ = std::fs::remove_file(socket());
    let connection = daemon.connection.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(connection) = connection {
        let counts = connection.close()?;
        let counts = serde_json::to_string(&TrafficV1::from(&counts)).map_err(Failure::plain)?;
        tracing::info!("down; {counts}");
    }
    result
}

fn listen() -> Result<UnixListener, Failure> {
    std::fs::create_dir_all(runtime_dir()).map_err(|error| {
        Failure::new(77, format!("cannot create {}: {error}; run as root", runtime_dir().display()))
    })?;
    let path = socket();
    if std::os::unix::net::UnixStream::connect(&path).is_ok() {
        return Err(Failure::plain("a daemon is already running; see: openrelay status"));
    }
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path)
        .map_err(|error| Failure::plain(format!("cannot listen on {}: {error}", path.display())))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o660)).map_err(Failure::plain)?;
    // The group's members may ask without root, if the host has such a group and this process may assign the socket
    // to it.
    if let Some(group) = std::fs::read_to_string("/etc/group").ok().and_then(|groups| number_of(&groups, GROUP)) {
        let _ = std::os::unix::fs::chown(&path, None, Some(group));
    }
    Ok(listener)
}

/// Returns the ID of a group. Source: group(5).
fn number_of(groups: &str, name: &str) -> Option<u32> {
    let mut lines = groups.lines().map(|line| line.split(':'));
    lines.find_map(|mut fields| (fields.next() == Some(name)).then(|| fields.nth(1))?)?.parse().ok()
}

async fn connect_and_wait(program: &Program, arguments: &UpArguments, daemon: &Arc<Daemon>) -> Result<(), Failure> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(Failure::plain)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Failure::plain)?;
    let options = Options { one_hop: arguments.one_hop, folders: folders(), standard: program.standard.clone() };
    let config = arguments.config.clone();
    let connecting = tokio::task::spawn_blocking(move || Connection::open(&config, &options, PATIENCE));
    let connection = connecting.await.map_err(Failure::plain)??;
    if let Some(warning) = &connection.facts.warning {
        tracing::warn!("{warning}");
    }
    tracing::info!("connected in {} ms through {}", connection.facts.setup_ms, path(&connection.facts));
    *daemon.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    *daemon.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        () = daemon.down.notified() => {}
    }
    Ok(())
}

/// Returns the hops in words.
fn path(facts: &Facts) -> String {
    match facts.ingress {
        Some(ingress) => format!("ingress {ingress} and egress {}", facts.egress),
        None => format!("egress {} alone (ONE HOP: it sees your address)", facts.egress),
    }
}

async fn status(State(daemon): State<Arc<Daemon>>) -> Json<StatusV1> {
    let since = *daemon.since.lock().unwrap_or_else(PoisonError::into_inner);
    let connection = daemon.connection.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(connection) = connection.as_ref() else {
        return Json(StatusV1::new(objects::State::Connecting, None));
    };
    let state = if connection.is_lost() { objects::State::Blocked } else { objects::State::Connected };
    Json(StatusV1::new(state, Some(circuit(connection, since))))
}

/// Returns the status of a connection that carried its first packet at `since`.
fn circuit(connection: &Connection, since: Option<Instant>) -> CircuitV1 {
    let facts = &connection.facts;
    let refreshed = connection.refreshed();
    let (sequence, source) =
        refreshed.as_ref().map_or((facts.sequence, facts.source), |known| (known.sequence, known.source));
    CircuitV1 {
        hops: if facts.ingress.is_some() { 2 } else { 1 },
        ingress: facts.ingress,
        egress: facts.egress,
        network: facts.network.clone(),
        directory: match source {
            Source::Signed => "file".into(),
            Source::Chain(_) => "chain".into(),
        },
        directory_sequence: sequence,
        directory_proof: DirectoryProofV1::of(source),
        directory_read_s: refreshed.as_ref().and_then(|known| known.read_at).map(|at| at.elapsed().as_secs()),
        directory_warning: refreshed.as_ref().and_then(|known| known.warning.clone()),
        insecure: facts.insecure,
        hops_listed: refreshed.as_ref().map(|known| known.hops_listed),
        single_operator: facts.single_operator,
        admission: facts.admission.into(),
        attestation: crate::findings::attestation(&facts.attested).into(),
        evidence: facts.attested.iter().map(HopV1::from).collect(),
        refused: refreshed.as_ref().and_then(|known| known.refused.clone()),
        program: refreshed.as_ref().and_then(|known| known.program).map(|state| crate::findings::state(state).into()),
        device: facts.device.clone(),
        mtu: connection.mtu(),
        setup_ms: facts.setup_ms,
        connected_s: since.map(|since| since.elapsed().as_secs()),
        traffic: TrafficV1::from(&connection.counts()),
    }
}

async fn rekey(State(daemon): State<Arc<Daemon>>) -> Response {
    match daemon.connection.lock().unwrap_or_else(PoisonError::into_inner).as_ref() {
        Some(connection) => {
            connection.rekey();
            Json(RekeyV1 { schema: "openrelay.rekey/1".into(), started: true }).into_response()
        }
        None => (StatusCode::CONFLICT, "not connected").into_response(),
    }
}

async fn down(State(daemon): State<Arc<Daemon>>) -> Json<DownV1> {
    daemon.down.notify_one();
    Json(DownV1 { schema: "openrelay.down/1".into(), stopping: true })
}

#[cfg(test)]
mod tests {
    use schemars::SchemaGenerator;
    use schemars::generate::SchemaSettings;

    use super::*;

    #[test]
    fn group_is_found_by_its_exact_name() {
        let groups = "root:x:0:\nopenrelayers:x:7:\nopenrelay:x:991:anna,ben\n";
        assert_eq!((number_of(groups, "openrelay"), number_of(groups, "nobody")), (Some(991), None));
    }

    fn openapi_file() -> serde_json::Value {
        serde_json::from_str(include_str!("../openapi.json")).unwrap()
    }

    #[test]
    fn openapi_file_lists_exactly_the_served_routes() {
        let mut listed = Vec::new();
        let file = openapi_file();
        for (path, methods) in file["paths"].as_object().unwrap() {
            for method in methods.as_object().unwrap().keys() {
                listed.push((method.as_str(), path.as_str()));
            }
        }
        listed.sort_unstable();
        let routes = [("get", STATUS), ("post", DOWN), ("post", REKEY)];
        assert_eq!(listed, routes);
    }

    #[test]
    fn openapi_file_has_the_schemas_of_the_types() {
        let settings = SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        });
        let mut generator = SchemaGenerator::new(settings);
        generator.subschema_for::<StatusV1>();
        generator.subschema_for::<RekeyV1>();
        generator.subschema_for::<DownV1>();
        let schemas = serde_json::Value::from(generator.take_definitions(true));
        let text = serde_json::to_string_pretty(&schemas).unwrap();
        assert!(
            openapi_file()["components"]["schemas"] == schemas,
            "write into openapi.json as components.schemas: {text}"
        );
    }
}
