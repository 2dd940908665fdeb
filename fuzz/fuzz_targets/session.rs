//! Frames from an authenticated peer: a relay and a client receive frames of every kind with any body, before and
//! after admission. Nothing panics, and a relay counts every datagram once.
#![no_main]
use libfuzzer_sys::fuzz_target;
use openrelay_proto::handshake::Role;
use openrelay_proto::wire::MAX_MTU;
use openrelay_sim::peer::{AtClient, AtRelay};

fuzz_target!(|data: &[u8]| {
    let Some((&choice, mut rest)) = data.split_first() else { return };
    let admitted = choice & 1 != 0;
    // Both are created for each input, so that an input that breaks one is reproducible.
    let mut relay = AtRelay::new(if choice & 2 != 0 { Role::Ingress } else { Role::Egress }, admitted);
    let mut client = AtClient::new(admitted);
    let (mut relay_over, mut client_over) = (false, false);
    // Frames: length 2, kind and body.
    while let Some((length, more)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length)) % usize::from(MAX_MTU);
        let (frame, more) = more.split_at(length.min(more.len()));
        rest = more;
        if !relay_over {
            relay.say(frame);
            relay_over = relay.is_over();
        }
        if !client_over {
            client.say(frame);
            client_over = client.is_over();
        }
    }
});
