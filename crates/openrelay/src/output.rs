//! What people read: results on stdout, messages on stderr.
//!
//! Owns what happens when a line cannot be written. It never decides what is written.

use std::io::Write as _;
use std::path::Path;

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
