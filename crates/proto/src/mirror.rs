//! Mirrored files: records, checkpoints and evidence that relays pass on to clients.
//!
//! Owns the files of a relay, their pieces on the wire, and how a client puts a file together ([`fetch`]). Nobody has
//! to trust a relay for them: clients verify each file against the chain, and this crate never looks at its content.

pub(crate) mod fetch;

use std::sync::Arc;

use crate::keys::sha256;
use crate::link::Link;
use crate::message::{MIRROR_PIECE_NUMBER, Message};
use crate::wire::take;

/// Largest piece of a mirrored file in one message, in bytes. With the heads of piece and message it is exactly what
/// the control stream may have in flight, so each piece costs one round trip. A relay holds one piece for each
/// session that requested it and has not acknowledged it.
pub const MIRROR_PIECE: usize = 16_384 - 23;

/// Largest mirrored file, in bytes. The records of 20,000 relays with the longest descriptors that the registry
/// accepts have 6.3 MiB. Each piece costs a round trip, so a larger file would take a client most of a minute. A
/// hostile relay can make a client hold this much.
pub const MAX_MIRRORED: usize = 8 << 20;

/// A file that relays mirror for clients. This crate does not look at its content: the client that requested it
/// verifies it against the chain.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum MirrorFile {
    /// The records of all relays.
    Records,
    /// A signed checkpoint, with the reading at its block.
    Checkpoint,
    /// Relay evidence, and the data that it is judged by.
    Attestation,
}

/// A part of a mirrored file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MirrorPiece {
    /// Which file.
    pub file: MirrorFile,
    /// The first eight bytes of the file's SHA-256, so that pieces of an old and a new file do not mix.
    pub version: [u8; 8],
    /// Bytes of the whole file; 0 when the relay does not have it.
    pub total: u32,
    /// Offset of the piece: the requested one, or 0 when the file ends before that.
    pub offset: u32,
    /// The piece, up to [`MIRROR_PIECE`] bytes.
    pub bytes: Vec<u8>,
}

impl MirrorFile {
    pub(crate) const fn byte(self) -> u8 {
        match self {
            Self::Records => 1,
            Self::Checkpoint => 2,
            Self::Attestation => 3,
        }
    }

    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        match body.first() {
            Some(1) => Some(Self::Records),
            Some(2) => Some(Self::Checkpoint),
            Some(3) => Some(Self::Attestation),
            _ => None,
        }
    }
}

impl MirrorPiece {
    /// Bytes of a message before the piece.
    const HEAD: usize = 1 + 8 + 4 + 4;

    /// Returns the message's bytes before the piece: file, version, length of the file, offset.
    pub(crate) fn head(&self) -> [u8; Self::HEAD] {
        let mut head = [0; Self::HEAD];
        head[0] = self.file.byte();
        head[1..9].copy_from_slice(&self.version);
        head[9..13].copy_from_slice(&self.total.to_be_bytes());
        head[13..].copy_from_slice(&self.offset.to_be_bytes());
        head
    }

    /// Parses a message's body; `None` when it is malformed.
    pub(crate) fn parse(body: &[u8]) -> Option<Self> {
        let bytes = body.get(Self::HEAD..).filter(|bytes| bytes.len() <= MIRROR_PIECE)?.to_vec();
        let number = |at| take(body, at).map(u32::from_be_bytes);
        let (version, total, offset) = (take(body, 1)?, number(9)?, number(13)?);
        let end = u64::from(offset) + bytes.len() as u64;
        // A piece must bring the file further, and must not go beyond its end.
        if end > total.into() || (bytes.is_empty() && end < total.into()) {
            return None;
        }
        Some(Self { file: MirrorFile::parse(body)?, version, total, offset, bytes })
    }
}

/// The files that a relay mirrors. Nobody has to trust the relay: clients verify the files against the chain.
#[derive(Clone, Default, Debug)]
pub struct Mirror {
    /// The records of all relays; `None` with a signed directory.
    pub records: Option<Arc<Mirrored>>,
    /// A signed checkpoint.
    pub checkpoint: Option<Arc<Mirrored>>,
    /// Relay evidence, and the data that it is judged by.
    pub attestation: Option<Arc<Mirrored>>,
}

/// A mirrored file.
#[derive(Debug)]
pub struct Mirrored {
    version: [u8; 8],
    bytes: Vec<u8>,
}

impl Mirrored {
    /// Makes a file of these bytes; `None` when they are empty or more than [`MAX_MIRRORED`].
    pub fn new(bytes: Vec<u8>) -> Option<Arc<Self>> {
        if bytes.is_empty() || bytes.len() > MAX_MIRRORED {
            return None;
        }
        let version = *sha256(&[&bytes]).first_chunk()?;
        Some(Arc::new(Self { version, bytes }))
    }
}

impl AsRef<[u8]> for Mirrored {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Mirror {
    /// Sends the piece of a file that starts at `offset`, from the bytes that all sessions share.
    pub(crate) fn send_piece(&self, file: MirrorFile, offset: u32, link: &mut Link) {
        let found = match file {
            MirrorFile::Records => &self.records,
            MirrorFile::Checkpoint => &self.checkpoint,
            MirrorFile::Attestation => &self.attestation,
        };
        let mut head = MirrorPiece { file, version: [0; 8], total: 0, offset: 0, bytes: Vec::new() };
        let Some(found) = found else {
            return link.send(&Message::MirrorPiece(head));
        };
        head.version = found.version;
        head.total = u32::try_from(found.bytes.len()).unwrap_or(0);
        // A file that has become shorter than the offset starts at 0 again.
        head.offset = if offset < head.total { offset } else { 0 };
        let start = head.offset as usize;
        let end = found.bytes.len().min(start + MIRROR_PIECE);
        link.send_shared(MIRROR_PIECE_NUMBER, &head.head(), found.clone(), start..end);
    }
}
