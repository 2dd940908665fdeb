//! Directories and configurations that a client refuses, each with its exit code and reason.

use std::fs;
use std::path::PathBuf;

use anyhow::{Result, ensure};

use crate::scenario::bench::Bench;

pub(super) fn refusals(bench: &mut Bench) -> Result<()> {
    let dir = bench.network.dir.join("refusals");
    fs::create_dir_all(&dir)?;
    let config = PathBuf::from(bench.config());
    let good = fs::read_to_string(&config)?;
    let signed = fs::read(config.with_file_name("directory.signed"))?;
    let mut flipped = signed.clone();
    if let Some(last) = flipped.iter_mut().rev().nth(30) {
        *last ^= 1;
    }
    let cases: [(&str, String, &[u8], i32, &str); 8] = [
        ("flipped", good.clone(), &flipped, 5, "not signed by the trusted key"),
        ("unsigned", good.clone(), b"{}", 5, "not a directory file"),
        ("unknown key", format!("{good}colour = \"blue\"\n"), &signed, 1, "colour"),
        ("missing key", good.replace("admission", "# admission"), &signed, 1, "admission"),
        ("bad address", good.replace("dns = [", "dns = [\"nowhere\", "), &signed, 1, "dns"),
        ("no such relay", format!("ingress = 9\n{good}"), &signed, 1, "line 1, key ingress"),
        ("bad device", format!("device = \"a b\"\n{good}"), &signed, 1, "line 1, key device"),
        (
            "bad key",
            format!("directory_key = \"12\"\n{}", good.replace("directory_key", "# directory_key")),
            &signed,
            1,
            "line 1, key directory_key",
        ),
    ];
    for (name, config, directory, code, text) in cases {
        let path = dir.join("client.toml");
        fs::write(&path, config)?;
        fs::write(dir.join("directory.signed"), directory)?;
        let (found, _, said) = bench.openrelay(&["up", "--wait", "--config", &path.display().to_string()])?;
        ensure!(found == Some(code), "{name}: exit code {found:?} instead of {code}: {said}");
        ensure!(
            said.contains(text) && said.contains("client.toml") | said.contains("directory.signed"),
            "{name}: {said}"
        );
    }
    // The client accepts the next directory. It then refuses the previous one, although that is signed and has not
    // expired.
    let network = bench.network.dir.join("config").display().to_string();
    let (code, _, said) = bench.openrelay(&["selfhost", "renew", "--dir", &network, "--remove", "2"])?;
    ensure!(code == Some(0), "selfhost renew: exit code {code:?}: {said}");
    ensure!(bench.connect(&[])?["directory_sequence"] == 2, "the renewed directory is not in use");
    bench.disconnect()?;
    let directory = config.with_file_name("directory.signed");
    let renewed = fs::read(&directory)?;
    fs::write(&directory, &signed)?;
    let (code, _, said) = bench.openrelay(&["up", "--wait", "--config", &bench.config()])?;
    ensure!(code == Some(5) && said.contains("seen before"), "rolled back: {said}");
    let (code, ..) = bench.openrelay(&["status"])?;
    ensure!(code == Some(3), "status without a connection ends with exit code {code:?}");
    Ok(fs::write(&directory, renewed)?)
}
