//! `openrelay`: the command line and daemon, which trust the vendors' own roots.

use std::process::ExitCode;

use openrelay_attest::Roots;

fn main() -> ExitCode {
    openrelay::main(Roots::genuine())
}
