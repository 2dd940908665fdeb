//! The last part of `openrelay-dev devnet check`: clients that reach no endpoint of the chain, and what two of three keys have signed.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result};

use crate::local_chain::{LocalChain, Process};
use crate::scenario::scenario;

/// Runs the scenario.
pub(crate) fn run(dir: &Path) -> Result<()> {
    scenario("without endpoints: two of three keys stand for them, one does not, exit code 5", || checkpoints(dir))
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
