//! The registry of scenarios, by part. Each part runs in its own namespaces.

use std::path::Path;

use anyhow::Result;

use super::runner::{Area, Choice};
use super::{chain, checkpoints, circuits, egress, evidence, reorganisation, shares, votes, withholding};

/// The parts of the scenarios, each on its own network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub(crate) enum Part {
    /// Circuits on broken links, firewall, crashes
    Circuits,
    /// Firewall, flows and privileges of an egress
    Egress,
    /// A directory that a chain proves, and operators
    Chain,
    /// Record sources that lie by omission
    Withholding,
    /// Validators' votes
    Votes,
    /// A validator and source trees whose builds never end
    Builds,
    /// 34 % of the weight attack a network for thirty days
    ///
    /// Runs only with --long, with --filter, or when it is named.
    Shares,
    /// Updates of the client's program by validators' votes
    Updates,
    /// Vendors' collateral by validators' votes
    Collateral,
    /// Clients that reach no endpoint
    Checkpoints,
    /// A chain that reorganises
    Reorganisation,
    /// Relay evidence and its refusals
    Evidence,
}

impl Part {
    /// Returns the part's scenarios. Each area has its own world.
    fn areas(self) -> Vec<&'static dyn Area> {
        match self {
            Self::Circuits => vec![&circuits::SCENARIOS],
            Self::Egress => vec![&egress::SCENARIOS],
            Self::Chain => vec![&chain::SCENARIOS, &chain::ON_ANVIL],
            Self::Withholding => vec![&withholding::SCENARIOS],
            Self::Votes => vec![&votes::SCENARIOS],
            Self::Builds => vec![&votes::BUILDS],
            Self::Shares => vec![&shares::SCENARIOS],
            Self::Updates => vec![&votes::UPDATES],
            Self::Collateral => vec![&votes::COLLATERAL],
            Self::Checkpoints => vec![&checkpoints::SCENARIOS],
            Self::Reorganisation => vec![&reorganisation::SCENARIOS],
            Self::Evidence => vec![&evidence::SCENARIOS],
        }
    }

    /// Returns the part's name on the command line.
    pub(crate) fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// Returns the names of the part's scenarios.
    pub(crate) fn scenarios(self) -> Vec<&'static str> {
        self.areas().iter().flat_map(|area| area.names()).collect()
    }

    /// Returns whether any scenario of the part is chosen.
    pub(crate) fn is_wanted(self, choice: &Choice) -> bool {
        self.areas().iter().any(|area| area.is_wanted(choice))
    }

    /// Runs the chosen scenarios below a folder.
    pub(crate) fn run(self, dir: &Path, choice: &Choice) -> Result<()> {
        for (number, area) in self.areas().iter().enumerate() {
            let dir = dir.join(number.to_string());
            std::fs::create_dir(&dir)?;
            area.run(&dir, choice)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum as _;

    #[test]
    fn each_scenario_has_its_own_name_and_needs_only_earlier_ones() {
        let mut names: Vec<&str> = Part::value_variants().iter().flat_map(|part| part.scenarios()).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
        for part in Part::value_variants() {
            assert_eq!(part.name(), part.to_possible_value().unwrap().get_name());
            assert!(part.areas().iter().all(|area| area.unmet().is_empty()), "{part:?}");
        }
    }
}
