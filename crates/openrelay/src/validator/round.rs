//! One validator in one round: what it owes at present, and doing it.
//!
//! Owns the salts, which are derived and never stored, and the file of answers. Every answer is written down before
//! it is committed, and no answer is ever removed. So a validator that is killed at any step can continue.

use std::path::{Path, PathBuf};

use alloy_primitives::{Address, B256, FixedBytes, U256, keccak256};
use alloy_sol_types::{SolCall, SolValue};
use k256::ecdsa::SigningKey;
use openrelay_chain::Endpoint;
use openrelay_chain::journal::Sender;
use openrelay_chain::voting::images::Rounds;
use openrelay_chain::voting::{Answer, ImageRegistry, commitment, image_value};
use openrelay_node::clock::unix_seconds;
use openrelay_node::config::read;
use openrelay_node::directory::replace;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{Folder, Standing};
use crate::failure::Failure;
use crate::output::say;
use crate::rpc::{ask, block_time};
use crate::units::span;

/// What a validator found, as it reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(crate) enum Found {
    /// SHA-256 of the image and of its list of measurements.
    Image { image: B256, measurements: B256 },
    /// SHA-256 of the log of a build that failed.
    Failed { log: B256 },
    /// SHA-256 of a collateral bundle, and its floors.
    Entry { bundle: B256, intel_floor: u32, amd_floor: u64 },
    /// No opinion.
    Abstain {},
}

impl Found {
    pub(super) fn answer(self) -> Answer {
        match self {
            Self::Image { image, measurements } => Answer::Value(image_value(image, measurements)),
            Self::Failed { log } => Answer::Failed(log),
            Self::Entry { bundle, intel_floor, amd_floor } => {
                Answer::Value(keccak256((bundle, intel_floor, amd_floor).abi_encode()))
            }
            Self::Abstain {} => Answer::Abstain,
        }
    }
}

/// All answers that were ever committed in a round, the newest last.
#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Answers {
    answers: Vec<Found>,
}

/// The kind of vote. The contracts of both kinds take the same calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Contest {
    /// Images and packages.
    Images,
    /// Vendors' collateral.
    Collateral,
}

impl Contest {
    /// Returns the contract that collects its votes.
    pub(super) fn at(self, folder: &Folder) -> Result<Address, Failure> {
        match self {
            Self::Images => Ok(folder.images),
            Self::Collateral => {
                folder.account.chain.collateral.ok_or_else(|| Failure::plain("chain.toml sets no collateral"))
            }
        }
    }

    /// Reads a round through one endpoint, without a proof: its state, the round, and the end of its reveals. The
    /// collateral contract has no state, because it has no challenge and nothing happens after one. So it is derived
    /// here.
    fn read(self, endpoint: &Endpoint, at: Address, number: u64) -> Result<(u8, Rounds::Round, u64), Failure> {
        let round = ask(endpoint, at, &ImageRegistry::roundOfCall { round: number })?;
        let reveal_end: u64 = ask(endpoint, at, &ImageRegistry::revealEndCall { round: number })?.to();
        if self == Self::Images {
            let state = ask(endpoint, at, &ImageRegistry::stateOfCall { round: number })?;
            return Ok((state, round, reveal_end));
        }
        let (commit_end, now): (u64, u64) = (round.commitEnd.to(), block_time(endpoint)?);
        let state = match round.outcome {
            0 if commit_end == 0 => 0,
            0 if now < commit_end => COMMITMENTS,
            0 if now < reveal_end => REVEALS,
            0 => ENDED,
            1 => APPROVED,
            2 => REJECTED,
            _ => NO_QUORUM,
        };
        Ok((state, round, reveal_end))
    }

    fn file(self, number: u64) -> String {
        match self {
            Self::Images => format!("round-{number}.toml"),
            Self::Collateral => format!("collateral-{number}.toml"),
        }
    }
}

/// The states of a round, indexed by the contract's numbers.
const STATES: [&str; 13] = [
    "none",
    "commitments",
    "reveals",
    "challenge",
    "ended",
    "rejected",
    "no quorum",
    "approved, not usable yet",
    "active",
    "deprecated",
    "retired",
    "suspended",
    "revoked",
];
const COMMITMENTS: u8 = 1;
const REVEALS: u8 = 2;
const CHALLENGE: u8 = 3;
const ENDED: u8 = 4;
const REJECTED: u8 = 5;
const NO_QUORUM: u8 = 6;
const APPROVED: u8 = 7;

/// The contract's numbers for the marks of a vote.
const NO_VOTE: u8 = 0;
const COMMITTED: u8 = 1;
const REVEALED: u8 = 2;

/// A round as one validator sees it.
struct View {
    state: u8,
    round: Rounds::Round,
    reveal_end: u64,
    vote: Rounds::Vote,
}

impl View {
    fn of(folder: &Folder, contest: Contest, number: u64, id: u64) -> Result<Self, Failure> {
        let at = contest.at(folder)?;
        let (state, round, reveal_end) = contest.read(&folder.endpoint(), at, number)?;
        let vote = folder.ask(at, &ImageRegistry::voteOfCall { round: number, validatorId: id })?;
        Ok(Self { state, round, reveal_end, vote })
    }

    fn name(&self) -> &'static str {
        STATES.get(usize::from(self.state)).copied().unwrap_or("unknown")
    }

    /// Returns what the validator owes, and until when; `None` if it owes nothing.
    fn owed(&self) -> Option<(Owed, Option<u64>)> {
        match (self.state, self.vote.mark) {
            (COMMITMENTS, NO_VOTE) => Some((Owed::Commit, Some(self.round.commitEnd.to()))),
            (REVEALS, COMMITTED) => Some((Owed::Reveal, Some(self.reveal_end))),
            (ENDED, _) => Some((Owed::Finish, None)),
            (state, mark) if state > ENDED && mark != NO_VOTE => Some((Owed::Settle, None)),
            _ => None,
        }
    }
}

/// What a validator owes in a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Owed {
    Commit,
    Reveal,
    /// Anybody may do it.
    Finish,
    Settle,
}

/// A round in the status of a validator.
#[derive(Serialize)]
pub(super) struct RoundV1 {
    round: u64,
    state: &'static str,
    /// What became of the validator's vote.
    vote: &'static str,
    next: Option<Owed>,
    /// When the next step must be done, in seconds since the Unix epoch; `null` without a limit.
    until: Option<u64>,
}

impl RoundV1 {
    pub(super) fn line(&self) -> String {
        let Self { round, state, vote, .. } = self;
        let next = match self.next {
            None => String::new(),
            Some(Owed::Commit) => "   next: commit".into(),
            Some(Owed::Reveal) => "   next: reveal".into(),
            Some(Owed::Finish) => "   next: finish; anyone may do this".into(),
            Some(Owed::Settle) => "   next: settle".into(),
        };
        let until = self.until.map(|end| format!(", within {}", span(end.saturating_sub(unix_seconds()))));
        format!("round {round:<8} {state}   {vote}{next}{}", until.unwrap_or_default())
    }
}

/// Returns a round for `status`; `None` if the round is over and settled.
pub(super) fn shown(folder: &Folder, number: u64, id: u64) -> Result<Option<RoundV1>, Failure> {
    let view = View::of(folder, Contest::Images, number, id)?;
    if view.state > ENDED && view.vote.mark == NO_VOTE {
        return Ok(None);
    }
    let vote = ["not voted", "committed", "revealed", "void"].get(usize::from(view.vote.mark)).unwrap_or(&"unknown");
    let (next, until) = view.owed().map_or((None, None), |(owed, until)| (Some(owed), until));
    Ok(Some(RoundV1 { round: number, state: view.name(), vote, next, until }))
}

/// Takes the next step of a round, and prints which step follows.
pub(super) fn step(
    folder: &Folder,
    contest: Contest,
    number: u64,
    found: Option<Found>,
    password_file: Option<&Path>,
) -> Result<(), Failure> {
    let Standing { id, .. } = folder.bonded()?;
    let view = View::of(folder, contest, number, id)?;
    let at = contest.at(folder)?;
    let wait = |what: &str, until: u64| {
        let left = until.saturating_sub(unix_seconds());
        Err(Failure::new(3, format!("round {number}: {what}; run this again in {left} s")))
    };
    match (view.state, view.vote.mark) {
        (0, _) => Err(Failure::plain(format!("there is no round {number}"))),
        (COMMITMENTS, mark) if mark <= COMMITTED => {
            let path = answers_of(folder, contest, number);
            let mut answers = load(&path)?;
            let Some(found) = found.or_else(|| answers.answers.last().copied()) else {
                return Err(Failure::new(2, "no answer: give --image and --measurements, or --failed, or --abstain"));
            };
            if answers.answers.last() != Some(&found) {
                answers.answers.push(found);
                let text = to_toml(&answers)?;
                replace(&path, text.as_bytes())
                    .map_err(|error| Failure::plain(format!("cannot write {}: {error}", path.display())))?;
            }
            let key = folder.key(password_file)?;
            let commitment = sealed(folder, &key, (at, number, id), found).1;
            if mark == COMMITTED && view.vote.hash == commitment {
                return wait("this answer is already committed", view.round.commitEnd.to());
            }
            let call = ImageRegistry::commitCall { round: number, validatorId: id, commitment };
            done(&folder.sender(key), at, "committed", number, &call)
        }
        (REVEALS, COMMITTED) => {
            // A reveal that comes too early voids the vote, so one endpoint alone is not trusted.
            let agree = reveals_begun(folder, contest, number)?;
            if agree < folder.account.chain.quorum {
                return Err(Failure::new(
                    3,
                    format!(
                        "round {number}: {agree} of {} endpoints report that reveals have begun, quorum is {}; \
                         nothing was revealed",
                        folder.account.chain.endpoints.len(),
                        folder.account.chain.quorum
                    ),
                ));
            }
            let answers = load(&answers_of(folder, contest, number))?;
            let keys = folder.keys(password_file)?;
            // A key that was replaced meanwhile has made the salt.
            let all = answers.answers.iter().rev().flat_map(|found| keys.all().map(move |key| (found, key)));
            for (found, key) in all {
                let (salt, commitment) = sealed(folder, key, (at, number, id), *found);
                if commitment != view.vote.hash {
                    continue;
                }
                let (answer, value) = found.answer().parts();
                let call = ImageRegistry::revealCall { round: number, validatorId: id, answer, value, salt };
                return done(&folder.sender(keys.voting.clone()), at, "revealed", number, &call);
            }
            Err(Failure::plain(format!(
                "no answer in {} matches the commitment in round {number}; it was committed from another folder",
                folder.account.path.display()
            )))
        }
        (COMMITMENTS | REVEALS | CHALLENGE, REVEALED) => {
            wait("revealed", view.reveal_end + u64::from(view.round.challengeTime))
        }
        (CHALLENGE, COMMITTED) => {
            wait("its answer was not revealed in time", view.reveal_end + u64::from(view.round.challengeTime))
        }
        (COMMITMENTS | REVEALS | CHALLENGE, NO_VOTE) => {
            Err(Failure::new(3, format!("round {number}: the time for commitments is over; this round was missed")))
        }
        (COMMITMENTS | REVEALS | CHALLENGE, _) => Err(Failure::new(3, format!("round {number}: this vote is void"))),
        (ENDED, _) => {
            let sender = folder.sender(folder.key(password_file)?);
            done(&sender, at, "finished", number, &ImageRegistry::finishCall { round: number })?;
            // A validator that has not voted would only charge itself by settling.
            if view.vote.mark == NO_VOTE { Ok(()) } else { settle(&sender, folder, contest, number, id) }
        }
        (_, NO_VOTE) => {
            say(&format!("round {number}: {}; nothing to do", view.name()));
            Ok(())
        }
        (_, _) => settle(&folder.sender(folder.key(password_file)?), folder, contest, number, id),
    }
}

/// What a running validator has to do in a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Due {
    /// Nothing at present.
    Nothing,
    /// The round waits for an answer.
    Answer {
        /// When the time for commitments ends, in seconds since the Unix epoch.
        until: u64,
    },
    /// The next step, which needs no findings.
    Step,
}

/// Returns what a validator has to do in a round.
pub(super) fn due(folder: &Folder, contest: Contest, number: u64, id: u64) -> Result<Due, Failure> {
    let view = View::of(folder, contest, number, id)?;
    Ok(match view.owed() {
        Some((Owed::Commit, Some(until))) => Due::Answer { until },
        Some(_) => Due::Step,
        None => Due::Nothing,
    })
}

/// Returns what the validator has decided in a round; `None` before it has.
pub(super) fn decided(folder: &Folder, contest: Contest, number: u64) -> Result<Option<Found>, Failure> {
    Ok(load(&answers_of(folder, contest, number))?.answers.last().copied())
}

/// Returns what the validator has revealed in a round, as the chain has it; `None` before it has.
pub(super) fn revealed(folder: &Folder, number: u64, id: u64) -> Result<Option<Found>, Failure> {
    let view = View::of(folder, Contest::Images, number, id)?;
    if view.vote.mark != REVEALED {
        return Ok(None);
    }
    for found in load(&answers_of(folder, Contest::Images, number))?.answers {
        let (answer, value) = found.answer().parts();
        if folder.ask(folder.images, &ImageRegistry::answerKeyCall { answer, value })? == view.vote.hash {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// Returns the file with all answers that were ever committed in a round.
fn answers_of(folder: &Folder, contest: Contest, number: u64) -> PathBuf {
    folder.account.path.join(contest.file(number))
}

/// Returns the value that a round has approved; `None` if it has not approved one.
pub(super) fn approved(folder: &Folder, number: u64) -> Result<Option<B256>, Failure> {
    let view = View::of(folder, Contest::Images, number, 0)?;
    Ok((view.state > NO_QUORUM).then_some(view.round.value))
}

/// Returns how many endpoints report that the round takes reveals.
fn reveals_begun(folder: &Folder, contest: Contest, number: u64) -> Result<usize, Failure> {
    let at = contest.at(folder)?;
    let says = |url: &&String| contest.read(&Endpoint::new(url), at, number).is_ok_and(|(state, ..)| state == REVEALS);
    Ok(folder.account.chain.endpoints.iter().filter(says).count())
}

/// Returns the rounds for which the folder has an answer.
pub(super) fn answered(folder: &Path) -> Vec<u64> {
    let number = |name: &str| name.strip_prefix("round-")?.strip_suffix(".toml")?.parse().ok();
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| number(entry.file_name().to_str()?)).collect()
}

fn settle(sender: &Sender, folder: &Folder, contest: Contest, number: u64, id: u64) -> Result<(), Failure> {
    let call = ImageRegistry::settleCall { round: number, ids: vec![id] };
    done(sender, contest.at(folder)?, "settled", number, &call)?;
    say(&format!("round {number}: {}", View::of(folder, contest, number, id)?.name()));
    Ok(())
}

fn done<C: SolCall>(sender: &Sender, at: Address, what: &str, number: u64, call: &C) -> Result<(), Failure> {
    let receipt = sender.send(&format!("{what} {number}"), at, &call.abi_encode())?;
    say(&format!("round {number}: {what}, block {} ({} gas)", receipt.block, receipt.gas_used));
    Ok(())
}

/// Returns salt and commitment of an answer. The salt is derived from the voting key, so it cannot be lost. Anyone
/// with the key can vote anyway.
fn sealed(
    folder: &Folder,
    key: &SigningKey,
    (at, number, id): (Address, u64, u64),
    found: Found,
) -> (B256, FixedBytes<31>) {
    let secret = Zeroizing::new(<[u8; 32]>::from(key.to_bytes()));
    let place = (U256::from(folder.account.chain.chain_id), at, number, id).abi_encode();
    let input = Zeroizing::new([b"openrelay vote salt v1\0".as_slice(), &*secret, &place].concat());
    let salt = keccak256(&*input);
    (salt, commitment(folder.account.chain.chain_id, at, number, id, found.answer(), salt))
}

fn load(path: &Path) -> Result<Answers, Failure> {
    if path.exists() { read(path).map_err(Failure::plain) } else { Ok(Answers::default()) }
}

fn to_toml(answers: &Answers) -> Result<String, Failure> {
    let text = toml::to_string(answers).map_err(Failure::plain)?;
    Ok(format!("# All answers that were committed in this round, the newest last.\n{text}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
    use super::*;

    #[test]
    fn written_answers_read_back_unchanged() {
        let path = std::env::temp_dir().join(format!("openrelay-round-{}.toml", std::process::id()));
        assert!(load(&path).unwrap().answers.is_empty());
        let answers = vec![
            Found::Image { image: B256::repeat_byte(1), measurements: B256::repeat_byte(2) },
            Found::Failed { log: B256::repeat_byte(3) },
            Found::Entry { bundle: B256::repeat_byte(4), intel_floor: 5, amd_floor: 6 },
            Found::Abstain {},
        ];
        std::fs::write(&path, to_toml(&Answers { answers: answers.clone() }).unwrap()).unwrap();
        let read = load(&path).unwrap().answers;
        std::fs::remove_file(&path).unwrap();
        assert_eq!(read, answers);
    }
}
