//! The image manifest: the image's hash, and the measurements that chips report when they start the image.
//!
//! Owns the manifest file. Validators vote for its hash and the image's. Each manifest has exactly one text: input
//! that does not re-encode to the same bytes is refused.
//!
//! Schema `openrelay.image/2` is `openrelay.image/1` with a firmware generation. Client packages have no firmware and
//! keep `/1`. A relay image in `/1` is parsed, so that a refusal can name the reason. Every verifier refuses it.

use serde_json::Value;

use crate::evidence::Measurement;
use crate::json::{bytes, list, malformed, number, object_of, text, to_hex};
use crate::refusal::Refusal;

/// Largest manifest, in bytes.
pub const MAX_MANIFEST: usize = 65_536;
/// Schemas of a manifest without firmware and with firmware.
const SCHEMAS: [&str; 2] = ["openrelay.image/1", "openrelay.image/2"];
/// The kind of image that relays run.
pub const RELAY: u8 = 1;

/// An image manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    /// Kind of image: 1 for relay images.
    pub kind: u8,
    /// Version of the image.
    pub version: u64,
    /// Generation of the firmware that the shapes are measured with. `None` in client packages, and in manifests that
    /// predate generations.
    pub firmware_generation: Option<u32>,
    /// SHA-256 of the image.
    pub image: [u8; 32],
    /// Measurements that chips report, by machine shape.
    pub shapes: Vec<Shape>,
    /// Published Intel advisories that the image mitigates.
    pub advisories: Vec<String>,
}

/// A machine shape, and the measurement that its chip reports.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Shape {
    /// Name of the shape: processor and number of virtual processors.
    pub name: String,
    /// The measurement.
    pub measurement: Measurement,
}

impl Manifest {
    /// Returns the encoded manifest.
    pub fn encode(&self) -> Vec<u8> {
        let shape = |shape: &Shape| {
            let name = Value::from(shape.name.clone());
            let said = match &shape.measurement {
                Measurement::Sgx(enclave) => format!("\"platform\": \"SGX\", \"enclave\": \"{}\"", to_hex(enclave)),
                Measurement::Snp(launch) => format!("\"platform\": \"SEV-SNP\", \"launch\": \"{}\"", to_hex(launch)),
                Measurement::Tdx { mrtd, rtmrs } => {
                    let rtmrs: Vec<String> = rtmrs.iter().map(|rtmr| format!("\"{}\"", to_hex(rtmr))).collect();
                    let mrtd = to_hex(mrtd);
                    format!("\"platform\": \"TDX\", \"mrtd\": \"{mrtd}\", \"rtmrs\": [{}]", rtmrs.join(", "))
                }
            };
            format!("\n    {{ \"name\": {name}, {said} }}")
        };
        let shapes: Vec<String> = self.shapes.iter().map(shape).collect();
        let advisories: Vec<String> =
            self.advisories.iter().map(|name| Value::from(name.clone()).to_string()).collect();
        let (schema, firmware) = match self.firmware_generation {
            Some(generation) => (SCHEMAS[1], format!("\n  \"firmware_generation\": {generation},")),
            None => (SCHEMAS[0], String::new()),
        };
        let text = format!(
            "{{\n  \"schema\": \"{schema}\",\n  \"kind\": {},\n  \"version\": {},{firmware}\
             \n  \"image\": \"{}\",\n  \"shapes\": [{}\n  ],\n  \"advisories\": [{}]\n}}\n",
            self.kind,
            self.version,
            to_hex(&self.image),
            shapes.join(","),
            advisories.join(", ")
        );
        text.into_bytes()
    }

    /// Decodes a manifest.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`], [`Refusal::MalformedCollateral`] with the malformed part, [`Refusal::NotCanonical`].
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        if bytes.len() > MAX_MANIFEST {
            return Err(Refusal::TooLarge { what: "an image's manifest", limit: MAX_MANIFEST });
        }
        let (object, schema) = object_of(bytes, &SCHEMAS)?;
        let firmware_generation =
            if schema == SCHEMAS[1] { Some(number(&object, "firmware_generation")?) } else { None };
        let advisory =
            |name: &Value| name.as_str().map(str::to_owned).ok_or_else(|| malformed("an advisory is not a string"));
        let this = Self {
            kind: number(&object, "kind")?,
            version: number(&object, "version")?,
            firmware_generation,
            image: self::bytes(object.get("image").and_then(Value::as_str), "image")?,
            shapes: list(&object, "shapes")?.iter().map(shape).collect::<Result<_, _>>()?,
            advisories: list(&object, "advisories")?.iter().map(advisory).collect::<Result<_, _>>()?,
        };
        if this.kind != RELAY && this.firmware_generation.is_some() {
            return Err(malformed("only a relay image has firmware"));
        }
        if this.encode() == bytes { Ok(this) } else { Err(Refusal::NotCanonical { what: "an image's manifest" }) }
    }
}

/// Checks the firmware generation of a relay image against the oldest accepted one.
///
/// # Errors
/// [`Refusal::FirmwareGeneration`] if it is older, or if the manifest has none.
pub const fn check_generation(found: Option<u32>, least: u32) -> Result<(), Refusal> {
    match found {
        Some(generation) if generation >= least => Ok(()),
        Some(_) | None => Err(Refusal::FirmwareGeneration { found, least }),
    }
}

fn shape(object: &Value) -> Result<Shape, Refusal> {
    fn field<const N: usize>(object: &Value, name: &str) -> Result<[u8; N], Refusal> {
        bytes(object.get(name).and_then(Value::as_str), name)
    }
    let measurement = match text(object, "platform")? {
        "SGX" => Measurement::Sgx(field(object, "enclave")?),
        "SEV-SNP" => Measurement::Snp(field(object, "launch")?),
        "TDX" => {
            let mut rtmrs = [[0; 48]; 4];
            let shown = list(object, "rtmrs")?;
            if shown.len() != rtmrs.len() {
                return Err(malformed("rtmrs does not have four entries"));
            }
            for (rtmr, shown) in rtmrs.iter_mut().zip(shown) {
                *rtmr = bytes(shown.as_str(), "rtmrs")?;
            }
            Measurement::Tdx { mrtd: field(object, "mrtd")?, rtmrs }
        }
        other => return Err(malformed(format!("unknown platform {other:?}"))),
    };
    Ok(Shape { name: text(object, "name")?.to_owned(), measurement })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoded_manifest_decodes_and_any_other_text_is_refused() {
        let shapes = [
            Measurement::Snp([1; 48]),
            Measurement::Tdx { mrtd: [2; 48], rtmrs: [[3; 48], [4; 48], [5; 48], [6; 48]] },
            Measurement::Sgx([7; 32]),
        ];
        let shapes = shapes.map(|measurement| Shape { name: "a \"machine\"".into(), measurement }).into();
        let advisories = vec!["INTEL-SA-00615".into(), "INTEL-SA-00614".into()];
        let firmware_generation = Some(1);
        let manifest = Manifest { kind: 1, version: 7, firmware_generation, image: [9; 32], shapes, advisories };
        let bytes = manifest.encode();
        assert_eq!(Manifest::decode(&bytes), Ok(manifest));
        for at in 0..bytes.len() {
            assert!(Manifest::decode(&bytes[..at]).is_err(), "truncated to {at}");
        }
        let spaced = [&bytes[..], b" "].concat();
        assert_eq!(Manifest::decode(&spaced), Err(Refusal::NotCanonical { what: "an image's manifest" }));
        assert_eq!(Manifest::decode(&vec![b' '; MAX_MANIFEST + 1]).unwrap_err().code(), "too-large");
        let upper = String::from_utf8(bytes).unwrap().replace("0909", "0A09");
        assert_eq!(Manifest::decode(upper.as_bytes()).unwrap_err().code(), "malformed-collateral");
    }

    fn manifest(kind: u8, firmware_generation: Option<u32>) -> Manifest {
        let (shapes, advisories) = (Vec::new(), Vec::new());
        Manifest { kind, version: 1, firmware_generation, image: [9; 32], shapes, advisories }
    }

    #[test]
    fn manifest_without_generation_is_parsed_but_its_firmware_is_refused() {
        let old = manifest(RELAY, None);
        let bytes = old.encode();
        assert!(String::from_utf8(bytes.clone()).unwrap().contains("\"openrelay.image/1\""));
        assert_eq!(Manifest::decode(&bytes), Ok(old));
        for (found, refused) in [(None, true), (Some(0), true), (Some(1), true), (Some(2), false), (Some(3), false)] {
            let refusal = Refusal::FirmwareGeneration { found, least: 2 };
            assert_eq!(check_generation(found, 2), if refused { Err(refusal) } else { Ok(()) }, "{found:?}");
        }
        // A missing generation is never new enough.
        assert!(check_generation(None, 0).is_err());
    }

    #[test]
    fn generation_that_does_not_match_the_schema_is_refused() {
        let text = |manifest: &Manifest| String::from_utf8(manifest.encode()).unwrap();
        let code = |text: &str| Manifest::decode(text.as_bytes()).unwrap_err().code();
        let (old, new) = (text(&manifest(RELAY, None)), text(&manifest(RELAY, Some(1))));
        assert_eq!(code(&old.replace("image/1", "image/2")), "malformed-collateral");
        assert_eq!(code(&new.replace("image/2", "image/1")), "not-canonical");
        assert_eq!(code(&new.replace("image/2", "image/3")), "malformed-collateral");
        assert_eq!(code(&new.replace("generation\": 1", "generation\": -1")), "malformed-collateral");
        assert_eq!(code(&new.replace("generation\": 1", "generation\": 4294967296")), "malformed-collateral");
        assert_eq!(code(&new.replace("generation\": 1", "generation\": 01")), "malformed-collateral");
        assert_eq!(code(&text(&manifest(2, Some(1)))), "malformed-collateral", "a client package with firmware");
        assert_eq!(Manifest::decode(&manifest(2, None).encode()), Ok(manifest(2, None)));
    }

    #[test]
    fn oversized_manifest_is_refused_as_too_large() {
        let code = |length| Manifest::decode(&vec![b' '; length]).unwrap_err().code();
        assert_eq!(code(MAX_MANIFEST + 1), "too-large");
        assert_ne!(code(MAX_MANIFEST), "too-large");
    }
}
