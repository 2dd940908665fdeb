//! The evidence file's format: a head that lists the relays and a hash of each page, then the pages.
//!
//! Owns the format, its bounds, and [`Reader`], which takes a file apart while it arrives. No reader holds more than
//! one page of an unverified source. The file does not have to come from a trusted source. A page that is truncated,
//! too large, changed, repeated or from another file costs only itself, and another source has the same relays.
//!
//! ```text
//! "openrelay-attestation/3\n" | common part: length 4, bytes | relays 4 | per relay, by rising id: relay id 8
//!                             | per page: SHA-256 of its entries 32
//! per page: length 4 of what follows | SHA-256 of everything before the first page 32 | page number 4
//!           | entries of the next 64 relays: number of staples 1, each: length 2, bytes
//! common part: bundle: length 4, bytes | manifests: count 2, each: length 4, bytes
//!              | statements: count 2, each: round 8, signature 65 | headers: count 2, each: length 2, RLP
//! staple: evidence: length 2, bytes | binding 149
//! ```
//!
//! A relay without a staple was asked and showed no evidence. A relay that is not listed was not asked.

use std::collections::{BTreeMap, BTreeSet};

use aws_lc_rs::digest::{Context, SHA256, digest};

use crate::bundle::MAX_BUNDLE;
use crate::bytes::Cursor;
use crate::file::{AttestationFile, MAX_COMMON, WHAT};
use crate::refusal::Refusal;
use crate::verdict::Staple;

const HEAD: &[u8] = b"openrelay-attestation/3\n";
/// Maximum number of relays in a file.
pub const MAX_RELAYS: usize = 100_000;
/// Number of relays in a page. The last page of a file may have fewer.
pub const PAGE: usize = 64;
/// Maximum number of staples of one relay.
pub const MAX_PLACES: usize = 10;
/// Largest staple in a file, in bytes. A TDX quote with its certificate takes about 3,000.
pub const MAX_STAPLE: usize = 4_096;
/// Largest page without its length field, in bytes.
pub const MAX_PAGE: usize = DIGEST + 4 + PAGE * (1 + MAX_PLACES * (2 + MAX_STAPLE));
const DIGEST: usize = 32;
/// Largest piece of an oversized page that is skipped at once, in bytes.
const SKIPPED: usize = 1 << 16;

/// Returns the largest size of a file about `relays` relays with `places` staples each, in bytes.
pub const fn largest(relays: usize, places: usize) -> usize {
    let pages = relays.div_ceil(PAGE);
    let head = HEAD.len() + 4 + MAX_COMMON + 4 + relays * 8 + pages * DIGEST;
    head + pages * (4 + DIGEST + 4) + relays * (1 + places * (2 + MAX_STAPLE))
}

/// Why an evidence file is refused.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum FileError {
    /// Another kind of file, or another version.
    #[error("this is not an evidence file, or its version is not supported")]
    NotEvidence,
    /// The file ends before its first page.
    #[error("the evidence file ends before its first page")]
    Truncated,
    /// The common part, which all relays share, is too large.
    #[error("the evidence file has {0} bytes before its relays; the limit is {MAX_COMMON}")]
    TooLarge(usize),
    /// The file lists too many relays.
    #[error("the evidence file lists {0} relays; the limit is {MAX_RELAYS}")]
    TooMany(usize),
    /// The relays are not in ascending order.
    #[error("the relays of the evidence file are not in order, or one is listed twice")]
    Unordered,
    /// The common part is malformed.
    #[error(transparent)]
    Common(Refusal),
    /// A page is bad, although all must be good.
    #[error(transparent)]
    Page(PageFault),
}

/// A page that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("page {place} of the evidence cannot be used: {error}")]
pub struct PageFault {
    /// Position in the file, from 0.
    pub place: usize,
    /// Reason.
    pub error: PageError,
}

/// Why a page cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PageError {
    /// The file ends within the page, or before it.
    #[error("the file ends before the end of this page")]
    Truncated,
    /// The page is larger than [`MAX_PAGE`].
    #[error("it has {0} bytes; the limit for a page is {MAX_PAGE}")]
    TooLarge(usize),
    /// The page belongs to another file.
    #[error("it belongs to another evidence file")]
    OtherFile,
    /// The page's number is too large, or not larger than the number of the previous page.
    #[error("its number {0} is out of order or too large")]
    OutOfPlace(u32),
    /// The page's hash is not the one that the head lists.
    #[error("it is not the page whose hash is in the file's head")]
    Different,
    /// The page's entries are malformed, or bytes follow them.
    #[error("its entries are malformed: {0}")]
    Malformed(Refusal),
    /// An entry has more than [`MAX_PLACES`] staples.
    #[error("it has {count} staples of relay {relay_id}; the limit is {MAX_PLACES}")]
    TooManyStaples {
        /// The relay of the entry.
        relay_id: u64,
        /// Number of its staples.
        count: usize,
    },
    /// A staple is bound to another relay than its entry is for.
    #[error("its entry for relay {0} has a staple of another relay")]
    OtherRelay(u64),
}

/// A part of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Part {
    /// The common part, which all relays share; without staples.
    Common(Box<AttestationFile>),
    /// Relays, and the staples of each.
    Page(Vec<(u64, Vec<Staple>)>),
    /// A page that cannot be used.
    Fault(PageFault),
}

/// An incremental reader: [`Reader::needs`] returns the number of bytes that it expects, [`Reader::give`] takes them.
pub struct Reader {
    awaited: Awaited,
    /// Hash of everything before the first page.
    digest: Context,
    file: [u8; DIGEST],
    relays: Vec<u64>,
    pages: Vec<[u8; DIGEST]>,
    /// The next position in the file, and the lowest page number that is valid there.
    place: usize,
    next: usize,
    /// Number of good pages, and whether any page was bad.
    good: usize,
    faulty: bool,
}

#[derive(Clone, Copy, Debug)]
enum Awaited {
    Head,
    Common(usize),
    Index(usize),
    Length,
    Page(usize),
    Skipped(usize),
    Nothing,
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { awaited, place, next, good, faulty, .. } = self;
        let relays = self.relays.len();
        f.debug_tuple("Reader").field(&(awaited, relays, place, next, good, faulty)).finish()
    }
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            awaited: Awaited::Head,
            digest: Context::new(&SHA256),
            file: [0; DIGEST],
            relays: Vec::new(),
            pages: Vec::new(),
            place: 0,
            next: 0,
            good: 0,
            faulty: false,
        }
    }
}

impl Reader {
    /// Returns the number of bytes to pass to [`Reader::give`] next; `None` if the reader needs nothing more of the
    /// file. The number never exceeds the larger of a page and the common part.
    pub fn needs(&self) -> Option<usize> {
        match self.awaited {
            Awaited::Head => Some(HEAD.len() + 4),
            Awaited::Common(length) => Some(length + 4),
            Awaited::Index(count) => Some(count * 8 + count.div_ceil(PAGE) * DIGEST),
            Awaited::Length => Some(4),
            Awaited::Page(length) => Some(length),
            Awaited::Skipped(length) => Some(length.min(SKIPPED)),
            Awaited::Nothing => None,
        }
    }

    /// Takes the bytes that [`Reader::needs`] asked for, and returns the part that they complete.
    ///
    /// # Errors
    /// [`FileError`] if nothing more of the file can be read.
    pub fn give(&mut self, bytes: &[u8]) -> Result<Option<Part>, FileError> {
        let mut cursor = Cursor::new(bytes, WHAT);
        let length = |cursor: &mut Cursor<'_>| {
            let length = cursor.array().map_err(|_| FileError::Truncated)?;
            Ok(usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX))
        };
        match self.awaited {
            Awaited::Head => {
                self.digest.update(bytes);
                if cursor.take(HEAD.len()).ok() != Some(HEAD) {
                    return Err(FileError::NotEvidence);
                }
                let length = length(&mut cursor)?;
                if length > MAX_COMMON {
                    return Err(FileError::TooLarge(length));
                }
                self.awaited = Awaited::Common(length);
                Ok(None)
            }
            Awaited::Common(expected) => {
                self.digest.update(bytes);
                let common = cursor.take(expected).map_err(|_| FileError::Truncated)?;
                let common = AttestationFile::decode_common(common).map_err(FileError::Common)?;
                let count = length(&mut cursor)?;
                if count > MAX_RELAYS {
                    return Err(FileError::TooMany(count));
                }
                self.awaited = Awaited::Index(count);
                Ok(Some(Part::Common(Box::new(common))))
            }
            Awaited::Index(count) => {
                self.digest.update(bytes);
                self.take_index(&mut cursor, count)?;
                self.await_page();
                Ok(None)
            }
            Awaited::Length => {
                let length = length(&mut cursor)?;
                if length <= MAX_PAGE {
                    self.awaited = Awaited::Page(length);
                    return Ok(None);
                }
                self.awaited = Awaited::Skipped(length);
                Ok(Some(self.fault(PageError::TooLarge(length))))
            }
            Awaited::Page(_) => {
                let read = self.take_page(bytes);
                let part = match read {
                    Ok(entries) => {
                        self.good += 1;
                        Part::Page(entries)
                    }
                    Err(error) => self.fault(error),
                };
                self.place += 1;
                self.await_page();
                Ok(Some(part))
            }
            Awaited::Skipped(length) => {
                let left = length.saturating_sub(bytes.len());
                self.awaited = Awaited::Skipped(left);
                if left == 0 || bytes.is_empty() {
                    self.place += 1;
                    self.await_page();
                }
                Ok(None)
            }
            Awaited::Nothing => Ok(None),
        }
    }

    /// Returns what is wrong with a file that ended at this point. `within` tells whether it ended within the needed
    /// bytes or before them.
    ///
    /// # Errors
    /// [`FileError`] if nothing of the file can be used.
    pub fn end(&mut self, within: bool) -> Result<Option<Part>, FileError> {
        match self.awaited {
            Awaited::Head | Awaited::Common(_) | Awaited::Index(_) => Err(FileError::Truncated),
            // The fault was already returned.
            Awaited::Nothing | Awaited::Skipped(_) => Ok(None),
            Awaited::Length if !within && (self.faulty || self.good == self.pages.len()) => Ok(None),
            Awaited::Length | Awaited::Page(_) => Ok(Some(self.fault(PageError::Truncated))),
        }
    }

    fn fault(&mut self, error: PageError) -> Part {
        self.faulty = true;
        Part::Fault(PageFault { place: self.place, error })
    }

    /// Waits for the next page. Reading stops after one page more than the head lists, because further pages could
    /// only repeat earlier ones.
    fn await_page(&mut self) {
        self.awaited = if self.place > self.pages.len() { Awaited::Nothing } else { Awaited::Length };
    }

    fn take_index(&mut self, cursor: &mut Cursor<'_>, count: usize) -> Result<(), FileError> {
        let relays = (0..count).map(|_| cursor.array().map(u64::from_be_bytes)).collect::<Result<_, Refusal>>();
        self.relays = relays.map_err(|_| FileError::Truncated)?;
        if self.relays.windows(2).any(|pair| matches!(pair, [one, other] if one >= other)) {
            return Err(FileError::Unordered);
        }
        let pages = (0..count.div_ceil(PAGE)).map(|_| cursor.array()).collect::<Result<_, Refusal>>();
        self.pages = pages.map_err(|_| FileError::Truncated)?;
        self.file.copy_from_slice(self.digest.clone().finish().as_ref());
        Ok(())
    }

    fn take_page(&mut self, bytes: &[u8]) -> Result<Vec<(u64, Vec<Staple>)>, PageError> {
        let mut cursor = Cursor::new(bytes, "the page");
        let malformed = PageError::Malformed;
        if cursor.array::<DIGEST>().map_err(malformed)? != self.file {
            return Err(PageError::OtherFile);
        }
        let shown = cursor.array().map(u32::from_be_bytes).map_err(malformed)?;
        let number = usize::try_from(shown).unwrap_or(usize::MAX);
        let named = self.pages.get(number).filter(|_| number >= self.next).ok_or(PageError::OutOfPlace(shown))?;
        self.next = number + 1;
        if digest(&SHA256, cursor.rest()).as_ref() != named {
            return Err(PageError::Different);
        }
        let mut entries = Vec::new();
        for relay_id in self.relays.iter().skip(number * PAGE).take(PAGE).copied() {
            let [count] = cursor.array().map_err(malformed)?;
            let count = usize::from(count);
            if count > MAX_PLACES {
                return Err(PageError::TooManyStaples { relay_id, count });
            }
            let mut staples = Vec::with_capacity(count);
            for _ in 0..count {
                let length = cursor.array().map(u16::from_be_bytes).map_err(malformed)?.into();
                if length > MAX_STAPLE {
                    return Err(malformed(Refusal::TooLarge { what: "the staple", limit: MAX_STAPLE }));
                }
                let staple = Staple::decode(cursor.take(length).map_err(malformed)?).map_err(malformed)?;
                if staple.binding.relay_id != relay_id {
                    return Err(PageError::OtherRelay(relay_id));
                }
                staples.push(staple);
            }
            entries.push((relay_id, staples));
        }
        cursor.end().map_err(malformed)?;
        Ok(entries)
    }
}

/// Returns the encoded file. Parts that exceed their size limit or maximum number are left out.
pub(crate) fn write(file: &AttestationFile) -> Vec<u8> {
    let mut by_relay: BTreeMap<u64, Vec<&Staple>> = BTreeMap::new();
    for staple in &file.staples {
        by_relay.entry(staple.binding.relay_id).or_default().push(staple);
    }
    let relays: BTreeSet<u64> = by_relay.keys().chain(&file.silent).copied().collect();
    let relays: Vec<u64> = relays.into_iter().take(MAX_RELAYS).collect();
    let mut out = HEAD.to_vec();
    put(&mut out, &file.encode_common(), 4);
    out.extend(u32::try_from(relays.len()).unwrap_or(u32::MAX).to_be_bytes());
    relays.iter().for_each(|relay_id| out.extend(relay_id.to_be_bytes()));
    // The hashes of the pages, and the file's hash in each page, are filled in once they are known.
    let names = out.len();
    let begin = names + relays.len().div_ceil(PAGE) * DIGEST;
    out.resize(begin, 0);
    let mut heads = Vec::new();
    for (number, page) in (0_u32..).zip(relays.chunks(PAGE)) {
        let start = out.len();
        out.extend([0; 4 + DIGEST]);
        out.extend(number.to_be_bytes());
        let entries = out.len();
        for relay_id in page {
            let own = by_relay.get(relay_id).map_or(&[][..], Vec::as_slice);
            let own = own.iter().map(|staple| staple.encode()).filter(|bytes| bytes.len() <= MAX_STAPLE);
            let own: Vec<Vec<u8>> = own.take(MAX_PLACES).collect();
            out.push(u8::try_from(own.len()).unwrap_or(0));
            own.iter().for_each(|staple| put(&mut out, staple, 2));
        }
        let name = digest(&SHA256, out.get(entries..).unwrap_or(&[]));
        fill(&mut out, names + heads.len() * DIGEST, name.as_ref());
        heads.push(start);
    }
    let name = digest(&SHA256, out.get(..begin).unwrap_or(&[]));
    let ends: Vec<usize> = heads.iter().skip(1).copied().chain([out.len()]).collect();
    for (start, end) in heads.into_iter().zip(ends) {
        let length = u32::try_from(end - start - 4).unwrap_or(u32::MAX).to_be_bytes();
        fill(&mut out, start, &[&length, name.as_ref()].concat());
    }
    out
}

fn fill(out: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = out.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

/// Appends a length of `width` bytes and then `bytes`. The length must fit.
pub(crate) fn put(out: &mut Vec<u8>, bytes: &[u8], width: usize) {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes();
    out.extend(&length[4 - width..]);
    out.extend(bytes);
}

const _: () = assert!(MAX_COMMON > MAX_BUNDLE && MAX_STAPLE <= u16::MAX as usize);

#[cfg(test)]
mod tests;
