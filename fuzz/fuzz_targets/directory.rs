//! Directory files: unsigned ones never read, and signed bodies of any content do not panic.
#![no_main]
use libfuzzer_sys::fuzz_target;
use openrelay_ledger::directory::{Body, Directory, DirectoryKey};

fuzz_target!(|data: &[u8]| {
    let key = DirectoryKey::from_seed([7; 32]).expect("a seed");
    assert!(Directory::verify(data, &key.public(), 1, 0).is_err(), "nobody signed this");
    if let Ok(body) = serde_json_body(data)
        && let Ok(file) = key.sign(&body)
    {
        let _ = Directory::verify(&file, &key.public(), 1, 0);
    }
});

fn serde_json_body(data: &[u8]) -> Result<Body, ()> {
    Body::from_json(data).map_err(|_| ())
}
