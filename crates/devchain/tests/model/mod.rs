//! The reference model of the contracts for votes, bonds and images.
//!
//! Owns the rules of `ValidatorSet`, `Rounds`, `ImageRegistry` and `Collateral` (contracts/src) as plain arithmetic
//! over plain values, one file each. Tests compare the contracts with the model by random sequences of calls, and
//! search all states of the model for anything that must never happen. The model computes the same results in another
//! way where it can: it recounts votes at each query, where a contract keeps sums. It never reads a clock or a chain.
//! Each call is one block.

#![allow(dead_code, reason = "each test uses a part of the model")]

pub(crate) mod collateral;
pub(crate) mod images;
pub(crate) mod rounds;
pub(crate) mod set;

/// A party, identified by its address.
pub(crate) type Party = u64;

/// Why a call is refused. The names are those of the contracts' errors.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Revert {
    /// The period already has a round.
    AlreadyOpen,
    /// There is no such answer, or both answers are the same.
    BadAnswer,
    /// A value is zero or out of bounds.
    BadValue,
    /// The bond is too small to join.
    BondTooSmall,
    /// The entry lowers a floor.
    FloorFalls,
    /// The validator has open commitments.
    Locked,
    /// No validator has a bond.
    NoValidators,
    /// The caller is not allowed to do this.
    NotAllowed,
    /// The round approved another entry or none, or a newer entry is in force.
    NotApproved,
    /// The version is already approved, or must wait.
    NotNow,
    /// This validator did not make the statement.
    NotSigned,
    /// The caller is not the validator's hot key.
    NotTheVoter,
    /// The hot key has already served a validator.
    OperatorTaken,
    /// The time for this call has not come.
    TooEarly,
    /// Too many rounds are open.
    TooManyRounds,
    /// The vote's state does not allow this.
    WrongMark,
    /// The opening does not match the commitment.
    WrongOpening,
    /// The round's phase does not allow this.
    WrongPhase,
    /// The opening does not match the proposal.
    WrongProposal,
    /// The image's state does not allow this.
    WrongState,
    /// The validator's status does not allow this.
    WrongStatus,
}
