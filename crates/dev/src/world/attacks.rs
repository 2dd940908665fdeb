//! `openrelay-dev attacks`: attacks of a hostile host on the boot of an image, tried in emulated machines.
//!
//! Each attack is one boot. It counts as refused if all processors halt, or if the approved image boots unharmed.
//! Each attack has a control: the same machine without the attack, in which the image must boot.

mod aml;
mod flash;
mod list;
mod outcome;
mod programs;
mod run;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use serde_json::json;

use super::boot::{Parts, check_tools};
use crate::net::folder::in_a_folder;
use crate::net::output::{say, talk};
use list::{Attack, Host};
use outcome::Outcome;

/// Attacks that replace nothing approved and need only arguments of the emulator. Firmware and image ignore them,
/// also several at once.
pub(crate) const IGNORED: [&str; 9] =
    ["shim", "shim-image", "acpi-code", "acpi-initrd", "option-rom", "items", "no-acpi", "smbios", "numbered"];

/// Returns the emulator's arguments for these attacks, whose files are written into the folder `dir`. All must be in
/// [`IGNORED`].
pub(crate) fn ignored(image: &Path, dir: &Path, names: &[String]) -> Result<Vec<OsString>> {
    std::fs::create_dir_all(dir)?;
    let host = Host::new(Parts::of(image, dir)?, image, dir)?;
    let attacks = list::ATTACKS.iter().filter(|attack| names.iter().any(|name| name == attack.name));
    let all: Vec<_> = attacks.map(|attack| (attack.attack)(&host, (attack.control)(&host)).more).collect();
    ensure!(all.len() == names.len(), "the list has an unknown attack: {}", names.join(" "));
    Ok(all.concat())
}

/// What to attack, and how.
#[derive(clap::Args, Debug)]
pub(crate) struct Options {
    /// Image to attack
    #[arg(long, value_name = "FILE")]
    image: PathBuf,
    /// Firmware; the default is the one beside the image
    #[arg(long, value_name = "FILE")]
    firmware: Option<PathBuf>,
    /// Run these attacks only
    #[arg(long, value_name = "NAME", num_args = 1..)]
    only: Vec<String>,
    /// Fail unless exactly these attacks succeed
    #[arg(long, value_name = "NAME", num_args = 1..)]
    expect_success: Vec<String>,
    /// Time limit of a boot, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    patience: u64,
    /// List the attacks and exit
    #[arg(long)]
    list: bool,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// The result of an attack.
struct Row {
    attack: &'static Attack,
    control: Outcome,
    outcome: Outcome,
    seconds: f64,
    ok: bool,
}

/// Runs the attacks and prints their outcomes.
///
/// # Errors
/// Fails when an attack succeeds that must not, when one does not succeed that must, or when a control does not boot.
pub(crate) fn run(options: &Options) -> Result<()> {
    if options.list {
        list::ATTACKS.iter().for_each(|attack| say(&format!("{:<20} {}", attack.name, attack.about)));
        return Ok(());
    }
    check_tools(false)?;
    let chosen = chosen(options)?;
    let rows = in_a_folder(|dir| try_all(options, &chosen, dir))?;
    report(&rows, options.json);
    let bad: Vec<&str> = rows.iter().filter(|row| !row.ok).map(|row| row.attack.name).collect();
    ensure!(bad.is_empty(), "attacks with an unexpected outcome: {}", bad.join(", "));
    Ok(())
}

/// Returns the named attacks, or all.
fn chosen(options: &Options) -> Result<Vec<&'static Attack>> {
    for name in options.only.iter().chain(&options.expect_success) {
        if !list::ATTACKS.iter().any(|attack| attack.name == name) {
            bail!("unknown attack {name}; to list the attacks, run: openrelay-dev attacks --list");
        }
    }
    let chosen = |attack: &&Attack| {
        let named = |names: &[String]| names.iter().any(|name| name == attack.name);
        options.only.is_empty() && options.expect_success.is_empty()
            || named(&options.only)
            || named(&options.expect_success)
    };
    Ok(list::ATTACKS.iter().filter(chosen).collect())
}

fn try_all(options: &Options, chosen: &[&'static Attack], dir: &Path) -> Result<Vec<Row>> {
    let parts = match &options.firmware {
        Some(firmware) => Parts::with_firmware(&options.image, firmware, dir)?,
        None => Parts::of(&options.image, dir)?,
    };
    let host = Host::new(parts, &options.image, dir)?;
    let patience = std::time::Duration::from_secs(options.patience);
    let mut controls: Vec<(list::Setup, Outcome)> = Vec::new();
    let mut rows = Vec::new();
    for attack in chosen {
        let setup = (attack.control)(&host);
        let known = controls.iter().find(|(known, _)| *known == setup).map(|(_, outcome)| outcome.clone());
        let control = match known {
            Some(outcome) => outcome,
            None => {
                let outcome = run::boot(&host, &setup, patience)?;
                controls.push((setup.clone(), outcome.clone()));
                outcome
            }
        };
        let started = std::time::Instant::now();
        let outcome = run::boot(&host, &(attack.attack)(&host, setup), patience)?;
        let seconds = started.elapsed().as_secs_f64();
        let expected = options.expect_success.iter().any(|name| name == attack.name);
        let judged = if expected { attack.succeeds(&outcome) } else { attack.refused(&outcome) };
        let ok = judged && control == Outcome::Unharmed;
        talk(&format!("{} {} {}", line(attack, &control, &outcome, ok), control.console(), outcome.console()));
        rows.push(Row { attack, control, outcome, seconds, ok });
    }
    Ok(rows)
}

fn line(attack: &Attack, control: &Outcome, outcome: &Outcome, ok: bool) -> String {
    format!(
        "{:<4} {:<20} {:<10} {:<10} {}",
        if ok { "ok" } else { "BAD" },
        attack.name,
        control.word(),
        outcome.word(),
        attack.about
    )
}

fn report(rows: &[Row], as_json: bool) {
    let ran = rows.iter().filter(|row| matches!(row.outcome, Outcome::HostCode)).count();
    if as_json {
        let attacks: Vec<_> = rows
            .iter()
            .map(|row| {
                json!({
                    "attack": row.attack.name, "about": row.attack.about, "control": row.control.word(),
                    "outcome": row.outcome.word(), "console": row.outcome.console(), "seconds": row.seconds,
                    "ok": row.ok,
                })
            })
            .collect();
        let ok = rows.iter().all(|row| row.ok);
        let all = json!({
            "schema": "openrelay.image-attacks/1", "ok": ok, "host_code_ran": ran, "of": rows.len(),
            "attacks": attacks,
        });
        say(&all.to_string());
        return;
    }
    say(&format!("{:<4} {:<20} {:<10} {:<10}", "", "attack", "control", "outcome"));
    rows.iter().for_each(|row| say(&line(row.attack, &row.control, &row.outcome, row.ok)));
    say(&format!("host code ran in {ran} of {} attacks", rows.len()));
}
