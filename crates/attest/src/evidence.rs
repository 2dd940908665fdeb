//! Evidence in its canonical encoding.
//!
//! Owns the bytes that relays send and clients parse. The vendors' own encodings are malleable: about 900 of a
//! quote's 5,000 bytes can be changed unnoticed, most of them in the text of certificates. This encoding has only the
//! signed part, the signatures and the DER leaf certificate. Root and intermediate certificates are pinned and never
//! sent.
//!
//! ```text
//! Intel  1 | length 2, header and body as signed | signature 64 | attestation key 64
//!        | QE report 384 | its signature 64 | QE authentication data 32 | length 2, PCK certificate
//! AMD    2 | report without its signature 672 | r 48 | s 48 | length 2, VCEK or VLEK certificate
//! ```
//!
//! Lengths, r and s are big-endian. Everything else is in the vendor's byte order.

use aws_lc_rs::digest::{SHA256, digest};

use crate::amd::Report;
use crate::bytes::Cursor;
use crate::intel::Quote;
use crate::refusal::Refusal;

/// Largest Intel evidence, in bytes.
pub const MAX_QUOTE: usize = 16_384;
/// Largest AMD evidence, in bytes.
pub const MAX_REPORT: usize = 4_096;

const INTEL: u8 = 1;
const AMD: u8 = 2;
const WHAT: &str = "evidence";

/// What a chip signed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Evidence {
    /// An SGX or TDX quote.
    Intel(Box<Quote>),
    /// A SEV-SNP report.
    Amd(Box<Report>),
}

/// Hash of what was started, as the chip reports it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Measurement {
    /// An SGX enclave: MRENCLAVE.
    Sgx([u8; 32]),
    /// A TDX trust domain. MRTD covers the firmware only. The registers that the firmware extends cover kernel,
    /// command line and initial file system.
    Tdx {
        /// Measurement of the firmware.
        mrtd: [u8; 48],
        /// RTMR 0 to 3.
        rtmrs: [[u8; 48]; 4],
    },
    /// A SEV-SNP guest: the launch measurement, which includes the hashes of kernel, command line and initial file
    /// system.
    Snp([u8; 48]),
}

impl Evidence {
    /// Returns the encoded evidence.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        match self {
            Self::Intel(quote) => {
                out.push(INTEL);
                push_block(&mut out, &quote.signed);
                out.extend_from_slice(&quote.signature);
                out.extend_from_slice(&quote.attestation_key);
                out.extend_from_slice(&quote.qe_report);
                out.extend_from_slice(&quote.qe_signature);
                out.extend_from_slice(&quote.qe_authentication);
                push_block(&mut out, &quote.certificate);
            }
            Self::Amd(report) => {
                out.push(AMD);
                out.extend_from_slice(&report.signed);
                out.extend_from_slice(&report.r);
                out.extend_from_slice(&report.s);
                push_block(&mut out, &report.certificate);
            }
        }
        out
    }

    /// Decodes evidence. Checks the format only.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`], [`Refusal::Truncated`], [`Refusal::TrailingBytes`], [`Refusal::NotEvidence`], and the
    /// refusals of the vendor's layout.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        let limit = if bytes.first() == Some(&AMD) { MAX_REPORT } else { MAX_QUOTE };
        if bytes.len() > limit {
            return Err(Refusal::TooLarge { what: WHAT, limit });
        }
        let mut cursor = Cursor::new(bytes, WHAT);
        match cursor.array()? {
            [INTEL] => {
                let signed = block(&mut cursor)?.to_vec();
                let quote = Quote {
                    layout: Quote::layout_of(&signed)?,
                    signed,
                    signature: cursor.array()?,
                    attestation_key: cursor.array()?,
                    qe_report: cursor.array()?,
                    qe_signature: cursor.array()?,
                    qe_authentication: cursor.array()?,
                    certificate: block(&mut cursor)?.to_vec(),
                };
                cursor.end()?;
                Ok(Self::Intel(Box::new(quote)))
            }
            [AMD] => {
                let (signed, r, s) = (cursor.array()?, cursor.array()?, cursor.array()?);
                let report = Report { signed, r, s, certificate: block(&mut cursor)?.to_vec() };
                cursor.end()?;
                Ok(Self::Amd(Box::new(report)))
            }
            _ => Err(Refusal::NotEvidence),
        }
    }

    /// Returns the identity of the evidence: SHA-256 of the signed part, which does not depend on how the evidence was
    /// sent.
    pub fn identity(&self) -> [u8; 32] {
        let signed: &[u8] = match self {
            Self::Intel(quote) => &quote.signed,
            Self::Amd(report) => &report.signed,
        };
        let mut identity = [0; 32];
        identity.copy_from_slice(digest(&SHA256, signed).as_ref());
        identity
    }

    /// Makes the checks that apply to all evidence, whoever signed it.
    ///
    /// # Errors
    /// [`Refusal`] of the first check that fails.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        match self {
            Self::Intel(quote) => quote.check(),
            Self::Amd(report) => report.check(),
        }
    }

    /// Returns the measurement.
    pub fn measurement(&self) -> Measurement {
        match self {
            Self::Intel(quote) => quote.measurement(),
            Self::Amd(report) => Measurement::Snp(report.measurement()),
        }
    }

    /// Returns the 64 bytes that the guest supplied.
    pub fn report_data(&self) -> [u8; 64] {
        match self {
            Self::Intel(quote) => quote.report_data(),
            Self::Amd(report) => report.report_data(),
        }
    }
}

fn push_block(out: &mut Vec<u8>, block: &[u8]) {
    // Decoded and converted evidence is at most 16 KiB.
    out.extend_from_slice(&u16::try_from(block.len()).unwrap_or(u16::MAX).to_be_bytes());
    out.extend_from_slice(block);
}

fn block<'a>(cursor: &mut Cursor<'a>) -> Result<&'a [u8], Refusal> {
    let length = u16::from_be_bytes(cursor.array()?);
    cursor.take(length.into())
}
