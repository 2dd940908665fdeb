//! ORP, the OpenRelay protocol: packets, handshakes, sessions, circuits.
//!
//! Sans-IO: no socket, file, clock or generator is touched here. Time and randomness are arguments, buffers are the
//! caller's. `docs/protocol.md` specifies every byte, state and timer.
//!
//! Start with [`client::Client`] and [`relay::Shard`]: the way of a packet reads top to bottom in each.

pub mod client;
mod control;
pub mod drops;
pub mod handshake;
pub mod index;
pub mod ip;
mod kem;
pub mod keys;
mod link;
pub mod mask;
pub mod message;
mod noise;
pub mod random;
pub mod relay;
pub mod session;
pub mod suite;
pub mod time;
pub mod window;
pub mod wire;
