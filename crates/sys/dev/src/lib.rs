//! What only development tools ask of Linux: captures for judges, packets with forged sources for floods, and a NAT
//! that forgets.
//!
//! Part of `sys`, because it has unsafe code, and a crate of its own, so that no released program contains it.

pub mod capture;
pub mod conntrack;
pub mod raw;
