//! `openrelay-relay`: one ingress or egress, in a trusted execution environment or for your own network.

use std::process::ExitCode;

use openrelay_relay::Detail;
use openrelay_relay::tsm::Tsm;

fn main() -> ExitCode {
    openrelay_relay::main("openrelay-relay", Detail::Rounded, Tsm)
}
