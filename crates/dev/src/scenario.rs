//! Runs one scenario in a temporary folder and reports its result in one line.
//!
//! Contains no scenario itself.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};

use crate::devnet::temporary_dir;
use crate::say;

/// Runs `act` in a temporary folder and removes the folder afterwards, also after an error.
pub(crate) fn in_a_folder<T>(act: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
    let dir = temporary_dir()?;
    let result = act(&dir);
    let _ = std::fs::remove_dir_all(&dir);
    result
}

/// Runs a scenario and prints that it passed and how long it took. An error names the scenario.
pub(crate) fn scenario(name: &str, act: impl FnOnce() -> Result<()>) -> Result<()> {
    let started = Instant::now();
    act().with_context(|| format!("scenario failed: {name}"))?;
    say(&format!("ok  {:>5.1} s  {name}", started.elapsed().as_secs_f64()));
    Ok(())
}
