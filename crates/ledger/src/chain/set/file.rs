//! The records file: an index that the chain proves, and pages that the index proves one by one.
//!
//! Owns the format, its bounds, and [`Assembly`], which builds a complete set from the good pages of several sources.
//! The chain proves the storage root that the index gives, so the index is correct and complete. Each entry of a page
//! must hash to its position in the index, so a bad page costs only itself. It never trusts a source.
//!
//! ```text
//! "openrelay-records/2\n" | root 32 | relays 4 | per relay, by rising id: relay id 8 | record hash 32
//! per page: length 4 of what follows | root 32 | page number 4 | entries of the next 64 relays of the index
//! entry: operator 20 | advertised Mbit/s 4 | bond class 1 | status 1 | kind 1 │ 1: length 2 | descriptor
//!                                                                             │ 0: hash of the descriptor 32
//! ```

use alloy_primitives::{Address, B256};

use super::super::descriptor::Descriptor;
use super::{ChainRecord, RecordSet, Registration, Status, directory_root, record_hash};

const HEAD: &[u8] = b"openrelay-records/2\n";
/// Maximum number of relays in a file.
pub const MAX_RELAYS: usize = 100_000;
/// Number of relays in a page. The last page of a file may have fewer.
pub const PAGE: usize = 64;
/// Largest descriptor that the registry accepts, in bytes. It is larger than any well-formed descriptor, so that a
/// malformed one can be told from a withheld one. Source: contracts/src/RelayRegistry.sol.
pub const MAX_PUBLISHED: usize = 256;
/// Largest page without its length field, in bytes.
pub const MAX_PAGE: usize = 32 + 4 + PAGE * MAX_ENTRY;
/// Largest file that is accepted, in bytes: about 31 MiB, for [`MAX_RELAYS`] relays.
pub const MAX_FILE: usize = HEAD.len() + 32 + 4 + MAX_RELAYS * (8 + 32) + MAX_RELAYS.div_ceil(PAGE) * (4 + MAX_PAGE);
const MAX_ENTRY: usize = 20 + 4 + 1 + 1 + 1 + 2 + MAX_PUBLISHED;
const WHOLE: u8 = 1;
const WITHHELD: u8 = 0;

/// Why a records file is refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SetError {
    /// The file is too large.
    #[error("the records file has {0} bytes; the limit is {MAX_FILE}")]
    TooLarge(usize),
    /// The file lists too many relays.
    #[error("the records file lists {0} relays; the limit is {MAX_RELAYS}")]
    TooMany(usize),
    /// Another kind of file, or one that ends within its index.
    #[error("this is not a records file, or it ends within its index")]
    Malformed,
    /// The file belongs to another block.
    #[error("the records belong to another block: the source is behind or ahead, or serves an old file")]
    OtherRoot,
    /// The index does not match the chain.
    #[error("the records do not match the chain: some are wrong, missing or added; use another source")]
    Different,
    /// A page is bad, although all must be good.
    #[error(transparent)]
    Page(PageFault),
    /// Pages are missing.
    #[error("no usable page has the records of {0} relays; use more sources")]
    Incomplete(usize),
}

/// A page that cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("page {place} of the records cannot be used: {error}")]
pub struct PageFault {
    /// Position in the file, from 0.
    pub place: usize,
    /// Reason.
    pub error: PageError,
}

/// Why a page cannot be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum PageError {
    /// The file ends within the page.
    #[error("the file ends within this page")]
    Truncated,
    /// The page is larger than [`MAX_PAGE`].
    #[error("it has {0} bytes; the limit for a page is {MAX_PAGE}")]
    TooLarge(usize),
    /// The page belongs to another file.
    #[error("it belongs to the records of another block")]
    OtherRoot,
    /// The page's number is too large, or not larger than the number of the previous page.
    #[error("its number {0} is out of order or too large")]
    OutOfPlace(u32),
    /// The page's entries are malformed, or bytes follow them.
    #[error("its entries are malformed")]
    Malformed,
    /// An entry is not the one that the index proves.
    #[error("its entry for relay {0} does not match the chain")]
    Different(u64),
}

/// A source's data about a relay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Entry {
    /// The registration, and the descriptor's bytes as the operator published them.
    Whole(Registration, Vec<u8>),
    /// The registration and the descriptor's hash. The weight is proven, and another source can provide the
    /// descriptor.
    Withheld(Registration, B256),
}

impl Entry {
    /// Returns the relay's registration.
    pub const fn registration(&self) -> &Registration {
        match self {
            Self::Whole(registration, _) | Self::Withheld(registration, _) => registration,
        }
    }

    /// Returns the record's hash.
    pub fn hash(&self) -> B256 {
        match self {
            Self::Whole(registration, descriptor) => record_hash(registration, Descriptor::hash(descriptor)),
            Self::Withheld(registration, descriptor) => record_hash(registration, *descriptor),
        }
    }
}

/// Returns the encoded records file; `None` if a relay occurs twice or there are more than [`MAX_RELAYS`]. A
/// descriptor that is longer than the registry accepts is written as withheld.
pub fn write(mut entries: Vec<Entry>) -> Option<Vec<u8>> {
    entries.sort_by_key(|entry| entry.registration().relay_id);
    let index: Vec<(u64, B256)> = entries.iter().map(|entry| (entry.registration().relay_id, entry.hash())).collect();
    if index.windows(2).any(|pair| matches!(pair, [(a, _), (b, _)] if a == b)) {
        return None;
    }
    encode(directory_root(index.iter().copied()), &index, &entries.iter().collect::<Vec<_>>())
}

fn encode(root: B256, index: &[(u64, B256)], entries: &[&Entry]) -> Option<Vec<u8>> {
    if index.len() > MAX_RELAYS {
        return None;
    }
    let mut out = [HEAD, root.as_slice(), &u32::try_from(index.len()).ok()?.to_be_bytes()].concat();
    for (relay_id, hash) in index {
        out.extend(relay_id.to_be_bytes());
        out.extend(hash);
    }
    for (number, page) in entries.chunks(PAGE).enumerate() {
        let start = out.len();
        out.extend([0; 4]);
        out.extend(root);
        out.extend(u32::try_from(number).ok()?.to_be_bytes());
        page.iter().try_for_each(|entry| put(&mut out, entry))?;
        let length = u32::try_from(out.len() - start - 4).ok()?;
        out.get_mut(start..start + 4)?.copy_from_slice(&length.to_be_bytes());
    }
    Some(out)
}

fn put(out: &mut Vec<u8>, entry: &Entry) -> Option<()> {
    let registration = entry.registration();
    out.extend(registration.operator);
    out.extend(registration.advertised_mbit.to_be_bytes());
    out.extend([registration.bond_class, registration.status.byte()]);
    match entry {
        Entry::Whole(_, descriptor) if descriptor.len() <= MAX_PUBLISHED => {
            out.push(WHOLE);
            out.extend(u16::try_from(descriptor.len()).ok()?.to_be_bytes());
            out.extend(descriptor);
        }
        Entry::Whole(_, descriptor) => {
            out.push(WITHHELD);
            out.extend(Descriptor::hash(descriptor));
        }
        Entry::Withheld(_, hash) => {
            out.push(WITHHELD);
            out.extend(hash);
        }
    }
    Some(())
}

/// A set of records that is assembled from several sources, for one storage root.
#[derive(Clone, Debug)]
pub struct Assembly {
    root: B256,
    /// Relay IDs and record hashes, once a source has provided those that give the root.
    index: Option<Vec<(u64, B256)>>,
    /// Known data about each relay of the index.
    entries: Vec<Option<Entry>>,
}

impl Assembly {
    /// Creates an empty set for this storage root, which the chain has proven.
    pub const fn new(root: B256) -> Self {
        Self { root, index: None, entries: Vec::new() }
    }

    /// Adds what a source's file proves, and returns the pages that could not be used.
    ///
    /// # Errors
    /// [`SetError`] if nothing of the file can be used.
    pub fn add(&mut self, file: &[u8]) -> Result<Vec<PageFault>, SetError> {
        let parts = Parts::of(file)?;
        if parts.root != self.root {
            return Err(SetError::OtherRoot);
        }
        match &self.index {
            Some(index) if *index == parts.index => {}
            None if directory_root(parts.index.iter().copied()) == self.root => {
                self.entries = vec![None; parts.index.len()];
                self.index = Some(parts.index.clone());
            }
            Some(_) | None => return Err(SetError::Different),
        }
        let entries = &mut self.entries;
        let faults = parts.read_pages(|at, entry| {
            let (Some(own), Some((_, hash))) = (entries.get_mut(at), parts.index.get(at)) else { return false };
            if matches!(own, Some(Entry::Whole(..))) {
                return true;
            }
            if entry.hash() != *hash {
                return false;
            }
            if own.is_none() || matches!(entry, Entry::Whole(..)) {
                *own = Some(entry);
            }
            true
        });
        Ok(faults)
    }

    /// Fills gaps from a file with any root, such as that of an earlier reading. Data about a relay is used if it
    /// gives the hash that the chain proves. Malformed parts of the file are ignored. The whole file is ignored before
    /// [`Assembly::add`] has found an index.
    pub fn fill_from(&mut self, other: &[u8]) {
        let (Some(index), Ok(parts)) = (&self.index, Parts::of(other)) else { return };
        let entries = &mut self.entries;
        parts.read_pages(|_, entry| {
            let Entry::Whole(registration, descriptor) = entry else { return true };
            let at = index.binary_search_by_key(&registration.relay_id, |(relay_id, _)| *relay_id);
            let Some((own, (_, hash))) = at.ok().and_then(|at| Some((entries.get_mut(at)?, index.get(at)?))) else {
                return true;
            };
            if matches!(own, Some(Entry::Whole(..))) {
                return true;
            }
            // The registration may have changed since then, while the descriptor did not.
            let registration = own.as_ref().map_or(registration, |own| *own.registration());
            let filled = Entry::Whole(registration, descriptor);
            if filled.hash() == *hash {
                *own = Some(filled);
            }
            true
        });
    }

    /// Returns whether everything is known, so that no further source could add anything.
    pub fn is_whole(&self) -> bool {
        self.index.is_some() && self.entries.iter().all(|entry| matches!(entry, Some(Entry::Whole(..))))
    }

    /// Returns the number of relays whose descriptor or whole record no source has provided; `None` before there is an
    /// index.
    pub fn missing(&self) -> Option<usize> {
        let missing = self.entries.iter().filter(|entry| !matches!(entry, Some(Entry::Whole(..)))).count();
        self.index.is_some().then_some(missing)
    }

    /// Returns the records file of everything that is known.
    ///
    /// # Errors
    /// [`SetError::Incomplete`] while there are relays without even a known registration.
    pub fn write(&self) -> Result<Vec<u8>, SetError> {
        let index = self.index.as_ref().ok_or(SetError::Incomplete(0))?;
        let entries: Vec<&Entry> = self.entries.iter().flatten().collect();
        if entries.len() < index.len() {
            return Err(SetError::Incomplete(index.len() - entries.len()));
        }
        encode(self.root, index, &entries).ok_or(SetError::TooMany(index.len()))
    }

    /// Returns the set.
    ///
    /// # Errors
    /// [`SetError::Incomplete`] while there are relays without even a known registration.
    pub fn into_set(self) -> Result<RecordSet, SetError> {
        let unknown = self.entries.iter().filter(|entry| entry.is_none()).count();
        if unknown > 0 || self.index.is_none() {
            return Err(SetError::Incomplete(unknown));
        }
        let mut set = RecordSet::default();
        for entry in self.entries.into_iter().flatten() {
            match entry {
                Entry::Withheld(registration, _) => set.withheld.push(registration),
                Entry::Whole(registration, bytes) => match Descriptor::decode(&bytes) {
                    Ok(descriptor) => set.records.push(ChainRecord { registration, descriptor }),
                    Err(_) => set.malformed.push(registration.relay_id),
                },
            }
        }
        Ok(set)
    }
}

/// A file, split into index and pages. Only the format of the index was checked.
struct Parts<'a> {
    root: B256,
    index: Vec<(u64, B256)>,
    pages: &'a [u8],
}

impl<'a> Parts<'a> {
    fn of(file: &'a [u8]) -> Result<Self, SetError> {
        if file.len() > MAX_FILE {
            return Err(SetError::TooLarge(file.len()));
        }
        let mut rest = file.strip_prefix(HEAD).ok_or(SetError::Malformed)?;
        let root = B256::new(take(&mut rest).ok_or(SetError::Malformed)?);
        let count = take(&mut rest).map(u32::from_be_bytes).ok_or(SetError::Malformed)?;
        let count = usize::try_from(count).unwrap_or(usize::MAX);
        if count > MAX_RELAYS {
            return Err(SetError::TooMany(count));
        }
        let (places, pages) = rest.split_at_checked(count * 40).ok_or(SetError::Malformed)?;
        let place = |mut place: &[u8]| Some((u64::from_be_bytes(take(&mut place)?), B256::new(take(&mut place)?)));
        let index: Vec<(u64, B256)> =
            places.chunks_exact(40).map(place).collect::<Option<_>>().ok_or(SetError::Malformed)?;
        if index.windows(2).any(|pair| matches!(pair, [(a, _), (b, _)] if a >= b)) {
            return Err(SetError::Malformed);
        }
        Ok(Self { root, index, pages })
    }

    /// Passes each entry with its position in the index to `use_entry`, which returns whether it is the proven one.
    fn read_pages(&self, mut use_entry: impl FnMut(usize, Entry) -> bool) -> Vec<PageFault> {
        let (mut rest, mut next, mut faults) = (self.pages, 0, Vec::new());
        // More pages than that could only repeat earlier ones.
        for place in 0..=self.index.len().div_ceil(PAGE) {
            if rest.is_empty() {
                break;
            }
            let read = cut(&mut rest).and_then(|page| self.read_page(page, &mut next, &mut use_entry));
            if let Err(error) = read {
                faults.push(PageFault { place, error });
                if error == PageError::Truncated {
                    break;
                }
            }
        }
        if next < self.index.len().div_ceil(PAGE) && faults.is_empty() {
            faults.push(PageFault { place: next, error: PageError::Truncated });
        }
        faults
    }

    /// Reads a page, whose number must be at least `next`.
    fn read_page(
        &self,
        mut page: &[u8],
        next: &mut usize,
        use_entry: &mut impl FnMut(usize, Entry) -> bool,
    ) -> Result<(), PageError> {
        if page.len() > MAX_PAGE {
            return Err(PageError::TooLarge(page.len()));
        }
        let root = B256::new(take(&mut page).ok_or(PageError::Malformed)?);
        if root != self.root {
            return Err(PageError::OtherRoot);
        }
        let shown = take(&mut page).map(u32::from_be_bytes).ok_or(PageError::Malformed)?;
        let number = usize::try_from(shown).unwrap_or(usize::MAX);
        let pages = self.index.len().div_ceil(PAGE);
        if number < *next || number >= pages {
            return Err(PageError::OutOfPlace(shown));
        }
        *next = number + 1;
        let mut different = None;
        let places = self.index.iter().enumerate().skip(number * PAGE).take(PAGE);
        for (at, (relay_id, _)) in places {
            let entry = take_entry(*relay_id, &mut page).ok_or(PageError::Malformed)?;
            if !use_entry(at, entry) {
                different.get_or_insert(PageError::Different(*relay_id));
            }
        }
        if !page.is_empty() {
            return Err(PageError::Malformed);
        }
        different.map_or(Ok(()), Err)
    }
}

/// Cuts off the next page. An oversized page is skipped if the file contains all of it.
fn cut<'a>(rest: &mut &'a [u8]) -> Result<&'a [u8], PageError> {
    let length = take(rest).map(u32::from_be_bytes).ok_or(PageError::Truncated)?;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let (page, tail) = rest.split_at_checked(length).ok_or(PageError::Truncated)?;
    *rest = tail;
    Ok(page)
}

fn take_entry(relay_id: u64, rest: &mut &[u8]) -> Option<Entry> {
    let operator = Address::new(take(rest)?);
    let advertised_mbit = u32::from_be_bytes(take(rest)?);
    let [bond_class, status] = take(rest)?;
    let registration = Registration { relay_id, operator, advertised_mbit, bond_class, status: Status::parse(status)? };
    match take(rest)? {
        [WHOLE] => {
            let length = usize::from(u16::from_be_bytes(take(rest)?));
            let (descriptor, tail) = rest.split_at_checked(length).filter(|_| length <= MAX_PUBLISHED)?;
            *rest = tail;
            Some(Entry::Whole(registration, descriptor.to_vec()))
        }
        [WITHHELD] => Some(Entry::Withheld(registration, B256::new(take(rest)?))),
        [_] => None,
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}
