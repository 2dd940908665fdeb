//! A client, an ingress and an egress on a simulated network.
//!
//! Owns virtual time, the faulty links and the record of every datagram that crossed them. Runs the protocol's own
//! code without threads or sockets: the same seed produces the same bytes in the same order.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a simulation that cannot continue must stop")]

pub mod amd;
pub mod crowd;
pub mod der;
pub mod faults;
pub mod intel;
pub mod packets;
pub mod peer;
pub mod vendors;
pub mod world;
