//! One pass over the relays that are due to be asked for their evidence.
//!
//! Owns which relay is asked when, and through which ingress. Many relays are asked at once, and ingresses before the
//! egresses that are asked through them. An ingress that did not answer is not asked again in the same pass. If an
//! egress is silent through one ingress and answers through another, the first ingress is avoided.
//!
//! A pass over R relays, of which S are silent, waits at most `ceil(S × TRIES / AT_ONCE) × PATIENCE` for silent
//! relays. For 1,000 silent egresses that is 8 × 5 s = 40 s.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use openrelay_attest::verdict::Staple;
use openrelay_ledger::record::{Record, Role};
use openrelay_proto::message::EvidenceDigest;

use crate::evidence_client::{Ask, InquiryError, digest_of, draw, staple_of};

/// Number of relays that are asked at once.
const AT_ONCE: usize = 256;
/// Number of ingresses through which an egress is asked in one pass.
const TRIES: usize = 2;

/// What a pass knows about ingresses.
#[derive(Default)]
pub(crate) struct KnownIngresses<'a> {
    /// Ingresses that answer, with the digest of the evidence that they have shown.
    pub(crate) open: BTreeMap<u64, (&'a Record, EvidenceDigest)>,
    /// Ingresses that seem not to forward.
    doubtful: BTreeSet<u64>,
}

/// Asks all relays that are due. `ways` holds ingresses that answered recently and are not due.
pub(crate) fn pass<'a>(
    ask: &dyn Ask,
    due: &[&'a Record],
    mut known: KnownIngresses<'a>,
) -> Vec<(&'a Record, Result<Staple, InquiryError>)> {
    let of = |role: Role| due.iter().copied().filter(|record| record.role == role).collect::<Vec<_>>();
    let mut all = Vec::new();
    let ingresses = at_once(&of(Role::Ingress), |record| ask.ask(record, None));
    for (record, shown) in ingresses {
        if let Some(digest) = digest_of(&shown) {
            known.open.insert(record.relay_id, (record, digest));
        }
        all.push((record, staple_of(shown)));
    }
    let known = Mutex::new(known);
    all.extend(at_once(&of(Role::Egress), |egress| through_ingresses(ask, egress, &known)));
    all
}

fn through_ingresses(
    ask: &dyn Ask,
    egress: &Record,
    known: &Mutex<KnownIngresses<'_>>,
) -> Result<Staple, InquiryError> {
    let mut silent = BTreeSet::new();
    let mut last = InquiryError::NoIngress;
    for _ in 0..TRIES {
        let Some((ingress, digest)) = lock(known).choose(egress, &silent) else { break };
        match staple_of(ask.ask(egress, Some((ingress, digest)))) {
            // The ingress may be at fault, if it does not forward.
            Err(InquiryError::Silent) => {
                silent.insert(ingress.relay_id);
                last = InquiryError::Silent;
            }
            shown => {
                lock(known).doubtful.extend(silent);
                return shown;
            }
        }
    }
    Err(last)
}

impl<'a> KnownIngresses<'a> {
    /// Returns an ingress that may share a circuit with this egress, drawn at random among those that forward.
    fn choose(&self, egress: &Record, without: &BTreeSet<u64>) -> Option<(&'a Record, EvidenceDigest)> {
        let fits = |relay: &u64, ingress: &Record| !without.contains(relay) && !ingress.conflicts_with(egress);
        let all = self.open.iter().filter(|(relay, (ingress, _))| fits(relay, ingress));
        let (doubtful, good): (Vec<_>, Vec<_>) = all.partition(|(relay, _)| self.doubtful.contains(relay));
        let mut left = if good.is_empty() { doubtful } else { good };
        draw(&mut left).map(|(_, ingress)| *ingress)
    }
}

/// Does the work for each relay, [`AT_ONCE`] at a time. Returns the results in the order of relay IDs.
fn at_once<'a, R: Send>(all: &[&'a Record], work: impl Fn(&'a Record) -> R + Sync) -> Vec<(&'a Record, R)> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let run = || {
        while let Some(record) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            let result = work(record);
            lock(&done).push((*record, result));
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..AT_ONCE.min(all.len()) {
            // Fewer threads only take longer.
            if std::thread::Builder::new().name("asking".into()).spawn_scoped(scope, run).is_err() {
                break;
            }
        }
        run();
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(record, _)| record.relay_id);
    done
}

fn lock<T>(shared: &Mutex<T>) -> MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
pub(crate) mod tests;
