//! What Intel and AMD publish about the machines that relays run on, put together as one bundle.
//!
//! Owns which services are asked for what. Nothing is believed of them: every part is held against evidence of a relay before it is published or voted for.
//! Sources: Intel SGX and TDX Provisioning Certification Service, API version 4; AMD VCEK certificate and KDS interface specification (57230).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use openrelay_attest::bundle::{AmdProduct, Bundle};
use openrelay_attest::collateral::{AmdCollateral, IntelCollateral};
use openrelay_attest::facts::Tcb;
use openrelay_attest::verdict::Staple;
use openrelay_attest::{Collateral, Evidence, Roots, examine};
use openrelay_node::chain::way::patient_agent;

use crate::failure::Failure;

const PATIENCE: Duration = Duration::from_secs(60);
/// Largest answer, in bytes.
const MAX_ANSWER: u64 = 1 << 20;

/// Where vendors publish.
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

/// A model of Intel's processors in an environment, by the words of a quote's certificate, which decide nothing else.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Model {
    environment: String,
    fmspc: String,
    /// Which authority has signed the certificate.
    authority: &'static str,
}

/// What of a bundle evidence has shown to be genuine.
pub(super) struct Shown {
    /// The smallest number of Intel's evaluation; `None` where no relay runs on Intel's.
    pub(super) evaluation: Option<u32>,
    /// When the first of it expires, in seconds since the Unix epoch.
    pub(super) expires: u64,
}

impl Services {
    /// Fetches what these relays are judged by. Floors, and products that no relay has evidence of now, are those of `held`.
    pub(super) fn fetch(&self, staples: &[Staple], held: &Bundle) -> Result<Bundle, Failure> {
        let mut bundle = Bundle { intel: Vec::new(), ..held.clone() };
        let (mut models, mut products) = (BTreeSet::new(), BTreeSet::new());
        for staple in staples {
            match &staple.evidence {
                Evidence::Intel(quote) => models.extend(Model::of(quote)),
                Evidence::Amd(report) => products.extend(report.product_name()),
            }
        }
        for model in &models {
            bundle.intel.push(self.of_model(model)?);
        }
        for product in products {
            let Some(entry) = bundle.amd.iter_mut().find(|entry| entry.product == product) else {
                return Err(Failure::plain(format!("no floor is known for {product}; name a file with one: --floors")));
            };
            entry.collateral.crl = Some(get(&format!("{}/vcek/v1/{product}/crl", base(&self.amd)))?.body);
        }
        Ok(bundle)
    }

    fn of_model(&self, model: &Model) -> Result<IntelCollateral, Failure> {
        let base = base(&self.intel);
        let kind = model.environment.to_lowercase();
        let info = get(&format!("{base}/{kind}/certification/v4/tcb?fmspc={}", model.fmspc))?;
        let identity = get(&format!("{base}/{kind}/certification/v4/qe/identity"))?;
        let crl = get(&format!("{base}/sgx/certification/v4/pckcrl?ca={}&encoding=der", model.authority))?;
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
            root_ca_crl: get(&self.intel_root_crl)?.body,
        })
    }
}

impl Model {
    fn of(quote: &openrelay_attest::intel::Quote) -> Option<Self> {
        let issued_by = |name: &[u8]| quote.certificate.windows(name.len()).any(|bytes| bytes == name);
        let authority = if issued_by(b"PCK Platform CA") { "platform" } else { "processor" };
        Some(Self { environment: quote.environment().to_owned(), fmspc: quote.model()?, authority })
    }
}

/// Holds a bundle against evidence: each part of it must make some relay's evidence genuine, or be what holds already.
///
/// # Errors
/// [`Failure`] with the part that nothing shows to be genuine.
pub(super) fn check(
    bundle: &Bundle,
    held: &Bundle,
    staples: &[Staple],
    roots: &Roots,
    now: u64,
) -> Result<Shown, Failure> {
    let mut shown = Shown { evaluation: None, expires: u64::MAX };
    let mut genuine = Vec::new();
    for staple in staples {
        for collateral in bundle.candidates(&staple.evidence) {
            let Ok(facts) = examine(&staple.evidence, Some(&collateral), roots, now) else { continue };
            shown.expires = shown.expires.min(facts.expires);
            if let Tcb::Intel { evaluation, .. } = facts.tcb {
                shown.evaluation = Some(shown.evaluation.map_or(evaluation, |before| before.min(evaluation)));
            }
            genuine.push(collateral);
        }
    }
    let strange = |what: &str| Err(Failure::plain(format!("no relay's evidence shows that this is genuine: {what}")));
    for (at, entry) in bundle.intel.iter().enumerate() {
        if !genuine.contains(&Collateral::Intel(Box::new(entry.clone()))) {
            return strange(&format!("Intel's, number {}", at + 1));
        }
    }
    for entry in &bundle.amd {
        let same = held.amd.contains(entry);
        if !same && !genuine.contains(&Collateral::Amd(entry.collateral.clone())) {
            return strange(&format!("AMD's for {}", entry.product));
        }
    }
    Ok(shown)
}

/// When the parts of a bundle were issued, as far as they say so in words: of two the later has the greater.
pub(super) fn issued(bundle: &Bundle) -> Vec<String> {
    let date = |text: &String| {
        let object: serde_json::Value = serde_json::from_str(text).unwrap_or_default();
        object["issueDate"].as_str().unwrap_or_default().to_owned()
    };
    bundle.intel.iter().flat_map(|entry| [date(&entry.tcb_info), date(&entry.qe_identity)]).collect()
}

/// What holds, with the floors of AMD's firmware in another bundle if their number is higher.
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

/// An answer of a service.
struct Answer {
    url: String,
    headers: BTreeMap<String, String>,
    body: Vec<u8>,
}

fn base(url: &str) -> &str {
    url.trim_end_matches('/')
}

fn get(url: &str) -> Result<Answer, Failure> {
    let fault = |why: String| Failure::plain(format!("{url}: {why}"));
    let mut response = patient_agent(url, PATIENCE).get(url).call().map_err(|error| fault(error.to_string()))?;
    if !response.status().is_success() {
        return Err(fault(format!("HTTP status {}", response.status())));
    }
    let headers = response.headers().iter();
    let headers =
        headers.filter_map(|(name, value)| Some((name.as_str().to_lowercase(), value.to_str().ok()?.to_owned())));
    let headers = headers.collect();
    let body =
        response.body_mut().with_config().limit(MAX_ANSWER).read_to_vec().map_err(|error| fault(error.to_string()))?;
    Ok(Answer { url: url.to_owned(), headers, body })
}

impl Answer {
    fn fault(&self, why: &str) -> Failure {
        Failure::plain(format!("{}: {why}", self.url))
    }

    /// The object of this name, to the byte as it was signed, and the signature.
    fn signed(&self, name: &str) -> Result<(String, Vec<u8>), Failure> {
        let unlike = || self.fault(&format!("this is no signed {name}"));
        let text = std::str::from_utf8(&self.body).map_err(|_| unlike())?.trim();
        let inner = text.strip_prefix(&format!("{{\"{name}\":")).ok_or_else(unlike)?;
        let (object, rest) = inner.rsplit_once(",\"signature\":\"").ok_or_else(unlike)?;
        let signature = rest.strip_suffix("\"}").and_then(|hex| alloy_primitives::hex::decode(hex).ok());
        Ok((object.to_owned(), signature.ok_or_else(unlike)?))
    }

    /// A chain of certificates in a header: PEM, with what URLs do not take replaced.
    fn chain(&self, header: &str) -> Result<String, Failure> {
        let missing = || self.fault(&format!("it has no header {header} with certificates"));
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
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]
    use super::*;

    fn answer(body: &str, chain: &str) -> Answer {
        let headers = [("tcb-info-issuer-chain".to_owned(), chain.to_owned())].into();
        Answer { url: "http://x".into(), headers, body: body.as_bytes().to_vec() }
    }

    #[test]
    fn what_was_signed_is_taken_to_the_byte() {
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
