//! `openrelay image verify`: rebuilds an image here and compares it with those that validators approved.
//!
//! Owns the list of images that were rebuilt on this machine, which a paranoid policy requires.

use std::path::Path;

use openrelay_attest::manifest::Manifest;
use openrelay_chain::attestation::Approved;
use openrelay_chain::voting::image_value;
use openrelay_client::rebuilt_images;
use openrelay_image::{hex, sha256};
use openrelay_node::clock::unix_seconds;
use openrelay_node::config::Origin;

use super::{BuildArguments, Kind, make, remove};
use crate::confined::Confinement;
use crate::control::folders;
use crate::directory::{directory_shown, origin};
use crate::failure::Failure;
use crate::findings;
use crate::output::{say, talk};
use crate::program::Program;

/// Rebuilds an image here, and compares it with the images approved on the chain.
pub(super) fn verify(program: &Program, build: &BuildArguments, config: &Path) -> Result<(), Failure> {
    if build.programs.is_some() || build.lock.is_some() || build.firmware.is_some() || build.simulate {
        let why =
            "an image is rebuilt from its source tree alone; leave out --programs, --lock, --firmware and --simulate";
        return Err(Failure::new(2, why));
    }
    let none = || Failure::plain("a network with a signed directory has no approved images; use one on a chain");
    let all: Vec<Approved> = match build.kind {
        Kind::Relay => {
            let directory = directory_shown(config)?;
            let judged = findings::judge(program, config, &directory)?.ok_or_else(none)?;
            judged.images().cloned().collect()
        }
        Kind::Client => {
            let Origin::Chain(chain) = origin(config)? else { return Err(none()) };
            openrelay_chain::package::packages(&chain, unix_seconds())?
        }
    };
    // In a new folder outside the tree: remains of another tree's build could be taken for this one's.
    let place = folders().state.join("rebuilding");
    let target = build.target.clone().unwrap_or_else(|| place.clone());
    remove(&place)?;
    let build = BuildArguments { confinement: Confinement::Required, target: Some(target), ..build.clone() };
    let built = make(&build);
    let _ = remove(&place);
    let built = built?;
    let hash = built.image.hash();
    let approved = approved_as(&built.manifest, &all)?;
    let path = rebuilt_images(&folders().state);
    let mut known = std::fs::read_to_string(&path).unwrap_or_default();
    let value = hex(&approved.image.value);
    if !known.lines().any(|line| line == value) {
        known += &format!("{value}\n");
        std::fs::create_dir_all(&folders().state).map_err(Failure::plain)?;
        openrelay_node::directory::replace(&path, known.as_bytes()).map_err(Failure::plain)?;
    }
    say(&format!(
        "image     {}   identical to the one approved in round {}: {}",
        hex(&hash),
        approved.round,
        findings::state(approved.image.state)
    ));
    talk("openrelay: with paranoid = true in the policy, only images that were rebuilt here are accepted");
    Ok(())
}

/// Returns the newest approved version that equals what was built: the image and its firmware, as the manifest lists
/// them.
///
/// # Errors
/// [`Failure`] with code 5 if no approved version equals it.
fn approved_as<'a>(built: &Manifest, all: &'a [Approved]) -> Result<&'a Approved, Failure> {
    // A tree does not state which version it became.
    let value = |version: u64| {
        let manifest = Manifest { version, ..built.clone() };
        image_value(built.image.into(), sha256(&manifest.encode()).into()).0
    };
    if let Some(approved) = all.iter().rfind(|approved| value(approved.version) == approved.image.value) {
        return Ok(approved);
    }
    let hash = hex(&built.image);
    let why = if all.iter().any(|approved| approved.image.hash == built.image) {
        format!(
            "this tree builds the image {hash}, which validators approved with other firmware or for other machines"
        )
    } else {
        let known: Vec<String> = all.iter().map(|approved| hex(&approved.image.hash)).collect();
        let known = if known.is_empty() { "none".into() } else { known.join(", ") };
        format!("this tree builds the image {hash}, which validators have not approved; approved: {known}")
    };
    Err(Failure::new(5, why))
}

#[cfg(test)]
mod tests {
    use openrelay_attest::evidence::Measurement;
    use openrelay_attest::manifest::Shape;
    use openrelay_attest::verdict::{Image, ImageState};
    use openrelay_ledger::chain::voted::RELAY_IMAGE;

    use super::*;

    #[test]
    fn rebuilt_image_matches_approved_one_only_with_same_firmware() {
        let manifest = |version, measurement| {
            let shapes = vec![Shape { name: "EPYC-v4 x 1".into(), measurement: Measurement::Snp([measurement; 48]) }];
            let (kind, image, advisories) = (RELAY_IMAGE, [7; 32], Vec::new());
            Manifest { kind, version, firmware_generation: Some(1), image, shapes, advisories }
        };
        let approved = |version, measurement| {
            let hash = [7; 32];
            let value = image_value(hash.into(), sha256(&manifest(version, measurement).encode()).into()).0;
            let (measurements, advisories, rebuilt_by) = (Vec::new(), Vec::new(), Vec::new());
            let (state, firmware_generation) = (ImageState::Active, Some(1));
            let image = Image { hash, value, state, firmware_generation, measurements, advisories, rebuilt_by };
            Approved { image, round: version, version }
        };
        let all = [approved(4, 0xa), approved(5, 0xb), approved(6, 0xb)];
        let found = |measurement| approved_as(&manifest(1, measurement), &all).map(|found| found.version);
        assert_eq!((found(0xa).unwrap(), found(0xb).unwrap()), (4, 6));
        let refused = found(0xc).unwrap_err();
        assert!(refused.code() == 5 && refused.to_string().contains("other firmware"), "{refused}");
        let other = Manifest { image: [8; 32], ..manifest(1, 0xa) };
        let refused = approved_as(&other, &all).unwrap_err();
        assert!(refused.code() == 5 && refused.to_string().contains("not approved"), "{refused}");
    }
}
