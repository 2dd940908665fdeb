//! Why evidence is refused.
//!
//! Owns the refusals: a code whose meaning never changes, a sentence for people, and the next step.

/// A refusal. Its `Display` is the sentence for people.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// Input larger than its limit.
    #[error("{what} exceeds the limit of {limit} bytes or entries")]
    TooLarge {
        /// Name of the input.
        what: &'static str,
        /// The limit: bytes, or entries of a list.
        limit: usize,
    },
    /// Input that ends too early.
    #[error("{what} is truncated")]
    Truncated {
        /// Name of the input.
        what: &'static str,
    },
    /// Input that goes on after its end.
    #[error("{count} unexpected bytes follow {what}")]
    TrailingBytes {
        /// Name of the input.
        what: &'static str,
        /// Number of bytes after its end.
        count: usize,
    },
    /// Neither a quote nor a report.
    #[error("this is neither an SGX or TDX quote nor a SEV-SNP report")]
    NotEvidence,
    /// Input in another encoding than the canonical one.
    #[error("{what} is not canonically encoded")]
    NotCanonical {
        /// Name of the input.
        what: &'static str,
    },
    /// An unsupported version.
    #[error("unsupported version {found} of {what}")]
    UnsupportedVersion {
        /// What has the version.
        what: &'static str,
        /// The version.
        found: u32,
    },
    /// An unsupported key or signature algorithm.
    #[error("unsupported kind {0} of key or signature")]
    UnsupportedSignature(u32),
    /// Certification data other than a certificate chain.
    #[error("the quote has certification data of type {0} instead of a PCK certificate chain")]
    UnsupportedCertification(u16),
    /// Another quoting enclave than Intel's.
    #[error("the quote is not from Intel's quoting enclave")]
    UnknownVendor,
    /// Reserved bits that are set.
    #[error("reserved bits of {what} are set")]
    ReservedBits {
        /// Name of the structure.
        what: &'static str,
    },
    /// Debug mode: the TEE's memory can be read.
    #[error("the TEE runs in debug mode: the machine's owner can read its memory")]
    Debug,
    /// Profiling: the TEE's execution can be observed.
    #[error("the TEE runs under profiling, which reveals what it does")]
    Profiled,
    /// The TEE can be moved to another machine.
    #[error("the TEE can be migrated to another machine")]
    Migratable,
    /// A service domain is bound to the TEE.
    #[error("a service domain is bound to the TEE and can modify it")]
    ServiceDomain,
    /// The host can remove the TEE's pages unnoticed.
    #[error("pages that the host removes raise no fault in the TEE (SEPT_VE_DISABLE is off)")]
    SeptVe,
    /// The enclave has the key that provisions others.
    #[error("the enclave may use the provisioning key")]
    ProvisioningKey,
    /// The evidence has no signature.
    #[error("the report is not signed")]
    Unsigned,
    /// There is no collateral to check the evidence against.
    #[error("the vendor's collateral is missing")]
    NoCollateral,
    /// The collateral is from the other vendor.
    #[error("the collateral and the evidence are from different vendors")]
    OtherCollateral,
    /// The collateral cannot be parsed.
    #[error("the collateral is malformed: {0}")]
    MalformedCollateral(String),
    /// The evidence has no leaf certificate.
    #[error("the certificate of the signing key is missing")]
    NoCertificate,
    /// A certificate cannot be parsed.
    #[error("{what} is malformed: {why}")]
    MalformedCertificate {
        /// Name of the certificate.
        what: &'static str,
        /// Reason.
        why: String,
    },
    /// A certificate that no pinned root or authority issued.
    #[error("{what} does not chain to a pinned root")]
    UnknownIssuer {
        /// Name of the certificate.
        what: &'static str,
    },
    /// A wrong signature on a certificate.
    #[error("the signature on {what} is invalid")]
    CertificateSignature {
        /// Name of the certificate.
        what: &'static str,
    },
    /// A validity period that has not begun.
    #[error("{what} is not valid yet")]
    NotYetValid {
        /// What has the validity period.
        what: &'static str,
    },
    /// A validity period that is over.
    #[error("{what} has expired")]
    Expired {
        /// What has the validity period.
        what: &'static str,
    },
    /// A certificate used for something that it does not permit.
    #[error("{what} may not be used for this purpose")]
    Usage {
        /// Name of the certificate.
        what: &'static str,
    },
    /// A revocation list is missing.
    #[error("the certificate revocation list is missing")]
    NoCrl,
    /// A revocation list cannot be parsed, or its signature is wrong.
    #[error("the certificate revocation list is invalid: {0}")]
    BadCrl(String),
    /// A revocation list is too old.
    #[error("the certificate revocation list is out of date")]
    StaleCrl,
    /// A revoked certificate.
    #[error("{what} was revoked")]
    Revoked {
        /// Name of the certificate.
        what: &'static str,
    },
    /// Intel's TCB info is unusable.
    #[error("the vendor's TCB info is invalid: {0}")]
    TcbInfo(String),
    /// Intel's identity of the quoting enclave is unusable.
    #[error("the vendor's identity of the quoting enclave is invalid: {0}")]
    QeIdentity(String),
    /// The signature on the quoting enclave's report is wrong.
    #[error("the signature on the quoting enclave's report is invalid")]
    QeReportSignature,
    /// The attestation key does not belong to the quoting enclave.
    #[error("the signing key is not the one that the quoting enclave certifies")]
    QeBinding,
    /// Another quoting enclave than the vendor's identity describes.
    #[error("the quoting enclave does not match the vendor's QE identity: {0}")]
    OtherQe(String),
    /// The signature on the evidence is wrong.
    #[error("the signature on the evidence is invalid")]
    Signature,
    /// The processor models of collateral and certificate differ.
    #[error("the collateral is for another processor model (FMSPC)")]
    OtherModel,
    /// Firmware below every TCB level that the vendor lists.
    #[error("the platform's firmware is below every TCB level that the vendor lists")]
    NoTcbLevel,
    /// A TCB level whose keys the vendor declares compromised.
    #[error("the vendor has revoked the TCB level of the platform's firmware")]
    TcbRevoked,
    /// A TDX module that the vendor does not list.
    #[error("the TDX module is not one of the vendor's: {0}")]
    TdxModule(String),
    /// The report claims a VCEK and the certificate is for a VLEK, or the reverse.
    #[error("the report and the certificate disagree on the kind of signing key")]
    KeyKind,
    /// The firmware versions of report and certificate differ.
    #[error("the certificate and the report disagree on firmware version ({0})")]
    TcbMismatch(&'static str),
    /// The chips of report and certificate differ.
    #[error("the certificate and the report disagree on the chip")]
    OtherChip,
    /// The products of report and certificate differ.
    #[error("the report is from another product ({found}) than the certificate ({certified})")]
    OtherProduct {
        /// Product that the report names.
        found: &'static str,
        /// Product that the certificate names.
        certified: &'static str,
    },
    /// Evidence signed by simulation roots.
    #[error("simulation roots signed the evidence: it proves nothing")]
    Simulated,
    /// A platform that the policy does not accept.
    #[error("the policy does not accept {0} evidence")]
    Platform(&'static str),
    /// A product that the policy does not accept.
    #[error("the policy does not accept evidence from {0}")]
    Product(String),
    /// Intel's rating of the firmware is one that the policy does not accept.
    #[error("the vendor rates the platform's firmware as {0}")]
    TcbStatus(String),
    /// A published vulnerability.
    #[error("{0} affects this platform and the image does not mitigate it")]
    Advisory(String),
    /// Firmware below the floor that the chain sets.
    #[error("the platform's firmware number is {found}; the network requires at least {least}")]
    Floor {
        /// The firmware's number.
        found: u32,
        /// The floor.
        least: u32,
    },
    /// The chain sets no floor for this product.
    #[error("the network sets no firmware floor for this product")]
    NoFloor,
    /// Two threads share a core, or may share one.
    #[error("two threads may share a core on this machine, which the policy does not accept")]
    Smt,
    /// A report that did not come from the guest's most privileged level.
    #[error("the report was not requested at VMPL 0: more privileged code runs in the same guest")]
    Vmpl,
    /// Features that no image of the network asks for, or a missing check of the machine's memory.
    #[error("{0}")]
    Attributes(&'static str),
    /// A field in which an owner or host has put data of its own.
    #[error("{0} is not zero: it sets an owner or a configuration that no image of the network has")]
    Owner(&'static str),
    /// The signed report data is not the hash of the binding.
    #[error("the evidence is not bound to what the relay claims about itself")]
    Binding,
    /// A part of the chain's data is missing.
    #[error("{0} is unavailable; the relay cannot be verified without it")]
    NoView(&'static str),
    /// Evidence for another network.
    #[error("the evidence is for another network")]
    OtherNetwork,
    /// Evidence for another relay.
    #[error("the evidence is for another relay")]
    OtherRelay,
    /// Evidence from another start of the relay.
    #[error("the evidence is for another epoch of the relay's key")]
    OtherEpoch,
    /// Evidence for another handshake key.
    #[error("the evidence is for another handshake key than the relay's")]
    OtherKey,
    /// Evidence for other roles.
    #[error("the relay's roles differ from those in its evidence, or do not include the requested role")]
    OtherRole,
    /// A block that the chain does not have.
    #[error("the evidence names a block that the chain does not have")]
    UnknownBlock,
    /// A block that is too old.
    #[error("the evidence is {age} s old; the limit is {limit} s")]
    TooOld {
        /// Age in seconds, by the chain's time.
        age: u64,
        /// Limit in seconds.
        limit: u64,
    },
    /// An image that validators have not voted on.
    #[error("validators have not approved this image")]
    UnknownImage,
    /// An image that may not be used.
    #[error("the image {0}")]
    ImageState(&'static str),
    /// An image's firmware that is too old, or of no known generation.
    #[error(
        "the image starts with firmware of {}; this release accepts generation {least} and newer",
        generation(*.found)
    )]
    FirmwareGeneration {
        /// Generation that the image's manifest names.
        found: Option<u32>,
        /// Oldest generation that is accepted.
        least: u32,
    },
    /// The TEE runs something else than the image.
    #[error("the measurement does not belong to the image that the evidence names")]
    Measurement,
    /// An image that was not rebuilt on this machine, where the policy requires it.
    #[error("the image was not rebuilt on this machine, which the policy requires")]
    NotRebuilt,
    /// Too few of the rebuilders in the policy signed that they rebuilt the image.
    #[error("{found} of the rebuilders named in the policy signed this image; {needed} must")]
    Rebuilders {
        /// Number that signed.
        found: usize,
        /// Number that the policy requires.
        needed: usize,
    },
    /// No mirror has evidence for the relay.
    #[error("no mirror has evidence for this relay")]
    NoEvidence,
    /// This machine's clock is wrong.
    #[error("this machine's clock is more than six hours behind the chain's")]
    Clock,
    /// The newest block is too old.
    #[error(
        "the directory's block is {} hours old by this machine's clock; the limit is {} hours",
        .age.div_ceil(3_600),
        .limit / 3_600
    )]
    Outdated {
        /// Age of the block, in seconds.
        age: u64,
        /// Limit in seconds: 72 hours while no newer block is known, otherwise six hours.
        limit: u64,
    },
    /// Both hops run on one chip.
    #[error("both relays run on the same chip")]
    SameChip,
    /// Neither hop's evidence identifies its chip.
    #[error("neither relay's evidence identifies its chip, so both may run on the same one")]
    UnknownChips,
    /// A refusal of the quote verifier that has no code of its own.
    #[error("the quote is refused: {0}")]
    Other(String),
}

impl Refusal {
    /// Returns the code.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too-large",
            Self::Truncated { .. } => "truncated",
            Self::TrailingBytes { .. } => "trailing-bytes",
            Self::NotEvidence => "not-evidence",
            Self::NotCanonical { .. } => "not-canonical",
            Self::UnsupportedVersion { .. } => "unsupported-version",
            Self::UnsupportedSignature(_) => "unsupported-signature",
            Self::UnsupportedCertification(_) => "unsupported-certification",
            Self::UnknownVendor => "unknown-vendor",
            Self::ReservedBits { .. } => "reserved-bits",
            Self::Debug => "debug",
            Self::Profiled => "profiled",
            Self::Migratable => "migratable",
            Self::ServiceDomain => "service-domain",
            Self::SeptVe => "sept-ve",
            Self::ProvisioningKey => "provisioning-key",
            Self::Unsigned => "unsigned",
            Self::NoCollateral => "no-collateral",
            Self::OtherCollateral => "other-collateral",
            Self::MalformedCollateral(_) => "malformed-collateral",
            Self::NoCertificate => "no-certificate",
            Self::MalformedCertificate { .. } => "malformed-certificate",
            Self::UnknownIssuer { .. } => "unknown-issuer",
            Self::CertificateSignature { .. } => "certificate-signature",
            Self::NotYetValid { .. } => "not-yet-valid",
            Self::Expired { .. } => "expired",
            Self::Usage { .. } => "usage",
            Self::NoCrl => "no-crl",
            Self::BadCrl(_) => "bad-crl",
            Self::StaleCrl => "stale-crl",
            Self::Revoked { .. } => "revoked",
            Self::TcbInfo(_) => "tcb-info",
            Self::QeIdentity(_) => "qe-identity",
            Self::QeReportSignature => "qe-report-signature",
            Self::QeBinding => "qe-binding",
            Self::OtherQe(_) => "other-qe",
            Self::Signature => "signature",
            Self::OtherModel => "other-model",
            Self::NoTcbLevel => "no-tcb-level",
            Self::TcbRevoked => "tcb-revoked",
            Self::TdxModule(_) => "tdx-module",
            Self::KeyKind => "key-kind",
            Self::TcbMismatch(_) => "tcb-mismatch",
            Self::OtherChip => "other-chip",
            Self::OtherProduct { .. } => "other-product",
            Self::Simulated => "simulated",
            Self::Platform(_) => "platform",
            Self::Product(_) => "product",
            Self::TcbStatus(_) => "tcb-status",
            Self::Advisory(_) => "advisory",
            Self::Floor { .. } => "floor",
            Self::NoFloor => "no-floor",
            Self::Smt => "smt",
            Self::Vmpl => "vmpl",
            Self::Attributes(_) => "attributes",
            Self::Owner(_) => "owner",
            Self::Binding => "binding",
            Self::NoView(_) => "no-view",
            Self::OtherNetwork => "other-network",
            Self::OtherRelay => "other-relay",
            Self::OtherEpoch => "other-epoch",
            Self::OtherKey => "other-key",
            Self::OtherRole => "other-role",
            Self::UnknownBlock => "unknown-block",
            Self::TooOld { .. } => "too-old",
            Self::UnknownImage => "unknown-image",
            Self::ImageState(_) => "image-state",
            Self::FirmwareGeneration { .. } => "firmware-generation",
            Self::Measurement => "measurement",
            Self::NotRebuilt => "not-rebuilt",
            Self::Rebuilders { .. } => "rebuilders",
            Self::NoEvidence => "no-evidence",
            Self::Clock => "clock",
            Self::Outdated { .. } => "outdated",
            Self::SameChip => "same-chip",
            Self::UnknownChips => "unknown-chips",
            Self::Other(_) => "refused",
        }
    }

    /// Returns the next step for the user.
    pub const fn next_step(&self) -> &'static str {
        match self {
            Self::NoCollateral
            | Self::OtherCollateral
            | Self::MalformedCollateral(_)
            | Self::OtherModel
            | Self::BadCrl(_)
            | Self::TcbInfo(_)
            | Self::QeIdentity(_) => "provide the vendor-signed collateral for this processor model",
            Self::NoCertificate => "provide the certificate of the chip's key (VCEK or VLEK) with the report",
            Self::NoCrl => "provide the vendor's certificate revocation lists with the rest of the collateral",
            Self::UnknownImage | Self::ImageState(_) | Self::Measurement => {
                "choose another relay; its operator must start an image that validators approve: openrelay image show"
            }
            Self::FirmwareGeneration { .. } => {
                "choose another relay; its operator must start an image with newer firmware: openrelay image show"
            }
            Self::StaleCrl | Self::Expired { .. } | Self::NotYetValid { .. } | Self::Clock => {
                "check this machine's clock, or provide newer collateral"
            }
            Self::Outdated { .. } => {
                "check this machine's clock; if it is right, wait until a chain endpoint can be reached"
            }
            Self::Debug
            | Self::Profiled
            | Self::Migratable
            | Self::ServiceDomain
            | Self::SeptVe
            | Self::ProvisioningKey
            | Self::Vmpl
            | Self::Attributes(_)
            | Self::Owner(_) => "choose another relay; its operator must start the image as published",
            Self::NoTcbLevel
            | Self::TcbRevoked
            | Self::Revoked { .. }
            | Self::TcbStatus(_)
            | Self::Advisory(_)
            | Self::Floor { .. } => "choose another relay; its operator must update the machine's firmware",
            Self::NoView(_) | Self::NoFloor => {
                "check that the chain and its mirrors can be reached; openrelay status shows where they are read from"
            }
            Self::Simulated | Self::Platform(_) | Self::Product(_) | Self::Smt => {
                "choose another relay, or accept this kind in the client's policy"
            }
            Self::NotRebuilt => "rebuild it with openrelay image verify, or remove paranoid from the policy",
            Self::Rebuilders { .. } => {
                "openrelay image show lists who signed; wait for more signatures, or require fewer in the policy"
            }
            Self::SameChip | Self::UnknownChips => "choose another relay for one of the two hops",
            Self::NoEvidence | Self::OtherEpoch | Self::OtherKey | Self::UnknownBlock | Self::TooOld { .. } => {
                "try again soon: the relay may have just restarted; if it is still refused, choose another relay"
            }
            Self::TooLarge { .. }
            | Self::Truncated { .. }
            | Self::TrailingBytes { .. }
            | Self::NotEvidence
            | Self::NotCanonical { .. }
            | Self::UnsupportedVersion { .. }
            | Self::UnsupportedSignature(_)
            | Self::UnsupportedCertification(_)
            | Self::UnknownVendor
            | Self::ReservedBits { .. }
            | Self::Unsigned
            | Self::MalformedCertificate { .. }
            | Self::UnknownIssuer { .. }
            | Self::CertificateSignature { .. }
            | Self::Usage { .. }
            | Self::QeReportSignature
            | Self::QeBinding
            | Self::OtherQe(_)
            | Self::Signature
            | Self::TdxModule(_)
            | Self::KeyKind
            | Self::TcbMismatch(_)
            | Self::OtherChip
            | Self::OtherProduct { .. }
            | Self::Binding
            | Self::OtherNetwork
            | Self::OtherRelay
            | Self::OtherRole
            | Self::Other(_) => "choose another relay; this evidence proves nothing",
        }
    }
}

fn generation(found: Option<u32>) -> String {
    found.map_or_else(|| "no known generation".into(), |found| format!("generation {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_step_names_what_to_do() {
        let rows = [
            (Refusal::NoCrl, "certificate revocation lists"),
            (Refusal::NoCertificate, "VCEK or VLEK"),
            (Refusal::OtherCollateral, "vendor-signed"),
            (Refusal::UnknownImage, "openrelay image show"),
            (Refusal::FirmwareGeneration { found: None, least: 1 }, "an image with newer firmware"),
            (Refusal::Clock, "clock"),
            (Refusal::Outdated { age: 7, limit: 6 }, "endpoint"),
            (Refusal::Debug, "operator"),
            (Refusal::NoTcbLevel, "firmware"),
            (Refusal::NoView("the time"), "openrelay status"),
            (Refusal::NotRebuilt, "openrelay image verify"),
            (Refusal::NoEvidence, "try again soon"),
            (Refusal::Signature, "choose another relay"),
        ];
        for (refusal, words) in rows {
            assert!(refusal.next_step().contains(words), "{}: {}", refusal.code(), refusal.next_step());
        }
    }
}
