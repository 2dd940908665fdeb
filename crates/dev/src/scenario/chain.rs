//! Scenarios on a network whose directory is proven by a chain.
//!
//! Owns what only real programs show: how an operator reaches the first circuit, and how soon a relay is in use and out
//! of use. Also shows what a chain outage means for clients.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::bench::{Bench, IN_USE};
use super::runner::{Scenario, Scenarios, Skipped};
use crate::net::host::{Host, checked};
use crate::net::wire;
use crate::world::chain;
use crate::world::internet::CHAIN;
use crate::world::operators::Operator;
use crate::world::programs::{Programs, network};
use crate::world::services::{Services, internet};

/// The scenarios of the part.
pub(crate) static SCENARIOS: Scenarios<Bench> = Scenarios::new(
    Bench::start,
    &[
        Scenario::new("status, egresses and verify report what proves the directory", says_why),
        Scenario::new(
            "a connected client refreshes the directory through another egress and from nowhere else",
            reads_anew,
        ),
        Scenario::new("a relay passes signed checkpoints to clients that reach no endpoint", checkpoint_from_a_relay),
        Scenario::new(JOURNEY, journey),
        Scenario::new("a relay that drains takes no new circuits and keeps its running ones", drains).needs(&[JOURNEY]),
        Scenario::new("lying endpoints: one is tolerated, two are refused with exit code 5", liars),
        Scenario::new(
            "without the chain circuits continue, then a cached directory serves, then exit code 5",
            without_chain,
        ),
    ],
);
/// Registers the relay that drains afterwards.
const JOURNEY: &str = "an operator reaches the first circuit with init, check, bond and run";
/// The same first steps on a chain that OpenRelay did not build.
pub(crate) static ON_ANVIL: Scenarios<PathBuf> = Scenarios::new(
    |dir| Ok(dir.to_owned()),
    &[Scenario::new("first circuit on anvil, from its URL alone", |dir| on_anvil(dir))],
);

/// Runs an operator's first steps on a chain that OpenRelay did not build and of which only the URL is known.
fn on_anvil(dir: &Path) -> Result<()> {
    let programs = Programs::simulating()?;
    let network = network(dir)?;
    let mut others = chain::start_anvil(&network, &programs)?
        .ok_or(Skipped("OPENRELAY_ANVIL is not set; ./x test netns installs anvil and sets it"))?;
    others.push(internet(&network, &programs)?);
    let (mut relays, mut operators) = (Vec::new(), Vec::new());
    for name in ["ingress-1", "egress-1"] {
        let host = network.host(name)?;
        let relay = |what: &str| {
            let mut command = host.command(&programs.openrelay);
            command.args(["relay", what]);
            command
        };
        let operator = Operator::init(&network, &programs, name, name)?;
        let poor = refused(operator.run(host, relay("bond"), "relay bond", true))?;
        ensure!(poor.contains("the bond is"), "a bond without tokens: {poor}");
        chain::fund(&network, &programs, &operator.account)?;
        let found = operator.run(host, relay("check"), "relay check", false)?;
        ensure!(!found.contains("missing"), "check: {found}");
        operator.run(host, relay("bond"), "relay bond", true)?;
        relays.push((name, operator.start(host, &programs, &[])?));
        operators.push((name, operator));
    }
    let bench = Bench::of(network, Services { others, relays, operators, machine: None }, programs);
    let config = bench.config();
    bench.within("the first circuit", || Ok(bench.up(&config).is_ok()))?;
    ensure!(bench.fetches()?, "a circuit with anvil's directory carries no data");
    ensure!(bench.status()?["directory"] == "chain", "the directory is not the chain's");
    bench.down()
}

fn says_why(bench: &mut Bench) -> Result<()> {
    let config = bench.config();
    bench.up(&config)?;
    let status = bench.status()?;
    ensure!(status["directory"] == "chain" && status["directory_proof"]["block"].is_u64(), "{status}");
    let (_, text, _) = bench.openrelay(&["status"])?;
    ensure!(text.contains("proven at block"), "the status does not report the block that proves the directory: {text}");
    bench.down()?;
    // By the command's former name, which scripts may still use.
    let (code, text, _) = bench.openrelay(&["exits", "--config", &config])?;
    ensure!(code == Some(0) && text.contains("198.19.1.2:443") && text.contains("203.0.113.2:443"), "egresses: {text}");
    ensure!(!text.contains("198.51.100.2"), "egresses lists an ingress: {text}");
    ensure!(bench.egresses()? == [3, 4], "egresses: {:?}", bench.egresses()?);
    let (code, text, said) = bench.openrelay(&["verify", "3", "--config", &config])?;
    let steps = ["block ", "header ", "state root", "account ", "storage root", "record ", "handshake key"];
    ensure!(code == Some(0) && steps.iter().all(|step| text.contains(step)), "verify: {text}{said}");
    let (code, _, said) = bench.openrelay(&["verify", "99", "--config", &config])?;
    ensure!(code == Some(5) && said.contains("not on the chain"), "verify of an unknown relay: {code:?} {said}");
    Ok(())
}

/// Checks with the hosts' counters who queries the chain's endpoints and mirrors.
///
/// No query may come from the client's own address or through the egress of the user's circuit. Operators' agents
/// query from the relays' own addresses, and relays forward clients' queries.
fn reads_anew(bench: &mut Bench) -> Result<()> {
    let (chain, nat) = (bench.network.host("chain")?, bench.network.host("nat")?);
    let config = with_named_endpoints(bench)?;
    let address = bench.network.address("chain", false)?;
    let (first, client) = (bench.network.address("ingress-1", false)?, bench.network.address("nat", false)?);
    chain.sh(&format!(
        "nft 'table inet asked {{ counter client {{ }}; \
         chain in {{ type filter hook input priority 0; ip saddr {client} counter name client; }}; }}'"
    ))?;
    let packets = |host: &Host, name: &str| -> Result<u64> { Ok(host.counter("inet asked", name)?.0) };
    // The client has no cached directory, so it must query from its own address.
    bench.forget()?;
    bench.up(&config)?;
    let outside = packets(chain, "client")?;
    ensure!(outside > 0, "the first start queried no endpoint");
    wire::watch(nat, [first, bench.network.address("ingress-1", true)?])?;
    let egresses = [bench.network.host("egress-1")?, bench.network.host("egress-2")?];
    for egress in egresses {
        egress.sh(&format!(
            "nft 'table inet asked {{ counter endpoints {{ }}; counter mirror {{ }}; \
             chain on {{ type filter hook forward priority 0; \
             ip daddr {address} tcp dport 8545-8547 counter name endpoints; \
             ip daddr {address} tcp dport 8550 counter name mirror; }}; }}'"
        ))?;
    }
    let before = bench.status()?["directory_sequence"].as_u64().context("the status has no directory_sequence")?;
    bench.mine()?;
    let newer = |status: &Value| status["directory_sequence"].as_u64() > Some(before);
    bench.within("a newer directory", || Ok(newer(&bench.status()?)))?;
    let status = bench.status()?;
    ensure!(status["directory_warning"].is_null() && status["hops_listed"] == true, "{status}");
    ensure!(status["directory_read_s"].is_u64(), "{status}");
    let [user, other] = egresses;
    ensure!(packets(other, "endpoints")? > 0, "no query reached the chain");
    ensure!(packets(user, "endpoints")? == 0, "the egress of the user's circuit forwarded a query to the chain");
    // One copy of the evidence comes from a relay of the circuit, the other from a mirror.
    ensure!(packets(other, "mirror")? > 0, "no query for evidence reached a mirror");
    ensure!(packets(user, "mirror")? == 0, "the egress of the user's circuit forwarded a query to a mirror");
    wire::judge(nat)?;
    // Commands of the user are meanwhile answered from the client's cache.
    ensure!(bench.egresses()? == [3, 4], "egresses while a client is connected: {:?}", bench.egresses()?);
    let (code, text, said) = bench.openrelay(&["verify", "3", "--config", &config])?;
    ensure!(code == Some(0) && text.contains("handshake key") && said.contains("no endpoint was"), "{text}{said}");
    ensure!(packets(user, "endpoints")? == 0, "the egress of the user's circuit forwarded a query to the chain");
    outage(bench)?;
    relays_leave(bench)?;
    wire::judge(nat)?;
    ensure!(packets(chain, "client")? == outside, "a query to the chain came from the client's own address");
    ensure!(packets(user, "endpoints")? == 0, "the egress of the user's circuit forwarded a query to the chain");
    wire::unwatch(nat)?;
    for host in [chain, user, other] {
        host.sh("nft delete table inet asked")?;
    }
    bench.down()
}

/// Writes a configuration in which two of the three endpoints have a name that the client resolves through the circuit.
/// Returns its path.
fn with_named_endpoints(bench: &Bench) -> Result<String> {
    let named = std::fs::read_to_string(bench.network.dir.join("config/chain.toml"))?;
    let address = bench.network.address("chain", false)?;
    std::fs::write(
        bench.network.dir.join("config/client/named-chain.toml"),
        named.replacen(&format!("http://{address}:854"), &format!("http://{CHAIN}:854"), 2),
    )?;
    let config = bench.through(1, 3)?;
    std::fs::write(&config, std::fs::read_to_string(&config)?.replace("../chain.toml", "named-chain.toml"))?;
    Ok(config)
}

/// Without endpoints the old directory serves, the status reports why, and the circuit continues.
fn outage(bench: &Bench) -> Result<()> {
    bench.network.set_link("chain", false)?;
    bench.within("a warning", || Ok(bench.status()?["directory_warning"].is_string()))?;
    ensure!(bench.fetches()?, "a running circuit stopped");
    let (code, text, _) = bench.openrelay(&["status"])?;
    ensure!(code == Some(0) && text.contains("directory  "), "the status does not report it: {text}");
    bench.network.set_link("chain", true)?;
    bench.within("the warning's end", || Ok(bench.status()?["directory_warning"].is_null())).map(drop)
}

/// The user's client notices that a relay leaves, and still reads the directory.
fn relays_leave(bench: &Bench) -> Result<()> {
    for name in ["egress-1", "ingress-1"] {
        let operator = bench.services.operator(name)?;
        let drain = |arguments: &[&str]| {
            let host = bench.network.host(name)?;
            let mut command = host.command(&bench.programs.openrelay);
            command.args(["relay", "drain"]).args(arguments);
            operator.run(host, command, "relay drain", true)
        };
        drain(&[])?;
        bench.within("a status that reports that a relay has left", || Ok(bench.status()?["hops_listed"] == false))?;
        ensure!(bench.fetches()?, "the running circuit stopped");
        drain(&["--undo"])?;
        bench.within("the relay's return", || Ok(bench.status()?["hops_listed"] == true))?;
    }
    Ok(())
}

/// One key signs a block, and an ingress's agent fetches that checkpoint from a mirror.
///
/// A client whose endpoints and mirrors are all unreachable gets the checkpoint from the ingress.
fn checkpoint_from_a_relay(bench: &mut Bench) -> Result<()> {
    const MIRROR: u16 = 8551;
    let (folder, programs) = (bench.network.dir.join("config"), bench.programs.clone());
    let path = |name: &str| folder.join(name).display().to_string();
    let on_chain_host = |bench: &Bench, arguments: &[&str]| {
        let output = bench.network.host("chain")?.command(&programs.openrelay).args(arguments).output()?;
        checked(&output, &arguments.join(" "))
    };
    let key = on_chain_host(bench, &["checkpoint", "key", "--out", &path("checkpoint-key")])?;
    let key = key.trim().trim_start_matches("checkpoint_key ");
    let address = bench.network.address("chain", false)?;
    let plain = std::fs::read_to_string(path("chain.toml"))?;
    let trusting = |port: u16| {
        format!(
            "{plain}checkpoints = [\"http://{address}:{port}/checkpoint\"]\n\
             checkpoint_keys = [\"{key}\"]\ncheckpoint_quorum = 1\n"
        )
    };
    for file in ["signers.toml", "ingress-1/chain.toml"] {
        std::fs::write(path(file), trusting(MIRROR))?;
    }
    let mut mirror = bench.network.host("chain")?.command(&programs.openrelay);
    mirror.args(["mirror", "run", "--chain", &path("signers.toml"), "--checkpoint", &path("checkpoint")]);
    mirror.args(["--listen", &format!("{address}:{MIRROR}")]);
    let _mirror = bench.network.host("chain")?.start(mirror, "ready")?;
    bench.stop("ingress-1")?;
    let service = bench.services.operator("ingress-1")?.start(bench.network.host("ingress-1")?, &programs, &[])?;
    bench.services.relays.insert(0, ("ingress-1", service));
    let config = bench.through(1, 3)?;
    bench.within("a circuit through the restarted ingress", || Ok(bench.up(&config).is_ok()))?;
    bench.down()?;
    // No server listens at the addresses that this client queries.
    let blind = trusting(8599).replace(":8545\"", ":8595\"").replace(":8546\"", ":8596\"");
    let blind = blind.replace(":8547\"", ":8597\"").replace(":8550/records", ":8599/records");
    std::fs::write(path("client/blind-chain.toml"), blind)?;
    let text = std::fs::read_to_string(&config)?.replace("../chain.toml", "blind-chain.toml");
    std::fs::write(path("client/blind.toml"), text)?;
    bench.up(&path("client/blind.toml"))?;
    bench.mine()?;
    let (signers, key, file) = (path("signers.toml"), path("checkpoint-key"), path("checkpoint"));
    let said = on_chain_host(bench, &["checkpoint", "sign", "--chain", &signers, "--key", &key, "--file", &file])?;
    let number = said.split_whitespace().nth(1).and_then(|word| word.trim_end_matches(':').parse::<u64>().ok());
    let number = number.with_context(|| format!("no block number: {said}"))?;
    bench.within("the ingress's checkpoint", || {
        let status = bench.status()?;
        let signed = status["directory_warning"].as_str().is_some_and(|why| why.contains("signed checkpoint"));
        Ok(signed && status["directory_sequence"].as_u64() == Some(number))
    })?;
    bench.down()
}

/// There is no fifth host, so another egress takes the place of egress-2 on its host.
fn journey(bench: &mut Bench) -> Result<()> {
    bench.stop("egress-2")?;
    let started = Instant::now();
    let network = &bench.network;
    let host = network.host("egress-2")?;
    let operator = Operator::init(network, &bench.programs, "egress-2", "egress-5")?;
    let command = |arguments: &[&str]| {
        let mut command = host.command(&bench.programs.openrelay);
        command.arg("relay").args(arguments);
        command
    };
    let early = refused(operator.run(host, command(&["status"]), "relay status", false))?;
    ensure!(early.contains("relay bond"), "status before the bond: {early}");
    let found = operator.run(host, command(&["check"]), "relay check", false)?;
    ensure!(!found.contains("missing"), "check: {found}");
    let bonded = operator.run(host, command(&["bond"]), "relay bond", true)?;
    ensure!(bonded.trim() == "relay_id 5", "bond: {bonded}");
    // A second bond finds the relay registered, and nothing is paid twice.
    ensure!(operator.run(host, command(&["bond"]), "relay bond", true)? == bonded, "the second bond differs");
    let not_started = refused(operator.run(host, command(&["status"]), "relay status", false))?;
    ensure!(not_started.contains("never started"), "status before the start: {not_started}");
    // The relay's own exit code reports what a start lacks.
    let mut powerless = host.command("setpriv");
    powerless.arg("--bounding-set=-net_admin").arg(&bench.programs.openrelay).args(["relay", "run"]);
    let why = refused(operator.run(host, powerless, "relay run", true))?;
    ensure!(why.contains("exit status: 77"), "a start without CAP_NET_ADMIN: {why}");
    let service = operator.start(host, &bench.programs, &[])?;
    let config = bench.through(1, 5)?;
    bench.within("the first circuit through the new relay", || Ok(bench.up(&config).is_ok()))?;
    ensure!(bench.fetches()?, "the new relay carries no data");
    ensure!(started.elapsed() < IN_USE, "the first circuit took {:?}", started.elapsed());
    bench.down()?;
    let earning = operator.run(host, command(&["status"]), "relay status", false)?;
    let words = ["Active", "epoch 2", "evidence       SIMULATED"];
    ensure!(words.iter().all(|words| earning.contains(words)), "status: {earning}");
    bench.services.relays.push(("egress-5", service));
    bench.services.operators.push(("egress-5", operator));
    Ok(())
}

fn drains(bench: &mut Bench) -> Result<()> {
    let config = bench.through(1, 5)?;
    bench.up(&config)?;
    let host = bench.network.host("egress-2")?;
    let operator = bench.services.operator("egress-5")?;
    let relay = |arguments: &[&str]| {
        let mut command = host.command(&bench.programs.openrelay);
        command.arg("relay").args(arguments);
        command
    };
    operator.run(host, relay(&["drain"]), "relay drain", true)?;
    let why = refused(operator.run(host, relay(&["status"]), "relay status", false))?;
    ensure!(why.contains("drain"), "status of a draining relay: {why}");
    bench.within("the draining relay's removal from the directory", || Ok(!bench.egresses()?.contains(&5)))?;
    ensure!(bench.fetches()?, "the running circuit stopped");
    bench.down()?;
    let (code, _, said) = bench.openrelay(&["up", "--wait", "--config", &config])?;
    ensure!(code == Some(1) && said.contains("relay 5 is not in the directory"), "{code:?} {said}");
    operator.run(host, relay(&["drain", "--undo"]), "relay drain --undo", true)?;
    bench.within("the relay's return", || Ok(bench.up(&config).is_ok()))?;
    bench.down()?;
    let asked = refused(operator.run(host, relay(&["unbond"]), "relay unbond", true))?;
    ensure!(asked.contains("1000 tokens") && asked.contains("--yes"), "unbond without consent: {asked}");
    operator.run(host, relay(&["unbond", "--yes"]), "relay unbond", true)?;
    let early = refused(operator.run(host, relay(&["retire"]), "relay retire", true))?;
    ensure!(early.contains("free in about 14 days"), "retire before the end of unbonding: {early}");
    Ok(())
}

fn liars(bench: &mut Bench) -> Result<()> {
    let config = bench.config();
    for fault in ["{\"kind\":\"forgedProof\"}", "{\"kind\":\"otherChain\",\"id\":9}", "{\"kind\":\"forgedHeader\"}"] {
        bench.set_faults(8545, &format!("[{fault}]"))?;
        let (code, text, said) = bench.openrelay(&["egresses", "--config", &config])?;
        ensure!(code == Some(0) && !said.contains("cached"), "{fault} at one endpoint: {text}{said}");
    }
    // Use verify, because it queries the chain and does not use the cache.
    bench.set_faults(8546, "[{\"kind\":\"forgedHeader\"}]")?;
    let (code, _, said) = bench.openrelay(&["verify", "3", "--config", &config])?;
    ensure!(code == Some(5) && said.contains("directory refused"), "two endpoints lie: {code:?} {said}");
    bench.set_faults(8545, "[]")?;
    bench.set_faults(8546, "[]")
}

fn without_chain(bench: &mut Bench) -> Result<()> {
    // Relay 4 is registered but does not run any longer.
    let config = bench.through(1, 3)?;
    bench.up(&config)?;
    bench.network.set_link("chain", false)?;
    ensure!(bench.fetches()?, "a running circuit stopped without the chain");
    bench.down()?;
    let (code, _, said) = bench.openrelay(&["egresses", "--config", &config])?;
    ensure!(code == Some(0) && said.contains("using the cached directory"), "no cached directory: {code:?} {said}");
    bench.up(&config)?;
    ensure!(bench.fetches()?, "a circuit with the cached directory carries no data");
    bench.down()?;
    // A client that accepts no directory cached for longer than a second.
    let strict = bench.network.dir.join("config/client/strict.toml");
    let chain = std::fs::read_to_string(bench.network.dir.join("config/chain.toml"))?;
    std::fs::write(bench.network.dir.join("config/client/strict-chain.toml"), format!("max_age_s = 1\n{chain}"))?;
    std::fs::write(&strict, std::fs::read_to_string(&config)?.replace("../chain.toml", "strict-chain.toml"))?;
    let strict = strict.display().to_string();
    // The chain's time may be some seconds ahead of this host's, because each transaction has its own block.
    bench.within("the cached directory's expiry", || {
        let (code, _, said) = bench.openrelay(&["up", "--wait", "--config", &strict])?;
        if code == Some(0) {
            bench.down()?;
        }
        Ok(code == Some(5)
            && said.contains("directory refused: the directory is ")
            && said.contains("the limit is 1 s while no newer"))
    })?;
    // A client without a cache that reaches no endpoint has refused nothing, so its exit code is 3.
    bench.forget()?;
    let (code, _, said) = bench.openrelay(&["up", "--wait", "--config", &config])?;
    ensure!(code == Some(3) && said.contains("no endpoint of the chain was reached"), "{code:?} {said}");
    bench.network.set_link("chain", true)?;
    bench.within("the chain's return", || Ok(bench.up(&config).is_ok()))?;
    bench.down()?;
    // Nor has a client refused anything when no mirror provides evidence.
    bench.forget()?;
    let lines = chain.lines().map(|line| {
        if line.starts_with("evidence = ") { "evidence = [\"http://127.0.0.1:1/evidence\"]" } else { line }
    });
    let unserved = lines.map(|line| format!("{line}\n")).collect::<String>();
    std::fs::write(bench.network.dir.join("config/client/unserved-chain.toml"), unserved)?;
    let path = bench.network.dir.join("config/client/unserved.toml");
    std::fs::write(&path, std::fs::read_to_string(&config)?.replace("../chain.toml", "unserved-chain.toml"))?;
    let (code, _, said) = bench.openrelay(&["up", "--wait", "--config", &path.display().to_string()])?;
    ensure!(code == Some(3) && said.contains("no mirror has"), "{code:?} {said}");
    Ok(())
}

/// Returns the error of a program that must fail.
fn refused(outcome: Result<String>) -> Result<String> {
    match outcome {
        Ok(text) => anyhow::bail!("was not refused: {text}"),
        Err(error) => Ok(error.to_string()),
    }
}
