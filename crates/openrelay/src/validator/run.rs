//! `openrelay validator run`: rebuilds proposals, votes, publishes its findings, and spot-checks relay evidence.
//!
//! Owns the order of these steps. Builds run beside the loop (`builds.rs`), so commits, reveals and renewals of
//! collateral never wait for them. A restart loses nothing: answers are in the folder before they are committed, and
//! salts are derived. A decision is never changed: a validator that signs two answers in one round loses its whole
//! bond. It is never shown before it is revealed, because others could copy it.
//!
//! ```text
//! proposal ─▶ a source tree with this hash ─▶ a copy of it, built from nothing ─▶ image, manifest
//!          ─▶ commit ─▶ reveal ─▶ publish ─▶ finish, settle
//! two builds that fail alike: BUILD_FAILED, late; a limit, a missing input, this machine: ABSTAIN, late
//! ```

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use alloy_primitives::{Address, B256, Bytes, keccak256};
use alloy_sol_types::{SolCall as _, SolEvent as _};
use base64ct::Encoding as _;
use k256::ecdsa::SigningKey;
use openrelay_attest::manifest::check_generation;
use openrelay_chain::attestation::JudgedRelays;
use openrelay_chain::evidence_client::EvidenceClient;
use openrelay_chain::journal::sign;
use openrelay_chain::voting::images::ReleaseKeys::Release;
use openrelay_chain::voting::{ImageRegistry, image_value, release_hash, statement_hash};
use openrelay_chain::{Direct, Endpoint, read_by};
use openrelay_image::lock::Lock;
use openrelay_image::{hex, sha256};
use openrelay_node::clock::unix_seconds;
use openrelay_node::directory::{VerifiedDirectory, replace};
use openrelay_node::random::OsRandom;
use openrelay_proto::random::array;
use openrelay_sys::confine::free;
use serde_json::{Value, json};

use super::Folder;
use super::builds::{Builds, Decision, Rebuilt, Schedule};
use super::collateral::{self, CollateralArguments, Watch};
use super::round::{Contest, Due, Found, approved, decided, due, revealed, step};
use super::tree::{copy, tree_hash, tree_of};
use crate::confined::Confinement;
use crate::failure::Failure;
use crate::image::{BuildArguments, Kind, MANIFEST, make, remove};
use crate::output::{say, talk};
use crate::program::Program;
use crate::rpc::{ask, block_time, round_logs};

/// The number of newest rounds to look at; older ones are over.
const ROUNDS: u64 = 16;
/// A build without a result is answered only when this much time is left, so that its cause can be fixed until then.
const LATE: Duration = Duration::from_secs(6 * 3_600);
/// The time that is reserved for committing, before which every build must have ended.
const LAST: Duration = Duration::from_secs(900);
/// How long after a build without a result the next one starts, if there is time.
const AGAIN: Duration = Duration::from_secs(3_600);
/// The time limit of one build. Even if every build took this long, all open rounds would be built within three days.
const WHOLE: Duration = Duration::from_secs(3_600);
/// The free disk space that a build needs, in bytes.
const ROOM: u64 = 4 << 30;
/// How often one relay is queried for its evidence.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// The options of a running validator.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct RunArguments {
    #[arg(long, value_name = "DIR")]
    pub(crate) dir: PathBuf,
    #[arg(long, value_name = "FILE")]
    pub(crate) password_file: Option<PathBuf>,
    /// Source tree, or folder of trees, to build; repeatable
    #[arg(long, value_name = "DIR", required = true)]
    pub(crate) source: Vec<PathBuf>,
    /// Folder for published files
    ///
    /// It holds images, manifests, transcripts and attestations. A mirror serves it with --files.
    #[arg(long, value_name = "DIR")]
    pub(crate) publish: PathBuf,
    #[command(flatten)]
    pub(crate) inputs: InputArguments,
    #[command(flatten)]
    pub(crate) collateral: CollateralArguments,
    /// Do everything that is due once, then end
    #[arg(long)]
    pub(crate) once: bool,
    /// Do not ask relays for their evidence
    #[arg(long)]
    pub(crate) no_checks: bool,
}

/// Where the inputs of builds come from.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct InputArguments {
    /// Folder that keeps packages by hash
    #[arg(long, value_name = "DIR", env = "OPENRELAY_INPUTS")]
    pub(crate) inputs: Option<PathBuf>,
    /// URL to download packages from; repeatable
    ///
    /// Packages come from these URLs first, then from the archives in apt's sources.
    #[arg(long, value_name = "URL")]
    pub(crate) from: Vec<String>,
    /// Pack these programs instead of compiling them
    ///
    /// For development networks. First init, then relay.
    #[arg(long, num_args = 2, value_names = ["INIT", "RELAY"])]
    pub(crate) programs: Option<Vec<PathBuf>>,
    /// Use this client program instead of compiling it
    ///
    /// For development networks.
    #[arg(long, value_name = "PROGRAM")]
    pub(crate) client_program: Option<PathBuf>,
}

/// Runs until the process ends.
pub(super) fn run(program: &Program, arguments: &RunArguments) -> Result<(), Failure> {
    let folder = Folder::open(&arguments.dir)?;
    fs::create_dir_all(&arguments.publish)
        .map_err(|error| Failure::plain(format!("cannot create {}: {error}", arguments.publish.display())))?;
    if let Some(missing) = arguments.source.iter().find(|source| !source.is_dir()) {
        return Err(Failure::plain(format!("--source {} is not a folder", missing.display())));
    }
    let key = folder.key(arguments.password_file.as_deref())?;
    let mut looked = Instant::now();
    let mut warned = String::new();
    let (mut builds, mut watch) = (Builds::default(), Watch::default());
    loop {
        let collateral = collateral::once(program, &folder, arguments, &mut watch);
        let least = program.standard.roots.min_firmware_generation;
        if let Err(failure) = once(&folder, arguments, &key, (&mut builds, least)).and(collateral) {
            let said = failure.to_string();
            // A repeated failure is reported once.
            if said != warned {
                talk(&format!("openrelay: warning: {said}"));
            }
            if arguments.once {
                return Err(failure);
            }
            warned = said;
        }
        if !arguments.no_checks && (arguments.once || looked.elapsed() >= LOOK_EVERY) {
            looked = Instant::now();
            if let Err(failure) = look(program, &folder) {
                talk(&format!("openrelay: warning: no relay was checked: {failure}"));
            }
        }
        if arguments.once {
            if builds.wait(WHOLE) {
                continue;
            }
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(folder.account.chain.refresh_s.clamp(1, 60)));
    }
}

/// Takes all steps that are due in all rounds.
fn once(
    folder: &Folder,
    arguments: &RunArguments,
    key: &SigningKey,
    (builds, least): (&mut Builds, u32),
) -> Result<(), Failure> {
    let id = folder.bonded()?.id;
    let count = folder.ask(folder.images, &ImageRegistry::roundCountCall {})?;
    let first = count.saturating_sub(ROUNDS) + 1;
    builds.forget_before(first);
    let mut result = Ok(());
    let mut wanted = Vec::new();
    // A fault in one round delays no other.
    for number in first..=count {
        match stand(folder, arguments, number, id) {
            Ok(Some(left)) => wanted.push((number, left)),
            Ok(None) => {}
            Err(failure) => result = result.and(Err(failure)),
        }
    }
    builds.order(&mut wanted);
    for (number, left) in wanted {
        result = result.and(answer(folder, arguments, (builds, least), number, left));
    }
    // The results of a running build are not complete yet.
    for number in (first..=count).filter(|number| !builds.is_running(*number)) {
        result = result.and(publish(folder, arguments, key, (number, id)));
    }
    result
}

/// Takes the step that is due in a round and needs no build. Returns the time until commitments end if the round
/// waits for an answer.
fn stand(folder: &Folder, arguments: &RunArguments, number: u64, id: u64) -> Result<Option<Duration>, Failure> {
    let password = arguments.password_file.as_deref();
    match due(folder, Contest::Images, number, id)? {
        Due::Nothing => {}
        Due::Step => {
            step(folder, Contest::Images, number, None, password)?;
            if let Some(value) = approved(folder, number)? {
                compare(arguments, number, value);
            }
        }
        Due::Answer { .. } if decided(folder, Contest::Images, number)?.is_some() => {
            step(folder, Contest::Images, number, None, password)?;
        }
        Due::Answer { until } => {
            let left = Duration::from_secs(until.saturating_sub(block_time(&folder.endpoint())?));
            // A time divisor makes the chain's rounds shorter, but not builds.
            return Ok(Some(left.saturating_mul(folder.account.chain.time_divisor.max(1))));
        }
    }
    Ok(None)
}

/// Commits to the result of a round's builds, once it is known.
fn answer(
    folder: &Folder,
    arguments: &RunArguments,
    (builds, least): (&mut Builds, u32),
    number: u64,
    left: Duration,
) -> Result<(), Failure> {
    let schedule = Schedule {
        left,
        late: LATE,
        last: LAST,
        again: AGAIN / folder.account.chain.time_divisor.max(1),
        whole: WHOLE,
    };
    let (path, to_build, release) = (folder.account.path.clone(), arguments.clone(), release(folder, number)?);
    let build = move |deadline| rebuild(&path, &to_build, (number, &release), least, deadline);
    let found = match builds.decide(number, schedule, Instant::now(), build) {
        Decision::Wait => return Ok(()),
        Decision::Image(found) => found,
        Decision::Failed(log) => {
            let built = built(&folder.account.path, number);
            fs::create_dir_all(&built).map_err(Failure::plain)?;
            replace(&built.join(format!("round-{number}.log")), log.as_bytes()).map_err(Failure::plain)?;
            Found::Failed { log: B256::new(sha256(log.as_bytes())) }
        }
        // Reporting a failed build would be false, and not voting at all costs a penalty.
        Decision::Abstain(why) => {
            talk(&format!("openrelay: warning: round {number}: abstaining: {why}"));
            Found::Abstain {}
        }
    };
    step(folder, Contest::Images, number, Some(found), arguments.password_file.as_deref())
}

/// Returns the proposal of a round, as the first endpoint reports it and a quorum of endpoints confirms it.
fn release(folder: &Folder, number: u64) -> Result<Release, Failure> {
    let endpoint = folder.endpoint();
    let proposed = [ImageRegistry::Proposed::SIGNATURE_HASH];
    let logs = round_logs(&endpoint, &folder.account.chain, folder.images, &proposed, number)?;
    let event = logs.first().and_then(|log| ImageRegistry::Proposed::decode_log(log).ok());
    let release = event.map(|event| event.release.clone());
    let release = release.ok_or_else(|| Failure::plain(format!("round {number} has no proposal")))?;
    let same = |url: &&String| {
        let (endpoint, images) = (Endpoint::new(url), folder.images);
        let keys = ask(&endpoint, images, &ImageRegistry::releaseKeysCall {}).ok();
        let held = ask(&endpoint, images, &ImageRegistry::imageByCall { round: number }).ok();
        keys.zip(held)
            .is_some_and(|(keys, held)| held.release == release_hash(folder.account.chain.chain_id, keys, &release))
    };
    let agree = folder.account.chain.endpoints.iter().filter(same).count();
    if agree < folder.account.chain.quorum {
        return Err(Failure::plain(format!(
            "round {number}: {agree} of {} endpoints confirm the proposal that {} reports, quorum is {}; \
             nothing was built",
            folder.account.chain.endpoints.len(),
            endpoint.url(),
            folder.account.chain.quorum
        )));
    }
    Ok(release)
}

/// Rebuilds the proposal from a copy of its tree, without anything from earlier builds. `least` is the oldest
/// generation of firmware that a relay image may start with.
fn rebuild(
    folder: &Path,
    arguments: &RunArguments,
    (number, release): (u64, &Release),
    least: u32,
    deadline: Instant,
) -> Rebuilt {
    let source = match tree_of(&arguments.source, release.sourceTree) {
        Ok(Some(source)) => source,
        // Other validators may have it, so its absence here proves nothing.
        Ok(None) => return Rebuilt::Local(format!("no source tree here has the hash {}", release.sourceTree)),
        Err(failure) => return Rebuilt::Local(failure.to_string()),
    };
    let lock = source.join("image/inputs.lock");
    let firmware = match fs::read(&lock) {
        Ok(bytes) if B256::new(sha256(&bytes)) == release.inputsLock => check_firmware(&bytes, least),
        Ok(_) => return Rebuilt::Failed("the tree's image/inputs.lock differs from the signed one\n".into()),
        Err(error) => return Rebuilt::Local(format!("cannot read {}: {error}", lock.display())),
    };
    let Some(kind) = Kind::of(release.kind) else {
        return Rebuilt::Local(format!("this version of openrelay cannot build kind {}", release.kind));
    };
    if let (Kind::Relay, Err(why)) = (kind, firmware) {
        return Rebuilt::Failed(format!("{why}\n"));
    }
    let place = folder.join(format!("building-{number}"));
    let of = (release.sourceTree, kind, release.version);
    let result = clean_build(arguments, &source, (&place, &built(folder, number)), of, deadline);
    // Checked before the build is removed, because the build may have filled the disk.
    let room = free(folder);
    if let Err(failure) = remove(&place) {
        talk(&format!("openrelay: warning: {failure}"));
    }
    match result {
        Ok(found) => Rebuilt::Good(found),
        Err(failure) => judged(&failure, room.ok()),
    }
}

/// Returns what a failed build proves, given the free disk space in bytes.
fn judged(failure: &Failure, room: Option<u64>) -> Rebuilt {
    match room {
        // A tool or an input is missing here, a file cannot be written, or one of our limits ended the build.
        _ if !failure.is_of_source() => Rebuilt::Local(failure.to_string()),
        Some(room) if room < ROOM => Rebuilt::Local(format!("{failure}; {} MiB are left on its disk", room >> 20)),
        Some(_) => Rebuilt::Failed(format!("{failure}\n")),
        None => Rebuilt::Local(format!("{failure}; the free disk space is unknown")),
    }
}

/// Checks that a lock's firmware is not older than the oldest generation that a relay image may start with.
fn check_firmware(lock: &[u8], least: u32) -> Result<(), String> {
    let lock = Lock::parse(&String::from_utf8_lossy(lock)).map_err(|error| error.to_string())?;
    let generation = lock.firmware_generation().map_err(|error| error.to_string())?;
    check_generation(Some(generation), least).map_err(|refusal| format!("{refusal} [{}]", refusal.code()))
}

/// Returns the folder that keeps a round's results until they are published. It is private: in the validator's own
/// folder.
fn built(folder: &Path, number: u64) -> PathBuf {
    folder.join(format!("built-{number}"))
}

/// Builds in `place`, and puts image and manifest into `out`.
fn clean_build(
    arguments: &RunArguments,
    source: &Path,
    (place, out): (&Path, &Path),
    (wanted, kind, version): (B256, Kind, u64),
    deadline: Instant,
) -> Result<Found, Failure> {
    for folder in [place, out] {
        remove(folder)?;
        fs::create_dir_all(folder).map_err(Failure::plain)?;
    }
    let tree = place.join("source");
    copy(source, &tree, wanted)?;
    let build = BuildArguments {
        source: tree,
        lock: None,
        inputs: arguments.inputs.inputs.clone(),
        from: arguments.inputs.from.clone(),
        target: Some(place.join("target")),
        kind,
        programs: match kind {
            Kind::Relay => arguments.inputs.programs.clone(),
            Kind::Client => arguments.inputs.client_program.clone().map(|program| vec![program]),
        },
        firmware: None,
        simulate: false,
        version,
        confinement: Confinement::Required,
        time: WHOLE.as_secs(),
        deadline: Some(deadline),
    };
    let built = make(&build)?;
    let manifest = built.manifest.encode();
    let put = |name: String, bytes: &[u8]| replace(&out.join(name), bytes).map_err(Failure::plain);
    let image = built.image.hash();
    put(format!("{}.{}", hex(&image), kind.file()), &built.image.file)?;
    put(format!("{}.{MANIFEST}", hex(&image)), &manifest)?;
    Ok(Found::Image { image: B256::new(image), measurements: B256::new(sha256(&manifest)) })
}

/// Publishes a round's results, once the validator has revealed its vote.
fn publish(
    folder: &Folder,
    arguments: &RunArguments,
    key: &SigningKey,
    (number, id): (u64, u64),
) -> Result<(), Failure> {
    let built = built(&folder.account.path, number);
    if !built.exists() {
        return Ok(());
    }
    let Some(found) = revealed(folder, number, id)? else { return Ok(()) };
    if let Found::Image { image, .. } = found
        && built.join(format!("{}.{MANIFEST}", hex(image.as_slice()))).exists()
    {
        attest(folder, arguments, key, (number, id), found)?;
    }
    for entry in fs::read_dir(&built).map_err(Failure::plain)?.flatten() {
        let bytes = fs::read(entry.path()).map_err(Failure::plain)?;
        replace(&arguments.publish.join(entry.file_name()), &bytes).map_err(Failure::plain)?;
    }
    fs::remove_dir_all(&built).map_err(Failure::plain)
}

/// Publishes an attestation of the result, signed by the voting key: an in-toto statement in an envelope, and the
/// answer as the contract takes it. Two such files with different values for one round prove equivocation, so a
/// second one is never written.
fn attest(
    folder: &Folder,
    arguments: &RunArguments,
    key: &SigningKey,
    (number, id): (u64, u64),
    found: Found,
) -> Result<(), Failure> {
    let Found::Image { image, measurements } = found else { return Ok(()) };
    let path = arguments.publish.join(format!("attestation-{number}-{id}.json"));
    if path.exists() {
        return Ok(());
    }
    let release = release(folder, number)?;
    let (answer, value) = found.answer().parts();
    // Computed here: if an endpoint made the validator sign another answer, the whole bond would be lost.
    let hash = statement_hash(folder.account.chain.chain_id, folder.images, number, found.answer());
    let signer = Address::from_public_key(key.verifying_key());
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": Kind::of(release.kind).map(Kind::file), "digest": {"sha256": hex(image.as_slice())}}],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "openrelay image build",
                "externalParameters": {"version": release.version, "kind": release.kind},
                "resolvedDependencies": [
                    {"name": "source tree", "digest": {"sha256": hex(release.sourceTree.as_slice())}},
                    {"name": "image/inputs.lock", "digest": {"sha256": hex(release.inputsLock.as_slice())}},
                ],
            },
            "runDetails": {
                "builder": {"id": format!("openrelay validator {id} ({signer})")},
                "byproducts": [{"name": MANIFEST, "digest": {"sha256": hex(measurements.as_slice())}}],
            },
        },
    })
    .to_string();
    const KIND: &str = "application/vnd.in-toto+json";
    // Source: DSSE, protocol, "PAE".
    let encoded = format!("DSSEv1 {} {KIND} {} {statement}", KIND.len(), statement.len());
    let base64 = |bytes: &[u8]| base64ct::Base64::encode_string(bytes);
    let envelope = json!({
        "payloadType": KIND,
        "payload": base64(statement.as_bytes()),
        "signatures": [{"keyid": signer.to_string(), "sig": base64(&sign(key, keccak256(encoded))?)}],
        "vote": {
            "round": number, "validator": id, "answer": answer, "value": value.to_string(),
            "signature": Bytes::from(sign(key, hash)?).to_string(),
        },
    });
    replace(&path, format!("{envelope:#}\n").as_bytes()).map_err(Failure::plain)
}

/// Reports whether a round approved the value that this machine builds.
fn compare(arguments: &RunArguments, number: u64, value: B256) {
    let published = fs::read_dir(&arguments.publish).into_iter().flatten().flatten();
    let mut manifests = published.map(|entry| entry.path()).filter(|path| path.to_string_lossy().ends_with(MANIFEST));
    let own = manifests.any(|path| {
        let Ok(bytes) = fs::read(path) else { return false };
        let Ok(manifest) = openrelay_attest::manifest::Manifest::decode(&bytes) else { return false };
        image_value(manifest.image.into(), B256::new(sha256(&bytes))) == value
    });
    if own {
        say(&format!("round {number}: the approved image is the one that was rebuilt here"));
    } else {
        talk(&format!(
            "openrelay: warning: round {number} approved another image than this machine builds; \
             get it, then compare: openrelay image diff ONE OTHER"
        ));
    }
}

/// Asks a random relay for its evidence as an ordinary client would, and prints the result.
fn look(program: &Program, folder: &Folder) -> Result<(), Failure> {
    let now = unix_seconds();
    let (reading, directory) = openrelay_chain::read(&folder.account.chain, now, 0)?;
    let directory = VerifiedDirectory::of_proven(directory, reading);
    let relays = &directory.directory().body().relays;
    let drawn = u64::from_le_bytes(array(&mut OsRandom::default())) % u64::try_from(relays.len().max(1)).unwrap_or(1);
    let Some(record) = relays.get(usize::try_from(drawn).unwrap_or(0)) else {
        return Err(Failure::plain("no relay accepts circuits"));
    };
    let shown = EvidenceClient::new(&directory).ask(record);
    let refused = match shown {
        Err(error) => Some(json!({"code": "silent", "why": error.to_string()})),
        Ok(staple) => {
            // Read the chain again together with the shown evidence, whose block may be newer.
            let (reading, newer) = read_by(&Direct, &folder.account.chain, (now, 0), directory.reading(), &[staple])?;
            let newer = VerifiedDirectory::of_proven(newer, reading);
            let judged = JudgedRelays::of(&newer, &folder.account.chain.trust(), &program.standard, unix_seconds());
            judged
                .verdict(record.relay_id)
                .err()
                .map(|refusal| json!({"code": refusal.code(), "why": refusal.to_string()}))
        }
    };
    let said: Value = json!({
        "schema": "openrelay.spot-check/1", "relay": record.relay_id, "believed": refused.is_none(),
        "refused": refused,
    });
    say(&said.to_string());
    Ok(())
}

/// `openrelay validator report`: reports one validator's two attestations that have different values for one round.
pub(super) fn report(folder: &Folder, files: [&Path; 2], password_file: Option<&Path>) -> Result<(), Failure> {
    let read = |path: &Path| -> Result<Value, Failure> {
        let bytes =
            fs::read(path).map_err(|error| Failure::plain(format!("cannot read {}: {error}", path.display())))?;
        let whole: Value = serde_json::from_slice(&bytes)
            .map_err(|error| Failure::plain(format!("{} is not an attestation: {error}", path.display())))?;
        Ok(whole["vote"].clone())
    };
    let votes = [read(files[0])?, read(files[1])?];
    let number = |vote: &Value, key: &str| {
        vote[key].as_u64().ok_or_else(|| Failure::plain(format!("an attestation has no {key}")))
    };
    let text = |vote: &Value, key: &str| {
        vote[key].as_str().map(str::to_owned).ok_or_else(|| Failure::plain(format!("an attestation has no {key}")))
    };
    for key in ["round", "validator"] {
        if number(&votes[0], key)? != number(&votes[1], key)? {
            return Err(Failure::plain(format!("the attestations differ in their {key}: that proves nothing")));
        }
    }
    if votes[0]["value"] == votes[1]["value"] {
        return Err(Failure::plain("both attestations have the same value: that proves nothing"));
    }
    let answer =
        |vote: &Value| -> Result<u8, Failure> { u8::try_from(number(vote, "answer")?).map_err(Failure::plain) };
    let value = |vote: &Value| -> Result<B256, Failure> { text(vote, "value")?.parse().map_err(Failure::plain) };
    let signature =
        |vote: &Value| -> Result<Bytes, Failure> { text(vote, "signature")?.parse().map_err(Failure::plain) };
    let call = ImageRegistry::reportEquivocationCall {
        round: number(&votes[0], "round")?,
        validatorId: number(&votes[0], "validator")?,
        answers: [answer(&votes[0])?, answer(&votes[1])?],
        values: [value(&votes[0])?, value(&votes[1])?],
        signatures: [signature(&votes[0])?, signature(&votes[1])?],
    };
    let sender = folder.sender(folder.key(password_file)?);
    let receipt = sender.send("report equivocation", folder.images, &call.abi_encode())?;
    say(&format!("reported: the bond is gone, and the reporter gets a twentieth of it; block {}", receipt.block));
    Ok(())
}

/// Prints what a proposer must put into a release: the hash of the tree and that of its inputs.
pub(super) fn source(tree: &Path) -> Result<(), Failure> {
    let hash = tree_hash(tree)?;
    let lock = fs::read(tree.join("image/inputs.lock")).map_err(Failure::plain)?;
    say(&format!("source tree   {hash}"));
    say(&format!("inputs.lock   {}", B256::new(sha256(&lock))));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a lock with this line in its firmware package.
    fn lock(line: &str) -> Vec<u8> {
        let package = |role: &str, line: &str| {
            let hash = "00".repeat(32);
            format!(
                "[[package]]\nname = \"a\"\nrole = \"{role}\"\npath = \"p\"\nsha256 = \"{hash}\"\nsize = 1\n{line}\n"
            )
        };
        let packages = [package("kernel", ""), package("stub", ""), package("firmware", line)].concat();
        format!("cmdline = \"\"\nkernel_release = \"\"\nmodules = []\nshape = []\n{packages}").into_bytes()
    }

    #[test]
    fn failed_build_is_reported_only_for_faults_of_the_tree() {
        let tree = Failure::of_source("the build of the relay failed with exit code 101");
        let is_failed = |failure: &Failure, room| matches!(judged(failure, room), Rebuilt::Failed(_));
        assert!(is_failed(&tree, Some(ROOM)));
        assert!(!is_failed(&tree, Some(ROOM - 1)) && !is_failed(&tree, None), "the disk may have been full");
        // An unavailable input, a disk error, a limit.
        let others = [Failure::new(77, "x"), Failure::plain("x"), Failure::new(crate::failure::LIMIT_EXCEEDED, "x")];
        assert!(others.iter().all(|failure| !is_failed(failure, Some(ROOM))));
    }

    #[test]
    fn tree_whose_firmware_is_too_old_or_of_no_generation_is_not_built() {
        assert_eq!(check_firmware(&lock("generation = 2"), 2), Ok(()));
        assert_eq!(check_firmware(&lock("generation = 3"), 2), Ok(()));
        let old = check_firmware(&lock("generation = 1"), 2).unwrap_err();
        assert!(old.contains("generation 1") && old.ends_with("[firmware-generation]"), "{old}");
        let none = check_firmware(&lock(""), 2).unwrap_err();
        assert!(none.contains("a firmware package must have a generation"), "{none}");
    }
}
