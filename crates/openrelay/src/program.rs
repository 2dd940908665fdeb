//! Which program is running: the released one, or one that simulates.
//!
//! Owns the trust policy that the program was built with. `main` passes it in; no other file decides it.

use openrelay_chain::policy::TrustPolicy;

/// What a program trusts, and which relay it starts.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    pub(crate) standard: TrustPolicy,
}

impl Program {
    /// Returns the name of the relay's program: a simulating program starts the simulated relay.
    pub(crate) fn relay(&self) -> &'static str {
        if self.standard.roots.simulated { "openrelay-relay-sim" } else { "openrelay-relay" }
    }
}
