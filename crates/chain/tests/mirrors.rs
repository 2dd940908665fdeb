//! Tests mirrors against floods of events, endpoints that limit their answers, and restarts.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on must stop")]
#![allow(clippy::print_stdout, reason = "the test prints measurements")]

mod rpc;

use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use alloy_primitives::aliases::{U48, U96};
use alloy_primitives::{Address, B256, Log, LogData, U256, hex};
use alloy_sol_types::{SolCall as _, SolEvent as _, SolValue as _};
use openrelay_chain::Endpoint;
use openrelay_chain::logs::{Logs, Wanted};
use openrelay_chain::mirror::Mirror;
use openrelay_chain::registry::{RelayRegistry, Token};
use openrelay_devchain::{Fault, Network, Node, Rules, Server, development, serve};
use openrelay_ledger::chain::descriptor::Descriptor;
use openrelay_ledger::chain::set::{Registration, Status, directory_root, record_hash};
use openrelay_ledger::record::Role;
use openrelay_node::chain_file::ChainFile;
use rpc::answering;
use serde_json::{Value, json};

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// A chain with its contracts at one endpoint, and its chain file.
struct World {
    network: Network,
    server: Server,
    file: ChainFile,
    folder: PathBuf,
}

impl World {
    fn new(name: &str) -> Self {
        let mut node = Node::new(development(now() - 10_000), true, None);
        node.tell_time(now() - 9_000);
        let network = node.deploy(&Rules::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = serve(Arc::new(Mutex::new(node)), listener, None).unwrap();
        let file = file(&network, server.url());
        let folder = std::env::temp_dir().join(format!("openrelay-mirrors-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        Self { network, server, file, folder }
    }

    fn mine(&self, blocks: usize) {
        let mut node = self.server.node.lock().unwrap();
        (0..blocks).for_each(|_| node.mine());
    }

    fn register(&self, number: u8) {
        register(&mut self.server.node.lock().unwrap(), &self.network, number);
    }

    fn describe(&self, number: u8, epoch: u32) {
        let call = RelayRegistry::describeCall {
            relayId: number.into(),
            advertisedMbit: 100,
            descriptor: descriptor(number, epoch).into(),
        };
        let mut node = self.server.node.lock().unwrap();
        let operator = Address::repeat_byte(number);
        node.send_unsigned(operator, self.network.contracts.registry, call.abi_encode().into()).unwrap();
    }

    fn path(&self) -> PathBuf {
        self.folder.join("mirror.json")
    }

    fn logs(&self, topics: Vec<Vec<B256>>) -> Logs {
        let wanted = Wanted { address: self.file.registry, topics };
        Logs::new(Endpoint::new(&self.file.endpoints[0]), wanted)
    }

    fn head(&self) -> u64 {
        self.server.node.lock().unwrap().chain().last().header.number
    }
}

fn file(network: &Network, url: String) -> ChainFile {
    let text = format!(
        "chain_id = {}\ndirectory = \"{}\"\ncode_hash = \"{}\"\nregistry = \"{}\"\n\
         endpoints = [\"{url}\"]\nquorum = 1\ninsecure = true\n",
        network.chain_id, network.directory, network.code_hash, network.contracts.registry
    );
    let path = std::env::temp_dir().join(format!("openrelay-mirrors-{}-{:?}.toml", std::process::id(), Instant::now()));
    std::fs::write(&path, text).unwrap();
    let file = ChainFile::load(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file
}

fn descriptor(number: u8, key_epoch: u32) -> Vec<u8> {
    let descriptor = Descriptor {
        role: Role::Egress,
        key_epoch,
        handshake_key: [number; 32],
        image: B256::ZERO,
        key_root: B256::ZERO,
        endpoints: vec![format!("198.{number}.0.1:443").parse().unwrap()],
        family: None,
    };
    descriptor.encode().unwrap()
}

fn register(node: &mut Node, network: &Network, number: u8) {
    let operator = Address::repeat_byte(number);
    let amount = U256::from(10u64.pow(18)) * U256::from(1_000);
    let fund = json!([operator, network.contracts.token, format!("{amount:#x}")]);
    assert_eq!(node.handle(&json!({"id": 1, "method": "devchain_fund", "params": fund}))["result"], true);
    let approve = Token::approveCall { spender: network.contracts.registry, value: amount }.abi_encode();
    node.send_unsigned(operator, network.contracts.token, approve.into()).unwrap();
    let call = RelayRegistry::registerCall {
        advertisedMbit: 100,
        withdrawal: Address::repeat_byte(0xcc),
        amount: amount.to(),
        descriptor: descriptor(number, 1).into(),
    };
    node.send_unsigned(operator, network.contracts.registry, call.abi_encode().into()).unwrap();
}

#[test]
fn endpoint_that_limits_ranges_to_ten_blocks_is_read_completely() {
    let world = World::new("ten");
    for number in 1..=3 {
        world.register(number);
        world.mine(30);
    }
    for faults in [
        vec![Fault::RangeLimit { blocks: 10 }],
        vec![Fault::RangeLimit { blocks: 1 }],
        vec![Fault::EventLimit { events: 1 }],
        vec![Fault::RangeLimit { blocks: 10 }, Fault::EventLimit { events: 1 }],
    ] {
        world.server.set_faults(faults.clone());
        let mut mirror = Mirror::new(world.file.clone());
        mirror.follow().unwrap();
        assert_eq!(mirror.directory().unwrap().directory().body().relays.len(), 3, "{faults:?}");
        let all = vec![vec![RelayRegistry::Registered::SIGNATURE_HASH]];
        assert_eq!(world.logs(all).all(0, world.head()).unwrap().len(), 3, "{faults:?}");
    }
    // Where the endpoint refuses even one block, the error contains its reason.
    world.server.set_faults(vec![Fault::RangeLimit { blocks: 0 }]);
    let why = Mirror::new(world.file.clone()).follow().unwrap_err().to_string();
    assert!(why.contains("exceeds the range limit"), "{why}");
}

#[test]
fn events_of_another_contract_are_refused() {
    let world = World::new("foreign");
    world.register(1);
    world.server.set_faults(vec![Fault::ForeignEvents]);
    let mut mirror = Mirror::new(world.file.clone());
    let why = mirror.follow().unwrap_err().to_string();
    assert!(why.contains("event of 0xEeeeeEe") && why.contains("not asked for"), "{why}");
    assert!(mirror.records().is_empty());
    world.server.set_faults(Vec::new());
    mirror.follow().unwrap();
    // A query by topic returns only events with that topic.
    let registered = vec![vec![RelayRegistry::Registered::SIGNATURE_HASH]];
    assert_eq!(world.logs(registered).newest(0, world.head()).unwrap().len(), 1);
}

/// An operator's command queries the events of one relay, however many events other relays have added.
#[test]
fn newest_events_of_a_relay_are_found_by_topic() {
    let world = World::new("topic");
    (1..=3).for_each(|number| world.register(number));
    world.describe(2, 7);
    for epoch in 0..12 {
        world.describe(1, epoch);
        world.mine(5);
    }
    world.server.set_faults(vec![Fault::RangeLimit { blocks: 10 }, Fault::EventLimit { events: 4 }]);
    let kinds = vec![RelayRegistry::Registered::SIGNATURE_HASH, RelayRegistry::Described::SIGNATURE_HASH];
    let of = |relay: u64| world.logs(vec![kinds.clone(), vec![U256::from(relay).into()]]);
    let newest = of(2).newest(0, world.head()).unwrap();
    let event = RelayRegistry::Described::decode_log(newest.last().unwrap()).unwrap();
    assert_eq!((event.relayId, event.descriptor.to_vec()), (2, descriptor(2, 7)));
    let newest = of(3).newest(0, world.head()).unwrap();
    assert_eq!(RelayRegistry::Registered::decode_log(&newest[0]).unwrap().relayId, 3);
    assert!(of(4).newest(0, world.head()).unwrap().is_empty());
    let operator = vec![vec![kinds[0]], Vec::new(), vec![Address::repeat_byte(3).into_word()]];
    assert_eq!(world.logs(operator).all(0, world.head()).unwrap().len(), 1);
}

#[test]
fn restarted_mirror_continues_from_its_stored_state() {
    let world = World::new("again");
    (1..=2).for_each(|number| world.register(number));
    world.mine(100);
    let mut mirror = Mirror::keeping(world.file.clone(), world.path());
    mirror.follow().unwrap();
    let kept = std::fs::read(world.path()).unwrap();
    let begun = world.head();
    world.describe(2, 9);
    world.register(3);
    // The mirror queries only recent blocks, not those that it has stored.
    let (url, asked) = noting(world.server.node.clone());
    let file = ChainFile { endpoints: vec![url], ..world.file.clone() };
    let mut mirror = Mirror::keeping(file.clone(), world.path());
    mirror.follow().unwrap();
    assert_eq!(mirror.take_warning(), None);
    assert_eq!(mirror.directory().unwrap().directory().relay(2).unwrap().key_epoch, 9);
    assert_eq!(mirror.directory().unwrap().directory().body().relays.len(), 3);
    let first = asked.lock().unwrap().iter().map(|(from, _)| *from).min().unwrap();
    assert!(first > begun - 70, "the mirror queried block {first} although it had stored {begun}");
    let mut fresh = Mirror::new(world.file.clone());
    fresh.follow().unwrap();
    assert_eq!(mirror.records(), fresh.records());
    // A damaged file is discarded with a warning.
    for bad in [&kept[..kept.len() / 2], b"", b"{}", &[b' '; 10]] {
        std::fs::write(world.path(), bad).unwrap();
        let mut mirror = Mirror::keeping(file.clone(), world.path());
        assert!(mirror.take_warning().unwrap().contains("starts from the first block"));
        mirror.follow().unwrap();
        assert_eq!(mirror.records(), fresh.records());
    }
    std::fs::remove_dir_all(&world.folder).unwrap();
}

#[test]
fn state_of_another_chain_or_contract_is_refused() {
    let world = World::new("other");
    world.register(1);
    world.mine(100);
    Mirror::keeping(world.file.clone(), world.path()).follow().unwrap();
    let kept = std::fs::read_to_string(world.path()).unwrap();
    let value: Value = serde_json::from_str(&kept).unwrap();
    for (key, other) in [
        ("chain_id", json!(5)),
        ("registry", json!(Address::repeat_byte(9))),
        ("directory", json!(Address::repeat_byte(9))),
        ("first_block", json!(1)),
        ("schema", json!("openrelay.mirror/0")),
    ] {
        let mut changed = value.clone();
        changed[key] = other;
        std::fs::write(world.path(), changed.to_string()).unwrap();
        let why = Mirror::keeping(world.file.clone(), world.path()).take_warning();
        assert!(why.is_some_and(|why| why.contains("another")), "{key}");
    }
    // After a reorganisation, or with content that no chain has, the mirror starts again and serves nothing of the
    // stored state.
    let mut fresh = Mirror::new(world.file.clone());
    fresh.follow().unwrap();
    let mut other_block = value.clone();
    other_block["hash"] = json!(B256::repeat_byte(1));
    let mut other_relay = value.clone();
    other_relay["relays"][0]["descriptor"] = json!("0x00");
    let mut far_ahead = value;
    far_ahead["next"] = json!(u64::MAX);
    for changed in [other_block, other_relay, far_ahead] {
        std::fs::write(world.path(), changed.to_string()).unwrap();
        let mut mirror = Mirror::keeping(world.file.clone(), world.path());
        let tries = (0..3).filter(|_| mirror.follow().is_err()).count();
        assert!(tries <= 1 && mirror.records() == fresh.records(), "{changed}");
    }
    std::fs::remove_dir_all(&world.folder).unwrap();
}

/// First and last block of each query for logs.
type Asked = Arc<Mutex<Vec<(u64, u64)>>>;

/// Serves an endpoint of this node that records the blocks of its queries for logs.
fn noting(node: Arc<Mutex<Node>>) -> (String, Asked) {
    let asked = Asked::default();
    let notes = asked.clone();
    let url = answering(move |request| {
        if request["method"] == "eth_getLogs" {
            notes.lock().unwrap().push(range(&request["params"][0]));
        }
        node.lock().unwrap().handle(request).to_string()
    });
    (url, asked)
}

fn range(filter: &Value) -> (u64, u64) {
    let height = |key: &str| u64::from_str_radix(filter[key].as_str().unwrap().trim_start_matches("0x"), 16).unwrap();
    (height("fromBlock"), height("toBlock"))
}

/// A registry with very many relays and events, without the hours that creating them on a chain would take.
///
/// Blocks are real and empty. Events, registrations and the root are what a chain with them would show.
struct Flood {
    node: Node,
    registry: Address,
    directory: Address,
    events: Vec<(u64, Log)>,
    registrations: Vec<Registration>,
    root: B256,
    questions: Arc<Mutex<usize>>,
}

const RELAYS: u64 = 20_000;
const EVENTS: u64 = 100_000;
const BLOCKS: u64 = 2_000;
const ATTACKER: Address = Address::repeat_byte(0xaa);

impl Flood {
    fn new(node: Node, network: &Network, begin: u64) -> Self {
        let registry = network.contracts.registry;
        let descriptor = |relay: u64, epoch: u32| descriptor(u8::try_from(relay % 200 + 1).unwrap(), epoch);
        let registrations: Vec<Registration> = (1..=RELAYS)
            .map(|relay_id| Registration {
                relay_id,
                operator: ATTACKER,
                advertised_mbit: 1,
                bond_class: 1,
                status: Status::Active,
            })
            .collect();
        let log = |data: LogData| Log { address: registry, data };
        let mut events: Vec<(u64, Log)> = (1..=RELAYS)
            .map(|relay| {
                let event = RelayRegistry::Registered {
                    relayId: relay,
                    operator: ATTACKER,
                    withdrawal: ATTACKER,
                    advertisedMbit: 1,
                    descriptor: descriptor(relay, 1).into(),
                };
                (begin + relay * BLOCKS / (RELAYS + 1), log(event.encode_log_data()))
            })
            .collect();
        // Each event has the registry's maximum of 256 bytes. Only the last one counts.
        events.extend((0..EVENTS).map(|number| {
            let last = number + 1 == EVENTS;
            let event = RelayRegistry::Described {
                relayId: 1,
                advertisedMbit: 1,
                descriptor: if last { descriptor(1, 2) } else { vec![7; 256] }.into(),
            };
            (begin + 1 + number * (BLOCKS - 1) / EVENTS, log(event.encode_log_data()))
        }));
        events.sort_by_key(|(block, _)| *block);
        let root = directory_root(registrations.iter().map(|own| {
            let epoch = if own.relay_id == 1 { 2 } else { 1 };
            (own.relay_id, record_hash(own, Descriptor::hash(&descriptor(own.relay_id, epoch))))
        }));
        let questions = Arc::default();
        Self { node, registry, directory: network.directory, events, registrations, root, questions }
    }

    fn answer(&mut self, request: &Value) -> String {
        *self.questions.lock().unwrap() += 1;
        match request.as_array() {
            Some(all) => Value::Array(all.iter().map(|one| self.one(one)).collect()).to_string(),
            None => self.one(request).to_string(),
        }
    }

    fn one(&mut self, request: &Value) -> Value {
        let params = &request["params"];
        let result = match request["method"].as_str().unwrap() {
            "eth_getLogs" => match self.logs(&params[0]) {
                Some(logs) => logs,
                None => {
                    let error = json!({"code": -32_005, "message": "query returned more than 10000 results"});
                    return json!({"jsonrpc": "2.0", "id": request["id"], "error": error});
                }
            },
            "eth_call" if params[0]["to"] == json!(self.registry.to_string()) => {
                let input = hex::decode(params[0]["input"].as_str().unwrap()).unwrap();
                let asked = RelayRegistry::relayOfCall::abi_decode(&input).unwrap().relayId;
                let own = &self.registrations[usize::try_from(asked).unwrap() - 1];
                let relay = RelayRegistry::Relay {
                    operator: own.operator,
                    advertisedMbit: own.advertised_mbit,
                    bondClass: own.bond_class,
                    status: own.status.byte(),
                    withdrawal: own.operator,
                    timer: U48::ZERO,
                    bond: U96::ZERO,
                };
                json!(hex::encode_prefixed(relay.abi_encode()))
            }
            "eth_getProof" => {
                assert_eq!(params[0], json!(self.directory.to_string()));
                let mut answer = self.node.handle(request)["result"].clone();
                answer["storageHash"] = json!(self.root);
                answer
            }
            _ => return self.node.handle(request),
        };
        json!({"jsonrpc": "2.0", "id": request["id"], "result": result})
    }

    /// Returns at most 10,000 logs, as endpoints usually do. That is still more than fits into an answer that the
    /// mirror accepts.
    fn logs(&self, filter: &Value) -> Option<Value> {
        let (from, to) = range(filter);
        let begin = self.events.partition_point(|(block, _)| *block < from);
        let end = self.events.partition_point(|(block, _)| *block <= to);
        if end - begin > 10_000 {
            return None;
        }
        let shown = |(block, log): &(u64, Log)| {
            json!({
                "address": log.address, "topics": log.topics(), "data": log.data.data, "removed": false,
                "blockNumber": format!("{block:#x}"), "blockHash": B256::repeat_byte(1), "logIndex": "0x0",
                "transactionHash": B256::repeat_byte(2), "transactionIndex": "0x0",
            })
        };
        Some(self.events[begin..end].iter().map(shown).collect())
    }
}

/// Returns the gas of a call, as the chain estimates it.
fn gas(node: &mut Node, from: Address, to: Address, data: Vec<u8>) -> u64 {
    let call = json!([{"from": from, "to": to, "input": hex::encode_prefixed(data)}]);
    let answer = node.handle(&json!({"id": 1, "method": "eth_estimateGas", "params": call}));
    u64::from_str_radix(answer["result"].as_str().unwrap().trim_start_matches("0x"), 16).unwrap()
}

/// All events are in 2,000 blocks. A mirror finds silent relays only after it has started; the tests of `asking`
/// cover that.
#[test]
fn mirror_of_20000_relays_and_100000_events_of_one_owner_starts_within_60_s() {
    let mut node = Node::new(development(now() - 10_000), true, None);
    node.tell_time(now() - 9_000);
    let network = node.deploy(&Rules::default()).unwrap();
    register(&mut node, &network, 1);
    let (operator, registry) = (Address::repeat_byte(1), network.contracts.registry);
    let describe =
        RelayRegistry::describeCall { relayId: 1, advertisedMbit: 1, descriptor: vec![7; 256].into() }.abi_encode();
    let describe = gas(&mut node, operator, registry, describe);
    let bond = RelayRegistry::neededBondCall { advertisedMbit: 1 }.abi_encode();
    let call = json!([{"to": registry, "input": hex::encode_prefixed(bond)}, "latest"]);
    let bond = node.handle(&json!({"id": 1, "method": "eth_call", "params": call}))["result"].clone();
    let bond: U256 = bond.as_str().unwrap().parse().unwrap();
    let begin = node.chain().last().header.number + 1;
    (0..BLOCKS).for_each(|_| node.mine());
    let mut flood = Flood::new(node, &network, begin);
    let questions = flood.questions.clone();
    let url = answering(move |request| flood.answer(request));
    let mut mirror = Mirror::new(file(&network, url));
    let started = Instant::now();
    mirror.follow().unwrap();
    let took = started.elapsed();
    let token = U256::from(10u64.pow(18));
    println!(
        "a mirror of {RELAYS} relays and {EVENTS} events starts in {:.1} s with {} queries; \
         the attacker pays {} Mgas for descriptions ({describe} each), and bonds of {} tokens",
        took.as_secs_f64(),
        questions.lock().unwrap(),
        describe * EVENTS / 1_000_000,
        bond * U256::from(RELAYS) / token,
    );
    assert!(took <= Duration::from_secs(60), "{took:?}");
    assert!(!mirror.records().is_empty() && mirror.next_block() == begin + BLOCKS);
}
