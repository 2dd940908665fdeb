//! What real programs must do on a network: the demonstration, and scenarios by area.
//!
//! `part` is the registry. Scenarios of one area share a world; `runner` chooses and runs them.

pub(crate) mod bench;
pub(crate) mod chain;
pub(crate) mod check;
pub(crate) mod checkpoints;
pub(crate) mod circuits;
pub(crate) mod demo;
pub(crate) mod egress;
pub(crate) mod evidence;
pub(crate) mod part;
pub(crate) mod reorganisation;
pub(crate) mod runner;
pub(crate) mod shares;
pub(crate) mod votes;
pub(crate) mod withholding;
