//! What votes, bonds and images do, written down a second time: the reference model of the contracts.
//!
//! Owns the rules of `ValidatorSet`, `Rounds`, `ImageRegistry` and `Collateral` (contracts/src) as plain arithmetic over plain values, one file each. The contracts are held
//! against it by random sequences of calls, and what must never happen is looked for in all its states. It says the same in another way where it can: it counts
//! votes anew at each question, where a contract keeps sums. Never reads a clock or a chain; each call is one block of its own.

pub mod collateral;
pub mod images;
pub mod rounds;
pub mod set;

/// Somebody with an address.
pub type Party = u64;

/// Why a call is refused: the names are those of the contracts' errors.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Refusal {
    /// The period has its round.
    AlreadyOpen,
    /// No such answer, or twice the same.
    BadAnswer,
    /// A value is zero or out of its bounds.
    BadValue,
    /// The bond is too small to join with.
    BondTooSmall,
    /// A floor never falls.
    FloorFalls,
    /// Open commitments.
    Locked,
    /// Nobody has a bond.
    NoValidators,
    /// The caller may not.
    NotAllowed,
    /// The round approved another entry, or none, or a newer one holds.
    NotApproved,
    /// The version is approved, or must wait.
    NotNow,
    /// The statement was not made by this validator.
    NotSigned,
    /// The caller is not the validator's hot key.
    NotTheVoter,
    /// The hot key has served a validator.
    OperatorTaken,
    /// Too early.
    TooEarly,
    /// Too many rounds are open.
    TooManyRounds,
    /// The vote is not in a state for this.
    WrongMark,
    /// Not what was committed.
    WrongOpening,
    /// The round is not at this point.
    WrongPhase,
    /// Not what was proposed.
    WrongProposal,
    /// The image is not in a state for this.
    WrongState,
    /// The validator is not in a state for this.
    WrongStatus,
}
