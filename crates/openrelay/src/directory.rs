//! The directory that a configuration leads to, and how it was verified.
//!
//! Owns the choice of where commands take the directory from: a running client's cache, or a reading for this call.
//! Verifying it belongs to `openrelay-chain` and `openrelay-ledger`.

use std::path::{Path, PathBuf};

use openrelay_client::directory_of;
use openrelay_ledger::chain::reading::MAX_MISSING;
use openrelay_ledger::directory::{Directory, Source};
use openrelay_ledger::selection::percent;
use openrelay_node::clock::unix_seconds;
use openrelay_node::config::{ClientFile, Origin, read};
use openrelay_node::directory::VerifiedDirectory;

use crate::control::folders;
use crate::failure::Failure;
use crate::output::talk;

/// The argument that names the client configuration.
#[derive(clap::Args)]
pub(crate) struct ConfigArgument {
    /// Client configuration
    #[arg(long, env = "OPENRELAY_CONFIG", value_name = "FILE", default_value = "/etc/openrelay/client.toml")]
    pub(crate) config: PathBuf,
}

/// Returns where the configuration takes its directory from.
pub(crate) fn origin(config: &Path) -> Result<Origin, Failure> {
    let file: ClientFile = read(config).map_err(Failure::plain)?;
    file.origin(config).map_err(Failure::plain)
}

/// Returns the directory as a client would use it: the cached one of a running client, or one that is read for this
/// call.
pub(crate) fn directory_for(config: &Path) -> Result<VerifiedDirectory, Failure> {
    match origin(config)? {
        Origin::Chain(chain) if folders().is_changed() => {
            let kept = openrelay_client::kept_of(&chain, &folders().state);
            talk(WHILE_UP);
            openrelay_chain::kept_directory(&chain, &kept).ok_or_else(nothing_kept)
        }
        Origin::Chain(_) | Origin::Signed { .. } => {
            let (directory, warning) = directory_of(config, &folders().state)?;
            if let Some(warning) = warning {
                talk(&format!("openrelay: warning: {warning}"));
            }
            Ok(directory)
        }
    }
}

/// Returns the directory as the chain shows it. A cached directory is accepted only from a running client.
pub(crate) fn directory_shown(config: &Path) -> Result<VerifiedDirectory, Failure> {
    match origin(config)? {
        Origin::Chain(chain) if !folders().is_changed() => {
            let (reading, directory) = openrelay_chain::read(&chain, unix_seconds(), 0)?;
            Ok(VerifiedDirectory::of_proven(directory, reading))
        }
        Origin::Chain(_) | Origin::Signed { .. } => directory_for(config),
    }
}

/// Returns in words how a directory was verified.
pub(crate) fn proof_in_words(directory: &Directory) -> String {
    let body = directory.body();
    match directory.source() {
        Source::Signed => format!("{}, directory number {}, signed by its operator", body.network, body.sequence),
        Source::Chain(facts) => format!(
            "{}, proven at block {} ({}); not usable: {} without descriptor{}, {} malformed, {} inactive",
            body.network,
            facts.block,
            facts.block_hash,
            facts.withheld,
            missing_share(facts.missing),
            facts.malformed,
            facts.inactive
        ),
    }
}

/// Returns the missing share of weight in words, or an empty string if none is missing.
fn missing_share(missing: u16) -> String {
    let (share, most) = (percent(missing), percent(MAX_MISSING));
    match missing {
        0 => String::new(),
        1..=MAX_MISSING => format!(" (up to {share} of the weight of a role)"),
        _ => format!(" (up to {share} of the weight of a role; no circuit opens while that is more than {most})"),
    }
}

/// Shown instead of a query through the user's own circuit, whose egress should not learn that this user queries the
/// chain.
const WHILE_UP: &str = "openrelay: showing the running client's cached directory; no endpoint was contacted";

/// Returns the failure of a running client that has no cached directory.
pub(crate) fn nothing_kept() -> Failure {
    Failure::new(5, "the running client has no cached directory; run openrelay down first, then retry")
}
