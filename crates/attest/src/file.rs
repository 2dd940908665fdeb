//! The evidence file: all data for judging the relays of a network, as mirrors serve it and clients keep it.
//!
//! Owns the file's content; [`crate::pages`] owns its format. No part has to come from a trusted source:
//!
//! - collateral and manifests are checked against hashes on the chain
//! - headers are checked against block hashes
//! - evidence is checked against the vendors' roots
//! - statements are checked against keys that the reader's policy names
//!
//! A reader requests the whole file, so nobody learns which relay it is interested in.

use std::collections::{BTreeMap, BTreeSet};

use crate::binding::Binding;
use crate::bundle::MAX_BUNDLE;
use crate::bytes::Cursor;
use crate::evidence::{Evidence, MAX_QUOTE};
use crate::manifest::MAX_MANIFEST;
use crate::pages::{FileError, Part, Reader, put, write};
use crate::refusal::Refusal;
use crate::verdict::Staple;

pub(crate) const WHAT: &str = "the evidence file";
/// Largest header, in bytes.
const MAX_HEADER: usize = 4_096;
/// Maximum number of headers. Evidence can name 32 blocks, and readers do not all read at the same block.
pub const MAX_HEADERS: usize = 64;
/// Maximum number of manifests.
const MAX_MANIFESTS: usize = 64;
/// Maximum number of statements: about 30 rebuilders of each image that a client looks at, from several sources.
const MAX_STATEMENTS: usize = 1_024;
const STATEMENT: usize = 8 + 65;
/// Largest common part, which all relays share, in bytes.
pub const MAX_COMMON: usize = 4
    + MAX_BUNDLE
    + (2 + MAX_MANIFESTS * (4 + MAX_MANIFEST))
    + (2 + MAX_STATEMENTS * STATEMENT)
    + (2 + MAX_HEADERS * (2 + MAX_HEADER));

/// A rebuilder's statement that its own build gave the value that a round approved. It does not name the rebuilder;
/// its signature identifies the key.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Statement {
    /// Number of the round.
    pub round: u64,
    /// r, s and v over the contract's `statementHash` of the round's value.
    pub signature: [u8; 65],
}

/// The evidence file: all data for judging relays.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AttestationFile {
    /// The network's collateral.
    pub bundle: Vec<u8>,
    /// Image manifests.
    pub manifests: Vec<Vec<u8>>,
    /// Statements that rebuilders of images signed.
    pub statements: Vec<Statement>,
    /// RLP-encoded headers of the blocks that evidence names.
    pub headers: Vec<Vec<u8>>,
    /// Relays that were asked and showed no evidence.
    pub silent: BTreeSet<u64>,
    /// Relay evidence. A file orders it by ascending relay ID, and keeps the order of this list within a relay.
    pub staples: Vec<Staple>,
}

impl AttestationFile {
    /// Returns the encoded file. Parts that exceed their limit are left out.
    pub fn encode(&self) -> Vec<u8> {
        write(self)
    }

    /// Returns the encoded common part.
    pub(crate) fn encode_common(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let bundle: &[u8] = if self.bundle.len() > MAX_BUNDLE { &[] } else { &self.bundle };
        put(&mut out, bundle, 4);
        let manifests: Vec<&Vec<u8>> =
            self.manifests.iter().filter(|bytes| bytes.len() <= MAX_MANIFEST).take(MAX_MANIFESTS).collect();
        count(&mut out, manifests.len());
        manifests.iter().for_each(|manifest| put(&mut out, manifest, 4));
        let statements = &self.statements[..self.statements.len().min(MAX_STATEMENTS)];
        count(&mut out, statements.len());
        for statement in statements {
            out.extend(statement.round.to_be_bytes());
            out.extend(statement.signature);
        }
        let headers: Vec<&Vec<u8>> =
            self.headers.iter().filter(|bytes| bytes.len() <= MAX_HEADER).take(MAX_HEADERS).collect();
        count(&mut out, headers.len());
        headers.iter().for_each(|header| put(&mut out, header, 2));
        out
    }

    /// Appends whatever `other` has and this file lacks. This file keeps its own collateral if it has any.
    pub fn add(&mut self, other: Self) {
        // A set of what is known keeps this fast for thousands of entries.
        fn add<T>(own: &mut Vec<T>, others: Vec<T>, bytes: impl Fn(&T) -> Vec<u8>) {
            let mut known: BTreeSet<Vec<u8>> = own.iter().map(&bytes).collect();
            own.extend(others.into_iter().filter(|other| known.insert(bytes(other))));
        }
        if self.bundle.is_empty() {
            self.bundle = other.bundle;
        }
        add(&mut self.manifests, other.manifests, Vec::clone);
        add(&mut self.statements, other.statements, |one| [&one.round.to_be_bytes()[..], &one.signature].concat());
        add(&mut self.headers, other.headers, Vec::clone);
        self.silent.extend(other.silent);
        // Only staples of the same relay are compared with each other.
        let mut places: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        for (at, staple) in self.staples.iter().enumerate() {
            places.entry(staple.binding.relay_id).or_default().push(at);
        }
        for staple in other.staples {
            let own = places.entry(staple.binding.relay_id).or_default();
            if own.iter().all(|at| self.staples.get(*at) != Some(&staple)) {
                own.push(self.staples.len());
                self.staples.push(staple);
            }
        }
    }

    /// Keeps at most `count` staples of each relay, those with the newest blocks.
    pub fn keep_newest(&mut self, count: usize) {
        self.staples.sort_by_key(|staple| (staple.binding.relay_id, std::cmp::Reverse(staple.binding.block_height)));
        let (mut relay, mut kept) = (None, 0);
        self.staples.retain(|staple| {
            let binding = &staple.binding;
            if relay != Some(binding.relay_id) {
                (relay, kept) = (Some(binding.relay_id), 0);
            }
            kept += 1;
            kept <= count
        });
    }

    /// Keeps at most `count` staples of each relay, the first ones in the list.
    pub fn keep_first(&mut self, count: usize) {
        let mut kept: BTreeMap<u64, usize> = BTreeMap::new();
        self.staples.retain(|staple| {
            let kept = kept.entry(staple.binding.relay_id).or_default();
            *kept += 1;
            *kept <= count
        });
    }

    /// Decodes a whole file, in which every page must be good. Checks the format only.
    ///
    /// # Errors
    /// [`FileError`] if any part of the file is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, FileError> {
        let (mut reader, mut rest, mut found) = (Reader::default(), bytes, Self::default());
        while let Some(count) = reader.needs() {
            let Some((piece, tail)) = rest.split_at_checked(count) else { break };
            rest = tail;
            found.take(reader.give(piece)?)?;
        }
        found.take(reader.end(!rest.is_empty())?)?;
        Ok(found)
    }

    fn take(&mut self, part: Option<Part>) -> Result<(), FileError> {
        match part {
            None => {}
            Some(Part::Common(common)) => *self = *common,
            Some(Part::Page(entries)) => {
                for (relay_id, staples) in entries {
                    if staples.is_empty() {
                        self.silent.insert(relay_id);
                    }
                    self.staples.extend(staples);
                }
            }
            Some(Part::Fault(fault)) => return Err(FileError::Page(fault)),
        }
        Ok(())
    }

    /// Decodes the common part, and skips the relays' evidence.
    ///
    /// # Errors
    /// [`FileError`] if the common part is malformed.
    pub fn without_evidence(bytes: &[u8]) -> Result<Self, FileError> {
        let (mut reader, mut rest) = (Reader::default(), bytes);
        while let Some((piece, tail)) = reader.needs().and_then(|count| rest.split_at_checked(count)) {
            rest = tail;
            if let Some(Part::Common(common)) = reader.give(piece)? {
                return Ok(*common);
            }
        }
        Err(FileError::Truncated)
    }

    /// Decodes the common part.
    pub(crate) fn decode_common(bytes: &[u8]) -> Result<Self, Refusal> {
        let mut cursor = Cursor::new(bytes, WHAT);
        let bundle = block(&mut cursor, 4, MAX_BUNDLE)?.to_vec();
        let manifests = many(&mut cursor, 4, MAX_MANIFEST, MAX_MANIFESTS)?.into_iter().map(<[u8]>::to_vec).collect();
        let statements = number(&mut cursor, MAX_STATEMENTS)?;
        let statement = |_| Ok(Statement { round: u64::from_be_bytes(cursor.array()?), signature: cursor.array()? });
        let statements = (0..statements).map(statement).collect::<Result<_, Refusal>>()?;
        let headers = many(&mut cursor, 2, MAX_HEADER, MAX_HEADERS)?.into_iter().map(<[u8]>::to_vec).collect();
        cursor.end()?;
        Ok(Self { bundle, manifests, statements, headers, ..Self::default() })
    }
}

impl Staple {
    /// Returns the encoded staple.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put(&mut out, &self.evidence.encode(), 2);
        out.extend(self.binding.encode());
        out
    }

    /// Decodes a staple. Checks the format only.
    ///
    /// # Errors
    /// [`Refusal`] if the staple is malformed.
    pub fn decode(bytes: &[u8]) -> Result<Self, Refusal> {
        let mut cursor = Cursor::new(bytes, "the staple");
        let evidence = Evidence::decode(block(&mut cursor, 2, MAX_QUOTE)?)?;
        Ok(Self { evidence, binding: Binding::decode(cursor.rest())? })
    }
}

fn count(out: &mut Vec<u8>, count: usize) {
    out.extend(u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes());
}

fn block<'a>(cursor: &mut Cursor<'a>, width: usize, most: usize) -> Result<&'a [u8], Refusal> {
    let length =
        if width == 4 { u32::from_be_bytes(cursor.array()?) } else { u16::from_be_bytes(cursor.array()?).into() };
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    if length > most {
        return Err(Refusal::TooLarge { what: WHAT, limit: most });
    }
    cursor.take(length)
}

fn many<'a>(cursor: &mut Cursor<'a>, width: usize, most: usize, limit: usize) -> Result<Vec<&'a [u8]>, Refusal> {
    let count = number(cursor, limit)?;
    (0..count).map(|_| block(cursor, width, most)).collect()
}

/// Reads a count, which is at most `limit`.
fn number(cursor: &mut Cursor<'_>, limit: usize) -> Result<usize, Refusal> {
    let count = usize::from(u16::from_be_bytes(cursor.array()?));
    if count > limit { Err(Refusal::TooLarge { what: WHAT, limit }) } else { Ok(count) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]
    use super::*;
    use crate::pages::MAX_STAPLE;

    fn staple(relay_id: u64, block_height: u64) -> Staple {
        let evidence = Evidence::decode(&[&[2][..], &[0; 672 + 96], &[0, 3, 7, 8, 9]].concat()).unwrap();
        let binding = Binding {
            network: [1; 32],
            relay_id,
            handshake_key: [2; 32],
            key_epoch: 3,
            roles: 1,
            image: [4; 32],
            block_hash: [5; 32],
            block_height,
        };
        Staple { evidence, binding }
    }

    fn statement(round: u64) -> Statement {
        Statement { round, signature: [6; 65] }
    }

    fn file() -> AttestationFile {
        AttestationFile {
            bundle: vec![7; 70_000],
            manifests: vec![vec![8; 300], vec![9; 1]],
            statements: vec![statement(1), statement(u64::MAX)],
            headers: vec![vec![10; 600], Vec::new()],
            silent: [7, 9].into(),
            staples: vec![staple(1, 256), staple(2, 512)],
        }
    }

    fn heights(file: &AttestationFile) -> Vec<(u64, u64)> {
        file.staples.iter().map(|staple| (staple.binding.relay_id, staple.binding.block_height)).collect()
    }

    #[test]
    fn encoded_file_decodes_and_truncated_or_extended_file_is_refused() {
        let (file, empty) = (file(), AttestationFile::default());
        let bytes = file.encode();
        assert_eq!(AttestationFile::decode(&bytes).unwrap(), file);
        assert_eq!(AttestationFile::decode(&empty.encode()).unwrap(), empty);
        for end in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
            assert!(AttestationFile::decode(&bytes[..end]).is_err(), "{end}");
        }
        let common = AttestationFile { silent: BTreeSet::new(), staples: Vec::new(), ..file.clone() };
        assert_eq!(AttestationFile::without_evidence(&bytes).unwrap(), common);
        assert!(AttestationFile::without_evidence(&bytes[..60]).is_err());
        assert!(AttestationFile::decode(&[&bytes[..], &[0]].concat()).is_err());
        let one = file.staples[0].encode();
        assert_eq!(Staple::decode(&one).unwrap(), file.staples[0]);
        assert!(Staple::decode(&one[..one.len() - 1]).is_err());
    }

    /// Parts of the maximum size are written and read; with one byte or one part more they are not.
    #[test]
    fn part_above_its_limit_is_neither_written_nor_read() {
        let mut file = AttestationFile { bundle: vec![0; MAX_BUNDLE], ..AttestationFile::default() };
        file.manifests = vec![vec![1; MAX_MANIFEST], vec![2; MAX_MANIFEST + 1]];
        file.headers = vec![vec![3; MAX_HEADER + 1], vec![4; MAX_HEADER]];
        let read = AttestationFile::decode(&file.encode()).unwrap();
        assert_eq!((read.bundle.len(), read.manifests.len(), read.headers.len()), (MAX_BUNDLE, 1, 1));
        file.bundle.push(0);
        assert!(AttestationFile::decode(&file.encode()).unwrap().bundle.is_empty());
        let many = AttestationFile {
            manifests: (0..=MAX_MANIFESTS).map(|at| vec![u8::try_from(at).unwrap()]).collect(),
            statements: (0..=1_024).map(statement).collect(),
            headers: (0..=MAX_HEADERS).map(|at| vec![u8::try_from(at).unwrap()]).collect(),
            ..AttestationFile::default()
        };
        let read = AttestationFile::decode(&many.encode()).unwrap();
        assert_eq!((read.manifests.len(), read.statements.len()), (MAX_MANIFESTS, MAX_STATEMENTS));
        assert_eq!(read.headers.len(), MAX_HEADERS);
        // Encoded by hand: one manifest, one statement or one header too many.
        let common = |parts: &[&[u8]]| AttestationFile::decode_common(&[&[0; 4][..], &parts.concat()].concat());
        let code = |parts: &[&[u8]]| common(parts).unwrap_err().code();
        let empty = [0, 0, 0, 0];
        assert_eq!(code(&[&[0, 65], &empty.repeat(65), &[0; 4]]), "too-large");
        assert_eq!(code(&[&[0, 0, 4, 1], &[0; 73 * 1_025], &[0; 2]]), "too-large");
        assert_eq!(code(&[&[0, 0, 0, 0, 0, 65], &[0; 130]]), "too-large");
        let most = [&[0, 64][..], &empty.repeat(64), &[4, 0], &[0; 73 * 1_024], &[0, 64], &[0; 128]].concat();
        let read = common(&[&most]).unwrap();
        assert_eq!((read.manifests.len(), read.statements.len(), read.headers.len()), (64, 1_024, 64));
        // Staples of the maximum size, and one byte larger.
        let sized = |more: usize| {
            let mut one = staple(1, 256);
            let Evidence::Amd(report) = &mut one.evidence else { unreachable!() };
            report.certificate.resize(3 + more, 0);
            one
        };
        let most = MAX_STAPLE - staple(1, 256).encode().len();
        let staples = vec![sized(most), sized(most + 1)];
        let read = AttestationFile::decode(&AttestationFile { staples, ..AttestationFile::default() }.encode());
        assert_eq!(read.unwrap().staples, [sized(most)]);
    }

    #[test]
    fn added_parts_are_appended_without_duplicates() {
        let mut own = file();
        let mut other = file();
        other.bundle = vec![1];
        other.manifests.push(vec![11]);
        other.statements.push(statement(2));
        other.headers.push(vec![12]);
        other.staples.insert(0, staple(3, 256));
        own.add(other.clone());
        assert_eq!(own.bundle, file().bundle);
        assert_eq!((own.manifests.len(), own.headers.len()), (3, 3));
        assert_eq!(own.statements, [statement(1), statement(u64::MAX), statement(2)]);
        assert_eq!(heights(&own), [(1, 256), (2, 512), (3, 256)]);
        assert_eq!(heights(&AttestationFile::decode(&own.encode()).unwrap()), [(1, 256), (2, 512), (3, 256)]);
        let mut empty = AttestationFile::default();
        empty.add(other.clone());
        assert_eq!(empty, other);
    }

    #[test]
    fn newest_or_first_staples_of_each_relay_are_kept() {
        let all = [(2, 256), (1, 256), (1, 768), (2, 512), (1, 512)].map(|(relay, height)| staple(relay, height));
        let file = AttestationFile { staples: all.to_vec(), ..AttestationFile::default() };
        let newest = |count| {
            let mut file = file.clone();
            file.keep_newest(count);
            heights(&file)
        };
        assert_eq!(newest(1), [(1, 768), (2, 512)]);
        assert_eq!(newest(2), [(1, 768), (1, 512), (2, 512), (2, 256)]);
        assert_eq!(newest(3).len(), 5);
        let first = |count| {
            let mut file = file.clone();
            file.keep_first(count);
            heights(&file)
        };
        assert_eq!(first(1), [(2, 256), (1, 256)]);
        assert_eq!(first(2), [(2, 256), (1, 256), (1, 768), (2, 512)]);
        assert_eq!(first(3).len(), 5);
    }

    #[test]
    fn largest_common_part_has_the_stated_size() {
        let file = AttestationFile {
            bundle: vec![1; MAX_BUNDLE],
            manifests: vec![vec![2; MAX_MANIFEST]; MAX_MANIFESTS],
            statements: vec![statement(1); MAX_STATEMENTS],
            headers: vec![vec![3; MAX_HEADER]; MAX_HEADERS],
            ..AttestationFile::default()
        };
        assert_eq!(file.encode_common().len(), MAX_COMMON);
        // One more of each, or a longer one, is left out.
        let mut more = file.clone();
        more.manifests.push(vec![2; 1]);
        more.statements.push(statement(2));
        more.headers.extend([vec![3; MAX_HEADER + 1], vec![3; 1]]);
        assert_eq!(more.encode_common(), file.encode_common());
    }
}
