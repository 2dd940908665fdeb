//! Temporary folders of one run.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use openrelay_sys::sandbox;

/// Creates a folder for this run.
pub(crate) fn temporary_dir() -> Result<PathBuf> {
    let dir = std::env::temp_dir().join(format!("openrelay-devnet-{}-{}", sandbox::user(), unique()));
    std::fs::create_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

/// Runs `act` in a temporary folder and removes the folder afterwards, also after an error.
pub(crate) fn in_a_folder<T>(act: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let dir = temporary_dir()?;
    let result = act(&dir);
    let _ = std::fs::remove_dir_all(&dir);
    result
}

fn unique() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}
