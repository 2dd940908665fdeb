//! Trust policy: which genuine evidence is good enough.
//!
//! Owns the rules that do not come from the chain: products, firmware, ages. The defaults are the policy of released
//! clients. It never checks signatures.

use crate::facts::{Crl, Facts, Platform, Tcb, TcbVersion};
use crate::refusal::Refusal;
use crate::verdict::Image;

/// CIPHERTEXT_HIDING_DRAM_EN and ALIAS_CHECK_COMPLETE. Source: SEV-SNP ABI (56860) 1.58, table "PLATFORM_INFO field".
const HIDING_IS_ON: u64 = 1 << 4;
const ALIAS_CHECK: u64 = 1 << 5;
/// CIPHERTEXT_HIDING_DRAM in a guest's policy. Source: SEV-SNP ABI (56860) 1.58, table "Guest Policy".
const HIDING: u64 = 1 << 24;

/// A trust policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Accepted platforms.
    pub platforms: Vec<Platform>,
    /// Accepted AMD products.
    pub amd_products: Vec<String>,
    /// Accepted TCB statuses, in Intel's terms.
    pub intel_statuses: Vec<String>,
    /// Attributes that a trust domain may have, as bits.
    pub td_attributes: u64,
    /// Extended processor features that a trust domain (XFAM) or an enclave (XFRM) may use, as bits.
    pub xfam: u64,
    /// Whether the firmware must have checked the memory for aliases (AMD-SB-3015, "BadRAM").
    pub alias_check: bool,
    /// Bits of a SEV-SNP guest's policy that may be set, from bit 16 on. The lower bits are interface versions.
    pub guest_policy: u64,
    /// Bits of a guest's policy that must be set, on every product.
    pub guest_policy_needed: u64,
    /// AMD products on which the host must not be able to read the ciphertext of the guest's memory.
    pub ciphertext_hiding: Vec<String>,
    /// Whether machines on which two threads share a core are accepted.
    pub smt: bool,
    /// Largest age of the block in the binding, in seconds of the chain's time.
    pub max_age_s: u64,
    /// The only accepted images: those rebuilt on this machine, by the value that validators voted for. `None` accepts
    /// every approved image.
    pub rebuilt: Option<Vec<[u8; 32]>>,
    /// Addresses of the rebuilders whose signatures an image needs besides the validators' vote, as a protection
    /// against a bought majority.
    pub rebuilders: Vec<[u8; 20]>,
    /// Number of those rebuilders that must have signed.
    pub rebuilders_needed: usize,
    /// Whether simulated evidence is accepted. Set only where everything says that it is a simulation.
    pub simulation: bool,
}

impl Default for Policy {
    /// Returns the policy of released clients.
    fn default() -> Self {
        Self {
            // SGX has no tunnel device inside, and the memory of machines with SGX can be tapped.
            platforms: vec![Platform::Tdx, Platform::SevSnp],
            // Root keys of Milan have been extracted in software.
            amd_products: vec!["Genoa".into(), "Turin".into()],
            // Ordinary hosts reach these statuses. The library's own strict policy refuses them all.
            intel_statuses: vec!["UpToDate".into(), "SWHardeningNeeded".into()],
            // LASS, SEPT_VE_DISABLE, PKS. Performance counters are not allowed, because they reveal what the domain
            // does. Nor is Key Locker (KL), because the host shares its keys.
            td_attributes: 1 << 27 | 1 << 28 | 1 << 30,
            // Trust domains and enclaves: x87 to AVX-512, PKRU, CET, AMX. Features that trace execution (PT, LBR) are
            // not allowed. Source: Intel SDM, volume 1, section 13.1.
            xfam: 0x0006_1ae7,
            alias_check: true,
            // SMT, the bit that is always one, single socket, AES-256-XTS, no power readings, hidden ciphertext, no
            // page swaps. Memory on a CXL link is not allowed, because the link leaves the board.
            guest_policy: 1 << 16 | 1 << 17 | 1 << 20 | 1 << 22 | 1 << 23 | HIDING | 1 << 25,
            // PAGE_SWAP_DISABLE: the host cannot have the firmware move the guest's pages (AMD-SB-3021, "Heracles").
            guest_policy_needed: 1 << 25,
            // Genoa cannot hide the ciphertext.
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

/// Firmware floors that the chain sets.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Floors {
    /// Floor of Intel's TCB evaluation number.
    pub intel_evaluation: u32,
    /// Floors of AMD's firmware, by product.
    pub amd: Vec<(String, TcbVersion)>,
}

impl Policy {
    /// Checks facts against the policy, the chain's floors and the advisories that the image mitigates.
    ///
    /// # Errors
    /// [`Refusal`] of the first check that fails.
    pub(crate) fn check(&self, facts: &Facts, floors: &Floors, image: &Image) -> Result<(), Refusal> {
        self.check_image(image)?;
        self.check_machine(facts, &image.advisories)?;
        check_floors(facts, floors)
    }

    /// Checks what the evidence alone states about a machine: platform, product, the vendor's firmware rating,
    /// attributes. `withstands` lists the published advisories that the running image mitigates.
    ///
    /// # Errors
    /// [`Refusal`] of the first check that fails.
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
        // If the evidence does not say, two threads may share a core.
        if !self.smt && facts.smt != Some(false) {
            return Err(Refusal::Smt);
        }
        self.check_environment(facts)
    }

    /// Checks the policy's requirements on an image or a package that go beyond the validators' vote.
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

    /// Returns the rebuilders of an image that the policy names.
    pub fn named_rebuilders<'a>(&'a self, image: &'a Image) -> impl Iterator<Item = &'a [u8; 20]> {
        self.rebuilders.iter().filter(|named| image.rebuilt_by.contains(named))
    }

    fn check_environment(&self, facts: &Facts) -> Result<(), Refusal> {
        let owner: &[&'static str] = match facts.platform {
            Platform::Sgx => {
                if facts.number("misc_select") != Some(0) {
                    return Err(Refusal::Attributes("the enclave saves more state on exit than any image needs"));
                }
                if facts.number("xfrm").is_none_or(|bits| bits & !self.xfam != 0) {
                    return Err(Refusal::Attributes("the enclave has processor features that no image needs"));
                }
                // The enclave's signer chooses these fields, and no signer is required.
                &["config_id", "config_svn", "isv_prod_id", "isv_svn"]
            }
            Platform::Tdx => {
                if facts.number("td_attributes").is_none_or(|bits| bits & !self.td_attributes != 0) {
                    return Err(Refusal::Attributes("the trust domain has attributes that no image needs"));
                }
                if facts.number("xfam").is_none_or(|bits| bits & !self.xfam != 0) {
                    return Err(Refusal::Attributes("the trust domain has processor features that no image needs"));
                }
                &["mr_config_id", "mr_owner", "mr_owner_config"]
            }
            Platform::SevSnp => {
                if facts.number("vmpl") != Some(0) {
                    return Err(Refusal::Vmpl);
                }
                if self.alias_check && facts.number("platform_info").is_none_or(|bits| bits & ALIAS_CHECK == 0) {
                    return Err(Refusal::Attributes("the firmware has not checked the memory for aliases"));
                }
                self.check_guest_policy(facts)?;
                &["id_key_digest", "author_key_digest"]
            }
        };
        let zero = |name: &str| facts.field(name).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
        owner.iter().find(|name| !zero(name)).map_or(Ok(()), |name| Err(Refusal::Owner(name)))
    }

    /// Checks the guest's policy. The host chooses it, and the launch digest does not cover it.
    fn check_guest_policy(&self, facts: &Facts) -> Result<(), Refusal> {
        let unknown = Refusal::Attributes("the evidence does not state the guest's policy");
        let (Some(policy), Some(platform)) = (facts.number("policy"), facts.number("platform_info")) else {
            return Err(unknown);
        };
        if policy >> 16 & !(self.guest_policy >> 16) != 0 {
            return Err(Refusal::Attributes("the guest's policy allows what no image needs, such as CXL memory"));
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
            // Without a floor for the product, nothing shows that the firmware is new enough.
            let floor = floors.amd.iter().find(|(product, _)| *product == facts.product).map(|(_, floor)| floor);
            let floor = floor.ok_or(Refusal::NoFloor)?;
            [reported, current, committed, launch].into_iter().try_for_each(|version| version.reaches(floor))
        }
    }
}

impl TcbVersion {
    /// Checks that every part is at least that of `floor`.
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

    /// Returns a field of at most eight bytes as a little-endian number.
    fn number(&self, name: &str) -> Option<u64> {
        let bytes = self.field(name)?;
        let mut number = [0; 8];
        number.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(u64::from_le_bytes(number))
    }
}
