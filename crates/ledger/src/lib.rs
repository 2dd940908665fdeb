//! What the network agrees on about its relays.
//!
//! Sans-IO: files are bytes, time and randomness are arguments. In use is the network of one person: a directory file signed with one
//! key. [`chain`] reads the same from an EVM chain, for public networks; no client does yet.

pub mod chain;
pub mod directory;
pub mod hex;
pub mod record;
pub mod selection;
