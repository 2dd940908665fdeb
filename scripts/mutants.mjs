// Faults put into contracts and their model on purpose, one at a time: each must be found by the test that is named beside it, which passes without it.
// Contracts are compiled anew and read by the tests from another folder; of the model a copy below target/ is changed.
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { compile, here as contracts, load } from "../contracts/compile.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const place = join(root, "target/mutants");
const voting = ["ImageRegistry", "Collateral"];
const ofContracts = [
  ["> for >= where two thirds approve", "Rounds", [["weight * r.whole >= uint256(r.total) * r.part", "weight * r.whole > uint256(r.total) * r.part"]], "exactly_two_thirds_approve_and_one_unit_less_does_not"],
  [">= for > where more than a third rejects", "Rounds", [["if (3 * weight > r.total)", "if (3 * weight >= r.total)"], ["3 * uint256(sum) > r.total", "3 * uint256(sum) >= r.total"]], "exactly_a_third_does_not_stop_what_two_thirds_approve_and_more_rejects"],
  ["current stake for the snapshot", "Rounds", [["uint48 before = uint48(block.number) - 1;", "uint48 before = uint48(block.number);"]], "what_is_bonded_in_the_block_of_the_proposal_weighs_nothing"],
  ["weight read at the reveal", "Rounds", [["weightOf(validatorId, msg.sender, r.snapshotBlock, r.cap)", "weightOf(validatorId, msg.sender, uint48(block.number), r.cap)"]], "what_is_bonded_after_the_proposal_weighs_nothing"],
  ["salt without address", "Rounds", [["address(this), round, validatorId, answer, value, salt", "address(this), round, answer, value, salt"]], "a_copied_commitment_cannot_be_revealed"],
  ["double reveal", "Rounds", [["(vote.hash, vote.mark) = (key, Mark.Revealed);", ""]], "nobody_is_counted_twice"],
  ["close before the reveal ends", "Rounds", [["if (block.timestamp < _revealEnd(r) + r.challengeTime) revert WrongPhase();", "if (block.timestamp < r.commitEnd) revert WrongPhase();"]], "nobody_ends_a_round_before_its_reveals_and_its_challenge"],
  ["no challenge", "Rounds", [["if (block.timestamp < _revealEnd(r) + r.challengeTime)", "if (block.timestamp < _revealEnd(r))"]], "nobody_ends_a_round_before_its_reveals_and_its_challenge"],
  ["unbonding that ignores open commitments", "ValidatorSet", [["if (validator.locks != 0) revert Locked();", ""]], "who_leaves_after_a_commitment_can_reveal_and_pays_for_what_it_said"],
  ["families are not counted", "Rounds", [[" && _ones(tally.families & ~r.equivocal) >= r.families", ""]], "fewer_than_five_families_approve_nothing"],
  ["no cap for families", "ValidatorSet", [["weights[place] > most ? most : weights[place]", "weights[place]"]], "a_family_weighs_no_more_than_its_cap_and_takes_nobody_in_unasked"],
  ["anybody joins a family", "ValidatorSet", [["if (family != msg.sender && !admits[family][msg.sender]) revert NotAllowed();", ""]], "a_family_weighs_no_more_than_its_cap_and_takes_nobody_in_unasked"],
  ["statements of strangers", "Rounds", [[" || validators.validatorOf(signer) != validatorId", ""]], "equivocation_costs_everything_and_counts_for_nothing"],
  ["equivocation that still counts", "Rounds", [["_tallies[round][vote.hash].weight -= weight;", "_tallies[round][vote.hash].weight -= 0;"]], "equivocation_costs_everything_and_counts_for_nothing"],
  ["punished twice for one thing", "Rounds", [["_settled[round].set(ids[i]);", ""]], "penalties_are_those_of_the_table"],
  ["a third suspends the last image", "ImageRegistry", [[" && _anotherLasts(round, image)", ""]], "a_third_can_suspend_but_neither_the_last_image_nor_for_nothing"],
  ["anybody strikes a family from the count", "Rounds", [["if (validatorId == 0) revert NotSigned();", ""], ["if (weight != 0) r.equivocal |= uint128(1 << place);", "r.equivocal |= uint128(1 << place);"]], "nobody_strikes_a_family_from_the_count"],
  ["a replaced key that is charged for later rounds", "Rounds", [["if (replaced != 0 && replaced <= _rounds[round].snapshotBlock) revert NotSigned();", ""]], "a_replaced_key_says_nothing_of_later_rounds"],
  ["votes without a bond", "ValidatorSet", [["if (validator.status != Status.Active || validator.bond == 0) revert WrongStatus();\n        ++validator.locks;", "if (validator.status != Status.Active) revert WrongStatus();\n        ++validator.locks;"]], "who_was_caught_before_its_commitment_votes_no_more"],
  ["emergencies that others crowd out", "ImageRegistry", [["true, roundKind == RoundKind.Emergency)", "true, false)"]], "eight_rounds_at_most_and_emergencies_beside_them"],
  ["a conflict that comes too late", "ImageRegistry", [["bool good = !second && !releaseKeys.conflicted(kind, version);", "bool good = !second;"]], "contracts::a_conflict_shown_during_the_round_stops_it"],
  ["a value without an opening", "Rounds", [["_needsOpening() ? key == opening :", "_needsOpening() ? key != 0 :"]], "a_proposer_who_opens_nothing_or_something_wrong_loses_the_deposit"],
  ["one signature is enough", "ReleaseKeys", [["if (signatures.length < threshold) revert BadSignatures();", "if (signatures.length == 0) revert BadSignatures();"]], "contracts::a_release_needs_so_many_of_the_keys"],
  ["a signature counted twice", "ReleaseKeys", [["signer <= last ||", ""]], "contracts::a_release_needs_so_many_of_the_keys"],
  ["floors that fall", "Collateral", [["if (entry.intelFloor < current.intelFloor || entry.amdFloor < current.amdFloor) revert FloorFalls();", ""]], "contracts::collateral_is_what_two_thirds_fetched_and_its_floors_never_fall"],
  ["secrets shown twice", "Beacon", [["        delete _commitments[epoch][validatorId];\n        validators.unlock(validatorId);\n        Epoch", "        Epoch"]], "contracts::the_beacon_does_not_care_for_order_and_charges_who_withholds"],
];
const ofModel = [
  ["> for >= where two thirds approve", "rounds", "&& self.weight(value) * whole >= total * part", "&& self.weight(value) * whole > total * part"],
  ["current stake for the snapshot", "rounds", "let id = opening.author.1;", "let id = opening.author.1;\n        self.snapshot = set.snapshot();"],
  ["weight read at the reveal", "rounds", "self.votes.insert(id, Mark::Revealed(opening.answer));", "self.votes.insert(id, Mark::Revealed(opening.answer));\n        if let Some(one) = set.validators.get(&id) {\n            self.snapshot.weights.insert(id, (one.bond, one.family));\n        }"],
  ["salt without address", "rounds", "if *committed == opening =>", "if (committed.answer, committed.salt) == (opening.answer, opening.salt) =>"],
  ["double reveal", "rounds", "Some(Mark::Committed(_)) => Err(Refusal::WrongOpening),", "Some(Mark::Committed(_)) => Err(Refusal::WrongOpening),\n            Some(Mark::Revealed(_)) => Ok(()),"],
  ["close before the reveal ends", "images", "|| now < image.round.end()", "|| now < image.round.commit_end"],
  ["unbonding that ignores open commitments", "set", "if validator.locks != 0 {", "if validator.locks == u16::MAX {"],
];

const replaced = (text, from, to, where) => {
  if (text.split(from).length !== 2) throw new Error(`${where}: not just once there: ${from}`);
  return text.replace(from, () => to);
};
let alive = 0;
// Cargo's own exit code for tests that failed; a build that failed kills nothing.
const verdict = (name, test, run) => {
  if (run.error || (run.status !== 0 && run.status !== 101)) throw run.error ?? new Error(run.stderr);
  if (/error(\[E\d+\])?: could not compile/.test(run.stderr)) throw new Error(`${name}: ${run.stderr}`);
  if (run.status === 0) alive += 1;
  console.log(`${run.status === 0 ? "ALIVE " : "killed"}  ${name}, by ${test}`);
};
const cargo = (args, env) => spawnSync("cargo", args, { cwd: root, encoding: "utf8", env: { ...process.env, RUST_BACKTRACE: "0", ...env } });

rmSync(place, { recursive: true, force: true });
for (const [name, contract, edits, test] of ofContracts) {
  const path = `src/${contract}.sol`;
  const text = edits.reduce((text, [from, to]) => replaced(text, from, to, path), load(path));
  const folder = join(place, "artifacts");
  cpSync(join(contracts, "artifacts"), folder, { recursive: true });
  for (const [made, output] of Object.entries(compile({ [path]: text }, contract === "Rounds" ? voting : [contract]))) {
    writeFileSync(join(folder, `${made}.json`), JSON.stringify({ bytecode: `0x${output.evm.bytecode.object}` }));
  }
  const args = ["test", "-q", "--locked", "-p", "openrelay-devchain", "--test", "votes", "--", "--exact", test];
  verdict(`contracts: ${name}`, test, cargo(args, { OPENRELAY_ARTIFACTS: folder }));
}
const copy = join(place, "model");
mkdirSync(join(copy, "contracts"), { recursive: true });
for (const part of ["Cargo.toml", "Cargo.lock", "crates"]) cpSync(join(root, part), join(copy, part), { recursive: true });
for (const [name, file, from, to] of ofModel) {
  const path = join(copy, `crates/ledger/src/votes/${file}.rs`);
  const text = readFileSync(path, "utf8");
  writeFileSync(path, replaced(text, from, to, file));
  const args = ["test", "-q", "--locked", "--manifest-path", join(copy, "Cargo.toml"), "-p", "openrelay-ledger", "--test", "votes"];
  verdict(`model: ${name}`, "the exploration of all states", cargo(args, { CARGO_TARGET_DIR: join(place, "build") }));
  writeFileSync(path, text);
}
console.log(`mutants: ${ofContracts.length + ofModel.length}, alive ${alive}`);
if (alive > 0) process.exit(1);
