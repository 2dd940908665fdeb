//! Tests clients without endpoints, and with a chain that stands still: how long a cached or signed directory serves,
//! and what ends it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on must stop")]

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use openrelay_chain::mirror::Mirror;
use openrelay_chain::{ChainError, Direct, directory, kept_directory, read, voted};
use openrelay_devchain::{Fault, Node, Rules, Server, development, serve};
use openrelay_ledger::chain::checkpoint::{Checkpoint, CheckpointFile, Signed};
use openrelay_ledger::chain::reading::Reading;
use openrelay_ledger::directory::{DirectoryKey, Source};
use openrelay_ledger::hex;
use openrelay_node::chain_file::ChainFile;
use openrelay_node::directory::VerifiedDirectory;

const HOUR: u64 = 3_600;

fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// Three endpoints with equal chains, and a client's folder.
struct World {
    servers: Vec<Server>,
    file: ChainFile,
    folder: PathBuf,
}

impl World {
    /// Creates a world whose newest block is `age` seconds old.
    fn new(name: &str, age: u64) -> Self {
        let mut node = Node::new(development(now() - age - 100), true, None);
        node.tell_time(now() - age - 90);
        let network = node.deploy(&Rules::default()).unwrap();
        node.tell_time(now() - age);
        node.mine();
        let chain = node.chain().clone();
        let server = |_| {
            let node = Arc::new(Mutex::new(Node::new(chain.clone(), true, None)));
            serve(node, TcpListener::bind("127.0.0.1:0").unwrap(), None).unwrap()
        };
        let servers: Vec<Server> = (0..3).map(server).collect();
        let folder = std::env::temp_dir().join(format!("openrelay-offline-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let urls: Vec<String> = servers.iter().map(|server| format!("\"{}\"", server.url())).collect();
        let contracts = &network.contracts;
        let text = format!(
            "chain_id = {}\ndirectory = \"{}\"\ncode_hash = \"{}\"\nregistry = \"{}\"\nimages = \"{}\"\n\
             collateral = \"{}\"\n\
             endpoints = [{}]\nquorum = 2\n",
            network.chain_id,
            network.directory,
            network.code_hash,
            contracts.registry,
            contracts.images,
            contracts.collateral,
            urls.join(", ")
        );
        std::fs::write(folder.join("chain.toml"), text).unwrap();
        let mut file = ChainFile::load(&folder.join("chain.toml")).unwrap();
        let mut mirror = Mirror::new(file.clone());
        mirror.follow().unwrap();
        file.mirrors = vec![serve_bytes(mirror.records().to_vec())];
        Self { servers, file, folder }
    }

    fn kept(&self) -> PathBuf {
        self.folder.join("reading")
    }

    /// Returns the reading at the time when the newest block was new.
    fn read_then(&self, age: u64) -> Reading {
        read(&self.file, now() - age, 0).unwrap().0
    }

    /// Stores that reading in the client's cache.
    fn keep(&self, age: u64) {
        std::fs::write(self.kept(), self.read_then(age).encode().unwrap()).unwrap();
    }

    fn fault(&self, endpoints: &[usize], faults: &[Fault]) {
        endpoints.iter().for_each(|endpoint| self.servers[*endpoint].set_faults(faults.to_vec()));
    }

    /// Mines one more block at these endpoints only.
    fn mine(&self, endpoints: &[usize]) {
        let time = now();
        for endpoint in endpoints {
            let mut node = self.servers[*endpoint].node.lock().unwrap();
            node.tell_time(time);
            node.mine();
        }
    }

    fn directory(&self) -> Result<(VerifiedDirectory, Option<String>), ChainError> {
        directory(&Direct, &self.file, &self.kept(), 0)
    }

    /// Returns whether the directory counts as the newest known.
    fn is_newest_known(&self) -> bool {
        self.directory().unwrap().0.is_newest_known()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn serve_bytes(bytes: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/file", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.read(&mut [0; 4_096]);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes));
        }
    });
    url
}

const ALL: [usize; 3] = [0, 1, 2];

#[test]
fn cached_directory_serves_71_hours_while_all_endpoints_are_blocked() {
    let mut world = World::new("blocked", 71 * HOUR);
    world.keep(71 * HOUR);
    world.fault(&ALL, &[Fault::Down]);
    let (found, warning) = world.directory().unwrap();
    assert!(found.is_newest_known() && warning.unwrap().contains("cached directory"));
    // No server listens at the endpoints either.
    world.file.endpoints = vec!["http://127.0.0.1:1".into(), "http://127.0.0.1:2".into()];
    assert!(world.is_newest_known());
    assert!(kept_directory(&world.file, &world.kept()).unwrap().is_newest_known());
}

#[test]
fn cached_directory_serves_71_hours_while_the_chain_stands_still() {
    let world = World::new("still", 71 * HOUR);
    world.keep(71 * HOUR);
    let (found, warning) = world.directory().unwrap();
    let warning = warning.unwrap();
    assert!(found.is_newest_known() && warning.contains("cached") && warning.contains("has stalled"), "{warning}");
}

#[test]
fn cached_directory_is_refused_with_its_age_after_72_hours() {
    let world = World::new("old", 73 * HOUR);
    world.keep(73 * HOUR);
    for faults in [vec![Fault::Down], Vec::new()] {
        world.fault(&ALL, &faults);
        let error = world.directory().unwrap_err();
        assert!(matches!(error, ChainError::Outdated { .. }), "{error}");
        let said = error.to_string();
        let age =
            ["73 hours", "74 hours"].into_iter().any(|age| said.starts_with(&format!("the directory is {age} old")));
        assert!(age && said.contains("the limit is 72 hours"), "{said}");
    }
}

#[test]
fn newer_block_shown_by_a_quorum_ends_the_cached_directory() {
    let world = World::new("newer", 20 * HOUR);
    world.keep(20 * HOUR);
    // Two endpoints have a newer block but prove nothing.
    world.fault(&ALL, &[Fault::NoProof]);
    assert!(world.is_newest_known());
    world.mine(&[0, 1]);
    assert!(!world.is_newest_known());
    // The client remembers the newer block, whatever endpoints do later.
    world.fault(&ALL, &[Fault::Down]);
    assert!(!world.is_newest_known());
    assert!(!kept_directory(&world.file, &world.kept()).unwrap().is_newest_known());
    std::fs::write(world.kept().with_extension("newest"), "nonsense").unwrap();
    assert!(!world.is_newest_known());
    // This holds until a directory is proven at the newest block again.
    world.fault(&ALL, &[]);
    world.mine(&[2]);
    let (found, warning) = world.directory().unwrap();
    assert!(found.is_newest_known() && warning.is_none());
    world.fault(&ALL, &[Fault::Down]);
    assert!(world.is_newest_known());
}

#[test]
fn newer_block_claimed_by_one_endpoint_is_ignored() {
    let world = World::new("one", 20 * HOUR);
    world.keep(20 * HOUR);
    world.fault(&ALL, &[Fault::NoProof]);
    world.mine(&[0]);
    assert!(world.is_newest_known());
}

/// Makes one of the network's keys sign the newest block.
fn sign(world: &mut World, age: u64) {
    let key = DirectoryKey::from_seed([1; 32]).unwrap();
    let reading = world.read_then(age);
    let (_, found) = read(&world.file, now() - age, 0).unwrap();
    let Source::Chain(facts) = found.source() else { panic!("the source is not a chain") };
    let (number, hash, timestamp) = (facts.block, facts.block_hash, facts.timestamp);
    let mut signed = Signed::new(Checkpoint { chain_id: world.file.chain_id, number, hash, timestamp });
    signed.sign(0, &key);
    world.file.checkpoints = vec![serve_bytes(CheckpointFile { signed, reading }.encode().unwrap())];
    world.file.checkpoint_keys = vec![hex::encode(&key.public())];
    world.file.checkpoint_quorum = 1;
}

#[test]
fn checkpoint_serves_a_first_start_71_hours_without_endpoints() {
    let mut world = World::new("checkpoint", 71 * HOUR);
    sign(&mut world, 71 * HOUR);
    world.fault(&ALL, &[Fault::Down]);
    let (found, warning) = world.directory().unwrap();
    assert!(found.is_newest_known() && warning.unwrap().contains("signed checkpoint"));
    // The client caches it from there on.
    world.file.checkpoints = vec!["http://127.0.0.1:1/checkpoint".into()];
    assert!(world.is_newest_known());
    let mut world = World::new("old-checkpoint", 73 * HOUR);
    sign(&mut world, 73 * HOUR);
    world.fault(&ALL, &[Fault::Down]);
    let error = world.directory().unwrap_err();
    assert!(matches!(error, ChainError::Checkpoints(_)) && error.to_string().contains("s old"), "{error}");
}

#[test]
fn unreachable_sources_are_not_a_refusal() {
    let mut world = World::new("nobody", 0);
    world.fault(&ALL, &[Fault::Down]);
    assert!(matches!(world.directory(), Err(ChainError::Unreached { .. })));
    world.file.checkpoints = vec!["http://127.0.0.1:1/checkpoint".into()];
    (world.file.checkpoint_keys, world.file.checkpoint_quorum) = (vec!["ab".repeat(32)], 1);
    assert!(matches!(world.directory(), Err(ChainError::Unreached { .. })));
    world.file.checkpoints = vec![serve_bytes(b"nonsense".to_vec())];
    assert!(matches!(world.directory(), Err(ChainError::Checkpoints(_))));
    world.file.checkpoints.clear();
    world.fault(&[0, 1], &[Fault::ForgedHeader]);
    assert!(matches!(world.directory(), Err(ChainError::Endpoints(_) | ChainError::Quorum { .. })));
    // Endpoints answer, but no mirror has the records.
    world.fault(&ALL, &[]);
    world.file.mirrors = vec!["http://127.0.0.1:1/records".into()];
    assert!(matches!(world.directory(), Err(ChainError::Unserved(_))));
    world.file.mirrors.push(serve_bytes(b"nonsense".to_vec()));
    assert!(matches!(world.directory(), Err(ChainError::Mirrors(_))));
}

#[test]
fn clock_of_1970_is_reported_as_the_reason() {
    let world = World::new("clock", 0);
    let why = read(&world.file, 0, 0).unwrap_err().to_string();
    assert!(why.contains("in the future; check this machine's clock"), "{why}");
}

#[test]
fn floors_need_a_quorum_and_a_proof() {
    let world = World::new("floors", 0);
    let honest = voted(&world.file).unwrap();
    assert_eq!((honest.intel_floor, honest.amd_floor), (0, 0));
    for fault in [Fault::ForgedProof, Fault::NoProof, Fault::ForgedHeader, Fault::OtherChain { id: 9 }, Fault::Down] {
        world.fault(&ALL, &[]);
        world.fault(&[0], std::slice::from_ref(&fault));
        assert_eq!(voted(&world.file).unwrap(), honest, "{fault:?} at the first endpoint");
        world.fault(&ALL, std::slice::from_ref(&fault));
        voted(&world.file).unwrap_err();
    }
    // A single endpoint decides nothing, even with proofs.
    world.fault(&ALL, &[]);
    world.mine(&[0]);
    assert_eq!(voted(&world.file).unwrap(), honest);
    world.fault(&[1, 2], &[Fault::Down]);
    assert!(matches!(voted(&world.file), Err(ChainError::Quorum { .. })));
}
