//! The outcome of a boot.

/// The outcome of a boot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// All processors wait with interrupts disabled.
    Halted,
    /// The approved image has booted.
    Unharmed,
    /// A program of the host has run.
    HostCode,
    /// The emulator has ended, as after a reset or a power-off. Contains its status and console.
    Ended(String),
    /// Nothing of this happened within the time limit. Contains the console.
    Undecided(String),
}

impl Outcome {
    /// Returns the name in tables and JSON.
    pub(super) const fn word(&self) -> &'static str {
        match self {
            Self::Halted => "halted",
            Self::Unharmed => "unharmed",
            Self::HostCode => "host-code",
            Self::Ended(_) => "ended",
            Self::Undecided(_) => "undecided",
        }
    }

    /// Returns the console output where it is the only information.
    pub(super) fn console(&self) -> &str {
        match self {
            Self::Ended(console) | Self::Undecided(console) => console,
            Self::Halted | Self::Unharmed | Self::HostCode => "",
        }
    }
}
