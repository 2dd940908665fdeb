//! The collateral that a whole network uses, in one file.
//!
//! Owns its form, and which of it a piece of evidence is held against. Validators vote for its hash; nothing of it is believed but what vendors have signed, and the floors, which are
//! the network's own.

use serde_json::{Value, json};

use crate::collateral::{AmdCollateral, Collateral, IntelCollateral, binary};
use crate::evidence::Evidence;
use crate::facts::TcbVersion;
use crate::json::{list, malformed, number, object, text, to_hex};
use crate::policy::Floors;
use crate::refusal::Refusal;

/// Largest bundle, in bytes.
pub const MAX_BUNDLE: usize = 4 << 20;
const SCHEMA: &str = "openrelay.collateral/1";

/// Collateral of all vendors, and the least that firmware must be.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bundle {
    /// Smallest number of Intel's evaluation.
    pub intel_floor: u32,
    /// The number of these floors of AMD's firmware, which rises with them.
    pub amd_floor: u64,
    /// Intel's, for each kind of environment and model of processor.
    pub intel: Vec<IntelCollateral>,
    /// AMD's, for each product.
    pub amd: Vec<AmdProduct>,
}

/// AMD's collateral for one product.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AmdProduct {
    /// The product.
    pub product: String,
    /// The least that its firmware must be.
    pub floor: TcbVersion,
    /// The rest.
    pub collateral: AmdCollateral,
}

impl Bundle {
    /// The floors of firmware.
    pub fn floors(&self) -> Floors {
        let amd = self.amd.iter().map(|entry| (entry.product.clone(), entry.floor)).collect();
        Floors { intel_evaluation: self.intel_floor, amd }
    }

    /// What evidence may be held against: by the words of its own certificate, which decide nothing else.
    pub fn candidates(&self, evidence: &Evidence) -> Vec<Collateral> {
        match evidence {
            Evidence::Intel(quote) => {
                let model = quote.model();
                let fits = |entry: &&IntelCollateral| {
                    let (id, fmspc) = entry.subject();
                    id.as_deref() == Some(quote.environment()) && fmspc.map(|fmspc| fmspc.to_lowercase()) == model
                };
                self.intel.iter().filter(fits).map(|entry| Collateral::Intel(Box::new(entry.clone()))).collect()
            }
            Evidence::Amd(report) => {
                // Reports of version 2 name no product: then whichever has issued the certificate.
                let product = report.product_name();
                let fits = |entry: &&AmdProduct| product.is_none_or(|product| product == entry.product);
                self.amd.iter().filter(fits).map(|entry| Collateral::Amd(entry.collateral.clone())).collect()
            }
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Vec<u8> {
        let intel: Vec<Value> = self.intel.iter().map(IntelCollateral::to_json).collect();
        let amd = self.amd.iter().map(|entry| {
            let floor = &entry.floor;
            json!({
                "product": entry.product,
                "floor": {
                    "fmc": floor.fmc, "boot_loader": floor.boot_loader, "tee": floor.tee, "snp": floor.snp,
                    "microcode": floor.microcode,
                },
                "crl": entry.collateral.crl.as_deref().map(to_hex),
            })
        });
        let amd: Vec<Value> = amd.collect();
        let whole = json!({
            "schema": SCHEMA, "intel_floor": self.intel_floor, "amd_floor": self.amd_floor, "intel": intel, "amd": amd,
        });
        let mut bytes = whole.to_string().into_bytes();
        bytes.push(b'\n');
        bytes
    }

    /// Reads it.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`], [`Refusal::MalformedCollateral`] with what does not read.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() > MAX_BUNDLE {
            return Err(Refusal::TooLarge { what: "the collateral", limit: MAX_BUNDLE });
        }
        let object = object(bytes, SCHEMA)?;
        Ok(Self {
            intel_floor: number(&object, "intel_floor")?,
            amd_floor: number(&object, "amd_floor")?,
            intel: list(&object, "intel")?.iter().map(IntelCollateral::of_json).collect::<Result<_, _>>()?,
            amd: list(&object, "amd")?.iter().map(amd_product).collect::<Result<_, _>>()?,
        })
    }
}

fn amd_product(object: &Value) -> Result<AmdProduct, Refusal> {
    let floor = object.get("floor").ok_or_else(|| malformed("floor is missing"))?;
    let fmc = floor.get("fmc").is_some_and(|fmc| !fmc.is_null());
    let crl = match object.get("crl").filter(|value| !value.is_null()) {
        None => None,
        Some(_) => Some(binary(text(object, "crl")?).ok_or_else(|| malformed("crl does not read"))?),
    };
    Ok(AmdProduct {
        product: text(object, "product")?.to_owned(),
        floor: TcbVersion {
            fmc: if fmc { Some(number(floor, "fmc")?) } else { None },
            boot_loader: number(floor, "boot_loader")?,
            tee: number(floor, "tee")?,
            snp: number(floor, "snp")?,
            microcode: number(floor, "microcode")?,
        },
        collateral: AmdCollateral { crl },
    })
}
