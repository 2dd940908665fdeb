//! Conversion of the vendors' evidence formats into the canonical encoding.
//!
//! Owns what a conversion tolerates: zeros that clouds append, and certificates that are pinned anyway. It never
//! tolerates anything else that does not belong to the evidence.

use crate::amd::{self, Report};
use crate::bytes::Cursor;
use crate::collateral::pem_blocks;
use crate::evidence::{Evidence, MAX_QUOTE};
use crate::intel::Quote;
use crate::refusal::Refusal;

/// Largest file that is accepted, in bytes. Quotes come in blocks of 8 or 16 KiB.
pub const MAX_RAW: usize = 65_536;
const QUOTE: &str = "the quote";
const REPORT: &str = "the report";
/// Types of certification data: a certificate chain, and the quoting enclave's report around other data.
const CHAIN: u16 = 5;
const QE_REPORT: u16 = 6;

/// Result of a conversion.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Converted {
    /// The evidence. An AMD report has no certificate yet, which comes separately.
    pub evidence: Evidence,
    /// Number of zeros that were removed after the evidence and at the end of the signature data.
    pub trimmed: usize,
}

/// Converts a raw quote or report into evidence.
///
/// # Errors
/// [`Refusal`] if the input is malformed, unsupported or too large.
pub fn convert(bytes: &[u8]) -> Result<Converted, Refusal> {
    if bytes.len() > MAX_RAW {
        return Err(Refusal::TooLarge { what: "the evidence", limit: MAX_RAW });
    }
    let head: [u8; 4] = *bytes.first_chunk().ok_or(Refusal::NotEvidence)?;
    // A report begins with a 4-byte version, a quote with a 2-byte version and the kind of its key.
    match head {
        [version, 0, 0, 0] if version > 0 => report(bytes),
        [_, 0, 2 | 3, 0] => quote(bytes),
        _ => Err(Refusal::NotEvidence),
    }
}

fn report(bytes: &[u8]) -> Result<Converted, Refusal> {
    let mut cursor = Cursor::new(bytes, REPORT);
    let signed = cursor.array()?;
    let (r, s) = (number(&mut cursor)?, number(&mut cursor)?);
    let padding = cursor.take(amd::REPORT - amd::SIGNED - 2 * 72)?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(Refusal::NotCanonical { what: REPORT });
    }
    let trimmed = zeros(REPORT, cursor.rest())?;
    Ok(Converted { evidence: Evidence::Amd(Box::new(Report { signed, r, s, certificate: Vec::new() })), trimmed })
}

/// Reads a number of the signature: 72 bytes, little-endian, of which only the lower 48 may be non-zero.
fn number(cursor: &mut Cursor<'_>) -> Result<[u8; 48], Refusal> {
    let mut number: [u8; 48] = cursor.array()?;
    if cursor.take(24)?.iter().any(|byte| *byte != 0) {
        return Err(Refusal::NotCanonical { what: REPORT });
    }
    number.reverse();
    Ok(number)
}

fn quote(bytes: &[u8]) -> Result<Converted, Refusal> {
    let layout = Quote::layout_in(bytes)?;
    let mut cursor = Cursor::new(bytes, QUOTE);
    let signed = cursor.take(layout.signed())?.to_vec();
    let length = cursor.u32_le()?;
    let data = cursor.take(usize::try_from(length).unwrap_or(usize::MAX))?;
    let after = zeros(QUOTE, cursor.rest())?;
    let mut cursor = Cursor::new(data, QUOTE);
    let (signature, attestation_key) = (cursor.array()?, cursor.array()?);
    let mut inside = 0;
    if layout != crate::intel::Layout::Sgx3 {
        let kind = cursor.u16_le()?;
        if kind != QE_REPORT {
            return Err(Refusal::UnsupportedCertification(kind));
        }
        let length = cursor.u32_le()?;
        let outer = cursor;
        cursor = Cursor::new(cursor.take(usize::try_from(length).unwrap_or(usize::MAX))?, QUOTE);
        inside += zeros(QUOTE, outer.rest().get(usize::try_from(length).unwrap_or(usize::MAX)..).unwrap_or(&[]))?;
    }
    let (qe_report, qe_signature) = (cursor.array()?, cursor.array()?);
    let length = cursor.u16_le()?;
    if length != 32 {
        return Err(Refusal::NotCanonical { what: "the quoting enclave's authentication data" });
    }
    let qe_authentication = cursor.array()?;
    let kind = cursor.u16_le()?;
    if kind != CHAIN {
        return Err(Refusal::UnsupportedCertification(kind));
    }
    let length = cursor.u32_le()?;
    let chain = cursor.take(usize::try_from(length).unwrap_or(usize::MAX))?;
    inside += zeros(QUOTE, cursor.rest())?;
    let certificate = leaf(chain)?;
    let quote =
        Quote { layout, signed, signature, attestation_key, qe_report, qe_signature, qe_authentication, certificate };
    let evidence = Evidence::Intel(Box::new(quote));
    let size = evidence.encode().len();
    if size > MAX_QUOTE {
        return Err(Refusal::TooLarge { what: "the evidence", limit: MAX_QUOTE });
    }
    Ok(Converted { evidence, trimmed: after + inside })
}

/// Returns the first certificate of a PEM chain, which may end with a zero byte.
fn leaf(chain: &[u8]) -> Result<Vec<u8>, Refusal> {
    let text = chain.strip_suffix(&[0]).unwrap_or(chain);
    let blocks = pem_blocks(text).ok_or(Refusal::NoCertificate)?;
    let first = blocks.into_iter().next().filter(|(label, _)| label == "CERTIFICATE");
    first.map(|(_, certificate)| certificate).ok_or(Refusal::NoCertificate)
}

/// Returns the number of remaining bytes, which must all be zero.
fn zeros(what: &'static str, rest: &[u8]) -> Result<usize, Refusal> {
    if rest.iter().all(|byte| *byte == 0) {
        Ok(rest.len())
    } else {
        Err(Refusal::TrailingBytes { what, count: rest.len() })
    }
}
