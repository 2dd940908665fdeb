//! `openrelay-dev devnet check`: runs scenarios, each part in its own namespaces.

use std::ffi::OsString;
use std::sync::{Mutex, PoisonError};

use anyhow::{Result, anyhow, ensure};
use clap::ValueEnum as _;

use super::part::Part;
use super::runner::Choice;
use crate::net::host::check_tools;
use crate::net::output::say;
use crate::world::namespaces::run_inside;

/// Prints the names of all scenarios, each after its part.
pub(crate) fn list(part: Option<Part>) {
    for part in Part::value_variants().iter().filter(|own| part.is_none_or(|part| part == **own)) {
        part.scenarios().iter().for_each(|name| say(&format!("{:<14} {name}", part.name())));
    }
}

/// Runs the chosen scenarios of one part, or of all parts.
///
/// The circuits part runs alone, because its results depend on timing. The others mostly wait, so two run at once.
pub(crate) fn run(part: Option<Part>, choice: &Choice) -> Result<()> {
    let wanted = wanted(part, choice)?;
    check_tools()?;
    let (alone, others): (Vec<Part>, Vec<Part>) = wanted.into_iter().partition(|part| *part == Part::Circuits);
    for part in alone {
        enter(part, choice)?;
    }
    let left = Mutex::new(others.into_iter());
    let next = || left.lock().unwrap_or_else(PoisonError::into_inner).next();
    let lane = || {
        while let Some(part) = next() {
            // After a failure the other lane finishes its part and starts no further one.
            enter(part, choice).inspect_err(|_| while next().is_some() {})?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(lane);
        let here = lane();
        other.join().map_err(|_| anyhow!("a lane of scenarios panicked"))?.and(here)
    })
}

/// Returns the parts with a chosen scenario.
///
/// Each scenario of `Shares` takes about two minutes. Tests of the model check what the attackers lose in every run.
fn wanted(part: Option<Part>, choice: &Choice) -> Result<Vec<Part>> {
    if let Some(filter) = &choice.filter {
        let parts: Vec<Part> = match part {
            Some(part) => vec![part],
            None => Part::value_variants().to_vec(),
        };
        let found: Vec<Part> = parts.into_iter().filter(|part| part.is_wanted(choice)).collect();
        ensure!(
            !found.is_empty(),
            "no scenario's name contains {filter}; to list the names, run: openrelay-dev devnet check --list"
        );
        return Ok(found);
    }
    Ok(match part {
        Some(part) => vec![part],
        None => Part::value_variants().iter().copied().filter(|part| choice.long || *part != Part::Shares).collect(),
    })
}

/// Runs a part in its own namespaces.
fn enter(part: Part, choice: &Choice) -> Result<()> {
    let name = part.name();
    let mut arguments: Vec<OsString> = vec!["check".into(), name.clone().into()];
    arguments.extend(choice.long.then(|| "--long".into()));
    arguments.extend(choice.filter.iter().flat_map(|filter| ["--filter".into(), filter.into()]));
    let status = run_inside(&arguments)?;
    ensure!(status.success(), "the part {name} failed ({status})");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(filter: &str) -> Choice {
        Choice { filter: Some(filter.into()), long: false }
    }

    #[test]
    fn filter_starts_only_the_parts_with_a_scenario_of_that_name() {
        assert_eq!(wanted(None, &choice("a second verifier")).unwrap(), [Part::Evidence]);
        assert_eq!(wanted(None, &choice("34 %")).unwrap(), [Part::Shares]);
        assert_eq!(wanted(Some(Part::Chain), &choice("drains")).unwrap(), [Part::Chain]);
    }

    #[test]
    fn filter_that_matches_nothing_fails() {
        assert!(wanted(None, &choice("no such scenario")).is_err());
        assert!(wanted(Some(Part::Votes), &choice("a second verifier")).is_err());
    }

    #[test]
    fn shares_run_only_when_asked_for() {
        let all = |long| wanted(None, &Choice { filter: None, long }).unwrap();
        assert!(!all(false).contains(&Part::Shares) && all(true).contains(&Part::Shares));
        assert_eq!(wanted(Some(Part::Shares), &Choice::default()).unwrap(), [Part::Shares]);
    }
}
