//! Handshakes: Noise NK for clients, IK between relays, both with ML-KEM-768 mixed in.
//!
//! Owns the messages and keys of one handshake. `relay::handshaker` decides which packets to answer; `client` and
//! `relay` decide when to repeat them. No user packet can be sealed before [`Established`] exists, which needs the
//! ML-KEM secret and the responder's confirmation.
//!
//! ```text
//! initiator                                         responder
//!   First    e, es[, s, ss], {hash of e1, minutes} ─▶     X25519 only, no large state
//!            ◀─ Reply   e, ee[, se], {index, suite}
//!   KemKey   e1 ─▶                                        accepted only after a Reply was sent
//!            ◀─ KemText  ekem1, {}                        empty payload confirms the key
//! ```
//!
//! Source: Noise revision 34 §7; Noise HFS revision 1draft-5 (e1, ekem1), split over two round trips so that a first
//! packet is small and cheap to refuse.

use crate::kem::{self, KemPair};
use crate::keys::{RelayId, RelayKey, RelaySecret, Secret};
use crate::noise::{Symmetric, Undecryptable};
use crate::random::{Random, array};
use crate::wire::{COOKIE_PACKET_LEN, EvidenceDigest, HEADER_LEN, PROOF_LEN, PacketType, Suite, Suites, TAG_LEN, take};

/// Bytes of a client's first packet without a cookie proof.
pub const FIRST_NK_LEN: usize = 112;
/// Bytes of a relay's first packet without a cookie proof: a client's first packet plus the sealed static key.
pub const FIRST_IK_LEN: usize = FIRST_NK_LEN + 32 + TAG_LEN;
/// Bytes of the answer to a first packet; never more than the first packet.
pub const REPLY_LEN: usize = 96;
/// Bytes of the packet that carries the ML-KEM key.
pub const KEM_KEY_LEN: usize = HEADER_LEN + kem::KEY_LEN + TAG_LEN;
/// Bytes of the packet that carries the ML-KEM ciphertext; never more than the packet with the key.
pub const KEM_TEXT_LEN: usize = HEADER_LEN + kem::TEXT_LEN + TAG_LEN + size_of::<EvidenceDigest>() + TAG_LEN;
/// Offset of the ephemeral key in a first packet and in a reply.
const EPHEMERAL: usize = HEADER_LEN;
const FIRST_PAYLOAD: usize = FIRST_NK_LEN - HEADER_LEN - 32 - TAG_LEN;
const REPLY_PAYLOAD: usize = REPLY_LEN - HEADER_LEN - 32 - TAG_LEN;

/// The role in which a relay is addressed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// First hop: knows the client, not the destination.
    Ingress,
    /// Last hop: knows the destination, not the client.
    Egress,
}

impl Role {
    const fn byte(self) -> u8 {
        match self {
            Self::Ingress => 1,
            Self::Egress => 2,
        }
    }
}

/// The responder as the initiator knows it and as it knows itself; part of every transcript.
#[derive(Clone, Debug)]
pub struct Responder {
    /// Identifier of the network, so that keys of one network cannot be used in another.
    pub network: [u8; 32],
    /// The relay's registry number.
    pub relay: RelayId,
    /// The role in which the relay is addressed.
    pub role: Role,
    /// How often the relay's handshake key has been replaced.
    pub key_epoch: u32,
    /// The relay's handshake key.
    pub key: RelayKey,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pattern {
    Nk,
    Ik,
    Rekey,
}

impl Pattern {
    const fn name(self) -> &'static [u8] {
        match self {
            Self::Nk => b"Noise_NKhfs_25519+MLKEM768_AESGCM_SHA256",
            Self::Ik => b"Noise_IKhfs_25519+MLKEM768_AESGCM_SHA256",
            Self::Rekey => b"Noise_NKpsk0hfs_25519+MLKEM768_AESGCM_SHA256",
        }
    }
}

impl Responder {
    fn transcript(&self, pattern: Pattern, suites: u8) -> Symmetric {
        let mut state = Symmetric::new(pattern.name());
        let mut prologue = Vec::with_capacity(64);
        prologue.extend_from_slice(b"ORP/1");
        prologue.extend_from_slice(&self.network);
        prologue.extend_from_slice(&self.relay.0.to_be_bytes());
        prologue.push(self.role.byte());
        prologue.extend_from_slice(&self.key_epoch.to_be_bytes());
        prologue.push(suites);
        state.mix_hash(&prologue);
        state.mix_hash(self.key.as_bytes());
        state
    }
}

/// A handshake packet that this handshake does not accept.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("handshake packet does not verify")]
pub struct Invalid;

impl From<Undecryptable> for Invalid {
    fn from(Undecryptable: Undecryptable) -> Self {
        Self
    }
}

/// The result of a finished handshake, from which a session is made.
#[derive(Debug)]
pub struct Established {
    /// Whether this end sent the first packet.
    pub initiator: bool,
    /// The suite agreed on.
    pub suite: Suite,
    /// The index that packets to this end carry.
    pub local_index: u32,
    /// The index that packets to the peer carry.
    pub remote_index: u32,
    /// Digest of the responder's evidence.
    pub evidence: EvidenceDigest,
    /// Hash of the transcript, to which tokens are bound.
    pub hash: [u8; 32],
    pub(crate) keys: SessionKeys,
}

/// The root secrets of one generation of a session.
#[derive(Clone, Debug)]
pub(crate) struct SessionKeys {
    pub(crate) send: Secret,
    pub(crate) receive: Secret,
    /// Masks headers in both directions for as long as the session lives.
    pub(crate) mask: Secret,
    /// Enters the next re-handshake as its pre-shared key.
    pub(crate) rekey: Secret,
}

impl SessionKeys {
    fn derive(state: &Symmetric, initiator: bool) -> Self {
        let (first, second) = state.split();
        let (send, receive) = if initiator { (first, second) } else { (second, first) };
        Self { send, receive, mask: state.export(b"ORP/1 header mask"), rekey: state.export(b"ORP/1 rekey") }
    }
}

/// The initiator's state between its first packet and the ML-KEM ciphertext.
pub struct Initiator {
    state: Symmetric,
    ephemeral: RelaySecret,
    static_key: Option<RelaySecret>,
    kem: KemPair,
    offered: Suites,
    local_index: u32,
    reply: Option<(Suite, u32)>,
}

impl Initiator {
    /// Starts a handshake with `to`. A relay passes its own static key, a client passes `None`. Returns the first
    /// packet, not masked yet.
    ///
    /// # Errors
    /// [`Invalid`] when the responder's key is a low-order point.
    pub fn start(
        to: &Responder,
        static_key: Option<&RelaySecret>,
        first: First,
        random: &mut dyn Random,
    ) -> Result<(Self, Vec<u8>), Invalid> {
        let (pattern, kind, length) = match static_key {
            None => (Pattern::Nk, PacketType::FirstNk(first.offered), FIRST_NK_LEN),
            Some(_) => (Pattern::Ik, PacketType::FirstIk(first.offered), FIRST_IK_LEN),
        };
        let mut state = to.transcript(pattern, first.offered.bits());
        let ephemeral = RelaySecret::generate(random);
        let kem = KemPair::generate(random);

        let mut packet = vec![0; length];
        random.fill(&mut packet);
        write_header(&mut packet, kind, first.local_index);
        state.mix_hash(header(&packet)?);
        let wire_key = with_random_top_bit(ephemeral.public(), random);
        let mut rest = packet.get_mut(EPHEMERAL..).ok_or(Invalid)?;
        put(&mut rest, 32)?.copy_from_slice(&wire_key);
        state.mix_hash(&wire_key);
        state.mix_key(&ephemeral.agree(to.key.as_bytes()).ok_or(Invalid)?.0);
        if let Some(own) = static_key {
            state.encrypt_and_hash(own.public().as_bytes(), put(&mut rest, 32 + TAG_LEN)?);
            state.mix_key(&own.agree(to.key.as_bytes()).ok_or(Invalid)?.0);
        }
        let mut payload = [0; FIRST_PAYLOAD];
        payload[..32].copy_from_slice(&crate::keys::sha256(&[kem.public()]));
        payload[32..36].copy_from_slice(&first.minutes.to_be_bytes());
        state.encrypt_and_hash(&payload, rest);

        let this = Self {
            state,
            ephemeral,
            static_key: static_key.cloned(),
            kem,
            offered: first.offered,
            local_index: first.local_index,
            reply: None,
        };
        Ok((this, packet))
    }

    /// Reads the answer to the first packet. Returns the packet with the ML-KEM key, which is repeated until it is
    /// answered.
    ///
    /// # Errors
    /// [`Invalid`] when the packet does not answer this first packet; the handshake can continue.
    pub fn read_reply(&mut self, packet: &[u8], random: &mut dyn Random) -> Result<Vec<u8>, Invalid> {
        if packet.len() != REPLY_LEN || self.reply.is_some() {
            return Err(Invalid);
        }
        let remote: [u8; 32] = take(packet, EPHEMERAL).ok_or(Invalid)?;
        let mut state = self.state.clone();
        state.mix_hash(header(packet)?);
        state.mix_hash(&remote);
        state.mix_key(&self.ephemeral.agree(&remote).ok_or(Invalid)?.0);
        if let Some(own) = &self.static_key {
            state.mix_key(&own.agree(&remote).ok_or(Invalid)?.0);
        }
        let payload: [u8; REPLY_PAYLOAD] = state.decrypt_and_hash(packet.get(EPHEMERAL + 32..).ok_or(Invalid)?)?;
        let remote_index = u32::from_be_bytes(take(&payload, 0).ok_or(Invalid)?);
        let suite = Suite::parse(payload[4]).filter(|&suite| self.offered.contains(suite)).ok_or(Invalid)?;

        let mut out = vec![0; KEM_KEY_LEN];
        random.fill(&mut out[..HEADER_LEN]);
        write_header(&mut out, PacketType::KemKey, remote_index);
        state.mix_hash(header(&out)?);
        state.encrypt_and_hash(self.kem.public(), &mut out[HEADER_LEN..]);
        self.state = state;
        self.reply = Some((suite, remote_index));
        Ok(out)
    }

    /// Reads the ML-KEM ciphertext and the responder's confirmation.
    ///
    /// # Errors
    /// [`Invalid`] when the packet does not answer this handshake; the handshake can continue.
    pub fn read_kem_text(&self, packet: &[u8]) -> Result<Established, Invalid> {
        let (suite, remote_index) = self.reply.ok_or(Invalid)?;
        if packet.len() != KEM_TEXT_LEN {
            return Err(Invalid);
        }
        let mut state = self.state.clone();
        state.mix_hash(header(packet)?);
        let (text, confirmation) =
            packet.get(HEADER_LEN..).and_then(|p| p.split_at_checked(kem::TEXT_LEN + TAG_LEN)).ok_or(Invalid)?;
        let text: [u8; kem::TEXT_LEN] = state.decrypt_and_hash(text)?;
        state.mix_key(&self.kem.decapsulate(&text).0);
        let evidence = state.decrypt_and_hash(confirmation)?;
        Ok(Established {
            initiator: true,
            suite,
            local_index: self.local_index,
            remote_index,
            evidence,
            hash: state.hash(),
            keys: SessionKeys::derive(&state, true),
        })
    }
}

/// The content of an initiator's first packet.
#[derive(Clone, Copy, Debug)]
pub struct First {
    /// The suites that the initiator can use.
    pub offered: Suites,
    /// The index that packets to the initiator carry.
    pub local_index: u32,
    /// Verified time in minutes since the Unix epoch.
    pub minutes: u32,
}

/// A first packet that has been verified.
pub struct Accepted {
    state: Symmetric,
    remote_ephemeral: [u8; 32],
    kem_key_hash: [u8; 32],
    /// The content of the packet.
    pub first: First,
    /// The initiator's static key; `None` for a client.
    pub relay: Option<RelayKey>,
}

/// Splits an unmasked first packet into its body and its cookie proof, if it has one. Returns `None` for other
/// packets and other lengths.
pub(crate) fn split_proof(packet: &[u8]) -> Option<(&[u8], Option<&[u8; PROOF_LEN]>)> {
    let length = match packet.first().copied().and_then(PacketType::parse)? {
        PacketType::FirstNk(_) => FIRST_NK_LEN,
        PacketType::FirstIk(_) => FIRST_IK_LEN,
        PacketType::Reply
        | PacketType::KemKey
        | PacketType::KemText
        | PacketType::Cookie
        | PacketType::Full
        | PacketType::Data => {
            return None;
        }
    };
    let (body, proof) = packet.split_at_checked(length)?;
    if proof.is_empty() { Some((body, None)) } else { Some((body, Some(proof.try_into().ok()?))) }
}

/// Returns the length in bytes of a handshake packet other than a first packet; `None` for all other packets.
pub(crate) const fn answer_len(kind: PacketType) -> Option<usize> {
    match kind {
        PacketType::Reply => Some(REPLY_LEN),
        PacketType::KemKey => Some(KEM_KEY_LEN),
        PacketType::KemText => Some(KEM_TEXT_LEN),
        PacketType::Cookie | PacketType::Full => Some(COOKIE_PACKET_LEN),
        PacketType::FirstNk(_) | PacketType::FirstIk(_) | PacketType::Data => None,
    }
}

/// Verifies a first packet that is addressed to `own` with secret `secret`. The packet is unmasked, and its cookie
/// proof has been checked and cut off. Costs at most two X25519 operations, one for a client.
///
/// # Errors
/// [`Invalid`] when the packet does not verify; the caller must not answer it.
pub fn accept(own: &Responder, secret: &RelaySecret, packet: &[u8]) -> Result<Accepted, Invalid> {
    let kind = packet.first().copied().and_then(PacketType::parse).ok_or(Invalid)?;
    let (offered, pattern, length) = match kind {
        PacketType::FirstNk(offered) => (offered, Pattern::Nk, FIRST_NK_LEN),
        PacketType::FirstIk(offered) => (offered, Pattern::Ik, FIRST_IK_LEN),
        PacketType::Reply
        | PacketType::KemKey
        | PacketType::KemText
        | PacketType::Cookie
        | PacketType::Full
        | PacketType::Data => {
            return Err(Invalid);
        }
    };
    if packet.len() != length {
        return Err(Invalid);
    }
    let local_index = u32::from_be_bytes(take(packet, 1).ok_or(Invalid)?);
    let remote_ephemeral: [u8; 32] = take(packet, EPHEMERAL).ok_or(Invalid)?;
    let mut rest = packet.get(EPHEMERAL + 32..).ok_or(Invalid)?;

    let mut state = own.transcript(pattern, offered.bits());
    state.mix_hash(header(packet)?);
    state.mix_hash(&remote_ephemeral);
    state.mix_key(&secret.agree(&remote_ephemeral).ok_or(Invalid)?.0);
    let mut relay = None;
    if pattern == Pattern::Ik {
        let (sealed, payload) = rest.split_at_checked(32 + TAG_LEN).ok_or(Invalid)?;
        let key: [u8; 32] = state.decrypt_and_hash(sealed)?;
        state.mix_key(&secret.agree(&key).ok_or(Invalid)?.0);
        relay = Some(RelayKey::from_bytes(key));
        rest = payload;
    }
    let payload: [u8; FIRST_PAYLOAD] = state.decrypt_and_hash(rest)?;
    let minutes = u32::from_be_bytes(take(&payload, 32).ok_or(Invalid)?);
    Ok(Accepted {
        state,
        remote_ephemeral,
        kem_key_hash: take(&payload, 0).ok_or(Invalid)?,
        first: First { offered, local_index, minutes },
        relay,
    })
}

/// The responder's state between its reply and the ML-KEM key.
pub struct Replied {
    state: Symmetric,
    kem_key_hash: [u8; 32],
    suite: Suite,
    local_index: u32,
    remote_index: u32,
    /// The initiator's static key; `None` for a client.
    pub relay: Option<RelayKey>,
}

impl Accepted {
    /// Returns the first packet's ephemeral key as it stands on the wire, by which replays are detected.
    pub fn ephemeral(&self) -> [u8; 32] {
        self.remote_ephemeral
    }

    /// Answers with `local_index` and `suite`. Returns the reply, not masked yet.
    ///
    /// # Errors
    /// [`Invalid`] when a key is a low-order point.
    pub fn reply(
        mut self,
        suite: Suite,
        local_index: u32,
        random: &mut dyn Random,
    ) -> Result<(Replied, Vec<u8>), Invalid> {
        let ephemeral = RelaySecret::generate(random);
        let mut packet = vec![0; REPLY_LEN];
        random.fill(&mut packet[..HEADER_LEN]);
        write_header(&mut packet, PacketType::Reply, self.first.local_index);
        self.state.mix_hash(header(&packet)?);
        let wire_key = with_random_top_bit(ephemeral.public(), random);
        packet[EPHEMERAL..EPHEMERAL + 32].copy_from_slice(&wire_key);
        self.state.mix_hash(&wire_key);
        self.state.mix_key(&ephemeral.agree(&self.remote_ephemeral).ok_or(Invalid)?.0);
        if let Some(relay) = &self.relay {
            self.state.mix_key(&ephemeral.agree(relay.as_bytes()).ok_or(Invalid)?.0);
        }
        let mut payload = [0; REPLY_PAYLOAD];
        payload[..4].copy_from_slice(&local_index.to_be_bytes());
        payload[4] = suite.byte();
        self.state.encrypt_and_hash(&payload, &mut packet[EPHEMERAL + 32..]);
        let replied = Replied {
            state: self.state,
            kem_key_hash: self.kem_key_hash,
            suite,
            local_index,
            remote_index: self.first.local_index,
            relay: self.relay,
        };
        Ok((replied, packet))
    }
}

impl Replied {
    /// Reads the ML-KEM key. Returns the packet with the ciphertext, and the session.
    ///
    /// The caller repeats the packet whenever it receives the packet with the key again. The packet also announces
    /// the responder's `evidence`, so that an initiator that has seen this evidence need not request it.
    ///
    /// # Errors
    /// [`Invalid`] when it is not the key that the first packet announced; the handshake can continue.
    pub fn read_kem_key(
        &self,
        packet: &[u8],
        evidence: EvidenceDigest,
        random: &mut dyn Random,
    ) -> Result<(Vec<u8>, Established), Invalid> {
        if packet.len() != KEM_KEY_LEN {
            return Err(Invalid);
        }
        let mut state = self.state.clone();
        state.mix_hash(header(packet)?);
        let key: [u8; kem::KEY_LEN] = state.decrypt_and_hash(packet.get(HEADER_LEN..).ok_or(Invalid)?)?;
        if crate::keys::sha256(&[&key]) != self.kem_key_hash {
            return Err(Invalid);
        }
        let (text, shared) = kem::encapsulate(&key, random).ok_or(Invalid)?;
        let mut out = vec![0; KEM_TEXT_LEN];
        random.fill(&mut out[..HEADER_LEN]);
        write_header(&mut out, PacketType::KemText, self.remote_index);
        state.mix_hash(header(&out)?);
        let (sealed, confirmation) = out[HEADER_LEN..].split_at_mut(kem::TEXT_LEN + TAG_LEN);
        state.encrypt_and_hash(&text, sealed);
        state.mix_key(&shared.0);
        state.encrypt_and_hash(&evidence, confirmation);
        let established = Established {
            initiator: false,
            suite: self.suite,
            local_index: self.local_index,
            remote_index: self.remote_index,
            evidence,
            hash: state.hash(),
            keys: SessionKeys::derive(&state, false),
        };
        Ok((out, established))
    }
}

/// Returns the unmasked header of a packet. It enters the transcript, so that no bit of it can be changed in transit.
fn header(packet: &[u8]) -> Result<&[u8], Invalid> {
    packet.get(..HEADER_LEN).ok_or(Invalid)
}

/// Bytes of the message that starts a re-handshake: e, then e1 sealed.
pub const REKEY_LEN: usize = 32 + kem::KEY_LEN + TAG_LEN;
/// Bytes of the answer to a re-handshake: e, then ekem1 sealed, then an empty payload sealed.
pub const REKEYED_LEN: usize = 32 + kem::TEXT_LEN + 2 * TAG_LEN;

/// The initiator's state of a re-handshake inside a session: NK with the session's rekey secret as `psk0`.
pub(crate) struct Rekey {
    state: Symmetric,
    ephemeral: RelaySecret,
    kem: KemPair,
}

impl Rekey {
    /// Starts a re-handshake with `to` in a session with transcript `hash` and rekey secret `psk`.
    pub(crate) fn start(
        to: &Responder,
        hash: &[u8; 32],
        psk: &Secret,
        random: &mut dyn Random,
    ) -> Option<(Self, Vec<u8>)> {
        let ephemeral = RelaySecret::generate(random);
        let kem = KemPair::generate(random);
        let mut state = rekey_transcript(to, hash, psk);
        let mut message = vec![0; REKEY_LEN];
        let (e, sealed) = message.split_at_mut(32);
        e.copy_from_slice(ephemeral.public().as_bytes());
        state.mix_hash(e);
        state.mix_key(e);
        state.mix_key(&ephemeral.agree(to.key.as_bytes())?.0);
        state.encrypt_and_hash(kem.public(), sealed);
        Some((Self { state, ephemeral, kem }, message))
    }

    /// Reads the answer. Returns the keys of the session's next generation.
    pub(crate) fn finish(&self, message: &[u8]) -> Result<SessionKeys, Invalid> {
        let (e, rest) = message.split_first_chunk::<32>().ok_or(Invalid)?;
        let (text, confirmation) = rest.split_at_checked(kem::TEXT_LEN + TAG_LEN).ok_or(Invalid)?;
        let mut state = self.state.clone();
        state.mix_hash(e);
        state.mix_key(e);
        state.mix_key(&self.ephemeral.agree(e).ok_or(Invalid)?.0);
        let text: [u8; kem::TEXT_LEN] = state.decrypt_and_hash(text)?;
        state.mix_key(&self.kem.decapsulate(&text).0);
        state.decrypt_and_hash::<0>(confirmation)?;
        Ok(SessionKeys::derive(&state, true))
    }
}

/// Answers a re-handshake. Returns the answer and the keys of the session's next generation.
pub(crate) fn answer_rekey(
    own: &Responder,
    secret: &RelaySecret,
    request: &RekeyRequest,
    random: &mut dyn Random,
) -> Result<(Vec<u8>, SessionKeys), Invalid> {
    let (e, sealed) = request.message.split_first_chunk::<32>().ok_or(Invalid)?;
    let mut state = rekey_transcript(own, &request.hash, &request.psk);
    state.mix_hash(e);
    state.mix_key(e);
    state.mix_key(&secret.agree(e).ok_or(Invalid)?.0);
    let key: [u8; kem::KEY_LEN] = state.decrypt_and_hash(sealed)?;

    let ephemeral = RelaySecret::generate(random);
    let (text, shared) = kem::encapsulate(&key, random).ok_or(Invalid)?;
    let mut answer = vec![0; REKEYED_LEN];
    let (own_e, rest) = answer.split_at_mut(32);
    own_e.copy_from_slice(ephemeral.public().as_bytes());
    state.mix_hash(own_e);
    state.mix_key(own_e);
    state.mix_key(&ephemeral.agree(e).ok_or(Invalid)?.0);
    let (sealed, confirmation) = rest.split_at_mut(kem::TEXT_LEN + TAG_LEN);
    state.encrypt_and_hash(&text, sealed);
    state.mix_key(&shared.0);
    state.encrypt_and_hash(&[], confirmation);
    Ok((answer, SessionKeys::derive(&state, false)))
}

/// A peer's request for a re-handshake, with the state that the session adds to it.
#[derive(Debug)]
pub struct RekeyRequest {
    pub(crate) message: Vec<u8>,
    pub(crate) hash: [u8; 32],
    pub(crate) psk: Secret,
}

fn rekey_transcript(to: &Responder, hash: &[u8; 32], psk: &Secret) -> Symmetric {
    let mut state = to.transcript(Pattern::Rekey, 0);
    state.mix_hash(hash);
    state.mix_key_and_hash(psk);
    state
}

/// Returns a public key with a random top bit. The bit is clear in X25519 public keys, which would stand out on the
/// wire; receivers must ignore it (RFC 7748 §5).
fn with_random_top_bit(key: RelayKey, random: &mut dyn Random) -> [u8; 32] {
    let mut bytes = *key.as_bytes();
    bytes[31] |= array::<1>(random)[0] & 0x80;
    bytes
}

fn write_header(packet: &mut [u8], kind: PacketType, index: u32) {
    if let Some(head) = packet.first_chunk_mut::<5>() {
        head[0] = kind.byte();
        head[1..].copy_from_slice(&index.to_be_bytes());
    }
}

/// Splits off the next `length` bytes of `rest`.
fn put<'a>(rest: &mut &'a mut [u8], length: usize) -> Result<&'a mut [u8], Invalid> {
    let (head, tail) = std::mem::take(rest).split_at_mut_checked(length).ok_or(Invalid)?;
    *rest = tail;
    Ok(head)
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
