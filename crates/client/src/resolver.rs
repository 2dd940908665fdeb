//! /etc/resolv.conf while the tunnel is up.
//!
//! Owns its replacement and its restoration, byte for byte, whether it is a file or a symbolic link. Saves the
//! original before it changes anything. The copy survives a reboot, so the original can be restored after a crash and
//! after a power failure.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const PATH: &str = "/etc/resolv.conf";
const SAVED_FILE: &str = "resolv.conf.saved";
const SAVED_LINK: &str = "resolv.conf.link";

/// Makes the host use the name servers `servers`. Saves the original in `folder` first.
///
/// # Errors
/// The I/O error if a file cannot be written. The original is then in place again, as far as it can be restored.
pub fn replace(folder: &Path, servers: &[IpAddr]) -> io::Result<()> {
    replace_at(Path::new(PATH), folder, servers)
}

/// Restores the file or link saved in `folder`. Returns whether there was one.
///
/// # Errors
/// The I/O error if it cannot be written. The saved copy then stays.
pub fn restore(folder: &Path) -> io::Result<bool> {
    restore_at(Path::new(PATH), folder)
}

fn replace_at(path: &Path, folder: &Path, servers: &[IpAddr]) -> io::Result<()> {
    save(path, folder)?;
    let mut text =
        String::from("# Written by openrelay while the tunnel is up; 'openrelay down' restores the old file.\n");
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    let written = if path.is_symlink() { fs::remove_file(path) } else { Ok(()) }.and_then(|()| fs::write(path, text));
    if written.is_err() {
        // If nothing was changed, nothing must be left to restore.
        let _ = restore_at(path, folder);
    }
    written
}

fn restore_at(path: &Path, folder: &Path) -> io::Result<bool> {
    let (file, link) = (folder.join(SAVED_FILE), folder.join(SAVED_LINK));
    if let Ok(target) = fs::read_to_string(&link) {
        if fs::read_link(path).ok() != Some(PathBuf::from(&target)) {
            if path.symlink_metadata().is_ok() {
                fs::remove_file(path)?;
            }
            symlink(PathBuf::from(target), path)?;
        }
        return fs::remove_file(link).map(|()| true);
    }
    let bytes = match fs::read(&file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    if path.is_symlink() || fs::read(path).ok().as_ref() != Some(&bytes) {
        fs::write(path, bytes)?;
        fs::set_permissions(path, fs::metadata(&file)?.permissions())?;
    }
    fs::remove_file(file).map(|()| true)
}

/// Saves the current file or link, unless an earlier one is saved already.
fn save(path: &Path, folder: &Path) -> io::Result<()> {
    let (file, link) = (folder.join(SAVED_FILE), folder.join(SAVED_LINK));
    if file.exists() || link.exists() {
        return Ok(());
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_symlink() => fs::write(link, fs::read_link(path)?.as_os_str().as_encoded_bytes()),
        Ok(meta) => {
            fs::write(&file, fs::read(path)?)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(meta.permissions().mode()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::write(file, b""),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVERS: [IpAddr; 1] = [IpAddr::V4(std::net::Ipv4Addr::new(9, 9, 9, 9))];

    /// Runs a test with an empty folder for the host's files and one for saved copies; removes both afterwards.
    fn with_folders(test: impl Fn(&Path, &Path)) {
        let root = std::env::temp_dir().join(format!(
            "openrelay-resolver-{}-{:?}",
            std::process::id(),
            std::thread::current().id()
        ));
        let (etc, notes) = (root.join("etc"), root.join("notes"));
        fs::create_dir_all(&etc).unwrap();
        fs::create_dir_all(&notes).unwrap();
        test(&etc.join("resolv.conf"), &notes);
        fs::remove_dir_all(root).unwrap();
    }

    fn noted(notes: &Path) -> usize {
        fs::read_dir(notes).unwrap().count()
    }

    #[test]
    fn file_is_restored_with_its_mode() {
        with_folders(|path, notes| {
            fs::write(path, "nameserver 192.0.2.1\n").unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(0o640)).unwrap();
            replace_at(path, notes, &SERVERS).unwrap();
            assert!(fs::read_to_string(path).unwrap().contains("nameserver 9.9.9.9"));
            // A second replacement, as after a crash, keeps the copy that was saved first.
            replace_at(path, notes, &SERVERS).unwrap();
            assert!(restore_at(path, notes).unwrap());
            assert_eq!(fs::read_to_string(path).unwrap(), "nameserver 192.0.2.1\n");
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o777, 0o640);
            assert!(!restore_at(path, notes).unwrap());
            assert_eq!(noted(notes), 0);
        });
    }

    #[test]
    fn link_is_restored_as_a_link() {
        with_folders(|path, notes| {
            symlink("../run/stub.conf", path).unwrap();
            replace_at(path, notes, &SERVERS).unwrap();
            assert!(!path.is_symlink());
            assert!(restore_at(path, notes).unwrap());
            assert_eq!(fs::read_link(path).unwrap(), Path::new("../run/stub.conf"));
            assert_eq!(noted(notes), 0);
        });
    }

    /// The host once stayed blocked for ever, because a file that was never changed could not be restored.
    #[test]
    fn unwritable_file_leaves_no_saved_copy() {
        with_folders(|_, notes| {
            // Readable, but writable by nobody.
            assert!(replace_at(Path::new("/proc/version"), notes, &SERVERS).is_err());
            assert_eq!(noted(notes), 0);
        });
    }
}
