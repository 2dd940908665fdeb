//! The third part of `openrelay-dev devnet check`: validators who vote on images, by the product's own commands, on a development chain of their own whose time is moved.
//!
//! Owns the proposer, which signs releases with the development chain's key.

use std::path::Path;
use std::time::Instant;

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::{SolCall, SolEvent as _, SolValue as _};
use anyhow::{Context as _, Result, ensure};
use k256::ecdsa::SigningKey;
use openrelay_devchain::KNOWN;
use openrelay_ledger::chain::registry::Token;
use openrelay_ledger::chain::voting::{ImageRegistry, ReleaseKeys, ValidatorSet};
use openrelay_node::chain::Endpoint;
use openrelay_node::chain::journal::Sender;
use openrelay_node::chain_file::ChainFile;
use serde_json::json;

use crate::devnet::temporary_dir;
use crate::local_chain::LocalChain;
use crate::say;

/// Bonds, in the token's smallest unit; three like it, and each is a family.
const BOND: &str = "3000000000000000000";
const WITHDRAWAL: &str = "0x00000000000000000000000000000000c01dc01d";
/// The image that the source gives, and one that differs.
const IMAGE: B256 = B256::repeat_byte(0x11);
const OTHER: B256 = B256::repeat_byte(0x22);
const MEASUREMENTS: B256 = B256::repeat_byte(0x33);
const SALT: B256 = B256::repeat_byte(0x44);

/// Runs the scenario; an error says where it failed.
pub(crate) fn run() -> Result<()> {
    let started = Instant::now();
    let dir = temporary_dir()?;
    let result = votes(&dir).context("scenario failed: three validators vote");
    let _ = std::fs::remove_dir_all(&dir);
    result?;
    say(&format!(
        "ok  {:>5.1} s  three validators join, approve a good image and reject a bad one",
        started.elapsed().as_secs_f64()
    ));
    Ok(())
}

struct World {
    local: LocalChain,
    images: Address,
    proposer: Sender,
}

impl World {
    fn start(dir: &Path) -> Result<Self> {
        let local = LocalChain::start(dir)?;
        let chain = ChainFile::load(&dir.join("chain.toml"))?;
        let images = chain.images.context("the chain's file names no image registry")?;
        let proposer = Sender::new(&chain, SigningKey::from_slice(KNOWN[3].1.as_slice())?, dir);
        std::fs::write(dir.join("password"), "a password\n")?;
        Ok(Self { local, images, proposer })
    }

    fn endpoint(&self) -> &Endpoint {
        self.proposer.endpoint()
    }

    fn ask<C: SolCall>(&self, to: Address, call: &C) -> Result<C::Return> {
        Ok(C::abi_decode_returns(&self.endpoint().call(to, &call.abi_encode())?)?)
    }

    /// `openrelay validator` on the folder of validator `number`, which must end with this code and say this.
    fn says(&self, number: u64, arguments: &[&str], code: i32, word: &str) -> Result<()> {
        let folder = self.local.dir.join(format!("validator-{number}")).display().to_string();
        let password = self.local.dir.join("password").display().to_string();
        let mut all = [&["validator"], arguments, &["--dir", &folder]].concat();
        if arguments[0] != "status" {
            all.extend(["--password-file", &password]);
        }
        self.local.says(&all, code, word).map(drop)
    }

    /// Makes a block at this time, unless it has come: blocks of one second push a development chain's time ahead of the clock.
    fn pass_until(&self, end: u64) -> Result<()> {
        let block = self.endpoint().ask("eth_getBlockByNumber", &json!(["latest", false]))?;
        let now: U256 = block["timestamp"].as_str().context("no time")?.parse()?;
        if now < U256::from(end) {
            self.endpoint().ask("evm_setNextBlockTimestamp", &json!([end]))?;
            self.endpoint().ask("evm_mine", &json!([]))?;
        }
        Ok(())
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

    /// Proposes a signed release whose hidden value is [`IMAGE`].
    fn propose(&self, version: u64) -> Result<u64> {
        let validators = self.ask(self.images, &ImageRegistry::validatorsCall {})?;
        let token = self.ask(validators, &ValidatorSet::tokenCall {})?;
        let keys = self.ask(self.images, &ImageRegistry::releaseKeysCall {})?;
        let deposit = U256::from(self.ask(self.images, &ImageRegistry::depositCall {})?);
        let account = self.proposer.address();
        let fund = json!([account.to_string(), token.to_string(), format!("{deposit:#x}")]);
        self.endpoint().ask("devchain_fund", &fund)?;
        let approve = Token::approveCall { spender: validators, value: deposit };
        self.proposer.send("approve", token, &approve.abi_encode())?;
        let release = ReleaseKeys::Release {
            sourceTree: B256::repeat_byte(0x55),
            inputsLock: B256::repeat_byte(0x66),
            kind: 1,
            version,
        };
        let hash = self.ask(keys, &ReleaseKeys::releaseHashCall { release: release.clone() })?;
        let signer = SigningKey::from_slice(KNOWN[2].1.as_slice())?;
        let (signature, recovery) = signer.sign_prehash_recoverable(hash.as_slice())?;
        let signature = Bytes::from([&signature.to_bytes()[..], &[27 + recovery.to_byte()]].concat());
        let blind = ImageRegistry::blindOfCall {
            proposer: account,
            release: hash,
            image: IMAGE,
            measurements: MEASUREMENTS,
            salt: SALT,
        };
        let call = ImageRegistry::proposeCall {
            roundKind: 0,
            // The bindings of the two contracts have a type each for the same struct.
            release: alloy_sol_types::SolValue::abi_decode(&release.abi_encode())?,
            signatures: vec![signature],
            blind: self.ask(self.images, &blind)?,
        };
        let receipt = self.proposer.send("propose", self.images, &call.abi_encode()).context("a proposal")?;
        let mut proposed = receipt.logs.iter().filter_map(|log| ImageRegistry::Proposed::decode_log(log).ok());
        Ok(proposed.next().context("nothing was proposed")?.round)
    }

    fn open(&self, round: u64) -> Result<()> {
        let call = ImageRegistry::openCall { round, image: IMAGE, measurements: MEASUREMENTS, salt: SALT };
        self.proposer.send("open", self.images, &call.abi_encode()).context("the proposer opens")?;
        Ok(())
    }

    fn bond(&self, id: u64) -> Result<u128> {
        let validators = self.ask(self.images, &ImageRegistry::validatorsCall {})?;
        Ok(self.ask(validators, &ValidatorSet::getCall { validatorId: id })?.bond.to())
    }
}

fn votes(dir: &Path) -> Result<()> {
    let world = World::start(dir)?;
    let chain = dir.join("chain.toml").display().to_string();
    for number in 1..=3 {
        let init = ["init", "--chain", &chain, "--withdrawal", WITHDRAWAL, "--bond", BOND];
        world.says(number, &init, 0, "validator_key 0x")?;
        world.says(number, &init, 1, "is there already")?;
        world.says(number, &["status"], 3, "run: openrelay validator bond")?;
        world.says(number, &["bond"], 0, &format!("validator {number}"))?;
        world.says(number, &["bond"], 0, &format!("validator {number}"))?;
        world.says(number, &["status"], 0, "0 open commitments")?;
    }
    let full = world.bond(1)?;
    good_image(&world)?;
    ensure!((world.bond(1)?, world.bond(3)?) == (full, full), "honest bonds were touched");
    bad_image(&world)?;
    ensure!((world.bond(1)?, world.bond(3)?) == (full, full - full / 200), "half a percent for no reveal");
    Ok(())
}

/// Everybody finds the same; one had committed something else before.
fn good_image(world: &World) -> Result<()> {
    let round = world.propose(1)?;
    let number = round.to_string();
    let (image, other, measurements) = (IMAGE.to_string(), OTHER.to_string(), MEASUREMENTS.to_string());
    let found = ["vote", &number, "--image", &image, "--measurements", &measurements];
    world.says(1, &["vote", &number], 2, "say what was found")?;
    world.says(1, &["vote", "9"], 1, "there is no round 9")?;
    world.says(3, &["vote", &number, "--image", &other, "--measurements", &measurements], 0, "committed")?;
    for id in 1..=3 {
        world.says(id, &found, 0, "committed")?;
        world.says(id, &found, 3, "run this again in")?;
        world.says(id, &["status"], 0, "commitments   committed")?;
    }
    world.await_reveals(round)?;
    world.open(round)?;
    // Who has lost the folder's answers says so and does not reveal something else.
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
    world.says(1, &["vote", &number], 0, "nothing is to be done")?;
    let state = world.ask(world.images, &ImageRegistry::stateOfCall { round })?;
    ensure!(state == 7, "approved and not usable yet, not {state}");
    Ok(())
}

/// Two find something else, one commits and is not heard of again.
fn bad_image(world: &World) -> Result<()> {
    let round = world.propose(2)?;
    let number = round.to_string();
    let (other, measurements) = (OTHER.to_string(), MEASUREMENTS.to_string());
    for id in 1..=3 {
        world.says(id, &["vote", &number, "--image", &other, "--measurements", &measurements], 0, "committed")?;
    }
    world.await_reveals(round)?;
    world.open(round)?;
    for id in 1..=2 {
        world.says(id, &["vote", &number], 0, "revealed")?;
    }
    world.await_end(round)?;
    world.says(3, &["vote", &number], 0, "finished")?;
    let state = world.ask(world.images, &ImageRegistry::stateOfCall { round })?;
    ensure!(state == 5, "rejected, not {state}");
    Ok(())
}
