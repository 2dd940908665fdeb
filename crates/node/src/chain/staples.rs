//! The evidence of all relays, put together from several sources.
//!
//! Owns when there is enough, and what of a source is held while it is read. Nothing proves that a source has shown
//! all evidence that there is, so each relay is read from two of them; a page that one leaves out or garbles is asked
//! of another. Everybody reads whole files: whoever asked for the evidence of some relays would tell which ones he
//! thinks of.
//!
//! A source is read page by page, in a thread of its own. Of each relay of the directory [`NEWEST`] staples of a
//! source are held, so `R` relays take at most `R × SOURCES × NEWEST × 4 KiB`, whatever sources send.

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
use super::way::{Outside, PATIENCE, Way};
use crate::attestation::NEWEST;
use crate::chain_file::ChainFile;

/// How long a source may take besides, for each relay. A place of 4 KiB arrives in that time at some 11 Mbit/s.
const PER_RELAY: Duration = Duration::from_millis(3);
/// How long one may take that is asked once an hour, about relays whose number is not known.
const HOURLY: Duration = Duration::from_secs(300);

/// What sources have together.
#[derive(Debug, Default)]
pub(super) struct Gathered {
    /// Of each source what all relays share.
    pub(super) files: Vec<AttestationFile>,
    /// Evidence by rising relay id.
    pub(super) staples: Vec<Staple>,
    /// Relays that sources have asked and that have shown none.
    pub(super) silent: BTreeSet<u64>,
    /// What was wrong with each file that is not as it should be. Who could not be reached is not among them.
    pub(super) faults: BTreeMap<String, String>,
}

/// Why a source did not give all that it should.
#[derive(Debug)]
enum Failure {
    /// It did not answer, or has nothing, or not all of it arrived in time.
    Silent,
    /// Its file is bad.
    Bad(FileError),
}

/// What is known of a relay.
#[derive(Debug, Default)]
struct Place {
    /// Sources whose file speaks of it, at most [`SOURCES`].
    sources: usize,
    /// Whether one of them is another than the circuit's ingress.
    beyond_ingress: bool,
    staples: Vec<Staple>,
}

/// Evidence of these relays, as far as `fits` takes it. Sources are drawn at random, two of them at first, and
/// further ones while there are relays of which fewer than two have spoken. What the circuit's own ingress alone says
/// is not used: it would choose the egresses.
pub(super) fn gather(
    way: &dyn Way,
    mirrors: &[String],
    relays: impl Iterator<Item = u64>,
    fits: &dyn Fn(&Staple) -> bool,
    random: &mut dyn Random,
) -> Gathered {
    let places = relays.map(|relay_id| (relay_id, Place::default())).collect();
    let mut gathering = Gathering { places, found: Gathered::default() };
    let mut sources = drawn(way, mirrors, random);
    loop {
        let some: Vec<Source> = sources.drain(..gathering.wanting().min(sources.len())).collect();
        if some.is_empty() {
            return gathering.finish();
        }
        gathering.ask(way, &some, fits);
    }
}

struct Gathering {
    places: BTreeMap<u64, Place>,
    found: Gathered,
}

impl Gathering {
    /// How many further sources it takes until two have spoken of each relay, if those do.
    fn wanting(&self) -> usize {
        let fewest = self.places.values().map(|place| place.sources).min();
        SOURCES.saturating_sub(fewest.unwrap_or(SOURCES).min(self.found.files.len()))
    }

    /// Reads these sources at the same time. None is cut short by another that is quick: each takes as long as one may.
    fn ask(&mut self, way: &dyn Way, some: &[Source], fits: &dyn Fn(&Staple) -> bool) {
        let relays = self.places.len();
        let patience = PATIENCE + PER_RELAY * u32::try_from(relays).unwrap_or(u32::MAX);
        // Each thread has a page, and the next one is read while this is looked at.
        let (answers, all) = mpsc::sync_channel(1);
        std::thread::scope(|scope| {
            for source in some {
                let answers = answers.clone();
                let read = move || {
                    let hand = |part| answers.send((source, Ok(part))).is_ok();
                    if let Err(failure) = read(way, source, patience, largest(relays, NEWEST), hand) {
                        // Nobody else waits for it.
                        let _ = answers.send((source, Err(failure)));
                    }
                };
                // Without a thread it is as if the source had not answered.
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
    /// Takes the newest of what a source has. Each source has places of its own, so that none takes those of another.
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

/// Reads a source's file of at most `limit` bytes, as long as `hand` takes its parts.
fn read(
    way: &dyn Way,
    source: &Source,
    patience: Duration,
    limit: usize,
    hand: impl FnMut(Part) -> bool,
) -> Result<(), Failure> {
    match source {
        Source::Relay(role) => {
            let bytes = way.fetch(*role, MirrorFile::Attestation).map_err(|_| Failure::Silent)?;
            parts(&bytes[..], hand)
        }
        Source::Mirror(url) => {
            let asked = way.agent(url).get(url).config().timeout_global(Some(patience)).build();
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

/// What all relays share in the file of each mirror, one after the other, straight from this machine. Evidence, which
/// follows it, is not read.
pub(super) fn commons(file: &ChainFile) -> impl Iterator<Item = AttestationFile> + '_ {
    file.evidence.iter().filter_map(|url| {
        let mut found = None;
        let take = |part| {
            if let Part::Common(common) = part {
                found = Some(*common);
            }
            false
        };
        // One that fails after this part has given it.
        let _ = read(&Outside, &Source::Mirror(url.clone()), PATIENCE, largest(0, 0), take);
        found
    })
}

/// All evidence that `genuine` says a chip has signed, as mirrors have it, straight from this machine; the collateral
/// that each mirror has; and what is wrong with mirrors' files. Nothing else of it is checked.
pub(super) fn all(file: &ChainFile, genuine: &dyn Fn(&Staple) -> bool) -> (Vec<Staple>, Vec<Vec<u8>>, Vec<String>) {
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
        if let Err(Failure::Bad(error)) = read(&Outside, &Source::Mirror(url.clone()), HOURLY, limit, take) {
            faults.push(format!("{url}: {error}"));
        }
    }
    (by_relay.into_values().flatten().collect(), bundles, faults)
}

#[cfg(test)]
mod tests;
