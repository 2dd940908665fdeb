//! CPU time of verifying evidence, against the design's goals: `./x bench attest`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark that cannot go on must stop, and prints")]

use std::time::Instant;

use openrelay_attest::collateral::{AmdCollateral, Collateral, IntelCollateral};
use openrelay_attest::raw::convert;
use openrelay_attest::{Evidence, Roots, examine};

const ROUNDS: u32 = 200;
const RELAYS: u32 = 200;

fn read(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/testdata/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn row(what: &str, found: f64, unit: &str, goal: f64) {
    let ratio = found / goal;
    println!("{what:<44} {found:>9.3} {unit:<4} goal {goal:>7} {unit:<4} ratio {ratio:.2}{}", missed(ratio));
}

fn missed(ratio: f64) -> &'static str {
    if ratio > 1.0 { "   MISSED" } else { "" }
}

/// Returns the milliseconds that one verification takes, from the bytes that a relay sends: decoding and examining.
fn time(evidence: &Evidence, collateral: &Collateral, roots: &Roots, now: u64, rounds: u32) -> f64 {
    let bytes = evidence.encode();
    let started = Instant::now();
    for _ in 0..rounds {
        let evidence = Evidence::decode(&bytes).unwrap();
        examine(&evidence, Some(collateral), roots, now).unwrap();
    }
    started.elapsed().as_secs_f64() * 1_000.0 / f64::from(rounds)
}

fn main() {
    let roots = Roots::genuine();
    let intel = |name: &str| {
        let collateral = IntelCollateral::from_json(&read(&format!("{name}_collateral.json"))).unwrap();
        (convert(&read(name)).unwrap().evidence, Collateral::Intel(Box::new(collateral)))
    };
    let Evidence::Amd(mut report) = convert(&read("milan_report")).unwrap().evidence else { return };
    report.certificate = read("vcek_milan.der");
    let (snp, no_crl) = (Evidence::Amd(report), Collateral::Amd(AmdCollateral::default()));
    let (tdx, collateral) = intel("tdx_quote");
    let (sgx, sgx_collateral) = intel("sgx_quote");
    row("one relay, SGX", time(&sgx, &sgx_collateral, &roots, 1_750_800_000, ROUNDS), "ms", 2.0);
    row("one relay, TDX", time(&tdx, &collateral, &roots, 1_750_800_000, ROUNDS), "ms", 2.0);
    row("one relay, SEV-SNP (no revocation list)", time(&snp, &no_crl, &roots, 1_750_800_000, ROUNDS), "ms", 5.0);
    let half = RELAYS / 2;
    let all = time(&tdx, &collateral, &roots, 1_750_800_000, half) * f64::from(half)
        + time(&snp, &no_crl, &roots, 1_750_800_000, half) * f64::from(half);
    row("200 relays, half TDX, half SEV-SNP, one core", all / 1_000.0, "s", 1.0);
    for (name, evidence) in [("SGX", &sgx), ("TDX", &tdx), ("SEV-SNP", &snp)] {
        let kilobytes = f64::from(u32::try_from(evidence.encode().len()).unwrap()) / 1_024.0;
        row(&format!("{name} evidence, collateral shared"), kilobytes, "KiB", 3.0);
    }
}
