//! The facts that genuine evidence states.
//!
//! Owns the list of facts. It never judges them: whether they are good enough is for a policy to decide.

use crate::evidence::Measurement;

/// The platform: the kind of trusted execution environment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Platform {
    /// An SGX enclave.
    Sgx,
    /// A TDX trust domain.
    Tdx,
    /// A SEV-SNP guest.
    SevSnp,
}

impl Platform {
    /// Returns the platform's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sgx => "SGX",
            Self::Tdx => "TDX",
            Self::SevSnp => "SEV-SNP",
        }
    }
}

/// The kind of key that signed the evidence.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyKind {
    /// Intel's provisioned key of the machine.
    Pck,
    /// AMD's key of the chip.
    Vcek,
    /// AMD's key of a cloud, which does not identify the chip.
    Vlek,
}

impl KeyKind {
    /// Returns the key's name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pck => "PCK",
            Self::Vcek => "VCEK",
            Self::Vlek => "VLEK",
        }
    }
}

/// Result of the check of the certificate revocation list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crl {
    /// The list is signed and fresh, and it revokes no certificate of the chain.
    Checked,
    /// No list was given. Such facts lead to no verdict.
    NotGiven,
}

/// The vendor's rating of the firmware.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tcb {
    /// Intel's rating.
    Intel {
        /// Rating of platform, module and quoting enclave together, in Intel's terms: `UpToDate`, `OutOfDate`, …
        status: String,
        /// Published vulnerabilities that affect the platform.
        advisories: Vec<String>,
        /// Number of Intel's TCB evaluation that gave the rating.
        evaluation: u32,
    },
    /// AMD's firmware versions, from the report.
    Amd {
        /// Versions that the signing key is for.
        reported: TcbVersion,
        /// Versions that run.
        current: TcbVersion,
        /// Versions below which the machine cannot go back.
        committed: TcbVersion,
        /// Versions that ran when the guest was started.
        launch: TcbVersion,
    },
}

/// Versions of AMD's firmware. Source: SEV-SNP ABI (56860), table "Structure of the TCB_VERSION".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcbVersion {
    /// FMC, from Turin on.
    pub fmc: Option<u8>,
    /// Boot loader.
    pub boot_loader: u8,
    /// Operating system of the secure processor.
    pub tee: u8,
    /// SNP firmware.
    pub snp: u8,
    /// Microcode.
    pub microcode: u8,
}

/// The facts that genuine evidence states.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// Platform.
    pub platform: Platform,
    /// Whether simulation roots signed the evidence, which then proves nothing.
    pub simulated: bool,
    /// Version of the quote or report.
    pub version: u32,
    /// Product or processor model: `Genoa`, or an FMSPC in hexadecimal digits.
    pub product: String,
    /// Measurement of what was started.
    pub measurement: Measurement,
    /// The 64 bytes that the guest supplied.
    pub report_data: [u8; 64],
    /// Further signed fields by name: attributes, owners, policies.
    pub fields: Vec<(&'static str, Vec<u8>)>,
    /// Kind of the signing key.
    pub key: KeyKind,
    /// Tag that identifies the chip; `None` if the evidence does not identify it.
    pub chip: Option<[u8; 32]>,
    /// Whether two threads share a core; `None` if the evidence does not say.
    pub smt: Option<bool>,
    /// The vendor's rating of the firmware.
    pub tcb: Tcb,
    /// Result of the revocation check.
    pub crl: Crl,
    /// Time at which the first certificate or piece of collateral expires, in seconds since the Unix epoch.
    pub expires: u64,
}
