//! Readings of the chain and signed checkpoints, as the operator's agent hands them over on standard input.
//!
//! ```text
//! length 4, of what follows | kind 1: 1 reading, 2 checkpoint with its reading, 3 the question for statistics | its bytes
//! ```
//!
//! Owns their bounds and the check of each. The agent stands outside and is believed in nothing but which header is the newest: what it could do with a false one is to
//! keep this relay from serving, which it can anyway.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd};

use openrelay_ledger::chain::checkpoint::{CheckpointError, CheckpointFile};
use openrelay_ledger::chain::reading::{MAX_ATTESTATION, MAX_READING, Reading, ReadingError};
use openrelay_node::chain_file::ChainFile;
use openrelay_node::clock::unix_seconds;
use openrelay_node::directory::VerifiedDirectory;
use openrelay_proto::message::MAX_MIRRORED;

/// The kinds.
const READING: u8 = 1;
const CHECKPOINT: u8 = 2;
const REPORT: u8 = 3;
/// Largest frame after its length, in bytes: evidence is handed over only as far as a relay mirrors it, and so are checkpoints.
const MAX_FRAME: usize = 1 + MAX_READING - MAX_ATTESTATION + MAX_MIRRORED;

/// What came of a look at the input.
pub(crate) enum Fed {
    /// Nothing whole yet.
    Nothing,
    /// A directory that was verified.
    Directory(Box<VerifiedDirectory>),
    /// A checkpoint that was verified, with its reading.
    Checkpoint(Vec<u8>),
    /// The question for statistics, from where no signal comes through.
    Report,
    /// Something that is none.
    Refused(String),
    /// The agent has gone away; the relay goes on with what it knows.
    End,
}

/// The agent's side of standard input.
pub(crate) struct Feed {
    chain: ChainFile,
    buffer: Vec<u8>,
    /// The highest block of a reading, and of a checkpoint.
    seen: u64,
    signed: u64,
    ended: bool,
    input: File,
}

impl Feed {
    pub(crate) fn new(chain: ChainFile) -> std::io::Result<Self> {
        // A copy of the descriptor without the standard library's buffer, in which a whole reading could wait unseen.
        let input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        Ok(Self { chain, buffer: Vec::new(), seen: 0, signed: 0, ended: false, input })
    }

    /// What to wait for; `None` after the end.
    pub(crate) fn readable(&self) -> Option<BorrowedFd<'_>> {
        (!self.ended).then(|| self.input.as_fd())
    }

    /// Whether one is there whole already.
    pub(crate) fn is_waiting(&self) -> bool {
        self.frame_end().is_some_and(|end| self.buffer.len() >= end)
    }

    /// Where the first one in the buffer ends.
    fn frame_end(&self) -> Option<usize> {
        let length = u32::from_be_bytes(*self.buffer.first_chunk::<4>()?);
        Some(usize::try_from(length).unwrap_or(usize::MAX).saturating_add(4))
    }

    /// Takes the first one that is there; reads once when there is none, which waits where nothing comes.
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
            return Fed::Refused(format!("a reading of {} bytes; at most {MAX_FRAME} are read", end - 4));
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
            _ => Fed::Refused("it is of no kind that is known here".into()),
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
