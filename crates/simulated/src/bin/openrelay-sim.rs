//! `openrelay-sim`: the command line and daemon for development networks. It trusts only the mock vendors whose roots
//! are in the file in `OPENRELAY_SIM_ROOTS`.
//!
//! Never released.

use std::io::Write as _;
use std::process::ExitCode;

use openrelay_attest::Roots;
use openrelay_sim::vendors::decode_roots;

fn main() -> ExitCode {
    // Builds start this program again without the environment. That run judges no evidence, and neither do help and
    // version.
    let first = std::env::args().nth(1);
    if matches!(first.as_deref(), Some("confined" | "--help" | "-h" | "help" | "--version" | "-V")) {
        return openrelay::main(Roots::genuine());
    }
    let roots = std::env::var_os("OPENRELAY_SIM_ROOTS").ok_or("OPENRELAY_SIM_ROOTS is not set".to_owned());
    let bytes = roots.and_then(|path| std::fs::read(path).map_err(|error| error.to_string()));
    match bytes.and_then(|bytes| decode_roots(&bytes).ok_or("the file in OPENRELAY_SIM_ROOTS is malformed".to_owned()))
    {
        Ok(roots) => openrelay::main(roots),
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "openrelay-sim: {why}");
            ExitCode::from(5)
        }
    }
}
