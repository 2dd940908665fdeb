//! Control messages: accepted input re-encodes to the same bytes.
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
    // Structured input: a body of the length that its kind has. Any content is accepted, except in a refusal's reason.
    let kind = kind % 0x34;
    let length = match kind {
        0x10 => 12,
        0x11 => 8,
        0x13 => 4,
        0x20 => REKEY_LEN,
        0x21 => REKEYED_LEN,
        0x30 => 5,
        // A mirror piece: a whole file of three bytes.
        0x31 => {
            let piece = [&[1][..], &[0; 8], &3u32.to_be_bytes(), &0u32.to_be_bytes(), b"abc"].concat();
            let message = Message::decode(kind, &piece).expect("a piece");
            return assert_eq!(message.encode(), (kind, piece));
        }
        _ => return,
    };
    let mut body: Vec<u8> = body.iter().copied().chain(std::iter::repeat(0)).take(length).collect();
    if kind == 0x30 {
        body[0] = 1 + body[0] % 2;
    }
    let message = Message::decode(kind, &body).expect("a body of the right length");
    assert_eq!(message.encode(), (kind, body));
});
