//! Calls and events of the contracts that validators vote with, from their ABI.
//!
//! Owns the bindings, generated from the committed artifacts, and the values and commitments that validators compute
//! themselves. Each contract has its own module, because their names collide. It never sends a transaction. Sources:
//! contracts/src.
#![allow(
    missing_docs,
    clippy::too_many_arguments,
    reason = "a macro generates the bindings; the contracts document them"
)]

/// Validators and their bonds.
pub mod validators {
    alloy_sol_types::sol!(
        #[derive(Debug)]
        ValidatorSet,
        "../../contracts/artifacts/ValidatorSet.json"
    );
}

/// Votes on images.
pub mod images {
    alloy_sol_types::sol!(
        #[derive(Debug)]
        ImageRegistry,
        "../../contracts/artifacts/ImageRegistry.json"
    );
}

/// The keys that sign releases.
pub mod release {
    alloy_sol_types::sol!(
        #[derive(Debug)]
        ReleaseKeys,
        "../../contracts/artifacts/ReleaseKeys.json"
    );
}

/// Votes on vendors' collateral.
pub mod collateral {
    alloy_sol_types::sol!(
        #[derive(Debug)]
        Collateral,
        "../../contracts/artifacts/Collateral.json"
    );
}

/// Randomness beacon.
pub mod beacon {
    alloy_sol_types::sol!(
        #[derive(Debug)]
        Beacon,
        "../../contracts/artifacts/Beacon.json"
    );
}

/// Issuers of tokens.
pub mod issuers {
    alloy_sol_types::sol!(
        #[derive(Debug)]
        Issuers,
        "../../contracts/artifacts/Issuers.json"
    );
}

pub use beacon::Beacon;
pub use collateral::Collateral;
pub use images::ImageRegistry;
pub use issuers::Issuers;
pub use release::ReleaseKeys;
pub use validators::ValidatorSet;

use alloy_primitives::{Address, B256, FixedBytes, U256, keccak256};
use alloy_sol_types::{SolStruct as _, SolValue as _};

/// A validator's answer in a round.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// The value that the build gave.
    Value(B256),
    /// The build failed; SHA-256 of its log.
    Failed(B256),
    /// No answer.
    Abstain,
}

impl Answer {
    /// Returns the contract's number of this kind of answer, and the value that goes with it.
    pub const fn parts(self) -> (u8, B256) {
        match self {
            Self::Value(value) => (1, value),
            Self::Failed(log) => (2, log),
            Self::Abstain => (3, B256::ZERO),
        }
    }
}

/// Returns the value that validators vote for, from SHA-256 of the image and of its list of measurements. The
/// contract: `ImageRegistry.valueOf`.
pub fn image_value(image: B256, measurements: B256) -> B256 {
    keccak256((image, measurements).abi_encode())
}

/// Returns a validator's commitment. The contract: `Rounds.commitmentOf`.
pub fn commitment(
    chain_id: u64,
    contract: Address,
    round: u64,
    validator: u64,
    answer: Answer,
    salt: B256,
) -> FixedBytes<31> {
    let (answer, value) = answer.parts();
    let input = (U256::from(chain_id), contract, round, validator, U256::from(answer), value, salt).abi_encode();
    FixedBytes::from_slice(&keccak256(input)[..31])
}

/// Returns the hash that a validator signs to state its answer publicly. Two such statements of one round prove
/// equivocation. The contract: `Rounds.statementHash`, by EIP-712.
pub fn statement_hash(chain_id: u64, images: Address, round: u64, answer: Answer) -> B256 {
    let domain = alloy_sol_types::eip712_domain! {
        name: "OpenRelay images", version: "1", chain_id: chain_id, verifying_contract: images,
    };
    let (answer, value) = answer.parts();
    Statement { round, answer, value }.eip712_signing_hash(&domain)
}

/// Returns the hash that release keys sign. The registry identifies a proposal by it. The contract:
/// `ReleaseKeys.releaseHash`, by EIP-712.
pub fn release_hash(chain_id: u64, release_keys: Address, release: &images::ReleaseKeys::Release) -> B256 {
    let domain = alloy_sol_types::eip712_domain! {
        name: "OpenRelay releases", version: "1", chain_id: chain_id, verifying_contract: release_keys,
    };
    release.eip712_signing_hash(&domain)
}

alloy_sol_types::sol! {
    struct Statement {
        uint64 round;
        uint8 answer;
        bytes32 value;
    }
}

/// Decodes the revert data of one of the contracts into the error's name and fields; `None` for other contracts'
/// errors.
pub fn reason(data: &[u8]) -> Option<String> {
    use alloy_sol_types::SolInterface;
    fn of<E: SolInterface + std::fmt::Debug>(data: &[u8]) -> Option<String> {
        // The text is like `WrongPhase(WrongPhase)`; the inner part is enough.
        let text = format!("{:?}", E::abi_decode(data).ok()?);
        let inner = text.split_once('(').map(|(_, inner)| inner.strip_suffix(')').unwrap_or(inner).to_owned());
        inner.or(Some(text))
    }
    use crate::registry::RelayRegistry::RelayRegistryErrors;
    of::<RelayRegistryErrors>(data)
        .or_else(|| of::<ImageRegistry::ImageRegistryErrors>(data))
        .or_else(|| of::<ValidatorSet::ValidatorSetErrors>(data))
        .or_else(|| of::<ReleaseKeys::ReleaseKeysErrors>(data))
}

#[cfg(test)]
mod tests {
    use alloy_sol_types::SolError as _;

    use super::*;

    #[test]
    fn revert_data_is_decoded_to_the_error_name() {
        let held = crate::registry::RelayRegistry::BondTooSmall { bond: U256::from(1), needed: U256::from(2) };
        assert_eq!(reason(&held.abi_encode()).as_deref(), Some("BondTooSmall { bond: 1, needed: 2 }"));
        let plain = ImageRegistry::TooManyRounds {};
        assert_eq!(reason(&plain.abi_encode()).as_deref(), Some("TooManyRounds"));
        assert_eq!(reason(&[1, 2, 3, 4]), None);
    }
}
