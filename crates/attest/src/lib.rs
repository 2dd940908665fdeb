//! Verification of evidence from trusted execution environments.
//!
//! Owns the strict encoding of evidence, the verification of Intel's and AMD's signatures against pinned roots, and
//! the resulting facts. Pure: no sockets, no clock, no files; time and roots are arguments. It never says "trusted".
//! It lists facts, or refuses with a code, a sentence and the next step.
//!
//! ```text
//! vendor's bytes ─ raw ─▶ Evidence ─ examine(roots, collateral, now) ─▶ Facts, or a Refusal
//! evidence file: AttestationFile (Staples, Bundle of collateral, Manifests of images)
//!                Staple ─ verify(policy, data from the chain, …) ─▶ Verdict, or a Refusal
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

/// Verifies evidence against the vendor's roots and collateral, at `now` in seconds since the Unix epoch, and lists
/// the facts that it states. Whether the facts are good enough is for a [`policy`] to decide.
///
/// # Errors
/// [`Refusal`] if the evidence is not genuine, or cannot be shown to be genuine.
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

/// Checks a staple without a chain and without collateral: a chip of the vendor signed the evidence, and the evidence
/// attests the binding. Properties, revocation, firmware and policy are not checked.
///
/// # Errors
/// [`Refusal`] if a check fails.
pub fn check_staple(staple: &verdict::Staple, roots: &Roots, now: u64) -> Result<(), Refusal> {
    if staple.evidence.report_data() != staple.binding.report_data() {
        return Err(Refusal::Binding);
    }
    check_signatures(&staple.evidence, roots, now)
}

/// Checks the signatures of evidence as far as possible without collateral. For AMD that is the whole chain to a
/// pinned root, for Intel the chain from a pinned authority.
///
/// # Errors
/// [`Refusal`] if no chip of the vendor signed the evidence.
pub fn check_signatures(evidence: &Evidence, roots: &Roots, now: u64) -> Result<(), Refusal> {
    match evidence {
        Evidence::Intel(quote) => intel::check_signatures(quote, roots),
        Evidence::Amd(report) => amd::examine(report, None, roots, now).map(drop),
    }
}
