//! How many fragments of incomplete packets one client may leave in the kernel.
//!
//! Owns the limit for one client. The kernel joins fragments before its firewall sees them. It holds those of an
//! incomplete packet for 30 s, of all clients together in 4 MiB. A packet whose fragments arrive in order and without
//! gaps is complete, and costs nothing in the end.
//!
//! Source: RFC 791 §3.1, RFC 8200 §4.5; Linux `ipfrag_time`, `ipfrag_high_thresh`.

use std::net::IpAddr;

use openrelay_proto::ip::Packet;
use openrelay_proto::time::Time;

use super::rate::{Bucket, Rate};

/// Fragments of incomplete packets: per second, and at once. In 30 s, one client leaves at most some 500 in the kernel.
const INCOMPLETE: Rate = Rate { per_second: 8, burst: 256 };

/// What tells packets apart whose fragments the kernel joins.
type Whole = (IpAddr, u8, [u8; 4]);

/// The limit of one client.
#[derive(Clone, Copy, Default)]
pub(super) struct Fragments {
    bucket: Bucket,
    /// The packet whose fragments have arrived in order so far, with the next offset in bytes.
    arriving: Option<(Whole, usize)>,
    spent: u32,
}

impl Fragments {
    /// Returns whether the kernel may get this fragment.
    pub(super) fn admit(&mut self, packet: &Packet, bytes: &[u8], now: Time) -> bool {
        if !self.bucket.take(&INCOMPLETE, now) {
            self.arriving = None;
            return false;
        }
        let Some((id, offset, end, more)) = place_of(packet, bytes) else { return true };
        let whole = (packet.destination, packet.protocol, id);
        if offset == 0 {
            self.spent = 0;
        } else if self.arriving != Some((whole, offset)) {
            self.arriving = None;
            return true;
        }
        self.spent += 1;
        self.arriving = more.then_some((whole, end));
        if !more {
            self.bucket.give_back(&INCOMPLETE, self.spent);
        }
        true
    }
}

/// Next-header value of an IPv6 fragment header. Source: RFC 8200 §4.5.
const FRAGMENT: u8 = 44;

/// Returns identification, offset and end in bytes of a fragment, and whether more follow.
fn place_of(packet: &Packet, bytes: &[u8]) -> Option<([u8; 4], usize, usize, bool)> {
    let (id, field, unit, more) = if packet.is_v6() {
        // The fragment header must be the only one. Behind it, other headers would be taken for it, and could say that
        // nothing follows.
        if bytes.get(6) != Some(&FRAGMENT) || packet.transport != 48 {
            return None;
        }
        let header = bytes.get(packet.transport.checked_sub(8)?..packet.transport)?.first_chunk::<8>()?;
        let [_, _, high, low, id @ ..] = *header;
        let field = u16::from_be_bytes([high, low]);
        (id, field & 0xfff8, 1, field & 1 != 0)
    } else {
        let [a, b, high, low] = *bytes.get(4..)?.first_chunk::<4>()?;
        let field = u16::from_be_bytes([high, low]);
        ([0, 0, a, b], field & 0x1fff, 8, field & 0x2000 != 0)
    };
    let offset = usize::from(field) * unit;
    Some((id, offset, offset + packet.len - packet.transport, more))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
    use super::*;

    fn fragment(v6: bool, id: u8, offset: u16, payload: usize, more: bool) -> Vec<u8> {
        let mut bytes = if v6 {
            let length = u16::try_from(8 + payload).unwrap().to_be_bytes();
            let mut head = vec![0x60, 0, 0, 0, length[0], length[1], 44, 64];
            head.extend_from_slice(&[0x2a; 32]);
            let field = ((offset * 8) | u16::from(more)).to_be_bytes();
            head.extend_from_slice(&[17, 0, field[0], field[1], 0, 0, 0, id]);
            head
        } else {
            let length = u16::try_from(20 + payload).unwrap().to_be_bytes();
            let field = (offset | if more { 0x2000 } else { 0 }).to_be_bytes();
            vec![0x45, 0, length[0], length[1], 0, id, field[0], field[1], 64, 17, 0, 0, 100, 64, 1, 0, 93, 184, 215, 2]
        };
        let payload_at = bytes.len();
        bytes.resize(payload_at + payload, 0);
        if offset == 0 {
            bytes[payload_at + 5] = 60;
        }
        bytes
    }

    fn admitted(fragments: &mut Fragments, bytes: &[u8]) -> bool {
        fragments.admit(&Packet::parse(bytes).unwrap(), bytes, Time::from_micros(0))
    }

    #[test]
    fn complete_packets_in_order_cost_nothing() {
        for v6 in [false, true] {
            let mut limit = Fragments::default();
            for id in 0..200 {
                for (offset, more) in [(0, true), (10, true), (20, false)] {
                    assert!(admitted(&mut limit, &fragment(v6, id, offset, 80, more)), "{v6} {id} {offset}");
                }
            }
        }
    }

    #[test]
    fn packets_with_a_gap_or_an_overlap_or_parts_of_two_use_up_the_limit() {
        let sequences: [&[(u8, u16, bool)]; 4] = [
            &[(1, 0, true)],
            &[(1, 0, true), (1, 20, false)],
            &[(1, 0, true), (1, 0, true), (1, 5, true), (1, 20, false)],
            &[(1, 0, true), (2, 10, false)],
        ];
        for (number, sequence) in sequences.into_iter().enumerate() {
            for v6 in [false, true] {
                let mut limit = Fragments::default();
                let count = (0..1_000)
                    .flat_map(|_| sequence)
                    .filter(|(id, offset, more)| admitted(&mut limit, &fragment(v6, *id, *offset, 80, *more)))
                    .count();
                assert_eq!(count, 256, "sequence {number}, {v6}");
            }
        }
    }

    #[test]
    fn options_behind_the_fragment_header_do_not_hide_that_more_follows() {
        let mut bytes = fragment(true, 1, 0, 88, true);
        // Destination options that look like a fragment header without more fragments: Pad1, Pad1, PadN.
        bytes[40] = 60;
        bytes[48..56].copy_from_slice(&[17, 0, 0, 0, 1, 2, 0, 0]);
        bytes[61] = 80;
        let mut limit = Fragments::default();
        let count = (0..1_000u16)
            .filter(|id| {
                bytes[44..46].copy_from_slice(&id.to_be_bytes());
                admitted(&mut limit, &bytes)
            })
            .count();
        assert_eq!(count, 256);
    }
}
