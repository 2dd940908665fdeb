//! Fetches what Intel and AMD publish about the machines that relays run on, and puts it into one bundle.
//!
//! Owns which services are asked for what. No part is trusted as fetched: each is checked with some relay's evidence
//! before it is published or voted for. Sources: Intel SGX and TDX Provisioning Certification Service, API version 4;
//! AMD VCEK certificate and KDS interface specification (57230).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openrelay_attest::bundle::{AmdProduct, Bundle};
use openrelay_attest::collateral::{AmdCollateral, IntelCollateral, list_issued};
use openrelay_attest::facts::Crl;
use openrelay_attest::verdict::Staple;
use openrelay_attest::{Collateral, Evidence, Roots, check_staple, examine};
use openrelay_chain::transport::get;

use crate::failure::Failure;
use crate::output::talk;

const PATIENCE: Duration = Duration::from_secs(60);
/// Maximum number of processor models to request, beginning with those of most relays.
const MODELS: usize = 64;
/// The largest answer, in bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// The services of the vendors.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Services {
    /// Intel's provisioning certification service
    #[arg(long, value_name = "URL", default_value = "https://api.trustedservices.intel.com")]
    pub(crate) intel: String,
    /// Intel's list of revoked authorities
    #[arg(
        long,
        value_name = "URL",
        default_value = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
    )]
    pub(crate) intel_root_crl: String,
    /// AMD's key distribution service
    #[arg(long, value_name = "URL", default_value = "https://kdsintf.amd.com")]
    pub(crate) amd: String,
}

/// A processor model of Intel's in an environment, as a quote's certificate states it. It decides nothing but what to
/// ask.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Model {
    environment: String,
    fmspc: String,
    /// The authority that signed the certificate.
    authority: &'static str,
}

impl Services {
    /// Fetches the collateral for these relays' evidence, as far as the vendors have it. Floors come from `held`, and
    /// so do parts for which no relay has evidence at present. A model that no vendor knows is skipped.
    pub(super) fn fetch(&self, staples: &[Staple], held: &Bundle, roots: &Roots, now: u64) -> Bundle {
        let mut bundle = held.clone();
        let (models, products) = machines(staples, roots, now);
        let passed_over = |what: &str, why: &dyn std::fmt::Display| {
            talk(&format!("openrelay: warning: no collateral for {what}: {why}"));
        };
        for model in &models {
            match self.of_model(model) {
                Ok(entry) => {
                    bundle.intel.retain(|own| own.subject() != entry.subject());
                    bundle.intel.push(entry);
                }
                Err(failure) => passed_over(&model.fmspc, &failure),
            }
        }
        for product in products {
            let Some(entry) = bundle.amd.iter_mut().find(|entry| entry.product == product) else {
                passed_over(product, &"no floor is known; give a file with one: --floors");
                continue;
            };
            match ask(&format!("{}/vcek/v1/{product}/crl", base(&self.amd))) {
                Ok(list) => entry.collateral.crl = Some(list.body),
                Err(failure) => passed_over(product, &failure),
            }
        }
        // A part that verifies no evidence is reset to the part in force, or is left out.
        let genuine = genuine_of(&bundle, staples, roots, now);
        bundle.intel.retain(|entry| {
            let good = held.intel.contains(entry) || genuine.contains(&Collateral::Intel(Box::new(entry.clone())));
            if !good {
                passed_over("Intel's", &"it verifies no relay's evidence");
            }
            good
        });
        for own in &held.intel {
            if bundle.intel.iter().all(|entry| entry.subject() != own.subject()) {
                bundle.intel.push(own.clone());
            }
        }
        for entry in &mut bundle.amd {
            if !genuine.contains(&Collateral::Amd(entry.collateral.clone()))
                && let Some(own) = held.amd.iter().find(|own| own.product == entry.product)
            {
                entry.clone_from(own);
            }
        }
        bundle.intel.sort_by_key(IntelCollateral::subject);
        bundle.amd.sort_by(|one, other| one.product.cmp(&other.product));
        bundle.amd.retain(|entry| entry.collateral.crl.is_some());
        bundle
    }

    fn of_model(&self, model: &Model) -> Result<IntelCollateral, Failure> {
        let base = base(&self.intel);
        let kind = model.environment.to_lowercase();
        let info = ask(&format!("{base}/{kind}/certification/v4/tcb?fmspc={}", model.fmspc))?;
        let identity = ask(&format!("{base}/{kind}/certification/v4/qe/identity"))?;
        let crl = ask(&format!("{base}/sgx/certification/v4/pckcrl?ca={}&encoding=der", model.authority))?;
        let (tcb_info, tcb_info_signature) = info.signed("tcbInfo")?;
        let (qe_identity, qe_identity_signature) = identity.signed("enclaveIdentity")?;
        Ok(IntelCollateral {
            tcb_info,
            tcb_info_signature,
            tcb_info_issuer_chain: info.chain("tcb-info-issuer-chain")?,
            qe_identity,
            qe_identity_signature,
            qe_identity_issuer_chain: identity.chain("sgx-enclave-identity-issuer-chain")?,
            pck_crl_issuer_chain: crl.chain("sgx-pck-crl-issuer-chain")?,
            pck_crl: crl.body,
            root_ca_crl: ask(&self.intel_root_crl)?.body,
        })
    }
}

/// Returns the models and products of the relays' machines. A staple counts only if a chip of the vendor has signed
/// it for what it is bound to. Then the vendor has certified the model too, so invented models take no place.
fn machines(staples: &[Staple], roots: &Roots, now: u64) -> (Vec<Model>, BTreeSet<&'static str>) {
    let (mut models, mut products) = (BTreeMap::<Model, BTreeSet<u64>>::new(), BTreeSet::new());
    for staple in staples.iter().filter(|staple| check_staple(staple, roots, now).is_ok()) {
        match &staple.evidence {
            Evidence::Intel(quote) => {
                if let Some(model) = Model::of(quote) {
                    models.entry(model).or_default().insert(staple.binding.relay_id);
                }
            }
            Evidence::Amd(report) => products.extend(report.product_name()),
        }
    }
    let mut models: Vec<_> = models.into_iter().collect();
    models.sort_by_key(|(_, relays)| std::cmp::Reverse(relays.len()));
    (models.into_iter().map(|(model, _)| model).take(MODELS).collect(), products)
}

impl Model {
    fn of(quote: &openrelay_attest::intel::Quote) -> Option<Self> {
        let issued_by = |name: &[u8]| quote.certificate.windows(name.len()).any(|bytes| bytes == name);
        let authority = if issued_by(b"PCK Platform CA") { "platform" } else { "processor" };
        Some(Self { environment: quote.environment().to_owned(), fmspc: quote.model()?, authority })
    }
}

/// Returns the collateral in a bundle that makes some evidence genuine, with revocation checked.
fn genuine_of(bundle: &Bundle, staples: &[Staple], roots: &Roots, now: u64) -> Vec<Collateral> {
    let mut genuine = Vec::new();
    for staple in staples {
        for collateral in bundle.candidates(&staple.evidence) {
            let facts = examine(&staple.evidence, Some(&collateral), roots, now);
            if facts.is_ok_and(|facts| facts.crl == Crl::Checked) && !genuine.contains(&collateral) {
                genuine.push(collateral);
            }
        }
    }
    genuine
}

/// Checks a bundle with relay evidence and the bundle in force, `held`:
///
/// - It has all parts that `held` has, and none of them is older.
/// - Each part verifies some relay's evidence, or is the part in force.
/// - The parts are in canonical order.
///
/// Returns the smallest and the greatest number of Intel's evaluation in the bundle.
///
/// # Errors
/// [`Failure`] with what is wrong.
pub(super) fn check(
    bundle: &Bundle,
    held: &Bundle,
    staples: &[Staple],
    roots: &Roots,
    now: u64,
) -> Result<Option<(u32, u32)>, Failure> {
    let strange = |what: &str| Err(Failure::plain(format!("this collateral cannot be voted for: {what}")));
    let ascends = bundle.intel.windows(2).all(|two| two[0].subject() < two[1].subject())
        && bundle.amd.windows(2).all(|two| two[0].product < two[1].product);
    if !ascends {
        return strange("its parts are out of order or duplicated");
    }
    let genuine = genuine_of(bundle, staples, roots, now);
    for entry in &bundle.intel {
        let own = held.intel.iter().find(|own| own.subject() == entry.subject());
        if own.is_some_and(|own| intel_dates(own).iter().zip(intel_dates(entry)).any(|(own, new)| *own > new)) {
            return strange("a part from Intel is older than the one in force");
        }
        if own != Some(entry) && !genuine.contains(&Collateral::Intel(Box::new(entry.clone()))) {
            return strange("a part from Intel verifies no relay's evidence");
        }
    }
    for entry in &bundle.amd {
        let own = held.amd.iter().find(|own| own.product == entry.product);
        if own.is_some_and(|own| own.collateral.crl.is_some() && amd_date(own) > amd_date(entry)) {
            return strange("a list from AMD is older than the one in force");
        }
        if own != Some(entry) && !genuine.contains(&Collateral::Amd(entry.collateral.clone())) {
            return strange("a part from AMD verifies no relay's evidence");
        }
        if entry.collateral.crl.is_none() {
            return strange("a part from AMD has no list of revoked certificates");
        }
    }
    let has_intel = |own: &IntelCollateral| bundle.intel.iter().any(|entry| entry.subject() == own.subject());
    let has_amd = |own: &AmdProduct| bundle.amd.iter().any(|entry| entry.product == own.product);
    if !held.intel.iter().all(has_intel) || !held.amd.iter().filter(|own| own.collateral.crl.is_some()).all(has_amd) {
        return strange("a part that is in force is missing");
    }
    let evaluations = || bundle.intel.iter().filter_map(evaluation);
    Ok(evaluations().min().zip(evaluations().max()))
}

/// Returns the number of Intel's evaluation, which is signed with the rest.
fn evaluation(entry: &IntelCollateral) -> Option<u32> {
    let object: serde_json::Value = serde_json::from_str(&entry.tcb_info).ok()?;
    u32::try_from(object["tcbEvaluationDataNumber"].as_u64()?).ok()
}

/// Returns when the parts were issued, in seconds since the Unix epoch; 0 for a part without a date.
fn intel_dates(entry: &IntelCollateral) -> [u64; 4] {
    let date = |text: &str| {
        let object: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        let date = object["issueDate"].as_str().and_then(|date| chrono::DateTime::parse_from_rfc3339(date).ok());
        date.and_then(|date| u64::try_from(date.timestamp()).ok()).unwrap_or(0)
    };
    let list = |der: &[u8]| list_issued(der).unwrap_or(0);
    [date(&entry.tcb_info), date(&entry.qe_identity), list(&entry.pck_crl), list(&entry.root_ca_crl)]
}

fn amd_date(entry: &AmdProduct) -> u64 {
    entry.collateral.crl.as_deref().and_then(list_issued).unwrap_or(0)
}

/// Returns when the parts of a bundle were issued, the oldest first. Of two bundles the newer one compares greater.
pub(super) fn issued(bundle: &Bundle) -> Vec<u64> {
    let mut dates: Vec<u64> = bundle.intel.iter().flat_map(intel_dates).collect();
    dates.extend(bundle.amd.iter().map(amd_date));
    dates.sort_unstable();
    dates
}

/// Returns the bundle in force, with the floors for AMD's firmware from another bundle if that one's number is
/// higher.
pub(super) fn with_floors(mut held: Bundle, named: &Bundle) -> Bundle {
    if named.amd_floor > held.amd_floor {
        held.amd_floor = named.amd_floor;
        for entry in &named.amd {
            match held.amd.iter_mut().find(|own| own.product == entry.product) {
                Some(own) => own.floor = entry.floor,
                None => held.amd.push(AmdProduct { collateral: AmdCollateral::default(), ..entry.clone() }),
            }
        }
    }
    held
}

/// The answer of a service.
struct Answer {
    url: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

fn base(url: &str) -> &str {
    url.trim_end_matches('/')
}

fn ask(url: &str) -> Result<Answer, Failure> {
    let (headers, body) = get(url, PATIENCE, MAX_ANSWER).map_err(Failure::plain)?;
    let headers = headers.iter();
    let headers = headers.filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())));
    Ok(Answer { url: url.to_owned(), headers: headers.collect(), body })
}

impl Answer {
    fn fault(&self, why: &str) -> Failure {
        Failure::plain(format!("{}: {why}", self.url))
    }

    /// Returns the object of this name, byte for byte as it was signed, and its signature.
    fn signed(&self, name: &str) -> Result<(String, Vec<u8>), Failure> {
        let unlike = || self.fault(&format!("this is not a signed {name}"));
        let text = std::str::from_utf8(&self.body).map_err(|_| unlike())?.trim();
        let inner = text.strip_prefix(&format!("{{\"{name}\":")).ok_or_else(unlike)?;
        let (object, rest) = inner.rsplit_once(",\"signature\":\"").ok_or_else(unlike)?;
        let signature = rest.strip_suffix("\"}").and_then(|hex| alloy_primitives::hex::decode(hex).ok());
        Ok((object.to_owned(), signature.ok_or_else(unlike)?))
    }

    /// Returns the certificate chain in a header: PEM, percent-encoded.
    fn chain(&self, header: &str) -> Result<String, Failure> {
        let missing = || self.fault(&format!("the header {header} with certificates is missing or malformed"));
        let packed = self.headers.get(header).ok_or_else(missing)?;
        let (mut out, mut rest) = (Vec::new(), packed.bytes());
        while let Some(byte) = rest.next() {
            out.push(match byte {
                b'%' => {
                    let digits = [rest.next(), rest.next()].map(|digit| char::from(digit.unwrap_or(b'?')).to_digit(16));
                    let [Some(high), Some(low)] = digits else { return Err(missing()) };
                    u8::try_from(high * 16 + low).map_err(Failure::plain)?
                }
                other => other,
            });
        }
        String::from_utf8(out).map_err(|_| missing())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue must stop")]
    use openrelay_attest::binding::Binding;
    use openrelay_attest::raw::convert;
    use openrelay_sim::intel::{BEGINS, FMSPC, Machine, MockIntel};

    use super::*;

    fn answer(body: &str, chain: &str) -> Answer {
        let headers = [("tcb-info-issuer-chain".to_owned(), chain.to_owned())].into();
        Answer { url: "http://x".into(), headers, body: body.as_bytes().to_vec() }
    }

    /// Returns evidence of an Intel machine, bound to this relay.
    fn staple(intel: &MockIntel, relay_id: u64) -> Staple {
        let binding = Binding {
            network: [1; 32],
            relay_id,
            handshake_key: [2; 32],
            key_epoch: 1,
            roles: 1,
            image: [3; 32],
            block_hash: [4; 32],
            block_height: 256,
        };
        let raw = Machine::default().quote(intel, |quote| quote.put(520, &binding.report_data()));
        Staple { evidence: convert(&raw).unwrap().evidence, binding }
    }

    /// Returns the same evidence with another model in its certificate, which Intel has not signed.
    fn invented(genuine: &Staple, number: u8) -> Staple {
        let mut staple = genuine.clone();
        let Evidence::Intel(quote) = &mut staple.evidence else { panic!("no quote") };
        let at = quote.certificate.windows(6).position(|bytes| bytes == FMSPC).unwrap();
        quote.certificate[at..at + 6].copy_from_slice(&[0, 0, 0, 0, 0, number]);
        staple
    }

    #[test]
    fn models_that_no_vendor_has_certified_displace_no_real_one() {
        let intel = MockIntel::default();
        let genuine = staple(&intel, 1);
        let mut all: Vec<Staple> = (0..64).map(|number| invented(&genuine, number)).collect();
        all.push(genuine.clone());
        let claimed: BTreeSet<Model> = all
            .iter()
            .filter_map(|staple| if let Evidence::Intel(quote) = &staple.evidence { Model::of(quote) } else { None })
            .collect();
        let real = claimed.last().unwrap().clone();
        assert_eq!((claimed.len(), real.fmspc.as_str()), (65, "50806f000000"), "it is the last of all claimed models");
        assert_eq!(machines(&all, &intel.roots(), BEGINS + 86_400), (vec![real], BTreeSet::new()));
        // A quote of another relay does not count either: its binding does not match what this relay states.
        let mut foreign = genuine;
        foreign.binding.relay_id = 2;
        assert!(machines(&[foreign], &intel.roots(), BEGINS + 86_400).0.is_empty());
    }

    #[test]
    fn signed_object_is_extracted_byte_for_byte() {
        let good = answer(
            "{\"tcbInfo\":{\"a\": \"\\\",\\\"signature\\\":\"},\"signature\":\"00ff\"}",
            "-----BEGIN%20X-----%0Aa%2Bb",
        );
        assert_eq!(good.signed("tcbInfo").unwrap(), ("{\"a\": \"\\\",\\\"signature\\\":\"}".into(), vec![0, 255]));
        assert_eq!(good.chain("tcb-info-issuer-chain").unwrap(), "-----BEGIN X-----\na+b");
        assert!(good.signed("enclaveIdentity").is_err() && good.chain("other").is_err());
        for body in [
            "",
            "{}",
            "{\"tcbInfo\":{}",
            "{\"tcbInfo\":{},\"signature\":\"0\"}",
            "{\"tcbInfo\":{},\"signature\":\"00\"} ",
        ] {
            assert_eq!(answer(body, "%4").signed("tcbInfo").is_ok(), body.ends_with("\"00\"} "), "{body}");
        }
        for chain in ["%", "%4", "%zz", "%ff"] {
            assert!(answer("", chain).chain("tcb-info-issuer-chain").is_err(), "{chain}");
        }
    }
}
