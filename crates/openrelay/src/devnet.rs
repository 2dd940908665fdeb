//! `openrelay devnet` and `openrelay devchain`: starts `openrelay-dev`, which is not part of releases.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;

use crate::failure::Failure;

/// Replaces this process with `openrelay-dev COMMAND …`, found beside this program or in `PATH`.
pub(crate) fn run(command: &str, arguments: &[OsString]) -> Result<(), Failure> {
    let beside = std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join("openrelay-dev")));
    let program = beside.filter(|path| path.exists()).map_or_else(|| "openrelay-dev".into(), OsString::from);
    let error = Command::new(program).arg(command).args(arguments).exec();
    Err(Failure::new(
        77,
        format!(
            "cannot start openrelay-dev: {error}; \
             in a checkout run: cargo build --release, elsewhere install the package openrelay-dev"
        ),
    ))
}
