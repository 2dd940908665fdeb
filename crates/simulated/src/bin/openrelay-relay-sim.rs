//! `openrelay-relay-sim`: a relay with a simulated trusted execution environment. It proves nothing except to
//! programs that trust the mock vendors.
//!
//! Owns the settings of the simulation, in the file that `OPENRELAY_SIM` names: the vendors' keys, the image's
//! manifest, the platform, and any lie.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use openrelay_attest::binding::Binding;
use openrelay_attest::evidence::Measurement;
use openrelay_attest::manifest::Manifest;
use openrelay_attest::verdict::Staple;
use openrelay_node::clock::unix_seconds;
use openrelay_relay::Detail;
use openrelay_relay::quoter::{QuoteError, Quoter};
use openrelay_sim::vendors::{Hardware, Lie, Vendors};
use serde::Deserialize;

fn main() -> ExitCode {
    openrelay_relay::main("openrelay-relay-sim", Detail::Exact, Simulation { loaded: None })
}

/// The settings of the simulation.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Told {
    vendors: PathBuf,
    manifest: PathBuf,
    /// `TDX` or `SEV-SNP`.
    platform: String,
    #[serde(default)]
    lie: Option<Untruth>,
}

/// A false statement in the evidence.
#[derive(Clone, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Untruth {
    /// The guest allows debugging.
    Debug,
    /// Another image was started.
    Image,
    /// The evidence was made for another key.
    Key,
    /// The evidence was made when this block was the newest.
    Stale { height: u64, hash: String },
}

struct Simulation {
    loaded: Option<Loaded>,
}

struct Loaded {
    vendors: Vendors,
    machine: Hardware,
    measurement: Measurement,
    lie: Option<Untruth>,
}

impl Loaded {
    fn load() -> Result<Self, String> {
        let path =
            std::env::var_os("OPENRELAY_SIM").ok_or("OPENRELAY_SIM must name a file with the simulation's settings")?;
        let read =
            |path: &Path| std::fs::read(path).map_err(|error| format!("cannot read {}: {error}", path.display()));
        let told: Told = serde_json::from_slice(&read(Path::new(&path))?).map_err(|error| error.to_string())?;
        let vendors = Vendors::decode(&read(&told.vendors)?).ok_or("the vendors' keys are malformed")?;
        let manifest = Manifest::decode(&read(&told.manifest)?).map_err(|refusal| refusal.to_string())?;
        let is_of = |measurement: &Measurement| match measurement {
            Measurement::Tdx { .. } => told.platform == "TDX",
            Measurement::Snp(_) => told.platform == "SEV-SNP",
            Measurement::Sgx(_) => false,
        };
        let shape = manifest.shapes.into_iter().find(|shape| is_of(&shape.measurement));
        let measurement = shape.ok_or("the manifest has no shape of this platform")?.measurement;
        // A machine's certificates begin later than those of its authorities.
        let machine = Hardware::since(unix_seconds() - 3_600);
        Ok(Self { vendors, machine, measurement, lie: told.lie })
    }

    fn staple(&self, mut binding: Binding) -> Option<Staple> {
        let mut lie = Lie::None;
        match &self.lie {
            None => {}
            Some(Untruth::Debug) => lie = Lie::Debug,
            Some(Untruth::Image) => lie = Lie::Measurement,
            Some(Untruth::Key) => binding.handshake_key[0] ^= 1,
            Some(Untruth::Stale { height, hash }) => {
                binding.block_height = *height;
                binding.block_hash = openrelay_ledger::hex::decode(hash.trim_start_matches("0x"))?;
            }
        }
        let evidence = self.vendors.evidence(&self.machine, &self.measurement, &binding.report_data(), lie)?;
        Some(Staple { evidence, binding })
    }
}

impl Quoter for Simulation {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn quote(&mut self, binding: Binding) -> Result<Staple, QuoteError> {
        if self.loaded.is_none() {
            self.loaded = Some(Loaded::load().map_err(QuoteError::Environment)?);
        }
        let staple = self.loaded.as_ref().and_then(|loaded| loaded.staple(binding));
        staple.ok_or_else(|| QuoteError::Environment("the simulation made no evidence".into()))
    }
}
