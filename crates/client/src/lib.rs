//! The running client: tunnel, circuit, and the order in which both come up and go down.
//!
//! ```text
//! plan ─▶ tunnel (device, firewall) ─▶ circuit (data thread) ─▶ tunnel (routes, names) ─▶ refresh (directory)
//! ```
//!
//! Owns one thread for packets and one for the directory. Never judges evidence and never opens a circuit itself;
//! `openrelay-chain` does both.

mod circuit;
mod connection;
mod error;
pub mod host;
mod judge;
pub mod lockdown;
mod memory;
mod plan;
mod pump;
mod query;
mod refresh;
pub mod resolver;
mod tunnel;

pub use connection::{Connection, Facts};
pub use error::ConnectError;
pub use judge::{AttestedHop, attested_hop, judged_of, rebuilt_images, standard_for};
pub use memory::{directory_of, kept_of};
pub use openrelay_node::driver::Counts;
pub use plan::Options;
pub use refresh::Refreshed;
