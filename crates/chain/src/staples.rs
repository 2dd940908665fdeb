//! Gathers the evidence of all relays from several sources.
//!
//! Decides when enough sources were read, and limits how much of a source it holds while reading. Nothing proves that
//! a source has shown all evidence that exists, so each relay is read from two sources. A page that one source leaves
//! out or garbles is read from another. Clients always read whole files: asking for the evidence of some relays would
//! reveal which ones they consider.
//!
//! Each source is read page by page, in its own thread. For each relay of the directory, [`NEWEST`] staples of a
//! source are held. So `R` relays take at most `R × SOURCES × NEWEST × 4 KiB`, whatever sources send.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read;
use std::sync::mpsc;
use std::time::Duration;

use openrelay_attest::file::AttestationFile;
use openrelay_attest::pages::{FileError, MAX_PLACES, MAX_RELAYS, Part, Reader, largest};
use openrelay_attest::verdict::Staple;
use openrelay_proto::handshake::Role;
use openrelay_proto::message::MirrorFile;
use openrelay_proto::random::Random;

use super::sources::{SOURCES, Source, drawn};
use super::transport::{Direct, PATIENCE, Transport};
use crate::attestation::NEWEST;
use openrelay_node::chain_file::ChainFile;

/// Additional time for a source, for each relay. A staple of 4 KiB arrives in that time at some 11 Mbit/s.
const PER_RELAY: Duration = Duration::from_millis(3);
/// Time for a source that is read once an hour, about an unknown number of relays.
const HOURLY: Duration = Duration::from_secs(300);

/// What sources have together.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    /// For each source the part of its file that all relays share.
    pub(crate) files: Vec<AttestationFile>,
    /// Staples by rising relay ID.
    pub(crate) staples: Vec<Staple>,
    /// Relays that sources asked and that showed no evidence.
    pub(crate) silent: BTreeSet<u64>,
    /// Faults of bad files, by source. Sources that could not be reached are not listed.
    pub(crate) faults: BTreeMap<String, String>,
}

/// Why a source did not deliver all it should.
#[derive(Debug)]
enum Failure {
    /// The source did not answer, has no file, or did not send all of it in time.
    Silent,
    /// The file is bad.
    Bad(FileError),
}

/// What is known about a relay.
#[derive(Debug, Default)]
struct Place {
    /// Number of sources whose file lists it, at most [`SOURCES`].
    sources: usize,
    /// Whether one of them is not the circuit's ingress.
    beyond_ingress: bool,
    staples: Vec<Staple>,
}

/// Returns the evidence of these relays that `fits` accepts. Sources are drawn at random: two at first, and more
/// while any relay is listed by fewer than two. Statements of the circuit's own ingress alone are ignored,
/// because the ingress could then choose the egress.
pub(crate) fn gather(
    transport: &dyn Transport,
    mirrors: &[String],
    relays: impl Iterator<Item = u64>,
    fits: &dyn Fn(&Staple) -> bool,
    random: &mut dyn Random,
) -> Gathered {
    let places = relays.map(|relay_id| (relay_id, Place::default())).collect();
    let mut gathering = Gathering { places, found: Gathered::default() };
    let mut sources = drawn(transport, mirrors, random);
    loop {
        let some: Vec<Source> = sources.drain(..gathering.wanting().min(sources.len())).collect();
        if some.is_empty() {
            return gathering.finish();
        }
        gathering.ask(transport, &some, fits);
    }
}

struct Gathering {
    places: BTreeMap<u64, Place>,
    found: Gathered,
}

impl Gathering {
    /// Returns how many more sources are needed until two have listed each relay, if those list it.
    fn wanting(&self) -> usize {
        let fewest = self.places.values().map(|place| place.sources).min();
        SOURCES.saturating_sub(fewest.unwrap_or(SOURCES).min(self.found.files.len()))
    }

    /// Reads these sources at the same time. A quick source does not cut a slow one short: each may take the full
    /// time.
    fn ask(&mut self, transport: &dyn Transport, some: &[Source], fits: &dyn Fn(&Staple) -> bool) {
        let relays = self.places.len();
        let patience = PATIENCE + PER_RELAY * u32::try_from(relays).unwrap_or(u32::MAX);
        // Each thread holds one page, and reads the next one while this one is processed.
        let (answers, all) = mpsc::sync_channel(1);
        std::thread::scope(|scope| {
            for source in some {
                let answers = answers.clone();
                let read = move || {
                    let hand = |part| answers.send((source, Ok(part))).is_ok();
                    if let Err(failure) = read(transport, source, patience, largest(relays, NEWEST), hand) {
                        // The receiver may be gone.
                        let _ = answers.send((source, Err(failure)));
                    }
                };
                // Without a thread the source counts as silent.
                let _ = std::thread::Builder::new().name("evidence".into()).spawn_scoped(scope, read);
            }
            drop(answers);
            for (source, part) in all {
                self.take(source, part, fits);
            }
        });
    }

    fn take(&mut self, source: &Source, part: Result<Part, Failure>, fits: &dyn Fn(&Staple) -> bool) {
        let mut fault = |why: String| {
            self.found.faults.entry(source.name().into()).or_insert(why);
        };
        match part {
            Ok(Part::Common(common)) => self.found.files.push(*common),
            Ok(Part::Page(entries)) => {
                for (relay_id, staples) in entries {
                    if let Some(place) = self.places.get_mut(&relay_id) {
                        place.take(source, staples, fits);
                    }
                }
            }
            Ok(Part::Fault(page)) => fault(page.to_string()),
            Err(Failure::Bad(error)) => fault(error.to_string()),
            Err(Failure::Silent) => {}
        }
    }

    fn finish(self) -> Gathered {
        let mut found = self.found;
        for (relay_id, place) in self.places.into_iter().filter(|(_, place)| place.beyond_ingress) {
            if place.staples.is_empty() {
                found.silent.insert(relay_id);
            }
            found.staples.extend(place.staples);
        }
        found
    }
}

impl Place {
    /// Takes the newest staples of a source. Each source has room of its own, so that it cannot displace those of
    /// another.
    fn take(&mut self, source: &Source, mut staples: Vec<Staple>, fits: &dyn Fn(&Staple) -> bool) {
        if self.sources >= SOURCES {
            return;
        }
        self.sources += 1;
        self.beyond_ingress |= *source != Source::Relay(Role::Ingress);
        staples.retain(fits);
        staples.sort_by_key(|staple| std::cmp::Reverse(staple.binding.block_height));
        for staple in staples.into_iter().take(NEWEST) {
            if !self.staples.contains(&staple) {
                self.staples.push(staple);
            }
        }
    }
}

/// Reads a source's file of at most `limit` bytes, as long as `hand` accepts its parts.
fn read(
    transport: &dyn Transport,
    source: &Source,
    patience: Duration,
    limit: usize,
    hand: impl FnMut(Part) -> bool,
) -> Result<(), Failure> {
    match source {
        Source::Relay(role) => {
            let bytes = transport.fetch(*role, MirrorFile::Attestation).map_err(|_| Failure::Silent)?;
            parts(&bytes[..], hand)
        }
        Source::Mirror(url) => {
            let asked = transport.agent(url).get(url).config().timeout_global(Some(patience)).build();
            let response = asked.call().map_err(|_| Failure::Silent)?;
            if !response.status().is_success() {
                return Err(Failure::Silent);
            }
            let limit = u64::try_from(limit).unwrap_or(u64::MAX);
            parts(response.into_body().into_with_config().limit(limit).reader(), hand)
        }
    }
}

/// Hands over the parts of a file while it arrives.
fn parts(mut input: impl Read, mut hand: impl FnMut(Part) -> bool) -> Result<(), Failure> {
    let mut reader = Reader::default();
    while let Some(count) = reader.needs() {
        let mut piece = Vec::new();
        let arrived = input.by_ref().take(u64::try_from(count).unwrap_or(u64::MAX)).read_to_end(&mut piece);
        if piece.len() < count {
            arrived.map_err(|_| Failure::Silent)?;
            if let Some(fault) = reader.end(!piece.is_empty()).map_err(Failure::Bad)? {
                hand(fault);
            }
            return Ok(());
        }
        if let Some(part) = reader.give(&piece).map_err(Failure::Bad)?
            && !hand(part)
        {
            return Ok(());
        }
    }
    Ok(())
}

/// Returns the common part of each mirror's file, one after the other, directly from this machine. The evidence after
/// it is not read.
pub(crate) fn commons(file: &ChainFile) -> impl Iterator<Item = AttestationFile> + '_ {
    file.evidence.iter().filter_map(|url| {
        let mut found = None;
        let take = |part| {
            if let Part::Common(common) = part {
                found = Some(*common);
            }
            false
        };
        // A source that fails after this part has already delivered it.
        let _ = read(&Direct, &Source::Mirror(url.clone()), PATIENCE, largest(0, 0), take);
        found
    })
}

/// Returns all evidence held by mirrors that `genuine` attributes to a chip, the collateral of each mirror, and the
/// faults in mirrors' files. Asks directly from this machine, and checks nothing else.
pub(crate) fn all(file: &ChainFile, genuine: &dyn Fn(&Staple) -> bool) -> (Vec<Staple>, Vec<Vec<u8>>, Vec<String>) {
    let (mut by_relay, mut bundles, mut faults) = (BTreeMap::<u64, Vec<Staple>>::new(), Vec::new(), Vec::new());
    for url in &file.evidence {
        let take = |part| {
            match part {
                Part::Common(common) => bundles.push(common.bundle),
                Part::Page(entries) => {
                    for (relay_id, staples) in entries {
                        for staple in staples {
                            let own = by_relay.get(&relay_id).map_or(&[][..], Vec::as_slice);
                            if own.len() < MAX_PLACES && !own.contains(&staple) && genuine(&staple) {
                                by_relay.entry(relay_id).or_default().push(staple);
                            }
                        }
                    }
                }
                Part::Fault(fault) => faults.push(format!("{url}: {fault}")),
            }
            true
        };
        let limit = largest(MAX_RELAYS, NEWEST);
        if let Err(Failure::Bad(error)) = read(&Direct, &Source::Mirror(url.clone()), HOURLY, limit, take) {
            faults.push(format!("{url}: {error}"));
        }
    }
    (by_relay.into_values().flatten().collect(), bundles, faults)
}

#[cfg(test)]
mod tests;
