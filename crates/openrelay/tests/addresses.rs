//! An address with a wrong checksum is refused in every argument and file of operators and validators.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

const GOOD: &str = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
/// Two letters are exchanged.
const WRONG: &str = "0x5Aaeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
const CHAIN: &str = "chain_id = 5\ndirectory = \"0x0000000000000000000000000000000000000001\"\n\
    code_hash = \"0x0000000000000000000000000000000000000000000000000000000000000002\"\n\
    registry = \"0x0000000000000000000000000000000000000003\"\n\
    images = \"0x0000000000000000000000000000000000000004\"\n\
    validators = \"0x0000000000000000000000000000000000000005\"\n\
    endpoints = [\"http://127.0.0.1:1\"]\nquorum = 1\ninsecure = true\n";

fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("openrelay-addresses-{}-{name}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("chain.toml"), CHAIN).unwrap();
    dir
}

/// Runs `openrelay` in the folder and returns its exit code and what it prints.
fn openrelay(dir: &PathBuf, arguments: &[&str]) -> (i32, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_openrelay")).current_dir(dir).args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code().unwrap(), text)
}

#[test]
fn arguments_with_a_wrong_checksum_are_refused_before_anything_is_written() {
    let dir = folder("arguments");
    let relay = "relay init --dir new --chain chain.toml --role egress --endpoint 203.0.113.9:443 --advertised 10";
    let validator = "validator init --dir new --chain chain.toml --bond 5";
    for line in [
        format!("{relay} --withdrawal {WRONG}"),
        format!("{validator} --withdrawal {WRONG}"),
        format!("{validator} --withdrawal {GOOD} --family {WRONG}"),
    ] {
        let (code, said) = openrelay(&dir, &line.split(' ').collect::<Vec<_>>());
        assert!(code == 2 && said.contains("wrong checksum (EIP-55)"), "{line}: {code} {said}");
        assert!(!dir.join("new").exists(), "{line}");
    }
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn files_with_a_wrong_checksum_are_refused_with_file_and_line() {
    let dir = folder("files");
    let relay = |address: &str| {
        format!(
            "role = \"egress\"\nendpoints = [\"203.0.113.9:443\"]\nadvertised_mbit = 1\nwithdrawal = \"{address}\"\n"
        )
    };
    for (file, command, text) in [
        ("operator.toml", "relay status --dir .", relay(WRONG)),
        ("validator.toml", "validator status --dir .", format!("bond = 5\nwithdrawal = \"{WRONG}\"\n")),
        (
            "validator.toml",
            "validator status --dir .",
            format!("bond = 5\nwithdrawal = \"{GOOD}\"\nfamily = \"{WRONG}\"\n"),
        ),
    ] {
        fs::write(dir.join(file), text).unwrap();
        let (code, said) = openrelay(&dir, &command.split(' ').collect::<Vec<_>>());
        assert!(code == 1 && said.contains(file) && said.contains("wrong checksum (EIP-55)"), "{code} {said}");
    }
    fs::remove_dir_all(dir).unwrap();
}
