//! A validator's own commands: leaving, being paid, another key, accusations.

use std::fs;

use alloy_primitives::{Address, B256, U256};
use openrelay_chain::voting::{ImageRegistry, ValidatorSet};

use crate::world::{DAY, World, address_after, address_of};

const ACTIVE: u8 = 1;
const UNBONDING: u8 = 2;
/// Three tokens.
const BOND: &str = "3000000000000000000";

/// Makes a validator in the folder `mine` that is paid to this address. Returns its voting key.
fn join(world: &World, withdrawal: Address) -> Address {
    let init = format!(
        "validator init --dir mine --chain chain.toml --withdrawal {withdrawal} --bond {BOND} --password-file password"
    );
    let said = world.says(&init, 0);
    let (code, out, err) = world.run("validator bond --dir mine --password-file password");
    assert!(code == 0 && out == "validator 1\n" && err.contains("with a bond of 3 tokens"), "{out}{err}");
    address_after("validator_key ", &said)
}

fn held(world: &World) -> ValidatorSet::Validator {
    world.ask(world.at.validators, &ValidatorSet::getCall { validatorId: 1 })
}

#[test]
fn validator_leaves_with_consent_and_gets_its_bond_after_21_days() {
    let world = World::new("v-leave");
    let withdrawal = Address::repeat_byte(0xcc);
    let key = join(&world, withdrawal);
    let shown = world.json("validator status --dir mine --json", 0);
    assert_eq!((&shown["schema"], &shown["voting"]), (&"openrelay.validator-status/1".into(), &true.into()));
    assert_eq!((&shown["key"], &shown["bond"]["amount"]), (&key.to_string().into(), &BOND.into()));
    assert_eq!((&shown["open_commitments"], &shown["claimable"]["amount"]), (&0.into(), &"0".into()), "{shown}");
    assert!(world.says("validator withdraw --dir mine --password-file password", 3).contains("not leaving"));
    let said = world.says("validator unbond --dir mine", 2);
    for words in ["3 tokens", "21 days", &withdrawal.to_string(), "nothing undoes this", "nothing was changed"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    assert_eq!(held(&world).status, ACTIVE);
    world.says("validator unbond --dir mine --yes --password-file password", 0);
    assert_eq!(held(&world).status, UNBONDING);
    let shown = world.json("validator status --dir mine --json", 3);
    assert_eq!((&shown["reason"]["code"], &shown["voting"]), (&"leaving".into(), &false.into()));
    assert_eq!(shown["free_at"].as_u64(), Some(held(&world).freeAt.to()));
    let said = world.says("validator withdraw --dir mine --password-file password", 3);
    assert!(said.contains("free in about 21 days"), "{said}");
    world.pass(21 * DAY);
    world.says("validator withdraw --dir mine --password-file password", 0);
    assert_eq!(world.tokens_of(withdrawal).to_string(), BOND);
    assert!(world.says("validator withdraw --dir mine --password-file password", 0).contains("nothing is left"));
    assert!(world.says("validator claim --dir mine --password-file password", 0).contains("nothing can be claimed"));
}

#[test]
fn claim_pays_what_others_forfeited_to_the_withdrawal_address() {
    let world = World::new("v-claim");
    let withdrawal = Address::repeat_byte(0xcc);
    join(&world, withdrawal);
    // The image registry may credit: it returns held deposits. Here it stands for a settled round.
    let (judge, minter) = (world.at.images, openrelay_devchain::KNOWN[0].0);
    world.mint(minter, U256::from(500));
    world.send(
        minter,
        world.at.token,
        &openrelay_chain::registry::Token::approveCall { spender: world.at.validators, value: U256::MAX },
    );
    world.send(judge, world.at.validators, &ValidatorSet::depositCall { from: minter, amount: U256::from(500) });
    world.send(judge, world.at.validators, &ValidatorSet::giveBackCall { owner: withdrawal, amount: U256::from(500) });
    let shown = world.json("validator status --dir mine --json", 0);
    assert_eq!(shown["claimable"]["amount"], "500");
    let said = world.says("validator claim --dir mine --password-file password", 0);
    assert!(said.contains("0.0000000000000005 tokens were paid to"), "{said}");
    assert_eq!(world.tokens_of(withdrawal), U256::from(500));
}

#[test]
fn key_is_replaced_step_by_step_and_the_old_one_is_kept() {
    let world = World::new("v-replace");
    // The withdrawal address has a keystore too: an operator's folder makes one.
    let cold = world.says(
        "relay init --dir cold --chain chain.toml --role ingress --endpoint 203.0.113.9:443 --advertised 10 \
         --withdrawal 0x00000000000000000000000000000000c01dc01d --password-file password",
        0,
    );
    let cold = address_after("operator ", &cold);
    world.give_ether(cold);
    let old = join(&world, cold);
    let replace = "validator replace-key --dir mine --password-file password";
    // Without the cold key the command says who must do what.
    let said = world.says(replace, 3);
    let next = world.dir.join("mine/validator-next-key.json");
    let new = address_of(&next);
    assert!(said.contains(&format!("setOperator(1, {new})")) && said.contains(&cold.to_string()), "{said}");
    let by_cold = format!("{replace} --withdrawal-key cold/operator-key.json --withdrawal-password-file password");
    let said = world.says(&by_cold, 2);
    assert!(said.contains(&format!("the key {old} never votes again")), "{said}");
    assert_eq!((held(&world).operator, address_of(&next)), (old, new), "the next key is made once");
    let said = world.says(&format!("{replace} --yes"), 0);
    assert!(said.contains(&format!("validator_key {new}")), "{said}");
    assert_eq!(held(&world).operator, new);
    assert!(!next.exists());
    assert_eq!(address_of(&world.dir.join("mine/validator-key.json")), new);
    let kept = world.dir.join(format!("mine/validator-replaced-{old}.json"));
    assert_eq!(address_of(&kept), old);
    assert_eq!(world.json("validator status --dir mine --json", 0)["key"], new.to_string());
    // As if the program had been killed after the contract's change: the files follow.
    fs::rename(world.dir.join("mine/validator-key.json"), &next).unwrap();
    fs::rename(&kept, world.dir.join("mine/validator-key.json")).unwrap();
    world.says(replace, 0);
    assert_eq!((address_of(&world.dir.join("mine/validator-key.json")), address_of(&kept)), (new, old));
}

#[test]
fn vote_that_the_old_key_committed_is_revealed_by_the_new_one() {
    let world = World::new("v-reveal");
    let cold = world.says(
        "relay init --dir cold --chain chain.toml --role ingress --endpoint 203.0.113.9:443 --advertised 10 \
         --withdrawal 0x00000000000000000000000000000000c01dc01d --password-file password",
        0,
    );
    let cold = address_after("operator ", &cold);
    world.give_ether(cold);
    join(&world, cold);
    let round = world.propose();
    world.says(&format!("validator vote {round} --abstain --dir mine --password-file password"), 0);
    let said = world.says(
        "validator replace-key --dir mine --password-file password --withdrawal-key cold/operator-key.json \
         --withdrawal-password-file password --yes",
        0,
    );
    assert!(said.contains("1 open commitments need the old key"), "{said}");
    world.begin_reveals();
    let said = world.says(&format!("validator vote {round} --dir mine --password-file password"), 0);
    assert!(said.contains("revealed"), "{said}");
}

#[test]
fn accusation_says_its_cost_and_is_settled_when_its_time_is_over() {
    let world = World::new("v-accuse");
    join(&world, Address::repeat_byte(0xcc));
    fs::write(world.dir.join("why.txt"), "it logs addresses\n").unwrap();
    let none = world.says("validator accuse 1 --dir mine --reason why.txt --password-file password", 3);
    assert!(none.contains("round 1 has approved no image"), "{none}");
    let round = world.approve_image();
    let accuse = format!("validator accuse {round} --dir mine --reason why.txt");
    let said = world.says(&accuse, 2);
    let hash = B256::new(openrelay_image::sha256(b"it logs addresses\n"));
    for words in ["0.03 tokens of the bond are lost", &hash.to_string(), "publish why.txt", "nothing was changed"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    let motions = || world.ask(world.at.images, &ImageRegistry::motionsOfCall { round });
    assert!(motions().is_empty() && held(&world).locks == 0);
    let said = world.says(&format!("{accuse} --yes --password-file password"), 0);
    assert!(said.contains("25 % of the weight is against it"), "{said}");
    assert_eq!((motions().len(), held(&world).locks), (1, 1));
    let settle = format!("validator accuse {round} --settle --dir mine --password-file password");
    assert!(world.says(&settle, 0).contains("run this again then"));
    assert_eq!(held(&world).locks, 1);
    world.pass(3 * DAY);
    assert!(world.says(&settle, 0).contains("motion 0: settled"));
    assert_eq!((held(&world).locks, held(&world).bond.to_string().as_str()), (0, BOND), "it was not suspended");
}
