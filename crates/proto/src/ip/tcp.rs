//! TCP's maximum segment size, kept below what the tunnel carries.
//!
//! Owns the clamping of the MSS option in SYN segments. Never changes any other option.
//!
//! Source: RFC 9293 §3.7.1, RFC 4459 §3.2.

use super::checksum::{adjust, read, write};
use super::{Packet, TCP};

const SYN: u8 = 0x02;

/// Lowers the MSS option of a SYN in `bytes` to what fits `mtu`. A `partial` checksum does not cover the option yet,
/// so it stays unchanged.
pub fn clamp_mss(packet: &Packet, bytes: &mut [u8], mtu: u16, partial: bool) {
    if packet.protocol != TCP || !packet.has_transport || packet.fragment {
        return;
    }
    if bytes.get(packet.transport + 13).is_none_or(|flags| flags & SYN == 0) {
        return;
    }
    let most = mtu.saturating_sub(if packet.is_v6() { 60 } else { 40 });
    let end = packet.transport + packet.transport_header_len(bytes);
    let mut at = packet.transport + 20;
    while at < end {
        let (Some(&kind), len) = (bytes.get(at), bytes.get(at + 1).copied().unwrap_or(0)) else { return };
        match (kind, len) {
            (0, _) => return,
            (1, _) => at += 1,
            (2, 4) if at + 4 <= end => {
                let old = read(bytes, at + 2);
                if old > most {
                    write(bytes, at + 2, most);
                    if !partial {
                        adjust_at(packet, bytes, at + 2, old, most);
                    }
                }
                return;
            }
            (_, 0 | 1) => return,
            _ => at += usize::from(len),
        }
    }
}

/// Updates the checksum after the 16-bit field at `at` became `new`. A field at an odd offset counts byte-swapped.
fn adjust_at(packet: &Packet, bytes: &mut [u8], at: usize, old: u16, new: u16) {
    let (old, new) =
        if (at - packet.transport).is_multiple_of(2) { (old, new) } else { (old.swap_bytes(), new.swap_bytes()) };
    let check_at = packet.transport + 16;
    write(bytes, check_at, adjust(read(bytes, check_at), &old.to_be_bytes(), &new.to_be_bytes()));
}
