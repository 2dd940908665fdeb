//! Validators that fetch what vendors publish, check it against relay evidence, and vote for it.
//!
//! Owns mock vendor services, which serve what `sim` signs, and a mirror's file with evidence of two machines. Other
//! tests judge relays. Here evidence serves only to check collateral.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};

use alloy_primitives::U256;
use anyhow::{Context as _, Result, ensure};
use openrelay_attest::binding::Binding;
use openrelay_attest::bundle::Bundle;
use openrelay_attest::evidence::Measurement;
use openrelay_attest::file::AttestationFile;
use openrelay_attest::verdict::Staple;
use openrelay_chain::voting::collateral::Collateral;
use openrelay_image::{hex, sha256};
use openrelay_node::chain_file::ChainFile;
use openrelay_node::clock::unix_seconds;
use openrelay_sim::vendors::{Hardware, Lie, Vendors, encode_roots};

use super::world::{World, join};
use crate::world::approved::TIME_DIVISOR;
use crate::world::local_chain::Process;

const HOUR: u64 = 3_600;

/// The served pages: path, headers and body.
type Pages = Arc<Mutex<Vec<(String, String, Vec<u8>)>>>;

/// Serves the current content of `pages`, as long as this program runs.
fn serve(pages: Pages) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(std::io::Result::ok) {
            let mut line = String::new();
            let read = stream.try_clone().map(|stream| BufReader::new(stream).read_line(&mut line));
            let path = line.split_whitespace().nth(1).unwrap_or_default();
            let pages = pages.lock().unwrap_or_else(PoisonError::into_inner);
            let found = pages.iter().find(|(own, _, _)| own == path).filter(|_| read.is_ok());
            let (status, headers, body) = found
                .map_or(("404 Not Found", "", &b""[..]), |(_, headers, body)| ("200 OK", headers.as_str(), &body[..]));
            let head =
                format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
        }
    });
    Ok(url)
}

/// Returns the pages on which vendors publish the content of this bundle.
fn pages_of(bundle: &Bundle) -> Result<Vec<(String, String, Vec<u8>)>> {
    let intel = bundle.intel.first().context("the bundle has no Intel part")?;
    let info: serde_json::Value = serde_json::from_str(&intel.tcb_info)?;
    let model = info["fmspc"].as_str().context("the TCB info has no fmspc")?.to_lowercase();
    let chain = |name: &str, pem: &str| {
        let packed: String = pem
            .bytes()
            .map(|byte| match byte {
                b'\n' => "%0A".to_owned(),
                b' ' => "%20".to_owned(),
                b'+' => "%2B".to_owned(),
                other => char::from(other).to_string(),
            })
            .collect();
        format!("{name}: {packed}\r\n")
    };
    let signed = |name: &str, object: &str, signature: &[u8]| {
        format!("{{\"{name}\":{object},\"signature\":\"{}\"}}", alloy_primitives::hex::encode(signature)).into_bytes()
    };
    let amd = bundle.amd.first().context("the bundle has no AMD part")?;
    Ok(vec![
        (
            format!("/tdx/certification/v4/tcb?fmspc={model}"),
            chain("TCB-Info-Issuer-Chain", &intel.tcb_info_issuer_chain),
            signed("tcbInfo", &intel.tcb_info, &intel.tcb_info_signature),
        ),
        (
            "/tdx/certification/v4/qe/identity".into(),
            chain("SGX-Enclave-Identity-Issuer-Chain", &intel.qe_identity_issuer_chain),
            signed("enclaveIdentity", &intel.qe_identity, &intel.qe_identity_signature),
        ),
        (
            "/sgx/certification/v4/pckcrl?ca=platform&encoding=der".into(),
            chain("SGX-PCK-CRL-Issuer-Chain", &intel.pck_crl_issuer_chain),
            intel.pck_crl.clone(),
        ),
        ("/IntelSGXRootCA.der".into(), String::new(), intel.root_ca_crl.clone()),
        (
            format!("/vcek/v1/{}/crl", amd.product),
            String::new(),
            amd.collateral.crl.clone().context("the bundle has no AMD revocation list")?,
        ),
    ])
}

/// Returns evidence of two machines, bound to this network. The rest of its binding does not matter here.
fn evidence(vendors: &Vendors, begins: u64, network: [u8; 32]) -> Result<Vec<Staple>> {
    let binding = Binding {
        network,
        relay_id: 1,
        handshake_key: [2; 32],
        key_epoch: 1,
        roles: 1,
        image: [3; 32],
        block_hash: [4; 32],
        block_height: 256,
    };
    let measurements = [Measurement::Tdx { mrtd: [1; 48], rtmrs: [[2; 48]; 4] }, Measurement::Snp([3; 48])];
    let made = measurements
        .iter()
        .map(|measurement| vendors.evidence(&Hardware::since(begins), measurement, &binding.report_data(), Lie::None));
    made.map(|evidence| Ok(Staple { evidence: evidence.context("no evidence was made")?, binding })).collect()
}

/// The validators, the vendors, and a mirror of the first validator's published files.
pub(crate) struct Setting<'a> {
    world: &'a World,
    pages: Pages,
    url: String,
    mirror: String,
    _process: Process,
}

impl<'a> Setting<'a> {
    /// Makes three validators join the world, whose chain file lists no evidence yet.
    pub(crate) fn start(world: &'a World, vendors: &Vendors, begins: u64) -> Result<Self> {
        let dir = &world.local.dir;
        fs::write(dir.join("roots"), encode_roots(vendors.roots()))?;
        fs::write(dir.join("floors.json"), vendors.bundle().encode())?;
        fs::create_dir_all(dir.join("published-1"))?;
        let pages = Pages::default();
        let network = ChainFile::load(&dir.join("chain.toml"))?.trust().network_id();
        let staples = evidence(vendors, begins, network)?;
        let attestation = AttestationFile { staples, ..AttestationFile::default() };
        let served = ("/attestation".to_owned(), String::new(), attestation.encode());
        pages.lock().unwrap_or_else(PoisonError::into_inner).push(served);
        let url = serve(pages.clone())?;
        let chain = fs::read_to_string(dir.join("chain.toml"))?;
        let chain = chain.replace("evidence = []", &format!("evidence = [\"{url}/attestation\"]"));
        fs::write(dir.join("chain.toml"), chain)?;
        (1..=3).try_for_each(|number| join(world, number))?;
        let mut command = Command::new(&world.local.programs.openrelay);
        command.args(["mirror", "run", "--listen", "127.0.0.1:0", "--chain"]).arg(dir.join("chain.toml"));
        command.env("OPENRELAY_STATE_DIR", dir.join("mirror"));
        let (process, mirror) = Process::start(command.arg("--files").arg(dir.join("published-1")))?;
        let mirror = mirror.replace("/records", "/files/");
        Ok(Self { world, pages, url, mirror, _process: process })
    }

    /// Makes one pass, which must end with exit code 0 and print this word.
    pub(crate) fn looks(&self, id: u64, word: &str) -> Result<()> {
        let publish = self.world.local.dir.join(format!("published-{id}")).display().to_string();
        let source = self.world.local.dir.display().to_string();
        let floors = self.world.local.dir.join("floors.json").display().to_string();
        let root_crl = format!("{}/IntelSGXRootCA.der", self.url);
        let mut all = vec!["run", "--once", "--no-checks", "--source", &source, "--publish", &publish, "--collateral"];
        all.extend(["--intel", &self.url, "--amd", &self.url, "--intel-root-crl", &root_crl, "--floors", &floors]);
        if id != 1 {
            all.extend(["--candidates", &self.mirror]);
        }
        let all = self.world.arguments(id, &all);
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        let (code, text) = self.world.local.openrelay_sim(&all)?;
        ensure!(code == 0 && text.contains(word), "validator {id}: exit code {code}, without {word:?}: {text}");
        Ok(())
    }

    /// Makes vendors publish this bundle.
    pub(crate) fn publish(&self, bundle: &Bundle) -> Result<()> {
        let pages = pages_of(bundle)?;
        let mut all = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|(path, _, _)| path == "/attestation");
        all.extend(pages);
        Ok(())
    }

    /// Moves the chain's time to `seconds` seconds after the start of a round.
    fn wait(&self, round: u64, seconds: u64) -> Result<()> {
        let shown = self.world.ask(self.at()?, &Collateral::roundOfCall { round })?;
        let begins = shown.commitEnd.to::<u64>() - 3 * HOUR / u64::from(TIME_DIVISOR);
        self.world.pass_until(begins + seconds)
    }

    pub(crate) fn at(&self) -> Result<alloy_primitives::Address> {
        let chain = ChainFile::load(&self.world.local.dir.join("chain.toml"))?;
        chain.collateral.context("the chain file has no collateral contract")
    }
}

pub(crate) fn run(world: &World) -> Result<()> {
    let dir = &world.local.dir;
    let begins = unix_seconds() - 86_400;
    let vendors = Vendors::new(begins);
    let setting = Setting::start(world, &vendors, begins)?;
    // A bundle that no vendor signed as a whole: one revocation list comes from another authority.
    let mut forged = vendors.bundle_since(begins + HOUR);
    forged.intel[0].root_ca_crl = forged.intel[0].pck_crl.clone();
    setting.publish(&forged)?;
    setting.looks(1, "no collateral for Intel's: it verifies no relay's evidence")?;
    // The second and the third validator fetch. Then vendors sign again, and the first validator has the newest
    // bundle.
    setting.publish(&vendors.bundle_since(begins + 2 * HOUR))?;
    setting.looks(2, "a round on collateral was opened")?;
    setting.looks(3, "")?;
    let newest = vendors.bundle_since(begins + 3 * HOUR);
    setting.publish(&newest)?;
    setting.looks(1, "")?;
    // Two newer bundles, of which all parts are genuine. One lacks AMD's part, the other combines a newer with an
    // older part. No validator votes for either.
    let mut without = vendors.bundle_since(begins + 4 * HOUR);
    without.amd.clear();
    let mut mixed = vendors.bundle_since(begins + 4 * HOUR);
    mixed.amd.clone_from(&vendors.bundle_since(begins + HOUR).amd);
    for bundle in [&mut without, &mut mixed] {
        bundle.intel_floor = 18;
        let bytes = bundle.encode();
        fs::write(dir.join(format!("published-1/{}.collateral.json", hex(&sha256(&bytes)))), bytes)?;
    }
    let at = setting.at()?;
    let mark =
        |id: u64| -> Result<u8> { Ok(world.ask(at, &Collateral::voteOfCall { round: 1, validatorId: id })?.mark) };
    ensure!((mark(1)?, mark(2)?) == (0, 0), "a validator voted before others had published");
    // From here on vendors do not answer.
    setting.pages.lock().unwrap_or_else(PoisonError::into_inner).retain(|(path, _, _)| path == "/attestation");
    setting.wait(1, 100)?;
    for id in 1..=3 {
        setting.looks(id, "round 1: committed")?;
    }
    setting.wait(1, 181)?;
    for id in 1..=3 {
        setting.looks(id, "round 1: revealed")?;
    }
    setting.wait(1, 301)?;
    setting.looks(1, "its collateral is in force")?;
    let current = world.ask(at, &Collateral::currentCall {})?;
    let path = dir.join(format!("published-1/{}.collateral.json", hex(current.bundle.as_slice())));
    let holds = Bundle::decode(&fs::read(path)?).map_err(|refusal| anyhow::anyhow!("{refusal}"))?;
    ensure!(holds.intel[0].tcb_info == newest.intel[0].tcb_info && holds.amd.len() == 1, "another bundle is in force");
    ensure!((current.intelFloor, U256::from(current.amdFloor)) == (18, U256::from(1)), "{}", current.intelFloor);
    Ok(())
}
