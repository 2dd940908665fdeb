//! What the chain says besides the directory: images that validators have approved, the collateral that holds now, and which blocks it has had. Each from slots that are
//! proven under the state root of one header.
//!
//! Owns which slots those are, and what follows from them. They follow from the newest block alone, so that every client asks the same: the newest images of relays, the entry of
//! collateral, and all blocks that evidence can name. Sources: contracts/src/ImageRegistry.sol, contracts/src/Collateral.sol, their storage layouts, EIP-2935.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, U256, address, keccak256};

use super::header::Header;
use super::proof::{Account, ProofError, verify_account, verify_slot};
use crate::votes::images::{GRACE, State};

/// The kind of image that relays run.
pub const RELAY_IMAGE: u8 = 1;
/// The kind of image that is the client's own program.
pub const CLIENT_PACKAGE: u8 = 2;
/// Images that are looked at, the newest by version: older ones have long been retired.
pub const NEWEST: u64 = 16;
/// Slots of the list of images that are asked for before its length is known: of thirty-two images.
const FIRST_PLACES: u64 = 8;
/// Where a chain keeps the hashes of its blocks. Source: EIP-2935.
pub const HISTORY: Address = address!("0000F90827F1C53a10cb7A02335B175320002935");
/// And of how many.
const SERVED: u64 = 8_191;
/// Evidence names blocks whose height is a multiple of this: so few that everybody can ask for all of them, and nobody learns by a question which evidence somebody has.
pub const ANCHOR_EVERY: u64 = 256;
/// And names one once so many blocks stand on it: what is gone after a reorganisation proves nothing.
const SETTLED: u64 = 64;
/// Places in the contracts' storage, which a test holds against the committed layouts.
const ROUNDS: u64 = 8;
const IMAGES: u64 = 16;
const APPROVED: u64 = 17;
const CURRENT: u64 = 12;
/// Of a round: the slot with the value that was approved. Of an image: the slots with version and times. Of collateral:
/// the slots with its hash and floors.
const ROUND_VALUE: u64 = 4;
const IMAGE_VERSION: u64 = 0;
const IMAGE_TIMES: u64 = 1;
const BUNDLE: u64 = 0;
const FLOORS: u64 = 1;
/// Fields of such slots: the first bit, and how many.
const VERSION: (usize, usize) = (160, 64);
const USABLE_FROM: (usize, usize) = (0, 48);
const SUSPENDED_UNTIL: (usize, usize) = (48, 48);
const REVOKED_AT: (usize, usize) = (96, 48);
const INTEL_FLOOR: (usize, usize) = (0, 32);
const AMD_FLOOR: (usize, usize) = (32, 64);

/// The contracts that are looked at: fixed by the release or by who sets up a network, never asked of an endpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Contracts {
    /// Votes on images.
    pub images: Address,
    /// Votes on vendors' collateral.
    pub collateral: Address,
    /// 1; what development networks divide times by.
    pub haste: u32,
}

/// An account with some of its slots, as an endpoint claims and proves them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proven {
    /// Whose.
    pub address: Address,
    /// What it is said to be; `None` where there is no such account.
    pub account: Option<Account>,
    /// The nodes that lead to it from the state root.
    pub proof: Vec<Bytes>,
    /// Its slots.
    pub slots: Vec<Slot>,
}

/// A slot with its proof.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Which.
    pub key: B256,
    /// What it is said to hold.
    pub value: U256,
    /// The nodes that lead to it from the storage root.
    pub proof: Vec<Bytes>,
}

/// An image as the chain has it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VotedImage {
    /// Its number.
    pub round: u64,
    /// Its version.
    pub version: u64,
    /// From when on it can be used, in seconds since the Unix epoch.
    pub usable_from: u64,
    /// Until when it is suspended.
    pub suspended_until: u64,
    /// Whether it was revoked.
    pub revoked: bool,
    /// What was voted for: Keccak-256 of the image's hash and of that of its manifest.
    pub value: B256,
}

/// What the chain says of images, collateral and blocks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Voted {
    /// The newest approved images, by ascending version.
    pub images: Vec<VotedImage>,
    /// SHA-256 of the collateral that holds; zeros before there is any.
    pub bundle: B256,
    /// The smallest `tcbEvaluationDataNumber`.
    pub intel_floor: u32,
    /// The smallest number of AMD's floors.
    pub amd_floor: u64,
    /// The blocks that evidence can name, by height.
    pub blocks: BTreeMap<u64, B256>,
}

/// Why slots are refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VotedError {
    /// A proof.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// Something that every reading has.
    #[error("there is no proof of {0}")]
    Missing(&'static str),
}

/// The slots of the image registry that are asked for first: how many images of a kind there are, and the first ones.
pub fn first_image_slots(kind: u8) -> Vec<B256> {
    let begin = places(kind);
    [approved(kind)].into_iter().chain((0..FIRST_PLACES).map(|place| at(begin, place))).collect()
}

/// The slots of the entry of collateral.
pub fn collateral_slots() -> Vec<B256> {
    [BUNDLE, FLOORS].map(|place| word(CURRENT + place)).into()
}

/// The further slots of the list that must be known to find the newest of so many images of a kind.
pub fn more_image_slots(kind: u8, count: u64) -> Vec<B256> {
    let begin = places(kind);
    let of_list = count.saturating_sub(NEWEST) / 4..count.div_ceil(4);
    of_list.filter(|place| *place >= FIRST_PLACES).map(|place| at(begin, place)).collect()
}

/// The slots of these images.
pub fn image_slots(rounds: &[u64]) -> Vec<B256> {
    let of_round = |round: &u64| {
        let (image, vote) = (entry(*round, IMAGES), entry(*round, ROUNDS));
        [at(image, IMAGE_VERSION), at(image, IMAGE_TIMES), at(vote, ROUND_VALUE)]
    };
    rounds.iter().flat_map(of_round).collect()
}

/// The height of the block that new evidence names.
const fn anchor(newest: u64) -> u64 {
    newest.saturating_sub(SETTLED) / ANCHOR_EVERY * ANCHOR_EVERY
}

/// The heights of all blocks that evidence can name, ascending: thirty-two, on a chain that has had so many.
pub fn anchors(newest: u64) -> impl Iterator<Item = u64> {
    let first = newest.saturating_sub(SERVED).div_ceil(ANCHOR_EVERY) * ANCHOR_EVERY;
    // A block's own hash is not in its state.
    let end = if newest == 0 { 0 } else { anchor(newest) + 1 };
    (first..end).step_by(usize::try_from(ANCHOR_EVERY).unwrap_or(usize::MAX))
}

/// The slots of the history of blocks that prove those.
pub fn block_slots(newest: u64) -> Vec<B256> {
    anchors(newest).map(|height| word(height % SERVED)).collect()
}

/// The numbers of the newest images of a kind, from the proven list.
///
/// # Errors
/// [`VotedError`] when it is not proven.
pub fn newest_images(kind: u8, images: &Proven, header: &Header) -> Result<Vec<u64>, VotedError> {
    let slots = images.slots(header)?;
    let count: u64 = slots.get(&approved(kind)).ok_or(VotedError::Missing("the number of images"))?.saturating_to();
    let begin = places(kind);
    let round = |number: u64| {
        let packed = slots.get(&at(begin, number / 4)).ok_or(VotedError::Missing("the list of images"))?;
        let lane: usize = usize::try_from(number % 4).unwrap_or(0);
        Ok(packed.as_limbs()[lane])
    };
    (count.saturating_sub(NEWEST)..count).map(round).collect()
}

/// How many images of a kind there are, if that is proven.
///
/// # Errors
/// [`VotedError`].
pub fn image_count(kind: u8, images: &Proven, header: &Header) -> Result<u64, VotedError> {
    let slots = images.slots(header)?;
    Ok(slots.get(&approved(kind)).ok_or(VotedError::Missing("the number of images"))?.saturating_to())
}

impl Proven {
    /// The slots, each proven.
    fn slots(&self, header: &Header) -> Result<BTreeMap<B256, U256>, VotedError> {
        verify_account(header.state_root, self.address, self.account.as_ref(), &self.proof)?;
        let Some(account) = self.account else { return Ok(BTreeMap::new()) };
        let proven = |slot: &Slot| {
            verify_slot(account.storage_root, slot.key, slot.value, &slot.proof)?;
            Ok((slot.key, slot.value))
        };
        self.slots.iter().map(proven).collect()
    }
}

impl Voted {
    /// What these accounts prove under the header.
    ///
    /// # Errors
    /// [`VotedError`]: nothing of it may be used then.
    pub fn verify(states: &[Proven], header: &Header, contracts: &Contracts) -> Result<Self, VotedError> {
        let of = |address: Address, what| {
            states.iter().find(|state| state.address == address).ok_or(VotedError::Missing(what))
        };
        let images = images(RELAY_IMAGE, of(contracts.images, "the image registry")?, header)?;
        let slots = of(contracts.collateral, "the collateral")?.slots(header)?;
        let [bundle, floors] =
            [BUNDLE, FLOORS].map(|place| get(&slots, word(CURRENT + place), "the collateral's entry"));
        let floors = floors?;
        let history = of(HISTORY, "the history of blocks")?;
        let slots = history.slots(header)?;
        let mut blocks = BTreeMap::new();
        // A chain that keeps no history has no such account.
        for height in anchors(header.number).filter(|_| history.account.is_some()) {
            // All of them, or whoever proves them could choose among relays by the age of their evidence.
            let hash = get(&slots, word(height % SERVED), "a block that evidence can name")?;
            // Zero is a block that was never written: none.
            blocks.extend((!hash.is_zero()).then(|| (height, B256::from(hash))));
        }
        Ok(Self {
            images,
            bundle: bundle?.into(),
            intel_floor: u32::try_from(bits(floors, INTEL_FLOOR)).unwrap_or(u32::MAX),
            amd_floor: bits(floors, AMD_FLOOR),
            blocks,
        })
    }
}

/// The newest approved images of a kind, by ascending version, from the proven slots of the registry.
///
/// # Errors
/// [`VotedError`]: nothing of it may be used then.
pub fn images(kind: u8, registry: &Proven, header: &Header) -> Result<Vec<VotedImage>, VotedError> {
    let rounds = newest_images(kind, registry, header)?;
    let slots = registry.slots(header)?;
    let image = |round| {
        let (image, vote) = (entry(round, IMAGES), entry(round, ROUNDS));
        let version = get(&slots, at(image, IMAGE_VERSION), "an image's version")?;
        let times = get(&slots, at(image, IMAGE_TIMES), "an image's times")?;
        Ok(VotedImage {
            round,
            version: bits(version, VERSION),
            usable_from: bits(times, USABLE_FROM),
            suspended_until: bits(times, SUSPENDED_UNTIL),
            revoked: bits(times, REVOKED_AT) != 0,
            value: get(&slots, at(vote, ROUND_VALUE), "an image's value")?.into(),
        })
    };
    rounds.into_iter().map(image).collect()
}

impl VotedImage {
    /// Where it stands among all of its kind at this time, in seconds since the Unix epoch, where days are divided by `haste`. The contract: `ImageRegistry.stateOf`.
    pub fn state(&self, all: &[Self], time: u64, haste: u64) -> State {
        if self.revoked {
            return State::Revoked;
        }
        if time < self.suspended_until {
            return State::Suspended;
        }
        if time < self.usable_from {
            return State::ApprovedPending;
        }
        let newer = all.iter().skip_while(|other| other.round != self.round).skip(1);
        match newer.filter(|newer| !newer.revoked).map(|newer| newer.usable_from).min() {
            Some(superseded) if time >= superseded + GRACE / haste.max(1) => State::Retired,
            Some(superseded) if time >= superseded => State::Deprecated,
            _ => State::Active,
        }
    }
}

/// A field of a slot.
fn bits(slot: U256, (from, count): (usize, usize)) -> u64 {
    let mask = (U256::from(1) << count) - U256::from(1);
    ((slot >> from) & mask).saturating_to()
}

/// The slot with this number.
fn word(number: u64) -> B256 {
    U256::from(number).into()
}

/// The slot so many places behind another.
fn at(begin: B256, places: u64) -> B256 {
    U256::from_be_bytes(begin.0).wrapping_add(U256::from(places)).into()
}

/// Where the entry of a mapping with this key begins. Source: Solidity, layout of state variables in storage.
fn entry(key: u64, mapping: u64) -> B256 {
    keccak256([word(key).0, word(mapping).0].concat())
}

/// The slot with the number of approved images of a kind, and where their list begins.
fn approved(kind: u8) -> B256 {
    entry(kind.into(), APPROVED)
}

fn places(kind: u8) -> B256 {
    keccak256(approved(kind))
}

fn get(slots: &BTreeMap<B256, U256>, key: B256, what: &'static str) -> Result<U256, VotedError> {
    slots.get(&key).copied().ok_or(VotedError::Missing(what))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]
    use serde_json::Value;

    use super::*;

    const IMAGE_REGISTRY: &str = include_str!("../../../../contracts/artifacts/ImageRegistry.json");
    const COLLATERAL: &str = include_str!("../../../../contracts/artifacts/Collateral.json");
    const SECOND_VERIFIER: &str = include_str!("../../../../tools/verify.py");

    /// The slot, bits and type of a variable, or of a struct's member, as the compiler has laid it out.
    fn place(artifact: &str, of: Option<&str>, label: &str) -> (u64, (usize, usize), String) {
        let artifact: Value = serde_json::from_str(artifact).unwrap();
        let places = match of {
            Some(name) => &artifact["storageStructs"][format!("t_struct({name})_storage")],
            None => &artifact["storageLayout"],
        };
        let place = places.as_array().unwrap().iter().find(|place| place["label"] == label).unwrap();
        let kind = place["type"].as_str().unwrap().to_owned();
        let size = kind.trim_start_matches(|letter: char| !letter.is_ascii_digit()).parse().unwrap_or(0);
        let size = if kind == "t_bytes32" { 256 } else { size };
        let slot = place["slot"].as_str().unwrap().parse().unwrap();
        (slot, (8 * usize::try_from(place["offset"].as_u64().unwrap()).unwrap(), size), kind)
    }

    #[test]
    fn slots_that_are_read_are_those_that_the_compiler_has_laid_out() {
        let variables = [
            (IMAGE_REGISTRY, "_rounds", ROUNDS, "t_mapping(t_uint64,t_struct(Round)_storage)"),
            (IMAGE_REGISTRY, "_images", IMAGES, "t_mapping(t_uint64,t_struct(Image)_storage)"),
            // Four of them share a slot.
            (IMAGE_REGISTRY, "_approved", APPROVED, "t_mapping(t_uint8,t_array(t_uint64)dyn_storage)"),
            (COLLATERAL, "current", CURRENT, "t_struct(Entry)_storage"),
        ];
        for (artifact, label, slot, wanted) in variables {
            let (found, (from, _), kind) = place(artifact, None, label);
            assert_eq!((found, from, kind.as_str()), (slot, 0, wanted), "{label}");
        }
        let fields = [
            (IMAGE_REGISTRY, "Round", "value", ROUND_VALUE, (0, 256)),
            (IMAGE_REGISTRY, "Image", "version", IMAGE_VERSION, VERSION),
            (IMAGE_REGISTRY, "Image", "usableFrom", IMAGE_TIMES, USABLE_FROM),
            (IMAGE_REGISTRY, "Image", "suspendedUntil", IMAGE_TIMES, SUSPENDED_UNTIL),
            (IMAGE_REGISTRY, "Image", "revokedAt", IMAGE_TIMES, REVOKED_AT),
            (COLLATERAL, "Entry", "bundle", BUNDLE, (0, 256)),
            (COLLATERAL, "Entry", "intelFloor", FLOORS, INTEL_FLOOR),
            (COLLATERAL, "Entry", "amdFloor", FLOORS, AMD_FLOOR),
        ];
        for (artifact, of, label, slot, bits) in fields {
            let (found, place, _) = place(artifact, Some(of), label);
            assert_eq!((found, place), (slot, bits), "{of}.{label}");
        }
        let line = format!("ROUNDS, IMAGES, APPROVED, CURRENT = {ROUNDS}, {IMAGES}, {APPROVED}, {CURRENT}\n");
        assert!(SECOND_VERIFIER.contains(&line), "{line}");
    }

    #[test]
    fn evidence_names_few_blocks_and_everybody_asks_for_all_of_them() {
        assert_eq!((anchors(0).count(), anchors(1).collect::<Vec<_>>()), (0, vec![0]));
        assert_eq!((anchor(319), anchor(320), anchor(575), anchor(576)), (0, 256, 256, 512));
        assert_eq!(anchors(600).collect::<Vec<_>>(), [0, 256, 512]);
        for newest in (0..40_000).step_by(37) {
            let all: Vec<u64> = anchors(newest).collect();
            assert!(all.len() <= 32 && all.iter().all(|height| *height < newest && height + SERVED >= newest));
            assert!(newest == 0 || all.last() == Some(&anchor(newest)), "{newest}");
        }
    }
}
