//! Source trees whose builds never end, with a validator that runs permanently. One build hangs, the other forks
//! without end.
//!
//! Owns the checks that such a build delays no vote and ends in abstention. `hostile_trees` tests what a build can
//! reach.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use alloy_primitives::FixedBytes;
use anyhow::{Result, ensure};
use openrelay_chain::voting::images::Rounds;
use openrelay_chain::voting::{Answer, ImageRegistry, image_value};
use openrelay_ledger::chain::voted::RELAY_IMAGE;

use super::hostile::{APPROVED, COMMITTED, REVEALED};
use super::rebuilding::Rebuilding;
use super::world::{IMAGE, MEASUREMENTS, What, World, join};
use crate::net::host::checked;
use crate::world::approved::TIME_DIVISOR;
use crate::world::tiny::Tiny;

/// The validator that runs permanently. The others vote in single passes.
const ID: u64 = 2;
/// The longest time for something that does not depend on the chain's time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Waits forever.
const HANGS: &str = "while :; do sleep 1000; done\n";
/// Each process forks two others and waits for them, so that all of them stay.
const FORKS: &str = "fork() { fork & fork & wait; }\nfork & wait\n";

/// A running validator. Its output goes to a file.
struct Running {
    child: Child,
    log: PathBuf,
}

impl Running {
    fn start(world: &World, rebuilding: &Rebuilding<'_>, log: &str) -> Result<Self> {
        let log = world.local.dir.join(log);
        let mut command = Command::new(&world.local.programs.openrelay);
        command.args(rebuilding.arguments(world, ID, false)).env("OPENRELAY_STATE_DIR", world.local.dir.join("state"));
        let said = fs::File::create(&log)?;
        command.stdin(Stdio::null()).stdout(said.try_clone()?).stderr(said);
        Ok(Self { child: command.spawn()?, log })
    }

    /// Waits in real time until the validator has done something.
    fn within(&mut self, what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
        let until = Instant::now() + PATIENCE;
        while !holds()? {
            let ended = self.child.try_wait()?;
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            ensure!(ended.is_none(), "{what}: the validator ended by itself: {said}");
            ensure!(Instant::now() < until, "{what}: not within {} s: {said}", PATIENCE.as_secs());
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn has_said(&self, word: &str) -> Result<bool> {
        Ok(fs::read_to_string(&self.log)?.contains(word))
    }

    fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Creates a tree like the tiny one, whose firmware is built by this script, and returns its proposal.
fn tree(world: &World, tiny: &Tiny, trees: &Path, name: &str, script: &str) -> Result<What> {
    let tree = trees.join(name);
    checked(&Command::new("cp").arg("-r").arg(&tiny.tree).arg(&tree).output()?, "copy the tree")?;
    fs::write(tree.join("image/firmware/build.sh"), script)?;
    let (source, inputs) = world.hashes_of(&tree)?;
    // No build gets as far as an image.
    Ok(What { kind: RELAY_IMAGE, source, inputs, image: IMAGE, measurements: MEASUREMENTS })
}

/// Returns the number of processes that run the build script of a round.
fn builders(world: &World, round: u64) -> Result<usize> {
    let place = world.local.dir.join(format!("validator-{ID}/building-{round}/"));
    let (place, script) = (place.display().to_string(), "firmware/build.sh");
    let is_one = |process: &fs::DirEntry| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        // Supervisors name the script too, but they are not shells.
        line.starts_with("sh\0") && line.contains(&place) && line.contains(script)
    };
    Ok(fs::read_dir("/proc")?.flatten().filter(is_one).count())
}

pub(super) fn run(world: &World, tiny: &Tiny) -> Result<()> {
    let trees = world.local.dir.join("trees");
    fs::create_dir_all(&trees)?;
    let good = Rebuilding::of(tiny);
    (1..=3).try_for_each(|number| join(world, number))?;
    let hangs = tree(world, tiny, &trees, "hangs", HANGS)?;
    let forks = tree(world, tiny, &trees, "forks", FORKS)?;
    checked(&Command::new("cp").arg("-r").arg(&tiny.tree).arg(trees.join("good")).output()?, "copy the tree")?;
    // The validator finds all trees in one folder.
    let all = Rebuilding { tree: trees, ..good.clone() };
    let bond = world.bond(ID)?;
    let mut running = Running::start(world, &all, "running.log")?;
    let hung = while_one_hangs(world, &good, &mut running, &hangs)?;
    // A build ends with its builder, however the builder ends.
    running.kill()?;
    let mut running = Running::start(world, &all, "running-again.log")?;
    running.within("the end of the hanging build", || Ok(builders(world, hung)? == 0))?;
    after_one_forks(world, &good, &mut running, &forks)?;
    ensure!(world.bond(ID)? == bond, "the validator lost bond");
    Ok(())
}

/// While one build hangs, the validator reveals and settles a vote of another round, and abstains by the deadline.
///
/// Returns the round of the build that hangs.
fn while_one_hangs(world: &World, good: &Rebuilding<'_>, running: &mut Running, hangs: &What) -> Result<u64> {
    let first = good.good(world, 1)?;
    let elsewhere = world.propose(1, &first)?;
    running.within("a commitment to a good image", || Ok(vote(world, elsewhere)?.mark == COMMITTED))?;
    for id in [1, 3] {
        good.run(world, id, "committed")?;
    }
    let now = world.time()?;
    world.pass_until(now + (commit_end(world, elsewhere)? - now) / 2)?;
    let round = world.propose(2, hangs)?;
    running.within("a build that hangs", || Ok(builders(world, round)? > 0))?;
    let hung = || -> Result<()> {
        ensure!(builders(world, round)? > 0, "the build no longer hangs");
        Ok(())
    };
    world.await_reveals(elsewhere)?;
    world.open(elsewhere, &first)?;
    running.within("a reveal while a build hangs", || Ok(vote(world, elsewhere)?.mark == REVEALED))?;
    ensure!(vote(world, round)?.mark == 0, "the validator answered before its time was over");
    hung()?;
    for id in [1, 3] {
        good.run(world, id, "revealed")?;
    }
    // The validator commits in the last quarter of an hour. With the time divisor that is a few seconds.
    world.pass_until(commit_end(world, round)? - 600 / u64::from(TIME_DIVISOR))?;
    running.within("an answer by the deadline", || Ok(vote(world, round)?.mark == COMMITTED))?;
    ensure!(running.has_said("abstaining: its build has not ended")?, "the validator does not report why it abstains");
    hung()?;
    world.await_reveals(round)?;
    running.within("a reveal of the abstention", || Ok(vote(world, round)?.mark == REVEALED))?;
    ensure!(vote(world, round)?.hash == key(world, Answer::Abstain)?, "the validator did not abstain");
    hung()?;
    world.await_end(elsewhere)?;
    running.within("settling while a build hangs", || Ok(vote(world, elsewhere)?.mark == 0))?;
    hung()?;
    let state = world.ask(world.images, &ImageRegistry::stateOfCall { round: elsewhere })?;
    ensure!(state == APPROVED, "the good image is not approved; the state is {state}");
    Ok(round)
}

/// A limit ends a build that forks without end. The validator abstains, and votes for another proposal.
fn after_one_forks(world: &World, good: &Rebuilding<'_>, running: &mut Running, forks: &What) -> Result<()> {
    let round = world.propose(3, forks)?;
    let why = format!("round {round}: not built: the build of the firmware exceeded its limit of processes");
    let log = running.log.clone();
    running.within("the end of the build by its limit", || Ok(fs::read_to_string(&log)?.contains(&why)))?;
    ensure!(builders(world, round)? == 0, "some forked processes still run");
    let beside = good.good(world, 4)?;
    let second = world.propose(4, &beside)?;
    running.within("a commitment to a good image after it", || Ok(vote(world, second)?.mark == COMMITTED))?;
    ensure!(vote(world, round)?.mark == 0, "the validator answered while there was time");
    // In the last six hours of committing the validator answers with what it knows.
    world.pass_until(commit_end(world, round)? - 5 * 3_600 / u64::from(TIME_DIVISOR))?;
    running.within("an answer by the deadline", || Ok(vote(world, round)?.mark == COMMITTED))?;
    world.await_reveals(second)?;
    world.open(second, &beside)?;
    running
        .within("both reveals", || Ok(vote(world, round)?.mark == REVEALED && vote(world, second)?.mark == REVEALED))?;
    ensure!(vote(world, round)?.hash == key(world, Answer::Abstain)?, "the validator did not abstain");
    // Control: for a proposal that can be built the validator names its result.
    let value = Answer::Value(image_value(beside.image, beside.measurements));
    ensure!(vote(world, second)?.hash == key(world, value)?, "the validator did not name the good image");
    Ok(())
}

fn vote(world: &World, round: u64) -> Result<Rounds::Vote> {
    world.ask(world.images, &ImageRegistry::voteOfCall { round, validatorId: ID })
}

fn commit_end(world: &World, round: u64) -> Result<u64> {
    Ok(world.ask(world.images, &ImageRegistry::roundOfCall { round })?.commitEnd.to())
}

/// Returns what the contract stores of a revealed answer.
fn key(world: &World, answer: Answer) -> Result<FixedBytes<31>> {
    let (answer, value) = answer.parts();
    world.ask(world.images, &ImageRegistry::answerKeyCall { answer, value })
}
