//! Control messages: what two ends say to each other besides packets.
//!
//! Owns their numbers and strict encoding; `docs/protocol.md` lists them with the states in which each is
//! allowed. Numbers of messages that credentials and attestation will fill in are taken now, each with the body of
//! its `open` step, which accepts everybody and says so.

use crate::keys::{RelayId, sha256};
use crate::wire::take;

/// A message of the control stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Message {
    /// 0x01, initiator: asks for evidence of what the relay runs.
    EvidenceRequest,
    /// 0x02, responder: evidence. The `open` form is empty and proves nothing.
    Evidence(Evidence),
    /// 0x03, initiator: asks for collateral to judge evidence by.
    CollateralRequest,
    /// 0x04, responder: collateral. The `open` form is empty.
    Collateral,
    /// 0x05, initiator: a token that pays for the session. The `open` form is empty.
    Token(Token),
    /// 0x06, responder: the session may carry traffic.
    Admitted(Admission),
    /// 0x07, initiator: the next preimage of a metering chain. The `open` form is empty and changes nothing.
    Preimage,
    /// 0x08, responder: the credit is used up. `open` relays never send it.
    PaymentNeeded,
    /// 0x10, client to ingress: open a circuit to this egress.
    CircuitOpen {
        /// Number of the request, repeated in the answer.
        request: u32,
        /// The egress, by its registry number.
        egress: RelayId,
    },
    /// 0x11, ingress to client: the circuit is open.
    CircuitOpened {
        /// Number of the request.
        request: u32,
        /// Tag of the circuit's frames.
        tag: u32,
    },
    /// 0x12, ingress to client: the circuit is not open.
    CircuitRefused {
        /// Number of the request.
        request: u32,
        /// Why.
        reason: Refusal,
    },
    /// 0x13, either way: the circuit is closed.
    CircuitClose {
        /// Tag of the circuit's frames.
        tag: u32,
    },
    /// 0x20, initiator: re-handshake, [`crate::handshake::REKEY_LEN`] bytes.
    Rekey(Vec<u8>),
    /// 0x21, responder: answer to a re-handshake, [`crate::handshake::REKEYED_LEN`] bytes.
    Rekeyed(Vec<u8>),
    /// 0x23, either way: the session is over.
    Close,
    /// 0x30, client: asks for a part of a file that the relay mirrors.
    MirrorRequest {
        /// Which file.
        file: MirrorFile,
        /// From which byte on.
        offset: u32,
    },
    /// 0x31, responder: a part of it.
    MirrorPiece(MirrorPiece),
}

/// Largest piece of a mirrored file in one message, in bytes: with the heads of piece and message just what the control stream has on its way at once, so that each costs one round
/// trip. A relay holds one for each session that asked and has not acknowledged it.
pub const MIRROR_PIECE: usize = 16_384 - 23;

/// Largest file that is mirrored, in bytes: the records of 20,000 relays with the longest descriptors that the registry
/// takes have 6.3 MiB. Each piece costs a round trip, so a larger file would take a client most of a minute. This is
/// also what a hostile relay can make a client hold.
pub const MAX_MIRRORED: usize = 8 << 20;

/// A file that relays mirror for clients. What is in it is not this crate's business: who asked holds it against the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MirrorFile {
    /// The records of all relays.
    Records,
    /// A signed checkpoint, with the reading at its block.
    Checkpoint,
    /// What relays are judged by: evidence, and what it is held against.
    Attestation,
}

/// A part of a mirrored file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MirrorPiece {
    /// Which file.
    pub file: MirrorFile,
    /// The first eight bytes of the file's SHA-256: pieces of the old file and of a new one do not mix.
    pub version: [u8; 8],
    /// Bytes of the whole file; 0 when the relay has none.
    pub total: u32,
    /// Where the piece begins: where it was asked for, or 0 when the file ends before that.
    pub offset: u32,
    /// The piece, up to [`MIRROR_PIECE`] bytes.
    pub bytes: Vec<u8>,
}

/// Evidence by kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Evidence {
    /// None: the relay proves nothing, and whoever accepts this says so.
    Open,
    /// What a chip has signed, with what it is bound to. Judging it is not this crate's business.
    Staple(Vec<u8>),
}

/// Largest staple, in bytes: a quote of 16 KiB and its binding.
pub const MAX_STAPLE: usize = 16_640;

/// What evidence is known by to who has accepted it: of `open`, SHA-256 of the message's body; of a staple, whatever its judges know it by.
pub type EvidenceDigest = [u8; 32];

/// Evidence as a relay has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Announced {
    /// What it is known by.
    pub digest: EvidenceDigest,
    /// What is sent to who asks.
    pub shown: Evidence,
}

impl Announced {
    /// What relays that prove nothing announce when they confirm a handshake.
    pub fn open() -> Self {
        let shown = Evidence::Open;
        let digest = sha256(&[&Message::Evidence(shown.clone()).encode().1]);
        Self { digest, shown }
    }
}

/// Token by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Token {
    /// None.
    Open,
}

/// On what ground a session was admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Admission {
    /// Everybody is.
    Open,
}

/// Why a circuit was not opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// The ingress' directory has no egress with this number.
    UnknownRelay,
    /// The ingress was asked for a circuit to itself.
    Itself,
    /// The egress does not answer.
    Unreachable,
    /// Too many circuits.
    Full,
}

/// A message that does not read: unknown number, wrong length, unknown value.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("malformed control message")]
pub struct Malformed;

impl Message {
    /// The message's number and body.
    pub fn encode(&self) -> (u16, Vec<u8>) {
        match self {
            Self::EvidenceRequest => (0x01, vec![]),
            Self::Evidence(Evidence::Open) => (0x02, vec![0]),
            Self::Evidence(Evidence::Staple(bytes)) => (0x02, [&[1], &bytes[..]].concat()),
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
            Self::MirrorRequest { file, offset } => (0x30, [&[file.byte()][..], &offset.to_be_bytes()].concat()),
            Self::MirrorPiece(piece) => {
                let head = [&[piece.file.byte()][..], &piece.version, &piece.total.to_be_bytes()].concat();
                (0x31, [&head[..], &piece.offset.to_be_bytes(), &piece.bytes].concat())
            }
        }
    }

    /// Reads the message with this number and body.
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
                let reason = body.get(4).copied().and_then(Refusal::parse).ok_or(Malformed)?;
                Self::CircuitRefused { request: number(body, 0)?, reason }
            }
            0x13 => Self::CircuitClose { tag: number(body, 0)? },
            0x20 if body.len() == crate::handshake::REKEY_LEN => Self::Rekey(body.to_vec()),
            0x21 if body.len() == crate::handshake::REKEYED_LEN => Self::Rekeyed(body.to_vec()),
            0x23 => Self::Close,
            0x30 => Self::MirrorRequest { file: MirrorFile::parse(body)?, offset: number(body, 1)? },
            0x31 => Self::MirrorPiece(MirrorPiece::parse(body)?),
            _ => return Err(Malformed),
        };
        // One encoding for each message: whatever would not be written back the same is refused.
        let (_, canonical) = message.encode();
        if canonical == body { Ok(message) } else { Err(Malformed) }
    }
}

impl Evidence {
    fn parse(body: &[u8]) -> Result<Self, Malformed> {
        match body.split_first() {
            Some((0, [])) => Ok(Self::Open),
            Some((1, bytes)) if !bytes.is_empty() && bytes.len() <= MAX_STAPLE => Ok(Self::Staple(bytes.to_vec())),
            _ => Err(Malformed),
        }
    }
}

impl MirrorFile {
    const fn byte(self) -> u8 {
        match self {
            Self::Records => 1,
            Self::Checkpoint => 2,
            Self::Attestation => 3,
        }
    }

    fn parse(body: &[u8]) -> Result<Self, Malformed> {
        match body.first() {
            Some(1) => Ok(Self::Records),
            Some(2) => Ok(Self::Checkpoint),
            Some(3) => Ok(Self::Attestation),
            _ => Err(Malformed),
        }
    }
}

impl MirrorPiece {
    /// Bytes before the piece.
    const HEAD: usize = 1 + 8 + 4 + 4;

    fn parse(body: &[u8]) -> Result<Self, Malformed> {
        let bytes = body.get(Self::HEAD..).filter(|bytes| bytes.len() <= MIRROR_PIECE).ok_or(Malformed)?.to_vec();
        let version = take(body, 1).ok_or(Malformed)?;
        let (total, offset) = (number(body, 9)?, number(body, 13)?);
        let end = u64::from(offset) + bytes.len() as u64;
        // One that brings a file no further, or goes past its end, is none.
        if end > total.into() || (bytes.is_empty() && end < total.into()) {
            return Err(Malformed);
        }
        Ok(Self { file: MirrorFile::parse(body)?, version, total, offset, bytes })
    }
}

impl Refusal {
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
            any::<u32>().prop_map(|request| Message::CircuitRefused { request, reason: Refusal::Full }),
            any::<u32>().prop_map(|tag| Message::CircuitClose { tag }),
            any::<u8>().prop_map(|b| Message::Rekey(vec![b; crate::handshake::REKEY_LEN])),
            Just(Message::Close),
            any::<u32>().prop_map(|offset| Message::MirrorRequest { file: MirrorFile::Checkpoint, offset }),
            (any::<u32>(), prop::collection::vec(any::<u8>(), 1..40)).prop_map(|(offset, bytes)| {
                let offset = offset % 1_000;
                // The last of its file: longer or shorter would be another.
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
    fn a_piece_lies_within_its_file_and_brings_it_further() {
        let largest = u32::try_from(MIRROR_PIECE).unwrap();
        let good = [piece(0, 0, 0), piece(5, 0, 5), piece(5, 2, 1), piece(2 * largest, largest, MIRROR_PIECE)];
        for message in good {
            let (kind, body) = message.encode();
            assert!(body.len() + 6 <= 65_536, "fits a message");
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
        fn reads_back_what_it_wrote_and_no_truncation_or_extension_of_it(message in any_message()) {
            let (kind, body) = message.encode();
            prop_assert_eq!(Message::decode(kind, &body), Ok(message));
            for end in 0..body.len() {
                // A piece that ends sooner may be one of the same file, and is then written back as it is.
                let read = Message::decode(kind, &body[..end]).map(|shorter| shorter.encode().1);
                // So may a staple; whether it is whole its judges find out.
                prop_assert!(read == Err(Malformed) || ([0x02, 0x31].contains(&kind) && read.as_deref() == Ok(&body[..end])));
            }
            let longer = [&body[..], &[0]].concat();
            let read = Message::decode(kind, &longer).map(|longer| longer.encode().1);
            prop_assert!(read == Err(Malformed) || (kind == 0x02 && body[0] == 1 && read.as_ref() == Ok(&longer)));
        }

        #[test]
        fn never_panics(kind in 0u16..0x40, body in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = Message::decode(kind, &body);
        }
    }
}
