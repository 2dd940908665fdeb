//! Why evidence is refused.
//!
//! Owns the codes, which never change their meaning, a sentence for people, and what to do next.

/// A refusal. Its `Display` is the sentence for people.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// More bytes than evidence has.
    #[error("{what} has more than the {limit} bytes that are read")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many are read.
        limit: usize,
    },
    /// It ends too early.
    #[error("{what} ends before all of it was read")]
    Truncated {
        /// What ends.
        what: &'static str,
    },
    /// It goes on where it should end.
    #[error("{count} bytes follow {what}, and they are not zeros")]
    TrailingBytes {
        /// After what.
        what: &'static str,
        /// How many.
        count: usize,
    },
    /// Neither a quote nor a report.
    #[error("this is neither a quote of SGX or TDX nor a report of SEV-SNP")]
    NotEvidence,
    /// Another encoding than the only one.
    #[error("{what} is not in its only encoding")]
    NotCanonical {
        /// Of what.
        what: &'static str,
    },
    /// A version that is not judged here.
    #[error("{what} of version {found} are not judged here")]
    UnsupportedVersion {
        /// Of what.
        what: &'static str,
        /// Which.
        found: u32,
    },
    /// A key or signature algorithm that is not judged here.
    #[error("signatures of kind {0} are not judged here")]
    UnsupportedSignature(u32),
    /// Certification data other than a chain of certificates.
    #[error("the quote brings certification data of type {0}, not the chain of its PCK certificate")]
    UnsupportedCertification(u16),
    /// Not Intel's quoting enclave.
    #[error("the quote is of a quoting enclave of another vendor than Intel")]
    UnknownVendor,
    /// Bits that must be zero.
    #[error("reserved bits of {what} are set")]
    ReservedBits {
        /// Of what.
        what: &'static str,
    },
    /// Its memory can be read.
    #[error("it runs in debug mode: whoever owns the machine can read its memory")]
    Debug,
    /// Its execution is watched.
    #[error("it runs under profiling, which shows what it does")]
    Profiled,
    /// It can be moved to another machine.
    #[error("it can be migrated to another machine")]
    Migratable,
    /// Another domain is bound to it.
    #[error("a service domain is bound to it, which can change it")]
    ServiceDomain,
    /// The host can take its pages away unnoticed.
    #[error("pages that the host takes away raise no fault in it (SEPT_VE_DISABLE is off)")]
    SeptVe,
    /// It has the key that provisions others.
    #[error("the enclave may use the provisioning key")]
    ProvisioningKey,
    /// Nobody signed it.
    #[error("the report is not signed")]
    Unsigned,
    /// Nothing to hold it against.
    #[error("the vendor's collateral is missing")]
    NoCollateral,
    /// Of the other vendor.
    #[error("the collateral is of another vendor than the evidence")]
    OtherCollateral,
    /// It does not read.
    #[error("the collateral does not read: {0}")]
    MalformedCollateral(String),
    /// The evidence has no leaf certificate.
    #[error("the certificate of the key that signed is missing")]
    NoCertificate,
    /// It does not read.
    #[error("{what} does not read: {why}")]
    MalformedCertificate {
        /// Which.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// Not below a pinned root.
    #[error("{what} does not lead to a pinned root")]
    UnknownIssuer {
        /// What.
        what: &'static str,
    },
    /// A wrong signature on a certificate.
    #[error("the signature on {what} is wrong")]
    CertificateSignature {
        /// Which.
        what: &'static str,
    },
    /// Too early.
    #[error("{what} is not valid yet")]
    NotYetValid {
        /// What.
        what: &'static str,
    },
    /// Too late.
    #[error("{what} has expired")]
    Expired {
        /// What.
        what: &'static str,
    },
    /// A certificate may not do what it does.
    #[error("{what} may not be used for this")]
    Usage {
        /// Which.
        what: &'static str,
    },
    /// A revocation list is missing.
    #[error("the list of revoked certificates is missing")]
    NoCrl,
    /// It does not read, or its signature is wrong.
    #[error("the list of revoked certificates does not hold: {0}")]
    BadCrl(String),
    /// Too old.
    #[error("the list of revoked certificates is out of date")]
    StaleCrl,
    /// Revoked.
    #[error("{what} was revoked")]
    Revoked {
        /// What.
        what: &'static str,
    },
    /// TCB info.
    #[error("the vendor's TCB info does not hold: {0}")]
    TcbInfo(String),
    /// QE identity.
    #[error("the vendor's identity of the quoting enclave does not hold: {0}")]
    QeIdentity(String),
    /// The quoting enclave's report.
    #[error("the signature on the quoting enclave's report is wrong")]
    QeReportSignature,
    /// The attestation key is not the quoting enclave's.
    #[error("the key that signed is not the one that the quoting enclave vouches for")]
    QeBinding,
    /// Not the quoting enclave that the vendor names.
    #[error("it was signed by another quoting enclave than the vendor names: {0}")]
    OtherQe(String),
    /// The signature.
    #[error("the signature on the evidence is wrong")]
    Signature,
    /// The processor model of collateral and certificate differ.
    #[error("the collateral is for another processor model (FMSPC)")]
    OtherModel,
    /// Below every level that the vendor lists.
    #[error("the platform's firmware is below every level that the vendor lists")]
    NoTcbLevel,
    /// The vendor says that keys of this level are compromised.
    #[error("the vendor has revoked this level of firmware")]
    TcbRevoked,
    /// The TDX module.
    #[error("the TDX module is not one of the vendor's: {0}")]
    TdxModule(String),
    /// VCEK where VLEK is said, or the other way.
    #[error("the report says that another kind of key has signed it than the certificate is for")]
    KeyKind,
    /// Firmware numbers of report and certificate differ.
    #[error("the certificate is for other firmware than the report says ({0})")]
    TcbMismatch(&'static str),
    /// Another chip.
    #[error("the certificate is for another chip than the report names")]
    OtherChip,
    /// Another product.
    #[error("the report is of another product ({found}) than the certificate ({certified})")]
    OtherProduct {
        /// As the report says.
        found: &'static str,
        /// As the certificate says.
        certified: &'static str,
    },
    /// Roots of a simulation.
    #[error("roots of a simulation have signed it: it proves nothing")]
    Simulated,
    /// A kind of environment that the policy does not accept.
    #[error("evidence of {0} is not accepted here")]
    Platform(&'static str),
    /// A product that the policy does not accept.
    #[error("evidence of {0} is not accepted here")]
    Product(String),
    /// Intel's word for the firmware.
    #[error("the vendor calls the state of its firmware {0}")]
    TcbStatus(String),
    /// A published weakness.
    #[error("the weakness {0} applies to it, and nothing is known to be done against that")]
    Advisory(String),
    /// Below what the chain asks for.
    #[error("its firmware has number {found} where the network asks for at least {least}")]
    Floor {
        /// What it has.
        found: u32,
        /// What it must have.
        least: u32,
    },
    /// The chain does not say what would be new enough.
    #[error("the network says nothing about the firmware of this product")]
    NoFloor,
    /// Two threads share a core, or may.
    #[error("two threads may share a core of this machine, which the policy does not accept")]
    Smt,
    /// Not from the most privileged level of the guest.
    #[error("the report was not asked for at VMPL 0: something more privileged runs in the same guest")]
    Vmpl,
    /// Features that no image of the network asks for, or a check of the machine's memory that was not made.
    #[error("{0}")]
    Attributes(&'static str),
    /// Somebody has said something of his own about it.
    #[error("{0} is not zero: an owner or a configuration was given that no image of the network has")]
    Owner(&'static str),
    /// Bound to something else.
    #[error("the evidence is not bound to what the relay says of itself")]
    Binding,
    /// A part of what the chain says is missing.
    #[error("{0} could not be had, and nothing is believed without it")]
    NoView(&'static str),
    /// Of another network.
    #[error("the evidence is for another network")]
    OtherNetwork,
    /// Of another relay.
    #[error("the evidence is for another relay")]
    OtherRelay,
    /// Of another start of it.
    #[error("the evidence is for another epoch of the relay's key")]
    OtherEpoch,
    /// For another key.
    #[error("the evidence is for another handshake key than the relay's")]
    OtherKey,
    /// For other roles.
    #[error("the evidence is for other roles than the relay's, or not for this one")]
    OtherRole,
    /// A block that the chain does not have.
    #[error("the evidence names a block that the chain does not have")]
    UnknownBlock,
    /// An old block.
    #[error("the evidence is {age} s old; at most {limit} s will do")]
    TooOld {
        /// In seconds of the chain's time.
        age: u64,
        /// What will do.
        limit: u64,
    },
    /// An image that validators have not voted on.
    #[error("validators have approved no such image")]
    UnknownImage,
    /// An image that must not be used.
    #[error("the image {0}")]
    ImageState(&'static str),
    /// Firmware of an image that is too old, or of no known generation.
    #[error(
        "the image starts with firmware of {}; this release accepts generation {least} and newer",
        generation(*.found)
    )]
    FirmwareGeneration {
        /// The generation that the image's manifest names.
        found: Option<u32>,
        /// The oldest that is accepted.
        least: u32,
    },
    /// Something else than the image runs.
    #[error("what was started is not the image that it names")]
    Measurement,
    /// An image that nobody has rebuilt here, where that is asked for.
    #[error("the image was not rebuilt on this machine, which the policy asks for")]
    NotRebuilt,
    /// Too few of those whom the policy names have signed that they rebuilt it.
    #[error("{found} of the rebuilders that the policy names have signed that they got this image; {needed} must")]
    Rebuilders {
        /// How many have.
        found: usize,
        /// How many must.
        needed: usize,
    },
    /// Nobody has evidence of the relay.
    #[error("no mirror has evidence of this relay")]
    NoEvidence,
    /// The clock.
    #[error("this machine's clock is more than six hours behind the chain's")]
    Clock,
    /// The newest block is too old.
    #[error(
        "the directory's block is {} hours old by this machine's clock, and at most {} are accepted",
        .age.div_ceil(3_600),
        .limit / 3_600
    )]
    Outdated {
        /// Its age, in seconds.
        age: u64,
        /// What is accepted: 72 hours while no newer block is known, otherwise six.
        limit: u64,
    },
    /// Both hops on one chip.
    #[error("both relays run on the same chip")]
    SameChip,
    /// Both hops on chips that nobody names.
    #[error("neither relay's evidence names its chip, so they could be the same")]
    UnknownChips,
    /// Something of the verifier's that has no code of its own.
    #[error("the quote is refused: {0}")]
    Other(String),
}

impl Refusal {
    /// Its code.
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

    /// What to do next.
    pub const fn next_step(&self) -> &'static str {
        match self {
            Self::NoCollateral
            | Self::OtherCollateral
            | Self::MalformedCollateral(_)
            | Self::OtherModel
            | Self::BadCrl(_)
            | Self::TcbInfo(_)
            | Self::QeIdentity(_) => {
                "give the collateral of this vendor and processor model, as the vendor has signed it"
            }
            Self::NoCertificate => "give the certificate of the chip's key (VCEK or VLEK) with the report",
            Self::NoCrl => "give the vendor's lists of revoked certificates with the rest of the collateral",
            Self::UnknownImage | Self::ImageState(_) | Self::Measurement => {
                "choose another relay; its operator has to start an image that validators approve: openrelay image show"
            }
            Self::FirmwareGeneration { .. } => {
                "choose another relay; its operator has to start an image with newer firmware: openrelay image show"
            }
            Self::StaleCrl | Self::Expired { .. } | Self::NotYetValid { .. } | Self::Clock => {
                "check this machine's clock, or give newer collateral"
            }
            Self::Outdated { .. } => {
                "check this machine's clock; if it is right, wait until an endpoint of the chain can be reached"
            }
            Self::Debug
            | Self::Profiled
            | Self::Migratable
            | Self::ServiceDomain
            | Self::SeptVe
            | Self::ProvisioningKey
            | Self::Vmpl
            | Self::Attributes(_)
            | Self::Owner(_) => "choose another relay; its operator has to start the image as it is published",
            Self::NoTcbLevel
            | Self::TcbRevoked
            | Self::Revoked { .. }
            | Self::TcbStatus(_)
            | Self::Advisory(_)
            | Self::Floor { .. } => "choose another relay; its operator has to bring the machine's firmware up to date",
            Self::NoView(_) | Self::NoFloor => {
                "look whether the chain and its mirrors can be reached: openrelay status says by what they are read"
            }
            Self::Simulated | Self::Platform(_) | Self::Product(_) | Self::Smt => {
                "choose another relay, or accept this kind in the client's policy"
            }
            Self::NotRebuilt => "rebuild it: openrelay image verify, or take paranoid out of the policy",
            Self::Rebuilders { .. } => {
                "openrelay image show says who has signed; wait until more have, or ask for fewer in the policy"
            }
            Self::SameChip | Self::UnknownChips => "choose another relay for one of the two hops",
            Self::NoEvidence | Self::OtherEpoch | Self::OtherKey | Self::UnknownBlock | Self::TooOld { .. } => {
                "try again soon: the relay may just have started anew; if it lasts, choose another relay"
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
    fn a_refusal_says_what_to_do() {
        let rows = [
            (Refusal::NoCrl, "lists of revoked certificates"),
            (Refusal::NoCertificate, "VCEK or VLEK"),
            (Refusal::OtherCollateral, "as the vendor has signed it"),
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
