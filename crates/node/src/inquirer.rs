//! Asking relays for their evidence, as ordinary clients do: what mirrors collect, and validators look at.
//!
//! Owns one question at a time on a socket of its own. An egress is asked through an ingress, which is asked first. Nothing that is answered is believed here.

use std::collections::BTreeMap;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use openrelay_attest::verdict::Staple;
use openrelay_ledger::record::{Record, Role};
use openrelay_proto::client::{Client, Event, Failure};
use openrelay_proto::message::{Announced, Evidence, EvidenceDigest};
use openrelay_proto::random::array;

use crate::circuit;
use crate::clock::{Clock, unix_minutes};
use crate::directory::VerifiedDirectory;
use crate::random::OsRandom;

/// How long a relay may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a relay has shown nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InquiryError {
    /// It does not answer.
    #[error("it does not answer")]
    Silent,
    /// It says that it has none.
    #[error("it has no evidence")]
    None,
    /// What it shows is no evidence.
    #[error("what it shows does not read: {0}")]
    Malformed(openrelay_attest::Refusal),
    /// This machine has no way to it.
    #[error("this machine cannot ask it")]
    Unreachable,
    /// There is no ingress to ask an egress through.
    #[error("no ingress answers through which it could be asked")]
    NoIngress,
}

/// Asks relays of a directory.
pub struct Inquirer<'a> {
    directory: &'a VerifiedDirectory,
    /// What ingresses have shown, by which they can be gone through.
    ingresses: BTreeMap<u64, EvidenceDigest>,
}

impl<'a> Inquirer<'a> {
    /// One who knows nothing yet.
    pub fn new(directory: &'a VerifiedDirectory) -> Self {
        Self { directory, ingresses: BTreeMap::new() }
    }

    /// What a relay shows.
    ///
    /// # Errors
    /// [`InquiryError`].
    pub fn ask(&mut self, record: &Record) -> Result<Staple, InquiryError> {
        let through = match record.role {
            Role::Ingress => None,
            Role::Egress => Some(self.an_ingress(record)?),
        };
        let shown = self.question(record, through)?;
        let staple = match shown {
            Evidence::Staple(bytes) => Staple::decode(&bytes).map_err(InquiryError::Malformed)?,
            Evidence::Open => return Err(InquiryError::None),
        };
        if record.role == Role::Ingress {
            self.ingresses.insert(record.relay_id, staple.evidence.identity());
        }
        Ok(staple)
    }

    /// An ingress that answers, drawn anew each time, and that may be a hop before this egress.
    fn an_ingress(&mut self, egress: &Record) -> Result<(&'a Record, EvidenceDigest), InquiryError> {
        let all = self.directory.directory().body().relays.iter();
        let mut all: Vec<&Record> =
            all.filter(|record| record.role == Role::Ingress && !record.conflicts_with(egress)).collect();
        let mut random = OsRandom::default();
        while !all.is_empty() {
            let drawn = u64::from_le_bytes(array(&mut random)) % u64::try_from(all.len()).unwrap_or(1);
            let ingress = all.swap_remove(usize::try_from(drawn).unwrap_or(0));
            if let Some(digest) = self.ingresses.get(&ingress.relay_id) {
                return Ok((ingress, *digest));
            }
            match self.question(ingress, None) {
                Ok(Evidence::Staple(bytes)) => {
                    if let Ok(staple) = Staple::decode(&bytes) {
                        let digest = staple.evidence.identity();
                        self.ingresses.insert(ingress.relay_id, digest);
                        return Ok((ingress, digest));
                    }
                }
                Ok(Evidence::Open) => return Ok((ingress, Announced::open().digest)),
                Err(_) => {}
            }
        }
        Err(InquiryError::NoIngress)
    }

    fn question(&self, record: &Record, through: Option<(&Record, EvidenceDigest)>) -> Result<Evidence, InquiryError> {
        let (clock, mut random) = (Clock::start(), OsRandom::default());
        let register = |record: &Record| self.directory.register(record).ok_or(InquiryError::Unreachable);
        let through = through.map(|(record, digest)| Ok((register(record)?, digest))).transpose()?;
        let pick = |endpoints: &[SocketAddr]| endpoints.iter().copied().find(|endpoint| socket_to(*endpoint).is_some());
        let client = circuit::ask_for_evidence(register(record)?, through, pick, clock.now(), &mut random);
        let mut client = client.map_err(|_| InquiryError::Unreachable)?;
        let socket = socket_to(client.remote()).ok_or(InquiryError::Unreachable)?;
        let until = Instant::now() + PATIENCE;
        let mut buffer = vec![0; 65_536];
        while Instant::now() < until {
            while let Some(datagram) = client.poll_transmit() {
                let _ = socket.send(&datagram);
            }
            let rest = client.poll_timeout().since(clock.now()).min(until.saturating_duration_since(Instant::now()));
            // Zero would be for ever.
            let _ = socket.set_read_timeout(Some(rest.max(Duration::from_millis(1))));
            if let Ok(length) = socket.recv(&mut buffer)
                && let Some(datagram) = buffer.get_mut(..length)
            {
                client.handle_datagram(datagram, clock.now(), unix_minutes(), &mut random);
            }
            if client.poll_timeout() <= clock.now() {
                client.handle_timeout(clock.now(), unix_minutes(), &mut random);
            }
            if let Some(answer) = answer(&mut client) {
                client.close(clock.now());
                while let Some(datagram) = client.poll_transmit() {
                    let _ = socket.send(&datagram);
                }
                return answer;
            }
        }
        Err(InquiryError::Silent)
    }
}

fn answer(client: &mut Client) -> Option<Result<Evidence, InquiryError>> {
    while let Some(event) = client.poll_event() {
        match event {
            Event::Failed(Failure::OtherEvidence(_)) => {
                return Some(client.take_shown().ok_or(InquiryError::None));
            }
            Event::Failed(_) | Event::Lost | Event::Connected => return Some(Err(InquiryError::Silent)),
            Event::Mtu(_) => {}
        }
    }
    None
}

/// A socket that talks to this address alone; `None` where there is no way to it.
fn socket_to(remote: SocketAddr) -> Option<UdpSocket> {
    let local: SocketAddr = if remote.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).ok()?;
    socket.connect(remote).ok()?;
    Some(socket)
}
