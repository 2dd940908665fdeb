// Plants faults in the contracts and their model, one at a time. The test named beside a fault passes without the fault
// and must fail with it. Faulty contracts are compiled into a separate folder that the tests read. The model's faults
// are planted in a copy below target/.
import { spawnSync } from "node:child_process";
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { compile, here as contracts, load } from "../contracts/compile.mjs";

const root = dirname(dirname(fileURLToPath(import.meta.url)));
const place = join(root, "target/mutants");
const voting = ["ImageRegistry", "Collateral"];
const ofContracts = [
  ["> instead of >= for two-thirds approval", "Rounds", [["weight * r.whole >= uint256(r.total) * r.part", "weight * r.whole > uint256(r.total) * r.part"]], "exactly_two_thirds_approve_and_one_unit_less_does_not"],
  [">= instead of > for rejection by more than a third", "Rounds", [["if (3 * weight > r.total)", "if (3 * weight >= r.total)"], ["3 * uint256(sum) > r.total", "3 * uint256(sum) >= r.total"]], "exactly_a_third_cannot_stop_an_approval_and_more_rejects"],
  ["current stake instead of the snapshot", "Rounds", [["uint48 before = uint48(block.number) - 1;", "uint48 before = uint48(block.number);"]], "bond_added_in_the_proposal_block_has_no_weight"],
  ["weight read at the reveal", "Rounds", [["weightOf(validatorId, msg.sender, r.snapshotBlock, r.cap)", "weightOf(validatorId, msg.sender, uint48(block.number), r.cap)"]], "bond_added_after_the_proposal_has_no_weight"],
  ["salt without address", "Rounds", [["address(this), round, validatorId, answer, value, salt", "address(this), round, answer, value, salt"]], "copied_commitment_cannot_be_revealed"],
  ["double reveal", "Rounds", [["(vote.hash, vote.mark) = (key, Mark.Revealed);", ""]], "validator_is_counted_only_once"],
  ["close before the reveal ends", "Rounds", [["if (block.timestamp < _revealEnd(r) + r.challengeTime) revert WrongPhase();", "if (block.timestamp < r.commitEnd) revert WrongPhase();"]], "round_cannot_end_before_its_reveals_and_its_challenge"],
  ["no challenge", "Rounds", [["if (block.timestamp < _revealEnd(r) + r.challengeTime)", "if (block.timestamp < _revealEnd(r))"]], "round_cannot_end_before_its_reveals_and_its_challenge"],
  ["unbonding ignores open commitments", "ValidatorSet", [["if (validator.locks != 0) revert Locked();", ""]], "validator_that_unbonds_after_committing_can_reveal_and_pays_for_a_wrong_value"],
  ["families are not counted", "Rounds", [["if (_ones(tally.families & ~r.equivocal) < r.families) continue;", ""]], "fewer_than_five_families_approve_nothing"],
  ["no weight cap for families", "ValidatorSet", [["weights[place] > most ? most : weights[place]", "weights[place]"]], "family_weight_is_capped_and_new_members_need_admission"],
  ["anybody can join a family", "ValidatorSet", [["if (family != msg.sender && !admits[family][msg.sender]) revert NotAllowed();", ""]], "family_weight_is_capped_and_new_members_need_admission"],
  ["statements of other validators", "Rounds", [[" || validators.validatorOf(signer) != validatorId", ""]], "equivocation_costs_the_whole_bond_and_removes_the_vote"],
  ["an equivocating vote still counts", "Rounds", [["_tallies[round][vote.hash].weight -= weight;", "_tallies[round][vote.hash].weight -= 0;"]], "equivocation_costs_the_whole_bond_and_removes_the_vote"],
  ["one offence is punished twice", "Rounds", [["_settled[round].set(ids[i]);", ""]], "penalties_match_the_table"],
  ["a third can suspend the last image", "ImageRegistry", [[" && _anotherLasts(round, image)", ""]], "a_third_can_suspend_an_image_at_a_price_but_not_the_last_one"],
  ["anybody can remove a family from the count", "Rounds", [["if (validatorId == 0) revert NotSigned();", ""], ["if (weight != 0) r.equivocal |= uint128(1 << place);", "r.equivocal |= uint128(1 << place);"]], "report_on_a_former_validator_does_not_affect_the_family_in_its_place"],
  ["a replaced key is charged for later rounds", "Rounds", [["if (replaced != 0 && replaced <= _rounds[round].snapshotBlock) revert NotSigned();", ""]], "replaced_key_cannot_prove_equivocation_in_later_rounds"],
  ["votes without a bond", "ValidatorSet", [["if (validator.status != Status.Active || validator.bond == 0) revert WrongStatus();\n        ++validator.locks;", "if (validator.status != Status.Active) revert WrongStatus();\n        ++validator.locks;"]], "validator_caught_before_committing_cannot_vote"],
  ["other rounds crowd out emergencies", "ImageRegistry", [["true, roundKind == RoundKind.Emergency)", "true, false)"]], "at_most_eight_rounds_are_open_besides_emergencies"],
  ["a conflict shown during the round is ignored", "ImageRegistry", [["stands = !second && !releaseKeys.conflicted(kind, version);", "stands = !second;"]], "contracts::conflict_reported_during_the_round_stops_it"],
  ["a value needs no matching opening", "Rounds", [["_needsOpening() ? key == opening :", "_needsOpening() ? key != 0 :"]], "proposer_that_opens_nothing_or_a_wrong_value_loses_the_deposit"],
  ["one signature is enough", "ReleaseKeys", [["if (signatures.length < threshold) revert BadSignatures();", "if (signatures.length == 0) revert BadSignatures();"]], "contracts::release_needs_a_threshold_of_the_keys"],
  ["a signature counted twice", "ReleaseKeys", [["signer <= last ||", ""]], "contracts::release_needs_a_threshold_of_the_keys"],
  ["floors may fall", "Collateral", [["if (entry.intelFloor < current.intelFloor || entry.amdFloor < current.amdFloor) revert FloorFalls();", ""]], "contracts::collateral_needs_two_thirds_and_its_floors_never_fall"],
  ["a secret can be revealed twice", "Beacon", [["        delete _commitments[epoch][validatorId];\n        validators.unlock(validatorId);\n        Epoch", "        Epoch"]], "contracts::beacon_ignores_order_and_charges_a_validator_that_withholds"],
  ["half of the weight is enough to charge others", "Rounds", [["if (2 * weight > r.total) return", "if (2 * weight >= r.total) return"]], "shares::exactly_half_agrees_on_nothing_and_more_than_half_does"],
  ["a third rejects a value that more than half named", "Rounds", [["if (2 * weight > r.total) return (Outcome.NoQuorum, key);", ""]], "shares::false_failure_of_34_percent_costs_its_voters_and_the_next_round_approves"],
  ["failure votes block their own penalty", "Rounds", [["uint256(r.revealed) - _tallies[round][FAILED].weight -", "uint256(r.revealed) -"]], "shares::false_failure_of_34_percent_costs_its_voters_and_the_next_round_approves"],
  ["> instead of >= for two thirds of the named weight", "Rounds", [["3 * uint256(_tallies[round][right].weight) >= 2 * named", "3 * uint256(_tallies[round][right].weight) > 2 * named"]], "shares::wrong_values_cost_more_from_two_thirds_of_the_named_weight_on"],
  ["the price of silence rises without bound", "Rounds", [["times < MOST_IN_A_ROW ? times : MOST_IN_A_ROW", "times"]], "shares::silence_costs_more_each_time_up_to_a_bound_and_an_answer_ends_the_row"],
  ["the price of silence never rises", "Rounds", [["uint256 times = ++idleOf[validatorId];", "uint256 times = 1;"]], "shares::silence_costs_more_each_time_up_to_a_bound_and_an_answer_ends_the_row"],
  ["an answer does not reset the price of silence", "Rounds", [["if (r.costs && idleOf[validatorId] != 0) delete idleOf[validatorId];", ""]], "shares::silence_costs_more_each_time_up_to_a_bound_and_an_answer_ends_the_row"],
  ["the first abstention has a price", "Rounds", [["if (vote.hash == ABSTAIN) --times;", ""]], "shares::first_abstention_is_free_and_each_further_one_in_a_row_costs_more"],
  ["abstentions have a price where nobody could build", "Rounds", [["} else if (vote.mark == Mark.Revealed && r.price != Price.None) {", "} else if (vote.mark == Mark.Revealed) {"]], "shares::abstaining_costs_nothing_where_nobody_could_build"],
  ["a round that comes second charges others", "Rounds", [["if (outcome == Outcome.NoQuorum && !stands) right = 0;", ""]], "shares::round_that_ends_second_charges_nobody"],
  ["a price stays although another value was approved", "ImageRegistry", [["r.right == _rounds[round].right ? _images[approvedRound].revokedAt : r.finishedAt", "_images[approvedRound].revokedAt"]], "shares::price_of_a_failure_is_refunded_on_another_approval_or_revocation"],
  ["a fifth can stop an emergency", "ImageRegistry", [["6 hours / haste, 0, 2, 3, minFamilies", "6 hours / haste, 0, 4, 5, minFamilies"]], "shares::fifth_of_the_weight_cannot_stop_an_emergency"],
  ["an emergency waits for no reveals", "ImageRegistry", [["6 hours / haste, 0, 2, 3, minFamilies", "0, 0, 2, 3, minFamilies"]], "shares::emergency_takes_hours_and_two_thirds_and_waits_for_late_reveals"],
  ["recent collateral can be renewed", "Collateral", [[" || block.timestamp < renewableFrom()", ""]], "collateral::renewal_needs_more_than_half_old_collateral_and_a_new_round"],
  ["an old round renews collateral", "Collateral", [["if (r.outcome != Outcome.NoQuorum || late ||", "if (r.outcome != Outcome.NoQuorum ||"]], "collateral::renewal_needs_more_than_half_old_collateral_and_a_new_round"],
  ["a majority makes the first entry", "Collateral", [["return currentRound == 0 ? type(uint48).max : currentSince", "return currentSince"]], "collateral::renewal_needs_more_than_half_old_collateral_and_a_new_round"],
  ["a renewal raises floors", "Collateral", [["(next.intelFloor, next.amdFloor) = (current.intelFloor, current.amdFloor);", ""]], "collateral::collateral_is_renewed_while_34_percent_are_silent_abstain_or_name_nonsense"],
  ["no minimum bond", "RelayRegistry", [["return needed < minBond ? minBond : needed;", "return needed;"]], "relay_below_the_minimum_bond_is_refused_at_any_bandwidth"],
  ["the minimum bond has no bounds", "RelayRegistry", [["if (minBond_ < minRate_ || minBond_ > maxRate_ * MIN_BOND_MBIT) revert BadValue();", ""]], "relay_below_the_minimum_bond_is_refused_at_any_bandwidth"],
  ["descriptor changes have no budget", "RelayRegistry", [["        _spend(relay);\n        _relays[relayId] = relay;", "        _relays[relayId] = relay;"]], "restarting_relay_never_waits_but_a_flood_of_descriptions_does"],
  ["one descriptor change too many", "RelayRegistry", [["if (full + REFILL > block.timestamp + most)", "if (full > block.timestamp + most)"]], "restarting_relay_never_waits_but_a_flood_of_descriptions_does"],
  ["the budget refills at once", "RelayRegistry", [["relay.timer = uint48(full + REFILL);", "relay.timer = uint48(full);"]], "restarting_relay_never_waits_but_a_flood_of_descriptions_does"],
  ["draining has no budget", "RelayRegistry", [["        _spend(relay);\n        _change(relayId, relay, descriptorHash);\n    }\n\n    /// @notice Replaces", "        _change(relayId, relay, descriptorHash);\n    }\n\n    /// @notice Replaces"]], "events_of_a_relay_that_cost_nothing_are_bounded"],
  ["events without a change", "RelayRegistry", [["if (amount == 0) revert NothingChanges();", ""]], "events_of_a_relay_that_cost_nothing_are_bounded"],
  ["events for small amounts", "RelayRegistry", [["if (class == relay.bondClass) {", "if (false) {"]], "events_of_a_relay_that_cost_nothing_are_bounded"],
  ["the hot key can use up the whole budget", "RelayRegistry", [["msg.sender == relay.withdrawal ? 2 * BURST : BURST", "2 * BURST"]], "stolen_hot_key_cannot_block_the_withdrawal_address"],
  ["anybody can take a bond", "RelayRegistry", [["if (!judges || msg.sender == address(0)) revert NotAllowed();", ""]], "judge_slashes_a_bond_even_while_unbonding_and_nobody_else_does"],
  ["an unbonding bond cannot be slashed", "RelayRegistry", [["Relay storage relay = _relays[relayId];\n        if (relay.status == Status.None)", "Relay storage relay = _relays[relayId];\n        if (relay.status != Status.Active)"]], "judge_slashes_a_bond_even_while_unbonding_and_nobody_else_does"],
  ["a bounty is paid twice", "RelayRegistry", [["creditOf[owner] = 0;", ""]], "judge_slashes_a_bond_even_while_unbonding_and_nobody_else_does"],
  ["the withdrawal address is lost", "RelayRegistry", [["_relays[relayId].withdrawal = relay.withdrawal;", ""]], "bond_is_returned_after_two_weeks_and_not_before"],
];
const ofModel = [
  ["> instead of >= for two-thirds approval", "rounds", "let approved = self.weight(value) * whole >= total * part;", "let approved = self.weight(value) * whole > total * part;"],
  ["current stake instead of the snapshot", "rounds", "let id = opening.author.1;", "let id = opening.author.1;\n        self.snapshot = set.snapshot();"],
  ["weight read at the reveal", "rounds", "self.votes.insert(id, Mark::Revealed(opening.answer));", "self.votes.insert(id, Mark::Revealed(opening.answer));\n        if let Some(one) = set.validators.get(&id) {\n            self.snapshot.weights.insert(id, (one.bond, one.family));\n        }"],
  ["salt without address", "rounds", "if *committed == opening =>", "if (committed.answer, committed.salt) == (opening.answer, opening.salt) =>"],
  ["double reveal", "rounds", "Some(Mark::Committed(_)) => Err(Revert::WrongOpening),", "Some(Mark::Committed(_)) => Err(Revert::WrongOpening),\n            Some(Mark::Revealed(_)) => Ok(()),"],
  ["close before the reveal ends", "images", "|| now < image.round.end()", "|| now < image.round.commit_end"],
  ["unbonding ignores open commitments", "set", "if validator.locks != 0 {", "if validator.locks == u16::MAX {"],
  ["a third rejects a value that more than half named", "rounds", "find(|value| 2 * self.weight(*value) > total)", "find(|value| 3 * self.weight(*value) >= 2 * total)"],
  ["false votes have no price", "rounds", "self.price = self.price();", ""],
];
// An optional argument selects the faults whose name contains it.
const wanted = process.argv[2] ?? "";
const chosen = ([name]) => name.includes(wanted);

const replaced = (text, from, to, where) => {
  if (text.split(from).length !== 2) throw new Error(`${where}: not exactly one occurrence: ${from}`);
  return text.replace(from, () => to);
};
let alive = 0;
// 101 is cargo's exit code for failed tests. A failed build kills no fault.
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
  // Uses the whole workspace, because the unit tests have compiled it with the same features.
  const args = ["test", "-q", "--locked", "--workspace", "--test", contract === "RelayRegistry" ? "registry" : "votes", "--", "--exact", test];
  verdict(`contracts: ${name}`, test, cargo(args, { OPENRELAY_ARTIFACTS: folder }));
}
const copy = join(place, "model");
mkdirSync(join(copy, "contracts"), { recursive: true });
// The crate with the model's tests embeds the compiled contracts.
for (const part of ["Cargo.toml", "Cargo.lock", "crates", "contracts/artifacts"]) cpSync(join(root, part), join(copy, part), { recursive: true });
for (const [name, file, from, to] of ofModel.filter(chosen)) {
  const path = join(copy, `crates/devchain/tests/model/${file}.rs`);
  const text = readFileSync(path, "utf8");
  writeFileSync(path, replaced(text, from, to, file));
  const args = ["test", "-q", "--locked", "--manifest-path", join(copy, "Cargo.toml"), "-p", "openrelay-devchain", "--test", "states"];
  verdict(`model: ${name}`, "the exploration of all states", cargo(args, { CARGO_TARGET_DIR: join(place, "build") }));
  writeFileSync(path, text);
}
console.log(`mutants: ${ofContracts.filter(chosen).length + ofModel.filter(chosen).length}, alive: ${alive}`);
if (alive > 0) process.exit(1);
