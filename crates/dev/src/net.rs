//! Hosts in namespaces, the links between them, and what crosses the links.
//!
//! Knows nothing of the product: it starts no program of it and reads no file or counter of it. Also has what every
//! layer needs: output lines, a folder for a run, and waiting.

pub(crate) mod account;
pub(crate) mod folder;
pub(crate) mod host;
pub(crate) mod judge;
pub(crate) mod loss;
pub(crate) mod network;
pub(crate) mod output;
pub(crate) mod process;
pub(crate) mod wait;
pub(crate) mod wire;
