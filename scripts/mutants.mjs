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
  ["families are not counted", "Rounds", [["if (_ones(tally.families & ~r.equivocal) < r.families) continue;", ""]], "fewer_than_five_families_approve_nothing"],
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
  ["a conflict that comes too late", "ImageRegistry", [["stands = !second && !releaseKeys.conflicted(kind, version);", "stands = !second;"]], "contracts::a_conflict_shown_during_the_round_stops_it"],
  ["a value without an opening", "Rounds", [["_needsOpening() ? key == opening :", "_needsOpening() ? key != 0 :"]], "a_proposer_who_opens_nothing_or_something_wrong_loses_the_deposit"],
  ["one signature is enough", "ReleaseKeys", [["if (signatures.length < threshold) revert BadSignatures();", "if (signatures.length == 0) revert BadSignatures();"]], "contracts::a_release_needs_so_many_of_the_keys"],
  ["a signature counted twice", "ReleaseKeys", [["signer <= last ||", ""]], "contracts::a_release_needs_so_many_of_the_keys"],
  ["floors that fall", "Collateral", [["if (entry.intelFloor < current.intelFloor || entry.amdFloor < current.amdFloor) revert FloorFalls();", ""]], "contracts::collateral_is_what_two_thirds_fetched_and_its_floors_never_fall"],
  ["secrets shown twice", "Beacon", [["        delete _commitments[epoch][validatorId];\n        validators.unlock(validatorId);\n        Epoch", "        Epoch"]], "contracts::the_beacon_does_not_care_for_order_and_charges_who_withholds"],
  ["half of the weight is enough to make others pay", "Rounds", [["if (2 * weight > r.total) return", "if (2 * weight >= r.total) return"]], "shares::exactly_half_agrees_on_nothing_and_more_than_half_does"],
  ["a third rejects what more than half have named", "Rounds", [["if (2 * weight > r.total) return (Outcome.NoQuorum, key);", ""]], "shares::false_failure_of_34_percent_costs_its_voters_and_the_next_round_approves"],
  ["failures hold up their own price", "Rounds", [["uint256(r.revealed) - _tallies[round][FAILED].weight -", "uint256(r.revealed) -"]], "shares::false_failure_of_34_percent_costs_its_voters_and_the_next_round_approves"],
  ["> for >= where two thirds of the named weight agree", "Rounds", [["3 * uint256(_tallies[round][right].weight) >= 2 * named", "3 * uint256(_tallies[round][right].weight) > 2 * named"]], "shares::wrong_values_cost_more_from_two_thirds_of_the_named_weight_on"],
  ["a price of silence that rises for ever", "Rounds", [["times < MOST_IN_A_ROW ? times : MOST_IN_A_ROW", "times"]], "shares::silence_costs_more_each_time_up_to_a_bound_and_an_answer_ends_the_row"],
  ["a price of silence that does not rise", "Rounds", [["uint256 times = ++idleOf[validatorId];", "uint256 times = 1;"]], "shares::silence_costs_more_each_time_up_to_a_bound_and_an_answer_ends_the_row"],
  ["a row of silence that no answer ends", "Rounds", [["if (r.costs && idleOf[validatorId] != 0) delete idleOf[validatorId];", ""]], "shares::silence_costs_more_each_time_up_to_a_bound_and_an_answer_ends_the_row"],
  ["a first abstention that costs", "Rounds", [["if (vote.hash == ABSTAIN) --times;", ""]], "shares::first_abstention_is_free_and_each_further_one_in_a_row_is_dearer"],
  ["abstentions that cost where nobody could build", "Rounds", [["} else if (vote.mark == Mark.Revealed && r.price != Price.None) {", "} else if (vote.mark == Mark.Revealed) {"]], "shares::abstaining_costs_nothing_where_nobody_could_build"],
  ["a round that comes second and makes others pay", "Rounds", [["if (outcome == Outcome.NoQuorum && !stands) right = 0;", ""]], "shares::round_that_comes_second_makes_nobody_pay"],
  ["a price that stays though another value was approved", "ImageRegistry", [["r.right == _rounds[round].right ? _images[approvedRound].revokedAt : r.finishedAt", "_images[approvedRound].revokedAt"]], "shares::price_of_a_failure_comes_back_when_another_value_is_approved_or_the_image_is_revoked"],
  ["an emergency that a fifth stops", "ImageRegistry", [["6 hours / haste, 0, 2, 3, minFamilies", "6 hours / haste, 0, 4, 5, minFamilies"]], "shares::fifth_of_the_weight_cannot_stop_an_emergency"],
  ["an emergency that waits for nobody", "ImageRegistry", [["6 hours / haste, 0, 2, 3, minFamilies", "0, 0, 2, 3, minFamilies"]], "shares::emergency_takes_hours_and_two_thirds_and_waits_for_late_reveals"],
  ["young collateral that is renewed", "Collateral", [[" || block.timestamp < renewableFrom()", ""]], "collateral::only_more_than_half_renews_only_what_is_old_and_only_by_a_new_round"],
  ["collateral renewed by an old round", "Collateral", [["if (r.outcome != Outcome.NoQuorum || late ||", "if (r.outcome != Outcome.NoQuorum ||"]], "collateral::only_more_than_half_renews_only_what_is_old_and_only_by_a_new_round"],
  ["a first entry by a majority", "Collateral", [["return currentRound == 0 ? type(uint48).max : currentSince", "return currentSince"]], "collateral::only_more_than_half_renews_only_what_is_old_and_only_by_a_new_round"],
  ["a renewal that raises floors", "Collateral", [["(next.intelFloor, next.amdFloor) = (current.intelFloor, current.amdFloor);", ""]], "collateral::collateral_is_renewed_while_34_percent_are_silent_abstain_or_name_nonsense"],
  ["no minimum bond", "RelayRegistry", [["return needed < minBond ? minBond : needed;", "return needed;"]], "relay_below_the_minimum_bond_is_refused_at_any_bandwidth"],
  ["a minimum bond without bounds", "RelayRegistry", [["if (minBond_ < minRate_ || minBond_ > maxRate_ * MIN_BOND_MBIT) revert BadValue();", ""]], "relay_below_the_minimum_bond_is_refused_at_any_bandwidth"],
  ["descriptions without a budget", "RelayRegistry", [["        _spend(relay);\n        _relays[relayId] = relay;", "        _relays[relayId] = relay;"]], "restarting_relay_never_waits_and_a_flood_of_descriptions_does"],
  ["one description too many", "RelayRegistry", [["if (full + REFILL > block.timestamp + most)", "if (full > block.timestamp + most)"]], "restarting_relay_never_waits_and_a_flood_of_descriptions_does"],
  ["a budget that comes back at once", "RelayRegistry", [["relay.timer = uint48(full + REFILL);", "relay.timer = uint48(full);"]], "restarting_relay_never_waits_and_a_flood_of_descriptions_does"],
  ["draining without a budget", "RelayRegistry", [["        _spend(relay);\n        _change(relayId, relay, descriptorHash);\n    }\n\n    /// @notice Replaces", "        _change(relayId, relay, descriptorHash);\n    }\n\n    /// @notice Replaces"]], "events_of_a_relay_that_nobody_pays_for_are_bounded"],
  ["events for nothing", "RelayRegistry", [["if (amount == 0) revert NothingChanges();", ""]], "events_of_a_relay_that_nobody_pays_for_are_bounded"],
  ["events for small amounts", "RelayRegistry", [["if (class == relay.bondClass) {", "if (false) {"]], "events_of_a_relay_that_nobody_pays_for_are_bounded"],
  ["a hot key that uses up the whole budget", "RelayRegistry", [["msg.sender == relay.withdrawal ? 2 * BURST : BURST", "2 * BURST"]], "stolen_hot_key_cannot_keep_the_withdrawal_address_from_acting"],
  ["bonds that anybody takes", "RelayRegistry", [["if (!judges || msg.sender == address(0)) revert NotAllowed();", ""]], "judge_slashes_a_bond_also_while_it_unbonds_and_nobody_else_does"],
  ["a bond that is safe once it unbonds", "RelayRegistry", [["Relay storage relay = _relays[relayId];\n        if (relay.status == Status.None)", "Relay storage relay = _relays[relayId];\n        if (relay.status != Status.Active)"]], "judge_slashes_a_bond_also_while_it_unbonds_and_nobody_else_does"],
  ["a bounty that is paid twice", "RelayRegistry", [["creditOf[owner] = 0;", ""]], "judge_slashes_a_bond_also_while_it_unbonds_and_nobody_else_does"],
  ["a withdrawal address that is forgotten", "RelayRegistry", [["_relays[relayId].withdrawal = relay.withdrawal;", ""]], "a_relay_leaves_with_its_bond_after_two_weeks_and_not_before"],
];
const ofModel = [
  ["> for >= where two thirds approve", "rounds", "let approved = self.weight(value) * whole >= total * part;", "let approved = self.weight(value) * whole > total * part;"],
  ["current stake for the snapshot", "rounds", "let id = opening.author.1;", "let id = opening.author.1;\n        self.snapshot = set.snapshot();"],
  ["weight read at the reveal", "rounds", "self.votes.insert(id, Mark::Revealed(opening.answer));", "self.votes.insert(id, Mark::Revealed(opening.answer));\n        if let Some(one) = set.validators.get(&id) {\n            self.snapshot.weights.insert(id, (one.bond, one.family));\n        }"],
  ["salt without address", "rounds", "if *committed == opening =>", "if (committed.answer, committed.salt) == (opening.answer, opening.salt) =>"],
  ["double reveal", "rounds", "Some(Mark::Committed(_)) => Err(Refusal::WrongOpening),", "Some(Mark::Committed(_)) => Err(Refusal::WrongOpening),\n            Some(Mark::Revealed(_)) => Ok(()),"],
  ["close before the reveal ends", "images", "|| now < image.round.end()", "|| now < image.round.commit_end"],
  ["unbonding that ignores open commitments", "set", "if validator.locks != 0 {", "if validator.locks == u16::MAX {"],
  ["a third rejects what more than half have named", "rounds", "find(|value| 2 * self.weight(*value) > total)", "find(|value| 3 * self.weight(*value) >= 2 * total)"],
  ["lies that cost nothing", "rounds", "self.price = self.price();", ""],
];
// Only faults whose name holds this, where it is given.
const wanted = process.argv[2] ?? "";
const chosen = ([name]) => name.includes(wanted);

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
for (const [name, contract, edits, test] of ofContracts.filter(chosen)) {
  const path = `src/${contract}.sol`;
  const text = edits.reduce((text, [from, to]) => replaced(text, from, to, path), load(path));
  const folder = join(place, "artifacts");
  cpSync(join(contracts, "artifacts"), folder, { recursive: true });
  for (const [made, output] of Object.entries(compile({ [path]: text }, contract === "Rounds" ? voting : [contract]))) {
    writeFileSync(join(folder, `${made}.json`), JSON.stringify({ bytecode: `0x${output.evm.bytecode.object}` }));
  }
  // The whole workspace: with its features everything is compiled already after the unit tests.
  const args = ["test", "-q", "--locked", "--workspace", "--test", contract === "RelayRegistry" ? "registry" : "votes", "--", "--exact", test];
  verdict(`contracts: ${name}`, test, cargo(args, { OPENRELAY_ARTIFACTS: folder }));
}
const copy = join(place, "model");
mkdirSync(join(copy, "contracts"), { recursive: true });
for (const part of ["Cargo.toml", "Cargo.lock", "crates"]) cpSync(join(root, part), join(copy, part), { recursive: true });
for (const [name, file, from, to] of ofModel.filter(chosen)) {
  const path = join(copy, `crates/ledger/src/votes/${file}.rs`);
  const text = readFileSync(path, "utf8");
  writeFileSync(path, replaced(text, from, to, file));
  const args = ["test", "-q", "--locked", "--manifest-path", join(copy, "Cargo.toml"), "-p", "openrelay-ledger", "--test", "votes"];
  verdict(`model: ${name}`, "the exploration of all states", cargo(args, { CARGO_TARGET_DIR: join(place, "build") }));
  writeFileSync(path, text);
}
console.log(`mutants: ${ofContracts.filter(chosen).length + ofModel.filter(chosen).length}, alive ${alive}`);
if (alive > 0) process.exit(1);
