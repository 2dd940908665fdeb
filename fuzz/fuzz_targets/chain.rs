//! Files of a chain from mirrors and endpoints: nothing panics, accepted input re-encodes to the same bytes, and
//! every changed genuine file is refused.
#![no_main]
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use openrelay_ledger::chain::checkpoint::{Checkpoint, CheckpointFile, Signed, Signers};
use openrelay_ledger::chain::descriptor::Descriptor;
use openrelay_ledger::chain::header::Header;
use openrelay_ledger::chain::set::{
    Assembly, ChainRecord, Entry, RecordSet, Registration, Status, directory_root, record_hash, write,
};
use openrelay_ledger::directory::DirectoryKey;

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
        Descriptor::decode(&bytes).expect("a valid descriptor");
        (registration, bytes)
    };
    let entries: Vec<_> = (1..=3).map(entry).collect();
    let root = directory_root(entries.iter().map(|(r, bytes)| (r.relay_id, record_hash(r, Descriptor::hash(bytes)))));
    let file = write(entries.into_iter().map(|(r, bytes)| Entry::Whole(r, bytes)).collect()).expect("a valid file");
    (file, root.0)
});

/// The same records without descriptors.
static WITHHELD: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let (file, root) = &*GENUINE;
    let set = RecordSet::verify(file, (*root).into()).expect("a valid file");
    let entry = |record: &ChainRecord| {
        let bytes = record.descriptor.encode().expect("a valid descriptor");
        Entry::Withheld(record.registration, Descriptor::hash(&bytes))
    };
    write(set.records.iter().map(entry).collect()).expect("a valid file")
});

/// A genuine checkpoint, and the signers that it must have.
static SIGNED: LazyLock<(Vec<u8>, Signers)> = LazyLock::new(|| {
    let key = DirectoryKey::from_seed([5; 32]).expect("a valid key");
    let mut signed = Signed::new(Checkpoint { chain_id: 1, number: 2, hash: [3; 32].into(), timestamp: 4 });
    signed.sign(0, &key);
    (signed.encode(), Signers { keys: vec![key.public()], quorum: 1 })
});

/// Returns `file` with some bytes changed: each three bytes of `data` give an offset (two bytes) and a mask.
fn changed(file: &[u8], data: &[u8]) -> Vec<u8> {
    let mut changed = file.to_vec();
    for triple in data.chunks_exact(3) {
        let at = usize::from(u16::from_be_bytes([triple[0], triple[1]]));
        if let Some(byte) = changed.get_mut(at) {
            *byte ^= triple[2];
        }
    }
    changed
}

fuzz_target!(|data: &[u8]| {
    let _ = Header::decode(data);
    if let Ok(signed) = Signed::decode(data) {
        assert_eq!(signed.encode(), data);
    }
    if let Ok(file) = CheckpointFile::decode(data) {
        assert_eq!(file.encode().expect("accepted input can be encoded"), data);
    }
    let (genuine, signers) = &*SIGNED;
    let twin = changed(genuine, data);
    let verified = Signed::decode(&twin).and_then(|signed| signed.verify(signers, 1));
    assert_eq!(verified.is_ok(), twin == *genuine);
    if let Ok(descriptor) = Descriptor::decode(data) {
        assert_eq!(descriptor.encode().expect("accepted input can be encoded"), data);
    }
    let (file, root) = &*GENUINE;
    assert!(RecordSet::verify(file, (*root).into()).is_ok());
    if data != file {
        assert!(RecordSet::verify(data, (*root).into()).is_err());
    }
    // Structured input: a genuine file with some bytes changed.
    let twin = changed(file, data);
    assert_eq!(RecordSet::verify(&twin, (*root).into()).is_ok(), twin == *file);
    // Whatever other sources serve, the assembled file matches the chain.
    let mut assembly = Assembly::new((*root).into());
    assembly.add(WITHHELD.as_slice()).expect("a valid index");
    for other in [data, &twin] {
        let _ = assembly.add(other);
        assembly.fill_from(other);
    }
    let together = assembly.write().expect("every registration is known");
    assert!(RecordSet::verify(&together, (*root).into()).is_ok());
});
