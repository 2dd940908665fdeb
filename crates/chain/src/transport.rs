//! The transport for queries about the chain.
//!
//! Owns the settings of every HTTP request. Queries leave directly from this machine ([`Direct`]) before there is a
//! circuit, and through a separate query circuit once there is one.

use std::sync::Arc;
use std::time::Duration;

use openrelay_proto::handshake::Role;
use openrelay_proto::message::MirrorFile;
use ureq::Agent;
use ureq::config::Config;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

/// Longest time for one query.
pub const PATIENCE: Duration = Duration::from_secs(10);
const CONNECT: Duration = Duration::from_secs(4);

/// A transport to endpoints and mirrors.
pub trait Transport: Send + Sync {
    /// Returns an HTTP client for this URL that follows no redirects and has short timeouts.
    fn agent(&self, url: &str) -> Agent;

    /// Returns the circuit's relays that can be asked for mirrored files, the nearest first.
    fn relays(&self) -> &[Role];

    /// Returns a file that one of them mirrors; empty if it has no such file.
    ///
    /// # Errors
    /// A message about why it did not answer.
    fn fetch(&self, from: Role, file: MirrorFile) -> Result<Vec<u8>, String>;
}

/// Directly from this machine, whose address the endpoint sees.
#[derive(Clone, Copy, Debug)]
pub struct Direct;

impl Transport for Direct {
    fn agent(&self, url: &str) -> Agent {
        settings(url, PATIENCE).new_agent()
    }

    fn relays(&self) -> &[Role] {
        &[]
    }

    fn fetch(&self, _: Role, _: MirrorFile) -> Result<Vec<u8>, String> {
        Err("this transport has no relays".into())
    }
}

/// Downloads from this URL directly from this machine. Returns the headers, and a body of at most `limit` bytes.
///
/// # Errors
/// A message about the failure, with the URL.
pub fn get(url: &str, patience: Duration, limit: u64) -> Result<(ureq::http::HeaderMap, Vec<u8>), String> {
    let fault = |error: ureq::Error| format!("{url}: {error}");
    let mut response = settings(url, patience).new_agent().get(url).call().map_err(fault)?;
    if !response.status().is_success() {
        return Err(format!("{url}: HTTP status {}", response.status()));
    }
    let headers = response.headers().clone();
    Ok((headers, response.body_mut().with_config().limit(limit).read_to_vec().map_err(fault)?))
}

/// Returns the settings for requests to this URL, over any transport.
pub fn settings(url: &str, patience: Duration) -> Config {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // The system's roots, loaded only for HTTPS. TLS hides who asks and what is asked; answers prove themselves.
    let roots = if url.starts_with("https:") { rustls_native_certs::load_native_certs().certs } else { Vec::new() };
    let roots: Vec<Certificate<'static>> = roots.iter().map(|root| Certificate::from_der(root).to_owned()).collect();
    let tls = TlsConfig::builder()
        .root_certs(RootCerts::new_with_certs(&roots))
        .unversioned_rustls_crypto_provider(provider)
        .build();
    Agent::config_builder()
        .timeout_global(Some(patience))
        .timeout_connect(Some(CONNECT))
        .max_redirects(0)
        .http_status_as_error(false)
        .proxy(None)
        .user_agent("")
        .tls_config(tls)
        .build()
}
