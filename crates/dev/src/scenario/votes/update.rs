//! A client that replaces its program only with what validators have rebuilt and approved.
//!
//! Owns a mirror of a validator's published files, and the program that is replaced, which never runs.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use openrelay_chain::voting::ImageRegistry;

use super::rebuilding::Rebuilding;
use super::world::{World, join};
use crate::world::local_chain::Process;
use crate::world::tiny::Tiny;

/// A client with a program to replace.
struct Client<'a> {
    world: &'a World,
    place: PathBuf,
    config: String,
    _mirror: Process,
}

impl<'a> Client<'a> {
    fn start(world: &'a World) -> Result<Self> {
        let dir = &world.local.dir;
        let mut command = Command::new(&world.local.programs.openrelay);
        command.args(["mirror", "run", "--listen", "127.0.0.1:0", "--chain"]).arg(dir.join("chain.toml"));
        command.env("OPENRELAY_STATE_DIR", dir.join("mirror"));
        let (mirror, url) = Process::start(command.arg("--files").arg(dir.join("published-1")))?;
        let base = url.strip_suffix("/records").context("the mirror's URL does not end in /records")?;
        let served = format!(
            "mirrors = [\"{url}\"]\nevidence = [\"{base}/attestation\"]\npackages = [\"{base}/files/\"]\n{}",
            kept_lines(&fs::read_to_string(dir.join("chain.toml"))?)
        );
        fs::write(dir.join("served.toml"), served)?;
        let config = dir.join("client.toml");
        let text = "policy = \"policy.toml\"\nchain = \"served.toml\"\nadmission = \"open\"\ndns = [\"192.0.2.1\"]\n";
        fs::write(&config, text)?;
        fs::write(dir.join("policy.toml"), "")?;
        let place = dir.join("bin/openrelay");
        fs::create_dir_all(dir.join("bin"))?;
        fs::write(&place, "the previous program")?;
        Ok(Self { world, place, config: config.display().to_string(), _mirror: mirror })
    }

    /// Runs `openrelay update`, which must end with this exit code and print this word.
    fn updates(&self, arguments: &[&str], code: i32, word: &str) -> Result<()> {
        let place = self.place.display().to_string();
        let all = [&["update", "--config", &self.config, "--into", &place], arguments].concat();
        self.world.local.says(&all, code, word).map(drop)
    }

    fn has(&self, program: &str, before: &str) -> Result<()> {
        let read = |path: PathBuf| fs::read_to_string(path).unwrap_or_default();
        let found = [read(self.place.clone()), read(self.place.with_file_name("openrelay.previous"))];
        ensure!(found == [program, before], "{found:?}, not {program:?} and {before:?}");
        Ok(())
    }
}

/// Returns the chain file without its mirrors.
fn kept_lines(text: &str) -> String {
    let others = text.lines().filter(|line| !line.starts_with("mirrors ") && !line.starts_with("evidence "));
    others.map(|line| format!("{line}\n")).collect()
}

/// Serves wrong bytes for every request, as long as this program runs.
fn serve_lies() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}", listener.local_addr()?);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(std::io::Result::ok) {
            let _ = stream.read(&mut [0; 4_096]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\na lie");
        }
    });
    Ok(url)
}

/// Makes three validators rebuild and approve this program as a version of the client's. It can be used when this
/// returns.
fn approve(world: &World, tiny: &Tiny, version: u64, program: &str) -> Result<()> {
    let client = world.local.dir.join(format!("client-{version}"));
    fs::write(&client, program)?;
    let rebuilding = Rebuilding { client: Some(client), ..Rebuilding::of(tiny) };
    let what = rebuilding.good(world, version)?;
    let round = world.propose(version, &what)?;
    (1..=3).try_for_each(|id| rebuilding.run(world, id, "committed"))?;
    world.await_reveals(round)?;
    world.open(round, &what)?;
    (1..=3).try_for_each(|id| rebuilding.run(world, id, "revealed"))?;
    world.await_end(round)?;
    (1..=3).try_for_each(|id| rebuilding.run(world, id, "settled"))?;
    let image = world.ask(world.images, &ImageRegistry::imageByCall { round })?;
    let usable: u64 = image.usableFrom.to();
    ensure!(usable > 0, "version {version} was not approved");
    world.pass_until(usable)
}

pub(super) fn run(world: &World, tiny: &Tiny) -> Result<()> {
    (1..=3).try_for_each(|number| join(world, number))?;
    let client = Client::start(world)?;
    client.updates(&[], 1, "have approved no usable client package")?;
    approve(world, tiny, 1, "the first program")?;
    client.updates(&["--check"], 0, "an update is available")?;
    client.has("the previous program", "")?;
    client.updates(&[], 0, "version 1, approved in round 1")?;
    client.has("the first program", "the previous program")?;
    client.updates(&[], 0, "is up to date")?;
    approve(world, tiny, 2, "the second program")?;
    // A mirror that serves other bytes. The client skips it when an honest mirror is listed too.
    let served = world.local.dir.join("served.toml");
    let honest = fs::read_to_string(&served)?;
    let (head, tail) = honest.split_once("packages = [").context("the chain file has no package mirrors")?;
    let (own, rest) = tail.split_once(']').context("the list of package mirrors has no closing bracket")?;
    let lies = serve_lies()?;
    fs::write(&served, format!("{head}packages = [\"{lies}\"]{rest}"))?;
    client.updates(&[], 1, "its SHA-256 is")?;
    client.has("the first program", "the previous program")?;
    fs::write(&served, format!("{head}packages = [\"{lies}\", {own}]{rest}"))?;
    // A rebuilder that the policy names has not signed.
    let policy = world.local.dir.join("policy.toml");
    fs::write(&policy, format!("rebuilders = [\"0x{:040x}\"]\n", 7))?;
    client.updates(&[], 5, "[rebuilders]")?;
    client.has("the first program", "the previous program")?;
    fs::write(&policy, "")?;
    client.updates(&["--json"], 0, "\"version\":2")?;
    client.has("the second program", "the first program")?;
    // The client never installs an older version than it has installed before.
    fs::write(world.local.dir.join("state/installed.json"), "{\"version\": 3, \"hash\": \"00\"}")?;
    client.updates(&[], 5, "version 3 was installed before")?;
    client.has("the second program", "the first program")
}
