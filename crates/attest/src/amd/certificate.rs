//! AMD's certificates and revocation lists.
//!
//! Owns their strict parsing: input that does not re-encode to the same bytes is refused. AMD's authorities sign with
//! RSASSA-PSS and SHA-384 (RFC 8017, salt of 48 bytes).

use aws_lc_rs::signature::{RSA_PSS_2048_8192_SHA384, UnparsedPublicKey};
use der::asn1::ObjectIdentifier;
use der::{Decode as _, Encode as _};
use x509_cert::Certificate;
use x509_cert::crl::CertificateList;
use x509_cert::time::Validity;

use crate::facts::{KeyKind, TcbVersion};
use crate::refusal::Refusal;

use super::Product;

/// RSASSA-PSS, RFC 8017.
const RSA_PSS: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.113549.1.1.10");
/// AMD's RSASSA-PSS parameters: SHA-384, MGF1 with SHA-384, salt 48. Source: every certificate of AMD's hierarchies.
const PSS_PARAMETERS: [u8; 52] = [
    0xa0, 0x0f, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0xa1, 0x1c,
    0x30, 0x1a, 0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x08, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86,
    0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x02, 0x05, 0x00, 0xa2, 0x03, 0x02, 0x01, 0x30,
];
/// Trailer field. Milan's and Genoa's certificates encode it although it is the default; Turin's omit it.
const PSS_TRAILER: [u8; 5] = [0xa3, 0x03, 0x02, 0x01, 0x01];
/// The algorithm `id-ecPublicKey` (RFC 5480) and the curve P-384.
const EC_KEY: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.2.840.10045.2.1");
const P384: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.132.0.34");

/// Critical extensions that this verifier understands. Source: RFC 5280, sections 4.2.1.9 and 4.2.1.3.
const BASIC_CONSTRAINTS: &str = "2.5.29.19";
const KEY_USAGE: &str = "2.5.29.15";

/// AMD's custom extensions. Source: VCEK certificate (57230), table "Custom extensions".
const PRODUCT_NAME: &str = "1.3.6.1.4.1.3704.1.2";
const BOOT_LOADER: &str = "1.3.6.1.4.1.3704.1.3.1";
const TEE: &str = "1.3.6.1.4.1.3704.1.3.2";
const SNP: &str = "1.3.6.1.4.1.3704.1.3.3";
const MICROCODE: &str = "1.3.6.1.4.1.3704.1.3.8";
const FMC: &str = "1.3.6.1.4.1.3704.1.3.9";
const HARDWARE_ID: &str = "1.3.6.1.4.1.3704.1.4";

/// Returns whether a certificate of a bundle certifies a chip's or cloud's key rather than an authority, judged by its
/// subject.
pub(crate) fn is_leaf(bytes: &[u8]) -> Result<bool, Refusal> {
    const WHAT: &str = "a certificate of the bundle";
    let certificate = Read::new(bytes, WHAT)?;
    let name = certificate.common_name().unwrap_or_default();
    let of_authority = name.starts_with("SEV-") || name.starts_with("ARK-");
    match certificate.key_kind() {
        Some(_) => Ok(true),
        None if of_authority => Ok(false),
        None => Err(malformed(WHAT, format!("its subject {name:?} is not one of AMD's"))),
    }
}

/// A parsed certificate.
pub(super) struct Read {
    certificate: Certificate,
    what: &'static str,
}

fn malformed(what: &'static str, why: impl ToString) -> Refusal {
    Refusal::MalformedCertificate { what, why: why.to_string() }
}

impl Read {
    /// Parses a certificate; refusals call it `what`.
    pub(super) fn new(bytes: &[u8], what: &'static str) -> Result<Self, Refusal> {
        let certificate = Certificate::from_der(bytes).map_err(|error| malformed(what, error))?;
        if certificate.to_der().ok().as_deref() != Some(bytes) {
            return Err(Refusal::NotCanonical { what });
        }
        if certificate.signature_algorithm() != certificate.tbs_certificate().signature() {
            return Err(malformed(what, "its two signature algorithm fields differ"));
        }
        let extensions = certificate.tbs_certificate().extensions().map_or(&[][..], Vec::as_slice);
        let known = |oid: &ObjectIdentifier| [BASIC_CONSTRAINTS, KEY_USAGE].contains(&oid.to_string().as_str());
        if extensions.iter().any(|extension| extension.critical && !known(&extension.extn_id)) {
            return Err(Refusal::Usage { what });
        }
        Ok(Self { certificate, what })
    }

    pub(super) fn common_name(&self) -> Option<String> {
        common_name(self.certificate.tbs_certificate().subject())
    }

    pub(super) fn is_issued_by(&self, issuer: &Self) -> bool {
        self.certificate.tbs_certificate().issuer() == issuer.certificate.tbs_certificate().subject()
    }

    /// Checks the signature by `issuer`, an RSA key, and the validity period.
    pub(super) fn check(&self, issuer: &Self, now: u64) -> Result<(), Refusal> {
        if !self.is_issued_by(issuer) {
            return Err(Refusal::UnknownIssuer { what: self.what });
        }
        let signed = self.certificate.tbs_certificate().to_der().map_err(|error| malformed(self.what, error))?;
        let algorithm = self.certificate.signature_algorithm();
        let parameters = algorithm.parameters.as_ref().and_then(|parameters| parameters.to_der().ok());
        let signature = self.certificate.signature().as_bytes();
        if !issuer.has_signed(algorithm.oid, parameters.as_deref(), &signed, signature) {
            return Err(Refusal::CertificateSignature { what: self.what });
        }
        within(self.certificate.tbs_certificate().validity(), self.what, now)
    }

    /// Returns whether this certificate's key signed `message`, using RSASSA-PSS with AMD's parameters.
    fn has_signed(
        &self,
        algorithm: ObjectIdentifier,
        parameters: Option<&[u8]>,
        message: &[u8],
        signature: Option<&[u8]>,
    ) -> bool {
        let expected = parameters.is_some_and(|parameters| {
            let rest = match parameters {
                [0x30, 0x39, rest @ ..] => rest.strip_suffix(&PSS_TRAILER),
                [0x30, 0x34, rest @ ..] => Some(rest),
                _ => None,
            };
            rest == Some(&PSS_PARAMETERS)
        });
        let key = self.certificate.tbs_certificate().subject_public_key_info().subject_public_key.as_bytes();
        let (Some(key), Some(signature), true) = (key, signature, expected && algorithm == RSA_PSS) else {
            return false;
        };
        UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, key).verify(message, signature).is_ok()
    }

    /// Returns the end of the validity period, in seconds since the Unix epoch.
    pub(super) fn expires(&self) -> u64 {
        self.certificate.tbs_certificate().validity().not_after.to_unix_duration().as_secs()
    }

    /// Returns the certified P-384 key, uncompressed.
    pub(super) fn p384_key(&self) -> Result<&[u8], Refusal> {
        let info = self.certificate.tbs_certificate().subject_public_key_info();
        let curve = info.algorithm.parameters.as_ref().and_then(|any| any.decode_as::<ObjectIdentifier>().ok());
        if info.algorithm.oid != EC_KEY || curve != Some(P384) {
            return Err(Refusal::Usage { what: self.what });
        }
        info.subject_public_key.as_bytes().ok_or_else(|| malformed(self.what, "its public key is malformed"))
    }

    /// Returns the content of an extension, which may occur at most once.
    fn extension(&self, oid: &str) -> Result<Option<&[u8]>, Refusal> {
        let oid = ObjectIdentifier::new(oid).map_err(|error| malformed(self.what, error))?;
        let all = self.certificate.tbs_certificate().extensions().map_or(&[][..], Vec::as_slice);
        let mut found = all.iter().filter(|extension| extension.extn_id == oid);
        let first = found.next().map(|extension| extension.extn_value.as_bytes());
        if found.next().is_some() {
            return Err(malformed(self.what, "it has a duplicate extension"));
        }
        Ok(first)
    }

    fn required(&self, oid: &str) -> Result<&[u8], Refusal> {
        self.extension(oid)?.ok_or_else(|| malformed(self.what, format!("it has no extension {oid}")))
    }

    fn small(&self, oid: &str) -> Result<u8, Refusal> {
        u8::from_der(self.required(oid)?).map_err(|error| malformed(self.what, error))
    }

    /// Returns the firmware versions that the certified key belongs to.
    pub(super) fn tcb(&self, product: Product) -> Result<TcbVersion, Refusal> {
        Ok(TcbVersion {
            fmc: if product == Product::Turin { Some(self.small(FMC)?) } else { None },
            boot_loader: self.small(BOOT_LOADER)?,
            tee: self.small(TEE)?,
            snp: self.small(SNP)?,
            microcode: self.small(MICROCODE)?,
        })
    }

    /// Returns the chip ID that the certified key belongs to: 64 bytes, from Turin on 8.
    pub(super) fn hardware_id(&self) -> Result<Option<&[u8]>, Refusal> {
        self.extension(HARDWARE_ID)
    }

    /// Returns whether the certificate names a stepping of this product, such as `Milan-B0`. VLEK certificates name no
    /// product, or the product alone.
    pub(super) fn is_for(&self, product: Product) -> Result<bool, Refusal> {
        let Some(bytes) = self.extension(PRODUCT_NAME)? else { return Ok(true) };
        let name = der::asn1::Ia5StringRef::from_der(bytes).map_err(|error| malformed(self.what, error))?;
        Ok(name.as_str().split('-').next() == Some(product.name()))
    }

    /// Returns the kind of the certified key, judged by the subject.
    pub(super) fn key_kind(&self) -> Option<KeyKind> {
        match self.common_name()?.as_str() {
            "SEV-VCEK" => Some(KeyKind::Vcek),
            "SEV-VLEK" => Some(KeyKind::Vlek),
            _ => None,
        }
    }
}

fn common_name(name: &x509_cert::name::Name) -> Option<String> {
    // AMD's names have one common name each. Two would be ambiguous.
    let text = name.to_string();
    let mut found = text.split(',').filter_map(|part| part.trim().strip_prefix("CN=").map(str::to_owned));
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

fn within(validity: &Validity, what: &'static str, now: u64) -> Result<(), Refusal> {
    if now < validity.not_before.to_unix_duration().as_secs() {
        return Err(Refusal::NotYetValid { what });
    }
    if now > validity.not_after.to_unix_duration().as_secs() {
        return Err(Refusal::Expired { what });
    }
    Ok(())
}

/// Checks the revocation list of `issuer`, and that it revokes none of `certificates`. Returns the time at which the
/// list expires, in seconds since the Unix epoch.
pub(super) fn check_crl(bytes: &[u8], issuer: &Read, certificates: &[&Read], now: u64) -> Result<u64, Refusal> {
    let list = CertificateList::from_der(bytes).map_err(|error| Refusal::BadCrl(error.to_string()))?;
    if list.to_der().ok().as_deref() != Some(bytes) || list.signature_algorithm != list.tbs_cert_list.signature {
        return Err(Refusal::BadCrl("it is not canonically encoded".into()));
    }
    if list.tbs_cert_list.issuer != *issuer.certificate.tbs_certificate().subject() {
        return Err(Refusal::BadCrl("it was issued by another authority".into()));
    }
    let signed = list.tbs_cert_list.to_der().map_err(|error| Refusal::BadCrl(error.to_string()))?;
    let parameters = list.signature_algorithm.parameters.as_ref().and_then(|parameters| parameters.to_der().ok());
    let algorithm = list.signature_algorithm.oid;
    if !issuer.has_signed(algorithm, parameters.as_deref(), &signed, list.signature.as_bytes()) {
        return Err(Refusal::BadCrl("its signature is wrong".into()));
    }
    let begins = list.tbs_cert_list.this_update.to_unix_duration().as_secs();
    let Some(ends) = list.tbs_cert_list.next_update.map(|time| time.to_unix_duration().as_secs()) else {
        return Err(Refusal::BadCrl("it has no nextUpdate time".into()));
    };
    if now < begins || now > ends {
        return Err(Refusal::StaleCrl);
    }
    let revoked = list.tbs_cert_list.revoked_certificates.unwrap_or_default();
    for certificate in certificates {
        let serial = certificate.certificate.tbs_certificate().serial_number();
        if revoked.iter().any(|entry| entry.serial_number == *serial) {
            return Err(Refusal::Revoked { what: certificate.what });
        }
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]
    use super::*;
    use crate::roots::Roots;

    #[test]
    fn pinned_authorities_are_signed_by_their_product_root() {
        const NOW: u64 = 1_796_000_000;
        for root in Roots::genuine().amd {
            let read = |bytes: &[u8]| Read::new(bytes, "a pinned certificate").unwrap();
            let ark = read(&root.ark);
            for (bytes, prefix) in [(&root.ark, "ARK"), (&root.ask, "SEV"), (&root.asvk, "SEV-VLEK")] {
                let authority = read(bytes);
                assert_eq!(authority.check(&ark, NOW), Ok(()), "{prefix}-{}", root.product);
                assert_eq!(authority.common_name(), Some(format!("{prefix}-{}", root.product)));
                assert!(!is_leaf(bytes).unwrap());
            }
        }
    }
}
