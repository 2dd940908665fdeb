//! Evidence of trusted execution environments: what a relay shows, and what follows from it.
//!
//! Owns the strict encoding of evidence, the checks of Intel's and AMD's signatures down to pinned roots, and the facts
//! that come out. Pure: no sockets, no clock, no files; time and roots are arguments. Never says "trusted": it lists
//! facts, or refuses with a code, a sentence and the next step.
//!
//! ```text
//! vendor's bytes ─ raw ─▶ Evidence ─ examine(roots, collateral, now) ─▶ Facts, or a Refusal
//! everything relays are judged by: AttestationFile (Staples, Bundle of collateral, Manifests of images)
//!          what a relay shows: Staple ─ verify(policy, what the chain says, …) ─▶ Verdict, or a Refusal
//! ```

pub mod amd;
pub mod binding;
pub mod bundle;
pub mod bytes;
pub mod collateral;
pub mod evidence;
pub mod facts;
pub mod file;
pub mod intel;
mod json;
pub mod manifest;
pub mod pages;
pub mod policy;
pub mod raw;
pub mod refusal;
pub mod roots;
pub mod verdict;

pub use collateral::Collateral;
pub use evidence::Evidence;
pub use facts::Facts;
pub use refusal::Refusal;
pub use roots::Roots;

/// Holds evidence against the vendor's roots and collateral, at `now` in seconds since the Unix epoch, and lists what
/// follows. Whether that is enough is not said here.
///
/// # Errors
/// [`Refusal`]: this is no genuine evidence, or cannot be shown to be.
pub fn examine(
    evidence: &Evidence,
    collateral: Option<&Collateral>,
    roots: &Roots,
    now: u64,
) -> Result<Facts, Refusal> {
    evidence.check()?;
    match (evidence, collateral) {
        (Evidence::Intel(quote), Some(Collateral::Intel(collateral))) => intel::examine(quote, collateral, roots, now),
        (Evidence::Intel(_), None) => Err(Refusal::NoCollateral),
        (Evidence::Amd(report), Some(Collateral::Amd(collateral))) => {
            amd::examine(report, Some(collateral), roots, now)
        }
        (Evidence::Amd(report), None) => amd::examine(report, None, roots, now),
        (Evidence::Intel(_), Some(Collateral::Amd(_))) | (Evidence::Amd(_), Some(Collateral::Intel(_))) => {
            Err(Refusal::OtherCollateral)
        }
    }
}

/// Checks what can be checked of a staple without a chain and without collateral: that a chip of the vendor has signed
/// it, and that it is bound to what it says it is bound to. Properties, revocation, firmware and policy are not looked
/// at.
///
/// # Errors
/// [`Refusal`].
pub fn check_staple(staple: &verdict::Staple, roots: &Roots, now: u64) -> Result<(), Refusal> {
    if staple.evidence.report_data() != staple.binding.report_data() {
        return Err(Refusal::Binding);
    }
    check_signatures(&staple.evidence, roots, now)
}

/// Checks the signatures of evidence as far as they can be checked without collateral: for AMD's the whole chain to a
/// pinned root, for Intel's the chain from a pinned authority.
///
/// # Errors
/// [`Refusal`]: no chip of the vendor has signed this.
pub fn check_signatures(evidence: &Evidence, roots: &Roots, now: u64) -> Result<(), Refusal> {
    match evidence {
        Evidence::Intel(quote) => intel::check_signatures(quote, roots),
        Evidence::Amd(report) => amd::examine(report, None, roots, now).map(drop),
    }
}
