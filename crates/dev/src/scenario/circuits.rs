//! Scenarios on circuits through relays that are the user's own, in namespaces.
//!
//! Owns what no unit test can see: memory of running relays, keys and paths that change under a running TCP
//! connection, exit codes. After each scenario it takes the account: every program against its host's kernel, and all
//! hosts together against the counters of the links.

mod account;
mod crashes;
mod leaks;
mod paths;
mod refusals;

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};

use self::account::WATCHED;
use super::bench::Bench;
use super::runner::{Scenario, Scenarios};
use crate::net::loss;
use crate::net::network::{CLIENT_V4, CLIENT_V6, Network};
use crate::net::output::say;
use crate::world::internet::NAME;
use crate::world::programs::{Programs, network};
use crate::world::relays::RELAYS;
use crate::world::services;

/// The scenarios of the part. After the last one, relays stay dead.
pub(crate) static SCENARIOS: Scenarios<Bench> = Scenarios {
    start,
    list: &[
        Scenario::new("memory of both relays holds no canary", leaks::memory),
        Scenario::new("garbage datagrams are counted and stop nothing", paths::garbage),
        Scenario::new("a TCP connection survives rekeying, roaming and a smaller path MTU", paths::changes_under_load)
            .breaking_links(),
        Scenario::new(
            "an egress forwards nothing to forbidden destinations and nothing with an inner address",
            leaks::firewall,
        ),
        Scenario::new("a circuit survives a path that loses a fifth, and all losses are the path's", paths::lossy)
            .breaking_links(),
        Scenario::new("floods and crowds are counted to the last datagram", paths::crowds).breaking_links(),
        Scenario::new("one hop works and the status reports it", paths::one_hop),
        Scenario::new("nothing leaves outside the tunnel when the relay is cut off", leaks::blocked).breaking_links(),
        Scenario::new("a host without a network feeds nothing into its own tunnel", leaks::unplugged),
        Scenario::new("a daemon that is killed leaves nothing open, and down cleans up", crashes::crash),
        Scenario::new("refused directories and configurations are reported with the reason", refusals::refusals),
        Scenario::new("nothing leaves outside the tunnel when relays are killed", crashes::killed),
    ],
    after: losses,
    end: nothing_logged,
};

fn start(dir: &Path) -> Result<Bench> {
    let programs = Programs::find()?;
    let network = network(dir)?;
    services::selfhost(&network, &programs)?;
    let config = dir.join("config/client/client.toml");
    // Without trains each datagram is one packet, so the kernel's counters are exact. The demo uses trains.
    for file in RELAYS.map(|name| dir.join("config").join(name).join("relay.toml")).iter().chain([&config]) {
        fs::write(file, format!("udp_trains = false\n{}", fs::read_to_string(file)?))?;
    }
    for name in WATCHED {
        crate::net::account::watch(network.host(name)?)?;
    }
    let lost = loss::watch(&network)?;
    let services = services::start(&network, &programs, &["--unconfined"])?;
    let mut bench = Bench::of(network, services, programs);
    bench.account.lost_before = lost;
    Ok(bench)
}

/// Checks that links lost datagrams in scenarios that break links, and in no others.
fn losses(bench: &mut Bench, scenario: &Scenario<Bench>) -> Result<String> {
    let lost = bench.account.lost - std::mem::replace(&mut bench.account.judged, bench.account.lost);
    ensure!(scenario.breaks_links == (lost > 0), "links lost {lost} datagrams");
    Ok(format!("; links lost {lost} datagrams"))
}

/// Ends all relays and searches their logs.
fn nothing_logged(bench: Bench) -> Result<()> {
    let Bench { network, services, .. } = bench;
    drop(services);
    search_logs(&network)?;
    say("ok           no log contains an address of the client or of a destination");
    Ok(())
}

/// Searches all logs of relays, client and daemon for addresses and names that must not be logged.
fn search_logs(network: &Network) -> Result<()> {
    let client =
        [CLIENT_V4.parse()?, CLIENT_V6.parse()?, network.address("nat", false)?, network.address("nat", true)?];
    let server = [network.address("server", false)?, network.address("server", true)?];
    let canaries: Vec<String> =
        client.iter().chain(&server).map(ToString::to_string).chain([NAME.to_owned()]).collect();
    let mut read = 0;
    for host in ["client", "ingress-1", "ingress-2", "egress-1", "egress-2"] {
        for folder in [network.host(host)?.dir().to_owned(), network.host(host)?.dir().join("run")] {
            for file in fs::read_dir(&folder).into_iter().flatten().flatten() {
                if file.path().extension().is_none_or(|extension| extension != "log") {
                    continue;
                }
                let text = String::from_utf8_lossy(&fs::read(file.path())?).into_owned();
                let found = canaries.iter().find(|canary| text.contains(*canary));
                ensure!(found.is_none(), "{} contains {found:?}", file.path().display());
                read += 1;
            }
        }
    }
    ensure!(read >= 5, "found only {read} logs");
    Ok(())
}
