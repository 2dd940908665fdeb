//! Checks the signatures of a quote from the machine's certificate down, without Intel's collateral.
//!
//! Owns what a mirror or validator can check without collateral for a processor model: a pinned authority signed the
//! machine's certificate, which names the model. This never leads to a verdict. A verdict needs [`super::verify`],
//! which checks all of it again.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use der::Encode as _;
use x509_cert::Certificate;

use super::Quote;
use super::verify::{PCK, issuer_of, read};
use crate::refusal::Refusal;
use crate::roots::Roots;

/// Position of the report data in an enclave's report.
const REPORT_DATA: std::ops::Range<usize> = 320..352;

/// Checks the signatures of a quote.
pub(crate) fn check(quote: &Quote, roots: &Roots) -> Result<(), Refusal> {
    let leaf = read(&quote.certificate, PCK)?;
    let issuer = read(issuer_of(&leaf, &quote.certificate, roots)?, "a pinned certificate")?;
    let malformed = |why: String| Refusal::MalformedCertificate { what: PCK, why };
    let content = leaf.tbs_certificate().to_der().map_err(|error| malformed(error.to_string()))?;
    let signature = leaf.signature().as_bytes().ok_or_else(|| malformed("its signature is malformed".into()))?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, key(&issuer)?)
        .verify(&content, signature)
        .map_err(|_| Refusal::CertificateSignature { what: PCK })?;
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key(&leaf)?)
        .verify(&quote.qe_report, &quote.qe_signature)
        .map_err(|_| Refusal::QeReportSignature)?;
    let vouched = digest(&SHA256, &[&quote.attestation_key[..], &quote.qe_authentication].concat());
    if quote.qe_report.get(REPORT_DATA) != Some(vouched.as_ref()) {
        return Err(Refusal::QeBinding);
    }
    // An uncompressed point. Source: SEC 1, section 2.3.3.
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, [&[4][..], &quote.attestation_key].concat())
        .verify(&quote.signed, &quote.signature)
        .map_err(|_| Refusal::Signature)
}

/// Returns the public key of a certificate, in the form that its signature algorithm takes.
fn key(certificate: &Certificate) -> Result<&[u8], Refusal> {
    let info = certificate.tbs_certificate().subject_public_key_info();
    let missing = || Refusal::MalformedCertificate { what: PCK, why: "its key is malformed".into() };
    info.subject_public_key.as_bytes().ok_or_else(missing)
}
