//! SEV-SNP reports that no real chip would sign, or of which no genuine sample was available: each is accepted, or
//! refused with its own code.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue must stop")]

use base64ct::Encoding as _;
use openrelay_attest::collateral::{AmdBundle, AmdCollateral, Collateral, list_issued};
use openrelay_attest::facts::{Crl, KeyKind, Tcb};
use openrelay_attest::raw::convert;
use openrelay_attest::roots::AmdRoot;
use openrelay_attest::{Evidence, Facts, Refusal, Roots, examine};
use openrelay_sim::amd::{BEGINS, Certificate, Chip, ENDS, MockAmd, Report};
use sev::certs::snp::{Verifiable as _, ca};
use sev::firmware::guest::AttestationReport;
use sev::parser::ByteParser as _;

const NOW: u64 = BEGINS + 86_400;
const DAY: u64 = 86_400;

/// One product's hierarchy, one of its chips and the root that verifies both.
struct World {
    amd: MockAmd,
    root: AmdRoot,
    chip: Chip,
}

/// The input of one verification; valid until a row changes something.
struct Case {
    report: Vec<u8>,
    leaf: Vec<u8>,
    crl: Option<Vec<u8>>,
    now: u64,
}

impl World {
    fn new(product: &'static str) -> Self {
        let amd = MockAmd::new(product);
        Self { root: amd.root(), chip: Chip::default(), amd }
    }

    fn report(&self, version: u32) -> Report {
        Report::new(self.amd.product, version, &self.chip)
    }

    fn certificate(&self) -> Certificate {
        self.chip.certificate(self.amd.product)
    }

    fn good(&self, version: u32) -> Case {
        Case {
            report: self.chip.sign(&self.report(version)),
            leaf: self.amd.vcek(&self.certificate()),
            crl: Some(self.amd.crl(BEGINS, Some(ENDS), &[])),
            now: NOW,
        }
    }

    fn signed(&self, report: &Report) -> Case {
        Case { report: self.chip.sign(report), ..self.good(3) }
    }

    fn certified(&self, change: impl FnOnce(&mut Certificate)) -> Case {
        let mut certificate = self.certificate();
        change(&mut certificate);
        Case { leaf: self.amd.vcek(&certificate), ..self.good(3) }
    }

    fn judge(&self, case: &Case) -> Result<Facts, Refusal> {
        let roots = Roots { amd: vec![self.root.clone()], simulated: true, ..Roots::genuine() };
        judge_by(&roots, case)
    }

    fn code(&self, case: &Case) -> &'static str {
        self.judge(case).map_or_else(|refusal| refusal.code(), |_| "genuine")
    }
}

fn judge_by(roots: &Roots, case: &Case) -> Result<Facts, Refusal> {
    let Evidence::Amd(mut report) = convert(&case.report)?.evidence else { panic!("no report") };
    report.certificate.clone_from(&case.leaf);
    let evidence = Evidence::decode(&Evidence::Amd(report).encode())?;
    let collateral = AmdCollateral { crl: case.crl.clone() };
    examine(&evidence, Some(&Collateral::Amd(collateral)), roots, case.now)
}

#[test]
fn reports_of_all_products_and_versions_are_accepted() {
    for product in ["Milan", "Genoa", "Turin"] {
        let world = World::new(product);
        for version in 2..=5 {
            let facts = world.judge(&world.good(version)).unwrap();
            assert_eq!((facts.product.as_str(), facts.version, facts.key), (product, version, KeyKind::Vcek));
            assert_eq!((facts.simulated, facts.crl, facts.smt), (true, Crl::Checked, Some(true)));
            assert!(facts.chip.is_some() && facts.expires == ENDS);
            let Tcb::Amd { reported, .. } = facts.tcb else { panic!("{:?}", facts.tcb) };
            assert_eq!((reported.boot_loader, reported.tee, reported.snp, reported.microcode), (10, 1, 23, 84));
            assert_eq!(reported.fmc, (product == "Turin").then_some(7));
        }
    }
}

#[test]
fn simulated_report_is_refused_under_other_roots() {
    let world = World::new("Genoa");
    let judged = judge_by(&Roots::genuine(), &world.good(3));
    assert!(judged.is_err(), "{judged:?}");
    let other = World::new("Genoa");
    assert_eq!(world.code(&other.good(3)), "certificate-signature", "same names, other keys");
}

/// Each row changes one field of a valid report.
#[test]
fn altered_reports_are_refused_with_their_code() {
    let world = World::new("Genoa");
    let report = || world.report(3);
    let policy = |bits: u64| report().with(0x08, &(0x3_0133u64 | bits).to_le_bytes());
    let rows = [
        ("nothing", report(), "genuine"),
        ("version 1", report().with(0, &[1]), "unsupported-version"),
        ("version 4 with a field of version 5", report().with(0, &[4]).with(0x1f8, &[1]), "reserved-bits"),
        ("version 6", report().with(0, &[6]), "unsupported-version"),
        ("debug", policy(1 << 19), "debug"),
        ("migration agent", policy(1 << 18), "migratable"),
        ("policy without its constant bit", report().with(0x0a, &[1]), "reserved-bits"),
        ("policy, bit 26", policy(1 << 26), "reserved-bits"),
        ("policy, bit 63", policy(1 << 63), "reserved-bits"),
        ("single socket and CXL, which are allowed", policy(3 << 20), "genuine"),
        ("another signature algorithm", report().with(0x34, &[2]), "unsupported-signature"),
        ("unsigned", report().with(0x48, &[7 << 2]), "unsigned"),
        ("signed by a key of kind 3", report().with(0x48, &[3 << 2]), "unsupported-signature"),
        ("VLEK stated as the signing key", report().with(0x48, &[1 << 2]), "key-kind"),
        ("key information, bit 5", report().with(0x48, &[1 << 5]), "reserved-bits"),
        ("reserved after key information", report().with(0x4c, &[1]), "reserved-bits"),
        ("reserved after the processor", report().with(0x18b, &[1]), "reserved-bits"),
        ("reserved after the current version", report().with(0x1eb, &[1]), "reserved-bits"),
        ("reserved after the committed version", report().with(0x1ef, &[1]), "reserved-bits"),
        ("a field that version 3 does not have", report().with(0x1f8, &[1]), "reserved-bits"),
        ("the last reserved byte", report().with(0x29f, &[1]), "reserved-bits"),
        ("another product", report().with(0x188, &[0x19, 0x01]), "other-product"),
        ("an unknown future product", report().with(0x188, &[0x1b, 0x01]), "unsupported-version"),
        ("another boot loader", report().with(0x180, &[9]), "tcb-mismatch"),
        ("another TEE", report().with(0x181, &[2]), "tcb-mismatch"),
        ("another SNP firmware", report().with(0x186, &[22]), "tcb-mismatch"),
        ("another microcode", report().with(0x187, &[85]), "tcb-mismatch"),
        ("another chip", report().with(0x1a0, &[0]), "other-chip"),
        ("chip ID masked by the machine's owner", report().with(0x1a0, &[0; 64]), "genuine"),
        ("signed by a masked key", report().with(0x48, &[2]), "unsigned"),
    ];
    for (what, report, expected) in rows {
        assert_eq!(world.code(&world.signed(&report)), expected, "{what}");
    }
    let tag = |report| world.judge(&world.signed(&report)).unwrap().chip;
    assert_eq!(tag(report().with(0x1a0, &[0; 64])), tag(report()), "the certificate still names the chip");
    // A field that version 5 has and version 3 lacks; one that version 3 has and version 2 lacks.
    let mitigations = world.report(5).with(0x1f8, &[1; 16]);
    assert_eq!(world.code(&world.signed(&mitigations)), "genuine");
    assert_eq!(world.code(&world.signed(&world.report(5).with(0x208, &[1]))), "reserved-bits");
    assert_eq!(world.code(&world.signed(&world.report(2).with(0x188, &[0x19]))), "reserved-bits");
    // Signed by another chip.
    let strange = Case { report: Chip::default().sign(&report()), ..world.good(3) };
    assert_eq!(world.code(&strange), "signature");
}

#[test]
fn altered_certificates_are_refused_with_their_code() {
    let world = World::new("Genoa");
    let amd = |place: &str| format!("1.3.6.1.4.1.3704.1.{place}");
    let without = |place: &str| {
        let identifier = amd(place);
        world.certified(|certificate| certificate.extensions.retain(|(own, _)| *own != identifier))
    };
    let said_to_be = |identifier: &str, salt: u8| Case {
        leaf: world.amd.vcek_said_to_be_signed(&world.certificate(), identifier, salt),
        ..world.good(3)
    };
    // The last bytes of both object identifiers, 1.2.840.10045.2.1 and 1.3.132.0.34.
    let key_with = |[from, to]: [u8; 2]| {
        world.certified(|certificate| {
            let head = certificate.key.iter_mut().take(23).rev();
            *head.into_iter().find(|byte| **byte == from).unwrap() = to;
        })
    };
    let rows = [
        ("nothing", world.certified(|_| {}), "genuine"),
        ("valid from tomorrow", world.certified(|c| c.begins = NOW + 1), "not-yet-valid"),
        ("valid from this second", world.certified(|c| c.begins = NOW), "genuine"),
        ("expired a second ago", world.certified(|c| c.ends = NOW - 1), "expired"),
        ("valid until this second", world.certified(|c| c.ends = NOW), "genuine"),
        ("a cloud key (VLEK)", world.certified(|c| c.subject = "SEV-VLEK".into()), "key-kind"),
        ("an unknown subject", world.certified(|c| c.subject = "SEV-VCEK-2".into()), "key-kind"),
        ("no boot loader", without("3.1"), "malformed-certificate"),
        ("no TEE", without("3.2"), "malformed-certificate"),
        ("no SNP firmware", without("3.3"), "malformed-certificate"),
        ("no microcode", without("3.8"), "malformed-certificate"),
        ("no chip ID", without("4"), "other-chip"),
        ("no product name, which is optional", without("2"), "genuine"),
        (
            "the name of another product",
            world.certified(|c| c.extensions[1].1 = b"\x16\x08Milan-B0".to_vec()),
            "other-product",
        ),
        ("two chip IDs", world.certified(|c| c.extensions.push((amd("4"), vec![0xc5; 64]))), "malformed-certificate"),
        ("a truncated chip ID", world.certified(|c| c.extensions[6].1.truncate(8)), "other-chip"),
        ("an all-zero chip ID", world.certified(|c| c.extensions[6].1.fill(0)), "other-chip"),
        ("an empty chip ID", world.certified(|c| c.extensions[6].1.clear()), "other-chip"),
        ("no public key", world.certified(|c| c.key = world.amd.root().ask[..0].to_vec()), "malformed-certificate"),
        (
            "a certificate of the cloud authority",
            { Case { leaf: world.amd.vlek(&world.certificate()), ..world.good(3) } },
            "unknown-issuer",
        ),
        ("PKCS #1 v1.5 stated", said_to_be("1.2.840.113549.1.1.12", 48), "certificate-signature"),
        ("a salt of 32 bytes stated", said_to_be("1.2.840.113549.1.1.10", 32), "certificate-signature"),
        ("the usual algorithm and salt", said_to_be("1.2.840.113549.1.1.10", 48), "genuine"),
        ("a key on another curve", key_with([0x22, 0x23]), "usage"),
        ("a key of another kind", key_with([0x01, 0x02]), "usage"),
        ("an authority's certificate as the leaf", Case { leaf: world.root.ask.clone(), ..world.good(3) }, "key-kind"),
    ];
    for (what, case, expected) in rows {
        assert_eq!(world.code(&case), expected, "{what}");
    }
    let cloud = Case { leaf: world.amd.vlek(&world.certificate()), ..world.good(3) };
    let refused = world.judge(&cloud).unwrap_err().to_string();
    assert!(!refused.contains("ASVK"), "the ASVK is missing only for cloud keys: {refused}");
    // A Turin certificate also states the FMC version that its key is for.
    let turin = World::new("Turin");
    assert_eq!(turin.code(&turin.certified(|_| {})), "genuine");
    assert_eq!(turin.code(&turin.certified(|c| c.extensions[6].1 = vec![2, 1, 8])), "tcb-mismatch");
}

#[test]
fn altered_revocation_lists_are_refused_with_their_code() {
    let world = World::new("Milan");
    let listed = |crl: Vec<u8>| Case { crl: Some(crl), ..world.good(2) };
    let good = |revoked: &[u8]| world.amd.crl(BEGINS, Some(ENDS), revoked);
    let mut damaged = good(&[]);
    *damaged.last_mut().unwrap() ^= 1;
    let rows = [
        ("other certificates", good(&[7, 8]), "genuine"),
        ("the authority", good(&[7, 2]), "revoked"),
        ("the root", good(&[1]), "revoked"),
        ("valid from tomorrow", world.amd.crl(NOW + DAY, Some(ENDS), &[]), "stale-crl"),
        ("valid until yesterday", world.amd.crl(BEGINS, Some(NOW - DAY), &[]), "stale-crl"),
        ("valid from this second", world.amd.crl(NOW, Some(ENDS), &[]), "genuine"),
        ("valid until this second", world.amd.crl(BEGINS, Some(NOW), &[]), "genuine"),
        ("two algorithms", world.amd.ambiguous_crl(), "bad-crl"),
        ("without an end", world.amd.crl(BEGINS, None, &[]), "bad-crl"),
        ("a wrong signature", damaged, "bad-crl"),
        ("signed by the authority", world.amd.forged_crl(), "bad-crl"),
        ("for another product", World::new("Genoa").amd.crl(BEGINS, Some(ENDS), &[]), "bad-crl"),
        ("an empty list", Vec::new(), "bad-crl"),
        ("invalid DER content", b"0\x03\x02\x01\x01".to_vec(), "bad-crl"),
    ];
    for (what, crl, expected) in rows {
        assert_eq!(world.code(&listed(crl)), expected, "{what}");
    }
    // No bit of a list can be changed unnoticed.
    let crl = good(&[7]);
    for bit in 0..crl.len() * 8 {
        let mut copy = crl.clone();
        copy[bit / 8] ^= 1 << (bit % 8);
        assert_ne!(world.code(&listed(copy)), "genuine", "bit {bit}");
    }
    let facts = world.judge(&Case { crl: None, ..world.good(2) }).unwrap();
    assert_eq!(facts.crl, Crl::NotGiven);
    let facts = world.judge(&listed(world.amd.crl(BEGINS, Some(NOW + 5), &[]))).unwrap();
    assert_eq!(facts.expires, NOW + 5, "facts expire with the list");
}

#[test]
fn vlek_certificate_needs_its_own_authority_and_has_no_chip_id() {
    for product in ["Milan", "Genoa", "Turin"] {
        let mut world = World::new(product);
        let mut certificate = world.certificate();
        certificate.subject = "SEV-VLEK".into();
        certificate.extensions.retain(|(identifier, _)| !identifier.ends_with(".1.4"));
        let report = world.chip.sign(&world.report(3).with(0x48, &[1 << 2]));
        let mut case = Case { report, leaf: world.amd.vlek(&certificate), ..world.good(3) };
        let facts = world.judge(&case).unwrap();
        assert_eq!((facts.key, facts.chip, facts.crl), (KeyKind::Vlek, None, Crl::Checked));
        case.leaf = world.amd.vcek(&certificate);
        assert_eq!(world.code(&case), "unknown-issuer", "signed by the chip authority");
        case.leaf = world.amd.vlek(&certificate);
        case.crl = Some(world.amd.crl(BEGINS, Some(ENDS), &[3]));
        assert_eq!(world.code(&case), "revoked");
        world.root.asvk = World::new(product).root.asvk;
        assert_eq!(world.code(&case), "certificate-signature", "an authority that the root did not sign");
    }
}

/// As with genuine evidence, every bit of a report of version 3 or 5 and of its certificate is covered.
#[test]
fn every_flipped_bit_is_refused() {
    for (product, version) in [("Genoa", 3), ("Turin", 5)] {
        let world = World::new(product);
        let roots = Roots { amd: vec![world.root.clone()], simulated: true, ..Roots::genuine() };
        let case = world.good(version);
        let Evidence::Amd(mut report) = convert(&case.report).unwrap().evidence else { panic!("no report") };
        report.certificate.clone_from(&case.leaf);
        let bytes = Evidence::Amd(report).encode();
        let collateral = Collateral::Amd(AmdCollateral { crl: case.crl });
        for bit in 0..bytes.len() * 8 {
            let mut copy = bytes.clone();
            copy[bit / 8] ^= 1 << (bit % 8);
            let judged = Evidence::decode(&copy).and_then(|e| examine(&e, Some(&collateral), &roots, NOW));
            assert!(judged.is_err(), "{product}: bit {} of byte {} is not covered", bit % 8, bit / 8);
        }
    }
}

/// Returns the verdict of crate `sev`, which checks only signatures, over a report that it has re-encoded.
fn signed_by_sev(world: &World, case: &Case) -> bool {
    let certificate = |der: &[u8]| sev::certs::snp::Certificate::from_der(der).unwrap();
    let ca = ca::Chain { ark: certificate(&world.root.ark), ask: certificate(&world.root.ask) };
    let chain = sev::certs::snp::Chain { ca, vek: certificate(&case.leaf) };
    AttestationReport::from_bytes(&case.report).is_ok_and(|report| (&chain, &report).verify().is_ok())
}

/// Compares two verifiers on altered reports. `sev` accepts the signature of whatever OpenRelay accepts, and
/// OpenRelay never blames the signature of a report that `sev` takes as signed.
#[test]
fn sev_crate_agrees_about_signatures() {
    for (product, version) in [("Milan", 3), ("Genoa", 2), ("Genoa", 3), ("Turin", 3), ("Turin", 5)] {
        let world = World::new(product);
        let good = world.good(version);
        assert!(world.code(&good) == "genuine" && signed_by_sev(&world, &good), "{product} {version}");
        let strange = Case { leaf: World::new(product).good(version).leaf, ..world.good(version) };
        assert!(world.code(&strange) != "genuine" && !signed_by_sev(&world, &strange), "{product} {version}");
        let (mut believed, mut taken) = (0, 0);
        for at in (0..0x2a0).step_by(8) {
            let said = [0x5a, 0, 0, 0, 0, 0, 0, 0xa5];
            let case = world.signed(&world.report(version).with(at, &said));
            let (code, signed) = (world.code(&case), signed_by_sev(&world, &case));
            assert!(signed || code != "genuine", "{product} {version}, {at:#x}: sev rejects the signature");
            assert!(code != "signature", "{product} {version}, {at:#x}: the signature is valid");
            believed += u32::from(code == "genuine");
            taken += u32::from(signed);
        }
        // Accepted are changes of fields that say nothing about the platform; `sev` also accepts others outside the
        // reserved fields.
        assert!((40..taken).contains(&believed), "{product} {version}: {believed} of {taken}");
        let mut flipped = 0;
        for at in (0..0x4a0).step_by(7) {
            let mut case = world.good(version);
            case.report[at] ^= 1 << (at % 8);
            assert_ne!(world.code(&case), "genuine", "{product} {version}, {at:#x}");
            flipped += u32::from(signed_by_sev(&world, &case));
        }
        // `sev` misses changes in bytes that it does not encode: reserved bytes, and the upper bytes of r and s.
        assert!((20..85).contains(&flipped), "{product} {version}: {flipped}");
    }
}

#[test]
fn pem_bundle_yields_one_leaf_and_one_revocation_list() {
    let world = World::new("Genoa");
    let case = world.good(3);
    let pem = |label: &str, bytes: &[u8]| {
        let packed = base64ct::Base64::encode_string(bytes);
        format!("-----BEGIN {label}-----\n{packed}\n-----END {label}-----\n")
    };
    let crl = case.crl.unwrap();
    let leaf = pem("CERTIFICATE", &case.leaf);
    let AmdRoot { ark, ask, asvk, .. } = &world.root;
    let authorities = [ark, ask, asvk].map(|authority| pem("CERTIFICATE", authority)).concat();
    let all = [authorities, pem("X509 CRL", &crl), leaf.clone(), leaf.clone()].concat();
    let bundle = AmdBundle::from_pem(all.as_bytes()).unwrap();
    assert_eq!((&bundle.leaf, bundle.collateral.crl.as_ref()), (&case.leaf, Some(&crl)));
    // A repeated list is not a contradiction; a different list is.
    let same = [all.as_str(), &pem("X509 CRL", &crl)].concat();
    assert_eq!(AmdBundle::from_pem(same.as_bytes()).unwrap(), bundle);
    let mut list = crl.clone();
    *list.last_mut().unwrap() ^= 1;
    let lists = AmdBundle::from_pem([all.as_str(), &pem("X509 CRL", &list)].concat().as_bytes()).unwrap_err();
    assert!(lists.to_string().contains("two revocation lists"), "{lists}");
    let other = pem("CERTIFICATE", &World::new("Genoa").good(3).leaf);
    let foreign = pem("CERTIFICATE", &world.certified(|certificate| certificate.subject = "Somebody".into()).leaf);
    let foreign = AmdBundle::from_pem([leaf.clone(), foreign].concat().as_bytes()).unwrap_err();
    assert!(foreign.to_string().contains("not one of AMD's"), "{foreign}");
    let two = AmdBundle::from_pem([leaf.clone(), other].concat().as_bytes()).unwrap_err();
    assert!(two.to_string().contains("two chip key certificates"), "{two}");
    // The maximum that is read, and more.
    assert!(AmdBundle::from_pem(leaf.repeat(16).as_bytes()).is_ok());
    let many = AmdBundle::from_pem(leaf.repeat(17).as_bytes()).unwrap_err();
    assert!(many.to_string().contains("17 blocks"), "{many}");
    let padded = |length: usize| " ".repeat(length - leaf.len()) + &leaf;
    assert!(AmdBundle::from_pem(padded(65_536).as_bytes()).is_ok());
    assert_eq!(AmdBundle::from_pem(padded(65_537).as_bytes()).unwrap_err().code(), "too-large");
    assert_eq!((list_issued(&crl), list_issued(&case.leaf)), (Some(BEGINS), None));
}
