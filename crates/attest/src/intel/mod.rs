//! Intel SGX and TDX quotes, versions 3, 4 and 5.
//!
//! Owns their layout, the checks that apply to every quote, and the use of `dcap-qvl`. The library never gets the
//! bytes that somebody sent. It gets a quote that is rebuilt from strictly parsed evidence and pinned certificates.
//! Source: Intel SGX ECDSA Quote Library API (quote 3), TDX DCAP Quote 4 and 5; TDX Module ABI (348551).

mod reasons;
mod signatures;
mod verify;

use crate::bytes::Cursor;
use crate::evidence::Measurement;
use crate::refusal::Refusal;

pub(crate) use signatures::check as check_signatures;
pub(crate) use verify::examine;

const HEADER: usize = 48;
const ENCLAVE_REPORT: usize = 384;
const TD_REPORT: usize = 584;
const TD_REPORT_15: usize = 648;
const TD_REPORT_15_EX: usize = 885;
/// Length of body type and body size, in version 5, in bytes.
const BODY_HEAD: usize = 6;
const ECDSA_P256: u16 = 2;
/// Vendor ID of Intel's quoting enclaves. Source: quotes of those enclaves.
const INTEL_VENDOR: [u8; 16] =
    [0x93, 0x9a, 0x72, 0x33, 0xf7, 0x9c, 0x4c, 0xa9, 0x94, 0x0a, 0x0d, 0xb3, 0x95, 0x7f, 0x06, 0x07];
const WHAT: &str = "the quote";

/// Layout of a quote's body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layout {
    /// Version 3, an SGX enclave.
    Sgx3,
    /// Version 4, a trust domain.
    Tdx4,
    /// Version 5, a trust domain: 1.0, 1.5 or extended 1.5.
    Tdx5(TdBody),
}

/// A trust domain's report in a version 5 quote; body types 2, 3 and 4.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TdBody {
    /// TDX 1.0, 584 bytes.
    Td10,
    /// TDX 1.5, 648 bytes.
    Td15,
    /// Extended TDX 1.5, 885 bytes.
    Td15Ex,
}

impl TdBody {
    const fn length(self) -> usize {
        match self {
            Self::Td10 => TD_REPORT,
            Self::Td15 => TD_REPORT_15,
            Self::Td15Ex => TD_REPORT_15_EX,
        }
    }
}

/// A quote.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quote {
    /// Layout of the body.
    pub layout: Layout,
    /// Header and body, as signed.
    pub signed: Vec<u8>,
    /// Signature over header and body: r and s.
    pub signature: [u8; 64],
    /// Signing key, P-256: x and y.
    pub attestation_key: [u8; 64],
    /// The quoting enclave's report, which certifies the signing key.
    pub qe_report: [u8; ENCLAVE_REPORT],
    /// Signature over that report, by the machine's key.
    pub qe_signature: [u8; 64],
    /// Authentication data, which the quoting enclave's report also covers.
    pub qe_authentication: [u8; 32],
    /// Certificate of the machine's key, DER.
    pub certificate: Vec<u8>,
}

/// Bytes before the processor model in a PCK certificate: its object identifier, and the head of a 6-byte octet
/// string. Source: Intel SGX PCK Certificate and CRL Profile, 1.3.5.
const FMSPC: [u8; 14] = [0x06, 0x0a, 0x2a, 0x86, 0x48, 0x86, 0xf8, 0x4d, 0x01, 0x0d, 0x01, 0x04, 0x04, 0x06];

impl Quote {
    /// Returns the processor model (FMSPC) that the quote's certificate claims, in hexadecimal digits. The claim
    /// decides nothing.
    pub fn model(&self) -> Option<String> {
        let found = self.certificate.windows(FMSPC.len() + 6).find_map(|bytes| bytes.strip_prefix(&FMSPC));
        found.map(crate::json::to_hex)
    }

    /// Returns the layout that the signed part claims, whose length must match that layout exactly.
    pub(crate) fn layout_of(signed: &[u8]) -> Result<Layout, Refusal> {
        let layout = Self::layout_in(signed)?;
        let mut cursor = Cursor::new(signed, WHAT);
        cursor.take(layout.signed())?;
        cursor.end()?;
        Ok(layout)
    }

    /// Returns the layout that the quote at the start of these bytes claims.
    pub(crate) fn layout_in(bytes: &[u8]) -> Result<Layout, Refusal> {
        let mut header = Cursor::new(bytes, WHAT);
        let (version, key_type, tee) = (header.u16_le()?, header.u16_le()?, header.u32_le()?);
        let _svns = header.u32_le()?;
        if header.array::<16>()? != INTEL_VENDOR {
            return Err(Refusal::UnknownVendor);
        }
        if key_type != ECDSA_P256 {
            return Err(Refusal::UnsupportedSignature(key_type.into()));
        }
        let mut body = Cursor::new(bytes.get(HEADER..).unwrap_or(&[]), WHAT);
        match (version, tee) {
            (3, 0) => Ok(Layout::Sgx3),
            (4, 0x81) => Ok(Layout::Tdx4),
            (5, 0x81) => {
                let (kind, size) = (body.u16_le()?, body.u32_le()?);
                let found = match kind {
                    2 => TdBody::Td10,
                    3 => TdBody::Td15,
                    4 => TdBody::Td15Ex,
                    other => return Err(Refusal::UnsupportedVersion { what: "quote bodies", found: other.into() }),
                };
                if usize::try_from(size) != Ok(found.length()) {
                    return Err(Refusal::NotCanonical { what: WHAT });
                }
                Ok(Layout::Tdx5(found))
            }
            // No deployment uses SGX in version 4 or 5 quotes.
            (3..=5, 0 | 0x81) => Err(Refusal::UnsupportedVersion { what: "quotes", found: version.into() }),
            (3..=5, _) => Err(Refusal::NotEvidence),
            _ => Err(Refusal::UnsupportedVersion { what: "quotes", found: version.into() }),
        }
    }

    /// Returns the body without the bytes before it.
    fn body(&self) -> &[u8] {
        self.signed.get(self.signed.len().saturating_sub(self.layout.body())..).unwrap_or(&[])
    }

    /// Returns a field of the body. The body's length was already checked against its layout.
    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        self.body().get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
    }

    /// Returns the platform, in the term of Intel's TCB info.
    pub const fn environment(&self) -> &'static str {
        match self.layout {
            Layout::Sgx3 => "SGX",
            Layout::Tdx4 | Layout::Tdx5(_) => "TDX",
        }
    }

    pub(crate) fn measurement(&self) -> Measurement {
        match self.layout {
            Layout::Sgx3 => Measurement::Sgx(self.field(64)),
            Layout::Tdx4 | Layout::Tdx5(_) => {
                Measurement::Tdx { mrtd: self.field(136), rtmrs: [328, 376, 424, 472].map(|at| self.field(at)) }
            }
        }
    }

    pub(crate) fn report_data(&self) -> [u8; 64] {
        match self.layout {
            Layout::Sgx3 => self.field(320),
            Layout::Tdx4 | Layout::Tdx5(_) => self.field(520),
        }
    }

    /// Makes the checks that apply to every quote, whoever signed it.
    ///
    /// # Errors
    /// [`Refusal`] of the first check that fails.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        match self.layout {
            Layout::Sgx3 => self.check_enclave(),
            Layout::Tdx4 | Layout::Tdx5(_) => self.check_domain(),
        }
    }

    fn check_enclave(&self) -> Result<(), Refusal> {
        let attributes = u64::from_le_bytes(self.field(48));
        let bit = |number: u32| attributes >> number & 1 == 1;
        if bit(1) {
            return Err(Refusal::Debug);
        }
        if bit(4) {
            return Err(Refusal::ProvisioningKey);
        }
        // INIT, DEBUG, MODE64BIT, PROVISIONKEY, EINITTOKEN_KEY, CET, KSS, AEXNOTIFY. Source: Intel SDM, table 36-3.
        let known = [0u32, 1, 2, 4, 5, 6, 7, 10].iter().map(|number| 1u64 << number).sum::<u64>();
        let reserved = [20..32, 96..128, 160..192, 262..304];
        let zero = reserved.into_iter().all(|range| self.body().get(range).is_some_and(is_zero));
        if attributes & !known != 0 || !bit(0) || !zero {
            return Err(Refusal::ReservedBits { what: "the enclave's report" });
        }
        Ok(())
    }

    fn check_domain(&self) -> Result<(), Refusal> {
        let attributes = u64::from_le_bytes(self.field(120));
        let bits = |range: std::ops::RangeInclusive<u32>| range.map(|number| 1u64 << number).sum::<u64>();
        if attributes & 1 != 0 {
            return Err(Refusal::Debug);
        }
        if attributes & bits(4..=6) != 0 {
            return Err(Refusal::Profiled);
        }
        if attributes & bits(29..=29) != 0 {
            return Err(Refusal::Migratable);
        }
        // Fields of bound service domains: their measurement and, in the extended report, a hash of their current
        // state.
        let of_others: &[usize] = match self.layout {
            Layout::Tdx5(TdBody::Td15Ex) => &[600, 829],
            Layout::Tdx5(TdBody::Td15) => &[600],
            Layout::Tdx5(TdBody::Td10) | Layout::Tdx4 | Layout::Sgx3 => &[],
        };
        let service = of_others.iter().any(|at| self.field::<48>(*at) != [0; 48]);
        if attributes & bits(17..=17) != 0 || service {
            return Err(Refusal::ServiceDomain);
        }
        if attributes & bits(28..=28) == 0 {
            return Err(Refusal::SeptVe);
        }
        // Bits that must be zero. Source: TDX Module ABI (348551-008), table 3.23.
        let reserved = [1..=3, 7..=15, 23..=26, 32..=61].map(bits).iter().sum::<u64>();
        if attributes & reserved != 0 {
            return Err(Refusal::ReservedBits { what: "the trust domain's attributes" });
        }
        Ok(())
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

impl Layout {
    /// Returns the length of the body, in bytes.
    const fn body(self) -> usize {
        match self {
            Self::Sgx3 => ENCLAVE_REPORT,
            Self::Tdx4 => TD_REPORT,
            Self::Tdx5(body) => body.length(),
        }
    }

    /// Returns the length of the signed part, in bytes.
    pub(crate) const fn signed(self) -> usize {
        match self {
            Self::Sgx3 | Self::Tdx4 => HEADER + self.body(),
            Self::Tdx5(_) => HEADER + BODY_HEAD + self.body(),
        }
    }
}
