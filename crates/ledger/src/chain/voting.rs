//! The calls and events of the contracts that validators vote with, as their ABI says.
//!
//! Owns the bindings, made from the committed artifacts, each in a module of its own because they share names. Sources: contracts/src.
#![allow(
    missing_docs,
    clippy::too_many_arguments,
    reason = "the bindings are made by a macro; their words are in the contracts"
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

/// Randomness.
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
