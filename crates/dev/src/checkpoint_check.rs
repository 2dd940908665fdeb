//! The part of `openrelay-dev devnet check` about clients that reach no endpoint of the chain.
//!
//! Owns what two of three keys have signed, and how long a directory serves that was kept.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use openrelay_node::chain_file::ChainFile;
use openrelay_node::client::kept_of;
use openrelay_node::clock::unix_seconds;

use crate::local_chain::{LocalChain, Process};
use crate::scenario::scenario;

const HOUR: u64 = 3_600;

/// Runs the scenarios.
pub(crate) fn run(dir: &Path) -> Result<()> {
    scenario("without endpoints: two of three keys stand for them, one does not, exit code 5", || checkpoints(dir))?;
    scenario(
        "a kept directory serves while the chain stands still for 71 hours, and none after 73: exit code 5",
        || {
            for age in [71, 73] {
                let dir = dir.join(format!("{age}-hours"));
                fs::create_dir_all(&dir)?;
                stands_still(&dir, age)?;
            }
            Ok(())
        },
    )
}

/// A chain whose newest block is so many hours old, and a client that has read it then.
fn stands_still(dir: &Path, age: u64) -> Result<()> {
    let mut world = LocalChain::start_behind(dir, age * HOUR)?;
    let chain = dir.join("chain.toml");
    let (relay, _) = crate::devchain::register(&chain, 1)?;
    let mut mirror = Command::new(&world.programs.openrelay);
    mirror.args(["mirror", "run", "--chain"]).arg(&chain).env("OPENRELAY_STATE_DIR", dir.join("mirror"));
    let (_mirror, records) = Process::start(&mut mirror)?;
    let text = fs::read_to_string(&chain)?.replace("mirrors = []", &format!("mirrors = [\"{records}\"]"));
    fs::write(&chain, text)?;
    let client = dir.join("client.toml");
    fs::write(&client, "chain = \"chain.toml\"\nadmission = \"open\"\ndns = [\"192.0.2.1\"]\n")?;
    let client = client.display().to_string();
    let exits = ["exits", "--config", &client];
    // Control: by such a chain alone no client begins, however young a kept directory may be.
    world.says(&exits, 5, "directory refused")?;
    let file = ChainFile::load(&chain)?;
    // Blocks of a second each have pushed its time a little ahead.
    let (reading, _) = openrelay_node::chain::read(&file, unix_seconds() - age * HOUR + 60, 0)?;
    let kept = kept_of(&file, &dir.join("state"));
    fs::create_dir_all(kept.parent().context("it is in a folder")?)?;
    fs::write(&kept, reading.encode().context("a reading that was read can be written")?)?;
    let is_refused = |world: &LocalChain, arguments: &[&str]| -> Result<()> {
        let said = world.says(arguments, 5, " hours old, and at most 72 hours are accepted")?;
        // Rounded up, and some seconds have gone by.
        let ages = [age, age + 1].map(|age| format!("directory refused: the directory is {age} hours old"));
        ensure!(ages.iter().any(|age| said.contains(age)), "another age: {said}");
        Ok(())
    };
    for blocked in [false, true] {
        if blocked {
            world.end();
        }
        if age < 72 {
            let said = world.says(&exits, 0, "the directory is one that was kept")?;
            ensure!(said.contains(&format!("{relay:>6}  ")), "relay {relay} is not shown: {said}");
            continue;
        }
        is_refused(&world, &exits)?;
        is_refused(&world, &["up", "--wait", "--config", &client])?;
        world.says(&["status"], 3, "Down")?;
    }
    // Who has kept nothing and reaches nobody was refused nothing.
    fs::remove_file(&kept)?;
    world.says(&exits, 3, "no endpoint of the chain was reached").map(drop)
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
    // A client whose endpoints are blocked: nobody listens there.
    let endpoints = trusted.lines().find(|line| line.starts_with("endpoints")).context("no endpoints")?;
    fs::write(dir.join("blocked.toml"), trusted.replace(endpoints, "endpoints = [\"http://127.0.0.1:1\"]"))?;
    fs::write(dir.join("client.toml"), "chain = \"blocked.toml\"\nadmission = \"open\"\ndns = [\"192.0.2.1\"]\n")?;
    let client = path("client.toml");

    world.says(&["exits", "--config", &client], 5, "no mirror has a checkpoint")?;
    let sign = |key: &str| {
        let key = path(key);
        ["checkpoint", "sign", "--chain", &signers, "--key", &key, "--file", &file].map(str::to_owned)
    };
    let run = |arguments: [String; 8], code: i32, word: &str| {
        world.says(&arguments.iter().map(String::as_str).collect::<Vec<_>>(), code, word).map(drop)
    };
    run(sign("key-1"), 0, "1 of the trusted keys have signed")?;
    world.says(&["exits", "--config", &client], 5, "2 must")?;
    run(sign("key-3"), 0, "signed by enough keys")?;
    world.says(&["exits", "--config", &client], 0, "signed checkpoint")?;
    // What one has signed, and changed, is signed by nobody else.
    let mut bytes = fs::read(&file)?;
    bytes[4 + 23 + 8 + 8] ^= 1;
    fs::write(&file, &bytes)?;
    run(sign("key-2"), 5, "0 of 1 endpoints show block")?;
    fs::write(&file, "nonsense")?;
    run(sign("key-2"), 5, "this is no checkpoint")?;
    // What was kept serves on without the mirror's file.
    world.says(&["exits", "--config", &client], 0, "was kept")?;
    Ok(())
}
