//! Verifies a quote against its certificate and Intel's collateral.

use aws_lc_rs::digest::{SHA256, SHA384, digest};
use dcap_qvl::QuotePolicy;
use dcap_qvl::config::{Config, CryptoProvider};
use dcap_qvl::policy::{PckCertFlag, QuoteClaims};
use dcap_qvl::signature::DerSigEncoder;
use dcap_qvl::verify::QuoteVerifier;
use dcap_qvl::x509::X509CertBackend;
use der::{Decode as _, Encode as _};
use rustls_pki_types::SignatureVerificationAlgorithm;
use x509_cert::Certificate;

use super::reasons::{dcap_error, refusal};
use super::{Layout, Quote, TdBody};
use crate::collateral::{IntelCollateral, to_pem};
use crate::facts::{Crl, Facts, KeyKind, Platform, Tcb};
use crate::refusal::Refusal;
use crate::roots::Roots;

pub(super) const PCK: &str = "the certificate of the machine's key";
/// Prefix of the hash that makes chip tags, so that a tag is of no use elsewhere.
const CHIP: &[u8] = b"openrelay chip of Intel\0";

/// Configuration of the library that uses this project's cryptography, aws-lc.
struct AwsLc;

impl Config for AwsLc {
    type X509 = X509CertBackend;
    type SigEncoder = DerSigEncoder;
    type Crypto = Self;
}

impl CryptoProvider for AwsLc {
    fn sig_algo() -> &'static dyn SignatureVerificationAlgorithm {
        webpki::aws_lc_rs::ECDSA_P256_SHA256
    }

    fn sha256(data: &[u8]) -> [u8; 32] {
        let mut out = [0; 32];
        out.copy_from_slice(digest(&SHA256, data).as_ref());
        out
    }

    fn sha384(data: &[u8]) -> [u8; 48] {
        let mut out = [0; 48];
        out.copy_from_slice(digest(&SHA384, data).as_ref());
        out
    }
}

/// Examines a quote that passed [`Quote::check`].
pub(crate) fn examine(quote: &Quote, collateral: &IntelCollateral, roots: &Roots, now: u64) -> Result<Facts, Refusal> {
    let chain = chain_above(&quote.certificate, roots)?;
    let policy = QuotePolicy::claims_only(now);
    let verified = QuoteVerifier::<AwsLc>::new_with_config(roots.intel.clone()).verify_with_policy(
        &quote.as_vendor_writes(),
        collateral.for_library(chain),
        now,
        &policy,
    );
    let claims = verified.map_err(|error| refusal(&dcap_error::Chain::of(&error)))?;
    // The library checks only the end of a revocation list's validity.
    if claims.latest_issue_date > now {
        return Err(Refusal::NotYetValid { what: "the collateral" });
    }
    if claims.earliest_expiration_date < now {
        return Err(Refusal::Expired { what: "the collateral" });
    }
    if collateral.pce_id() != Some(claims.platform.pck.pce_id.clone()) {
        return Err(Refusal::OtherModel);
    }
    Ok(facts(quote, &claims, roots.simulated))
}

/// Returns the PEM certificate chain above the leaf, made of pinned certificates only.
fn chain_above(leaf: &[u8], roots: &Roots) -> Result<String, Refusal> {
    let authority = issuer_of(&read(leaf, PCK)?, leaf, roots)?;
    Ok([leaf, authority, &roots.intel].map(|bytes| to_pem("CERTIFICATE", bytes)).concat())
}

pub(super) fn read(bytes: &[u8], what: &'static str) -> Result<Certificate, Refusal> {
    Certificate::from_der(bytes).map_err(|error| Refusal::MalformedCertificate { what, why: error.to_string() })
}

/// Returns the pinned certificate whose subject is the leaf's issuer. The leaf must be canonically encoded.
pub(super) fn issuer_of<'a>(certificate: &Certificate, leaf: &[u8], roots: &'a Roots) -> Result<&'a [u8], Refusal> {
    if certificate.to_der().ok().as_deref() != Some(leaf) {
        return Err(Refusal::NotCanonical { what: PCK });
    }
    for authority in &roots.intel_pck {
        let issuer = read(authority, "a pinned certificate")?;
        if issuer.tbs_certificate().subject() == certificate.tbs_certificate().issuer() {
            return Ok(authority);
        }
    }
    Err(Refusal::UnknownIssuer { what: PCK })
}

impl Quote {
    /// Returns the quote in the vendor's encoding, but without its certificate chain, which the library takes
    /// separately.
    fn as_vendor_writes(&self) -> Vec<u8> {
        let mut qe = Vec::new();
        qe.extend_from_slice(&self.qe_report);
        qe.extend_from_slice(&self.qe_signature);
        qe.extend_from_slice(&32u16.to_le_bytes());
        qe.extend_from_slice(&self.qe_authentication);
        // An empty certificate chain.
        qe.extend_from_slice(&5u16.to_le_bytes());
        qe.extend_from_slice(&0u32.to_le_bytes());
        let mut data = [&self.signature[..], &self.attestation_key].concat();
        if self.layout != Layout::Sgx3 {
            data.extend_from_slice(&6u16.to_le_bytes());
            data.extend_from_slice(&length(&qe));
        }
        data.extend_from_slice(&qe);
        [&self.signed[..], &length(&data), &data].concat()
    }
}

fn length(bytes: &[u8]) -> [u8; 4] {
    // The length is a few hundred bytes.
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_le_bytes()
}

fn facts(quote: &Quote, claims: &QuoteClaims, simulated: bool) -> Facts {
    let pck = &claims.platform.pck;
    let mut tag = [0; 32];
    let machine = pck.platform_instance_id.as_ref().map_or(&pck.ppid[..], |id| &id[..]);
    tag.copy_from_slice(digest(&SHA256, &[CHIP, machine].concat()).as_ref());
    let is_enclave = quote.layout == Layout::Sgx3;
    let mut fields: Vec<(&'static str, Vec<u8>)> = Vec::new();
    let places: &[(&'static str, usize, usize)] = if is_enclave { &ENCLAVE } else { &DOMAIN };
    for (name, at, length) in places {
        fields.push((name, quote.body().get(*at..at + length).unwrap_or(&[]).to_vec()));
    }
    if matches!(quote.layout, Layout::Tdx5(TdBody::Td15 | TdBody::Td15Ex)) {
        fields.push(("tee_tcb_svn_2", quote.field::<16>(584).to_vec()));
    }
    Facts {
        platform: if is_enclave { Platform::Sgx } else { Platform::Tdx },
        simulated,
        version: claims.header.version.into(),
        product: pck.fmspc.iter().map(|byte| format!("{byte:02x}")).collect(),
        measurement: quote.measurement(),
        report_data: quote.report_data(),
        fields,
        key: KeyKind::Pck,
        chip: Some(tag),
        smt: match pck.smt_enabled {
            PckCertFlag::True => Some(true),
            PckCertFlag::False => Some(false),
            PckCertFlag::Undefined => None,
        },
        tcb: Tcb::Intel {
            status: claims.tcb.status.to_string(),
            advisories: claims.tcb.advisory_ids.clone(),
            evaluation: claims.tcb.eval_data_number,
        },
        crl: Crl::Checked,
        expires: claims.earliest_expiration_date,
    }
}

/// Fields of an enclave's report. Source: Intel SGX SDK, `sgx_report_body_t`.
const ENCLAVE: [(&str, usize, usize); 9] = [
    ("cpu_svn", 0, 16),
    ("misc_select", 16, 4),
    ("attributes", 48, 8),
    ("xfrm", 56, 8),
    ("mr_signer", 128, 32),
    ("config_id", 192, 64),
    ("isv_prod_id", 256, 2),
    ("isv_svn", 258, 2),
    ("config_svn", 260, 2),
];

/// Fields of a trust domain's report. Source: Intel TDX DCAP, `sgx_report2_body_t`.
const DOMAIN: [(&str, usize, usize); 9] = [
    ("tee_tcb_svn", 0, 16),
    ("mr_seam", 16, 48),
    ("mr_signer_seam", 64, 48),
    ("seam_attributes", 112, 8),
    ("td_attributes", 120, 8),
    ("xfam", 128, 8),
    ("mr_config_id", 184, 48),
    ("mr_owner", 232, 48),
    ("mr_owner_config", 280, 48),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json::to_hex;

    /// Source: FIPS 180-4, examples for "abc".
    #[test]
    fn hashes_match_fips_180_4() {
        let short = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        let long = "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7";
        assert_eq!((to_hex(&AwsLc::sha256(b"abc")).as_str(), to_hex(&AwsLc::sha384(b"abc")).as_str()), (short, long));
    }
}
