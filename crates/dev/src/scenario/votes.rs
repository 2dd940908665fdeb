//! Scenarios of validators, who vote with the product's own commands on their own development chain.

pub(crate) mod collateral;
mod endless;
pub(crate) mod from_source;
pub(crate) mod hostile;
pub(crate) mod rebuilding;
mod rounds;
mod update;
pub(crate) mod world;

use std::path::Path;

use anyhow::{Context as _, Result};

use self::hostile::Outsider;
use self::rebuilding::Rebuilding;
use self::world::World;
use super::runner::{Scenario, Scenarios};
use crate::world::approved::TIME_DIVISOR;
use crate::world::local_chain::LocalChain;
use crate::world::tiny::Tiny;

/// A chain, a tree that validators rebuild, and a further validator once it has joined.
pub(crate) struct Voting {
    world: World,
    tiny: Tiny,
    outsider: Option<Outsider>,
}

impl Voting {
    fn start(dir: &Path) -> Result<Self> {
        Self::on(dir, LocalChain::start_without_time(dir)?)
    }

    /// Starts a chain whose rounds take minutes of its time, so that the last part of a round can be observed.
    fn start_with_time_divisor(dir: &Path) -> Result<Self> {
        Self::on(dir, LocalChain::start_with_time_divisor(dir, TIME_DIVISOR)?)
    }

    fn on(dir: &Path, chain: LocalChain) -> Result<Self> {
        Ok(Self { world: World::of(dir, chain)?, tiny: Tiny::make(&dir.join("tiny"))?, outsider: None })
    }

    fn outsider(&self) -> Result<&Outsider> {
        self.outsider.as_ref().context("no outsider has joined")
    }
}

/// Makes three validators join.
const JOIN: &str = "three validators join, approve a good image and reject a bad one";
/// Makes an outsider join.
const LIE: &str = "a third of all weight that lies can neither approve nor stop an image, and pays a penalty";
/// Makes the outsider vote in a round that it can be reported for.
const COPY: &str = "a validator that copies another's commitment earns nothing and pays a penalty";

/// The scenarios of the part `votes`.
pub(crate) static SCENARIOS: Scenarios<Voting> = Scenarios::new(
    Voting::start,
    &[
        Scenario::new(JOIN, |voting: &mut Voting| {
            rounds::votes(&voting.world)?;
            rounds::rebuilds(&voting.world, &Rebuilding::of(&voting.tiny))
        }),
        Scenario::new(LIE, |voting: &mut Voting| {
            voting.outsider = Some(hostile::lying_third(&voting.world, &Rebuilding::of(&voting.tiny))?);
            Ok(())
        })
        .needs(&[JOIN]),
        Scenario::new(
            "a validator that is killed at each step recovers, votes once and pays nothing",
            |voting: &mut Voting| hostile::killed(&voting.world, &Rebuilding::of(&voting.tiny)),
        )
        .needs(&[JOIN]),
        Scenario::new(
            "a validator whose disk fills up during a build reports that and not a failed build",
            |voting: &mut Voting| hostile::full_disk(&voting.world, &Rebuilding::of(&voting.tiny)),
        )
        .needs(&[JOIN]),
        Scenario::new(COPY, |voting: &mut Voting| {
            hostile::copying(&voting.world, &Rebuilding::of(&voting.tiny), voting.outsider()?)
        })
        .needs(&[LIE]),
        Scenario::new(
            "a validator that signs two values in one round loses its whole bond to a report",
            |voting: &mut Voting| hostile::equivocating(&voting.world, voting.outsider()?),
        )
        .needs(&[COPY]),
    ],
);

/// The scenario of the part `builds`.
pub(crate) static BUILDS: Scenarios<Voting> = Scenarios::new(
    Voting::start_with_time_divisor,
    &[Scenario::new(
        "a validator reveals, settles and abstains in time while a build hangs or forks without end",
        |voting: &mut Voting| endless::run(&voting.world, &voting.tiny),
    )],
);

/// The scenario of the part `updates`.
pub(crate) static UPDATES: Scenarios<Voting> = Scenarios::new(
    Voting::start,
    &[Scenario::new(
        "a client updates itself only to what validators approved, and never to an older version",
        |voting: &mut Voting| update::run(&voting.world, &voting.tiny),
    )],
);

/// The scenario of the part `collateral`.
pub(crate) static COLLATERAL: Scenarios<World> = Scenarios::new(
    |dir| World::of(dir, LocalChain::start_with_time_divisor(dir, TIME_DIVISOR)?),
    &[Scenario::new(
        "validators fetch collateral, check it against evidence, and vote for the newest that holds",
        |world| collateral::run(world),
    )],
);
