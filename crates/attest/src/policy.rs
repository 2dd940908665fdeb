//! What is good enough.
//!
//! Owns the rules that have nothing to do with the chain: products, firmware, ages. The defaults are those that clients are released with.

use crate::facts::{Crl, Facts, Platform, Tcb, TcbVersion};
use crate::refusal::Refusal;
use crate::verdict::Image;

/// ALIAS_CHECK_COMPLETE. Source: SEV-SNP ABI (56860), table "PLATFORM_INFO field".
const ALIAS_CHECK: u64 = 1 << 5;

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
    /// Extended features of the processor that a trust domain may use, as bits.
    pub xfam: u64,
    /// Whether the firmware must have looked for memory that appears twice (AMD-SB-3015, "BadRAM").
    pub alias_check: bool,
    /// How old the block in the binding may be, in seconds of the chain's time.
    pub max_age_s: u64,
    /// The only images that are accepted: those that were rebuilt here; `None` for all that validators have approved.
    pub rebuilt: Option<Vec<[u8; 32]>>,
    /// Rebuilders by whose word an image is accepted besides the validators' vote, by address: against a bought majority.
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
            // LASS, SEPT_VE_DISABLE, PKS. Not the counters of performance, which show what it does, nor keys that the host shares (KL).
            td_attributes: 1 << 27 | 1 << 28 | 1 << 30,
            // x87 to AVX-512, PKRU, CET, AMX. Not what traces execution (PT, LBR). Source: Intel SDM, volume 1, section 13.1.
            xfam: 0x0006_1ae7,
            alias_check: true,
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
        if facts.simulated && !self.simulation {
            return Err(Refusal::Simulated);
        }
        self.check_image(image)?;
        if !self.platforms.contains(&facts.platform) {
            return Err(Refusal::Platform(facts.platform.name()));
        }
        if facts.crl != Crl::Checked {
            return Err(Refusal::NoCrl);
        }
        match &facts.tcb {
            Tcb::Intel { status, advisories, evaluation } => {
                if !self.intel_statuses.contains(status) {
                    return Err(Refusal::TcbStatus(status.clone()));
                }
                if let Some(other) = advisories.iter().find(|advisory| !image.advisories.contains(advisory)) {
                    return Err(Refusal::Advisory(other.clone()));
                }
                if *evaluation < floors.intel_evaluation {
                    return Err(Refusal::Floor { found: *evaluation, least: floors.intel_evaluation });
                }
            }
            Tcb::Amd { reported, current, committed, launch } => {
                if !self.amd_products.contains(&facts.product) {
                    return Err(Refusal::Product(facts.product.clone()));
                }
                // A floor is missing where the chain knows no such product: then nothing says that it is new enough.
                let floor = floors.amd.iter().find(|(product, _)| *product == facts.product).map(|(_, floor)| floor);
                let floor = floor.ok_or(Refusal::NoFloor)?;
                for version in [reported, current, committed, launch] {
                    version.reaches(floor)?;
                }
            }
        }
        self.check_environment(facts)
    }

    /// Holds an image, or a package, against what is asked besides the validators' vote.
    ///
    /// # Errors
    /// [`Refusal::NotRebuilt`], [`Refusal::Rebuilders`].
    pub fn check_image(&self, image: &Image) -> Result<(), Refusal> {
        if self.rebuilt.as_ref().is_some_and(|rebuilt| !rebuilt.contains(&image.hash)) {
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
            Platform::Sgx => &["config_id"],
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
                &["id_key_digest", "author_key_digest"]
            }
        };
        let zero = |name: &str| facts.field(name).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0));
        owner.iter().find(|name| !zero(name)).map_or(Ok(()), |name| Err(Refusal::Owner(name)))
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
