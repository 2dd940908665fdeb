//! ORP, the OpenRelay protocol: packets, handshakes, sessions, circuits.
//!
//! The crate is sans-IO: it uses no socket, file, clock or random generator. Time and randomness are arguments, and
//! buffers belong to the caller. `docs/protocol.md` specifies every byte, state and timer.
//!
//! Start with [`client::Client`] and [`relay::Shard`]: in each, the packet path reads from top to bottom.

pub mod client;
mod control;
pub mod cookie;
pub mod drops;
mod frame;
pub mod handshake;
pub mod index;
pub mod ip;
mod kem;
pub mod keys;
mod link;
pub mod mask;
pub mod message;
pub mod mirror;
mod noise;
pub mod random;
pub mod relay;
pub mod session;
pub mod suite;
pub mod time;
pub mod window;
pub mod wire;
