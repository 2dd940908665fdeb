//! `openrelay-dev devnet up`: the network, kept by one process.
//!
//! Owns the short protocol with which `break`, `status` and `down` talk to the keeper. Everything ends with the keeper.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use openrelay_node::chain_file::ChainFile;
use openrelay_sys::sandbox;

use super::chain;
use super::namespaces::enter;
use super::packed::with_packed;
use super::programs::{Programs, network};
use super::services::{Services, serve_by_chain, start_again};
use super::simulation::{LIES, Simulation};
use crate::net::folder::temporary_dir;
use crate::net::host::{check_tools, checked};
use crate::net::network::Network;
use crate::net::output::{say, talk};

/// What `break` can falsify, besides links.
pub(crate) const DATA: [&str; 4] = ["evidence", "collateral", "vote", "image"];

/// Returns the path of the keeper's socket, for this user.
fn socket() -> PathBuf {
    let user = sandbox::user();
    let dir = std::env::var_os("XDG_RUNTIME_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    dir.join(format!("openrelay-devnet-{user}.sock"))
}

/// Sends a command to the running network. Returns its answer.
pub(crate) fn ask(what: &str) -> Result<String> {
    let mut stream =
        UnixStream::connect(socket()).context("no devnet is running; start one with: openrelay devnet up")?;
    stream.write_all(format!("{what}\n").as_bytes())?;
    let mut answer = String::new();
    for line in BufReader::new(stream).lines() {
        answer += &line?;
        answer.push('\n');
    }
    let answer = answer.trim().to_owned();
    match answer.strip_prefix("error: ") {
        Some(error) => bail!("{error}"),
        None => Ok(answer),
    }
}

/// Starts the network and keeps it running.
pub(crate) fn up() -> Result<()> {
    check_tools()?;
    if UnixStream::connect(socket()).is_ok() {
        bail!("a devnet is already running; see: openrelay devnet status");
    }
    with_packed(up_with)
}

fn up_with(image: Option<&Path>) -> Result<()> {
    let started = Instant::now();
    let mut command = enter()?;
    command.args(["devnet", "inside", "keep"]).args(image);
    command.env("OPENRELAY_DEVNET_SOCKET", socket());
    // The keeper outlives this process, so it inherits no open output: whoever reads this process's output sees its
    // end.
    let log = socket().with_extension("log");
    let errors = std::fs::File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().context("cannot enter namespaces")?;
    while UnixStream::connect(socket()).is_err() {
        if let Some(status) = child.try_wait()? {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("the devnet did not start ({status}): {}", said.trim());
        }
        if started.elapsed() > Duration::from_secs(30) {
            let _ = child.kill();
            bail!("the devnet did not start within 30 s");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    say(&status()?);
    talk("to run a program on the client, through two hops, use the nsenter line above");
    Ok(())
}

/// Returns the devnet's status, with the line that runs a program on its client.
///
/// Process IDs inside the namespaces differ from those outside, so the client is found by its network namespace.
pub(crate) fn status() -> Result<String> {
    let told = ask("status")?;
    let Some((text, namespace)) = told.rsplit_once(CLIENT) else { return Ok(told) };
    let is_client = |process: &std::fs::DirEntry| {
        std::fs::read_link(process.path().join("ns/net")).is_ok_and(|own| own.as_os_str() == namespace.trim())
    };
    let client = std::fs::read_dir("/proc")?.flatten().find(is_client).context("cannot find the devnet's client")?;
    let user = if sandbox::user() == 0 { "" } else { " --user --preserve-credentials" };
    let pid = client.file_name();
    Ok(format!("{text}{CLIENT}nsenter --target {}{user} --net --mount --pid -- PROGRAM", pid.display()))
}

/// Start of the line about the client in the devnet's answer. Its network namespace follows.
const CLIENT: &str = "  client      ";

/// Keeps the network running until `down`.
pub(crate) fn keep(packed: Option<PathBuf>) -> Result<()> {
    let dir = temporary_dir()?;
    let programs = Programs { image: packed, ..Programs::simulating()? };
    let network = network(&dir)?;
    let mut services = serve_by_chain(&network, &programs)?;
    let mut command = network.client.command(&programs.openrelay);
    let output = command.args(["up", "--wait", "--config"]).arg(dir.join("config/client/client.toml")).output()?;
    checked(&output, "openrelay up")?;
    let path =
        PathBuf::from(std::env::var_os("OPENRELAY_DEVNET_SOCKET").context("OPENRELAY_DEVNET_SOCKET is not set")?);
    let _ = std::fs::remove_file(&path);
    let listener = UnixListener::bind(&path).context("cannot listen for devnet commands")?;
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let mut line = String::new();
        if BufReader::new(&stream).read_line(&mut line).is_err() {
            continue;
        }
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words.as_slice() {
            ["status"] => describe(&network, &programs, &mut services),
            ["break", "evidence", lie] => tell_lie(&network, &programs, &mut services, Some(lie)),
            ["mend", "evidence", _] => tell_lie(&network, &programs, &mut services, None),
            ["break", "collateral", _] => other_collateral(&network, &programs, true),
            ["mend", "collateral", _] => other_collateral(&network, &programs, false),
            ["break", "vote", _] => other_votes(&network, &programs, true),
            ["mend", "vote", _] => other_votes(&network, &programs, false),
            ["break", "image", _] => chain::revoke(&network, &programs, 1).and_then(|()| refusals(&network, &programs)),
            ["mend", "image", _] => Err(anyhow::anyhow!(
                "a revoked image stays revoked; to start again, run: openrelay devnet down, then openrelay devnet up"
            )),
            ["break", link, _] => network.set_link(link, false).map(|()| format!("the link of {link} is cut")),
            ["mend", link, _] => network.set_link(link, true).map(|()| format!("the link of {link} is restored")),
            ["down"] => {
                let _ = stream.write_all(b"the devnet has stopped\n");
                break;
            }
            _ => Err(anyhow::anyhow!("unknown command")),
        };
        let text = answer.unwrap_or_else(|error| format!("error: {error:#}"));
        let _ = writeln!(stream, "{text}");
    }
    let _ = std::fs::remove_file(path.with_extension("log"));
    let _ = std::fs::remove_file(path);
    let _ = network.client.command(&programs.openrelay).arg("down").output();
    drop(services);
    drop(network);
    let _ = std::fs::remove_dir_all(dir);
    Ok(())
}

/// Restarts egress-2 with evidence that lies, or with true evidence.
fn tell_lie(network: &Network, programs: &Programs, services: &mut Services, lie: Option<&str>) -> Result<String> {
    if let Some(unknown) = lie.filter(|lie| LIES.iter().all(|(kind, _)| kind != lie)) {
        bail!("unknown lie {unknown}; use one of: {}", LIES.map(|(kind, _)| kind).join(", "));
    }
    start_again((network, programs), services, "egress-2", lie)?;
    refusals(network, programs)
}

/// Makes mirrors serve other collateral than the chain names, or the correct one again.
fn other_collateral(network: &Network, programs: &Programs, broken: bool) -> Result<String> {
    let path = Simulation::of(&network.dir)?.published().join("collateral.json");
    let bytes = std::fs::read(&path)?;
    let own: &[u8] = bytes.strip_suffix(b" ").unwrap_or(&bytes);
    std::fs::write(&path, if broken { [own, b" "].concat() } else { own.to_vec() })?;
    refusals_anew(network, programs)
}

/// Makes mirrors serve rebuilders' statements for a value that was not approved, or the correct ones again.
fn other_votes(network: &Network, programs: &Programs, broken: bool) -> Result<String> {
    let chain = ChainFile::load(&network.dir.join("config/chain.toml"))?;
    let images = chain.images.context("the chain file has no image registry")?;
    Simulation::of(&network.dir)?.sign_votes(chain.chain_id, images, !broken)?;
    refusals_anew(network, programs)
}

/// Returns what clients without any saved state report. Saved evidence from before would still be accepted.
fn refusals_anew(network: &Network, programs: &Programs) -> Result<String> {
    let _ = std::fs::remove_dir_all(network.host("chain")?.dir().join("state"));
    refusals(network, programs)
}

/// Returns what clients that read the chain now report about all relays, once mirrors have collected evidence.
fn refusals(network: &Network, programs: &Programs) -> Result<String> {
    let until = Instant::now() + Duration::from_secs(20);
    let mut before = String::new();
    loop {
        std::thread::sleep(Duration::from_secs(1));
        let line = |relay: &serde_json::Value| {
            let code =
                relay["refused"]["code"].as_str().map_or("trusted".to_owned(), |code| format!("REFUSED [{code}]"));
            format!("relay {}   {code}   {}", relay["relay"], relay["refused"]["why"].as_str().unwrap_or(""))
        };
        let said: Vec<String> = chain::verified(network, programs)?.iter().map(line).collect();
        let said = said.join("\n");
        if Instant::now() > until || (said == before && !said.contains("no-evidence")) {
            return Ok(said);
        }
        before = said;
    }
}

fn describe(network: &Network, programs: &Programs, services: &mut Services) -> Result<String> {
    let output = network.client.command(&programs.openrelay).arg("status").output()?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    for (name, relay) in &mut services.relays {
        let state = if relay.is_running() { relay.ready.clone() } else { "ended".to_owned() };
        text += &format!("  {name:<11} {} {state}\n", network.address(name, false)?);
    }
    text += &format!("  links       {}\n", Network::links().join(" "));
    let pid = std::fs::read_link(format!("/proc/{}/ns/net", network.client.pid())).ok();
    text += &format!("{CLIENT}{}\n", pid.map_or_else(|| "?".into(), |ns| ns.display().to_string()));
    Ok(text)
}
