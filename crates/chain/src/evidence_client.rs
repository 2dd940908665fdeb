//! Asks relays for their evidence the same way as ordinary clients do. Mirrors collect the answers, and validators
//! check them.
//!
//! Owns one query on a socket of its own. An egress is queried through an ingress, which is queried first. Never
//! trusts an answer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use openrelay_attest::verdict::Staple;
use openrelay_ledger::record::{Record, Role};
use openrelay_node::clock::Clock;
use openrelay_node::directory::VerifiedDirectory;
use openrelay_node::driver::{Driver, NoPort};
use openrelay_node::random::OsRandom;
use openrelay_proto::client::{Event, Failure};
use openrelay_proto::message::{Announced, Evidence, EvidenceDigest};
use openrelay_proto::random::array;
use openrelay_sys::event::wait;
use openrelay_sys::udp::{self, UdpSocket};

use crate::circuit;

/// How long a relay may take to answer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(5);

/// Why a relay has shown no evidence.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InquiryError {
    /// The relay did not answer in time.
    #[error("the relay does not answer")]
    Silent,
    /// The relay reports that it has no evidence.
    #[error("the relay has no evidence")]
    None,
    /// The relay's evidence cannot be parsed.
    #[error("the relay's evidence is malformed: {0}")]
    Malformed(openrelay_attest::Refusal),
    /// This machine cannot open a circuit to the relay, or cannot reach it.
    #[error("this machine cannot reach the relay")]
    Unreachable,
    /// No ingress answers, so the egress cannot be asked.
    #[error("no ingress answers, so the egress cannot be asked")]
    NoIngress,
}

/// Asks one relay for its evidence.
pub(crate) trait Ask: Sync {
    /// Returns the evidence that a relay shows. An egress is asked through an ingress that has shown evidence with
    /// this digest.
    ///
    /// # Errors
    /// [`InquiryError`].
    fn ask(&self, relay: &Record, through: Option<(&Record, EvidenceDigest)>) -> Result<Evidence, InquiryError>;
}

/// The relays of a directory, asked over the network.
pub(crate) struct Network<'a>(pub(crate) &'a VerifiedDirectory);

impl Ask for Network<'_> {
    fn ask(&self, record: &Record, through: Option<(&Record, EvidenceDigest)>) -> Result<Evidence, InquiryError> {
        let (clock, mut random) = (Clock::start(), OsRandom::default());
        let register = |record: &Record| self.0.register(record).ok_or(InquiryError::Unreachable);
        let through = through.map(|(record, digest)| Ok((register(record)?, digest))).transpose()?;
        let pick = |endpoints: &[SocketAddr]| endpoints.iter().copied().find(|endpoint| socket_to(*endpoint).is_some());
        let client = circuit::ask_for_evidence(register(record)?, through, pick, clock.now(), &mut random);
        let client = client.map_err(|_| InquiryError::Unreachable)?;
        let socket = socket_to(client.remote()).ok_or(InquiryError::Unreachable)?;
        let mut driver = Driver::new(client, socket, clock);
        let until = Instant::now() + PATIENCE;
        let mut buffer = vec![0; udp::TRAIN];
        while Instant::now() < until {
            driver.turn();
            if let Some(answer) = answer(&mut driver) {
                driver.close();
                return answer;
            }
            let rest = driver.rest().min(until.saturating_duration_since(Instant::now()));
            // An error here can only be a bug in this program. The loop then goes on with its timeouts alone.
            let ready = wait(&[driver.socket().as_fd()], rest).unwrap_or_default();
            if ready[0] {
                driver.receive(&mut buffer, &mut NoPort);
            }
        }
        Err(InquiryError::Silent)
    }
}

/// Asks relays of a directory one after the other, and remembers which ingresses answer.
pub struct EvidenceClient<'a> {
    directory: &'a VerifiedDirectory,
    /// Digests of the evidence that ingresses have shown; egresses are asked through them. `None` for a silent
    /// ingress.
    ingresses: BTreeMap<u64, Option<EvidenceDigest>>,
}

impl<'a> EvidenceClient<'a> {
    /// Returns a client that has queried no relay yet.
    pub fn new(directory: &'a VerifiedDirectory) -> Self {
        Self { directory, ingresses: BTreeMap::new() }
    }

    /// Returns the evidence that a relay shows.
    ///
    /// # Errors
    /// [`InquiryError`].
    pub fn ask(&mut self, record: &Record) -> Result<Staple, InquiryError> {
        let through = match record.role {
            Role::Ingress => None,
            Role::Egress => Some(self.an_ingress(record)?),
        };
        let shown = Network(self.directory).ask(record, through);
        if record.role == Role::Ingress {
            self.ingresses.insert(record.relay_id, digest_of(&shown));
        }
        staple_of(shown)
    }

    /// Returns an ingress that answers and may share a circuit with this egress, drawn at random each time.
    fn an_ingress(&mut self, egress: &Record) -> Result<(&'a Record, EvidenceDigest), InquiryError> {
        let all = self.directory.directory().body().relays.iter();
        let mut all: Vec<&Record> =
            all.filter(|record| record.role == Role::Ingress && !record.conflicts_with(egress)).collect();
        while let Some(ingress) = draw(&mut all) {
            let network = Network(self.directory);
            let ask = || digest_of(&network.ask(ingress, None));
            if let Some(digest) = *self.ingresses.entry(ingress.relay_id).or_insert_with(ask) {
                return Ok((ingress, digest));
            }
        }
        Err(InquiryError::NoIngress)
    }
}

/// Removes and returns a random element.
pub(crate) fn draw<T>(all: &mut Vec<T>) -> Option<T> {
    let drawn = u64::from_le_bytes(array(&mut OsRandom::default())).checked_rem(u64::try_from(all.len()).ok()?)?;
    Some(all.swap_remove(usize::try_from(drawn).ok()?))
}

/// Returns the digest with which an egress can be queried through an ingress that has shown this evidence.
pub(crate) fn digest_of(shown: &Result<Evidence, InquiryError>) -> Option<EvidenceDigest> {
    match shown {
        Ok(Evidence::Staple(bytes)) => Staple::decode(bytes).ok().map(|staple| staple.evidence.identity()),
        Ok(Evidence::Open) => Some(Announced::open().digest),
        Err(_) => None,
    }
}

/// Returns the evidence in what a relay has shown.
pub(crate) fn staple_of(shown: Result<Evidence, InquiryError>) -> Result<Staple, InquiryError> {
    match shown? {
        Evidence::Staple(bytes) => Staple::decode(&bytes).map_err(InquiryError::Malformed),
        Evidence::Open => Err(InquiryError::None),
    }
}

fn answer(driver: &mut Driver) -> Option<Result<Evidence, InquiryError>> {
    while let Some(event) = driver.poll_event() {
        match event {
            Event::Failed(Failure::OtherEvidence(_)) => {
                return Some(driver.client().take_shown().ok_or(InquiryError::None));
            }
            Event::Failed(_) | Event::Lost | Event::Connected => return Some(Err(InquiryError::Silent)),
            Event::Mtu(_) => {}
        }
    }
    None
}

/// Returns a socket for datagrams to this address; `None` if there is no route to it.
fn socket_to(remote: SocketAddr) -> Option<UdpSocket> {
    let local: SocketAddr = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    std::net::UdpSocket::bind(local).ok()?.connect(remote).ok()?;
    UdpSocket::bind(local, false).ok()
}
