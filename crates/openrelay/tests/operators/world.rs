//! A development chain with all contracts, a folder, and the program.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use alloy_primitives::{Address, B256, Bytes, U256};
use alloy_sol_types::{SolCall, SolValue as _};
use k256::ecdsa::SigningKey;
use openrelay_chain::journal::sign;
use openrelay_chain::registry::Token;
use openrelay_chain::voting::{Answer, ImageRegistry, ReleaseKeys, ValidatorSet, commitment, image_value};
use openrelay_devchain::{Contracts, KNOWN, Network, Node, Rules, Server, development, mint_call, serve};
use openrelay_ledger::chain::voted::RELAY_IMAGE;
use serde_json::json;

pub(crate) const DAY: u64 = 86_400;
/// The chain begins this long ago, so that notice periods can pass in its present.
const AGO: u64 = 60 * DAY;
/// Three other validators, each with this bond.
const VALIDATORS: [usize; 3] = [0, 1, 4];
const BOND: u64 = 3_000_000_000_000_000_000;
const PROPOSER: usize = 3;
const SALT: B256 = B256::repeat_byte(0x44);
/// SHA-256 of the proposed image, and of its manifest.
const IMAGE: B256 = B256::repeat_byte(1);
const MEASUREMENTS: B256 = B256::repeat_byte(2);
/// Divisor of the times of rounds.
const HASTE: u32 = 7_200;

pub(crate) struct World {
    pub(crate) dir: PathBuf,
    pub(crate) at: Contracts,
    network: Network,
    server: Server,
    now: Mutex<u64>,
}

impl World {
    pub(crate) fn new(name: &str) -> Self {
        // Below the target folder, so that the program can be linked.
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("operators-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("bin")).unwrap();
        fs::hard_link(env!("CARGO_BIN_EXE_openrelay"), dir.join("bin/openrelay")).unwrap();
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() - AGO;
        let mut node = Node::new(development(now), true, None);
        node.tell_time(now);
        let network = node.deploy(&Rules { time_divisor: HASTE, ..Rules::default() }).unwrap();
        let server = serve(Arc::new(Mutex::new(node)), TcpListener::bind("127.0.0.1:0").unwrap(), None).unwrap();
        let this = Self { dir, at: network.contracts, network, server, now: Mutex::new(now) };
        this.write("chain.toml", &this.chain_file());
        this.write("password", "a password\n");
        fs::set_permissions(this.dir.join("password"), fs::Permissions::from_mode(0o600)).unwrap();
        this.relay_program("echo 'openrelay-relay: no environment' >&2; exit 5");
        this
    }

    fn chain_file(&self) -> String {
        let at = &self.at;
        format!(
            "chain_id = {}\ndirectory = \"{}\"\ncode_hash = \"{}\"\nregistry = \"{}\"\nimages = \"{}\"\n\
             validators = \"{}\"\ncollateral = \"{}\"\ntime_divisor = {HASTE}\nendpoints = [\"{}\"]\nquorum = 1\n\
             insecure = true\n",
            self.network.chain_id,
            self.network.directory,
            self.network.code_hash,
            at.registry,
            at.images,
            at.validators,
            at.collateral,
            self.server.url()
        )
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.dir.join(name), text).unwrap();
    }

    /// Puts a shell script in the place of the relay's program.
    pub(crate) fn relay_program(&self, script: &str) {
        let path = self.dir.join("bin/openrelay-relay");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs `openrelay` in the folder. Returns its exit code, standard output and standard error.
    pub(crate) fn run(&self, line: &str) -> (i32, String, String) {
        let mut command = Command::new(self.dir.join("bin/openrelay"));
        command.current_dir(&self.dir).args(line.split_whitespace()).env("OPENRELAY_STATE_DIR", self.dir.join("state"));
        let output = command.stdin(std::process::Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    }

    /// Runs `openrelay`, which must end with this exit code. Returns what it prints.
    pub(crate) fn says(&self, line: &str, code: i32) -> String {
        let (found, out, err) = self.run(line);
        assert_eq!(found, code, "{line}: {out}{err}");
        out + &err
    }

    /// Runs `openrelay` and returns its JSON.
    pub(crate) fn json(&self, line: &str, code: i32) -> serde_json::Value {
        let (found, out, err) = self.run(line);
        assert_eq!(found, code, "{line}: {out}{err}");
        serde_json::from_str(&out).unwrap()
    }

    pub(crate) fn ask<C: SolCall>(&self, to: Address, call: &C) -> C::Return {
        let node = self.server.node.lock().unwrap();
        let answer = node.chain().call(KNOWN[0].0, to, call.abi_encode().into()).unwrap();
        C::abi_decode_returns(&answer).unwrap()
    }

    pub(crate) fn send<C: SolCall>(&self, from: Address, to: Address, call: &C) {
        self.send_bytes(from, to, call.abi_encode().into());
    }

    fn send_bytes(&self, from: Address, to: Address, data: Bytes) {
        let mut node = self.server.node.lock().unwrap();
        node.send_unsigned(from, to, data).unwrap();
    }

    pub(crate) fn tokens_of(&self, account: Address) -> U256 {
        self.ask(self.at.token, &Token::balanceOfCall { account })
    }

    /// Lets the chain's time pass, and mines a block.
    pub(crate) fn pass(&self, seconds: u64) {
        let mut now = self.now.lock().unwrap();
        let mut node = self.server.node.lock().unwrap();
        *now = (*now).max(node.chain().last().header.timestamp) + seconds;
        node.tell_time(*now);
        node.mine();
    }

    /// Makes three other validators, if there are none.
    fn join(&self) {
        for index in VALIDATORS.into_iter().chain([PROPOSER]) {
            let account = KNOWN[index].0;
            self.mint(account, U256::from(BOND) * U256::from(9));
            self.send(account, self.at.token, &Token::approveCall { spender: self.at.validators, value: U256::MAX });
            if index != PROPOSER {
                let amount = U256::from(BOND).to();
                let join = ValidatorSet::joinCall { family: account, withdrawal: account, amount };
                self.send(account, self.at.validators, &join);
            }
        }
    }

    /// Gives an account tokens.
    pub(crate) fn mint(&self, account: Address, amount: U256) {
        self.send_bytes(KNOWN[0].0, self.at.token, mint_call(account, amount));
    }

    /// Gives an account ether, by the faucet.
    pub(crate) fn give_ether(&self, account: Address) {
        let fund = json!({"id": 1, "method": "devchain_fund", "params": [account, self.at.token, "0x0"]});
        assert_eq!(self.server.node.lock().unwrap().handle(&fund)["result"], true);
    }

    /// Lets the time for commitments of the newest round pass.
    pub(crate) fn begin_reveals(&self) {
        self.pass(3 * DAY / u64::from(HASTE));
    }

    /// Makes three more validators, and proposes an image. Returns the round.
    pub(crate) fn propose(&self) -> u64 {
        self.join();
        let release =
            ReleaseKeys::Release { sourceTree: B256::ZERO, inputsLock: B256::ZERO, kind: RELAY_IMAGE, version: 1 };
        let hash = self.ask(self.at.release_keys, &ReleaseKeys::releaseHashCall { release: release.clone() });
        let signer = SigningKey::from_slice(KNOWN[2].1.as_slice()).unwrap();
        let signature = Bytes::from(sign(&signer, hash).unwrap());
        let proposer = KNOWN[PROPOSER].0;
        let (image, measurements) = (IMAGE, MEASUREMENTS);
        let blind = ImageRegistry::blindOfCall { proposer, release: hash, image, measurements, salt: SALT };
        let blind = self.ask(self.at.images, &blind);
        // The bindings of the two contracts have different types for the same struct.
        let release = alloy_sol_types::SolValue::abi_decode(&release.abi_encode()).unwrap();
        let propose = ImageRegistry::proposeCall { roundKind: 0, release, signatures: vec![signature], blind };
        self.send(proposer, self.at.images, &propose);
        self.ask(self.at.images, &ImageRegistry::roundCountCall {})
    }

    /// Makes three more validators approve an image. Returns the round.
    pub(crate) fn approve_image(&self) -> u64 {
        let first = self.ask(self.at.validators, &ValidatorSet::countCall {}) + 1;
        let round = self.propose();
        let voters = || (first..).zip(VALIDATORS.map(|index| KNOWN[index].0));
        let answer = Answer::Value(image_value(IMAGE, MEASUREMENTS));
        for (validator, account) in voters() {
            let hidden = commitment(self.network.chain_id, self.at.images, round, validator, answer, SALT);
            let call = ImageRegistry::commitCall { round, validatorId: validator, commitment: hidden };
            self.send(account, self.at.images, &call);
        }
        self.begin_reveals();
        let open = ImageRegistry::openCall { round, image: IMAGE, measurements: MEASUREMENTS, salt: SALT };
        self.send(KNOWN[PROPOSER].0, self.at.images, &open);
        for (validator, account) in voters() {
            let (answer, value) = answer.parts();
            let call = ImageRegistry::revealCall { round, validatorId: validator, answer, value, salt: SALT };
            self.send(account, self.at.images, &call);
        }
        self.pass(5 * DAY / u64::from(HASTE));
        self.send(KNOWN[PROPOSER].0, self.at.images, &ImageRegistry::finishCall { round });
        self.pass(DAY / u64::from(HASTE) + 1);
        round
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Returns the address in the first line that begins with this word.
pub(crate) fn address_after(word: &str, text: &str) -> Address {
    text.lines().find_map(|line| line.strip_prefix(word)).unwrap().trim().parse().unwrap()
}

/// Returns the address of the key in a keystore.
pub(crate) fn address_of(path: &Path) -> Address {
    let file: serde_json::Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    format!("0x{}", file["address"].as_str().unwrap()).parse().unwrap()
}
