//! The trust policy of a client: roots of trust and the rules for evidence.
//!
//! Owns the policy file. Never chooses roots of trust: `main` passes them in.

use std::collections::BTreeSet;
use std::path::Path;

use alloy_primitives::Address;
use openrelay_attest::Roots;
use openrelay_attest::facts::Platform;
use openrelay_attest::policy::Policy;
use serde::Deserialize;

use openrelay_node::config::{ConfigError, key_fault, read};

/// AMD's names of the products that evidence can come from.
const AMD_PRODUCTS: [&str; 3] = ["Milan", "Genoa", "Turin"];
/// Intel's firmware statuses that a policy can accept. `Revoked` is not among them.
const INTEL_STATUSES: [&str; 6] = [
    "UpToDate",
    "SWHardeningNeeded",
    "ConfigurationNeeded",
    "ConfigurationAndSWHardeningNeeded",
    "OutOfDate",
    "OutOfDateConfigurationNeeded",
];

/// Trust policy: the vendors' roots, which a program's `main` passes in, and the rules.
#[derive(Clone, Debug)]
pub struct TrustPolicy {
    /// The vendors' roots.
    pub roots: Roots,
    /// The rules.
    pub policy: Policy,
}

impl TrustPolicy {
    /// Returns the policy that clients are released with, for these roots. Simulated roots are accepted because the
    /// caller passes them in, and every result then reports the simulation.
    pub fn of(roots: Roots) -> Self {
        let policy = Policy { simulation: roots.simulated, ..Policy::default() };
        Self { roots, policy }
    }

    /// Applies the policy file `path`. `rebuilt` has the values of the images rebuilt on this machine.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line and key.
    pub fn with_file(mut self, path: &Path, rebuilt: Vec<[u8; 32]>) -> Result<Self, ConfigError> {
        let file: PolicyFile = read(path)?;
        let policy = &mut self.policy;
        if let Some(names) = file.platforms {
            let called = |name: &String| {
                let all = [Platform::Sgx, Platform::Tdx, Platform::SevSnp];
                all.into_iter().find(|platform| platform.name() == name).ok_or_else(|| {
                    key_fault(path, "platforms", format!("unknown platform {name:?}; use SGX, TDX or SEV-SNP"))
                })
            };
            policy.platforms = names.iter().map(called).collect::<Result<_, _>>()?;
            if names.is_empty() {
                return Err(key_fault(path, "platforms", "is empty; no relay could be accepted"));
            }
        }
        // A value that vendors spell differently would match nothing. Without this check the user would only see
        // every relay refused.
        let known =
            |key: &str, names: &[String], all: &[&str]| match names.iter().find(|name| !all.contains(&name.as_str())) {
                Some(name) => Err(key_fault(path, key, format!("unknown value {name:?}; use {}", all.join(", ")))),
                None => Ok(()),
            };
        if let Some(products) = file.amd_products {
            known("amd_products", &products, &AMD_PRODUCTS)?;
            policy.amd_products = products;
        }
        if let Some(statuses) = file.intel_statuses {
            known("intel_statuses", &statuses, &INTEL_STATUSES)?;
            policy.intel_statuses = statuses;
        }
        if let Some(seconds) = file.max_age_s {
            if seconds == 0 || seconds > policy.max_age_s {
                return Err(key_fault(path, "max_age_s", format!("must be 1 to {}", policy.max_age_s)));
            }
            policy.max_age_s = seconds;
        }
        policy.smt = file.smt;
        if file.paranoid {
            policy.rebuilt = Some(rebuilt);
        }
        let named: Vec<[u8; 20]> = file.rebuilders.iter().map(|address| address.0.0).collect();
        if named.iter().collect::<BTreeSet<_>>().len() != named.len() {
            return Err(key_fault(path, "rebuilders", "contains an address twice"));
        }
        let needed = file.rebuilders_needed.unwrap_or(named.len());
        if named.is_empty() && file.rebuilders_needed.is_some() {
            return Err(key_fault(path, "rebuilders_needed", "requires signatures, but `rebuilders` is empty"));
        }
        if needed > named.len() || (needed == 0 && file.rebuilders_needed.is_some()) {
            return Err(key_fault(
                path,
                "rebuilders_needed",
                format!("must be 1 to {}, the number of `rebuilders`", named.len()),
            ));
        }
        (policy.rebuilders, policy.rebuilders_needed) = (named, needed);
        Ok(self)
    }
}

/// A policy file. Keys that are not set have the values that clients are released with.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    /// Accepted platforms: SGX, TDX, SEV-SNP.
    platforms: Option<Vec<String>>,
    /// Accepted products of AMD.
    amd_products: Option<Vec<String>>,
    /// Accepted firmware statuses, in Intel's spelling.
    intel_statuses: Option<Vec<String>>,
    /// Maximum age of the block in evidence, in seconds.
    max_age_s: Option<u64>,
    /// Whether machines on which two threads share a core are accepted.
    #[serde(default = "yes")]
    smt: bool,
    /// Accepts only images that were rebuilt on this machine.
    #[serde(default)]
    paranoid: bool,
    /// Addresses of the keys of rebuilders who must have signed that they reproduced the image.
    #[serde(default, deserialize_with = "openrelay_ledger::address::list::deserialize")]
    rebuilders: Vec<Address>,
    /// Number of them that must have signed; all if not set.
    rebuilders_needed: Option<usize>,
}

const fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]
    use super::*;

    #[test]
    fn policy_that_accepts_nothing_is_refused_with_its_key() {
        let path = std::env::temp_dir().join(format!("openrelay-policy-{}", std::process::id()));
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            TrustPolicy::of(Roots::genuine()).with_file(&path, Vec::new())
        };
        for (text, words) in [
            ("platforms = []", "platforms: is empty"),
            ("platforms = [\"TPM\"]", "platforms: unknown platform \"TPM\""),
            ("amd_products = [\"genoa\"]", "amd_products: unknown value \"genoa\"; use Milan, Genoa, Turin"),
            ("intel_statuses = [\"Revoked\"]", "intel_statuses: unknown value \"Revoked\""),
            ("rebuilders_needed = 3", "rebuilders_needed: requires signatures, but `rebuilders` is empty"),
        ] {
            let said = read(text).unwrap_err().to_string();
            assert!(said.contains(words), "{text}: {said}");
        }
        let taken = read("amd_products = [\"Turin\"]\nintel_statuses = [\"OutOfDate\"]\n").unwrap().policy;
        assert_eq!(
            (taken.amd_products, taken.intel_statuses),
            (vec!["Turin".to_owned()], vec!["OutOfDate".to_owned()])
        );
        std::fs::remove_file(path).unwrap();
    }
}
