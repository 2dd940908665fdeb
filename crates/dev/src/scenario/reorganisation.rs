//! A scenario on a chain that removes a registration after its operator has seen it.
//!
//! Owns the check that the product reports the removal and registers again only once.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use openrelay_chain::Endpoint;
use openrelay_node::chain_file::ChainFile;
use serde_json::json;

use super::runner::{Scenario, Scenarios};
use crate::world::local_chain::LocalChain;
use crate::world::secret::write_secret;

/// The scenario of the part.
pub(crate) static SCENARIOS: Scenarios<PathBuf> = Scenarios::new(
    |dir| Ok(dir.to_owned()),
    &[Scenario::new("a registration that a reorganisation removed is noticed and repeated once", |dir| {
        reorganised(dir)
    })],
);

fn reorganised(dir: &Path) -> Result<()> {
    // Without time no block comes between a registration and the reorganisation.
    let world = LocalChain::start_without_time(dir)?;
    let path = |name: &str| dir.join(name).display().to_string();
    let (chain, password) = (path("chain.toml"), path("password"));
    write_secret(Path::new(&password), "a password\n")?;
    let url = ChainFile::load(Path::new(&chain))?.endpoints.first().context("the chain file has no endpoint")?.clone();
    let relay = |what: &str, folder: &str, code: i32, word: &str| {
        world.says(&["relay", what, "--dir", &path(folder), "--password-file", &password], code, word)
    };
    let status =
        |folder: &str, code: i32, word: &str| world.says(&["relay", "status", "--dir", &path(folder)], code, word);
    for (folder, endpoint) in [("first", "198.51.100.9:443"), ("second", "203.0.113.9:443")] {
        let withdrawal = "0x00000000000000000000000000000000c01dc01d";
        let arguments = ["relay", "init", "--dir", &path(folder), "--chain", &chain, "--role", "egress"];
        let more =
            ["--endpoint", endpoint, "--advertised", "10", "--withdrawal", withdrawal, "--password-file", &password];
        let image = ["--image", &"11".repeat(32)];
        world.says(&[&arguments[..], &more, &image].concat(), 0, "operator ")?;
    }
    let bond = |folder: &str, word: &str| {
        // No mirror serves this chain and no chip its machine, so the check fails.
        let arguments = ["relay", "bond", "--anyway", "--dir", &path(folder), "--password-file", &password];
        world.says(&arguments, 0, word)
    };
    relay("bond", "first", 1, "nothing was paid")?;
    bond("first", "relay_id 1")?;
    status("first", 5, "no mirror")?;
    // Removes the block of the registration, and with it the payment.
    Endpoint::new(&url).ask("devchain_reorganise", &json!(["0x1"]))?;
    status("first", 3, "the chain reverted the registration")?;
    relay("run", "first", 3, "has left the registry")?;
    bond("second", "relay_id 1")?;
    status("first", 3, "operated by")?;
    relay("run", "first", 3, "operated by")?;
    bond("first", "relay_id 2")?;
    let head = || Endpoint::new(&url).ask_number("eth_blockNumber", &json!([]));
    let before = head()?;
    relay("bond", "first", 0, "relay_id 2")?;
    anyhow::ensure!(head()? == before, "a second `relay bond` sent a transaction");
    Ok(())
}
