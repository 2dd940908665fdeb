//! Votes on vendors' collateral: fetches it, checks it with relay evidence, publishes it, and votes for it.
//!
//! Owns the choice of a candidate. Vendors may sign new collateral at any time, so two validators may fetch different
//! parts. Therefore all vote for the newest valid bundle that anyone has published, in the second half of the time
//! for commitments.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alloy_primitives::B256;
use alloy_sol_types::SolCall as _;
use openrelay_attest::binding::Binding;
use openrelay_attest::bundle::{Bundle, MAX_BUNDLE};
use openrelay_attest::verdict::Staple;
use openrelay_attest::{Roots, check_staple};
use openrelay_chain::mirrored_evidence;
use openrelay_chain::transport::get;
use openrelay_chain::voting::collateral::Collateral;
use openrelay_image::{hex, sha256};
use openrelay_node::clock::unix_seconds;
use openrelay_node::directory::replace;

use super::Folder;
use super::round::{Contest, Due, Found, decided, due, step};
use super::run::RunArguments;
use super::vendors::{Services, check, issued, with_floors};
use crate::failure::Failure;
use crate::output::{say, talk};
use crate::program::Program;
use crate::rpc::block_time;

/// How often vendors are queried.
const FETCH_EVERY: Duration = Duration::from_secs(3_600);
/// How often to check whether a round is wanted; each check asks mirrors for the evidence of all relays.
const LOOK_EVERY: Duration = Duration::from_secs(600);
/// New collateral is put to a vote this long before the old expires, in seconds.
const BEFORE_END: u64 = 10 * 86_400;
/// The number of newest rounds to look at.
const ROUNDS: u64 = 4;
/// The time to wait for all other mirrors together.
const PATIENCE: Duration = Duration::from_secs(60);
/// Maximum number of candidates to read from one mirror.
const CANDIDATES: usize = 16;
/// The ending of a bundle's file name, after its hash.
pub(crate) const ENDING: &str = ".collateral.json";
/// Outcomes of a round, by the contract's numbers.
const APPROVED: u8 = 1;
const NO_QUORUM: u8 = 3;
/// How long after its reveals a round can renew collateral, in seconds. Source: `Collateral.RENEWS_FOR` in the
/// contract.
const RENEWS_FOR: u64 = 24 * 3_600;
/// The period of a round, in seconds. Source: `Collateral.PERIOD` in the contract.
const PERIOD: u64 = 6 * 3_600;

/// The options of a running validator for collateral.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct CollateralArguments {
    /// Fetch vendors' collateral, publish it and vote on it
    #[arg(long)]
    pub(crate) collateral: bool,
    #[command(flatten)]
    pub(crate) services: Services,
    /// URL of another validator's /files/ mirror; repeatable
    #[arg(long, value_name = "URL")]
    pub(crate) candidates: Vec<String>,
    /// Bundle with a set of floors for AMD's firmware
    ///
    /// The set applies if its number (`amd_floor`) is higher than that of the set in force.
    #[arg(long, value_name = "FILE")]
    pub(crate) floors: Option<PathBuf>,
}

/// When collateral was last fetched, and when a round was last considered.
#[derive(Default)]
pub(super) struct Watch {
    fetched: Option<Instant>,
    looked: Option<Instant>,
}

/// What is known when a choice is made.
struct Known {
    current: Collateral::Entry,
    /// The bundle in force, or an empty one before the first.
    held: Bundle,
    staples: Vec<Staple>,
    roots: Roots,
    now: u64,
}

/// Takes all steps that are due for collateral.
pub(super) fn once(
    program: &Program,
    folder: &Folder,
    arguments: &RunArguments,
    watch: &mut Watch,
) -> Result<(), Failure> {
    let told = &arguments.collateral;
    if !told.collateral {
        return Ok(());
    }
    let (contest, id) = (Contest::Collateral, folder.bonded()?.id);
    let at = contest.at(folder)?;
    let password = arguments.password_file.as_deref();
    let time_divisor = folder.account.chain.time_divisor.max(1);
    let count = folder.ask(at, &Collateral::roundCountCall {})?;
    let mut to_answer = Vec::new();
    for number in count.saturating_sub(ROUNDS) + 1..=count {
        match due(folder, contest, number, id)? {
            Due::Nothing => {}
            Due::Step => step(folder, contest, number, None, password)?,
            Due::Answer { .. } if decided(folder, contest, number)?.is_some() => {
                step(folder, contest, number, None, password)?;
            }
            Due::Answer { until } => {
                // By then other validators have published what they fetched.
                let left = until.saturating_sub(block_time(&folder.endpoint())?);
                to_answer.extend((left <= PERIOD / 4 / u64::from(time_divisor)).then_some(number));
            }
        }
        // Another validator may have settled the round for everyone without posting its result.
        post(folder, number, password)?;
    }
    if to_answer.is_empty() && watch.looked.is_some_and(|at| at.elapsed() < LOOK_EVERY / time_divisor) {
        return Ok(());
    }
    watch.looked = Some(Instant::now());
    let known = Known::read(program, folder, arguments)?;
    // Collateral that is fetched while votes are being given cannot have reached other validators.
    if to_answer.is_empty() && watch.fetched.is_none_or(|at| at.elapsed() >= FETCH_EVERY) {
        watch.fetched = Some(Instant::now());
        let bundle = told.services.fetch(&known.staples, &known.held, &known.roots, known.now);
        match known.with_rule(bundle).and_then(|bundle| publish(&arguments.publish, &bundle.encode())) {
            Ok(()) => forget(&known, &arguments.publish),
            // Other validators may have fetched it.
            Err(failure) => talk(&format!("openrelay: warning: no collateral was fetched: {failure}")),
        }
    }
    let Some((bytes, entry @ Found::Entry { bundle: hash, .. })) = choose(&known, arguments) else {
        if !to_answer.is_empty() {
            talk("openrelay: warning: not voting: no valid collateral has been published");
        }
        return Ok(());
    };
    // Whoever had it first, other validators can also find it here.
    publish(&arguments.publish, &bytes)?;
    for number in to_answer {
        step(folder, contest, number, Some(entry), password)?;
    }
    if hash == known.current.bundle || !Bundle::decode(&bytes).is_ok_and(|bundle| known.is_wanted(&bundle)) {
        return Ok(());
    }
    let period = block_time(&folder.endpoint())? / (PERIOD / u64::from(time_divisor));
    let period = alloy_primitives::aliases::U48::from(period);
    if folder.ask(at, &Collateral::roundOfPeriodCall { period })? == 0 {
        let sender = folder.sender(folder.key(password)?);
        let receipt = sender.send(&format!("open {period}"), at, &Collateral::openCall {}.abi_encode())?;
        say(&format!("a round on collateral was opened, block {}", receipt.block));
    }
    Ok(())
}

impl Known {
    fn read(program: &Program, folder: &Folder, arguments: &RunArguments) -> Result<Self, Failure> {
        // Needs a proof: floors never fall, so one endpoint's false floor would stay for ever.
        let voted = openrelay_chain::voted(&folder.account.chain)?;
        let current =
            Collateral::Entry { bundle: voted.bundle, intelFloor: voted.intel_floor, amdFloor: voted.amd_floor };
        let (roots, now) = (program.standard.roots.clone(), unix_seconds());
        let keys = registered_keys(folder, now);
        let network = folder.account.chain.trust().network_id();
        // Registered relays only: an attacker with machines of many models could make validators ask vendors for
        // each.
        let registered = |staple: &Staple| counts(&staple.binding, network, keys.as_ref());
        let genuine = |staple: &Staple| registered(staple) && check_staple(staple, &roots, now).is_ok();
        let (staples, bundles, faults) = mirrored_evidence(&folder.account.chain, &genuine);
        faults.iter().for_each(|why| talk(&format!("openrelay: warning: {why}")));
        if staples.is_empty() {
            return Err(Failure::plain("no mirror has relay evidence to check collateral with"));
        }
        let read = |path: &Path| {
            let bytes =
                fs::read(path).map_err(|error| Failure::plain(format!("cannot read {}: {error}", path.display())))?;
            Bundle::decode(&bytes).map_err(|refusal| Failure::plain(format!("{}: {refusal}", path.display())))
        };
        let mut own = published(&arguments.publish).into_iter().map(|(_, bytes)| bytes).chain(bundles);
        let held = match own.find(|bytes| B256::new(sha256(bytes)) == current.bundle) {
            Some(bytes) => Bundle::decode(&bytes).map_err(Failure::plain)?,
            None if current.bundle.is_zero() => Bundle::default(),
            None => return Err(Failure::plain("no mirror has the collateral in force")),
        };
        let held = match &arguments.collateral.floors {
            Some(path) => with_floors(held, &read(path)?),
            None => held,
        };
        Ok(Self { current, held, staples, roots, now })
    }

    /// Returns a bundle with the floor that the rule gives: the oldest evaluation in it, but never below the floor in
    /// force.
    fn with_rule(&self, mut bundle: Bundle) -> Result<Bundle, Failure> {
        let evaluations = check(&bundle, &self.held, &self.staples, &self.roots, self.now)?;
        bundle.intel_floor = floor(evaluations, self.current.intelFloor)?;
        Ok(bundle)
    }

    /// Returns whether a bundle is valid and has the floors that the rule gives.
    fn holds(&self, bundle: &Bundle) -> bool {
        let floors = bundle.amd_floor == self.held.amd_floor
            && bundle.amd.iter().all(|entry| {
                self.held.amd.iter().any(|own| (&own.product, own.floor) == (&entry.product, entry.floor))
            });
        floors && self.with_rule(bundle.clone()).is_ok_and(|same| same == *bundle)
    }

    /// Returns whether a bundle should replace the one in force: it verifies a relay's evidence that the other cannot
    /// verify, or soon cannot.
    fn is_wanted(&self, bundle: &Bundle) -> bool {
        let expires = |by: &Bundle, staple: &Staple| {
            let candidates = by.candidates(&staple.evidence);
            let facts = candidates.iter().filter_map(|collateral| {
                openrelay_attest::examine(&staple.evidence, Some(collateral), &self.roots, self.now).ok()
            });
            facts.map(|facts| facts.expires).max()
        };
        self.staples.iter().any(|staple| {
            let held = expires(&self.held, staple);
            expires(bundle, staple).is_some() && held.is_none_or(|expires| expires < self.now + BEFORE_END)
        })
    }
}

/// Returns whether collateral is checked with evidence that has this binding. The evidence must belong to this
/// network, and to the present key of a relay in `keys`. Without `keys` only the network is checked.
fn counts(binding: &Binding, network: [u8; 32], keys: Option<&BTreeMap<u64, Option<[u8; 32]>>>) -> bool {
    let own = Some(binding.handshake_key);
    binding.network == network && keys.is_none_or(|keys| keys.get(&binding.relay_id) == Some(&own))
}

/// Returns the handshake keys of registered relays by relay ID, or `None` if the directory cannot be read. Collateral
/// is renewed in that case too, because it would expire for everybody.
fn registered_keys(folder: &Folder, now: u64) -> Option<BTreeMap<u64, Option<[u8; 32]>>> {
    match openrelay_chain::read(&folder.account.chain, now, 0) {
        Ok((_, directory)) => {
            Some(directory.body().relays.iter().map(|record| (record.relay_id, record.key())).collect())
        }
        Err(error) => {
            talk(&format!(
                "openrelay: warning: cannot read the directory, so evidence of unregistered relays is used too: \
                 {error}"
            ));
            None
        }
    }
}

/// Returns the floor of Intel's evaluation, from the oldest and the newest evaluation in a bundle and the floor in
/// force. A floor above everything that Intel has signed would refuse every relay on Intel's machines for ever.
fn floor(evaluations: Option<(u32, u32)>, held: u32) -> Result<u32, Failure> {
    match evaluations {
        Some((_, newest)) if held > newest => Err(Failure::plain(format!(
            "the floor {held} for Intel's evaluation is above {newest}, the newest that Intel has signed for these \
             relays; not voting for it"
        ))),
        Some((oldest, _)) => Ok(oldest.max(held)),
        None => Ok(held),
    }
}

/// Returns the best of the bundles published here and elsewhere, with the answer that votes for it.
fn choose(known: &Known, arguments: &RunArguments) -> Option<(Vec<u8>, Found)> {
    let own = published(&arguments.publish).into_iter().map(|(_, bytes)| bytes);
    let until = Instant::now() + PATIENCE;
    let others = arguments.collateral.candidates.iter().flat_map(|base| candidates_of(base, until));
    // Only in its canonical encoding, because the hash covers the bytes.
    let read = |bytes: Vec<u8>| {
        let bundle = Bundle::decode(&bytes).ok().filter(|bundle| bundle.encode() == bytes)?;
        Some((bundle, bytes))
    };
    let good = own.chain(others).filter_map(read).filter(|(bundle, _)| known.holds(bundle));
    // The bundle with most parts, because one without a part excludes relays. Among those the newest. Between two of
    // the same age the one with the greater hash, so that all validators choose alike.
    let parts = |bundle: &Bundle| bundle.intel.len() + bundle.amd.len();
    let (bundle, bytes) = good.max_by_key(|(bundle, bytes)| (parts(bundle), issued(bundle), sha256(bytes)))?;
    let entry = Found::Entry {
        bundle: B256::new(sha256(&bytes)),
        intel_floor: bundle.intel_floor,
        amd_floor: bundle.amd_floor,
    };
    Some((bytes, entry))
}

/// Returns all bundles in a folder.
fn published(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let named = paths.filter(|path| path.to_string_lossy().ends_with(ENDING));
    named.filter_map(|path| fs::read(&path).ok().map(|bytes| (path, bytes))).collect()
}

/// Removes all but the newest [`CANDIDATES`] bundles from a folder, and keeps the one in force.
fn forget(known: &Known, folder: &Path) {
    let mut all = published(folder);
    all.retain(|(_, bytes)| B256::new(sha256(bytes)) != known.current.bundle);
    all.sort_by_cached_key(|(_, bytes)| std::cmp::Reverse(Bundle::decode(bytes).map(|bundle| issued(&bundle)).ok()));
    for (path, _) in all.iter().skip(CANDIDATES) {
        // A file that cannot be removed is tried again next time.
        let _ = fs::remove_file(path);
    }
}

/// Returns what another validator has published, unchecked.
fn candidates_of(base: &str, until: Instant) -> Vec<Vec<u8>> {
    let base = base.trim_end_matches('/');
    let have = |url: String| {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        get(&url, left.min(PATIENCE / 4), u64::try_from(MAX_BUNDLE).ok()?).ok().map(|(_, bytes)| bytes)
    };
    let listed = have(format!("{base}/collateral")).unwrap_or_default();
    let listed = String::from_utf8_lossy(&listed).into_owned();
    let hashes = listed.lines().filter(|line| openrelay_ledger::hex::decode::<32>(line).is_some()).take(CANDIDATES);
    hashes.filter_map(|hash| have(format!("{base}/{hash}"))).collect()
}

fn publish(folder: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let path = folder.join(format!("{}{ENDING}", hex(&sha256(bytes))));
    if path.exists() {
        return Ok(());
    }
    replace(&path, bytes).map_err(|error| Failure::plain(format!("cannot write {}: {error}", path.display())))
}

/// Puts the result of a round in force if it is what this validator voted for and nobody else has done so. The result
/// is a value that the round has approved, or one that renews old collateral.
fn post(folder: &Folder, number: u64, password: Option<&Path>) -> Result<(), Failure> {
    let at = Contest::Collateral.at(folder)?;
    let Some(found @ Found::Entry { bundle, intel_floor, amd_floor }) = decided(folder, Contest::Collateral, number)?
    else {
        return Ok(());
    };
    let round = folder.ask(at, &Collateral::roundOfCall { round: number })?;
    let posted = folder.ask(at, &Collateral::currentRoundCall {})?;
    if posted >= number {
        return Ok(());
    }
    let entry = Collateral::Entry { bundle, intelFloor: intel_floor, amdFloor: amd_floor };
    match round.outcome {
        APPROVED => {}
        NO_QUORUM => {
            // A value that more than half of the weight has named renews old collateral, within a day of the round's
            // reveals.
            let (answer, value) = found.answer().parts();
            let named = folder.ask(at, &Collateral::answerKeyCall { answer, value })? == round.right;
            let from: u64 = folder.ask(at, &Collateral::renewableFromCall {})?.to();
            let until = round.revealEnd.to::<u64>() + RENEWS_FOR / u64::from(folder.account.chain.time_divisor.max(1));
            let now = block_time(&folder.endpoint())?;
            if !named || now < from || now >= until {
                return Ok(());
            }
        }
        _ => return Ok(()),
    }
    let sender = folder.sender(folder.key(password)?);
    let receipt =
        sender.send(&format!("post {number}"), at, &Collateral::postCall { round: number, entry }.abi_encode())?;
    say(&format!("round {number}: its collateral is in force, block {}", receipt.block));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evidence_of_unregistered_relays_counts_only_without_a_directory() {
        let of = |relay_id, key, network| Binding {
            network: [network; 32],
            relay_id,
            handshake_key: [key; 32],
            key_epoch: 1,
            roles: 1,
            image: [0; 32],
            block_hash: [0; 32],
            block_height: 256,
        };
        let keys = BTreeMap::from([(1, Some([7; 32])), (2, None)]);
        let known = |binding: &Binding| counts(binding, [9; 32], Some(&keys));
        assert!(known(&of(1, 7, 9)));
        // Another relay's key, a relay without a key, an unknown relay, another network.
        for other in [of(1, 8, 9), of(2, 7, 9), of(3, 7, 9), of(1, 7, 8)] {
            assert!(!known(&other), "{other:?}");
        }
        assert!(counts(&of(3, 7, 9), [9; 32], None) && !counts(&of(1, 7, 8), [9; 32], None));
    }

    #[test]
    fn floor_never_exceeds_newest_evaluation_in_bundle() {
        let floor = |evaluations, held| floor(evaluations, held).ok();
        assert_eq!((floor(Some((18, 19)), 0), floor(Some((18, 19)), 18)), (Some(18), Some(18)));
        assert_eq!((floor(Some((17, 18)), 18), floor(Some((18, 18)), 19)), (Some(18), None));
        assert_eq!((floor(Some((18, 18)), u32::MAX), floor(None, 18)), (None, Some(18)));
    }
}
