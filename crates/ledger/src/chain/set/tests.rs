//! Mirrors, honest and not.

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

fn hash(entry: &Entry) -> (u64, B256) {
    match entry {
        Entry::Whole(registration, bytes) => {
            (registration.relay_id, record_hash(registration, Descriptor::hash(bytes)))
        }
        Entry::Withheld(relay_id, hash) => (*relay_id, *hash),
    }
}

fn root(entries: &[Entry]) -> B256 {
    directory_root(entries.iter().map(hash))
}

#[test]
fn an_honest_mirror_gives_the_whole_directory() {
    for count in [0, 1, 2, 17, 300] {
        let entries = whole(count);
        let set = RecordSet::verify(&write(entries.clone()).unwrap(), root(&entries)).unwrap();
        assert_eq!(set.records.len() as u64, count);
        assert!(set.withheld.is_empty() && set.malformed.is_empty());
        assert!(set.records.iter().all(|record| record.registration == registration(record.registration.relay_id)));
    }
}

#[test]
fn three_thousand_relays_fit_a_file() {
    let entries = whole(3_000);
    let file = write(entries.clone()).unwrap();
    assert!(file.len() <= MAX_FILE, "{} bytes", file.len());
    assert_eq!(RecordSet::verify(&file, root(&entries)).unwrap().records.len(), 3_000);
}

#[test]
fn a_withheld_or_malformed_descriptor_costs_only_its_own_relay() {
    let mut entries = whole(20);
    let (relay_id, hidden) = hash(&entries[6]);
    let nonsense = Entry::Whole(registration(12), b"nonsense".to_vec());
    entries[11] = nonsense;
    let proven = root(&entries);
    entries[6] = Entry::Withheld(relay_id, hidden);
    let set = RecordSet::verify(&write(entries).unwrap(), proven).unwrap();
    assert_eq!((set.records.len(), set.withheld, set.malformed), (18, vec![7], vec![12]));
}

#[test]
fn whatever_is_not_the_chains_costs_the_mirror_its_file() {
    let entries = whole(20);
    let proven = root(&entries);
    let refused = |name: &str, entries: Vec<Entry>| {
        assert_eq!(RecordSet::verify(&write(entries).unwrap(), proven), Err(SetError::Different), "{name}");
    };
    let changed = |change: fn(&mut Registration)| {
        let mut entries = entries.clone();
        if let Entry::Whole(registration, _) = &mut entries[4] {
            change(registration);
        }
        entries
    };
    refused("missing", entries[1..].to_vec());
    refused("extra", whole(21));
    refused("another operator", changed(|r| r.operator.0[0] ^= 1));
    refused("another rate", changed(|r| r.advertised_mbit += 1));
    refused("another bond", changed(|r| r.bond_class += 1));
    refused("another status", changed(|r| r.status = Status::Draining));
    refused("another id", changed(|r| r.relay_id = 99));
    let mut swapped = entries.clone();
    swapped[3] = Entry::Whole(registration(4), descriptor(8));
    refused("somebody else's descriptor", swapped);
    let mut stale = entries.clone();
    stale[3] = Entry::Withheld(4, record_hash(&registration(4), Descriptor::hash(b"of an hour ago")));
    refused("a stale hash", stale);
    refused("nothing", Vec::new());
}

#[test]
fn no_truncation_and_no_flipped_bit_passes() {
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
    assert_eq!(RecordSet::verify(&[&file[..], &[0]].concat(), proven), Err(SetError::Malformed));
    assert_eq!(RecordSet::verify(&vec![0; MAX_FILE + 1], proven), Err(SetError::TooLarge(MAX_FILE + 1)));
}

#[test]
fn order_is_the_formats_and_no_relay_is_there_twice() {
    let entries = whole(3);
    let proven = root(&entries);
    let mut reversed = entries.clone();
    reversed.reverse();
    assert_eq!(write(reversed).unwrap(), write(entries.clone()).unwrap());
    assert_eq!(write([entries.clone(), whole(1)].concat()), None);
    // By hand: the same records in another order, which no writer makes.
    let one = |entry: &Entry| write(vec![entry.clone()]).unwrap()[HEAD.len() + 4..].to_vec();
    let file = [HEAD, &3u32.to_be_bytes(), &one(&entries[1]), &one(&entries[0]), &one(&entries[2])].concat();
    assert_eq!(RecordSet::verify(&file, proven), Err(SetError::Malformed));
}
