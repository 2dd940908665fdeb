//! What people read: results on stdout, messages on stderr.
//!
//! Owns what happens when a line cannot be written. It never decides what is written.

use std::io::Write as _;
use std::path::Path;

use serde::Serialize;

use crate::failure::Failure;

/// Why a status is not good, as text and in JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Reason {
    /// A stable word in kebab-case.
    code: &'static str,
    text: String,
    /// The exit code of the command that prints it.
    #[serde(skip)]
    exit: u8,
}

impl Reason {
    pub(crate) fn new(exit: u8, code: &'static str, text: impl Into<String>) -> Self {
        Self { code, text: text.into(), exit }
    }

    /// Returns a failure as the reason with this code.
    pub(crate) fn of(code: &'static str, failure: &Failure) -> Self {
        Self::new(failure.code(), code, failure.to_string())
    }
}

impl From<Reason> for Failure {
    fn from(reason: Reason) -> Self {
        Self::new(reason.exit, reason.text)
    }
}

/// Prints a result as one JSON object in a line.
pub(crate) fn say_json(value: &impl Serialize) {
    match serde_json::to_string(value) {
        Ok(text) => say(&text),
        Err(error) => {
            // No schema has keys that are not strings; a result that is not printed must not look like success.
            talk(&format!("openrelay: cannot write the result: {error}"));
            std::process::exit(1);
        }
    }
}

/// Prints a line of the result to stdout.
///
/// A line that cannot be written ends the program, and never with success, because an unwritten line may be a
/// refusal. Where the reader has closed the pipe, the program ends quietly with the exit code of SIGPIPE.
pub(crate) fn say(line: &str) {
    if let Err(error) = writeln!(std::io::stdout(), "{line}") {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            std::process::exit(141);
        }
        talk(&format!("openrelay: cannot write the result: {error}"));
        std::process::exit(1);
    }
}

/// Returns a path as a word that a shell reads unchanged, for commands that people copy.
pub(crate) fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |one: char| one.is_ascii_alphanumeric() || "_./:@%+=,-".contains(one);
    if !text.is_empty() && text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// Prints a message to stderr.
pub(crate) fn talk(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shell_reads_a_quoted_path_unchanged() {
        for (path, word) in [
            ("mynet", "mynet"),
            ("/etc/openrelay/relay-1", "/etc/openrelay/relay-1"),
            ("my net", "'my net'"),
            ("it's", r"'it'\''s'"),
            ("$(reboot);#", "'$(reboot);#'"),
            ("", "''"),
        ] {
            assert_eq!(quoted(Path::new(path)), word);
            let output = std::process::Command::new("sh").args(["-c", &format!("printf %s {word}")]).output();
            assert!(output.is_ok_and(|output| output.stdout == path.as_bytes()), "{word}");
        }
    }
}
