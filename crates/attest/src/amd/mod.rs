//! AMD SEV-SNP reports, versions 2 to 5; version 4 has the layout of version 3.
//!
//! Owns the layout, the checks that apply to every report, and the whole verification:
//!
//! - the signature over the received bytes
//! - the certificate chain from the chip's or cloud's key to a pinned root
//! - the certificate's numbers against the report's
//! - revocation
//!
//! Source: SEV Secure Nested Paging Firmware ABI (56860) 1.58; VCEK certificate (57230); VLEK certificate (58369).

mod certificate;
mod verify;

use crate::facts::{KeyKind, TcbVersion};
use crate::refusal::Refusal;

pub(crate) use certificate::is_leaf;
pub(crate) use verify::examine;

/// Length of the signed part of a report, in bytes.
pub(crate) const SIGNED: usize = 0x2a0;
/// Length of a report, in bytes.
pub(crate) const REPORT: usize = 0x4a0;
const ECDSA_P384_SHA384: u32 = 1;
const WHAT: &str = "the report";

/// A report.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The signed part.
    pub signed: [u8; SIGNED],
    /// Signature value r, big-endian.
    pub r: [u8; 48],
    /// Signature value s, big-endian.
    pub s: [u8; 48],
    /// Certificate of the signing key, DER; empty if it is not known yet.
    pub certificate: Vec<u8>,
}

/// Product generation of the chip, which determines the layout of its firmware versions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Product {
    Milan,
    Genoa,
    Turin,
}

impl Product {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Milan => "Milan",
            Self::Genoa => "Genoa",
            Self::Turin => "Turin",
        }
    }

    pub(crate) fn called(name: &str) -> Option<Self> {
        [Self::Milan, Self::Genoa, Self::Turin].into_iter().find(|product| product.name() == name)
    }

    /// Finds the product by the processor's family and model. Source: AMD's processor programming references; Bergamo
    /// and Siena belong to Genoa's key hierarchy.
    const fn of_model(family: u8, model: u8) -> Option<Self> {
        match (family, model) {
            (0x19, 0x00..=0x0f) => Some(Self::Milan),
            (0x19, 0x10..=0x1f | 0xa0..=0xaf) => Some(Self::Genoa),
            (0x1a, 0x00..=0x1f) => Some(Self::Turin),
            _ => None,
        }
    }

    pub(crate) const fn tcb(self, bytes: [u8; 8]) -> TcbVersion {
        let [b0, b1, b2, b3, _, _, b6, b7] = bytes;
        match self {
            Self::Milan | Self::Genoa => TcbVersion { fmc: None, boot_loader: b0, tee: b1, snp: b6, microcode: b7 },
            Self::Turin => TcbVersion { fmc: Some(b0), boot_loader: b1, tee: b2, snp: b3, microcode: b7 },
        }
    }
}

impl Report {
    /// Returns a field of the signed part, which contains all fields.
    fn field<const N: usize>(&self, at: usize) -> [u8; N] {
        self.signed.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
    }

    fn number(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.field(at))
    }

    /// Returns the report version.
    pub(crate) fn version(&self) -> u32 {
        self.number(0)
    }

    fn policy(&self) -> u64 {
        u64::from_le_bytes(self.field(0x08))
    }

    fn platform_info(&self) -> u64 {
        u64::from_le_bytes(self.field(0x40))
    }

    pub(crate) fn measurement(&self) -> [u8; 48] {
        self.field(0x90)
    }

    pub(crate) fn report_data(&self) -> [u8; 64] {
        self.field(0x50)
    }

    pub(crate) fn chip_id(&self) -> [u8; 64] {
        self.field(0x1a0)
    }

    /// Returns the product that the report claims; `None` in version 2, which has no such field.
    pub(crate) fn product(&self) -> Result<Option<Product>, Refusal> {
        if self.version() < 3 {
            return Ok(None);
        }
        let [family, model] = self.field(0x188);
        let found = u32::from(u16::from_be_bytes([family, model]));
        Product::of_model(family, model).map(Some).ok_or(Refusal::UnsupportedVersion { what: "processors", found })
    }

    /// Returns the name of the product that the report claims. The claim decides nothing. `None` in version 2, which
    /// has no such field.
    pub fn product_name(&self) -> Option<&'static str> {
        self.product().ok().flatten().map(Product::name)
    }

    /// Returns the kind of signing key that the report claims.
    pub(crate) fn key_kind(&self) -> Result<KeyKind, Refusal> {
        // MASK_CHIP_KEY: the signature consists of zeros.
        if self.number(0x48) >> 1 & 1 == 1 {
            return Err(Refusal::Unsigned);
        }
        match self.number(0x48) >> 2 & 7 {
            0 => Ok(KeyKind::Vcek),
            1 => Ok(KeyKind::Vlek),
            7 => Err(Refusal::Unsigned),
            other => Err(Refusal::UnsupportedSignature(other)),
        }
    }

    /// Makes the checks that apply to every report, whoever signed it.
    ///
    /// # Errors
    /// [`Refusal`] of the first check that fails.
    pub(crate) fn check(&self) -> Result<(), Refusal> {
        let version = self.version();
        if !(2..=5).contains(&version) {
            return Err(Refusal::UnsupportedVersion { what: "reports", found: version });
        }
        if self.number(0x34) != ECDSA_P384_SHA384 {
            return Err(Refusal::UnsupportedSignature(self.number(0x34)));
        }
        let policy = self.policy();
        let bit = |number: u32| policy >> number & 1 == 1;
        if bit(19) {
            return Err(Refusal::Debug);
        }
        if bit(18) {
            return Err(Refusal::Migratable);
        }
        // Bit 17 is always one. No bit is defined from 26 on.
        if !bit(17) || policy >> 26 != 0 {
            return Err(Refusal::ReservedBits { what: "the guest's policy" });
        }
        self.check_reserved(version)?;
        self.key_kind().map(drop)
    }

    fn check_reserved(&self, version: u32) -> Result<(), Refusal> {
        let after_tcb = if version < 3 { 0x188 } else { 0x18b };
        let end = if version < 5 { 0x1f8 } else { 0x208 };
        let ranges = [0x4c..0x50, after_tcb..0x1a0, 0x1eb..0x1ec, 0x1ef..0x1f0, end..SIGNED];
        let zero = |range: std::ops::Range<usize>| {
            self.signed.get(range).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0))
        };
        // Author key, masked chip, kind of key. No bit is defined from 5 on.
        if self.number(0x48) >> 5 != 0 || !ranges.into_iter().all(zero) {
            return Err(Refusal::ReservedBits { what: WHAT });
        }
        Ok(())
    }
}
