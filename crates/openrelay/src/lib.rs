//! The `openrelay` command line as a library; its programs differ only in the vendors whose evidence they trust.
//!
//! Owns arguments, exit codes and what people read. Results go to stdout, messages to stderr. It never opens a tunnel
//! or checks evidence itself: `openrelay-client`, `openrelay-chain`, `openrelay-ledger` and `openrelay-attest` do.

mod account;
mod checkpoint;
mod cli;
mod confined;
mod confirm;
mod control;
mod daemon;
mod devnet;
mod directory;
mod egresses;
mod evidence;
mod failure;
mod findings;
mod image;
mod keystore;
mod log;
mod mirror;
mod output;
mod program;
mod relay;
mod rpc;
mod selfhost;
mod status;
mod units;
mod up;
mod update;
mod validator;
mod verify;

use std::process::ExitCode;

use openrelay_attest::Roots;
use openrelay_chain::policy::TrustPolicy;

use program::Program;

/// Runs the command that the arguments name, trusting the vendors behind `roots`.
pub fn main(roots: Roots) -> ExitCode {
    let program = Program { standard: TrustPolicy::of(roots) };
    match cli::run(&program) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}
