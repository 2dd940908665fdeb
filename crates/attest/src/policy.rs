//! What is good enough.
//!
//! Owns the rules that have nothing to do with the chain: products, firmware, ages. The defaults are those that clients are released with.

use crate::facts::{Crl, Facts, KeyKind, Platform, Tcb, TcbVersion};
use crate::refusal::Refusal;

/// The rules.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    /// Kinds of environment that are accepted.
    pub platforms: Vec<Platform>,
    /// AMD's products that are.
    pub amd_products: Vec<String>,
    /// Words of Intel's for the state of firmware that are.
    pub intel_statuses: Vec<String>,
    /// Published weaknesses of Intel's that are put up with, because the image does what Intel advises. Those of another name refuse.
    pub advisories: Vec<String>,
    /// How old the block in the binding may be, in seconds of the chain's time.
    pub max_age_s: u64,
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
            advisories: Vec::new(),
            max_age_s: 6 * 3_600,
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
    /// Holds facts against the rules and the chain's floors.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn check(&self, facts: &Facts, floors: &Floors) -> Result<(), Refusal> {
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
            Tcb::Intel { status, advisories, evaluation } => {
                if !self.intel_statuses.contains(status) {
                    return Err(Refusal::TcbStatus(status.clone()));
                }
                if let Some(other) = advisories.iter().find(|advisory| !self.advisories.contains(advisory)) {
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
        if facts.key != KeyKind::Pck && facts.vmpl() != Some(0) {
            return Err(Refusal::Vmpl);
        }
        Ok(())
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
    /// The level in the guest that a report of AMD was asked for at: 0 is the most privileged.
    fn vmpl(&self) -> Option<u32> {
        let field = self.fields.iter().find(|(name, _)| *name == "vmpl")?;
        field.1.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
    }
}
