//! Tests clients and operators of a chain against endpoints and mirrors that lie, fail and lag.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on must stop")]

mod rpc;

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use alloy_primitives::{Address, B256, U256, keccak256};
use alloy_sol_types::SolCall;
use k256::ecdsa::SigningKey;
use openrelay_attest::binding::Binding;
use openrelay_attest::evidence::Evidence;
use openrelay_attest::file::AttestationFile;
use openrelay_attest::verdict::Staple;
use openrelay_chain::journal::{SendError, Sender};
use openrelay_chain::mirror::Mirror;
use openrelay_chain::registry::{RelayRegistry, Token};
use openrelay_chain::{Direct, Transport, doubt_reading, read, read_by, read_lately};
use openrelay_devchain::{Fault, KNOWN, Network, Node, Rules, Server, development, serve};
use openrelay_ledger::chain::checkpoint::{Checkpoint, CheckpointFile, Signed};
use openrelay_ledger::chain::descriptor::Descriptor;
use openrelay_ledger::chain::reading::{MAX_ATTESTATION, Reading};
use openrelay_ledger::directory::{DirectoryKey, Source};
use openrelay_ledger::hex;
use openrelay_ledger::record::Role;
use openrelay_node::chain_file::ChainFile;
use openrelay_node::directory::VerifiedDirectory;
use openrelay_proto::handshake::Role as Hop;
use openrelay_proto::message::MirrorFile;
use rpc::answering;
use serde_json::json;

const RELAYS: u64 = 3;

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

fn descriptor(number: u8) -> Descriptor {
    Descriptor {
        role: if number == 1 { Role::Ingress } else { Role::Egress },
        key_epoch: 1,
        handshake_key: [number; 32],
        image: B256::ZERO,
        key_root: B256::ZERO,
        endpoints: vec![format!("198.{}.0.1:443", 17 + number).parse().unwrap()],
        family: None,
    }
}

fn directory(
    file: &ChainFile,
    kept: &std::path::Path,
) -> Result<(VerifiedDirectory, Option<String>), openrelay_chain::ChainError> {
    openrelay_chain::directory(&Direct, file, kept, 0)
}

/// A transport over two relays, which mirror the given files.
#[derive(Default)]
struct Relays {
    ingress: Vec<u8>,
    egress: Vec<u8>,
    checkpoint: Vec<u8>,
}

impl Transport for Relays {
    fn agent(&self, url: &str) -> ureq::Agent {
        Direct.agent(url)
    }

    fn relays(&self) -> &[Hop] {
        &[Hop::Ingress, Hop::Egress]
    }

    fn fetch(&self, from: Hop, file: MirrorFile) -> Result<Vec<u8>, String> {
        let held = match (from, file) {
            (Hop::Ingress, MirrorFile::Records) => &self.ingress,
            (Hop::Egress, MirrorFile::Records) => &self.egress,
            (_, MirrorFile::Checkpoint) => &self.checkpoint,
            (_, MirrorFile::Attestation) => return Err("it has none".into()),
        };
        if held.is_empty() { Err("it has none".into()) } else { Ok(held.clone()) }
    }
}

/// Three endpoints with equal chains, and a mirror.
struct World {
    network: Network,
    servers: Vec<Server>,
    mirror: String,
    file: ChainFile,
    folder: PathBuf,
}

fn serve_bytes(bytes: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/records", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 4_096]);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes));
        }
    });
    url
}

/// Returns evidence that proves nothing, of a relay at a block height.
fn staple(network: [u8; 32], relay_id: u64, block_height: u64) -> Staple {
    let evidence = Evidence::decode(&[&[2], &[0; 672 + 96][..], &[0, 0]].concat()).unwrap();
    let (image, block_hash) = ([1; 32], [2; 32]);
    let (handshake_key, key_epoch, roles) = ([3; 32], 1, 1);
    let binding = Binding { network, relay_id, handshake_key, key_epoch, roles, image, block_hash, block_height };
    Staple { evidence, binding }
}

/// Serves an endpoint of this chain that records its requests.
fn serve_and_note(node: Arc<Mutex<Node>>) -> (String, Arc<Mutex<Vec<serde_json::Value>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let notes = asked.clone();
    let url = answering(move |request| {
        notes.lock().unwrap().push(json!([request["method"], request["params"]]));
        node.lock().unwrap().handle(request).to_string()
    });
    (url, asked)
}

impl World {
    /// Creates a world whose newest block is `age` seconds old.
    fn new(name: &str, age: u64) -> Self {
        let mut node = Node::new(development(now() - age - 100), true, None);
        node.tell_time(now() - age - 90);
        let network = node.deploy(&Rules::default()).unwrap();
        for number in 1..=RELAYS {
            register(&mut node, &network, u8::try_from(number).unwrap());
        }
        node.tell_time(now() - age);
        node.mine();
        let chain = node.chain().clone();
        let servers: Vec<Server> = (0..3)
            .map(|_| {
                let node = Arc::new(Mutex::new(Node::new(chain.clone(), true, None)));
                serve(node, TcpListener::bind("127.0.0.1:0").unwrap(), None).unwrap()
            })
            .collect();
        let mut file = ChainFile {
            chain_id: network.chain_id,
            directory: network.directory,
            code_hash: network.code_hash,
            registry: network.contracts.registry,
            images: Some(network.contracts.images),
            validators: Some(network.contracts.validators),
            collateral: Some(network.contracts.collateral),
            time_divisor: 1,
            first_block: 0,
            endpoints: servers.iter().map(Server::url).collect(),
            quorum: 2,
            insecure: false,
            mirrors: Vec::new(),
            evidence: Vec::new(),
            packages: Vec::new(),
            checkpoints: Vec::new(),
            checkpoint_keys: Vec::new(),
            checkpoint_quorum: 0,
            max_age_s: 86_400,
            refresh_s: 1,
        };
        let mut mirror = Mirror::new(file.clone());
        mirror.follow().unwrap();
        let mirror = serve_bytes(mirror.records().to_vec());
        file.mirrors = vec![mirror.clone()];
        let folder = std::env::temp_dir().join(format!("openrelay-endpoints-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        Self { network, servers, mirror, file, folder }
    }

    fn fault(&self, endpoint: usize, faults: &[Fault]) {
        self.servers[endpoint].set_faults(faults.to_vec());
    }

    fn fault_all(&self, faults: &[Fault]) {
        (0..3).for_each(|endpoint| self.fault(endpoint, faults));
    }

    /// Gives all endpoints the first endpoint's blocks.
    fn share(&self) {
        let chain = self.servers[0].node.lock().unwrap().chain().clone();
        for server in &self.servers {
            *server.node.lock().unwrap() = Node::new(chain.clone(), true, None);
        }
    }

    /// Mines one more block, the same at all endpoints.
    fn mine(&self) {
        self.servers[0].node.lock().unwrap().mine();
        self.share();
    }

    fn head(&self) -> u64 {
        self.servers[0].node.lock().unwrap().chain().last().header.number
    }

    /// Returns how many relays the directory has, or the reason of the failure.
    fn read(&self) -> Result<usize, String> {
        read(&self.file, now(), 0).map(|(_, found)| found.body().relays.len()).map_err(|error| error.to_string())
    }
}

fn register(node: &mut Node, network: &Network, number: u8) {
    let operator = Address::repeat_byte(number);
    let request = |method: &str, params: serde_json::Value| json!({"id": 1, "method": method, "params": params});
    let amount = U256::from(10u64.pow(18)) * U256::from(100);
    let fund = request("devchain_fund", json!([operator, network.contracts.token, format!("{amount:#x}")]));
    assert_eq!(node.handle(&fund)["result"], true);
    let approve = Token::approveCall { spender: network.contracts.registry, value: amount }.abi_encode();
    node.send_unsigned(operator, network.contracts.token, approve.into()).unwrap();
    let call = RelayRegistry::registerCall {
        advertisedMbit: 100,
        withdrawal: Address::repeat_byte(0xcc),
        amount: amount.to(),
        descriptor: descriptor(number).encode().unwrap().into(),
    };
    node.send_unsigned(operator, network.contracts.registry, call.abi_encode().into()).unwrap();
}

#[test]
fn honest_chain_gives_the_whole_directory_with_its_proof() {
    let world = World::new("honest", 0);
    let (reading, found) = read(&world.file, now(), 0).unwrap();
    let Source::Chain(facts) = found.source() else { panic!("the source is not a chain") };
    assert_eq!((facts.block, facts.withheld, facts.malformed, facts.inactive), (world.head(), 0, 0, 0));
    assert_eq!(found.body().relays.len(), 3);
    assert_eq!(found.relay(2).unwrap().key(), Some([2; 32]));
    assert_eq!(found.network_id(), world.file.trust().network_id());
    // The encoded reading works too, and every change in it is detected.
    let bytes = reading.encode().unwrap();
    let again = Reading::decode(&bytes).unwrap();
    assert_eq!(again, reading);
    let trust = world.file.trust();
    let voted = reading.voted(&trust).unwrap();
    let without = Reading { states: Vec::new(), ..reading.clone() };
    let states = bytes.iter().zip(&without.encode().unwrap()).take_while(|(one, other)| one == other).count();
    for at in (0..bytes.len()).step_by(7) {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let read = Reading::decode(&changed);
        let both = read.and_then(|read| Ok((read.verify(&trust, now(), 86_400, 0)?, read.voted(&trust)?)));
        if let Ok((other, said)) = both {
            let Source::Chain(other) = other.source() else { panic!("the source is not a chain") };
            assert_eq!(other.storage_root, facts.storage_root, "byte {at}");
            if (states..bytes.len() - reading.records.len()).contains(&at) {
                // A byte that no reader needs, such as an empty place in the list of images.
                assert_eq!((said.images, said.bundle), (voted.images.clone(), voted.bundle), "byte {at}");
            } else {
                // A header that differs outside its state root has another hash, which no quorum reports.
                assert_ne!(other.block_hash, facts.block_hash, "byte {at}");
            }
        }
    }
}

/// Mirrors and endpoints together cannot recognise a client: its queries do not depend on the evidence that it has.
#[test]
fn queries_to_endpoints_do_not_depend_on_evidence_from_mirrors() {
    let mut world = World::new("questions", 700);
    let node = world.servers[0].node.clone();
    node.lock().unwrap().tell_time(now() - 690);
    (0..650).for_each(|_| node.lock().unwrap().mine());
    let (url, asked) = serve_and_note(node);
    (world.file.endpoints, world.file.quorum) = (vec![url], 1);
    let network = world.file.trust().network_id();
    let mut questions = |heights: &[u64]| {
        let staples = heights.iter().map(|height| staple(network, 1, *height)).collect();
        let file = AttestationFile { staples, ..AttestationFile::default() };
        world.file.evidence = vec![serve_bytes(file.encode())];
        asked.lock().unwrap().clear();
        let (reading, _) = read(&world.file, now(), 0).unwrap();
        (asked.lock().unwrap().clone(), AttestationFile::decode(&reading.attestation).unwrap())
    };
    let (none, _) = questions(&[]);
    assert!(none.len() >= 5, "{none:?}");
    let (odd, kept) = questions(&[3, 511, 600, 640]);
    assert_eq!((odd, kept.staples.len()), (none.clone(), 0));
    let (even, kept) = questions(&[0, 256, 512, 1 << 60]);
    assert_eq!(even, none);
    // Of the staples whose blocks evidence can name, the newest two are kept, and the header of the newest.
    let heights: Vec<u64> = kept.staples.iter().map(|staple| staple.binding.block_height).collect();
    assert_eq!((heights, kept.headers.len()), (vec![512, 256], 1));
}

/// Evidence in the cache is not displaced by what a mirror sends in the same relay's name.
#[test]
fn evidence_from_mirrors_does_not_displace_cached_evidence() {
    let mut world = World::new("places", 700);
    {
        let mut node = world.servers[0].node.lock().unwrap();
        node.tell_time(now() - 690);
        (0..650).for_each(|_| node.mine());
    }
    world.share();
    let network = world.file.trust().network_id();
    let file = |heights: &[u64]| {
        let staples = heights.iter().map(|height| staple(network, 1, *height)).collect();
        AttestationFile { staples, ..AttestationFile::default() }.encode()
    };
    let (mut kept, _) = read(&world.file, now(), 0).unwrap();
    kept.attestation = file(&[0]);
    world.file.evidence = vec![serve_bytes(file(&[256, 512]))];
    let (reading, _) = read_by(&Direct, &world.file, (now(), 0), Some(&kept), &[]).unwrap();
    let found = AttestationFile::decode(&reading.attestation).unwrap();
    let heights: Vec<u64> = found.staples.iter().map(|staple| staple.binding.block_height).collect();
    assert_eq!(heights, [0, 512, 256]);
    assert!(Reading::decode(&reading.encode().unwrap()).is_ok());
    // A reading that could not be read back is not encoded.
    kept.attestation = vec![0; MAX_ATTESTATION + 1];
    assert_eq!(kept.encode(), None);
}

/// One endpoint that lies or fails is tolerated. When all do, the error gives the reason.
#[test]
fn one_lying_endpoint_is_tolerated_and_three_are_refused() {
    let world = World::new("lying", 0);
    let rows: [(&str, Vec<Fault>, &str); 10] = [
        ("another chain", vec![Fault::OtherChain { id: 5 }], "serves chain 5, not 31337"),
        ("a forged header", vec![Fault::ForgedHeader], "header is malformed"),
        ("a forged proof", vec![Fault::ForgedProof], "does not show what is claimed"),
        ("no proof", vec![Fault::NoProof], "does not show what is claimed"),
        ("no state to prove", vec![Fault::ProofWindow0], "proof window"),
        ("null for an error", vec![Fault::ProofWindow0, Fault::NullForError], "no account or no proof"),
        ("half an answer", vec![Fault::Truncated], "malformed answer"),
        ("an answer of a gibibyte", vec![Fault::Huge], "limit"),
        ("nothing", vec![Fault::Down], "503"),
        ("an unknown method", vec![Fault::Down, Fault::NullForError], "503"),
    ];
    for (what, faults, said) in rows {
        world.fault(0, &faults);
        assert_eq!(world.read(), Ok(3), "{what} from one endpoint");
        world.fault_all(&faults);
        let why = world.read().unwrap_err();
        assert!(why.contains(said), "{what}: {why}");
        world.fault_all(&[]);
    }
}

#[test]
fn endpoint_that_answers_too_late_is_tolerated() {
    let world = World::new("slow", 0);
    world.fault(0, &[Fault::Slow { ms: 60_000 }]);
    assert_eq!(world.read(), Ok(3));
}

#[test]
fn head_older_than_one_seen_before_is_refused() {
    let world = World::new("stale", 0);
    let seen = world.head();
    world.fault(0, &[Fault::StaleHead { blocks: 2 }]);
    let (_, found) = read(&world.file, now(), seen).unwrap();
    assert_eq!(found.body().sequence, seen, "another endpoint must be queried");
    world.fault_all(&[Fault::StaleHead { blocks: 2 }]);
    assert!(read(&world.file, now(), seen).unwrap_err().to_string().contains("was seen before"));
    let old = World::new("old", 86_400 + 60);
    assert!(old.read().unwrap_err().contains("s old"));
}

/// An old head is genuine, and the other endpoints confirm it. But no mirror has its records any longer.
#[test]
fn endpoint_that_lags_behind_a_change_is_skipped() {
    let mut world = World::new("behind", 0);
    for server in &world.servers {
        register(&mut server.node.lock().unwrap(), &world.network, 9);
    }
    world.share();
    let mut mirror = Mirror::new(world.file.clone());
    mirror.follow().unwrap();
    world.file.mirrors = vec![serve_bytes(mirror.records().to_vec())];
    world.fault(0, &[Fault::StaleHead { blocks: 3 }]);
    assert_eq!(world.read(), Ok(4));
}

/// The registry accepts descriptors that readers refuse. They affect only their own relay, not the mirror.
#[test]
fn too_long_descriptor_affects_only_its_own_relay() {
    let world = World::new("long", 0);
    let call = |descriptor: Vec<u8>| RelayRegistry::describeCall {
        relayId: 2,
        advertisedMbit: 100,
        descriptor: descriptor.into(),
    };
    for length in [163, 256] {
        {
            let mut node = world.servers[0].node.lock().unwrap();
            let data = call(vec![7; length]).abi_encode().into();
            node.send_unsigned(Address::repeat_byte(2), world.network.contracts.registry, data).unwrap();
        }
        let mut mirror = Mirror::new(world.file.clone());
        mirror.follow().unwrap();
        let mut file = world.file.clone();
        (file.mirrors, file.quorum) = (vec![serve_bytes(mirror.records().to_vec())], 1);
        let (_, found) = read(&file, now(), 0).unwrap();
        let Source::Chain(facts) = found.source() else { panic!("the source is not a chain") };
        assert_eq!((found.body().relays.len(), facts.withheld, facts.malformed), (2, 0, 1), "{length}");
    }
}

#[test]
fn endpoints_that_disagree_are_not_a_quorum() {
    let world = World::new("split", 0);
    for (at, server) in world.servers.iter().enumerate() {
        let mut node = server.node.lock().unwrap();
        node.tell_time(now() + 1 + at as u64);
        node.mine();
    }
    let why = world.read().unwrap_err();
    assert!(why.contains("disagree") && why.contains("1 of 3"), "{why}");
    // Two endpoints that agree outvote the third, whichever is queried first.
    for at in [0, 1] {
        let chain = world.servers[2].node.lock().unwrap().chain().clone();
        *world.servers[at].node.lock().unwrap() = Node::new(chain, true, None);
    }
    let mut odd = world.servers[0].node.lock().unwrap();
    odd.handle(&json!({"id": 1, "method": "devchain_reorganise", "params": ["0x1"]}));
    odd.tell_time(now() + 9);
    odd.mine();
    drop(odd);
    assert_eq!(world.read(), Ok(3));
}

#[test]
fn contract_with_other_code_is_refused() {
    let mut world = World::new("code", 0);
    world.file.code_hash = B256::repeat_byte(1);
    assert!(world.read().unwrap_err().contains("other code"));
    world.file.code_hash = world.network.code_hash;
    // A directory contract in its place that has other code.
    world.file.directory = world.network.contracts.token;
    assert!(world.read().unwrap_err().contains("other code"));
}

#[test]
fn lying_mirror_is_skipped_for_the_next_one() {
    let mut world = World::new("mirror", 0);
    let honest = Mirror::new(world.file.clone());
    let mut honest = honest;
    honest.follow().unwrap();
    let good = honest.records().to_vec();
    let mut tampered = good.clone();
    *tampered.last_mut().unwrap() ^= 1;
    let mut short = good.clone();
    short.truncate(good.len() - 20);
    for (what, bytes) in
        [("tampered", tampered), ("short", short), ("empty", Vec::new()), ("large", vec![b'a'; 3 << 20])]
    {
        let liar = serve_bytes(bytes);
        world.file.mirrors = vec![liar.clone()];
        assert!(world.read().unwrap_err().contains("no mirror has the records"), "{what}");
        world.file.mirrors = vec![liar, world.mirror.clone()];
        assert_eq!(world.read(), Ok(3), "{what}");
    }
    world.file.mirrors = Vec::new();
    assert!(world.read().unwrap_err().contains("none is configured"));
}

#[test]
fn relays_of_the_circuit_serve_records_and_are_not_trusted() {
    let mut world = World::new("relays", 0);
    let mut honest = Mirror::new(world.file.clone());
    honest.follow().unwrap();
    let good = honest.records().to_vec();
    let mut tampered = good.clone();
    *tampered.last_mut().unwrap() ^= 1;
    let read = |file: &ChainFile, transport: &Relays| {
        read_by(transport, file, (now(), 0), None, &[])
            .map(|(_, found)| found.body().relays.len())
            .map_err(|error| error.to_string())
    };
    let liar = Relays { ingress: tampered.clone(), egress: b"nonsense".to_vec(), ..Relays::default() };
    assert_eq!(read(&world.file, &liar), Ok(3), "a mirror has the records");
    world.file.mirrors = Vec::new();
    let why = read(&world.file, &liar).unwrap_err();
    assert!(why.contains("the ingress") && why.contains("the egress"), "{why}");
    assert!(read(&world.file, &Relays::default()).unwrap_err().contains("it has none"));
    assert_eq!(read(&world.file, &Relays { ingress: tampered, egress: good, ..Relays::default() }), Ok(3));
}

#[test]
fn relays_of_the_circuit_serve_signed_checkpoints() {
    let mut world = World::new("relays-checkpoint", 0);
    let signed = serve_checkpoint(&mut world, &[0, 1]);
    let transport = Relays { checkpoint: signed.encode().unwrap(), ..Relays::default() };
    world.fault_all(&[Fault::Down]);
    world.file.checkpoints = vec!["http://127.0.0.1:1/checkpoint".into()];
    let kept = world.folder.join("reading");
    let (found, warning) = openrelay_chain::directory(&transport, &world.file, &kept, 0).unwrap();
    assert_eq!(found.directory().body().sequence, signed.signed.checkpoint.number);
    assert!(warning.unwrap().contains("signed checkpoint"));
}

#[test]
fn cached_directory_serves_without_endpoints_until_it_is_too_old() {
    let mut world = World::new("kept", 500);
    let kept = world.folder.join("kept.reading");
    let (_, warning) = directory(&world.file, &kept).unwrap();
    assert_eq!(warning, None);
    world.fault_all(&[Fault::Down]);
    let (found, warning) = directory(&world.file, &kept).unwrap();
    assert_eq!(found.directory().body().relays.len(), 3);
    assert!(warning.unwrap().contains("cached directory"));
    world.file.max_age_s = 400;
    directory(&world.file, &kept).unwrap_err();
    world.file.max_age_s = 86_400;
    std::fs::write(&kept, b"openrelay-reading/1\n").unwrap();
    directory(&world.file, &kept).unwrap_err();
    std::fs::remove_dir_all(&world.folder).unwrap();
}

/// Makes `places` of three keys sign the world's newest block, and serves the checkpoint from a mirror. Two
/// signatures are required.
fn serve_checkpoint(world: &mut World, places: &[u8]) -> CheckpointFile {
    let key = |place: u8| DirectoryKey::from_seed([place + 1; 32]).unwrap();
    let (reading, found) = read(&world.file, now(), 0).unwrap();
    let Source::Chain(facts) = found.source() else { panic!("the source is not a chain") };
    let checkpoint = Checkpoint {
        chain_id: world.file.chain_id,
        number: facts.block,
        hash: facts.block_hash,
        timestamp: facts.timestamp,
    };
    let mut signed = Signed::new(checkpoint);
    places.iter().for_each(|place| signed.sign(*place, &key(*place)));
    let file = CheckpointFile { signed, reading };
    world.file.checkpoints = vec![serve_bytes(file.encode().unwrap())];
    world.file.checkpoint_keys = (0..3).map(|place| hex::encode(&key(place).public())).collect();
    world.file.checkpoint_quorum = 2;
    file
}

#[test]
fn signed_checkpoint_serves_without_endpoints() {
    let mut world = World::new("checkpoint", 100);
    let kept = world.folder.join("reading");
    let file = serve_checkpoint(&mut world, &[0, 2]);
    world.fault_all(&[Fault::Down]);
    let (found, warning) = directory(&world.file, &kept).unwrap();
    assert_eq!(found.directory().body().relays.len(), 3);
    assert!(warning.unwrap().contains("signed checkpoint"));
    // The client has cached it, and accepts nothing older.
    assert_eq!(found.directory().body().sequence, file.signed.checkpoint.number);
    // With too few keys, the cached directory serves, and without it nothing does.
    for places in [&[0][..], &[]] {
        world.fault_all(&[]);
        serve_checkpoint(&mut world, places);
        world.fault_all(&[Fault::Down]);
        let fresh = world.folder.join(format!("fresh-{}", places.len()));
        let why = directory(&world.file, &fresh).unwrap_err().to_string();
        assert!(why.contains("first start") && why.contains("2 must"), "{why}");
        assert!(directory(&world.file, &kept).unwrap().1.unwrap().contains("cached directory"));
    }
}

#[test]
fn checkpoint_proves_only_its_own_block() {
    let mut world = World::new("spliced", 0);
    let old = serve_checkpoint(&mut world, &[0, 1]);
    world.mine();
    let new = serve_checkpoint(&mut world, &[0, 1]);
    let spliced = CheckpointFile { signed: old.signed.clone(), reading: new.reading };
    world.file.checkpoints = vec![serve_bytes(spliced.encode().unwrap())];
    let why = directory(&world.file, &world.folder.join("spliced")).unwrap_err().to_string();
    assert!(why.contains("of another block"), "{why}");
    // One lying mirror is tolerated, because the next mirror has the checkpoint.
    world.file.checkpoints.push(serve_bytes(old.encode().unwrap()));
    directory(&world.file, &world.folder.join("other")).unwrap();
}

#[test]
fn first_start_accepts_nothing_older_than_the_checkpoint() {
    let mut world = World::new("first", 0);
    let stale = world.head();
    world.mine();
    let signed = serve_checkpoint(&mut world, &[1, 2]).signed.checkpoint.number;
    assert!(signed > stale);
    world.fault_all(&[Fault::StaleHead { blocks: 1 }]);
    // The endpoints agree on an old block, but the checkpoint is newer.
    let (found, warning) = directory(&world.file, &world.folder.join("reading")).unwrap();
    assert_eq!(found.directory().body().sequence, signed);
    assert!(warning.unwrap().contains("was seen before"));
}

#[test]
fn mirror_follows_and_restarts_after_a_reorganisation() {
    let world = World::new("reorganised", 0);
    let mut mirror = Mirror::new(world.file.clone());
    mirror.follow().unwrap();
    let before = mirror.records().to_vec();
    {
        let mut node = world.servers[0].node.lock().unwrap();
        register(&mut node, &world.network, 9);
    }
    mirror.follow().unwrap();
    assert_ne!(mirror.records(), before);
    assert_eq!(mirror.relay_of(Address::repeat_byte(9)), Some(RELAYS + 1));
    {
        let mut node = world.servers[0].node.lock().unwrap();
        node.handle(&json!({"id": 1, "method": "devchain_reorganise", "params": ["0x4"]}));
        (0..4).for_each(|_| node.mine());
    }
    // The first call notices that the mirror's events belong to no chain any longer.
    let _ = mirror.follow();
    mirror.follow().unwrap();
    assert_eq!(mirror.records(), before);
    assert_eq!(mirror.relay_of(Address::repeat_byte(9)), None);
    // An operator that leaves may register again.
    assert_eq!(mirror.relay_of(Address::repeat_byte(2)), Some(2));
    let hash = keccak256(descriptor(2).encode().unwrap());
    let unbond = RelayRegistry::unbondCall { relayId: 2, descriptorHash: hash }.abi_encode();
    {
        let mut node = world.servers[0].node.lock().unwrap();
        node.send_unsigned(Address::repeat_byte(2), world.network.contracts.registry, unbond.into()).unwrap();
    }
    mirror.follow().unwrap();
    assert_eq!(mirror.relay_of(Address::repeat_byte(2)), None);
}

fn sender(world: &World, who: usize) -> Sender {
    Sender::new(&world.file, SigningKey::from_slice(KNOWN[who].1.as_slice()).unwrap(), &world.folder)
        .with_patience(Duration::ZERO)
}

fn nonce(world: &World, who: usize) -> u64 {
    let node = world.servers[0].node.lock().unwrap();
    node.chain().newest().account(KNOWN[who].0).map_or(0, |account| account.nonce)
}

fn mint(amount: u64) -> Vec<u8> {
    alloy_sol_types::sol! { function mint(address to, uint256 amount) external; }
    mintCall { to: Address::repeat_byte(7), amount: U256::from(amount) }.abi_encode()
}

#[test]
fn signed_transaction_is_resent_and_only_once() {
    let world = World::new("journal", 0);
    world.fault(0, &[Fault::DropTransactions]);
    let sender = sender(&world, 0);
    let before = nonce(&world, 0);
    let Err(SendError::Waiting(hash)) = sender.send("mint", world.network.contracts.token, &mint(1)) else {
        panic!("sent")
    };
    assert_eq!(nonce(&world, 0), before);
    // A killed and restarted sender with a working endpoint sends the same transaction, not a second one.
    world.fault(0, &[]);
    let again = Sender::new(&world.file, SigningKey::from_slice(KNOWN[0].1.as_slice()).unwrap(), &world.folder);
    assert_eq!(again.send("mint", world.network.contracts.token, &mint(1)).unwrap().hash, hash);
    assert_eq!(nonce(&world, 0), before + 1);
    // After completion the next transaction of this name is a new one.
    assert_ne!(again.send("mint", world.network.contracts.token, &mint(1)).unwrap().hash, hash);
    std::fs::remove_dir_all(&world.folder).unwrap();
}

/// A caller may be killed before it records the outcome.
#[test]
fn mined_transaction_is_reported_until_it_is_forgotten() {
    let world = World::new("resume", 0);
    let sender = sender(&world, 0).with_patience(Duration::from_secs(5));
    assert!(sender.resume("mint").unwrap().is_none());
    let done = sender.send_and_keep("mint", world.network.contracts.token, &mint(1)).unwrap();
    let before = nonce(&world, 0);
    for _ in 0..2 {
        assert_eq!(sender.resume("mint").unwrap().unwrap().hash, done.hash);
        assert_eq!(sender.send_and_keep("mint", world.network.contracts.token, &mint(1)).unwrap().hash, done.hash);
    }
    assert_eq!(nonce(&world, 0), before, "a transaction was sent again");
    sender.forget().unwrap();
    sender.forget().unwrap();
    assert!(sender.resume("mint").unwrap().is_none());
    std::fs::remove_dir_all(&world.folder).unwrap();
}

#[test]
fn transaction_replaced_by_another_is_given_up() {
    let world = World::new("overtaken", 0);
    world.fault(0, &[Fault::DropTransactions]);
    sender(&world, 0).send("mint", world.network.contracts.token, &mint(1)).unwrap_err();
    world.fault(0, &[]);
    {
        // Another tool sends with the same key.
        let mut node = world.servers[0].node.lock().unwrap();
        node.send_unsigned(KNOWN[0].0, world.network.contracts.token, mint(2).into()).unwrap();
    }
    let again = sender(&world, 0).with_patience(Duration::from_secs(5));
    let why = again.send("mint", world.network.contracts.token, &mint(1)).unwrap_err();
    assert!(matches!(why, SendError::Overtaken(_)), "{why}");
    again.send("mint", world.network.contracts.token, &mint(1)).unwrap();
    std::fs::remove_dir_all(&world.folder).unwrap();
}

#[test]
fn excessive_fees_are_not_paid() {
    let world = World::new("fees", 0);
    world.fault(0, &[Fault::StuckBaseFee { wei: 1_000_000_000_000_000 }]);
    world.servers[0].node.lock().unwrap().mine();
    let url = world.servers[0].url();
    openrelay_chain::Endpoint::new(&url).ask("evm_mine", &json!([])).unwrap();
    let why = sender(&world, 0).send("mint", world.network.contracts.token, &mint(1)).unwrap_err();
    assert!(matches!(why, SendError::TooExpensive { .. }), "{why}");
}

#[test]
fn new_transaction_waits_for_the_pending_one() {
    let world = World::new("queue", 0);
    world.fault(0, &[Fault::DropTransactions]);
    let sender = sender(&world, 0);
    sender.send("first", world.network.contracts.token, &mint(1)).unwrap_err();
    sender.send("second", world.network.contracts.token, &mint(2)).unwrap_err();
    world.fault(0, &[]);
    let before = nonce(&world, 0);
    let patient = Sender::new(&world.file, SigningKey::from_slice(KNOWN[0].1.as_slice()).unwrap(), &world.folder);
    patient.send("second", world.network.contracts.token, &mint(2)).unwrap();
    assert_eq!(nonce(&world, 0), before + 2, "both are sent in their order");
    std::fs::remove_dir_all(&world.folder).unwrap();
}

#[test]
fn refused_or_unaffordable_transaction_is_not_sent() {
    let world = World::new("refused", 0);
    let call = RelayRegistry::withdrawCall { relayId: 1 }.abi_encode();
    let why = sender(&world, 0).send("withdraw", world.network.contracts.registry, &call).unwrap_err();
    assert!(matches!(&why, SendError::Refused(text) if text.contains("WrongStatus")), "{why}");
    let poor = Sender::new(&world.file, SigningKey::from_slice(&[9; 32]).unwrap(), &world.folder);
    let why = poor.send("mint", world.network.contracts.token, &mint(1)).unwrap_err();
    assert!(matches!(why, SendError::Funds { .. }), "{why}");
    world.fault(0, &[Fault::OtherChain { id: 1 }]);
    let why = sender(&world, 0).send("mint", world.network.contracts.token, &mint(1)).unwrap_err();
    assert!(why.to_string().contains("serves chain 1"), "{why}");
    let kept = std::fs::read_dir(&world.folder)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "json"));
    assert_eq!(kept.count(), 0, "a transaction was signed");
}

#[test]
fn recent_reading_is_not_queried_again() {
    let mut world = World::new("lately", 0);
    let kept = world.folder.join("reading");
    assert!(read_lately(&world.file, &kept).is_none(), "nothing was read yet");
    directory(&world.file, &kept).unwrap();
    let found = read_lately(&world.file, &kept).unwrap();
    assert_eq!(found.directory().body().relays.len(), 3);
    let note = kept.with_extension("read-at");
    let read_at = |at: u64| std::fs::write(&note, format!("{at}\n")).unwrap();
    read_at(now() - world.file.refresh_s - 1);
    assert!(read_lately(&world.file, &kept).is_none(), "the reading is too old");
    read_at(now() + 100);
    assert!(read_lately(&world.file, &kept).is_none(), "the reading is in the future");
    read_at(now());
    let code = std::mem::replace(&mut world.file.code_hash, B256::repeat_byte(1));
    assert!(read_lately(&world.file, &kept).is_none(), "the cache must be verified");
    world.file.code_hash = code;
    assert!(read_lately(&world.file, &kept).is_some());
    doubt_reading(&kept);
    assert!(read_lately(&world.file, &kept).is_none(), "a relay in it did not answer");
    // A reading that no endpoint has confirmed does not count as recent, however new it is.
    serve_checkpoint(&mut world, &[0, 1]);
    world.fault_all(&[Fault::Down]);
    assert!(directory(&world.file, &kept).unwrap().1.unwrap().contains("signed checkpoint"));
    assert!(read_lately(&world.file, &kept).is_none());
}

#[test]
fn records_with_unchanged_root_are_not_queried_again() {
    let mut world = World::new("same-root", 0);
    let (older, _) = read(&world.file, now(), 0).unwrap();
    world.file.mirrors = Vec::new();
    world.mine();
    let again = |older: &Reading| read_by(&Direct, &world.file, (now(), 0), Some(older), &[]);
    let (newer, found) = again(&older).unwrap();
    assert_eq!((newer.account.storage_root, found.body().relays.len()), (older.account.storage_root, 3));
    assert_ne!(newer.header, older.header);
    let mut tampered = older.clone();
    *tampered.records.last_mut().unwrap() ^= 1;
    assert!(
        again(&tampered).unwrap_err().to_string().contains("none is configured"),
        "cached records must be verified"
    );
}

#[test]
fn directory_older_than_the_one_in_use_is_refused() {
    let world = World::new("floor", 0);
    let kept = world.folder.join("reading");
    directory(&world.file, &kept).unwrap();
    let floor = world.head() + 1;
    let older = |floor| openrelay_chain::directory(&Direct, &world.file, &kept, floor).map(|_| ());
    assert!(
        older(floor).unwrap_err().to_string().contains("was seen before"),
        "neither endpoints nor the cache may give it"
    );
    world.mine();
    older(floor).unwrap();
}
