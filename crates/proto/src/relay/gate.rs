//! Who may cost this relay an X25519 operation: cookies under load.
//!
//! Owns the stateless cookie, bound to address and port (or to the hop session and tag), and the decision when one is
//! needed. Answers are never larger than what caused them. Keeps no state per initiator.
//! Source of the idea: DTLS (RFC 6347 §4.2.1) and WireGuard §5.4.7.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::handshake::COOKIE_MAC_LEN;
use crate::keys::{RelayKey, Secret, hmac_sha256, sha256};
use crate::random::{Random, array};
use crate::relay::Route;
use crate::suite::{PacketKey, Suite};
use crate::time::Time;
use crate::wire::{HEADER_LEN, PacketType, TAG_LEN, take};

/// Bytes of a cookie.
const COOKIE_LEN: usize = 16;
/// Bytes of the packet that carries one: a third of a first packet.
pub(crate) const COOKIE_PACKET_LEN: usize = HEADER_LEN + COOKIE_LEN + TAG_LEN;
/// A cookie is good for one to two of these.
const COOKIE_TIME: Duration = Duration::from_secs(120);
/// First packets that wait for the handshaker before cookies are required: a few milliseconds of work.
const QUEUE_LIMIT: u32 = 64;

/// How busy the handshaker is, shared by it and the shards.
#[derive(Debug, Default)]
pub struct Load {
    queued: AtomicU32,
    filter_full: AtomicBool,
}

impl Load {
    /// A shard has queued a packet.
    pub fn queued(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
    }

    /// The handshaker has taken a packet.
    pub fn taken(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
    }

    /// The replay filter has, or has no, room.
    pub fn set_filter_full(&self, full: bool) {
        self.filter_full.store(full, Ordering::Relaxed);
    }

    fn is_high(&self) -> bool {
        self.queued.load(Ordering::Relaxed) >= QUEUE_LIMIT || self.filter_full.load(Ordering::Relaxed)
    }
}

/// What to do with a first packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entrance {
    Pass,
    /// Send this instead, masks still to be applied.
    Challenge(Vec<u8>),
}

/// The cookie check of one relay. All shards share secret and load.
#[derive(Clone, Debug)]
pub struct Gate {
    master: Arc<Secret>,
    relay: RelayKey,
    load: Arc<Load>,
}

impl Gate {
    /// A gate for the relay with `key`.
    pub fn new(relay: RelayKey, load: Arc<Load>, random: &mut dyn Random) -> Self {
        Self { master: Arc::new(Secret(array(random))), relay, load }
    }

    /// The load that this gate goes by.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Judges an unmasked first packet.
    pub(crate) fn check(&self, route: Route, packet: &[u8], now: Time, random: &mut dyn Random) -> Entrance {
        if !self.load.is_high() {
            return Entrance::Pass;
        }
        let number = now.as_micros() / u64::try_from(COOKIE_TIME.as_micros()).unwrap_or(u64::MAX);
        let numbers = [number, number.wrapping_sub(1)];
        if numbers.iter().any(|&number| proves(packet, &self.cookie(route, number))) {
            return Entrance::Pass;
        }
        Entrance::Challenge(cookie_packet(packet, &self.cookie(route, number), &self.relay, random))
    }

    fn cookie(&self, route: Route, number: u64) -> Zeroizing<[u8; COOKIE_LEN]> {
        let full = Zeroizing::new(hmac_sha256(&self.master.0, &[&number.to_be_bytes(), &route.to_bytes()]));
        let mut cookie = Zeroizing::new([0; COOKIE_LEN]);
        cookie.copy_from_slice(&full[..COOKIE_LEN]);
        cookie
    }
}

fn proves(packet: &[u8], cookie: &[u8; COOKIE_LEN]) -> bool {
    packet.split_last_chunk::<COOKIE_MAC_LEN>().is_some_and(|(body, proof)| {
        aws_lc_rs::constant_time::verify_slices_are_equal(proof, &mac(cookie, body)).is_ok()
    })
}

fn mac(cookie: &[u8; COOKIE_LEN], body: &[u8]) -> [u8; COOKIE_MAC_LEN] {
    let full = hmac_sha256(cookie, &[body]);
    let mut short = [0; COOKIE_MAC_LEN];
    short.copy_from_slice(&full[..COOKIE_MAC_LEN]);
    short
}

/// Puts the proof of `cookie` into an unmasked first packet.
pub(crate) fn prove(packet: &mut [u8], cookie: &[u8; COOKIE_LEN]) {
    if let Some((body, proof)) = packet.split_last_chunk_mut::<COOKIE_MAC_LEN>() {
        *proof = mac(cookie, body);
    }
}

/// Only who saw the first packet can open the answer to it.
fn cookie_key(relay: &RelayKey, first: &[u8]) -> PacketKey {
    let ephemeral: [u8; 32] = take(first, HEADER_LEN).unwrap_or([0; 32]);
    let key = Zeroizing::new(sha256(&[b"ORP/1 cookie", relay.as_bytes(), &ephemeral]));
    PacketKey::new(Suite::Aes256Gcm, &key)
}

fn cookie_packet(first: &[u8], cookie: &[u8; COOKIE_LEN], relay: &RelayKey, random: &mut dyn Random) -> Vec<u8> {
    let mut packet = vec![0; COOKIE_PACKET_LEN];
    packet[0] = PacketType::Cookie.byte();
    packet[1..5].copy_from_slice(&take::<4>(first, 1).unwrap_or([0; 4]));
    random.fill(&mut packet[5..HEADER_LEN]);
    packet[HEADER_LEN..HEADER_LEN + COOKIE_LEN].copy_from_slice(cookie);
    let counter = counter(&packet);
    // The length fits and nothing else can fail; a packet that was not sealed would not open.
    let _ = cookie_key(relay, first).seal(counter, &mut packet);
    packet
}

/// Reads the cookie in an unmasked cookie packet that answers `first`.
pub(crate) fn read_cookie(packet: &mut [u8], first: &[u8], relay: &RelayKey) -> Option<[u8; COOKIE_LEN]> {
    if packet.len() != COOKIE_PACKET_LEN {
        return None;
    }
    let counter = counter(packet);
    cookie_key(relay, first).open(counter, packet).ok()?;
    take(packet, HEADER_LEN)
}

fn counter(packet: &[u8]) -> u64 {
    take::<5>(packet, 5).map_or(0, |[a, b, c, d, e]| u64::from_be_bytes([0, 0, 0, a, b, c, d, e]))
}
