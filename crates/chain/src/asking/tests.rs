#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]
use std::sync::Barrier;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use openrelay_proto::message::Evidence;

use super::*;
use crate::attestation::tests::staple;
use crate::evidence_client::PATIENCE;

/// Returns a relay in its own network.
pub(crate) fn relay(relay_id: u64, role: Role) -> Record {
    let [_, _, _, _, _, _, high, low] = relay_id.to_be_bytes();
    Record {
        relay_id,
        role,
        handshake_key: "02".repeat(32),
        key_epoch: 1,
        endpoints: vec![([high, low, 0, 1], 443).into()],
        operator: format!("operator {relay_id}"),
        family: None,
        stake: 0,
        bandwidth_mbit: 100,
    }
}

/// Relays that a script makes answer or stay silent.
struct Scripted<F> {
    silent: F,
    silences: AtomicU64,
    answers: AtomicU64,
}

impl<F: Fn(u64, Option<u64>) -> bool + Sync> Scripted<F> {
    fn new(silent: F) -> Self {
        Self { silent, silences: AtomicU64::new(0), answers: AtomicU64::new(0) }
    }

    /// Returns the longest time that a pass waits for silent relays: each query of one takes [`PATIENCE`].
    fn longest(&self) -> Duration {
        let rounds = self.silences.load(Ordering::Relaxed).div_ceil(u64::try_from(AT_ONCE).unwrap());
        PATIENCE * u32::try_from(rounds).unwrap()
    }
}

impl<F: Fn(u64, Option<u64>) -> bool + Sync> Ask for Scripted<F> {
    fn ask(&self, relay: &Record, through: Option<(&Record, EvidenceDigest)>) -> Result<Evidence, InquiryError> {
        if (self.silent)(relay.relay_id, through.map(|(ingress, _)| ingress.relay_id)) {
            self.silences.fetch_add(1, Ordering::Relaxed);
            return Err(InquiryError::Silent);
        }
        self.answers.fetch_add(1, Ordering::Relaxed);
        Ok(Evidence::Staple(staple(relay.relay_id, 256, 1).encode()))
    }
}

fn network(ingresses: u64, egresses: u64) -> Vec<Record> {
    let role = |relay| if relay <= ingresses { Role::Ingress } else { Role::Egress };
    (1..=ingresses + egresses).map(|number| relay(number, role(number))).collect()
}

fn shown(all: &[(&Record, Result<Staple, InquiryError>)]) -> Vec<u64> {
    all.iter().filter(|(_, shown)| shown.is_ok()).map(|(record, _)| record.relay_id).collect()
}

/// 1,000 queries of silent ingresses, or 2,000 of silent egresses, 256 at once, 5 s each: 20 s and 40 s.
#[test]
fn pass_over_3000_relays_with_a_third_silent_ends_within_60_s() {
    let all = network(1_500, 1_500);
    let due: Vec<&Record> = all.iter().collect();
    let every_third = |relay: u64| relay.is_multiple_of(3);
    let first_thousand = |relay: u64| relay <= 1_000;
    let last_thousand = |relay: u64| relay > 2_000;
    for silent in [every_third as fn(u64) -> bool, first_thousand, last_thousand] {
        let ask = Scripted::new(|relay, _| silent(relay));
        let found = pass(&ask, &due, KnownIngresses::default());
        let expected: Vec<u64> = (1..=3_000).filter(|relay| !silent(*relay)).collect();
        assert_eq!((found.len(), shown(&found)), (3_000, expected));
        assert!(ask.longest() <= Duration::from_secs(40), "{:?}", ask.longest());
        assert_eq!(ask.answers.into_inner(), 2_000);
    }
}

/// The negative control of the test above: one after the other, the same queries would take more than an hour.
#[test]
fn relays_are_asked_at_once_up_to_the_limit() {
    struct Together(Barrier);
    impl Ask for Together {
        fn ask(&self, _: &Record, _: Option<(&Record, EvidenceDigest)>) -> Result<Evidence, InquiryError> {
            // No query returns before all of them have arrived.
            self.0.wait();
            Err(InquiryError::Silent)
        }
    }
    let all = network(2 * u64::try_from(AT_ONCE).unwrap(), 0);
    let due: Vec<&Record> = all.iter().collect();
    assert_eq!(pass(&Together(Barrier::new(AT_ONCE)), &due, KnownIngresses::default()).len(), 2 * AT_ONCE);
}

#[test]
fn egress_is_asked_through_an_ingress_that_answered_in_this_pass() {
    let all = network(10, 30);
    let due: Vec<&Record> = all.iter().collect();
    let through = Mutex::new(BTreeSet::new());
    let ask = Scripted::new(|relay, ingress: Option<u64>| {
        lock(&through).extend(ingress);
        relay <= 9
    });
    assert_eq!(shown(&pass(&ask, &due, KnownIngresses::default())), (10..=40).collect::<Vec<_>>());
    let through = through.into_inner().unwrap();
    assert_eq!((through.len(), through.first()), (1, Some(&10)));
    // Without an ingress, no egress is asked or waited for.
    let ask = Scripted::new(|relay, _| relay <= 10);
    let found = pass(&ask, &due, KnownIngresses::default());
    assert!(found.iter().skip(10).all(|(_, shown)| *shown == Err(InquiryError::NoIngress)));
    assert_eq!(ask.silences.into_inner(), 10);
}

#[test]
fn ingress_that_does_not_forward_is_avoided() {
    let all = network(2, 200);
    let due: Vec<&Record> = all.iter().collect();
    let ask = Scripted::new(|_, ingress| ingress == Some(1));
    assert_eq!(shown(&pass(&ask, &due, KnownIngresses::default())).len(), 202);
    // Only queries in flight before the first answer may have drawn it too.
    assert!(ask.silences.into_inner() <= u64::try_from(AT_ONCE).unwrap());
    let mut known = KnownIngresses::default();
    known.open.extend(all.iter().take(2).map(|ingress| (ingress.relay_id, (ingress, [0; 32]))));
    known.doubtful.insert(1);
    assert!((0..64).all(|_| known.choose(&all[5], &BTreeSet::new()).unwrap().0.relay_id == 2));
    assert_eq!(known.choose(&all[5], &[2].into()).unwrap().0.relay_id, 1, "the doubtful ingress is better than none");
}

#[test]
fn egress_is_not_asked_through_an_ingress_of_its_operator() {
    let mut all = network(1, 1);
    all[1].operator = all[0].operator.clone();
    let due: Vec<&Record> = all.iter().collect();
    let found = pass(&Scripted::new(|_, _| false), &due, KnownIngresses::default());
    assert_eq!((found[0].1.is_ok(), &found[1].1), (true, &Err(InquiryError::NoIngress)));
}
