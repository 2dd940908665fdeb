//! Cookies: how a relay under load makes a sender prove its address.
//!
//! Owns the steps that both ends share: the packet with the cookie, how it is read, the proof at the end of a first
//! packet, and the refusal of a sender with a proof. `relay::gate` makes cookies and decides when one is required.
//! Keeps no state.
//!
//! Source of the idea: DTLS (RFC 6347 §4.2.1) and WireGuard §5.4.7.

use std::time::Duration;

use zeroize::Zeroizing;

use crate::handshake::split_proof;
use crate::keys::{RelayKey, hmac_sha256, sha256};
use crate::random::Random;
use crate::suite::PacketKey;
use crate::wire::{COOKIE_LEN, COOKIE_PACKET_LEN, HEADER_LEN, PROOF_LEN, PacketType, Suite, take};

/// Returns the proof that the holder of `cookie` puts after the first packet `body`.
pub(crate) fn proof(cookie: &[u8; COOKIE_LEN], body: &[u8]) -> [u8; PROOF_LEN] {
    let full = hmac_sha256(cookie, &[body]);
    let mut short = [0; PROOF_LEN];
    short.copy_from_slice(&full[..PROOF_LEN]);
    short
}

/// Puts the proof of `cookie` at the end of an unmasked first packet, replacing an earlier proof.
pub(crate) fn prove(packet: &mut Vec<u8>, cookie: &[u8; COOKIE_LEN]) {
    if let Some((body, _)) = split_proof(packet) {
        let (length, proof) = (body.len(), proof(cookie, body));
        packet.truncate(length);
        packet.extend_from_slice(&proof);
    }
}

/// Derives the key of the answer to a first packet; only a party that saw the packet can open the answer.
fn key(relay: &RelayKey, first: &[u8]) -> PacketKey {
    let ephemeral: [u8; 32] = take(first, HEADER_LEN).unwrap_or([0; 32]);
    let key = Zeroizing::new(sha256(&[b"ORP/1 cookie", relay.as_bytes(), &ephemeral]));
    PacketKey::new(Suite::Aes256Gcm, &key)
}

/// Returns the first packet with the proof that `answer`, an unmasked cookie packet, lets its sender make; `None` when
/// it is something else. For simulations of clients.
pub fn with_proof(first: &[u8], answer: &mut [u8], relay: &RelayKey) -> Option<Vec<u8>> {
    let cookie = read(answer, first, relay)?;
    let mut packet = first.to_vec();
    prove(&mut packet, &cookie);
    Some(packet)
}

/// Builds the packet that makes the sender of `first` use `cookie`, as anyone who sees the first packet can. For
/// simulations of attacks.
pub fn forge(first: &[u8], cookie: &[u8; COOKIE_LEN], relay: &RelayKey, random: &mut dyn Random) -> Vec<u8> {
    packet(first, cookie, relay, random)
}

/// Builds the packet that gives `cookie` to the sender of `first`, not masked yet.
pub(crate) fn packet(first: &[u8], cookie: &[u8; COOKIE_LEN], relay: &RelayKey, random: &mut dyn Random) -> Vec<u8> {
    answer(PacketType::Cookie, first, cookie, relay, random)
}

/// Builds the packet that tells the sender of `first` to try again after `retry`, not masked yet.
pub(crate) fn full(first: &[u8], retry: Duration, relay: &RelayKey, random: &mut dyn Random) -> Vec<u8> {
    let mut content = [0; COOKIE_LEN];
    content[..2].copy_from_slice(&u16::try_from(retry.as_secs()).unwrap_or(u16::MAX).to_be_bytes());
    answer(PacketType::Full, first, &content, relay, random)
}

fn answer(
    kind: PacketType,
    first: &[u8],
    cookie: &[u8; COOKIE_LEN],
    relay: &RelayKey,
    random: &mut dyn Random,
) -> Vec<u8> {
    let mut packet = vec![0; COOKIE_PACKET_LEN];
    packet[0] = kind.byte();
    packet[1..5].copy_from_slice(&take::<4>(first, 1).unwrap_or([0; 4]));
    random.fill(&mut packet[5..HEADER_LEN]);
    packet[HEADER_LEN..HEADER_LEN + COOKIE_LEN].copy_from_slice(cookie);
    let counter = counter(&packet);
    // The length fits and nothing else can fail. A packet that was not sealed could not be opened.
    let _ = key(relay, first).seal(counter, &mut packet);
    packet
}

/// Reads the cookie from an unmasked cookie packet that answers `first`.
pub(crate) fn read(packet: &mut [u8], first: &[u8], relay: &RelayKey) -> Option<[u8; COOKIE_LEN]> {
    if packet.len() != COOKIE_PACKET_LEN {
        return None;
    }
    let counter = counter(packet);
    key(relay, first).open(counter, packet).ok()?;
    take(packet, HEADER_LEN)
}

/// Reads the time to wait from an unmasked refusal that answers `first`.
pub(crate) fn read_full(packet: &mut [u8], first: &[u8], relay: &RelayKey) -> Option<Duration> {
    let content = read(packet, first, relay)?;
    Some(Duration::from_secs(u16::from_be_bytes(take(&content, 0)?).into()))
}

fn counter(packet: &[u8]) -> u64 {
    take::<5>(packet, 5).map_or(0, |[a, b, c, d, e]| u64::from_be_bytes([0, 0, 0, a, b, c, d, e]))
}
