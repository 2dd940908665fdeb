//! /etc/resolv.conf while the tunnel is up.
//!
//! Owns its replacement and its return, byte for byte, be it a file or a link. What it was is written down first, so that `down` can
//! give it back after a crash.

use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

const PATH: &str = "/etc/resolv.conf";
const SAVED_FILE: &str = "resolv.conf.saved";
const SAVED_LINK: &str = "resolv.conf.link";

/// Makes the host ask `servers`.
///
/// # Errors
/// When a file cannot be written; the old state is written down or still there.
pub fn replace(state_dir: &Path, servers: &[IpAddr]) -> io::Result<()> {
    save(state_dir)?;
    let mut text =
        String::from("# Written by openrelay while the tunnel is up; 'openrelay down' gives the old file back.\n");
    for server in servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if fs::symlink_metadata(PATH).is_ok_and(|meta| meta.is_symlink()) {
        fs::remove_file(PATH)?;
    }
    fs::write(PATH, text)
}

/// Gives the old file or link back, if one was written down.
///
/// # Errors
/// When it cannot be written; it stays written down.
pub fn restore(state_dir: &Path) -> io::Result<()> {
    let (file, link) = (state_dir.join(SAVED_FILE), state_dir.join(SAVED_LINK));
    if let Ok(target) = fs::read_to_string(&link) {
        if Path::new(PATH).symlink_metadata().is_ok() {
            fs::remove_file(PATH)?;
        }
        symlink(PathBuf::from(target), PATH)?;
        return fs::remove_file(link);
    }
    match fs::read(&file) {
        Ok(bytes) => {
            fs::write(PATH, bytes)?;
            fs::set_permissions(PATH, fs::metadata(&file)?.permissions())?;
            fs::remove_file(file)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes the present state down, unless a state from before is there already.
fn save(state_dir: &Path) -> io::Result<()> {
    let (file, link) = (state_dir.join(SAVED_FILE), state_dir.join(SAVED_LINK));
    if file.exists() || link.exists() {
        return Ok(());
    }
    match fs::symlink_metadata(PATH) {
        Ok(meta) if meta.is_symlink() => fs::write(link, fs::read_link(PATH)?.as_os_str().as_encoded_bytes()),
        Ok(meta) => {
            fs::write(&file, fs::read(PATH)?)?;
            fs::set_permissions(&file, fs::Permissions::from_mode(meta.permissions().mode()))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::write(file, b""),
        Err(error) => Err(error),
    }
}
