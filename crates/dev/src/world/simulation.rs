//! The parts of a network of simulated trusted execution environments.
//!
//! Owns the folder `config/sim`: mock vendors, what they publish, and the manifest of the image that relays claim to
//! run. Nothing in it proves anything to anybody.

use std::fs;
use std::path::{Path, PathBuf};

use alloy_primitives::{Address, B256, Bytes};
use anyhow::{Context as _, Result};
use aws_lc_rs::digest::{SHA256, SHA384, digest};
use k256::ecdsa::SigningKey;
use openrelay_attest::evidence::Measurement;
use openrelay_attest::manifest::{Manifest, Shape};
use openrelay_attest::roots::MIN_FIRMWARE_GENERATION;
use openrelay_chain::journal::sign;
use openrelay_chain::voting::{Answer, image_value, statement_hash};
use openrelay_devchain::KNOWN;
use openrelay_node::clock::unix_seconds;
use openrelay_sim::vendors::{Vendors, encode_roots};
use serde_json::{Value, json};

use super::approved::{Publication, VALIDATORS};

/// File in an operator's folder that says what its relay simulates.
pub(crate) const TOLD: &str = "sim.json";
const OLD_BLOCK: &str = "old-block.json";
/// The subjects about which relay evidence can lie, each with its refusal code.
pub(crate) const LIES: [(&str, &str); 4] =
    [("image", "measurement"), ("debug", "debug"), ("stale", "too-old"), ("key", "other-key")];

/// The round that approved the image.
const ROUND: u64 = 1;

/// The folder of a network's simulation.
pub(crate) struct Simulation {
    dir: PathBuf,
    pub(crate) image: B256,
}

impl Simulation {
    /// Creates vendors and publishes their data and the manifest of an image.
    ///
    /// The image is the one in the folder `image`, or else one that stands for this relay's program.
    pub(crate) fn prepare(network: &Path, relay: &Path, image: Option<&Path>) -> Result<(Self, Publication)> {
        let dir = network.join("config/sim");
        fs::create_dir_all(dir.join("published"))?;
        // One day in the past, so that everything is already valid.
        let vendors = Vendors::new(unix_seconds() - 86_400);
        fs::write(dir.join("vendors"), vendors.encode())?;
        fs::write(dir.join("roots"), encode_roots(vendors.roots()))?;
        let bundle = vendors.bundle();
        let published = bundle.encode();
        fs::write(dir.join("published/collateral.json"), &published)?;
        let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
        let binary = read(relay)?;
        let manifest = match image {
            Some(dir) => {
                let manifest = Manifest::decode(&read(&dir.join("manifest.json"))?);
                with_domain(manifest.map_err(|refusal| anyhow::anyhow!("{refusal}"))?, &binary)
            }
            None => manifest(sha256(&binary), &binary),
        };
        let image = B256::from(manifest.image);
        let manifest = manifest.encode();
        fs::write(dir.join("published/image-1.json"), &manifest)?;
        let publication = Publication {
            image,
            manifest: sha256(&manifest),
            source: B256::repeat_byte(0x55),
            inputs: B256::repeat_byte(0x66),
            version: 1,
            bundle: sha256(&published),
            floors: (bundle.intel_floor, bundle.amd_floor),
        };
        Ok((Self { dir, image }, publication))
    }

    /// Opens the simulation of a network that was prepared before.
    pub(crate) fn of(network: &Path) -> Result<Self> {
        let dir = network.join("config/sim");
        let manifest = fs::read(dir.join("published/image-1.json")).context("this network has no simulation")?;
        let manifest = Manifest::decode(&manifest).map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
        Ok(Self { dir, image: manifest.image.into() })
    }

    /// Publishes the votes of the validators that approved the image in the chain's past.
    ///
    /// With `truly` they signed the approved image; without it they signed a different value.
    pub(crate) fn sign_votes(&self, chain_id: u64, images: Address, truly: bool) -> Result<()> {
        let manifest = fs::read(self.published().join("image-1.json"))?;
        let value = image_value(self.image, if truly { sha256(&manifest) } else { B256::ZERO });
        for (id, place) in (1..).zip(VALIDATORS) {
            let key = SigningKey::from_slice(KNOWN[place].1.as_slice())?;
            let (answer, named) = Answer::Value(value).parts();
            let signature = sign(&key, statement_hash(chain_id, images, ROUND, Answer::Value(value)))?;
            let vote = json!({
                "round": ROUND, "validator": id, "answer": answer, "value": named.to_string(),
                "signature": Bytes::from(signature).to_string(),
            });
            let path = self.published().join(format!("attestation-{ROUND}-{id}.json"));
            fs::write(path, json!({ "vote": vote }).to_string())?;
        }
        Ok(())
    }

    /// Returns the folder of files for a mirror to serve.
    pub(crate) fn published(&self) -> PathBuf {
        self.dir.join("published")
    }

    /// Records a block that is older than evidence may be.
    pub(crate) fn note_old_block(&self, height: u64, hash: B256) -> Result<()> {
        let noted = json!({ "height": height, "hash": hash.to_string() });
        fs::write(self.dir.join(OLD_BLOCK), noted.to_string()).context("cannot record the old block")
    }

    /// Returns the description of a lie of this kind, as the simulating relay reads it.
    pub(crate) fn lie(&self, kind: &str) -> Result<Value> {
        if kind != "stale" {
            return Ok(kind.into());
        }
        let noted: Value = serde_json::from_slice(&fs::read(self.dir.join(OLD_BLOCK))?)?;
        Ok(json!({ "stale": noted }))
    }

    /// Tells the relay of an operator's folder what to simulate: its platform, and a lie if `lie` is set.
    pub(crate) fn tell(&self, folder: &Path, platform: &str, lie: Option<&Value>) -> Result<()> {
        let told = json!({
            "vendors": self.dir.join("vendors"), "manifest": self.dir.join("published/image-1.json"),
            "platform": platform, "lie": lie,
        });
        fs::write(folder.join(TOLD), told.to_string()).context("cannot write what the relay simulates")
    }
}

/// Returns a manifest whose measurements stand for the relay's program.
///
/// No chip measures the program here, so the values are hashes of it.
fn manifest(image: B256, binary: &[u8]) -> Manifest {
    let launch = Measurement::Snp(stands_for(b"launch", binary));
    let shapes = vec![Shape { name: "simulated SEV-SNP".into(), measurement: launch }];
    let firmware_generation = Some(MIN_FIRMWARE_GENERATION);
    let (image, advisories) = (image.0, Vec::new());
    with_domain(Manifest { kind: 1, version: 1, firmware_generation, image, shapes, advisories }, binary)
}

/// Adds a simulated trust domain to a manifest. Its registers would depend on a host's tables, and there is no host.
fn with_domain(mut manifest: Manifest, binary: &[u8]) -> Manifest {
    let of = |what: &[u8]| stands_for(what, binary);
    let rtmrs = [of(b"rtmr 0"), of(b"rtmr 1"), of(b"rtmr 2"), [0; 48]];
    let measurement = Measurement::Tdx { mrtd: of(b"mrtd"), rtmrs };
    manifest.shapes.push(Shape { name: "simulated TDX".into(), measurement });
    manifest
}

fn stands_for(what: &[u8], binary: &[u8]) -> [u8; 48] {
    let mut out = [0; 48];
    out.copy_from_slice(digest(&SHA384, &[what, binary].concat()).as_ref());
    out
}

fn sha256(bytes: &[u8]) -> B256 {
    B256::from_slice(digest(&SHA256, bytes).as_ref())
}
