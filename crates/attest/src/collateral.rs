//! Collateral: what the vendors publish to check evidence against.
//!
//! Owns the parsers for the encodings in which collateral is distributed. It never verifies collateral; the code that
//! uses it does.

use base64ct::Encoding as _;
use serde_json::Value;

use crate::json::{from_hex, malformed, text, to_hex};
use crate::refusal::Refusal;

/// Largest collateral that is accepted, in bytes.
pub const MAX_COLLATERAL: usize = 65_536;
/// Maximum number of blocks in a PEM file.
const MAX_CERTIFICATES: usize = 16;

/// Collateral of either vendor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Collateral {
    /// Intel's.
    Intel(Box<IntelCollateral>),
    /// AMD's.
    Amd(AmdCollateral),
}

/// Intel's collateral: TCB info and quoting enclave identity, each with its signature and certificate chain, and two
/// revocation lists.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IntelCollateral {
    /// TCB info, JSON, as signed.
    pub tcb_info: String,
    /// Signature over the TCB info: r and s.
    pub tcb_info_signature: Vec<u8>,
    /// Certificate chain of the TCB info's signer, PEM.
    pub tcb_info_issuer_chain: String,
    /// Identity of the quoting enclave, JSON, as signed.
    pub qe_identity: String,
    /// Signature over that identity: r and s.
    pub qe_identity_signature: Vec<u8>,
    /// Certificate chain of the identity's signer, PEM.
    pub qe_identity_issuer_chain: String,
    /// Revocation list of PCK certificates, DER.
    pub pck_crl: Vec<u8>,
    /// Certificate chain of that list's signer, PEM.
    pub pck_crl_issuer_chain: String,
    /// Revocation list of authorities, DER.
    pub root_ca_crl: Vec<u8>,
}

/// AMD's collateral, which supplements a report.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AmdCollateral {
    /// Revocation list of authorities, DER.
    pub crl: Option<Vec<u8>>,
}

/// A file with the certificates for an AMD report.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AmdBundle {
    /// VCEK or VLEK certificate, DER.
    pub leaf: Vec<u8>,
    /// The rest of the file.
    pub collateral: AmdCollateral,
}

impl IntelCollateral {
    /// Parses the JSON object in which Intel's collateral is distributed. Revocation lists may be in hexadecimal
    /// digits, base64 or PEM.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`], [`Refusal::MalformedCollateral`] with the name of the malformed field,
    /// [`Refusal::NoCrl`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, Refusal> {
        too_large(bytes)?;
        let object: Value = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        Self::of_json(&object)
    }

    /// Reads collateral from a parsed JSON object.
    pub(crate) fn of_json(object: &Value) -> Result<Self, Refusal> {
        let text = |name: &str| text(object, name).map(str::to_owned);
        let hex = |name: &str| -> Result<Vec<u8>, Refusal> {
            let signature = from_hex(&text(name)?).filter(|signature| signature.len() == 64);
            signature.ok_or_else(|| malformed(format!("{name} is not 64 bytes in hexadecimal digits")))
        };
        let crl = |name: &str| -> Result<Vec<u8>, Refusal> {
            if object.get(name).is_none_or(Value::is_null) {
                return Err(Refusal::NoCrl);
            }
            let text = text(name)?;
            binary(&text).ok_or_else(|| malformed(format!("{name} is not hexadecimal digits, base64 or PEM")))
        };
        Ok(Self {
            tcb_info: text("tcb_info")?,
            tcb_info_signature: hex("tcb_info_signature")?,
            tcb_info_issuer_chain: text("tcb_info_issuer_chain")?,
            qe_identity: text("qe_identity")?,
            qe_identity_signature: hex("qe_identity_signature")?,
            qe_identity_issuer_chain: text("qe_identity_issuer_chain")?,
            pck_crl: crl("pck_crl")?,
            pck_crl_issuer_chain: text("pck_crl_issuer_chain")?,
            root_ca_crl: crl("root_ca_crl")?,
        })
    }

    /// Returns the JSON object that [`IntelCollateral::from_json`] reads.
    pub(crate) fn to_json(&self) -> Value {
        serde_json::json!({
            "tcb_info": self.tcb_info,
            "tcb_info_signature": to_hex(&self.tcb_info_signature),
            "tcb_info_issuer_chain": self.tcb_info_issuer_chain,
            "qe_identity": self.qe_identity,
            "qe_identity_signature": to_hex(&self.qe_identity_signature),
            "qe_identity_issuer_chain": self.qe_identity_issuer_chain,
            "pck_crl": to_hex(&self.pck_crl),
            "pck_crl_issuer_chain": self.pck_crl_issuer_chain,
            "root_ca_crl": to_hex(&self.root_ca_crl),
        })
    }

    /// Returns the platform (`TDX`, `SGX`) and the processor model (FMSPC) that the TCB info claims to be for.
    pub fn subject(&self) -> (Option<String>, Option<String>) {
        let info: Value = serde_json::from_str(&self.tcb_info).unwrap_or_default();
        let word = |name: &str| info.get(name).and_then(Value::as_str).map(str::to_owned);
        (word("id"), word("fmspc"))
    }

    /// Returns the ID of the provisioning certification enclave that the TCB info claims to be for.
    pub(crate) fn pce_id(&self) -> Option<Vec<u8>> {
        let info: Value = serde_json::from_str(&self.tcb_info).ok()?;
        from_hex(info.get("pceId")?.as_str()?)
    }

    /// Returns the collateral in the library's form, with the certificate chain of the quote's leaf.
    pub(crate) fn for_library(&self, pck_certificate_chain: String) -> dcap_qvl::QuoteCollateralV3 {
        dcap_qvl::QuoteCollateralV3 {
            pck_crl_issuer_chain: self.pck_crl_issuer_chain.clone(),
            root_ca_crl: self.root_ca_crl.clone(),
            pck_crl: self.pck_crl.clone(),
            tcb_info_issuer_chain: self.tcb_info_issuer_chain.clone(),
            tcb_info: self.tcb_info.clone(),
            tcb_info_signature: self.tcb_info_signature.clone(),
            qe_identity_issuer_chain: self.qe_identity_issuer_chain.clone(),
            qe_identity: self.qe_identity.clone(),
            qe_identity_signature: self.qe_identity_signature.clone(),
            pck_certificate_chain: Some(pck_certificate_chain),
        }
    }
}

impl AmdBundle {
    /// Parses a PEM file or a single DER certificate. It contains a VCEK or VLEK certificate and, in any order, the
    /// authorities above it and a revocation list. Authorities are ignored, because the pinned ones apply.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`], [`Refusal::MalformedCollateral`], [`Refusal::NoCertificate`].
    pub fn from_pem(bytes: &[u8]) -> Result<Self, Refusal> {
        too_large(bytes)?;
        // AMD's service returns a certificate in DER, which begins with a sequence.
        let blocks = match bytes {
            [0x30, ..] => vec![("CERTIFICATE".to_owned(), bytes.to_vec())],
            _ => pem_blocks(bytes).ok_or_else(|| malformed("it is not PEM"))?,
        };
        if blocks.len() > MAX_CERTIFICATES {
            return Err(malformed(format!("it has {} blocks; the limit is {MAX_CERTIFICATES}", blocks.len())));
        }
        let mut bundle = Self::default();
        for (label, content) in blocks {
            match label.as_str() {
                "CERTIFICATE" if !crate::amd::is_leaf(&content)? || bundle.leaf == content => {}
                "CERTIFICATE" if bundle.leaf.is_empty() => bundle.leaf = content,
                "CERTIFICATE" => return Err(malformed("it has two chip key certificates")),
                "X509 CRL" => match bundle.collateral.crl.replace(content.clone()) {
                    Some(before) if before != content => {
                        return Err(malformed("it has two revocation lists"));
                    }
                    _ => {}
                },
                other => return Err(malformed(format!("it has an unknown block {other:?}"))),
            }
        }
        if bundle.leaf.is_empty() { Err(Refusal::NoCertificate) } else { Ok(bundle) }
    }
}

fn too_large(bytes: &[u8]) -> Result<(), Refusal> {
    if bytes.len() > MAX_COLLATERAL {
        return Err(Refusal::TooLarge { what: "the collateral", limit: MAX_COLLATERAL });
    }
    Ok(())
}

/// Returns the issue time that a revocation list claims, in seconds since the Unix epoch; `None` if the bytes are not
/// a revocation list.
pub fn list_issued(der: &[u8]) -> Option<u64> {
    let list = <x509_cert::crl::CertificateList as der::Decode>::from_der(der).ok()?;
    Some(list.tbs_cert_list.this_update.to_unix_duration().as_secs())
}

/// Decodes hexadecimal digits, base64 or PEM.
pub(crate) fn binary(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('\0').trim();
    if text.starts_with("-----BEGIN") {
        let mut blocks = pem_blocks(text.as_bytes())?;
        return if blocks.len() == 1 { blocks.pop().map(|(_, content)| content) } else { None };
    }
    // Hexadecimal digits are valid base64 too. A DER list begins with 30 in hexadecimal digits, and with "MA" to "MP"
    // in base64.
    let digits: String = text.strip_prefix("0x").unwrap_or(text).split_whitespace().collect();
    if digits.starts_with("30") { from_hex(&digits) } else { from_base64(text) }
}

/// Decodes base64, which may contain white space and end with padding.
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    let packed: String = text.split_whitespace().collect();
    base64ct::Base64Unpadded::decode_vec(packed.trim_end_matches('=')).ok()
}

/// Returns the labels and contents of all PEM blocks. It looks for the markers, not for lines, because the chains in
/// some quotes have no line breaks between certificates. Text between blocks is ignored.
pub(crate) fn pem_blocks(bytes: &[u8]) -> Option<Vec<(String, Vec<u8>)>> {
    let (mut blocks, mut rest) = (Vec::new(), bytes);
    while let Some((_, begun)) = split(rest, b"-----BEGIN ") {
        let (label, after) = split(begun, b"-----")?;
        let label = std::str::from_utf8(label).ok().filter(|label| !label.contains('\n'))?;
        let (content, after) = split(after, format!("-----END {label}-----").as_bytes())?;
        blocks.push((label.to_owned(), from_base64(std::str::from_utf8(content).ok()?)?));
        rest = after;
    }
    if blocks.is_empty() { None } else { Some(blocks) }
}

/// Returns the bytes before and after the first occurrence of `words`.
fn split<'a>(bytes: &'a [u8], words: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(words.len()).position(|window| window == words)?;
    Some((bytes.get(..at)?, bytes.get(at + words.len()..)?))
}

/// Encodes a PEM block. Source: RFC 7468.
pub(crate) fn to_pem(label: &str, bytes: &[u8]) -> String {
    let packed = base64ct::Base64::encode_string(bytes);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = packed.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII, so 64 bytes are 64 characters.
        let (line, next) = rest.split_at_checked(64).unwrap_or((rest, ""));
        out.push_str(line);
        out.push('\n');
        rest = next;
    }
    out + &format!("-----END {label}-----\n")
}
