//! `openrelay-dev devnet`: runs what its command line asks for, inside namespaces where that is needed.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Result, ensure};

use crate::bench;
use crate::cli::{ApproveOptions, CheckOptions, Devnet, FloodOptions, Inside, LoadOptions};
use crate::net::folder::in_a_folder;
use crate::net::host::check_tools;
use crate::net::network::Network;
use crate::net::output::say;
use crate::scenario::runner::Choice;
use crate::scenario::shares::thirty_days;
use crate::scenario::votes::from_source;
use crate::scenario::{check, demo};
use crate::world::keeper;
use crate::world::namespaces::{end_as, run_inside};
use crate::world::packed::with_packed;

/// Runs a command of `openrelay-dev devnet`.
pub(crate) fn run(command: Devnet) -> Result<()> {
    match command {
        Devnet::Up => keeper::up(),
        Devnet::Demo(options) => show(&options),
        Devnet::Check(CheckOptions { part, list: true, .. }) => {
            check::list(part);
            Ok(())
        }
        Devnet::Check(CheckOptions { part, filter, long, .. }) => check::run(part, &Choice { filter, long }),
        Devnet::Approve(ApproveOptions { source, image }) => {
            inside(&["approve".into(), "--source".into(), source.into(), "--image".into(), image.into()])
        }
        Devnet::Load(options) => load(&options),
        Devnet::Flood(options) => flood(&options),
        Devnet::Break { link, mend, lie } => {
            let known: Vec<&str> = Network::links().into_iter().chain(keeper::DATA).collect();
            ensure!(known.contains(&link.as_str()), "unknown link {link}; use one of: {}", known.join(", "));
            say(&keeper::ask(&format!("{} {link} {lie}", if mend { "mend" } else { "break" }))?);
            Ok(())
        }
        Devnet::Status => {
            say(&keeper::status()?);
            Ok(())
        }
        Devnet::Down => {
            say(&keeper::ask("down")?);
            Ok(())
        }
        Devnet::Inside { command } => run_in_here(command),
    }
}

/// Runs a command in these namespaces, which are its own.
fn run_in_here(command: Inside) -> Result<()> {
    match command {
        Inside::Keep { packed } => keeper::keep(packed),
        Inside::Demo(options) => demo::run(&options),
        Inside::Check { part, filter, long } => in_a_folder(|dir| part.run(dir, &Choice { filter, long })),
        Inside::Approve(ApproveOptions { source, image }) => in_a_folder(|dir| from_source::run(dir, &source, &image)),
        Inside::Shares { dir, against } => thirty_days::run(&dir, against),
        Inside::Load(options) => bench::load::measure(options.circuits, options.active),
        Inside::Flood(options) => bench::flood::measure(options.kind, options.seconds, options.rate, options.rounds),
    }
}

fn show(options: &demo::Options) -> Result<()> {
    check_tools()?;
    let run = |image: Option<&Path>| {
        let mut arguments = vec!["demo".into()];
        arguments.extend(options.to_arguments());
        arguments.extend(image.into_iter().flat_map(|image| ["--packed".into(), image.into()]));
        run_inside(&arguments)
    };
    end_as(if options.wants_image() { with_packed(run)? } else { run(None)? })
}

fn load(options: &LoadOptions) -> Result<()> {
    let [circuits, active] = [options.circuits, options.active].map(|number| number.to_string().into());
    inside(&["load".into(), "--circuits".into(), circuits, "--active".into(), active])
}

fn flood(options: &FloodOptions) -> Result<()> {
    let mut arguments = vec!["flood".into()];
    for (option, value) in
        [("--seconds", options.seconds), ("--rate", options.rate), ("--rounds", options.rounds as u64)]
    {
        arguments.extend([option.into(), value.to_string().into()]);
    }
    if let Some(kind) = options.kind {
        arguments.extend(["--kind".into(), format!("{kind:?}").to_lowercase().into()]);
    }
    inside(&arguments)
}

/// Runs `devnet inside …` and exits with its exit code.
fn inside(arguments: &[OsString]) -> Result<()> {
    check_tools()?;
    end_as(run_inside(arguments)?)
}
