//! Consent to what cannot be undone.
//!
//! Owns the question. A command calls it after it has read everything that it tells, and before it asks for a
//! password or changes anything.

use std::io::{BufRead as _, IsTerminal as _, Write as _};

use crate::failure::Failure;
use crate::output::talk;

/// Says what `step` costs, one line each, and returns if the user agrees: with `--yes`, or at a terminal.
///
/// # Errors
/// Exit code 2 without consent; then nothing may be changed.
pub(crate) fn confirm(step: &str, costs: &[String], yes: bool) -> Result<(), Failure> {
    talk(&format!("openrelay: {step}:"));
    for cost in costs {
        talk(&format!("  - {cost}"));
    }
    if yes {
        return Ok(());
    }
    if std::io::stdin().is_terminal() && std::io::stderr().is_terminal() {
        let mut answer = String::new();
        // The question is lost only where nobody can read it.
        let _ = write!(std::io::stderr(), "Type yes to continue: ");
        std::io::stdin().lock().read_line(&mut answer).map_err(Failure::plain)?;
        if answer.trim() == "yes" {
            return Ok(());
        }
    }
    Err(Failure::new(2, "nothing was changed; to agree, run the same command with --yes"))
}
