//! Configuration files of relays and clients.
//!
//! Owns their format, and reads what they refer to: directory and keys. Every error names the file, the line and the
//! key, and says what is expected.

use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use openrelay_ledger::directory::DirectoryError;
use openrelay_ledger::hex;
use openrelay_ledger::record::Role;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::chain_file::ChainFile;

/// Largest configuration or key file, in bytes.
const MAX_FILE: u64 = 2 << 20;

/// What is wrong with a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// A file has invalid content.
    #[error("{path}: {fault}")]
    Fault {
        /// The file.
        path: PathBuf,
        /// What is wrong, with line and key, and what is expected.
        fault: String,
        /// The line, from 1 on, and the key, as far as they are known.
        at: (Option<usize>, Option<String>),
    },
    /// A directory is refused.
    #[error("{path}: directory refused: {source}")]
    Directory {
        /// The file.
        path: PathBuf,
        /// Why.
        source: DirectoryError,
    },
}

impl ConfigError {
    /// Returns file, line and key without the message. The message may quote the file, which the host of a guest must
    /// not read.
    pub fn without_content(&self) -> String {
        match self {
            Self::Read { path, source } => format!("cannot read {}: {}", path.display(), source.kind()),
            Self::Fault { path, at, .. } => {
                let place = match at {
                    (Some(line), Some(key)) => format!("line {line}, key {key} is refused"),
                    (Some(line), None) => format!("line {line} is refused"),
                    (None, Some(key)) => format!("key {key} is refused"),
                    (None, None) => "it is refused".into(),
                };
                format!("{}: {place}", path.display())
            }
            Self::Directory { path, .. } => format!("{}: directory refused", path.display()),
        }
    }
}

/// How new users are admitted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdmissionMode {
    /// Everybody is admitted; users prove nothing.
    Open,
}

/// What relays must prove.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttestationMode {
    /// That a chip has started an image that validators approved.
    #[default]
    Required,
    /// Nothing: the relays are the user's own.
    None,
}

/// A relay's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelayFile {
    /// The relay's role.
    pub role: Role,
    /// The relay ID in the directory.
    pub relay_id: u64,
    /// Addresses to listen on, at most one of each family.
    pub listen: Vec<SocketAddr>,
    /// The signed directory.
    #[serde(default)]
    pub directory: Option<PathBuf>,
    /// The key that signs the directory, 64 hexadecimal digits.
    #[serde(default)]
    pub directory_key: Option<String>,
    /// File with the secret handshake key, readable by its owner only. Not used with a chain: the key is then made at
    /// each start.
    #[serde(default)]
    pub handshake_key: Option<PathBuf>,
    /// The chain that proves the directory, instead of a signed file.
    #[serde(default)]
    pub chain: Option<PathBuf>,
    /// SHA-256 of the image that the relay runs, 64 hexadecimal digits; required with a chain.
    #[serde(default)]
    pub image: Option<String>,
    /// How users are admitted; required.
    pub admission: AdmissionMode,
    /// Egress only: also accept clients without an ingress, which shows their addresses to the egress.
    #[serde(default)]
    pub one_hop: bool,
    /// Number of shards, each a thread; 0 for one per core.
    #[serde(default)]
    pub shards: u8,
    /// Maximum number of sessions of clients per shard: at most 131,072, and at an egress 48,960 (docs/limits.md).
    #[serde(default = "default_capacity")]
    pub capacity: u32,
    /// The numeric user ID that the relay switches to before it serves.
    #[serde(default = "default_user")]
    pub user: u32,
    /// Whether datagrams are sent and received in trains; false if a network driver handles them wrongly.
    #[serde(default = "yes")]
    pub udp_trains: bool,
    /// Egress only: name of the tunnel device.
    #[serde(default = "default_egress_device")]
    pub device: String,
}

/// A client's configuration.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClientFile {
    /// The signed directory.
    #[serde(default)]
    pub directory: Option<PathBuf>,
    /// The key that signs the directory, 64 hexadecimal digits.
    #[serde(default)]
    pub directory_key: Option<String>,
    /// The chain that proves the directory, instead of a signed file.
    #[serde(default)]
    pub chain: Option<PathBuf>,
    /// The admission that the client accepts; required. A relay's admission `open` proves nothing about the relay.
    pub admission: AdmissionMode,
    /// What relays must prove. `none` is allowed only with a directory of your own relays.
    #[serde(default)]
    pub attestation: AttestationMode,
    /// The policy file, which says which evidence is accepted. Without it, the policy that clients are released with
    /// applies.
    #[serde(default)]
    pub policy: Option<PathBuf>,
    /// Name servers, asked through the tunnel.
    pub dns: Vec<IpAddr>,
    /// The only ingress to use.
    #[serde(default)]
    pub ingress: Option<u64>,
    /// The only egress to use.
    #[serde(default)]
    pub egress: Option<u64>,
    /// Seconds of silence before a keepalive is sent; 0 for never.
    #[serde(default = "default_keepalive")]
    pub keepalive_s: u32,
    /// Whether datagrams are sent and received in trains; false if a network driver handles them wrongly.
    #[serde(default = "yes")]
    pub udp_trains: bool,
    /// Name of the tunnel device.
    #[serde(default = "default_client_device")]
    pub device: String,
}

/// Where the directory comes from, and how it is verified.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A file, verified by a signature.
    Signed {
        /// The file.
        path: PathBuf,
        /// The key that signs it.
        trusted: [u8; 32],
    },
    /// A chain, verified by its proofs.
    Chain(Box<ChainFile>),
}

impl Origin {
    fn of(
        path: &Path,
        directory: Option<&Path>,
        directory_key: Option<&str>,
        chain: Option<&Path>,
    ) -> Result<Self, ConfigError> {
        match (directory, directory_key, chain) {
            (Some(directory), Some(key), None) => {
                Ok(Self::Signed { path: beside(path, directory), trusted: public_key(path, "directory_key", key)? })
            }
            (None, None, Some(chain)) => Ok(Self::Chain(Box::new(ChainFile::load(&beside(path, chain))?))),
            (_, _, Some(_)) => Err(key_fault(path, "chain", "replaces directory and directory_key; remove them")),
            (None, _, None) => Err(fault(path, "directory and directory_key, or chain, must be set")),
            (Some(_), None, None) => Err(fault(path, "directory_key must be set: the key that signs the directory")),
        }
    }
}

impl RelayFile {
    /// Returns where the directory comes from. `path` is the path of this configuration.
    ///
    /// # Errors
    /// [`ConfigError`] if neither kind or both are set, or if a key or the chain file is malformed.
    pub fn origin(&self, path: &Path) -> Result<Origin, ConfigError> {
        Origin::of(path, self.directory.as_deref(), self.directory_key.as_deref(), self.chain.as_deref())
    }
}

impl ClientFile {
    /// Returns where the directory comes from. `path` is the path of this configuration.
    ///
    /// # Errors
    /// [`ConfigError`] if neither kind or both are set, or if a key or the chain file is malformed.
    pub fn origin(&self, path: &Path) -> Result<Origin, ConfigError> {
        Origin::of(path, self.directory.as_deref(), self.directory_key.as_deref(), self.chain.as_deref())
    }
}

fn yes() -> bool {
    true
}

fn default_capacity() -> u32 {
    65_536
}

/// The user that Debian calls `nobody`.
fn default_user() -> u32 {
    65_534
}

fn default_egress_device() -> String {
    "orp-egress".into()
}

fn default_client_device() -> String {
    "orp0".into()
}

fn default_keepalive() -> u32 {
    25
}

/// Reads a configuration. Paths in it are relative to its folder.
///
/// # Errors
/// [`ConfigError`] with file, line and key.
pub fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T, ConfigError> {
    let bytes = read_bytes(path)?;
    let text = String::from_utf8(bytes).map_err(|_| fault(path, "is not UTF-8 text"))?;
    toml::from_str(&text).map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map(|before| before.matches('\n').count() + 1);
        // Reports only names that can be keys, never arbitrary content of the file.
        let known = |key: &&str| error.message().starts_with("invalid ") && is_key(key);
        let named = line.and_then(|line| text.lines().nth(line - 1)).and_then(|line| line.split_once('='));
        let key = named.map(|(key, _)| key.trim()).filter(known).map(str::to_owned);
        ConfigError::Fault { path: path.to_owned(), fault: error.to_string().trim().to_owned(), at: (line, key) }
    })
}

/// Returns whether this can be the name of a key.
fn is_key(key: &str) -> bool {
    !key.is_empty() && key.len() <= 24 && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
}

/// Returns an error about the file `path`.
pub fn fault(path: &Path, fault: impl Into<String>) -> ConfigError {
    ConfigError::Fault { path: path.to_owned(), fault: fault.into(), at: (None, None) }
}

/// Returns an error about the value of `key` in the configuration `path`: what it must be.
pub fn key_fault(path: &Path, key: &str, must: impl std::fmt::Display) -> ConfigError {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let is_key = |line: &str| line.split_once('=').is_some_and(|(name, _)| name.trim() == key);
    let line = text.lines().position(is_key).map(|line| line + 1);
    let fault = match line {
        Some(line) => format!("line {line}, key {key}: {must}"),
        None => format!("key {key}: {must}"),
    };
    ConfigError::Fault { path: path.to_owned(), fault, at: (line, Some(key.to_owned())) }
}

/// Resolves the path `file` from the configuration `config`.
pub fn beside(config: &Path, file: &Path) -> PathBuf {
    config.parent().map_or_else(|| file.to_owned(), |folder| folder.join(file))
}

/// Reads a file of limited size.
///
/// # Errors
/// [`ConfigError`] if it cannot be read or is too large.
pub fn read_bytes(path: &Path) -> Result<Vec<u8>, ConfigError> {
    let refuse = |source| ConfigError::Read { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(refuse)?.len();
    if size > MAX_FILE {
        return Err(fault(path, format!("has {size} bytes; at most {MAX_FILE} are allowed")));
    }
    std::fs::read(path).map_err(refuse)
}

/// Reads a secret key of 64 hexadecimal digits from a file that only its owner may read.
///
/// # Errors
/// [`ConfigError`] if other users may read the file, or it holds something else.
pub fn read_secret(path: &Path) -> Result<Zeroizing<[u8; 32]>, ConfigError> {
    let metadata = std::fs::metadata(path).map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
    let mode = metadata.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let shown = path.display();
        return Err(fault(path, format!("other users may read this secret (mode {mode:o}); run: chmod 600 {shown}")));
    }
    let bytes = Zeroizing::new(read_bytes(path)?);
    let text = std::str::from_utf8(&bytes).unwrap_or("").trim();
    hex::decode(text).map(Zeroizing::new).ok_or_else(|| fault(path, "must hold 64 hexadecimal digits"))
}

/// Parses a public key of 64 hexadecimal digits, the value of `key` in the configuration `path`.
///
/// # Errors
/// [`ConfigError`] if it is something else.
pub fn public_key(path: &Path, key: &str, value: &str) -> Result<[u8; 32], ConfigError> {
    hex::decode(value).ok_or_else(|| key_fault(path, key, "must be 64 hexadecimal digits"))
}

/// Checks the addresses that a relay listens on.
///
/// # Errors
/// [`ConfigError`] if there are none, or two of one family.
pub fn check_listen(path: &Path, listen: &[SocketAddr]) -> Result<(), ConfigError> {
    let v6 = listen.iter().filter(|address| address.is_ipv6()).count();
    if listen.is_empty() || v6 > 1 || listen.len() - v6 > 1 {
        return Err(key_fault(path, "listen", "must name one address, or one IPv4 and one IPv6 address"));
    }
    Ok(())
}

/// Checks the name of a tunnel device: the kernel must accept it, and nftables must need no quotes for it.
///
/// # Errors
/// [`ConfigError`] if the name is not of this form.
pub fn check_device(path: &Path, device: &str) -> Result<(), ConfigError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if device.is_empty() || device.len() > 15 || !device.bytes().all(is_plain) {
        return Err(key_fault(path, "device", "must be 1 to 15 letters, digits, hyphens and underscores"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]
    use super::*;

    #[test]
    fn error_names_file_line_and_key_and_says_what_is_expected() {
        let path = std::env::temp_dir().join(format!("openrelay-test-{}-relay.toml", std::process::id()));
        std::fs::write(&path, "# a relay\nrole = \"egress\"\nlisten = []\ndirectory_key = \"12\"\nuser = \"x\"\n")
            .unwrap();
        let said = |error: ConfigError| error.to_string();
        let listen = said(check_listen(&path, &[]).unwrap_err());
        assert!(
            listen.ends_with("relay.toml: line 3, key listen: must name one address, or one IPv4 and one IPv6 address")
        );
        let key = said(public_key(&path, "directory_key", "12").unwrap_err());
        assert!(key.ends_with("relay.toml: line 4, key directory_key: must be 64 hexadecimal digits"), "{key}");
        let missing = said(key_fault(&path, "device", "must be a name"));
        assert!(missing.ends_with("relay.toml: key device: must be a name"), "{missing}");
        let toml = said(read::<RelayFile>(&path).unwrap_err());
        assert!(toml.contains("relay.toml: ") && toml.contains("line "), "{toml}");
        std::fs::remove_file(&path).unwrap();
    }
}
