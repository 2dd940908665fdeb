//! CPU time that a client takes to read the records of all relays. Goals: 50 ms for 3,000 relays, 1 s for 20,000.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that cannot go on must stop")]

use alloy_primitives::{Address, B256, keccak256};
use divan::{Bencher, black_box};
use openrelay_ledger::chain::descriptor::Descriptor;
use openrelay_ledger::chain::set::{
    Assembly, Entry, RecordSet, Registration, Status, directory_root, record_hash, write,
};
use openrelay_ledger::record::Role;

fn main() {
    divan::main();
}

fn directory(relays: u64) -> (Vec<u8>, B256) {
    let entry = |relay_id: u64| {
        let descriptor = Descriptor {
            role: Role::Egress,
            key_epoch: 1,
            handshake_key: keccak256(relay_id.to_be_bytes()).0,
            image: keccak256(b"image"),
            key_root: B256::ZERO,
            endpoints: vec!["192.0.2.1:443".parse().unwrap(), "[2a10::1]:443".parse().unwrap()],
            family: Some(format!("family-{relay_id}")),
        };
        let operator = Address::from_word(keccak256(relay_id.to_le_bytes()));
        let registration =
            Registration { relay_id, operator, advertised_mbit: 1_000, bond_class: 1, status: Status::Active };
        (registration, descriptor.encode().unwrap())
    };
    let entries: Vec<_> = (1..=relays).map(entry).collect();
    let hashes = entries.iter().map(|(r, bytes)| (r.relay_id, record_hash(r, Descriptor::hash(bytes))));
    let root = directory_root(hashes);
    (write(entries.into_iter().map(|(r, bytes)| Entry::Whole(r, bytes)).collect()).unwrap(), root)
}

#[divan::bench(args = [3_000, 20_000, 100_000])]
fn verify_one_file(bencher: Bencher<'_, '_>, relays: u64) {
    let (file, root) = directory(relays);
    bencher.bench_local(|| RecordSet::verify(black_box(&file), root).unwrap());
}

/// Everything that a client does with records: an earlier reading, the files of two sources, and the check of the file
/// that is kept.
#[divan::bench(args = [3_000, 20_000, 100_000])]
fn read_from_two_sources(bencher: Bencher<'_, '_>, relays: u64) {
    let (file, root) = directory(relays);
    bencher.bench_local(|| {
        let mut assembly = Assembly::new(root);
        assembly.add(black_box(&file)).unwrap();
        assembly.fill_from(black_box(&file));
        assembly.add(black_box(&file)).unwrap();
        RecordSet::verify(&assembly.write().unwrap(), root).unwrap()
    });
}
