//! `openrelay-sim`: the command line and daemon, believing the mock vendors whose roots are in the file that `OPENRELAY_SIM_ROOTS` names, and nobody else. For development networks.

use std::io::Write as _;
use std::process::ExitCode;

use openrelay_attest::Roots;
use openrelay_sim::vendors::decode_roots;

fn main() -> ExitCode {
    // What builds is started by this program again, without the environment; it judges nothing, and so does help.
    let first = std::env::args().nth(1);
    if matches!(first.as_deref(), Some("confined" | "--help" | "-h" | "help" | "--version" | "-V")) {
        return openrelay::main(Roots::genuine());
    }
    let roots = std::env::var_os("OPENRELAY_SIM_ROOTS").ok_or("OPENRELAY_SIM_ROOTS names no file".to_owned());
    let bytes = roots.and_then(|path| std::fs::read(path).map_err(|error| error.to_string()));
    match bytes.and_then(|bytes| decode_roots(&bytes).ok_or("the file of roots does not read".to_owned())) {
        Ok(roots) => openrelay::main(roots),
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "openrelay-sim: {why}");
            ExitCode::from(5)
        }
    }
}
