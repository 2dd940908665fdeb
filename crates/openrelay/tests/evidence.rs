//! `openrelay evidence inspect` as people and scripts see it: output, exit code and messages.
#![allow(clippy::unwrap_used, reason = "a test that cannot continue must stop")]

use std::path::PathBuf;
use std::process::Command;

use base64ct::Encoding as _;
use serde_json::Value;

fn fixture(name: &str) -> String {
    format!("{}/../attest/testdata/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// Returns exit code, stdout and stderr of `openrelay evidence inspect`.
fn inspect(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_openrelay"));
    let output = command.args(["evidence", "inspect"]).args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn as_json(arguments: &[&str]) -> (i32, Value) {
    let (code, out, _) = inspect(&[arguments, &["--json"]].concat());
    (code, serde_json::from_str(&out).unwrap())
}

/// Writes a file for one test and returns its path.
fn write(name: &str, bytes: &[u8]) -> String {
    let path: PathBuf = std::env::temp_dir().join(format!("openrelay-test-{}-{name}", std::process::id()));
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

#[test]
fn genuine_quote_is_listed_with_exit_code_0() {
    let (quote, collateral) = (fixture("tdx_quote"), fixture("tdx_quote_collateral.json"));
    let arguments = [&quote, "--collateral", &collateral, "--at", "2025-06-25T02:00:00+02:00"];
    let (code, shown) = as_json(&arguments);
    assert_eq!((code, &shown["schema"], &shown["platform"]), (0, &"openrelay.evidence/1".into(), &"genuine".into()));
    assert!(shown["code"].is_null());
    assert_eq!((&shown["policy"], &shown["policy_reason"]), (&"accepted".into(), &Value::Null));
    assert!(shown["policy_leaves_out"].as_array().unwrap().contains(&"image and its firmware".into()), "{shown}");
    let facts = &shown["facts"];
    assert_eq!((&facts["environment"], &facts["tcb_status"]), (&"TDX".into(), &"UpToDate".into()));
    assert_eq!((&facts["trimmed_zero_bytes"], &facts["crl"]), (&70.into(), &"checked".into()));
    assert_eq!(facts["measurement"].as_str().unwrap().len(), 96);
    let (code, text, _) = inspect(&arguments);
    assert!(
        code == 0
            && text.starts_with("platform             genuine\npolicy               accepted\n")
            && text.contains("\ntcb_status "),
        "{text}"
    );
    // The same in hexadecimal digits, as some tools write it.
    let digits: String = std::fs::read(&quote).unwrap().iter().map(|byte| format!("{byte:02x}")).collect();
    let path = write("quote.hex", digits.as_bytes());
    let (code, other) = as_json(&[&path, "--collateral", &collateral, "--at", "2025-06-25T00:00:00Z"]);
    assert_eq!((code, &other["facts"]["identity"]), (0, &facts["identity"]));
    let packed = base64ct::Base64::encode_string(&std::fs::read(&quote).unwrap());
    std::fs::write(&path, packed.as_bytes().chunks(76).collect::<Vec<_>>().join(&b'\n')).unwrap();
    let (code, other) = as_json(&[&path, "--collateral", &collateral, "--at", "2025-06-25T00:00:00Z"]);
    assert_eq!((code, &other["facts"]["unpacked"]), (0, &"from base64".into()));
    std::fs::remove_file(path).unwrap();
}

#[test]
fn amd_report_needs_its_certificate_and_shows_a_missing_crl() {
    let report = fixture("milan_report");
    let at = ["--at", "2025-06-25T00:00:00Z"];
    let (code, shown) = as_json(&[&[report.as_str()], &at[..]].concat());
    assert_eq!((code, &shown["platform"], &shown["code"]), (5, &"refused".into(), &"no-certificate".into()));
    let leaf = base64ct::Base64::encode_string(&std::fs::read(fixture("vcek_milan.der")).unwrap());
    let pem = write("vcek.pem", format!("-----BEGIN CERTIFICATE-----\n{leaf}\n-----END CERTIFICATE-----\n").as_bytes());
    let (code, shown) = as_json(&[&[report.as_str(), "--collateral", &pem], &at[..]].concat());
    assert_eq!((code, &shown["facts"]["crl"], &shown["facts"]["product"]), (0, &"not given".into(), &"Milan".into()));
    // Genuine, but no client would accept it.
    assert_eq!((&shown["platform"], &shown["policy"]), (&"genuine".into(), &"no-crl".into()));
    assert!(shown["policy_next"].as_str().unwrap().contains("certificate revocation lists"), "{shown}");
    std::fs::remove_file(pem).unwrap();
}

#[test]
fn genuine_evidence_that_no_client_takes_is_marked_by_the_policy() {
    let (quote, collateral) = (fixture("sgx_quote"), fixture("sgx_quote_collateral.json"));
    let arguments = [quote.as_str(), "--collateral", &collateral, "--at", "2025-06-25T00:00:00Z"];
    let (code, shown) = as_json(&arguments);
    assert_eq!((code, &shown["platform"], &shown["policy"]), (0, &"genuine".into(), &"platform".into()), "{shown}");
    let (code, text, _) = inspect(&arguments);
    assert!(code == 0 && text.contains("\npolicy               refused (platform): "), "{text}");
}

#[test]
fn refused_evidence_ends_with_5_a_reason_and_the_next_step() {
    let (quote, collateral) = (fixture("tdx_quote"), fixture("tdx_quote_collateral.json"));
    let refused = |arguments: &[&str], expected: &str| {
        let (code, shown) = as_json(arguments);
        assert_eq!((code, &shown["platform"], &shown["code"]), (5, &"refused".into(), &expected.into()), "{shown}");
        assert_eq!(shown["policy"], expected, "{shown}");
        assert!(shown["reason"].is_string() && shown["next"].is_string());
        assert!(shown["facts"].as_object().unwrap().keys().all(|name| name == "trimmed_zero_bytes"), "{shown}");
        let (code, _, said) = inspect(arguments);
        assert!(code == 5 && said.starts_with(&format!("openrelay: refused ({expected}): ")), "{said}");
    };
    refused(&[&quote, "--collateral", &collateral, "--at", "2025-08-25T00:00:00Z"], "expired");
    refused(&[&quote, "--at", "2025-06-25T00:00:00Z"], "no-collateral");
    let dirty = write("dirty", &[&std::fs::read(&quote).unwrap()[..], &[0, 0, 1]].concat());
    refused(&[&dirty], "trailing-bytes");
    std::fs::remove_file(dirty).unwrap();
    refused(&[&collateral], "not-evidence");
    let large = write("large", &[&std::fs::read(&quote).unwrap()[..], &[0; 65_536]].concat());
    refused(&[&large], "too-large");
    refused(&[&quote, "--collateral", &large], "too-large");
    std::fs::remove_file(large).unwrap();
    refused(&["/dev/zero"], "too-large");
    let (code, _, said) = inspect(&[&quote, "--at", "yesterday"]);
    assert!(code == 2 && said.contains("--at"), "{said}");
    let (code, _, said) = inspect(&["/no/such/file"]);
    assert!(code == 1 && said.contains("cannot read /no/such/file"), "{said}");
}

#[test]
fn unwritable_output_is_not_a_success() {
    let (report, full) = (fixture("milan_report"), std::fs::File::create("/dev/full").unwrap());
    let mut command = Command::new(env!("CARGO_BIN_EXE_openrelay"));
    let output = command.args(["evidence", "inspect", &report]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write the result"));
    // A reader that closes the pipe ends the program with the exit code of SIGPIPE.
    let mut child = command.stdout(std::process::Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(141));
}

#[test]
fn time_without_a_zone_is_refused_with_an_example() {
    let (code, _, said) = inspect(&[&fixture("milan_report"), "--at", "2026-11-28T00:00:00"]);
    assert!(code == 2 && said.contains("2026-11-28T00:00:00Z"), "{said}");
}
