//! Validators that lie, copy, are killed or have a full disk, each beside honest ones that rebuild with `openrelay
//! validator run`.
//!
//! Owns what a vote has to withstand. The contract sets the penalties; other tests compare its model with the
//! contract.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, U256};
use alloy_sol_types::{SolCall, SolEvent as _};
use anyhow::{Context as _, Result, bail, ensure};
use k256::ecdsa::SigningKey;
use openrelay_chain::journal::{Sender, sign};
use openrelay_chain::logs::read_log;
use openrelay_chain::registry::Token;
use openrelay_chain::voting::{Answer, ImageRegistry, ValidatorSet, commitment, image_value, statement_hash};
use openrelay_devchain::KNOWN;
use openrelay_node::chain_file::ChainFile;
use serde_json::json;

use super::rebuilding::Rebuilding;
use super::world::{BOND, MEASUREMENTS, OTHER, SALT, WITHDRAWAL, What, World};
use crate::net::host::checked;

/// States of a round, by the contract's numbers.
const REJECTED: u8 = 5;
pub(crate) const APPROVED: u8 = 7;
/// States of a vote.
pub(crate) const COMMITTED: u8 = 1;
pub(crate) const REVEALED: u8 = 2;

/// A validator with a third of all weight names a value that no build gives. It can neither stop a good image nor
/// approve a bad one.
pub(crate) fn lying_third(world: &World, rebuilding: &Rebuilding<'_>) -> Result<Outsider> {
    // Completes what the validators owe from previous rounds.
    (1..=3).try_for_each(|id| rebuilding.run(world, id, ""))?;
    let bonds = honest_bonds(world)?;
    let liar = Outsider::join(world, bonds.iter().sum::<u128>() / 2)?;
    let before = world.bond(liar.id)?;
    let good = rebuilding.good(world, 6)?;
    let state = round_with_liar(world, rebuilding, &liar, 6, &good, image_value(OTHER, MEASUREMENTS))?;
    ensure!(state == APPROVED, "the honest two thirds must approve the image that they rebuilt; the state is {state}");
    let lost = before - world.bond(liar.id)?;
    let thousandths = 1_000 * lost / before;
    ensure!(
        [29, 30].contains(&thousandths),
        "the third that voted wrong must lose 3 % of its bond, not {lost} of \
                                              {before}"
    );
    let bad = rebuilding.planted(world, 7)?;
    let state = round_with_liar(world, rebuilding, &liar, 7, &bad, image_value(bad.image, bad.measurements))?;
    ensure!(
        state == REJECTED,
        "a third of the weight and the proposer must not approve an image; the state is {state}"
    );
    ensure!(honest_bonds(world)? == bonds, "honest validators lost bond");
    Ok(liar)
}

fn honest_bonds(world: &World) -> Result<Vec<u128>> {
    (1..=3).map(|id| world.bond(id)).collect()
}

/// Runs a round in which the liar names `lie`. Returns the round's final state.
fn round_with_liar(
    world: &World,
    rebuilding: &Rebuilding<'_>,
    liar: &Outsider,
    version: u64,
    what: &What,
    lie: B256,
) -> Result<u8> {
    let round = world.propose(version, what)?;
    let chain_id = ChainFile::load(&world.local.dir.join("chain.toml"))?.chain_id;
    let answer = Answer::Value(lie);
    let hidden = commitment(chain_id, world.images, round, liar.id, answer, SALT);
    liar.send(world, "commit", &ImageRegistry::commitCall { round, validatorId: liar.id, commitment: hidden })?;
    for id in 1..=3 {
        rebuilding.run(world, id, "committed")?;
    }
    world.await_reveals(round)?;
    world.open(round, what)?;
    let (answer, value) = answer.parts();
    let reveal = ImageRegistry::revealCall { round, validatorId: liar.id, answer, value, salt: SALT };
    liar.send(world, "reveal", &reveal)?;
    for id in 1..=3 {
        rebuilding.run(world, id, "revealed")?;
    }
    world.await_end(round)?;
    for id in 1..=3 {
        rebuilding.run(world, id, "settled")?;
    }
    liar.send(world, "settle", &ImageRegistry::settleCall { round, ids: vec![liar.id] })?;
    world.ask(world.images, &ImageRegistry::stateOfCall { round })
}

/// A validator that builds nothing: it copies another's commitment, and reveals what the other has revealed.
pub(crate) fn copying(world: &World, rebuilding: &Rebuilding<'_>, lazy: &Outsider) -> Result<()> {
    lazy.fill_pot(world)?;
    let before = world.bond(lazy.id)?;
    let good = rebuilding.good(world, 8)?;
    let round = world.propose(8, &good)?;
    for id in 1..=3 {
        rebuilding.run(world, id, "committed")?;
    }
    let copied = world.ask(world.images, &ImageRegistry::voteOfCall { round, validatorId: 1 })?.hash;
    lazy.send(world, "commit", &ImageRegistry::commitCall { round, validatorId: lazy.id, commitment: copied })?;
    world.await_reveals(round)?;
    world.open(round, &good)?;
    for id in 1..=3 {
        rebuilding.run(world, id, "revealed")?;
    }
    let (answer, value) = Answer::Value(image_value(good.image, good.measurements)).parts();
    let salt = shown_salt(world, round)?;
    let reveal = ImageRegistry::revealCall { round, validatorId: lazy.id, answer, value, salt };
    let refused = lazy.send(world, "reveal", &reveal).err().context("a copied commitment was accepted")?.to_string();
    ensure!(refused.contains("WrongOpening"), "{refused}");
    world.await_end(round)?;
    for id in 1..=3 {
        rebuilding.run(world, id, "settled")?;
    }
    lazy.send(world, "settle", &ImageRegistry::settleCall { round, ids: vec![lazy.id] })?;
    let state = world.ask(world.images, &ImageRegistry::stateOfCall { round })?;
    ensure!(state == APPROVED, "{state}");
    let credit = |owner: Address| -> Result<U256> {
        let validators = world.ask(world.images, &ImageRegistry::validatorsCall {})?;
        Ok(world.ask(validators, &ValidatorSet::creditOfCall { owner })?.to())
    };
    ensure!(credit(WITHDRAWAL.parse()?)? > U256::ZERO, "a validator that rebuilt the image must earn a reward");
    ensure!(credit(lazy.sender.address())?.is_zero(), "a validator that copied must earn nothing");
    let left = world.bond(lazy.id)?;
    ensure!(
        left == before - before / 200,
        "a validator that copied must lose 0.5 % of its bond: {left} of {before} is left"
    );
    Ok(())
}

/// Two signed statements of one round that name different values: anyone who has both can report them, and the
/// validator loses its whole bond.
pub(crate) fn equivocating(world: &World, liar: &Outsider) -> Result<()> {
    let chain = ChainFile::load(&world.local.dir.join("chain.toml"))?;
    // The last round, in which this validator copied.
    let round = world.ask(world.images, &ImageRegistry::roundCountCall {})?;
    let key = SigningKey::from_slice(KNOWN[4].1.as_slice())?;
    let said = |value: B256| -> Result<String> {
        let signature = sign(&key, statement_hash(chain.chain_id, world.images, round, Answer::Value(value)))?;
        let vote = json!({
            "round": round, "validator": liar.id, "answer": 1, "value": value,
            "signature": alloy_primitives::hex::encode_prefixed(signature),
        });
        let path = world.local.dir.join(format!("said-{}.json", alloy_primitives::hex::encode(&value[..4])));
        fs::write(&path, json!({ "vote": vote }).to_string())?;
        Ok(path.display().to_string())
    };
    let (one, other) = (said(B256::repeat_byte(1))?, said(B256::repeat_byte(2))?);
    world.says(1, &["report", &one, &one], 1, "that proves nothing")?;
    // The key that reports gets one twentieth.
    let reporter = world.ask(liar.validators, &ValidatorSet::getCall { validatorId: 1 })?.operator;
    let bond = world.bond(liar.id)?;
    ensure!(bond > 0, "the validator has no bond left");
    world.says(1, &["report", &one, &other], 0, "the bond is gone")?;
    ensure!(world.bond(liar.id)? == 0, "{} of the bond {bond} is left", world.bond(liar.id)?);
    let credit: U256 = world.ask(liar.validators, &ValidatorSet::creditOfCall { owner: reporter })?.to();
    ensure!(credit == U256::from(bond / 20), "the reporter got {credit} of {bond}");
    world.says(1, &["report", &one, &other], 1, "WrongMark")
}

/// Returns the first validator's salt, which is public once it has revealed.
fn shown_salt(world: &World, round: u64) -> Result<B256> {
    let topics =
        json!([ImageRegistry::Revealed::SIGNATURE_HASH, B256::from(U256::from(round)), B256::from(U256::from(1))]);
    let filter = json!({"address": world.images, "fromBlock": "0x0", "toBlock": "latest", "topics": topics});
    let logs = world.endpoint().ask("eth_getLogs", &json!([filter]))?;
    ensure!(logs.as_array().and_then(|logs| logs.first()).and_then(read_log).is_some(), "validator 1 has not revealed");
    let hash = &logs[0]["transactionHash"];
    let transaction = world.endpoint().ask("eth_getTransactionByHash", &json!([hash]))?;
    let input: alloy_primitives::Bytes =
        transaction["input"].as_str().context("the transaction has no input")?.parse()?;
    Ok(ImageRegistry::revealCall::abi_decode(&input)?.salt)
}

/// A validator with a public key, controlled by the scenario.
pub(crate) struct Outsider {
    sender: Sender,
    pub(crate) id: u64,
    validators: Address,
}

impl Outsider {
    pub(crate) fn join(world: &World, bond: u128) -> Result<Self> {
        let chain = ChainFile::load(&world.local.dir.join("chain.toml"))?;
        let dir = world.local.dir.join("outsider");
        fs::create_dir_all(&dir)?;
        let sender = Sender::new(&chain, SigningKey::from_slice(KNOWN[4].1.as_slice())?, &dir);
        let validators = world.ask(world.images, &ImageRegistry::validatorsCall {})?;
        let mut this = Self { sender, id: 0, validators };
        this.have(world, bond)?;
        let account = this.sender.address();
        let join = ValidatorSet::joinCall { family: account, withdrawal: account, amount: U256::from(bond).to() };
        this.sender.send("join", validators, &join.abi_encode())?;
        this.id = world.ask(validators, &ValidatorSet::validatorOfCall { operator: account })?;
        Ok(this)
    }

    /// Gets this many tokens, and allows the contract to take them.
    fn have(&self, world: &World, amount: u128) -> Result<()> {
        let token = world.ask(self.validators, &ValidatorSet::tokenCall {})?;
        let fund = json!([self.sender.address(), token, format!("{amount:#x}")]);
        world.endpoint().ask("devchain_fund", &fund)?;
        let approve = Token::approveCall { spender: self.validators, value: U256::from(amount) };
        self.sender.send("approve", token, &approve.abi_encode())?;
        Ok(())
    }

    /// Adds tokens to the pot that pays for correct votes.
    fn fill_pot(&self, world: &World) -> Result<()> {
        let amount: u128 = BOND.parse()?;
        self.have(world, amount)?;
        let fund = ValidatorSet::fundCall { amount: U256::from(amount) };
        self.sender.send("fund", self.validators, &fund.abi_encode())?;
        Ok(())
    }

    pub(crate) fn send<C: SolCall>(&self, world: &World, name: &str, call: &C) -> Result<()> {
        self.send_to(world.images, name, call)
    }

    pub(crate) fn send_to<C: SolCall>(&self, to: Address, name: &str, call: &C) -> Result<()> {
        self.sender.send(name, to, &call.abi_encode())?;
        Ok(())
    }
}

/// A validator that is killed right after each step of a round, and then restarted.
pub(crate) fn killed(world: &World, rebuilding: &Rebuilding<'_>) -> Result<()> {
    const ID: u64 = 2;
    let good = rebuilding.good(world, 9)?;
    let before = world.bond(ID)?;
    let round = world.propose(9, &good)?;
    let folder = world.local.dir.join(format!("validator-{ID}"));
    let published = world.local.dir.join(format!("published-{ID}"));
    let there = |path: PathBuf| move || path.exists();
    let sending = |what: &str| {
        let (folder, name) = (folder.clone(), format!("{what} {round}"));
        move || {
            let mut journals = fs::read_dir(&folder)
                .into_iter()
                .flatten()
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().starts_with("transaction-"));
            journals.any(|entry| fs::read_to_string(entry.path()).unwrap_or_default().contains(&name))
        }
    };
    let mark =
        || -> Result<u8> { Ok(world.ask(world.images, &ImageRegistry::voteOfCall { round, validatorId: ID })?.mark) };
    let mut kills = 0;
    let mut kill_when = |now: &dyn Fn() -> bool| -> Result<()> {
        kills += u32::from(killed_when(world, rebuilding, ID, now)?);
        Ok(())
    };
    kill_when(&there(folder.join(format!("building-{round}/source"))))?;
    kill_when(&there(folder.join(format!("built-{round}"))))?;
    kill_when(&there(folder.join(format!("round-{round}.toml"))))?;
    ensure!(mark()? <= COMMITTED, "the validator must not have revealed yet");
    if mark()? != COMMITTED {
        kill_when(&sending("committed"))?;
    }
    rebuilding.run(world, ID, "")?;
    ensure!(mark()? == COMMITTED, "the restarted validator must commit what it had decided");
    for id in [1, 3] {
        rebuilding.run(world, id, "committed")?;
    }
    world.await_reveals(round)?;
    world.open(round, &good)?;
    kill_when(&sending("revealed"))?;
    rebuilding.run(world, ID, "")?;
    ensure!(mark()? == REVEALED, "the restarted validator must reveal what it had committed");
    let attestation = published.join(format!("attestation-{round}-{ID}.json"));
    ensure!(
        attestation.exists() && !folder.join(format!("built-{round}")).exists(),
        "the validator must publish after it revealed"
    );
    for id in [1, 3] {
        rebuilding.run(world, id, "revealed")?;
    }
    world.await_end(round)?;
    kill_when(&sending("finished"))?;
    ensure!(kills >= 4, "only {kills} of six steps could be interrupted by a kill");
    for id in 1..=3 {
        rebuilding.run(world, id, "")?;
    }
    let state = world.ask(world.images, &ImageRegistry::stateOfCall { round })?;
    ensure!(state == APPROVED && mark()? == 0 && world.bond(ID)? == before, "{state}, mark {}", mark()?);
    Ok(())
}

/// Starts the validator, kills it once `now` holds, and leaves its files as they are.
///
/// Returns `false` without a start if `now` holds already. Then the previous kill came a millisecond too late.
fn killed_when(world: &World, rebuilding: &Rebuilding<'_>, id: u64, now: &dyn Fn() -> bool) -> Result<bool> {
    if now() {
        return Ok(false);
    }
    let mut command = Command::new(&world.local.programs.openrelay);
    command.args(rebuilding.arguments(world, id, false)).stdin(Stdio::null()).stdout(Stdio::null());
    let mut child = command.stderr(Stdio::null()).env("OPENRELAY_STATE_DIR", world.local.dir.join("state")).spawn()?;
    let until = Instant::now() + Duration::from_secs(60);
    while !now() {
        if let Some(status) = child.try_wait()? {
            bail!("the validator ended by itself: {status}");
        }
        if Instant::now() > until {
            child.kill()?;
            bail!("the validator did not reach this step within 60 s");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill()?;
    child.wait()?;
    Ok(true)
}

/// A validator whose disk fills up during a build: it reports that, and does not vote on the proposal.
pub(crate) fn full_disk(world: &World, rebuilding: &Rebuilding<'_>) -> Result<()> {
    let big = rebuilding.tiny.tree.with_file_name("big-tree");
    checked(&Command::new("cp").arg("-r").arg(&rebuilding.tiny.tree).arg(&big).output()?, "copy the tree")?;
    fs::write(big.join("big"), vec![7; 2 << 20])?;
    let rebuilding = Rebuilding { tree: big, ..rebuilding.clone() };
    let good = rebuilding.good(world, 10)?;
    let round = world.propose(10, &good)?;
    let (folder, aside) = (world.local.dir.join("validator-2"), world.local.dir.join("validator-2-aside"));
    let mounted = Mounted::small(&folder, &aside)?;
    rebuilding.run(world, 2, "not built")?;
    ensure!(!folder.join(format!("round-{round}.toml")).exists(), "the validator has decided an answer");
    let vote = world.ask(world.images, &ImageRegistry::voteOfCall { round, validatorId: 2 })?;
    ensure!(vote.mark == 0, "the validator has voted");
    drop(mounted);
    // With free space again it continues.
    rebuilding.run(world, 2, "committed")
}

/// A folder with little free space and the content of another. Dropping this restores the folder.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn small(folder: &'a Path, aside: &Path) -> Result<Self> {
        fs::create_dir_all(aside)?;
        let copy = |from: &Path, to: &Path| -> Result<()> {
            checked(&Command::new("cp").arg("-r").arg(from.join(".")).arg(to).output()?, "copy a folder").map(drop)
        };
        copy(folder, aside)?;
        let mount = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
        checked(&Command::new("mount").args(mount).arg(folder).output()?, "mount")?;
        let this = Self(folder);
        copy(aside, folder)?;
        Ok(this)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}
