//! The third part of `openrelay-dev devnet check`: validators vote on images with the product's own commands.
//!
//! They vote on their own development chain, whose time the scenarios move. Owns the proposer, which signs releases
//! with the development chain's key.

mod collateral;
mod endless;
mod from_source;
mod hostile;
mod shares;
mod update;

pub(crate) use shares::{Against, BEHIND};

use std::path::{Path, PathBuf};

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::{SolCall, SolEvent as _, SolValue as _};
use anyhow::{Context as _, Result, ensure};
use k256::ecdsa::SigningKey;
use openrelay_chain::Endpoint;
use openrelay_chain::journal::{Sender, sign};
use openrelay_chain::registry::Token;
use openrelay_chain::voting::{ImageRegistry, ReleaseKeys, ValidatorSet};
use openrelay_devchain::KNOWN;
use openrelay_ledger::chain::voted::{CLIENT_PACKAGE, RELAY_IMAGE};
use openrelay_node::chain_file::ChainFile;
use serde_json::json;

use crate::approved::TIME_DIVISOR;
use crate::local_chain::LocalChain;
use crate::scenario::scenario;
use crate::tiny::Tiny;

/// The bond of each validator, in the token's smallest unit. Each validator is its own family.
const BOND: &str = "3000000000000000000";
const WITHDRAWAL: &str = "0x00000000000000000000000000000000c01dc01d";
/// The image that the source builds, and a different one.
const IMAGE: B256 = B256::repeat_byte(0x11);
const OTHER: B256 = B256::repeat_byte(0x22);
const MEASUREMENTS: B256 = B256::repeat_byte(0x33);
const SALT: B256 = B256::repeat_byte(0x44);

/// Runs all scenarios on one chain. An error names the first that fails.
pub(crate) fn run(dir: &Path) -> Result<()> {
    let world = World::start(dir)?;
    let tiny = Tiny::make(&dir.join("tiny"))?;
    let rebuilding = Rebuilding { tiny: &tiny, tree: tiny.tree.clone(), client: None };
    scenario("three validators join, approve a good image and reject a bad one", || {
        votes(&world)?;
        rebuilds(&world, &rebuilding)
    })?;
    let mut outsider = None;
    scenario("a third of all weight that lies can neither approve nor stop an image, and pays a penalty", || {
        outsider = Some(hostile::lying_third(&world, &rebuilding)?);
        Ok(())
    })?;
    scenario("a validator that is killed at each step recovers, votes once and pays nothing", || {
        hostile::killed(&world, &rebuilding)
    })?;
    scenario("a validator whose disk fills up during a build reports that and not a failed build", || {
        hostile::full_disk(&world, &rebuilding)
    })?;
    scenario("a validator that copies another's commitment earns nothing and pays a penalty", || {
        hostile::copying(&world, &rebuilding, outsider.as_ref().context("no outsider has joined")?)
    })?;
    scenario("a validator that signs two values in one round loses its whole bond to a report", || {
        hostile::equivocating(&world, outsider.as_ref().context("no outsider has joined")?)
    })
}

/// Runs the scenario of builds that never end, on its own chain.
///
/// That chain's time divisor leaves the last quarter of an hour of a round long enough to be observed.
pub(crate) fn endless(dir: &Path) -> Result<()> {
    let world = World::of(dir, LocalChain::start_with_time_divisor(dir, TIME_DIVISOR)?)?;
    let tiny = Tiny::make(&dir.join("tiny"))?;
    scenario("a validator reveals, settles and abstains in time while a build hangs or forks without end", || {
        endless::run(&world, &tiny)
    })
}

/// Runs thirty days of a network that 34 % of the weight attack, on the chain of the network in the folder `dir`.
pub(crate) fn shares(dir: &Path, against: Against) -> Result<()> {
    shares::run(dir, against)
}

/// Runs the scenario of validators that fetch collateral, on its own chain.
pub(crate) fn collateral(dir: &Path) -> Result<()> {
    let world = World::of(dir, LocalChain::start_with_time_divisor(dir, TIME_DIVISOR)?)?;
    scenario("validators fetch collateral, check it against evidence, and vote for the newest that holds", || {
        collateral::run(&world)
    })
}

/// Runs the scenario of a client that updates itself, on its own chain.
pub(crate) fn updates(dir: &Path) -> Result<()> {
    let world = World::start(dir)?;
    let tiny = Tiny::make(&dir.join("tiny"))?;
    scenario("a client updates itself only to what validators approved, and never to an older version", || {
        update::run(&world, &tiny)
    })
}

/// Makes validators on their own chain rebuild the image in the folder `built` from its source tree, and vote.
pub(crate) fn from_source(dir: &Path, tree: &Path, built: &Path) -> Result<()> {
    // Commitments are accepted for more than an hour, because three builds take minutes each.
    let world = World::of(dir, LocalChain::start_with_time_divisor(dir, TIME_DIVISOR)?)?;
    from_source::run(&world, tree, built)
}

/// A proposal.
struct What {
    kind: u8,
    source: B256,
    inputs: B256,
    image: B256,
    measurements: B256,
}

/// The proposal for rounds in which no validator builds anything.
const NAMED: What = What {
    kind: RELAY_IMAGE,
    source: B256::repeat_byte(0x55),
    inputs: B256::repeat_byte(0x66),
    image: IMAGE,
    measurements: MEASUREMENTS,
};

struct World {
    local: LocalChain,
    images: Address,
    proposer: Sender,
}

impl World {
    fn start(dir: &Path) -> Result<Self> {
        Self::of(dir, LocalChain::start_without_time(dir)?)
    }

    fn of(dir: &Path, local: LocalChain) -> Result<Self> {
        let chain = ChainFile::load(&dir.join("chain.toml"))?;
        let images = chain.images.context("the chain file has no image registry")?;
        let proposer = Sender::new(&chain, SigningKey::from_slice(KNOWN[3].1.as_slice())?, dir);
        crate::chain::write_secret(&dir.join("password"), "a password\n")?;
        Ok(Self { local, images, proposer })
    }

    fn endpoint(&self) -> &Endpoint {
        self.proposer.endpoint()
    }

    fn ask<C: SolCall>(&self, to: Address, call: &C) -> Result<C::Return> {
        Ok(C::abi_decode_returns(&self.endpoint().call(to, &call.abi_encode())?)?)
    }

    /// Returns the arguments of `openrelay validator` for the folder of validator `number`.
    fn arguments(&self, number: u64, arguments: &[&str]) -> Vec<String> {
        let folder = self.local.dir.join(format!("validator-{number}")).display().to_string();
        let password = self.local.dir.join("password").display().to_string();
        let mut all = [&["validator"], arguments, &["--dir", &folder]].concat();
        if arguments[0] != "status" {
            all.extend(["--password-file", &password]);
        }
        all.into_iter().map(str::to_owned).collect()
    }

    /// Runs `openrelay validator`, which must end with this exit code and print this word.
    fn says(&self, number: u64, arguments: &[&str], code: i32, word: &str) -> Result<()> {
        let all = self.arguments(number, arguments);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        self.local.says(&all, code, word).map(drop)
    }

    /// Mines a block at the time `end`, unless that has passed. Each block is one second after the previous one, so a
    /// development chain's time can be ahead of the clock.
    fn pass_until(&self, end: u64) -> Result<()> {
        if self.time()? < end {
            self.endpoint().ask("evm_setNextBlockTimestamp", &json!([end]))?;
            self.endpoint().ask("evm_mine", &json!([]))?;
        }
        Ok(())
    }

    /// Returns the time of the newest block.
    fn time(&self) -> Result<u64> {
        let block = self.endpoint().ask("eth_getBlockByNumber", &json!(["latest", false]))?;
        Ok(block["timestamp"].as_str().context("the block has no timestamp")?.parse::<U256>()?.to())
    }

    fn await_reveals(&self, round: u64) -> Result<()> {
        let shown = self.ask(self.images, &ImageRegistry::roundOfCall { round })?;
        self.pass_until(shown.commitEnd.to())
    }

    fn await_end(&self, round: u64) -> Result<()> {
        let shown = self.ask(self.images, &ImageRegistry::roundOfCall { round })?;
        let end: u64 = self.ask(self.images, &ImageRegistry::revealEndCall { round })?.to();
        self.pass_until(end + u64::from(shown.challengeTime))
    }

    /// Proposes a signed release with a hidden value.
    fn propose(&self, version: u64, what: &What) -> Result<u64> {
        let validators = self.ask(self.images, &ImageRegistry::validatorsCall {})?;
        let token = self.ask(validators, &ValidatorSet::tokenCall {})?;
        let keys = self.ask(self.images, &ImageRegistry::releaseKeysCall {})?;
        let deposit = U256::from(self.ask(self.images, &ImageRegistry::depositCall {})?);
        let account = self.proposer.address();
        let fund = json!([account.to_string(), token.to_string(), format!("{deposit:#x}")]);
        self.endpoint().ask("devchain_fund", &fund)?;
        let approve = Token::approveCall { spender: validators, value: deposit };
        self.proposer.send("approve", token, &approve.abi_encode())?;
        let release =
            ReleaseKeys::Release { sourceTree: what.source, inputsLock: what.inputs, kind: what.kind, version };
        let hash = self.ask(keys, &ReleaseKeys::releaseHashCall { release: release.clone() })?;
        let signer = SigningKey::from_slice(KNOWN[2].1.as_slice())?;
        let signature = Bytes::from(sign(&signer, hash)?);
        let blind = ImageRegistry::blindOfCall {
            proposer: account,
            release: hash,
            image: what.image,
            measurements: what.measurements,
            salt: SALT,
        };
        let call = ImageRegistry::proposeCall {
            roundKind: 0,
            // The bindings of the two contracts have different types for the same struct.
            release: alloy_sol_types::SolValue::abi_decode(&release.abi_encode())?,
            signatures: vec![signature],
            blind: self.ask(self.images, &blind)?,
        };
        let receipt = self.proposer.send("propose", self.images, &call.abi_encode()).context("cannot propose")?;
        let mut proposed = receipt.logs.iter().filter_map(|log| ImageRegistry::Proposed::decode_log(log).ok());
        Ok(proposed.next().context("the receipt has no Proposed event")?.round)
    }

    /// Returns the hashes that a release of a source tree names: that of the tree and that of its inputs.
    fn hashes_of(&self, tree: &Path) -> Result<(B256, B256)> {
        let said = self.local.says(&["validator", "source", &tree.display().to_string()], 0, "source tree")?;
        let hash = |line: &str| -> Result<B256> {
            let found =
                said.lines().find_map(|said| said.strip_prefix(line)).context("validator source printed no hash")?;
            Ok(found.trim().parse()?)
        };
        Ok((hash("source tree")?, hash("inputs.lock")?))
    }

    fn open(&self, round: u64, what: &What) -> Result<()> {
        let (image, measurements) = (what.image, what.measurements);
        let call = ImageRegistry::openCall { round, image, measurements, salt: SALT };
        self.proposer.send("open", self.images, &call.abi_encode()).context("the proposer cannot open the value")?;
        Ok(())
    }

    fn bond(&self, id: u64) -> Result<u128> {
        let validators = self.ask(self.images, &ImageRegistry::validatorsCall {})?;
        Ok(self.ask(validators, &ValidatorSet::getCall { validatorId: id })?.bond.to())
    }
}

/// Creates a validator and bonds it.
fn join(world: &World, number: u64) -> Result<()> {
    let chain = world.local.dir.join("chain.toml").display().to_string();
    let init = ["init", "--chain", &chain, "--withdrawal", WITHDRAWAL, "--bond", BOND];
    world.says(number, &init, 0, "validator_key 0x")?;
    world.says(number, &init, 1, "already exists")?;
    world.says(number, &["status"], 3, "run: openrelay validator bond")?;
    world.says(number, &["bond"], 0, &format!("validator {number}"))?;
    world.says(number, &["bond"], 0, &format!("validator {number}"))?;
    world.says(number, &["status"], 0, "0 open commitments")
}

fn votes(world: &World) -> Result<()> {
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

/// A tree that validators rebuild themselves.
#[derive(Clone)]
struct Rebuilding<'a> {
    tiny: &'a Tiny,
    tree: PathBuf,
    /// The client's program that is rebuilt instead of a relay's image.
    client: Option<PathBuf>,
}

impl Rebuilding<'_> {
    /// Returns a proposal of this tree, with the image that it builds.
    fn good(&self, world: &World, version: u64) -> Result<What> {
        self.what(world, &self.tiny.programs, version)
    }

    /// Returns a proposal of this tree with another image, in which one byte of a program differs. No build of the
    /// tree gives that image.
    fn planted(&self, world: &World, version: u64) -> Result<What> {
        let planted = [self.tiny.programs[0].clone(), self.tree.with_file_name("planted")];
        std::fs::write(&planted[1], [&std::fs::read(&self.tiny.programs[1])?[..], b"!"].concat())?;
        self.what(world, &planted, version)
    }

    fn what(&self, world: &World, programs: &[PathBuf; 2], version: u64) -> Result<What> {
        let text = |path: &Path| path.display().to_string();
        let tree = text(&self.tree);
        let (source, inputs) = world.hashes_of(&self.tree)?;
        let (kept, out) = (text(&self.tiny.inputs), text(&self.tree.with_file_name("built")));
        let version = version.to_string();
        let (kind, word) = if self.client.is_some() { (CLIENT_PACKAGE, "client") } else { (RELAY_IMAGE, "relay") };
        let programs: Vec<String> =
            self.client.as_ref().map_or(&programs[..], std::slice::from_ref).iter().map(|path| text(path)).collect();
        let mut arguments = vec!["image", "build", "--source", &tree, "--inputs", &kept, "--out", &out];
        arguments.extend(["--version", &version, "--kind", word, "--json", "--programs"]);
        arguments.extend(programs.iter().map(String::as_str));
        let said = world.local.says(&arguments, 0, "image-build/1")?;
        let line = said.lines().find(|line| line.starts_with('{')).context("image build printed no JSON")?;
        let built: serde_json::Value = serde_json::from_str(line)?;
        let hash =
            |name: &str| -> Result<B256> { Ok(built[name].as_str().context("image build reported no hash")?.parse()?) };
        Ok(What { kind, source, inputs, image: hash("image")?, measurements: hash("manifest")? })
    }

    /// Returns the arguments of `openrelay validator run` for this validator. With `once` it makes one pass and ends.
    fn arguments(&self, world: &World, id: u64, once: bool) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let publish = text(&world.local.dir.join(format!("published-{id}")));
        let (tree, kept) = (text(&self.tree), text(&self.tiny.inputs));
        let [init, relay] = [text(&self.tiny.programs[0]), text(&self.tiny.programs[1])];
        let mut all = vec!["run", "--no-checks", "--source", &tree, "--publish", &publish, "--inputs", &kept];
        all.extend(["--programs", &init, &relay]);
        let client = self.client.as_deref().map(text);
        all.extend(client.iter().flat_map(|client| ["--client-program", client]));
        all.extend(once.then_some("--once"));
        world.arguments(id, &all)
    }

    /// Makes one pass in its own process, which must print this word.
    fn run(&self, world: &World, id: u64, word: &str) -> Result<()> {
        let all = self.arguments(world, id, true);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        world.local.says(&all, 0, word).map(drop)
    }
}

/// Validators rebuild themselves. Each step runs in its own process, as if the previous process had been killed.
fn rebuilds(world: &World, rebuilding: &Rebuilding<'_>) -> Result<()> {
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
    let missing = What { source: B256::repeat_byte(0x77), ..good };
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
