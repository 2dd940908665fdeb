//! Control messages: whatever reads is written back the same.
#![no_main]
use libfuzzer_sys::fuzz_target;
use openrelay_proto::handshake::{REKEY_LEN, REKEYED_LEN};
use openrelay_proto::message::Message;

fuzz_target!(|data: &[u8]| {
    let Some((kind, body)) = data.split_first_chunk::<2>() else { return };
    let kind = u16::from_be_bytes(*kind);
    if let Ok(message) = Message::decode(kind, body) {
        assert_eq!(message.encode(), (kind, body.to_vec()));
    }
    // The structured twin: a body of the length that the kind has. All but a refusal's reason reads, whatever its bytes are.
    let kind = kind % 0x24;
    let length = match kind {
        0x10 => 12,
        0x11 => 8,
        0x13 => 4,
        0x20 => REKEY_LEN,
        0x21 => REKEYED_LEN,
        _ => return,
    };
    let body: Vec<u8> = body.iter().copied().chain(std::iter::repeat(0)).take(length).collect();
    let message = Message::decode(kind, &body).expect("a body of the right length");
    assert_eq!(message.encode(), (kind, body));
});
