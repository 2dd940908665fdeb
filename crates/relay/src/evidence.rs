//! A relay's evidence over time: made at the start, renewed before it is old, and announced once others have
//! collected it.
//!
//! Owns the times. Evidence that is too old is not shown. The relay then reports that it is not ready and announces
//! none, so no client accepts it.

use std::time::{Duration, Instant};

use openrelay_attest::binding::Binding;
use openrelay_attest::file::AttestationFile;
use openrelay_attest::verdict::{OFFLINE, Staple};
use openrelay_ledger::chain::header::Header;
use openrelay_ledger::chain::reading::Trust;
use openrelay_node::clock::unix_seconds;
use openrelay_node::directory::VerifiedDirectory;
use openrelay_proto::message::{Announced, Evidence, EvidenceDigest};

use crate::quoter::{QuoteError, Quoting};

/// How long an environment may take for the first evidence. TDX environments query another machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// The age in seconds at which the block in evidence is replaced by a newer one. Clients accept up to six hours. A
/// chain with a block every two seconds can prove blocks of up to four and a half hours.
const RENEW: u64 = 7_200;
/// How much older than the newest known block the block in shown evidence may be, in seconds.
const TOO_OLD: u64 = 4 * 3_600;
/// How long new evidence is only shown on request before it is announced to clients that connect. In this time
/// mirrors fetch it, and clients judge it.
const COLLECTED: Duration = Duration::from_secs(180);

/// What the evidence is bound to, apart from the block.
pub(crate) struct Own {
    pub(crate) relay_id: u64,
    pub(crate) handshake_key: [u8; 32],
    pub(crate) image: [u8; 32],
    pub(crate) trust: Trust,
}

/// The evidence of a serving relay.
pub(crate) struct Attesting {
    own: Own,
    quoting: Quoting,
    /// The evidence that is shown on request.
    shown: Announced,
    /// Height and hash of the block in the shown evidence.
    bound: (u64, [u8; 32]),
    /// The time of the block in the evidence that is being made, and since when.
    making: Option<(u64, Instant)>,
    /// Whether the delay of this evidence was reported.
    told: bool,
    timeline: Timeline,
}

impl Attesting {
    /// Makes the first evidence, bound to a block that this directory's reading proves.
    pub(crate) fn start(mut quoting: Quoting, own: Own, directory: &VerifiedDirectory) -> Result<Self, QuoteError> {
        let (binding, block_time, _) = bind(&own, directory, None).ok_or(QuoteError::NoBlock)?;
        let shown = announced(&quoting.ask_and_wait(&binding, PATIENCE)?);
        let bound = (binding.block_height, binding.block_hash);
        let timeline = Timeline::new(shown.digest, block_time, directory.directory().body().issued);
        Ok(Self { own, quoting, shown, bound, making: None, told: false, timeline })
    }

    /// Returns what the relay announces and shows at present.
    pub(crate) fn now(&self) -> Announced {
        if self.timeline.ready {
            Announced { digest: self.timeline.announced, shown: self.shown.shown.clone() }
        } else {
            Announced::open()
        }
    }

    /// Takes a newer directory, and requests new evidence if the block of the present evidence is old or gone.
    pub(crate) fn follow(&mut self, directory: &VerifiedDirectory) {
        self.timeline.know(directory.directory().body().issued);
        let Some((binding, time, gone)) = bind(&self.own, directory, Some(self.bound)) else { return };
        if (gone || self.timeline.is_renewed_by(time)) && self.making.is_none() && self.quoting.ask(&binding) {
            (self.making, self.told) = (Some((time, Instant::now())), false);
        }
    }

    /// Returns what to wait for.
    pub(crate) fn readable(&self) -> Option<std::os::fd::BorrowedFd<'_>> {
        self.quoting.readable()
    }

    /// Reads an answer. Returns whether the announced or shown evidence has changed.
    ///
    /// # Errors
    /// [`QuoteError`] if there is no new evidence.
    pub(crate) fn take(&mut self) -> Result<bool, QuoteError> {
        let Some(answer) = self.quoting.take() else { return Ok(false) };
        let making = self.making.take();
        let (staple, Some((time, _))) = (answer?, making) else { return Ok(false) };
        self.shown = announced(&staple);
        self.bound = (staple.binding.block_height, staple.binding.block_hash);
        self.timeline.renew(self.shown.digest, time, Instant::now());
        Ok(true)
    }

    /// Does what is due. Returns whether the announced or shown evidence has changed.
    pub(crate) fn handle_timeout(&mut self) -> bool {
        self.timeline.advance(Instant::now(), unix_seconds())
    }

    /// Returns how long the environment has been silent if that is too long; reported once for each request.
    pub(crate) fn overdue(&mut self) -> Option<Duration> {
        let silent = self.making?.1.elapsed();
        (silent > PATIENCE && !std::mem::replace(&mut self.told, true)).then_some(silent)
    }

    /// Returns whether there is evidence that is recent enough.
    pub(crate) fn is_ready(&self) -> bool {
        self.timeline.ready
    }

    /// Returns the time until something is due.
    pub(crate) fn rest(&self) -> Duration {
        let rest = self.timeline.rest(Instant::now(), unix_seconds());
        match self.making.filter(|_| !self.told) {
            Some((_, since)) => rest.min((PATIENCE + Duration::from_secs(1)).saturating_sub(since.elapsed())),
            None => rest,
        }
    }
}

/// When evidence is made, announced and withdrawn. Times of blocks are in seconds since the Unix epoch.
struct Timeline {
    /// The time of the newest known block.
    known: u64,
    /// The time of the block in the newest evidence, and that evidence's digest.
    block_time: u64,
    newest: EvidenceDigest,
    /// The announced evidence, and the time of its block.
    announced: EvidenceDigest,
    announced_time: u64,
    /// When the newest evidence will be announced; `None` if it is announced.
    announce_at: Option<Instant>,
    ready: bool,
}

impl Timeline {
    const fn new(digest: EvidenceDigest, block_time: u64, known: u64) -> Self {
        Self {
            known,
            block_time,
            newest: digest,
            announced: digest,
            announced_time: block_time,
            announce_at: None,
            ready: true,
        }
    }

    /// Notes that a block of this time exists.
    fn know(&mut self, time: u64) {
        self.known = self.known.max(time);
    }

    /// Returns whether a block of this time is new enough to renew the evidence.
    const fn is_renewed_by(&self, time: u64) -> bool {
        time >= self.block_time.saturating_add(RENEW)
    }

    /// Notes newer evidence.
    fn renew(&mut self, digest: EvidenceDigest, block_time: u64, now: Instant) {
        (self.newest, self.block_time) = (digest, block_time);
        // If the announced evidence is too old for clients, the new one is announced at once.
        self.announce_at = Some(if self.ready { now + COLLECTED } else { now });
    }

    /// Advances to this time. Returns whether the announced evidence or readiness has changed.
    fn advance(&mut self, now: Instant, unix: u64) -> bool {
        let before = (self.announced, self.ready);
        if self.announce_at.is_some_and(|at| at <= now) {
            self.announce_at = None;
            (self.announced, self.announced_time) = (self.newest, self.block_time);
        }
        // While no newer block is known, clients accept evidence with the newest one for longer.
        self.ready = self.left(unix) > 0;
        before != (self.announced, self.ready)
    }

    /// Returns for how many more seconds the announced evidence can be used.
    const fn left(&self, unix: u64) -> u64 {
        if self.known > self.announced_time.saturating_add(TOO_OLD) {
            return 0;
        }
        self.known.saturating_add(OFFLINE + 1).saturating_sub(unix)
    }

    fn rest(&self, now: Instant, unix: u64) -> Duration {
        let announce = self.announce_at.map(|at| at.saturating_duration_since(now));
        let old = Duration::from_secs(if self.ready { self.left(unix) } else { 3_600 });
        announce.map_or(old, |announce| announce.min(old))
    }
}

fn announced(staple: &Staple) -> Announced {
    Announced { digest: staple.evidence.identity(), shown: Evidence::Staple(staple.encode()) }
}

/// Returns what evidence should be bound to by this directory: the newest block that evidence can name. Also returns
/// the time of that block, and whether a reorganisation that is deeper than expected has removed the block of
/// `before`.
fn bind(own: &Own, directory: &VerifiedDirectory, before: Option<(u64, [u8; 32])>) -> Option<(Binding, u64, bool)> {
    let record = directory.directory().relay(own.relay_id)?;
    let reading = directory.reading()?;
    let blocks = reading.voted(&own.trust).ok()?.blocks;
    let (height, hash) = blocks.last_key_value().map(|(height, hash)| (*height, *hash))?;
    let headers = AttestationFile::without_evidence(&reading.attestation).ok()?.headers;
    let mut headers = headers.iter().filter_map(|rlp| Header::decode(rlp).ok());
    let header = headers.find(|header| (header.number, header.hash) == (height, hash))?;
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
    let other = |(height, hash)| blocks.get(&height).is_some_and(|now| *now != hash);
    Some((binding, header.timestamp, before.is_some_and(other)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: EvidenceDigest = [1; 32];
    const NEW: EvidenceDigest = [2; 32];
    const BLOCK: u64 = 1_800_000_000;

    #[test]
    fn evidence_is_renewed_and_announced_once_others_have_it() {
        let start = Instant::now();
        let mut timeline = Timeline::new(OLD, BLOCK, BLOCK);
        assert!(!timeline.is_renewed_by(BLOCK + RENEW - 1) && timeline.is_renewed_by(BLOCK + RENEW));
        timeline.renew(NEW, BLOCK + RENEW, start);
        assert!(!timeline.is_renewed_by(BLOCK + RENEW), "not twice for one block");
        let unix = BLOCK + RENEW + 10;
        assert!(!timeline.advance(start + COLLECTED - Duration::from_millis(1), unix));
        assert_eq!((timeline.announced, timeline.rest(start, unix)), (OLD, COLLECTED));
        assert!(timeline.advance(start + COLLECTED, unix));
        assert_eq!((timeline.announced, timeline.ready), (NEW, true));
        assert!(!timeline.advance(start + COLLECTED * 2, unix), "nothing changes after that");
    }

    #[test]
    fn old_evidence_is_withdrawn_and_newer_is_announced_at_once() {
        let start = Instant::now();
        let mut timeline = Timeline::new(OLD, BLOCK, BLOCK);
        timeline.know(BLOCK + TOO_OLD);
        assert!(!timeline.advance(start, BLOCK + TOO_OLD) && timeline.ready);
        timeline.know(BLOCK + TOO_OLD + 1);
        assert!(timeline.advance(start, BLOCK + TOO_OLD + 1) && !timeline.ready);
        timeline.renew(NEW, BLOCK + TOO_OLD, start);
        assert!(timeline.advance(start, BLOCK + TOO_OLD + 2));
        assert_eq!((timeline.announced, timeline.ready), (NEW, true));
    }

    /// Readiness depends on the announced evidence, because connecting clients use that one.
    #[test]
    fn relay_is_not_ready_while_it_announces_old_evidence() {
        let start = Instant::now();
        let mut timeline = Timeline::new(OLD, BLOCK, BLOCK);
        timeline.renew(NEW, BLOCK + TOO_OLD, start);
        timeline.know(BLOCK + TOO_OLD + 1);
        assert!(timeline.advance(start, BLOCK + TOO_OLD + 1) && !timeline.ready);
        assert!(timeline.advance(start + COLLECTED, BLOCK + TOO_OLD + 200) && timeline.ready);
    }

    #[test]
    fn relay_serves_for_72_hours_by_the_newest_known_block() {
        let start = Instant::now();
        let mut timeline = Timeline::new(OLD, BLOCK, BLOCK + RENEW);
        let last = BLOCK + RENEW + 72 * 3_600;
        assert!(!timeline.advance(start, last) && timeline.ready);
        assert_eq!(timeline.rest(start, last), Duration::from_secs(1));
        assert!(timeline.advance(start, last + 1) && !timeline.ready);
    }

    #[test]
    fn newer_block_ends_the_longer_limit_of_a_halted_chain() {
        let start = Instant::now();
        let mut timeline = Timeline::new(OLD, BLOCK, BLOCK);
        let unix = BLOCK + 48 * 3_600;
        assert!(!timeline.advance(start, unix) && timeline.ready);
        timeline.know(unix);
        assert_eq!(timeline.rest(start, unix), Duration::ZERO);
        assert!(timeline.advance(start, unix) && !timeline.ready);
        timeline.know(BLOCK);
        assert!(!timeline.advance(start, unix) && !timeline.ready, "an older block changes nothing");
    }
}
