//! Sockets of development tools: captures for judges, and packets with forged sources for floods.
//!
//! Part of `sys`, because it has unsafe code, and a crate of its own, so that no released program contains it.

pub mod capture;
pub mod raw;
