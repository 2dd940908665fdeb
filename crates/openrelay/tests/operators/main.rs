//! Commands of operators and validators, on a development chain in this process.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue must stop")]

mod relay;
mod validator;
mod world;
