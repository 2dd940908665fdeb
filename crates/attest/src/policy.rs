//! What is good enough.
//!
//! Owns the rules that have nothing to do with the chain: products, firmware, ages. The defaults are those that clients
//! are released with.

use crate::facts::{Crl, Facts, Platform, Tcb, TcbVersion};
use crate::refusal::Refusal;
use crate::verdict::Image;

/// CIPHERTEXT_HIDING_DRAM_EN and ALIAS_CHECK_COMPLETE. Source: SEV-SNP ABI (56860) 1.58, table "PLATFORM_INFO field".
const HIDING_IS_ON: u64 = 1 << 4;
const ALIAS_CHECK: u64 = 1 << 5;
/// CIPHERTEXT_HIDING_DRAM of a guest's policy. Source: SEV-SNP ABI (56860) 1.58, table "Guest Policy".
const HIDING: u64 = 1 << 24;

/// The rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Kinds of environment that are accepted.
    pub platforms: Vec<Platform>,
    /// AMD's products that are.
    pub amd_products: Vec<String>,
    /// Words of Intel's for the state of firmware that are.
    pub intel_statuses: Vec<String>,
    /// Attributes that a trust domain may have, as bits.
    pub td_attributes: u64,
    /// Extended features of the processor that a trust domain (XFAM) or an enclave (XFRM) may use, as bits.
    pub xfam: u64,
    /// Whether the firmware must have looked for memory that appears twice (AMD-SB-3015, "BadRAM").
    pub alias_check: bool,
    /// Bits of a guest's policy (SEV-SNP) that may be set, from bit 16 on: below are the versions of the interface.
    pub guest_policy: u64,
    /// Bits of a guest's policy that must be set, on every product.
    pub guest_policy_needed: u64,
    /// AMD's products on which the host must not be able to read the ciphertext of the guest's memory.
    pub ciphertext_hiding: Vec<String>,
    /// Whether a machine on which two threads share a core is accepted.
    pub smt: bool,
    /// How old the block in the binding may be, in seconds of the chain's time.
    pub max_age_s: u64,
    /// The only images that are accepted: those that were rebuilt here, by what validators voted for; `None` for all that
    /// they have approved.
    pub rebuilt: Option<Vec<[u8; 32]>>,
    /// Rebuilders by whose word an image is accepted besides the validators' vote, by address: against a bought
    /// majority.
    pub rebuilders: Vec<[u8; 20]>,
    /// How many of them must have signed.
    pub rebuilders_needed: usize,
    /// Whether evidence of a simulation will do: only where everything says that it is one.
    pub simulation: bool,
}

impl Default for Policy {
    /// What clients are released with.
    fn default() -> Self {
        Self {
            // SGX has no tunnel device inside, and its memory can be tapped on the machines that have it.
            platforms: vec![Platform::Tdx, Platform::SevSnp],
            // Of Milan root keys have been extracted in software.
            amd_products: vec!["Genoa".into(), "Turin".into()],
            // What ordinary hosts reach; the library's own strict policy lets none of them through.
            intel_statuses: vec!["UpToDate".into(), "SWHardeningNeeded".into()],
            // LASS, SEPT_VE_DISABLE, PKS. Not the counters of performance, which show what it does, nor keys that the
            // host shares (KL).
            td_attributes: 1 << 27 | 1 << 28 | 1 << 30,
            // Trust domains and enclaves: x87 to AVX-512, PKRU, CET, AMX. Not what traces execution (PT, LBR). Source:
            // Intel SDM, volume 1, section 13.1.
            xfam: 0x0006_1ae7,
            alias_check: true,
            // SMT, always one, one socket, AES-256-XTS, no power readings, hidden ciphertext, no page swaps. Not memory
            // on a CXL link, which leaves the board.
            guest_policy: 1 << 16 | 1 << 17 | 1 << 20 | 1 << 22 | 1 << 23 | HIDING | 1 << 25,
            // PAGE_SWAP_DISABLE: the host cannot have the firmware move the guest's pages (AMD-SB-3021, "Heracles").
            guest_policy_needed: 1 << 25,
            // Genoa cannot hide it.
            ciphertext_hiding: vec!["Turin".into()],
            smt: true,
            max_age_s: 6 * 3_600,
            rebuilt: None,
            rebuilders: Vec::new(),
            rebuilders_needed: 0,
            simulation: false,
        }
    }
}

/// Numbers that the chain sets as the least that will do.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Floors {
    /// Of Intel's evaluation of firmware.
    pub intel_evaluation: u32,
    /// Of AMD's firmware, by product.
    pub amd: Vec<(String, TcbVersion)>,
}

impl Policy {
    /// Holds facts against the rules, the chain's floors and what the image is said to withstand.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn check(&self, facts: &Facts, floors: &Floors, image: &Image) -> Result<(), Refusal> {
        self.check_image(image)?;
        self.check_machine(facts, &image.advisories)?;
        check_floors(facts, floors)
    }

    /// Checks what evidence alone says of a machine: kind, product, the vendor's word for its firmware, attributes.
    /// `withstands` are the published weaknesses that the image that runs does what is advised against.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn check_machine(&self, facts: &Facts, withstands: &[String]) -> Result<(), Refusal> {
        if facts.simulated && !self.simulation {
            return Err(Refusal::Simulated);
        }
        if !self.platforms.contains(&facts.platform) {
            return Err(Refusal::Platform(facts.platform.name()));
        }
        if facts.crl != Crl::Checked {
            return Err(Refusal::NoCrl);
        }
        match &facts.tcb {
            Tcb::Intel { status, advisories, .. } => {
                if !self.intel_statuses.contains(status) {
                    return Err(Refusal::TcbStatus(status.clone()));
                }
                if let Some(other) = advisories.iter().find(|advisory| !withstands.contains(advisory)) {
                    return Err(Refusal::Advisory(other.clone()));
                }
            }
            Tcb::Amd { .. } => {
                if !self.amd_products.contains(&facts.product) {
                    return Err(Refusal::Product(facts.product.clone()));
                }
            }
        }
        // Where the evidence does not say, they may.
        if !self.smt && facts.smt != Some(false) {
            return Err(Refusal::Smt);
        }
        self.check_environment(facts)
    }

    /// Holds an image, or a package, against what is asked besides the validators' vote.
    ///
    /// # Errors
    /// [`Refusal::NotRebuilt`], [`Refusal::Rebuilders`].
    pub fn check_image(&self, image: &Image) -> Result<(), Refusal> {
        if self.rebuilt.as_ref().is_some_and(|rebuilt| !rebuilt.contains(&image.value)) {
            return Err(Refusal::NotRebuilt);
        }
        let found = self.named_rebuilders(image).count();
        if found < self.rebuilders_needed {
            return Err(Refusal::Rebuilders { found, needed: self.rebuilders_needed });
        }
        Ok(())
    }

    /// Those rebuilders of an image that are named here.
    pub fn named_rebuilders<'a>(&'a self, image: &'a Image) -> impl Iterator<Item = &'a [u8; 20]> {
        self.rebuilders.iter().filter(|named| image.rebuilt_by.contains(named))
    }

    fn check_environment(&self, facts: &Facts) -> Result<(), Refusal> {
        let owner: &[&'static str] = match facts.platform {
            Platform::Sgx => {
                if facts.number("misc_select") != Some(0) {
                    return Err(Refusal::Attributes("the enclave saves more on an exit than any image asks for"));
                }
                if facts.number("xfrm").is_none_or(|bits| bits & !self.xfam != 0) {
                    return Err(Refusal::Attributes("the enclave has processor features that no image asks for"));
                }
                // The signer of an enclave chooses them, and nobody's signature is asked for.
                &["config_id", "config_svn", "isv_prod_id", "isv_svn"]
            }
            Platform::Tdx => {
                if facts.number("td_attributes").is_none_or(|bits| bits & !self.td_attributes != 0) {
                    return Err(Refusal::Attributes("the trust domain has attributes that no image asks for"));
                }
                if facts.number("xfam").is_none_or(|bits| bits & !self.xfam != 0) {
                    return Err(Refusal::Attributes("the trust domain has processor features that no image asks for"));
                }
                &["mr_config_id", "mr_owner", "mr_owner_config"]
            }
            Platform::SevSnp => {
                if facts.number("vmpl") != Some(0) {
                    return Err(Refusal::Vmpl);
                }
                if self.alias_check && facts.number("platform_info").is_none_or(|bits| bits & ALIAS_CHECK == 0) {
                    return Err(Refusal::Attributes("the firmware has not looked for memory that appears twice"));
                }
                self.check_guest_policy(facts)?;
                &["id_key_digest", "author_key_digest"]
            }
        };
        let zero = |name: &str| facts.field(name).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
        owner.iter().find(|name| !zero(name)).map_or(Ok(()), |name| Err(Refusal::Owner(name)))
    }

    /// What the guest was started with: the host chooses it, and the launch digest does not cover it.
    fn check_guest_policy(&self, facts: &Facts) -> Result<(), Refusal> {
        let unknown = Refusal::Attributes("the evidence does not say by which policy the guest was started");
        let (Some(policy), Some(platform)) = (facts.number("policy"), facts.number("platform_info")) else {
            return Err(unknown);
        };
        if policy >> 16 & !(self.guest_policy >> 16) != 0 {
            return Err(Refusal::Attributes("the guest's policy allows what no image asks for, such as CXL memory"));
        }
        if policy & self.guest_policy_needed != self.guest_policy_needed {
            return Err(Refusal::Attributes(
                "the guest's policy lets the host move its pages (PAGE_SWAP_DISABLE is 0)",
            ));
        }
        let hides = policy & HIDING != 0 && platform & HIDING_IS_ON != 0;
        if self.ciphertext_hiding.contains(&facts.product) && !hides {
            return Err(Refusal::Attributes("the host can read the ciphertext of the guest's memory on this product"));
        }
        Ok(())
    }
}

/// Checks the firmware against the chain's floors.
fn check_floors(facts: &Facts, floors: &Floors) -> Result<(), Refusal> {
    match &facts.tcb {
        Tcb::Intel { evaluation, .. } if *evaluation < floors.intel_evaluation => {
            Err(Refusal::Floor { found: *evaluation, least: floors.intel_evaluation })
        }
        Tcb::Intel { .. } => Ok(()),
        Tcb::Amd { reported, current, committed, launch } => {
            // A floor is missing where the chain knows no such product: then nothing says that it is new enough.
            let floor = floors.amd.iter().find(|(product, _)| *product == facts.product).map(|(_, floor)| floor);
            let floor = floor.ok_or(Refusal::NoFloor)?;
            [reported, current, committed, launch].into_iter().try_for_each(|version| version.reaches(floor))
        }
    }
}

impl TcbVersion {
    /// Whether each part is at least that of `floor`.
    fn reaches(&self, floor: &Self) -> Result<(), Refusal> {
        let pairs = [
            (self.fmc.unwrap_or(0), floor.fmc.unwrap_or(0)),
            (self.boot_loader, floor.boot_loader),
            (self.tee, floor.tee),
            (self.snp, floor.snp),
            (self.microcode, floor.microcode),
        ];
        match pairs.into_iter().find(|(found, least)| found < least) {
            Some((found, least)) => Err(Refusal::Floor { found: found.into(), least: least.into() }),
            None => Ok(()),
        }
    }
}

impl Facts {
    fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields.iter().find(|(own, _)| *own == name).map(|(_, bytes)| &bytes[..])
    }

    /// A field of at most eight bytes, as chips write numbers.
    fn number(&self, name: &str) -> Option<u64> {
        let bytes = self.field(name)?;
        let mut number = [0; 8];
        number.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(u64::from_le_bytes(number))
    }
}
