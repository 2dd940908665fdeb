//! Control messages: whatever reads is written back the same.
#![no_main]
use libfuzzer_sys::fuzz_target;
use openrelay_proto::message::Message;

fuzz_target!(|data: &[u8]| {
    let Some((kind, body)) = data.split_first_chunk::<2>() else { return };
    let kind = u16::from_be_bytes(*kind);
    if let Ok(message) = Message::decode(kind, body) {
        assert_eq!(message.encode(), (kind, body.to_vec()));
    }
});
