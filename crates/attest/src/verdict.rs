//! The path from evidence to a verdict, in one fixed order.
//!
//! Owns [`Verdict`], which nothing else constructs. A verdict lists what was found; it never says "trusted". The
//! chain's data is an argument ([`LedgerView`]). A missing part leads to a refusal that names the part.
//!
//! ```text
//! format ─▶ properties ─▶ binding = report data ─▶ relay, epoch, role, block
//!        ─▶ image and measurement ─▶ certificate chain, revocation lists, signature
//!        ─▶ policy, firmware floors ─▶ clock ─▶ Verdict
//! ```

use crate::binding::Binding;
use crate::collateral::Collateral;
use crate::evidence::{Evidence, Measurement};
use crate::facts::Facts;
use crate::manifest::check_generation;
use crate::policy::{Floors, Policy};
use crate::refusal::Refusal;
use crate::roots::Roots;

/// Largest difference between this machine's clock and the chain's, in seconds.
const CLOCK_SKEW: u64 = 6 * 3_600;
/// Largest time that this machine's clock may be ahead of the chain's while no newer block is known, in seconds. The
/// chain may have stopped, or its endpoints may be blocked.
pub const OFFLINE: u64 = 72 * 3_600;

/// A relay's evidence, stapled to its binding. (The word is TLS's, from OCSP stapling.)
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Staple {
    /// The evidence.
    pub evidence: Evidence,
    /// The binding that the evidence attests.
    pub binding: Binding,
}

/// An image that validators voted on, in its current state on the chain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    /// SHA-256 of the image.
    pub hash: [u8; 32],
    /// The value that validators voted for, which commits to image and manifest.
    pub value: [u8; 32],
    /// State of the image.
    pub state: ImageState,
    /// Generation of the firmware that starts the image, from its manifest.
    pub firmware_generation: Option<u32>,
    /// Measurements that chips report when they start the image, one for each machine shape.
    pub measurements: Vec<Measurement>,
    /// Published Intel advisories that the image mitigates. Any other advisory that affects the platform leads to a
    /// refusal.
    pub advisories: Vec<String>,
    /// Addresses whose keys signed that they rebuilt the image. Anybody can sign.
    pub rebuilt_by: Vec<[u8; 20]>,
}

/// State of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ImageState {
    /// Approved, but not usable yet.
    Pending,
    /// Approved.
    Active,
    /// Superseded by a newer image, and usable until its grace period ends.
    Deprecated,
    /// Superseded, and its grace period is over.
    Retired,
    /// Suspended temporarily by a third of the stake.
    Suspended,
    /// Revoked for ever.
    Revoked,
}

/// Precedence among the states of versions that evidence cannot distinguish; earlier states win.
const BY_WEIGHT: [ImageState; 6] = [
    ImageState::Revoked,
    ImageState::Suspended,
    ImageState::Active,
    ImageState::Deprecated,
    ImageState::Pending,
    ImageState::Retired,
];

impl Image {
    /// Returns whether a chip that reports this measurement runs this version of the image. The same image bytes with
    /// other firmware are another version, with other measurements.
    pub fn is_what_runs(&self, hash: &[u8; 32], measurement: &Measurement) -> bool {
        self.hash == *hash && self.measurements.contains(measurement)
    }
}

impl ImageState {
    /// Returns the combined state of versions that evidence cannot distinguish. One revoked or suspended version
    /// outweighs the others; otherwise one usable version is enough. `None` if there are no versions.
    pub fn of_all(states: impl IntoIterator<Item = Self>) -> Option<Self> {
        let weight = |state: &Self| BY_WEIGHT.iter().position(|one| one == state);
        states.into_iter().min_by_key(weight)
    }

    /// Checks that relays may run an image in this state.
    ///
    /// # Errors
    /// [`Refusal::ImageState`] if they may not.
    pub const fn usable(self) -> Result<(), Refusal> {
        match self {
            Self::Active | Self::Deprecated => Ok(()),
            Self::Pending => Err(Refusal::ImageState("is approved but cannot be used yet")),
            Self::Retired => Err(Refusal::ImageState("is retired")),
            Self::Suspended => Err(Refusal::ImageState("is suspended")),
            Self::Revoked => Err(Refusal::ImageState("was revoked")),
        }
    }
}

/// A relay's record in the directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Relay {
    /// Relay ID.
    pub relay_id: u64,
    /// Handshake key.
    pub handshake_key: [u8; 32],
    /// Epoch of that key.
    pub key_epoch: u32,
    /// Roles as bits: 1 ingress, 2 egress.
    pub roles: u8,
}

/// A block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Block {
    /// Block hash.
    pub hash: [u8; 32],
    /// Block height.
    pub height: u64,
    /// Block time, in seconds since the Unix epoch.
    pub time: u64,
}

/// The chain's data that a verdict needs. Each part can be missing; a check that needs a missing part refuses.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct LedgerView {
    /// Network ID.
    pub network: Option<[u8; 32]>,
    /// Time of the newest block, in seconds since the Unix epoch.
    pub time: Option<u64>,
    /// Whether no block newer than that one is known. The clock may then be [`OFFLINE`] ahead of it.
    pub newest_known: bool,
    /// The block that the binding names, if the chain has it.
    pub block: Option<Block>,
    /// The relay's record.
    pub relay: Option<Relay>,
    /// Image versions in ascending order, in any state.
    pub images: Option<Vec<Image>>,
    /// Lowest firmware numbers that the network accepts.
    pub floors: Option<Floors>,
}

/// The result of a successful verification. Only [`verify`] constructs it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    facts: Facts,
    binding: Binding,
    image: ImageState,
    identity: [u8; 32],
}

impl Verdict {
    /// Returns the facts that the evidence states.
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Returns the binding that the evidence attests.
    pub const fn binding(&self) -> &Binding {
        &self.binding
    }

    /// Returns the combined state of the image versions that the evidence matches.
    pub const fn image(&self) -> ImageState {
        self.image
    }

    /// Returns the identity of the evidence.
    pub const fn identity(&self) -> [u8; 32] {
        self.identity
    }

    /// Checks that two relays may be hops of one circuit: they run on two chips, of which at most one is unidentified.
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

/// Verifies a relay's staple for `role` (1 ingress, 2 egress), at `now` in seconds since the Unix epoch.
///
/// # Errors
/// [`Refusal`] of the first check that fails. Cheap checks come first.
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
    let floors = view.floors.as_ref().ok_or(Refusal::NoView("the list of firmware floors"))?;
    let facts = crate::examine(evidence, Some(collateral), roots, now)?;
    policy.check(&facts, floors, image)?;
    check_clock(now, time, view.newest_known)?;
    Ok(Verdict { facts, binding: *binding, image: state, identity: evidence.identity() })
}

/// Checks this machine's clock against the chain's. If the clock is ahead, it may be right and the block old. That is
/// accepted only while no newer block is known.
fn check_clock(now: u64, time: u64, newest_known: bool) -> Result<(), Refusal> {
    let limit = if newest_known { OFFLINE } else { CLOCK_SKEW };
    match now.checked_sub(time) {
        Some(age) if age > limit => Err(Refusal::Outdated { age, limit }),
        None if time - now > CLOCK_SKEW => Err(Refusal::Clock),
        Some(_) | None => Ok(()),
    }
}

fn check_relay(binding: &Binding, role: u8, view: &LedgerView) -> Result<(), Refusal> {
    let network = view.network.ok_or(Refusal::NoView("the network ID"))?;
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
    // A block that is newer than the newest one is not on the chain.
    let age = time.checked_sub(block.time).filter(|_| same).ok_or(Refusal::UnknownBlock)?;
    if age > policy.max_age_s { Err(Refusal::TooOld { age, limit: policy.max_age_s }) } else { Ok(()) }
}

/// Returns the newest image version that the evidence matches, and the combined state of all that it matches.
fn find_image<'a>(
    binding: &Binding,
    evidence: &Evidence,
    view: &'a LedgerView,
    roots: &Roots,
) -> Result<(&'a Image, ImageState), Refusal> {
    let images = view.images.as_ref().ok_or(Refusal::NoView("the list of images"))?;
    let newest = images.iter().rfind(|image| image.hash == binding.image).ok_or(Refusal::UnknownImage)?;
    let measurement = evidence.measurement();
    let versions: Vec<&Image> =
        images.iter().filter(|image| image.is_what_runs(&binding.image, &measurement)).collect();
    // If the measurement matches no version, the newest version decides whether something else is wrong too.
    let image = versions.last().copied().unwrap_or(newest);
    let state = ImageState::of_all(versions.iter().map(|image| image.state)).unwrap_or(image.state);
    state.usable()?;
    check_generation(image.firmware_generation, roots.min_firmware_generation)?;
    if versions.is_empty() {
        return Err(Refusal::Measurement);
    }
    Ok((image, state))
}
