//! The relay's program as an operator meets it: version, help, usage errors, and the check of a configuration.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use openrelay_ledger::directory::{Body, DirectoryKey};
use openrelay_ledger::hex;
use openrelay_ledger::record::{Record, Role};
use openrelay_proto::keys::RelaySecret;

/// Runs the program in this folder. Returns its exit code, standard output and standard error.
fn relay(dir: &Path, arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_openrelay-relay")).current_dir(dir).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// Returns a folder with a relay's configuration, its key and a directory that is valid for this number of seconds.
fn folder(name: &str, valid: u64) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("openrelay-program-{}-{name}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let secret = [7; 32];
    let record = Record {
        relay_id: 1,
        role: Role::Ingress,
        handshake_key: hex::encode(RelaySecret::from_bytes(secret).public().as_bytes()),
        key_epoch: 0,
        endpoints: vec!["203.0.113.9:443".parse().unwrap()],
        operator: "self".into(),
        family: None,
        stake: 0,
        bandwidth_mbit: 0,
    };
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let body = Body {
        network: "selfhost-test".into(),
        sequence: 3,
        issued: now - 1_000,
        expires: now - 500 + valid,
        single_operator: true,
        relays: vec![record],
    };
    let key = DirectoryKey::from_seed([8; 32]).unwrap();
    fs::write(dir.join("directory.signed"), key.sign(&body).unwrap()).unwrap();
    fs::write(dir.join("handshake.key"), hex::encode(&secret)).unwrap();
    fs::set_permissions(dir.join("handshake.key"), fs::Permissions::from_mode(0o600)).unwrap();
    let text = format!(
        "role = \"ingress\"\nrelay_id = 1\nlisten = [\"127.0.0.1:443\"]\ndirectory = \"directory.signed\"\n\
         directory_key = \"{}\"\nhandshake_key = \"handshake.key\"\nadmission = \"open\"\n",
        hex::encode(&key.public())
    );
    fs::write(dir.join("relay.toml"), text).unwrap();
    dir
}

fn change(dir: &Path, old: &str, new: &str) {
    let text = fs::read_to_string(dir.join("relay.toml")).unwrap();
    assert!(text.contains(old), "{old}");
    fs::write(dir.join("relay.toml"), text.replace(old, new)).unwrap();
}

#[test]
fn version_help_and_usage_errors_have_the_form_of_openrelay() {
    let here = std::env::temp_dir();
    let (code, out, _) = relay(&here, &["--version"]);
    assert_eq!((code, out.as_str()), (0, concat!("openrelay-relay ", env!("CARGO_PKG_VERSION"), "\n")));
    let (code, out, _) = relay(&here, &["--help"]);
    assert!(code == 0 && out.contains("Usage: openrelay-relay run") && out.contains("handshake_key"), "{out}");
    let (code, out, err) = relay(&here, &["run", "--confg", "x"]);
    assert!(code == 2 && out.is_empty(), "{code} {out}");
    assert!(err.starts_with("error: unexpected argument '--confg' found\n\nUsage: openrelay-relay"), "{err}");
    let (code, _, err) = relay(&here, &["run", "--config=/nonexistent/relay.toml"]);
    assert!(code == 1 && err.starts_with("openrelay-relay: cannot read /nonexistent/relay.toml"), "{code} {err}");
}

#[test]
fn good_configuration_passes_the_check_which_writes_nothing() {
    let dir = folder("good", 1_000);
    let before = fs::read_dir(&dir).unwrap().count();
    assert_eq!(relay(&dir, &["--check", "relay.toml"]), (0, "relay.toml: no faults\n".into(), String::new()));
    assert_eq!(relay(&dir, &["--check=relay.toml"]).0, 0);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), before);
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn check_names_everything_that_is_wrong() {
    let dir = folder("bad", 1_000);
    change(&dir, "listen = [\"127.0.0.1:443\"]", "listen = []\nuser = 0");
    change(&dir, "relay_id = 1", "relay_id = 2");
    let (code, out, err) = relay(&dir, &["--check", "relay.toml"]);
    assert!(code == 1 && out.is_empty(), "{code} {out}");
    assert!(err.contains("key listen: must name one address") && err.contains("2 is not in the directory"), "{err}");
    assert!(err.lines().all(|line| line.starts_with("openrelay-relay: relay.toml")), "{err}");
    fs::set_permissions(dir.join("handshake.key"), fs::Permissions::from_mode(0o644)).unwrap();
    let said = relay(&dir, &["--check", "relay.toml"]).2;
    assert!(said.contains("chmod 600"), "{said}");
    change(&dir, "admission", "admision");
    let said = relay(&dir, &["--check", "relay.toml"]).2;
    assert!(said.contains("unknown field `admision`"), "{said}");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn refused_directory_ends_check_and_start_with_exit_code_5() {
    let dir = folder("expired", 0);
    for arguments in [&["--check", "relay.toml"][..], &["run", "--config", "relay.toml"]] {
        let (code, _, err) = relay(&dir, arguments);
        assert!(code == 5 && err.contains("directory.signed: directory refused"), "{arguments:?}: {code} {err}");
    }
    fs::remove_dir_all(&dir).unwrap();
    // An older directory than the one that the relay has seen.
    let dir = folder("old", 1_000);
    fs::write(dir.join("directory.seen"), "4\n").unwrap();
    let (code, _, err) = relay(&dir, &["--check", "relay.toml"]);
    assert!(code == 5 && err.contains("directory refused"), "{code} {err}");
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn machine_without_an_environment_gets_no_evidence() {
    if Path::new("/sys/kernel/config/tsm/report").exists() {
        return;
    }
    let (code, out, err) = relay(&std::env::temp_dir(), &["evidence"]);
    assert!(code == 5 && out.is_empty() && err.contains("no trusted execution environment"), "{code} {out}{err}");
}
