//! A development chain on which validators vote with the product's own commands.
//!
//! Owns the proposer, which signs releases with the development chain's key, and the chain's time.

use std::path::Path;

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::{SolCall, SolEvent as _, SolValue as _};
use anyhow::{Context as _, Result};
use k256::ecdsa::SigningKey;
use openrelay_chain::Endpoint;
use openrelay_chain::journal::{Sender, sign};
use openrelay_chain::registry::Token;
use openrelay_chain::voting::{ImageRegistry, ReleaseKeys, ValidatorSet};
use openrelay_devchain::KNOWN;
use openrelay_ledger::chain::voted::RELAY_IMAGE;
use openrelay_node::chain_file::ChainFile;
use serde_json::json;

use crate::world::local_chain::LocalChain;
use crate::world::secret::write_secret;

/// The bond of each validator, in the token's smallest unit. Each validator is its own family.
pub(crate) const BOND: &str = "3000000000000000000";
/// Account to which bonds return.
pub(crate) const WITHDRAWAL: &str = "0x00000000000000000000000000000000c01dc01d";
/// The image that the source builds, and a different one.
pub(crate) const IMAGE: B256 = B256::repeat_byte(0x11);
pub(crate) const OTHER: B256 = B256::repeat_byte(0x22);
pub(crate) const MEASUREMENTS: B256 = B256::repeat_byte(0x33);
/// The salt of proposals and of what outsiders commit.
pub(crate) const SALT: B256 = B256::repeat_byte(0x44);

/// A proposal.
pub(crate) struct What {
    pub(crate) kind: u8,
    pub(crate) source: B256,
    pub(crate) inputs: B256,
    pub(crate) image: B256,
    pub(crate) measurements: B256,
}

/// The proposal for rounds in which no validator builds anything.
pub(crate) const NAMED: What = What {
    kind: RELAY_IMAGE,
    source: B256::repeat_byte(0x55),
    inputs: B256::repeat_byte(0x66),
    image: IMAGE,
    measurements: MEASUREMENTS,
};

/// A chain with validators, whose time the scenarios move.
pub(crate) struct World {
    pub(crate) local: LocalChain,
    pub(crate) images: Address,
    pub(crate) proposer: Sender,
}

impl World {
    pub(crate) fn of(dir: &Path, local: LocalChain) -> Result<Self> {
        let chain = ChainFile::load(&dir.join("chain.toml"))?;
        let images = chain.images.context("the chain file has no image registry")?;
        let proposer = Sender::new(&chain, SigningKey::from_slice(KNOWN[3].1.as_slice())?, dir);
        write_secret(&dir.join("password"), "a password\n")?;
        Ok(Self { local, images, proposer })
    }

    pub(crate) fn endpoint(&self) -> &Endpoint {
        self.proposer.endpoint()
    }

    pub(crate) fn ask<C: SolCall>(&self, to: Address, call: &C) -> Result<C::Return> {
        Ok(C::abi_decode_returns(&self.endpoint().call(to, &call.abi_encode())?)?)
    }

    /// Returns the arguments of `openrelay validator` for the folder of validator `number`.
    pub(crate) fn arguments(&self, number: u64, arguments: &[&str]) -> Vec<String> {
        let folder = self.local.dir.join(format!("validator-{number}")).display().to_string();
        let password = self.local.dir.join("password").display().to_string();
        let mut all = [&["validator"], arguments, &["--dir", &folder]].concat();
        if arguments[0] != "status" {
            all.extend(["--password-file", &password]);
        }
        all.into_iter().map(str::to_owned).collect()
    }

    /// Runs `openrelay validator`, which must end with this exit code and print this word.
    pub(crate) fn says(&self, number: u64, arguments: &[&str], code: i32, word: &str) -> Result<()> {
        let all = self.arguments(number, arguments);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        self.local.says(&all, code, word).map(drop)
    }

    /// Mines a block at the time `end`, unless that has passed. Each block is one second after the previous one, so a
    /// development chain's time can be ahead of the clock.
    pub(crate) fn pass_until(&self, end: u64) -> Result<()> {
        if self.time()? < end {
            self.endpoint().ask("evm_setNextBlockTimestamp", &json!([end]))?;
            self.endpoint().ask("evm_mine", &json!([]))?;
        }
        Ok(())
    }

    /// Returns the time of the newest block.
    pub(crate) fn time(&self) -> Result<u64> {
        let block = self.endpoint().ask("eth_getBlockByNumber", &json!(["latest", false]))?;
        Ok(block["timestamp"].as_str().context("the block has no timestamp")?.parse::<U256>()?.to())
    }

    pub(crate) fn await_reveals(&self, round: u64) -> Result<()> {
        let shown = self.ask(self.images, &ImageRegistry::roundOfCall { round })?;
        self.pass_until(shown.commitEnd.to())
    }

    pub(crate) fn await_end(&self, round: u64) -> Result<()> {
        let shown = self.ask(self.images, &ImageRegistry::roundOfCall { round })?;
        let end: u64 = self.ask(self.images, &ImageRegistry::revealEndCall { round })?.to();
        self.pass_until(end + u64::from(shown.challengeTime))
    }

    /// Proposes a signed release with a hidden value.
    pub(crate) fn propose(&self, version: u64, what: &What) -> Result<u64> {
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
    pub(crate) fn hashes_of(&self, tree: &Path) -> Result<(B256, B256)> {
        let said = self.local.says(&["validator", "source", &tree.display().to_string()], 0, "source tree")?;
        let hash = |line: &str| -> Result<B256> {
            let found =
                said.lines().find_map(|said| said.strip_prefix(line)).context("validator source printed no hash")?;
            Ok(found.trim().parse()?)
        };
        Ok((hash("source tree")?, hash("inputs.lock")?))
    }

    pub(crate) fn open(&self, round: u64, what: &What) -> Result<()> {
        let (image, measurements) = (what.image, what.measurements);
        let call = ImageRegistry::openCall { round, image, measurements, salt: SALT };
        self.proposer.send("open", self.images, &call.abi_encode()).context("the proposer cannot open the value")?;
        Ok(())
    }

    pub(crate) fn bond(&self, id: u64) -> Result<u128> {
        let validators = self.ask(self.images, &ImageRegistry::validatorsCall {})?;
        Ok(self.ask(validators, &ValidatorSet::getCall { validatorId: id })?.bond.to())
    }
}

/// Creates a validator and bonds it.
pub(crate) fn join(world: &World, number: u64) -> Result<()> {
    let chain = world.local.dir.join("chain.toml").display().to_string();
    let init = ["init", "--chain", &chain, "--withdrawal", WITHDRAWAL, "--bond", BOND];
    world.says(number, &init, 0, "validator_key 0x")?;
    world.says(number, &init, 1, "already exists")?;
    world.says(number, &["status"], 3, "run: openrelay validator bond")?;
    world.says(number, &["bond"], 0, &format!("validator {number}"))?;
    world.says(number, &["bond"], 0, &format!("validator {number}"))?;
    world.says(number, &["status"], 0, "0 open commitments")
}
