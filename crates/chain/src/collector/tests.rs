#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on must stop")]
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use openrelay_attest::Evidence as Attested;
use openrelay_attest::binding::Binding;
use openrelay_attest::evidence::Measurement;
use openrelay_proto::message::{Evidence, EvidenceDigest};
use openrelay_sim::vendors::{Hardware, Lie, Vendors};

use super::*;
use crate::asking::tests::relay;

const NETWORK: [u8; 32] = [1; 32];

fn chain() -> ChainFile {
    let text = format!(
        "chain_id = 5\ndirectory = \"{0}\"\nregistry = \"{0}\"\ncode_hash = \"{1}\"\nendpoints = []\nquorum = 2\n",
        alloy_primitives::Address::ZERO,
        B256::ZERO
    );
    toml::from_str(&text).unwrap()
}

/// The simulated vendors, and one of their machines.
struct World {
    vendors: Vendors,
    machine: Hardware,
}

impl World {
    fn new() -> Self {
        let begins = unix_seconds() - 86_400;
        Self { vendors: Vendors::new(begins), machine: Hardware::since(begins) }
    }

    fn staple(&self, measurement: &Measurement, relay_id: u64) -> Staple {
        let binding = Binding {
            network: NETWORK,
            relay_id,
            handshake_key: [2; 32],
            key_epoch: 1,
            roles: 1,
            image: [3; 32],
            block_hash: [4; 32],
            block_height: 256,
        };
        let evidence = self.vendors.evidence(&self.machine, measurement, &binding.report_data(), Lie::None).unwrap();
        Staple { evidence, binding }
    }
}

const SNP: Measurement = Measurement::Snp([3; 48]);
const TDX: Measurement = Measurement::Tdx { mrtd: [1; 48], rtmrs: [[2; 48]; 4] };

#[test]
fn evidence_not_signed_for_this_relay_is_not_kept() {
    let world = World::new();
    let collector = Collector::new(chain(), world.vendors.roots().clone());
    let own = relay(1, Role::Ingress);
    for measurement in [SNP, TDX] {
        let good = world.staple(&measurement, 1);
        assert!(collector.is_kept(&good, &own, NETWORK), "{} bytes", good.encode().len());
        let kept = |change: fn(&mut Staple)| {
            let mut staple = good.clone();
            change(&mut staple);
            collector.is_kept(&staple, &own, NETWORK)
        };
        assert!(!kept(|staple| staple.binding.block_height += 1), "bound to another block");
        assert!(!kept(|staple| staple.binding.relay_id = 2), "bound to another relay");
        assert!(!kept(|staple| staple.binding.network[0] ^= 1), "bound to another network");
        let signed = kept(|staple| match &mut staple.evidence {
            Attested::Intel(quote) => quote.signature[0] ^= 1,
            Attested::Amd(report) => report.r[5] ^= 1,
        });
        assert!(!signed, "another signature");
        let large = kept(|staple| match &mut staple.evidence {
            Attested::Intel(quote) => quote.certificate.resize(MAX_STAPLE, 0),
            Attested::Amd(report) => report.certificate.resize(MAX_STAPLE, 0),
        });
        assert!(!large, "larger than the limit");
        assert!(!collector.is_kept(&good, &relay(2, Role::Ingress), NETWORK), "shown by another relay");
        assert!(!collector.is_kept(&good, &own, [9; 32]), "in another network");
        let strangers = Collector::new(chain(), Roots::genuine());
        assert!(!strangers.is_kept(&good, &own, NETWORK), "signed under other roots");
    }
}

/// Relays with scripted answers.
struct Scripted {
    staple: Mutex<Option<Staple>>,
    asked: AtomicUsize,
}

impl Scripted {
    fn new(staple: Option<Staple>) -> Self {
        Self { staple: Mutex::new(staple), asked: AtomicUsize::new(0) }
    }

    fn take_asked(&self) -> usize {
        self.asked.swap(0, Ordering::Relaxed)
    }
}

impl Ask for Scripted {
    fn ask(&self, _: &Record, _: Option<(&Record, EvidenceDigest)>) -> Result<Evidence, InquiryError> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let staple = self.staple.lock().unwrap();
        staple.as_ref().map(|staple| Evidence::Staple(staple.encode())).ok_or(InquiryError::Silent)
    }
}

#[test]
fn approved_image_with_firmware_below_the_floor_is_not_served() {
    let roots = Roots { min_firmware_generation: 7, ..Roots::genuine() };
    let folder = std::env::temp_dir().join(format!("openrelay-floor-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let mut approved = BTreeMap::new();
    let manifests = [Some(7), Some(6), None].map(|firmware_generation| {
        let round = u64::from(firmware_generation.unwrap_or_default());
        let image = [u8::try_from(round).unwrap(); 32];
        let bytes =
            Manifest { kind: 1, version: round, firmware_generation, image, shapes: vec![], advisories: vec![] }
                .encode();
        approved.insert(round, (RELAY_IMAGE, image_value(image.into(), sha256(&bytes))));
        std::fs::write(folder.join(format!("{round}.json")), &bytes).unwrap();
        bytes
    });
    let mut collector = Collector::new(chain(), roots);
    assert_eq!(collector.published(Some(&folder), &approved).manifests, manifests[..1], "only the one at the floor");
    let said = collector.refused();
    assert!(said.len() == 2 && said.iter().all(|why| why.contains("[firmware-generation]")), "{said:?}");
    collector.published(Some(&folder), &approved);
    assert!(collector.refused().is_empty(), "each is reported once");
    // Control: with a lower floor all are served, except the one without a firmware generation.
    let mut lower = Collector::new(chain(), Roots { min_firmware_generation: 6, ..Roots::genuine() });
    assert_eq!((lower.published(Some(&folder), &approved).manifests.len(), lower.refused().len()), (2, 1));
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn silent_relay_is_asked_at_pauses_up_to_ten_minutes() {
    let world = World::new();
    let mut collector = Collector::new(chain(), world.vendors.roots().clone());
    let (mut relays, start) = (vec![relay(1, Role::Ingress)], Instant::now());
    let ask = Scripted::new(None);
    let hour = |collector: &mut Collector, relays: &[Record], from: u64| {
        for second in from..from + 3_600 {
            collector.pass(&ask, NETWORK, relays, start + Duration::from_secs(second));
        }
        ask.take_asked()
    };
    let first = hour(&mut collector, &relays, 0);
    assert!((10..=16).contains(&first), "{first} questions");
    let second = hour(&mut collector, &relays, 3_600);
    assert!((5..=7).contains(&second), "{second} questions: one every ten minutes");
    // A new key means that the relay has restarted: it is asked at once.
    relays[0].key_epoch = 2;
    collector.pass(&ask, NETWORK, &relays, start + Duration::from_secs(7_200));
    assert_eq!(ask.take_asked(), 1);
    // A relay that answers is asked once a minute. What it has shown stays when it is silent later.
    *ask.staple.lock().unwrap() = Some(world.staple(&SNP, 1));
    let later = |collector: &mut Collector, from: u64| {
        for second in from..from + 3_600 {
            collector.pass(&ask, NETWORK, &relays, start + Duration::from_secs(second));
        }
        ask.take_asked()
    };
    let answered = later(&mut collector, 8_000);
    assert!((55..=61).contains(&answered), "{answered} questions");
    *ask.staple.lock().unwrap() = None;
    let silent = later(&mut collector, 12_000);
    assert!((7..=11).contains(&silent) && collector.shown[&1].staple.is_some(), "{silent} questions");
}

#[test]
fn pass_asks_at_most_one_slice_of_relays() {
    let mut collector = Collector::new(chain(), Roots::genuine());
    let relays: Vec<Record> = (1..=20_000).map(|number| relay(number, Role::Ingress)).collect();
    let ask = Scripted::new(None);
    let start = Instant::now();
    collector.pass(&ask, NETWORK, &relays, start);
    assert_eq!(ask.take_asked(), SLICE);
    // Relays that were silent come after relays that were never asked.
    collector.pass(&ask, NETWORK, &relays, start + Duration::from_secs(3_600));
    assert_eq!((ask.take_asked(), collector.shown.len()), (SLICE, 2 * SLICE));
    // The file lists the relays that were asked, so that readers ask other sources for the rest. A relay that answers
    // is not listed as silent.
    let file = |collector: &mut Collector| AttestationFile::decode(&collector.attestation(None)).unwrap();
    let first = file(&mut collector);
    assert_eq!((first.silent.len(), first.staples.len()), (2 * SLICE, 0));
    let world = World::new();
    let mut collector = Collector::new(chain(), world.vendors.roots().clone());
    let ask = Scripted::new(Some(world.staple(&SNP, 1)));
    collector.pass(&ask, NETWORK, &relays[..2], start);
    let second = file(&mut collector);
    assert_eq!((second.silent, second.staples.len()), ([2].into(), 1));
}

#[test]
fn new_egress_is_asked_through_ingresses_that_have_answered_lately_alone() {
    /// Notes through whom each relay is asked; ingress 1 has evidence.
    struct Noting(Staple, Mutex<Vec<(u64, Option<u64>)>>, std::sync::atomic::AtomicBool);
    impl Ask for Noting {
        fn ask(&self, record: &Record, by: Option<(&Record, EvidenceDigest)>) -> Result<Evidence, InquiryError> {
            self.1.lock().unwrap().push((record.relay_id, by.map(|(ingress, _)| ingress.relay_id)));
            let answers = record.relay_id == 1 && self.2.load(Ordering::Relaxed);
            if answers { Ok(Evidence::Staple(self.0.encode())) } else { Err(InquiryError::Silent) }
        }
    }
    let world = World::new();
    let mut collector = Collector::new(chain(), world.vendors.roots().clone());
    let ask = Noting(world.staple(&SNP, 1), Mutex::default(), true.into());
    let mut relays = vec![relay(1, Role::Ingress)];
    let start = Instant::now();
    let mut asked = |relays: &[Record], second: u64| {
        collector.pass(&ask, NETWORK, relays, start + Duration::from_secs(second));
        std::mem::take(&mut *ask.1.lock().unwrap())
    };
    assert_eq!(asked(&relays, 0), [(1, None)]);
    // The ingress is not due again.
    relays.push(relay(2, Role::Egress));
    assert_eq!(asked(&relays, 1), [(2, Some(1))]);
    // It falls silent when it is due, and what it had shown does not make it a way to others.
    ask.2.store(false, Ordering::Relaxed);
    assert_eq!(asked(&relays[..1], 62), [(1, None)]);
    relays.push(relay(3, Role::Egress));
    assert_eq!(asked(&[relays[0].clone(), relays[2].clone()], 63), []);
}

#[test]
fn of_new_relays_ingresses_are_asked_first() {
    let mut collector = Collector::new(chain(), Roots::genuine());
    let slice = u64::try_from(SLICE).unwrap();
    let role = |number| if number <= slice { Role::Egress } else { Role::Ingress };
    let relays: Vec<Record> = (1..=2 * slice).map(|number| relay(number, role(number))).collect();
    let ask = Scripted::new(None);
    collector.pass(&ask, NETWORK, &relays, Instant::now());
    // Without an ingress no egress can be asked.
    assert_eq!(ask.take_asked(), SLICE);
    assert!(collector.shown.keys().all(|number| *number > slice));
}
