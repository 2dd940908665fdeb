//! OpenRelay's interface to Linux.
//!
//! Owns every `unsafe` block of the project; each one states why it is sound. Never knows a protocol: it handles only
//! bytes, addresses and file descriptors.

pub mod boot;
pub mod bpf;
pub mod confine;
pub mod conntrack;
pub mod cvt;
pub mod event;
pub mod net;
pub mod nft;
pub mod sandbox;
pub mod signal;
pub mod tun;
pub mod udp;
