//! What genuine evidence says.
//!
//! Owns the list; judges nothing.

use crate::evidence::Measurement;

/// The kind of trusted execution environment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Platform {
    /// An enclave.
    Sgx,
    /// A trust domain.
    Tdx,
    /// A guest of SEV-SNP.
    SevSnp,
}

impl Platform {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sgx => "SGX",
            Self::Tdx => "TDX",
            Self::SevSnp => "SEV-SNP",
        }
    }
}

/// The key that signed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyKind {
    /// Intel's provisioned key of the machine.
    Pck,
    /// AMD's key of the chip.
    Vcek,
    /// AMD's key of a cloud: the chip is not named by it.
    Vlek,
}

impl KeyKind {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Pck => "PCK",
            Self::Vcek => "VCEK",
            Self::Vlek => "VLEK",
        }
    }
}

/// What became of the list of revoked certificates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crl {
    /// It is signed, fresh, and names nothing of the chain.
    Checked,
    /// There was none. No verdict comes of that.
    NotGiven,
}

/// What the firmware is worth by the vendor's word.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Tcb {
    /// Intel's.
    Intel {
        /// Of platform, module and quoting enclave together, in Intel's words: `UpToDate`, `OutOfDate`, …
        status: String,
        /// Published weaknesses that apply.
        advisories: Vec<String>,
        /// The number of the evaluation that said so.
        evaluation: u32,
    },
    /// AMD's, as the report has them.
    Amd {
        /// What the key is for.
        reported: TcbVersion,
        /// What runs.
        current: TcbVersion,
        /// What the machine cannot go back behind.
        committed: TcbVersion,
        /// What ran when the guest was started.
        launch: TcbVersion,
    },
}

/// Versions of AMD's firmware. Source: SEV-SNP ABI (56860), table "Structure of the TCB_VERSION".
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TcbVersion {
    /// The FMC, from Turin on.
    pub fmc: Option<u8>,
    /// The boot loader.
    pub boot_loader: u8,
    /// The secure processor's system.
    pub tee: u8,
    /// The SNP firmware.
    pub snp: u8,
    /// The microcode.
    pub microcode: u8,
}

/// What genuine evidence says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Facts {
    /// The kind of environment.
    pub platform: Platform,
    /// Whether roots of a simulation have signed: then it proves nothing to anybody.
    pub simulated: bool,
    /// Version of quote or report.
    pub version: u32,
    /// The product or processor model: `Genoa`, or an FMSPC in hexadecimal digits.
    pub product: String,
    /// What was started.
    pub measurement: Measurement,
    /// The 64 bytes that the guest has put into it.
    pub report_data: [u8; 64],
    /// What else of the environment the chip has signed, by name: attributes, owners, policies.
    pub fields: Vec<(&'static str, Vec<u8>)>,
    /// The key.
    pub key: KeyKind,
    /// What tells this chip from others; `None` when the evidence does not say.
    pub chip: Option<[u8; 32]>,
    /// Whether two threads share a core; `None` when the evidence does not say.
    pub smt: Option<bool>,
    /// The firmware.
    pub tcb: Tcb,
    /// Revocation.
    pub crl: Crl,
    /// Until when certificates and collateral hold, in seconds since the Unix epoch.
    pub expires: u64,
}
