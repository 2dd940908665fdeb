//! Fetching a mirrored file from a relay, piece by piece.
//!
//! Owns the order of pieces and the bound of a file. Whether the file is true is for the caller to check: nothing here believes it.

use crate::message::{MAX_MIRRORED, Message, MirrorFile, MirrorPiece};

/// How often a file may change while it is fetched: a relay that changes it with every piece is not waited for.
const MOST_VERSIONS: u32 = 4;

/// A file on its way.
#[derive(Debug)]
pub(super) struct Fetch {
    file: MirrorFile,
    version: [u8; 8],
    versions: u32,
    bytes: Vec<u8>,
}

/// What a piece has brought.
#[derive(PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// Ask for this next.
    Ask(Message),
    /// The file is there; without bytes when the relay has none.
    Done(MirrorFile, Vec<u8>),
}

impl Fetch {
    pub(super) fn new(file: MirrorFile) -> Self {
        Self { file, version: [0; 8], versions: 0, bytes: Vec::new() }
    }

    /// What to ask for next.
    pub(super) fn request(&self) -> Message {
        Message::MirrorRequest { file: self.file, offset: u32::try_from(self.bytes.len()).unwrap_or(u32::MAX) }
    }

    /// Takes in a piece; `None` when the relay did not send what it was asked for.
    pub(super) fn take(&mut self, piece: MirrorPiece) -> Option<Progress> {
        let total = piece.total as usize;
        if piece.file != self.file || total > MAX_MIRRORED {
            return None;
        }
        if piece.version != self.version {
            (self.version, self.versions) = (piece.version, self.versions + 1);
            let fresh = self.bytes.is_empty();
            self.bytes.clear();
            if self.versions > MOST_VERSIONS {
                return None;
            }
            if piece.offset != 0 {
                // From its beginning; a first piece always is.
                return (!fresh).then(|| Progress::Ask(self.request()));
            }
        }
        if piece.offset as usize != self.bytes.len() {
            return None;
        }
        self.bytes.extend_from_slice(&piece.bytes);
        if self.bytes.len() < total {
            return Some(Progress::Ask(self.request()));
        }
        Some(Progress::Done(self.file, std::mem::take(&mut self.bytes)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(version: u8, total: u32, offset: u32, bytes: &[u8]) -> MirrorPiece {
        MirrorPiece { file: MirrorFile::Records, version: [version; 8], total, offset, bytes: bytes.to_vec() }
    }

    fn ask(offset: u32) -> Option<Progress> {
        Some(Progress::Ask(Message::MirrorRequest { file: MirrorFile::Records, offset }))
    }

    #[test]
    fn a_file_that_changes_on_the_way_is_fetched_anew() {
        let mut fetch = Fetch::new(MirrorFile::Records);
        assert_eq!(fetch.take(piece(1, 4, 0, b"ab")), ask(2));
        assert_eq!(fetch.take(piece(2, 6, 2, b"CD")), ask(0));
        assert_eq!(fetch.take(piece(2, 6, 0, b"AB")), ask(2));
        // One that has become shorter comes from its beginning at once.
        assert_eq!(fetch.take(piece(3, 2, 0, b"x")), ask(1));
        assert_eq!(fetch.take(piece(3, 2, 1, b"y")), Some(Progress::Done(MirrorFile::Records, b"xy".to_vec())));
    }

    #[test]
    fn a_relay_without_the_file_says_so() {
        let done = Some(Progress::Done(MirrorFile::Records, Vec::new()));
        assert_eq!(Fetch::new(MirrorFile::Records).take(piece(0, 0, 0, b"")), done);
    }

    #[test]
    fn what_was_not_asked_for_is_refused() {
        let mut endless = Fetch::new(MirrorFile::Records);
        for version in 1..=4 {
            assert_eq!(endless.take(piece(version, 4, 0, b"ab")), ask(2));
        }
        assert_eq!(endless.take(piece(5, 4, 0, b"ab")), None, "another version each time");
        let large = u32::try_from(MAX_MIRRORED + 1).unwrap();
        for wrong in [
            piece(1, large, 0, b"a"),
            piece(1, 4, 2, b"cd"),
            MirrorPiece { file: MirrorFile::Checkpoint, ..piece(1, 4, 0, b"ab") },
        ] {
            assert_eq!(Fetch::new(MirrorFile::Records).take(wrong.clone()), None, "{wrong:?}");
        }
        let mut skipped = Fetch::new(MirrorFile::Records);
        assert_eq!(skipped.take(piece(1, 6, 0, b"ab")), ask(2));
        assert_eq!(skipped.take(piece(1, 6, 4, b"ef")), None);
    }
}
