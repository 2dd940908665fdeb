//! The round that ends `./x image`: three validators rebuild the image from its source tree, each from nothing, and
//! approve it.
//!
//! Owns the check that they approve the image that was built before.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use openrelay_attest::manifest::Manifest;
use openrelay_chain::voting::ImageRegistry;
use openrelay_image::sha256;
use openrelay_ledger::chain::voted::RELAY_IMAGE;

use super::world::{What, World, join};
use crate::net::output::say;
use crate::scenario::runner::timed;
use crate::world::approved::TIME_DIVISOR;
use crate::world::local_chain::LocalChain;

/// Makes the validators vote on the image in the folder `built`, whose source is `tree`.
///
/// They have their own chain in the folder `dir`.
pub(crate) fn run(dir: &Path, tree: &Path, built: &Path) -> Result<()> {
    // Commitments are accepted for more than an hour, because three builds take minutes each.
    let world = &World::of(dir, LocalChain::start_with_time_divisor(dir, TIME_DIVISOR)?)?;
    let path = built.join("manifest.json");
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest = Manifest::decode(&bytes).map_err(|refusal| anyhow::anyhow!("{}: {refusal}", path.display()))?;
    let (source, inputs) = world.hashes_of(tree)?;
    let (image, measurements) = (manifest.image.into(), sha256(&bytes).into());
    let what = What { kind: RELAY_IMAGE, source, inputs, image, measurements };
    (1..=3).try_for_each(|id| join(world, id))?;
    let round = world.propose(manifest.version, &what)?;
    let step = |id: u64, word: &str| -> Result<()> {
        let publish = world.local.dir.join(format!("published-{id}")).display().to_string();
        let run = ["run", "--once", "--no-checks", "--publish", &publish, "--source", &tree.display().to_string()];
        world.says(id, &run, 0, word)
    };
    for id in 1..=3 {
        let name = format!("validator {id} built the image from nothing and committed");
        timed(&name, || step(id, "committed").map(|()| String::new()))?;
    }
    world.await_reveals(round)?;
    world.open(round, &what)?;
    (1..=3).try_for_each(|id| step(id, "revealed"))?;
    world.await_end(round)?;
    (1..=3).try_for_each(|id| step(id, "settled"))?;
    let state = world.ask(world.images, &ImageRegistry::stateOfCall { round })?;
    ensure!(
        state == 7,
        "the validators did not rebuild the given image: the round ended in state {state}, not approved"
    );
    say(&format!("ok  the validators approved the image that was built here: {image}"));
    Ok(())
}
