//! What the network agrees on about its relays.
//!
//! Sans-IO: files are bytes, time and randomness are arguments. A [`directory::Directory`] is what was checked: a file that one person signed for a network of
//! their own, or what an EVM chain proves ([`chain`]) for a public one.

pub mod chain;
pub mod directory;
pub mod hex;
pub mod record;
pub mod selection;
pub mod votes;
