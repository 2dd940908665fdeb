//! Evidence signed by real Intel and AMD chips, and the vendors' collateral for it, as third parties published them.
//! testdata/README.md lists the sources.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on must stop")]

use base64ct::Encoding as _;
use openrelay_attest::collateral::{AmdBundle, AmdCollateral, Collateral, IntelCollateral};
use openrelay_attest::evidence::Measurement;
use openrelay_attest::facts::{Crl, KeyKind, Platform, Tcb};
use openrelay_attest::raw::{Converted, convert};
use openrelay_attest::{Evidence, Facts, Refusal, Roots, examine};

fn read(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/testdata/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

/// A day on which each fixture's collateral is valid, in seconds since the Unix epoch.
const JUNE_2025: u64 = 1_750_800_000;
const MARCH_2026: u64 = 1_772_323_200;
const OCTOBER_2026: u64 = 1_792_454_400;

/// The Intel fixtures that verify: name and time.
const INTEL: [(&str, u64); 3] =
    [("sgx_quote", JUNE_2025), ("tdx_quote", JUNE_2025), ("tdx_quote_td15ex", OCTOBER_2026)];

fn intel(name: &str) -> (Evidence, Collateral) {
    let collateral = IntelCollateral::from_json(&read(&format!("{name}_collateral.json"))).unwrap();
    (convert(&read(name)).unwrap().evidence, Collateral::Intel(Box::new(collateral)))
}

/// Returns the Milan report with its certificate.
fn milan() -> Evidence {
    with_certificate(&read("milan_report"), &read("vcek_milan.der"))
}

fn with_certificate(report: &[u8], certificate: &[u8]) -> Evidence {
    let Evidence::Amd(mut report) = convert(report).unwrap().evidence else { panic!("not a report") };
    report.certificate = certificate.to_vec();
    Evidence::Amd(report)
}

fn no_crl() -> Collateral {
    Collateral::Amd(AmdCollateral::default())
}

fn judge(evidence: &Evidence, collateral: &Collateral, now: u64) -> Result<Facts, Refusal> {
    examine(evidence, Some(collateral), &Roots::genuine(), now)
}

fn field<'a>(facts: &'a Facts, name: &str) -> &'a [u8] {
    facts.fields.iter().find(|(own, _)| *own == name).map(|(_, value)| value.as_slice()).unwrap()
}

/// Returns bytes of a fixture at an offset.
fn bytes_of<const N: usize>(name: &str, at: usize) -> [u8; N] {
    *read(name)[at..].first_chunk().unwrap()
}

#[test]
fn sgx_quote_gives_its_facts() {
    let (evidence, collateral) = intel("sgx_quote");
    let facts = judge(&evidence, &collateral, JUNE_2025).unwrap();
    assert_eq!((facts.platform, facts.version, facts.key), (Platform::Sgx, 3, KeyKind::Pck));
    assert_eq!((facts.product.as_str(), facts.simulated, facts.crl), ("00a067110000", false, Crl::Checked));
    assert_eq!(&facts.report_data[..13], b"Hello, world!");
    assert_eq!(facts.measurement, Measurement::Sgx(bytes_of("sgx_quote", 48 + 64)));
    let Tcb::Intel { status, advisories, evaluation } = &facts.tcb else { panic!("{:?}", facts.tcb) };
    assert_eq!((status.as_str(), *evaluation), ("ConfigurationAndSWHardeningNeeded", 17));
    assert!(advisories.contains(&"INTEL-SA-00289".to_owned()), "{advisories:?}");
    assert!(facts.expires > JUNE_2025 && facts.expires < JUNE_2025 + 31 * 86_400);
}

#[test]
fn tdx_quote_of_version_4_gives_its_facts() {
    let Converted { evidence, trimmed } = convert(&read("tdx_quote")).unwrap();
    assert_eq!(trimmed, 70, "zeros that a cloud appended");
    let facts = judge(&evidence, &intel("tdx_quote").1, JUNE_2025).unwrap();
    assert_eq!((facts.platform, facts.version, field(&facts, "td_attributes").len()), (Platform::Tdx, 4, 8));
    let register = |at: usize| bytes_of("tdx_quote", 48 + at);
    let rtmrs = [328, 376, 424, 472].map(register);
    assert_eq!(facts.measurement, Measurement::Tdx { mrtd: register(136), rtmrs });
    assert!(rtmrs[1] != [0; 48] && rtmrs[1] != rtmrs[2], "a kernel and a command line were measured");
    assert_eq!(facts.report_data, evidence.report_data());
    let Tcb::Intel { status, .. } = &facts.tcb else { panic!("{:?}", facts.tcb) };
    assert_eq!(status, "UpToDate");
    // Another quote of the same machine would have the same tag; a quote of another machine has another one.
    let other = judge(&intel("tdx_quote_td15ex").0, &intel("tdx_quote_td15ex").1, OCTOBER_2026).unwrap();
    assert!(facts.chip.is_some() && facts.chip != other.chip);
    assert_eq!((other.version, field(&other, "tee_tcb_svn_2").len()), (5, 16));
}

#[test]
fn milan_report_gives_its_facts() {
    let facts = judge(&milan(), &no_crl(), JUNE_2025).unwrap();
    assert_eq!((facts.platform, facts.version, facts.key), (Platform::SevSnp, 2, KeyKind::Vcek));
    assert_eq!((facts.product.as_str(), facts.crl), ("Milan", Crl::NotGiven));
    let Tcb::Amd { reported, .. } = facts.tcb else { panic!("{:?}", facts.tcb) };
    assert_eq!((reported.boot_loader, reported.tee, reported.snp, reported.microcode), (3, 0, 8, 0x73));
    assert!(facts.chip.is_some() && facts.fields.iter().any(|(name, _)| *name == "policy"));
}

/// Each row changes one thing, and is refused with the code of that change.
#[test]
fn mismatched_evidence_collateral_or_roots_are_refused() {
    let (sgx, sgx_collateral) = intel("sgx_quote");
    let (tdx, tdx_collateral) = intel("tdx_quote");
    let (outdated, newer) = intel("tdx_quote_outdated");
    let code = |result: Result<Facts, Refusal>| result.map_or_else(|refusal| refusal.code(), |_| "genuine");
    assert_eq!(code(judge(&outdated, &newer, MARCH_2026)), "no-tcb-level");
    assert_eq!(code(judge(&tdx, &newer, MARCH_2026)), "other-model");
    assert_eq!(code(judge(&tdx, &sgx_collateral, JUNE_2025)), "qe-identity");
    assert_eq!(code(judge(&sgx, &tdx_collateral, JUNE_2025)), "qe-identity");
    assert_eq!(code(judge(&sgx, &no_crl(), JUNE_2025)), "other-collateral");
    assert_eq!(code(judge(&milan(), &tdx_collateral, JUNE_2025)), "other-collateral");
    let roots = Roots::genuine();
    assert_eq!(code(examine(&tdx, None, &roots, JUNE_2025)), "no-collateral");
    // Certificates: of another chip, of another product, missing.
    let report = read("milan_report");
    let azure = AmdBundle::from_pem(&read("azure_certificates.pem")).unwrap().leaf;
    assert_eq!(code(judge(&with_certificate(&report, &azure), &no_crl(), JUNE_2025)), "signature");
    let turin = with_certificate(&report, &read("vcek_turin.der"));
    assert_eq!(code(judge(&turin, &no_crl(), JUNE_2025)), "signature");
    assert_eq!(code(judge(&with_certificate(&report, &[]), &no_crl(), JUNE_2025)), "no-certificate");
    let azure_report = with_certificate(&read("azure_report"), &azure);
    assert_eq!(code(judge(&azure_report, &no_crl(), JUNE_2025)), "signature", "with another chip's certificate");
    // Roots: none, or other ones.
    let rootless = Roots { intel_pck: Vec::new(), amd: Vec::new(), ..Roots::genuine() };
    assert_eq!(code(examine(&tdx, Some(&tdx_collateral), &rootless, JUNE_2025)), "unknown-issuer");
    assert_eq!(code(examine(&milan(), None, &rootless, JUNE_2025)), "unknown-issuer");
    let strange = Roots { intel: roots.intel_pck[0].clone(), ..Roots::genuine() };
    assert_ne!(code(examine(&tdx, Some(&tdx_collateral), &strange, JUNE_2025)), "genuine");
}

#[test]
fn validity_periods_are_exact_to_the_second() {
    let code = |name: &str, now| {
        let (evidence, collateral) = intel(name);
        judge(&evidence, &collateral, now).map_or_else(|refusal| refusal.code(), |_| "genuine")
    };
    // Valid from the latest issue time, on 19 June 2025: the TCB info's, 10:56:11, and the quoting enclave identity's,
    // 10:32:27.
    for (name, begins, ended) in [("sgx_quote", 1_750_330_571, "expired"), ("tdx_quote", 1_750_329_147, "stale-crl")] {
        let (evidence, collateral) = intel(name);
        let ends = judge(&evidence, &collateral, JUNE_2025).unwrap().expires;
        let results = [begins - 1, begins, ends - 1, ends + 1].map(|now| code(name, now));
        assert_eq!(results, ["not-yet-valid", "genuine", "genuine", ended], "{name}");
    }
    let milan = |now| judge(&milan(), &no_crl(), now).map_or_else(|refusal| refusal.code(), |_| "genuine");
    // Valid from 2023-04-03 19:23:43 to 2030-04-03.
    assert_eq!([1_680_549_822, 1_680_549_823].map(milan), ["not-yet-valid", "genuine"]);
    assert_eq!([1_901_474_623, 1_901_474_624].map(milan), ["genuine", "expired"]);
}

#[test]
fn evidence_has_one_encoding_and_its_own_identity() {
    let all = INTEL.iter().map(|(name, _)| intel(name).0).chain([milan()]);
    let mut identities = std::collections::BTreeSet::new();
    for evidence in all {
        let bytes = evidence.encode();
        assert!(bytes.len() < 3_072, "{} bytes", bytes.len());
        assert_eq!(Evidence::decode(&bytes), Ok(evidence.clone()));
        for end in 0..bytes.len() {
            assert!(Evidence::decode(&bytes[..end]).is_err(), "cut at {end}");
        }
        assert_eq!(Evidence::decode(&[&bytes[..], &[0]].concat()).unwrap_err().code(), "trailing-bytes");
        identities.insert(evidence.identity());
    }
    assert_eq!(identities.len(), 4);
    // Evidence of the maximum size, and one byte larger.
    for (evidence, limit) in [(intel("sgx_quote").0, 16_384), (milan(), 4_096)] {
        let longer = |by: usize| {
            let mut evidence = evidence.clone();
            match &mut evidence {
                Evidence::Intel(quote) => quote.certificate.resize(quote.certificate.len() + by, 0),
                Evidence::Amd(report) => report.certificate.resize(report.certificate.len() + by, 0),
            }
            evidence.encode()
        };
        let room = limit - evidence.encode().len();
        assert!(Evidence::decode(&longer(room)).is_ok());
        assert_eq!(Evidence::decode(&longer(room + 1)).unwrap_err().code(), "too-large");
    }
    assert_eq!(Evidence::decode(&[3]).unwrap_err().code(), "not-evidence");
}

/// Signatures and strict parsing cover every bit of the evidence.
#[test]
fn every_flipped_bit_is_refused() {
    for (name, now) in INTEL {
        let (evidence, collateral) = intel(name);
        flip_all(name, &evidence, &collateral, now);
    }
    flip_all("milan_report", &milan(), &no_crl(), JUNE_2025);
}

fn flip_all(name: &str, evidence: &Evidence, collateral: &Collateral, now: u64) {
    let bytes = evidence.encode();
    judge(evidence, collateral, now).unwrap();
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for worker in 0..workers {
            let bytes = &bytes;
            scope.spawn(move || {
                for bit in (worker..bytes.len() * 8).step_by(workers) {
                    let mut copy = bytes.clone();
                    copy[bit / 8] ^= 1 << (bit % 8);
                    let judged = Evidence::decode(&copy).and_then(|evidence| judge(&evidence, collateral, now));
                    assert!(judged.is_err(), "{name}: flipping bit {} of byte {} is not noticed", bit % 8, bit / 8);
                }
            });
        }
    });
}

#[test]
fn bytes_after_evidence_are_trimmed_if_zero_and_refused_otherwise() {
    for name in ["sgx_quote", "tdx_quote_td15ex", "milan_report"] {
        let raw = read(name);
        let plain = convert(&raw).unwrap();
        let padded = convert(&[&raw[..], &[0; 500]].concat()).unwrap();
        assert_eq!((padded.evidence, padded.trimmed), (plain.evidence, plain.trimmed + 500));
        let dirty = [&raw[..], &[0; 500], &[1]].concat();
        assert_eq!(convert(&dirty).unwrap_err().code(), "trailing-bytes");
        for end in 0..raw.len() - 1 {
            assert!(convert(&raw[..end]).is_err(), "{name} cut at {end}");
        }
        let long = |length: usize| convert(&[&raw[..], &vec![0; length - raw.len()]].concat());
        assert!(long(65_536).is_ok(), "{name}");
        assert_eq!(long(65_537).unwrap_err().code(), "too-large", "{name}");
    }
    for other in [&b""[..], b"MZ", &[0; 2_000], &[3, 0, 2, 0]] {
        assert!(convert(other).is_err());
    }
}

/// A version 4 quote can have zeros in three places: after the certificates, after the data around them, and after the
/// quote. Its certificate may fill the evidence up to the size limit.
#[test]
fn zeros_are_counted_in_all_places_and_certificate_size_is_limited() {
    let raw = read("tdx_quote");
    let number = |at: usize| u32::from_le_bytes(*raw[at..].first_chunk().unwrap()) as usize;
    // Header and body; then length of the rest, signature, key, kind, length of the inner data, and the inner data.
    let (signed, inner) = (632, 632 + 4 + 64 + 64 + 2 + 4);
    let held = &raw[inner..inner + number(inner - 4)];
    let with = |held: &[u8], around: usize, behind: usize| {
        let length = |length: usize| u32::try_from(length).unwrap().to_le_bytes();
        let whole = length(134 + held.len() + around);
        let parts =
            [&raw[..signed], &whole, &raw[signed + 4..inner - 4], &length(held.len()), held, &vec![0; around + behind]];
        parts.concat()
    };
    let trimmed = |raw: &[u8]| convert(raw).unwrap().trimmed;
    let none = trimmed(&with(held, 0, 0));
    assert_eq!(trimmed(&with(held, 3, 0)), none + 3);
    assert_eq!(trimmed(&with(held, 3, 4)), none + 7);
    assert_eq!(trimmed(&with(&[held, &[0; 5]].concat(), 3, 4)), none + 12);
    let dirty = convert(&with(&[held, &[0, 1]].concat(), 0, 0)).unwrap_err();
    assert_eq!(dirty.code(), "trailing-bytes");
    let other = convert(&raw).unwrap().evidence;
    let Evidence::Intel(quote) = &other else { panic!("not a quote") };
    let room = 16_384 - (other.encode().len() - quote.certificate.len());
    for (length, expected) in [(room, None), (room + 1, Some("too-large"))] {
        let packed = base64ct::Base64::encode_string(&vec![7; length]);
        let chain = format!("-----BEGIN CERTIFICATE-----\n{packed}\n-----END CERTIFICATE-----\n");
        let size = u32::try_from(chain.len()).unwrap().to_le_bytes();
        let converted = convert(&with(&[&held[..484], &size, chain.as_bytes()].concat(), 0, 0));
        assert_eq!(converted.err().map(|refusal| refusal.code()), expected, "{length} bytes");
    }
}

/// Reserved bytes of the report and the upper bytes of r and s. The vendor's own tools do not check them.
#[test]
fn unsigned_bytes_of_a_report_must_be_zero() {
    let raw = read("milan_report");
    for at in (0x2a0 + 48..0x2a0 + 72).chain(0x2e8 + 48..0x4a0) {
        let mut copy = raw.clone();
        copy[at] ^= 1;
        assert_eq!(convert(&copy).unwrap_err().code(), "not-canonical", "byte {at:#x}");
    }
}

/// Some machines of 2021 wrote their quotes like this.
#[test]
fn certificate_chain_without_line_breaks_is_parsed() {
    let (good, glued) = (read("sgx_quote"), "-----END CERTIFICATE----------BEGIN CERTIFICATE-----");
    let begin = good.windows(20).position(|bytes| bytes == b"-----BEGIN CERTIFICA").unwrap();
    let chain = std::str::from_utf8(&good[begin..]).unwrap().trim_end_matches('\0');
    let chain = chain.replace("-----END CERTIFICATE-----\n-----BEGIN CERTIFICATE-----", glued);
    assert_eq!(chain.matches(glued).count(), 2);
    let length = |number: usize| u32::try_from(number).unwrap().to_le_bytes();
    // Header and body, the length of the rest, and the length of the chain in it.
    let inside = [&good[436..begin - 4], &length(chain.len()), chain.as_bytes()].concat();
    let quote = [&good[..432], &length(inside.len()), &inside].concat();
    assert_eq!(convert(&quote).unwrap().evidence, convert(&good).unwrap().evidence);
}

#[test]
fn refusal_of_collateral_names_the_missing_field() {
    let whole: serde_json::Value = serde_json::from_slice(&read("tdx_quote_collateral.json")).unwrap();
    for (name, _) in whole.as_object().unwrap() {
        let mut partial = whole.clone();
        partial.as_object_mut().unwrap().remove(name);
        let refusal = IntelCollateral::from_json(partial.to_string().as_bytes()).unwrap_err();
        let expected = if name.ends_with("_crl") { "no-crl" } else { "malformed-collateral" };
        assert_eq!(refusal.code(), expected, "{name}");
        partial[name] = 7.into();
        let refusal = IntelCollateral::from_json(partial.to_string().as_bytes()).unwrap_err();
        assert!(refusal.to_string().contains(name.as_str()), "{refusal}");
    }
    // The same lists in base64 and in PEM.
    let plain = IntelCollateral::from_json(whole.to_string().as_bytes()).unwrap();
    let packed = base64ct::Base64::encode_string(&plain.pck_crl);
    let digits: String = plain.pck_crl.iter().map(|byte| format!("{byte:02x}")).collect();
    let forms = [
        packed.clone(),
        packed.trim_end_matches('=').to_owned(),
        format!("-----BEGIN X509 CRL-----\n{packed}\n-----END X509 CRL-----\n"),
        format!("-----BEGIN X509 CRL-----{packed}-----END X509 CRL-----"),
        format!("0x{digits}\0"),
        digits.replace("30", "3\n0"),
    ];
    for form in forms {
        let mut other = whole.clone();
        other["pck_crl"] = form.into();
        assert_eq!(IntelCollateral::from_json(other.to_string().as_bytes()), Ok(plain.clone()));
    }
    let mut large = whole;
    large["tcb_info"] = "x".repeat(70_000).into();
    assert_eq!(IntelCollateral::from_json(large.to_string().as_bytes()).unwrap_err().code(), "too-large");
}

#[test]
fn amd_bundle_is_parsed_in_any_order_and_has_one_leaf() {
    let pem = String::from_utf8(read("azure_certificates.pem")).unwrap();
    let bundle = AmdBundle::from_pem(pem.as_bytes()).unwrap();
    assert_eq!(bundle.collateral.crl, None);
    let mut blocks: Vec<&str> = pem.split_inclusive("-----END CERTIFICATE-----\n").collect();
    blocks.reverse();
    assert_eq!(AmdBundle::from_pem(blocks.concat().as_bytes()).unwrap().leaf, bundle.leaf);
    // Without line breaks, with a note in another encoding, and as the single certificate that AMD's service returns.
    let glued = [b"\xef\xbb\xbf caf\xe9 ".to_vec(), blocks.concat().replace('\n', "").into_bytes()].concat();
    assert_eq!(AmdBundle::from_pem(&glued).unwrap().leaf, bundle.leaf);
    assert_eq!(AmdBundle::from_pem(&bundle.leaf).unwrap(), bundle);
    let authorities: String = blocks[..blocks.len() - 1].concat();
    assert_eq!(AmdBundle::from_pem(authorities.as_bytes()).unwrap_err().code(), "no-certificate");
    for wrong in ["", "nothing", "-----BEGIN CERTIFICATE-----\nAAAA", "-----BEGIN KEY-----\nAAAA\n-----END KEY-----\n"]
    {
        assert_eq!(AmdBundle::from_pem(wrong.as_bytes()).unwrap_err().code(), "malformed-collateral", "{wrong}");
    }
}

/// Each change hits collateral that matters for the verification.
#[test]
fn tampered_collateral_is_refused() {
    let (evidence, collateral) = intel("tdx_quote");
    let Collateral::Intel(good) = collateral else { panic!("not Intel's collateral") };
    let judge =
        |collateral: &IntelCollateral| judge(&evidence, &Collateral::Intel(Box::new(collateral.clone())), JUNE_2025);
    judge(&good).unwrap();
    let flips = |bytes: &[u8]| (0..bytes.len()).step_by(7).collect::<Vec<_>>();
    for at in flips(&good.pck_crl) {
        let mut bad = good.clone();
        bad.pck_crl[at] ^= 4;
        assert!(judge(&bad).is_err(), "pck_crl, byte {at}");
    }
    for at in 0..good.root_ca_crl.len() {
        let mut bad = good.clone();
        bad.root_ca_crl[at] ^= 1;
        assert!(judge(&bad).is_err(), "root_ca_crl, byte {at}");
    }
    for at in 0..64 {
        let mut bad = good.clone();
        bad.tcb_info_signature[at] ^= 1;
        assert_eq!(judge(&bad).unwrap_err().code(), "tcb-info");
        let mut bad = good.clone();
        bad.qe_identity_signature[at] ^= 1;
        assert_eq!(judge(&bad).unwrap_err().code(), "qe-identity");
    }
    let changed = |text: &str, from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1)
    };
    let mut bad = good.clone();
    bad.tcb_info = changed(&good.tcb_info, "\"UpToDate\"", "\"OutOfDate\"");
    assert_eq!(judge(&bad).unwrap_err().code(), "tcb-info");
    let mut bad = good.clone();
    bad.qe_identity = changed(&good.qe_identity, "\"isvprodid\":2", "\"isvprodid\":1");
    assert_eq!(judge(&bad).unwrap_err().code(), "qe-identity");
    // The two lists swapped.
    let mut bad = good.clone();
    std::mem::swap(&mut bad.pck_crl, &mut bad.root_ca_crl);
    assert_eq!(judge(&bad).unwrap_err().code(), "bad-crl");
}
