//! An operator's relay: nothing is locked or lost without a check or consent.

use alloy_primitives::U256;
use openrelay_chain::registry::RelayRegistry;

use crate::world::{DAY, World, address_after};

const WITHDRAWAL: &str = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
const ACTIVE: u8 = 1;
const DRAINING: u8 = 2;
const UNBONDING: u8 = 3;

/// Makes an operator's folder called `mine`.
fn init(world: &World) -> alloy_primitives::Address {
    let said = world.says(
        &format!(
            "relay init --dir mine --chain chain.toml --role ingress --endpoint 203.0.113.9:443 --advertised 10 \
             --withdrawal {WITHDRAWAL} --image {} --password-file password",
            "11".repeat(32)
        ),
        0,
    );
    address_after("operator ", &said)
}

fn state(world: &World) -> u8 {
    world.ask(world.at.registry, &RelayRegistry::relayOfCall { relayId: 1 }).status
}

#[test]
fn bond_is_paid_only_after_a_check_or_in_spite_of_it() {
    let world = World::new("bond");
    let operator = init(&world);
    let (code, found, err) = world.run("relay check --dir mine");
    assert_eq!(code, 1, "{found}{err}");
    for line in [
        "missing  this machine can listen on 203.0.113.9:443 (UDP): ",
        &format!(
            "missing  {}/bin/openrelay-relay gets evidence on this machine: no environment (exit status: 5)",
            world.dir.display()
        ),
        "missing  the directory can be read and proven: the newest block shown is ",
        "missing  the clock agrees with the newest verified block: compare",
        &format!("skipped  the relay's image is approved: 0x{}: the directory was not read", "11".repeat(32)),
        "skipped  others reach the relay at [203.0.113.9:443]: the directory was not read",
        &format!("ok       the bond is returned to {WITHDRAWAL}"),
        &format!("ok       the bond is 10 tokens, and {operator} has 0 tokens; this development chain's faucet pays"),
        &format!("ok       {operator} has 0 ether for gas; this development chain's faucet pays"),
        "ok       the registry accepts relays",
    ] {
        assert!(found.lines().any(|own| own.starts_with(line)), "{line:?} in:\n{found}");
    }
    let (code, out, err) = world.run("relay bond --dir mine --password-file password");
    assert!(code == 1 && out.is_empty() && err.contains("nothing was paid") && err.contains("--anyway"), "{out}{err}");
    assert_eq!(world.tokens_of(operator), U256::ZERO, "not even the faucet was asked");
    assert_eq!(state(&world), 0);
    let (code, out, err) = world.run("relay bond --dir mine --password-file password --anyway");
    assert!(code == 0 && out == "relay_id 1\n", "{out}{err}");
    assert!(err.contains("4 requirements are not met") && err.contains("because of --anyway"), "{err}");
    assert!(err.contains("with a bond of 10 tokens"), "{err}");
    assert_eq!(state(&world), ACTIVE);
    // A second call finds the relay, and checks and pays nothing.
    assert_eq!(world.run("relay bond --dir mine --password-file password").1, "relay_id 1\n");
}

#[test]
fn evidence_is_asked_for_once_and_a_good_answer_counts() {
    let world = World::new("evidence");
    init(&world);
    world.relay_program("echo \"$@\" >> asked");
    let found = world.says("relay check --dir mine", 1);
    assert!(found.contains(&format!("ok       {}/bin/openrelay-relay gets evidence", world.dir.display())), "{found}");
    assert_eq!(std::fs::read_to_string(world.dir.join("asked")).unwrap(), "evidence\n");
    // The host of a virtual machine neither has the relay's addresses nor gets its evidence.
    let found = world.says("relay check --dir mine --machine", 1);
    assert!(found.contains("skipped  the machine has the relay's addresses and gets evidence: "), "{found}");
    assert!(!found.contains("UDP") && !found.contains("openrelay-relay gets"), "{found}");
    assert_eq!(std::fs::read_to_string(world.dir.join("asked")).unwrap(), "evidence\n");
}

#[test]
fn leaving_says_what_is_lost_and_changes_nothing_without_consent() {
    let world = World::new("leave");
    let operator = init(&world);
    world.says("relay bond --dir mine --password-file password --anyway", 0);
    for command in ["unbond", "retire"] {
        // The password is not asked for before the consent.
        let (code, out, err) = world.run(&format!("relay {command} --dir mine"));
        assert!(code == 2 && out.is_empty() && err.contains("nothing was changed"), "{command}: {code} {out}{err}");
        assert_eq!(state(&world), ACTIVE, "{command}");
    }
    let said = world.says("relay unbond --dir mine", 2);
    for words in ["earns nothing", "10 tokens", "14 days", WITHDRAWAL, "nothing undoes this"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    world.says("relay retire --dir mine --yes --password-file password", 0);
    assert_eq!(state(&world), DRAINING);
    let said = world.says("relay retire --dir mine", 2);
    assert!(said.contains("10 tokens") && state(&world) == DRAINING, "{said}");
    world.says("relay retire --dir mine --yes --password-file password", 0);
    assert_eq!(state(&world), UNBONDING);
    let said = world.says("relay retire --dir mine --password-file password", 3);
    assert!(said.contains("free in about 14 days"), "{said}");
    assert!(world.says("relay unbond --dir mine --yes", 3).contains("leaving already"));
    world.pass(14 * DAY);
    world.says("relay retire --dir mine --password-file password", 0);
    assert_eq!(world.tokens_of(WITHDRAWAL.parse().unwrap()), U256::from(10).pow(U256::from(19)));
    assert_eq!(world.tokens_of(operator), U256::ZERO);
}

#[test]
fn status_is_one_json_object_with_the_reason() {
    let world = World::new("status");
    let operator = init(&world);
    let shown = world.json("relay status --dir mine --json", 3);
    assert_eq!(shown["schema"], "openrelay.relay-status/1");
    assert_eq!((&shown["operator"], &shown["gas_wei"]), (&operator.to_string().into(), &"0".into()));
    assert_eq!((&shown["serving"], &shown["reason"]["code"]), (&false.into(), &"not-registered".into()));
    assert!(shown["relay_id"].is_null() && shown["registration"].is_null(), "{shown}");
    world.says("relay bond --dir mine --password-file password --anyway", 0);
    // No mirror serves the records.
    let shown = world.json("relay status --dir mine --json", 5);
    let own = &shown["registration"];
    assert_eq!((&shown["relay_id"], &shown["reason"]["code"]), (&1.into(), &"directory".into()), "{shown}");
    assert_eq!((&own["state"], &own["withdrawal"]), (&"active".into(), &WITHDRAWAL.into()), "{shown}");
    assert_eq!(own["bond"]["amount"], format!("1{}", "0".repeat(19)));
    assert_eq!((&own["bond"]["decimals"], &own["free_at"]), (&18.into(), &serde_json::Value::Null));
    let text = world.says("relay status --dir mine", 5);
    assert!(text.contains("relay          1 ingress Active\nbond           10 tokens, class 1"), "{text}");
}
