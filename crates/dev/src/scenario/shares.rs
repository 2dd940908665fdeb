//! Scenarios in which 34 % of the validators' weight attack a network for thirty days of its chain's time.
//!
//! Owns the network around them: relays that run the image which the other validators approved meanwhile, and a
//! client that connects at the end. `thirty_days` contains their course.

pub(crate) mod thirty_days;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};

use self::thirty_days::{Against, BEHIND};
use super::bench::Bench;
use super::runner::{Scenario, Scenarios};
use crate::net::host::checked;
use crate::net::output::say;
use crate::world::chain;
use crate::world::operators::Operator;
use crate::world::programs::{Programs, network};
use crate::world::services::{Services, internet};
use crate::world::simulation::Simulation;

/// The relays of the network.
const RELAYS: [&str; 2] = ["ingress-1", "egress-1"];

/// The scenarios of the part, each on its own network. The one that always runs costs the attackers most.
pub(crate) static SCENARIOS: Scenarios<PathBuf> = Scenarios::new(
    |dir| Ok(dir.to_owned()),
    &[
        Scenario::new(
            "34 % of the weight stays silent for 30 days: images, collateral and circuits continue",
            |dir: &mut PathBuf| thirty_days(dir, Against::Silent),
        )
        .long(),
        Scenario::new(
            "34 % of the weight abstains for 30 days: images, collateral and circuits continue",
            |dir: &mut PathBuf| thirty_days(dir, Against::Abstains),
        )
        .long(),
        Scenario::new(
            "34 % of the weight says \"failed\" for 30 days: images, collateral and circuits continue",
            |dir: &mut PathBuf| thirty_days(dir, Against::Failed),
        ),
    ],
);

fn thirty_days(dir: &Path, against: Against) -> Result<()> {
    let dir = &dir.join(against.name());
    fs::create_dir_all(dir)?;
    let programs = Programs::simulating()?;
    let network = network(dir)?;
    let mut others = vec![internet(&network, &programs)?, chain::start_behind(&network, &programs, BEHIND)?];
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
    let bench = Bench::of(network, Services { others, relays, operators, machine: None }, programs);
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
