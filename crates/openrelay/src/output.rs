//! What people read: results on stdout, messages on stderr.
//!
//! Owns what happens when a line cannot be written. It never decides what is written.

use std::io::Write as _;

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

/// Prints a message to stderr.
pub(crate) fn talk(line: &str) {
    let _ = writeln!(std::io::stderr(), "{line}");
}
