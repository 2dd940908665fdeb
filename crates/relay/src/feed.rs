//! Readings of the chain, as the operator's agent hands them over: on standard input, each after its length in four bytes.
//!
//! Owns their bounds and the check of each. The agent stands outside and is believed in nothing but which header is the newest: what it could do with a false one is to
//! keep this relay from serving, which it can anyway.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd};

use openrelay_ledger::chain::reading::{MAX_READING, Reading};
use openrelay_node::chain_file::ChainFile;
use openrelay_node::directory::VerifiedDirectory;

/// What came of a look at the input.
pub(crate) enum Fed {
    /// Nothing whole yet.
    Nothing,
    /// A directory that was verified.
    Directory(Box<VerifiedDirectory>),
    /// Something that is none.
    Refused(String),
    /// The agent has gone away; the relay goes on with what it knows.
    End,
}

/// The agent's side of standard input.
pub(crate) struct Feed {
    chain: ChainFile,
    buffer: Vec<u8>,
    seen: u64,
    ended: bool,
    input: File,
}

impl Feed {
    pub(crate) fn new(chain: ChainFile) -> std::io::Result<Self> {
        // A copy of the descriptor without the standard library's buffer, in which a whole reading could wait unseen.
        let input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
        Ok(Self { chain, buffer: Vec::new(), seen: 0, ended: false, input })
    }

    /// What to wait for; `None` after the end.
    pub(crate) fn readable(&self) -> Option<BorrowedFd<'_>> {
        (!self.ended).then(|| self.input.as_fd())
    }

    /// Whether a whole reading is there already.
    pub(crate) fn is_waiting(&self) -> bool {
        self.frame_end().is_some_and(|end| self.buffer.len() >= end)
    }

    /// Where the first reading in the buffer ends.
    fn frame_end(&self) -> Option<usize> {
        let length = u32::from_be_bytes(*self.buffer.first_chunk::<4>()?);
        Some(usize::try_from(length).unwrap_or(usize::MAX).saturating_add(4))
    }

    /// Takes the first reading that is there; reads once when there is none, which waits where nothing comes.
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
        if end > 4 + MAX_READING {
            self.ended = true;
            return Fed::Refused(format!("a reading of {} bytes; at most {MAX_READING} are read", end - 4));
        }
        if self.buffer.len() < end {
            return Fed::Nothing;
        }
        let rest = self.buffer.split_off(end);
        let frame = std::mem::replace(&mut self.buffer, rest);
        let verified = Reading::decode(&frame[4..]).and_then(|reading| {
            VerifiedDirectory::of_reading(&reading, &self.chain.trust(), self.chain.max_age_s, self.seen)
        });
        match verified {
            Ok(directory) => {
                self.seen = directory.directory().body().sequence;
                Fed::Directory(Box::new(directory))
            }
            Err(error) => Fed::Refused(error.to_string()),
        }
    }
}
