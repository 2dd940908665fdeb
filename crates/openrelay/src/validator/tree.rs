//! Source trees: the files of one, its hash, and a copy of it.
//!
//! Owns what counts as a file of a tree. A tree is untrusted, so no link in it is followed. Git runs confined,
//! because a tree's settings can name programs. A file name that could be read in two ways is refused.

use std::fs;
use std::path::{Path, PathBuf};

use alloy_primitives::B256;
use openrelay_image::{hex, sha256};

use crate::confined::{self, Confined, Confinement};
use crate::failure::Failure;
use crate::image;

/// The longest list of a tree's files, in bytes.
const MAX_LIST: u64 = 16 << 20;

/// Returns the hash of a tree: SHA-256 of the lines "SHA-256, two spaces, path" of its files, in ascending order of
/// paths. The files are those that git lists, if the tree has a repository, and otherwise all files.
///
/// # Errors
/// [`Failure`] with the file that cannot be in such a list.
pub(super) fn tree_hash(tree: &Path) -> Result<B256, Failure> {
    let mut lines = String::new();
    for path in listed(tree)? {
        lines += &format!("{}  {path}\n", hex(&sha256(&read(tree, &path)?)));
    }
    Ok(B256::new(sha256(lines.as_bytes())))
}

/// Returns the tree with this hash, among the known trees and the folders directly in them.
///
/// # Errors
/// [`Failure`] with code 77 if a tree that this machine cannot list may be the one.
pub(super) fn tree_of(sources: &[PathBuf], wanted: B256) -> Result<Option<PathBuf>, Failure> {
    let below = |source: &PathBuf| {
        let inner = fs::read_dir(source).into_iter().flatten().flatten().map(|entry| entry.path());
        std::iter::once(source.clone()).chain(inner.filter(|path| path.is_dir())).collect::<Vec<_>>()
    };
    let mut of_this_machine = None;
    for tree in sources.iter().flat_map(below) {
        match tree_hash(&tree) {
            Ok(hash) if hash == wanted => return Ok(Some(tree)),
            Err(failure) if failure.code() == 77 => of_this_machine = Some(failure),
            Ok(_) | Err(_) => {}
        }
    }
    of_this_machine.map_or(Ok(None), Err)
}

/// Copies the files of a tree, which must have this hash, into a folder that does not exist yet.
///
/// # Errors
/// [`Failure`] with the file that cannot be copied, or because the tree has changed.
pub(super) fn copy(tree: &Path, to: &Path, wanted: B256) -> Result<(), Failure> {
    for path in listed(tree)? {
        let place = to.join(&path);
        let fault = |error: std::io::Error| Failure::plain(format!("cannot copy {path}: {error}"));
        fs::create_dir_all(place.parent().unwrap_or(to)).map_err(fault)?;
        fs::write(&place, read(tree, &path)?).map_err(fault)?;
    }
    if tree_hash(to)? == wanted {
        Ok(())
    } else {
        Err(Failure::plain(format!("{} was changed while it was copied", tree.display())))
    }
}

/// Returns the paths of a tree's files, in ascending order.
fn listed(tree: &Path) -> Result<Vec<String>, Failure> {
    if !tree.join("image/inputs.lock").is_file() {
        return Err(Failure::plain(format!("{} is not a source tree: it has no image/inputs.lock", tree.display())));
    }
    let mut paths = Vec::new();
    if tree.join(".git").exists() {
        let tree = tree.canonicalize().map_err(Failure::plain)?;
        // Git may read files of any owner, because it can do nothing here but list them.
        let git = Confined::new("git", Confinement::Required)
            .read(&tree)
            .args(["-c", "safe.directory=*", "-C"])
            .arg(&tree)
            .args(["ls-files", "-z"])
            .env("GIT_CONFIG_GLOBAL", "/dev/null")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env("GIT_OPTIONAL_LOCKS", "0");
        let fault = |why: &dyn std::fmt::Display| {
            Failure::new(77, format!("git cannot list the files of {}: {why}", tree.display()))
        };
        let (ended, list) = git.heard(MAX_LIST + 1)?;
        confined::succeeded(ended, "git").map_err(|failure| fault(&failure))?;
        if list.len() as u64 > MAX_LIST {
            return Err(fault(&format!("the list has more than {MAX_LIST} bytes")));
        }
        for path in list.split(|byte| *byte == 0).filter(|path| !path.is_empty()) {
            paths.push(spelt(std::str::from_utf8(path).ok(), &String::from_utf8_lossy(path))?);
        }
    } else {
        walk(tree, "", &mut paths)?;
    }
    paths.sort_unstable();
    Ok(paths)
}

fn walk(tree: &Path, below: &str, paths: &mut Vec<String>) -> Result<(), Failure> {
    let dir = tree.join(below);
    let fault = |error: std::io::Error| Failure::plain(format!("cannot read {}: {error}", dir.display()));
    for entry in fs::read_dir(&dir).map_err(fault)? {
        let entry = entry.map_err(fault)?;
        let name = entry.file_name();
        let name = spelt(name.to_str(), &name.to_string_lossy())?;
        let path = if below.is_empty() { name } else { format!("{below}/{name}") };
        if entry.file_type().map_err(fault)?.is_dir() {
            walk(tree, &path, paths)?;
        } else {
            paths.push(path);
        }
    }
    Ok(())
}

/// Returns a name that fits into a line of the list and has one meaning for everyone.
fn spelt(name: Option<&str>, shown: &str) -> Result<String, Failure> {
    match name.filter(|name| !name.chars().any(|letter| letter.is_control() || letter == '\\')) {
        Some(name) => Ok(name.to_owned()),
        None => Err(Failure::plain(format!(
            "the file name {shown:?} is not allowed: names in a source tree must be UTF-8, \
             without control characters or backslashes"
        ))),
    }
}

/// Reads a regular file of the tree that is not reached through a link.
fn read(tree: &Path, path: &str) -> Result<Vec<u8>, Failure> {
    let fault = |why: &dyn std::fmt::Display| Failure::plain(format!("cannot read {path} of the tree: {why}"));
    let whole = tree.canonicalize().map_err(|error| fault(&error))?.join(path);
    if whole.canonicalize().map_err(|error| fault(&error))? != whole {
        return Err(fault(&"it is a link, or behind one"));
    }
    image::read(&whole)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]
    use super::*;

    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Self {
            let this = Self(std::env::temp_dir().join(format!("openrelay-tree-{name}-{}", std::process::id())));
            fs::create_dir_all(this.0.join("tree/image")).unwrap();
            fs::write(this.0.join("tree/image/inputs.lock"), "lock").unwrap();
            this
        }

        fn tree(&self) -> PathBuf {
            self.0.join("tree")
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn tree_copy_succeeds_only_with_the_expected_hash() {
        let place = Place::new("copied");
        fs::create_dir_all(place.tree().join("src/deep")).unwrap();
        fs::write(place.tree().join("src/deep/a file"), "content").unwrap();
        let lines =
            format!("{}  image/inputs.lock\n{}  src/deep/a file\n", hex(&sha256(b"lock")), hex(&sha256(b"content")));
        let hash = tree_hash(&place.tree()).unwrap();
        assert_eq!(hash, B256::new(sha256(lines.as_bytes())), "as sha256sum writes it");
        let copied = place.0.join("copy");
        copy(&place.tree(), &copied, hash).unwrap();
        assert_eq!(fs::read(copied.join("src/deep/a file")).unwrap(), b"content");
        assert!(
            tree_of(std::slice::from_ref(&place.0), hash)
                .unwrap()
                .is_some_and(|found| [&place.tree(), &copied].contains(&&found))
        );
        assert_eq!(tree_of(&[place.tree()], B256::ZERO).unwrap(), None);
        let changed = copy(&place.tree(), &place.0.join("other"), B256::ZERO).unwrap_err();
        assert!(changed.to_string().contains("was changed"), "{changed}");
    }

    #[test]
    fn ambiguous_names_links_and_special_files_are_refused() {
        use std::os::unix::ffi::OsStrExt as _;
        let place = Place::new("strange");
        let refused = |name: &[u8], what: &str| {
            let path = place.tree().join(std::ffi::OsStr::from_bytes(name));
            fs::write(&path, "content").unwrap();
            let failure = tree_hash(&place.tree()).unwrap_err();
            assert!(failure.to_string().contains(what), "{failure}");
            fs::remove_file(path).unwrap();
        };
        refused(b"a\n00  b", "control characters");
        refused(b"a\\b", "backslashes");
        refused(b"a\xff", "UTF-8");
        let link = place.tree().join("link");
        for target in ["image/inputs.lock", "/etc/hostname", "image", "nowhere"] {
            std::os::unix::fs::symlink(target, &link).unwrap();
            assert!(tree_hash(&place.tree()).is_err(), "a link to {target}");
            fs::remove_file(&link).unwrap();
        }
        assert!(std::process::Command::new("mkfifo").arg(&link).status().unwrap().success());
        let failure = tree_hash(&place.tree()).unwrap_err();
        assert!(failure.to_string().contains("not a regular file"), "{failure}");
    }
}
