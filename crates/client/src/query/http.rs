//! HTTP over a circuit: connections for `ureq` that do not use the host's network stack.
//!
//! Owns only the translation between the two. `ureq` calls these traits unversioned: any release may change them, so
//! the lock file pins the release.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use smoltcp::iface::SocketHandle;
use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectionDetails, Connector, LazyBuffers, NextTimeout, RustlsConnector, Transport,
};
use ureq::{Agent, Error};

use super::{Ended, Shared};
use openrelay_chain::transport::{PATIENCE, settings};
use openrelay_node::random::OsRandom;

/// Longest wait where `ureq` sets no limit.
const LONGEST: Duration = Duration::from_secs(60);

/// Returns an HTTP client for `url` whose connections go through the circuit. A server on this machine is asked
/// directly, because such a query never leaves the machine.
pub(super) fn agent(shared: &Arc<Shared>, url: &str) -> Agent {
    if is_here(url) {
        return settings(url, PATIENCE).new_agent();
    }
    let through = Through(shared.clone());
    Agent::with_parts(settings(url, PATIENCE), through.clone().chain(RustlsConnector::default()), through)
}

#[derive(Clone)]
struct Through(Arc<Shared>);

/// The endpoint is in a private network. The egress cannot reach it, and must not learn its address.
#[derive(Debug, thiserror::Error)]
#[error("the address is in a private network, which a circuit cannot reach")]
struct NotOutside;

/// Returns whether a URL names this machine by its loopback address.
fn is_here(url: &str) -> bool {
    let host = url.parse::<Uri>().ok().and_then(|uri| uri.host().map(|host| host.trim_matches(['[', ']']).to_owned()));
    let address = host.as_deref().and_then(|host| host.parse::<IpAddr>().ok());
    host.as_deref() == Some("localhost") || address.is_some_and(|address| address.is_loopback())
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => v4.is_private() || v4.is_link_local() || v4.is_loopback() || v4.is_unspecified(),
        IpAddr::V6(v6) => v6.is_unique_local() || v6.is_unicast_link_local() || v6.is_loopback() || v6.is_unspecified(),
    }
}

fn until(timeout: NextTimeout) -> Instant {
    Instant::now() + timeout.not_zero().map_or(LONGEST, |left| (*left).min(LONGEST))
}

fn failed(ended: Ended, timeout: NextTimeout) -> Error {
    match ended {
        Ended::TimedOut => Error::Timeout(timeout.reason),
        Ended::Over(why) => Error::Io(io::Error::new(io::ErrorKind::NotConnected, why)),
    }
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::Io(io::Error::new(io::ErrorKind::ConnectionRefused, error))
}

impl fmt::Debug for Through {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Through(…)")
    }
}

impl Connector<()> for Through {
    type Out = Connection;

    fn connect(&self, details: &ConnectionDetails<'_>, _: Option<()>) -> Result<Option<Connection>, Error> {
        let to = *details.addrs.first().ok_or(Error::HostNotFound)?;
        let handle = self.0.change(|state| state.stack.connect(to, &mut OsRandom::default())).map_err(refused)?;
        let buffers = LazyBuffers::new(details.config.input_buffer_size(), details.config.output_buffer_size());
        // From here on, dropping the connection removes it from the stack.
        let connection = Connection { shared: self.0.clone(), handle, buffers };
        let established = self.0.wait_for(until(details.timeout), |state| {
            let socket = state.stack.connection(handle);
            if socket.may_send() { Some(true) } else { (!socket.is_active()).then_some(false) }
        });
        match established {
            Ok(true) => Ok(Some(connection)),
            Ok(false) => Err(Error::Io(io::ErrorKind::ConnectionRefused.into())),
            Err(ended) => Err(failed(ended, details.timeout)),
        }
    }
}

/// A TCP connection through the circuit.
struct Connection {
    shared: Arc<Shared>,
    handle: SocketHandle,
    buffers: LazyBuffers,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Connection(…)")
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.change(|state| state.stack.finish(self.handle));
    }
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let (handle, deadline) = (self.handle, until(timeout));
        let output = self.buffers.output();
        let mut rest = output.get(..amount).unwrap_or(output);
        while !rest.is_empty() {
            let sent = self.shared.wait_for(deadline, |state| {
                let socket = state.stack.connection(handle);
                if !socket.may_send() {
                    return Some(Err(Error::Io(io::ErrorKind::BrokenPipe.into())));
                }
                socket.send_slice(rest).ok().filter(|sent| *sent > 0).map(Ok)
            });
            let sent = sent.map_err(|ended| failed(ended, timeout))??;
            rest = rest.get(sent..).unwrap_or(&[]);
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let handle = self.handle;
        let room = self.buffers.input_append_buf();
        let received = self.shared.wait_for(until(timeout), |state| {
            let socket = state.stack.connection(handle);
            match socket.recv_slice(room) {
                Ok(0) if socket.may_recv() => None,
                Ok(count) => Some(count),
                // The peer has closed its side.
                Err(_) => Some(0),
            }
        });
        let received = received.map_err(|ended| failed(ended, timeout))?;
        self.buffers.input_appended(received);
        Ok(received > 0)
    }

    fn is_open(&mut self) -> bool {
        let handle = self.handle;
        self.shared.change(|state| {
            let socket = state.stack.connection(handle);
            // A connection with bytes that were not asked for must not be reused.
            socket.may_send() && socket.may_recv() && !socket.can_recv()
        })
    }
}

impl Resolver for Through {
    fn resolve(&self, uri: &Uri, _: &Config, timeout: NextTimeout) -> Result<ResolvedSocketAddrs, Error> {
        let authority = uri.authority().ok_or_else(|| Error::BadUri("it has no host".into()))?;
        let port = authority.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let host = authority.host().trim_matches(['[', ']']);
        let address = match host.parse::<IpAddr>() {
            Ok(address) => address,
            Err(_) => self.look_up(host, timeout)?,
        };
        if is_private(address) {
            return Err(refused(NotOutside));
        }
        let mut found = self.empty();
        found.push(SocketAddr::new(address, port));
        Ok(found)
    }
}

impl Through {
    /// Resolves a host name through the circuit, to IPv4 first, then to IPv6.
    fn look_up(&self, host: &str, timeout: NextTimeout) -> Result<IpAddr, Error> {
        let mut last = Error::HostNotFound;
        for v6 in [false, true] {
            let query = self.0.change(|state| state.stack.ask(host, v6)).map_err(refused)?;
            match self.0.wait_for(until(timeout), |state| state.stack.answer(query)) {
                Ok(Ok(address)) => return Ok(address),
                Ok(Err(unknown)) => last = refused(unknown),
                Err(ended) => {
                    self.0.change(|state| state.stack.forget(query));
                    return Err(failed(ended, timeout));
                }
            }
        }
        Err(last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_private_and_public_addresses_are_distinguished() {
        for url in ["http://127.0.0.1:8545", "http://localhost:8545/x", "https://[::1]:1"] {
            assert!(is_here(url), "{url}");
        }
        for url in ["http://192.168.1.9:8545", "https://rpc.example", "http://203.0.113.1", "nonsense url"] {
            assert!(!is_here(url), "{url}");
        }
        for address in ["10.0.0.1", "192.168.1.9", "172.16.0.1", "169.254.1.1", "fd00::1", "fe80::1", "::"] {
            assert!(is_private(address.parse().unwrap()), "{address}");
        }
        for address in ["203.0.113.1", "2001:db8::1", "172.32.0.1"] {
            assert!(!is_private(address.parse().unwrap()), "{address}");
        }
    }
}
