//! `openrelay-relay`: one ingress or egress, inside a trusted execution environment or for oneself.

use std::process::ExitCode;

use openrelay_relay::Detail;
use openrelay_relay::tsm::Tsm;

fn main() -> ExitCode {
    openrelay_relay::main("openrelay-relay", Detail::Rounded, || Box::new(Tsm))
}
