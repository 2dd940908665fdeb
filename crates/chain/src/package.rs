//! The client's own packages: which ones validators have rebuilt and approved, and their bytes by hash.
//!
//! Owns which servers are queried. An endpoint's proofs are checked against a header that a quorum shows, manifests
//! against the approved value, and bytes against the hash in the manifest.

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
use super::transport::{Transport, get};
use super::{evidence, staples};
use crate::attestation::{Approved, approved, program_state, sha256, signed};
use openrelay_node::chain_file::ChainFile;

/// Largest package, in bytes.
const MAX_PACKAGE: u64 = 64 << 20;
/// How long a download may take.
const PATIENCE: Duration = Duration::from_secs(600);

/// Why there is no package.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// The chain cannot be read.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// No endpoint proves what the chain says about packages.
    #[error("no endpoint proves which packages are approved: {}", .0.join("; "))]
    Unproven(Vec<String>),
    /// No mirror has the manifest that says which package was approved.
    #[error(
        "no mirror has the manifest of the approved client package, version {0}; add mirrors under `evidence` in \
         chain.toml"
    )]
    NoManifest(u64),
    /// No mirror was reached that could have that manifest.
    #[error("no evidence mirror was reached; check the connection, or add mirrors under `evidence` in chain.toml")]
    Unserved,
    /// The chain file has no contract addresses for it.
    #[error("`images` and `collateral` are not set in chain.toml")]
    NoContracts,
    /// No mirror has the package; the faults of each.
    #[error("no mirror has the package: {}; add mirrors under `packages` in chain.toml", .0.join("; "))]
    Missing(Vec<String>),
    /// The policy does not accept the package.
    #[error("the package is refused: {refusal} [{}]; {}", .refusal.code(), .refusal.next_step())]
    Refused {
        /// The reason.
        refusal: Refusal,
    },
}

/// Returns the packages that validators approved, by ascending version, at the time `now` in seconds since the Unix
/// epoch. Packages whose manifest no mirror has are left out, except that the newest usable one is required.
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
                let (time_divisor, time) = (contracts.time_divisor.into(), header.timestamp);
                let usable = |image: &&VotedImage| image.state(&voted, time, time_divisor).usable();
                let newest = voted.iter().rev().find(usable);
                let mut found = AttestationFile::default();
                // Mirrors are read until one has the manifest of the newest package. A mirror that withholds it would
                // otherwise make clients accept an older package.
                let mut served = false;
                for brought in staples::commons(file) {
                    served = true;
                    found.add(brought);
                    let signed = signed(&voted, &file.trust(), &found);
                    let packages = approved(&voted, time_divisor, &signed, &found, time);
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

/// Returns the state of the client program with this hash, at the block of a reading. `None` if it is not an approved
/// package, or no endpoint proves it.
pub fn standing(
    transport: &dyn Transport,
    file: &ChainFile,
    reading: &Reading,
    program: [u8; 32],
) -> Option<ImageState> {
    let contracts = file.trust().contracts?;
    let header = Header::decode(&reading.header).ok()?;
    let voted = file.endpoints.iter().find_map(|url| {
        let proven = evidence::images(&Endpoint::by(transport, url), &header, contracts.images, CLIENT_PACKAGE).ok()?;
        images(CLIENT_PACKAGE, &proven, &header).ok()
    })?;
    program_state(program, &voted, contracts.time_divisor.into(), header.timestamp)
}

/// Returns the newest usable package, if the policy accepts it.
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

/// Downloads a package from the first mirror that has it.
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
        faults.push("`packages` in chain.toml is empty".into());
    }
    Err(PackageError::Missing(faults))
}
