//! A development chain at three endpoints, with relays and with files of records that omit some of them.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use alloy_primitives::{Address, B256, U256};
use alloy_sol_types::SolCall;
use openrelay_chain::mirror::Mirror;
use openrelay_chain::registry::{RelayRegistry, Token};
use openrelay_chain::{ChainError, Direct, Transport, read_by};
use openrelay_devchain::{Fault, Network, Node, Rules, Server, development, serve};
use openrelay_ledger::chain::descriptor::Descriptor;
use openrelay_ledger::chain::reading::Reading;
use openrelay_ledger::chain::set::{Entry, RecordSet, write};
use openrelay_ledger::directory::{Directory, Facts, Source};
use openrelay_ledger::record::Role;
use openrelay_node::chain_file::ChainFile;
use openrelay_proto::handshake::Role as Hop;
use openrelay_proto::message::MirrorFile;
use serde_json::json;

pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs()
}

/// Starts a mirror that serves these bytes, and returns its URL.
pub(crate) fn serve_bytes(bytes: Vec<u8>) -> String {
    serve_each(move |_| bytes.clone())
}

/// Starts a mirror whose answers depend on the number of the request, from 0. Returns its URL.
pub(crate) fn serve_each(answer: impl Fn(usize) -> Vec<u8> + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/records", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for (number, stream) in listener.incoming().enumerate() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 4_096]);
            let bytes = answer(number);
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", bytes.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&bytes));
        }
    });
    url
}

/// A circuit whose two relays mirror these files of records.
pub(crate) struct Circuit {
    pub(crate) ingress: Vec<u8>,
    pub(crate) egress: Vec<u8>,
}

impl Transport for Circuit {
    fn agent(&self, url: &str) -> ureq::Agent {
        Direct.agent(url)
    }

    fn relays(&self) -> &[Hop] {
        &[Hop::Ingress, Hop::Egress]
    }

    fn fetch(&self, from: Hop, file: MirrorFile) -> Result<Vec<u8>, String> {
        let held = if from == Hop::Ingress { &self.ingress } else { &self.egress };
        if file == MirrorFile::Records && !held.is_empty() { Ok(held.clone()) } else { Err("it has none".into()) }
    }
}

/// Three endpoints with the same chain.
pub(crate) struct World {
    pub(crate) network: Network,
    pub(crate) servers: Vec<Server>,
    pub(crate) file: ChainFile,
    /// The complete file of records.
    pub(crate) records: Vec<u8>,
    pub(crate) folder: PathBuf,
}

impl World {
    /// Creates a chain with these relays and `blocks` blocks after them. `prepare` changes the chain before those
    /// blocks.
    pub(crate) fn new(name: &str, relays: &[(Role, u32)], blocks: u64, prepare: impl FnOnce(&mut Node)) -> Self {
        let age = blocks + 100;
        let mut node = Node::new(development(now() - age - 100), true, None);
        node.tell_time(now() - age);
        let network = node.deploy(&Rules::default()).unwrap();
        for (number, (role, mbit)) in (1..).zip(relays) {
            register(&mut node, &network, number, *role, *mbit);
        }
        prepare(&mut node);
        (0..blocks).for_each(|_| node.mine());
        node.tell_time(now());
        node.mine();
        let chain = node.chain().clone();
        let servers: Vec<Server> = (0..3)
            .map(|_| {
                let node = Arc::new(Mutex::new(Node::new(chain.clone(), true, None)));
                serve(node, TcpListener::bind("127.0.0.1:0").unwrap(), None).unwrap()
            })
            .collect();
        let folder = std::env::temp_dir().join(format!("openrelay-directory-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let urls: Vec<String> = servers.iter().map(Server::url).collect();
        let contracts = &network.contracts;
        let text = format!(
            "chain_id = {}\ndirectory = \"{}\"\ncode_hash = \"{}\"\nregistry = \"{}\"\nimages = \"{}\"\n\
             collateral = \"{}\"\nendpoints = {urls:?}\nquorum = 2\n",
            network.chain_id,
            network.directory,
            network.code_hash,
            contracts.registry,
            contracts.images,
            contracts.collateral
        );
        let path = folder.join("chain.toml");
        std::fs::write(&path, text).unwrap();
        let file = ChainFile::load(&path).unwrap();
        let mut mirror = Mirror::new(file.clone());
        mirror.follow().unwrap();
        let records = mirror.records().to_vec();
        Self { network, servers, file, records, folder }
    }

    pub(crate) fn fault(&self, endpoint: usize, fault: Option<&Fault>) {
        self.servers[endpoint].set_faults(fault.cloned().into_iter().collect());
    }

    /// Returns the file of records without the descriptors of relays that `keep` rejects. The file has the chain's
    /// root.
    pub(crate) fn withholding(&self, keep: impl Fn(u64) -> bool) -> Vec<u8> {
        withholding(&self.records, keep)
    }

    /// Reads the directory through this transport.
    pub(crate) fn read(
        &self,
        transport: &dyn Transport,
        older: Option<&Reading>,
    ) -> Result<(Reading, Directory), ChainError> {
        read_by(transport, &self.file, (now(), 0), older, &[])
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Returns this file of records without the descriptors of relays that `keep` rejects.
pub(crate) fn withholding(records: &[u8], keep: impl Fn(u64) -> bool) -> Vec<u8> {
    let root = B256::from_slice(&records[20..52]);
    let set = RecordSet::verify(records, root).unwrap();
    let entries = set.records.iter().map(|record| {
        let bytes = record.descriptor.encode().unwrap();
        if keep(record.registration.relay_id) {
            Entry::Whole(record.registration, bytes)
        } else {
            Entry::Withheld(record.registration, Descriptor::hash(&bytes))
        }
    });
    write(entries.collect()).unwrap()
}

pub(crate) fn facts(directory: &Directory) -> Facts {
    let Source::Chain(facts) = directory.source() else { panic!("the source is not a chain") };
    facts
}

pub(crate) fn ids(directory: &Directory) -> Vec<u64> {
    directory.body().relays.iter().map(|relay| relay.relay_id).collect()
}

fn register(node: &mut Node, network: &Network, number: u8, role: Role, mbit: u32) {
    let operator = Address::repeat_byte(number);
    let amount = U256::from(10u64.pow(18)) * U256::from(mbit);
    let fund = json!([operator, network.contracts.token, format!("{amount:#x}")]);
    assert_eq!(node.handle(&json!({"id": 1, "method": "devchain_fund", "params": fund}))["result"], true);
    let approve = Token::approveCall { spender: network.contracts.registry, value: amount }.abi_encode();
    node.send_unsigned(operator, network.contracts.token, approve.into()).unwrap();
    let descriptor = Descriptor {
        role,
        key_epoch: 1,
        handshake_key: [number; 32],
        image: B256::ZERO,
        key_root: B256::ZERO,
        endpoints: vec![format!("45.{number}.0.1:443").parse().unwrap()],
        family: None,
    };
    let call = RelayRegistry::registerCall {
        advertisedMbit: mbit,
        withdrawal: Address::repeat_byte(0xcc),
        amount: amount.to(),
        descriptor: descriptor.encode().unwrap().into(),
    };
    node.send_unsigned(operator, network.contracts.registry, call.abi_encode().into()).unwrap();
}
