//! How an endpoint can fail or lie, on purpose.
//!
//! Owns the list; `rpc` and `server` play them.

use alloy_primitives::{Address, U256};
use serde::Deserialize;

/// One fault. Names in JSON are in camel case, like `{"kind":"staleHead","blocks":10}`.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Fault {
    /// Speaks of the block so many behind as the newest.
    StaleHead {
        /// How many.
        blocks: u64,
    },
    /// Says that it is another chain.
    OtherChain {
        /// Which.
        id: u64,
    },
    /// Changes a byte of each header's state root.
    ForgedHeader,
    /// Changes a byte of each proof.
    ForgedProof,
    /// Proofs without nodes.
    NoProof,
    /// Lies about one account, and about no other.
    LiesAbout {
        /// The account.
        account: Address,
        /// How.
        lie: Lie,
    },
    /// Shows one block with another state root, and all others as they are.
    ForgedBlock {
        /// Its height.
        number: u64,
    },
    /// No state but the newest block's is there to be proven, and not even that one.
    ProofWindow0,
    /// `null` instead of every error.
    NullForError,
    /// Answers end in the middle.
    Truncated,
    /// Answers are of a gibibyte.
    Huge,
    /// Answers take so many milliseconds.
    Slow {
        /// How many.
        ms: u64,
    },
    /// The base fee stays at so many wei.
    StuckBaseFee {
        /// How many.
        wei: u64,
    },
    /// Transactions are taken and forgotten.
    DropTransactions,
    /// Logs of more than so many blocks at once are refused.
    RangeLimit {
        /// How many.
        blocks: u64,
    },
    /// Logs of more than so many events at once are refused.
    EventLimit {
        /// How many.
        events: usize,
    },
    /// Logs are said to be of another contract.
    ForeignEvents,
    /// Every request fails.
    Down,
}

/// What is wrong in the proof of one account. A slot is meant by its key.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(tag = "about", rename_all = "camelCase")]
pub enum Lie {
    /// The slot holds something else.
    Value {
        /// Which slot.
        slot: U256,
    },
    /// The slot is empty.
    Empty {
        /// Which slot.
        slot: U256,
    },
    /// Its proof has a byte changed.
    Proof {
        /// Which slot.
        slot: U256,
    },
    /// It is left out of the answer.
    Omitted {
        /// Which slot.
        slot: U256,
    },
    /// The account has another balance.
    Balance,
    /// There is no such account.
    Absent,
}
