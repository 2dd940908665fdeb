//! What OpenRelay asks of Linux.
//!
//! Owns every `unsafe` block of the project, each with the reason why it is sound. Knows no protocol: bytes, addresses and
//! file descriptors only.

pub mod boot;
mod bpf;
pub mod capture;
pub mod confine;
pub mod conntrack;
mod cvt;
pub mod event;
pub mod net;
pub mod nft;
pub mod raw;
pub mod sandbox;
pub mod signal;
pub mod tun;
pub mod udp;
