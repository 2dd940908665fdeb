//! A development chain that starts with an approved image and with collateral. Three validators, whose keys are
//! public, voted for both in the chain's past.
//!
//! Owns the order of their transactions and its times. `scenario::votes` shows what validators do one by one, with
//! their own keys and in the present.

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::{SolCall, SolValue as _};
use anyhow::{Context as _, Result, anyhow, ensure};
use k256::ecdsa::SigningKey;
use openrelay_chain::Endpoint;
use openrelay_chain::journal::sign;
use openrelay_chain::registry::Token;
use openrelay_chain::voting::{Answer, Collateral, ImageRegistry, ReleaseKeys, ValidatorSet, commitment, image_value};
use openrelay_devchain::{Contracts, KNOWN, Node, mint_call};
use openrelay_ledger::chain::voted::RELAY_IMAGE;
use serde_json::json;

/// Time divisor for the days of rounds and images. An image is approved and active after about three hours of the
/// chain's time.
pub(crate) const TIME_DIVISOR: u32 = 60;
/// Seconds before the present at which such a chain starts. This is longer than evidence may be old.
pub(crate) const BEGINS_AGO: u64 = 10 * 3_600;
const DAY: u64 = 86_400;
const HOUR: u64 = 3_600;
/// A bond, in the token's smallest unit. The deposit of a proposal is smaller.
const BOND: u128 = 3_000_000_000_000_000_000;
/// Indexes of known accounts: the one that mints tokens, signs releases or proposes, and those that vote.
const MINTER: usize = 0;
const RELEASER: usize = 2;
const PROPOSER: usize = 3;
pub(crate) const VALIDATORS: [usize; 3] = [0, 1, 4];
const SALT: B256 = B256::repeat_byte(0x44);

/// What the validators approve.
pub(crate) struct Publication {
    /// SHA-256 of the image and of its manifest.
    pub(crate) image: B256,
    pub(crate) manifest: B256,
    /// Hashes of the source tree and of the inputs that the image is built from.
    pub(crate) source: B256,
    pub(crate) inputs: B256,
    pub(crate) version: u64,
    /// SHA-256 of the collateral, and its floors.
    pub(crate) bundle: B256,
    pub(crate) floors: (u32, u64),
}

/// A chain to which known accounts can send transactions at a chosen time.
pub(crate) trait Past {
    /// Sends from the account at this index of [`KNOWN`], in a block of this time.
    fn send(&mut self, from: usize, to: Address, data: Vec<u8>, time: u64) -> Result<()>;

    /// Calls a contract without a transaction.
    fn ask(&self, to: Address, data: Vec<u8>) -> Result<Bytes>;
}

/// A chain in this process.
pub(crate) struct InProcess<'a>(pub(crate) &'a mut Node);

impl Past for InProcess<'_> {
    fn send(&mut self, from: usize, to: Address, data: Vec<u8>, time: u64) -> Result<()> {
        self.0.tell_time(time);
        self.0.send_unsigned(KNOWN[from].0, to, data.into()).map(drop).map_err(|error| anyhow!("{error}"))
    }

    fn ask(&self, to: Address, data: Vec<u8>) -> Result<Bytes> {
        self.0.chain().call(KNOWN[MINTER].0, to, data.into()).map_err(|error| anyhow!("{error}"))
    }
}

/// Another development chain, which signs for known accounts.
pub(crate) struct ByRpc<'a>(pub(crate) &'a Endpoint);

impl Past for ByRpc<'_> {
    fn send(&mut self, from: usize, to: Address, data: Vec<u8>, time: u64) -> Result<()> {
        self.0.ask("evm_setNextBlockTimestamp", &json!([time]))?;
        let data = alloy_primitives::hex::encode_prefixed(data);
        let gas = "0x7a1200";
        let transaction = json!({"from": KNOWN[from].0, "to": to, "data": data, "gas": gas});
        let hash = self.0.ask("eth_sendTransaction", &json!([transaction]))?;
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        loop {
            let receipt = self.0.ask("eth_getTransactionReceipt", &json!([hash]))?;
            if !receipt.is_null() {
                ensure!(receipt["status"] == "0x1", "the transaction failed: {transaction}");
                return Ok(());
            }
            ensure!(std::time::Instant::now() < until, "the transaction was not mined within 20 s: {transaction}");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }

    fn ask(&self, to: Address, data: Vec<u8>) -> Result<Bytes> {
        Ok(self.0.call(to, &data)?)
    }
}

struct Approval<'a> {
    past: &'a mut dyn Past,
    chain_id: u64,
    at: Contracts,
    now: u64,
}

/// Makes the validators approve the image and the collateral, starting at `begins`, in seconds since the Unix epoch.
///
/// Returns when the image can be used.
pub(crate) fn approve(
    past: &mut dyn Past,
    chain_id: u64,
    at: &Contracts,
    begins: u64,
    what: &Publication,
) -> Result<u64> {
    let mut approval = Approval { past, chain_id, at: *at, now: begins };
    approval.join()?;
    let usable = approval.image(what).context("the image was not approved")?;
    approval.collateral(what).context("the collateral was not approved")?;
    Ok(usable)
}

impl Approval<'_> {
    fn send<C: SolCall>(&mut self, from: usize, to: Address, call: &C) -> Result<()> {
        self.now += 1;
        self.past.send(from, to, call.abi_encode(), self.now).with_context(|| C::SIGNATURE)
    }

    fn ask<C: SolCall>(&self, to: Address, call: &C) -> Result<C::Return> {
        Ok(C::abi_decode_returns(&self.past.ask(to, call.abi_encode())?)?)
    }

    fn join(&mut self) -> Result<()> {
        let mut all = VALIDATORS.to_vec();
        all.push(PROPOSER);
        for index in all {
            self.now += 1;
            let mint = mint_call(KNOWN[index].0, U256::from(10 * BOND));
            self.past.send(MINTER, self.at.token, mint.to_vec(), self.now)?;
            self.send(index, self.at.token, &Token::approveCall { spender: self.at.validators, value: U256::MAX })?;
        }
        for index in VALIDATORS {
            let account = KNOWN[index].0;
            let join = ValidatorSet::joinCall { family: account, withdrawal: account, amount: U256::from(BOND).to() };
            self.send(index, self.at.validators, &join)?;
        }
        Ok(())
    }

    fn commit(&mut self, contract: Address, round: u64, value: B256) -> Result<()> {
        for (id, who) in (1..).zip(VALIDATORS) {
            let hidden = commitment(self.chain_id, contract, round, id, Answer::Value(value), SALT);
            self.send(who, contract, &ImageRegistry::commitCall { round, validatorId: id, commitment: hidden })?;
        }
        Ok(())
    }

    fn reveal(&mut self, contract: Address, round: u64, value: B256) -> Result<()> {
        for (id, who) in (1..).zip(VALIDATORS) {
            let (answer, value) = Answer::Value(value).parts();
            let call = ImageRegistry::revealCall { round, validatorId: id, answer, value, salt: SALT };
            self.send(who, contract, &call)?;
        }
        Ok(())
    }

    fn image(&mut self, what: &Publication) -> Result<u64> {
        let (registry, time_divisor) = (self.at.images, u64::from(TIME_DIVISOR));
        let release = ReleaseKeys::Release {
            sourceTree: what.source,
            inputsLock: what.inputs,
            kind: RELAY_IMAGE,
            version: what.version,
        };
        let hash = self.ask(self.at.release_keys, &ReleaseKeys::releaseHashCall { release: release.clone() })?;
        let signer = SigningKey::from_slice(KNOWN[RELEASER].1.as_slice())?;
        let signature = Bytes::from(sign(&signer, hash)?);
        let (image, measurements) = (what.image, what.manifest);
        let proposer = KNOWN[PROPOSER].0;
        let blind = ImageRegistry::blindOfCall { proposer, release: hash, image, measurements, salt: SALT };
        let blind = self.ask(registry, &blind)?;
        // The bindings of the two contracts have different types for the same struct.
        let release = alloy_sol_types::SolValue::abi_decode(&release.abi_encode())?;
        let propose = ImageRegistry::proposeCall { roundKind: 0, release, signatures: vec![signature], blind };
        self.send(PROPOSER, registry, &propose)?;
        let (opened, round, value) = (self.now, 1, image_value(image, measurements));
        self.commit(registry, round, value)?;
        self.now = opened + 3 * DAY / time_divisor;
        self.send(PROPOSER, registry, &ImageRegistry::openCall { round, image, measurements, salt: SALT })?;
        self.reveal(registry, round, value)?;
        self.now = opened + 7 * DAY / time_divisor;
        self.send(PROPOSER, registry, &ImageRegistry::finishCall { round })?;
        let usable = self.now + DAY / time_divisor;
        self.send(PROPOSER, registry, &ImageRegistry::settleCall { round, ids: vec![1, 2, 3] })?;
        ensure!(self.ask(registry, &ImageRegistry::stateOfCall { round })? == 7, "the round did not approve the image");
        Ok(usable)
    }

    fn collateral(&mut self, what: &Publication) -> Result<()> {
        let (contract, time_divisor) = (self.at.collateral, u64::from(TIME_DIVISOR));
        let (intel, amd) = what.floors;
        let entry = Collateral::Entry { bundle: what.bundle, intelFloor: intel, amdFloor: amd };
        let value = self.ask(contract, &Collateral::valueOfCall { entry: entry.clone() })?;
        self.send(PROPOSER, contract, &Collateral::openCall {})?;
        let (opened, round) = (self.now, 1);
        self.commit(contract, round, value)?;
        self.now = opened + 3 * HOUR / time_divisor;
        self.reveal(contract, round, value)?;
        self.now = opened + 5 * HOUR / time_divisor;
        self.send(PROPOSER, contract, &Collateral::finishCall { round })?;
        self.send(PROPOSER, contract, &Collateral::postCall { round, entry })
    }
}
