//! Bytes on the wire: sizes, packet types, frame kinds, the header.
//!
//! Owns every number that two ends must agree on; `docs/protocol.md` lists them with their reasons. Never decrypts
//! and never keeps state.
//!
//! ```text
//! datagram:  type 1 | index 4 | flags 1 | counter 4 | ciphertext … | tag 16
//!            └ index mask ─┘   └ session mask ─────┘
//! ```

/// Bytes of the header of every packet: type 1, receiver index 4, flags 1, truncated counter 4.
pub const HEADER_LEN: usize = 10;
/// Bytes of the authentication tag that ends every packet.
pub const TAG_LEN: usize = 16;
/// Smallest packet: a header and a tag. The header masks sample the 16 bytes after the header.
pub const MIN_DATAGRAM: usize = HEADER_LEN + TAG_LEN;
/// Bytes before an inner session's packet in an outer one: frame kind 1, circuit tag 4.
pub const FORWARD_LEN: usize = 5;
/// Bytes of an inner packet's frame kind.
pub const KIND_LEN: usize = 1;
/// Bytes before the inner IP packet in a datagram of two layers.
pub const NESTED_OFFSET: usize = HEADER_LEN + FORWARD_LEN + HEADER_LEN + KIND_LEN;
/// Bytes after the padded inner IP packet in a datagram of two layers.
pub const NESTED_TRAILER: usize = 2 * TAG_LEN;
/// Bytes before the inner IP packet in a datagram of one layer.
pub const DIRECT_OFFSET: usize = HEADER_LEN + KIND_LEN;
/// Inner packets are padded to a multiple of this many bytes.
pub const PADDING: usize = 16;
/// Smallest inner MTU, which IPv6 requires. Source: RFC 8200 §5.
pub const MIN_MTU: u16 = 1280;
/// Largest inner MTU that is probed: 1494 bytes with two layers, IPv4 and UDP.
pub const MAX_MTU: u16 = 1408;
/// Largest datagram that either end builds, in bytes of UDP payload.
pub const MAX_DATAGRAM: usize = NESTED_OFFSET + MAX_MTU as usize + NESTED_TRAILER;

/// Returns the length of `packet` bytes padded to a multiple of [`PADDING`].
pub const fn padded(packet: usize) -> usize {
    packet.next_multiple_of(PADDING)
}

/// The AEAD of a session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Suite {
    /// AEGIS-256X2, where both ends have AES instructions. Source: draft-irtf-cfrg-aegis-aead, AEGIS-256X.
    ///
    /// It takes half the time of AES-GCM on packets of 1,440 bytes, because each packet needs nothing but a new state.
    Aegis256X2,
    /// AES-256-GCM, where an end has AES instructions but lacks the others that AEGIS needs.
    Aes256Gcm,
    /// ChaCha20-Poly1305, everywhere else.
    ChaCha20Poly1305,
}

impl Suite {
    /// Returns the suite's number in a reply, which is its bit in [`Suites`].
    pub const fn byte(self) -> u8 {
        match self {
            Self::Aes256Gcm => 1,
            Self::ChaCha20Poly1305 => 2,
            Self::Aegis256X2 => 4,
        }
    }

    /// Returns the suite with this number; `None` for any other number.
    pub const fn parse(byte: u8) -> Option<Self> {
        match byte {
            1 => Some(Self::Aes256Gcm),
            2 => Some(Self::ChaCha20Poly1305),
            4 => Some(Self::Aegis256X2),
            _ => None,
        }
    }
}

/// A non-empty set of suites.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Suites(u8);

impl Suites {
    /// All suites.
    pub const ALL: Self = Self(7);
    /// ChaCha20-Poly1305 alone.
    pub const CHACHA: Self = Self(2);

    /// Returns the set with these bits; `None` for an empty set and for bits without a suite.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        match bits {
            1..=7 => Some(Self(bits)),
            _ => None,
        }
    }

    /// Returns the set as bits.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Returns whether the set contains `suite`.
    pub const fn contains(self, suite: Suite) -> bool {
        self.0 & suite.byte() != 0
    }

    /// Returns the set with `suite` added.
    pub const fn with(self, suite: Suite) -> Self {
        Self(self.0 | suite.byte())
    }

    /// Returns the fastest suite that both sets contain; `None` when they share none.
    pub fn agree(self, other: Self) -> Option<Suite> {
        [Suite::Aegis256X2, Suite::Aes256Gcm, Suite::ChaCha20Poly1305]
            .into_iter()
            .find(|&suite| self.contains(suite) && other.contains(suite))
    }
}

/// The digest under which a client accepts evidence: for `open`, SHA-256 of the message body; for a staple, whatever
/// its verifier identifies it by.
pub type EvidenceDigest = [u8; 32];

/// Bytes of a cookie.
pub const COOKIE_LEN: usize = 16;
/// Bytes of the packet that carries a cookie or a refusal: less than half of a first packet.
pub const COOKIE_PACKET_LEN: usize = HEADER_LEN + COOKIE_LEN + TAG_LEN;
/// Bytes of the cookie proof, which a first packet may carry at its end. No other packet has the length of a first
/// packet without a proof.
pub const PROOF_LEN: usize = 16;

/// The type of a packet, from its unmasked first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PacketType {
    /// First packet of a client (Noise NK), with the suites it offers.
    FirstNk(Suites),
    /// First packet of a relay (Noise IK), with the suites it offers.
    FirstIk(Suites),
    /// Answer to a first packet.
    Reply,
    /// ML-KEM-768 encapsulation key, second packet of the initiator.
    KemKey,
    /// ML-KEM-768 ciphertext, second packet of the responder.
    KemText,
    /// Cookie for an initiator, sent under load.
    Cookie,
    /// Refusal of an initiator that has proven its address: the relay has no room for its network at the moment.
    Full,
    /// A frame of a session.
    Data,
}

const FIRST_NK: u8 = 0x10;
const FIRST_IK: u8 = 0x20;

impl PacketType {
    /// Returns the byte on the wire, before masking.
    pub const fn byte(self) -> u8 {
        match self {
            Self::FirstNk(suites) => FIRST_NK | suites.bits(),
            Self::FirstIk(suites) => FIRST_IK | suites.bits(),
            Self::Reply => 0x30,
            Self::KemKey => 0x31,
            Self::KemText => 0x32,
            Self::Cookie => 0x33,
            Self::Full => 0x34,
            Self::Data => 0x40,
        }
    }

    /// Returns the type that `byte` stands for; `None` for every other byte.
    pub const fn parse(byte: u8) -> Option<Self> {
        match byte {
            0x30 => Some(Self::Reply),
            0x31 => Some(Self::KemKey),
            0x32 => Some(Self::KemText),
            0x33 => Some(Self::Cookie),
            0x34 => Some(Self::Full),
            0x40 => Some(Self::Data),
            _ => match (byte & 0xf0, Suites::from_bits(byte & 0x0f)) {
                (FIRST_NK, Some(suites)) => Some(Self::FirstNk(suites)),
                (FIRST_IK, Some(suites)) => Some(Self::FirstIk(suites)),
                _ => None,
            },
        }
    }
}

/// The kind of a frame inside a session, from its first byte.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    /// An IPv4 or IPv6 packet; `partial` when its transport checksum is still to be filled in.
    Packet {
        /// Whether the transport checksum is left to the receiver.
        partial: bool,
    },
    /// A piece of the control stream.
    Control,
    /// No content: keepalive and cover. Numbers up to 15 are reserved for padding machines.
    Padding,
    /// A packet of the circuit whose tag follows.
    Forward,
    /// Asks the peer to prove its new path: nonce 8, fresh index 4.
    PathChallenge,
    /// Proves a path: nonce 8, fresh index 4.
    PathResponse,
    /// Probe of the path MTU: nonce 8, report 6, filled to the probed size. A report holds the largest inner packet
    /// that the path is known to carry 2, and the received bytes of the control stream 4.
    Probe,
    /// Answer to a probe: nonce 8, filled to the same size.
    ProbeAck,
    /// The path MTU that probes have found: report 6.
    PathMtu,
}

/// The bit of a packet frame that marks a partial transport checksum.
pub const PARTIAL_CHECKSUM: u8 = 0x80;

impl FrameKind {
    /// Returns the byte on the wire.
    pub const fn byte(self) -> u8 {
        match self {
            Self::Packet { partial: false } => 0x01,
            Self::Packet { partial: true } => 0x01 | PARTIAL_CHECKSUM,
            Self::Control => 0x02,
            Self::Padding => 0x03,
            Self::Forward => 0x04,
            Self::PathChallenge => 0x05,
            Self::PathResponse => 0x06,
            Self::Probe => 0x07,
            Self::ProbeAck => 0x08,
            Self::PathMtu => 0x10,
        }
    }

    /// Returns the kind that `byte` stands for; `None` for every other byte.
    pub const fn parse(byte: u8) -> Option<Self> {
        Some(match byte {
            0x01 => Self::Packet { partial: false },
            0x81 => Self::Packet { partial: true },
            0x02 => Self::Control,
            0x03 => Self::Padding,
            0x04 => Self::Forward,
            0x05 => Self::PathChallenge,
            0x06 => Self::PathResponse,
            0x07 => Self::Probe,
            0x08 => Self::ProbeAck,
            0x10 => Self::PathMtu,
            _ => return None,
        })
    }
}

/// Copies `N` bytes from `bytes` at `offset`; `None` when there are fewer.
pub(crate) fn take<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk::<N>().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_type_and_kind_bytes_parse_and_they_parse_back() {
        let types: Vec<u8> = (0..=255).filter(|&b| PacketType::parse(b).is_some()).collect();
        assert_eq!(types, (0x11..=0x17).chain(0x21..=0x27).chain(0x30..=0x34).chain([0x40]).collect::<Vec<_>>());
        let kinds: Vec<u8> = (0..=255).filter(|&b| FrameKind::parse(b).is_some()).collect();
        assert_eq!(kinds, [1, 2, 3, 4, 5, 6, 7, 8, 0x10, 0x81]);
        for byte in 0..=255 {
            assert_eq!(PacketType::parse(byte).map_or(byte, PacketType::byte), byte);
            assert_eq!(FrameKind::parse(byte).map_or(byte, FrameKind::byte), byte);
        }
    }

    #[test]
    fn full_packets_fit_an_ethernet_frame_and_need_no_padding() {
        assert_eq!(padded(MAX_MTU.into()), usize::from(MAX_MTU));
        assert_eq!(padded(MIN_MTU.into()), usize::from(MIN_MTU));
        assert_eq!(MAX_DATAGRAM + 20 + 8, 1494);
    }
}
