//! From evidence to a verdict: the whole way, in one order.
//!
//! Owns [`Verdict`], which nothing else makes. A verdict lists what was found; it never says "trusted". What the chain
//! says comes in as a value ([`LedgerView`]): a part of it that is missing refuses, and the refusal says which.
//!
//! ```text
//! form ─▶ properties ─▶ binding = report data ─▶ block, relay, epoch, role ─▶ image and measurement
//!      ─▶ chain, lists, signature ─▶ firmware and floors ─▶ policy ─▶ clock ─▶ Verdict
//! ```

use crate::binding::Binding;
use crate::collateral::Collateral;
use crate::evidence::{Evidence, Measurement};
use crate::facts::Facts;
use crate::manifest::check_generation;
use crate::policy::{Floors, Policy};
use crate::refusal::Refusal;
use crate::roots::Roots;

/// How far this machine's clock may be from the chain's, in seconds.
const CLOCK_SKEW: u64 = 6 * 3_600;
/// How far it may be ahead while nobody shows a newer block, in seconds: the chain may stand still, or its endpoints be
/// blocked.
pub const OFFLINE: u64 = 72 * 3_600;

/// What a relay shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Staple {
    /// The evidence.
    pub evidence: Evidence,
    /// What it is bound to.
    pub binding: Binding,
}

/// An image that validators have voted on, as the chain has it now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// SHA-256 of it.
    pub hash: [u8; 32],
    /// What validators voted for, which names image and manifest.
    pub value: [u8; 32],
    /// Where it stands.
    pub state: ImageState,
    /// The generation of the firmware that it starts with, as its manifest names it.
    pub firmware_generation: Option<u32>,
    /// What chips report when they start it, one for each shape of machine.
    pub measurements: Vec<Measurement>,
    /// Published weaknesses of Intel's that it does what is advised against. Those of another name refuse.
    pub advisories: Vec<String>,
    /// Addresses of those who have signed that they rebuilt it, whoever they are.
    pub rebuilt_by: Vec<[u8; 20]>,
}

/// Where an image stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageState {
    /// Approved, and not to be used yet.
    Pending,
    /// Approved.
    Active,
    /// A newer one is there; good until its grace is over.
    Deprecated,
    /// Its grace is over.
    Retired,
    /// A third of the stake has stopped it for a while.
    Suspended,
    /// Revoked for ever.
    Revoked,
}

/// States of versions that evidence does not tell apart: what stands before another outweighs it.
const BY_WEIGHT: [ImageState; 6] = [
    ImageState::Revoked,
    ImageState::Suspended,
    ImageState::Active,
    ImageState::Deprecated,
    ImageState::Pending,
    ImageState::Retired,
];

impl Image {
    /// Whether a chip that reports this measurement runs this version of the image. The same bytes with other firmware
    /// are another version, with other measurements.
    pub fn is_what_runs(&self, hash: &[u8; 32], measurement: &Measurement) -> bool {
        self.hash == *hash && self.measurements.contains(measurement)
    }
}

impl ImageState {
    /// Where versions stand together that evidence does not tell apart: revoked or suspended if one is, and otherwise
    /// usable as long as one is. `None` of none.
    pub fn of_all(states: impl IntoIterator<Item = Self>) -> Option<Self> {
        let weight = |state: &Self| BY_WEIGHT.iter().position(|one| one == state);
        states.into_iter().min_by_key(weight)
    }

    /// Whether relays may run it now.
    ///
    /// # Errors
    /// [`Refusal::ImageState`].
    pub const fn usable(self) -> Result<(), Refusal> {
        match self {
            Self::Active | Self::Deprecated => Ok(()),
            Self::Pending => Err(Refusal::ImageState("is approved, and not to be used yet")),
            Self::Retired => Err(Refusal::ImageState("is retired")),
            Self::Suspended => Err(Refusal::ImageState("is suspended")),
            Self::Revoked => Err(Refusal::ImageState("was revoked")),
        }
    }
}

/// A relay as the directory has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relay {
    /// Its number.
    pub relay_id: u64,
    /// Its handshake key.
    pub handshake_key: [u8; 32],
    /// The epoch of that key.
    pub key_epoch: u32,
    /// What it serves as, in bits: 1 ingress, 2 egress.
    pub roles: u8,
}

/// A block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// Its hash.
    pub hash: [u8; 32],
    /// Its height.
    pub height: u64,
    /// When it was made, in seconds since the Unix epoch.
    pub time: u64,
}

/// What the chain says. Each part can be missing, and is asked for only by name.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LedgerView {
    /// The network's identity.
    pub network: Option<[u8; 32]>,
    /// Time of the newest block, in seconds since the Unix epoch.
    pub time: Option<u64>,
    /// Whether no newer block is known than that one: then the clock may be [`OFFLINE`] ahead of it.
    pub newest_known: bool,
    /// The block that the binding names, if the chain has it.
    pub block: Option<Block>,
    /// The relay.
    pub relay: Option<Relay>,
    /// Versions of images by ascending number, whatever became of them.
    pub images: Option<Vec<Image>>,
    /// The least that firmware must be.
    pub floors: Option<Floors>,
}

/// What was found. Made by [`verify`] alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    facts: Facts,
    binding: Binding,
    image: ImageState,
    identity: [u8; 32],
}

impl Verdict {
    /// What the evidence says.
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// What it is bound to.
    pub const fn binding(&self) -> &Binding {
        &self.binding
    }

    /// Where the image stands, in the versions that the evidence can be of.
    pub const fn image(&self) -> ImageState {
        self.image
    }

    /// What the evidence is known by.
    pub const fn identity(&self) -> [u8; 32] {
        self.identity
    }

    /// Whether two relays may be hops of one circuit: on two chips, of which at most one is unknown.
    ///
    /// # Errors
    /// [`Refusal::SameChip`], [`Refusal::UnknownChips`].
    pub fn may_share_a_circuit_with(&self, other: &Self) -> Result<(), Refusal> {
        match (self.facts.chip, other.facts.chip) {
            (Some(one), Some(two)) if one == two => Err(Refusal::SameChip),
            (None, None) => Err(Refusal::UnknownChips),
            _ => Ok(()),
        }
    }
}

/// Judges what a relay shows, for `role` (1 ingress, 2 egress), at `now` in seconds since the Unix epoch.
///
/// # Errors
/// [`Refusal`]: the first check that does not hold, cheap ones first.
pub fn verify(
    staple: &Staple,
    role: u8,
    collateral: &Collateral,
    (roots, policy): (&Roots, &Policy),
    view: &LedgerView,
    now: u64,
) -> Result<Verdict, Refusal> {
    let Staple { evidence, binding } = staple;
    if roots.simulated && !policy.simulation {
        return Err(Refusal::Simulated);
    }
    evidence.check()?;
    if evidence.report_data() != binding.report_data() {
        return Err(Refusal::Binding);
    }
    let time = view.time.ok_or(Refusal::NoView("the chain's time"))?;
    check_relay(binding, role, view)?;
    check_block(binding, view, time, policy)?;
    let (image, state) = find_image(binding, evidence, view, roots)?;
    let floors = view.floors.as_ref().ok_or(Refusal::NoView("the floors of firmware"))?;
    let facts = crate::examine(evidence, Some(collateral), roots, now)?;
    policy.check(&facts, floors, image)?;
    check_clock(now, time, view.newest_known)?;
    Ok(Verdict { facts, binding: *binding, image: state, identity: evidence.identity() })
}

/// A clock that is ahead may be right: then the block is old. That is accepted only while it is the newest that is
/// known.
fn check_clock(now: u64, time: u64, newest_known: bool) -> Result<(), Refusal> {
    let limit = if newest_known { OFFLINE } else { CLOCK_SKEW };
    match now.checked_sub(time) {
        Some(age) if age > limit => Err(Refusal::Outdated { age, limit }),
        None if time - now > CLOCK_SKEW => Err(Refusal::Clock),
        Some(_) | None => Ok(()),
    }
}

fn check_relay(binding: &Binding, role: u8, view: &LedgerView) -> Result<(), Refusal> {
    let network = view.network.ok_or(Refusal::NoView("the network"))?;
    if binding.network != network {
        return Err(Refusal::OtherNetwork);
    }
    let relay = view.relay.ok_or(Refusal::NoView("the relay's record"))?;
    if binding.relay_id != relay.relay_id {
        return Err(Refusal::OtherRelay);
    }
    if binding.key_epoch != relay.key_epoch {
        return Err(Refusal::OtherEpoch);
    }
    if binding.handshake_key != relay.handshake_key {
        return Err(Refusal::OtherKey);
    }
    if binding.roles != relay.roles || relay.roles & role == 0 {
        return Err(Refusal::OtherRole);
    }
    Ok(())
}

fn check_block(binding: &Binding, view: &LedgerView, time: u64, policy: &Policy) -> Result<(), Refusal> {
    let block = view.block.ok_or(Refusal::UnknownBlock)?;
    let same = (block.hash, block.height) == (binding.block_hash, binding.block_height);
    // A block newer than the newest is none that the chain has.
    let age = time.checked_sub(block.time).filter(|_| same).ok_or(Refusal::UnknownBlock)?;
    if age > policy.max_age_s { Err(Refusal::TooOld { age, limit: policy.max_age_s }) } else { Ok(()) }
}

/// The newest version that the evidence can be of, and where all of those stand together.
fn find_image<'a>(
    binding: &Binding,
    evidence: &Evidence,
    view: &'a LedgerView,
    roots: &Roots,
) -> Result<(&'a Image, ImageState), Refusal> {
    let images = view.images.as_ref().ok_or(Refusal::NoView("the images"))?;
    let newest = images.iter().rfind(|image| image.hash == binding.image).ok_or(Refusal::UnknownImage)?;
    let measurement = evidence.measurement();
    let versions: Vec<&Image> =
        images.iter().filter(|image| image.is_what_runs(&binding.image, &measurement)).collect();
    // Where the measurement is none of any version, the newest tells whether that is all.
    let image = versions.last().copied().unwrap_or(newest);
    let state = ImageState::of_all(versions.iter().map(|image| image.state)).unwrap_or(image.state);
    state.usable()?;
    check_generation(image.firmware_generation, roots.min_firmware_generation)?;
    if versions.is_empty() {
        return Err(Refusal::Measurement);
    }
    Ok((image, state))
}
