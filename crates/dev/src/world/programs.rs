//! The product's programs, and the hosts that they run on.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::net::network::Network;

/// Creates the network below `dir`. The product's programs keep their files in the folder of the host they run on.
pub(crate) fn network(dir: &Path) -> Result<Network> {
    Network::new(dir, environment)
}

/// Returns the variables that tell the product's programs where to keep their files.
///
/// Simulating programs trust the roots that the last one names; other programs ignore it.
fn environment(host: &Path) -> Vec<(&'static str, PathBuf)> {
    let network = host.parent().unwrap_or(host);
    vec![
        ("OPENRELAY_RUNTIME_DIR", host.join("run")),
        ("OPENRELAY_STATE_DIR", host.join("state")),
        ("OPENRELAY_SIM_ROOTS", network.join("config/sim/roots")),
    ]
}

/// The programs of this checkout or installation, beside this program.
#[derive(Clone)]
pub(crate) struct Programs {
    pub(crate) dev: PathBuf,
    pub(crate) openrelay: PathBuf,
    pub(crate) relay: PathBuf,
    /// Folder of the approved image. Without it the relay's program stands for an image.
    pub(crate) image: Option<PathBuf>,
    /// Whether one relay runs from that image, in its own machine.
    pub(crate) boot: bool,
    /// The attacks of the machine's host on its boot.
    pub(crate) attacked: Vec<String>,
    /// Whether relays are started so that they leak.
    pub(crate) leak: bool,
    /// Whether relays have IPv6 addresses only.
    pub(crate) outer_v6: bool,
}

impl Programs {
    /// Returns the programs that simulate trusted execution environments, for networks with a chain, whose relays
    /// must show evidence.
    pub(crate) fn simulating() -> Result<Self> {
        let product = Self::find()?;
        let beside = |name| product.dev.with_file_name(name);
        Ok(Self { openrelay: beside("openrelay-sim"), relay: beside("openrelay-relay-sim"), ..product })
    }

    pub(crate) fn find() -> Result<Self> {
        let dev = std::env::current_exe()?;
        let beside = |name: &str| -> Result<PathBuf> {
            let path = dev.with_file_name(name);
            if path.exists() {
                Ok(path)
            } else {
                bail!("{name} is not beside openrelay-dev; run: cargo build --release")
            }
        };
        Ok(Self {
            openrelay: beside("openrelay")?,
            relay: beside("openrelay-relay")?,
            dev,
            image: None,
            boot: false,
            attacked: Vec::new(),
            leak: false,
            outer_v6: false,
        })
    }
}
