//! TDX quotes that no real machine would sign, and collateral that Intel would not publish: each is refused with its
//! own code.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue must stop")]

use openrelay_attest::collateral::{Collateral, IntelCollateral};
use openrelay_attest::evidence::Measurement;
use openrelay_attest::facts::{Platform, Tcb};
use openrelay_attest::raw::convert;
use openrelay_attest::{Evidence, Facts, Refusal, Roots, check_signatures, examine};
use openrelay_sim::der::rfc3339;
use openrelay_sim::intel::{BEGINS, Dates, ENDS, Machine, MockIntel, Published, Quote};

const DAY: u64 = 86_400;
const NOW: u64 = BEGINS + DAY;

struct World {
    intel: MockIntel,
    machine: Machine,
    published: Published,
    now: u64,
}

impl Default for World {
    fn default() -> Self {
        let (intel, machine, published) = (MockIntel::default(), Machine::default(), Published::default());
        Self { intel, machine, published, now: NOW }
    }
}

fn nothing(_: &mut Quote) {}

impl World {
    fn judge(&self, change: impl FnOnce(&mut Quote)) -> Result<Facts, Refusal> {
        self.judge_with(change, &self.intel.sign(&self.published))
    }

    fn judge_with(&self, change: impl FnOnce(&mut Quote), collateral: &IntelCollateral) -> Result<Facts, Refusal> {
        let mut quote = Quote::default();
        change(&mut quote);
        self.judge_quote(quote, collateral)
    }

    fn judge_quote(&self, quote: Quote, collateral: &IntelCollateral) -> Result<Facts, Refusal> {
        let evidence = convert(&self.machine.sign(&self.intel, quote))?.evidence;
        let evidence = Evidence::decode(&evidence.encode())?;
        let collateral = Collateral::Intel(Box::new(collateral.clone()));
        examine(&evidence, Some(&collateral), &self.intel.roots(), self.now)
    }

    fn code(&self, change: impl FnOnce(&mut Quote)) -> &'static str {
        self.judge(change).map_or_else(|refusal| refusal.code(), |_| "genuine")
    }
}

#[test]
fn good_quote_is_accepted_only_under_its_own_roots() {
    let world = World::default();
    let facts = world.judge(nothing).unwrap();
    assert_eq!((facts.platform, facts.version, facts.simulated), (Platform::Tdx, 4, true));
    assert_eq!((facts.product.as_str(), facts.smt), ("50806f000000", Some(true)));
    assert_eq!(facts.measurement, Measurement::Tdx { mrtd: [0xd7; 48], rtmrs: [[0; 48]; 4] });
    assert_eq!(facts.expires, BEGINS + 30 * DAY);
    let Tcb::Intel { status, evaluation, .. } = facts.tcb else { panic!("{:?}", facts.tcb) };
    assert_eq!((status.as_str(), evaluation), ("UpToDate", 18));
    let evidence = convert(&world.machine.quote(&world.intel, nothing)).unwrap().evidence;
    let collateral = Collateral::Intel(Box::new(world.intel.sign(&world.published)));
    for roots in [Roots::genuine(), MockIntel::default().roots()] {
        assert!(examine(&evidence, Some(&collateral), &roots, NOW).is_err());
    }
}

#[test]
fn signatures_are_checked_without_collateral() {
    type Change = fn(&mut Quote);
    let world = World::default();
    let code = |change: Change| {
        let evidence = convert(&world.machine.quote(&world.intel, change)).unwrap().evidence;
        check_signatures(&evidence, &world.intel.roots(), NOW).map_or_else(|refusal| refusal.code(), |()| "signed")
    };
    let rows: [(&str, Change, &str); 5] = [
        ("nothing", nothing, "signed"),
        ("old firmware, which only collateral reveals", |q| q.put(0, &[5, 1, 2]), "signed"),
        ("another key signs", |q| q.signed_by_another = true, "signature"),
        ("the quoting enclave does not know the key", |q| q.unbound = true, "qe-binding"),
        ("another machine signs the enclave's report", |q| q.vouched_for_by_another = true, "qe-report-signature"),
    ];
    for (what, change, expected) in rows {
        assert_eq!(code(change), expected, "{what}");
    }
    let evidence = convert(&world.machine.quote(&world.intel, nothing)).unwrap().evidence;
    let by = |roots: &Roots| check_signatures(&evidence, roots, NOW).map_err(|refusal| refusal.code());
    assert_eq!(by(&Roots::genuine()), Err("unknown-issuer"));
    // An authority with the same name and another key.
    assert_eq!(by(&MockIntel::default().roots()), Err("certificate-signature"));
    // Every byte of the certificate that the authority signed is covered, including the model.
    let Evidence::Intel(quote) = &evidence else { panic!("no quote") };
    let [0x30, 0x82, _, _, 0x30, 0x82, high, low] = *quote.certificate.first_chunk().unwrap() else {
        panic!("another encoding of lengths")
    };
    for at in 0..8 + usize::from(u16::from_be_bytes([high, low])) {
        let mut changed = quote.clone();
        changed.certificate[at] ^= 1;
        assert!(check_signatures(&Evidence::Intel(changed), &world.intel.roots(), NOW).is_err(), "byte {at}");
    }
}

#[test]
fn altered_quotes_are_refused_with_their_code() {
    type Change = fn(&mut Quote);
    let attributes = |quote: &mut Quote, bit: u32| quote.put(120, &(0x1000_0000u64 | 1 << bit).to_le_bytes());
    let world = World::default();
    let rows: [(&str, Change, &str); 24] = [
        ("nothing", nothing, "genuine"),
        ("version 2", |q| q.signed[0] = 2, "unsupported-version"),
        ("version 6", |q| q.signed[0] = 6, "unsupported-version"),
        ("a trust domain in version 3", |q| q.signed[0] = 3, "unsupported-version"),
        ("an enclave in version 4", |q| q.signed[4] = 0, "unsupported-version"),
        ("another kind of environment", |q| q.signed[4] = 0x82, "not-evidence"),
        ("another kind of key", |q| q.signed[2] = 3, "unsupported-signature"),
        ("another vendor", |q| q.signed[12] ^= 1, "unknown-vendor"),
        ("without SEPT_VE_DISABLE", |q| q.put(120, &[0; 8]), "sept-ve"),
        ("another signer of the module", |q| q.put(64, &[1]), "tdx-module"),
        ("attributes of the module", |q| q.put(112, &[1]), "tdx-module"),
        ("an unlisted module", |q| q.put(0, &[5, 9, 3]), "tdx-module"),
        ("an old module", |q| q.put(0, &[4, 1, 3]), "no-tcb-level"),
        ("old microcode", |q| q.put(0, &[5, 1, 2]), "no-tcb-level"),
        ("another key signs", |q| q.signed_by_another = true, "signature"),
        ("the quoting enclave does not know the key", |q| q.unbound = true, "qe-binding"),
        ("another machine signs the enclave's report", |q| q.vouched_for_by_another = true, "qe-report-signature"),
        ("another signer of the quoting enclave", |q| q.qe_report[128] ^= 1, "other-qe"),
        ("another product ID of the quoting enclave", |q| q.qe_report[256] = 1, "other-qe"),
        ("a quoting enclave in debug mode", |q| q.qe_report[48] |= 2, "other-qe"),
        ("other attributes of the quoting enclave", |q| q.qe_report[48] |= 0x20, "other-qe"),
        ("another MISCSELECT of the quoting enclave", |q| q.qe_report[16] = 1, "other-qe"),
        ("an old quoting enclave", |q| q.qe_report[258] = 3, "other-qe"),
        ("report data, which the guest chooses", |q| q.put(520, &[0xff; 64]), "genuine"),
    ];
    for (what, change, expected) in rows {
        assert_eq!(world.code(change), expected, "{what}");
    }
    let expected = |bit: u32| match bit {
        0 => "debug",
        4..=6 => "profiled",
        17 => "service-domain",
        29 => "migratable",
        1..=3 | 7..=15 | 23..=26 | 32..=61 => "reserved-bits",
        _ => "genuine",
    };
    for bit in 0..64 {
        assert_eq!(world.code(|quote| attributes(quote, bit)), expected(bit), "attribute {bit}");
    }
}

/// Covers the three bodies of version 5; for the first two, no genuine sample was available.
#[test]
fn altered_version_5_quotes_are_refused_with_their_code() {
    type Change = fn(&mut Quote);
    let world = World::default();
    let collateral = world.intel.sign(&world.published);
    let code = |kind, change: Change| {
        let mut quote = Quote::of_domain_5(kind);
        change(&mut quote);
        world.judge_quote(quote, &collateral).map_or_else(|refusal| refusal.code(), |_| "genuine")
    };
    for kind in 2..=4 {
        assert_eq!(code(kind, nothing), "genuine", "type {kind}");
        assert_eq!(code(kind, |q| q.put(120, &[0x11])), "debug");
        assert_eq!(code(kind, |q| q.signed_by_another = true), "signature");
        assert_eq!(code(kind, |q| q.signed[48] = 5), "unsupported-version");
        assert_eq!(code(kind, |q| q.signed[50] ^= 1), "not-canonical");
    }
    assert_eq!(code(2, |q| q.put(0, &[4, 1, 3])), "no-tcb-level");
    assert_eq!(code(3, |q| q.put(584, &[4, 1, 3])), "no-tcb-level", "the running module");
    assert_eq!(code(3, |q| q.put(0, &[4, 1, 3])), "no-tcb-level", "the module that started the domain");
    assert_eq!(code(2, |q| q.signed[48] = 3), "not-canonical", "the size belongs to another type");
    for (what, kind, at) in [
        ("a service domain's measurement", 3, 600),
        ("its last byte", 3, 647),
        ("a service domain's measurement", 4, 600),
        ("the current service domains", 4, 829),
        ("its last byte", 4, 876),
    ] {
        let mut quote = Quote::of_domain_5(kind);
        quote.put(at, &[1]);
        let refusal = world.judge_quote(quote, &collateral).unwrap_err();
        assert_eq!(refusal.code(), "service-domain", "{what}, type {kind}");
    }
}

#[test]
fn altered_enclave_quotes_are_refused_with_their_code() {
    type Change = fn(&mut Quote);
    let mut world = World { published: Published::for_enclaves(), ..World::default() };
    let collateral = world.intel.sign(&world.published);
    let facts = world.judge_quote(Quote::of_enclave(), &collateral).unwrap();
    assert_eq!((facts.platform, facts.version, facts.measurement), (Platform::Sgx, 3, Measurement::Sgx([0xe7; 32])));
    let rows: [(&str, Change, &str); 13] = [
        ("nothing", nothing, "genuine"),
        ("debug", |q| q.put(48, &[7]), "debug"),
        ("the provisioning key", |q| q.put(48, &[0x15]), "provisioning-key"),
        ("not initialised", |q| q.put(48, &[4]), "reserved-bits"),
        ("an unknown attribute", |q| q.put(49, &[8]), "reserved-bits"),
        ("reserved bytes at 31", |q| q.put(31, &[1]), "reserved-bits"),
        ("reserved bytes at 127", |q| q.put(127, &[1]), "reserved-bits"),
        ("reserved bytes at 191", |q| q.put(191, &[1]), "reserved-bits"),
        ("the last reserved byte", |q| q.put(303, &[1]), "reserved-bits"),
        ("another key signs", |q| q.signed_by_another = true, "signature"),
        ("the quoting enclave does not know the key", |q| q.unbound = true, "qe-binding"),
        ("the quoting enclave for trust domains", |q| q.qe_report[256] = 2, "other-qe"),
        ("report data, which the enclave chooses", |q| q.put(320, &[0xff; 64]), "genuine"),
    ];
    for (what, change, expected) in rows {
        let mut quote = Quote::of_enclave();
        change(&mut quote);
        let judged = world.judge_quote(quote, &collateral);
        assert_eq!(judged.map_or_else(|refusal| refusal.code(), |_| "genuine"), expected, "{what}");
    }
    world.published = Published::default();
    let collateral = world.intel.sign(&world.published);
    let refusal = world.judge_quote(Quote::of_enclave(), &collateral).unwrap_err();
    assert_eq!(refusal.code(), "qe-identity", "collateral for trust domains");
}

#[test]
fn altered_publications_are_refused_with_their_code() {
    type Change = fn(&mut Published);
    fn swap(text: &mut String, from: &str, to: &str) {
        assert!(text.contains(from), "{from}");
        *text = text.replace(from, to);
    }
    let ends = BEGINS + 30 * DAY;
    let rows: [(&str, Change, &str); 25] = [
        ("nothing", |_| {}, "genuine"),
        ("the machine is revoked", |p| p.revoked_machines = vec![9], "revoked"),
        ("another machine is revoked", |p| p.revoked_machines = vec![8], "genuine"),
        ("its authority is revoked", |p| p.revoked_authorities = vec![2], "revoked"),
        ("the signer of publications is revoked", |p| p.revoked_authorities = vec![3], "revoked"),
        ("the root is revoked", |p| p.revoked_authorities = vec![1], "revoked"),
        ("lists that ended a second ago", |p| p.lists.ends = NOW - 1, "stale-crl"),
        ("lists that end this second", |p| p.lists.ends = NOW, "stale-crl"),
        ("lists that end in a second", |p| p.lists.ends = NOW + 1, "genuine"),
        ("lists that begin in a second", |p| p.lists.begins = NOW + 1, "not-yet-valid"),
        ("future TCB info", |p| swap(&mut p.tcb_info, &rfc3339(BEGINS), &rfc3339(NOW + 1)), "not-yet-valid"),
        (
            "expired TCB info",
            |p| {
                swap(&mut p.tcb_info, &rfc3339(BEGINS + 30 * DAY), &rfc3339(NOW - 1));
            },
            "expired",
        ),
        ("future identity", |p| swap(&mut p.qe_identity, &rfc3339(BEGINS), &rfc3339(NOW + 1)), "not-yet-valid"),
        (
            "expired identity",
            |p| {
                swap(&mut p.qe_identity, &rfc3339(BEGINS + 30 * DAY), &rfc3339(NOW - 1));
            },
            "expired",
        ),
        ("another model", |p| swap(&mut p.tcb_info, "50806F000000", "50806F000001"), "other-model"),
        (
            "another provisioning certification enclave",
            |p| {
                swap(&mut p.tcb_info, "\"pceId\":\"0000\"", "\"pceId\":\"0001\"");
            },
            "other-model",
        ),
        ("TCB info for enclaves", |p| swap(&mut p.tcb_info, "\"id\":\"TDX\"", "\"id\":\"SGX\""), "tcb-info"),
        ("TCB info of version 2", |p| swap(&mut p.tcb_info, "\"version\":3", "\"version\":2"), "tcb-info"),
        ("identity of another enclave", |p| swap(&mut p.qe_identity, "TD_QE", "QE"), "qe-identity"),
        ("empty TCB info", |p| p.tcb_info = "{}".into(), "tcb-info"),
        ("empty identity", |p| p.qe_identity = "[]".into(), "qe-identity"),
        ("levels above the machine's", |p| swap(&mut p.tcb_info, "\"pcesvn\":13", "\"pcesvn\":14"), "no-tcb-level"),
        (
            "a revoked level",
            |p| {
                swap(&mut p.tcb_info, "\"tcbStatus\":\"UpToDate\"}]}", "\"tcbStatus\":\"Revoked\"}]}");
            },
            "tcb-revoked",
        ),
        (
            "an unknown TCB status",
            |p| {
                swap(&mut p.tcb_info, "\"UpToDate\"", "\"Fine\"");
            },
            "tcb-info",
        ),
        ("no modules", |p| swap(&mut p.tcb_info, "\"tdxModule\"", "\"tdxModul\""), "tdx-module"),
    ];
    for (what, change, expected) in rows {
        let mut world = World::default();
        change(&mut world.published);
        assert_eq!(world.code(nothing), expected, "{what}");
    }
    let mut world = World::default();
    for (now, expected) in
        [(BEGINS - 1, "not-yet-valid"), (BEGINS, "genuine"), (ends, "genuine"), (ends + 1, "expired")]
    {
        world.now = now;
        assert_eq!(world.code(nothing), expected, "{now}");
    }
    // A machine that is less than up to date is genuine, and its status is reported.
    let mut world = World::default();
    swap(
        &mut world.published.tcb_info,
        "\"tcbStatus\":\"UpToDate\"}]}",
        "\"tcbStatus\":\"OutOfDate\",\"advisoryIDs\":[\"INTEL-SA-00001\"]}]}",
    );
    let Tcb::Intel { status, advisories, .. } = world.judge(nothing).unwrap().tcb else { panic!("no status") };
    assert_eq!((status.as_str(), advisories), ("OutOfDate", vec!["INTEL-SA-00001".to_owned()]));
}

#[test]
fn altered_certificates_are_refused_with_their_code() {
    let with = |change: fn(&mut Machine)| {
        let mut world = World::default();
        change(&mut world.machine);
        world.code(nothing)
    };
    assert_eq!(with(|machine| machine.dates = Dates { begins: NOW + 1, ends: ENDS }), "not-yet-valid");
    assert_eq!(with(|machine| machine.dates = Dates { begins: BEGINS, ends: NOW - 1 }), "expired");
    assert_eq!(with(|machine| machine.fmspc[5] = 1), "other-model");
    let world = World::default();
    let good = world.intel.sign(&world.published);
    let other = MockIntel::default().sign(&world.published);
    let code = |collateral: &IntelCollateral| {
        world.judge_with(nothing, collateral).map_or_else(|refusal| refusal.code(), |_| "genuine")
    };
    // Each part comes from another hierarchy with the same names.
    type Change = fn(&mut IntelCollateral, &IntelCollateral);
    let rows: [(&str, Change, &str); 7] = [
        ("nothing", |_, _| {}, "genuine"),
        (
            "signature of the TCB info",
            |own, other| own.tcb_info_signature.clone_from(&other.tcb_info_signature),
            "tcb-info",
        ),
        (
            "signature of the identity",
            |own, other| own.qe_identity_signature.clone_from(&other.qe_identity_signature),
            "qe-identity",
        ),
        (
            "issuer chain of the TCB info",
            |own, other| own.tcb_info_issuer_chain.clone_from(&other.tcb_info_issuer_chain),
            "certificate-signature",
        ),
        ("revocation list of machines", |own, other| own.pck_crl.clone_from(&other.pck_crl), "bad-crl"),
        ("revocation list of authorities", |own, other| own.root_ca_crl.clone_from(&other.root_ca_crl), "bad-crl"),
        ("no revocation list of machines", |own, _| own.pck_crl.clear(), "bad-crl"),
    ];
    for (what, change, expected) in rows {
        let mut collateral = good.clone();
        change(&mut collateral, &other);
        assert_eq!(code(&collateral), expected, "{what}");
    }
}
