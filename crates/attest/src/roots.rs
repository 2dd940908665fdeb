//! Roots of trust, as a value.
//!
//! Owns the pinned vendor certificates. A caller can pass other roots; everything derived from those then says
//! `simulated`. No cargo feature selects the roots.

/// The oldest firmware generation that this release accepts in relay images.
///
/// Generation 1 is the project's first own firmware. Earlier firmware starts code that the launch digest does not
/// cover. An image that starts with it proves nothing, whatever validators approved.
pub const MIN_FIRMWARE_GENERATION: u32 = 1;

/// Root and intermediate certificates of one AMD product.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AmdRoot {
    /// The product: `Milan`, `Genoa` or `Turin`.
    pub product: &'static str,
    /// The root certificate (ARK), DER.
    pub ark: Vec<u8>,
    /// The intermediate certificate that signs chip keys (ASK), DER.
    pub ask: Vec<u8>,
    /// The intermediate certificate that signs cloud keys (ASVK), DER.
    pub asvk: Vec<u8>,
}

/// The roots that evidence is checked against.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Roots {
    /// Intel's root certificate, DER.
    pub intel: Vec<u8>,
    /// Intel's intermediate certificates, which sign PCK certificates, DER.
    pub intel_pck: Vec<Vec<u8>>,
    /// AMD's certificates, one entry for each product.
    pub amd: Vec<AmdRoot>,
    /// The oldest firmware generation that is accepted in relay images.
    pub min_firmware_generation: u32,
    /// Whether these are simulation roots.
    pub simulated: bool,
}

macro_rules! pinned {
    ($name:literal) => {
        include_bytes!(concat!("pinned/", $name, ".der")).to_vec()
    };
}

impl Roots {
    /// Returns the pinned roots of Intel and AMD. `pinned/README.md` lists their sources.
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

    /// The second verifier shares no code with this one, so it repeats the oldest accepted firmware generation.
    const SECOND_VERIFIER: &str = include_str!("../../../tools/verify.py");

    #[test]
    fn second_verifier_has_the_same_firmware_floor() {
        let line = format!("\nMIN_FIRMWARE_GENERATION = {MIN_FIRMWARE_GENERATION}\n");
        assert!(SECOND_VERIFIER.contains(&line), "{line}");
    }
}
