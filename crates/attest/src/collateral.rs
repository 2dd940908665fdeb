//! What the vendors publish, which evidence is held against.
//!
//! Owns its reading from the forms in which it is handed around. Checks nothing: that is done where it is used.

use base64ct::Encoding as _;
use serde_json::Value;

use crate::json::{from_hex, malformed, text, to_hex};
use crate::refusal::Refusal;

/// Largest collateral that is read, in bytes.
pub const MAX_COLLATERAL: usize = 65_536;
/// Most blocks of a PEM file that is read.
const MAX_CERTIFICATES: usize = 16;

/// Collateral of either vendor.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Collateral {
    /// Intel's.
    Intel(Box<IntelCollateral>),
    /// AMD's.
    Amd(AmdCollateral),
}

/// Intel's: TCB info and identity of the quoting enclave, each with its signature and chain, and both lists of revoked certificates.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IntelCollateral {
    /// TCB info, JSON, as signed.
    pub tcb_info: String,
    /// Its signature, r and s.
    pub tcb_info_signature: Vec<u8>,
    /// The chain of who signed it, PEM.
    pub tcb_info_issuer_chain: String,
    /// The identity of the quoting enclave, JSON, as signed.
    pub qe_identity: String,
    /// Its signature, r and s.
    pub qe_identity_signature: Vec<u8>,
    /// The chain of who signed it, PEM.
    pub qe_identity_issuer_chain: String,
    /// Revoked PCK certificates, DER.
    pub pck_crl: Vec<u8>,
    /// The chain of who signed that, PEM.
    pub pck_crl_issuer_chain: String,
    /// Revoked authorities, DER.
    pub root_ca_crl: Vec<u8>,
}

/// AMD's: what comes beside a report.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AmdCollateral {
    /// Revoked authorities, DER.
    pub crl: Option<Vec<u8>>,
}

/// A file with certificates for a report of AMD.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AmdBundle {
    /// VCEK or VLEK, DER.
    pub leaf: Vec<u8>,
    /// The rest.
    pub collateral: AmdCollateral,
}

impl IntelCollateral {
    /// Reads the JSON object that Intel's collateral is handed around as. Lists of revoked certificates may be in hexadecimal digits, base64 or PEM.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`], [`Refusal::MalformedCollateral`] with the name of what does not read, [`Refusal::NoCrl`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, Refusal> {
        too_large(bytes)?;
        let object: Value = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        Self::of_json(&object)
    }

    /// The same, of an object that was read.
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
            binary(&text).ok_or_else(|| malformed(format!("{name} is neither hexadecimal digits nor base64 nor PEM")))
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

    /// The object that [`IntelCollateral::from_json`] reads.
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

    /// What TCB info is for, by its own word: the kind of environment (`TDX`, `SGX`) and the model of processor.
    pub fn subject(&self) -> (Option<String>, Option<String>) {
        let info: Value = serde_json::from_str(&self.tcb_info).unwrap_or_default();
        let word = |name: &str| info.get(name).and_then(Value::as_str).map(str::to_owned);
        (word("id"), word("fmspc"))
    }

    /// The provisioning enclave that TCB info is for, by its own word.
    pub(crate) fn pce_id(&self) -> Option<Vec<u8>> {
        let info: Value = serde_json::from_str(&self.tcb_info).ok()?;
        from_hex(info.get("pceId")?.as_str()?)
    }

    /// As the library takes it, with the chain of the quote's leaf.
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
    /// Reads a PEM file, or a certificate in DER, with VCEK or VLEK, in whatever order with the authorities above it and a list of revoked certificates. Pinned authorities may be in it and say nothing.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`], [`Refusal::MalformedCollateral`], [`Refusal::NoCertificate`].
    pub fn from_pem(bytes: &[u8]) -> Result<Self, Refusal> {
        too_large(bytes)?;
        // AMD's service gives a certificate in DER, which begins with a sequence.
        let blocks = match bytes {
            [0x30, ..] => vec![("CERTIFICATE".to_owned(), bytes.to_vec())],
            _ => pem_blocks(bytes).ok_or_else(|| malformed("it is not PEM"))?,
        };
        if blocks.len() > MAX_CERTIFICATES {
            return Err(malformed(format!("it holds {} blocks; at most {MAX_CERTIFICATES} are read", blocks.len())));
        }
        let mut bundle = Self::default();
        for (label, content) in blocks {
            match label.as_str() {
                "CERTIFICATE" if !crate::amd::is_leaf(&content)? || bundle.leaf == content => {}
                "CERTIFICATE" if bundle.leaf.is_empty() => bundle.leaf = content,
                "CERTIFICATE" => return Err(malformed("it holds two keys of chips")),
                "X509 CRL" => match bundle.collateral.crl.replace(content.clone()) {
                    Some(before) if before != content => {
                        return Err(malformed("it holds two lists of revoked certificates"));
                    }
                    _ => {}
                },
                other => return Err(malformed(format!("it holds a block called {other:?}"))),
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

/// When a list of revoked certificates was issued, by its own word, in seconds since the Unix epoch; `None` for what is no such list.
pub fn list_issued(der: &[u8]) -> Option<u64> {
    let list = <x509_cert::crl::CertificateList as der::Decode>::from_der(der).ok()?;
    Some(list.tbs_cert_list.this_update.to_unix_duration().as_secs())
}

/// Bytes in hexadecimal digits, base64 or PEM.
pub(crate) fn binary(text: &str) -> Option<Vec<u8>> {
    let text = text.trim_end_matches('\0').trim();
    if text.starts_with("-----BEGIN") {
        let mut blocks = pem_blocks(text.as_bytes())?;
        return if blocks.len() == 1 { blocks.pop().map(|(_, content)| content) } else { None };
    }
    // Hexadecimal digits are base64 too: a list in DER begins with 30, "MA…" to "MP…" in base64.
    let digits: String = text.strip_prefix("0x").unwrap_or(text).split_whitespace().collect();
    if digits.starts_with("30") { from_hex(&digits) } else { from_base64(text) }
}

/// Bytes in base64, with or without white space in it and padding after it.
pub fn from_base64(text: &str) -> Option<Vec<u8>> {
    let packed: String = text.split_whitespace().collect();
    base64ct::Base64Unpadded::decode_vec(packed.trim_end_matches('=')).ok()
}

/// The blocks of a PEM text, by label. By its marks, not by lines: some quotes have chains without line breaks between certificates. What stands between blocks says nothing.
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

/// What stands before and after these words, the first time that they do.
fn split<'a>(bytes: &'a [u8], words: &[u8]) -> Option<(&'a [u8], &'a [u8])> {
    let at = bytes.windows(words.len()).position(|window| window == words)?;
    Some((bytes.get(..at)?, bytes.get(at + words.len()..)?))
}

/// A block of PEM. Source: RFC 7468.
pub(crate) fn to_pem(label: &str, bytes: &[u8]) -> String {
    let packed = base64ct::Base64::encode_string(bytes);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = packed.as_str();
    while !rest.is_empty() {
        // Base64 is ASCII.
        let (line, next) = rest.split_at_checked(64).unwrap_or((rest, ""));
        out.push_str(line);
        out.push('\n');
        rest = next;
    }
    out + &format!("-----END {label}-----\n")
}
