//! The chain file: which chain and contracts are trusted, and which endpoints and mirrors are asked.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use alloy_primitives::{Address, B256};
use openrelay_ledger::chain::checkpoint::{MAX_KEYS, Signers};
use openrelay_ledger::chain::reading::{MAX_AGE, Trust};
use openrelay_ledger::chain::voted::Contracts;
use openrelay_ledger::hex;
use serde::Deserialize;

use crate::config::{ConfigError, key_fault, read as read_file};

/// The trusted chain and contracts, and the servers that are asked about them.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainFile {
    /// The chain's EIP-155 chain ID.
    pub chain_id: u64,
    /// The Directory contract.
    #[serde(deserialize_with = "openrelay_ledger::address::deserialize")]
    pub directory: Address,
    /// Keccak-256 of the Directory contract's code.
    pub code_hash: B256,
    /// The registry that writes the directory.
    #[serde(deserialize_with = "openrelay_ledger::address::deserialize")]
    pub registry: Address,
    /// The contract with the votes on images; needed by validators.
    #[serde(default, deserialize_with = "openrelay_ledger::address::optional::deserialize")]
    pub images: Option<Address>,
    /// The contract with the votes on vendors' collateral. Together with `images` it is needed to verify relay
    /// evidence.
    #[serde(default, deserialize_with = "openrelay_ledger::address::optional::deserialize")]
    pub collateral: Option<Address>,
    /// Divisor of the time limits of image votes: 1, more on development networks.
    #[serde(default = "default_time_divisor", alias = "haste")]
    pub time_divisor: u32,
    /// The contract of the validators and their bonds. Validators pay their bond to this address, so it is never
    /// taken from an endpoint.
    #[serde(default, deserialize_with = "openrelay_ledger::address::optional::deserialize")]
    pub validators: Option<Address>,
    /// First block that a mirror searches for events.
    #[serde(default)]
    pub first_block: u64,
    /// RPC endpoints, of different operators.
    pub endpoints: Vec<String>,
    /// Number of endpoints that must show the same header.
    pub quorum: usize,
    /// Accepts plain HTTP to other machines, and a quorum of one endpoint. Anyone on the path, or the operator of
    /// that endpoint, then decides which block is the newest.
    #[serde(default)]
    pub insecure: bool,
    /// Mirrors of the records.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// Mirrors of the data for judging relays: evidence, collateral, image manifests.
    #[serde(default)]
    pub evidence: Vec<String>,
    /// Mirrors of the client's packages; the hash of a package is appended to the URL.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Mirrors of checkpoints, used at the first start and when no endpoint is usable.
    #[serde(default)]
    pub checkpoints: Vec<String>,
    /// Ed25519 keys that sign checkpoints, each 64 hexadecimal digits. A signature refers to its key by the index in
    /// this list.
    #[serde(default)]
    pub checkpoint_keys: Vec<String>,
    /// Number of these keys that must sign a checkpoint.
    #[serde(default)]
    pub checkpoint_quorum: usize,
    /// Maximum age of a directory while no endpoint answers, in seconds; at most 72 hours.
    #[serde(default = "default_max_age")]
    pub max_age_s: u64,
    /// Interval at which relays and connected clients refresh the directory, in seconds.
    #[serde(default = "default_refresh")]
    pub refresh_s: u64,
}

fn default_time_divisor() -> u32 {
    1
}

fn default_max_age() -> u64 {
    MAX_AGE
}

fn default_refresh() -> u64 {
    60
}

impl ChainFile {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// [`ConfigError`] with file, line and key.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file: Self = read_file(path)?;
        let bad_url = |url: &&String| !(url.starts_with("http://") || url.starts_with("https://"));
        if let Some(url) = file.endpoints.iter().find(bad_url) {
            return Err(key_fault(path, "endpoints", format!("{url:?} must begin with https:// or http://")));
        }
        let mirrors = [&file.mirrors, &file.evidence, &file.packages, &file.checkpoints];
        for (key, urls) in ["mirrors", "evidence", "packages", "checkpoints"].into_iter().zip(mirrors) {
            if let Some(url) = urls.iter().find(bad_url) {
                return Err(key_fault(path, key, format!("{url:?} must begin with https:// or http://")));
            }
            let mut known = BTreeSet::new();
            if let Some(url) = urls.iter().find(|url| Place::of(url).is_some_and(|place| !known.insert(place))) {
                let why = format!("{url:?} lists a mirror a second time; remove the duplicate");
                return Err(key_fault(path, key, why));
            }
        }
        if file.time_divisor == 0 {
            return Err(key_fault(path, "time_divisor", "must be at least 1"));
        }
        if let Some(key) = file.checkpoint_keys.iter().find(|key| hex::decode::<32>(key).is_none()) {
            return Err(key_fault(path, "checkpoint_keys", format!("{key:?} must be 64 hexadecimal digits")));
        }
        let keys = file.checkpoint_keys.len();
        if keys > MAX_KEYS {
            return Err(key_fault(path, "checkpoint_keys", format!("must be at most {MAX_KEYS} keys")));
        }
        if file.checkpoint_quorum > keys || (file.checkpoint_quorum == 0) != file.checkpoints.is_empty() {
            let must = format!("must be 1 to {keys}, the number of keys, if `checkpoints` is set, otherwise 0");
            return Err(key_fault(path, "checkpoint_quorum", must));
        }
        if file.quorum == 0 || file.quorum > file.endpoints.len() {
            let must = format!("must be 1 to {}, the number of endpoints", file.endpoints.len());
            return Err(key_fault(path, "quorum", must));
        }
        let mut known = BTreeSet::new();
        for url in &file.endpoints {
            let Some(place) = Place::of(url) else {
                return Err(key_fault(path, "endpoints", format!("{url:?} is not a URL with a host")));
            };
            if place.is_exposed() && !file.insecure {
                let why = "anyone on the path can answer for it; use https:// or set insecure = true";
                return Err(key_fault(path, "endpoints", format!("{url:?} is plain http to another machine: {why}")));
            }
            if !known.insert(place) {
                let why = format!("{url:?} lists an endpoint a second time; a duplicate confirms nothing, remove it");
                return Err(key_fault(path, "endpoints", why));
            }
        }
        if file.quorum == 1 && !file.insecure {
            let why = "must be at least 2, so that no single endpoint decides; or set insecure = true";
            return Err(key_fault(path, "quorum", why));
        }
        let keys: BTreeSet<[u8; 32]> = file.checkpoint_keys.iter().filter_map(|key| hex::decode(key)).collect();
        if keys.len() < file.checkpoint_keys.len() {
            return Err(key_fault(path, "checkpoint_keys", "contains a key twice; its signature would count twice"));
        }
        if file.max_age_s > MAX_AGE {
            return Err(key_fault(path, "max_age_s", format!("must be at most {MAX_AGE}, 72 hours")));
        }
        if file.refresh_s == 0 || file.refresh_s > MAX_AGE {
            return Err(key_fault(path, "refresh_s", format!("must be 1 to {MAX_AGE}, 72 hours")));
        }
        Ok(file)
    }

    /// Returns the keys that sign checkpoints, and their quorum.
    pub fn signers(&self) -> Signers {
        // `load` has refused malformed keys.
        let keys = self.checkpoint_keys.iter().filter_map(|key| hex::decode(key)).collect();
        Signers { keys, quorum: self.checkpoint_quorum }
    }

    /// Returns what readings of this chain are verified against.
    pub fn trust(&self) -> Trust {
        let contracts = self.images.zip(self.collateral);
        let contracts =
            contracts.map(|(images, collateral)| Contracts { images, collateral, time_divisor: self.time_divisor });
        Trust { chain_id: self.chain_id, directory: self.directory, code_hash: self.code_hash, contracts }
    }
}

/// Normalized location of an endpoint or mirror: scheme and host in lower case, an explicit port, no trailing slash
/// or dot.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    secure: bool,
    host: String,
    port: u16,
    /// Path and query. User and password are left out: one endpoint can have several.
    rest: String,
}

impl Place {
    /// Parses a URL. Returns `None` for a URL without a host, or with unusual characters in the host.
    /// Source: RFC 3986, section 3.
    fn of(url: &str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (authority, rest) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let place = authority.rsplit('@').next()?;
        let (host, port) = match place.strip_prefix('[') {
            Some(address) => address.split_once(']').map(|(host, port)| (host, port.strip_prefix(':')))?,
            None => place.split_once(':').map_or((place, None), |(host, port)| (host, Some(port))),
        };
        let secure = scheme.eq_ignore_ascii_case("https");
        let port = port.map_or(Some(if secure { 443 } else { 80 }), |port| port.parse().ok())?;
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if host.is_empty() || !host.chars().all(|one| one.is_ascii_alphanumeric() || ".-_:".contains(one)) {
            return None;
        }
        // An address has several spellings, such as ::1 and 0:0:0:0:0:0:0:1.
        let host = host.parse::<IpAddr>().map_or(host, |address| address.to_canonical().to_string());
        let rest = rest.split('#').next().unwrap_or("").trim_end_matches('/').to_owned();
        Some(Self { secure, host, port, rest })
    }

    /// Returns whether third parties can be on the path to it.
    fn is_exposed(&self) -> bool {
        let loopback = self.host.parse::<IpAddr>().map_or(self.host == "localhost", |address| address.is_loopback());
        !self.secure && !loopback
    }
}

#[cfg(test)]
mod tests;
