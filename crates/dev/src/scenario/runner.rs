//! Chooses and runs scenarios.
//!
//! Owns the order, the choice by name, and the line that reports a result. Contains no scenario itself.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;

use crate::net::output::say;

/// One scenario on a world of the type `W`.
pub(crate) struct Scenario<W> {
    /// What holds if it passes.
    pub(crate) name: &'static str,
    run: fn(&mut W) -> Result<()>,
    /// Names of earlier scenarios that create what this one uses.
    needs: &'static [&'static str],
    /// Whether it makes links lose datagrams.
    pub(crate) breaks_links: bool,
    /// Whether it runs only with `--long`, or when a filter names it.
    long: bool,
}

impl<W> Scenario<W> {
    pub(crate) const fn new(name: &'static str, run: fn(&mut W) -> Result<()>) -> Self {
        Self { name, run, needs: &[], breaks_links: false, long: false }
    }

    /// States which earlier scenarios must run first.
    pub(crate) const fn needs(self, needs: &'static [&'static str]) -> Self {
        Self { needs, ..self }
    }

    /// States that the scenario makes links lose datagrams.
    pub(crate) const fn breaking_links(self) -> Self {
        Self { breaks_links: true, ..self }
    }

    /// States that the scenario runs only with `--long`, or when a filter names it.
    pub(crate) const fn long(self) -> Self {
        Self { long: true, ..self }
    }
}

/// Scenarios that share a world, in the order in which they run.
pub(crate) struct Scenarios<W: 'static> {
    /// Creates the world in an empty folder.
    pub(crate) start: fn(&Path) -> Result<W>,
    pub(crate) list: &'static [Scenario<W>],
    /// Judges the world after each scenario. Returns what to add to the scenario's line.
    pub(crate) after: fn(&mut W, &Scenario<W>) -> Result<String>,
    /// Judges the world after the last scenario.
    pub(crate) end: fn(W) -> Result<()>,
}

impl<W> Scenarios<W> {
    /// Scenarios after which nothing more is judged.
    pub(crate) const fn new(start: fn(&Path) -> Result<W>, list: &'static [Scenario<W>]) -> Self {
        Self { start, list, after: |_, _| Ok(String::new()), end: |_| Ok(()) }
    }
}

/// Which scenarios to run.
#[derive(Clone, Default, Debug)]
pub(crate) struct Choice {
    /// Only those whose name contains this.
    pub(crate) filter: Option<String>,
    /// Also those that are marked as long.
    pub(crate) long: bool,
}

impl Choice {
    fn is_wanted(&self, name: &str, long: bool) -> bool {
        self.filter.as_ref().map_or(self.long || !long, |filter| name.contains(filter.as_str()))
    }
}

/// Scenarios whose world's type does not matter.
pub(crate) trait Area: Sync {
    /// Returns the names of all scenarios.
    fn names(&self) -> Vec<&'static str>;

    /// Returns whether any scenario is chosen.
    fn is_wanted(&self, choice: &Choice) -> bool;

    /// Returns the needed names that no earlier scenario has.
    #[cfg(test)]
    fn unmet(&self) -> Vec<&'static str>;

    /// Runs the chosen scenarios in the folder `dir`. Starts no world if none is chosen.
    ///
    /// # Errors
    /// Fails at the first scenario that fails, and names it.
    fn run(&self, dir: &Path, choice: &Choice) -> Result<()>;
}

impl<W> Area for Scenarios<W> {
    fn names(&self) -> Vec<&'static str> {
        self.list.iter().map(|scenario| scenario.name).collect()
    }

    fn is_wanted(&self, choice: &Choice) -> bool {
        self.list.iter().any(|scenario| choice.is_wanted(scenario.name, scenario.long))
    }

    #[cfg(test)]
    fn unmet(&self) -> Vec<&'static str> {
        let names = self.names();
        let needs =
            self.list.iter().enumerate().flat_map(|(at, scenario)| scenario.needs.iter().map(move |need| (at, need)));
        needs.filter(|(at, need)| !names.iter().take(*at).any(|name| name == *need)).map(|(_, need)| *need).collect()
    }

    fn run(&self, dir: &Path, choice: &Choice) -> Result<()> {
        let chosen = self.chosen(choice);
        if chosen.is_empty() {
            return Ok(());
        }
        for (scenario, user) in &chosen {
            if let Some(user) = user {
                say(&format!("runs first: {}; needed by: {user}", scenario.name));
            }
        }
        let mut world = (self.start)(dir)?;
        for (scenario, _) in chosen {
            timed(scenario.name, || {
                (scenario.run)(&mut world)?;
                (self.after)(&mut world, scenario)
            })?;
        }
        (self.end)(world)
    }
}

impl<W> Scenarios<W> {
    /// Returns the chosen scenarios and those that they need, in order. The latter have the name of one that needs
    /// them.
    fn chosen(&self, choice: &Choice) -> Vec<(&'static Scenario<W>, Option<&'static str>)> {
        let mut chosen: Vec<(&'static Scenario<W>, Option<&'static str>)> = Vec::new();
        // Backwards, because a scenario needs only earlier ones.
        for scenario in self.list.iter().rev() {
            let user = chosen.iter().find(|(later, _)| later.needs.contains(&scenario.name));
            if choice.is_wanted(scenario.name, scenario.long) {
                chosen.push((scenario, None));
            } else if let Some((user, _)) = user {
                chosen.push((scenario, Some(user.name)));
            }
        }
        chosen.reverse();
        chosen
    }
}

/// Why a scenario cannot run on this machine. With `OPENRELAY_NO_SKIP` set that is a failure.
#[derive(Debug)]
pub(crate) struct Skipped(pub(crate) &'static str);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Skipped {}

/// Runs a step and prints that it passed, how long it took, and what it returned. An error names the step.
pub(crate) fn timed(name: &str, act: impl FnOnce() -> Result<String>) -> Result<()> {
    let started = Instant::now();
    match act() {
        Ok(more) => say(&format!("ok  {:>5.1} s  {name}{more}", started.elapsed().as_secs_f64())),
        Err(why) if why.is::<Skipped>() && std::env::var_os("OPENRELAY_NO_SKIP").is_none() => {
            say(&format!("skipped: {name}: {why}"));
        }
        Err(why) => return Err(why.context(format!("scenario failed: {name}"))),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add<const NUMBER: u32>(ran: &mut Vec<u32>) -> Result<()> {
        ran.push(NUMBER);
        Ok(())
    }

    static LIST: [Scenario<Vec<u32>>; 4] = [
        Scenario::new("first thing", add::<1>),
        Scenario::new("second thing", add::<2>).needs(&["first thing"]),
        Scenario::new("third thing", add::<3>).long(),
        Scenario::new("last", add::<4>).needs(&["second thing"]),
    ];

    fn names(filter: Option<&str>, long: bool) -> Vec<&'static str> {
        let scenarios = Scenarios::new(|_| Ok(Vec::new()), &LIST);
        let choice = Choice { filter: filter.map(str::to_owned), long };
        let chosen = scenarios.chosen(&choice);
        assert_eq!(scenarios.is_wanted(&choice), !chosen.is_empty());
        chosen.iter().map(|(scenario, _)| scenario.name).collect()
    }

    #[test]
    fn filter_chooses_by_name_and_adds_what_the_chosen_need() {
        assert_eq!(names(Some("second"), false), ["first thing", "second thing"]);
        assert_eq!(names(Some("last"), false), ["first thing", "second thing", "last"]);
        assert_eq!(names(Some("third"), false), ["third thing"]);
        assert!(names(Some("fourth"), true).is_empty());
    }

    #[test]
    fn without_a_filter_long_scenarios_run_only_when_asked_for() {
        assert_eq!(names(None, false), ["first thing", "second thing", "last"]);
        assert_eq!(names(None, true).len(), LIST.len());
    }

    #[test]
    fn chosen_scenarios_share_one_world_which_nobody_starts_for_none() {
        let end = |ran: Vec<u32>| {
            assert_eq!(ran, [1, 2]);
            Ok(())
        };
        let choice = |filter: &str| Choice { filter: Some(filter.into()), long: false };
        let scenarios = Scenarios { end, ..Scenarios::new(|_| Ok(Vec::new()), &LIST) };
        scenarios.run(Path::new("/"), &choice("second")).unwrap();
        let never = Scenarios::<Vec<u32>>::new(|_| anyhow::bail!("started"), &LIST);
        never.run(Path::new("/"), &choice("fourth")).unwrap();
        assert!(never.run(Path::new("/"), &choice("last")).is_err());
    }
}
