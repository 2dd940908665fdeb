//! Gathers the records of all relays from several sources.
//!
//! Decides when enough sources were read. [`Assembly`] checks what sources serve: the storage root proves which
//! relays there are, so a source can only withhold.

use std::collections::BTreeMap;
use std::sync::mpsc;

use alloy_primitives::B256;
use openrelay_ledger::chain::set::{Assembly, MAX_FILE, SetError};
use openrelay_proto::message::MirrorFile;
use openrelay_proto::random::Random;

use super::read::{AGAIN, ChainError, PAUSE};
use super::sources::{Missing, SOURCES, Source, download, drawn};
use super::transport::Transport;
use openrelay_node::chain_file::ChainFile;

/// Returns the file of records with this storage root. `earlier` are files that are already known, with any root;
/// nothing in them is asked for again. Sources are drawn at random and asked two at a time, until no descriptor is
/// missing or all sources were asked.
///
/// # Errors
/// [`ChainError::Mirrors`] if the sources together do not give the registration of every relay.
/// [`ChainError::Unserved`] if no source was reached. On success descriptors may still be missing.
pub(crate) fn gather(
    transport: &dyn Transport,
    file: &ChainFile,
    root: B256,
    earlier: &[&[u8]],
    random: &mut dyn Random,
) -> Result<Vec<u8>, ChainError> {
    let mut gathering = Gathering {
        assembly: Assembly::new(root),
        earlier,
        faults: BTreeMap::new(),
        reached: false,
        behind: Vec::new(),
    };
    for file in earlier {
        // Most of them have another root.
        let _ = gathering.assembly.add(file);
    }
    gathering.fill();
    let mut sources = drawn(transport, &file.mirrors, random);
    for again in 0..AGAIN {
        if gathering.assembly.is_whole() || sources.is_empty() {
            break;
        }
        if again > 0 {
            std::thread::sleep(PAUSE);
        }
        for some in sources.chunks(SOURCES) {
            ask(transport, some, |source, read| gathering.take(source, read));
            if gathering.assembly.is_whole() {
                break;
            }
        }
        // The other sources would answer the same again.
        sources = std::mem::take(&mut gathering.behind);
    }
    let Gathering { assembly, faults, reached, .. } = gathering;
    assembly.write().map_err(|error| {
        let mut faults: Vec<String> = faults.into_iter().map(|(source, why)| format!("{source}: {why}")).collect();
        if assembly.missing().is_some() {
            faults.push(error.to_string());
        }
        if file.mirrors.is_empty() {
            faults.push("none is configured".into());
        } else if !reached {
            return ChainError::Unserved(faults);
        }
        ChainError::Mirrors(faults)
    })
}

struct Gathering<'a> {
    assembly: Assembly,
    earlier: &'a [&'a [u8]],
    /// The fault in each source's last answer.
    faults: BTreeMap<String, String>,
    /// Whether any source answered, whatever its answer was.
    reached: bool,
    /// Sources that show the records of another block. Some of them follow the chain a second later.
    behind: Vec<Source>,
}

impl Gathering<'_> {
    /// Takes a source's answer. Returns whether no further source is needed.
    fn take(&mut self, source: &Source, read: Result<Vec<u8>, Missing>) -> bool {
        self.reached |= !matches!(read, Err(Missing::Unreached(_)));
        let mut fault = |why: &dyn std::fmt::Display| self.faults.insert(source.name().into(), why.to_string());
        match read.map(|bytes| (self.assembly.add(&bytes), bytes)) {
            Ok((Ok(pages), _)) => {
                if let Some(page) = pages.first() {
                    fault(page);
                }
                self.fill();
            }
            Ok((Err(error), bytes)) => {
                fault(&error);
                if error == SetError::OtherRoot {
                    self.assembly.fill_from(&bytes);
                    self.behind.push(source.clone());
                }
            }
            Err(Missing::Unreached(why) | Missing::Refused(why)) => {
                fault(&why);
            }
        }
        self.assembly.is_whole()
    }

    fn fill(&mut self) {
        self.earlier.iter().for_each(|file| self.assembly.fill_from(file));
    }
}

/// Asks these sources at the same time, and passes each answer to `take` until it returns that no further source is
/// needed.
fn ask(transport: &dyn Transport, sources: &[Source], mut take: impl FnMut(&Source, Result<Vec<u8>, Missing>) -> bool) {
    let (answers, all) = mpsc::channel();
    for (at, source) in sources.iter().enumerate() {
        if let Source::Mirror(url) = source {
            let (answers, agent, url) = (answers.clone(), transport.agent(url), url.clone());
            // The receiver is gone if there was enough before.
            std::thread::spawn(move || answers.send((at, download(&agent, &url, MAX_FILE + 1))).ok());
        }
    }
    drop(answers);
    for source in sources {
        if let Source::Relay(relay) = source
            && take(source, transport.fetch(*relay, MirrorFile::Records).map_err(Missing::Unreached))
        {
            return;
        }
    }
    for (at, read) in all {
        if sources.get(at).is_some_and(|source| take(source, read)) {
            return;
        }
    }
}
