//! What a client pays for a directory of three thousand relays: the goal is 50 ms.
#![allow(clippy::unwrap_used, missing_docs, reason = "a benchmark that cannot go on must stop")]

use alloy_primitives::{Address, B256, keccak256};
use divan::{Bencher, black_box};
use openrelay_ledger::chain::descriptor::Descriptor;
use openrelay_ledger::chain::set::{Entry, RecordSet, Registration, Status, directory_root, record_hash, write};
use openrelay_ledger::record::Role;

const RELAYS: u64 = 3_000;

fn main() {
    divan::main();
}

fn directory() -> (Vec<u8>, B256) {
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
    let entries: Vec<_> = (1..=RELAYS).map(entry).collect();
    let hashes = entries.iter().map(|(r, bytes)| (r.relay_id, record_hash(r, Descriptor::hash(bytes))));
    let root = directory_root(hashes);
    (write(entries.into_iter().map(|(r, bytes)| Entry::Whole(r, bytes)).collect()).unwrap(), root)
}

#[divan::bench]
fn verify_three_thousand_relays(bencher: Bencher<'_, '_>) {
    let (file, root) = directory();
    bencher.bench_local(|| RecordSet::verify(black_box(&file), root).unwrap());
}
