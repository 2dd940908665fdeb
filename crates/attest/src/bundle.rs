//! The collateral bundle: all collateral that a network uses, in one file.
//!
//! Owns the format, and the choice of the collateral that a piece of evidence is checked against. Validators vote for
//! the bundle's hash. It never makes collateral trusted: only the vendors' signatures do that. The floors alone are
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

/// Collateral of all vendors, and the firmware floors.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Bundle {
    /// Floor of Intel's TCB evaluation number.
    pub intel_floor: u32,
    /// Number of this set of AMD firmware floors, which rises with every change of them.
    pub amd_floor: u64,
    /// Intel's collateral, one entry for each platform and processor model.
    pub intel: Vec<IntelCollateral>,
    /// AMD's collateral, one entry for each product.
    pub amd: Vec<AmdProduct>,
}

/// AMD's collateral for one product.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AmdProduct {
    /// The product.
    pub product: String,
    /// Firmware floor of the product.
    pub floor: TcbVersion,
    /// The collateral itself.
    pub collateral: AmdCollateral,
}

impl Bundle {
    /// Returns the firmware floors.
    pub fn floors(&self) -> Floors {
        let amd = self.amd.iter().map(|entry| (entry.product.clone(), entry.floor)).collect();
        Floors { intel_evaluation: self.intel_floor, amd }
    }

    /// Returns the collateral that evidence can be checked against, selected by the claims of the evidence and its
    /// certificate. The claims decide nothing else.
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
                // Version 2 reports name no product. All products' collateral is a candidate then, and the
                // certificate's issuer decides.
                let product = report.product_name();
                let fits = |entry: &&AmdProduct| product.is_none_or(|product| product == entry.product);
                self.amd.iter().filter(fits).map(|entry| Collateral::Amd(entry.collateral.clone())).collect()
            }
        }
    }

    /// Returns the encoded bundle.
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

    /// Decodes a bundle.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`], [`Refusal::MalformedCollateral`] with the malformed part.
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
        Some(_) => Some(binary(text(object, "crl")?).ok_or_else(|| malformed("crl is malformed"))?),
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
