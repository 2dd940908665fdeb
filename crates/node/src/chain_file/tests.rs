#![allow(clippy::unwrap_used, reason = "a test that cannot go on must stop")]
use super::*;

const GOOD: &str = r#"
chain_id = 5
directory = "0x0000000000000000000000000000000000000001"
code_hash = "0x0000000000000000000000000000000000000000000000000000000000000002"
registry = "0x0000000000000000000000000000000000000003"
endpoints = ["https://a.example/key", "https://b.example", "http://127.0.0.1:8545"]
quorum = 2
"#;

/// Loads the good file with the lines of `key` replaced by `line`.
fn load(key: &str, line: &str) -> Result<ChainFile, String> {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("").replace(':', "-");
    let path = std::env::temp_dir().join(format!("openrelay-chain-file-{name}-{}", std::process::id()));
    let kept: Vec<&str> = GOOD.lines().filter(|own| !own.starts_with(key) || key.is_empty()).collect();
    std::fs::write(&path, format!("{}\n{line}\n", kept.join("\n"))).unwrap();
    let loaded = ChainFile::load(&path).map_err(|error| error.to_string());
    std::fs::remove_file(&path).unwrap();
    loaded
}

#[test]
fn one_endpoint_under_two_spellings_is_refused() {
    load("", "").unwrap();
    for (one, other) in [
        ("https://a.example", "https://a.example/"),
        ("https://a.example", "HTTPS://A.Example"),
        ("https://a.example", "https://a.example:443"),
        ("https://a.example", "https://a.example."),
        ("https://a.example/key", "https://a.example:443/key/"),
        ("https://user@a.example", "https://a.example"),
        ("http://127.0.0.1", "http://127.0.0.1:80/"),
        ("http://[::1]:8545", "http://[0:0:0:0:0:0:0:1]:8545"),
    ] {
        let why = load("endpoints", &format!("endpoints = [\"{one}\", \"{other}\"]")).unwrap_err();
        assert!(why.contains("endpoints") && (why.contains("second") || why.contains("begin with")), "{other}: {why}");
    }
    for other in ["https://b.example", "https://a.example:444", "https://a.example/other", "https://a.example/Key"] {
        load("endpoints", &format!("endpoints = [\"https://a.example/key\", \"{other}\"]")).unwrap();
    }
    for bad in ["https://", "https://:443", "https://a b", "https://a:b", "https://[::1", "https://a:70000"] {
        let why = load("endpoints", &format!("endpoints = [\"https://a.example\", \"{bad}\"]")).unwrap_err();
        assert!(why.contains("endpoints"), "{bad}: {why}");
    }
}

#[test]
fn one_mirror_under_two_spellings_is_refused() {
    let quorum = format!("checkpoint_quorum = 1\ncheckpoint_keys = [\"{}\"]", "ab".repeat(32));
    for key in ["mirrors", "evidence", "packages", "checkpoints"] {
        let with = |other: &str| {
            let more = if key == "checkpoints" { quorum.as_str() } else { "" };
            load("", &format!("{key} = [\"https://a.example/file\", \"{other}\"]\n{more}"))
        };
        let why = with("https://A.example:443/file/").unwrap_err();
        assert!(why.contains(key) && why.contains("second time"), "{why}");
        with("https://b.example/file").unwrap();
    }
}

#[test]
fn plain_http_to_other_machines_is_refused_unless_insecure_is_set() {
    for exposed in ["http://a.example", "http://192.0.2.1:8545", "http://[2001:db8::1]", "http://localhost.example"] {
        let line = format!("endpoints = [\"https://b.example\", \"{exposed}\"]");
        let why = load("endpoints", &line).unwrap_err();
        assert!(why.contains("plain http") && why.contains("insecure = true"), "{exposed}: {why}");
        assert!(load("endpoints", &format!("insecure = true\n{line}")).unwrap().insecure);
    }
    for local in ["http://127.0.0.1:1", "http://127.9.9.9", "http://localhost:8545", "http://[::1]:1"] {
        load("endpoints", &format!("endpoints = [\"https://b.example\", \"{local}\"]")).unwrap();
    }
}

#[test]
fn quorum_of_one_is_refused_unless_insecure_is_set() {
    let why = load("quorum", "quorum = 1").unwrap_err();
    assert!(why.contains("quorum") && why.contains("insecure = true"), "{why}");
    load("quorum", "quorum = 1\ninsecure = true").unwrap();
    assert!(load("quorum", "quorum = 0\ninsecure = true").is_err());
}

#[test]
fn duplicate_checkpoint_key_is_refused() {
    let with = |other: &str| {
        let keys = format!("checkpoint_keys = [\"{}\", \"{other}\"]", "ab".repeat(32));
        load("", &format!("checkpoints = [\"https://c.example\"]\ncheckpoint_quorum = 2\n{keys}"))
    };
    with(&"cd".repeat(32)).unwrap();
    // The same key in upper case counts as a duplicate too.
    for other in ["ab".repeat(32), "AB".repeat(32)] {
        let why = with(&other).unwrap_err();
        assert!(why.contains("checkpoint_keys"), "{why}");
    }
}

#[test]
fn max_age_above_72_hours_is_refused() {
    load("", "max_age_s = 259200").unwrap();
    assert!(load("", "max_age_s = 259201").unwrap_err().contains("max_age_s"));
}

#[test]
fn contract_address_with_a_wrong_checksum_is_refused() {
    for key in ["directory", "registry", "images", "collateral", "validators"] {
        let good = "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed";
        load(key, &format!("{key} = \"{good}\"")).unwrap();
        let why = load(key, &format!("{key} = \"{}\"", good.replace("aA", "Aa"))).unwrap_err();
        assert!(why.contains(key) && why.contains("wrong checksum (EIP-55)"), "{why}");
    }
}
