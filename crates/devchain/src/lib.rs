//! An EVM chain in this process, for development and tests. Never part of a release.
//!
//! Owns state and blocks, and JSON-RPC on loopback. The hard fork is pinned, because later forks price storage
//! differently. It can also import a chain that others made, through all forks, and answer for it.

mod chain;
mod contracts;
mod execute;
mod faults;
mod fork;
mod genesis;
mod rpc;
mod server;
mod state;
mod store;

pub use chain::{Block, Chain, Done, ImportError, Receipt};
pub use contracts::{Contracts, Network, Rules, committed, mint_call};
pub use execute::Call;
pub use faults::{Fault, Lie};
pub use genesis::{GenesisError, KNOWN, development, read_chain, read_genesis};
pub use rpc::Node;
pub use server::{Server, serve};
pub use state::{Account, Proof, State};
pub use store::{Store, StoreError};

use alloy_primitives::Bytes;

/// Why a transaction or a call had no effect.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// The contract reverted with this data.
    #[error("reverted with {0}")]
    Reverted(Bytes),
    /// The run ended otherwise: out of gas, or an invalid opcode.
    #[error("halted: {0}")]
    Halted(String),
    /// The run did not start.
    #[error("refused: {0}")]
    Refused(String),
}
