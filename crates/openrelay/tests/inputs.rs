//! Every input of an image has the hash in the lock, wherever it comes from.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::process::Command;

/// Returns a lock whose packages have this hash, with further lines.
fn lock(hash: &str, more: &str) -> String {
    let package = |role: &str| {
        let generation = if role == "firmware" { "generation = 1\n" } else { "" };
        format!(
            "[[package]]\nname = \"{role}\"\nrole = \"{role}\"\npath = \"{role}.deb\"\nsha256 = \"{hash}\"\nsize = 5\n\
             file = \"f\"\n{generation}"
        )
    };
    let packages = ["kernel", "stub", "firmware"].map(package).concat();
    format!("cmdline = \"\"\nkernel_release = \"\"\nmodules = []\nshape = []\n{packages}{more}")
}

#[test]
fn input_with_another_hash_is_refused_from_every_source() {
    let dir = std::env::temp_dir().join(format!("openrelay-inputs-{}", std::process::id()));
    fs::create_dir_all(dir.join("inputs")).unwrap();
    let hash = "ab".repeat(32);
    fs::write(dir.join("lock"), lock(&hash, "")).unwrap();
    // The folder has a wrong file by the right name, and an archive has another wrong one of the right length.
    fs::write(dir.join("inputs").join(&hash), "wrong").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let archive = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            let asked = BufReader::new(&stream).lines().map_while(Result::ok).take_while(|line| !line.is_empty());
            assert!(asked.count() > 0, "it sends a request");
            (&stream).write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nother").unwrap();
        }
    });
    let mut command = Command::new(env!("CARGO_BIN_EXE_openrelay"));
    // Only that archive: apt is not in the path, so no other is known.
    command.env("PATH", "/nonexistent").current_dir(&dir).args(["image", "build", "--lock", "lock", "--out", "out"]);
    command.args(["--inputs", "inputs", "--programs", "lock", "lock", "--from", &archive]);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && fs::read_dir(dir.join("out")).unwrap().next().is_none(), "{said}");
    // SHA-256 of "other".
    let found = "d9298a10d1b0735837dc4bd85dac641b0f3cef27a47e5d53a54f2f3f5b2fcffa";
    assert!(said.contains(found) && said.contains(&format!("the lock file requires {hash}")), "{said}");
    assert_eq!(fs::read(dir.join("inputs").join(&hash)).unwrap(), b"wrong", "a wrong download is not kept");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn firmware_and_programs_are_not_built_with_a_tool_missing_from_the_lock() {
    let dir = std::env::temp_dir().join(format!("openrelay-tools-{}", std::process::id()));
    fs::create_dir_all(dir.join("inputs")).unwrap();
    let shell = fs::canonicalize("/bin/sh").unwrap();
    let digest = |bytes: &[u8]| openrelay_image::hex(&openrelay_image::sha256(bytes));
    let own = digest(&fs::read(&shell).unwrap());
    let run = |arguments: &[&str], named: &str| {
        let tool = format!("[[tool]]\nname = \"a shell\"\nask = [\"which\", \"sh\"]\nsha256 = \"{named}\"\n");
        fs::write(dir.join("lock"), lock(&"ab".repeat(32), &tool)).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_openrelay"));
        command.current_dir(&dir).args(["image"]).args(arguments).args(["--lock", "lock", "--inputs", "inputs"]);
        // No archive can be reached, so a build that passes the check of tools ends at its inputs.
        let output = command.args(["--from", "http://127.0.0.1:1"]).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let programs: &[&str] = &["build", "--kind", "client", "--out", "out"];
    let firmware: &[&str] = &["firmware", "--out", "firmware.fd"];
    let other = "cd".repeat(32);
    let refusal = format!("a shell ({}) has SHA-256 {own}, but the lock file requires {other}", shell.display());
    let said = [programs, firmware].map(|arguments| {
        let (code, said) = run(arguments, &other);
        assert!(code == Some(77) && said.contains(&refusal), "{arguments:?}: {said}");
        said.lines().find(|line| line.contains(&refusal)).unwrap_or_default().to_owned()
    });
    assert_eq!(said[0], said[1], "the same words");
    // Control: with the tool from the lock, both go on to the next missing input.
    for (arguments, ends, next) in [(programs, 1, "Cargo"), (firmware, 77, "cannot fetch the input firmware")] {
        let (code, said) = run(arguments, &own);
        assert!(code == Some(ends) && said.contains(next) && !said.contains("has SHA-256"), "{arguments:?}: {said}");
    }
    assert!(!dir.join("firmware.fd").exists());
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn tools_of_this_machine_are_written_into_the_lock_only_on_request() {
    let dir = std::env::temp_dir().join(format!("openrelay-update-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let digest = |program: &str| {
        let path = fs::canonicalize(format!("/bin/{program}")).unwrap();
        openrelay_image::hex(&openrelay_image::sha256(&fs::read(path).unwrap()))
    };
    let tool = |name: &str, hash: &str| {
        format!("[[tool]]\nname = \"{name}\"\nask = [\"which\", \"/bin/{name}\"]\nsha256 = \"{hash}\"\n")
    };
    // The lock has one hash for two tools, and only one of them has that hash.
    let (right, other) = (digest("sh"), digest("cat"));
    let written = lock(&"ab".repeat(32), &[tool("sh", &right), tool("cat", &right)].concat());
    fs::write(dir.join("lock"), &written).unwrap();
    let run = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_openrelay"));
        let output = command.current_dir(&dir).args(["image", "lock"]).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, said) = run(&["--lock", "lock"]);
    assert!(code == Some(1) && said.contains(&other) && said.contains("1 tools differ from the lock file"), "{said}");
    assert_eq!(fs::read_to_string(dir.join("lock")).unwrap(), written, "nothing is changed without a request");
    let (code, said) = run(&["--update", "--lock", "lock"]);
    assert_eq!(code, Some(0), "{said}");
    let updated = lock(&"ab".repeat(32), &[tool("sh", &right), tool("cat", &other)].concat());
    assert_eq!(fs::read_to_string(dir.join("lock")).unwrap(), updated);
    let (code, said) = run(&["--lock", "lock"]);
    assert!(code == Some(0) && said.contains("all tools match the lock file"), "{said}");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn image_is_verified_from_its_source_tree_alone() {
    for given in ["--firmware", "--programs", "--lock"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_openrelay"));
        let output = command.args(["image", "verify", given, "file", "--config", "none.toml"]).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && said.contains("from its source tree alone"), "{given}: {said}");
    }
}
