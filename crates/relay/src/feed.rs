//! Readings of the chain and signed checkpoints, which the operator's agent writes to standard input.
//!
//! ```text
//! length 4 of what follows | kind 1: 1 reading, 2 checkpoint with its reading, 3 request for statistics | its bytes
//! ```
//!
//! Owns their limits and checks. The agent is outside and is trusted only for which header is the newest. With a
//! false one it could only keep this relay from serving, which it can do anyway.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd};

use openrelay_ledger::chain::checkpoint::{CheckpointError, CheckpointFile};
use openrelay_ledger::chain::reading::{MAX_ATTESTATION, MAX_READING, Reading, ReadingError};
use openrelay_node::chain_file::ChainFile;
use openrelay_node::clock::unix_seconds;
use openrelay_node::directory::VerifiedDirectory;
use openrelay_proto::message::MAX_MIRRORED;

/// The kinds of messages.
const READING: u8 = 1;
const CHECKPOINT: u8 = 2;
const REPORT: u8 = 3;
/// The largest message after its length, in bytes. The agent sends evidence and checkpoints only as far as a relay
/// mirrors them.
const MAX_FRAME: usize = 1 + MAX_READING - MAX_ATTESTATION + MAX_MIRRORED;

/// The result of reading the input.
pub(crate) enum Fed {
    /// No complete message yet.
    Nothing,
    /// A verified directory.
    Directory(Box<VerifiedDirectory>),
    /// A verified checkpoint, with its reading.
    Checkpoint(Vec<u8>),
    /// A request for statistics, from an agent whose signals do not reach the relay.
    Report,
    /// A malformed or unverifiable message; the reason.
    Refused(String),
    /// The agent has closed its end; the relay continues with what it has.
    End,
}

/// The relay's end of the agent's messages on standard input.
pub(crate) struct Feed {
    chain: ChainFile,
    buffer: Vec<u8>,
    /// The highest block of a reading so far; `signed` is that of a checkpoint.
    seen: u64,
    signed: u64,
    ended: bool,
    input: File,
}

impl Feed {
    pub(crate) fn new(chain: ChainFile) -> std::io::Result<Self> {
        // A copy of the descriptor avoids the standard library's buffer, in which a whole reading could wait unseen.
        let input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        Ok(Self { chain, buffer: Vec::new(), seen: 0, signed: 0, ended: false, input })
    }

    /// Returns what to wait for; `None` after the end.
    pub(crate) fn readable(&self) -> Option<BorrowedFd<'_>> {
        (!self.ended).then(|| self.input.as_fd())
    }

    /// Returns whether a complete message is in the buffer.
    pub(crate) fn is_waiting(&self) -> bool {
        self.frame_end().is_some_and(|end| self.buffer.len() >= end)
    }

    /// Returns where the first message in the buffer ends.
    fn frame_end(&self) -> Option<usize> {
        let length = u32::from_be_bytes(*self.buffer.first_chunk::<4>()?);
        Some(usize::try_from(length).unwrap_or(usize::MAX).saturating_add(4))
    }

    /// Takes the first complete message. Without one it reads once, which blocks until input arrives.
    pub(crate) fn take(&mut self) -> Fed {
        if self.ended {
            return Fed::End;
        }
        if !self.is_waiting() {
            let mut piece = [0; 1 << 16];
            match self.input.read(&mut piece) {
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => return Fed::Nothing,
                Ok(0) | Err(_) => {
                    self.ended = true;
                    return Fed::End;
                }
                Ok(count) => self.buffer.extend(piece.iter().take(count)),
            }
        }
        let Some(end) = self.frame_end() else { return Fed::Nothing };
        if end > 4 + MAX_FRAME {
            self.ended = true;
            return Fed::Refused(format!("a reading of {} bytes; at most {MAX_FRAME} are accepted", end - 4));
        }
        if self.buffer.len() < end {
            return Fed::Nothing;
        }
        let rest = self.buffer.split_off(end);
        let frame = std::mem::replace(&mut self.buffer, rest);
        match frame.get(4..).and_then(<[u8]>::split_first) {
            Some((&READING, bytes)) => self.take_reading(bytes).unwrap_or_else(|error| Fed::Refused(error.to_string())),
            Some((&REPORT, [])) => Fed::Report,
            Some((&CHECKPOINT, bytes)) => {
                self.take_checkpoint(bytes).unwrap_or_else(|error| Fed::Refused(error.to_string()))
            }
            _ => Fed::Refused("unknown kind of message".into()),
        }
    }

    fn take_reading(&mut self, bytes: &[u8]) -> Result<Fed, ReadingError> {
        let reading = Reading::decode(bytes)?;
        let directory = VerifiedDirectory::of_reading(reading, &self.chain.trust(), self.chain.max_age_s, self.seen)?;
        self.seen = directory.directory().body().sequence;
        Ok(Fed::Directory(Box::new(directory)))
    }

    fn take_checkpoint(&mut self, bytes: &[u8]) -> Result<Fed, CheckpointError> {
        let file = CheckpointFile::decode(bytes)?;
        let (signers, trust) = (self.chain.signers(), self.chain.trust());
        file.verify(&signers, &trust, unix_seconds(), self.chain.max_age_s, self.signed)?;
        self.signed = file.signed.checkpoint.number;
        Ok(Fed::Checkpoint(bytes.to_vec()))
    }
}
