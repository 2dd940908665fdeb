//! What mirrors and endpoints serve of a chain: nothing panics, whatever reads is written back the same, and no change of a genuine file passes.
#![no_main]
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use openrelay_ledger::chain::descriptor::Descriptor;
use openrelay_ledger::chain::header::Header;
use openrelay_ledger::chain::set::{Entry, RecordSet, Registration, Status, directory_root, record_hash, write};

/// A genuine file with three records, and its root.
static GENUINE: LazyLock<(Vec<u8>, [u8; 32])> = LazyLock::new(|| {
    let entry = |relay_id: u64| {
        let mut bytes = vec![1, 2, 0, 0, 0, 1];
        bytes.extend([7; 96]);
        bytes.extend([1, 0, 4, 192, 0, 2, relay_id as u8, 1, 187]);
        let registration = Registration {
            relay_id,
            operator: [relay_id as u8; 20].into(),
            advertised_mbit: 100,
            bond_class: 1,
            status: Status::Active,
        };
        Descriptor::decode(&bytes).expect("a good descriptor");
        (registration, bytes)
    };
    let entries: Vec<_> = (1..=3).map(entry).collect();
    let root = directory_root(entries.iter().map(|(r, bytes)| (r.relay_id, record_hash(r, Descriptor::hash(bytes)))));
    let file = write(entries.into_iter().map(|(r, bytes)| Entry::Whole(r, bytes)).collect()).expect("a good file");
    (file, root.0)
});

fuzz_target!(|data: &[u8]| {
    let _ = Header::decode(data);
    if let Ok(descriptor) = Descriptor::decode(data) {
        assert_eq!(descriptor.encode().expect("what reads is written"), data);
    }
    let (file, root) = &*GENUINE;
    assert!(RecordSet::verify(file, (*root).into()).is_ok());
    if data != file {
        assert!(RecordSet::verify(data, (*root).into()).is_err());
    }
    // The structured twin: a genuine file with some bytes changed.
    let mut changed = file.clone();
    for triple in data.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([triple[0], triple[1]]));
        if let Some(byte) = changed.get_mut(at) {
            *byte ^= triple[2];
        }
    }
    assert_eq!(RecordSet::verify(&changed, (*root).into()).is_ok(), changed == *file);
});
