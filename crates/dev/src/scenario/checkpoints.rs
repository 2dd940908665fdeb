//! Scenarios on clients that reach no endpoint of the chain.
//!
//! Owns what the signatures of two of three keys allow, and how long a cached directory serves.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use openrelay_client::kept_of;
use openrelay_node::chain_file::ChainFile;
use openrelay_node::clock::unix_seconds;

use super::runner::{Scenario, Scenarios};
use crate::world::devchain::register;
use crate::world::local_chain::{LocalChain, Process};

const HOUR: u64 = 3_600;

/// The scenarios of the part, each with its own chain.
pub(crate) static SCENARIOS: Scenarios<PathBuf> = Scenarios::new(
    |dir| Ok(dir.to_owned()),
    &[
        Scenario::new(
            "without endpoints: two of three checkpoint keys suffice, one is refused with exit code 5",
            |dir| checkpoints(dir),
        ),
        Scenario::new(
            "a cached directory serves while the chain stands still for 71 hours, and not after 73: exit code 5",
            |dir| {
                for age in [71, 73] {
                    let dir = dir.join(format!("{age}-hours"));
                    fs::create_dir_all(&dir)?;
                    stands_still(&dir, age)?;
                }
                Ok(())
            },
        ),
    ],
);

/// Runs a chain whose newest block is `age` hours old, and a client that read it at that time.
fn stands_still(dir: &Path, age: u64) -> Result<()> {
    let mut world = LocalChain::start_behind(dir, age * HOUR)?;
    let chain = dir.join("chain.toml");
    let (relay, _) = register(&chain, 1)?;
    let mut mirror = Command::new(&world.programs.openrelay);
    mirror.args(["mirror", "run", "--chain"]).arg(&chain).env("OPENRELAY_STATE_DIR", dir.join("mirror"));
    let (_mirror, records) = Process::start(&mut mirror)?;
    let text = fs::read_to_string(&chain)?.replace("mirrors = []", &format!("mirrors = [\"{records}\"]"));
    fs::write(&chain, text)?;
    let client = dir.join("client.toml");
    fs::write(&client, "chain = \"chain.toml\"\nadmission = \"open\"\ndns = [\"192.0.2.1\"]\n")?;
    let client = client.display().to_string();
    let egresses = ["egresses", "--config", &client];
    // Control: without a cached directory no client starts with such a chain.
    world.says(&egresses, 5, "directory refused")?;
    let file = ChainFile::load(&chain)?;
    // Blocks of one second each have moved the chain's time slightly ahead.
    let (reading, _) = openrelay_chain::read(&file, unix_seconds() - age * HOUR + 60, 0)?;
    let kept = kept_of(&file, &dir.join("state"));
    fs::create_dir_all(kept.parent().context("the cache file's path has no parent folder")?)?;
    fs::write(&kept, reading.encode().context("a parsed reading cannot be encoded")?)?;
    let is_refused = |world: &LocalChain, arguments: &[&str]| -> Result<()> {
        let said = world.says(arguments, 5, " hours old; the limit is 72 hours")?;
        // The age is rounded up, and some seconds have passed.
        let ages = [age, age + 1].map(|age| format!("directory refused: the directory is {age} hours old"));
        ensure!(ages.iter().any(|age| said.contains(age)), "unexpected age: {said}");
        Ok(())
    };
    for blocked in [false, true] {
        if blocked {
            world.end();
        }
        if age < 72 {
            let said = world.says(&egresses, 0, "using the cached directory")?;
            ensure!(said.contains(&format!("{relay:>6}  ")), "relay {relay} is not listed: {said}");
            continue;
        }
        is_refused(&world, &egresses)?;
        is_refused(&world, &["up", "--wait", "--config", &client])?;
        world.says(&["status"], 3, "Down")?;
    }
    // A client without a cache that reaches no endpoint has refused nothing, so its exit code is 3.
    fs::remove_file(&kept)?;
    world.says(&egresses, 3, "no endpoint of the chain was reached").map(drop)
}

fn checkpoints(dir: &Path) -> Result<()> {
    let world = LocalChain::start(dir)?;
    let path = |name: &str| dir.join(name).display().to_string();
    let (chain, file) = (path("chain.toml"), path("checkpoint"));
    let mut mirror = Command::new(&world.programs.openrelay);
    mirror.args(["mirror", "run", "--chain", &chain, "--checkpoint", &file]);
    mirror.env("OPENRELAY_STATE_DIR", dir.join("mirror"));
    let (_mirror, records) = Process::start(&mut mirror)?;

    let mut keys = Vec::new();
    for name in ["key-1", "key-2", "key-3"] {
        let said = world.says(&["checkpoint", "key", "--out", &path(name)], 0, "checkpoint_key ")?;
        keys.push(format!("\"{}\"", said.trim().trim_start_matches("checkpoint_key ")));
    }
    world.says(&["checkpoint", "key", "--out", &path("key-1")], 1, "cannot write")?;
    let unsigned = fs::read_to_string(&chain)?.replace("mirrors = []", &format!("mirrors = [\"{records}\"]"));
    let url = records.replace("/records", "/checkpoint");
    let trusted = format!(
        "{unsigned}checkpoints = [\"{url}\"]\ncheckpoint_keys = [{}]\ncheckpoint_quorum = 2\n",
        keys.join(", ")
    );
    let signers = path("signers.toml");
    fs::write(&signers, &trusted)?;
    // A client whose endpoints are blocked: no server listens there.
    let endpoints =
        trusted.lines().find(|line| line.starts_with("endpoints")).context("the chain file has no endpoints")?;
    fs::write(dir.join("blocked.toml"), trusted.replace(endpoints, "endpoints = [\"http://127.0.0.1:1\"]"))?;
    fs::write(dir.join("client.toml"), "chain = \"blocked.toml\"\nadmission = \"open\"\ndns = [\"192.0.2.1\"]\n")?;
    let client = path("client.toml");

    world.says(&["egresses", "--config", &client], 5, "no mirror has a usable checkpoint")?;
    let sign = |key: &str| {
        let key = path(key);
        ["checkpoint", "sign", "--chain", &signers, "--key", &key, "--file", &file].map(str::to_owned)
    };
    let run = |arguments: [String; 8], code: i32, word: &str| {
        world.says(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), code, word).map(drop)
    };
    run(sign("key-1"), 0, "1 of the trusted keys have signed")?;
    world.says(&["egresses", "--config", &client], 5, "2 must")?;
    run(sign("key-3"), 0, "signed by a quorum of keys")?;
    world.says(&["egresses", "--config", &client], 0, "signed checkpoint")?;
    // A changed checkpoint that one key has signed gets no signature of another key.
    let mut bytes = fs::read(&file)?;
    bytes[4 + 23 + 8 + 8] ^= 1;
    fs::write(&file, &bytes)?;
    run(sign("key-2"), 5, "0 of 1 endpoints show block")?;
    fs::write(&file, "nonsense")?;
    run(sign("key-2"), 5, "this is not a checkpoint")?;
    // The cached directory serves on without the mirror's file.
    world.says(&["egresses", "--config", &client], 0, "using the cached directory")?;
    Ok(())
}
