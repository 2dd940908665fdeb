//! The gate for first packets: under load, only a sender with a cookie may cost the relay an X25519 operation.
//!
//! Owns the stateless cookie, bound to address and port (or to hop session and tag), and the decision when a cookie
//! is required. Answers are never larger than the packets that caused them. Keeps no state per initiator.
//!
//! Source of the idea: DTLS (RFC 6347 §4.2.1) and WireGuard §5.4.7.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::cookie;
use crate::handshake::split_proof;
use crate::keys::{MacKey, RelayKey, Secret};
use crate::random::{Random, array};
use crate::relay::Route;
use crate::relay::holders::Owner;
use crate::relay::shares::Shares;
use crate::time::Time;
use crate::wire::{COOKIE_LEN, PROOF_LEN};

/// Interval at which cookies change.
const COOKIE_TIME: Duration = Duration::from_secs(120);
/// How long the previous cookie stays valid; an initiator uses its cookie at once.
const COOKIE_GRACE: Duration = Duration::from_secs(10);
/// Number of first packets waiting for the handshaker from which cookies are required: a few milliseconds of work.
const QUEUE_LIMIT: u32 = 128;
/// How long cookies stay required after the queue last had that length. The relay then tests the load again; between
/// two tests, a flood of packets without cookies costs nothing but the tests.
const HOLD: Duration = Duration::from_secs(1);
/// How long a sender is told to wait whose network has used up its share of handshakes.
const RETRY: Duration = Duration::from_secs(1);
/// How long a shard that was busy counts as busy.
const BUSY: Duration = Duration::from_millis(50);

/// The load of the handshaker; the handshaker and the shards share this value.
#[derive(Debug, Default)]
pub struct Load {
    queued: AtomicU32,
    filter_full: AtomicBool,
    /// Whether half of the half-open handshakes of a shard are in use.
    half_open: AtomicBool,
    /// Number of shards with half of their sessions or more.
    crowded: AtomicU32,
    /// Until when cookies are required, in microseconds.
    held_until: AtomicU64,
    /// Until when a shard's session packets keep the host busy, in microseconds.
    busy_until: AtomicU64,
}

impl Load {
    /// Records that a shard has queued a packet.
    pub fn queued(&self) {
        self.queued.fetch_add(1, Ordering::Relaxed);
    }

    /// Records that the handshaker has taken a packet from the queue.
    pub fn taken(&self) {
        self.queued.fetch_sub(1, Ordering::Relaxed);
    }

    /// Records whether the replay filter is full.
    pub fn set_filter_full(&self, full: bool) {
        self.filter_full.store(full, Ordering::Relaxed);
    }

    /// Records whether half of the half-open handshakes of a shard are in use.
    pub(crate) fn set_half_open(&self, half: bool) {
        self.half_open.store(half, Ordering::Relaxed);
    }

    /// Records that a shard has begun, or ceased, to hold half of its sessions or more.
    pub(crate) fn set_crowded(&self, crowded: bool) {
        if crowded {
            self.crowded.fetch_add(1, Ordering::Relaxed);
        } else {
            self.crowded.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Records that a shard is busy with session packets.
    pub fn set_busy(&self, now: Time) {
        self.busy_until.store(now.after(BUSY).as_micros(), Ordering::Relaxed);
    }

    /// Returns whether only some of the first packets without a cookie can be processed: there are more than the
    /// handshaker can do, and session packets keep the host busy.
    pub fn is_overrun(&self, now: Time) -> bool {
        self.is_behind(now) && now.as_micros() < self.busy_until.load(Ordering::Relaxed)
    }

    /// Returns whether first packets need a cookie: the handshaker is behind, or a table is half full.
    pub fn is_high(&self, now: Time) -> bool {
        self.is_behind(now) || self.half_open.load(Ordering::Relaxed) || self.crowded.load(Ordering::Relaxed) > 0
    }

    fn is_behind(&self, now: Time) -> bool {
        if self.queued.load(Ordering::Relaxed) >= QUEUE_LIMIT {
            self.held_until.store(now.after(HOLD).as_micros(), Ordering::Relaxed);
        }
        now.as_micros() < self.held_until.load(Ordering::Relaxed) || self.filter_full.load(Ordering::Relaxed)
    }
}

/// What to do with a first packet.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entrance {
    /// The handshaker may process it.
    Pass {
        /// Whether its sender has proven its address.
        proven: bool,
    },
    /// Its sender has to prove its address first.
    Ask,
    /// Its sender has proven its address, but its network has used up its share for the moment, and is told so.
    Later,
    /// Its length is not that of a first packet.
    Refuse,
}

/// The cookie check of one relay. All shards share its secret and load.
#[derive(Clone, Debug)]
pub struct Gate {
    master: Arc<MacKey>,
    relay: RelayKey,
    load: Arc<Load>,
    shares: Arc<Shares>,
    /// Each network's share of packets that go on with a handshake.
    answers: Arc<Shares>,
}

impl Gate {
    /// Creates a gate for the relay with `key`.
    pub fn new(relay: RelayKey, load: Arc<Load>, random: &mut dyn Random) -> Self {
        Self {
            master: Arc::new(MacKey::new(&Secret(array(random)))),
            relay,
            load,
            shares: Arc::new(Shares::new(random)),
            answers: Arc::new(Shares::new(random)),
        }
    }

    /// Returns the load that this gate depends on.
    pub fn load(&self) -> &Load {
        &self.load
    }

    /// Decides what to do with an unmasked first packet.
    pub(crate) fn check(&self, route: Route, packet: &[u8], now: Time) -> Entrance {
        let Some((body, proof)) = split_proof(packet) else { return Entrance::Refuse };
        // A proof that nobody asked for counts as none. Whoever sees a first packet can send its sender a false cookie,
        // and a relay that has restarted does not know its earlier cookies.
        if !self.load.is_high(now) {
            return Entrance::Pass { proven: false };
        }
        match proof {
            Some(proof) if self.proves(route, body, proof, now) => {
                if self.shares.take(route, now) {
                    Entrance::Pass { proven: true }
                } else {
                    Entrance::Later
                }
            }
            Some(_) | None => Entrance::Ask,
        }
    }

    /// Returns whether a packet that goes on with a handshake in progress may pass: under load, whoever has begun one
    /// handshake must not keep the handshaker busy with it.
    pub(crate) fn passes_answer(&self, route: Route, now: Time) -> bool {
        !self.load.is_high(now) || self.answers.take(route, now)
    }

    /// Returns whoever owns what a sender along `route` gets.
    pub(crate) fn owner(&self, route: Route) -> Owner {
        self.shares.owner(route)
    }

    /// Builds the answer to a first packet whose sender has proven its address but must wait, not masked yet.
    pub(crate) fn refusal(&self, packet: &[u8], random: &mut dyn Random) -> Vec<u8> {
        cookie::full(packet, RETRY, &self.relay, random)
    }

    /// Builds the answer to a first packet whose sender must prove its address, not masked yet.
    pub(crate) fn challenge(&self, route: Route, packet: &[u8], now: Time, random: &mut dyn Random) -> Vec<u8> {
        cookie::packet(packet, &self.cookie(route, self.number(now)), &self.relay, random)
    }

    fn number(&self, now: Time) -> u64 {
        now.as_micros() / micros(COOKIE_TIME)
    }

    fn proves(&self, route: Route, body: &[u8], proof: &[u8; PROOF_LEN], now: Time) -> bool {
        let is_of = |number| {
            let expected = cookie::proof(&self.cookie(route, number), body);
            aws_lc_rs::constant_time::verify_slices_are_equal(proof, &expected).is_ok()
        };
        let number = self.number(now);
        let grace = now.as_micros() % micros(COOKIE_TIME) < micros(COOKIE_GRACE);
        is_of(number) || grace && is_of(number.wrapping_sub(1))
    }

    fn cookie(&self, route: Route, number: u64) -> Zeroizing<[u8; COOKIE_LEN]> {
        let full = Zeroizing::new(self.master.mac(&[&number.to_be_bytes(), &route.to_bytes()]));
        let mut cookie = Zeroizing::new([0; COOKIE_LEN]);
        cookie.copy_from_slice(&full[..COOKIE_LEN]);
        cookie
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::handshake::{FIRST_NK_LEN, First, Initiator, Responder, Role};
    use crate::keys::{RelayId, RelaySecret};
    use crate::random::Counting;
    use crate::wire::{HEADER_LEN, Suites};

    struct Door {
        gate: Gate,
        random: Counting,
        key: RelayKey,
        first: Vec<u8>,
    }

    fn route(port: u16) -> Route {
        Route::Udp(([192, 0, 2, 1], port).into())
    }

    impl Door {
        fn new(queued: u32) -> Self {
            let mut random = Counting::default();
            let key = RelaySecret::generate(&mut random).public();
            let load = Arc::new(Load::default());
            (0..queued).for_each(|_| load.queued());
            let to = Responder { network: [1; 32], relay: RelayId(1), role: Role::Ingress, key_epoch: 0, key };
            let first = First { offered: Suites::ALL, local_index: 7, minutes: 0 };
            let (_, first) = Initiator::start(&to, None, first, &mut random).unwrap();
            Self { gate: Gate::new(key, load, &mut random), random, key, first }
        }

        fn check(&self, port: u16, packet: &[u8], now: Time) -> Entrance {
            self.gate.check(route(port), packet, now)
        }

        /// Returns the first packet with a proof of the cookie that the relay asked for.
        fn proven(&mut self, now: Time) -> Vec<u8> {
            let mut answer = self.gate.challenge(route(1), &self.first, now, &mut self.random);
            assert!(answer.len() <= self.first.len(), "an answer is never longer than the packet that caused it");
            let cookie = cookie::read(&mut answer, &self.first, &self.key).unwrap();
            let mut packet = self.first.clone();
            cookie::prove(&mut packet, &cookie);
            packet
        }
    }

    /// Regression: an idle relay refused a wrong proof, so anyone who saw a first packet could keep its sender out.
    #[test]
    fn idle_relay_passes_first_packets_with_any_proof() {
        let door = Door::new(QUEUE_LIMIT - 1);
        let now = Time::from_micros(1);
        assert_eq!(door.check(1, &door.first, now), Entrance::Pass { proven: false });
        let wrong = [&door.first[..], &[9; PROOF_LEN]].concat();
        assert_eq!(door.check(1, &wrong, now), Entrance::Pass { proven: false });
        for extra in [1, PROOF_LEN - 1, PROOF_LEN + 1] {
            let longer = [&door.first[..], &vec![9; extra]].concat();
            assert_eq!(door.check(1, &longer, now), Entrance::Refuse, "{extra}");
        }
        assert_eq!(door.check(1, &door.first[..FIRST_NK_LEN - 1], now), Entrance::Refuse);
    }

    #[test]
    fn network_has_a_share_of_answers_under_load() {
        let door = Door::new(QUEUE_LIMIT);
        let now = Time::from_micros(1);
        assert_eq!((0..1_000).filter(|_| door.gate.passes_answer(route(1), now)).count(), 200);
        assert!(door.gate.passes_answer(Route::Udp(([192, 0, 3, 1], 1).into()), now), "another network");
        let idle = Door::new(0);
        assert!((0..1_000).all(|_| idle.gate.passes_answer(route(1), now)));
    }

    #[test]
    fn half_full_table_needs_cookies_but_does_not_make_the_kernel_drop_packets() {
        let mut door = Door::new(0);
        let now = Time::from_micros(1);
        door.gate.load().set_busy(now);
        door.gate.load().set_crowded(true);
        assert_eq!(door.check(1, &door.first, now), Entrance::Ask);
        let proven = door.proven(now);
        assert_eq!(door.check(1, &proven, now), Entrance::Pass { proven: true });
        assert!(!door.gate.load().is_overrun(now));
        door.gate.load().set_crowded(false);
        door.gate.load().set_half_open(true);
        assert_eq!(door.check(1, &door.first, now), Entrance::Ask);
        door.gate.load().set_half_open(false);
        assert_eq!(door.check(1, &door.first, now), Entrance::Pass { proven: false });
    }

    #[test]
    fn only_a_proven_address_passes_under_load() {
        let mut door = Door::new(QUEUE_LIMIT);
        let now = Time::from_micros(1);
        assert_eq!(door.check(1, &door.first, now), Entrance::Ask);
        let proven = door.proven(now);
        assert_eq!(door.check(1, &proven, now), Entrance::Pass { proven: true });
        assert_eq!(door.check(2, &proven, now), Entrance::Ask, "another port");
        let other = Route::Udp(([192, 0, 2, 2], 1).into());
        assert_eq!(door.gate.check(other, &proven, now), Entrance::Ask, "another address");
        for bit in 0..proven.len() * 8 {
            let mut flipped = proven.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(door.check(1, &flipped, now), Entrance::Pass { proven: true }, "bit {bit}");
        }
    }

    /// Only a sender that has proven its address spends an allowance, so nobody can spend another sender's.
    #[test]
    fn network_waits_under_load_once_its_share_is_used_up() {
        let mut door = Door::new(QUEUE_LIMIT);
        let now = Time::from_micros(1);
        let proven = door.proven(now);
        for port in 0..2_000 {
            assert_eq!(door.check(port, &door.first, now), Entrance::Ask);
        }
        let passed = (0..1_000).filter(|_| door.check(1, &proven, now) == Entrance::Pass { proven: true }).count();
        assert_eq!(passed, 200);
        assert_eq!(door.check(1, &proven, now), Entrance::Later);
        (0..QUEUE_LIMIT).for_each(|_| door.gate.load().taken());
        let later = door.check(1, &proven, now.after(HOLD));
        assert_eq!(later, Entrance::Pass { proven: false }, "shares apply only under load");
    }

    #[test]
    fn previous_cookie_is_valid_only_for_its_grace_time() {
        let mut door = Door::new(QUEUE_LIMIT);
        let change = Time::default().after(COOKIE_TIME);
        let proven = door.proven(Time::from_micros(change.as_micros() - 1));
        assert_eq!(
            door.check(1, &proven, change.after(COOKIE_GRACE - Duration::from_micros(1))),
            Entrance::Pass { proven: true }
        );
        assert_eq!(door.check(1, &proven, change.after(COOKIE_GRACE)), Entrance::Ask);
    }

    #[test]
    fn cookies_stay_required_for_a_while_after_the_queue_is_short() {
        let door = Door::new(QUEUE_LIMIT);
        let now = Time::from_micros(1);
        assert_eq!(door.check(1, &door.first, now), Entrance::Ask);
        (0..QUEUE_LIMIT).for_each(|_| door.gate.load().taken());
        assert_eq!(door.check(1, &door.first, now.after(HOLD - Duration::from_micros(1))), Entrance::Ask);
        assert_eq!(door.check(1, &door.first, now.after(HOLD)), Entrance::Pass { proven: false });
    }

    #[test]
    fn cookie_packet_cannot_be_opened_with_another_first_packet() {
        let mut door = Door::new(QUEUE_LIMIT);
        let mut answer = door.gate.challenge(route(1), &door.first, Time::default(), &mut door.random);
        let other = Door::new(0);
        let mut stranger = other.first.clone();
        stranger[HEADER_LEN] ^= 1;
        assert_eq!(cookie::read(&mut answer, &stranger, &door.key), None);
    }

    #[test]
    fn relay_is_overrun_only_while_sessions_keep_the_host_busy() {
        let door = Door::new(QUEUE_LIMIT);
        let (load, now) = (door.gate.load(), Time::from_micros(1));
        assert!(!load.is_overrun(now));
        load.set_busy(now);
        assert!(load.is_overrun(now));
        assert!(!load.is_overrun(now.after(BUSY)));
    }
}
