//! `openrelay evidence`: checks evidence of any machine offline, from files.
//!
//! Owns the display of facts and refusals. It never makes a verdict, because a verdict needs facts from the chain. It
//! reports what the released policy says about the machine, and which checks that leaves out.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use openrelay_attest::collateral::{AmdBundle, Collateral, IntelCollateral, from_base64};
use openrelay_attest::evidence::Measurement;
use openrelay_attest::facts::{Crl, Facts, Tcb, TcbVersion};
use openrelay_attest::policy::Policy;
use openrelay_attest::raw::{Converted, MAX_RAW, convert};
use openrelay_attest::{Evidence, Refusal, Roots, examine};
use openrelay_node::clock::unix_seconds;
use serde_json::{Map, Value, json};

use crate::failure::Failure;
use crate::output::say;

/// What the released policy checks here, and what only a chain can add. Both are also values in the JSON output.
const COVERED: &str =
    "platform, product, revocation, Intel's status and advisories, attributes, VMPL, guest policy, owner";
const LEFT_OUT: &str = "floors of firmware, image and its firmware, relay, key, role, block and age";

/// The size of the largest evidence in hexadecimal digits, plus two bytes.
const MAX_FILE: u64 = 2 * MAX_RAW as u64 + 2;

#[derive(clap::Subcommand)]
pub(crate) enum EvidenceCommand {
    /// Check whether evidence is genuine, and print its claims
    ///
    /// Accepts a quote of SGX or TDX, or a report of SEV-SNP. Genuine evidence may still fail a client's policy.
    Inspect {
        /// Raw quote or report
        file: PathBuf,
        /// Vendor collateral for checking the evidence
        ///
        /// Intel: a JSON object with TCB info, QE identity, their signatures and chains, and both CRLs. AMD: the VCEK
        /// or VLEK certificate and the CRL, in PEM.
        #[arg(long, value_name = "FILE")]
        collateral: Option<PathBuf>,
        /// Check as of this RFC 3339 time; default: now
        #[arg(long, value_name = "TIME", value_parser = time)]
        at: Option<chrono::DateTime<chrono::FixedOffset>>,
        /// Print one JSON object instead of text
        #[arg(long)]
        json: bool,
    },
}

/// Runs the command that the arguments name.
pub(crate) fn run(command: &EvidenceCommand) -> Result<(), Failure> {
    let EvidenceCommand::Inspect { file, collateral, at, json } = command;
    inspect(file, collateral.as_deref(), *at, *json)
}

/// Parses a time in RFC 3339 format.
fn time(text: &str) -> Result<chrono::DateTime<chrono::FixedOffset>, String> {
    chrono::DateTime::parse_from_rfc3339(text)
        .map_err(|error| format!("{error}; write a time with its zone, like 2026-11-28T00:00:00Z"))
}

/// Checks a raw quote or report with the vendors' roots and collateral, and prints the result.
///
/// # Errors
///
/// Exit code 5 if the evidence is refused.
pub(crate) fn inspect(
    file: &Path,
    collateral: Option<&Path>,
    at: Option<chrono::DateTime<chrono::FixedOffset>>,
    as_json: bool,
) -> Result<(), Failure> {
    let bytes = read(file)?;
    let collateral = collateral.map(read).transpose()?;
    let now = match at {
        Some(at) => u64::try_from(at.timestamp()).map_err(|_| Failure::new(2, "--at is before 1970"))?,
        None => unix_seconds(),
    };
    let mut shown = Map::new();
    let outcome = judge(&bytes, collateral.as_deref(), now, &mut shown);
    let (platform, code) = match &outcome {
        Ok(_) => ("genuine", Value::Null),
        Err(refusal) => ("refused", refusal.code().into()),
    };
    // The image is unknown here, so the policy is applied as for one that mitigates no published weakness.
    let policy = outcome.as_ref().map_err(Clone::clone).and_then(|facts| Policy::default().check_machine(facts, &[]));
    let said = policy.as_ref().map_or_else(Refusal::code, |()| "accepted");
    if as_json {
        let mut object = json!({"schema": "openrelay.evidence/1", "platform": platform, "code": code, "facts": shown});
        object["policy"] = said.into();
        object["policy_covers"] = COVERED.split(", ").collect();
        object["policy_leaves_out"] = LEFT_OUT.split(", ").collect();
        if let Err(refusal) = &policy {
            object["policy_reason"] = refusal.to_string().into();
            object["policy_next"] = refusal.next_step().into();
        }
        if let Err(refusal) = &outcome {
            object["reason"] = refusal.to_string().into();
            object["next"] = refusal.next_step().into();
        }
        say(&object.to_string());
    } else {
        say(&format!("platform             {platform}"));
        match &policy {
            Ok(()) => say("policy               accepted"),
            Err(refusal) => say(&format!("policy               refused ({said}): {refusal}")),
        }
        say(&format!("policy covers        {COVERED}"));
        say(&format!("policy leaves out    {LEFT_OUT}: these need the chain"));
        for (name, value) in &shown {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            say(&format!("{name:<20} {text}"));
        }
    }
    match outcome {
        Ok(_) => Ok(()),
        Err(refusal) => {
            Err(Failure::new(5, format!("refused ({}): {refusal}; {}", refusal.code(), refusal.next_step())))
        }
    }
}

/// Reads a file. If the file is too large, reads just enough to refuse it for its size.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let fault = |why: &dyn std::fmt::Display| Failure::plain(format!("cannot read {}: {why}", path.display()));
    let mut bytes = Vec::new();
    File::open(path)
        .map_err(|error| fault(&error))?
        .take(MAX_FILE)
        .read_to_end(&mut bytes)
        .map_err(|error| fault(&error))?;
    Ok(bytes)
}

/// Judges evidence, and fills `shown` as facts become known. A refusal leaves only how the evidence was unpacked.
fn judge(bytes: &[u8], collateral: Option<&[u8]>, now: u64, shown: &mut Map<String, Value>) -> Result<Facts, Refusal> {
    let unpacked = unpack(bytes);
    if let Some((from, _)) = &unpacked {
        shown.insert("unpacked".into(), format!("from {from}").into());
    }
    let Converted { mut evidence, trimmed } = convert(unpacked.as_ref().map_or(bytes, |(_, unpacked)| unpacked))?;
    if trimmed > 0 {
        shown.insert("trimmed_zero_bytes".into(), trimmed.into());
    }
    let collateral = match (&mut evidence, collateral) {
        (_, None) => None,
        (Evidence::Intel(_), Some(bytes)) => Some(Collateral::Intel(Box::new(IntelCollateral::from_json(bytes)?))),
        (Evidence::Amd(report), Some(bytes)) => {
            let bundle = AmdBundle::from_pem(bytes)?;
            report.certificate = bundle.leaf;
            Some(Collateral::Amd(bundle.collateral))
        }
    };
    // Judge what a relay would send: the project's encoding, decoded again.
    let evidence = Evidence::decode(&evidence.encode())?;
    let facts = examine(&evidence, collateral.as_ref(), &Roots::genuine(), now)?;
    shown.insert("identity".into(), hex(&evidence.identity()).into());
    list(&facts, shown);
    Ok(facts)
}

/// Unpacks hexadecimal digits or base64, which vendors' tools also write. Raw evidence is never valid text.
fn unpack(bytes: &[u8]) -> Option<(&'static str, Vec<u8>)> {
    let text: String = std::str::from_utf8(bytes).ok()?.split_whitespace().collect();
    let digits = alloy_primitives::hex::decode(&text).ok().map(|unpacked| ("hexadecimal digits", unpacked));
    let unpacked = digits.or_else(|| from_base64(&text).map(|unpacked| ("base64", unpacked)));
    unpacked.filter(|(_, unpacked)| !unpacked.is_empty())
}

fn hex(bytes: &[u8]) -> String {
    alloy_primitives::hex::encode(bytes)
}

fn list(facts: &Facts, shown: &mut Map<String, Value>) {
    let unknown = || Value::from("unknown");
    let mut put = |name: &str, value: Value| {
        shown.insert(name.to_owned(), value);
    };
    put("environment", facts.platform.name().into());
    put("simulated", facts.simulated.into());
    put("version", facts.version.into());
    put("product", facts.product.as_str().into());
    match &facts.measurement {
        Measurement::Sgx(enclave) => put("measurement", hex(enclave).into()),
        Measurement::Snp(launch) => put("measurement", hex(launch).into()),
        Measurement::Tdx { mrtd, rtmrs } => {
            put("measurement", hex(mrtd).into());
            put("rtmrs", rtmrs.iter().map(|register| hex(register)).collect());
        }
    }
    put("report_data", hex(&facts.report_data).into());
    for (name, value) in &facts.fields {
        put(name, hex(value).into());
    }
    put("key", facts.key.name().into());
    put("chip", facts.chip.map_or_else(unknown, |tag| hex(&tag).into()));
    put("smt", facts.smt.map_or_else(unknown, Value::from));
    match &facts.tcb {
        Tcb::Intel { status, advisories, evaluation } => {
            put("tcb_status", status.as_str().into());
            put("advisories", advisories.clone().into());
            put("tcb_evaluation", (*evaluation).into());
        }
        Tcb::Amd { reported, current, committed, launch } => {
            for (name, version) in [
                ("reported_tcb", reported),
                ("current_tcb", current),
                ("committed_tcb", committed),
                ("launch_tcb", launch),
            ] {
                put(name, firmware(version));
            }
        }
    }
    let crl = match facts.crl {
        Crl::Checked => "checked",
        Crl::NotGiven => "not given",
    };
    put("crl", crl.into());
    let until = i64::try_from(facts.expires).ok().and_then(|at| chrono::DateTime::from_timestamp(at, 0));
    put("holds_until", until.map_or_else(unknown, |until| until.format("%Y-%m-%dT%H:%M:%SZ").to_string().into()));
}

fn firmware(version: &TcbVersion) -> Value {
    let mut shown = json!({
        "boot_loader": version.boot_loader, "tee": version.tee, "snp": version.snp, "microcode": version.microcode,
    });
    if let Some(fmc) = version.fmc {
        shown["fmc"] = fmc.into();
    }
    shown
}
