//! Runs the same scenario on this chain and on anvil, another development chain. Gas, status, logs, contracts and
//! storage must be exactly equal.
//!
//! There is one difference. Anvil keeps a leaf for a slot that has become zero, where a trie has none (yellow paper,
//! section 4.1). From the first such slot on its storage roots differ. That is the scenario's last step, after which
//! the slots' values are still equal.
//!
//! `OPENRELAY_ANVIL` names anvil's program, as `./x test` does. Without it this test reports that it is
//! skipped, or fails if `OPENRELAY_NO_SKIP` is set. Both chains are queried over HTTP.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test that cannot go on must stop, and reports what it skipped"
)]

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use alloy_consensus::{SignableTransaction, TxEip1559, TxEnvelope};
use alloy_eips::eip2718::Encodable2718;
use alloy_primitives::{Address, Bytes, Signature, TxKind, U256, hex, keccak256};
use alloy_sol_types::{SolCall, SolValue};
use k256::ecdsa::SigningKey;
use openrelay_chain::Endpoint;
use openrelay_chain::registry::{RelayRegistry, Token};
use openrelay_devchain::{KNOWN, Node, committed, development, serve};
use serde_json::{Value, json};

const START: u64 = 1_900_000_000;

/// A running anvil.
struct Anvil(Child);

impl Drop for Anvil {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn anvil() -> Option<(Anvil, Endpoint)> {
    let Some(program) = std::env::var_os("OPENRELAY_ANVIL") else {
        assert!(std::env::var_os("OPENRELAY_NO_SKIP").is_none(), "OPENRELAY_ANVIL is not set");
        eprintln!("skipped: OPENRELAY_ANVIL is not set; ./x test unit installs anvil and sets it");
        return None;
    };
    let mut child = Command::new(program)
        .args(["--port", "0", "--hardfork", "osaka", "--chain-id", "31337", "--timestamp", &START.to_string()])
        .args(["--gas-limit", "60000000", "--enable-tx-gas-limit"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let address = lines.find_map(|line| line.unwrap().strip_prefix("Listening on ").map(str::to_owned)).unwrap();
    // Anvil's further output must be read, so that it does not block.
    std::thread::spawn(move || lines.for_each(drop));
    Some((Anvil(child), Endpoint::new(&format!("http://{address}"))))
}

/// One transaction of the scenario: sender, recipient, data, and seconds after the previous one.
struct Step {
    from: usize,
    to: TxKind,
    data: Vec<u8>,
    after: u64,
}

fn scenario() -> (Vec<Step>, Address, Address) {
    let governor = KNOWN[0].0;
    let (token, registry) = (governor.create(0), governor.create(1));
    let [rate, lowest, highest, bond] = [10, 1, 1_000, 1].map(U256::from);
    let judges = [Address::ZERO; 2];
    let arguments = (token, governor, KNOWN[1].0, rate, lowest, highest, bond, judges).abi_encode_params();
    let mut steps = Vec::new();
    let mut step = |from: usize, to: TxKind, data: Vec<u8>, after: u64| steps.push(Step { from, to, data, after });
    let create = TxKind::Create;
    step(0, create, committed("TestToken").to_vec(), 2);
    step(0, create, [&committed("RelayRegistry")[..], &arguments].concat(), 2);
    alloy_sol_types::sol! { function mint(address to, uint256 amount) external; }
    let (to_token, to_registry) = (TxKind::Call(token), TxKind::Call(registry));
    let descriptors: [Vec<u8>; 3] = [vec![1; 111], vec![2; 90], vec![3; 162]];
    for operator in 1..=3 {
        let amount = U256::from(1_000_000);
        step(0, to_token, mintCall { to: KNOWN[operator].0, amount }.abi_encode(), 2);
        step(operator, to_token, Token::approveCall { spender: registry, value: U256::MAX }.abi_encode(), 2);
        let register = RelayRegistry::registerCall {
            advertisedMbit: 100 * u32::try_from(operator).unwrap(),
            withdrawal: KNOWN[4].0,
            amount: U256::from(20_000).to(),
            descriptor: descriptors[operator - 1].clone().into(),
        };
        step(operator, to_registry, register.abi_encode(), 3);
    }
    let hash = |at: usize| keccak256(&descriptors[at]);
    let described = Bytes::from(vec![9; 120]);

    step(
        1,
        to_registry,
        RelayRegistry::describeCall { relayId: 1, advertisedMbit: 150, descriptor: described.clone() }.abi_encode(),
        5,
    );
    step(
        3,
        to_registry,
        RelayRegistry::topUpCall { relayId: 2, amount: U256::from(30_000).to(), descriptorHash: hash(1) }.abi_encode(),
        5,
    );
    step(
        2,
        to_registry,
        RelayRegistry::drainCall { relayId: 2, draining: true, descriptorHash: hash(1) }.abi_encode(),
        5,
    );
    // Refused: a stranger, a stale hash, a bond that is too small.
    step(3, to_registry, RelayRegistry::unbondCall { relayId: 2, descriptorHash: hash(1) }.abi_encode(), 5);
    step(1, to_registry, RelayRegistry::unbondCall { relayId: 1, descriptorHash: hash(0) }.abi_encode(), 5);
    step(
        3,
        to_registry,
        RelayRegistry::describeCall { relayId: 3, advertisedMbit: 1_000_000, descriptor: described.clone() }
            .abi_encode(),
        5,
    );
    step(2, to_registry, RelayRegistry::unbondCall { relayId: 2, descriptorHash: hash(1) }.abi_encode(), 5);
    step(0, to_registry, RelayRegistry::announceRateCall { next: U256::from(20).to() }.abi_encode(), 5);
    step(4, to_registry, RelayRegistry::withdrawCall { relayId: 2 }.abi_encode(), 60);
    step(4, to_registry, RelayRegistry::applyRateCall {}.abi_encode(), 7 * 86_400);
    step(4, to_registry, RelayRegistry::reclassCall { relayId: 3, descriptorHash: hash(2) }.abi_encode(), 9);
    step(4, to_registry, RelayRegistry::withdrawCall { relayId: 2 }.abi_encode(), 8 * 86_400);
    (steps, token, registry)
}

/// Runs the scenario. Returns each transaction's result, without what differs between chains, and the contracts after
/// it.
fn play(endpoint: &Endpoint, automine_waits: bool) -> Vec<(Value, Vec<Value>)> {
    let (steps, token, registry) = scenario();
    let (mut nonces, mut time, mut done) = ([0u64; 5], START + 100, Vec::new());
    for step in steps {
        time += step.after;
        endpoint.ask("evm_setNextBlockTimestamp", &json!([time])).unwrap();
        let transaction = TxEip1559 {
            chain_id: 31_337,
            nonce: nonces[step.from],
            gas_limit: 8_000_000,
            max_fee_per_gas: 50_000_000_000,
            max_priority_fee_per_gas: 1_000_000_000,
            to: step.to,
            input: step.data.into(),
            ..TxEip1559::default()
        };
        nonces[step.from] += 1;
        let key = SigningKey::from_slice(KNOWN[step.from].1.as_slice()).unwrap();
        let (signature, recovery) = key.sign_prehash_recoverable(transaction.signature_hash().as_slice()).unwrap();
        let signed: TxEnvelope = transaction.into_signed(Signature::from((signature, recovery))).into();
        let raw = hex::encode_prefixed(signed.encoded_2718());
        endpoint.ask("eth_sendRawTransaction", &json!([raw])).unwrap();
        let receipt = loop {
            let receipt = endpoint.ask("eth_getTransactionReceipt", &json!([signed.tx_hash()])).unwrap();
            if !receipt.is_null() {
                break receipt;
            }
            assert!(automine_waits, "the receipt is not available at once");
            std::thread::yield_now();
        };
        let logs: Vec<Value> = receipt["logs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|log| json!([log["address"], log["topics"], log["data"], log["logIndex"]]))
            .collect();
        let told = json!({
            "status": receipt["status"], "gasUsed": receipt["gasUsed"], "logs": logs,
            "contractAddress": receipt["contractAddress"].as_str().map(str::to_lowercase), "type": receipt["type"],
            "logsBloom": receipt["logsBloom"], "transactionHash": receipt["transactionHash"],
        });
        let left = [token, registry, registry.create(1)].map(|address| {
            let proof = endpoint.ask("eth_getProof", &json!([address, [], "latest"])).unwrap();
            json!([proof["storageHash"], proof["codeHash"], proof["nonce"], proof["balance"]])
        });
        done.push((told, left.to_vec()));
    }
    done
}

#[test]
fn registry_behaves_the_same_on_anvil_with_equal_gas() {
    let Some((_running, anvil)) = anvil() else { return };
    let node = Arc::new(Mutex::new(Node::new(development(START), true, None)));
    let server = serve(node, TcpListener::bind("127.0.0.1:0").unwrap(), None).unwrap();
    let own = Endpoint::new(&server.url());
    let (ours, theirs) = (play(&own, false), play(&anvil, true));
    let refused = ours.iter().filter(|(told, _)| told["status"] == "0x0").count();
    assert_eq!((ours.len(), refused), (23, 4), "the scenario has another length or number of refusals");
    for (at, (own, other)) in ours.iter().zip(&theirs).enumerate() {
        assert_eq!(own.0, other.0, "transaction {at}");
        if at + 1 < ours.len() {
            assert_eq!(own.1, other.1, "storage, code, nonces and balances of the contracts after transaction {at}");
        }
    }
    let directory = scenario().2.create(1);
    for slot in 0..5 {
        let at = |endpoint: &Endpoint| {
            endpoint.ask("eth_getStorageAt", &json!([directory, format!("{slot:#066x}"), "latest"])).unwrap()
        };
        assert_eq!(at(&own), at(&anvil), "slot {slot}");
    }
}
