//! Directory files: unsigned input is always refused, and signed bodies of any content never panic.
#![no_main]
use libfuzzer_sys::fuzz_target;
use openrelay_ledger::directory::{Body, Directory, DirectoryKey};
use openrelay_ledger::hex;
use openrelay_ledger::record::{Record, Role};

fuzz_target!(|data: &[u8]| {
    let key = DirectoryKey::from_seed([7; 32]).expect("a seed");
    assert!(Directory::verify(data, &key.public(), 1, 0).is_err(), "the input is unsigned");
    if let Ok(body) = Body::from_json(data)
        && let Ok(file) = key.sign(&body)
    {
        let _ = Directory::verify(&file, &key.public(), 1, 0);
    }
    // Structured input: records made of these bytes. A body that may be signed reads back unchanged.
    let body = structured(data);
    if let Ok(file) = key.sign(&body)
        && let Ok(read) = Directory::verify(&file, &key.public(), 1_000, 0)
    {
        assert_eq!(read.body(), &body);
    }
});

fn structured(data: &[u8]) -> Body {
    let relays = data.chunks_exact(16).map(|chunk| {
        let [id, role, key, epoch, a, b, c, d, p, q, v6, family, stake, mbit, name, rest] = *chunk else {
            unreachable!("16 bytes")
        };
        let port = u16::from_be_bytes([p, q]);
        let v4 = ([a, b, c, d], port).into();
        let both = [v4, ([0x2a, 0x00 | u16::from(v6), 0, 0, 0, 0, 0, 1], port).into()];
        Record {
            relay_id: id.into(),
            role: if role & 1 == 0 { Role::Ingress } else { Role::Egress },
            handshake_key: hex::encode(&[key; 32]),
            key_epoch: epoch.into(),
            endpoints: both[..1 + usize::from(v6 & 1)].to_vec(),
            operator: char::from(name).to_string(),
            family: (family & 1 == 1).then(|| char::from(rest).to_string()),
            stake: stake.into(),
            bandwidth_mbit: mbit.into(),
        }
    });
    Body {
        network: "fuzz".into(),
        sequence: 1,
        issued: 1_000,
        expires: 2_000,
        single_operator: false,
        relays: relays.collect(),
    }
}
