//! Scenarios on record sources that lie by omission: mirrors, and relays of the client's own circuit, including the
//! ingress.
//!
//! Owns the check that one honest source is enough for real clients, and what clients do without one. A relay lies
//! because of its input: its operator's agent reads from a mirror that withholds, so the relay passes on the rest.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::bench::Bench;
use super::runner::{Scenario, Scenarios};
use crate::net::host::{Service, checked};

/// Port of the lying mirror, on the chain's host.
const PORT: u16 = 8560;
/// Record sources of a client whose circuit uses relays 1 and 3. Its queries therefore go through relays 1 and 4.
const SOURCES: [&str; 4] = ["ingress-1", "egress-2", "mirror-a", "mirror-b"];
/// The last subset of the sources, as a bit mask: all of them.
const ALL: u8 = 0b1111;
const MIRRORS: [&str; 2] = [SOURCES[2], SOURCES[3]];
/// Number of relays of the network.
const RELAYS: u64 = 4;
/// Bandwidth that each relay advertises, in Mbit/s. Relays that are registered here advertise the same.
const WEIGHT: u64 = 1_000;

/// The scenarios of the part.
pub(crate) static SCENARIOS: Scenarios<World> = Scenarios::new(
    World::start,
    &[
        Scenario::new(
            "one withholding mirror of two changes nothing; two are refused with the missing share",
            |world| first_start(&world.bench, &world.lies),
        ),
        Scenario::new(
            "each subset of ingress, egress and two mirrors withholds a relay: one honest source is enough",
            |world| subsets(&world.bench, &world.lies),
        ),
    ],
);

/// A network with a lying mirror, from which two of its relays read.
pub(crate) struct World {
    bench: Bench,
    lies: Lies,
}

impl World {
    fn start(dir: &Path) -> Result<Self> {
        let mut bench = Bench::start(dir)?;
        let lies = Lies::start(&mut bench)?;
        bench.network.client.sh("nft 'table inet sent { counter circuits { }; \
             chain out { type filter hook output priority 0; udp dport 443 counter name circuits; }; }'")?;
        for config in [&lies.config, &lies.other] {
            bench.within("a circuit through restarted relays", || Ok(bench.up(config).is_ok()))?;
            bench.down()?;
        }
        Ok(Self { bench, lies })
    }
}

/// The lying mirror, and the configurations of a client that reads from it under two names.
struct Lies {
    lists: PathBuf,
    /// Configurations for circuits through relays 1 and 3, and through relays 2 and 4.
    config: String,
    other: String,
    _mirror: Service,
}

impl Lies {
    fn start(bench: &mut Bench) -> Result<Self> {
        let folder = bench.network.dir.join("config");
        let lists = bench.network.dir.join("lists");
        fs::create_dir_all(&lists)?;
        let (host, address) = (bench.network.host("chain")?, bench.network.address("chain", false)?);
        let plain = fs::read_to_string(folder.join("chain.toml"))?;
        let own = plain.lines().find(|line| line.starts_with("mirrors = ")).context("the chain file has no mirrors")?;
        let honest = own.split('"').nth(1).context("the chain file has no mirror")?;
        let mut command = host.command(&bench.programs.dev);
        command.args(["thin", "--listen", &format!("{address}:{PORT}"), "--of", honest, "--lists"]).arg(&lists);
        let mirror = host.start(command, "ready")?;
        let from = |readers: &[&str]| {
            let urls = readers.iter().map(|reader| format!("\"http://{address}:{PORT}/records/{reader}\""));
            plain.replace(own, &format!("mirrors = [{}]", urls.collect::<Vec<_>>().join(", ")))
        };
        fs::write(folder.join("client/thinned-chain.toml"), from(&MIRRORS))?;
        let thinned = |(ingress, egress)| -> Result<String> {
            let config = bench.through(ingress, egress)?;
            let text = fs::read_to_string(&config)?.replace("../chain.toml", "thinned-chain.toml");
            fs::write(&config, text)?;
            Ok(config)
        };
        let (config, other) = (thinned((1, 3))?, thinned((2, 4))?);
        for name in ["ingress-1", "egress-2"] {
            fs::write(folder.join(name).join("chain.toml"), from(&[name]))?;
            bench.stop(name)?;
            let service = bench.services.operator(name)?.start(bench.network.host(name)?, &bench.programs, &[])?;
            bench.services.relays.push((name, service));
        }
        Ok(Self { lists, config, other, _mirror: mirror })
    }

    /// Makes these sources withhold all descriptors except those of `keep`. Other sources withhold nothing.
    fn tell(&self, liars: &[&str], keep: &[u64]) -> Result<()> {
        let text = keep.iter().map(u64::to_string).collect::<Vec<_>>().join(" ");
        for source in SOURCES {
            let list = self.lists.join(source);
            if liars.contains(&source) {
                fs::write(list.with_extension("new"), &text)?;
                fs::rename(list.with_extension("new"), list)?;
            } else if list.exists() {
                fs::remove_file(list)?;
            }
        }
        Ok(())
    }

    /// Returns for how many relays a client has no descriptor, and the largest share of a role's weight that they can
    /// have, in thousandths.
    fn missing(proof: &Value) -> Result<(u64, u64)> {
        let number = |key: &str| proof[key].as_u64().with_context(|| format!("no {key}: {proof}"));
        Ok((number("withheld")?, number("missing_permille")?))
    }
}

/// Returns the egresses that `egresses --json` lists, and the proof of the directory.
fn egresses(bench: &Bench, config: &str) -> Result<(Vec<u64>, Value)> {
    let (code, json, said) = bench.openrelay(&["egresses", "--json", "--config", config])?;
    ensure!(code == Some(0), "egresses: exit code {code:?}: {said}");
    let shown: Value = serde_json::from_str(&json)?;
    let relays = shown["exits"].as_array().into_iter().flatten().filter_map(|egress| egress["relay"].as_u64());
    Ok((relays.collect(), shown["directory_proof"].clone()))
}

/// Returns how many datagrams have left the client's host for a relay's port.
fn sent(bench: &Bench) -> Result<u64> {
    Ok(bench.network.client.counter("inet sent", "circuits")?.0)
}

/// Runs `openrelay up`, which must refuse with the missing share and send nothing to any relay.
fn refuses(bench: &Bench, config: &str, relays: u64, missing: u64) -> Result<()> {
    let before = sent(bench)?;
    let (code, _, said) = bench.openrelay(&["up", "--wait", "--config", config])?;
    let words = [
        format!("the descriptors of {relays} relays, up to {}.{} % of the weight", missing / 10, missing % 10),
        "the limit is 2.0 %".to_owned(),
    ];
    ensure!(code == Some(5) && words.iter().all(|words| said.contains(words)), "exit code {code:?}: {said}");
    ensure!(bench.openrelay(&["status"])?.1.starts_with("Down"), "the client is not down");
    ensure!(sent(bench)? == before, "a datagram was sent to a relay");
    Ok(())
}

fn opens(bench: &Bench, config: &str) -> Result<()> {
    let before = sent(bench)?;
    bench.up(config)?;
    ensure!(bench.fetches()?, "the circuit carries no data");
    ensure!(sent(bench)? > before, "the counter of sent datagrams does not work");
    bench.down()
}

/// Clients without a cache query only mirrors, from their own address.
fn first_start(bench: &Bench, lies: &Lies) -> Result<()> {
    // The lying mirrors serve the descriptors of relays 1 and 3, which the lying operator owns.
    let own = [1, 3];
    for liars in [&[][..], &MIRRORS[..1], &MIRRORS[1..]] {
        lies.tell(liars, &own)?;
        bench.forget()?;
        let (found, proof) = egresses(bench, &lies.config)?;
        ensure!(found == [3, 4] && Lies::missing(&proof)? == (0, 0), "{liars:?} withhold: {found:?} {proof}");
        // A circuit through the relays whose descriptors are withheld.
        bench.forget()?;
        opens(bench, &lies.other)?;
    }
    lies.tell(&MIRRORS, &own)?;
    bench.forget()?;
    // Half of each role is missing for certain, and the missing relays may all be of one role.
    let share = (2 * WEIGHT * 1_000).div_ceil(3 * WEIGHT);
    refuses(bench, &lies.config, 2, share)?;
    refuses(bench, &lies.other, 2, share)?;
    let (found, proof) = egresses(bench, &lies.config)?;
    ensure!(found == [3] && Lies::missing(&proof)? == (2, share), "{found:?} {proof}");
    let (_, text, _) = bench.openrelay(&["egresses", "--config", &lies.config])?;
    ensure!(text.contains("no circuit opens while that is more than 2.0 %"), "egresses: {text}");
    // A lying mirror cannot remove what a client has cached.
    lies.tell(&[], &own)?;
    opens(bench, &lies.config)?;
    lies.tell(&MIRRORS, &own)?;
    opens(bench, &lies.config)
}

/// A connected client queries its relays too. Each row registers a relay that the lying sources withhold.
fn subsets(bench: &Bench, lies: &Lies) -> Result<()> {
    let keep: Vec<u64> = (1..=RELAYS).collect();
    lies.tell(&[], &keep)?;
    bench.up(&lies.config)?;
    for (row, liars) in (1..).zip(0..=ALL) {
        let named: Vec<&str> =
            (0..).zip(SOURCES).filter(|(place, _)| liars & (1 << place) != 0).map(|(_, name)| name).collect();
        lies.tell(&named, &keep)?;
        let (relay, block) = register(bench, row)?;
        ensure!(relay == RELAYS + row, "relay {relay}");
        let proof = || -> Result<Value> { Ok(bench.status()?["directory_proof"].clone()) };
        let read_since = |block: u64| -> Result<bool> { Ok(proof()?["block"].as_u64() >= Some(block)) };
        bench.within("a directory with the new relay", || read_since(block))?;
        if liars != ALL {
            // Relays receive a directory one second later than mirrors.
            let is_known =
                || Ok(Lies::missing(&proof()?)? == (0, 0) && egresses(bench, &lies.config)?.0.contains(&relay));
            bench.within(&format!("relay {relay}, which {named:?} withhold"), is_known)?;
            continue;
        }
        // All sources withhold the relay. The client reports the missing share, again after each reading.
        let share = (WEIGHT * 1_000).div_ceil(3 * WEIGHT);
        for later in 0..3 {
            bench.within("a newer directory", || read_since(block + later))?;
            ensure!(Lies::missing(&proof()?)? == (1, share), "all withhold: {}", proof()?);
        }
        ensure!(
            !egresses(bench, &lies.config)?.0.contains(&relay),
            "relay {relay} is known although all sources withhold it"
        );
        let (_, text, _) = bench.openrelay(&["status"])?;
        ensure!(text.contains("missing     descriptors of 1 relays, up to 33.4 %"), "status: {text}");
        ensure!(bench.fetches()?, "the running circuit stopped");
        bench.down()?;
        refuses(bench, &lies.config, 1, share)?;
        // Control: one source is honest again.
        lies.tell(&named[..3], &keep)?;
        opens(bench, &lies.config)?;
    }
    Ok(())
}

/// Registers a relay that does not run. Returns its relay ID and the block of its registration.
fn register(bench: &Bench, number: u64) -> Result<(u64, u64)> {
    let mut command = bench.network.host("chain")?.command(&bench.programs.dev);
    command.arg("chain-register").arg(bench.network.dir.join("config/chain.toml")).arg(number.to_string());
    let said = checked(&command.output()?, "register a relay")?;
    let mut numbers = said.split_whitespace().map(str::parse);
    let mut next = || -> Result<u64> { Ok(numbers.next().context("chain-register printed no number")??) };
    Ok((next()?, next()?))
}
