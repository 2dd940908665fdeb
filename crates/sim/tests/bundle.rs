//! The collateral bundle of a whole network: its encoding, and the selection of the collateral that matches evidence.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot continue must stop")]

use openrelay_attest::bundle::{AmdProduct, Bundle, MAX_BUNDLE};
use openrelay_attest::collateral::Collateral;
use openrelay_attest::evidence::Measurement;
use openrelay_attest::facts::{KeyKind, Platform};
use openrelay_sim::vendors::{Hardware, Lie, Vendors};

const NOW: u64 = 1_800_000_000;

/// Returns the vendors' bundle with one more entry of each kind, for processors that nothing here runs on.
fn bundle(vendors: &Vendors) -> Bundle {
    let mut bundle = vendors.bundle();
    let mut other = bundle.intel[0].clone();
    other.tcb_info = other.tcb_info.replace("\"fmspc\":\"", "\"fmspc\":\"ff");
    let mut of_enclaves = bundle.intel[0].clone();
    of_enclaves.tcb_info = of_enclaves.tcb_info.replace("\"id\":\"TDX\"", "\"id\":\"SGX\"");
    assert!(other != bundle.intel[0] && of_enclaves != bundle.intel[0], "{}", other.tcb_info);
    bundle.intel.extend([other, of_enclaves]);
    let mut turin: AmdProduct = bundle.amd[0].clone();
    turin.product = "Turin".into();
    turin.floor.fmc = Some(7);
    turin.collateral.crl = Some(vec![0x30, 7]);
    bundle.amd.push(turin);
    (bundle.intel_floor, bundle.amd_floor) = (18, 1 << 40);
    bundle
}

#[test]
fn bundle_round_trips_and_malformed_bundles_are_refused() {
    let bundle = bundle(&Vendors::new(NOW));
    let bytes = bundle.encode();
    assert_eq!(Bundle::decode(&bytes).unwrap(), bundle);
    let other = String::from_utf8(bytes.clone()).unwrap().replace("openrelay.collateral/1", "openrelay.collateral/2");
    assert_eq!(Bundle::decode(other.as_bytes()).unwrap_err().code(), "malformed-collateral");
    let long = [&bytes[..], &vec![b' '; MAX_BUNDLE]].concat();
    assert_eq!(Bundle::decode(&long).unwrap_err().code(), "too-large");
    // Padded with white space to exactly the maximum length.
    let just = [&bytes[..], &vec![b' '; MAX_BUNDLE - bytes.len()]].concat();
    assert_eq!(Bundle::decode(&just).unwrap(), bundle);
    let floors = bundle.floors();
    assert_eq!((floors.intel_evaluation, floors.amd.len()), (18, 2));
    assert_eq!(floors.amd[1], ("Turin".into(), bundle.amd[1].floor));
}

#[test]
fn platform_and_key_names_match_policy_names() {
    let names = [Platform::Sgx, Platform::Tdx, Platform::SevSnp].map(Platform::name);
    assert_eq!(names, ["SGX", "TDX", "SEV-SNP"]);
    let keys = [KeyKind::Pck, KeyKind::Vcek, KeyKind::Vlek].map(KeyKind::name);
    assert_eq!(keys, ["PCK", "VCEK", "VLEK"]);
}

#[test]
fn evidence_is_matched_with_collateral_of_its_platform_and_model() {
    let vendors = Vendors::new(NOW);
    let bundle = bundle(&vendors);
    let made =
        |measurement: Measurement| vendors.evidence(&Hardware::since(NOW), &measurement, &[7; 64], Lie::None).unwrap();
    let domain = made(Measurement::Tdx { mrtd: [1; 48], rtmrs: [[2; 48]; 4] });
    let found = bundle.candidates(&domain);
    let [Collateral::Intel(found)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(**found, bundle.intel[0]);
    let guest = made(Measurement::Snp([3; 48]));
    let found = bundle.candidates(&guest);
    let [Collateral::Amd(found)] = found.as_slice() else { panic!("{found:?}") };
    assert_eq!(*found, bundle.amd[0].collateral);
}
