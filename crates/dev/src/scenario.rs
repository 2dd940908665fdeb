//! Running a scenario: in a folder of its own, and told in one line.
//!
//! Owns no scenario.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::devnet::temporary_dir;
use crate::say;

/// Does something in a folder that is removed after it, whatever comes of it.
pub(crate) fn in_a_folder<T>(act: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let dir = temporary_dir()?;
    let result = act(&dir);
    let _ = std::fs::remove_dir_all(&dir);
    result
}

/// Runs a scenario, and says that it has passed and how long it took; an error names it.
pub(crate) fn scenario(name: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    act().with_context(|| format!("scenario failed: {name}"))?;
    say(&format!("ok  {:>5.1} s  {name}", started.elapsed().as_secs_f64()));
    Ok(())
}
