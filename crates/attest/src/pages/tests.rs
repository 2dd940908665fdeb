//! Evidence files, good and bad.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on must stop")]

use super::*;
use crate::Evidence;
use crate::binding::Binding;

fn staple(relay_id: u64, block_height: u64) -> Staple {
    let evidence = Evidence::decode(&[&[2][..], &[0; 672 + 96], &[0, 3, 7, 8, 9]].concat()).unwrap();
    let (network, handshake_key, image, block_hash) = ([1; 32], [2; 32], [4; 32], [5; 32]);
    let (key_epoch, roles) = (3, 1);
    let binding = Binding { network, relay_id, handshake_key, key_epoch, roles, image, block_hash, block_height };
    Staple { evidence, binding }
}

/// Returns a file of `relays` relays, of which every seventh is silent; the others' evidence names the block at
/// `height`.
fn file(relays: u64, height: u64) -> AttestationFile {
    AttestationFile {
        bundle: vec![6; 500],
        silent: (1..=relays).filter(|relay_id| relay_id % 7 == 0).collect(),
        staples: (1..=relays).filter(|relay_id| relay_id % 7 > 0).map(|relay_id| staple(relay_id, height)).collect(),
        ..AttestationFile::default()
    }
}

/// Splits a file into its head and its pages, each with its length.
fn cut_up(file: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let number = |at: usize| u32::from_be_bytes(*file[at..].first_chunk().unwrap()) as usize;
    let index = 28 + number(24) + 4;
    let relays = number(index - 4);
    let (head, mut rest) = file.split_at(index + relays * 8 + relays.div_ceil(PAGE) * 32);
    let mut pages = Vec::new();
    while !rest.is_empty() {
        let (page, tail) = rest.split_at(4 + u32::from_be_bytes(*rest.first_chunk().unwrap()) as usize);
        pages.push(page.to_vec());
        rest = tail;
    }
    (head.to_vec(), pages)
}

fn put_together(head: &[u8], pages: &[Vec<u8>]) -> Vec<u8> {
    [head, &pages.concat()].concat()
}

/// Returns what a reader takes from these bytes, as from a network: the relays of good pages, and the faults.
fn read(bytes: &[u8]) -> Result<(Vec<u64>, Vec<PageFault>), FileError> {
    let (mut reader, mut rest, mut relays, mut faults) = (Reader::default(), bytes, Vec::new(), Vec::new());
    let mut take = |part: Option<Part>| match part {
        Some(Part::Page(entries)) => relays.extend(entries.iter().map(|(relay_id, _)| *relay_id)),
        Some(Part::Fault(fault)) => faults.push(fault),
        Some(Part::Common(_)) | None => {}
    };
    while let Some(count) = reader.needs() {
        assert!(count <= MAX_PAGE.max(MAX_COMMON + 4), "{count} bytes at once");
        let Some((piece, tail)) = rest.split_at_checked(count) else { break };
        rest = tail;
        take(reader.give(piece)?);
    }
    take(reader.end(!rest.is_empty())?);
    Ok((relays, faults))
}

#[test]
fn encoded_file_decodes_for_any_number_of_relays() {
    for relays in [0, 1, 6, 7, 63, 64, 65, 128, 300] {
        let (file, all) = (file(relays, 256), (1..=relays).collect::<Vec<_>>());
        let bytes = file.encode();
        assert_eq!(AttestationFile::decode(&bytes), Ok(file), "{relays}");
        assert_eq!(read(&bytes), Ok((all, Vec::new())), "{relays}");
        assert!(bytes.len() <= largest(usize::try_from(relays).unwrap(), 1));
    }
}

#[test]
fn staples_of_a_relay_keep_their_order_and_surplus_ones_are_dropped() {
    let all: Vec<Staple> = [3, 1, 2, 9, 8, 7, 6, 5, 4, 11, 10, 12].map(|height| staple(5, height)).to_vec();
    let mixed = all.iter().cloned().chain([staple(1, 1)]).collect();
    let written = AttestationFile { staples: mixed, ..AttestationFile::default() }.encode();
    let read = AttestationFile::decode(&written).unwrap().staples;
    assert_eq!((read[0].clone(), &read[1..]), (staple(1, 1), &all[..MAX_PLACES]));
    // The largest page: every relay has the maximum number of staples, each of the maximum size.
    let large = |relay_id: u64, height| {
        let mut one = staple(relay_id, height);
        let Evidence::Amd(report) = &mut one.evidence else { panic!("not AMD's") };
        report.certificate.resize(3 + MAX_STAPLE - staple(1, 1).encode().len(), 0);
        one
    };
    let staples = (1..=PAGE as u64).flat_map(|relay_id| (0..MAX_PLACES as u64).map(move |at| large(relay_id, at)));
    let bytes = AttestationFile { staples: staples.collect(), ..AttestationFile::default() }.encode();
    assert_eq!(cut_up(&bytes).1[0].len(), 4 + MAX_PAGE);
    assert_eq!(AttestationFile::decode(&bytes).unwrap().staples.len(), PAGE * MAX_PLACES);
}

#[test]
fn truncated_file_or_flipped_bit_is_refused() {
    let bytes = file(3, 256).encode();
    for end in 0..bytes.len() {
        assert!(AttestationFile::decode(&bytes[..end]).is_err(), "{end}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(AttestationFile::decode(&flipped).is_err(), "bit {bit}");
    }
    for tail in [&[0][..], &[0; 4], &[0; 40]] {
        assert!(AttestationFile::decode(&[&bytes[..], tail].concat()).is_err());
    }
}

/// Returns a file with these entries for one relay. A malicious source could write it, because it also writes the head
/// that lists their hash.
fn written(relay_id: u64, entries: &[u8]) -> Vec<u8> {
    let common = AttestationFile::default().encode_common();
    let mut head = [HEAD, &u32::try_from(common.len()).unwrap().to_be_bytes(), &common].concat();
    head.extend([0, 0, 0, 1]);
    head.extend(relay_id.to_be_bytes());
    head.extend(digest(&SHA256, entries).as_ref());
    let page = [digest(&SHA256, &head).as_ref(), &[0; 4], entries].concat();
    [&head[..], &u32::try_from(page.len()).unwrap().to_be_bytes(), &page].concat()
}

#[test]
fn bad_page_costs_only_itself_and_its_fault_is_named() {
    let good = file(300, 256).encode();
    let (head, pages) = cut_up(&good);
    let other = cut_up(&file(300, 512).encode()).1;
    let with = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut pages = pages.clone();
        change(&mut pages);
        put_together(&head, &pages)
    };
    let oversized = [&u32::try_from(MAX_PAGE + 1).unwrap().to_be_bytes()[..], &vec![0; MAX_PAGE + 1]].concat();
    // Position of the fault, the fault, and the number of relays that it costs.
    let rows: [(&str, usize, PageError, usize, Vec<u8>); 9] = [
        ("a byte changed", 1, PageError::Different, 64, with(&|pages| pages[1][50] ^= 1)),
        ("a page of another file", 2, PageError::OtherFile, 64, with(&|pages| pages[2] = other[2].clone())),
        ("a page twice", 2, PageError::OutOfPlace(1), 64, with(&|pages| pages[2] = pages[1].clone())),
        ("one page more", 5, PageError::OutOfPlace(4), 0, with(&|pages| pages.push(pages[4].clone()))),
        ("a number beyond the last", 4, PageError::OutOfPlace(9), 44, with(&|pages| pages[4][39] = 9)),
        ("a page of a gigabyte", 4, PageError::TooLarge(0x4000_0000 + 1), 44, {
            with(&|pages| pages[4][..4].copy_from_slice(&[0x40, 0, 0, 1]))
        }),
        ("an oversized page", 3, PageError::TooLarge(MAX_PAGE + 1), 64, with(&|pages| pages[3] = oversized.clone())),
        ("a truncated page", 4, PageError::Truncated, 44, good[..good.len() - 1].to_vec()),
        ("a page left out", 4, PageError::Truncated, 64, with(&|pages| drop(pages.remove(2)))),
    ];
    for (name, place, error, lost, bytes) in rows {
        let (relays, faults) = read(&bytes).unwrap();
        assert_eq!(faults, [PageFault { place, error: error.clone() }], "{name}");
        assert_eq!(relays.len(), 300 - lost, "{name}");
        assert_eq!(AttestationFile::decode(&bytes), Err(FileError::Page(faults[0].clone())), "{name}");
    }
    // A page whose length field is too small also costs the pages after it, but none before it.
    let (relays, faults) = read(&with(&|pages| pages[1][3] ^= 1)).unwrap();
    assert!(relays.starts_with(&(1..=64).collect::<Vec<_>>()) && !faults.is_empty());
}

#[test]
fn malformed_entries_with_a_matching_hash_are_refused() {
    let entry = |staples: &[Staple]| {
        let mut out = vec![u8::try_from(staples.len()).unwrap()];
        staples.iter().for_each(|staple| put(&mut out, &staple.encode(), 2));
        out
    };
    assert_eq!(read(&written(3, &entry(&[staple(3, 1)]))), Ok((vec![3], Vec::new())), "the control");
    let fault = |entries: &[u8]| match read(&written(3, entries)).unwrap() {
        (relays, faults) if relays.is_empty() && faults.len() == 1 => faults[0].error.clone(),
        read => panic!("{read:?}"),
    };
    assert_eq!(fault(&entry(&[staple(3, 1), staple(4, 1)])), PageError::OtherRelay(3));
    let many = vec![staple(3, 1); MAX_PLACES + 1];
    assert_eq!(fault(&entry(&many)), PageError::TooManyStaples { relay_id: 3, count: MAX_PLACES + 1 });
    let code = |entries: &[u8]| {
        let PageError::Malformed(refusal) = fault(entries) else { panic!("it is well-formed, or bad in another way") };
        refusal.code()
    };
    assert_eq!(code(&[]), "truncated");
    assert_eq!(code(&[entry(&[staple(3, 1)]), vec![0]].concat()), "trailing-bytes");
    assert_eq!(code(&[1, 0x10, 1]), "too-large");
    assert_eq!(code(&[1, 0x10, 0]), "truncated");
    assert_eq!(code(&[1, 0, 3, 0, 1, 9]), "not-evidence");
}

#[test]
fn bad_head_makes_the_file_unusable() {
    let bytes = file(70, 256).encode();
    let index = cut_up(&bytes).0.len() - 2 * 32 - 70 * 8;
    let changed = |at: usize, with: &[u8]| {
        let mut bytes = bytes.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        read(&bytes)
    };
    let count = |count: usize| u32::try_from(count).unwrap().to_be_bytes();
    assert_eq!(changed(22, b"2"), Err(FileError::NotEvidence));
    assert_eq!(changed(24, &count(MAX_COMMON + 1)), Err(FileError::TooLarge(MAX_COMMON + 1)));
    assert_eq!(changed(24, &count(MAX_COMMON)), Err(FileError::Truncated));
    assert_eq!(changed(index - 4, &count(MAX_RELAYS + 1)), Err(FileError::TooMany(MAX_RELAYS + 1)));
    assert_eq!(changed(index - 4, &count(MAX_RELAYS)), Err(FileError::Truncated));
    assert_eq!(changed(index, &2_u64.to_be_bytes()), Err(FileError::Unordered), "a relay twice");
    assert!(matches!(changed(28, &[0, 0, 0, 1]), Err(FileError::Common(_))));
    assert_eq!(read(&bytes[..index]), Err(FileError::Truncated));
    assert_eq!(read(&[]), Err(FileError::Truncated));
    // Any other change of the head changes the file's hash, so no page can be used.
    let (relays, faults) = changed(40, &[9]).unwrap();
    assert_eq!((relays.len(), faults.len()), (0, 2));
    assert!(faults.iter().all(|fault| fault.error == PageError::OtherFile));
}

#[test]
fn endless_pages_are_not_read_and_100000_relays_fit() {
    let bytes = file(3, 256).encode();
    let mut endless = bytes.clone();
    endless.resize(1 << 20, 0);
    let (relays, faults) = read(&endless).unwrap();
    assert_eq!((relays, faults.len()), (vec![1, 2, 3], 1));
    let silent = (0..=MAX_RELAYS as u64).collect();
    let most = AttestationFile { silent, ..AttestationFile::default() }.encode();
    assert_eq!(read(&most).unwrap().0.len(), MAX_RELAYS);
    assert!(most.len() <= largest(MAX_RELAYS, 0));
}
