//! Validators who lie, who copy, who are killed and whose disk is full, each beside honest ones who rebuild by `openrelay validator run`.
//!
//! Owns what a vote has to withstand. What each costs is the contract's; the model of it is held against the contract elsewhere.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, U256};
use alloy_sol_types::{SolCall, SolEvent as _};
use anyhow::{Context as _, Result, bail, ensure};
use k256::ecdsa::SigningKey;
use openrelay_devchain::KNOWN;
use openrelay_ledger::chain::registry::Token;
use openrelay_ledger::chain::voting::{Answer, ImageRegistry, ValidatorSet, commitment, image_value, statement_hash};
use openrelay_node::chain::journal::{Sender, sign};
use openrelay_node::chain::logs::read_log;
use openrelay_node::chain_file::ChainFile;
use serde_json::json;

use super::{BOND, MEASUREMENTS, OTHER, Rebuilding, SALT, What, World};
use crate::host::checked;

/// Where a round stands, by the contract's numbers.
const REJECTED: u8 = 5;
pub(super) const APPROVED: u8 = 7;
/// Where a vote stands.
pub(super) const COMMITTED: u8 = 1;
pub(super) const REVEALED: u8 = 2;

/// A validator with a third of all weight names what nobody else gets: it cannot keep a good image back, and gets no bad one through.
pub(super) fn lying_third(world: &World, rebuilding: &Rebuilding<'_>) -> Result<Outsider> {
    // What they owe from rounds before.
    (1..=3).try_for_each(|id| rebuilding.run(world, id, ""))?;
    let bonds = honest_bonds(world)?;
    let liar = Outsider::join(world, bonds.iter().sum::<u128>() / 2)?;
    let before = world.bond(liar.id)?;
    let good = rebuilding.good(world, 6)?;
    let state = round_with_liar(world, rebuilding, &liar, 6, &good, image_value(OTHER, MEASUREMENTS))?;
    ensure!(state == APPROVED, "two thirds approve what they rebuilt, whatever the third says: {state}");
    let lost = before - world.bond(liar.id)?;
    let thousandths = 1_000 * lost / before;
    ensure!([29, 30].contains(&thousandths), "three percent for a third that is wrong, not {lost} of {before}");
    let bad = rebuilding.planted(world, 7)?;
    let state = round_with_liar(world, rebuilding, &liar, 7, &bad, image_value(bad.image, bad.measurements))?;
    ensure!(state == REJECTED, "a third of the weight and the proposer are not enough: {state}");
    ensure!(honest_bonds(world)? == bonds, "honest bonds were touched");
    Ok(liar)
}

fn honest_bonds(world: &World) -> Result<Vec<u128>> {
    (1..=3).map(|id| world.bond(id)).collect()
}

/// A round in which the liar names `lie`; where it ended.
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

/// A validator that builds nothing: it commits what another has committed, and shows what that one has shown.
pub(super) fn copying(world: &World, rebuilding: &Rebuilding<'_>, lazy: &Outsider) -> Result<()> {
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
    let refused = lazy.send(world, "reveal", &reveal).err().context("a copied commitment was opened")?.to_string();
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
    ensure!(credit(super::WITHDRAWAL.parse()?)? > U256::ZERO, "who has rebuilt it earns something");
    ensure!(credit(lazy.sender.address())?.is_zero(), "who has copied earns nothing");
    let left = world.bond(lazy.id)?;
    ensure!(left == before - before / 200, "and pays half a percent: {left} of {before}");
    Ok(())
}

/// Two signed statements of one round that name different values: whoever has both hands them in, and the whole bond is gone.
pub(super) fn equivocating(world: &World, liar: &Outsider) -> Result<()> {
    let chain = ChainFile::load(&world.local.dir.join("chain.toml"))?;
    // The last round, in which it has copied.
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
    // A twentieth is for the key that reports.
    let reporter = world.ask(liar.validators, &ValidatorSet::getCall { validatorId: 1 })?.operator;
    let bond = world.bond(liar.id)?;
    ensure!(bond > 0, "it has no bond any more");
    world.says(1, &["report", &one, &other], 0, "the bond is gone")?;
    ensure!(world.bond(liar.id)? == 0, "{} of {bond} is left", world.bond(liar.id)?);
    let credit: U256 = world.ask(liar.validators, &ValidatorSet::creditOfCall { owner: reporter })?.to();
    ensure!(credit == U256::from(bond / 20), "the reporter has {credit} of {bond}");
    world.says(1, &["report", &one, &other], 1, "WrongMark")
}

/// The salt of the first validator, which everybody sees once it has revealed.
fn shown_salt(world: &World, round: u64) -> Result<B256> {
    let topics =
        json!([ImageRegistry::Revealed::SIGNATURE_HASH, B256::from(U256::from(round)), B256::from(U256::from(1))]);
    let filter = json!({"address": world.images, "fromBlock": "0x0", "toBlock": "latest", "topics": topics});
    let logs = world.endpoint().ask("eth_getLogs", &json!([filter]))?;
    ensure!(logs.as_array().and_then(|logs| logs.first()).and_then(read_log).is_some(), "validator 1 has not revealed");
    let hash = &logs[0]["transactionHash"];
    let transaction = world.endpoint().ask("eth_getTransactionByHash", &json!([hash]))?;
    let input: alloy_primitives::Bytes = transaction["input"].as_str().context("no input")?.parse()?;
    Ok(ImageRegistry::revealCall::abi_decode(&input)?.salt)
}

/// A validator whose key is known to everybody, and which does what it likes.
pub(super) struct Outsider {
    sender: Sender,
    pub(super) id: u64,
    validators: Address,
}

impl Outsider {
    pub(super) fn join(world: &World, bond: u128) -> Result<Self> {
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

    /// Has so many tokens, which the contract may take.
    fn have(&self, world: &World, amount: u128) -> Result<()> {
        let token = world.ask(self.validators, &ValidatorSet::tokenCall {})?;
        let fund = json!([self.sender.address(), token, format!("{amount:#x}")]);
        world.endpoint().ask("devchain_fund", &fund)?;
        let approve = Token::approveCall { spender: self.validators, value: U256::from(amount) };
        self.sender.send("approve", token, &approve.abi_encode())?;
        Ok(())
    }

    /// Puts something into the pot out of which right votes are paid.
    fn fill_pot(&self, world: &World) -> Result<()> {
        let amount: u128 = BOND.parse()?;
        self.have(world, amount)?;
        let fund = ValidatorSet::fundCall { amount: U256::from(amount) };
        self.sender.send("fund", self.validators, &fund.abi_encode())?;
        Ok(())
    }

    pub(super) fn send<C: SolCall>(&self, world: &World, name: &str, call: &C) -> Result<()> {
        self.send_to(world.images, name, call)
    }

    pub(super) fn send_to<C: SolCall>(&self, to: Address, name: &str, call: &C) -> Result<()> {
        self.sender.send(name, to, &call.abi_encode())?;
        Ok(())
    }
}

/// A validator that is killed as soon as it has done something, at each step of a round, and started again.
pub(super) fn killed(world: &World, rebuilding: &Rebuilding<'_>) -> Result<()> {
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
    ensure!(mark()? <= COMMITTED, "it cannot have revealed");
    if mark()? != COMMITTED {
        kill_when(&sending("committed"))?;
    }
    rebuilding.run(world, ID, "")?;
    ensure!(mark()? == COMMITTED, "what it had decided is committed");
    for id in [1, 3] {
        rebuilding.run(world, id, "committed")?;
    }
    world.await_reveals(round)?;
    world.open(round, &good)?;
    kill_when(&sending("revealed"))?;
    rebuilding.run(world, ID, "")?;
    ensure!(mark()? == REVEALED, "what it had committed is revealed");
    let attestation = published.join(format!("attestation-{round}-{ID}.json"));
    ensure!(attestation.exists() && !folder.join(format!("built-{round}")).exists(), "and then published");
    for id in [1, 3] {
        rebuilding.run(world, id, "revealed")?;
    }
    world.await_end(round)?;
    kill_when(&sending("finished"))?;
    ensure!(kills >= 4, "of six steps only {kills} were not over before it could be killed");
    for id in 1..=3 {
        rebuilding.run(world, id, "")?;
    }
    let state = world.ask(world.images, &ImageRegistry::stateOfCall { round })?;
    ensure!(state == APPROVED && mark()? == 0 && world.bond(ID)? == before, "{state}, mark {}", mark()?);
    Ok(())
}

/// Starts the validator, kills it when this is so, and leaves what it has written as it is. Not if it is so already: then the one before was killed a millisecond too late.
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
            bail!("the validator has ended by itself: {status}");
        }
        if Instant::now() > until {
            child.kill()?;
            bail!("the validator did not come so far in time");
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    child.kill()?;
    child.wait()?;
    Ok(true)
}

/// A validator whose disk fills up in the middle of a build: it says so, and says nothing of the proposal.
pub(super) fn full_disk(world: &World, rebuilding: &Rebuilding<'_>) -> Result<()> {
    let big = rebuilding.tiny.tree.with_file_name("big-tree");
    checked(&Command::new("cp").arg("-r").arg(&rebuilding.tiny.tree).arg(&big).output()?, "copy the tree")?;
    fs::write(big.join("big"), vec![7; 2 << 20])?;
    let rebuilding = Rebuilding { tree: big, ..rebuilding.clone() };
    let good = rebuilding.good(world, 10)?;
    let round = world.propose(10, &good)?;
    let (folder, aside) = (world.local.dir.join("validator-2"), world.local.dir.join("validator-2-aside"));
    let mounted = Mounted::small(&folder, &aside)?;
    rebuilding.run(world, 2, "not built")?;
    ensure!(!folder.join(format!("round-{round}.toml")).exists(), "it has decided something");
    let vote = world.ask(world.images, &ImageRegistry::voteOfCall { round, validatorId: 2 })?;
    ensure!(vote.mark == 0, "it has voted");
    drop(mounted);
    // With room again it goes on.
    rebuilding.run(world, 2, "committed")
}

/// A folder with little room, with what is in another one; it is as it was when this is dropped.
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
