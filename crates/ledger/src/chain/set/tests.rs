//! Sources of records, honest and lying.

use super::file::*;
use super::*;
use crate::record::Role;

fn descriptor(relay_id: u64) -> Vec<u8> {
    let byte = u8::try_from(relay_id % 250).unwrap();
    Descriptor {
        role: if relay_id.is_multiple_of(2) { Role::Ingress } else { Role::Egress },
        key_epoch: 3,
        handshake_key: keccak256(relay_id.to_be_bytes()).0,
        image: keccak256(b"image"),
        key_root: B256::ZERO,
        endpoints: vec![
            format!("{}.{}.{}.1:443", byte % 9 + 1, byte, relay_id / 250 % 250).parse().unwrap(),
            format!("[2a10:{relay_id:x}::1]:443").parse().unwrap(),
        ],
        family: (relay_id.is_multiple_of(3)).then(|| format!("family-{relay_id}")),
    }
    .encode()
    .unwrap()
}

fn registration(relay_id: u64) -> Registration {
    Registration {
        relay_id,
        operator: Address::from_word(keccak256(relay_id.to_le_bytes())),
        advertised_mbit: 1_000,
        bond_class: 2,
        status: Status::Active,
    }
}

fn whole(count: u64) -> Vec<Entry> {
    (1..=count).map(|relay_id| Entry::Whole(registration(relay_id), descriptor(relay_id))).collect()
}

fn root(entries: &[Entry]) -> B256 {
    directory_root(entries.iter().map(|entry| (entry.registration().relay_id, entry.hash())))
}

fn withheld(entry: &Entry) -> Entry {
    match entry {
        Entry::Whole(registration, bytes) => Entry::Withheld(*registration, Descriptor::hash(bytes)),
        Entry::Withheld(..) => entry.clone(),
    }
}

/// Returns a file in which all descriptors are withheld except those that `keep` selects.
fn only(entries: &[Entry], keep: impl Fn(u64) -> bool) -> Vec<u8> {
    let entry = |entry: &Entry| if keep(entry.registration().relay_id) { entry.clone() } else { withheld(entry) };
    write(entries.iter().map(entry).collect()).unwrap()
}

/// Splits a file into its head with the index, and its pages, each with its length.
fn cut_up(file: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let count = u32::from_be_bytes(*file[52..].first_chunk().unwrap()) as usize;
    let (head, mut rest) = file.split_at(56 + 40 * count);
    let mut pages = Vec::new();
    while !rest.is_empty() {
        let length = u32::from_be_bytes(*rest.first_chunk().unwrap()) as usize;
        let (page, tail) = rest.split_at(4 + length);
        pages.push(page.to_vec());
        rest = tail;
    }
    (head.to_vec(), pages)
}

fn put_together(head: &[u8], pages: &[Vec<u8>]) -> Vec<u8> {
    [head, &pages.concat()].concat()
}

#[test]
fn honest_file_gives_the_whole_directory() {
    for count in [0, 1, 2, 63, 64, 65, 128, 300] {
        let entries = whole(count);
        let set = RecordSet::verify(&write(entries.clone()).unwrap(), root(&entries)).unwrap();
        assert_eq!(set.records.len() as u64, count);
        assert!(set.withheld.is_empty() && set.malformed.is_empty());
        assert!(set.records.iter().all(|record| record.registration == registration(record.registration.relay_id)));
    }
}

#[test]
fn records_of_20000_relays_are_read_and_100000_relays_fit() {
    let entries = whole(20_000);
    let file = write(entries.clone()).unwrap();
    assert_eq!(RecordSet::verify(&file, root(&entries)).unwrap().records.len(), 20_000);
    let largest = vec![Entry::Whole(registration(1), vec![0; MAX_PUBLISHED]); PAGE];
    let page = write(largest.into_iter().zip(1..).map(numbered).collect()).unwrap();
    assert_eq!(page.len(), 56 + PAGE * 40 + 4 + MAX_PAGE, "the largest page");
    // The limit admits the largest file, whose pages are no larger than that.
    assert!(MAX_FILE >= 56 + MAX_RELAYS * 40 + MAX_RELAYS.div_ceil(PAGE) * (4 + MAX_PAGE));
}

fn numbered((entry, relay_id): (Entry, u64)) -> Entry {
    match entry {
        Entry::Whole(registration, bytes) => Entry::Whole(Registration { relay_id, ..registration }, bytes),
        Entry::Withheld(registration, hash) => Entry::Withheld(Registration { relay_id, ..registration }, hash),
    }
}

#[test]
fn withheld_descriptor_keeps_its_registration_and_malformed_one_is_not_missing() {
    let mut entries = whole(20);
    entries[11] = Entry::Whole(registration(12), b"nonsense".to_vec());
    entries[12] = Entry::Whole(registration(13), vec![7; MAX_PUBLISHED]);
    let proven = root(&entries);
    let set = RecordSet::verify(&only(&entries, |relay_id| relay_id != 7), proven).unwrap();
    assert_eq!((set.records.len(), set.withheld, set.malformed), (17, vec![registration(7)], vec![12, 13]));
    let set = RecordSet::verify(&write(entries).unwrap(), proven).unwrap();
    assert_eq!((set.records.len(), set.withheld.len(), set.malformed), (18, 0, vec![12, 13]));
}

#[test]
fn false_registration_of_a_withheld_descriptor_is_refused() {
    let entries = whole(3);
    let (file, proven) = (only(&entries, |_| false), root(&entries));
    let (head, _) = cut_up(&file);
    let lighter = Registration { advertised_mbit: 1, ..registration(2) };
    let lie =
        vec![withheld(&entries[0]), Entry::Withheld(lighter, Descriptor::hash(&descriptor(2))), withheld(&entries[2])];
    let (_, mut pages) = cut_up(&write(lie).unwrap());
    pages[0][4..36].copy_from_slice(proven.as_slice());
    let mut assembly = Assembly::new(proven);
    let faults = assembly.add(&put_together(&head, &pages)).unwrap();
    assert_eq!(faults, [PageFault { place: 0, error: PageError::Different(2) }]);
    assert_eq!(assembly.into_set(), Err(SetError::Incomplete(1)));
}

#[test]
fn file_that_does_not_match_the_chain_is_refused() {
    let entries = whole(70);
    let proven = root(&entries);
    // A file with another root, and the same file whose index claims the proven root.
    let refused = |name: &str, entries: Vec<Entry>| {
        let mut file = write(entries).unwrap();
        assert_eq!(RecordSet::verify(&file, proven), Err(SetError::OtherRoot), "{name}");
        file[20..52].copy_from_slice(proven.as_slice());
        assert_eq!(RecordSet::verify(&file, proven), Err(SetError::Different), "{name}");
    };
    let changed = |change: fn(&mut Registration)| {
        let mut entries = entries.clone();
        if let Entry::Whole(registration, _) = &mut entries[4] {
            change(registration);
        }
        entries
    };
    refused("missing", entries[1..].to_vec());
    refused("extra", whole(71));
    refused("another operator", changed(|r| r.operator.0[0] ^= 1));
    refused("another rate", changed(|r| r.advertised_mbit += 1));
    refused("another bond", changed(|r| r.bond_class += 1));
    refused("another status", changed(|r| r.status = Status::Draining));
    refused("another id", changed(|r| r.relay_id = 99));
    let mut swapped = entries.clone();
    swapped[3] = Entry::Whole(registration(4), descriptor(8));
    refused("another relay's descriptor", swapped);
    let mut stale = entries.clone();
    stale[3] = Entry::Withheld(registration(4), Descriptor::hash(b"of an hour ago"));
    refused("a stale hash", stale);
    refused("nothing", Vec::new());
}

#[test]
fn truncated_file_or_flipped_bit_is_refused() {
    let entries = whole(5);
    let (file, proven) = (write(entries.clone()).unwrap(), root(&entries));
    for end in 0..file.len() {
        assert!(RecordSet::verify(&file[..end], proven).is_err());
    }
    for bit in 0..file.len() * 8 {
        let mut flipped = file.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(RecordSet::verify(&flipped, proven).is_err(), "bit {bit}");
    }
    for tail in [&[0][..], &[0; 4], &[0; 40]] {
        assert!(RecordSet::verify(&[&file[..], tail].concat(), proven).is_err());
    }
    assert_eq!(RecordSet::verify(&vec![0; MAX_FILE + 1], proven), Err(SetError::TooLarge(MAX_FILE + 1)));
}

#[test]
fn entries_are_sorted_and_duplicate_relay_is_refused() {
    let entries = whole(3);
    let mut reversed = entries.clone();
    reversed.reverse();
    assert_eq!(write(reversed).unwrap(), write(entries.clone()).unwrap());
    assert_eq!(write([entries.clone(), whole(1)].concat()), None);
    // An index in another order, which no writer produces.
    let mut file = write(entries.clone()).unwrap();
    let (first, second) = (file[56..96].to_vec(), file[96..136].to_vec());
    file[56..136].copy_from_slice(&[second, first].concat());
    assert_eq!(RecordSet::verify(&file, root(&entries)), Err(SetError::Malformed));
}

#[test]
fn bad_page_costs_only_itself_and_another_source_fills_it_in() {
    let entries = whole(300);
    let (good, proven) = (write(entries.clone()).unwrap(), root(&entries));
    let (head, pages) = cut_up(&good);
    let other = cut_up(&write(whole(299)).unwrap()).1;
    let with = |change: &dyn Fn(&mut Vec<Vec<u8>>)| {
        let mut pages = pages.clone();
        change(&mut pages);
        put_together(&head, &pages)
    };
    let relays = |page: usize| PAGE.min(300 - page * PAGE);
    let rows: [(&str, usize, PageError, Vec<u8>); 8] = [
        ("one entry changed", 1, PageError::Different(65), with(&|pages| pages[1][40] ^= 1)),
        ("a page of another root", 0, PageError::OtherRoot, with(&|pages| pages[2] = other[2].clone())),
        ("a page twice", 0, PageError::OutOfPlace(1), with(&|pages| pages[2] = pages[1].clone())),
        ("a number beyond the last", 0, PageError::OutOfPlace(9), with(&|pages| pages[4][39] = 9)),
        ("an unknown status", 0, PageError::Malformed, with(&|pages| pages[3][65] = 9)),
        ("a page of a gigabyte", 0, PageError::Truncated, with(&|pages| pages[4][0] = 0x40)),
        (
            "an oversized page",
            0,
            PageError::TooLarge(MAX_PAGE + 1),
            with(&|pages| {
                let length = u32::try_from(MAX_PAGE + 1).unwrap().to_be_bytes();
                pages[3] = [&length[..], &vec![0; MAX_PAGE + 1]].concat();
            }),
        ),
        ("a truncated page", 0, PageError::Truncated, good[..good.len() - 1].to_vec()),
    ];
    for (name, bad_entries, error, file) in rows {
        let mut assembly = Assembly::new(proven);
        let faults = assembly.add(&file).unwrap();
        assert_eq!(faults.iter().map(|fault| fault.error).collect::<Vec<_>>(), [error], "{name}");
        // One bad entry costs only itself; any other fault costs its page.
        let lost = if bad_entries > 0 { bad_entries } else { relays(faults[0].place) };
        assert_eq!((assembly.missing(), assembly.is_whole()), (Some(lost), false), "{name}");
        assert_eq!(assembly.write(), Err(SetError::Incomplete(lost)), "{name}");
        assert!(RecordSet::verify(&file, proven).is_err(), "{name}");
        assert_eq!(assembly.add(&good), Ok(Vec::new()), "{name}");
        assert!(assembly.is_whole(), "{name}");
        assert_eq!(assembly.write().as_ref(), Ok(&good), "{name}");
        assert_eq!(assembly.into_set().unwrap().records.len(), 300, "{name}");
    }
}

#[test]
fn pages_of_different_sources_make_one_set() {
    let entries = whole(300);
    let (good, proven) = (write(entries.clone()).unwrap(), root(&entries));
    let (head, pages) = cut_up(&good);
    let mut assembly = Assembly::new(proven);
    for (place, page) in pages.iter().enumerate() {
        assert!(!assembly.is_whole());
        let alone = put_together(&head, std::slice::from_ref(page));
        let faults = assembly.add(&alone).unwrap();
        // The file ends before its last page, except for the one file that has that page.
        assert_eq!(faults.len(), usize::from(place + 1 < pages.len()));
    }
    assert_eq!(assembly.write(), Ok(good));
}

#[test]
fn withheld_descriptors_are_filled_in_by_other_sources_and_never_removed() {
    let entries = whole(100);
    let proven = root(&entries);
    let sources = [only(&entries, |id| id % 2 == 0), only(&entries, |id| id % 3 == 0), only(&entries, |id| id > 1)];
    for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
        let mut assembly = Assembly::new(proven);
        let mut before = 100;
        for source in order {
            assert_eq!(assembly.add(&sources[source]), Ok(Vec::new()));
            let missing = assembly.missing().unwrap();
            assert!(missing <= before);
            before = missing;
        }
        assert_eq!(assembly.missing(), Some(1), "nobody has relay 1");
        let set = RecordSet::verify(&assembly.write().unwrap(), proven).unwrap();
        assert_eq!((set.records.len(), set.withheld), (99, vec![registration(1)]));
    }
}

#[test]
fn earlier_descriptors_are_reused_if_the_chain_still_has_their_hash() {
    let older = whole(100);
    let mut entries = older.clone();
    // One relay drains with its descriptor unchanged, one has another descriptor, one is new.
    entries[0] = Entry::Whole(Registration { status: Status::Draining, ..registration(1) }, descriptor(1));
    entries[1] = Entry::Whole(registration(2), descriptor(202));
    entries.push(Entry::Whole(registration(101), descriptor(101)));
    let proven = root(&entries);
    let lying = only(&entries, |_| false);
    let mut assembly = Assembly::new(proven);
    assembly.fill_from(&write(older.clone()).unwrap());
    assert_eq!(assembly.missing(), None, "nothing is proven yet");
    assembly.add(&lying).unwrap();
    assembly.fill_from(&write(older.clone()).unwrap());
    assembly.fill_from(b"nonsense");
    let set = assembly.into_set().unwrap();
    let missing: Vec<u64> = set.withheld.iter().map(|registration| registration.relay_id).collect();
    assert_eq!((set.records.len(), missing), (99, vec![2, 101]));
    assert_eq!(set.records[0].registration.status, Status::Draining, "the registry's status is newer");
    // A page that no source provides is rebuilt from earlier entries if none of them changed.
    let mut assembly = Assembly::new(root(&older));
    assembly.add(&cut_up(&write(older.clone()).unwrap()).0).unwrap();
    assert_eq!(assembly.write(), Err(SetError::Incomplete(100)));
    assembly.fill_from(&write(older.clone()).unwrap());
    assert_eq!(assembly.write(), Ok(write(older).unwrap()));
}

#[test]
fn number_of_relays_and_of_pages_is_bounded() {
    let entries = whole(3);
    let mut file = write(entries.clone()).unwrap();
    file[52..56].copy_from_slice(&u32::try_from(MAX_RELAYS + 1).unwrap().to_be_bytes());
    assert_eq!(RecordSet::verify(&file, root(&entries)), Err(SetError::TooMany(MAX_RELAYS + 1)));
    // As many as are allowed are too few bytes here.
    file[52..56].copy_from_slice(&u32::try_from(MAX_RELAYS).unwrap().to_be_bytes());
    assert_eq!(RecordSet::verify(&file, root(&entries)), Err(SetError::Malformed));
    // Endless empty pages do not produce an endless list of faults.
    let mut endless = write(entries.clone()).unwrap();
    endless.resize(1 << 20, 0);
    let mut assembly = Assembly::new(root(&entries));
    assert_eq!(assembly.add(&endless).unwrap().len(), 1);
    assert!(assembly.is_whole());
}

#[test]
fn file_of_the_largest_network_has_the_largest_size_and_is_accepted() {
    // Descriptors of the largest size that the registry accepts, none of which is well-formed.
    let entries = |count: u64| -> Vec<Entry> {
        (1..=count).map(|relay_id| Entry::Whole(registration(relay_id), vec![0xff; MAX_PUBLISHED])).collect()
    };
    let all = entries(MAX_RELAYS as u64);
    let file = write(all.clone()).unwrap();
    // The limit counts the last page as full; 32 entries of 285 bytes are missing there.
    assert_eq!(file.len(), MAX_FILE - 32 * 285);
    let set = RecordSet::verify(&file, root(&all)).unwrap();
    assert_eq!((set.records.len(), set.malformed.len()), (0, MAX_RELAYS));
    assert_eq!(write(entries(MAX_RELAYS as u64 + 1)), None);
}

#[test]
fn descriptor_larger_than_the_registry_accepts_is_written_as_withheld() {
    let entries = [vec![0; MAX_PUBLISHED], vec![0; MAX_PUBLISHED + 1]];
    let entries: Vec<Entry> =
        (1..).zip(entries).map(|(relay_id, bytes)| Entry::Whole(registration(relay_id), bytes)).collect();
    let set = RecordSet::verify(&write(entries.clone()).unwrap(), root(&entries)).unwrap();
    assert_eq!((set.malformed, set.withheld.len()), (vec![1], 1));
}

#[test]
fn later_file_with_another_index_under_the_same_root_is_refused() {
    let entries = whole(3);
    let mut assembly = Assembly::new(root(&entries));
    let file = write(entries.clone()).unwrap();
    assembly.add(&file).unwrap();
    let mut other = write(entries[..2].to_vec()).unwrap();
    other[20..52].copy_from_slice(root(&entries).as_slice());
    assert_eq!(assembly.add(&other), Err(SetError::Different));
    assert_eq!(assembly.add(&file), Ok(Vec::new()));
}

#[test]
fn relay_is_active_with_its_bond_and_its_status_alone() {
    let with = |status, bond_class| Registration { status, bond_class, ..registration(1) }.is_active();
    assert!(with(Status::Active, 1) && with(Status::Active, 2));
    assert!(!with(Status::Active, 0));
    assert!(![Status::Draining, Status::Unbonding].into_iter().any(|status| with(status, 2)));
}
