//! Tests clients that read the directory while record sources withhold descriptors and endpoints lie about single
//! slots.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on must stop")]

mod slots;
mod withholding;
mod world;
