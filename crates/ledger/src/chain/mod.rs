//! Relays of a public network, read from an EVM chain without trusting the servers that provide the data.
//!
//! ```text
//! header ─ state root ─▶ account of the Directory contract ─▶ code hash (pinned), storage root
//! set of all records, from any mirror ─▶ recomputed storage root ─▶ same root: correct and complete
//! ```
//!
//! Owns every check from a header on. A quorum of endpoints must confirm that the header belongs to the chain; the
//! caller asks them. It never fetches anything.

pub mod checkpoint;
pub mod descriptor;
pub mod header;
pub mod proof;
pub mod reading;
pub mod set;
pub mod voted;
