//! Scenarios on evidence: what clients accept, what they refuse and when, and whether a second verifier agrees.
//!
//! Owns what only real programs show. The counter-examples of `sim` and `devnet demo` show which evidence is refused
//! for which reason.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use openrelay_sim::vendors::{decode_roots, encode_roots};
use serde_json::Value;

use super::bench::Bench;
use super::runner::{Scenario, Scenarios};
use crate::world::approved::TIME_DIVISOR;
use crate::world::services::start_again;

/// The scenarios of the part.
pub(crate) static SCENARIOS: Scenarios<Bench> = Scenarios::new(
    Bench::start,
    &[
        Scenario::new(
            "a second verifier confirms what a client caches, and refuses it with a changed byte",
            second_verifier,
        ),
        Scenario::new("a client's own policy: one vendor, images rebuilt locally", policies),
        Scenario::new(
            "rebuilders named in the policy must have signed: exit code 5, and signers are shown",
            named_rebuilders,
        ),
        Scenario::new("a restarted relay is judged by its new evidence; a single hop is judged too", starts_anew),
        Scenario::new("an approved image with firmware below the client's floor is refused: exit code 5", old_firmware),
        Scenario::new("collateral that the chain does not name is refused: exit code 5", other_collateral),
        Scenario::new("an image that is revoked ends running circuits and opens none: exit code 5", revoked_image),
    ],
);

/// Writes the client's configuration with `lines` in place of its line with the same key. Returns the path.
fn with(bench: &Bench, name: &str, lines: &str) -> Result<String> {
    let path = bench.network.dir.join(format!("config/client/{name}.toml"));
    let own = fs::read_to_string(bench.config())?;
    let (key, _) = lines.split_once(' ').context("the configuration lines have no key")?;
    let kept: Vec<&str> = own.lines().filter(|line| !line.starts_with(&format!("{key} "))).collect();
    fs::write(&path, format!("{lines}{}\n", kept.join("\n")))?;
    Ok(path.display().to_string())
}

/// Runs `openrelay up`, which must end with exit code 5 and print this word.
fn refuses(bench: &Bench, config: &str, word: &str) -> Result<()> {
    let (code, _, said) = bench.openrelay(&["up", "--wait", "--config", config])?;
    ensure!(code == Some(5) && said.contains(word), "exit code {code:?}, without {word}: {said}");
    ensure!(bench.openrelay(&["status"])?.1.starts_with("Down"), "the client is not down");
    Ok(())
}

/// Returns the file in which the client caches its last reading.
fn reading(bench: &Bench) -> Result<PathBuf> {
    let entries = fs::read_dir(bench.network.client.dir().join("state"))?.flatten();
    let mut paths = entries.map(|entry| entry.path());
    paths
        .find(|path| path.extension().is_some_and(|extension| extension == "reading"))
        .context("the client has cached no reading")
}

/// Runs `tools/verify.py reading` on a file. Returns its exit code and its output.
fn second_verifier_on(bench: &Bench, file: &Path, more: &[&str]) -> Result<(Option<i32>, String)> {
    let tool = bench.programs.dev.ancestors().map(|dir| dir.join("tools/verify.py")).find(|path| path.exists());
    let tool = tool.context("tools/verify.py is not in a folder above the build")?;
    let chain: toml::Table = fs::read_to_string(bench.network.dir.join("config/chain.toml"))?.parse()?;
    let mut command = Command::new("python3");
    command.arg(&tool).arg("reading").arg(file).args(["--time-divisor", &TIME_DIVISOR.to_string()]);
    let number = chain.get("chain_id").and_then(toml::Value::as_integer).context("the chain file has no chain_id")?;
    command.args(["--chain", &number.to_string()]);
    for name in ["directory", "images", "collateral"] {
        let address = chain.get(name).and_then(|value| value.as_str()).context("the chain file lacks an address")?;
        command.arg(format!("--{name}")).arg(address);
    }
    command.args(more);
    let output = command.output().context("cannot run python3")?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8_lossy(&said).into_owned()))
}

fn second_verifier(bench: &mut Bench) -> Result<()> {
    let (code, _, said) = bench.openrelay(&["egresses", "--config", &bench.config()])?;
    ensure!(code == Some(0), "{said}");
    let kept = reading(bench)?;
    let (code, said) = second_verifier_on(bench, &kept, &[])?;
    ensure!(code == Some(0), "exit code {code:?}: {said}");
    let found: Value = serde_json::from_str(&said)?;
    let image = found["images"][0]["image"].as_str().context("the verifier reported no image")?;
    let [state, signers] = ["state", "rebuilt_by"].map(|key| &found["images"][0][key]);
    ensure!(state == "active" && signers.as_array().map(Vec::len) == Some(3), "{said}");
    let relays = bench.verified()?;
    let same = relays.iter().all(|relay| relay["evidence"]["image"] == image);
    ensure!(same && found["evidence"] == 4 && found["refused"] == serde_json::json!([]), "{said} {relays:?}");
    let block = found["block_hash"].as_str().context("the verifier reported no block")?.to_owned();
    let bytes = fs::read(&kept)?;
    let text =
        |word: &[u8]| bytes.windows(word.len()).position(|found| found == word).context("the reading lacks a part");
    let records = text(b"openrelay-records/2")?;
    // One byte each in the header, the directory's account, a manifest, the collateral and a record.
    let places = [40, 800, text(b"\"shapes\"")? + 40, text(b"openrelay.collateral/1")? + 60, records + 60];
    for at in places {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        let path = bench.network.dir.join("changed.reading");
        fs::write(&path, changed)?;
        let (code, said) = second_verifier_on(bench, &path, &["--block", &block])?;
        ensure!(code == Some(5), "byte {at}: exit code {code:?}: {said}");
    }
    let path = bench.network.dir.join("changed.reading");
    for changed in [&bytes[..bytes.len() - 1], &[&bytes[..], &[0]].concat()] {
        fs::write(&path, changed)?;
        let (code, said) = second_verifier_on(bench, &path, &["--block", &block])?;
        ensure!(code == Some(5), "{} of {} bytes: exit code {code:?}: {said}", changed.len(), bytes.len());
    }
    fs::remove_file(&path)?;
    let (code, said) = second_verifier_on(bench, &path, &[])?;
    ensure!(code == Some(1) && said.contains("changed.reading"), "no file: exit code {code:?}: {said}");
    Ok(())
}

fn policies(bench: &mut Bench) -> Result<()> {
    let policy = bench.network.dir.join("config/client/policy.toml");
    let config = with(bench, "with-policy", "policy = \"policy.toml\"\n")?;
    fs::write(&policy, "platforms = [\"TDX\"]\n")?;
    // Egresses run on the other vendor's platform.
    refuses(bench, &config, "[platform]")?;
    fs::write(&policy, "platforms = [\"TPM\"]\n")?;
    let (code, _, said) = bench.openrelay(&["up", "--wait", "--config", &config])?;
    ensure!(code == Some(1) && said.contains("line 1, key platforms"), "exit code {code:?}: {said}");
    fs::write(&policy, "paranoid = true\n")?;
    refuses(bench, &config, "[not-rebuilt]")?;
    let shown = shown_image(bench)?;
    let text = |key: &str| {
        shown[key].as_str().map(|text| text.trim_start_matches("0x").to_owned()).context("the image has no such hash")
    };
    let rebuilt = bench.network.client.dir().join("state/rebuilt-images");
    // Other firmware may start the same bytes, so the hash of the image alone does not suffice.
    fs::write(&rebuilt, format!("{}\n", text("image")?))?;
    refuses(bench, &config, "[not-rebuilt]")?;
    fs::write(&rebuilt, format!("{}\n", text("value")?))?;
    bench.up(&config)?;
    ensure!(bench.fetches()?, "the circuit carries no data");
    bench.down()
}

/// Returns the first image that `openrelay image show` lists.
fn shown_image(bench: &Bench) -> Result<Value> {
    let (code, said, errors) = bench.openrelay(&["image", "show", "--json", "--config", &bench.config()])?;
    ensure!(code == Some(0), "exit code {code:?}: {errors}");
    Ok(serde_json::from_str::<Value>(&said)?["images"][0].clone())
}

fn named_rebuilders(bench: &mut Bench) -> Result<()> {
    let image = shown_image(bench)?;
    let count = |value: &Value| value.as_array().map(Vec::len);
    ensure!(count(&image["rebuilt_by"]) == Some(3) && count(&image["named"]) == Some(3), "{image}");
    let votes = image["endpoint_says"]["votes"].as_array().cloned().unwrap_or_default();
    ensure!(votes.len() == 3 && votes.iter().all(|vote| vote["value"] == image["value"]), "{image}");
    // The policy requires two rebuilders. In the first policy only one of the two has signed. Later one of three
    // statements is missing, which leaves two.
    let named: Vec<String> = image["named"].as_array().into_iter().flatten().map(ToString::to_string).collect();
    let policy = bench.network.dir.join("config/client/others.toml");
    let config = with(bench, "other-rebuilders", "policy = \"others.toml\"\n")?;
    fs::write(&policy, format!("rebuilders = [\"0x{:040x}\", {}]\n", 7, named[0]))?;
    refuses(bench, &config, "[rebuilders]")?;
    fs::write(&policy, format!("rebuilders = [{}]\nrebuilders_needed = 2\n", named[0]))?;
    let (code, _, said) = bench.openrelay(&["up", "--wait", "--config", &config])?;
    ensure!(code == Some(1) && said.contains("key rebuilders_needed: must be 1 to 1"), "exit code {code:?}: {said}");
    let lies = bench.network.dir.join("config/sim/published");
    let (own, hidden) = (lies.join("attestation-1-1.json"), lies.join("attestation-1-2.json"));
    let kept = [fs::read(&own)?, fs::read(&hidden)?];
    fs::remove_file(&own)?;
    bench.within("two statements", || Ok(count(&shown_image(bench)?["rebuilt_by"]) == Some(2)))?;
    bench.up(&bench.config())?;
    bench.down()?;
    // A statement that was signed for another round does not count.
    fs::write(&hidden, String::from_utf8_lossy(&kept[1]).replace("\"round\":1", "\"round\":2"))?;
    bench.within("only one statement", || Ok(count(&shown_image(bench)?["rebuilt_by"]) == Some(1)))?;
    // The cached directory would still be accepted.
    bench.forget()?;
    refuses(bench, &bench.config(), "[rebuilders]")?;
    fs::write(&own, &kept[0])?;
    fs::write(&hidden, &kept[1])?;
    bench.within("all statements", || Ok(count(&shown_image(bench)?["rebuilt_by"]) == Some(3)))?;
    Ok(())
}

fn starts_anew(bench: &mut Bench) -> Result<()> {
    let folder = bench.network.dir.join("config/egress-1/relay.toml");
    fs::write(&folder, format!("one_hop = true\n{}", fs::read_to_string(&folder)?))?;
    // The client caches evidence that it accepted before. The cache must not be why it refuses the new evidence.
    let again =
        |bench: &mut Bench, lie| start_again((&bench.network, &bench.programs), &mut bench.services, "egress-1", lie);
    again(bench, Some("debug"))?;
    bench.within("the refusal of a restarted relay that lies", || {
        let (code, said, _) = bench.openrelay(&["verify", "3", "--config", &bench.config()])?;
        Ok(code == Some(5) && said.contains("REFUSED [debug]"))
    })?;
    again(bench, None)?;
    let config = bench.through(1, 3)?;
    bench.within("a circuit through the restarted relay", || {
        Ok(bench.openrelay(&["up", "--wait", "--config", &config])?.0 == Some(0))
    })?;
    let status = bench.status()?;
    ensure!(status["attestation"] == "sim" && status["evidence"][1]["relay"] == 3, "{status}");
    ensure!(status["evidence"][1]["key_epoch"] == 3 && bench.fetches()?, "{status}");
    bench.down()?;
    let one = with(bench, "one-hop", "egress = 3\n")?;
    let (code, _, said) = bench.openrelay(&["up", "--wait", "--one-hop", "--config", &one])?;
    ensure!(code == Some(0), "exit code {code:?}: {said}");
    let status = bench.status()?;
    let judged = status["evidence"].as_array().map(Vec::len);
    ensure!(status["hops"] == 1 && status["attestation"] == "sim" && judged == Some(1), "{status}");
    bench.down()
}

/// The chain approves the relays' manifest and image. Only this client refuses firmware that is this old.
fn old_firmware(bench: &mut Bench) -> Result<()> {
    let path = bench.network.dir.join("config/sim/roots");
    let own = fs::read(&path)?;
    let mut roots = decode_roots(&own).context("the roots are malformed")?;
    roots.min_firmware_generation += 1;
    fs::write(&path, encode_roots(&roots))?;
    refuses(bench, &bench.config(), "[firmware-generation]")?;
    let (code, said, _) = bench.openrelay(&["verify", "3", "--config", &bench.config()])?;
    ensure!(code == Some(5) && said.contains("REFUSED [firmware-generation]"), "exit code {code:?}: {said}");
    let floor = roots.min_firmware_generation.to_string();
    let (code, said) = second_verifier_on(bench, &reading(bench)?, &["--min-firmware-generation", &floor])?;
    ensure!(code == Some(5) && said.contains("firmware of generation"), "exit code {code:?}: {said}");
    fs::write(&path, own)?;
    ensure!(
        bench.openrelay(&["up", "--wait", "--config", &bench.config()])?.0 == Some(0),
        "no circuit opens afterwards"
    );
    bench.down()
}

fn other_collateral(bench: &mut Bench) -> Result<()> {
    let path = bench.network.dir.join("config/sim/published/collateral.json");
    let own = fs::read(&path)?;
    let mut other = own.clone();
    other.extend(b" ");
    fs::write(&path, other)?;
    bench.within("a mirror without the collateral", || {
        bench.forget()?;
        Ok(bench.openrelay(&["egresses", "--json", "--config", &bench.config()])?.1.contains("no-view"))
    })?;
    refuses(bench, &bench.config(), "the collateral that the chain names")?;
    let (code, said, _) = bench.openrelay(&["verify", "--config", &bench.config()])?;
    ensure!(code == Some(5) && said.contains("the collateral that the chain names"), "exit code {code:?}: {said}");
    fs::write(&path, own)?;
    bench.within("the collateral", || {
        Ok(bench.openrelay(&["up", "--wait", "--config", &bench.config()])?.0 == Some(0))
    })?;
    bench.down()
}

fn revoked_image(bench: &mut Bench) -> Result<()> {
    bench.up(&bench.config())?;
    ensure!(bench.fetches()?, "the circuit carries no data");
    bench.revoke(1)?;
    bench.within("the end of the circuit", || Ok(bench.status()?["state"] == "blocked"))?;
    let status = bench.status()?;
    let why = status["refused"].as_str().unwrap_or_default();
    ensure!(why.contains("was revoked"), "{status}");
    ensure!(!bench.fetches()?, "traffic flows although the circuit has ended");
    bench.down()?;
    refuses(bench, &bench.config(), "[image-state]")?;
    let (code, said) = second_verifier_on(bench, &reading(bench)?, &[])?;
    ensure!(code == Some(5) && said.contains("an image that is revoked"), "exit code {code:?}: {said}");
    Ok(())
}
