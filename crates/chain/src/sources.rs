//! Which sources have the files that mirrors serve, and in which order they are asked.
//!
//! Owns the download of a mirror's file, and the choice of sources. The choice is the same for records and for
//! evidence. Sources are asked in random order, the circuit's relays among the mirrors, and two at a time. The
//! circuit's own ingress is therefore never asked alone.

use openrelay_proto::handshake::Role;
use openrelay_proto::random::{Random, array};
use ureq::Agent;

use super::transport::Transport;

/// Number of sources that are asked at once.
pub(crate) const SOURCES: usize = 2;

/// A source of such files.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// A relay of the circuit.
    Relay(Role),
    /// A mirror, by its URL.
    Mirror(String),
}

impl Source {
    /// Returns the name of the source in errors.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Relay(Role::Ingress) => "the ingress",
            Self::Relay(Role::Egress) => "the egress",
            Self::Mirror(url) => url,
        }
    }
}

/// Returns the circuit's relays and these mirrors, in random order.
pub(crate) fn drawn(transport: &dyn Transport, mirrors: &[String], random: &mut dyn Random) -> Vec<Source> {
    let relays = transport.relays().iter().map(|relay| Source::Relay(*relay));
    let mut all: Vec<Source> = relays.chain(mirrors.iter().cloned().map(Source::Mirror)).collect();
    all.sort_by_cached_key(|_| array::<8>(random));
    all
}

/// Why a source provided no file.
#[derive(Debug)]
pub(crate) enum Missing {
    /// The source was not reached.
    Unreached(String),
    /// The source answered that it has no such file, or sent one that is too large.
    Refused(String),
}

/// Downloads a mirror's file of at most `limit` bytes.
pub(crate) fn download(agent: &Agent, url: &str, limit: usize) -> Result<Vec<u8>, Missing> {
    let limit = u64::try_from(limit).unwrap_or(u64::MAX);
    let unreached = |error: ureq::Error| Missing::Unreached(error.to_string());
    let mut response = agent.get(url).call().map_err(unreached)?;
    if !response.status().is_success() {
        return Err(Missing::Refused(format!("HTTP status {}", response.status())));
    }
    response.body_mut().with_config().limit(limit).read_to_vec().map_err(|error| {
        let too_large = matches!(error, ureq::Error::BodyExceedsLimit(_));
        if too_large { Missing::Refused(error.to_string()) } else { unreached(error) }
    })
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]
    use std::collections::BTreeMap;

    use openrelay_proto::message::MirrorFile;

    use super::super::transport::Direct;
    use super::*;

    /// A circuit whose relays mirror these evidence files, and nothing else.
    #[derive(Default)]
    pub(crate) struct Circuit {
        pub(crate) ingress: Vec<u8>,
        pub(crate) egress: Vec<u8>,
    }

    impl Transport for Circuit {
        fn agent(&self, url: &str) -> Agent {
            Direct.agent(url)
        }

        fn relays(&self) -> &[Role] {
            &[Role::Ingress, Role::Egress]
        }

        fn fetch(&self, from: Role, file: MirrorFile) -> Result<Vec<u8>, String> {
            let held = if from == Role::Ingress { &self.ingress } else { &self.egress };
            let found = (file == MirrorFile::Attestation && !held.is_empty()).then(|| held.clone());
            found.ok_or_else(|| "it does not have this file".into())
        }
    }

    /// Evenly distributed numbers, the same in each run.
    pub(crate) struct Spread(pub(crate) u64);

    impl Random for Spread {
        fn fill(&mut self, bytes: &mut [u8]) {
            for byte in bytes {
                self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = self.0.to_be_bytes()[0];
            }
        }
    }

    #[test]
    fn sources_are_drawn_evenly_and_two_at_a_time() {
        let mirrors = ["https://b".to_owned(), "https://c".to_owned()];
        let mut random = Spread(18);
        let mut first: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..1_000 {
            let sources = drawn(&Circuit::default(), &mirrors, &mut random);
            let together = sources.chunks(SOURCES).next().unwrap();
            assert_eq!((sources.len(), together.len()), (4, 2));
            together.iter().for_each(|source| *first.entry(source.name().into()).or_default() += 1);
        }
        // Each is among the first two half of the time; four standard deviations are 64.
        assert!(first.len() == 4 && first.values().all(|count| (436..=564).contains(count)), "{first:?}");
    }
}
