//! The relays of a public network, read from an EVM chain without trust in who serves them.
//!
//! ```text
//! header ─ state root ─▶ account of the Directory contract ─ code hash (pinned), storage root
//!                                                                              │
//! set of all records, from any mirror ──── storage root computed anew ─────────┴─▶ the same: correct and complete
//! ```
//!
//! Owns every check from a header on. That a header is of the chain is for a quorum of endpoints to say, and the caller's to ask. Never fetches anything.

pub mod checkpoint;
pub mod descriptor;
pub mod header;
pub mod proof;
pub mod reading;
#[cfg(feature = "registry")]
pub mod registry;
pub mod set;
pub mod voted;
#[cfg(feature = "registry")]
pub mod voting;
