//! Rounds of three honest validators: with answers given by hand, and with images that they rebuild.

use anyhow::{Result, ensure};
use openrelay_chain::voting::ImageRegistry;

use super::rebuilding::Rebuilding;
use super::world::{IMAGE, MEASUREMENTS, NAMED, OTHER, SALT, What, World, join};

/// Three validators join, approve a good image and reject a bad one.
pub(super) fn votes(world: &World) -> Result<()> {
    (1..=3).try_for_each(|number| join(world, number))?;
    let full = world.bond(1)?;
    good_image(world)?;
    ensure!((world.bond(1)?, world.bond(3)?) == (full, full), "honest validators lost bond");
    bad_image(world)?;
    ensure!(
        (world.bond(1)?, world.bond(3)?) == (full, full - full / 200),
        "a validator that does not reveal must lose 0.5 % of its bond"
    );
    Ok(())
}

/// Validators rebuild themselves. Each step runs in its own process, as if the previous process had been killed.
pub(super) fn rebuilds(world: &World, rebuilding: &Rebuilding<'_>) -> Result<()> {
    let published = |id: u64| -> Vec<String> {
        let entries = std::fs::read_dir(world.local.dir.join(format!("published-{id}"))).into_iter().flatten();
        let mut names: Vec<_> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let run = |id: u64, word: &str| rebuilding.run(world, id, word);
    let round = |version: u64, what: &What, late: bool| -> Result<u8> {
        let round = world.propose(version, what)?;
        if late {
            run(1, "no source tree here has the hash")?;
            // This validator's commitment failed after it had decided. It must commit that answer: another answer in
            // the same round could cost its whole bond.
            let answer = format!("answers = [{{ failed = {{ log = \"{SALT}\" }} }}]\n");
            std::fs::write(world.local.dir.join(format!("validator-3/round-{round}.toml")), answer)?;
            run(3, "committed")?;
            let end: u64 = world.ask(world.images, &ImageRegistry::roundOfCall { round })?.commitEnd.to();
            // Each transaction mines a block one second later, so there is time for two.
            world.pass_until(end - 3)?;
        }
        let voters = if late { 1..=2 } else { 1..=3 };
        for id in voters.clone() {
            let before = published(id);
            run(id, "committed")?;
            // A validator that sees the result at this point could vote for it without building.
            ensure!(published(id) == before, "validator {id} publishes its vote before it reveals it");
        }
        world.await_reveals(round)?;
        world.open(round, what)?;
        for id in voters.clone() {
            run(id, "revealed")?;
        }
        world.await_end(round)?;
        for id in voters {
            run(id, "settled")?;
        }
        world.ask(world.images, &ImageRegistry::stateOfCall { round })
    };
    let good = rebuilding.good(world, 3)?;
    let state = round(3, &good, false)?;
    ensure!(state == 7, "an image that three validators rebuilt must be approved; the state is {state}");
    // Two copies of a published attestation name the same value, which proves nothing against anybody.
    let attestation = world.local.dir.join("published-1/attestation-3-1.json").display().to_string();
    world.says(2, &["report", &attestation, &attestation], 1, "that proves nothing")?;
    let state = round(4, &rebuilding.planted(world, 4)?, false)?;
    ensure!(state == 5, "an image that no validator can rebuild must be rejected; the state is {state}");
    // A missing tree proves nothing against the proposal, so validators abstain, shortly before the deadline.
    let missing = What { source: alloy_primitives::B256::repeat_byte(0x77), ..good };
    let state = round(5, &missing, true)?;
    ensure!(state == 6, "a round on a tree that no validator has must reach no quorum; the state is {state}");
    Ok(())
}

/// All validators find the same image. One of them committed a different answer first.
fn good_image(world: &World) -> Result<()> {
    let round = world.propose(1, &NAMED)?;
    let number = round.to_string();
    let (image, other, measurements) = (IMAGE.to_string(), OTHER.to_string(), MEASUREMENTS.to_string());
    let found = ["vote", &number, "--image", &image, "--measurements", &measurements];
    world.says(1, &["vote", &number], 2, "no answer: give --image")?;
    world.says(1, &["vote", "9"], 1, "there is no round 9")?;
    world.says(3, &["vote", &number, "--image", &other, "--measurements", &measurements], 0, "committed")?;
    for id in 1..=3 {
        world.says(id, &found, 0, "committed")?;
        world.says(id, &found, 3, "run this again in")?;
        world.says(id, &["status"], 0, "commitments   committed")?;
    }
    world.await_reveals(round)?;
    world.open(round, &NAMED)?;
    // A validator that has lost its saved answer reports it and reveals nothing else.
    let answers = world.local.dir.join(format!("validator-2/round-{round}.toml"));
    let kept = std::fs::read(&answers)?;
    std::fs::remove_file(&answers)?;
    world.says(2, &["vote", &number], 1, "it was committed from another folder")?;
    std::fs::write(&answers, kept)?;
    for id in 1..=3 {
        world.says(id, &["status"], 0, "next: reveal")?;
        world.says(id, &["vote", &number], 0, "revealed")?;
        world.says(id, &["vote", &number], 3, "run this again in")?;
    }
    world.await_end(round)?;
    world.says(2, &["vote", &number], 0, "finished")?;
    for id in [1, 3] {
        world.says(id, &["vote", &number], 0, "settled")?;
    }
    world.says(1, &["vote", &number], 0, "nothing to do")?;
    let state = world.ask(world.images, &ImageRegistry::stateOfCall { round })?;
    ensure!(state == 7, "the image must be approved and not usable yet; the state is {state}");
    Ok(())
}

/// All commit to another image. Two reveal it, and the third never reveals.
fn bad_image(world: &World) -> Result<()> {
    let round = world.propose(2, &NAMED)?;
    let number = round.to_string();
    let (other, measurements) = (OTHER.to_string(), MEASUREMENTS.to_string());
    for id in 1..=3 {
        world.says(id, &["vote", &number, "--image", &other, "--measurements", &measurements], 0, "committed")?;
    }
    world.await_reveals(round)?;
    world.open(round, &NAMED)?;
    for id in 1..=2 {
        world.says(id, &["vote", &number], 0, "revealed")?;
    }
    world.await_end(round)?;
    world.says(3, &["vote", &number], 0, "finished")?;
    let state = world.ask(world.images, &ImageRegistry::stateOfCall { round })?;
    ensure!(state == 5, "the image must be rejected; the state is {state}");
    Ok(())
}
