//! The part of `openrelay-dev devnet check` in which 34 % of the validators' weight attack a network for thirty days
//! of its chain's time.
//!
//! Owns the network around them: relays that run the image which the other validators approved meanwhile, and a
//! client that connects at the end. `vote_check` contains the thirty days.

use std::fs;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};

use crate::chain::{self, Operator};
use crate::chain_check::Bench;
use crate::host::checked;
use crate::say;
use crate::scenario::scenario;
use crate::simulation::Simulation;
use crate::topology::{Network, Programs, Services};
use crate::vote_check::{Against, BEHIND};

/// The relays of the network.
const RELAYS: [&str; 2] = ["ingress-1", "egress-1"];

/// Runs the scenario for each kind of attack, or only for the most expensive one.
pub(crate) fn run(dir: &Path, long: bool) -> Result<()> {
    let ways: &[Against] =
        if long { &[Against::Silent, Against::Abstains, Against::Failed] } else { &[Against::Failed] };
    for against in ways {
        let dir = dir.join(against.name());
        fs::create_dir_all(&dir)?;
        let words = against.words();
        scenario(&format!("34 % of the weight {words} for 30 days: images, collateral and circuits continue"), || {
            thirty_days(&dir, *against)
        })?;
    }
    Ok(())
}

fn thirty_days(dir: &Path, against: Against) -> Result<()> {
    let programs = Programs::simulating()?;
    let network = Network::new(dir)?;
    let mut others = vec![network.internet(&programs)?, chain::start_behind(&network, &programs, BEHIND)?];
    let host = network.host("chain")?;
    let mut command = host.command(&programs.dev);
    command.args(["devnet", "inside", "shares"]).arg(dir).arg(against.name());
    let said = checked(&command.stdin(Stdio::null()).output()?, "thirty days")?;
    said.lines().for_each(say);
    others.push(chain::mirror_and_client(&network, &programs)?);
    let client = dir.join("config/client");
    fs::rename(client.join("rebuilders-of-30-days.toml"), client.join("rebuilders.toml"))?;
    let simulation = Simulation::of(dir)?;
    let (mut relays, mut operators) = (Vec::new(), Vec::new());
    for name in RELAYS {
        let operator = Operator::register(&network, &programs, name)?;
        // The image's manifest has no shapes of TDX.
        simulation.tell(&dir.join("config").join(name), "SEV-SNP", None)?;
        relays.push((name, operator.start(network.host(name)?, &programs, &[])?));
        operators.push((name, operator));
    }
    let bench = Bench { network, services: Services { others, relays, operators, machine: None }, programs };
    let config = bench.config();
    bench.within("the first circuit", || Ok(bench.up(&config).is_ok()))?;
    ensure!(bench.fetches()?, "the circuit carries no data");
    let status = bench.status()?;
    let image = alloy_primitives::hex::encode(simulation.image);
    let hops = status["evidence"].as_array().context("the status has no evidence")?;
    let run_it = |hop: &serde_json::Value| hop["image"].as_str().is_some_and(|shown| shown.contains(&image));
    ensure!(hops.len() == 2 && hops.iter().all(run_it), "the hops do not run the approved image {image}: {status}");
    bench.down()
}
