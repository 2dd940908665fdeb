//! What the chain says about images and collateral, for validators.
//!
//! Owns one query: a proof under a header that a quorum of endpoints shows. Never reads the directory or its records.

use openrelay_ledger::chain::voted::Voted;

use super::endpoint::Endpoint;
use super::evidence::states;
use super::read::{ChainError, agree, ask_all};
use super::transport::Direct;
use openrelay_node::chain_file::ChainFile;

/// Returns what the newest block proves about images and collateral, directly from this machine.
///
/// # Errors
/// [`ChainError`] says why no endpoint's proof was accepted.
pub fn voted(file: &ChainFile) -> Result<Voted, ChainError> {
    let contracts = file.trust().contracts.ok_or(openrelay_ledger::chain::reading::ReadingError::NoContracts)?;
    let endpoints: Vec<Endpoint> = file.endpoints.iter().map(|url| Endpoint::new(url)).collect();
    let (mut faults, mut last, mut answered) = (Vec::new(), None, false);
    for (at, shown) in ask_all(&Direct, file) {
        let (Some(leader), Ok(shown)) = (endpoints.get(at), &shown) else {
            faults.extend(shown.err().map(|error| {
                answered |= error.is_answer();
                error.to_string()
            }));
            continue;
        };
        answered = true;
        let others = endpoints.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, other)| other);
        if let Err(error) = agree(shown, leader, others, file) {
            last = Some(error);
            continue;
        }
        let proven = states(leader, &shown.header, &contracts).map_err(|error| error.to_string());
        let voted = proven.and_then(|states| {
            let wrong = |error| leader.malformed("eth_getProof", error).to_string();
            Voted::verify(&states, &shown.header, &contracts).map_err(wrong)
        });
        match voted {
            Ok(voted) => return Ok(voted),
            Err(why) => faults.push(why),
        }
    }
    Err(match last {
        Some(error) => error,
        None if answered => ChainError::Endpoints(faults),
        None => ChainError::Unreached { what: "no endpoint of the chain", faults },
    })
}
