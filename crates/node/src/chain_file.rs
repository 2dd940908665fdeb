//! The file that says which chain, which contracts and which endpoints.

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

/// What is trusted of a chain, and who is asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChainFile {
    /// What tells the chain from others.
    pub chain_id: u64,
    /// The Directory contract.
    pub directory: Address,
    /// Keccak-256 of its code.
    pub code_hash: B256,
    /// The registry that writes it.
    pub registry: Address,
    /// Votes on images; what validators need.
    #[serde(default)]
    pub images: Option<Address>,
    /// Votes on vendors' collateral; what evidence of relays is judged by, together with images.
    #[serde(default)]
    pub collateral: Option<Address>,
    /// 1; what development networks divide times of images by.
    #[serde(default = "default_haste")]
    pub haste: u32,
    /// Validators and their bonds, whom they give their bond to: no endpoint is asked for that address.
    #[serde(default)]
    pub validators: Option<Address>,
    /// The block from which on a mirror looks for events.
    #[serde(default)]
    pub first_block: u64,
    /// RPC endpoints, of different operators.
    pub endpoints: Vec<String>,
    /// How many of them must show the same header.
    pub quorum: usize,
    /// Whether plain HTTP to other machines, and a quorum of one endpoint, are accepted: then whoever is on the way, or runs that
    /// endpoint, decides which block is the newest.
    #[serde(default)]
    pub insecure: bool,
    /// Mirrors of the records.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// Mirrors of what relays are judged by: evidence, collateral, manifests of images.
    #[serde(default)]
    pub evidence: Vec<String>,
    /// Mirrors of the client's packages: the hash of a package follows.
    #[serde(default)]
    pub packages: Vec<String>,
    /// Mirrors of checkpoints, for the first start and for when no endpoint can be used.
    #[serde(default)]
    pub checkpoints: Vec<String>,
    /// Ed25519 keys that sign checkpoints, each 64 hexadecimal digits; a signature names its key by the place here.
    #[serde(default)]
    pub checkpoint_keys: Vec<String>,
    /// How many of them must have signed one.
    #[serde(default)]
    pub checkpoint_quorum: usize,
    /// How old a directory may be when no endpoint answers, in seconds; at most 72 hours.
    #[serde(default = "default_max_age")]
    pub max_age_s: u64,
    /// How often relays read the directory anew, in seconds.
    #[serde(default = "default_refresh")]
    pub refresh_s: u64,
}

fn default_haste() -> u32 {
    1
}

fn default_max_age() -> u64 {
    MAX_AGE
}

fn default_refresh() -> u64 {
    60
}

impl ChainFile {
    /// Reads and checks it.
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
                let why = format!("{url:?} names a mirror a second time, which is no second source");
                return Err(key_fault(path, key, why));
            }
        }
        if file.haste == 0 {
            return Err(key_fault(path, "haste", "must be at least 1"));
        }
        if let Some(key) = file.checkpoint_keys.iter().find(|key| hex::decode::<32>(key).is_none()) {
            return Err(key_fault(path, "checkpoint_keys", format!("{key:?} must be 64 hexadecimal digits")));
        }
        let keys = file.checkpoint_keys.len();
        if keys > MAX_KEYS {
            return Err(key_fault(path, "checkpoint_keys", format!("must be at most {MAX_KEYS} keys")));
        }
        if file.checkpoint_quorum > keys || (file.checkpoint_quorum == 0) != file.checkpoints.is_empty() {
            let must = format!("must be 1 to {keys}, the number of keys, where checkpoints are named, otherwise 0");
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
                let why = "anyone on the way can answer for it; use https://, or write insecure = true";
                return Err(key_fault(path, "endpoints", format!("{url:?} is plain http to another machine: {why}")));
            }
            if !known.insert(place) {
                let why = format!("{url:?} names an endpoint a second time, which is no second opinion");
                return Err(key_fault(path, "endpoints", why));
            }
        }
        if file.quorum == 1 && !file.insecure {
            let why = "must be at least 2, so that no single endpoint decides; or write insecure = true";
            return Err(key_fault(path, "quorum", why));
        }
        let keys: BTreeSet<[u8; 32]> = file.checkpoint_keys.iter().filter_map(|key| hex::decode(key)).collect();
        if keys.len() < file.checkpoint_keys.len() {
            return Err(key_fault(path, "checkpoint_keys", "names a key twice, whose signature would count twice"));
        }
        if file.max_age_s > MAX_AGE {
            return Err(key_fault(path, "max_age_s", format!("must be at most {MAX_AGE}, 72 hours")));
        }
        if file.refresh_s == 0 || file.refresh_s > MAX_AGE {
            return Err(key_fault(path, "refresh_s", format!("must be 1 to {MAX_AGE}, 72 hours")));
        }
        Ok(file)
    }

    /// Whose checkpoints are believed.
    pub fn signers(&self) -> Signers {
        // Those that are none were refused when the file was read.
        let keys = self.checkpoint_keys.iter().filter_map(|key| hex::decode(key)).collect();
        Signers { keys, quorum: self.checkpoint_quorum }
    }

    /// What of it is trusted.
    pub fn trust(&self) -> Trust {
        let contracts = self.images.zip(self.collateral);
        let contracts = contracts.map(|(images, collateral)| Contracts { images, collateral, haste: self.haste });
        Trust { chain_id: self.chain_id, directory: self.directory, code_hash: self.code_hash, contracts }
    }
}

/// Where an endpoint or a mirror is, in one spelling: scheme and host in lower case, the port always named, no final
/// slash or dot.
#[derive(PartialEq, Eq, PartialOrd, Ord, Debug)]
struct Place {
    secure: bool,
    host: String,
    port: u16,
    /// Path and query; of users and passwords one endpoint can have several.
    rest: String,
}

impl Place {
    /// Source: RFC 3986, section 3. `None` for what names no host, or one with unusual characters.
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
        // An address has many spellings, like ::1 and 0:0:0:0:0:0:0:1.
        let host = host.parse::<IpAddr>().map_or(host, |address| address.to_canonical().to_string());
        let rest = rest.split('#').next().unwrap_or("").trim_end_matches('/').to_owned();
        Some(Self { secure, host, port, rest })
    }

    /// Whether others can be on the way.
    fn is_exposed(&self) -> bool {
        let loopback = self.host.parse::<IpAddr>().map_or(self.host == "localhost", |address| address.is_loopback());
        !self.secure && !loopback
    }
}

#[cfg(test)]
mod tests;
