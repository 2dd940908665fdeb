//! Evidence as vendors write it and as we do: nothing panics, and what reads is written back the same.
#![no_main]
use libfuzzer_sys::fuzz_target;
use openrelay_attest::collateral::{AmdBundle, AmdCollateral, Collateral, IntelCollateral};
use openrelay_attest::raw::convert;
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
});
