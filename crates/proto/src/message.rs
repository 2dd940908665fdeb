//! Control messages: everything that two ends exchange besides packets.
//!
//! Owns the numbers of messages and their strict encoding. `docs/protocol.md` lists them with the states in which
//! each is allowed. Never judges evidence or the content of mirrored files.
//!
//! Messages of admission and attestation have their numbers already. Their `open` form accepts everybody and declares
//! it.

use std::time::Duration;

use crate::keys::{RelayId, sha256};
use crate::wire::take;

pub use crate::mirror::{MAX_MIRRORED, MIRROR_PIECE, MirrorFile, MirrorPiece};
pub use crate::wire::EvidenceDigest;

/// A message of the control stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// 0x01, initiator: asks for evidence of what the relay runs.
    EvidenceRequest,
    /// 0x02, responder: evidence. The `open` form is kind 0 without content, and proves nothing.
    Evidence(Evidence),
    /// 0x03, initiator: asks for the collateral by which evidence is judged.
    CollateralRequest,
    /// 0x04, responder: collateral. The `open` form is kind 0 without content.
    Collateral,
    /// 0x05, initiator: a token that pays for the session. The `open` form is kind 0 without content.
    Token(Token),
    /// 0x06, responder: the session may carry traffic.
    Admitted(Admission),
    /// 0x07, initiator: the next preimage of a metering chain. The `open` form is kind 0 without content, and changes
    /// nothing.
    Preimage,
    /// 0x08, responder: the credit is used up. `open` relays never send it.
    PaymentNeeded,
    /// 0x10, client to ingress: opens a circuit to this egress.
    CircuitOpen {
        /// Number of the request; the answer repeats it.
        request: u32,
        /// The egress' registry number.
        egress: RelayId,
    },
    /// 0x11, ingress to client: the circuit is open.
    CircuitOpened {
        /// Number of the request.
        request: u32,
        /// Tag of the circuit's frames.
        tag: u32,
    },
    /// 0x12, ingress to client: the circuit was refused.
    CircuitRefused {
        /// Number of the request.
        request: u32,
        /// The reason.
        reason: CircuitRefusal,
    },
    /// 0x13, either way: the circuit is closed.
    CircuitClose {
        /// Tag of the circuit's frames.
        tag: u32,
    },
    /// 0x20, initiator: starts a re-handshake, [`crate::handshake::REKEY_LEN`] bytes.
    Rekey(Vec<u8>),
    /// 0x21, responder: answers a re-handshake, [`crate::handshake::REKEYED_LEN`] bytes.
    Rekeyed(Vec<u8>),
    /// 0x23, either way: the session has ended.
    Close,
    /// 0x24, responder: the relay has no room for the session, which has ended. Another attempt may succeed later.
    Full {
        /// How long to wait before it, in whole seconds up to 65,535.
        retry: Duration,
    },
    /// 0x30, client: requests a part of a file that the relay mirrors.
    MirrorRequest {
        /// Which file.
        file: MirrorFile,
        /// Offset of the first requested byte.
        offset: u32,
    },
    /// 0x31, responder: a part of the file.
    MirrorPiece(MirrorPiece),
}

/// Number of [`Message::Evidence`], which a relay sends from shared bytes.
pub(crate) const EVIDENCE: u16 = 0x02;
/// Number of [`Message::MirrorPiece`], likewise.
pub(crate) const MIRROR_PIECE_NUMBER: u16 = 0x31;

/// Evidence, by kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Evidence {
    /// No evidence: the relay proves nothing, and anyone who accepts this states so.
    Open,
    /// A statement signed by a trusted execution environment, with its binding. This crate does not judge it.
    Staple(Vec<u8>),
}

/// Largest staple, in bytes: a quote of 16 KiB and its binding.
pub const MAX_STAPLE: usize = 16_640;

/// Evidence as a relay holds it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announced {
    /// The digest that identifies it.
    pub digest: EvidenceDigest,
    /// The evidence that is sent to any client that requests it.
    pub shown: Evidence,
}

impl Announced {
    /// Returns what a relay that proves nothing announces when it confirms a handshake.
    pub fn open() -> Self {
        let shown = Evidence::Open;
        let digest = sha256(&[&Message::Evidence(shown.clone()).encode().1]);
        Self { digest, shown }
    }
}

/// A token, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Token {
    /// No token.
    Open,
}

/// The reason why a session was admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// The relay admits everybody.
    Open,
}

/// The reason why a circuit was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CircuitRefusal {
    /// The ingress' directory has no egress with this number.
    UnknownRelay,
    /// The ingress was asked for a circuit to itself.
    Itself,
    /// The egress does not answer.
    Unreachable,
    /// The ingress has too many circuits.
    Full,
}

/// A control message that is malformed: unknown number, wrong length, unknown value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed control message")]
pub struct Malformed;

impl Message {
    /// Returns the message's number and body.
    pub fn encode(&self) -> (u16, Vec<u8>) {
        match self {
            Self::EvidenceRequest => (0x01, vec![]),
            Self::Evidence(evidence) => (EVIDENCE, evidence.encode()),
            Self::CollateralRequest => (0x03, vec![]),
            Self::Collateral => (0x04, vec![0]),
            Self::Token(Token::Open) => (0x05, vec![0]),
            Self::Admitted(Admission::Open) => (0x06, vec![0]),
            Self::Preimage => (0x07, vec![0]),
            Self::PaymentNeeded => (0x08, vec![0]),
            Self::CircuitOpen { request, egress } => {
                (0x10, [&request.to_be_bytes()[..], &egress.0.to_be_bytes()].concat())
            }
            Self::CircuitOpened { request, tag } => (0x11, [request.to_be_bytes(), tag.to_be_bytes()].concat()),
            Self::CircuitRefused { request, reason } => {
                let mut body = request.to_be_bytes().to_vec();
                body.push(reason.byte());
                (0x12, body)
            }
            Self::CircuitClose { tag } => (0x13, tag.to_be_bytes().to_vec()),
            Self::Rekey(body) => (0x20, body.clone()),
            Self::Rekeyed(body) => (0x21, body.clone()),
            Self::Close => (0x23, vec![]),
            Self::Full { retry } => (0x24, u16::try_from(retry.as_secs()).unwrap_or(u16::MAX).to_be_bytes().to_vec()),
            Self::MirrorRequest { file, offset } => (0x30, [&[file.byte()][..], &offset.to_be_bytes()].concat()),
            Self::MirrorPiece(piece) => (MIRROR_PIECE_NUMBER, [&piece.head()[..], &piece.bytes].concat()),
        }
    }

    /// Parses the message with this number and body.
    ///
    /// # Errors
    /// [`Malformed`] for unknown numbers, and for every body that [`Message::encode`] would not write.
    pub fn decode(kind: u16, body: &[u8]) -> Result<Self, Malformed> {
        let message = match kind {
            0x01 => Self::EvidenceRequest,
            0x02 => Self::Evidence(Evidence::parse(body)?),
            0x03 => Self::CollateralRequest,
            0x04 => Self::Collateral,
            0x05 => Self::Token(Token::Open),
            0x06 => Self::Admitted(Admission::Open),
            0x07 => Self::Preimage,
            0x08 => Self::PaymentNeeded,
            0x10 => Self::CircuitOpen {
                request: number(body, 0)?,
                egress: RelayId(u64::from_be_bytes(take(body, 4).ok_or(Malformed)?)),
            },
            0x11 => Self::CircuitOpened { request: number(body, 0)?, tag: number(body, 4)? },
            0x12 => {
                let reason = body.get(4).copied().and_then(CircuitRefusal::parse).ok_or(Malformed)?;
                Self::CircuitRefused { request: number(body, 0)?, reason }
            }
            0x13 => Self::CircuitClose { tag: number(body, 0)? },
            0x20 if body.len() == crate::handshake::REKEY_LEN => Self::Rekey(body.to_vec()),
            0x21 if body.len() == crate::handshake::REKEYED_LEN => Self::Rekeyed(body.to_vec()),
            0x23 => Self::Close,
            0x24 => {
                let seconds = u16::from_be_bytes(take(body, 0).ok_or(Malformed)?);
                Self::Full { retry: Duration::from_secs(seconds.into()) }
            }
            0x30 => Self::MirrorRequest { file: MirrorFile::parse(body).ok_or(Malformed)?, offset: number(body, 1)? },
            0x31 => Self::MirrorPiece(MirrorPiece::parse(body).ok_or(Malformed)?),
            _ => return Err(Malformed),
        };
        // Each message has one encoding: a body that would be encoded differently is refused.
        let (_, canonical) = message.encode();
        if canonical == body { Ok(message) } else { Err(Malformed) }
    }
}

impl Evidence {
    /// Returns the message's body.
    pub(crate) fn encode(&self) -> Vec<u8> {
        match self {
            Self::Open => vec![0],
            Self::Staple(bytes) => [&[1], &bytes[..]].concat(),
        }
    }

    fn parse(body: &[u8]) -> Result<Self, Malformed> {
        match body.split_first() {
            Some((0, [])) => Ok(Self::Open),
            Some((1, bytes)) if !bytes.is_empty() && bytes.len() <= MAX_STAPLE => Ok(Self::Staple(bytes.to_vec())),
            _ => Err(Malformed),
        }
    }
}

impl CircuitRefusal {
    const fn byte(self) -> u8 {
        match self {
            Self::UnknownRelay => 1,
            Self::Itself => 2,
            Self::Unreachable => 3,
            Self::Full => 4,
        }
    }

    const fn parse(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::UnknownRelay,
            2 => Self::Itself,
            3 => Self::Unreachable,
            4 => Self::Full,
            _ => return None,
        })
    }
}

fn number(body: &[u8], offset: usize) -> Result<u32, Malformed> {
    take(body, offset).map(u32::from_be_bytes).ok_or(Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_message() -> impl Strategy<Value = Message> {
        prop_oneof![
            Just(Message::EvidenceRequest),
            Just(Message::Evidence(Evidence::Open)),
            prop::collection::vec(any::<u8>(), 1..40).prop_map(|bytes| Message::Evidence(Evidence::Staple(bytes))),
            Just(Message::CollateralRequest),
            Just(Message::Collateral),
            Just(Message::Token(Token::Open)),
            Just(Message::Admitted(Admission::Open)),
            Just(Message::Preimage),
            Just(Message::PaymentNeeded),
            (any::<u32>(), any::<u64>())
                .prop_map(|(request, id)| Message::CircuitOpen { request, egress: RelayId(id) }),
            (any::<u32>(), any::<u32>()).prop_map(|(request, tag)| Message::CircuitOpened { request, tag }),
            any::<u32>().prop_map(|request| Message::CircuitRefused { request, reason: CircuitRefusal::Full }),
            any::<u32>().prop_map(|tag| Message::CircuitClose { tag }),
            any::<u8>().prop_map(|b| Message::Rekey(vec![b; crate::handshake::REKEY_LEN])),
            Just(Message::Close),
            any::<u16>().prop_map(|seconds| Message::Full { retry: Duration::from_secs(seconds.into()) }),
            any::<u32>().prop_map(|offset| Message::MirrorRequest { file: MirrorFile::Checkpoint, offset }),
            (any::<u32>(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(offset, bytes)| {
                let offset = offset % 1_000;
                // The last piece of its file, so that a longer or shorter body is not a valid piece.
                let total = offset + u32::try_from(bytes.len()).unwrap();
                Message::MirrorPiece(MirrorPiece { file: MirrorFile::Records, version: [9; 8], total, offset, bytes })
            }),
        ]
    }

    fn piece(total: u32, offset: u32, bytes: usize) -> Message {
        let bytes = vec![7; bytes];
        Message::MirrorPiece(MirrorPiece { file: MirrorFile::Records, version: [1; 8], total, offset, bytes })
    }

    #[test]
    fn piece_beyond_its_file_or_without_progress_is_refused() {
        let largest = u32::try_from(MIRROR_PIECE).unwrap();
        let good = [piece(0, 0, 0), piece(5, 0, 5), piece(5, 2, 1), piece(2 * largest, largest, MIRROR_PIECE)];
        for message in good {
            let (kind, body) = message.encode();
            assert!(body.len() + 6 <= 65_536, "the piece fits a message");
            assert_eq!(Message::decode(kind, &body), Ok(message));
        }
        for message in [piece(5, 0, 0), piece(5, 4, 2), piece(5, u32::MAX, 1), piece(2 * largest, 0, MIRROR_PIECE + 1)]
        {
            let (kind, body) = message.encode();
            assert_eq!(Message::decode(kind, &body), Err(Malformed), "{message:?}");
        }
    }

    proptest! {
        #[test]
        fn messages_decode_as_encoded_and_not_when_truncated_or_extended(message in any_message()) {
            let (kind, body) = message.encode();
            prop_assert_eq!(Message::decode(kind, &body), Ok(message));
            for end in 0..body.len() {
                // A truncated piece may be another valid piece of the same file; it then encodes to the same bytes.
                let read = Message::decode(kind, &body[..end]).map(|shorter| shorter.encode().1);
                // So may a truncated staple; its verifier finds out whether it is complete.
                prop_assert!(
                    read == Err(Malformed)
                        || ([0x02, 0x31].contains(&kind) && read.as_deref() == Ok(&body[..end]))
                );
            }
            let longer = [&body[..], &[0]].concat();
            let read = Message::decode(kind, &longer).map(|longer| longer.encode().1);
            prop_assert!(read == Err(Malformed) || (kind == 0x02 && body[0] == 1 && read.as_ref() == Ok(&longer)));
        }

        #[test]
        fn decoding_never_panics(kind in 0u16..0x40, body in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Message::decode(kind, &body);
        }
    }
}
