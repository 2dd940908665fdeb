//! nftables: the kernel applies a ruleset as a whole or not at all.
//!
//! Owns the call of the `nft` program. Never renders rules: the owner of a table writes its text.

use std::io::{self, Write};
use std::process::{Command, Stdio};

/// The reason why a ruleset was not applied.
#[derive(Debug, thiserror::Error)]
pub enum NftError {
    /// The program is not installed.
    #[error("the program nft is missing; install it with: apt-get install -y nftables")]
    Missing,
    /// The program could not be run.
    #[error("cannot run nft: {0}")]
    Run(#[from] io::Error),
    /// The kernel or the program refused the text.
    #[error("nft refused the rules: {0}")]
    Refused(String),
}

/// Applies `text` as one transaction.
///
/// # Errors
/// [`NftError`]; nothing has changed then.
pub fn apply(text: &str) -> Result<(), NftError> {
    run(&["-f", "-"], text).map(drop)
}

/// Lists the table `family` `name` as text; `None` when it does not exist.
///
/// # Errors
/// [`NftError`] when the program cannot be run.
pub fn list(family: &str, name: &str) -> Result<Option<String>, NftError> {
    match run(&["list", "table", family, name], "") {
        Ok(text) => Ok(Some(text)),
        Err(NftError::Refused(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn run(arguments: &[&str], input: &str) -> Result<String, NftError> {
    let mut child = Command::new("nft")
        .args(arguments)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| if error.kind() == io::ErrorKind::NotFound { NftError::Missing } else { error.into() })?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(NftError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
    }
}
