//! Which relays the client accepts, and why.
//!
//! Owns the step from a configuration to judged relays, and from judged relays to hops. Never judges evidence itself;
//! `openrelay-chain` does.

use std::fs;
use std::path::{Path, PathBuf};

use openrelay_attest::Refusal;
use openrelay_attest::verdict::Verdict;
use openrelay_chain::attestation::JudgedRelays;
use openrelay_chain::circuit::{Hop, OwnRelays};
use openrelay_chain::policy::TrustPolicy;
use openrelay_ledger::directory::Directory;
use openrelay_ledger::hex;
use openrelay_ledger::record::Record;
use openrelay_ledger::selection::{self, SelectionError, Wish};
use openrelay_node::clock::unix_seconds;
use openrelay_node::config::{AttestationMode, ClientFile, Origin, key_fault, read};
use openrelay_node::directory::VerifiedDirectory;

use crate::error::ConnectError;
use crate::memory::kept_of;
use crate::plan::Options;

/// The verdict on a hop.
#[derive(Clone, Debug)]
pub struct AttestedHop {
    /// The relay ID.
    pub relay_id: u64,
    /// The verdict.
    pub verdict: Verdict,
    /// The number of the round in which the relay's image was approved.
    pub round: u64,
    /// Addresses of the rebuilders who signed that they reproduced the image.
    pub rebuilt_by: Vec<[u8; 20]>,
}

/// Maximum number of draws to find an egress whose platform differs from the ingress's.
const DRAWS: usize = 8;

/// Why relays are accepted.
pub(crate) enum Judge {
    /// The user states that all relays are their own.
    Own(OwnRelays),
    /// Verdicts on the relays' evidence, with the policy behind them.
    Evidence(Box<(JudgedRelays, TrustPolicy)>),
}

impl Judge {
    pub(crate) fn of(
        path: &Path,
        file: &ClientFile,
        origin: &Origin,
        directory: &VerifiedDirectory,
        options: &Options,
    ) -> Result<Self, ConnectError> {
        match origin {
            Origin::Signed { .. } => OwnRelays::from_config(file.attestation, directory).map(Self::Own).ok_or_else(|| {
                let must = "must be \"none\" with a signed directory, and the directory must say single_operator: its \
                            relays prove nothing and are accepted as your own";
                key_fault(path, "attestation", must).into()
            }),
            Origin::Chain(_) if file.attestation == AttestationMode::None => {
                let must = "must not be \"none\" with a chain: strangers run its relays";
                Err(key_fault(path, "attestation", must).into())
            }
            Origin::Chain(chain) => {
                let standard = standard_of(path, file, options)?;
                let judged = JudgedRelays::of(directory, &chain.trust(), &standard, unix_seconds());
                // Caching the directory has already given a warning if files cannot be written.
                let _ = openrelay_chain::keep_believed(&kept_of(chain, &options.folders.state), directory, &judged);
                Ok(Self::Evidence(Box::new((judged, standard))))
            }
        }
    }

    pub(crate) fn usable(&self, directory: &VerifiedDirectory) -> Directory {
        match self {
            Self::Own(_) => directory.directory().clone(),
            Self::Evidence(trusted) => trusted.0.attested(directory.directory()),
        }
    }

    /// Returns why there are no relays to choose from, if evidence is the reason.
    pub(crate) fn refused(&self, directory: &VerifiedDirectory, error: &SelectionError) -> Option<String> {
        let Self::Evidence(trusted) = self else { return None };
        if let SelectionError::Missing { .. } = error {
            return None;
        }
        let judged = &trusted.0;
        // It is no more the fault of one relay than of another.
        let fault = judged.fault().map(|fault| format!("no relay can be verified: {fault}"));
        let why = |id: u64, refusal: &Refusal| {
            format!("relay {id} is refused: {refusal} [{}]; {}", refusal.code(), refusal.next_step())
        };
        if let SelectionError::NotThere(id, _) = error {
            directory.directory().relay(*id)?;
            return judged.verdict(*id).err().map(|refusal| fault.unwrap_or_else(|| why(*id, &refusal)));
        }
        let mut refused = judged.refused();
        let (id, refusal) = refused.next()?;
        let others = refused.count();
        let others =
            if others == 0 { String::new() } else { format!(" ({others} more are refused; run: openrelay verify)") };
        Some(fault.unwrap_or_else(|| why(id, refusal) + &others))
    }

    pub(crate) fn is_unserved(&self) -> bool {
        matches!(self, Self::Evidence(trusted) if trusted.0.is_unserved())
    }

    /// Chooses two hops on two chips, of two platforms if possible.
    pub(crate) fn pair<'a>(
        &self,
        usable: &'a Directory,
        wish: &Wish,
        mut below: impl FnMut(u64) -> u64,
        named: impl Fn(SelectionError) -> ConnectError,
    ) -> Result<(&'a Record, &'a Record), ConnectError> {
        let Self::Evidence(trusted) = self else {
            return selection::circuit(usable, wish, |_, _| true, below).map_err(named);
        };
        let verdicts = |one: &Record, two: &Record| {
            Some((trusted.0.verdict(one.relay_id).ok()?, trusted.0.verdict(two.relay_id).ok()?))
        };
        let refusal = |one: &Record, two: &Record| match verdicts(one, two) {
            Some((one, two)) => one.may_share_a_circuit_with(two).err(),
            None => Some(Refusal::NoEvidence),
        };
        let may_be = |one: &Record, two: &Record| refusal(one, two).is_none();
        match selection::circuit(usable, wish, may_be, &mut below) {
            Err(SelectionError::Conflict) => {}
            Err(error) => return Err(named(error)),
            Ok((ingress, first)) => {
                // The ingress stays. An egress of the other platform is drawn by weight, not picked on purpose: if a
                // platform has few egresses, they would get everybody's traffic.
                let again = Wish { ingress: Some(ingress.relay_id), ..*wish };
                let mut egress = first;
                for _ in 0..DRAWS {
                    let differ = |(one, two): (&Verdict, &Verdict)| one.facts().platform != two.facts().platform;
                    if verdicts(ingress, egress).is_some_and(differ) {
                        return Ok((ingress, egress));
                    }
                    (_, egress) = selection::circuit(usable, &again, may_be, &mut below).map_err(&named)?;
                }
                return Ok((ingress, first));
            }
        }
        // A pair exists, but the chips of its relays keep them out of one circuit.
        let (one, two) = selection::circuit(usable, wish, |_, _| true, below).map_err(named)?;
        let refusal = refusal(one, two).unwrap_or(Refusal::SameChip);
        Err(ConnectError::Untrusted(format!("{refusal} [{}]; {}", refusal.code(), refusal.next_step())))
    }

    pub(crate) fn hop(&self, directory: &VerifiedDirectory, record: &Record) -> Result<Hop, ConnectError> {
        let gone = || ConnectError::Selection(SelectionError::NotThere(record.relay_id, record.role));
        match self {
            Self::Own(own) => Ok(Hop::Own(directory.register(record).ok_or_else(gone)?, *own)),
            Self::Evidence(trusted) => trusted
                .0
                .attest(directory, record)
                .map(Hop::Attested)
                .map_err(|refusal| ConnectError::Untrusted(refusal.to_string())),
        }
    }

    pub(crate) fn facts(&self, record: &Record) -> Option<AttestedHop> {
        let Self::Evidence(trusted) = self else { return None };
        attested_hop(&trusted.0, record.relay_id)
    }
}

/// Returns the verdict on a relay, if the relay was accepted.
pub fn attested_hop(judged: &JudgedRelays, relay_id: u64) -> Option<AttestedHop> {
    let verdict = judged.verdict(relay_id).ok()?.clone();
    let approved = judged.image(&verdict)?;
    Some(AttestedHop { relay_id, verdict, round: approved.round, rebuilt_by: approved.image.rebuilt_by.clone() })
}

/// Returns the path of the file in the folder `state` that lists the values of images rebuilt on this machine.
pub fn rebuilt_images(state: &Path) -> PathBuf {
    state.join("rebuilt-images")
}

/// Returns the trust policy that the configuration sets.
fn standard_of(path: &Path, file: &ClientFile, options: &Options) -> Result<TrustPolicy, ConnectError> {
    let standard = options.standard.clone();
    let Some(policy) = &file.policy else { return Ok(standard) };
    let rebuilt = fs::read_to_string(rebuilt_images(&options.folders.state)).unwrap_or_default();
    let rebuilt = rebuilt.lines().filter_map(hex::decode).collect();
    Ok(standard.with_file(&openrelay_node::config::beside(path, policy), rebuilt)?)
}

/// Returns the trust policy that the configuration `path` sets.
///
/// # Errors
/// [`ConnectError`] if the configuration or its policy file cannot be read or is malformed.
pub fn standard_for(path: &Path, options: &Options) -> Result<TrustPolicy, ConnectError> {
    standard_of(path, &read(path)?, options)
}

/// Judges the relays of a directory with the configuration `path`, as for a circuit. Returns `None` if they are the
/// user's own and need no evidence.
///
/// # Errors
/// [`ConnectError`] if the configuration is unusable.
pub fn judged_of(
    path: &Path,
    directory: &VerifiedDirectory,
    options: &Options,
) -> Result<Option<JudgedRelays>, ConnectError> {
    let file: ClientFile = read(path)?;
    match Judge::of(path, &file, &file.origin(path)?, directory, options)? {
        Judge::Own(_) => Ok(None),
        Judge::Evidence(trusted) => Ok(Some(trusted.0)),
    }
}
