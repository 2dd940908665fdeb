//! `--check FILE`: reads what a start would read, and starts nothing.
//!
//! Owns the order of the checks. The rules are those of the start itself.

use std::path::Path;

use crate::threads::{MEMORY, check_record, check_values, secret_of};
use openrelay_node::config::{ConfigError, Origin, RelayFile, beside, key_fault, public_key};
use openrelay_node::directory::VerifiedDirectory;

/// Returns the SHA-256 of the relay's image, which a configuration with a chain must set.
///
/// # Errors
/// [`ConfigError`] if it is missing or malformed.
pub(crate) fn image(path: &Path, file: &RelayFile) -> Result<[u8; 32], ConfigError> {
    let missing = || key_fault(path, "image", "is required with a chain: SHA-256 of the image that this relay runs");
    public_key(path, "image", file.image.as_deref().ok_or_else(missing)?)
}

/// Returns everything that is wrong with the configuration `path` and the files that it names. Writes nothing.
pub(crate) fn faults(path: &Path) -> Vec<ConfigError> {
    let file: RelayFile = match openrelay_node::config::read(path) {
        Ok(file) => file,
        Err(error) => return vec![error],
    };
    let mut faults: Vec<ConfigError> = check_values(path, &file).err().into_iter().collect();
    match file.origin(path) {
        Ok(Origin::Chain(_)) => faults.extend(image(path, &file).err()),
        Ok(Origin::Signed { path: directory, trusted }) => {
            let read = VerifiedDirectory::seen(&beside(path, Path::new(MEMORY)))
                .and_then(|seen| VerifiedDirectory::read(&directory, trusted, seen));
            match (read, secret_of(path, &file)) {
                (Ok(directory), Ok(secret)) => faults.extend(check_record(path, &file, &directory, &secret).err()),
                (directory, secret) => faults.extend(directory.err().into_iter().chain(secret.err())),
            }
        }
        Err(error) => faults.push(error),
    }
    faults
}
