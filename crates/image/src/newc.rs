//! The initrd in the kernel's newc format. Equal entries give equal bytes: no times, no owners, inode numbers by order.
//!
//! Owns the encoding. Never reads files. Source: linux, Documentation/driver-api/early-userspace/buffer-format.rst.

use std::collections::BTreeMap;

const FILE: u32 = 0o100_000;
const FOLDER: u32 = 0o040_000;
const DEVICE: u32 = 0o020_000;

/// An entry: mode, device number, content.
type Entry = (u32, (u32, u32), Vec<u8>);

/// The entries of an initrd, by path.
#[derive(Clone, Default, Debug)]
pub struct Tree {
    entries: BTreeMap<String, Entry>,
}

impl Tree {
    /// Adds a folder and its parents.
    pub fn folder(&mut self, path: &str) {
        for (at, _) in path.match_indices('/').chain([(path.len(), "")]) {
            if let Some(above) = path.get(..at).filter(|above| !above.is_empty()) {
                self.entries.entry(above.into()).or_insert((FOLDER | 0o755, (0, 0), Vec::new()));
            }
        }
    }

    /// Adds a file that everybody may read, and execute if it is a program.
    pub fn file(&mut self, path: &str, program: bool, content: Vec<u8>) {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder);
        }
        let mode = FILE | if program { 0o755 } else { 0o644 };
        self.entries.insert(path.into(), (mode, (0, 0), content));
    }

    /// Adds a character device that only its owner may use.
    pub fn device(&mut self, path: &str, major: u32, minor: u32) {
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder);
        }
        self.entries.insert(path.into(), (DEVICE | 0o600, (major, minor), Vec::new()));
    }

    /// Encodes the tree.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        // A folder's path sorts before the paths below it, so it comes first.
        for (number, (path, (mode, device, content))) in (1..).zip(&self.entries) {
            put(&mut out, number, path, (*mode, *device), content);
        }
        put(&mut out, 0, "TRAILER!!!", (0, (0, 0)), &[]);
        out.resize(out.len().next_multiple_of(512), 0);
        out
    }
}

fn put(out: &mut Vec<u8>, number: u32, path: &str, (mode, (major, minor)): (u32, (u32, u32)), content: &[u8]) {
    let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    let links = if mode & FOLDER == FOLDER && mode & FILE != FILE { 2 } else { 1 };
    let fields = [number, mode, 0, 0, links, 0, length(content.len()), 0, 0, major, minor, length(path.len() + 1), 0];
    out.extend(b"070701");
    for field in fields {
        out.extend(format!("{field:08X}").bytes());
    }
    out.extend(path.bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend(content);
    out.resize(out.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_ignores_insertion_order_and_puts_folders_first() {
        let mut one = Tree::default();
        one.file("usr/bin/a", true, b"a".to_vec());
        one.device("dev/console", 5, 1);
        let mut two = Tree::default();
        two.device("dev/console", 5, 1);
        two.folder("usr/bin");
        two.file("usr/bin/a", true, b"a".to_vec());
        let bytes = one.encode();
        assert_eq!(bytes, two.encode());
        assert_eq!(bytes.len() % 512, 0);
        let at = |text: &str| bytes.windows(text.len()).position(|found| found == text.as_bytes()).unwrap();
        assert!(at("usr\0") < at("usr/bin\0") && at("usr/bin\0") < at("usr/bin/a\0"));
        assert_eq!(&bytes[..14], b"07070100000001");
        assert!(at("TRAILER!!!\0") > at("usr/bin/a\0"));
    }
}
