//! A relay's evidence over time: made at the start, made anew before it is old, announced once others have had time to collect it.
//!
//! Owns when. What is old is not shown: then the relay says that it is not ready, and announces none, which no client takes.

use std::time::{Duration, Instant};

use openrelay_attest::binding::Binding;
use openrelay_attest::verdict::Staple;
use openrelay_ledger::chain::header::Header;
use openrelay_node::clock::unix_seconds;
use openrelay_node::directory::VerifiedDirectory;
use openrelay_proto::message::{Announced, Evidence};

use crate::quoter::{QuoteError, Quoting};

/// How long an environment may take for the first evidence: those of TDX ask another machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// How old the block in evidence may get before it is made anew, in seconds. Clients take six hours; a chain with a block every two seconds can tell of four and a half.
const RENEW: u64 = 7_200;
/// How old it may be shown, in seconds.
const TOO_OLD: u64 = 4 * 3_600;
/// How long new evidence is shown to who asks before it is announced to who connects: by then mirrors have it, and clients have judged it.
const COLLECTED: Duration = Duration::from_secs(180);

/// What the evidence is bound to, but for the block.
pub(crate) struct Own {
    pub(crate) relay_id: u64,
    pub(crate) handshake_key: [u8; 32],
    pub(crate) image: [u8; 32],
}

/// The evidence of a relay that serves.
pub(crate) struct Attesting {
    own: Own,
    quoting: Quoting,
    /// What is shown, and the time of the block in it, in seconds since the Unix epoch.
    shown: Announced,
    block_time: u64,
    /// The time of the block in what is being made.
    making: Option<u64>,
    /// When what is shown is announced too, if it is not yet.
    announce_at: Option<Instant>,
    announced: [u8; 32],
    ready: bool,
}

impl Attesting {
    /// Makes the first evidence, bound to the block of this directory.
    pub(crate) fn start(mut quoting: Quoting, own: Own, directory: &VerifiedDirectory) -> Result<Self, QuoteError> {
        let (binding, block_time) =
            bind(&own, directory).ok_or_else(|| QuoteError::Environment("the directory names no such relay".into()))?;
        let shown = announced(&quoting.ask_and_wait(&binding, PATIENCE)?);
        let announced = shown.digest;
        Ok(Self { own, quoting, shown, block_time, making: None, announce_at: None, announced, ready: true })
    }

    /// What the relay announces and shows now.
    pub(crate) fn now(&self) -> Announced {
        if self.ready {
            Announced { digest: self.announced, shown: self.shown.shown.clone() }
        } else {
            Announced::open()
        }
    }

    /// Takes in a newer directory: has evidence made anew when its block has become old.
    pub(crate) fn follow(&mut self, directory: &VerifiedDirectory) {
        let Some((binding, time)) = bind(&self.own, directory) else { return };
        if time >= self.block_time.saturating_add(RENEW) && self.making.is_none() && self.quoting.ask(&binding) {
            self.making = Some(time);
        }
    }

    /// What to wait for.
    pub(crate) fn readable(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.quoting.readable()
    }

    /// Takes in what is there to read; whether what is announced or shown has changed, or why there is nothing new.
    pub(crate) fn take(&mut self) -> Result<bool, QuoteError> {
        let Some(answer) = self.quoting.take() else { return Ok(false) };
        let making = self.making.take();
        let (staple, Some(time)) = (answer?, making) else { return Ok(false) };
        self.shown = announced(&staple);
        self.block_time = time;
        self.announce_at = Some(Instant::now() + COLLECTED);
        if !self.ready {
            // What was announced before is too old for anybody.
            self.announce_at = Some(Instant::now());
        }
        Ok(true)
    }

    /// Does what is due; whether what is announced or shown has changed.
    pub(crate) fn handle_timeout(&mut self) -> bool {
        let before = (self.announced, self.ready);
        if self.announce_at.is_some_and(|at| at <= Instant::now()) {
            self.announce_at = None;
            self.announced = self.shown.digest;
        }
        self.ready = unix_seconds() <= self.block_time.saturating_add(TOO_OLD);
        before != (self.announced, self.ready)
    }

    /// Whether there is evidence that is young enough.
    pub(crate) fn is_ready(&self) -> bool {
        self.ready
    }

    /// How long until something is due.
    pub(crate) fn rest(&self) -> Duration {
        let announce = self.announce_at.map(|at| at.saturating_duration_since(Instant::now()));
        let left = self.block_time.saturating_add(TOO_OLD + 1).saturating_sub(unix_seconds());
        let old = if self.ready { Duration::from_secs(left) } else { Duration::from_secs(3_600) };
        announce.map_or(old, |announce| announce.min(old))
    }
}

fn announced(staple: &Staple) -> Announced {
    Announced { digest: staple.evidence.identity(), shown: Evidence::Staple(staple.encode()) }
}

/// What evidence is bound to by this directory, with the time of its block.
fn bind(own: &Own, directory: &VerifiedDirectory) -> Option<(Binding, u64)> {
    let record = directory.directory().relay(own.relay_id)?;
    let header = Header::decode(&directory.reading()?.header).ok()?;
    let roles = match record.role {
        openrelay_ledger::record::Role::Ingress => 1,
        openrelay_ledger::record::Role::Egress => 2,
    };
    let binding = Binding {
        network: directory.directory().network_id(),
        relay_id: own.relay_id,
        handshake_key: own.handshake_key,
        key_epoch: record.key_epoch,
        roles,
        image: own.image,
        block_hash: header.hash.0,
        block_height: header.number,
    };
    Some((binding, header.timestamp))
}
