//! `openrelay-dev` runs a whole network on one machine, for experiments and tests.
//!
//! Owns none of the product's functions. It starts `openrelay` and `openrelay-relay`, gives them hosts and links, and
//! watches the links. `scenario` and `bench` use `world`, which uses `net`.

mod bench;
mod cli;
mod devnet;
mod net;
mod scenario;
mod world;

use std::process::ExitCode;

use clap::Parser as _;

use crate::cli::{Cli, Command};
use crate::net::host::Missing;
use crate::net::judge;
use crate::net::output::{say, talk};
use crate::world::{attacks, boot, devchain, flood, internet, leak, load, thin};

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            talk(&format!("openrelay-dev: {error:#}"));
            ExitCode::from(if error.is::<Missing>() { 77 } else { 1 })
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Devnet { command } => devnet::run(command),
        Command::Devchain { command } => devchain::run(command),
        Command::Boot { image, json } => boot::check(&image, json),
        Command::Attacks(options) => attacks::run(&options),
        Command::ChainDeploy { url, file, mirror, simulate, relay } => {
            devchain::deploy(&url, &file, &mirror, &simulate, &relay)
        }
        Command::ChainFund { url, file, account } => devchain::fund(&url, &file, account),
        Command::ChainFaults { url, faults } => devchain::set_faults(&url, &faults),
        Command::ChainRevoke { file, round } => devchain::revoke(&file, round),
        Command::ChainRegister { file, number } => {
            devchain::register(&file, number).map(|(relay, block)| say(&format!("{relay} {block}")))
        }
        Command::ChainMine { url } => devchain::mine(&url),
        Command::Internet { addresses, chain } => internet::serve(&addresses, chain),
        Command::Fetch { host, bytes, v6 } => internet::fetch(&host, bytes, v6),
        Command::Drain { host } => internet::drain(&host),
        Command::Echo { server, count, size } => internet::exchange(server, count, size),
        Command::LeakingRelay { arguments } => leak::run(&arguments),
        Command::Load { config, circuits, active } => load::run(&config, circuits, active),
        Command::Flood(options) => flood::send(&options),
        Command::HoldUnread { address } => flood::hold_unread(address),
        Command::Garbage { to } => internet::garbage(to),
        Command::Stray { to } => internet::stray(to),
        Command::Forget { address } => Ok(openrelay_sys_dev::conntrack::forget(address)?),
        Command::Leak { config } => leak::beside(&config),
        Command::Thin { listen, of, lists } => thin::serve(listen, &of, &lists),
        Command::Judge { rules } => judge::run(&rules),
    }
}
