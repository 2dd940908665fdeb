//! Evidence in the vendors' encodings and in the project's: nothing panics, and accepted input re-encodes to an equal
//! value.
#![no_main]
use libfuzzer_sys::fuzz_target;
use openrelay_attest::bundle::Bundle;
use openrelay_attest::collateral::{AmdBundle, AmdCollateral, Collateral, IntelCollateral};
use openrelay_attest::file::AttestationFile;
use openrelay_attest::manifest::Manifest;
use openrelay_attest::raw::convert;
use openrelay_attest::verdict::Staple;
use openrelay_attest::{Evidence, Roots, examine};

fuzz_target!(|data: &[u8]| {
    let roots = Roots::genuine();
    if let Ok(converted) = convert(data) {
        let bytes = converted.evidence.encode();
        assert_eq!(Evidence::decode(&bytes), Ok(converted.evidence));
    }
    if let Ok(evidence) = Evidence::decode(data) {
        assert_eq!(evidence.encode(), data);
        let none = Collateral::Amd(AmdCollateral::default());
        let _ = examine(&evidence, Some(&none), &roots, 1_750_800_000);
    }
    let _ = IntelCollateral::from_json(data);
    let _ = AmdBundle::from_pem(data);
    // Files that mirrors and validators exchange: accepted input re-encodes to the same bytes or an equal value.
    if let Ok(file) = AttestationFile::decode(data) {
        assert_eq!(AttestationFile::decode(&file.encode()), Ok(file));
    }
    if let Ok(staple) = Staple::decode(data) {
        assert_eq!(staple.encode(), data);
    }
    if let Ok(manifest) = Manifest::decode(data) {
        assert_eq!(manifest.encode(), data);
    }
    if let Ok(bundle) = Bundle::decode(data) {
        assert_eq!(Bundle::decode(&bundle.encode()), Ok(bundle));
    }
});
