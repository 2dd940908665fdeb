//! Deliberate failures and lies of an endpoint.
//!
//! Owns the list; `rpc` and `server` implement them.

use alloy_primitives::{Address, U256};
use serde::Deserialize;

/// One fault. Names in JSON are in camel case, like `{"kind":"staleHead","blocks":10}`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Fault {
    /// Reports a block that is this far behind as the newest.
    StaleHead {
        /// Number of blocks.
        blocks: u64,
    },
    /// Reports another chain ID.
    OtherChain {
        /// The reported chain ID.
        id: u64,
    },
    /// Changes a byte of each header's state root.
    ForgedHeader,
    /// Changes a byte of each account proof.
    ForgedProof,
    /// Returns account proofs without nodes.
    NoProof,
    /// Lies about one account only.
    LiesAbout {
        /// The account.
        account: Address,
        /// The kind of lie.
        lie: Lie,
    },
    /// Reports one block with another state root, and all others unchanged.
    ForgedBlock {
        /// Height of the block.
        number: u64,
    },
    /// Serves no state and no proofs, not even of the newest block.
    ProofWindow0,
    /// Returns `null` instead of every error.
    NullForError,
    /// Cuts answers in half.
    Truncated,
    /// Sends answers of one gibibyte.
    Huge,
    /// Delays each answer.
    Slow {
        /// Delay in milliseconds.
        ms: u64,
    },
    /// Keeps the base fee constant.
    StuckBaseFee {
        /// The base fee in wei.
        wei: u64,
    },
    /// Accepts transactions and discards them.
    DropTransactions,
    /// Refuses logs of more than this many blocks at once.
    RangeLimit {
        /// Number of blocks.
        blocks: u64,
    },
    /// Refuses logs of more than this many events at once.
    EventLimit {
        /// Number of events.
        events: usize,
    },
    /// Reports another contract as the source of each log.
    ForeignEvents,
    /// Fails every request.
    Down,
}

/// What is wrong in the proof of one account. Slots are identified by their keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(tag = "about", rename_all = "camelCase")]
pub enum Lie {
    /// The slot has another value.
    Value {
        /// The slot.
        slot: U256,
    },
    /// The slot is empty.
    Empty {
        /// The slot.
        slot: U256,
    },
    /// A byte of the slot's proof is changed.
    Proof {
        /// The slot.
        slot: U256,
    },
    /// The slot is missing in the answer.
    Omitted {
        /// The slot.
        slot: U256,
    },
    /// The account has another balance.
    Balance,
    /// The account does not exist.
    Absent,
}
