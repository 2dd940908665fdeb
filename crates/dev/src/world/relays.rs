//! The relays of a network: their names, numbers and ports.

use anyhow::{Context as _, Result};

use crate::net::network::MORE_PORTS;

/// The relays in the order in which they are named or register. The order gives them their numbers.
pub(crate) const RELAYS: [&str; 4] = ["ingress-1", "ingress-2", "egress-1", "egress-2"];
/// The relay that runs in a machine, if any does.
pub(crate) const BOOTED: &str = "egress-2";
/// Port of the first relay that lies. The other lying relays use the ports after it.
pub(crate) const FIRST_LIAR: u16 = MORE_PORTS;

/// Returns the relay whose number is under `key` in a client's status.
pub(crate) fn relay_in_status(status: &serde_json::Value, key: &str) -> Result<&'static str> {
    let number = status[key].as_u64().with_context(|| format!("the status has no {key}"))?;
    RELAYS.get(usize::try_from(number)?.wrapping_sub(1)).copied().with_context(|| format!("there is no relay {number}"))
}
