//! The chain's data beside the directory: images that validators approved, the collateral in force, and past blocks.
//! All of it comes from slots that are proven under the state root of one header.
//!
//! Owns the choice of the slots and their interpretation. The choice depends on the newest block alone, so every
//! client queries the same: the newest relay images, the collateral's entry, and all blocks that evidence can name.
//! It never queries an endpoint. Sources: contracts/src/ImageRegistry.sol, contracts/src/Collateral.sol, their
//! storage layouts, EIP-2935.

use std::collections::BTreeMap;

use alloy_primitives::{Address, B256, Bytes, U256, address, keccak256};

use super::header::Header;
use super::proof::{Account, ProofError, verify_account, verify_slot};

/// The kind of image that relays run.
pub const RELAY_IMAGE: u8 = 1;
/// The kind of image that is the client's own program.
pub const CLIENT_PACKAGE: u8 = 2;
/// Seconds for which an image stays usable after a newer one can be used. Source: contracts/src/ImageRegistry.sol.
pub const GRACE: u64 = 14 * 86_400;
/// Number of images that are read, the newest by version. Older ones were retired long ago.
pub const NEWEST: u64 = 16;
/// Slots of the image list that are queried before its length is known; they hold 32 images.
const FIRST_PLACES: u64 = 8;
/// The contract that stores the hashes of the chain's blocks. Source: EIP-2935.
pub const HISTORY: Address = address!("0000F90827F1C53a10cb7A02335B175320002935");
/// Number of blocks whose hashes that contract stores.
const SERVED: u64 = 8_191;
/// Evidence names blocks whose height is a multiple of this number. There are so few of them that every client can
/// query them all, and no query reveals which evidence a client has.
pub const ANCHOR_EVERY: u64 = 256;
/// Number of later blocks that a block needs before evidence names it. A block that a reorganisation removes proves
/// nothing.
const SETTLED: u64 = 64;
/// Storage slots of the contracts' variables. A test checks them against the committed layouts.
const ROUNDS: u64 = 8;
const IMAGES: u64 = 16;
const APPROVED: u64 = 17;
const CURRENT: u64 = 12;
/// Slots within an entry. Round: the approved value. Image: version, and times. Collateral: hash, and floors.
const ROUND_VALUE: u64 = 4;
const IMAGE_VERSION: u64 = 0;
const IMAGE_TIMES: u64 = 1;
const BUNDLE: u64 = 0;
const FLOORS: u64 = 1;
/// Fields within a slot: first bit and number of bits.
const VERSION: (usize, usize) = (160, 64);
const USABLE_FROM: (usize, usize) = (0, 48);
const SUSPENDED_UNTIL: (usize, usize) = (48, 48);
const REVOKED_AT: (usize, usize) = (96, 48);
const INTEL_FLOOR: (usize, usize) = (0, 32);
const AMD_FLOOR: (usize, usize) = (32, 64);

/// The contracts that are read. The release or the network's founder fixes them; no endpoint is asked for them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Contracts {
    /// Contract of the votes on images.
    pub images: Address,
    /// Contract of the votes on vendors' collateral.
    pub collateral: Address,
    /// Time divisor: 1, or more on development networks.
    pub time_divisor: u32,
}

/// An account and some of its slots, as an endpoint claims and proves them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Proven {
    /// Address of the account.
    pub address: Address,
    /// Claimed state of the account; `None` if it does not exist.
    pub account: Option<Account>,
    /// Proof nodes from the state root to the account.
    pub proof: Vec<Bytes>,
    /// Slots of the account.
    pub slots: Vec<Slot>,
}

/// A slot and its proof.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    /// Key of the slot.
    pub key: B256,
    /// Claimed value of the slot.
    pub value: U256,
    /// Proof nodes from the storage root to the slot.
    pub proof: Vec<Bytes>,
}

/// An approved image on the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VotedImage {
    /// Number of the image's round.
    pub round: u64,
    /// Version.
    pub version: u64,
    /// Time from which relays may use the image, in seconds since the Unix epoch.
    pub usable_from: u64,
    /// Time until which the image is suspended, in seconds since the Unix epoch.
    pub suspended_until: u64,
    /// Whether the image was revoked.
    pub revoked: bool,
    /// The value that validators voted for: Keccak-256 over the image's hash and its manifest's hash.
    pub value: B256,
}

/// The chain's images, collateral and blocks.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Voted {
    /// The newest approved images, by ascending version.
    pub images: Vec<VotedImage>,
    /// SHA-256 of the collateral bundle in force; zeros before there is one.
    pub bundle: B256,
    /// Floor of Intel's `tcbEvaluationDataNumber`.
    pub intel_floor: u32,
    /// Floor of the number of AMD's floors.
    pub amd_floor: u64,
    /// Hashes of the blocks that evidence can name, by height.
    pub blocks: BTreeMap<u64, B256>,
}

/// Why slots are refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum VotedError {
    /// A proof is wrong.
    #[error(transparent)]
    Proof(#[from] ProofError),
    /// A slot or account that every reading needs is missing.
    #[error("there is no proof of {0}")]
    Missing(&'static str),
}

/// Returns the slots of the image registry that are queried first: the number of images of this kind, and the
/// beginning of their list.
pub fn first_image_slots(kind: u8) -> Vec<B256> {
    let begin = places(kind);
    [approved(kind)].into_iter().chain((0..FIRST_PLACES).map(|place| at(begin, place))).collect()
}

/// Returns the slots of the collateral's entry.
pub fn collateral_slots() -> Vec<B256> {
    [BUNDLE, FLOORS].map(|place| word(CURRENT + place)).into()
}

/// Returns the further slots of the list that are needed to find the newest of `count` images of this kind.
pub fn more_image_slots(kind: u8, count: u64) -> Vec<B256> {
    let begin = places(kind);
    let of_list = count.saturating_sub(NEWEST) / 4..count.div_ceil(4);
    of_list.filter(|place| *place >= FIRST_PLACES).map(|place| at(begin, place)).collect()
}

/// Returns the slots of the images of these rounds.
pub fn image_slots(rounds: &[u64]) -> Vec<B256> {
    let of_round = |round: &u64| {
        let (image, vote) = (entry(*round, IMAGES), entry(*round, ROUNDS));
        [at(image, IMAGE_VERSION), at(image, IMAGE_TIMES), at(vote, ROUND_VALUE)]
    };
    rounds.iter().flat_map(of_round).collect()
}

/// Returns the height of the block that new evidence names.
const fn anchor(newest: u64) -> u64 {
    newest.saturating_sub(SETTLED) / ANCHOR_EVERY * ANCHOR_EVERY
}

/// Returns the heights of all blocks that evidence can name, ascending: 32, if the chain is long enough.
pub fn anchors(newest: u64) -> impl Iterator<Item = u64> {
    let first = newest.saturating_sub(SERVED).div_ceil(ANCHOR_EVERY) * ANCHOR_EVERY;
    // The state of a block does not contain the block's own hash.
    let end = if newest == 0 { 0 } else { anchor(newest) + 1 };
    (first..end).step_by(usize::try_from(ANCHOR_EVERY).unwrap_or(usize::MAX))
}

/// Returns the slots of the block history that prove those blocks.
pub fn block_slots(newest: u64) -> Vec<B256> {
    anchors(newest).map(|height| word(height % SERVED)).collect()
}

/// Returns the round numbers of the newest images of this kind, from the proven list.
///
/// # Errors
/// [`VotedError`] if a slot is not proven.
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

/// Returns the number of images of this kind.
///
/// # Errors
/// [`VotedError`] if it is not proven.
pub fn image_count(kind: u8, images: &Proven, header: &Header) -> Result<u64, VotedError> {
    let slots = images.slots(header)?;
    Ok(slots.get(&approved(kind)).ok_or(VotedError::Missing("the number of images"))?.saturating_to())
}

impl Proven {
    /// Verifies and returns the slots.
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
    /// Verifies these accounts under the header, and returns what they prove.
    ///
    /// # Errors
    /// [`VotedError`]; then nothing of the accounts may be used.
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
        // On a chain without block history this account does not exist.
        for height in anchors(header.number).filter(|_| history.account.is_some()) {
            // All blocks must be proven. Otherwise the endpoint could choose among relays by the age of their
            // evidence.
            let hash = get(&slots, word(height % SERVED), "a block that evidence can name")?;
            // Zero means that no block was written.
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

/// Returns the newest approved images of this kind by ascending version, from the registry's proven slots.
///
/// # Errors
/// [`VotedError`]; then nothing of the slots may be used.
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

/// State of a proposal or image.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    /// Accepts commitments.
    Proposed,
    /// Accepts reveals.
    Reveal,
    /// Accepts proofs of equivocation.
    Challenge,
    /// Can be finished.
    Ended,
    /// Another answer has more than a third.
    Rejected,
    /// Neither approved nor rejected.
    NoQuorum,
    /// Approved, but not usable yet.
    ApprovedPending,
    /// The newest usable image.
    Active,
    /// A newer one can be used.
    Deprecated,
    /// Superseded, and the grace period is over.
    Retired,
    /// Temporarily unusable.
    Suspended,
    /// Never usable again.
    Revoked,
}

impl State {
    /// Returns whether clients use an image in this state.
    pub const fn usable(self) -> bool {
        matches!(self, Self::Active | Self::Deprecated)
    }
}

impl VotedImage {
    /// Returns the image's state among `all` images of its kind at `time`, in seconds since the Unix epoch. Periods
    /// are divided by `time_divisor`, the time divisor. The contract: `ImageRegistry.stateOf`.
    pub fn state(&self, all: &[Self], time: u64, time_divisor: u64) -> State {
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
            Some(superseded) if time >= superseded + GRACE / time_divisor.max(1) => State::Retired,
            Some(superseded) if time >= superseded => State::Deprecated,
            _ => State::Active,
        }
    }
}

/// Returns a field of a slot.
fn bits(slot: U256, (from, count): (usize, usize)) -> u64 {
    let mask = (U256::from(1) << count) - U256::from(1);
    ((slot >> from) & mask).saturating_to()
}

/// Returns the key of the slot with this number.
fn word(number: u64) -> B256 {
    U256::from(number).into()
}

/// Returns the key of the slot that is `places` after another.
fn at(begin: B256, places: u64) -> B256 {
    U256::from_be_bytes(begin.0).wrapping_add(U256::from(places)).into()
}

/// Returns the first slot of a mapping's entry. Source: Solidity, layout of state variables in storage.
fn entry(key: u64, mapping: u64) -> B256 {
    keccak256([word(key).0, word(mapping).0].concat())
}

/// Returns the slot with the number of approved images of this kind; [`places`] returns the first slot of their list.
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

    /// Returns the slot, bits and type of a variable or of a struct's member in the compiler's layout.
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
    fn slots_match_the_compilers_storage_layout() {
        let variables = [
            (IMAGE_REGISTRY, "_rounds", ROUNDS, "t_mapping(t_uint64,t_struct(Round)_storage)"),
            (IMAGE_REGISTRY, "_images", IMAGES, "t_mapping(t_uint64,t_struct(Image)_storage)"),
            // Four entries share a slot.
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
    fn evidence_can_name_at_most_32_blocks_including_the_newest_settled_one() {
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
