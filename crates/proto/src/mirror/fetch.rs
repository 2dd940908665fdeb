//! Fetching a mirrored file from a relay, piece by piece.
//!
//! Owns the order of pieces and the size limit of a file. Never verifies a file: the caller must check its content.

use super::{MAX_MIRRORED, MirrorFile, MirrorPiece};

/// Versions of a file that a relay may send during one fetch. A client does not wait for a relay that changes the
/// file with every piece.
const MOST_VERSIONS: u32 = 4;

/// A file that is being fetched.
#[derive(Debug)]
pub(crate) struct Fetch {
    file: MirrorFile,
    version: [u8; 8],
    versions: u32,
    bytes: Vec<u8>,
}

/// The effect of a piece.
#[derive(PartialEq, Eq, Debug)]
pub(crate) enum Progress {
    /// The client must request the piece at this offset next.
    Ask(u32),
    /// The file is complete; it is empty when the relay does not have it.
    Done(MirrorFile, Vec<u8>),
}

impl Fetch {
    pub(crate) fn new(file: MirrorFile) -> Self {
        Self { file, version: [0; 8], versions: 0, bytes: Vec::new() }
    }

    /// Returns the offset of the next piece to request.
    fn next(&self) -> u32 {
        u32::try_from(self.bytes.len()).unwrap_or(u32::MAX)
    }

    /// Handles a piece. Returns `None` when the relay sent something that was not requested.
    pub(crate) fn take(&mut self, piece: MirrorPiece) -> Option<Progress> {
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
                // Fetch the new version from its beginning; the first piece of a fetch always starts there.
                return (!fresh).then(|| Progress::Ask(self.next()));
            }
        }
        if piece.offset as usize != self.bytes.len() {
            return None;
        }
        self.bytes.extend_from_slice(&piece.bytes);
        if self.bytes.len() < total {
            return Some(Progress::Ask(self.next()));
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
        Some(Progress::Ask(offset))
    }

    #[test]
    fn changed_file_is_fetched_from_its_beginning() {
        let mut fetch = Fetch::new(MirrorFile::Records);
        assert_eq!(fetch.take(piece(1, 4, 0, b"ab")), ask(2));
        assert_eq!(fetch.take(piece(2, 6, 2, b"CD")), ask(0));
        assert_eq!(fetch.take(piece(2, 6, 0, b"AB")), ask(2));
        // When the new version is too short for the requested offset, the relay sends its beginning at once.
        assert_eq!(fetch.take(piece(3, 2, 0, b"x")), ask(1));
        assert_eq!(fetch.take(piece(3, 2, 1, b"y")), Some(Progress::Done(MirrorFile::Records, b"xy".to_vec())));
    }

    #[test]
    fn missing_file_ends_the_fetch_with_no_bytes() {
        let done = Some(Progress::Done(MirrorFile::Records, Vec::new()));
        assert_eq!(Fetch::new(MirrorFile::Records).take(piece(0, 0, 0, b"")), done);
    }

    #[test]
    fn unrequested_piece_is_refused() {
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
