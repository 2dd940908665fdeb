//! An EVM chain in this process: for development and tests, never part of a release.
//!
//! Owns state and blocks, and JSON-RPC on loopback. The hard fork is pinned, for later ones price storage otherwise. It can also follow a chain that others made, through all
//! forks, and answer for it.

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

/// Why a transaction or a question did nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Failure {
    /// The contract refused, with these bytes.
    #[error("reverted with {0}")]
    Reverted(Bytes),
    /// It ended otherwise: out of gas, an opcode that is none.
    #[error("halted: {0}")]
    Halted(String),
    /// It was never begun.
    #[error("refused: {0}")]
    Refused(String),
}
