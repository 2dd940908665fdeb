//! `openrelay selfhost` refuses networks that cannot work, and prints commands that a shell reads as meant.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]

use std::fs;
use std::path::PathBuf;
use std::process::Command;

fn folder(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("openrelay-selfhost-{}-{name}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Runs `openrelay selfhost` in the folder and returns its exit code and what it prints.
fn selfhost(dir: &PathBuf, arguments: &[&str]) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_openrelay"));
    let output = command.current_dir(dir).arg("selfhost").args(arguments).output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    (output.status.code().unwrap(), text)
}

const INGRESS: &str = "198.51.100.7:443";
const EGRESS: &str = "203.0.113.9:443";

#[test]
fn directory_without_an_ingress_or_egress_is_refused() {
    let dir = folder("remove");
    let made = ["init", "--out", "net", "--ingress", INGRESS, "--egress", EGRESS, "--egress", "203.0.113.10:443"];
    assert_eq!(selfhost(&dir, &made).0, 0);
    let before = fs::read(dir.join("net/directory.signed")).unwrap();
    for (remove, role) in [(["1"].as_slice(), "ingress"), (&["2", "3"], "egress")] {
        let mut arguments = vec!["renew", "--dir", "net"];
        arguments.extend(remove.iter().flat_map(|id| ["--remove", id]));
        let (code, said) = selfhost(&dir, &arguments);
        assert!(code == 2 && said.contains(&format!("would have no {role}")), "{code} {said}");
        assert_eq!(fs::read(dir.join("net/directory.signed")).unwrap(), before);
    }
    assert_eq!(selfhost(&dir, &["renew", "--dir", "net", "--remove", "2"]).0, 0);
    assert_ne!(fs::read(dir.join("net/directory.signed")).unwrap(), before);
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn two_relays_at_one_address_are_refused() {
    let dir = folder("shared");
    for others in [["--ingress", INGRESS, "--egress", INGRESS], ["--ingress", INGRESS, "--ingress", INGRESS]] {
        let arguments = [&["init", "--out", "net", "--egress", EGRESS], &others[..]].concat();
        let (code, said) = selfhost(&dir, &arguments);
        assert!(code == 2 && said.contains(&format!("have the same address {INGRESS}")), "{code} {said}");
        assert!(!dir.join("net").exists());
    }
    let port = ["init", "--out", "net", "--ingress", INGRESS, "--egress", "198.51.100.7:444"];
    assert_eq!(selfhost(&dir, &port).0, 0, "another port is another place");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn directory_must_be_valid_for_a_day_at_least() {
    let dir = folder("days");
    let (code, said) =
        selfhost(&dir, &["init", "--out", "net", "--ingress", INGRESS, "--egress", EGRESS, "--days", "0"]);
    assert!(code == 2 && said.contains("--days"), "{code} {said}");
    assert!(!dir.join("net").exists());
    assert_eq!(selfhost(&dir, &["init", "--out", "net", "--ingress", INGRESS, "--egress", EGRESS]).0, 0);
    assert_eq!(selfhost(&dir, &["renew", "--dir", "net", "--days", "0"]).0, 2);
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn printed_commands_quote_paths_for_a_shell() {
    let dir = folder("quote");
    let (code, said) = selfhost(&dir, &["init", "--out", "my net", "--ingress", INGRESS, "--egress", EGRESS]);
    assert_eq!(code, 0, "{said}");
    for words in ["copy 'my net/ingress-1' to", "--config 'my net/client/client.toml'", "renew --dir 'my net'"] {
        assert!(said.contains(words), "{words}: {said}");
    }
    fs::remove_dir_all(dir).unwrap();
}
