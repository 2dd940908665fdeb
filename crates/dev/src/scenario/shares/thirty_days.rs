//! Thirty days of a network in which 34 % of the weight attack the others, on a chain whose clock is behind. Three
//! validators rebuild images and renew collateral with `openrelay validator run`.
//!
//! Owns the checks that the network keeps working and that the 34 % pay what the model predicts. Relays and a client
//! of the same network use the result (`shares`).

use std::fs;
use std::path::{Path, PathBuf};

use alloy_primitives::{Address, B256, U256};
use alloy_sol_types::SolCall as _;
use anyhow::{Context as _, Result, bail, ensure};
use openrelay_attest::manifest::Manifest;
use openrelay_chain::voting::{Answer, Collateral, ImageRegistry, ValidatorSet, commitment, image_value};
use openrelay_image::sha256;
use openrelay_node::chain_file::ChainFile;
use openrelay_node::clock::unix_seconds;
use openrelay_sim::vendors::{Vendors, encode_roots};
use serde_json::json;

use crate::net::output::say;
use crate::scenario::votes::collateral::Setting;
use crate::scenario::votes::hostile::{APPROVED, Outsider};
use crate::scenario::votes::rebuilding::Rebuilding;
use crate::scenario::votes::world::{SALT, What, World};
use crate::world::devchain::YOUNG_BLOCKS;
use crate::world::local_chain::LocalChain;
use crate::world::tiny::Tiny;

const HOUR: u64 = 3_600;
const DAY: u64 = 24 * HOUR;
/// Seconds by which the chain's clock is behind.
///
/// The first image is approved and usable after eight days; thirty days follow. The hours cover the time that
/// transactions take.
pub(crate) const BEHIND: u64 = 38 * DAY + 12 * HOUR;
/// The chain time in which there is one round on collateral. Source: the contract, `Collateral.PERIOD`.
const PERIOD: u64 = 6 * HOUR;
/// Duration of a round that ends without delay.
const ROUND: u64 = 7 * DAY;
/// States of a usable image, by the contract's numbers: active and deprecated.
const ACTIVE: u8 = 8;
const USABLE: [u8; 2] = [ACTIVE, 9];
/// The document with the tables that the model computes.
const DOCUMENT: &str = include_str!("../../../../../docs/contracts.md");

/// How 34 % of the weight behave.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Against {
    Silent,
    Abstains,
    Failed,
}

impl Against {
    /// Returns the words of the document's table.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Silent => "stays silent",
            Self::Abstains => "abstains",
            Self::Failed => "says \"failed\"",
        }
    }

    /// Returns the command-line argument.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Silent => "silent",
            Self::Abstains => "abstains",
            Self::Failed => "failed",
        }
    }

    const fn answer(self) -> Option<Answer> {
        match self {
            Self::Silent => None,
            Self::Abstains => Some(Answer::Abstain),
            Self::Failed => Some(Answer::Failed(SALT)),
        }
    }
}

/// The network's chain, its three honest validators, and the validator with 34 % of the weight once it has joined.
struct Course<'a> {
    world: &'a World,
    setting: Setting<'a>,
    vendors: &'a Vendors,
    begins: u64,
    tiny: &'a Tiny,
    chain: ChainFile,
    rival: Option<(Outsider, Against)>,
    /// Number of bundles that vendors have signed so far.
    bundles: u64,
}

/// Runs the thirty days on the chain of the network in this folder.
pub(crate) fn run(network: &Path, against: Against) -> Result<()> {
    let dir = network.join("shares");
    fs::create_dir_all(&dir)?;
    // Mirrors and relays are added later.
    let text = fs::read_to_string(network.join("config/chain.toml"))?;
    let lines = text.lines().map(|line| match line.split(' ').next() {
        Some(key @ ("mirrors" | "evidence")) => format!("{key} = []\n"),
        _ => format!("{line}\n"),
    });
    fs::write(dir.join("chain.toml"), lines.collect::<String>())?;
    let world = World::of(&dir, LocalChain::of(&dir)?)?;
    let tiny = Tiny::make(&dir.join("tiny"))?;
    let begins = unix_seconds() - DAY;
    let vendors = Vendors::new(begins);
    let mut course = Course {
        world: &world,
        setting: Setting::start(&world, &vendors, begins)?,
        vendors: &vendors,
        begins,
        tiny: &tiny,
        chain: ChainFile::load(&dir.join("chain.toml"))?,
        rival: None,
        bundles: 0,
    };
    let newest = course.thirty_days(against)?;
    course.leave(network, newest)
}

impl Course<'_> {
    /// Runs the thirty days. Returns the round of the newest image that is usable at their end.
    fn thirty_days(&mut self, against: Against) -> Result<u64> {
        let world = self.world;
        let first = self.begin_round(1)?;
        self.end_round(first)?;
        ensure!(self.state(first)? == APPROVED, "the first image was not approved");
        ensure!(self.collateral()?, "the first collateral is not in force");
        let posted = world.time()?;
        let usable: u64 = world.ask(world.images, &ImageRegistry::imageByCall { round: first })?.usableFrom.to();
        world.pass_until(usable)?;
        let honest: Vec<u128> = self.bonds()?;
        self.rival = Some((Outsider::join(world, honest.iter().sum::<u128>() * 34 / 66)?, against));
        let (before, begin) = (self.rival_bond()?, world.time()?);
        // Control: 34 % keep two thirds from agreeing, and the collateral in force is too young to be renewed by
        // fewer.
        ensure!(!self.collateral()?, "less than two thirds renewed collateral that was not old");
        let deposits = self.deposits()?;
        let (mut rounds, mut images, mut version, mut renewed) = (0u128, vec![first], 2, None);
        while world.time()? + ROUND <= begin + 30 * DAY {
            let round = self.begin_round(version)?;
            if renewed.is_none() {
                let at = self.chain.collateral.context("the chain file has no collateral contract")?;
                let from: u64 = world.ask(at, &Collateral::renewableFromCall {})?.to();
                let end: u64 = world.ask(world.images, &ImageRegistry::revealEndCall { round })?.to();
                // All have revealed, so nothing else is due before the round's end.
                if from < end + 2 * DAY {
                    world.pass_until(from)?;
                    ensure!(self.collateral()?, "old collateral was not renewed");
                    renewed = Some((world.time()? - posted) / DAY);
                }
            }
            self.end_round(round)?;
            rounds += 1;
            match self.state(round)? {
                APPROVED | ACTIVE => {
                    images.push(round);
                    version += 1;
                }
                _ => world.pass_until(world.time()? + DAY)?,
            }
            ensure!(self.usable(&images)?.is_some(), "no image is usable on day {}", (world.time()? - begin) / DAY);
        }
        world.pass_until(begin + 30 * DAY)?;
        ensure!(self.bonds()? == honest, "honest validators lost bond");
        ensure!(self.deposits()? - deposits == rounds, "the proposer lost a deposit");
        let lost = (before - self.rival_bond()?) * 10_000 / before;
        self.compare(rounds, images.len() - 1, lost, renewed.context("collateral was never renewed")?)?;
        self.usable(&images)?.context("no image is usable at the end")
    }

    /// Prints the figures and compares them with the model's.
    fn compare(&self, rounds: u128, approved: usize, lost: u128, renewed: u64) -> Result<()> {
        let (_, against) = self.rival.as_ref().context("no attacker has joined")?;
        let row = DOCUMENT.lines().find(|line| line.starts_with(&format!("| {} | ", against.words())));
        let row = row.context("the document has no such row")?;
        // The last column covers the time after the thirty days.
        let (table, _) = row.trim_end_matches(" |").rsplit_once(" | ").context("the document's row has no columns")?;
        let loss = format!("{}.{:02} %", lost / 100, lost % 100);
        let found = format!("| {} | {rounds} | {approved} | {loss} | 0.00 % | 0 | 0 | {renewed}", against.words());
        say(&format!(
            "34 % of the weight, 30 days of the chain: {rounds} rounds, {approved} approved; each of the 34 % lost \
             {loss} of its bond, each of the others 0.00 %; no deposit lost, no day without an image, collateral \
             renewed after {renewed} days"
        ));
        ensure!(found == table, "the model predicts:\n{table}\nthis chain has:\n{found}");
        Ok(())
    }

    fn state(&self, round: u64) -> Result<u8> {
        self.world.ask(self.world.images, &ImageRegistry::stateOfCall { round })
    }

    /// Returns the newest usable image.
    fn usable(&self, images: &[u64]) -> Result<Option<u64>> {
        for round in images.iter().rev() {
            if USABLE.contains(&self.state(*round)?) {
                return Ok(Some(*round));
            }
        }
        Ok(None)
    }

    fn bonds(&self) -> Result<Vec<u128>> {
        (1..=3).map(|id| self.world.bond(id)).collect()
    }

    fn rival_bond(&self) -> Result<u128> {
        let (rival, _) = self.rival.as_ref().context("no attacker has joined")?;
        self.world.bond(rival.id)
    }

    /// Returns the number of deposits that the proposer can claim.
    fn deposits(&self) -> Result<u128> {
        let world = self.world;
        let validators = world.ask(world.images, &ImageRegistry::validatorsCall {})?;
        let owner = world.proposer.address();
        let credit = U256::from(world.ask(validators, &ValidatorSet::creditOfCall { owner })?);
        let deposit = U256::from(world.ask(world.images, &ImageRegistry::depositCall {})?);
        Ok((credit / deposit).to())
    }

    /// Returns the tree of a version, whose image differs from every other version's.
    fn tiny(&self, version: u64) -> Result<Tiny> {
        let [init, relay] = &self.tiny.programs;
        let own = relay.with_file_name(format!("relay-{version}"));
        fs::write(&own, format!("a relay of version {version}"))?;
        Ok(Tiny { tree: self.tiny.tree.clone(), inputs: self.tiny.inputs.clone(), programs: [init.clone(), own] })
    }

    /// Makes the three honest validators do what is due, each in its own process.
    fn work(&self, tiny: &Tiny, word: &str) -> Result<()> {
        let rebuilding = Rebuilding::of(tiny);
        at_once(|id| rebuilding.run(self.world, id, word))
    }

    /// Sends the attacker's answer, if it gives one.
    fn against(&self, contract: Address, round: u64, reveals: bool) -> Result<()> {
        let Some((rival, against)) = &self.rival else { return Ok(()) };
        let Some(answer) = against.answer() else { return Ok(()) };
        let validator = rival.id;
        if reveals {
            let (answer, value) = answer.parts();
            let call = ImageRegistry::revealCall { round, validatorId: validator, answer, value, salt: SALT };
            return rival.send_to(contract, "reveal", &call);
        }
        let hidden = commitment(self.chain.chain_id, contract, round, validator, answer, SALT);
        let call = ImageRegistry::commitCall { round, validatorId: validator, commitment: hidden };
        rival.send_to(contract, "commit", &call)
    }

    /// Runs a round up to the period for proofs of equivocation.
    fn begin_round(&self, version: u64) -> Result<u64> {
        let (world, tiny) = (self.world, self.tiny(version)?);
        let rebuilding = Rebuilding::of(&tiny);
        let what: What = rebuilding.good(world, version)?;
        let round = world.propose(version, &what)?;
        self.work(&tiny, "committed")?;
        self.against(world.images, round, false)?;
        world.await_reveals(round)?;
        world.open(round, &what)?;
        self.work(&tiny, "revealed")?;
        self.against(world.images, round, true)?;
        Ok(round)
    }

    fn end_round(&self, round: u64) -> Result<()> {
        let world = self.world;
        world.await_end(round)?;
        let finish = ImageRegistry::finishCall { round }.abi_encode();
        world.proposer.send("finish", world.images, &finish)?;
        // A validator that has to pay does not settle itself, but any account may settle for all.
        let ids = (1..=3).chain(self.rival.iter().map(|(rival, _)| rival.id)).collect();
        let settle = ImageRegistry::settleCall { round, ids }.abi_encode();
        world.proposer.send("settle", world.images, &settle)?;
        Ok(())
    }

    /// Makes vendors sign another bundle and runs a round on it. Returns whether the bundle is in force afterwards.
    fn collateral(&mut self) -> Result<bool> {
        let (world, at) = (self.world, self.setting.at()?);
        self.bundles += 1;
        let number = self.bundles;
        self.setting.publish(&self.vendors.bundle_since(self.begins + number * HOUR))?;
        // The whole round fits into one period. In the next period a validator that still wants the bundle would open
        // another round.
        world.pass_until((world.time()? / PERIOD + 1) * PERIOD)?;
        let before = world.ask(at, &Collateral::currentRoundCall {})?;
        // One validator fetches the bundle, and the others find it there. A validator that has the first bundle asks
        // for a round itself.
        self.setting.looks(1, "")?;
        if number > 1 {
            world.proposer.send("open", at, &Collateral::openCall {}.abi_encode()).context("cannot open a round")?;
        }
        let round = world.ask(at, &Collateral::roundCountCall {})?;
        let commit_end: u64 = world.ask(at, &Collateral::roundOfCall { round })?.commitEnd.to();
        world.pass_until(commit_end - HOUR)?;
        at_once(|id| self.setting.looks(id, &format!("round {round}: committed")))?;
        self.against(at, round, false)?;
        world.pass_until(commit_end)?;
        at_once(|id| self.setting.looks(id, &format!("round {round}: revealed")))?;
        self.against(at, round, true)?;
        world.pass_until(world.ask(at, &Collateral::revealEndCall { round })?.to())?;
        self.setting.looks(1, "")?;
        Ok(world.ask(at, &Collateral::currentRoundCall {})? > before)
    }

    /// Sets the chain's clock right, and leaves what relays, mirrors and clients of the network need.
    fn leave(&self, network: &Path, newest: u64) -> Result<()> {
        let world = self.world;
        let first = unix_seconds() - YOUNG_BLOCKS - 10;
        ensure!(world.time()? < first, "the chain's time is ahead of the clock");
        world.pass_until(first)?;
        for _ in 0..YOUNG_BLOCKS {
            world.endpoint().ask("evm_mine", &json!([]))?;
        }
        world.endpoint().ask("evm_increaseTime", &json!([BEHIND]))?;
        world.endpoint().ask("evm_mine", &json!([]))?;
        let simulation = network.join("config/sim");
        let published = simulation.join("published");
        fs::create_dir_all(&published)?;
        for id in 1..=3 {
            let own = world.local.dir.join(format!("published-{id}"));
            for entry in fs::read_dir(own)?.flatten() {
                fs::copy(entry.path(), published.join(entry.file_name()))?;
            }
        }
        fs::write(simulation.join("vendors"), self.vendors.encode())?;
        fs::write(simulation.join("roots"), encode_roots(self.vendors.roots()))?;
        let approved = world.ask(world.images, &ImageRegistry::roundOfCall { round: newest })?.value;
        // That image becomes the image of the simulation.
        fs::rename(manifest_of(&published, approved)?, published.join("image-1.json"))?;
        // Clients require signatures of two of the three validators that rebuilt the image.
        let validators = world.ask(world.images, &ImageRegistry::validatorsCall {})?;
        let named = (1..=3).map(|id| {
            let shown = world.ask(validators, &ValidatorSet::getCall { validatorId: id })?;
            Ok(format!("\"{}\"", shown.operator))
        });
        let named = named.collect::<Result<Vec<_>>>()?.join(", ");
        fs::create_dir_all(network.join("config/client"))?;
        let policy = format!("rebuilders = [{named}]\nrebuilders_needed = 2\n");
        fs::write(network.join("config/client/rebuilders-of-30-days.toml"), policy)?;
        Ok(())
    }
}

/// Does the same for each honest validator, all in parallel.
fn at_once(act: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
    std::thread::scope(|scope| {
        let act = &act;
        let all: Vec<_> = (1..=3).map(|id| scope.spawn(move || act(id))).collect();
        all.into_iter().try_for_each(|one| one.join().unwrap_or_else(|_| bail!("a thread panicked")))
    })
}

/// Returns the file of the manifest whose image was approved by this value.
fn manifest_of(published: &Path, value: B256) -> Result<PathBuf> {
    let is_it = |path: &PathBuf| {
        let Ok(bytes) = fs::read(path) else { return false };
        let manifest = Manifest::decode(&bytes);
        manifest.is_ok_and(|manifest| image_value(manifest.image.into(), sha256(&bytes).into()) == value)
    };
    let mut paths = fs::read_dir(published)?.flatten().map(|entry| entry.path());
    paths.find(is_it).context("no validator published the manifest of the approved image")
}
