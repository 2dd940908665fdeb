//! The client side of the control socket: one request, one answer.
//!
//! Owns the paths of the daemon's files. The daemon's side is in `daemon`.

pub(crate) mod objects;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use openrelay_client::host::Folders;

use crate::failure::Failure;

/// Maximum length of an answer, in bytes; the rest is not read.
const MAX_ANSWER: u64 = 1 << 20;

/// Returns the folder of the socket and the log, which a reboot empties.
pub(crate) fn runtime_dir() -> PathBuf {
    std::env::var_os("OPENRELAY_RUNTIME_DIR").map_or_else(|| "/run/openrelay".into(), PathBuf::from)
}

/// Returns the folder of files that outlive a reboot.
pub(crate) fn state_dir() -> PathBuf {
    std::env::var_os("OPENRELAY_STATE_DIR").map_or_else(|| "/var/lib/openrelay".into(), PathBuf::from)
}

/// Returns both folders, for changes to the host.
pub(crate) fn folders() -> Folders {
    Folders { runtime: runtime_dir(), state: state_dir() }
}

/// Returns the path of the daemon's socket.
pub(crate) fn socket() -> PathBuf {
    runtime_dir().join("control.sock")
}

/// Asks the daemon. Returns `None` if there is no daemon, or if it ends before it answers, as a killed one does.
pub(crate) fn ask(method: &str, path: &str) -> Result<Option<serde_json::Value>, Failure> {
    let mut stream = match UnixStream::connect(socket()) {
        Ok(stream) => stream,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            return Ok(None);
        }
        Err(error) => return Err(Failure::new(1, format!("cannot talk to the daemon: {error}"))),
    };
    let request =
        format!("{method} {path} HTTP/1.1\r\nHost: openrelay\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    let mut answer = Vec::new();
    let asked = stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .and_then(|()| stream.write_all(request.as_bytes()))
        .and_then(|()| stream.take(MAX_ANSWER).read_to_end(&mut answer));
    match asked {
        Ok(_) => {}
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            return Ok(None);
        }
        Err(error) => return Err(Failure::new(1, format!("the daemon does not answer: {error}"))),
    }
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or_else(|| Failure::plain("the daemon's answer is malformed"))?;
    if !head.starts_with("HTTP/1.1 200") {
        return Err(Failure::new(1, format!("the daemon refused the request: {}", body.trim())));
    }
    serde_json::from_str(body)
        .map(Some)
        .map_err(|error| Failure::plain(format!("the daemon's answer is malformed: {error}")))
}
