//! Roots of trust, as a value.
//!
//! Owns the pinned certificates of the vendors. Others can be handed in, and then everything that follows says `simulated`: no cargo feature selects trust.

/// The oldest generation of firmware that relay images may start with, in this release.
///
/// Generation 1 is the first firmware of the project's own. Firmware before it starts code that the launch digest does
/// not name, so an image that starts with it proves nothing, whatever validators approved.
pub const MIN_FIRMWARE_GENERATION: u32 = 1;

/// Root and intermediate certificates of a vendor's product.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AmdRoot {
    /// The product: `Milan`, `Genoa`, `Turin`.
    pub product: &'static str,
    /// The root (ARK), DER.
    pub ark: Vec<u8>,
    /// What signs keys of chips (ASK), DER.
    pub ask: Vec<u8>,
    /// What signs keys of clouds (ASVK), DER.
    pub asvk: Vec<u8>,
}

/// The roots that evidence is held against.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Roots {
    /// Intel's root, DER.
    pub intel: Vec<u8>,
    /// What signs PCK certificates, DER.
    pub intel_pck: Vec<Vec<u8>>,
    /// AMD's.
    pub amd: Vec<AmdRoot>,
    /// The oldest generation of firmware that relay images may start with.
    pub min_firmware_generation: u32,
    /// Whether these are of a simulation.
    pub simulated: bool,
}

macro_rules! pinned {
    ($name:literal) => {
        include_bytes!(concat!("pinned/", $name, ".der")).to_vec()
    };
}

impl Roots {
    /// Those of Intel and AMD. Where they come from stands in `pinned/README.md`.
    pub fn genuine() -> Self {
        let amd = |product, ark, ask, asvk| AmdRoot { product, ark, ask, asvk };
        Self {
            intel: pinned!("intel-root"),
            intel_pck: vec![pinned!("intel-pck-platform"), pinned!("intel-pck-processor")],
            amd: vec![
                amd("Milan", pinned!("amd-milan-ark"), pinned!("amd-milan-ask"), pinned!("amd-milan-asvk")),
                amd("Genoa", pinned!("amd-genoa-ark"), pinned!("amd-genoa-ask"), pinned!("amd-genoa-asvk")),
                amd("Turin", pinned!("amd-turin-ark"), pinned!("amd-turin-ask"), pinned!("amd-turin-asvk")),
            ],
            min_firmware_generation: MIN_FIRMWARE_GENERATION,
            simulated: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It shares no code with this verifier, so its floor of firmware is written a second time.
    const SECOND_VERIFIER: &str = include_str!("../../../tools/verify.py");

    #[test]
    fn second_verifier_has_the_same_floor_of_firmware() {
        let line = format!("\nMIN_FIRMWARE_GENERATION = {MIN_FIRMWARE_GENERATION}\n");
        assert!(SECOND_VERIFIER.contains(&line), "{line}");
    }
}
