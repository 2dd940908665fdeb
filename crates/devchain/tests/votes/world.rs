//! The contracts on a chain, and the model beside them. Each call goes to both, and they must agree on it.
//!
//! The test reads the contracts' code at run time, from the folder in `OPENRELAY_ARTIFACTS`, so that the same tests
//! can check mutants of the contracts.
#![allow(missing_docs, reason = "the tests document it")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::model::images::{Images, Proposal};
use crate::model::rounds::{Answer, Commitment, Mark, Outcome, Price};
use crate::model::set::Status;
use crate::model::{Party, Revert};
use alloy_primitives::{Address, B256, Bytes, FixedBytes, U256, keccak256};
use alloy_sol_types::{SolCall, SolValue};
use k256::ecdsa::SigningKey;
use openrelay_chain::registry::Token;
use openrelay_chain::voting::images::ImageRegistry as I;
use openrelay_chain::voting::release::ReleaseKeys;
use openrelay_chain::voting::validators::ValidatorSet as V;
use openrelay_chain::voting::{self, commitment, image_value, release_hash, statement_hash};
use openrelay_devchain::{Chain, Contracts, Failure, KNOWN, Rules, mint_call};
use openrelay_ledger::chain::voted::State;

pub(crate) const HOUR: u64 = 3_600;
pub(crate) const DAY: u64 = 24 * HOUR;
const RICH: u64 = 1_000_000_000;
const DEPOSIT: u64 = 100;
const MIN_BOND: u64 = 1_000;

/// Parties with keys. Each also has a cold address.
const PARTIES: Party = 14;

/// Returns the withdrawal address of a party.
pub(crate) const fn cold(party: Party) -> Party {
    party + 100
}

/// Returns more validator IDs than exist.
pub(crate) fn everybody() -> Vec<u64> {
    (1..=20).collect()
}

pub(crate) fn key(party: Party) -> SigningKey {
    SigningKey::from_slice(&keccak256(party.to_be_bytes())[..]).unwrap()
}

pub(crate) fn address(party: Party) -> Address {
    static ALL: OnceLock<Vec<Address>> = OnceLock::new();
    ALL.get_or_init(|| (0..=cold(PARTIES)).map(|party| Address::from_private_key(&key(party))).collect())
        [party as usize]
}

pub(crate) fn sign(key: &SigningKey, hash: B256) -> Bytes {
    let (signature, recovery) = key.sign_prehash_recoverable(hash.as_slice()).unwrap();
    [&signature.to_bytes()[..], &[27 + recovery.to_byte()]].concat().into()
}

/// Returns the creation code of a contract from the folder.
pub(crate) fn code(name: &str) -> Bytes {
    let committed = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../contracts/artifacts");
    let folder = std::env::var_os("OPENRELAY_ARTIFACTS").map_or_else(committed, PathBuf::from);
    let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
    let artifact: serde_json::Value = serde_json::from_str(&text).unwrap();
    artifact["bytecode"].as_str().unwrap().parse().unwrap()
}

/// Returns an answer as validators give it. A value is an image with this number and without measurements; a failure
/// names a log that is never compared.
fn bound(answer: Answer) -> voting::Answer {
    match answer {
        Answer::Value(number) => voting::Answer::Value(image_value(B256::with_last_byte(number as u8), B256::ZERO)),
        Answer::Failed => voting::Answer::Failed(B256::repeat_byte(0x77)),
        Answer::Abstain => voting::Answer::Abstain,
    }
}

fn said(answer: Answer) -> (u8, B256) {
    bound(answer).parts()
}

fn answer_key(answer: Answer) -> FixedBytes<31> {
    let (kind, named) = said(answer);
    let named = if kind == 1 { named } else { B256::ZERO };
    FixedBytes::from_slice(&keccak256((U256::from(kind), named).abi_encode())[..31])
}

fn salt_of(salt: u64) -> B256 {
    U256::from(salt).into()
}

#[derive(Clone)]
pub(crate) struct World {
    chain: Chain,
    pub(crate) at: Contracts,
    pub(crate) model: Images,
    /// Gas of the last successful call.
    pub(crate) gas: u64,
    salts: u64,
    /// Block in which each replaced hot key was replaced.
    replaced: BTreeMap<Party, u64>,
}

impl World {
    pub(crate) fn new() -> Self {
        static FRESH: OnceLock<World> = OnceLock::new();
        FRESH.get_or_init(Self::deploy).clone()
    }

    /// Creates validators 1, 2, … with these bonds. Each is its own family.
    pub(crate) fn crowd(bonds: &[u128]) -> Self {
        let mut this = Self::new();
        for (party, bond) in (1..).zip(bonds) {
            this.join(party, party, *bond).unwrap();
        }
        this
    }

    fn deploy() -> Self {
        let mut chain = Chain::new(1_800_000_000);
        let rules = Rules {
            min_bond: MIN_BOND,
            deposit: DEPOSIT,
            families: 5,
            time_divisor: 1,
            release_keys: (1, vec![address(0)]),
            ..Rules::default()
        };
        let at = Contracts::make(&mut chain, &rules, &code).unwrap();
        for party in 0..=PARTIES {
            chain.send(KNOWN[0].0, at.token, mint_call(address(party), U256::from(RICH))).unwrap();
            let approve = Token::approveCall { spender: at.validators, value: U256::MAX };
            chain.send(address(party), at.token, approve.abi_encode().into()).unwrap();
        }
        Self {
            chain,
            at,
            model: Images::new(MIN_BOND.into(), DEPOSIT.into(), 5),
            gas: 0,
            salts: 0,
            replaced: BTreeMap::new(),
        }
    }

    /// Sends a call to a contract. `Err` contains the revert data.
    pub(crate) fn tell<C: SolCall>(&mut self, caller: Party, to: Address, call: &C) -> Result<(), Bytes> {
        match self.chain.send(address(caller), to, call.abi_encode().into()) {
            Ok(receipt) => {
                self.gas = receipt.gas_used;
                Ok(())
            }
            Err(Failure::Reverted(why)) => Err(why),
            Err(other) => panic!("{other}"),
        }
    }

    /// Asserts that contract and model agree, and refuse with the same error.
    fn agree<T>(told: Result<(), Bytes>, modelled: Result<T, Revert>) -> Result<T, Revert> {
        match (told, modelled) {
            (Ok(()), Ok(done)) => Ok(done),
            (Err(why), Err(refusal)) => {
                assert_eq!(
                    why[..],
                    keccak256(format!("{refusal:?}()"))[..4],
                    "the contract has another reason than {refusal:?}"
                );
                Err(refusal)
            }
            (told, modelled) => panic!("contract {told:?}, model {:?}", modelled.map(|_| ())),
        }
    }

    pub(crate) fn ask<C: SolCall>(&self, to: Address, call: &C) -> C::Return {
        let output = self.chain.call(KNOWN[0].0, to, call.abi_encode().into()).unwrap();
        C::abi_decode_returns(&output).unwrap()
    }

    pub(crate) fn now(&self) -> u64 {
        self.chain.timestamp()
    }

    pub(crate) fn wait(&mut self, seconds: u64) {
        self.chain.advance(seconds);
    }

    /// Waits until the next block is exactly at the next moment at which something changes, or, with `short`, one
    /// second before it.
    pub(crate) fn wait_for(&mut self, round: u64, short: bool) {
        let Some(image) = self.model.images.get(&round) else { return };
        let r = &image.round;
        let mut moments =
            vec![r.commit_end, r.commit_end + r.terms.reveal, r.reveal_end(), r.end(), image.suspended_until];
        moments.extend(image.usable_from);
        moments.extend(image.motions.last().map(|motion| motion.end));
        let next = moments.into_iter().filter(|moment| *moment > self.now() + 2).min();
        if let Some(next) = next {
            self.chain.set_now(next - 2 - if short { 1 } else { 0 });
        }
    }

    pub(crate) fn join(&mut self, party: Party, family: Party, amount: u128) -> Result<u64, Revert> {
        let call = V::joinCall {
            family: address(family),
            withdrawal: address(cold(party)),
            amount: amount.try_into().unwrap(),
        };
        let told = self.tell(party, self.at.validators, &call);
        Self::agree(told, self.model.set.join(party, family, cold(party), amount))
    }

    pub(crate) fn admit(&mut self, family: Party, operator: Party) {
        self.tell(family, self.at.validators, &V::admitCall { operator: address(operator), admitted: true }).unwrap();
        self.model.set.admit(family, operator);
    }

    /// Frees the place of a family without bonds. The model has no such places.
    pub(crate) fn prune(&mut self, family: Party) {
        self.tell(1, self.at.validators, &V::pruneCall { family: address(family) }).unwrap();
    }

    pub(crate) fn top_up(&mut self, id: u64, amount: u128) -> Result<(), Revert> {
        let told =
            self.tell(1, self.at.validators, &V::topUpCall { validatorId: id, amount: amount.try_into().unwrap() });
        Self::agree(told, self.model.set.top_up(id, amount))
    }

    pub(crate) fn set_operator(&mut self, caller: Party, id: u64, operator: Party) -> Result<(), Revert> {
        let told =
            self.tell(caller, self.at.validators, &V::setOperatorCall { validatorId: id, operator: address(operator) });
        Self::agree(told, self.model.set.set_operator(caller, id, operator))
    }

    pub(crate) fn take_over(&mut self, caller: Party, id: u64) -> Result<(), Revert> {
        let told = self.tell(caller, self.at.validators, &V::takeOverCall { validatorId: id });
        let old = self.model.set.validators.get(&id).and_then(|validator| validator.operator);
        let done = Self::agree(told, self.model.set.take_over(caller, id));
        if let (Ok(()), Some(old)) = (done, old) {
            self.replaced.insert(old, self.chain.last().header.number);
        }
        done
    }

    pub(crate) fn unbond(&mut self, caller: Party, id: u64) -> Result<(), Revert> {
        let told = self.tell(caller, self.at.validators, &V::unbondCall { validatorId: id });
        Self::agree(told, self.model.set.unbond(caller, id, self.now()))
    }

    pub(crate) fn withdraw(&mut self, id: u64) -> Result<(), Revert> {
        let told = self.tell(1, self.at.validators, &V::withdrawCall { validatorId: id });
        let owner = self.model.set.validators.get(&id).map(|validator| validator.withdrawal);
        let before = owner.map(|owner| self.balance(owner));
        let paid = Self::agree(told, self.model.set.withdraw(id, self.now()));
        paid.map(|(to, amount)| {
            assert_eq!(Some(to), owner);
            assert!(before.is_some() && self.balance(to) >= amount);
        })
    }

    pub(crate) fn claim(&mut self, owner: Party) {
        let before = self.balance(owner);
        self.tell(1, self.at.validators, &V::claimCall { owner: address(owner) }).unwrap();
        assert_eq!(self.balance(owner) - before, self.model.set.claim(owner));
    }

    pub(crate) fn fund(&mut self, amount: u128) {
        self.tell(1, self.at.validators, &V::fundCall { amount: U256::from(amount) }).unwrap();
        self.model.set.fund(amount);
    }

    fn proposal(&self, party: Party, version: u64, number: u64, emergency: bool) -> I::proposeCall {
        let release = ReleaseKeys::Release {
            sourceTree: B256::repeat_byte(1),
            inputsLock: B256::repeat_byte(2),
            kind: 1,
            version,
        };
        let hash = self.ask(self.at.release_keys, &ReleaseKeys::releaseHashCall { release: release.clone() });
        // The two bindings have different types for the same struct.
        let same = SolValue::abi_decode(&release.abi_encode()).unwrap();
        assert_eq!(hash, release_hash(self.chain.chain_id(), self.at.release_keys, &same));
        let (image, measurements) = (B256::with_last_byte(number as u8), B256::ZERO);
        let blind = I::blindOfCall { proposer: address(party), release: hash, image, measurements, salt: B256::ZERO };
        I::proposeCall {
            roundKind: u8::from(emergency),
            release: same,
            signatures: vec![sign(&key(0), hash)],
            blind: self.ask(self.at.images, &blind),
        }
    }

    pub(crate) fn propose(&mut self, party: Party, version: u64, number: u64, emergency: bool) -> Result<u64, Revert> {
        let call = self.proposal(party, version, number, emergency);
        let told = self.tell(party, self.at.images, &call);
        let proposal = Proposal { proposer: party, version, value: number, emergency };
        Self::agree(told, self.model.propose(proposal, self.now()))
    }

    pub(crate) fn open(&mut self, party: Party, round: u64, number: u64) -> Result<(), Revert> {
        let image = B256::with_last_byte(number as u8);
        let call = I::openCall { round, image, measurements: B256::ZERO, salt: B256::ZERO };
        let told = self.tell(party, self.at.images, &call);
        Self::agree(told, self.model.open(party, round, number, self.now()))
    }

    /// Returns the party that speaks for a validator: `caller`, or else its operator.
    fn voice(&self, caller: Option<Party>, id: u64) -> Party {
        let own = self.model.set.validators.get(&id).and_then(|validator| validator.operator);
        caller.or(own).unwrap_or(1)
    }

    fn commitment(&self, what: Commitment) -> FixedBytes<31> {
        let ((round, id), salt) = (what.author, salt_of(what.salt));
        commitment(self.chain.chain_id(), self.at.images, round, id, bound(what.answer), salt)
    }

    pub(crate) fn commit(&mut self, caller: Option<Party>, round: u64, id: u64, answer: Answer) -> Result<(), Revert> {
        self.salts += 1;
        let what = Commitment { author: (round, id), answer, salt: self.salts };
        self.commit_this(caller, round, id, what)
    }

    fn commit_this(&mut self, caller: Option<Party>, round: u64, id: u64, what: Commitment) -> Result<(), Revert> {
        let caller = self.voice(caller, id);
        let call = I::commitCall { round, validatorId: id, commitment: self.commitment(what) };
        let told = self.tell(caller, self.at.images, &call);
        Self::agree(told, self.model.commit(caller, round, id, what, self.now()))
    }

    fn committed(&self, round: u64, id: u64) -> Option<Commitment> {
        match self.model.images.get(&round)?.round.votes.get(&id)? {
            Mark::Committed(what) => Some(*what),
            Mark::Revealed(_) | Mark::Voided => None,
        }
    }

    /// Commits the commitment of another validator.
    pub(crate) fn copy(&mut self, round: u64, id: u64, of: u64) -> Result<(), Revert> {
        let Some(what) = self.committed(round, of) else { return Ok(()) };
        self.commit_this(None, round, id, what)
    }

    /// Reveals what was committed, or, unless `honest`, the same with another salt.
    pub(crate) fn reveal(&mut self, caller: Option<Party>, round: u64, id: u64, honest: bool) -> Result<(), Revert> {
        let nothing = Commitment { author: (round, id), answer: Answer::Value(1), salt: 0 };
        let what = self.committed(round, id).unwrap_or(nothing);
        let what = if honest { what } else { Commitment { salt: what.salt + 1_000_000, ..what } };
        // A validator that copied a commitment has no opening of it under its own ID.
        self.reveal_this(caller, Commitment { author: (round, id), ..what })
    }

    fn reveal_this(&mut self, caller: Option<Party>, what: Commitment) -> Result<(), Revert> {
        let (round, id) = what.author;
        let caller = self.voice(caller, id);
        let (answer, value) = said(what.answer);
        let call = I::revealCall { round, validatorId: id, answer, value, salt: salt_of(what.salt) };
        let told = self.tell(caller, self.at.images, &call);
        Self::agree(told, self.model.reveal(caller, what, self.now()))
    }

    /// Makes the copier reveal with the author's revealed answer and salt. The author's first salt is 1.
    pub(crate) fn reveal_what_another_showed(&mut self, round: u64, id: u64) -> Result<(), Revert> {
        self.reveal_this(None, Commitment { author: (round, id), answer: Answer::Value(1), salt: 1 })
    }

    /// Reveals with the newest salt.
    pub(crate) fn reveal_again(&mut self, round: u64, id: u64, answer: Answer) -> Result<(), Revert> {
        self.reveal_this(None, Commitment { author: (round, id), answer, salt: self.salts })
    }

    pub(crate) fn report_salt(&mut self, caller: Party, round: u64, id: u64, honest: bool) -> Result<(), Revert> {
        let nothing = Commitment { author: (round, id), answer: Answer::Value(1), salt: 0 };
        let what = self.committed(round, id).filter(|what| what.author.1 == id).unwrap_or(nothing);
        let what = Commitment { salt: what.salt + u64::from(!honest) * 1_000_000, ..what };
        let (answer, value) = said(what.answer);
        let call = I::reportSaltCall { round, validatorId: id, answer, value, salt: salt_of(what.salt) };
        let told = self.tell(caller, self.at.images, &call);
        Self::agree(told, self.model.report_salt(caller, what, self.now()))
    }

    /// Reports two answers of one round. With `forged` the signer is not a validator.
    pub(crate) fn equivocate(
        &mut self,
        caller: Party,
        round: u64,
        id: u64,
        both: [(Answer, bool); 2],
        forged: bool,
    ) -> Result<(), Revert> {
        // A validator's first hot key. Its signatures from the time before its replacement stay valid forever.
        let first = self.model.set.served.iter().filter(|(_, served)| **served == id).map(|(party, _)| *party).min();
        let signer = if forged { 0 } else { first.unwrap_or(0) };
        let signature = |(answer, signed): (Answer, bool)| {
            let (kind, named) = said(answer);
            let hash = self.ask(self.at.images, &I::statementHashCall { round, answer: kind, value: named });
            assert_eq!(hash, statement_hash(self.chain.chain_id(), self.at.images, round, bound(answer)));
            if signed { sign(&key(signer), hash) } else { Bytes::new() }
        };
        let call = I::reportEquivocationCall {
            round,
            validatorId: id,
            answers: both.map(|(answer, _)| said(answer).0),
            values: both.map(|(answer, _)| said(answer).1),
            signatures: both.map(signature),
        };
        let told = self.tell(caller, self.at.images, &call);
        // A signature of a stranger, or one for a round after the key's replacement, counts as an answer that was not
        // revealed.
        let snapshot = self.ask(self.at.images, &I::roundOfCall { round }).snapshotBlock.to::<u64>();
        let signs = signer != 0 && self.replaced.get(&signer).is_none_or(|block| *block > snapshot);
        if !signs && both.iter().any(|(_, signed)| *signed) {
            let modelled =
                self.model.clone().report_equivocation(caller, round, id, both.map(|(answer, _)| (answer, true)));
            return match modelled {
                Ok(()) => Self::agree(told, Err(Revert::NotSigned)),
                Err(refusal) => Self::agree(told, Err(refusal)),
            };
        }
        Self::agree(told, self.model.report_equivocation(caller, round, id, both))
    }

    pub(crate) fn finish(&mut self, round: u64) -> Result<(), Revert> {
        let told = self.tell(1, self.at.images, &I::finishCall { round });
        Self::agree(told, self.model.finish(round, self.now()).map(|_| ()))
    }

    pub(crate) fn settle(&mut self, round: u64, ids: &[u64]) -> Result<(), Revert> {
        let told = self.tell(1, self.at.images, &I::settleCall { round, ids: ids.to_vec() });
        Self::agree(told, self.model.settle(round, ids))
    }

    pub(crate) fn decide(&mut self, round: u64, id: u64) -> Result<(), Revert> {
        let told = self.tell(1, self.at.images, &I::decideCall { round, validatorId: id });
        Self::agree(told, self.model.decide(round, id, self.now()))
    }

    pub(crate) fn accuse(&mut self, caller: Option<Party>, round: u64, id: u64) -> Result<(), Revert> {
        let caller = self.voice(caller, id);
        let told = self.tell(caller, self.at.images, &I::accuseCall { round, validatorId: id, reason: B256::ZERO });
        Self::agree(told, self.model.accuse(caller, round, id, self.now()))
    }

    pub(crate) fn settle_motion(&mut self, round: u64, number: usize, ids: &[u64]) -> Result<(), Revert> {
        if self.model.images.get(&round).is_none_or(|image| image.motions.len() <= number) {
            return Ok(());
        }
        let call = I::settleMotionCall { round, number: U256::from(number), ids: ids.to_vec() };
        let told = self.tell(1, self.at.images, &call);
        Self::agree(told, self.model.settle_motion(round, number, ids, self.now()))
    }

    /// Makes the guardian pause joins and proposals.
    pub(crate) fn pause(&mut self) {
        for to in [self.at.validators, self.at.images] {
            self.chain.send(KNOWN[1].0, to, V::pauseCall {}.abi_encode().into()).unwrap();
        }
    }

    /// Waits until reveals start.
    pub(crate) fn await_reveals(&mut self, round: u64) {
        self.chain.set_now(self.model.images[&round].round.commit_end);
    }

    /// Waits for the end of a round and finishes it.
    pub(crate) fn end(&mut self, round: u64) -> Outcome {
        self.chain.set_now(self.model.images[&round].round.end());
        self.finish(round).unwrap();
        self.model.images[&round].round.outcome
    }

    /// Runs a whole round with these answers, in which every validator that commits also reveals.
    ///
    /// Answers refer to values by number; `number` is the proposed one.
    pub(crate) fn round(&mut self, number: u64, version: u64, answers: &[Option<Answer>]) -> u64 {
        let round = self.propose(1, version, number, false).unwrap();
        let voters = || (1u64..).zip(answers).filter_map(|(id, answer)| answer.map(|answer| (id, answer)));
        for (id, answer) in voters() {
            self.commit(None, round, id, answer).unwrap();
        }
        self.await_reveals(round);
        self.open(1, round, number).unwrap();
        for (id, _) in voters() {
            self.reveal(None, round, id, true).unwrap();
        }
        self.end(round);
        round
    }

    /// Runs the first `parts` parts of a round with these answers, and ignores refusals.
    pub(crate) fn campaign(
        &mut self,
        who: Party,
        version: u64,
        emergency: bool,
        answers: &[Option<Answer>],
        parts: u8,
    ) {
        let Ok(round) = self.propose(who, version, 1, emergency) else { return };
        let voters = || (1u64..).zip(answers).filter_map(|(id, answer)| answer.map(|answer| (id, answer)));
        for part in 1..=parts {
            match part {
                1 => voters().for_each(|(id, answer)| _ = self.commit(None, round, id, answer)),
                2 => self.await_reveals(round),
                3 => _ = self.open(who, round, 1),
                4 => voters().for_each(|(id, _)| _ = self.reveal(None, round, id, true)),
                5 => _ = self.end(round),
                _ => _ = self.settle(round, &everybody()),
            }
        }
    }

    pub(crate) fn state(&self, round: u64) -> State {
        let state = self.model.state(round, self.now()).unwrap();
        assert_eq!(self.ask(self.at.images, &I::stateOfCall { round }), number_of(state), "{state:?}");
        state
    }

    pub(crate) fn total(&self, round: u64) -> u128 {
        self.ask(self.at.images, &I::roundOfCall { round }).total.to()
    }

    pub(crate) fn tally(&self, round: u64, answer: Answer) -> u128 {
        self.ask(self.at.images, &I::tallyOfCall { round, answer: answer_key(answer) }).weight
    }

    pub(crate) fn balance(&self, party: Party) -> u128 {
        self.ask(self.at.token, &Token::balanceOfCall { account: address(party) }).to()
    }

    /// Returns the number of storage slots that the voting contracts use.
    pub(crate) fn slots(&self) -> usize {
        self.chain.storage(self.at.validators).len() + self.chain.storage(self.at.images).len()
    }

    /// Puts a bond and a proposal into one block, in this order. The model does not follow.
    pub(crate) fn propose_in_the_block_of_a_bond(&mut self, proposer: Party, party: Party, amount: u128) {
        let join = V::joinCall {
            family: address(party),
            withdrawal: address(cold(party)),
            amount: amount.try_into().unwrap(),
        };
        let propose = self.proposal(proposer, 1, 1, false);
        let block = [(party, self.at.validators, join.abi_encode()), (proposer, self.at.images, propose.abi_encode())];
        for (party, to, data) in block {
            self.chain.give(KNOWN[0].0, address(party), U256::from(10u64.pow(18))).unwrap();
            self.submit(party, to, data);
        }
        assert_eq!(self.chain.mine().transactions.len(), 2);
    }

    fn submit(&mut self, party: Party, to: Address, data: Vec<u8>) {
        use alloy_consensus::{SignableTransaction, TxEip1559, TxEnvelope};
        let nonce = self.chain.newest().account(address(party)).map_or(0, |account| account.nonce);
        let transaction = TxEip1559 {
            chain_id: self.chain.chain_id(),
            nonce,
            gas_limit: 5_000_000,
            max_fee_per_gas: 10_000_000_000,
            max_priority_fee_per_gas: 1,
            to: to.into(),
            value: U256::ZERO,
            input: data.into(),
            ..TxEip1559::default()
        };
        let hash = transaction.signature_hash();
        let (signature, recovery) = key(party).sign_prehash_recoverable(hash.as_slice()).unwrap();
        let signature = alloy_primitives::Signature::from((signature, recovery));
        self.chain.submit(TxEnvelope::from(transaction.into_signed(signature))).unwrap();
    }

    /// Asserts that the contracts' state equals the model's.
    pub(crate) fn compare(&self) {
        let set = &self.model.set;
        let v = self.at.validators;
        let word = |amount: u128| U256::from(amount);
        assert_eq!(
            self.ask(self.at.token, &Token::balanceOfCall { account: v }),
            word(set.money()),
            "tokens are conserved"
        );
        assert_eq!(self.ask(v, &V::heldCall {}), word(set.held), "held");
        assert_eq!(self.ask(v, &V::potCall {}), word(set.pot), "pot");
        assert_eq!(self.ask(v, &V::reservedCall {}), word(set.reserved), "reserved");
        assert_eq!(self.ask(v, &V::burnedCall {}), word(set.burned), "burned");
        assert_eq!(self.ask(v, &V::creditsCall {}), word(set.credits.values().sum()), "credits");
        for (party, amount) in &set.credits {
            assert_eq!(self.ask(v, &V::creditOfCall { owner: address(*party) }), word(*amount), "credit of {party}");
        }
        for (id, validator) in &set.validators {
            let held = self.ask(v, &V::getCall { validatorId: *id });
            let status = match validator.status {
                Status::Gone => 0,
                Status::Active => 1,
                Status::Unbonding => 2,
            };
            let operator = validator.operator.map_or(Address::ZERO, address);
            assert_eq!(
                (held.operator, held.bond.to::<u128>(), held.locks, held.status),
                (operator, validator.bond, validator.locks, status),
                "validator {id}"
            );
            let idle = self.ask(self.at.images, &I::idleOfCall { validatorId: *id });
            assert_eq!(idle, word(set.idle.get(id).copied().unwrap_or(0)), "idle rounds of {id}");
        }
        for (round, image) in &self.model.images {
            self.state(*round);
            let r = self.ask(self.at.images, &I::roundOfCall { round: *round });
            let outcome = match image.round.outcome {
                Outcome::Open => 0,
                Outcome::Approved => 1,
                Outcome::Rejected => 2,
                Outcome::NoQuorum => 3,
            };
            let end = self.ask(self.at.images, &I::revealEndCall { round: *round });
            let price = match image.round.price {
                Price::None => 0,
                Price::Idle => 1,
                Price::Wrong => 2,
            };
            assert_eq!(
                (r.total.to::<u128>(), r.revealed.to::<u128>(), r.outcome, r.price, end.to::<u64>()),
                (image.round.snapshot.total, image.round.revealed, outcome, price, image.round.reveal_end()),
                "round {round}"
            );
            assert_eq!(r.right, image.round.right.map_or(FixedBytes::ZERO, answer_key), "round {round}");
            for id in set.validators.keys() {
                let held = self.ask(self.at.images, &I::heldOfCall { round: *round, validatorId: *id });
                assert_eq!(held, word(image.round.held.get(id).copied().unwrap_or(0)), "held of {id} in {round}");
            }
            let all = [Answer::Value(1), Answer::Value(2), Answer::Failed, Answer::Abstain];
            for answer in all {
                assert_eq!(self.tally(*round, answer), image.round.weight(answer), "round {round}, {answer:?}");
            }
            assert!(all.iter().map(|answer| image.round.weight(*answer)).sum::<u128>() <= image.round.snapshot.total);
        }
    }
}

fn number_of(state: State) -> u8 {
    match state {
        State::Proposed => 1,
        State::Reveal => 2,
        State::Challenge => 3,
        State::Ended => 4,
        State::Rejected => 5,
        State::NoQuorum => 6,
        State::ApprovedPending => 7,
        State::Active => 8,
        State::Deprecated => 9,
        State::Retired => 10,
        State::Suspended => 11,
        State::Revoked => 12,
    }
}
