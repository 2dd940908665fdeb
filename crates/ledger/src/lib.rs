//! What the network agrees on about its relays.
//!
//! Sans-IO: files are bytes, time and randomness are arguments. For now the network of one person: a directory file signed with one
//! key. A chain that proves the same records takes its place for public networks.

pub mod directory;
pub mod hex;
pub mod record;
pub mod selection;
