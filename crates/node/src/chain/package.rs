//! The client's own packages: which ones validators have rebuilt and approved, and their bytes by hash.
//!
//! Owns whom that is asked of. What an endpoint proves is held against a header that a quorum shows, manifests against the value that was approved, bytes against the hash in the manifest.

use std::time::Duration;

use openrelay_attest::Refusal;
use openrelay_attest::file::AttestationFile;
use openrelay_attest::policy::Policy;
use openrelay_attest::verdict::{Image, ImageState};
use openrelay_ledger::chain::header::Header;
use openrelay_ledger::chain::reading::Reading;
use openrelay_ledger::chain::voted::{CLIENT_PACKAGE, VotedError, VotedImage, images};
use openrelay_ledger::hex;

use super::endpoint::{Endpoint, EndpointError};
use super::read::{ChainError, read};
use super::way::{Way, get};
use super::{evidence, staples};
use crate::attestation::{Approved, approved, program_state, sha256, signed};
use crate::chain_file::ChainFile;

/// Largest package, in bytes.
const MAX_PACKAGE: u64 = 64 << 20;
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Why there is no package.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The chain cannot be read.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Nobody proves what it says of packages.
    #[error("no endpoint proves which packages are approved: {}", .0.join("; "))]
    Unproven(Vec<String>),
    /// Mirrors leave out what says which package was approved.
    #[error(
        "no mirror has the manifest of the client's package of version {0}, which validators have approved; name others under evidence in chain.toml"
    )]
    NoManifest(u64),
    /// No mirror was reached that could say which package was approved.
    #[error("no mirror of evidence was reached; check the connection, or name others under evidence in chain.toml")]
    Unserved,
    /// The file of the chain names no contracts.
    #[error("the chain's file names no images and collateral")]
    NoContracts,
    /// A package that nobody has; who said what.
    #[error("no mirror has the package: {}", .0.join("; "))]
    Missing(Vec<String>),
    /// The policy does not take it.
    #[error("the package is refused: {refusal} [{}]; {}", .refusal.code(), .refusal.next_step())]
    Refused {
        /// Why.
        refusal: Refusal,
    },
}

/// The packages that validators have approved, by ascending version, at `now` in seconds since the Unix epoch. Those without a manifest at mirrors are left out, but for the newest that can be used.
///
/// # Errors
/// [`PackageError`].
pub fn packages(file: &ChainFile, now: u64) -> Result<Vec<Approved>, PackageError> {
    let contracts = file.trust().contracts.ok_or(PackageError::NoContracts)?;
    let (reading, _) = read(file, now, 0)?;
    let header = Header::decode(&reading.header).map_err(|error| PackageError::Unproven(vec![error.to_string()]))?;
    let mut faults = Vec::new();
    for url in &file.endpoints {
        let endpoint = Endpoint::new(url);
        let proven = evidence::images(&endpoint, &header, contracts.images, CLIENT_PACKAGE);
        let voted = proven.and_then(|proven| {
            let wrong = |error: VotedError| -> EndpointError { endpoint.malformed("eth_getProof", error) };
            images(CLIENT_PACKAGE, &proven, &header).map_err(wrong)
        });
        match voted {
            Ok(voted) => {
                let (haste, time) = (contracts.haste.into(), header.timestamp);
                let usable = |image: &&VotedImage| image.state(&voted, time, haste).usable();
                let newest = voted.iter().rev().find(usable);
                let mut found = AttestationFile::default();
                // Of all, until one has the manifest of the newest: a mirror that leaves it out would have an older one taken.
                let mut served = false;
                for brought in staples::commons(file) {
                    served = true;
                    found.add(brought);
                    let signed = signed(&voted, &file.trust(), &found);
                    let packages = approved(&voted, haste, &signed, &found, time);
                    if newest.is_none_or(|newest| packages.iter().any(|package| newest.value == package.image.value)) {
                        return Ok(packages);
                    }
                }
                let Some(newest) = newest else { return Ok(Vec::new()) };
                return Err(if served { PackageError::NoManifest(newest.version) } else { PackageError::Unserved });
            }
            Err(error) => faults.push(error.to_string()),
        }
    }
    Err(PackageError::Unproven(faults))
}

/// Where the client's program with this hash stands, under the header of a reading; `None` when it is no approved
/// package, or no endpoint proves it.
pub(crate) fn standing(way: &dyn Way, file: &ChainFile, reading: &Reading, program: [u8; 32]) -> Option<ImageState> {
    let contracts = file.trust().contracts?;
    let header = Header::decode(&reading.header).ok()?;
    let voted = file.endpoints.iter().find_map(|url| {
        let proven = evidence::images(&Endpoint::by(way, url), &header, contracts.images, CLIENT_PACKAGE).ok()?;
        images(CLIENT_PACKAGE, &proven, &header).ok()
    })?;
    program_state(program, &voted, contracts.haste.into(), header.timestamp)
}

/// The newest of these that can be used, if the policy takes it.
///
/// # Errors
/// [`PackageError::Refused`].
pub fn newest<'a>(packages: &'a [Approved], policy: &Policy) -> Result<Option<&'a Approved>, PackageError> {
    let Some(newest) = packages.iter().rev().find(|package| package.image.state.usable().is_ok()) else {
        return Ok(None);
    };
    policy.check_image(&newest.image).map_err(|refusal| PackageError::Refused { refusal })?;
    Ok(Some(newest))
}

/// The bytes of a package, from the first mirror that has them.
///
/// # Errors
/// [`PackageError::Missing`].
pub fn fetch(file: &ChainFile, package: &Image) -> Result<Vec<u8>, PackageError> {
    let mut faults = Vec::new();
    for base in &file.packages {
        let url = format!("{}/{}", base.trim_end_matches('/'), hex::encode(&package.hash));
        match get(&url, PATIENCE, MAX_PACKAGE) {
            Ok((_, bytes)) if sha256(&bytes) == package.hash => return Ok(bytes),
            Ok((_, bytes)) => faults.push(format!("{url}: its SHA-256 is {}", sha256(&bytes))),
            Err(why) => faults.push(why),
        }
    }
    if file.packages.is_empty() {
        faults.push("chain.toml names none under packages".into());
    }
    Err(PackageError::Missing(faults))
}
