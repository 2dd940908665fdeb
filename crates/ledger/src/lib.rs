//! The network's shared view of its relays.
//!
//! Sans-IO: files are bytes; time and randomness are arguments. A [`directory::Directory`] is always verified: by the
//! signature of one person for a self-hosted network, or by proofs of an EVM chain ([`chain`]) for a public one.

pub mod address;
pub mod chain;
pub mod directory;
pub mod hex;
pub mod record;
pub mod selection;
